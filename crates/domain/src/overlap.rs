//! Which sessions that run side by side have changed the same files.

use std::collections::HashMap;

use crate::ids::SessionId;
use crate::project::Repository;

/// How many files of one session are remembered.
pub const FILES_MAX: usize = 2_000;
/// How many overlaps are told at once.
const OVERLAPS_MAX: usize = 1_000;

/// The files that live sessions have changed, as far as their own tools told.
#[derive(Debug, Default)]
pub struct Touched {
    files: HashMap<(Repository, String), Vec<SessionId>>,
    counts: HashMap<SessionId, usize>,
}

/// A file and the live sessions that have changed it, at least two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Relative to the repository.
    pub path: String,
    /// In the order in which they first changed it.
    pub sessions: Vec<SessionId>,
}

impl Touched {
    /// Notes that a session has changed a file; answers with the others that have, the first time
    /// that it is told.
    pub fn touch(
        &mut self,
        session: SessionId,
        repository: &Repository,
        path: &str,
    ) -> Vec<SessionId> {
        let count = self.counts.entry(session).or_default();
        if *count >= FILES_MAX {
            return Vec::new();
        }
        let key = (repository.clone(), path.to_owned());
        let sessions = self.files.entry(key).or_default();
        if sessions.contains(&session) {
            return Vec::new();
        }
        let others = sessions.clone();
        sessions.push(session);
        *count += 1;
        others
    }

    /// Forgets a session that has ended.
    pub fn forget(&mut self, session: SessionId) {
        if self.counts.remove(&session).is_none() {
            return;
        }
        self.files.retain(|_, sessions| {
            sessions.retain(|one| *one != session);
            !sessions.is_empty()
        });
    }

    /// What several of these sessions have changed, by path.
    #[must_use]
    pub fn among(&self, ids: &[SessionId]) -> Vec<Overlap> {
        let known: Vec<SessionId> = ids
            .iter()
            .copied()
            .filter(|id| self.counts.contains_key(id))
            .collect();
        if known.len() < 2 {
            return Vec::new();
        }
        let shared = self.files.iter().filter_map(|((_, path), sessions)| {
            let among: Vec<SessionId> = sessions
                .iter()
                .copied()
                .filter(|id| known.contains(id))
                .collect();
            (among.len() > 1).then(|| Overlap {
                path: path.clone(),
                sessions: among,
            })
        });
        let mut shared: Vec<Overlap> = shared.collect();
        shared.sort_by(|a, b| a.path.cmp(&b.path));
        shared.truncate(OVERLAPS_MAX);
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::session_id;

    fn repository(name: &str) -> Repository {
        name.parse().expect("a repository")
    }

    #[test]
    fn others_are_told_once_and_only_of_the_same_repository() {
        let mut touched = Touched::default();
        let (a, b, c) = (session_id("a"), session_id("b"), session_id("c"));
        assert!(touched.touch(a, &repository("o/r"), "x").is_empty());
        assert_eq!(touched.touch(b, &repository("o/r"), "x"), [a]);
        assert!(touched.touch(b, &repository("o/r"), "x").is_empty());
        assert!(touched.touch(c, &repository("o/other"), "x").is_empty());
        let shared = touched.among(&[a, b, c]);
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].sessions, [a, b]);
        assert!(touched.among(&[a, c]).is_empty());
    }

    #[test]
    fn who_has_ended_is_in_nobodys_way() {
        let mut touched = Touched::default();
        let (a, b) = (session_id("a"), session_id("b"));
        touched.touch(a, &repository("o/r"), "x");
        touched.forget(a);
        assert!(touched.touch(b, &repository("o/r"), "x").is_empty());
        touched.forget(b);
        assert!(touched.files.is_empty() && touched.counts.is_empty());
    }

    #[test]
    fn one_session_cannot_fill_the_memory() {
        let mut touched = Touched::default();
        for at in 0..FILES_MAX * 2 {
            touched.touch(session_id("a"), &repository("o/r"), &at.to_string());
        }
        assert_eq!(touched.files.len(), FILES_MAX);
    }
}
