//! Coordination sessions: what they may ask for, and within which bounds.
//!
//! A coordination session makes sessions of its own, its children. All of them, and theirs in
//! turn, belong to the orchestration of the one that a client made.

use crate::decompose::SESSIONS_MAX;
use crate::ids::{OrchestrationId, SessionId};
use crate::project::{Branch, Kind, Project, Repository};
use crate::session::{Session, SessionState, Standing};

/// How far coordination sessions may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoordinationLimits {
    /// How many levels of sessions may be below one that a client made.
    pub depth_max: u32,
    /// How many sessions the coordination sessions of one orchestration may make together, those
    /// that are over included: a limit to what a confused one may spend.
    pub sessions_max: usize,
}

impl Default for CoordinationLimits {
    /// Two levels, so that a part of the work may be coordinated by itself; and as many sessions as
    /// any other graph may have.
    fn default() -> Self {
        Self {
            depth_max: 2,
            sessions_max: SESSIONS_MAX,
        }
    }
}

/// Why a coordination session does not get what it asked for. It reads the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoordinationRefusal {
    /// It did not make that session.
    #[error(
        "session {0} is not one of yours; a coordination session may use only those that it made, \
         and those that they made"
    )]
    NotYours(SessionId),
    /// It is not in that orchestration.
    #[error(
        "orchestration {0} is not yours; a coordination session sees the orchestration only that it \
         is in"
    )]
    NotYourOrchestration(OrchestrationId),
    /// It coordinates another repository.
    #[error("a session for {asked} was asked for; yours can only be for {own}")]
    OtherRepository {
        /// What was asked for.
        asked: Repository,
        /// Its own.
        own: Repository,
    },
    /// It coordinates another branch.
    #[error(
        "a session for the branch {asked} was asked for; leave the branch out: what your sessions \
         leave is brought to the branch of your orchestration together"
    )]
    OtherBranch {
        /// What was asked for.
        asked: Branch,
    },
    /// It was made before coordination sessions could make others.
    #[error("session {0} is in no orchestration, so it can make no sessions; create it anew")]
    NoOrchestration(SessionId),
    /// There would be too many levels.
    #[error(
        "you are on level {depth} below the coordination session that a client made, and there may \
         be {depth_max}; do the work in the sessions there are, or say in your closing words what \
         is left to do"
    )]
    TooDeep {
        /// The level of the one that asks.
        depth: u32,
        /// How many there may be.
        depth_max: u32,
    },
    /// One on the last level could make none.
    #[error(
        "a coordination session of yours could make no sessions, since there may be {depth_max} \
         levels of them; ask for sessions of another type"
    )]
    NoLevelLeft {
        /// How many there may be.
        depth_max: u32,
    },
    /// There would be too many of them.
    #[error(
        "{made} sessions were made by coordination sessions here, and there may be {sessions_max}; \
         give more work to those there are: message_session lets one that completed go on, \
         retry_session one that failed begin anew"
    )]
    TooMany {
        /// How many there are.
        made: usize,
        /// How many there may be.
        sessions_max: usize,
    },
    /// More money than is its to give.
    #[error(
        "session {id} may not be given more to spend by you; say in your closing words that its \
         budget is spent: a person can raise it"
    )]
    Budget {
        /// The child.
        id: SessionId,
    },
    /// Its orchestration is for people to start, to pay for and to cancel.
    #[error(
        "start or cancel your sessions one by one, with sessionId; an orchestration as a whole is \
         for people, and so is a larger budget for it: say in your closing words what they have \
         to do"
    )]
    NotForYou,
    /// It is over, or was told to stop.
    #[error("session {id} is {state}; only a coordination session that runs may use sessions")]
    NotAtWork {
        /// The one that asks.
        id: SessionId,
        /// The name of its state.
        state: &'static str,
    },
}

/// Whether `own` may let its child go on, with `max_cost_usd` as its new budget where one is given:
/// no larger than its own, and none for one that has spent what it had.
///
/// # Errors
/// [`CoordinationRefusal::Budget`].
pub fn check_spending(
    own: &Session,
    child: &Session,
    max_cost_usd: Option<f64>,
) -> Result<(), CoordinationRefusal> {
    let most_usd = own.steering.max_cost_usd;
    let is_too_much = match max_cost_usd {
        Some(asked_usd) => most_usd.is_some_and(|most_usd| asked_usd > most_usd),
        None => !child.steering.affords(child.spent_usd()),
    };
    match is_too_much {
        true => Err(CoordinationRefusal::Budget { id: child.id }),
        false => Ok(()),
    }
}

/// Whether a session may ask for anything: it coordinates, and its Claude may be at work.
///
/// # Errors
/// [`CoordinationRefusal::NotAtWork`].
pub fn check_caller(session: &Session) -> Result<(), CoordinationRefusal> {
    let may_work = matches!(
        session.state,
        SessionState::Starting { .. }
            | SessionState::Running { .. }
            | SessionState::Awaiting { .. }
    );
    match may_work && coordinates(session) {
        true => Ok(()),
        false => Err(CoordinationRefusal::NotAtWork {
            id: session.id,
            state: session.state.name(),
        }),
    }
}

/// Whether a session may make others.
#[must_use]
pub fn coordinates(session: &Session) -> bool {
    session.kind == Kind::Coordination && session.command.is_none()
}

