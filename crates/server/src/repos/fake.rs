//! A codebase in memory: what simulations of thousands of graphs use in place of git.
//!
//! A commit is the set of works in it, so that the same works merged in any order are the same
//! commit, and it can be asked whose work is in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use baton_domain::{Attempt, Branch, Repository, SessionId};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::{
    Base, BaseRequest, Change, Codebase, DependencyCommit, FileChange, Landed, RepoError, Started,
    Unjoined, Unresolved, WorkResult, base_ref, unjoined_refs,
};

/// Code that exists only in memory. Clones share it.
#[derive(Clone, Default)]
pub struct FakeCodebase {
    code: Arc<Mutex<Code>>,
    turned_away: Arc<Notify>,
}

/// Whose work is in a commit.
pub type Works = BTreeSet<(SessionId, Attempt)>;

#[derive(Default)]
struct Code {
    remote_is_away: bool,
    commits: HashMap<String, Works>,
    bases: HashMap<(SessionId, Attempt), Base>,
    results: HashMap<(SessionId, Attempt), String>,
    tips: HashMap<(Repository, Branch), String>,
    contrary: HashSet<SessionId>,
    guarded: HashSet<Branch>,
}

impl FakeCodebase {
    /// The agent of an attempt pushes what Claude wrote, on top of its base, and merged with what
    /// was unjoined where it `merges`. Pushing again changes nothing.
    ///
    /// # Panics
    /// When the attempt has no base: no agent is given a job without one.
    #[track_caller]
    pub fn pushes(&self, session: SessionId, attempt: Attempt, merges: bool) -> String {
        let mut code = self.code();
        let Some(base) = code.bases.get(&(session, attempt)).cloned() else {
            panic!("attempt {attempt} of session {session} has no code it could change");
        };
        let mut works = code.works(&base.commit);
        works.insert((session, attempt));
        for one in base.unjoined.iter().filter(|_| merges) {
            works.extend(code.works(&one.commit));
        }
        let commit = code.commit(works);
        code.results.insert((session, attempt), commit.clone());
        commit
    }

    /// What any attempt of `session` leaves contradicts all that others leave.
    pub fn contradicts(&self, session: SessionId) {
        self.code().contrary.insert(session);
    }

    /// The remote refuses every change of `branch`.
    pub fn guards(&self, branch: Branch) {
        self.code().guarded.insert(branch);
    }

    /// The remote stops answering; mirrors stay.
    pub fn remote_goes_away(&self) {
        self.code().remote_is_away = true;
    }

    /// The remote answers again.
    pub fn remote_comes_back(&self) {
        self.code().remote_is_away = false;
    }

    /// Returns when somebody asked for a remote that is away, and will ask again after a pause.
    pub async fn turned_away(&self) {
        self.turned_away.notified().await;
    }

    /// Whose work is in `commit`; nobody's in one that was never made.
    #[must_use]
    pub fn works(&self, commit: &str) -> Works {
        self.code().works(commit)
    }

    /// Whose work is on a branch of the remote.
    #[must_use]
    pub fn landed(&self, repository: &Repository, branch: &Branch) -> Works {
        let code = self.code();
        let tip = code.tips.get(&(repository.clone(), branch.clone()));
        tip.map(|tip| code.works(tip)).unwrap_or_default()
    }

    fn code(&self) -> MutexGuard<'_, Code> {
        self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self, repository: &Repository) -> RepoError {
        self.turned_away.notify_one();
        RepoError::RemoteUnreachable {
            repository: repository.clone(),
            reason: "the fake remote is away".to_owned(),
        }
    }
}

impl Code {
    fn works(&self, commit: &str) -> Works {
        self.commits.get(commit).cloned().unwrap_or_default()
    }

    fn commit(&mut self, works: Works) -> String {
        let mut digest = Sha256::new();
        for (session, attempt) in &works {
            digest.update(format!("{session} {attempt};"));
        }
        let mut name = String::with_capacity(40);
        for byte in &digest.finalize()[..20] {
            let _ = write!(name, "{byte:02x}"); // a string takes all
        }
        self.commits.entry(name.clone()).or_insert(works);
        name
    }

    /// Both together, unless one brings what contradicts the other.
    fn merged(&self, ours: &Works, theirs: &Works) -> Option<Works> {
        let brings_contrary = |from: &Works, to: &Works| {
            let mut new = from.difference(to);
            new.any(|(session, _)| self.contrary.contains(session))
        };
        let one_has_all = ours.is_subset(theirs) || theirs.is_subset(ours);
        let fits = one_has_all || !(brings_contrary(ours, theirs) || brings_contrary(theirs, ours));
        fits.then(|| ours.union(theirs).copied().collect())
    }

    fn base(&mut self, request: &BaseRequest<'_>) -> Base {
        let mut works = None::<Works>;
        let mut unjoined = Vec::new();
        for one in request.dependencies {
            let theirs = self.works(&one.commit);
            match works.as_ref().map(|ours| self.merged(ours, &theirs)) {
                None => works = Some(theirs),
                Some(Some(both)) => works = Some(both),
                Some(None) => unjoined.push(Unjoined {
                    session: one.session,
                    commit: one.commit.clone(),
                    fetch_ref: unjoined_refs(request.session, request.attempt),
                    files: vec!["disputed".to_owned()],
                }),
            }
        }
        let works = works.unwrap_or_else(|| {
            let branch = request.branch.cloned();
            let tip =
                branch.and_then(|branch| self.tips.get(&(request.repository.clone(), branch)));
            tip.map(|tip| self.works(tip)).unwrap_or_default()
        });
        Base {
            commit: self.commit(works),
            fetch_ref: base_ref(request.session, request.attempt),
            unjoined,
        }
    }
}

