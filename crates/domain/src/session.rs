//! One session: the work given to one Claude Code process, and the states it passes through.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::decompose::Planning;
use crate::ending::{Cut, Ending, Loss, Outcome, Usage};
use crate::ids::{Attempt, ClaudeSessionId, OrchestrationId, SessionId, Version};
use crate::output::{Artifact, SessionResult};
use crate::project::{Kind, Project};
use crate::steering::{MESSAGES_WAITING_MAX, Pause, Resume, Steering};
use crate::waiting::{RESUME_TEXT, launch_after};

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
    /// How many sessions of its orchestration may run at once; no limit of its own when absent.
    pub parallel_max: Option<u32>,
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

/// Each variant holds only what is true in that state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Accepted; nobody asked for it to run yet.
    Created,
    /// Asked to run; waits for its dependencies, then for a slot.
    Queued,
    /// `dependency` ended without completing, or is itself blocked.
    Blocked {
        /// The nearest one in its way.
        dependency: SessionId,
        /// Whether it had been asked to run.
        #[serde(default = "yes")]
        asked: bool,
    },
    /// A sandbox is being started for it and Claude prepared in there.
    Starting {
        /// The attempt.
        attempt: Attempt,
        /// When the launch was decided.
        since: Timestamp,
    },
    /// Claude works.
    Running {
        /// The attempt.
        attempt: Attempt,
        /// When Claude was started.
        since: Timestamp,
    },
    /// Told to stop; its agent saves the work first.
    Stopping {
        /// The attempt.
        attempt: Attempt,
        /// When Claude was started, if it was.
        started_at: Option<Timestamp>,
        /// When the stop was asked for.
        since: Timestamp,
    },
    /// Claude has ended; its work is being recorded and landed.
    Concluding {
        /// The attempt.
        attempt: Attempt,
        /// When Claude was started, if it was.
        started_at: Option<Timestamp>,
        /// How it ended.
        ending: Box<Ending>,
    },
    /// It had begun and waits for something other than a slot; its work is saved.
    Paused {
        /// The attempt that began.
        attempt: Attempt,
        /// When Claude was started.
        started_at: Option<Timestamp>,
        /// What it waits for.
        pause: Pause,
        /// Since when.
        since: Timestamp,
    },
    /// Over.
    Finished {
        /// When Claude was started, if it was.
        started_at: Option<Timestamp>,
        /// What became of it.
        outcome: Outcome,
        /// When it ended.
        at: Timestamp,
    },
}

fn yes() -> bool {
    true
}

/// What can happen to a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEvent {
    /// A client asked for it to run.
    StartRequested,
    /// A dependency will not complete.
    DependencyLost(SessionId),
    /// The reconciler gave it a slot.
    LaunchDecided(Attempt),
    /// The agent of that attempt started Claude.
    ClaudeStarted(Attempt),
    /// A client asked for it to stop.
    CancelRequested,
    /// The agent of that attempt reported how Claude ended.
    AgentEnded(Attempt, Box<Ending>),
    /// The sandbox of that attempt is lost without a report.
    SandboxLost(Attempt, Loss),
    /// The sandbox could not even be launched for a reason that will not mend itself.
    LaunchFailed(Attempt, Outcome),
    /// The work was recorded and landed, or could not be.
    Concluded(Attempt, Outcome),
    /// The work was recorded; the session goes on later.
    Paused(Attempt, Pause),
    /// The sandbox of that attempt was lost before it was told what to do.
    LaunchLost(Attempt),
    /// A client asked for a new attempt.
    RetryRequested,
    /// The dependency in the way of a blocked session may complete again.
    DependencyRetried,
    /// A client, or the end of a pause, lets it go on in its conversation.
    Resumed(Resume),
    /// A client says something to Claude.
    MessageSent(String),
    /// Claude was told the message of that number.
    MessageTold(Attempt, u64),
    /// The model API refuses the account's calls until then.
    LimitHit(Attempt, Timestamp),
    /// A client set what all attempts together may cost, in US dollars.
    BudgetSet(f64),
    /// Its work was brought to this branch after it had finished.
    Landed(String),
}