/// Whether nobody is left to start this session: it was made to be started later, by a coordination
/// session that is over or gone. `standing` says how a session stands, `None` where its record is
/// gone. Such a one is to be cancelled: the others of its orchestration would never land for it.
pub fn is_abandoned(session: &Session, standing: impl Fn(SessionId) -> Option<Standing>) -> bool {
    session.state == SessionState::Created
        && session
            .parent
            .is_some_and(|parent| standing(parent) != Some(Standing::Open))
}

/// Whether a coordination session may have this child. `depth` is its own level, 0 for one that a
/// client made; `made` says how many sessions the coordination sessions of its orchestration made.
///
/// # Errors
/// [`CoordinationRefusal`].
pub fn check_child(
    parent: &Session,
    kind: Kind,
    project: &Project,
    depth: u32,
    made: usize,
    limits: &CoordinationLimits,
) -> Result<(), CoordinationRefusal> {
    use CoordinationRefusal as R;
    if project.repository != parent.project.repository {
        return Err(R::OtherRepository {
            asked: project.repository.clone(),
            own: parent.project.repository.clone(),
        });
    }
    if let Some(asked) = &project.branch
        && project.branch != parent.project.branch
    {
        return Err(R::OtherBranch {
            asked: asked.clone(),
        });
    }
    let depth_max = limits.depth_max;
    if depth >= depth_max {
        return Err(R::TooDeep { depth, depth_max });
    }
    if kind == Kind::Coordination && depth + 1 >= depth_max {
        return Err(R::NoLevelLeft { depth_max });
    }
    let sessions_max = limits.sessions_max;
    if made >= sessions_max {
        return Err(R::TooMany { made, sessions_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::session;

    fn parent() -> Session {
        Session {
            kind: Kind::Coordination,
            ..session("a:running")
        }
    }

    const LIMITS: CoordinationLimits = CoordinationLimits {
        depth_max: 2,
        sessions_max: 3,
    };

    /// What a parent on level `depth`, in whose orchestration `made` were made, gets for asking for
    /// a session of `kind`.
    #[track_caller]
    fn check(kind: Kind, depth: u32, made: usize, expected: &str) {
        let parent = parent();
        let checked = check_child(&parent, kind, &parent.project, depth, made, &LIMITS);
        let answer = match checked {
            Ok(()) => "yes",
            Err(CoordinationRefusal::TooDeep { .. }) => "too deep",
            Err(CoordinationRefusal::NoLevelLeft { .. }) => "no level left",
            Err(CoordinationRefusal::TooMany { .. }) => "too many",
            Err(other) => panic!("{other}"),
        };
        assert_eq!(answer, expected, "{kind} on level {depth}, after {made}");
    }

    #[test]
    fn levels_and_numbers_of_children_are_limited() {
        check(Kind::Implementation, 0, 2, "yes");
        check(Kind::Implementation, 0, 3, "too many");
        check(Kind::Coordination, 0, 0, "yes");
        check(Kind::Implementation, 1, 0, "yes");
        check(Kind::Coordination, 1, 0, "no level left");
        check(Kind::Testing, 2, 0, "too deep");
    }

    #[test]
    fn children_work_where_their_parent_does() {
        let mut parent = parent();
        let ask = |parent: &Session, project: &Project| {
            check_child(parent, Kind::Testing, project, 0, 0, &LIMITS)
        };
        let mut other = parent.project.clone();
        other.repository = "o/other".parse().expect("a repository");
        let refused = ask(&parent, &other);
        assert!(
            matches!(&refused, Err(CoordinationRefusal::OtherRepository { .. })),
            "{refused:?}"
        );
        let mut branched = parent.project.clone();
        branched.branch = Some("main".parse().expect("a branch"));
        let refused = ask(&parent, &branched);
        assert!(
            matches!(&refused, Err(CoordinationRefusal::OtherBranch { .. })),
            "{refused:?}"
        );
        // To name the branch that it is anyway is no fault, nor is to leave it out.
        let plain = parent.project.clone();
        parent.project.branch.clone_from(&branched.branch);
        assert_eq!(ask(&parent, &branched), Ok(()));
        assert_eq!(ask(&parent, &plain), Ok(()));
    }

    #[test]
    fn only_one_that_coordinates_and_works_may_ask() {
        let with_state = |name: &str| Session {
            state: crate::testing::state(name),
            ..parent()
        };
        for at_work in ["starting", "running", "awaiting"] {
            assert_eq!(check_caller(&with_state(at_work)), Ok(()), "{at_work}");
        }
        for idle in ["created", "queued", "stopping", "concluding"] {
            assert!(check_caller(&with_state(idle)).is_err(), "{idle}");
        }
        assert!(check_caller(&session("a:running")).is_err());
        let gate = Session {
            command: Some("make test".into()),
            ..parent()
        };
        assert!(check_caller(&gate).is_err());
    }

    #[test]
    fn one_that_waits_to_be_started_is_abandoned_when_its_parent_is_over() {
        let made = |state: &str, is_child: bool| Session {
            state: crate::testing::state(state),
            parent: is_child.then(|| parent().id),
            ..session("b:created")
        };
        let cases = [
            ("created", true, Some(Standing::Open), false),
            ("created", true, Some(Standing::Completed), true),
            ("created", true, Some(Standing::Lost), true),
            ("created", true, None, true),
            ("created", false, None, false),
            ("queued", true, Some(Standing::Completed), false),
            ("running", true, Some(Standing::Completed), false),
        ];
        for (state, is_child, standing, expected) in cases {
            let child = made(state, is_child);
            assert_eq!(
                is_abandoned(&child, |_| standing),
                expected,
                "{state}, a child: {is_child}, its parent {standing:?}"
            );
        }
    }
}
