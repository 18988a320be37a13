//! Snapshot and limits → what to do next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::ids::{Attempt, OrchestrationId, SessionId};
use crate::observe::Snapshot;
use crate::project::Kind;
use crate::sandbox::{Sandbox, SandboxState};
use crate::schedule::{Durations, OpenSession, Phase, Slots, choose, rank};
use crate::session::{Session, SessionState, Standing};
use crate::waiting::{account_limit, may_launch};

/// How old a sandbox without a session must be before it is removed. A sandbox is made after its
/// session is recorded, so a young one belongs to a server that is faster than our listing.
pub const ORPHAN_AGE: SignedDuration = SignedDuration::from_mins(10);

/// What bounds a plan, and what its order rests on.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Sessions that may run at once.
    pub slots_max: usize,
    /// How many of a kind may run at once, of the kinds that have a limit of their own.
    pub kinds_max: &'a [(Kind, usize)],
    /// How long sessions take.
    pub durations: &'a Durations,
    /// Sandboxes that may stand ready before their sessions are launched.
    pub prepared_max: usize,
    /// How long a session that was told to stop may take to save its work.
    pub stop_grace: SignedDuration,
}

/// What becomes of a sandbox's volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// They may hold work that is nowhere else.
    Keep,
    /// The work is safe; the conversation may be gone on with.
    KeepState,
    /// Nothing is lost with them.
    Remove,
}

/// Something to do. Every action may be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Delete a sandbox that is of no more use.
    Remove(Sandbox, Volumes),
    /// Kill a sandbox that was told to stop and does not; its volumes stay.
    Kill(Sandbox),
    /// Record and land what a session left.
    Conclude(Arc<Session>),
    /// Start a session's sandbox: a new decision, or one whose act was cut short.
    Launch(Arc<Session>),
    /// Make a session's sandbox ahead of its launch.
    Prepare(Arc<Session>),
}

impl Action {
    /// The session it is for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match self {
            Self::Remove(sandbox, _) | Self::Kill(sandbox) => sandbox.session,
            Self::Conclude(session) | Self::Launch(session) | Self::Prepare(session) => session.id,
        }
    }
}

/// The IO that `snapshot` calls for. Pure: the same snapshot gives the same plan.
///
/// `standing` tells of any session, over or not; none for an id that was never recorded.
/// Removals come first, so that a full host frees room before it is asked for more. In which order
/// sessions that are ready take slots, [`crate::schedule`] says.
pub fn plan(
    snapshot: &Snapshot,
    standing: impl Fn(SessionId) -> Option<Standing>,
    limits: &Limits<'_>,
) -> Vec<Action> {
    let mut actions = removals(snapshot, &standing);
    let idle = snapshot
        .sessions
        .iter()
        .filter(|session| !snapshot.busy.contains(&session.id));
    for session in idle {
        let sandbox = sandbox_of(snapshot, session);
        let sandbox_state = sandbox.map(|sandbox| &sandbox.state);
        match &session.state {
            SessionState::Concluding { .. } => actions.push(Action::Conclude(Arc::clone(session))),
            SessionState::Starting { .. }
                if matches!(
                    sandbox_state,
                    None | Some(SandboxState::Prepared | SandboxState::Removed)
                ) =>
            {
                // A crash after the decision but before the act, or an unready runtime.
                actions.push(Action::Launch(Arc::clone(session)));
            }
            SessionState::Stopping { since, .. }
                if snapshot
                    .now
                    .duration_since((*since).max(snapshot.watching_since))
                    > limits.stop_grace =>
            {
                actions.extend(sandbox.cloned().map(Action::Kill));
            }
            _ => {}
        }
    }
    let open = open_sessions(snapshot, &standing, limits.durations);
    let launches = choose(&open, slots(snapshot, limits));
    let prepares = prepares(snapshot, &open, &launches, limits.prepared_max);
    let by_id: HashMap<SessionId, &Arc<Session>> = match launches.len() + prepares.len() {
        0 => HashMap::new(),
        _ => snapshot.sessions.iter().map(|one| (one.id, one)).collect(),
    };
    let found = |id: &SessionId| by_id.get(id).map(|session| Arc::clone(session));
    actions.extend(launches.iter().filter_map(found).map(Action::Launch));
    actions.extend(prepares.iter().filter_map(found).map(Action::Prepare));
    actions
}

