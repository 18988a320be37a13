//! Whole servers over thousands of random schedules: the real orchestrator, reconciler, gateway and
//! database, with sandboxes, code and agents in memory, and clocks that are moved by hand.
//!
//! `scripts/simulate COUNT [FIRST]` runs so many seeds. A seed that fails prints itself and what was
//! wrong; `scripts/simulate 1 SEED` runs it alone.

mod agent;
mod checks;
mod client;
mod draw;
mod graph;
mod large;
mod life;
mod part;
mod story;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use story::Counts;

/// How many graphs every run of the tests simulates.
const GRAPHS: u64 = 200;
/// How many graphs of four sessions see the server die at each of their points.
const DIAMONDS: u64 = 4;
/// How many coordination sessions see the server die at each of their points.
const COORDINATIONS: u64 = 4;
/// Failing seeds that are told of.
const FAILURES_SHOWN: usize = 20;

#[test]
fn whatever_happens_every_session_ends_in_one_outcome() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("BATON_SIMULATE_GRAPHS").unwrap_or(GRAPHS);
    let first = number("BATON_SIMULATE_FIRST").unwrap_or(0);
    if let Ok(words) = std::env::var("BATON_SIMULATE_LOG") {
        let subscriber = tracing_subscriber::fmt().with_env_filter(words);
        subscriber.with_writer(std::io::stderr).init();
    }
    simulate(first, count);
}

#[test]
fn the_server_may_die_at_every_point_of_a_graph() {
    let points = std::thread::scope(|scope| {
        let diamonds = (0..DIAMONDS)
            .map(|seed| scope.spawn(move || points_of(seed, story::tell_of_one_death)));
        let diamonds: Vec<_> = diamonds.collect();
        let points = diamonds
            .into_iter()
            .map(|one| one.join().expect("no point is wrong"));
        points.sum::<u64>()
    });
    println!("the server died at each of {points} points");
    assert!(points > 100, "only {points} points were reached");
}

#[test]
fn the_server_may_die_at_every_point_of_a_coordination_in_one_slot() {
    let told = Mutex::new(Counts::default());
    let tell = &|seed, point| {
        let counts = story::tell_of_one_slot(seed, point)?;
        told.lock().expect("counts").join(&counts);
        Ok(counts)
    };
    let points = std::thread::scope(|scope| {
        let all = (0..COORDINATIONS).map(|seed| scope.spawn(move || points_of(seed, tell)));
        let all: Vec<_> = all.collect();
        let points = all
            .into_iter()
            .map(|one| one.join().expect("no point is wrong"));
        points.sum::<u64>()
    });
    let told = told.into_inner().expect("counts");
    println!("the server died at each of {points} points: {told}");
    assert!(points > 50, "only {points} points were reached");
    for what in ["waits", "waits that died"] {
        assert!(told.get(what) > 0, "there were no {what}");
    }
}

/// Lets the server die at each point of one seed's story; how many there are.
fn points_of(seed: u64, tell: impl Fn(u64, u64) -> Result<Counts, story::Wrong>) -> u64 {
    for point in 1.. {
        let told = tell(seed, point);
        let counts = told.unwrap_or_else(|wrong| {
            panic!("seed {seed}, point {point}:\n  {}", wrong.join("\n  "))
        });
        if counts.get("crashes") == 0 {
            return point - 1;
        }
    }
    0
}

fn simulate(first: u64, count: u64) {
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let counts = Mutex::new(Counts::default());
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let told = catch_unwind(AssertUnwindSafe(|| story::tell(seed)));
                    let told = told.unwrap_or_else(|_| Err(vec!["it panicked".to_owned()]));
                    match told {
                        Ok(of_seed) => counts.lock().expect("counts").join(&of_seed),
                        Err(wrong) => failures.lock().expect("failures").push((seed, wrong)),
                    }
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let counts = counts.into_inner().expect("counts");
    let mut failures = failures.into_inner().expect("failures");
    println!(
        "seeds {first} to {}: {counts}; {seconds:.1} s, {:.1} graphs/s on {threads} threads",
        first + count - 1,
        count as f64 / seconds
    );
    failures.sort();
    for (seed, wrong) in failures.iter().take(FAILURES_SHOWN) {
        println!(
            "seed {seed} (scripts/simulate 1 {seed}):\n  {}",
            wrong.join("\n  ")
        );
    }
    let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} seeds fail: {seeds:?}", seeds.len());
    if count >= GRAPHS {
        for what in [
            "crashes",
            "retries",
            "messages",
            "cancels",
            "completed",
            "budgets spent",
        ] {
            assert!(counts.get(what) > 0, "there were no {what}");
        }
    }
}
