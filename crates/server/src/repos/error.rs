//! What can go wrong with a repository, told apart by what a caller should do about it.

use std::io;
use std::sync::Arc;

use baton_domain::{Attempt, Branch, Repository, SessionId};

/// Files named in a text; the rest is counted.
const FILES_SHOWN_MAX: usize = 5;

/// Why an operation on a repository failed. Texts hold no credential.
///
/// Cheap to clone: callers that shared one fetch share its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RepoError {
    /// The network, the host or its server is away. Worth trying again later.
    #[error("the remote of {repository} cannot be reached: {reason}")]
    RemoteUnreachable {
        /// The repository asked for.
        repository: Repository,
        /// What git said.
        reason: String,
    },
    /// It does not exist or the credential does not open it; hosts don't say which.
    #[error(
        "repository {repository} does not exist or access to it was denied: {reason}; check its \
         name, BATON_GIT_BASE_URL and GITHUB_TOKEN"
    )]
    RepositoryNotFound {
        /// The repository asked for.
        repository: Repository,
        /// What git said.
        reason: String,
    },
    /// There are branches, but not the one to start from.
    #[error("repository {repository} has no branch {branch}; name one that exists")]
    BranchNotFound {
        /// The repository asked for.
        repository: Repository,
        /// The missing branch; `HEAD` when the remote's default branch does not exist.
        branch: String,
    },
    /// A commit that should be in the mirror is neither there nor in the remote's branches.
    #[error("commit {commit} is not in repository {repository}")]
    CommitNotFound {
        /// The repository searched.
        repository: Repository,
        /// The missing commit.
        commit: String,
    },
    /// Nothing was decided for that attempt to start from.
    #[error("attempt {attempt} of session {session} never had code to start from")]
    NoBase {
        /// Whose attempt.
        session: SessionId,
        /// Which one.
        attempt: Attempt,
    },
    /// Two sides changed the same places.
    #[error("{sides} conflict in {}", shown(.files))]
    MergeConflict {
        /// What was to be joined, for people.
        sides: String,
        /// Conflicting paths, at most [`super::CONFLICT_FILES_MAX`].
        files: Vec<String>,
    },
    /// The remote took the call and refused the change, for example on a protected branch.
    #[error("{repository} refused the change to branch {branch}: {reason}")]
    Rejected {
        /// The repository pushed to.
        repository: Repository,
        /// The branch pushed to.
        branch: Branch,
        /// The remote's words.
        reason: String,
    },
    /// Others pushed to the branch faster than we could merge. Worth trying again later.
    #[error("branch {branch} of {repository} moved {rounds} times while the change was merged")]
    Contended {
        /// The repository pushed to.
        repository: Repository,
        /// The branch pushed to.
        branch: Branch,
        /// How often it was tried.
        rounds: usize,
    },
    /// Git failed in a way that is none of the above.
    #[error("git failed to {step} in {repository}: {stderr}")]
    Git {
        /// What was being done.
        step: &'static str,
        /// Where.
        repository: Repository,
        /// What git said, redacted and capped.
        stderr: String,
    },
    /// The mirror's files could not be read or git could not be run.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

impl RepoError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RemoteUnreachable { .. }
            | Self::Contended { .. }
            // For example no room on the disk, or no descriptor left.
            | Self::Io { .. }
            | Self::Git { .. } => true,
            Self::Rejected { reason, .. } => {
                reason.to_ascii_lowercase().contains("internal server error")
            }
            _ => false,
        }
    }

    pub(super) fn io(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            step,
            source: Arc::new(source),
        }
    }

    /// Reads the failure of a call to the remote from what git printed (with `LC_ALL=C`).
    pub(super) fn of_remote(step: &'static str, repository: &Repository, stderr: String) -> Self {
        let lower = stderr.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let repository = repository.clone();
        if says(&DENIED) {
            return Self::RepositoryNotFound {
                repository,
                reason: stderr,
            };
        }
        if says(&UNREACHABLE) {
            return Self::RemoteUnreachable {
                repository,
                reason: stderr,
            };
        }
        Self::Git {
            step,
            repository,
            stderr,
        }
    }
}

/// Git's and curl's words for "no such repository" and "not with this credential".
const DENIED: [&str; 12] = [
    "does not appear to be a git repository",
    "repository not found",
    "not found",
    "no such file or directory",
    "authentication failed",
    "could not read username",
    "could not read password",
    "returned error: 401",
    "returned error: 403",
    "returned error: 404",
    "permission denied",
    "dubious ownership",
];

/// Their words for a remote that is away, overloaded or cut the line.
const UNREACHABLE: [&str; 16] = [
    "could not resolve",
    "failed to connect",
    "couldn't connect",
    "connection refused",
    "connection reset",
    "connection timed out",
    "operation timed out",
    "operation too slow",
    "timed out",
    "network is unreachable",
    "early eof",
    "hung up unexpectedly",
    "rpc failed",
    "unexpected disconnect",
    "unable to access",
    "could not read from remote",
];

pub(super) fn shown(files: &[String]) -> String {
    let mut text = files
        .iter()
        .take(FILES_SHOWN_MAX)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if files.len() > FILES_SHOWN_MAX {
        text.push_str(&format!(" and {} more", files.len() - FILES_SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stderr: &str, expected: &str) {
        let repository = "o/r".parse().expect("a repository");
        let kind = match RepoError::of_remote("fetch", &repository, stderr.to_owned()) {
            RepoError::RemoteUnreachable { .. } => "unreachable",
            RepoError::RepositoryNotFound { .. } => "not found",
            RepoError::Git { .. } => "git",
            other => panic!("unexpected {other:?}"),
        };
        assert_eq!(kind, expected, "{stderr}");
    }

    #[test]
    fn remote_failures_are_told_apart_by_what_helps() {
        check(
            "fatal: unable to access 'https://h/o/r.git/': Could not resolve host: h",
            "unreachable",
        );
        check(
            "fatal: unable to access 'https://h/o/r.git/': The requested URL returned error: 503",
            "unreachable",
        );
        check(
            "fatal: unable to access 'https://h/o/r.git/': The requested URL returned error: 403",
            "not found",
        );
        check("remote: Repository not found.", "not found");
        check(
            "fatal: could not read Username for 'https://h': terminal prompts disabled",
            "not found",
        );
        check(
            "fatal: '/x' does not appear to be a git repository\n\
             fatal: Could not read from remote repository.",
            "not found",
        );
        check("fatal: something new", "git");
    }
}
