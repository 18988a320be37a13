//! A sandbox as the runtime shows it: the container or pod of one attempt.

use std::fmt;

use jiff::Timestamp;

use crate::ids::{Attempt, SessionId};
use crate::project::Kind;

/// A sandbox's name; the wire's `containerId`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(pub String);

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sandbox as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its name.
    pub id: SandboxId,
    /// The session it was made for.
    pub session: SessionId,
    /// The attempt it was made for.
    pub attempt: Attempt,
    /// What it does.
    pub state: SandboxState,
    /// When it was made, by the runtime's clock.
    pub created_at: Timestamp,
}

/// What a sandbox does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Made, never started.
    Prepared,
    /// Its agent runs.
    Running,
    /// Its agent has ended.
    Exited {
        /// The agent's exit code.
        code: i64,
        /// Whether the kernel killed a process of it for want of memory. Not by itself a sign
        /// that the session failed: it may have been a child of Claude's.
        oom_killed: bool,
    },
    /// Gone.
    Removed,
}

/// The name of the sandbox of one attempt, the same on every call: `claude-<kind>-<12 hex digits>`,
/// and `-<attempt>` after the first attempt.
///
/// Clients of the original know `claude-implementation-ed226a72`. Our ids begin with their time,
/// so that the first digits of two sessions made together are equal; the last twelve are random.
#[must_use]
pub fn sandbox_id(kind: Kind, session: SessionId, attempt: Attempt) -> SandboxId {
    let hex = session.0.simple().to_string();
    let end = &hex[hex.len() - 12..];
    SandboxId(match attempt {
        Attempt::FIRST => format!("claude-{kind}-{end}"),
        Attempt(later) => format!("claude-{kind}-{end}-{later}"),
    })
}
