//! What holds for all sessions and all limits.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Seconds between two looks of the simulation.
const LOOK_S: i64 = 2 * 60 * 60;

/// Looks after which nobody who comes may pass over who is there at the first.
const LATE_LOOKS: i64 = HEAD_START_S as i64 / LOOK_S;

/// Looks that a session runs at most.
const RUNS_MAX: i64 = 3;

const ORCHESTRATIONS: u128 = 3;

fn id(number: usize) -> SessionId {
    SessionId(Uuid::from_u128(number as u128))
}

/// The kind, the orchestration, the priority and the seconds of a session.
type Sort = (Kind, Option<OrchestrationId>, i32, u64);

fn sort() -> impl Strategy<Value = Sort> {
    let kinds = prop_oneof![Just(Kind::Review), Just(Kind::Testing)];
    let orchestrations = proptest::option::of((0..ORCHESTRATIONS).prop_map(orchestration));
    (kinds, orchestrations, -12..=12_i32, 0..100_000_u64)
}

/// Sessions made within `made_s` seconds, that depend on earlier ones.
fn graph(made_s: i64) -> impl Strategy<Value = Vec<Entry>> {
    let phases = prop_oneof![
        Just(Phase::Waiting),
        Just(Phase::Ready),
        Just(Phase::Ready),
        Just(Phase::HoldsSlot)
    ];
    vec((sort(), 0..=made_s, any::<u32>(), phases), 0..20).prop_map(|all| {
        let entries = all.into_iter().enumerate();
        entries
            .map(
                |(number, ((kind, orchestration, priority, expected_s), made, needs, phase))| {
                    // Two bits for each, so that there are few.
                    let needed = |of: &usize| needs >> (of % 16) & 5 == 5;
                    let dependencies = match phase {
                        Phase::Waiting => (0..number).filter(needed).map(id).collect(),
                        Phase::Ready | Phase::HoldsSlot => Vec::new(),
                    };
                    Entry {
                        id: id(number),
                        kind,
                        orchestration,
                        priority,
                        created_at: at(made),
                        expected_s,
                        dependencies,
                        phase,
                    }
                },
            )
            .collect()
    })
}

/// Limits of all, of each of the two kinds, of each orchestration; the highest stands for none.
#[derive(Debug, Clone)]
struct Most {
    all: usize,
    reviews: usize,
    tests: usize,
    orchestrations: Vec<usize>,
}

impl Most {
    const NONE: usize = 4;

    fn any(least: usize) -> impl Strategy<Value = Self> {
        let limit = || least..=Self::NONE;
        let orchestrations = vec(limit(), ORCHESTRATIONS as usize);
        (least..6, limit(), limit(), orchestrations).prop_map(
            |(all, reviews, tests, orchestrations)| Self {
                all,
                reviews,
                tests,
                orchestrations,
            },
        )
    }

    fn slots(&self) -> Slots {
        let mut slots = Slots::new(self.all);
        for (kind, most) in [(Kind::Review, self.reviews), (Kind::Testing, self.tests)] {
            if most < Self::NONE {
                slots = slots.with_kind(kind, most);
            }
        }
        for (number, &most) in self.orchestrations.iter().enumerate() {
            if most < Self::NONE {
                slots = slots.with_orchestration(orchestration(number as u128), most);
            }
        }
        slots
    }

    /// Each limit with those of `entries` it counts.
    fn counted<'a>(&self, entries: &[&'a Entry]) -> Vec<(usize, Vec<&'a Entry>)> {
        let those = |which: &dyn Fn(&Entry) -> bool| -> Vec<&'a Entry> {
            entries.iter().copied().filter(|it| which(it)).collect()
        };
        let mut counted = vec![(self.all, entries.to_vec())];
        for (kind, most) in [(Kind::Review, self.reviews), (Kind::Testing, self.tests)] {
            counted.push((most, those(&|it| it.kind == kind)));
        }
        for (number, &most) in self.orchestrations.iter().enumerate() {
            let own = Some(orchestration(number as u128));
            counted.push((most, those(&|it| it.orchestration == own)));
        }
        // The first is always a limit.
        let last = counted
            .split_off(1)
            .into_iter()
            .filter(|(most, _)| *most < Self::NONE);
        counted.into_iter().chain(last).collect()
    }
}

