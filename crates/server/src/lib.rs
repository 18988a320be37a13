//! Baton, the library behind the binary.
//!
//! Two doors, one orchestrator behind them; a reconciler that makes what is recorded come true;
//! a gateway for what runs in sandboxes. See `ARCHITECTURE.md` for the map.

pub mod agent_binary;
pub mod api;
pub mod blocked;
pub mod claude;
pub mod cli;
pub mod clock;
pub mod conclude;
pub mod config;
pub mod failpoint;
pub mod gateway;
pub mod http;
pub mod image;
pub mod landing;
pub mod launch;
pub mod mcp;
pub mod open_waits;
pub mod orchestrator;
pub mod reconcile;
pub mod repos;
pub mod runtime;
pub mod server;
pub mod store;
pub mod transition;
