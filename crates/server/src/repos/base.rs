//! What an attempt starts from: the remote's branch, or the join of its dependencies' results.

use baton_domain::{Attempt, Branch, Repository, SessionId};

use super::mirror::{REMOTE_HEAD, is_id};
use super::unjoined::unjoined_ref;
use super::{RepoError, Repos, Unjoined, base_ref};

/// When work in an empty repository began. Fixed, so that all its sessions share one first
/// commit and their results can be joined.
const EMPTY_START_DATE: i64 = 946_684_800;

/// Which base is asked for.
#[derive(Debug, Clone, Copy)]
pub struct BaseRequest<'a> {
    /// Where the code is.
    pub repository: &'a Repository,
    /// Who starts from it.
    pub session: SessionId,
    /// In which attempt.
    pub attempt: Attempt,
    /// The branch to start from where it exists; else the default branch.
    pub branch: Option<&'a Branch>,
    /// The results to start from instead, if any.
    pub dependencies: &'a [DependencyCommit],
}

/// What a dependency left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DependencyCommit {
    /// The dependency.
    pub session: SessionId,
    /// Its result's commit.
    pub commit: String,
}

/// What an attempt starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The commit, as full hexadecimal id.
    pub commit: String,
    /// The reference that holds it in the mirror.
    pub fetch_ref: String,
    /// Dependencies' results that contradict it and are not in it, in the order in which they are
    /// to be merged.
    pub unjoined: Vec<Unjoined>,
}

/// What was decided, before it is recorded.
pub(super) struct Decision {
    pub(super) commit: String,
    pub(super) unjoined: Vec<DependencyCommit>,
}

impl Repos {
    /// Decides and records what an attempt starts from.
    ///
    /// Without dependencies: the tip of the branch at this moment, of the default branch where
    /// it does not exist, or an empty first commit where the repository has none. With
    /// dependencies: their commits merged, as far as they go together, one after another in the
    /// order of their sessions' ids; the others are [`Base::unjoined`]. The same commits give the
    /// same merge. The first call for an attempt decides; later ones give the same answer.
    ///
    /// # Errors
    /// [`RepoError::BranchNotFound`] where neither branch nor default branch exist,
    /// [`RepoError::CommitNotFound`], and those of reaching the remote.
    pub async fn prepare_base(&self, request: BaseRequest<'_>) -> Result<Base, RepoError> {
        if let Some(base) = self.decided(&request).await? {
            return Ok(base);
        }
        let decision = if request.dependencies.is_empty() {
            let tip = self.base_from_remote(request.repository, request.branch);
            Decision {
                commit: tip.await?,
                unjoined: Vec::new(),
            }
        } else {
            self.base_from_dependencies(request.repository, request.dependencies)
                .await?
        };
        if let Err(error) = self.record(&request, &decision).await {
            // Somebody asked for the same base at the same time and was first.
            if let Some(base) = self.decided(&request).await? {
                return Ok(base);
            }
            if request.dependencies.is_empty() {
                return Err(error);
            }
            // Git records no commit that it does not have; asking beforehand takes a process.
            self.ensure_commit(request.repository, &decision.commit)
                .await?;
            self.record(&request, &decision).await?;
        }
        self.base(&request, decision).await
    }

    /// What was recorded for the attempt.
    pub(super) async fn decided(
        &self,
        request: &BaseRequest<'_>,
    ) -> Result<Option<Base>, RepoError> {
        let (session, attempt) = (request.session, request.attempt);
        let Some(commit) = self.read_ref(request.repository, &base_ref(session, attempt))? else {
            return Ok(None);
        };
        let unjoined = if request.dependencies.is_empty() {
            Vec::new()
        } else {
            self.unjoined_of(request.repository, session, attempt)?
        };
        let decision = Decision { commit, unjoined };
        self.base(request, decision).await.map(Some)
    }

    pub(super) async fn base(
        &self,
        request: &BaseRequest<'_>,
        decision: Decision,
    ) -> Result<Base, RepoError> {
        let (session, attempt) = (request.session, request.attempt);
        let Decision { commit, unjoined } = decision;
        let unjoined = self
            .described(request.repository, session, attempt, &commit, unjoined)
            .await?;
        Ok(Base {
            commit,
            fetch_ref: base_ref(session, attempt),
            unjoined,
        })
    }

    /// The base last: where a crash comes in between, there is no base yet, and the next call
    /// writes over what there is. One transaction of git's could be torn by it in any order.
    pub(super) async fn record(
        &self,
        request: &BaseRequest<'_>,
        decision: &Decision,
    ) -> Result<(), RepoError> {
        let (session, attempt) = (request.session, request.attempt);
        let unjoined = decision.unjoined.iter().enumerate().map(|(at, one)| {
            let name = unjoined_ref(session, attempt, at, one);
            format!("update {name} {}\n", one.commit)
        });
        let unjoined: String = unjoined.collect();
        if !unjoined.is_empty() {
            self.write_refs(request.repository, unjoined).await?;
        }
        let name = base_ref(session, attempt);
        let base = format!("create {name} {}\n", decision.commit);
        self.write_refs(request.repository, base).await
    }

    async fn write_refs(&self, repository: &Repository, lines: String) -> Result<(), RepoError> {
        let write = self
            .call(repository, ["update-ref", "--stdin"])
            .stdin(lines);
        self.local(repository, "record a base", write).await?;
        Ok(())
    }

