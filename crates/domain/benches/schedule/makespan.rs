//! How long whole graphs take, beside what could not be beaten and what was not beaten.

use std::time::Instant;

use baton_domain::schedule::Durations;

use crate::graphs::{Draw, FAMILIES, Graph};
use crate::judged;
use crate::simulation::{by_choice, by_number};

/// The first of the seeds; each graph has its own.
const SEED: u64 = 1;

const GRAPHS_OF_FAMILY: u64 = 12;

const SLOTS: [usize; 3] = [2, 4, 8];

/// How many orders the search for a better one tries on each graph.
const TRIES: usize = 5_000;

/// What the mean may lie above the best that is known.
const AIM: f64 = 1.03;

/// Seconds of one graph on so many slots.
struct Case {
    bound_s: u64,
    oldest_first_s: u64,
    default_s: u64,
    /// The same, knowing no more than what sessions of a kind took before.
    guessing_s: u64,
    best_s: u64,
}

pub fn run() {
    let start = Instant::now();
    println!(
        "   {GRAPHS_OF_FAMILY} graphs of each family, seeds from {SEED}, on {SLOTS:?} slots; \
         best known of {TRIES} tries each"
    );
    println!(
        "{:<28} {:>15} {:>15} {:>15} {:>15}",
        "mean, farthest from best", "oldest first", "default", "by kind only", "lower bound"
    );
    let mut all = Vec::new();
    for (name, family) in FAMILIES {
        let mut cases = Vec::new();
        for seed in SEED..SEED + GRAPHS_OF_FAMILY {
            let mut draw = Draw::new(seed);
            let graph = family(&mut draw);
            cases.extend(SLOTS.map(|slots_max| case(&graph, slots_max, &mut draw)));
        }
        print(name, &cases);
        all.extend(cases);
    }
    let mean = print("all", &all);
    println!(
        "   default beside best known: {:.2} % above it on average, aim ≤ {:.0} %: {}",
        (mean - 1.0) * 100.0,
        (AIM - 1.0) * 100.0,
        judged(mean <= AIM)
    );
    println!("   took {:.1} s", start.elapsed().as_secs_f64());
}

fn case(graph: &Graph, slots_max: usize, draw: &mut Draw) -> Case {
    let known: Vec<u64> = graph.sessions.iter().map(|node| node.seconds).collect();
    let past = graph.sessions.iter().map(|node| (node.kind, node.seconds));
    let durations: Durations = past.collect();
    let guessed: Vec<u64> = graph
        .sessions
        .iter()
        .map(|node| durations.expected_s(node.kind))
        .collect();
    let oldest_first: Vec<u64> = (0..graph.sessions.len() as u64).collect();
    let oldest_first_s = by_number(graph, &oldest_first, slots_max);
    let default_s = by_choice(graph, &known, slots_max);
    let guessing_s = by_choice(graph, &guessed, slots_max);
    let bound_s = graph
        .critical_path_s()
        .max(graph.work_s().div_ceil(slots_max as u64));
    let found_s = search(graph, slots_max, bound_s, draw);
    Case {
        bound_s,
        oldest_first_s,
        default_s,
        guessing_s,
        best_s: found_s.min(oldest_first_s).min(default_s).min(guessing_s),
    }
}

/// The best of many orders: some rules, then small changes to the best so far, then chance alone.
fn search(graph: &Graph, slots_max: usize, bound_s: u64, draw: &mut Draw) -> u64 {
    let count = graph.sessions.len();
    let (mut best, mut best_s) = rules(graph)
        .into_iter()
        .map(|numbers| {
            let seconds = by_number(graph, &numbers, slots_max);
            (numbers, seconds)
        })
        .min_by_key(|(_, seconds)| *seconds)
        .expect("there are rules");
    for tried in 0..TRIES {
        if best_s == bound_s {
            break;
        }
        let mut numbers = best.clone();
        if tried % 4 == 0 {
            draw.shuffle(&mut numbers);
        } else {
            for _ in 0..draw.below(1, 4) {
                numbers.swap(draw.below(0, count), draw.below(0, count));
            }
        }
        let seconds = by_number(graph, &numbers, slots_max);
        // Equal ones too: the search then leaves plateaus.
        if seconds <= best_s {
            (best, best_s) = (numbers, seconds);
        }
    }
    best_s
}

/// Orders by rules, each as numbers: longest path, most work behind, most dependents, longest
/// session, shortest session first.
fn rules(graph: &Graph) -> Vec<Vec<u64>> {
    let count = graph.sessions.len();
    let mut path_s: Vec<u64> = graph.sessions.iter().map(|node| node.seconds).collect();
    let mut dependents = vec![0_u64; count];
    let mut behind: Vec<Vec<bool>> = vec![vec![false; count]; count];
    for at in (0..count).rev() {
        for &dependency in &graph.sessions[at].dependencies {
            let seconds = graph.sessions[dependency].seconds;
            path_s[dependency] = path_s[dependency].max(path_s[at] + seconds);
            dependents[dependency] += 1;
            let of_dependent = behind[at].clone();
            let of_dependency = &mut behind[dependency];
            of_dependency[at] = true;
            for (own, theirs) in of_dependency.iter_mut().zip(of_dependent) {
                *own |= theirs;
            }
        }
    }
    let work_s = |at: usize| -> u64 {
        let those = (0..count).filter(|&other| behind[at][other]);
        those.map(|other| graph.sessions[other].seconds).sum()
    };
    let work_s: Vec<u64> = (0..count).map(work_s).collect();
    let seconds: Vec<u64> = graph.sessions.iter().map(|node| node.seconds).collect();
    let first_is_most = |of: &[u64]| of.iter().map(|it| u64::MAX - it).collect::<Vec<u64>>();
    vec![
        first_is_most(&path_s),
        first_is_most(&work_s),
        first_is_most(&dependents),
        first_is_most(&seconds),
        seconds,
    ]
}

/// Prints a line, and tells the default's mean beside the best known.
fn print(name: &str, cases: &[Case]) -> f64 {
    let beside_best = |of: fn(&Case) -> u64| {
        let ratios = cases
            .iter()
            .map(|case| of(case) as f64 / case.best_s as f64);
        let farthest = ratios.clone().fold(1.0, |far: f64, ratio| {
            match (ratio - 1.0).abs() > (far - 1.0).abs() {
                true => ratio,
                false => far,
            }
        });
        (ratios.sum::<f64>() / cases.len() as f64, farthest)
    };
    let text = |(mean, farthest): (f64, f64)| format!("{mean:.4} {farthest:.3}");
    let default = beside_best(|case| case.default_s);
    println!(
        "{name:<28} {:>15} {:>15} {:>15} {:>15}",
        text(beside_best(|case| case.oldest_first_s)),
        text(default),
        text(beside_best(|case| case.guessing_s)),
        text(beside_best(|case| case.bound_s)),
    );
    default.0
}
