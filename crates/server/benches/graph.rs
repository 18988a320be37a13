//! What a graph of ten thousand sessions costs: made in one request, planned, kept in memory.
//!
//! `cargo bench --package baton --bench graph`; see `docs/benchmarks.md`. Sandboxes and code are in
//! memory as in the simulation, the database is real and in the memory's file system.

#[expect(dead_code, reason = "no agent acts here")]
#[path = "../tests/simulation/agent.rs"]
mod agent;
#[path = "../tests/simulation/draw.rs"]
mod draw;
#[expect(dead_code, reason = "the graphs here are not random")]
#[path = "../tests/simulation/graph.rs"]
mod graph;
#[expect(dead_code, reason = "no server dies here")]
#[path = "../tests/simulation/life.rs"]
mod life;
#[path = "../tests/simulation/part.rs"]
mod part;
#[expect(dead_code, reason = "nothing breaks here")]
#[path = "../tests/simulation/world.rs"]
mod world;

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::time::Instant;

use baton::store::NewSessions;
use baton_domain::observe::{Sandboxes, Snapshot};
use baton_domain::plan::{Limits, plan};
use baton_domain::schedule::Durations;
use baton_domain::{Session, SessionId, SessionState};
use jiff::{SignedDuration, Timestamp};

use draw::Draw;
use graph::Bounds;
use life::{Life, STOP_GRACE, Server};
use world::World;

const SLOTS_MAX: usize = 4;
const COUNTS: [usize; 3] = [1_000, 5_000, 10_000];
/// Each planning is measured this often; the middle one counts.
const TIMES: usize = 31;
/// Milliseconds that making ten thousand may take.
const CREATE_AIM_MS: f64 = 2_000.0;
/// Milliseconds that a pass over ten thousand may take.
const PASS_AIM_MS: f64 = 50.0;
/// Bytes of a page in `/proc/self/statm`.
const PAGE: f64 = 4_096.0;

fn main() {
    println!("-- graph: one request, then passes; aims ≤ {CREATE_AIM_MS} and {PASS_AIM_MS} ms");
    println!(
        "{:<10} {:>8} {:>11} {:>11} {:>11} {:>11} {:>14}",
        "shape", "sessions", "create", "first pass", "pass", "plan alone", "KiB a session"
    );
    for shape in ["chain", "fan-out", "fan-in"] {
        for count in COUNTS {
            measure(shape, count);
        }
    }
}

fn measure(shape: &str, count: usize) {
    let bounds = Bounds {
        slots_max: SLOTS_MAX,
        prepared_max: 0,
        kinds: HashMap::new(),
    };
    let world = World::new(1, bounds);
    let mut life = Life::begin(&world);
    let sessions = sessions(shape, count);
    let before = resident_bytes();
    let figures = life.run(async |server| {
        let new = NewSessions {
            sessions,
            ..NewSessions::default()
        };
        let begun = Instant::now();
        server.store.create(new).await.expect("made at once");
        let create = ms(begun);
        let begun = Instant::now();
        server.reconciler.pass().await;
        let first = ms(begun);
        server.comes_to_rest(10).await;
        let mut passes = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let begun = Instant::now();
            server.reconciler.pass().await;
            passes.push(ms(begun));
        }
        [create, first, median(passes), median(plans(server))]
    });
    let [create, first, pass, alone] = figures.expect("no server dies here");
    let kib = (resident_bytes() - before) / 1024.0 / count as f64;
    let met = create <= CREATE_AIM_MS && first.max(pass) <= PASS_AIM_MS;
    println!(
        "{shape:<10} {count:>8} {create:>8.1} ms {first:>8.1} ms {pass:>8.1} ms {alone:>8.1} ms \
         {kib:>14.2}  {}",
        if met { "met" } else { "missed" }
    );
}

fn plans(server: &Server) -> Vec<f64> {
    let durations = Durations::default();
    let limits = Limits {
        slots_max: SLOTS_MAX,
        kinds_max: &[],
        durations: &durations,
        prepared_max: 0,
        stop_grace: STOP_GRACE,
    };
    let snapshot = Snapshot {
        sessions: server.store.active(),
        orchestrations: HashMap::new(),
        sandboxes: Sandboxes::default(),
        busy: HashSet::new(),
        waits: HashSet::new(),
        now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1),
        watching_since: Timestamp::UNIX_EPOCH,
    };
    let once = |_| {
        let begun = Instant::now();
        black_box(plan(&snapshot, |id| server.store.standing(id), &limits));
        ms(begun)
    };
    (0..TIMES).map(once).collect()
}

fn sessions(shape: &str, count: usize) -> Vec<Session> {
    let mut draw = Draw::new(1);
    let mut sessions: Vec<Session> = Vec::with_capacity(count);
    for at in 0..count {
        let ids = sessions.iter().map(|one| one.id);
        let dependencies: Vec<SessionId> = match shape {
            "chain" => ids.rev().take(1).collect(),
            "fan-out" => ids.take(1).collect(),
            _ if at + 1 == count => ids.collect(),
            _ => Vec::new(),
        };
        let session = graph::session(&mut draw, Timestamp::UNIX_EPOCH, dependencies);
        sessions.push(Session {
            state: SessionState::Queued,
            ..session
        });
    }
    sessions
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1_000.0
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.map_or(0.0, |pages: f64| pages * PAGE)
}
