//! What a decision costs, beside a walk over the same graph that decides nothing.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use baton_domain::SessionId;
use baton_domain::schedule::{OpenSession, Phase, Slots, choose};

use crate::graphs::{Draw, Graph, chain, fan_in, fan_out, woven};
use crate::judged;
use crate::simulation::sessions;

const MANY: usize = 10_000;
const FEW: usize = 10;
const SLOTS_MAX: usize = 4;

/// Milliseconds that a decision about ten thousand sessions may take.
const AIM_MS: f64 = 50.0;

const SEED: u64 = 1;

/// Each is measured this often; the middle one counts.
const TIMES: usize = 31;

pub fn run() {
    println!(
        "{:<28} {:>11} {:>11} {:>7}  aim ≤ {AIM_MS} ms",
        "figure", "choose", "plain walk", "ratio"
    );
    let mut draw = Draw::new(SEED);
    figure("10,000 in a chain", &open(&chain(MANY)));
    // The first is over, so that all others are ready.
    let fan = fan_out(MANY + 1);
    let mut fanned_out = open(&fan);
    fanned_out.remove(0);
    fanned_out
        .iter_mut()
        .for_each(|session| session.phase = Phase::Ready);
    figure("10,000 ready, fanned out", &fanned_out);
    figure("10,000 fanning in", &open(&fan_in(MANY)));
    figure("10,000 woven", &open(&woven(MANY, &mut draw)));
    figure("10 woven", &open(&woven(FEW, &mut draw)));
}

fn open(graph: &Graph) -> Vec<OpenSession<'_>> {
    let expected_s: Vec<u64> = graph.sessions.iter().map(|node| node.seconds).collect();
    sessions(graph, &expected_s)
}

fn figure(name: &str, open: &[OpenSession<'_>]) {
    // In turns, so that what else the machine does falls on both.
    let (chosen_ms, walked_ms): (Vec<f64>, Vec<f64>) = (0..TIMES)
        .map(|_| {
            let chosen = milliseconds(|| choose(black_box(open), Slots::new(SLOTS_MAX)).len());
            let walked = milliseconds(|| walk(black_box(open)));
            (chosen, walked)
        })
        .unzip();
    let (chosen_ms, walked_ms) = (median(chosen_ms), median(walked_ms));
    println!(
        "{name:<28} {:>8.4} ms {:>8.4} ms {:>6.2}x  {}",
        chosen_ms,
        walked_ms,
        chosen_ms / walked_ms,
        judged(chosen_ms <= AIM_MS)
    );
}

/// The sessions in an order of their dependencies, as one would write it without more thought.
fn walk(open: &[OpenSession<'_>]) -> usize {
    let mut dependents: HashMap<SessionId, Vec<SessionId>> = HashMap::new();
    let mut missing: HashMap<SessionId, usize> = HashMap::new();
    let place: HashMap<SessionId, usize> = open
        .iter()
        .enumerate()
        .map(|(at, session)| (session.id, at))
        .collect();
    for session in open {
        let there = session.dependencies.iter();
        for dependency in there.filter(|id| place.contains_key(id)) {
            dependents.entry(*dependency).or_default().push(session.id);
            *missing.entry(session.id).or_default() += 1;
        }
    }
    let mut order: Vec<SessionId> = open
        .iter()
        .map(|session| session.id)
        .filter(|id| !missing.contains_key(id))
        .collect();
    let mut at = 0;
    while let Some(&id) = order.get(at) {
        for dependent in dependents.get(&id).into_iter().flatten() {
            if let Some(count) = missing.get_mut(dependent) {
                *count -= 1;
                if *count == 0 {
                    order.push(*dependent);
                }
            }
        }
        at += 1;
    }
    black_box(&order).len()
}

fn milliseconds<T>(act: impl Fn() -> T) -> f64 {
    let start = Instant::now();
    black_box(act());
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
