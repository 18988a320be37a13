//! Waiting for sessions: who is finished, who is not, and when there is something to answer.
//!
//! A wait looks only. Whatever becomes of it, the sessions go on.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::session::{Session, SessionState};
use crate::steering::Pause;

/// How long a wait is remembered after it was made: longer than any session may run.
pub const WAIT_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How many sessions ahead of one are looked at for what keeps it; further away nothing is found.
const LOOKED_AT_MAX: usize = 1_000;

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
    /// What it was answered, once it was: that stays, whatever becomes of the sessions later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<serde_json::Value>,
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
    Stuck(Stuck),
}

/// What keeps a session from getting on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    /// The session of which something is wanted: itself, or one it depends on.
    pub at: SessionId,
    /// What is wanted.
    pub wants: Wants,
}

/// What a session wants that does not get on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// To be started.
    Start,
    /// Another budget, or a word to go on.
    Budget,
    /// Another budget for its orchestration.
    OrchestrationBudget,
}

/// How `session` stands to somebody who waits for it. `open` gives a session it depends on that is
/// not over, and `is_afforded` tells whether its orchestration's budget lets a session begin.
#[must_use]
pub fn waited(
    session: &Session,
    open: impl Fn(SessionId) -> Option<Arc<Session>>,
    is_afforded: impl Fn(&Session) -> bool,
) -> Waited {
    if session.state.is_over() {
        return Waited::Finished;
    }
    let stuck = |session: &Session| {
        wants(session, &is_afforded).map(|wants| Stuck {
            at: session.id,
            wants,
        })
    };
    if let Some(stuck) = stuck(session) {
        return Waited::Stuck(stuck);
    }
    // Nearest first; each once, however many depend on it.
    let mut seen: HashSet<SessionId> = HashSet::new();
    let mut ahead: VecDeque<SessionId> = VecDeque::new();
    if session.state == SessionState::Queued {
        ahead.extend(&session.dependencies);
    }
    while let Some(id) = ahead.pop_front().filter(|_| seen.len() < LOOKED_AT_MAX) {
        let Some(dependency) = open(id).filter(|_| seen.insert(id)) else {
            continue;
        };
        if let Some(stuck) = stuck(&dependency) {
            return Waited::Stuck(stuck);
        }
        if dependency.state == SessionState::Queued {
            ahead.extend(&dependency.dependencies);
        }
    }
    Waited::Pending
}

/// What a session itself wants, where it does not get on.
fn wants(session: &Session, is_afforded: impl Fn(&Session) -> bool) -> Option<Wants> {
    match &session.state {
        SessionState::Created => Some(Wants::Start),
        SessionState::Paused {
            pause: Pause::Budget { .. },
            ..
        } => Some(Wants::Budget),
        SessionState::Paused {
            pause: Pause::OrchestrationBudget,
            ..
        }
        | SessionState::Queued
            if !is_afforded(session) =>
        {
            Some(Wants::OrchestrationBudget)
        }
        _ => None,
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
    use crate::testing::{session, session_id};

    const FINISHED: Waited = Waited::Finished;
    const PENDING: Waited = Waited::Pending;
    const STUCK: Waited = Waited::Stuck(Stuck {
        at: SessionId(uuid::Uuid::nil()),
        wants: Wants::Budget,
    });

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
    fn what_is_stuck_is_found_however_far_away() {
        let graph = "a:created b:queued<-a c:queued<-b d:queued<-cb e:running f:queued<-e";
        let sessions: Vec<Session> = graph.split(' ').map(session).collect();
        let open = |id: SessionId| {
            let found = sessions.iter().find(|one| one.id == id);
            found.cloned().map(Arc::new)
        };
        let stands = |name: &str| {
            let session = open(session_id(name)).expect("a session");
            waited(&session, open, |_| true)
        };
        let at_a = Waited::Stuck(Stuck {
            at: session_id("a"),
            wants: Wants::Start,
        });
        assert_eq!(
            [stands("a"), stands("b"), stands("c"), stands("d")],
            [at_a; 4]
        );
        assert_eq!([stands("e"), stands("f")], [PENDING; 2]);
    }

    #[test]
    fn nobody_waits_for_what_does_not_get_on() {
        check(WaitMode::All, &[PENDING, STUCK], true, false);
        check(WaitMode::Any, &[PENDING, STUCK], false, false);
        check(WaitMode::Any, &[STUCK, STUCK], true, false);
    }
}
