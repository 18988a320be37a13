//! What is seen of the sandboxes → what has happened to their sessions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::budget::{Bounds, Budget};
use crate::ending::{ABSENCE_MAX, FailureCode, Loss, Outcome};
use crate::ids::{Attempt, OrchestrationId, SessionId};
use crate::pauses::{LAUNCHES_LOST_MAX, launch_lost};
use crate::sandbox::{Sandbox, SandboxState};
use crate::session::{Session, SessionEvent, SessionState};

/// The exit code of a process that SIGKILL ended, as container runtimes report it.
const KILLED_CODE: i64 = 137;
/// How long an agent may take from the launch of its sandbox until it connects; it takes less than a
/// second on a quiet machine. One that does not is replaced.
pub const CONNECT_WAIT: SignedDuration = SignedDuration::from_secs(120);

/// A runtime that comes back after it was out of reach says that what it took down ended no later
/// than this after it was last asked in vain. What ends later ended by itself.
const INTERRUPTION_MAX: SignedDuration = SignedDuration::from_secs(60);

/// What the reconciler looks at in one pass.
#[derive(Debug)]
pub struct Snapshot {
    /// All sessions that are not over, oldest first.
    pub sessions: Vec<Arc<Session>>,
    /// What bounds the sessions of an orchestration together, of those that are bounded.
    pub orchestrations: HashMap<OrchestrationId, Bounds>,
    /// What is known of the sandboxes.
    pub sandboxes: Sandboxes,
    /// Sessions for which an action is under way: nothing is concluded or planned for them.
    pub busy: HashSet<SessionId>,
    /// Sessions whose Claudes wait for other sessions at this moment.
    pub waits: HashSet<SessionId>,
    /// The time of this pass.
    pub now: Timestamp,
    /// Since when somebody looks; waits that began before are counted from here.
    pub watching_since: Timestamp,
}

impl Snapshot {
    /// The budget of a session's orchestration.
    #[must_use]
    pub fn budget_of(&self, session: &Session) -> Option<&Budget> {
        let bounds = self.orchestrations.get(&session.orchestration_id?)?;
        bounds.budget.as_ref()
    }
}

/// What is known of the sandboxes.
#[derive(Debug, Clone, Default)]
pub struct Sandboxes {
    /// As last seen.
    pub seen: HashMap<(SessionId, Attempt), Sandbox>,
    /// Whether `seen` is a complete listing, made after the sessions were read. Only then does the
    /// absence of a sandbox mean anything.
    pub complete: bool,
    /// When the runtime was last out of reach.
    pub interrupted_at: Option<Timestamp>,
    /// Whether the machine was restarted since the sessions were launched.
    pub host_rebooted: bool,
    /// Attempts whose agents were never given their job, as far as this server knows for certain:
    /// Claude cannot have been started there.
    pub untold: HashSet<(SessionId, Attempt)>,
    /// Those of them whose agents did not even connect, or are never to have their job, with the time
    /// when their containers were started, where that is known.
    pub unheard: HashMap<(SessionId, Attempt), Option<Timestamp>>,
    /// Attempts whose agents may have their job and are not connected, with the time since when
    /// that is so.
    pub absent: HashMap<(SessionId, Attempt), Timestamp>,
}

/// The losses that the sandboxes show. One that lost nothing but a launch is launched again, within
/// bounds. Everything else that happens to a sandbox is told by its
/// agent, and an agent exits only after its report was recorded.
#[must_use]
pub fn losses(snapshot: &Snapshot) -> Vec<(Arc<Session>, SessionEvent)> {
    let lost = |session: &Arc<Session>| {
        let attempt = session.state.live_attempt()?;
        if let Some(event) = unheard(session, attempt, snapshot) {
            return Some((Arc::clone(session), event));
        }
        if is_silent(session, attempt, snapshot) {
            let event = SessionEvent::SandboxLost(attempt, Loss::Silent);
            return Some((Arc::clone(session), event));
        }
        let loss = loss(session, attempt, &snapshot.sandboxes)?;
        let untold = snapshot.sandboxes.untold.contains(&(session.id, attempt));
        let again = launch_lost(session, attempt).filter(|_| untold);
        let event = again.unwrap_or(SessionEvent::SandboxLost(attempt, loss));
        Some((Arc::clone(session), event))
    };
    let idle = snapshot
        .sessions
        .iter()
        .filter(|session| !snapshot.busy.contains(&session.id));
    idle.filter_map(lost).collect()
}

