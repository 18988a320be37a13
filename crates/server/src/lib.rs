//! Baton, the library behind the binary.

pub mod gateway;
pub mod repos;
