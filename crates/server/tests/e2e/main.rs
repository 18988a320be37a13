//! Black-box tests of the whole: the real server and its HTTP API, real Docker, real git, and the
//! real Claude Code CLI playing scripts; a misbehaving stand-in for the CLI where a test needs one.
//!
//! One binary with many modules, to be linked once. Each test has a server, a data directory and
//! a label of its own on everything in Docker, and leaves nothing behind.

mod api;
mod cleanup;
mod contradictions;
mod coordination;
mod crashes;
mod dependencies;
mod disk_full;
mod docker;
mod fake_claude;
mod hostile;
mod landings;
mod mcp;
mod orchestrate;
mod own_image;
mod pauses;
mod planner;
mod remote;
mod remote_away;
mod runtime_away;
mod sealed;
mod seed_bodies;
mod steering;
mod use_cases;
mod world;
