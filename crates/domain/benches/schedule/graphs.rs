//! Graphs of sessions, drawn from a seed: the same seed draws the same graph.

use baton_domain::{Kind, SessionId};
use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use uuid::Uuid;

/// Sessions in an order in which they could be made: each depends on earlier ones only.
#[derive(Default)]
pub struct Graph {
    pub sessions: Vec<Node>,
}

/// One session.
pub struct Node {
    pub kind: Kind,
    /// What it really takes.
    pub seconds: u64,
    /// Places of earlier sessions.
    pub dependencies: Vec<usize>,
    /// The same as ids.
    pub dependency_ids: Vec<SessionId>,
}

/// Chance, from a printed number.
pub struct Draw(TestRng);

impl Draw {
    pub fn new(seed: u64) -> Self {
        let bytes = u128::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        Self(TestRng::from_seed(
            RngAlgorithm::XorShift,
            &bytes.to_le_bytes(),
        ))
    }

    /// At least `from` and below `to`.
    pub fn below(&mut self, from: usize, to: usize) -> usize {
        self.0.random_range(from..to)
    }

    /// Around 1: half as often below a half as above two.
    fn factor(&mut self) -> f64 {
        self.0.random_range(-1.0_f64..1.0).exp()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(0, at + 1));
        }
    }
}

pub fn id(at: usize) -> SessionId {
    SessionId(Uuid::from_u128(at as u128))
}

impl Graph {
    /// Adds a session that takes what sessions of its kind take, more or less.
    fn add(&mut self, draw: &mut Draw, dependencies: Vec<usize>) -> usize {
        let (kind, median_s) = [
            (Kind::Analysis, 300.0),
            (Kind::Implementation, 1_200.0),
            (Kind::Implementation, 1_200.0),
            (Kind::Testing, 600.0),
            (Kind::Review, 240.0),
        ][draw.below(0, 5)];
        let seconds = (median_s * draw.factor()) as u64;
        self.push(kind, seconds, dependencies)
    }

    fn push(&mut self, kind: Kind, seconds: u64, dependencies: Vec<usize>) -> usize {
        self.sessions.push(Node {
            kind,
            seconds,
            dependency_ids: dependencies.iter().copied().map(id).collect(),
            dependencies,
        });
        self.sessions.len() - 1
    }

    /// The seconds of the longest path.
    pub fn critical_path_s(&self) -> u64 {
        let mut over_at: Vec<u64> = Vec::with_capacity(self.sessions.len());
        for node in &self.sessions {
            let ready_at = node.dependencies.iter().map(|&at| over_at[at]).max();
            over_at.push(ready_at.unwrap_or(0) + node.seconds);
        }
        over_at.into_iter().max().unwrap_or(0)
    }

    /// The seconds of all sessions.
    pub fn work_s(&self) -> u64 {
        self.sessions.iter().map(|node| node.seconds).sum()
    }
}

/// A name, and what draws a graph of that family.
pub type Family = (&'static str, fn(&mut Draw) -> Graph);

/// What graphs of sessions may look like.
pub const FAMILIES: [Family; 6] = [
    ("layers", layers),
    ("forks and joins", forks_and_joins),
    ("series and parallel", series_and_parallel),
    ("chains with side branches", chains_with_side_branches),
    ("any order", any_order),
    ("without dependencies", without_dependencies),
];

/// Layers, each session needing one to three of the layer before.
fn layers(draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    let mut before: Vec<usize> = Vec::new();
    for _ in 0..draw.below(5, 15) {
        let mut layer = Vec::new();
        for _ in 0..draw.below(2, 14) {
            let mut dependencies = before.clone();
            draw.shuffle(&mut dependencies);
            dependencies.truncate(draw.below(1, 4));
            layer.push(graph.add(draw, dependencies));
        }
        before = layer;
    }
    graph
}

/// Again and again: one session, many that need it, one that needs them all.
fn forks_and_joins(draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    for _ in 0..draw.below(1, 4) {
        let mut last = graph.add(draw, Vec::new());
        for _ in 0..draw.below(2, 5) {
            let branches: Vec<usize> = (0..draw.below(2, 10))
                .map(|_| {
                    let mut end = graph.add(draw, vec![last]);
                    for _ in 0..draw.below(0, 3) {
                        end = graph.add(draw, vec![end]);
                    }
                    end
                })
                .collect();
            last = graph.add(draw, branches);
        }
    }
    graph
}

/// Parts one after the other or side by side, made of such parts.
fn series_and_parallel(draw: &mut Draw) -> Graph {
    // One step of the work that is left: what it needs, and how often it may be divided.
    fn part(graph: &mut Graph, draw: &mut Draw, needs: Vec<usize>, depth: usize) -> Vec<usize> {
        if depth == 0 {
            return vec![graph.add(draw, needs)];
        }
        if draw.below(0, 2) == 0 {
            let first = part(graph, draw, needs, depth - 1);
            part(graph, draw, first, depth - 1)
        } else {
            let mut ends = Vec::new();
            for _ in 0..draw.below(2, 4) {
                ends.extend(part(graph, draw, needs.clone(), depth - 1));
            }
            ends
        }
    }
    let mut graph = Graph::default();
    part(&mut graph, draw, Vec::new(), 5);
    graph
}

/// A few long chains, with short work hanging off them that nobody waits for.
fn chains_with_side_branches(draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    for _ in 0..draw.below(2, 5) {
        let mut end = graph.add(draw, Vec::new());
        for _ in 0..draw.below(3, 16) {
            for _ in 0..draw.below(0, 4) {
                graph.add(draw, vec![end]);
            }
            end = graph.add(draw, vec![end]);
        }
    }
    graph
}

/// Each session needs up to three earlier ones, wherever they are.
fn any_order(draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    for at in 0..draw.below(30, 150) {
        let count = draw.below(0, 4).min(at);
        let dependencies = (0..count).map(|_| draw.below(0, at)).collect();
        graph.add(draw, dependencies);
    }
    graph
}

/// Sessions that have nothing to do with each other.
fn without_dependencies(draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    for _ in 0..draw.below(10, 60) {
        graph.add(draw, Vec::new());
    }
    graph
}

/// `count` sessions, each needing the one before.
pub fn chain(count: usize) -> Graph {
    let mut graph = Graph::default();
    for at in 0..count {
        graph.push(Kind::Testing, 600, at.checked_sub(1).into_iter().collect());
    }
    graph
}

/// `count` sessions: one, and those that need it.
pub fn fan_out(count: usize) -> Graph {
    let mut graph = chain(1);
    for _ in 1..count {
        graph.push(Kind::Testing, 600, vec![0]);
    }
    graph
}

/// `count` sessions: many, and one that needs them all.
pub fn fan_in(count: usize) -> Graph {
    let mut graph = Graph::default();
    for _ in 1..count {
        graph.push(Kind::Testing, 600, Vec::new());
    }
    graph.push(Kind::Testing, 600, (0..count - 1).collect());
    graph
}

/// `count` sessions, each needing up to five of the hundred before it.
pub fn woven(count: usize, draw: &mut Draw) -> Graph {
    let mut graph = Graph::default();
    for at in 0..count {
        let needs = draw.below(0, 6).min(at);
        let from = at.saturating_sub(100);
        let dependencies = (0..needs).map(|_| draw.below(from, at)).collect();
        graph.add(draw, dependencies);
    }
    graph
}