fn holders(entries: &[Entry]) -> Vec<&Entry> {
    entries
        .iter()
        .filter(|it| it.phase == Phase::HoldsSlot)
        .collect()
}

fn by_id<'a>(entries: &'a [Entry], ids: &[SessionId]) -> Vec<&'a Entry> {
    let find = |id: &SessionId| entries.iter().find(|it| it.id == *id).expect("known");
    ids.iter().map(find).collect()
}

/// Ready sessions that were not chosen though they could have taken a slot.
fn passed_by<'a>(entries: &'a [Entry], most: &Most, chosen: &[SessionId]) -> Vec<&'a Entry> {
    let mut slots = most.slots();
    for entry in holders(entries).into_iter().chain(by_id(entries, chosen)) {
        slots.occupy(entry.kind, entry.orchestration);
    }
    let ready = entries
        .iter()
        .filter(|it| it.phase == Phase::Ready && !chosen.contains(&it.id));
    ready
        .filter(|it| slots.can_take(it.kind, it.orchestration))
        .collect()
}

/// The longest path and the highest priority from each on, found by trying until nothing changes.
fn naive_ahead(entries: &[Entry]) -> Vec<Ahead> {
    let mut ahead: Vec<Ahead> = entries
        .iter()
        .map(|it| Ahead {
            path_s: it.expected_s,
            priority: it.priority,
        })
        .collect();
    loop {
        let before = ahead.clone();
        for (at, entry) in entries.iter().enumerate() {
            let waiting = entries
                .iter()
                .zip(&before)
                .filter(|(it, _)| it.dependencies.contains(&entry.id));
            for (_, theirs) in waiting {
                ahead[at].path_s = ahead[at].path_s.max(entry.expected_s + theirs.path_s);
                ahead[at].priority = ahead[at].priority.max(theirs.priority);
            }
        }
        if ahead == before {
            return ahead;
        }
    }
}

proptest! {
    #[test]
    fn what_lies_ahead_agrees_with_the_naive_reading(entries in graph(100)) {
        prop_assert_eq!(path::ahead(&open(&entries)), naive_ahead(&entries));
    }

    #[test]
    fn the_order_of_the_sessions_makes_no_difference(
        (entries, shuffled) in graph(100_000).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        most in Most::any(0),
    ) {
        prop_assert_eq!(rank(&open(&entries)), rank(&open(&shuffled)));
        let chosen = choose(&open(&entries), most.slots());
        prop_assert_eq!(&chosen, &choose(&open(&shuffled), most.slots()));
        prop_assert_eq!(chosen, choose(&open(&entries), most.slots()));
    }

    #[test]
    fn no_limit_is_ever_exceeded(entries in graph(100_000), most in Most::any(0)) {
        let chosen = choose(&open(&entries), most.slots());
        let chosen = by_id(&entries, &chosen);
        prop_assert!(chosen.iter().all(|it| it.phase == Phase::Ready));
        let held = most.counted(&holders(&entries));
        for ((limit, held), (_, more)) in held.into_iter().zip(most.counted(&chosen)) {
            prop_assert!(more.is_empty() || held.len() + more.len() <= limit);
            prop_assert!((1..more.len()).all(|at| more[..at].iter().all(|it| it.id != more[at].id)));
        }
    }

    #[test]
    fn no_slot_stays_free_that_somebody_may_take(
        entries in graph(STEP_S as i64),
        most in Most::any(0),
    ) {
        let chosen = choose(&open(&entries), most.slots());
        prop_assert!(passed_by(&entries, &most, &chosen).is_empty());
    }

    #[test]
    fn a_free_slot_is_held_for_older_ones_only(
        entries in graph(HEAD_START_S as i64),
        most in Most::any(0),
    ) {
        let chosen = choose(&open(&entries), most.slots());
        let ranked = rank(&open(&entries));
        for left in passed_by(&entries, &most, &chosen) {
            let before = ranked.iter().take_while(|id| **id != left.id).copied();
            let skipped: Vec<SessionId> = before.filter(|id| !chosen.contains(id)).collect();
            let cause = by_id(&entries, &skipped).into_iter().any(|it| {
                let sooner_s = left.created_at.as_second() - it.created_at.as_second();
                let shares = it.kind == left.kind || it.orchestration == left.orchestration;
                sooner_s > STEP_S as i64 && shares && it.orchestration.is_some()
            });
            prop_assert!(cause, "{left:?} was left for nobody");
        }
    }

    #[test]
    fn priority_then_path_then_age_decide_within_the_head_start(
        entries in graph(2 * HEAD_START_S as i64),
    ) {
        let ahead = naive_ahead(&entries);
        let ranked = rank(&open(&entries));
        let placed = |id: SessionId| ranked.iter().position(|it| *it == id);
        for (one, of_one) in entries.iter().zip(&ahead) {
            for (other, of_other) in entries.iter().zip(&ahead) {
                let (Some(first), Some(second)) = (placed(one.id), placed(other.id)) else {
                    continue;
                };
                let steps = |it: &Ahead| i64::from(it.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX));
                let lead = steps(of_one) - steps(of_other);
                let sooner_s = other.created_at.as_second() - one.created_at.as_second();
                let more_urgent = lead > 0 && sooner_s >= 0;
                let longer = lead == 0 && sooner_s >= 0 && of_one.path_s > of_other.path_s;
                let older = lead == 0 && sooner_s > 0 && of_one.path_s == of_other.path_s;
                let out_of_reach = sooner_s >= STEP_S as i64 * (1 - lead).max(1);
                if more_urgent || longer || older || out_of_reach {
                    prop_assert!(first < second, "{one:?} after {other:?}");
                }
            }
        }
    }

    #[test]
    fn whatever_comes_later_a_ready_session_gets_its_slot(
        patient in sort(),
        others in vec(sort(), 1..6),
        runs in vec(1..=RUNS_MAX, 1..5),
        most in Most::any(1),
    ) {
        prop_assert!(is_launched_in_time(patient, &others, &runs, &most));
    }
}