impl SessionEvent {
    /// A word for logs and errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::StartRequested => "start",
            Self::DependencyLost(_) => "dependency lost",
            Self::LaunchDecided(_) => "launch",
            Self::ClaudeStarted(_) => "claude started",
            Self::CancelRequested => "cancel",
            Self::AgentEnded(..) => "ended",
            Self::SandboxLost(..) => "sandbox lost",
            Self::LaunchFailed(..) => "launch failed",
            Self::Concluded(..) => "concluded",
            Self::Paused(..) => "paused",
            Self::LaunchLost(_) => "launch lost",
            Self::RetryRequested => "retry",
            Self::DependencyRetried => "dependency retried",
            Self::Resumed(_) => "resume",
            Self::MessageSent(_) => "message",
            Self::MessageTold(..) => "message told",
            Self::LimitHit(..) => "usage limit",
            Self::BudgetSet(_) => "budget",
            Self::Landed(_) => "landed",
        }
    }
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible for a session that is {from}")]
pub struct InvalidTransition {
    /// The state's name.
    pub from: &'static str,
    /// The event's name.
    pub event: &'static str,
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
            claude_session_id,
            attempt: Attempt::FIRST,
            project,
            dependencies: Vec::new(),
            timeout_s: None,
            project_settings: false,
            created_at,
            title: None,
            priority: 0,
            parallel_max: None,
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
    /// granted as much again.
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
            E::MessageSent(_) if steering.messages.len() >= MESSAGES_WAITING_MAX => {
                return Err(InvalidTransition {
                    from: "full of messages",
                    event: event.name(),
                });
            }
            E::MessageSent(text) => steering.add_message(text),
            E::MessageTold(_, number) => steering.messages.retain(|one| one.number > *number),
            // It is told twice, and by Claude less exactly than by the model API.
            E::LimitHit(_, until) => {
                steering.limited_until = steering.limited_until.max(Some(*until));
            }
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
            E::LaunchDecided(attempt) => next.attempt = *attempt,
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
}

impl Session {
    /// Whether its agent pushes what it leaves: commands are only to look.
    #[must_use]
    pub fn pushes(&self) -> bool {
        self.kind.writes() && self.command.is_none()
    }
}

