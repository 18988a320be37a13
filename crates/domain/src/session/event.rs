//! What can happen to a session.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ending::{Ending, Loss, Outcome};
use crate::ids::{Attempt, SessionId};
use crate::steering::{Pause, Resume};

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
    /// Claude of that attempt waits for other sessions and needs no slot meanwhile.
    SlotYielded(Attempt),
    /// The reconciler gave it a slot again.
    SlotTaken(Attempt),
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
    /// What was left when that attempt ended without a report is on a branch of its own, or cannot
    /// be brought there.
    Saved(Attempt),
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
    /// The model is called no more for the attempt: its budget, or that of its orchestration, is
    /// spent.
    BudgetSpent(Attempt),
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
            Self::SlotYielded(_) => "slot given up",
            Self::SlotTaken(_) => "slot taken back",
            Self::CancelRequested => "cancel",
            Self::AgentEnded(..) => "ended",
            Self::SandboxLost(..) => "sandbox lost",
            Self::LaunchFailed(..) => "launch failed",
            Self::Concluded(..) => "concluded",
            Self::Paused(..) => "paused",
            Self::Saved(_) => "saved",
            Self::LaunchLost(_) => "launch lost",
            Self::RetryRequested => "retry",
            Self::DependencyRetried => "dependency retried",
            Self::Resumed(_) => "resume",
            Self::MessageSent(_) => "message",
            Self::MessageTold(..) => "message told",
            Self::LimitHit(..) => "usage limit",
            Self::BudgetSpent(_) => "budget spent",
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
