//! Several results merged onto a branch's tip, one on top of the other, and pushed together.

use baton_domain::landing::{Leaf, Tip};
use baton_domain::{Branch, OrchestrationId, Repository, SessionId};

use super::base::{Base, BaseRequest};
use super::landing::Push;
use super::{RepoError, Repos, base_ref};

/// What is to be merged.
#[derive(Debug, Clone, Copy)]
pub struct StackRequest<'a> {
    /// Where the code is.
    pub repository: &'a Repository,
    /// Whose results they are.
    pub orchestration: OrchestrationId,
    /// The branch they are for.
    pub target: &'a Branch,
    /// What to merge onto; the branch's newest tip when absent, the default branch's where it does
    /// not exist.
    pub onto: Option<&'a Tip>,
    /// In the order in which they are merged.
    pub leaves: &'a [Leaf],
    /// Whether even a result that the tip could simply move to gets a merge of its own, so that
    /// the history tells it from the others.
    pub always_merge: bool,
}

/// Results on top of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stacked {
    /// What they were merged onto.
    pub tip: Tip,
    /// One commit for each result that fits: the one before it where that has the result already.
    pub commits: Vec<(SessionId, String)>,
    /// Those that contradict what was merged before them, with the conflicting paths, at most
    /// [`super::CONFLICT_FILES_MAX`].
    pub conflicts: Vec<(SessionId, Vec<String>)>,
}

impl Repos {
    /// Merges results onto a branch's tip, in the mirror only. The same request with the same tip
    /// gives the same commits. They are kept until the orchestration's next call.
    ///
    /// # Errors
    /// [`RepoError::CommitNotFound`] and those of reaching the remote.
    pub async fn stack(&self, request: StackRequest<'_>) -> Result<Stacked, RepoError> {
        let StackRequest {
            repository, target, ..
        } = request;
        let tip = match request.onto {
            Some(tip) => tip.clone(),
            None => {
                let commit = self.base_from_remote(repository, Some(target)).await?;
                let branch = self.read_ref(repository, &format!("refs/heads/{target}"))?;
                Tip {
                    commit,
                    is_new: branch.is_none(),
                }
            }
        };
        let mut top = tip.commit.clone();
        let mut commits = Vec::with_capacity(request.leaves.len());
        let mut conflicts = Vec::new();
        for leaf in request.leaves {
            self.ensure_commit(repository, &leaf.commit).await?;
            match self.on_top(&request, &top, leaf).await? {
                Ok(commit) => {
                    top.clone_from(&commit);
                    commits.push((leaf.session, commit));
                }
                Err(files) => conflicts.push((leaf.session, files)),
            }
        }
        let kept = format!("refs/baton/landing/{}", request.orchestration);
        let keep = self.call(repository, ["update-ref", &kept, &top]);
        self.local(repository, "keep merged results", keep).await?;
        Ok(Stacked {
            tip,
            commits,
            conflicts,
        })
    }

    async fn on_top(
        &self,
        request: &StackRequest<'_>,
        top: &str,
        leaf: &Leaf,
    ) -> Result<Result<String, Vec<String>>, RepoError> {
        let repository = request.repository;
        let ask = self.call(repository, ["merge-base", top, &leaf.commit]);
        let step = "find the common commit";
        let common = self.local_any_code(repository, step, ask).await?;
        let common = String::from_utf8_lossy(&common.stdout).trim().to_owned();
        if common == leaf.commit {
            return Ok(Ok(top.to_owned()));
        }
        if common == top && !request.always_merge {
            return Ok(Ok(leaf.commit.clone()));
        }
        let message = format!("Land session {}\n\n{}", leaf.session, leaf.title);
        self.merge(repository, top, &leaf.commit, &message).await
    }

    /// Pushes `commit` to branch `target` of the remote; false where the branch has moved, so that
    /// it must be merged with first. Nothing is forced, and repeating it changes nothing.
    ///
    /// # Errors
    /// [`RepoError::Rejected`] and those of reaching the remote.
    pub async fn advance(
        &self,
        repository: &Repository,
        commit: &str,
        target: &Branch,
    ) -> Result<bool, RepoError> {
        let turn = self.branch_turn(repository, target);
        let _turn = turn.lock().await;
        match self.push(repository, commit, target).await? {
            Push::Done => Ok(true),
            Push::Behind(reason) => {
                tracing::info!(%repository, %target, reason, "the branch has moved");
                Ok(false)
            }
        }
    }

    /// Whether branch `target` of the remote has `commit`.
    ///
    /// # Errors
    /// Those of reaching the remote.
    pub async fn has(
        &self,
        repository: &Repository,
        commit: &str,
        target: &Branch,
    ) -> Result<bool, RepoError> {
        self.fetch(repository).await?;
        let Some(tip) = self.read_ref(repository, &format!("refs/heads/{target}"))? else {
            return Ok(false);
        };
        let ask = self.call(repository, ["merge-base", "--is-ancestor", commit, &tip]);
        let step = "look for a commit on a branch";
        Ok(self.local_any_code(repository, step, ask).await?.code == 0)
    }

    /// Records that an attempt starts from `commit`, whatever else `request` says. The first call
    /// for an attempt decides; later ones give the same answer.
    ///
    /// # Errors
    /// [`RepoError::CommitNotFound`], [`RepoError::Git`], [`RepoError::Io`].
    pub async fn base_at(&self, request: BaseRequest<'_>, commit: &str) -> Result<Base, RepoError> {
        let fetch_ref = base_ref(request.session, request.attempt);
        let base = |commit: String, fetch_ref: String| Base {
            commit,
            fetch_ref,
            unjoined: Vec::new(),
        };
        if let Some(commit) = self.read_ref(request.repository, &fetch_ref)? {
            return Ok(base(commit, fetch_ref));
        }
        self.ensure_mirror(request.repository).await?;
        self.ensure_commit(request.repository, commit).await?;
        let keep = self.call(request.repository, ["update-ref", &fetch_ref, commit]);
        self.local(request.repository, "record a base", keep)
            .await?;
        Ok(base(commit.to_owned(), fetch_ref))
    }
}
