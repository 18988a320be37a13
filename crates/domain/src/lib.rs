//! Baton's decisions, free of IO.
//!
//! Everything here is a function of its arguments: no clock, no randomness, no files, no
//! network. The server observes the world, asks this crate what it means and what to do, and
//! does it. See `ARCHITECTURE.md` for the map.

pub mod budget;
pub mod coordination;
pub mod decompose;
pub mod dependencies;
pub mod ending;
pub mod ids;
pub mod landing;
pub mod observe;
pub mod output;
pub mod overlap;
pub mod pauses;
pub mod plan;
pub mod project;
pub mod sandbox;
pub mod schedule;
pub mod session;
pub mod steering;
#[cfg(test)]
mod testing;
pub mod waits;

pub use ids::{Attempt, ClaudeSessionId, OrchestrationId, SessionId, Version, WaitId};
pub use project::{Branch, Kind, Project, Repository};
pub use sandbox::{Sandbox, SandboxId, SandboxState, sandbox_id};
pub use session::{Session, SessionEvent, SessionState, Status};