/// What follows for a session whose sandbox runs and whose agent has not connected in all the time
/// it had.
fn unheard(session: &Session, attempt: Attempt, snapshot: &Snapshot) -> Option<SessionEvent> {
    let SessionState::Starting { since, .. } = &session.state else {
        return None;
    };
    let key = (session.id, attempt);
    let sandbox = snapshot.sandboxes.seen.get(&key)?;
    let launched = snapshot.sandboxes.unheard.get(&key)?;
    // To make and start a container may take long, and that is not the agent's fault.
    let since = launched.unwrap_or(*since).max(snapshot.watching_since);
    let is_late = snapshot.now.duration_since(since) > CONNECT_WAIT;
    if sandbox.state != SandboxState::Running || !is_late {
        return None;
    }
    let given_up = || {
        let text = format!(
            "the agent in its container did not get ready within {} s, {LAUNCHES_LOST_MAX} times \
             and once more; see docker logs, and whether the image can run it",
            CONNECT_WAIT.as_secs()
        );
        SessionEvent::LaunchFailed(attempt, Outcome::failed(FailureCode::LaunchFailed, text))
    };
    Some(launch_lost(session, attempt).unwrap_or_else(given_up))
}

/// Whether a session's agent has stayed away for longer than it ever does. What Claude has done by
/// then is in the volumes: nobody will say more of it.
fn is_silent(session: &Session, attempt: Attempt, snapshot: &Snapshot) -> bool {
    // One that was told to stop is killed when its time is over.
    let is_at_work = matches!(
        session.state,
        SessionState::Starting { .. }
            | SessionState::Running { .. }
            | SessionState::Awaiting { .. }
    );
    let key = (session.id, attempt);
    let sandbox = snapshot.sandboxes.seen.get(&key);
    let runs = sandbox.is_some_and(|sandbox| sandbox.state == SandboxState::Running);
    let absent_since = snapshot.sandboxes.absent.get(&key);
    let is_away = absent_since.is_some_and(|since| {
        let since = (*since).max(snapshot.watching_since);
        // While the runtime is out of reach, what it runs is not known.
        let since = snapshot
            .sandboxes
            .interrupted_at
            .map_or(since, |at| at.max(since));
        snapshot.now.duration_since(since) > ABSENCE_MAX
    });
    is_at_work && runs && is_away
}

fn loss(session: &Session, attempt: Attempt, sandboxes: &Sandboxes) -> Option<Loss> {
    let starting = matches!(session.state, SessionState::Starting { .. });
    match sandboxes
        .seen
        .get(&(session.id, attempt))
        .map(|sandbox| &sandbox.state)
    {
        Some(SandboxState::Running) => None,
        // The decision was recorded, the act was not finished: it is repeated, not given up.
        Some(SandboxState::Prepared | SandboxState::Removed) if starting => None,
        None if starting || !sandboxes.complete => None,
        Some(SandboxState::Exited {
            oom_killed: true,
            code,
            ..
        }) if *code != 0 => Some(Loss::OutOfMemory),
        _ if sandboxes.host_rebooted => Some(Loss::HostRebooted),
        Some(SandboxState::Exited {
            code, finished_at, ..
        }) => {
            let since = launched_at(session);
            let interrupted = sandboxes
                .interrupted_at
                .is_some_and(|at| Some(at) >= since && *finished_at <= at + INTERRUPTION_MAX);
            let restarted = *code == KILLED_CODE && interrupted;
            Some(if restarted {
                Loss::RuntimeRestarted
            } else {
                Loss::Exited(*code)
            })
        }
        Some(SandboxState::Prepared | SandboxState::Removed) | None => Some(Loss::Removed),
    }
}

