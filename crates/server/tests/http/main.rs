//! The HTTP door from outside: real connections to a real server over a real store.

mod app;
mod bad_inputs;
mod door;
mod events;
mod idempotency;
mod lists;
mod mcp;
mod orchestrations;
mod seed;
mod sessions;
mod steering;
