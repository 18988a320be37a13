//! What lies ahead of each session: the longest path through those that wait for it.

use std::collections::HashMap;

use super::OpenSession;
use crate::ids::SessionId;

/// What depends on a session, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The seconds until the last of them is over, if slots were no matter.
    pub path_s: u64,
    /// The highest priority among them.
    pub priority: i32,
}

/// What lies ahead of each of `open`, in its order.
///
/// Walks from those that nobody waits for towards their dependencies, each edge once and without
/// recursion. Sessions in a circle, which no check lets in, are left with less than the truth.
pub(super) fn ahead(open: &[OpenSession<'_>]) -> Vec<Ahead> {
    let mut ahead: Vec<Ahead> = open
        .iter()
        .map(|session| Ahead {
            path_s: session.expected_s,
            priority: session.priority,
        })
        .collect();
    if open.iter().all(|session| session.dependencies.is_empty()) {
        return ahead;
    }
    let place: HashMap<SessionId, usize> = open
        .iter()
        .enumerate()
        .map(|(at, session)| (session.id, at))
        .collect();
    let mut edges = Vec::new();
    let mut edges_from = Vec::with_capacity(open.len() + 1);
    let mut dependents = vec![0_usize; open.len()];
    for session in open {
        edges_from.push(edges.len());
        // What is not open is over, and keeps nobody waiting.
        let dependencies = session.dependencies.iter();
        for &dependency in dependencies.filter_map(|id| place.get(id)) {
            dependents[dependency] += 1;
            edges.push(dependency);
        }
    }
    edges_from.push(edges.len());
    let mut settled: Vec<usize> = (0..open.len()).filter(|&at| dependents[at] == 0).collect();
    while let Some(at) = settled.pop() {
        let of_dependent = ahead[at];
        for &dependency in &edges[edges_from[at]..edges_from[at + 1]] {
            let own = open[dependency].expected_s;
            let of_dependency = &mut ahead[dependency];
            let path_s = own.saturating_add(of_dependent.path_s);
            of_dependency.path_s = of_dependency.path_s.max(path_s);
            of_dependency.priority = of_dependency.priority.max(of_dependent.priority);
            dependents[dependency] -= 1;
            if dependents[dependency] == 0 {
                settled.push(dependency);
            }
        }
    }
    ahead
}
