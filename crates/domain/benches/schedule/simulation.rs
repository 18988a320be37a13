//! Running a graph on so many slots, from one end of a session to the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use baton_domain::schedule::{OpenSession, Phase, Slots, choose};
use jiff::Timestamp;

use crate::graphs::{Graph, id};

/// The sessions' state at one moment.
struct Course<'a> {
    graph: &'a Graph,
    dependents: Vec<Vec<usize>>,
    open_dependencies: Vec<usize>,
    /// Those that run, with the second of their end; the next to end first.
    running: BinaryHeap<Reverse<(u64, usize)>>,
    now_s: u64,
}

impl<'a> Course<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut dependents = vec![Vec::new(); graph.sessions.len()];
        for (at, node) in graph.sessions.iter().enumerate() {
            for &dependency in &node.dependencies {
                dependents[dependency].push(at);
            }
        }
        Self {
            graph,
            dependents,
            open_dependencies: graph
                .sessions
                .iter()
                .map(|node| node.dependencies.len())
                .collect(),
            running: BinaryHeap::new(),
            now_s: 0,
        }
    }

    fn launch(&mut self, at: usize) {
        let over_at = self.now_s + self.graph.sessions[at].seconds;
        self.running.push(Reverse((over_at, at)));
    }

    /// Goes on to the next moment at which sessions end. Hands those to `ended` that are over, and
    /// those to `ready` whose last dependency this was; false when nothing runs.
    fn go_on(&mut self, mut ended: impl FnMut(usize), mut ready: impl FnMut(usize)) -> bool {
        let Some(&Reverse((next_s, _))) = self.running.peek() else {
            return false;
        };
        self.now_s = next_s;
        while let Some(&Reverse((over_at, at))) = self.running.peek()
            && over_at == next_s
        {
            self.running.pop();
            ended(at);
            for &dependent in &self.dependents[at] {
                self.open_dependencies[dependent] -= 1;
                if self.open_dependencies[dependent] == 0 {
                    ready(dependent);
                }
            }
        }
        true
    }
}

/// The seconds a graph takes where the ready session with the lowest number always goes first.
pub fn by_number(graph: &Graph, numbers: &[u64], slots_max: usize) -> u64 {
    let mut course = Course::new(graph);
    let none_open = |at: &usize| course.open_dependencies[*at] == 0;
    let mut ready: BinaryHeap<Reverse<(u64, usize)>> = (0..graph.sessions.len())
        .filter(none_open)
        .map(|at| Reverse((numbers[at], at)))
        .collect();
    loop {
        while course.running.len() < slots_max
            && let Some(Reverse((_, at))) = ready.pop()
        {
            course.launch(at);
        }
        if !course.go_on(|_| {}, |at| ready.push(Reverse((numbers[at], at)))) {
            return course.now_s;
        }
    }
}

/// The seconds a graph takes where the scheduler chooses, told to expect `expected_s` of each.
pub fn by_choice(graph: &Graph, expected_s: &[u64], slots_max: usize) -> u64 {
    let mut course = Course::new(graph);
    let mut open = sessions(graph, expected_s);
    loop {
        for chosen in choose(&open, Slots::new(slots_max)) {
            let at = chosen.0.as_u128() as usize;
            course.launch(at);
            let session = open.iter_mut().find(|session| session.id == chosen);
            session.expect("it was chosen out of these").phase = Phase::HoldsSlot;
        }
        let mut over = Vec::new();
        let mut ready = Vec::new();
        if !course.go_on(|at| over.push(id(at)), |at| ready.push(id(at))) {
            return course.now_s;
        }
        open.retain(|session| !over.contains(&session.id));
        for session in &mut open {
            if ready.contains(&session.id) {
                session.phase = Phase::Ready;
            }
        }
    }
}

/// All sessions of a graph as the scheduler sees them before the first was launched.
pub fn sessions<'a>(graph: &'a Graph, expected_s: &[u64]) -> Vec<OpenSession<'a>> {
    let nodes = graph.sessions.iter().enumerate();
    nodes
        .map(|(at, node)| OpenSession {
            id: id(at),
            kind: node.kind,
            orchestration: None,
            priority: 0,
            created_at: Timestamp::UNIX_EPOCH,
            expected_s: expected_s[at],
            dependencies: &node.dependency_ids,
            phase: match node.dependencies.is_empty() {
                true => Phase::Ready,
                false => Phase::Waiting,
            },
        })
        .collect()
}
