//! The states a session passes through, and the only way from one to another.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{InvalidTransition, SessionEvent, Standing, Status};
use crate::ending::{Cut, Ending, Outcome};
use crate::ids::{Attempt, SessionId};
use crate::steering::Pause;

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
    /// Claude waits for other sessions and holds no slot meanwhile; or that is over, and it waits
    /// to get one back.
    Awaiting {
        /// The attempt.
        attempt: Attempt,
        /// When Claude was started.
        started_at: Timestamp,
        /// When it gave its slot up.
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
    /// It ended without a report of what its attempts left; that is being brought to a branch of
    /// its own.
    Saving {
        /// The newest attempt.
        attempt: Attempt,
        /// When Claude was started, if it was.
        started_at: Option<Timestamp>,
        /// What became of the session.
        outcome: Outcome,
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
            // Waits nest: who gave its slot up already has none to give.
            (
                Self::Running { attempt, .. } | Self::Awaiting { attempt, .. },
                E::SlotYielded(of),
            ) if attempt == of => Ok(match self {
                Self::Running { since, .. } => Self::Awaiting {
                    attempt: *attempt,
                    started_at: *since,
                    since: now,
                },
                _ => self.clone(),
            }),
            (
                Self::Awaiting {
                    attempt,
                    started_at,
                    ..
                },
                E::SlotTaken(of),
            ) if attempt == of => Ok(Self::Running {
                attempt: *attempt,
                since: *started_at,
            }),
            (
                Self::Starting { attempt, .. }
                | Self::Running { attempt, .. }
                | Self::Awaiting { attempt, .. },
                E::CancelRequested,
            ) => Ok(Self::Stopping {
                attempt: *attempt,
                started_at: self.started_at(),
                since: now,
            }),
            (
                Self::Stopping { .. }
                | Self::Saving {
                    outcome: Outcome::Cancelled,
                    ..
                },
                E::CancelRequested,
            ) => Ok(self.clone()),
            (
                Self::Saving {
                    attempt, outcome, ..
                },
                E::Saved(of),
            ) if attempt == of => Ok(self.finished(outcome.clone(), now)),
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
                | Self::Awaiting { .. }
                | Self::Concluding { .. },
                E::MessageSent(_),
            ) => Ok(self.clone()),
            (state, E::MessageTold(of, _) | E::LimitHit(of, _) | E::BudgetSpent(of))
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

    pub(super) fn finished(&self, outcome: Outcome, at: Timestamp) -> Self {
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
            | Self::Awaiting { attempt, .. }
            | Self::Stopping { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// Whether it takes one of the places for running sessions.
    #[must_use]
    pub fn holds_slot(&self) -> bool {
        match self {
            Self::Awaiting { .. } => false,
            Self::Concluding { .. } => true,
            _ => self.live_attempt().is_some(),
        }
    }

    /// Whether it waits for others, without a slot.
    #[must_use]
    pub fn awaits(&self) -> bool {
        matches!(self, Self::Awaiting { .. })
    }

    /// Whether its Claude is to do nothing: it has no slot, or was told to stop.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        matches!(self, Self::Awaiting { .. } | Self::Stopping { .. })
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
            Self::Awaiting { started_at, .. } => Some(*started_at),
            Self::Stopping { started_at, .. }
            | Self::Concluding { started_at, .. }
            | Self::Saving { started_at, .. }
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
            Self::Awaiting { .. } => "awaiting",
            Self::Stopping { .. } => "stopping",
            Self::Concluding { .. } => "concluding",
            Self::Saving { .. } => "saving",
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
            Self::Running { .. }
            | Self::Awaiting { .. }
            | Self::Stopping { .. }
            | Self::Concluding { .. }
            | Self::Saving { .. } => Status::Running,
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
