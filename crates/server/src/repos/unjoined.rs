//! Results that contradict the base of the session that depends on them: it has to merge them.

use baton_domain::{Attempt, Repository, SessionId};

use super::merge::{Unrelated, shown_paths};
use super::{DependencyCommit, RepoError, Repos, unjoined_refs};

/// A dependency's result that could not be joined with the others to a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unjoined {
    /// Whose result it is.
    pub session: SessionId,
    /// Its commit.
    pub commit: String,
    /// The reference that holds it for the dependent's sandbox.
    pub fetch_ref: String,
    /// Paths that conflict with the base, at most [`super::CONFLICT_FILES_MAX`]. Empty where
    /// nothing but the naming of directories does, and where the histories share no commit.
    pub files: Vec<String>,
}

impl Repos {
    /// The results that an attempt's base does not hold, in the order in which they are to be
    /// merged; as they were recorded with the base.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn unjoined_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Vec<DependencyCommit>, RepoError> {
        let found = self.refs_below(repository, &unjoined_refs(session, attempt))?;
        let mut found: Vec<_> = found
            .into_iter()
            .filter_map(|(name, commit)| {
                let (at, session) = name.split_once('-')?;
                let session = session.parse().ok()?;
                Some((
                    at.parse::<usize>().ok()?,
                    DependencyCommit { session, commit },
                ))
            })
            .collect();
        found.sort_by_key(|(at, _)| *at);
        Ok(found.into_iter().map(|(_, unjoined)| unjoined).collect())
    }

    /// The same with what they conflict in. Git is asked for that each time: of the same commits
    /// it says the same.
    pub(super) async fn described(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        unjoined: Vec<DependencyCommit>,
    ) -> Result<Vec<Unjoined>, RepoError> {
        let mut described = Vec::with_capacity(unjoined.len());
        for (at, one) in unjoined.into_iter().enumerate() {
            let merged = self
                .merged_tree(repository, base, &one.commit, Unrelated::Merged)
                .await?;
            described.push(Unjoined {
                session: one.session,
                fetch_ref: unjoined_ref(session, attempt, at, &one),
                commit: one.commit,
                files: merged.map_or_else(Vec::new, |merged| shown_paths(&merged.conflicts)),
            });
        }
        Ok(described)
    }
}

/// Holds what [`Repos::unjoined_of`] reads: the place in the order and whose result it is.
pub(super) fn unjoined_ref(
    session: SessionId,
    attempt: Attempt,
    at: usize,
    unjoined: &DependencyCommit,
) -> String {
    let folder = unjoined_refs(session, attempt);
    format!("{folder}/{at}-{}", unjoined.session)
}
