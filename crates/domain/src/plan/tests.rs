use std::sync::LazyLock;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::budget::{Bounds, Budget, Spending};
use crate::ids::OrchestrationId;
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
        orchestrations: HashMap::new(),
        sandboxes,
        busy: HashSet::new(),
        waits: HashSet::new(),
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
            Action::TakeSlot(_) => "take-slot",
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
fn what_was_left_is_saved_without_a_sandbox_and_a_slot() {
    check(
        "a:saving b:queued c:queued d:queued",
        "",
        "a:exited",
        expect!["remove-keeping-volumes a, conclude a, launch b, launch c, prepare d"],
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
    let id = OrchestrationId(uuid::Uuid::nil());
    for name in ["a", "b"] {
        changed(&mut together, name, |one| one.orchestration_id = Some(id));
    }
    let one_at_once = Bounds {
        parallel_max: Some(1),
        budget: None,
    };
    together.orchestrations.insert(id, one_at_once);
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

/// `a` is over and cost something, `b` and `c` are queued, `d` runs a command.
#[track_caller]
fn check_budget(reported_usd: f64, running_usd: f64, expected: Expect) {
    let mut one = snapshot("b:queued c:queued d:queued e:queued", "");
    let id = OrchestrationId(uuid::Uuid::nil());
    for name in ["b", "c", "d"] {
        changed(&mut one, name, |one| one.orchestration_id = Some(id));
    }
    changed(&mut one, "d", |one| one.command = Some("make test".into()));
    let budget = Budget {
        max_usd: 10.0,
        spending: Spending {
            reported_usd,
            reported_by: 1,
            running_usd,
        },
    };
    let bounds = Bounds {
        parallel_max: None,
        budget: Some(budget),
    };
    one.orchestrations.insert(id, bounds);
    let limits = Limits {
        slots_max: 4,
        prepared_max: 0,
        ..limits()
    };
    let standing = standings(&one, "");
    expected.assert_eq(&render(&plan(&one, standing, &limits)));
}

#[test]
fn nothing_new_starts_with_a_spent_budget_but_what_costs_nothing() {
    check_budget(1.0, 0.0, expect!["launch b, launch c, launch d, launch e"]);
    check_budget(10.2, 0.0, expect!["launch d, launch e"]);
    check_budget(4.0, 6.0, expect!["launch d, launch e"]);
}

#[test]
fn no_more_start_at_once_than_the_budget_is_likely_to_bear() {
    check_budget(4.0, 0.0, expect!["launch b, launch e"]);
    check_budget(3.0, 0.0, expect!["launch b, launch c, launch e"]);
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

/// As `check`, where `waits` wait for others at this moment.
#[track_caller]
fn check_waits(sessions: &str, waits: &str, expected: Expect) {
    let mut snapshot = snapshot(sessions, "");
    snapshot.waits = waits.split_whitespace().map(session_id).collect();
    let standing = standings(&snapshot, "");
    let limits = Limits {
        slots_max: 1,
        prepared_max: 0,
        ..limits()
    };
    expected.assert_eq(&render(&plan(&snapshot, standing, &limits)));
}

#[test]
fn who_waits_for_others_leaves_them_its_slot() {
    check_waits("a:awaiting b:queued", "a", expect!["launch b"]);
    check_waits("a:awaiting b:running", "a", expect![""]);
}

#[test]
fn who_waited_gets_a_slot_again_as_soon_as_one_is_free() {
    check_waits("a:awaiting b:running", "", expect![""]);
    check_waits("a:awaiting b:concluding", "", expect!["conclude b"]);
    check_waits("b:queued a:awaiting", "", expect!["take-slot a"]);
    check_waits("a:awaiting b:awaiting", "b", expect!["take-slot a"]);
}

#[test]
fn what_was_begun_is_finished_before_another_begins_that_will_wait() {
    let planned = |parent: Option<&str>| {
        let mut snapshot = snapshot("a:awaiting b:queued c:queued", "");
        snapshot.waits.insert(session_id("a"));
        for name in ["a", "b"] {
            changed(&mut snapshot, name, |one| one.kind = Kind::Coordination);
        }
        changed(&mut snapshot, "b", |one| {
            one.parent = parent.map(session_id)
        });
        let limits = Limits {
            slots_max: 1,
            prepared_max: 0,
            ..limits()
        };
        let standing = standings(&snapshot, "");
        render(&plan(&snapshot, standing, &limits))
    };
    assert_eq!(planned(None), "launch c");
    assert_eq!(planned(Some("a")), "launch b");
}

#[test]
fn a_slot_that_is_being_taken_back_is_taken() {
    let mut snapshot = snapshot("a:awaiting b:queued", "");
    snapshot.busy.insert(session_id("a"));
    let limits = Limits {
        slots_max: 1,
        prepared_max: 0,
        ..limits()
    };
    let standing = standings(&snapshot, "");
    assert_eq!(render(&plan(&snapshot, standing, &limits)), "");
}

#[test]
fn two_that_wait_again_and_again_do_not_keep_their_children_out() {
    // `c` was made before the two began to wait anew: it is passed over for a while, not for ever.
    let taken_at = |waited_at: i64| {
        let mut snapshot = snapshot("a:awaiting c:queued", "");
        changed(&mut snapshot, "a", |one| {
            one.state = SessionState::Awaiting {
                attempt: Attempt::FIRST,
                started_at: at(10),
                since: at(waited_at),
            };
        });
        let standing = standings(&snapshot, "");
        let limits = Limits {
            slots_max: 1,
            prepared_max: 0,
            ..limits()
        };
        render(&plan(&snapshot, standing, &limits))
    };
    let step_s = i64::try_from(crate::schedule::STEP_S).expect("seconds");
    assert_eq!(taken_at(60), "take-slot a");
    assert_eq!(taken_at(step_s * 2), "launch c");
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
fn questions(count: usize, depends: impl Fn(usize) -> std::ops::Range<usize>) -> (usize, usize) {
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
        states in proptest::collection::vec(0usize..9, 1..20),
        waits in any::<u32>(),
        edges in proptest::collection::vec(any::<u32>(), 20),
        slots_max in 1usize..5,
    ) {
        let names = [
            "created", "queued", "starting", "running", "stopping", "concluding", "queued", "awaiting",
            "saving",
        ];
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
        let waits = (0..sessions.len()).filter(|at| waits & (1 << at) != 0);
        let waits = waits.map(|at| sessions[at].id).collect();
        let snapshot = Snapshot { sessions, waits, ..snapshot("", "") };
        let limits = Limits { slots_max, ..limits() };
        let actions = plan(&snapshot, |_| Some(Standing::Open), &limits);
        let new_launches: Vec<&Arc<Session>> = actions.iter().filter_map(|action| match action {
            Action::Launch(one) if one.state == SessionState::Queued => Some(one),
            _ => None,
        }).collect();
        let taken_back: Vec<SessionId> = actions.iter().filter_map(|action| match action {
            Action::TakeSlot(one) => Some(one.id),
            _ => None,
        }).collect();
        prop_assert!(new_launches.iter().all(|one| one.dependencies.is_empty()));
        prop_assert!(taken_back.iter().all(|id| !snapshot.waits.contains(id)));
        prop_assert!(new_launches.len() + taken_back.len() <= slots_max.saturating_sub(held));
        prop_assert_eq!(plan(&snapshot, |_| Some(Standing::Open), &limits), actions);
    }
}