impl SessionState {
    /// The state after `event`; asking twice for a start or a cancel changes nothing while the
    /// first is under way.
    ///
    /// # Errors
    /// [`InvalidTransition`] when `event` cannot happen here. That includes events of an older
    /// attempt: its sandbox was replaced, so its exit says nothing about this one.
    pub fn after(&self, event: &SessionEvent, now: Timestamp) -> Result<Self, InvalidTransition> {
        use SessionEvent as E;
        match (self, event) {
            (Self::Created | Self::Queued, E::StartRequested) => Ok(Self::Queued),
            (Self::Created | Self::Queued, E::DependencyLost(dependency)) => Ok(Self::Blocked {
                dependency: *dependency,
                asked: matches!(self, Self::Queued),
            }),
            (Self::Blocked { asked, .. }, E::DependencyLost(dependency)) => Ok(Self::Blocked {
                dependency: *dependency,
                asked: *asked,
            }),
            (Self::Blocked { asked, .. }, E::DependencyRetried) => Ok(match asked {
                true => Self::Queued,
                false => Self::Created,
            }),
            (Self::Blocked { .. }, E::RetryRequested) => Ok(Self::Queued),
            (
                Self::Finished {
                    outcome: Outcome::Failed { .. } | Outcome::Cancelled,
                    ..
                },
                E::RetryRequested,
            ) => Ok(Self::Queued),
            (
                Self::Paused { .. }
                | Self::Finished {
                    started_at: Some(_),
                    ..
                },
                E::Resumed(_),
            ) => Ok(Self::Queued),
            (Self::Starting { attempt, .. }, E::LaunchLost(of)) if attempt == of => {
                Ok(Self::Queued)
            }
            (Self::Queued, E::LaunchDecided(attempt)) => Ok(Self::Starting {
                attempt: *attempt,
                since: now,
            }),
            (Self::Starting { attempt, .. }, E::ClaudeStarted(of)) if attempt == of => {
                Ok(Self::Running {
                    attempt: *attempt,
                    since: now,
                })
            }
            // The stop was asked for while Claude was being started: note that it did start.
            (Self::Stopping { attempt, since, .. }, E::ClaudeStarted(of)) if attempt == of => {
                Ok(Self::Stopping {
                    attempt: *attempt,
                    started_at: Some(now),
                    since: *since,
                })
            }
            (
                Self::Created | Self::Queued | Self::Blocked { .. } | Self::Paused { .. },
                E::CancelRequested,
            ) => Ok(self.finished(Outcome::Cancelled, now)),
            (
                Self::Starting { attempt, .. } | Self::Running { attempt, .. },
                E::CancelRequested,
            ) => Ok(Self::Stopping {
                attempt: *attempt,
                started_at: self.started_at(),
                since: now,
            }),
            (Self::Stopping { .. }, E::CancelRequested) => Ok(self.clone()),
            (state, E::AgentEnded(of, ending)) if state.live_attempt() == Some(*of) => {
                let mut ending = ending.clone();
                // Only we know whether the agent was told to stop by us.
                if matches!(state, Self::Stopping { .. }) {
                    ending.cut = Some(Cut::Cancelled);
                } else if ending.cut == Some(Cut::Cancelled) {
                    ending.cut = Some(Cut::Terminated);
                }
                Ok(Self::Concluding {
                    attempt: *of,
                    started_at: self.started_at(),
                    ending,
                })
            }
            (state, E::SandboxLost(of, loss)) if state.live_attempt() == Some(*of) => {
                let outcome = match state {
                    Self::Stopping { .. } => Outcome::Cancelled,
                    _ => Outcome::of_loss(*loss),
                };
                Ok(self.finished(outcome, now))
            }
            (Self::Queued, E::LaunchFailed(_, outcome)) => Ok(self.finished(outcome.clone(), now)),
            (state, E::LaunchFailed(of, outcome)) if state.live_attempt() == Some(*of) => {
                Ok(self.finished(outcome.clone(), now))
            }
            (Self::Concluding { attempt, .. }, E::Concluded(of, outcome)) if attempt == of => {
                Ok(self.finished(outcome.clone(), now))
            }
            (
                Self::Concluding {
                    attempt,
                    started_at,
                    ..
                },
                E::Paused(of, pause),
            ) if attempt == of => Ok(Self::Paused {
                attempt: *attempt,
                started_at: *started_at,
                pause: pause.clone(),
                since: now,
            }),
            (
                Self::Created
                | Self::Queued
                | Self::Starting { .. }
                | Self::Running { .. }
                | Self::Concluding { .. },
                E::MessageSent(_),
            ) => Ok(self.clone()),
            (state, E::MessageTold(of, _) | E::LimitHit(of, _))
                if state.live_attempt() == Some(*of) =>
            {
                Ok(self.clone())
            }
            (Self::Finished { .. }, E::Landed(_)) => Ok(self.clone()),
            (state, E::BudgetSet(_)) if !state.is_over() => Ok(self.clone()),
            // Refuse what nobody thought of.
            (state, event) => Err(InvalidTransition {
                from: state.name(),
                event: event.name(),
            }),
        }
    }

    fn finished(&self, outcome: Outcome, at: Timestamp) -> Self {
        Self::Finished {
            started_at: self.started_at(),
            outcome,
            at,
        }
    }

    /// The attempt whose sandbox is being used, until its agent has reported the end.
    #[must_use]
    pub fn live_attempt(&self) -> Option<Attempt> {
        match self {
            Self::Starting { attempt, .. }
            | Self::Running { attempt, .. }
            | Self::Stopping { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// Whether it takes one of the places for running sessions.
    #[must_use]
    pub fn holds_slot(&self) -> bool {
        self.live_attempt().is_some() || matches!(self, Self::Concluding { .. })
    }

    /// Whether nothing but a retry can change it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Blocked { .. })
    }

    /// When Claude was started, where it was.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        match self {
            Self::Running { since, .. } => Some(*since),
            Self::Stopping { started_at, .. }
            | Self::Concluding { started_at, .. }
            | Self::Paused { started_at, .. }
            | Self::Finished { started_at, .. } => *started_at,
            _ => None,
        }
    }

