use std::collections::HashMap;

use expect_test::{Expect, expect};
use uuid::Uuid;

use super::*;
use crate::testing::{at, letter, session_id};

mod properties;

const MANY: usize = 10_000;

/// An [`OpenSession`] that owns its dependencies.
#[derive(Debug, Clone)]
struct Entry {
    id: SessionId,
    kind: Kind,
    orchestration: Option<OrchestrationId>,
    priority: i32,
    created_at: Timestamp,
    expected_s: u64,
    dependencies: Vec<SessionId>,
    phase: Phase,
}

impl Entry {
    fn open(&self) -> OpenSession<'_> {
        OpenSession {
            id: self.id,
            kind: self.kind,
            orchestration: self.orchestration,
            priority: self.priority,
            created_at: self.created_at,
            expected_s: self.expected_s,
            dependencies: &self.dependencies,
            phase: self.phase,
        }
    }
}

fn open(entries: &[Entry]) -> Vec<OpenSession<'_>> {
    entries.iter().map(Entry::open).collect()
}

fn orchestration(number: u128) -> OrchestrationId {
    OrchestrationId(Uuid::from_u128(number))
}

/// A session from `b:waiting,takes=60,priority=1,made=30,kind=review,of=7<-ac`.
fn entry(text: &str) -> Entry {
    let (what, dependencies) = text.split_once("<-").unwrap_or((text, ""));
    let mut words = what.split(',');
    let (name, phase) = words
        .next()
        .and_then(|it| it.split_once(':'))
        .expect("name:phase");
    let words: HashMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
    let number = |of: &str| {
        words
            .get(of)
            .map(|word| word.parse::<i64>().expect("a number"))
    };
    Entry {
        id: session_id(name),
        kind: words
            .get("kind")
            .map_or(Kind::Testing, |it| it.parse().expect("a kind")),
        orchestration: number("of").map(|it| orchestration(it as u128)),
        priority: number("priority").unwrap_or(0) as i32,
        created_at: at(number("made").unwrap_or(0)),
        expected_s: number("takes").unwrap_or(10) as u64,
        dependencies: dependencies
            .chars()
            .map(|it| session_id(&it.to_string()))
            .collect(),
        phase: match phase {
            "waiting" => Phase::Waiting,
            "ready" => Phase::Ready,
            "running" => Phase::HoldsSlot,
            other => panic!("no phase {other}"),
        },
    }
}

fn entries(text: &str) -> Vec<Entry> {
    text.split_whitespace().map(entry).collect()
}

fn letters(ids: &[SessionId]) -> String {
    ids.iter().copied().map(letter).collect()
}

#[track_caller]
fn check_rank(sessions: &str, expected: Expect) {
    expected.assert_eq(&letters(&rank(&open(&entries(sessions)))));
}

#[track_caller]
fn check(sessions: &str, slots: Slots, expected: Expect) {
    expected.assert_eq(&letters(&choose(&open(&entries(sessions)), slots)));
}

#[test]
fn only_the_ready_are_ranked_and_the_oldest_of_equals_goes_first() {
    check_rank(
        "c:ready,made=3 a:ready,made=1 w:waiting r:running b:ready,made=2",
        expect!["abc"],
    );
    check_rank("b:ready a:ready", expect!["ab"]);
}

#[test]
fn the_longest_remaining_path_goes_first() {
    check_rank(
        "a:ready,takes=50 b:ready,takes=20 c:waiting,takes=20<-b d:waiting,takes=20<-c",
        expect!["ba"],
    );
    check_rank(
        "a:ready b:ready c:waiting<-b d:waiting,takes=90<-ac",
        expect!["ba"],
    );
}

#[test]
fn long_paths_are_told_apart() {
    check_rank("a:ready,takes=1000000 b:ready,takes=1000001", expect!["ba"]);
}

#[test]
fn age_adds_to_the_path() {
    check_rank(
        "a:ready,made=0,takes=10 b:ready,made=600,takes=500",
        expect!["ab"],
    );
    check_rank(
        "a:ready,made=0,takes=10 b:ready,made=300,takes=500",
        expect!["ba"],
    );
}

