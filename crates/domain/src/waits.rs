//! Waiting for sessions: who is finished, who is not, and when there is something to answer.
//!
//! A wait looks only. Whatever becomes of it, the sessions go on.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::session::{Session, SessionState};
use crate::steering::Pause;

/// How long a wait is remembered after it was made: longer than any session may run.
pub const WAIT_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What a wait is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitMode {
    /// All of its sessions.
    #[default]
    All,
    /// The first of them.
    Any,
}

/// A wait that outlives the connection it was asked on, and the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The sessions waited for, each once.
    pub sessions: Vec<SessionId>,
    /// For which of them.
    pub mode: WaitMode,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ends in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When its client had no more use for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<Timestamp>,
}

/// How one of the sessions stands to somebody who waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Over, whatever its outcome.
    Finished,
    /// It gets on by itself.
    Pending,
    /// It does not get on unless somebody does something.
    Stuck(StuckBy),
}

/// What a session that does not get on by itself wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckBy {
    /// To be started.
    NotStarted,
    /// That one to be started, on which it depends.
    DependencyNotStarted(SessionId),
    /// Another budget, or a word to go on.
    Budget,
    /// Another budget for its orchestration.
    OrchestrationBudget,
}

/// How `session` stands to somebody who waits for it; `is_created` tells of a dependency whether
/// nobody asked for it to run yet, and `is_afforded` whether its orchestration's budget lets the
/// session begin.
#[must_use]
pub fn waited(
    session: &Session,
    is_created: impl Fn(SessionId) -> bool,
    is_afforded: impl Fn(&Session) -> bool,
) -> Waited {
    match &session.state {
        state if state.is_over() => Waited::Finished,
        SessionState::Created => Waited::Stuck(StuckBy::NotStarted),
        SessionState::Paused {
            pause: Pause::Budget { .. },
            ..
        } => Waited::Stuck(StuckBy::Budget),
        SessionState::Paused {
            pause: Pause::OrchestrationBudget,
            ..
        }
        | SessionState::Queued
            if !is_afforded(session) =>
        {
            Waited::Stuck(StuckBy::OrchestrationBudget)
        }
        SessionState::Queued => {
            let dependencies = session.dependencies.iter();
            match dependencies.copied().find(|id| is_created(*id)) {
                Some(id) => Waited::Stuck(StuckBy::DependencyNotStarted(id)),
                None => Waited::Pending,
            }
        }
        _ => Waited::Pending,
    }
}

/// Whether there is something to answer: the wait is over, or would be for ever unless its client
/// does something.
#[must_use]
pub fn is_answered(mode: WaitMode, stands: &[Waited]) -> bool {
    let finished = |one: &Waited| *one == Waited::Finished;
    let stuck = |one: &Waited| matches!(one, Waited::Stuck(_));
    match mode {
        WaitMode::All => stands.iter().all(finished) || stands.iter().any(stuck),
        WaitMode::Any => stands.iter().any(finished) || stands.iter().all(stuck),
    }
}

/// Whether what was waited for is there.
#[must_use]
pub fn is_done(mode: WaitMode, stands: &[Waited]) -> bool {
    let finished = |one: &Waited| *one == Waited::Finished;
    match mode {
        WaitMode::All => stands.iter().all(finished),
        WaitMode::Any => stands.iter().any(finished),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISHED: Waited = Waited::Finished;
    const PENDING: Waited = Waited::Pending;
    const STUCK: Waited = Waited::Stuck(StuckBy::Budget);

    #[track_caller]
    fn check(mode: WaitMode, stands: &[Waited], answered: bool, done: bool) {
        assert_eq!(
            (is_answered(mode, stands), is_done(mode, stands)),
            (answered, done)
        );
    }

    #[test]
    fn all_of_them_or_the_first_is_waited_for() {
        check(WaitMode::All, &[FINISHED, PENDING], false, false);
        check(WaitMode::All, &[FINISHED, FINISHED], true, true);
        check(WaitMode::Any, &[FINISHED, PENDING], true, true);
        check(WaitMode::Any, &[PENDING, PENDING], false, false);
    }

    #[test]
    fn nobody_waits_for_what_does_not_get_on() {
        check(WaitMode::All, &[PENDING, STUCK], true, false);
        check(WaitMode::Any, &[PENDING, STUCK], false, false);
        check(WaitMode::Any, &[STUCK, STUCK], true, false);
    }
}