    /// How long Claude took, to the second; none unless it completed.
    #[must_use]
    pub fn seconds_to_completion(&self) -> Option<u64> {
        let Self::Finished {
            started_at: Some(started_at),
            outcome: Outcome::Completed,
            at,
        } = self
        else {
            return None;
        };
        u64::try_from(at.duration_since(*started_at).as_secs()).ok()
    }

    /// What dependents may make of it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self {
            Self::Finished { outcome, .. } if outcome.is_completed() => Standing::Completed,
            Self::Finished { .. } | Self::Blocked { .. } => Standing::Lost,
            _ => Standing::Open,
        }
    }

    /// A word for logs, errors and the state column.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Queued => "queued",
            Self::Blocked { .. } => "blocked",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Concluding { .. } => "concluding",
            Self::Paused { .. } => "paused",
            Self::Finished {
                outcome: Outcome::Completed,
                ..
            } => "completed",
            Self::Finished {
                outcome: Outcome::Failed { .. },
                ..
            } => "failed",
            Self::Finished {
                outcome: Outcome::Cancelled,
                ..
            } => "cancelled",
        }
    }

    /// The status people see; `waits` says whether a dependency is still open.
    #[must_use]
    pub fn status(&self, waits: bool) -> Status {
        match self {
            Self::Created | Self::Starting { .. } => Status::Initializing,
            Self::Queued if waits => Status::Pending,
            Self::Queued | Self::Paused { .. } => Status::Queued,
            Self::Blocked { .. } => Status::Blocked,
            Self::Running { .. } | Self::Stopping { .. } | Self::Concluding { .. } => {
                Status::Running
            }
            Self::Finished {
                outcome: Outcome::Completed,
                ..
            } => Status::Completed,
            Self::Finished {
                outcome: Outcome::Failed { .. },
                ..
            } => Status::Failed,
            Self::Finished {
                outcome: Outcome::Cancelled,
                ..
            } => Status::Cancelled,
        }
    }
}

/// What a dependency's state means to those that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may still complete.
    Open,
    /// Its result can be built on.
    Completed,
    /// It will not complete unless somebody retries it.
    Lost,
}

/// The states as the wire names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Created, or its container is starting.
    Initializing,
    /// Asked to start, waits for dependencies.
    Pending,
    /// Ready, waits for a slot or for the end of a pause.
    Queued,
    /// Claude works, or its work is being landed.
    Running,
    /// Done.
    Completed,
    /// Did not come to a good end.
    Failed,
    /// Cancelled.
    Cancelled,
    /// A dependency is in its way for good.
    Blocked,
}

