//! Baton, the library behind the binary.

pub mod agent_binary;
