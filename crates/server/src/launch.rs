//! From a session to what its sandbox is told: the code to start from and the command to run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use baton_agent::protocol::{Checkout, Job, Merge, Timers};
use baton_domain::ending::{FailureCode, Outcome};
use baton_domain::{Attempt, Kind, Session, SessionId};

use crate::claude::{self, Contradiction, Precursor};
use crate::config::{KindLimits, Waits};
use crate::repos::{Base, BaseRequest, DependencyCommit, RepoError, Repos, result_ref};
use crate::store::{Store, StoreError};

/// Where sandboxes find their repository on the socket.
pub const GIT_PATH: &str = "/git/repository.git";
/// How often an unreachable remote is asked again before the session fails.
const REMOTE_TRIES_MAX: u32 = 5;
/// The pause after the first of these tries; it doubles.
const REMOTE_PAUSE: Duration = Duration::from_millis(500);
/// The author of commits that are made in sandboxes.
const AUTHOR: (&str, &str) = ("Claude", "claude@baton.invalid");

/// Makes jobs.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    repos: Repos,
    waits: Waits,
    limits: Arc<HashMap<Kind, KindLimits>>,
}

/// Why there is no job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The session cannot be run; the outcome says why.
    #[error("the session cannot be run: {0:?}")]
    Hopeless(Outcome),
    /// The store did not answer; later it may.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Jobs {
    /// Jobs from these parts.
    #[must_use]
    pub fn new(
        store: Store,
        repos: Repos,
        waits: Waits,
        limits: Arc<HashMap<Kind, KindLimits>>,
    ) -> Self {
        Self {
            store,
            repos,
            waits,
            limits,
        }
    }

    /// The job of a session's attempt; the same on every call, since its base is kept in a ref.
    ///
    /// # Errors
    /// [`JobError`].
    pub async fn job(&self, session: &Session, attempt: Attempt) -> Result<Job, JobError> {
        let (precursors, commits) = self.dependencies(session).await?;
        let base = self.base(session, attempt, &commits).await?;
        let contradictions: Vec<Contradiction> = base
            .unjoined
            .iter()
            .map(|one| Contradiction {
                session: one.session,
                commit: one.commit.clone(),
                files: one.files.clone(),
            })
            .collect();
        let claude = claude::command(session, &precursors, &contradictions);
        let merges = base.unjoined.into_iter().map(|one| Merge {
            fetch_ref: one.fetch_ref,
            commit: one.commit,
        });
        let resume = session.steering.resume.as_ref();
        Ok(Job {
            session: session.id.to_string(),
            attempt: attempt.0,
            checkout: Checkout {
                path: GIT_PATH.to_owned(),
                fetch_ref: base.fetch_ref,
                commit: base.commit,
                branch: local_branch(session),
                author_name: AUTHOR.0.to_owned(),
                author_email: AUTHOR.1.to_owned(),
                merges: merges.collect(),
                begin_merge: session.kind.writes(),
            },
            push_ref: session
                .kind
                .writes()
                .then(|| result_ref(session.id, attempt)),
            claude,
            timers: self.timers(session),
            conversation: resume.map(|_| session.claude_session_id.to_string()),
        })
    }

    /// What the session's dependencies said and left. One that only read leaves what it was given:
    /// the base, and beside it what could not be joined with that.
    async fn dependencies(
        &self,
        session: &Session,
    ) -> Result<(Vec<Precursor>, Vec<DependencyCommit>), StoreError> {
        let mut precursors = Vec::with_capacity(session.dependencies.len());
        let mut commits = Vec::with_capacity(session.dependencies.len());
        let mut passed_on = Vec::new();
        for &id in &session.dependencies {
            let dependency = self.store.session(id).await?;
            let same_repository = dependency.project.repository == session.project.repository;
            let report = dependency.report.as_ref();
            if let Some(result) = report.and_then(|report| report.result.as_ref())
                && same_repository
            {
                commits.push(DependencyCommit {
                    session: id,
                    commit: result.commit.clone(),
                });
                passed_on.extend(result.unjoined.iter().cloned());
            }
            precursors.push(precursor(&dependency));
        }
        for one in passed_on {
            let is_told = precursors.iter().any(|of| of.session == one.session_id);
            if !is_told {
                let dependency = self.store.session(one.session_id).await?;
                precursors.push(precursor(&dependency));
            }
            commits.push(DependencyCommit {
                session: one.session_id,
                commit: one.commit,
            });
        }
        Ok((precursors, commits))
    }

    async fn base(
        &self,
        session: &Session,
        attempt: Attempt,
        dependencies: &[DependencyCommit],
    ) -> Result<Base, JobError> {
        let request = BaseRequest {
            repository: &session.project.repository,
            session: session.id,
            attempt,
            branch: session.project.branch.as_ref(),
            dependencies,
        };
        if let Some(resume) = &session.steering.resume {
            // All of it is in the mirror.
            let base = self.repos.resumed_base(request, resume.from).await;
            return base.map_err(|error| JobError::Hopeless(outcome(&error)));
        }
        let mut pause = REMOTE_PAUSE;
        for _ in 1..REMOTE_TRIES_MAX {
            match self.repos.prepare_base(request).await {
                Err(error) if error.is_retryable() => tokio::time::sleep(pause).await,
                Err(error) => return Err(JobError::Hopeless(outcome(&error))),
                Ok(base) => return Ok(base),
            }
            pause *= 2;
        }
        let last = self.repos.prepare_base(request).await;
        last.map_err(|error| JobError::Hopeless(outcome(&error)))
    }

    fn timers(&self, session: &Session) -> Timers {
        let of_kind = self
            .limits
            .get(&session.kind)
            .and_then(|limits| limits.timeout_seconds);
        let timeout_s = session
            .timeout_s
            .or(of_kind)
            .unwrap_or(claude::TIMEOUT_DEFAULT.as_secs());
        Timers {
            first_byte_ms: self.waits.first_byte_s * 1000,
            silence_ms: self.waits.silence_s * 1000,
            result_grace_ms: self.waits.result_grace_s * 1000,
            term_grace_ms: self.waits.term_grace_s * 1000,
            timeout_ms: timeout_s.saturating_mul(1000),
        }
    }
}

fn precursor(session: &Session) -> Precursor {
    let summary = session.report.as_ref().map(|report| report.summary.clone());
    Precursor {
        session: session.id,
        kind: session.kind,
        requirements: session.project.requirements.to_string(),
        summary: summary.unwrap_or_default(),
    }
}

/// `baton/<short id>`: where a session without a branch of its own lands. The short id is the end
/// of the id, as in the container's name: our ids begin with their time.
#[must_use]
pub fn own_branch(session: SessionId) -> String {
    let hex = session.0.simple().to_string();
    format!("baton/{}", &hex[hex.len() - 12..])
}

fn local_branch(session: &Session) -> String {
    own_branch(session.id)
}

/// What a failure of git means for the session that needs it.
#[must_use]
pub fn outcome(error: &RepoError) -> Outcome {
    let code = match error {
        RepoError::BranchNotFound { .. } => FailureCode::BranchNotFound,
        _ => FailureCode::CloneFailed,
    };
    Outcome::failed(code, error.to_string())
}