impl Status {
    /// All of them, in the order a session may pass through.
    pub const ALL: [Self; 8] = [
        Self::Initializing,
        Self::Pending,
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Blocked,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Blocked => "blocked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::FailureCode;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a second within range")
    }

    fn starting() -> SessionState {
        SessionState::Starting {
            attempt: Attempt::FIRST,
            since: at(1),
        }
    }

    fn running() -> SessionState {
        SessionState::Running {
            attempt: Attempt::FIRST,
            since: at(2),
        }
    }

    #[test]
    fn asking_twice_for_a_start_changes_nothing() {
        let queued = SessionState::Queued;
        assert_eq!(
            queued.after(&SessionEvent::StartRequested, at(5)),
            Ok(SessionState::Queued)
        );
        assert!(
            running()
                .after(&SessionEvent::StartRequested, at(5))
                .is_err()
        );
    }

    #[test]
    fn an_older_attempt_says_nothing_about_this_one() {
        let second = SessionState::Running {
            attempt: Attempt(2),
            since: at(2),
        };
        let old_end = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
        let old_loss = SessionEvent::SandboxLost(Attempt::FIRST, Loss::Removed);
        assert!(second.after(&old_end, at(3)).is_err());
        assert!(second.after(&old_loss, at(3)).is_err());
    }

    #[test]
    fn a_cancelled_session_keeps_its_start_and_ends_cancelled() {
        let stopping = running()
            .after(&SessionEvent::CancelRequested, at(3))
            .expect("may stop");
        assert_eq!(stopping.started_at(), Some(at(2)));
        let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
        let concluding = stopping.after(&ended, at(4)).expect("may end");
        let SessionState::Concluding { ending, .. } = &concluding else {
            panic!("{concluding:?}");
        };
        assert_eq!(Outcome::of(ending), Outcome::Cancelled);
    }

    #[test]
    fn a_stop_that_nobody_asked_for_is_no_cancellation() {
        let ending = Ending {
            cut: Some(Cut::Cancelled),
            ..Ending::default()
        };
        let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::new(ending));
        let concluding = running().after(&ended, at(3)).expect("may end");
        let SessionState::Concluding { ending, .. } = &concluding else {
            panic!("{concluding:?}");
        };
        let Outcome::Failed { code, .. } = Outcome::of(ending) else {
            panic!("{ending:?}");
        };
        assert_eq!(code, FailureCode::Interrupted);
    }

    #[test]
    fn an_outcome_is_recorded_once() {
        let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
        let concluding = starting().after(&ended, at(3)).expect("may end");
        let concluded = SessionEvent::Concluded(Attempt::FIRST, Outcome::Completed);
        let finished = concluding.after(&concluded, at(4)).expect("may conclude");
        assert_eq!(finished.standing(), Standing::Completed);
        assert!(finished.after(&concluded, at(5)).is_err());
        assert!(finished.after(&ended, at(5)).is_err());
        assert!(
            finished
                .after(&SessionEvent::CancelRequested, at(5))
                .is_err()
        );
    }

    #[test]
    fn a_launch_that_cannot_be_fails_the_session() {
        let outcome = Outcome::failed(FailureCode::CloneFailed, "no such repository");
        let event = SessionEvent::LaunchFailed(Attempt::FIRST, outcome);
        assert_eq!(
            starting().after(&event, at(3)).map(|s| s.name()),
            Ok("failed")
        );
        assert_eq!(
            SessionState::Queued.after(&event, at(3)).map(|s| s.name()),
            Ok("failed")
        );
    }

    fn finished(outcome: Outcome) -> Session {
        let mut session = crate::testing::session("a:running");
        session.state = session.state.finished(outcome, at(5));
        session
    }

    #[test]
    fn a_retry_is_a_new_attempt_from_the_start() {
        let mut failed = finished(Outcome::failed(FailureCode::Stalled, "silent"));
        failed.steering.resume = Some(Resume {
            from: Attempt::FIRST,
            text: "go on".into(),
        });
        let again = failed
            .after(&SessionEvent::RetryRequested, at(6))
            .expect("may be retried");
        assert_eq!(again.state, SessionState::Queued);
        assert_eq!((again.attempt, again.steering.resume), (Attempt(2), None));
        let completed = finished(Outcome::Completed);
        assert!(
            completed
                .after(&SessionEvent::RetryRequested, at(6))
                .is_err()
        );
    }

    #[test]
    fn what_an_attempt_spent_counts_once_though_the_next_is_lost() {
        let mut failed = finished(Outcome::failed(FailureCode::Stalled, "silent"));
        let usage = Some(Usage {
            cost_usd: 0.5,
            ..Usage::default()
        });
        failed.report = Some(Report {
            usage,
            ..Report::default()
        });
        let again = [
            SessionEvent::RetryRequested,
            SessionEvent::LaunchDecided(Attempt(2)),
            SessionEvent::SandboxLost(Attempt(2), Loss::Removed),
            SessionEvent::RetryRequested,
        ]
        .iter()
        .try_fold(failed, |session, event| session.after(event, at(6)))
        .expect("may be retried");
        assert_eq!(again.attempt, Attempt(3));
        assert!((again.steering.cost_before_usd - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_launch_that_failed_says_nothing_about_the_retry() {
        let failed = |of| {
            let outcome = Outcome::failed(FailureCode::CloneFailed, "the remote is away");
            SessionEvent::LaunchFailed(Attempt(of), outcome)
        };
        let mut session = finished(Outcome::failed(FailureCode::Stalled, "silent"));
        session = session
            .after(&SessionEvent::RetryRequested, at(6))
            .expect("may be retried");
        assert!(session.after(&failed(1), at(7)).is_err());
        assert!(session.after(&failed(2), at(7)).is_ok());
    }

    #[test]
    fn what_an_attempt_never_heard_is_told_to_the_retry() {
        let now = at(6);
        let resume = SessionEvent::Resumed(Resume {
            from: Attempt::FIRST,
            text: "mind the tests".into(),
        });
        let failed = SessionEvent::LaunchFailed(
            Attempt(2),
            Outcome::failed(FailureCode::LaunchFailed, "no room"),
        );
        let mut session = finished(Outcome::Completed);
        for event in [resume, failed, SessionEvent::RetryRequested] {
            session = session.after(&event, now).expect("possible");
        }
        let waiting: Vec<_> = session.steering.messages.iter().collect();
        assert_eq!(session.steering.resume, None);
        assert_eq!(waiting[0].text, "mind the tests");
    }

    #[test]
    fn a_blocked_session_waits_again_as_it_waited_before() {
        for (before, event) in [
            (SessionState::Created, SessionEvent::DependencyRetried),
            (SessionState::Queued, SessionEvent::DependencyRetried),
        ] {
            let lost = SessionEvent::DependencyLost(crate::testing::session_id("z"));
            let blocked = before.after(&lost, at(1)).expect("may be lost");
            assert_eq!(blocked.after(&event, at(2)), Ok(before));
        }
    }

    #[test]
    fn a_message_that_came_too_late_is_told_by_going_on() {
        let running = crate::testing::session("a:running");
        let said = running
            .after(&SessionEvent::MessageSent("use tabs".into()), at(11))
            .and_then(|said| said.after(&SessionEvent::MessageSent("and tests".into()), at(12)))
            .and_then(|said| said.after(&SessionEvent::MessageTold(Attempt::FIRST, 1), at(13)))
            .expect("may be said");
        let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
        let concluded = SessionEvent::Concluded(Attempt::FIRST, Outcome::Completed);
        let on = said
            .after(&ended, at(14))
            .and_then(|said| said.after(&concluded, at(15)))
            .expect("may end");
        assert_eq!((&on.state, on.attempt), (&SessionState::Queued, Attempt(2)));
        let resume = on.steering.resume.expect("goes on");
        assert_eq!(
            (resume.from, resume.text.as_str()),
            (Attempt::FIRST, "and tests")
        );
        assert!(on.steering.messages.is_empty());
    }

    #[test]
    fn a_pause_holds_no_slot_and_ends_by_going_on() {
        let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
        let pause = Pause::UsageLimit { until: at(99) };
        let paused = crate::testing::session("a:running")
            .after(&ended, at(14))
            .and_then(|ended| ended.after(&SessionEvent::Paused(Attempt::FIRST, pause), at(15)))
            .expect("may pause");
        assert!(!paused.state.holds_slot() && !paused.state.is_over());
        let resume = Resume {
            from: Attempt::FIRST,
            text: "go on".into(),
        };
        let on = paused
            .after(&SessionEvent::Resumed(resume), at(99))
            .expect("may go on");
        assert_eq!((on.state, on.attempt), (SessionState::Queued, Attempt(2)));
    }

    #[test]
    fn a_command_is_retried_but_not_talked_to() {
        let mut gate = finished(Outcome::failed(FailureCode::GateFailed, "red"));
        gate.command = Some("make test".into());
        let again = gate.after(&SessionEvent::RetryRequested, at(6));
        assert_eq!(again.map(|again| again.attempt), Ok(Attempt(2)));
        let said = SessionEvent::MessageSent("go on".into());
        assert!(gate.after(&said, at(6)).is_err());
        assert!(!gate.pushes());
    }

    #[test]
    fn only_who_has_begun_can_go_on() {
        let never = crate::testing::session("a:queued")
            .after(&SessionEvent::CancelRequested, at(1))
            .expect("may be cancelled");
        let resume = SessionEvent::Resumed(Resume {
            from: Attempt::FIRST,
            text: "go on".into(),
        });
        assert!(never.after(&resume, at(2)).is_err());
    }
}
