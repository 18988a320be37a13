//! How a session stands, as others see it.

use serde::{Deserialize, Serialize};

/// What a dependency's state means to those that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may still complete.
    Open,
    /// Its result can be built on.
    Completed,
    /// It will not complete unless somebody retries it.
    Lost,
}

/// The states as the wire names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Created, or its container is starting.
    Initializing,
    /// Asked to start, waits for dependencies.
    Pending,
    /// Ready, waits for a slot or for the end of a pause.
    Queued,
    /// Claude works, waits for sessions of its own, or its work is being landed.
    Running,
    /// Done.
    Completed,
    /// Did not come to a good end.
    Failed,
    /// Cancelled.
    Cancelled,
    /// A dependency is in its way for good.
    Blocked,
}

impl Status {
    /// All of them, in the order a session may pass through.
    pub const ALL: [Self; 8] = [
        Self::Initializing,
        Self::Pending,
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Blocked,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Blocked => "blocked",
        }
    }
}