    /// What an attempt started from.
    ///
    /// # Errors
    /// [`RepoError::NoBase`] when none was decided for it.
    pub async fn base_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<String, RepoError> {
        let found = self.read_ref(repository, &base_ref(session, attempt))?;
        found.ok_or(RepoError::NoBase { session, attempt })
    }

    pub(super) async fn base_from_remote(
        &self,
        repository: &Repository,
        branch: Option<&Branch>,
    ) -> Result<String, RepoError> {
        self.fetch(repository).await?;
        if let Some(branch) = branch
            && let Some(tip) = self.read_ref(repository, &format!("refs/heads/{branch}"))?
        {
            return Ok(tip);
        }
        if let Some(tip) = self.read_ref(repository, REMOTE_HEAD)? {
            return Ok(tip);
        }
        let list = self.call(
            repository,
            ["for-each-ref", "--count=1", "refs/heads", "refs/tags"],
        );
        let branches = self.local(repository, "list branches", list).await?;
        if branches.stdout.is_empty() {
            return self.first_commit(repository).await;
        }
        Err(RepoError::BranchNotFound {
            repository: repository.clone(),
            branch: branch.map_or_else(|| "HEAD".to_owned(), ToString::to_string),
        })
    }

    /// An empty commit for a repository that has none; the same for everyone who asks.
    async fn first_commit(&self, repository: &Repository) -> Result<String, RepoError> {
        let tree = self.call(repository, ["hash-object", "-t", "tree", "-w", "/dev/null"]);
        let tree = self.local(repository, "write the empty tree", tree).await?;
        let tree = String::from_utf8_lossy(&tree.stdout).trim().to_owned();
        self.commit_tree(
            repository,
            &tree,
            &[],
            EMPTY_START_DATE,
            "Start an empty repository",
        )
        .await
    }

    async fn base_from_dependencies(
        &self,
        repository: &Repository,
        dependencies: &[DependencyCommit],
    ) -> Result<Decision, RepoError> {
        self.ensure_mirror(repository).await?;
        if let Some(odd) = dependencies.iter().find(|one| !is_id(&one.commit)) {
            return Err(RepoError::CommitNotFound {
                repository: repository.clone(),
                commit: odd.commit.clone(),
            });
        }
        // In one order, whatever order the client named them in: dependents of the same sessions
        // then start from the same commit and merge with each other without detours.
        let mut dependencies = dependencies.to_vec();
        dependencies.sort_by(|a, b| (a.session, &a.commit).cmp(&(b.session, &b.commit)));
        let tips = self.independent(repository, &dependencies).await?;
        let Some((first, others)) = tips.split_first() else {
            return Err(self.failure(
                repository,
                "find the newest results",
                "it named none of them".to_owned(),
            ));
        };
        let mut commit = first.commit.clone();
        let mut joined = vec![first.session.to_string()];
        let mut unjoined = Vec::new();
        for tip in others {
            let message = format!(
                "Join the results of sessions {} and {}",
                joined.join(", "),
                tip.session
            );
            match self
                .merge(repository, &commit, &tip.commit, &message)
                .await?
            {
                Ok(merge) => {
                    commit = merge;
                    joined.push(tip.session.to_string());
                }
                Err(_) => unjoined.push(tip.clone()),
            }
        }
        Ok(Decision { commit, unjoined })
    }

    /// Those that no other one contains, each commit once.
    async fn independent(
        &self,
        repository: &Repository,
        dependencies: &[DependencyCommit],
    ) -> Result<Vec<DependencyCommit>, RepoError> {
        let mut tips: Vec<DependencyCommit> = Vec::new();
        for dependency in dependencies {
            if !tips.iter().any(|tip| tip.commit == dependency.commit) {
                tips.push(dependency.clone());
            }
        }
        if tips.len() == 1 {
            return Ok(tips);
        }
        let ask = || {
            let options = ["merge-base", "--independent"].into_iter();
            let commits = tips.iter().map(|tip| tip.commit.as_str());
            self.call(repository, options.chain(commits))
        };
        let step = "find the newest results";
        let mut output = self.local_any_code(repository, step, ask()).await?;
        if output.code != 0 {
            for tip in &tips {
                self.ensure_commit(repository, &tip.commit).await?;
            }
            output = self.local(repository, step, ask()).await?;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        tips.retain(|tip| text.lines().any(|line| line == tip.commit));
        Ok(tips)
    }

    /// Sees to it that `commit` is in the mirror, fetching if need be: a mirror that was lost and
    /// made again has what the remote has.
    pub(super) async fn ensure_commit(
        &self,
        repository: &Repository,
        commit: &str,
    ) -> Result<(), RepoError> {
        let missing = || RepoError::CommitNotFound {
            repository: repository.clone(),
            commit: commit.to_owned(),
        };
        let object = format!("{commit}^{{commit}}");
        let look = || self.call(repository, ["cat-file", "-e", &object]);
        let step = "look for a commit";
        if self.local_any_code(repository, step, look()).await?.code == 0 {
            return Ok(());
        }
        self.fetch(repository).await?;
        if self.local_any_code(repository, step, look()).await?.code == 0 {
            return Ok(());
        }
        Err(missing())
    }
}
