use std::collections::{BTreeSet, HashMap, HashSet};

use expect_test::{Expect, expect};
use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::session::{Session, SessionEvent};

fn id(number: u32) -> SessionId {
    SessionId(Uuid::from_u128(u128::from(number)))
}

fn number(id: SessionId) -> u32 {
    u32::try_from(id.0.as_u128()).expect("one of ours")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a second within range")
}

/// Sessions from `1 2<-1 3!<-1,2 4-`: `!` did not complete, `-` changed nothing. Each ran in the
/// second of its number, or of the number behind `@`.
fn sessions(graph: &str) -> Vec<Candidate> {
    let one = |entry: &str| {
        let (head, dependencies) = entry.split_once("<-").unwrap_or((entry, ""));
        let (head, second) = head.split_once('@').unwrap_or((head, ""));
        let name = head.trim_end_matches(['!', '-']);
        let number: u32 = name.parse().expect("a number");
        let second = second.parse().unwrap_or(i64::from(number));
        Candidate {
            session: id(number),
            title: String::new(),
            completed: !head.contains('!'),
            commit: (!head.contains('-')).then(|| format!("c{number}@{second}")),
            dependencies: dependencies
                .split(',')
                .filter_map(|of| of.parse().ok().map(id))
                .collect(),
            based_at: Some(at(second)),
            ended_at: Some(at(second)),
        }
    };
    graph.split_whitespace().map(one).collect()
}

