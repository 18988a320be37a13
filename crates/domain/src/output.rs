//! Claude's messages → log lines, artifacts, summary, next steps.

use serde::{Deserialize, Serialize};

/// A thing a session left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Artifact {
    /// A file created or changed.
    File {
        /// Relative to the repository.
        path: String,
    },
    /// A commit.
    Commit {
        /// Its full name.
        sha: String,
    },
}

/// Where a session's work is, with its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionResult {
    /// The branch it landed on; absent where nothing was to land.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub branch: Option<String>,
    /// The commit it started from.
    pub base_commit: String,
    /// The commit with its work; the base where it left no change.
    pub commit: String,
    /// Files that differ between the two.
    pub files_changed: u64,
    /// Lines added.
    pub insertions: u64,
    /// Lines removed.
    pub deletions: u64,
}
