//! Baton, the library behind the binary.