/// One stream takes the only place for reviews at even looks, the other that of the orchestration
/// at odd ones, so that both are never free at once.
#[test]
fn streams_that_take_two_places_by_turns_do_not_keep_out_who_needs_both() {
    let own = Some(orchestration(0));
    let others = [(Kind::Review, None, 0, 0), (Kind::Testing, own, 0, 0)];
    let mut runs = [2; 1_000];
    runs[1] = 3;
    let most = Most {
        all: Most::NONE,
        reviews: 1,
        tests: Most::NONE,
        orchestrations: vec![1],
    };
    let patient = (Kind::Review, own, 0, 0);
    assert!(is_launched_in_time(patient, &others, &runs, &most));
}

/// Whether the least urgent session of all gets its slot once all that may pass it over have had
/// theirs, one after the other. Of each of `others` there is always one more than could run, for
/// ever; the launched run for so many looks as `runs` says, which starts again at its end.
fn is_launched_in_time(patient: Sort, others: &[Sort], runs: &[i64], most: &Most) -> bool {
    let (kind, orchestration, ..) = patient;
    let mut entries = vec![made(0, 0, (kind, orchestration, -PRIORITY_MAX, 0))];
    let mut ends: HashMap<SessionId, i64> = HashMap::new();
    let mut made_so_far = 1;
    let mut looks_max = LATE_LOOKS;
    let mut look = 0;
    while look <= looks_max {
        entries.retain(|it| ends.get(&it.id) != Some(&look));
        for &of in others {
            let ready = entries
                .iter()
                .filter(|it| it.phase == Phase::Ready && sort_of(it) == of);
            for _ in ready.count()..=most.all {
                entries.push(made(made_so_far, look, of));
                made_so_far += 1;
            }
        }
        if look == LATE_LOOKS {
            looks_max += RUNS_MAX * (entries.len() as i64 + 1);
        }
        let chosen = choose(&open(&entries), most.slots());
        if chosen.contains(&id(0)) {
            return true;
        }
        for entry in entries.iter_mut().filter(|it| chosen.contains(&it.id)) {
            entry.phase = Phase::HoldsSlot;
            ends.insert(entry.id, look + runs[ends.len() % runs.len()]);
        }
        look += 1;
    }
    false
}

fn made(number: usize, look: i64, (kind, orchestration, priority, expected_s): Sort) -> Entry {
    Entry {
        id: id(number),
        kind,
        orchestration,
        priority,
        created_at: at(look * LOOK_S),
        expected_s,
        dependencies: Vec::new(),
        phase: Phase::Ready,
    }
}

fn sort_of(entry: &Entry) -> Sort {
    let Entry {
        kind,
        orchestration,
        priority,
        expected_s,
        ..
    } = *entry;
    (kind, orchestration, priority, expected_s)
}
