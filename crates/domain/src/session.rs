//! One session: the work given to one Claude Code process, and the states it passes through.

mod event;
mod state;
mod status;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::decompose::Planning;
use crate::ending::{Outcome, Usage};
use crate::ids::{Attempt, ClaudeSessionId, OrchestrationId, SessionId, Version};
use crate::output::{Artifact, SessionResult};
use crate::pauses::{LIMIT_NEWS, RESUME_TEXT, launch_after};
use crate::project::{Kind, Project};
use crate::steering::{Pause, Resume, Steering};

pub use event::{InvalidTransition, SessionEvent};
pub use state::SessionState;
pub use status::{Standing, Status};

/// A session as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// Ours; Claude's own name is `claude_session_id`.
    pub id: SessionId,
    /// What it is for.
    pub kind: Kind,
    /// Where it stands.
    pub state: SessionState,
    /// How often its row was changed.
    pub version: Version,
    /// The orchestration it was made in.
    pub orchestration_id: Option<OrchestrationId>,
    /// The coordination session that made it; none where a client did.
    pub parent: Option<SessionId>,
    /// What Claude calls its conversation; chosen at creation, shown once Claude was started.
    pub claude_session_id: ClaudeSessionId,
    /// The attempt that runs, or would run next.
    pub attempt: Attempt,
    /// What it works on.
    pub project: Project,
    /// Sessions that must complete before it starts, in the order given.
    pub dependencies: Vec<SessionId>,
    /// Seconds Claude may run; the configured default of its kind when absent.
    pub timeout_s: Option<u64>,
    /// Whether a project's own Claude settings are let in.
    pub project_settings: bool,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// A few words for lists, where somebody found some.
    pub title: Option<String>,
    /// Ready sessions of a higher priority start before those of a lower one; 0 when not asked
    /// for otherwise.
    pub priority: i32,
    /// A shell command that is run instead of Claude: the gate of a landing.
    pub command: Option<String>,
    /// What it divides, where its answer is a plan.
    pub planning: Option<Planning>,
    /// The commit it starts from, whatever its branch and its dependencies are.
    pub start_commit: Option<String>,
    /// What was asked of it after it was made.
    pub steering: Steering,
    /// What it left, once Claude has ended.
    pub report: Option<Report>,
}

/// What a session left for its callers and its dependents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Claude's closing words, without the next steps.
    pub summary: String,
    /// What Claude proposes to do next.
    pub next_steps: Vec<String>,
    /// Files and commits.
    pub artifacts: Vec<Artifact>,
    /// The commit with its statistics.
    pub result: Option<SessionResult>,
    /// Tokens and cost of all attempts that told theirs.
    pub usage: Option<Usage>,
    /// Things a person should know though the outcome stands.
    pub warnings: Vec<String>,
}