#[test]
fn a_priority_goes_before_any_path() {
    check_rank("a:ready,takes=1000000 b:ready,priority=1", expect!["ba"]);
    check_rank("a:ready b:ready,priority=-1,takes=1000000", expect!["ab"]);
}

#[test]
fn a_step_of_priority_is_worth_four_hours_of_waiting() {
    check_rank("a:ready b:ready,priority=1,made=14300", expect!["ba"]);
    check_rank("a:ready b:ready,priority=1,made=14500", expect!["ab"]);
    check_rank("a:ready b:ready,priority=2,made=14500", expect!["ba"]);
}

#[test]
fn a_dependency_is_as_urgent_as_who_waits_for_it() {
    check_rank(
        "a:ready,priority=1 b:ready c:waiting<-b d:waiting,priority=2<-c",
        expect!["ba"],
    );
}

#[test]
fn free_slots_are_given_in_order() {
    let sessions = "r:running a:ready b:ready,takes=20 c:ready,takes=30";
    check(sessions, Slots::new(3), expect!["cb"]);
    check(sessions, Slots::new(1), expect![""]);
    check(sessions, Slots::new(9), expect!["cba"]);
}

#[test]
fn who_may_not_take_a_slot_is_skipped() {
    check(
        "r:running,of=7 a:ready,of=7,takes=90 b:ready,of=8 c:ready",
        Slots::new(4).with_orchestration(orchestration(7), 1),
        expect!["bc"],
    );
    check(
        "r:running,kind=review a:ready,kind=review,takes=90 b:ready",
        Slots::new(4).with_kind(Kind::Review, 1),
        expect!["b"],
    );
}

/// Both `a` and `b` need the only place of orchestration 7; `a` needs one of reviews too.
#[test]
fn a_place_is_held_for_who_waited_long_for_another() {
    let slots = || {
        Slots::new(4)
            .with_kind(Kind::Review, 1)
            .with_orchestration(orchestration(7), 1)
    };
    let reviewed = "r:running,kind=review a:ready,kind=review,of=7";
    check(
        &format!("{reviewed} b:ready,of=7,made=14400"),
        slots(),
        expect!["b"],
    );
    check(
        &format!("{reviewed} b:ready,of=7,made=14401 c:ready,made=14401"),
        slots(),
        expect!["c"],
    );
    check(
        &format!("{reviewed} b:ready,of=7,made=14401,priority=2"),
        slots(),
        expect!["b"],
    );
    // No review may run at all, so there is nothing to wait for.
    check(
        "a:ready,kind=review,of=7 b:ready,of=7,made=14401",
        slots().with_kind(Kind::Review, 0),
        expect!["b"],
    );
}

/// Sessions of ten seconds, each made a second after the one before.
fn many(dependencies: impl Fn(usize) -> Vec<usize>) -> Vec<Entry> {
    let id = |number: usize| SessionId(Uuid::from_u128(number as u128));
    (0..MANY)
        .map(|number| {
            let dependencies: Vec<SessionId> = dependencies(number).into_iter().map(id).collect();
            Entry {
                id: id(number),
                created_at: at(number as i64),
                phase: match dependencies.is_empty() {
                    true => Phase::Ready,
                    false => Phase::Waiting,
                },
                dependencies,
                ..entry("a:ready")
            }
        })
        .collect()
}

#[test]
fn ten_thousand_in_a_chain_or_a_fan_are_ranked() {
    let chain = many(|number| number.checked_sub(1).into_iter().collect());
    assert_eq!(path::ahead(&open(&chain))[0].path_s, 10 * MANY as u64);
    assert_eq!(rank(&open(&chain)), [chain[0].id]);
    let fan_in = many(|number| match number == MANY - 1 {
        true => (0..number).collect(),
        false => Vec::new(),
    });
    assert_eq!(rank(&open(&fan_in)).len(), MANY - 1);
    let ready = many(|_| Vec::new());
    let oldest: Vec<SessionId> = ready.iter().map(|entry| entry.id).collect();
    assert_eq!(choose(&open(&ready), Slots::new(MANY)), oldest);
}

#[test]
fn a_circle_ends_the_walk_all_the_same() {
    check_rank(
        "a:ready b:waiting<-ac c:waiting<-b d:ready,takes=60",
        expect!["da"],
    );
}
