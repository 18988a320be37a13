//! The end of a session: what it left is recorded and landed.

mod command;
mod planned;
mod save;

use std::sync::Arc;

use baton_domain::ending::{Ending, FailureCode, Outcome, Usage};
use baton_domain::output::{Artifact, SessionResult, Unjoined, closing};
use baton_domain::pauses::pause_after;
use baton_domain::session::{Report, SessionState};
use baton_domain::{Attempt, Branch, Session, SessionEvent, SessionId};

use crate::clock::Clock;
use crate::failpoint;
use crate::launch::own_branch;
use crate::repos::{
    Change, Codebase, DependencyCommit, RepoError, Started, Unresolved, WorkResult,
};
use crate::store::{Store, StoreError};
use crate::transition::{TransitionError, apply};

/// Records and lands what sessions left.
#[derive(Clone)]
pub struct Concluder {
    store: Store,
    repos: Arc<dyn Codebase>,
    clock: Arc<dyn Clock>,
}

/// Why a session could not be concluded yet; it will be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ConcludeError {
    /// The repository's mirror or its remote did not do what was asked.
    #[error("the work in {repository} is not landed yet")]
    Repository {
        /// The repository.
        repository: String,
        /// What git said.
        #[source]
        source: RepoError,
    },
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Concluder {
    /// A concluder over these parts.
    #[must_use]
    pub fn new(store: Store, repos: impl Codebase + 'static, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            repos: Arc::new(repos),
            clock,
        }
    }

    /// Finishes a session that is concluding or saving. May be repeated: landing what has landed
    /// changes nothing, and the outcome is recorded once. `metered` is what the gateway counted, for a
    /// Claude that ended without saying what it used. With `last_try` a remote that does not
    /// answer fails the session instead of being waited for; the work stays in the mirror.
    ///
    /// # Errors
    /// [`ConcludeError`]: nothing is lost, try again.
    pub async fn conclude(
        &self,
        session: &Session,
        metered: Option<Usage>,
        last_try: bool,
    ) -> Result<(), ConcludeError> {
        let (attempt, ending) = match &session.state {
            SessionState::Concluding {
                attempt, ending, ..
            } => (attempt, ending),
            SessionState::Saving {
                attempt, outcome, ..
            } => return self.save(session, *attempt, outcome, last_try).await,
            _ => return Ok(()),
        };
        let before = session.report.as_ref().and_then(|report| report.usage);
        let mut report = report_of(ending, metered, before);
        let spent_usd = report.usage.map_or(0.0, |usage| usage.cost_usd);
        let shares_budget = session.orchestration_id.is_some_and(|id| {
            let reported = self.store.budget(id, |_, _| 0.0);
            reported.is_some()
        });
        let pause = pause_after(session, ending, spent_usd, shares_budget);
        if session.steering.runs_low(spent_usd) {
            let max_usd = session.steering.max_cost_usd.unwrap_or_default();
            report.warnings.push(format!(
                "it cost ${spent_usd:.2} of its budget of ${max_usd:.2}"
            ));
        }
        let mut outcome = Outcome::of(ending);
        if session.command.is_some() {
            (outcome, report) = command::judged(&self.store, session.id, ending).await?;
        } else if ending.setup_failure.is_none()
            || ending.pushed.is_some()
            || session.steering.resume.is_some()
        {
            match self.work(session, *attempt, &outcome, ending).await {
                // The next attempt takes it up from where the agent pushed it.
                Ok(work) if pause.is_some() => report.result = Some(told(work, &mut report)),
                Ok(work) => {
                    outcome = work.outcome_instead_of(outcome);
                    let result = told(work, &mut report);
                    outcome = self
                        .land(session, result, outcome, &mut report, last_try)
                        .await?;
                }
                // The sandbox ended before there was a base: nothing can have been changed since
                // the attempt before it.
                Err(RepoError::NoBase { .. }) if ending.pushed.is_none() => {
                    if let Some(result) = gone_on_from(session) {
                        outcome = self
                            .land(session, result, outcome, &mut report, last_try)
                            .await?;
                    }
                }
                Err(error) if !last_try => return Err(unfinished(session, error)),
                Err(error) => outcome = not_found(outcome, &error, &mut report),
            }
        }
        if let Some(planning) = &session.planning
            && outcome.is_completed()
            // What it is told next may change the plan.
            && session.steering.messages.is_empty()
        {
            self.make_planned(session, planning, ending, &mut report)
                .await?;
        }
        failpoint::reach("landed");
        let event = match pause {
            Some(pause) => SessionEvent::Paused(*attempt, pause),
            None => SessionEvent::Concluded(*attempt, outcome),
        };
        self.record(session.id, &event, report).await
    }

    async fn record(
        &self,
        id: SessionId,
        event: &SessionEvent,
        report: Report,
    ) -> Result<(), ConcludeError> {
        let (store, clock) = (&self.store, self.clock.as_ref());
        match apply(store, clock, id, event, Some(report)).await {
            // Somebody concluded it before us.
            Ok(_) | Err(TransitionError::Invalid(_)) => Ok(()),
            Err(TransitionError::Store(error)) => Err(error.into()),
        }
    }

    async fn work(
        &self,
        session: &Session,
        attempt: Attempt,
        outcome: &Outcome,
        ending: &Ending,
    ) -> Result<Work, RepoError> {
        let repository = &session.project.repository;
        let base = self.repos.base_of(repository, session.id, attempt).await?;
        let first = self.first_base(session, &base).await?;
        let unjoined = if session.dependencies.is_empty() {
            Vec::new()
        } else {
            self.repos.unjoined_of(repository, session.id, attempt)?
        };
        if !session.kind.writes() {
            return Ok(Work {
                result: WorkResult::unchanged(&base),
                base,
                unjoined,
                unresolved: None,
            });
        }
        let result = self
            .repos
            .result_since(repository, session.id, attempt, &base, &first)
            .await?;
        let started = Started {
            repository,
            base: &first,
            unjoined: &unjoined,
        };
        let unresolved = if outcome.is_completed() && !unjoined.is_empty() {
            self.repos
                .unresolved(started, &result.commit, &ending.unmerged)
                .await?
        } else {
            None
        };
        Ok(Work {
            base: first,
            result,
            unjoined: Vec::new(),
            unresolved,
        })
    }

    /// What the work is measured from: where the session first started from, for an attempt that
    /// goes on from `base`. That is what the reported one left; or what one left that was lost
    /// before it could report, and that may have gone on from the reported one.
    async fn first_base(&self, session: &Session, base: &str) -> Result<String, RepoError> {
        let Some(resume) = &session.steering.resume else {
            return Ok(base.to_owned());
        };
        let report = session.report.as_ref();
        let earlier = report.and_then(|report| report.result.as_ref());
        let reported = |commit: &str| {
            let earlier = earlier.filter(|earlier| earlier.commit == commit)?;
            Some(earlier.base_commit.clone())
        };
        if let Some(first) = reported(base) {
            return Ok(first);
        }
        let repository = &session.project.repository;
        let before = self
            .repos
            .base_of(repository, session.id, resume.from)
            .await;
        match before {
            Ok(before) => Ok(reported(&before).unwrap_or(before)),
            Err(RepoError::NoBase { .. }) => Ok(base.to_owned()),
            Err(error) => Err(error),
        }
    }

    /// Lands what has not landed where it belongs. Work of a session that did not complete goes to a branch
    /// of its own, so that nobody takes it for finished and nobody loses it.
    async fn land(
        &self,
        session: &Session,
        mut result: SessionResult,
        outcome: Outcome,
        report: &mut Report,
        last_try: bool,
    ) -> Result<Outcome, ConcludeError> {
        let mut landed = outcome;
        // What completed in an orchestration that lands as a whole waits for the others.
        let waits = landed.is_completed() && self.store.lands_with_others(session);
        if result.commit != result.base_commit && result.branch.is_none() && !waits {
            let target = target(session, &landed);
            let message = format!("Land session {}", session.id);
            let repository = &session.project.repository;
            match self
                .repos
                .land(
                    repository,
                    &result.commit,
                    &result.base_commit,
                    &target,
                    &message,
                )
                .await
            {
                Ok(_) => result.branch = Some(target.to_string()),
                Err(error) if error.is_retryable() && !last_try => {
                    return Err(unfinished(session, error));
                }
                Err(error) => {
                    landed = not_landed(landed, &target, &error, report);
                }
            }
        }
        report.result = Some(result);
        Ok(landed)
    }
}

