//! Baton, the library behind the binary.

pub mod api;
pub mod http;
pub mod orchestrator;
pub mod store;