#[async_trait]
impl Codebase for FakeCodebase {
    async fn prepare_base(&self, request: BaseRequest<'_>) -> Result<Base, RepoError> {
        let mut code = self.code();
        let key = (request.session, request.attempt);
        if let Some(base) = code.bases.get(&key) {
            return Ok(base.clone());
        }
        if request.dependencies.is_empty() && code.remote_is_away {
            return Err(self.away(request.repository));
        }
        let base = code.base(&request);
        code.bases.insert(key, base.clone());
        Ok(base)
    }

    async fn base_at(&self, request: BaseRequest<'_>, commit: &str) -> Result<Base, RepoError> {
        let base = Base {
            commit: commit.to_owned(),
            fetch_ref: base_ref(request.session, request.attempt),
            unjoined: Vec::new(),
        };
        let mut code = self.code();
        let bases = code.bases.entry((request.session, request.attempt));
        Ok(bases.or_insert(base).clone())
    }

    async fn resumed_base(
        &self,
        request: BaseRequest<'_>,
        earlier: Attempt,
    ) -> Result<Base, RepoError> {
        let mut code = self.code();
        let key = (request.session, request.attempt);
        if let Some(base) = code.bases.get(&key) {
            return Ok(base.clone());
        }
        let from = (request.session, earlier);
        let Some(base) = code.bases.get(&from).cloned() else {
            return Err(RepoError::NoBase {
                session: request.session,
                attempt: earlier,
            });
        };
        let left = code.results.get(&from).cloned();
        let base = Base {
            commit: left.unwrap_or(base.commit),
            fetch_ref: base_ref(request.session, request.attempt),
            unjoined: base.unjoined,
        };
        code.bases.insert(key, base.clone());
        Ok(base)
    }

    async fn base_of(
        &self,
        _repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<String, RepoError> {
        let code = self.code();
        let base = code.bases.get(&(session, attempt));
        base.map(|base| base.commit.clone())
            .ok_or(RepoError::NoBase { session, attempt })
    }

    fn unjoined_of(
        &self,
        _repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Vec<DependencyCommit>, RepoError> {
        let code = self.code();
        let unjoined = code
            .bases
            .get(&(session, attempt))
            .map(|base| &base.unjoined);
        let unjoined = unjoined.into_iter().flatten().map(|one| DependencyCommit {
            session: one.session,
            commit: one.commit.clone(),
        });
        Ok(unjoined.collect())
    }

    async fn result_since(
        &self,
        _repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        first: &str,
    ) -> Result<WorkResult, RepoError> {
        let code = self.code();
        let pushed = code.results.get(&(session, attempt));
        let commit = pushed.map_or(base, String::as_str);
        if commit == first {
            return Ok(WorkResult::unchanged(first));
        }
        let commit = commit.to_owned();
        Ok(WorkResult {
            commit: commit.clone(),
            files: vec![FileChange {
                path: format!("{session}-{attempt}"),
                change: Change::Created,
            }],
            commits: vec![commit.clone()],
            files_changed: 1,
            insertions: 1,
            deletions: 0,
        })
    }

    async fn unresolved(
        &self,
        started: Started<'_>,
        commit: &str,
        _unmerged: &[String],
    ) -> Result<Option<Unresolved>, RepoError> {
        let code = self.code();
        let works = code.works(commit);
        let missing = started
            .unjoined
            .iter()
            .filter(|one| !code.works(&one.commit).is_subset(&works));
        let sessions: Vec<SessionId> = missing.map(|one| one.session).collect();
        Ok((!sessions.is_empty()).then(|| Unresolved {
            sessions,
            ..Unresolved::default()
        }))
    }

    async fn land(
        &self,
        repository: &Repository,
        commit: &str,
        base: &str,
        target: &Branch,
        _message: &str,
    ) -> Result<Landed, RepoError> {
        let mut code = self.code();
        let unmerged = Landed {
            commit: commit.to_owned(),
            merged: false,
        };
        if commit == base {
            return Ok(unmerged);
        }
        if code.remote_is_away {
            return Err(self.away(repository));
        }
        if code.guarded.contains(target) {
            return Err(RepoError::Rejected {
                repository: repository.clone(),
                branch: target.clone(),
                reason: "the fake remote guards it".to_owned(),
            });
        }
        let key = (repository.clone(), target.clone());
        let ours = code.works(commit);
        let theirs = code.tips.get(&key).map(|tip| code.works(tip));
        let theirs = theirs.unwrap_or_default();
        let Some(both) = code.merged(&ours, &theirs) else {
            return Err(RepoError::MergeConflict {
                sides: format!("{commit} and {target}"),
                files: vec!["disputed".to_owned()],
            });
        };
        let tip = code.commit(both);
        code.tips.insert(key, tip.clone());
        Ok(Landed {
            merged: tip != commit,
            commit: tip,
        })
    }
}