/// A sandbox may claim less than its calls cost as the gateway counts them; then the count holds.
/// Prices change, so a little more is nothing.
const COST_TOLERANCE: f64 = 1.25;
const COST_SLACK_USD: f64 = 0.01;

/// What an attempt left, as callers are told; it has landed nowhere so far.
fn told(work: Work, report: &mut Report) -> SessionResult {
    let Work {
        base,
        result: work,
        unjoined,
        ..
    } = work;
    report.artifacts = artifacts(&work);
    report.warnings.extend(warning_of(&unjoined));
    SessionResult {
        branch: None,
        base_commit: base,
        commit: work.commit,
        files_changed: work.files_changed,
        insertions: work.insertions,
        deletions: work.deletions,
        unjoined: unjoined.into_iter().map(passed_on).collect(),
    }
}

/// What an attempt left, as the mirror has it.
struct Work {
    base: String,
    result: WorkResult,
    /// What it was to read beside its base, and leaves to its dependents to merge.
    unjoined: Vec<DependencyCommit>,
    /// What it was to merge and did not.
    unresolved: Option<Unresolved>,
}

impl Work {
    /// Whatever Claude said of it: dependents cannot build on a merge that is not finished.
    fn outcome_instead_of(&self, outcome: Outcome) -> Outcome {
        match &self.unresolved {
            Some(unresolved) => Outcome::failed(
                FailureCode::MergeConflict,
                format!(
                    "the results it depends on contradict each other and are not merged: \
                     {unresolved}; finish the merge on the branch with its work, or create the \
                     session again"
                ),
            ),
            None => outcome,
        }
    }
}

