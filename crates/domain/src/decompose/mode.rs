//! What waits for what in an orchestration.

use serde::{Deserialize, Serialize};

/// What waits for what in an orchestration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyMode {
    /// Independent sessions together.
    Parallel,
    /// One by one.
    Sequential,
    /// Analysis, then implementation together, then testing and review.
    WaitForCore,
}

impl DependencyMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Parallel, Self::Sequential, Self::WaitForCore];

    /// The word on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::WaitForCore => "wait_for_core",
        }
    }
}