fn launched_at(session: &Session) -> Option<Timestamp> {
    match session.state {
        SessionState::Starting { since, .. } => Some(since),
        _ => session.state.started_at(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::sandbox::sandbox_id;
    use crate::testing::{at, session};

    fn exited(code: i64, oom_killed: bool) -> SandboxState {
        SandboxState::Exited {
            code,
            oom_killed,
            finished_at: at(50),
        }
    }

    #[track_caller]
    fn check(one: &str, state: Option<SandboxState>, sandboxes: Sandboxes, expected: Expect) {
        let session = Arc::new(session(one));
        let mut sandboxes = sandboxes;
        if let Some(state) = state {
            let sandbox = Sandbox {
                id: sandbox_id(session.kind, session.id, session.attempt),
                session: session.id,
                attempt: session.attempt,
                state,
                created_at: at(0),
            };
            sandboxes
                .seen
                .insert((session.id, session.attempt), sandbox);
        }
        let sessions = vec![session];
        let snapshot = Snapshot {
            sessions,
            orchestrations: HashMap::new(),
            sandboxes,
            busy: HashSet::new(),
            waits: HashSet::new(),
            now: at(100),
            watching_since: at(0),
        };
        let text = match losses(&snapshot).as_slice() {
            [] => String::new(),
            [(_, SessionEvent::SandboxLost(_, loss))] => format!("{loss:?}"),
            [(_, SessionEvent::LaunchLost(_))] => "again".to_owned(),
            other => format!("{other:?}"),
        };
        expected.assert_eq(&text);
    }

    fn complete() -> Sandboxes {
        Sandboxes {
            complete: true,
            ..Sandboxes::default()
        }
    }

    #[test]
    fn absence_means_loss_only_in_a_complete_list() {
        check("a:running", None, Sandboxes::default(), expect![""]);
        check("a:running", None, complete(), expect!["Removed"]);
        check("a:starting", None, complete(), expect![""]);
    }

    #[test]
    fn an_exit_without_a_report_is_a_loss() {
        check(
            "a:running",
            Some(exited(1, false)),
            complete(),
            expect!["Exited(1)"],
        );
        check(
            "a:running",
            Some(exited(137, true)),
            complete(),
            expect!["OutOfMemory"],
        );
        check(
            "a:running",
            Some(SandboxState::Removed),
            Sandboxes::default(),
            expect!["Removed"],
        );
        check(
            "a:concluding",
            Some(exited(0, false)),
            complete(),
            expect![""],
        );
        check("a:queued", None, complete(), expect![""]);
    }

    #[test]
    fn only_a_sandbox_that_was_never_told_what_to_do_is_replaced() {
        let untold = || Sandboxes {
            untold: HashSet::from([(crate::testing::session_id("a"), Attempt::FIRST)]),
            ..complete()
        };
        let gone = || Some(exited(137, false));
        check("a:starting", gone(), untold(), expect!["again"]);
        check("a:starting", gone(), complete(), expect!["Exited(137)"]);
        check("a:running", gone(), untold(), expect!["Exited(137)"]);
        check("a:stopping", gone(), untold(), expect!["Exited(137)"]);
    }

    #[test]
    fn an_agent_that_does_not_connect_in_time_is_replaced_but_not_for_ever() {
        let check = |now: i64, is_unheard: bool, launched: Option<i64>, lost: u64, state: &str| {
            let mut one = session(state);
            one.steering.launches_lost = lost;
            let key = (one.id, one.attempt);
            let sandbox = Sandbox {
                id: sandbox_id(one.kind, one.id, one.attempt),
                session: one.id,
                attempt: one.attempt,
                state: SandboxState::Running,
                created_at: at(0),
            };
            let unheard = is_unheard.then_some((key, launched.map(at)));
            let snapshot = Snapshot {
                sessions: vec![Arc::new(one)],
                orchestrations: HashMap::new(),
                sandboxes: Sandboxes {
                    seen: HashMap::from([(key, sandbox)]),
                    unheard: unheard.into_iter().collect(),
                    ..complete()
                },
                busy: HashSet::new(),
                waits: HashSet::new(),
                now: at(now),
                watching_since: at(0),
            };
            let events = losses(&snapshot);
            events.first().map_or("", |(_, event)| event.name())
        };
        let text = |now: i64, is_unheard: bool, lost: u64, state: &str| {
            check(now, is_unheard, None, lost, state)
        };
        // Decided in second 10.
        assert_eq!(text(130, true, 0, "a:starting"), "");
        assert_eq!(text(131, true, 0, "a:starting"), "launch lost");
        assert_eq!(text(131, true, 5, "a:starting"), "launch failed");
        assert_eq!(text(131, false, 0, "a:starting"), "");
        assert_eq!(text(131, true, 0, "a:running"), "");
        // The container was there long after that.
        assert_eq!(check(320, true, Some(200), 0, "a:starting"), "");
        assert_eq!(check(321, true, Some(200), 0, "a:starting"), "launch lost");
    }

    #[test]
    fn an_agent_that_stays_away_for_long_is_given_up() {
        let check_after = |interrupted: Option<i64>,
                           now: i64,
                           absent_since: Option<i64>,
                           is_running: bool,
                           state: &str| {
            let one = session(state);
            let key = (one.id, one.attempt);
            let sandbox = Sandbox {
                id: sandbox_id(one.kind, one.id, one.attempt),
                session: one.id,
                attempt: one.attempt,
                state: match is_running {
                    true => SandboxState::Running,
                    false => SandboxState::Removed,
                },
                created_at: at(0),
            };
            let absent = absent_since.map(|since| (key, at(since)));
            let snapshot = Snapshot {
                sessions: vec![Arc::new(one)],
                orchestrations: HashMap::new(),
                sandboxes: Sandboxes {
                    seen: HashMap::from([(key, sandbox)]),
                    absent: absent.into_iter().collect(),
                    interrupted_at: interrupted.map(at),
                    ..complete()
                },
                busy: HashSet::new(),
                waits: HashSet::new(),
                now: at(now),
                watching_since: at(50),
            };
            match losses(&snapshot).as_slice() {
                [] => String::new(),
                [(_, SessionEvent::SandboxLost(_, loss))] => format!("{loss:?}"),
                other => format!("{other:?}"),
            }
        };
        let check = |now, absent_since, is_running, state: &str| {
            check_after(None, now, absent_since, is_running, state)
        };
        for state in ["a:starting", "a:running", "a:awaiting"] {
            assert_eq!(check(700, Some(100), true, state), "");
            assert_eq!(check(701, Some(100), true, state), "Silent");
            assert_eq!(check(9_000, None, true, state), "", "it is connected");
            assert_eq!(check(650, Some(0), true, state), "", "nobody looked");
        }
        assert_eq!(check(701, Some(100), true, "a:stopping"), "");
        let interrupted = |now| check_after(Some(300), now, Some(100), true, "a:running");
        assert_eq!([interrupted(900), interrupted(901)], ["", "Silent"]);
        assert_eq!(check(701, Some(100), false, "a:running"), "Removed");
    }

    #[test]
    fn a_restart_of_the_runtime_or_the_machine_is_told_from_a_crash() {
        let interrupted = Sandboxes {
            interrupted_at: Some(at(60)),
            ..complete()
        };
        check(
            "a:running",
            Some(exited(137, false)),
            interrupted,
            expect!["RuntimeRestarted"],
        );
        let long_ago = || Sandboxes {
            interrupted_at: Some(at(11)),
            ..complete()
        };
        let later = |finished_at| SandboxState::Exited {
            code: 137,
            oom_killed: false,
            finished_at: at(finished_at),
        };
        check(
            "a:running",
            Some(later(71)),
            long_ago(),
            expect!["RuntimeRestarted"],
        );
        check(
            "a:running",
            Some(later(72)),
            long_ago(),
            expect!["Exited(137)"],
        );
        let before = Sandboxes {
            interrupted_at: Some(at(1)),
            ..complete()
        };
        check(
            "a:running",
            Some(exited(137, false)),
            before,
            expect!["Exited(137)"],
        );
        let rebooted = Sandboxes {
            host_rebooted: true,
            ..complete()
        };
        check(
            "a:running",
            Some(exited(255, false)),
            rebooted,
            expect!["HostRebooted"],
        );
    }

    #[test]
    fn nothing_is_concluded_about_a_session_that_is_being_acted_on() {
        let session = Arc::new(session("a:running"));
        let snapshot = Snapshot {
            busy: HashSet::from([session.id]),
            waits: HashSet::new(),
            sessions: vec![session],
            orchestrations: HashMap::new(),
            sandboxes: complete(),
            now: at(100),
            watching_since: at(0),
        };
        assert!(losses(&snapshot).is_empty());
    }
}