fn sandbox_of<'a>(snapshot: &'a Snapshot, session: &Session) -> Option<&'a Sandbox> {
    snapshot.sandboxes.seen.get(&(session.id, session.attempt))
}

/// All sessions as the scheduler sees them.
fn open_sessions<'a>(
    snapshot: &'a Snapshot,
    standing: &impl Fn(SessionId) -> Option<Standing>,
    durations: &Durations,
) -> Vec<OpenSession<'a>> {
    let limit = account_limit(&snapshot.sessions, snapshot.now);
    let sessions = snapshot.sessions.iter();
    let open = sessions.map(|session| {
        let is_queued = session.state == SessionState::Queued;
        let phase = if session.state.holds_slot() {
            Phase::HoldsSlot
        } else if is_queued && snapshot.busy.contains(&session.id) {
            // A launch under way takes a slot when it is recorded.
            Phase::HoldsSlot
        } else if is_queued && may_launch(session, limit, snapshot.now) && ready(session, standing)
        {
            Phase::Ready
        } else {
            Phase::Waiting
        };
        OpenSession {
            id: session.id,
            kind: session.kind,
            orchestration: session.orchestration_id,
            priority: session.priority,
            created_at: session.created_at,
            expected_s: durations.expected_s(session.kind),
            dependencies: &session.dependencies,
            phase,
        }
    });
    open.collect()
}

fn slots(snapshot: &Snapshot, limits: &Limits<'_>) -> Slots {
    let kinds = limits.kinds_max.iter();
    let slots = kinds.fold(Slots::new(limits.slots_max), |slots, (kind, most)| {
        slots.with_kind(*kind, *most)
    });
    let mut narrowed: HashMap<OrchestrationId, u32> = HashMap::new();
    for session in &snapshot.sessions {
        if let (Some(id), Some(most)) = (session.orchestration_id, session.parallel_max) {
            let least = narrowed.entry(id).or_insert(most);
            *least = most.min(*least);
        }
    }
    narrowed.into_iter().fold(slots, |slots, (id, most)| {
        slots.with_orchestration(id, most as usize)
    })
}

