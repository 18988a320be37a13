//! From a session to what its sandbox is told: the code to start from and the command to run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use baton_agent::protocol::{Checkout, Job, Merge, Timers};
use baton_domain::ending::{FailureCode, Outcome};
use baton_domain::{Attempt, Branch, Kind, Session, SessionId};
use tokio::time::Instant;

use crate::claude::{self, Contradiction, Precursor};
use crate::clock::Clock;
use crate::config::{KindLimits, Waits};
use crate::repos::{Base, BaseRequest, Codebase, DependencyCommit, RepoError, result_ref};
use crate::store::{PAGE_SESSIONS_MAX, SessionQuery, Store, StoreError};

/// Where sandboxes find their repository on the socket.
pub const GIT_PATH: &str = "/git/repository.git";
/// How long a remote that does not answer is waited for before the session fails: hosts of
/// repositories are away for minutes now and then, and whole graphs would fail for it.
const REMOTE_WAIT_MAX: Duration = Duration::from_secs(30 * 60);
/// How often one is asked that answers, and with something that may pass.
const REMOTE_TRIES_MAX: u32 = 5;
/// The pause after the first of these tries; it doubles.
const REMOTE_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const REMOTE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The author of commits that are made in sandboxes.
const AUTHOR: (&str, &str) = ("Claude", "claude@baton.invalid");

/// Makes jobs.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    repos: Arc<dyn Codebase>,
    waits: Waits,
    limits: Arc<HashMap<Kind, KindLimits>>,
    clock: Arc<dyn Clock>,
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
        repos: impl Codebase + 'static,
        waits: Waits,
        limits: Arc<HashMap<Kind, KindLimits>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            store,
            repos: Arc::new(repos),
            waits,
            limits,
            clock,
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
        let claude = match &session.command {
            Some(command) => claude::shell(command),
            None => claude::command(session, &precursors, &contradictions),
        };
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
            push_ref: session.pushes().then(|| result_ref(session.id, attempt)),
            claude,
            timers: self.timers(session).await?,
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
        if let Some(commit) = &session.start_commit {
            let base = self.repos.base_at(request, commit).await;
            return base.map_err(|error| JobError::Hopeless(outcome(&error)));
        }
        if let Some(resume) = &session.steering.resume {
            // All of it is in the mirror.
            let base = self.repos.resumed_base(request, resume.from).await;
            return base.map_err(|error| JobError::Hopeless(outcome(&error)));
        }
        let begun = Instant::now();
        let mut tries = 0;
        let mut pause = REMOTE_PAUSE;
        loop {
            let error = match self.repos.prepare_base(request).await {
                Ok(base) => return Ok(base),
                Err(error) => error,
            };
            tries += 1;
            if !is_asked_again(&error, tries, begun.elapsed()) {
                return Err(JobError::Hopeless(outcome(&error)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REMOTE_PAUSE_MAX);
            if tries == REMOTE_TRIES_MAX {
                let text = format!(
                    "The repository is asked for again, for up to {} minutes: {error}.",
                    REMOTE_WAIT_MAX.as_secs() / 60
                );
                let now = self.clock.now();
                self.store.append_note(session.id, &text, now).await?;
            }
        }
    }

    async fn timers(&self, session: &Session) -> Result<Timers, JobError> {
        let of_kind = self
            .limits
            .get(&session.kind)
            .and_then(|limits| limits.timeout_seconds);
        let timeout_s = session
            .timeout_s
            .or(of_kind)
            .unwrap_or(claude::TIMEOUT_DEFAULT.as_secs());
        let timeout_ms = timeout_s.saturating_mul(1000);
        let term_grace_ms = self.waits.term_grace_s * 1000;
        if session.command.is_some() {
            // A command may be silent for as long as it takes.
            return Ok(Timers {
                first_byte_ms: timeout_ms,
                silence_ms: timeout_ms,
                result_grace_ms: timeout_ms,
                term_grace_ms,
                timeout_ms,
            });
        }
        let left_ms = self.left_of_orchestration_ms(session).await?;
        Ok(Timers {
            first_byte_ms: self.waits.first_byte_s * 1000,
            silence_ms: self.waits.silence_s * 1000,
            result_grace_ms: self.waits.result_grace_s * 1000,
            term_grace_ms,
            timeout_ms: left_ms.map_or(timeout_ms, |left_ms| left_ms.min(timeout_ms)),
        })
    }

    /// What is left of the time that a session's orchestration may take as a whole; none where
    /// there is no such limit. A session that somebody asks for again has its own time only.
    async fn left_of_orchestration_ms(&self, session: &Session) -> Result<Option<u64>, JobError> {
        let Some(id) = session
            .orchestration_id
            .filter(|_| session.attempt == Attempt::FIRST)
        else {
            return Ok(None);
        };
        let orchestration = self.store.orchestration(id).await?;
        let Some(timeout_s) = orchestration.timeout_s.filter(|_| orchestration.lands) else {
            return Ok(None);
        };
        let query = SessionQuery {
            orchestration: Some(id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        // The first to start is among the first that were made, unless somebody starts them by hand
        // in an order of their own.
        let first = self.store.page(&query).await?.sessions;
        let begun = first.iter().filter_map(|one| one.state.started_at()).min();
        let spent = begun.map_or(0, |begun| {
            let spent = self.clock.now().duration_since(begun).as_millis();
            u64::try_from(spent).unwrap_or(0)
        });
        match timeout_s.saturating_mul(1000).saturating_sub(spent) {
            0 => Err(JobError::Hopeless(Outcome::failed(
                FailureCode::Timeout,
                format!(
                    "the orchestration's {timeout_s} s were over before this session could start; \
                     retry it to run it after all"
                ),
            ))),
            left_ms => Ok(Some(left_ms)),
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

/// Where a session without a branch of its own lands.
#[must_use]
pub fn own_branch(session: SessionId) -> String {
    Branch::own(session.0).to_string()
}

fn local_branch(session: &Session) -> String {
    own_branch(session.id)
}

/// Whether a repository is asked for again that was not to be had `tries` times in `waited`.
fn is_asked_again(error: &RepoError, tries: u32, waited: Duration) -> bool {
    match error {
        RepoError::RemoteUnreachable { .. } => waited < REMOTE_WAIT_MAX,
        error => error.is_retryable() && tries < REMOTE_TRIES_MAX,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_that_is_away_is_waited_for_and_one_that_refuses_is_not() {
        let repository = || "o/r".parse().expect("a repository");
        let reason = || String::from("why");
        let away = RepoError::RemoteUnreachable {
            repository: repository(),
            reason: reason(),
        };
        let refusing = RepoError::RepositoryNotFound {
            repository: repository(),
            reason: reason(),
        };
        let troubled = RepoError::Git {
            step: "fetch",
            repository: repository(),
            stderr: reason(),
        };
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert!(is_asked_again(&away, 40, minutes(29)));
        assert!(!is_asked_again(&away, 40, minutes(30)));
        assert!(!is_asked_again(&refusing, 1, minutes(0)));
        assert!(is_asked_again(&troubled, 4, minutes(1)));
        assert!(!is_asked_again(&troubled, 5, minutes(1)));
    }
}