fn numbers(ids: impl IntoIterator<Item = SessionId>) -> String {
    let ids = ids.into_iter().map(|id| number(id).to_string());
    ids.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check_leaves(graph: &str, excluded: &[u32], expected: &str) {
    let excluded = excluded.iter().copied().map(id).collect();
    let found = leaves(&sessions(graph), &excluded);
    assert_eq!(numbers(found.iter().map(|leaf| leaf.session)), expected);
}

#[test]
fn leaves_are_what_nobody_builds_on() {
    check_leaves("1 2 3", &[], "1 2 3");
    check_leaves("1 2<-1 3<-1 4<-2,3", &[], "4");
    check_leaves("1 2<-1 3!<-2", &[], "2");
    check_leaves("1! 2-", &[], "");
}

#[test]
fn a_session_without_changes_hides_nothing() {
    check_leaves("1- 2<-1 3<-1 4-<-2,3", &[], "2 3");
    check_leaves("1 2-<-1 3<-2", &[], "3");
}

/// What an orchestrator would have recorded of sessions that ran one after the other.
#[test]
fn who_went_on_from_its_own_result_does_not_hold_what_is_newer() {
    use crate::ending::Outcome;
    use crate::output::SessionResult;
    use crate::session::Report;
    use crate::steering::Resume;

    let runs = |session: Session, from: i64| {
        let attempt = session.attempt;
        let events = [
            SessionEvent::LaunchDecided(attempt),
            SessionEvent::ClaudeStarted(attempt),
            SessionEvent::AgentEnded(attempt, Box::default()),
            SessionEvent::Concluded(attempt, Outcome::Completed),
        ];
        let mut at_second = from;
        let mut session = events.iter().fold(session, |session, event| {
            at_second += 1;
            session.after(event, at(at_second)).expect("possible")
        });
        let result = SessionResult {
            branch: None,
            base_commit: "base".into(),
            commit: format!("{}@{from}", session.id),
            files_changed: 1,
            insertions: 1,
            deletions: 0,
            unjoined: Vec::new(),
        };
        session.report = Some(Report {
            result: Some(result),
            ..Report::default()
        });
        session
    };
    let goes_on = |session: Session, from: i64| {
        let resume = SessionEvent::Resumed(Resume {
            from: session.attempt,
            text: "go on".into(),
        });
        runs(session.after(&resume, at(from)).expect("possible"), from)
    };
    let held = |first: &Session, second: &Session| {
        let found = leaves(
            &[Candidate::of(first), Candidate::of(second)],
            &HashSet::new(),
        );
        found.len() == 1
    };
    let first = runs(crate::testing::session("a:queued"), 10);
    let second = runs(crate::testing::session("b:queued<-a"), 20);
    assert!(held(&first, &second));
    let second = goes_on(second, 30);
    assert!(held(&first, &second), "it still holds what it began with");
    let first = goes_on(first, 40);
    let second = goes_on(second, 50);
    assert!(!held(&first, &second), "it does not have the newer one");
}

#[test]
fn without_a_leaf_what_it_was_built_on_is_one() {
    check_leaves("1 2<-1 3<-1 4<-2,3", &[4], "2 3");
    check_leaves("1 2<-1 3<-1 4<-2,3", &[4, 2], "3");
    check_leaves("1 2-<-1 3<-2", &[3], "1");
}

#[test]
fn work_that_is_newer_than_its_dependents_start_lands_by_itself() {
    check_leaves("1@9 2<-1 3<-2", &[], "1 3");
}

#[test]
fn what_a_leaf_was_built_on_lands_with_it() {
    let graph = sessions("1 2-<-1 3<-2 4! 5");
    let all = leaves(&graph, &HashSet::new());
    assert_eq!(numbers(held_by(&graph, &all)), "1 3 5");
}

// --- a world to land in -----------------------------------------------------------------------------

/// Plays everybody else's part: merges, a gate that is red where one of `bad` is in the code, a
/// branch that moves before the first `moves` pushes.
struct World {
    sessions: Vec<Candidate>,
    bad: BTreeSet<u32>,
    red_before: bool,
    conflicts: BTreeSet<u32>,
    moves: u32,
    tip: String,
    runs: u32,
    verdicts: HashMap<SessionId, Verdict>,
    said: Vec<String>,
}

impl World {
    fn new(graph: &str) -> Self {
        Self {
            sessions: sessions(graph),
            bad: BTreeSet::new(),
            red_before: false,
            conflicts: BTreeSet::new(),
            moves: 0,
            tip: "tip".into(),
            runs: 0,
            verdicts: HashMap::new(),
            said: Vec::new(),
        }
    }

    /// The numbers of the sessions in a commit that [`World::merge`] made.
    fn content(&self, commit: &str) -> BTreeSet<u32> {
        let merged = commit.split('+').skip(1).filter_map(|one| one.parse().ok());
        let mut content = BTreeSet::new();
        let mut open: Vec<u32> = merged.collect();
        while let Some(one) = open.pop() {
            content.insert(one);
            let of = self.sessions.iter().find(|of| of.session == id(one));
            open.extend(
                of.iter()
                    .flat_map(|of| &of.dependencies)
                    .map(|of| number(*of)),
            );
        }
        content
    }

    fn merge(&self, landing: &Landing, onto: Option<Tip>) -> Landing {
        let tip = onto.unwrap_or_else(|| Tip {
            commit: self.tip.clone(),
            is_new: false,
        });
        let mut top = tip.commit.clone();
        let (mut steps, mut conflicts) = (Vec::new(), Vec::new());
        for leaf in &landing.leaves {
            if self.conflicts.contains(&number(leaf.session)) {
                conflicts.push((leaf.session, vec!["file".to_owned()]));
                continue;
            }
            top = format!("{top}+{}", number(leaf.session));
            steps.push(Step {
                session: leaf.session,
                commit: top.clone(),
            });
        }
        landing.merged(tip, steps, conflicts, &self.sessions)
    }

    fn gate(&mut self, commit: &str) -> Verdict {
        self.runs += 1;
        let is_red = self.red_before
            || self
                .content(commit)
                .iter()
                .any(|one| self.bad.contains(one));
        match is_red {
            true => Verdict::Red,
            false => Verdict::Green,
        }
    }

    /// Lands, and stops where a round is over.
    fn land(&mut self, mut landing: Landing, gated: bool, changes: u64) -> Landing {
        for _ in 0..100_000 {
            // Whoever dies here reads the same again.
            let text = serde_json::to_string(&landing).expect("it can be kept");
            landing = serde_json::from_str(&text).expect("it can be read");
            landing = match landing.next(gated, changes) {
                Next::Rest => return landing,
                Next::Consider => landing.considered(&self.sessions, &self.verdicts, changes),
                Next::Merge { onto } => self.merge(&landing, onto),
                Next::Gate { commit } => landing.gating(id(1_000_000 + self.runs), commit),
                Next::Look(run) => {
                    let verdict = self.gate(&run.commit);
                    self.said.push(format!("{}: {verdict:?}", run.commit));
                    self.verdicts.insert(run.session, verdict);
                    landing.said(run.session, verdict)
                }
                Next::LeaveOut(session, reason) => landing.without(session, reason, &self.sessions),
                Next::Fail(code, gate) => landing.failed(code, gate),
                Next::Push { .. } if self.moves > 0 => {
                    self.moves -= 1;
                    self.tip.push('\'');
                    landing.moved()
                }
                Next::Push { commit } => {
                    self.tip.clone_from(&commit);
                    landing.pushed(commit, &self.sessions)
                }
                Next::Withdraw { commit } if commit == self.tip => {
                    landing.pushed(commit, &self.sessions)
                }
                Next::Withdraw { .. } => landing.failed(LandingFailure::Cancelled, None),
                Next::Settle => landing.settled(&HashMap::new()),
            };
        }
        panic!("no end: {landing:?}");
    }
}

fn told(landing: &Landing) -> String {
    let end = match &landing.stage {
        Stage::Over { end } => match end {
            End::Landed => "landed".to_owned(),
            End::NothingToLand => "nothing to land".to_owned(),
            End::Failed { code, .. } => code.name().to_owned(),
        },
        other => format!("{other:?}"),
    };
    let out = landing
        .left_out
        .iter()
        .map(|out| format!(" -{}:{}", number(out.leaf.session), out.reason.name()));
    format!(
        "{end}: {}{}",
        numbers(landing.landed.clone()),
        out.collect::<String>()
    )
}

#[track_caller]
fn check(world: &mut World, gated: bool, expected: &Expect) {
    let landing = world.land(Landing::default(), gated, 0);
    let mut text = told(&landing);
    for said in &world.said {
        text.push('\n');
        text.push_str(said);
    }
    expected.assert_eq(&text);
}

#[test]
fn results_without_a_gate_are_merged_and_pushed() {
    check(&mut World::new("1 2 3"), false, &expect!["landed: 1 2 3"]);
    check(
        &mut World::new("1- 2!"),
        false,
        &expect!["nothing to land: "],
    );
}

#[test]
fn a_green_gate_is_run_once() {
    check(
        &mut World::new("1 2 3"),
        true,
        &expect![[r#"
            landed: 1 2 3
            tip+1+2+3: Green"#]],
    );
}

#[test]
fn the_culprit_is_left_out_and_the_others_land() {
    let mut world = World::new("1 2 3 4");
    world.bad = [3].into();
    check(
        &mut world,
        true,
        &expect![[r#"
            landed: 1 2 4 -3:gate_failed
            tip+1+2+3+4: Red
            tip+1+2: Green
            tip+1+2+3: Red
            tip+1+2+4: Green"#]],
    );
}

#[test]
fn a_gate_that_is_red_before_lands_nothing() {
    let mut world = World::new("1 2");
    world.red_before = true;
    check(
        &mut world,
        true,
        &expect![[r#"
            gate_red_before:  -1:nothing_landed -2:nothing_landed
            tip+1+2: Red
            tip+1: Red
            tip: Red"#]],
    );
}

#[test]
fn what_a_culprit_was_built_on_lands_without_it() {
    let mut world = World::new("1 2<-1 3");
    world.bad = [2].into();
    check(
        &mut world,
        true,
        &expect![[r#"
            landed: 1 3 -2:gate_failed
            tip+2+3: Red
            tip+2: Red
            tip: Green
            tip+3+1: Green"#]],
    );
}

#[test]
fn a_conflict_leaves_one_out() {
    let mut world = World::new("1 2 3");
    world.conflicts = [2].into();
    check(&mut world, false, &expect!["landed: 1 3 -2:merge_conflict"]);
    let mut world = World::new("1");
    world.conflicts = [1].into();
    check(
        &mut world,
        false,
        &expect!["all_left_out:  -1:merge_conflict"],
    );
}

#[test]
fn a_branch_that_moved_is_merged_with_and_gated_again() {
    let mut world = World::new("1 2");
    world.moves = 1;
    check(
        &mut world,
        true,
        &expect![[r#"
            landed: 1 2
            tip+1+2: Green
            tip'+1+2: Green"#]],
    );
    let mut world = World::new("1");
    world.moves = MOVES_MAX + 1;
    check(&mut world, false, &expect!["contended:  -1:nothing_landed"]);
}

#[test]
fn a_culprit_that_was_mended_lands_in_another_round() {
    let mut world = World::new("1 2 3");
    world.bad = [2].into();
    let landing = world.land(Landing::default(), true, 0);
    assert_eq!(told(&landing), "landed: 1 3 -2:gate_failed");
    assert_eq!(
        world.land(landing.clone(), true, 1).round,
        1,
        "nothing is new"
    );
    world.sessions = sessions("1 2@9 3");
    world.bad.clear();
    let runs_before = world.runs;
    let landing = world.land(landing, true, 1);
    assert_eq!(
        (told(&landing).as_str(), landing.round),
        ("landed: 1 2 3", 2)
    );
    assert_eq!(world.runs, runs_before + 1);
}

#[test]
fn a_gate_that_passes_when_retried_opens_another_round() {
    let mut world = World::new("1");
    world.bad = [1].into();
    let landing = world.land(Landing::default(), true, 0);
    assert_eq!(told(&landing), "all_left_out:  -1:gate_failed");
    let red = landing
        .gates
        .iter()
        .find(|run| run.verdict == Some(Verdict::Red));
    let passed = HashMap::from([(red.expect("one was red").session, Verdict::Green)]);
    let again = landing.considered(&world.sessions, &passed, 1);
    assert_eq!((again.round, again.is_under_way()), (2, true));
    let landing = world.land(again, true, 1);
    assert_eq!(told(&landing), "landed: 1");
}

#[test]
fn a_gate_that_breaks_off_is_run_again_but_not_for_ever() {
    let sessions = sessions("1");
    let mut landing = Landing::default().considered(&sessions, &HashMap::new(), 0);
    let world = World::new("1");
    landing = world.merge(&landing, None);
    for run in 0..3 {
        let Next::Gate { commit } = landing.next(true, 0) else {
            panic!("{:?}", landing.next(true, 0));
        };
        landing = landing.gating(id(50 + run), commit);
        assert!(matches!(landing.next(true, 0), Next::Look(_)));
        landing = landing.said(id(50 + run), Verdict::Broken);
    }
    let expected = Next::Fail(LandingFailure::GateBroken, Some(id(52)));
    assert_eq!(landing.next(true, 0), expected);
    let cancelled = landing.said(id(52), Verdict::Cancelled);
    let expected = Next::Fail(LandingFailure::GateCancelled, Some(id(52)));
    assert_eq!(cancelled.next(true, 0), expected);
}

#[test]
fn a_cancelled_orchestration_lands_nothing_until_something_is_done_again() {
    let mut world = World::new("1 2!");
    let cancelled = Landing::default()
        .cancelled(0)
        .expect("there is one to keep");
    let landing = world.land(cancelled, false, 0);
    assert_eq!(told(&landing), "cancelled:  -1:nothing_landed");
    assert_eq!(landing.cancelled(0), None);
    world.sessions = sessions("1 2@9");
    let landing = world.land(landing, false, 1);
    assert_eq!(told(&landing), "landed: 1 2");
}

#[test]
fn a_round_that_is_cancelled_before_it_begins_leaves_alone_what_has_landed() {
    let mut world = World::new("1 2 3<-2 4!");
    let landed = world.land(Landing::default(), false, 0);
    assert_eq!(told(&landed), "landed: 1 2 3");
    let cancelled = landed.cancelled(1).expect("another round is due");
    // One went on and did not complete, so that what it was built on stands by itself.
    world.sessions = sessions("1 2 3!<-2 4!");
    let landing = world.land(cancelled.clone(), false, 1);
    assert_eq!(told(&landing), "landed: 1 2 3");
    assert!(!landing.cancelled);
    // Another one has completed since.
    world.sessions = sessions("1 2 3!<-2 4");
    let landing = world.land(cancelled, false, 1);
    assert_eq!(told(&landing), "cancelled: 1 2 3 -4:nothing_landed");
    let landing = world.land(landing.again().expect("may be"), false, 1);
    assert_eq!(told(&landing), "landed: 1 2 4");
}

#[test]
fn a_cancel_after_the_push_that_was_not_recorded_comes_too_late() {
    let mut world = World::new("1 2");
    let mut landing = Landing::default();
    let commit = loop {
        landing = match landing.next(false, 0) {
            Next::Consider => landing.considered(&world.sessions, &world.verdicts, 0),
            Next::Merge { onto } => world.merge(&landing, onto),
            Next::Push { commit } => break commit,
            next => panic!("{next:?}"),
        };
    };
    let cancelled = landing.cancelled(0).expect("it is under way");
    let kept = world.land(cancelled.clone(), false, 0);
    assert_eq!(
        told(&kept),
        "cancelled:  -1:nothing_landed -2:nothing_landed"
    );
    world.tip = commit;
    let landing = world.land(cancelled, false, 0);
    assert_eq!(told(&landing), "landed: 1 2");
    assert!(!landing.cancelled);
}

#[test]
fn a_failed_landing_is_tried_again_when_somebody_asks() {
    let all = sessions("1 2");
    let begun = Landing::default().considered(&all, &HashMap::new(), 1);
    assert_eq!(begun.again(), None, "it is under way");
    let refused = begun.refused(LandingFailure::Refused, "protected".into(), None);
    let over = refused.settled(&HashMap::new());
    assert_eq!(over.next(false, 1), Next::Rest);
    let again = over.again().expect("it failed");
    assert_eq!(again.next(false, 1), Next::Consider);
    let round = again.considered(&all, &HashMap::new(), 1);
    assert_eq!((round.round, round.leaves.len()), (2, 2));
    assert_eq!(round.left_out, []);
    let landed = round.pushed("c".into(), &all).settled(&HashMap::new());
    assert_eq!(landed.again(), None, "there is nothing to try");
}

#[test]
fn sessions_reopened_in_the_middle_are_looked_at_again() {
    let mut world = World::new("1 2");
    let landing = Landing::default().considered(&world.sessions, &HashMap::new(), 0);
    let landing = world.merge(&landing, None);
    world.sessions = sessions("1 2@9");
    let landing = world.land(landing, true, 1);
    assert_eq!(landing.considered[1].commit, "c2@9");
    assert_eq!(told(&landing), "landed: 1 2");
}

proptest! {
    /// Results that are bad each for itself: exactly they are left out, in a number of runs that
    /// is linear in the bad ones and logarithmic in all.
    #[test]
    fn bisection_finds_exactly_the_culprits(
        count in 1u32..40,
        bad in proptest::collection::btree_set(1u32..40, 0..6),
        moves in 0u32..2,
    ) {
        let graph: Vec<String> = (1..=count).map(|one| one.to_string()).collect();
        let mut world = World::new(&graph.join(" "));
        world.bad = bad.into_iter().filter(|one| *one <= count).collect();
        world.moves = moves;
        let landing = world.land(Landing::default(), true, 0);
        let out: BTreeSet<u32> =
            landing.left_out.iter().map(|out| number(out.leaf.session)).collect();
        prop_assert_eq!(&out, &world.bad);
        let landed: BTreeSet<u32> = landing.landed.iter().copied().map(number).collect();
        let good: BTreeSet<u32> = (1..=count).filter(|one| !world.bad.contains(one)).collect();
        prop_assert_eq!(landed, good);
        let steps = count.ilog2() + 1;
        let culprits = u32::try_from(world.bad.len()).expect("a few");
        // The first run, one more after each move, the bare tip once.
        let runs_max = 1 + moves + 1 + culprits * (steps + 1);
        prop_assert!(world.runs <= runs_max, "{} runs, at most {}", world.runs, runs_max);
    }

    /// Over random graphs: it ends, and no result is both landed and left out, or neither.
    #[test]
    fn every_result_is_landed_or_left_out(
        edges in proptest::collection::vec(any::<u32>(), 1..14),
        bad in any::<u32>(),
        conflicts in any::<u32>(),
    ) {
        let entry = |at: usize, edge: u32| {
            let of: Vec<String> = (0..at)
                .filter(|from| edge >> from & 1 == 1 && edge >> (from + 14) & 1 == 1)
                .map(|from| (from + 1).to_string())
                .collect();
            match of.is_empty() {
                true => (at + 1).to_string(),
                false => format!("{}<-{}", at + 1, of.join(",")),
            }
        };
        let graph: Vec<String> =
            edges.iter().enumerate().map(|(at, edge)| entry(at, *edge)).collect();
        let mut world = World::new(&graph.join(" "));
        let chosen = |bits: u32| (1..14u32).filter(|one| bits >> one & 3 == 3).collect();
        world.bad = chosen(bad);
        world.conflicts = chosen(conflicts);
        let landing = world.land(Landing::default(), true, 0);
        let landed: HashSet<SessionId> = landing.landed.iter().copied().collect();
        for out in &landing.left_out {
            prop_assert!(!landed.contains(&out.leaf.session));
        }
        prop_assert_eq!(landed.len() + landing.left_out.len(), edges.len());
        for one in &landing.landed {
            prop_assert!(!world.bad.contains(&number(*one)));
        }
    }
}
