//! The sandbox of one attempt: its name, and what was seen of it.

use std::fmt;

use jiff::Timestamp;

use crate::ids::{Attempt, SessionId};
use crate::project::Kind;

/// How many of the session id's last hex digits go into the name: the whole last group.
const ID_DIGITS: usize = 12;

/// A sandbox's name: the container's name and, on the wire, `containerId`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(pub String);

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a runtime saw of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its name.
    pub id: SandboxId,
    /// Whose it is.
    pub session: SessionId,
    /// Which of the session's attempts it holds.
    pub attempt: Attempt,
    /// Where it stands.
    pub state: SandboxState,
    /// When it was made; for [`SandboxState::Removed`], when it was seen to be gone.
    pub created_at: Timestamp,
}

/// Where a sandbox stands, as the runtime sees it. It says nothing about the session's outcome:
/// that is what Claude's own report says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxState {
    /// Made, never started.
    Prepared,
    /// Its first process runs.
    Running,
    /// Its first process ended; it is not started again.
    Exited {
        /// The exit code, 128 plus the signal's number when a signal ended it.
        code: i64,
        /// The kernel killed *a* process in it for want of memory, not necessarily the first.
        oom_killed: bool,
        /// When.
        finished_at: Timestamp,
    },
    /// It exists no longer. Only seen while watching: a list has no entry for it.
    Removed,
}

/// The name of a sandbox, `claude-<kind>-<end of the session id>`, and `-<attempt>` from the
/// second attempt on.
///
/// Derived, not drawn: asking twice names the same container, so the runtime itself refuses a
/// second one. The *end* of the id, because ids that are made in order share their beginning.
/// Two sessions whose ids end alike clash; the runtime reports that, see its labels.
#[must_use]
pub fn sandbox_id(kind: Kind, session: SessionId, attempt: Attempt) -> SandboxId {
    let hex = session.0.simple().to_string();
    let end = &hex[hex.len() - ID_DIGITS..];
    if attempt > Attempt::FIRST {
        SandboxId(format!("claude-{kind}-{end}-{attempt}"))
    } else {
        SandboxId(format!("claude-{kind}-{end}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(session: &str, attempt: u32, expected: &str) {
        let session = session.parse().expect("the test's id is a UUID");
        let id = sandbox_id(Kind::Implementation, session, Attempt(attempt));
        assert_eq!(id.to_string(), expected);
    }

    #[test]
    fn a_name_ends_like_the_id_in_lower_case() {
        check(
            "0192D1F6-0000-7000-8000-00ABCDEF0001",
            1,
            "claude-implementation-00abcdef0001",
        );
    }

    #[test]
    fn later_attempts_have_names_of_their_own() {
        let id = "0192d1f6-0000-7000-8000-00abcdef0001";
        check(id, 2, "claude-implementation-00abcdef0001-2");
        check(id, 12, "claude-implementation-00abcdef0001-12");
    }

    #[test]
    fn ids_of_one_millisecond_have_different_names() {
        let kind = Kind::Testing;
        let [one, other] = [
            "0192d1f6-0000-7000-8000-00abcdef0001",
            "0192d1f6-0000-7000-8000-00abcdef0002",
        ]
        .map(|id| id.parse().expect("the test's id is a UUID"));
        assert_ne!(
            sandbox_id(kind, one, Attempt::FIRST),
            sandbox_id(kind, other, Attempt::FIRST)
        );
    }
}