impl Session {
    /// A session that was just accepted: of the first attempt, with nothing asked for but this.
    #[must_use]
    pub fn new(
        id: SessionId,
        kind: Kind,
        project: Project,
        claude_session_id: ClaudeSessionId,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            kind,
            state: SessionState::Created,
            version: Version(0),
            orchestration_id: None,
            parent: None,
            claude_session_id,
            attempt: Attempt::FIRST,
            project,
            dependencies: Vec::new(),
            timeout_s: None,
            project_settings: false,
            created_at,
            title: None,
            priority: 0,
            command: None,
            planning: None,
            start_commit: None,
            steering: Steering::default(),
            report: None,
        }
    }

    /// The session after `event`, its version still the same; this and [`SessionState::after`] are
    /// the only ways a session changes.
    ///
    /// A session that had a sandbox and queues again gets the next attempt. One that is concluded
    /// while a message waits goes on with the message instead of finishing; one that paused is told
    /// what waited when it goes on. One that is asked to go on though its budget is spent is
    /// granted as much again. One that ends without a report, and may have left work, is over once
    /// that is saved.
    ///
    /// # Errors
    /// [`InvalidTransition`] when `event` cannot happen here, or too many messages wait already.
    pub fn after(&self, event: &SessionEvent, now: Timestamp) -> Result<Self, InvalidTransition> {
        use SessionEvent as E;
        if self.command.is_some() && matches!(event, E::MessageSent(_) | E::Resumed(_)) {
            return Err(InvalidTransition {
                from: "a command",
                event: event.name(),
            });
        }
        let mut next = Self {
            state: self.state.after(event, now)?,
            ..self.clone()
        };
        let steering = &mut next.steering;
        match event {
            E::MessageSent(text) if !steering.has_room_for(text) => {
                return Err(InvalidTransition {
                    from: "full of messages",
                    event: event.name(),
                });
            }
            E::MessageSent(text) => steering.add_message(text),
            E::MessageTold(_, number) => steering.messages.retain(|one| one.number > *number),
            // It is told twice, and by Claude less exactly than by the model API. One that holds
            // and is told again and again, each time a little later, is the same.
            E::LimitHit(_, until) => {
                let known = steering.limited_until.filter(|known| *known > now);
                if known.is_none_or(|known| *until > known + LIMIT_NEWS) {
                    steering.limited_until = steering.limited_until.max(Some(*until));
                }
            }
            E::BudgetSpent(_) => steering.budget_spent = true,
            E::BudgetSet(max_usd) => steering.set_budget(*max_usd, self.spent_usd()),
            E::Resumed(resume) => {
                let mut resume = resume.clone();
                let paused = match &self.state {
                    SessionState::Paused { pause, .. } => Some(pause),
                    _ => None,
                };
                if paused.is_some() && !steering.messages.is_empty() {
                    resume.text = [resume.text, steering.take_messages()].join("\n\n");
                }
                steering.resume = Some(resume);
                // Nobody asked for more when a usage limit was lifted.
                if !matches!(paused, Some(Pause::UsageLimit { .. })) {
                    steering.grant(self.spent_usd());
                }
            }
            E::RetryRequested => {
                // What it was to go on with and never heard: the new attempt hears it.
                if let Some(untold) = steering.resume.take()
                    && self.state.started_at().is_none()
                    && untold.text != RESUME_TEXT
                {
                    steering.add_first(&untold.text);
                }
                steering.grant(self.spent_usd());
            }
            // An older attempt's, of which the retry knows already.
            E::LaunchFailed(of, _) if self.state == SessionState::Queued && *of != self.attempt => {
                return Err(InvalidTransition {
                    from: self.state.name(),
                    event: event.name(),
                });
            }
            E::LaunchDecided(attempt) => {
                next.attempt = *attempt;
                steering.budget_spent = false;
                if steering.resume.is_none() {
                    steering.based_at = Some(now);
                }
            }
            E::LaunchLost(_) => {
                steering.launches_lost += 1;
                steering.launch_after = Some(launch_after(steering.launches_lost, now));
            }
            E::Concluded(attempt, outcome)
                if *outcome != Outcome::Cancelled
                    && self.state.started_at().is_some()
                    && !steering.messages.is_empty() =>
            {
                steering.resume = Some(Resume {
                    from: *attempt,
                    text: steering.take_messages(),
                });
                next.state = SessionState::Queued;
            }
            _ => {}
        }
        if let SessionState::Finished {
            started_at,
            outcome,
            ..
        } = &next.state
            && self.may_leave_work(event)
        {
            next.state = SessionState::Saving {
                attempt: self.attempt,
                started_at: *started_at,
                outcome: outcome.clone(),
            };
        }
        let had_sandbox = matches!(
            self.state,
            SessionState::Starting { .. }
                | SessionState::Concluding { .. }
                | SessionState::Paused { .. }
                | SessionState::Finished { .. }
        );
        if had_sandbox && next.state == SessionState::Queued {
            next.attempt = Attempt(self.attempt.0 + 1);
            // A report tells of all attempts so far; one that was lost left none.
            let spent = self.report.as_ref().and_then(|report| report.usage);
            if let Some(spent) = spent {
                next.steering.cost_before_usd = spent.cost_usd;
            }
            if !matches!(event, E::LaunchLost(_)) {
                next.steering.launches_lost = 0;
                next.steering.launch_after = None;
            }
        }
        Ok(next)
    }

    /// Whether `event` ends it without a report though it, or what it goes on from, may have left
    /// work that is on no branch.
    fn may_leave_work(&self, event: &SessionEvent) -> bool {
        use SessionEvent as E;
        let is_unreported = matches!(
            event,
            E::CancelRequested | E::SandboxLost(..) | E::LaunchFailed(..)
        );
        let had_begun = matches!(self.state, SessionState::Paused { .. })
            || self.state.started_at().is_some()
            || self.steering.resume.is_some();
        is_unreported && had_begun && self.pushes()
    }

    /// Whether its agent pushes what it leaves: commands are only to look.
    #[must_use]
    pub fn pushes(&self) -> bool {
        self.kind.writes() && self.command.is_none()
    }
}