/// The sessions whose sandboxes are made ahead: those that are ready, in the order in which they
/// will be launched, then the others, oldest first.
fn prepares(
    snapshot: &Snapshot,
    open: &[OpenSession<'_>],
    launches: &[SessionId],
    prepared_max: usize,
) -> Vec<SessionId> {
    let room = prepared_max.saturating_sub(prepared(snapshot));
    if room == 0 {
        return Vec::new();
    }
    let lacking: HashSet<SessionId> = snapshot
        .sessions
        .iter()
        .filter(|session| {
            matches!(session.state, SessionState::Created | SessionState::Queued)
                && !snapshot.busy.contains(&session.id)
                && !launches.contains(&session.id)
                && matches!(
                    sandbox_of(snapshot, session).map(|sandbox| &sandbox.state),
                    None | Some(SandboxState::Removed)
                )
        })
        .map(|session| session.id)
        .collect();
    if lacking.is_empty() {
        return Vec::new();
    }
    let ranked = rank(open);
    let mut seen = HashSet::new();
    let others = snapshot.sessions.iter().map(|session| session.id);
    let wanted = ranked.into_iter().chain(others);
    wanted
        .filter(|id| lacking.contains(id) && seen.insert(*id))
        .take(room)
        .collect()
}

fn ready(session: &Session, standing: &impl Fn(SessionId) -> Option<Standing>) -> bool {
    session
        .dependencies
        .iter()
        .all(|&id| standing(id) == Some(Standing::Completed))
}

/// Sandboxes that stand ready or are being made. Those being made count by their sessions, for
/// which an action is under way: until it ends, nothing is seen of them.
fn prepared(snapshot: &Snapshot) -> usize {
    let ready = snapshot
        .sandboxes
        .seen
        .values()
        .filter(|sandbox| sandbox.state == SandboxState::Prepared);
    let being_made = snapshot.sessions.iter().filter(|session| {
        matches!(session.state, SessionState::Created | SessionState::Queued)
            && snapshot.busy.contains(&session.id)
            && !snapshot
                .sandboxes
                .seen
                .contains_key(&(session.id, session.attempt))
    });
    ready.count() + being_made.count()
}

fn removals(snapshot: &Snapshot, standing: &impl Fn(SessionId) -> Option<Standing>) -> Vec<Action> {
    let active: HashMap<SessionId, &Session> = snapshot
        .sessions
        .iter()
        .map(|session| (session.id, session.as_ref()))
        .collect();
    let mut removals: Vec<Action> = snapshot
        .sandboxes
        .seen
        .values()
        .filter(|sandbox| sandbox.state != SandboxState::Removed)
        .filter(|sandbox| !snapshot.busy.contains(&sandbox.session))
        .filter_map(|sandbox| {
            let volumes = match active.get(&sandbox.session) {
                Some(session) if needs(session, sandbox.attempt) => return None,
                Some(_) => Volumes::Keep,
                None => fate(sandbox, standing(sandbox.session), snapshot.now)?,
            };
            let unused = sandbox.state == SandboxState::Prepared;
            let volumes = if unused { Volumes::Remove } else { volumes };
            Some(Action::Remove(sandbox.clone(), volumes))
        })
        .collect();
    removals.sort_by_key(Action::session);
    removals
}

/// Whether a session that is not over may still use the sandbox of `attempt`. Its container goes
/// only when the outcome is recorded.
fn needs(session: &Session, attempt: Attempt) -> bool {
    attempt == session.attempt
}

/// What becomes of the volumes of a sandbox whose session is over; none: leave it alone for now.
fn fate(sandbox: &Sandbox, standing: Option<Standing>, now: Timestamp) -> Option<Volumes> {
    match standing {
        Some(Standing::Completed) => Some(Volumes::KeepState),
        Some(Standing::Lost) => Some(Volumes::Keep),
        // Recorded after the sessions were read.
        Some(Standing::Open) => None,
        None if now.duration_since(sandbox.created_at) > ORPHAN_AGE => Some(Volumes::Keep),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::observe::Sandboxes;
    use crate::sandbox::sandbox_id;
    use crate::testing::{at, letter, session, session_id, state};

    static DURATIONS: LazyLock<Durations> = LazyLock::new(Durations::default);

    fn limits() -> Limits<'static> {
        Limits {
            slots_max: 2,
            kinds_max: &[],
            durations: &DURATIONS,
            prepared_max: 1,
            stop_grace: SignedDuration::from_secs(60),
        }
    }

    /// `a:running b:queued<-a` as sessions, `a:running z:exited` as sandboxes.
    fn snapshot(sessions: &str, sandboxes: &str) -> Snapshot {
        let sessions: Vec<_> = sessions
            .split_whitespace()
            .map(|entry| Arc::new(session(entry)))
            .collect();
        let seen = sandboxes.split_whitespace().map(|entry| {
            let (name, state) = entry.split_once(':').expect("name:state");
            let id = session_id(name);
            let sandbox = Sandbox {
                id: sandbox_id(Kind::Testing, id, Attempt::FIRST),
                session: id,
                attempt: Attempt::FIRST,
                state: match state {
                    "prepared" => SandboxState::Prepared,
                    "running" => SandboxState::Running,
                    "removed" => SandboxState::Removed,
                    _ => SandboxState::Exited {
                        code: 0,
                        oom_killed: false,
                        finished_at: at(1),
                    },
                },
                created_at: at(0),
            };
            ((id, Attempt::FIRST), sandbox)
        });
        let sandboxes = Sandboxes {
            seen: seen.collect(),
            ..Sandboxes::default()
        };
        Snapshot {
            sessions,
            sandboxes,
            busy: HashSet::new(),
            now: at(3_600),
            watching_since: at(0),
        }
    }

    fn standings(snapshot: &Snapshot, over: &str) -> impl Fn(SessionId) -> Option<Standing> {
        let over: Vec<(SessionId, Standing)> = over
            .split_whitespace()
            .map(|entry| {
                let (name, standing) = entry.split_once(':').expect("name:standing");
                let lost = standing == "failed";
                let standing = if lost {
                    Standing::Lost
                } else {
                    Standing::Completed
                };
                (session_id(name), standing)
            })
            .collect();
        let open: HashSet<SessionId> = snapshot.sessions.iter().map(|one| one.id).collect();
        move |id| {
            let known = over
                .iter()
                .find(|(one, _)| *one == id)
                .map(|(_, standing)| *standing);
            known.or_else(|| open.contains(&id).then_some(Standing::Open))
        }
    }

    fn render(actions: &[Action]) -> String {
        let words = actions.iter().map(|action| {
            let word = match action {
                Action::Remove(_, Volumes::Keep) => "remove-keeping-volumes",
                Action::Remove(_, Volumes::KeepState) => "remove-keeping-state",
                Action::Remove(_, Volumes::Remove) => "remove",
                Action::Kill(_) => "kill",
                Action::Conclude(_) => "conclude",
                Action::Launch(_) => "launch",
                Action::Prepare(_) => "prepare",
            };
            format!("{word} {}", letter(action.session()))
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[track_caller]
    fn check(sessions: &str, over: &str, sandboxes: &str, expected: Expect) {
        let snapshot = snapshot(sessions, sandboxes);
        let standing = standings(&snapshot, over);
        expected.assert_eq(&render(&plan(&snapshot, standing, &limits())));
    }

    #[test]
    fn a_dependent_waits_while_its_dependency_runs() {
        check(
            "a:running b:queued<-a",
            "",
            "a:running b:prepared",
            expect![""],
        );
    }

    #[test]
    fn a_dependent_is_launched_when_all_have_completed() {
        check("c:queued<-ab", "a:done b:done", "", expect!["launch c"]);
    }

    #[test]
    fn nothing_is_launched_until_the_usage_limit_is_lifted() {
        let mut limited = session("a:concluding");
        limited.steering.limited_until = Some(at(5_000));
        let mut snapshot = snapshot("b:queued", "b:prepared");
        snapshot.sessions.insert(0, Arc::new(limited));
        let standing = |_| Some(Standing::Open);
        assert_eq!(render(&plan(&snapshot, standing, &limits())), "conclude a");
        snapshot.now = at(5_000);
        assert_eq!(
            render(&plan(&snapshot, standing, &limits())),
            "conclude a, launch b"
        );
    }

    #[test]
    fn the_oldest_takes_the_last_slot() {
        check(
            "a:running b:queued c:queued",
            "",
            "a:running c:prepared",
            expect!["launch b"],
        );
    }

    fn changed(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Session)) {
        let id = session_id(name);
        let found = snapshot.sessions.iter_mut().find(|one| one.id == id);
        change(Arc::make_mut(found.expect("the session")));
    }

    #[test]
    fn priority_goes_before_age() {
        let mut snapshot = snapshot("a:queued b:queued c:queued", "");
        changed(&mut snapshot, "c", |one| one.priority = 1);
        changed(&mut snapshot, "a", |one| one.priority = -1);
        let standing = standings(&snapshot, "");
        let actions = plan(&snapshot, standing, &limits());
        assert_eq!(render(&actions), "launch c, launch b, prepare a");
    }

    #[test]
    fn the_longest_way_to_go_is_begun_first() {
        check(
            "a:queued b:queued c:queued d:created<-c e:created<-d",
            "",
            "",
            expect!["launch c, launch a, prepare b"],
        );
    }

    #[test]
    fn orchestrations_and_kinds_have_limits_of_their_own() {
        let mut together = snapshot("a:running b:queued c:queued", "a:running");
        for name in ["a", "b"] {
            changed(&mut together, name, |one| {
                one.orchestration_id = Some(OrchestrationId(uuid::Uuid::nil()));
                one.parallel_max = Some(1);
            });
        }
        let standing = standings(&together, "");
        let actions = plan(&together, standing, &limits());
        assert_eq!(render(&actions), "launch c, prepare b");

        let alike = snapshot("a:running b:queued", "a:running b:prepared");
        let limits = Limits {
            kinds_max: &[(Kind::Testing, 1)],
            ..limits()
        };
        let standing = standings(&alike, "");
        assert_eq!(render(&plan(&alike, standing, &limits)), "");
    }

    #[test]
    fn a_session_that_concludes_still_holds_its_slot() {
        check(
            "a:concluding b:running c:queued",
            "",
            "c:prepared",
            expect!["conclude a"],
        );
    }

    #[test]
    fn a_launch_that_was_cut_short_is_repeated() {
        check(
            "a:starting b:starting",
            "",
            "a:prepared",
            expect!["launch a, launch b"],
        );
        check("a:starting", "", "a:running", expect![""]);
    }

    #[test]
    fn sandboxes_are_made_ahead_up_to_the_limit() {
        check("a:created b:created", "", "", expect!["prepare a"]);
        check("a:created b:created", "", "a:prepared", expect![""]);
    }

    #[test]
    fn a_sandbox_that_is_being_made_counts() {
        let mut snapshot = snapshot("a:created b:created", "");
        snapshot.busy.insert(session_id("b"));
        let actions = plan(&snapshot, |_| Some(Standing::Open), &limits());
        assert_eq!(render(&actions), "");
    }

    #[test]
    fn what_is_over_is_removed_and_lost_work_is_kept() {
        check(
            "",
            "a:done b:failed c:failed",
            "a:exited b:exited c:prepared",
            expect!["remove-keeping-state a, remove-keeping-volumes b, remove c"],
        );
    }

    #[test]
    fn a_session_that_does_not_stop_is_killed() {
        check("a:stopping", "", "a:running", expect!["kill a"]);
    }

    #[test]
    fn a_stop_that_outlives_a_restart_gets_its_grace_anew() {
        let mut snapshot = snapshot("a:stopping", "a:running");
        snapshot.watching_since = at(3_590);
        let standing = standings(&snapshot, "");
        assert_eq!(render(&plan(&snapshot, standing, &limits())), "");
    }

    #[test]
    fn a_container_removed_before_claude_started_is_made_again() {
        check("a:starting", "", "a:removed", expect!["launch a"]);
    }

    #[test]
    fn an_old_orphan_is_removed_and_a_young_one_left() {
        let mut young = snapshot("", "z:running");
        young.now = at(60);
        assert_eq!(render(&plan(&young, |_| None, &limits())), "");
        let old = snapshot("", "z:running");
        assert_eq!(
            render(&plan(&old, |_| None, &limits())),
            "remove-keeping-volumes z"
        );
    }

    /// How often a plan for so many sessions asks how one stands, and how many dependencies they have.
    fn questions(
        count: usize,
        depends: impl Fn(usize) -> std::ops::Range<usize>,
    ) -> (usize, usize) {
        let id = |at: usize| SessionId(uuid::Uuid::from_u128(at as u128));
        let sessions = (0..count).map(|at| {
            let mut one = session("a:queued");
            one.id = id(at);
            one.dependencies = depends(at).map(id).collect();
            Arc::new(one)
        });
        let sessions: Vec<_> = sessions.collect();
        let edges = sessions.iter().map(|one| one.dependencies.len()).sum();
        let snapshot = Snapshot {
            sessions,
            ..snapshot("", "")
        };
        let asked = std::cell::Cell::new(0);
        let standing = |_| {
            asked.set(asked.get() + 1);
            Some(Standing::Open)
        };
        plan(&snapshot, standing, &limits());
        (asked.get(), edges)
    }

    #[test]
    fn planning_ten_thousand_asks_about_each_dependency_once() {
        const MANY: usize = 10_000;
        let shapes: [&dyn Fn(usize) -> std::ops::Range<usize>; 3] =
            [&|at| at.saturating_sub(1)..at, &|at| 0..at.min(1), &|at| {
                0..if at + 1 == MANY { at } else { 0 }
            }];
        for depends in shapes {
            let (asked, edges) = questions(MANY, depends);
            assert!(
                asked <= edges,
                "{asked} questions about {edges} dependencies"
            );
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_slots_and_never_before_its_dependencies(
            states in proptest::collection::vec(0usize..7, 1..20),
            edges in proptest::collection::vec(any::<u32>(), 20),
            slots_max in 1usize..5,
        ) {
            let names = ["created", "queued", "starting", "running", "stopping", "concluding", "queued"];
            let sessions: Vec<Arc<Session>> = states.iter().enumerate().map(|(index, &which)| {
                let mut one = session("a:created");
                one.id = SessionId(uuid::Uuid::from_u128(index as u128));
                one.state = state(names[which]);
                one.dependencies = (0..index)
                    .filter(|earlier| edges[index] & (1 << earlier) != 0)
                    .map(|earlier| SessionId(uuid::Uuid::from_u128(earlier as u128)))
                    .collect();
                Arc::new(one)
            }).collect();
            let held = sessions.iter().filter(|one| one.state.holds_slot()).count();
            let snapshot = Snapshot { sessions, ..snapshot("", "") };
            let limits = Limits { slots_max, ..limits() };
            let actions = plan(&snapshot, |_| Some(Standing::Open), &limits);
            let new_launches: Vec<&Arc<Session>> = actions.iter().filter_map(|action| match action {
                Action::Launch(one) if one.state == SessionState::Queued => Some(one),
                _ => None,
            }).collect();
            prop_assert!(new_launches.iter().all(|one| one.dependencies.is_empty()));
            prop_assert!(new_launches.len() <= slots_max.saturating_sub(held));
            prop_assert_eq!(plan(&snapshot, |_| Some(Standing::Open), &limits), actions);
        }
    }
}
