//! Baton, the library behind the binary.

pub mod repos;