fn passed_on(unjoined: DependencyCommit) -> Unjoined {
    Unjoined {
        session_id: unjoined.session,
        commit: unjoined.commit,
    }
}

fn warning_of(unjoined: &[DependencyCommit]) -> Option<String> {
    let first = unjoined.first()?;
    let others = match unjoined.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "the result of session {}{others} contradicts the rest of the code; the session read it \
         beside that, and the next one that writes has to merge it",
        first.session
    ))
}

/// What the attempt before left, for one that goes on from it.
fn gone_on_from(session: &Session) -> Option<SessionResult> {
    let report = session.report.as_ref();
    let resumed = report.filter(|_| session.steering.resume.is_some());
    resumed.and_then(|report| report.result.clone())
}

fn unfinished(session: &Session, source: RepoError) -> ConcludeError {
    ConcludeError::Repository {
        repository: session.project.repository.to_string(),
        source,
    }
}

/// What was pushed cannot be read in the mirror; what completed cannot count as completed then.
fn not_found(outcome: Outcome, error: &RepoError, report: &mut Report) -> Outcome {
    let text = format!("the work cannot be read in the server's mirror: {error}");
    if outcome.is_completed() {
        return Outcome::failed(FailureCode::SalvageFailed, text);
    }
    report.warnings.push(text);
    outcome
}

fn target(session: &Session, outcome: &Outcome) -> Branch {
    let own = || {
        #[expect(
            clippy::expect_used,
            reason = "hex digits behind a fixed prefix are a branch name"
        )]
        own_branch(session.id).parse().expect("a valid branch name")
    };
    match &session.project.branch {
        Some(branch) if outcome.is_completed() => branch.clone(),
        _ => own(),
    }
}

fn not_landed(
    outcome: Outcome,
    target: &Branch,
    error: &RepoError,
    report: &mut Report,
) -> Outcome {
    let text =
        format!("the work is kept in the server's mirror but did not land on {target}: {error}");
    if !outcome.is_completed() {
        report.warnings.push(text);
        return outcome;
    }
    let code = match error {
        RepoError::MergeConflict { .. } => FailureCode::MergeConflict,
        _ => FailureCode::LandingFailed,
    };
    Outcome::failed(code, text)
}

/// `before` is what earlier attempts used.
fn report_of(ending: &Ending, metered: Option<Usage>, before: Option<Usage>) -> Report {
    let (summary, next_steps) = ending
        .result
        .as_ref()
        .map(|result| closing(&result.text))
        .unwrap_or_default();
    let mut warnings = Vec::new();
    if ending.oom_kills > 0 {
        warnings.push(format!(
            "the kernel killed {} of the sandbox's processes for want of memory",
            ending.oom_kills
        ));
    }
    if let Some(why) = &ending.salvage_failure {
        warnings.push(format!(
            "the work could not be taken out of the sandbox: {why}"
        ));
    }
    let used = metered.filter(|usage| !usage.is_nothing());
    let usage = match &ending.result {
        // Also where it went on: the agent takes the earlier cost out of the conversation.
        Some(result) => {
            let counted_usd = used.map_or(0.0, |used| used.cost_usd);
            let claimed = result.usage;
            let is_short = counted_usd > claimed.cost_usd * COST_TOLERANCE + COST_SLACK_USD;
            Some(Usage {
                cost_usd: if is_short {
                    counted_usd
                } else {
                    claimed.cost_usd
                },
                ..claimed
            })
        }
        None if used.is_some() => {
            warnings.push(
                "Claude did not say what it cost; tokens and cost are the gateway's estimate"
                    .into(),
            );
            used
        }
        None => None,
    };
    Report {
        summary,
        next_steps,
        usage: total(before, usage),
        warnings,
        ..Report::default()
    }
}

fn total(before: Option<Usage>, now: Option<Usage>) -> Option<Usage> {
    let (Some(before), Some(now)) = (before, now) else {
        return before.or(now);
    };
    Some(before.and(now))
}

/// Commits first to last, then files by name; deleted files are no artifacts.
fn artifacts(work: &WorkResult) -> Vec<Artifact> {
    let files = work
        .files
        .iter()
        .filter(|file| file.change != Change::Deleted);
    let files = files.map(|file| Artifact::File {
        path: file.path.clone(),
    });
    let commits = work
        .commits
        .iter()
        .map(|sha| Artifact::Commit { sha: sha.clone() });
    files.chain(commits).collect()
}
