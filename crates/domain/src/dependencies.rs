//! The graph of who waits for whom: circles in it, and who is lost when one does not complete.
//!
//! Everything here is iterative and linear in sessions plus dependencies: a chain of ten thousand
//! must neither overflow the stack nor take seconds.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use crate::ids::SessionId;
use crate::session::Standing;

/// How many ids of a long path or list an error's text names.
const NAMED_IN_TEXT_MAX: usize = 8;

/// Why the dependencies of new sessions cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DependencyError {
    /// The session would wait for itself.
    #[error("session {0} depends on itself")]
    SelfDependency(SessionId),
    /// New sessions would wait for each other. The path starts and ends with the same session;
    /// each depends on the next.
    #[error("sessions depend on each other in a circle: {}", Listed(path, " -> "))]
    Cycle {
        /// At least three entries, the first being the last.
        path: Vec<SessionId>,
    },
    /// Neither new nor known, each once, in the order met.
    #[error("no such session to depend on: {}", Listed(.0, ", "))]
    Unknown(Vec<SessionId>),
}

struct Listed<'a>(&'a [SessionId], &'static str);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, id) in self.0.iter().take(NAMED_IN_TEXT_MAX).enumerate() {
            if at > 0 {
                f.write_str(self.1)?;
            }
            id.fmt(f)?;
        }
        match self.0.len().saturating_sub(NAMED_IN_TEXT_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Checks the dependencies of sessions about to be created together.
///
/// `known` says whether a session exists already. Only new sessions can form a circle: those that
/// exist were checked against what existed before them. Naming a dependency twice means no more
/// than naming it once.
///
/// # Errors
/// The first of these that applies: [`DependencyError::SelfDependency`],
/// [`DependencyError::Unknown`] with all unknown ids, [`DependencyError::Cycle`].
pub fn check_new(
    new: &[(SessionId, Vec<SessionId>)],
    known: impl Fn(SessionId) -> bool,
) -> Result<(), DependencyError> {
    let place: HashMap<SessionId, usize> = new
        .iter()
        .enumerate()
        .map(|(at, (id, _))| (*id, at))
        .collect();
    let mut among_new = vec![Vec::new(); new.len()];
    let mut unknown = Vec::new();
    let mut unknown_seen = HashSet::new();
    for (at, (id, dependencies)) in new.iter().enumerate() {
        for dependency in dependencies {
            if dependency == id {
                return Err(DependencyError::SelfDependency(*id));
            }
            match place.get(dependency) {
                Some(&other) => among_new[at].push(other),
                None if known(*dependency) => {}
                None if unknown_seen.insert(*dependency) => unknown.push(*dependency),
                None => {}
            }
        }
    }
    if !unknown.is_empty() {
        return Err(DependencyError::Unknown(unknown));
    }
    match circle(&among_new) {
        None => Ok(()),
        Some(path) => Err(DependencyError::Cycle {
            path: path.into_iter().map(|at| new[at].0).collect(),
        }),
    }
}

/// A circle in the graph, its first node repeated at its end.
pub(crate) fn circle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Visit {
        Not,
        OnPath,
        Done,
    }
    let mut visits = vec![Visit::Not; edges.len()];
    // The path from the root of this search, each with the number of its edges already followed.
    let mut path: Vec<(usize, usize)> = Vec::new();
    for root in 0..edges.len() {
        if visits[root] != Visit::Not {
            continue;
        }
        visits[root] = Visit::OnPath;
        path.push((root, 0));
        while let Some((node, followed)) = path.last_mut() {
            let Some(&next) = edges[*node].get(*followed) else {
                visits[*node] = Visit::Done;
                path.pop();
                continue;
            };
            *followed += 1;
            match visits[next] {
                Visit::Done => {}
                Visit::Not => {
                    visits[next] = Visit::OnPath;
                    path.push((next, 0));
                }
                Visit::OnPath => {
                    let nodes = path.iter().map(|(node, _)| *node);
                    let from_next = nodes.skip_while(|node| *node != next);
                    return Some(from_next.chain([next]).collect());
                }
            }
        }
    }
    None
}

/// All sessions of `waiting` that can no longer start, each with the dependency that is in its way.
///
/// `waiting` holds sessions that have not started, with their dependencies. A session is lost when
/// a dependency is lost or unknown to `standing` (a session whose record is gone cannot complete),
/// and then it names the first such one of its list; or when a dependency in `waiting` is itself
/// found lost here, and then it names that one. A session comes after the one it names, so the
/// answer can be recorded in its order.
pub fn lost<'a>(
    waiting: impl IntoIterator<Item = (SessionId, &'a [SessionId])>,
    standing: impl Fn(SessionId) -> Option<Standing>,
) -> Vec<(SessionId, SessionId)> {
    let waiting: Vec<(SessionId, &[SessionId])> = waiting.into_iter().collect();
    let waits: HashSet<SessionId> = waiting.iter().map(|(id, _)| *id).collect();
    let mut dependents: HashMap<SessionId, Vec<SessionId>> = HashMap::new();
    let mut found = Vec::new();
    let mut is_found = HashSet::new();
    for (id, dependencies) in &waiting {
        for dependency in *dependencies {
            let gone = !matches!(
                standing(*dependency),
                Some(Standing::Open | Standing::Completed)
            );
            if gone && !waits.contains(dependency) {
                if is_found.insert(*id) {
                    found.push((*id, *dependency));
                }
            } else if waits.contains(dependency) {
                dependents.entry(*dependency).or_default().push(*id);
            }
        }
    }
    let mut spread: VecDeque<SessionId> = found.iter().map(|(id, _)| *id).collect();
    while let Some(blocked) = spread.pop_front() {
        // Removed, so that each edge is followed once.
        for dependent in dependents.remove(&blocked).unwrap_or_default() {
            if is_found.insert(dependent) {
                found.push((dependent, blocked));
                spread.push_back(dependent);
            }
        }
    }
    found
}

/// What is not true any more of sessions that are blocked.
///
/// `blocked` holds them with the dependency each names and all its dependencies. The answer has
/// those that no lost dependency is in the way of any more, each after those it depends on, with
/// none; and then those that name one which is not lost any more, with the first that is.
pub fn reviewed<'a>(
    blocked: impl IntoIterator<Item = (SessionId, SessionId, &'a [SessionId])>,
    standing: impl Fn(SessionId) -> Option<Standing>,
) -> Vec<(SessionId, Option<SessionId>)> {
    let is_lost =
        |id: SessionId| !matches!(standing(id), Some(Standing::Open | Standing::Completed));
    let mut dependents: HashMap<SessionId, Vec<SessionId>> = HashMap::new();
    let mut lost_left: HashMap<SessionId, usize> = HashMap::new();
    let mut in_the_way = Vec::new();
    let mut spread = VecDeque::new();
    for (id, named, dependencies) in blocked {
        let mut seen = HashSet::new();
        let lost: Vec<SessionId> = dependencies
            .iter()
            .copied()
            .filter(|of| is_lost(*of) && seen.insert(*of))
            .collect();
        if lost.is_empty() {
            spread.push_back(id);
        }
        lost_left.insert(id, lost.len());
        for dependency in &lost {
            dependents.entry(*dependency).or_default().push(id);
        }
        in_the_way.push((id, named, lost));
    }
    let mut found = Vec::new();
    let mut is_free = HashSet::new();
    while let Some(free) = spread.pop_front() {
        found.push((free, None));
        is_free.insert(free);
        for dependent in dependents.remove(&free).unwrap_or_default() {
            if let Some(left) = lost_left.get_mut(&dependent) {
                *left -= 1;
                if *left == 0 {
                    spread.push_back(dependent);
                }
            }
        }
    }
    for (id, named, lost) in in_the_way {
        let still = |of: &SessionId| !is_free.contains(of);
        if is_free.contains(&id) || (lost.contains(&named) && still(&named)) {
            continue;
        }
        found.push((id, lost.into_iter().find(still)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    const MANY: usize = 10_000;

    fn id(number: usize) -> SessionId {
        SessionId(Uuid::from_u128(number as u128))
    }

    /// `a<-b,c d<-a` as new sessions; a letter that has no entry of its own is unknown unless it
    /// is written in capitals.
    fn graph(text: &str) -> Vec<(SessionId, Vec<SessionId>)> {
        text.split_whitespace()
            .map(|entry| {
                let (name, list) = entry.split_once("<-").unwrap_or((entry, ""));
                let names = list.split(',').filter(|name| !name.is_empty());
                (letter(name), names.map(letter).collect())
            })
            .collect()
    }

    fn letter(name: &str) -> SessionId {
        id(usize::from(name.as_bytes()[0]))
    }

    fn name(id: SessionId) -> char {
        char::from(id.0.as_u128() as u8)
    }

    fn is_capital(id: SessionId) -> bool {
        name(id).is_ascii_uppercase()
    }

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        let names = |ids: &[SessionId]| ids.iter().copied().map(name).collect::<String>();
        expected.assert_eq(&match check_new(&graph(text), is_capital) {
            Ok(()) => "fine".to_owned(),
            Err(DependencyError::SelfDependency(id)) => format!("self {}", name(id)),
            Err(DependencyError::Unknown(ids)) => format!("unknown {}", names(&ids)),
            Err(DependencyError::Cycle { path }) => format!("circle {}", names(&path)),
        });
    }

    #[test]
    fn new_sessions_may_depend_on_each_other_and_on_known_ones() {
        check("a b<-a c<-a,b,X d<-c,c,c", expect!["fine"]);
        check("", expect!["fine"]);
    }

    #[test]
    fn every_unknown_dependency_is_named_once() {
        check("a<-x,y,x b<-y,z,a", expect!["unknown xyz"]);
    }

    #[test]
    fn a_circle_is_named_by_its_path() {
        check("a<-a", expect!["self a"]);
        check("a<-b b<-a", expect!["circle aba"]);
        check("r<-a a<-b b<-c c<-X,a", expect!["circle abca"]);
    }

    #[test]
    fn a_long_path_is_cut_in_the_text_only() {
        let path: Vec<SessionId> = (0..20).map(id).collect();
        let text = DependencyError::Cycle { path }.to_string();
        assert!(text.ends_with(" and 12 more"), "{text}");
    }

    #[track_caller]
    fn check_lost(text: &str, expected: Expect) {
        let waiting = graph(text);
        let standing = |id: SessionId| match name(id) {
            'L' => Some(Standing::Lost),
            'C' => Some(Standing::Completed),
            'U' => None,
            _ => Some(Standing::Open),
        };
        let entries = waiting.iter().map(|(id, list)| (*id, list.as_slice()));
        let found: Vec<String> = lost(entries, standing)
            .into_iter()
            .map(|(id, by)| format!("{} by {}", name(id), name(by)))
            .collect();
        expected.assert_eq(&found.join(", "));
    }

    #[test]
    fn a_dependent_of_a_blocked_one_names_that_one() {
        check_lost("a<-L b<-a c<-b d<-C,O", expect!["a by L, b by a, c by b"]);
        check_lost("c<-b b<-a a<-C,L", expect!["a by L, b by a, c by b"]);
    }

    #[test]
    fn the_first_lost_dependency_is_the_one_named() {
        check_lost("a<-O,L,U b<-U,L", expect!["a by L, b by U"]);
        check_lost("a<-L b<-a,L", expect!["a by L, b by L"]);
    }

    /// What follows for `blocked`, each of which names the first of its list, when R is retried.
    #[track_caller]
    fn check_reviewed(blocked: &str, expected: Expect) {
        let blocked = graph(blocked);
        let is_blocked: HashSet<SessionId> = blocked.iter().map(|(id, _)| *id).collect();
        let standing = |id: SessionId| match name(id) {
            'R' => Some(Standing::Open),
            'L' => Some(Standing::Lost),
            _ if is_blocked.contains(&id) => Some(Standing::Lost),
            _ => Some(Standing::Completed),
        };
        let entries = blocked
            .iter()
            .map(|(id, list)| (*id, list[0], list.as_slice()));
        let found = reviewed(entries, standing).into_iter();
        let found = found.map(|(id, by)| match by {
            None => format!("{} is free", name(id)),
            Some(by) => format!("{} by {}", name(id), name(by)),
        });
        expected.assert_eq(&found.collect::<Vec<_>>().join(", "));
    }

    #[test]
    fn what_only_the_retried_one_blocked_waits_again() {
        check_reviewed(
            "a<-R b<-a,C c<-b,L d<-c e<-L f<-b,a",
            expect!["a is free, b is free, f is free, c by L"],
        );
        check_reviewed("b<-a a<-R,R", expect!["a is free, b is free"]);
        check_reviewed("a<-L b<-L,R", expect![""]);
    }

    #[test]
    fn what_is_still_blocked_names_what_is_in_its_way() {
        check_reviewed("a<-R,L b<-a c<-R,b", expect!["a by L, c by b"]);
    }

    fn chain() -> Vec<(SessionId, Vec<SessionId>)> {
        (1..=MANY).map(|at| (id(at), vec![id(at - 1)])).collect()
    }

    fn fan() -> Vec<(SessionId, Vec<SessionId>)> {
        let leaves = (1..MANY).map(|at| (id(at), vec![id(0)]));
        leaves
            .chain([(id(MANY), (1..MANY).map(id).collect())])
            .collect()
    }

    #[test]
    fn ten_thousand_in_a_chain_or_a_fan_are_no_trouble() {
        for waiting in [chain(), chain().into_iter().rev().collect(), fan()] {
            assert_eq!(check_new(&waiting, |known| known == id(0)), Ok(()));
            let entries = waiting.iter().map(|(id, list)| (*id, list.as_slice()));
            let standing = |of| match of == id(0) {
                true => Some(Standing::Lost),
                false => Some(Standing::Open),
            };
            assert_eq!(lost(entries, standing).len(), MANY);
        }
        let mut ring = chain();
        ring[0].1 = vec![id(MANY)];
        let Err(DependencyError::Cycle { path }) = check_new(&ring, |_| false) else {
            panic!("the ring was not found");
        };
        assert_eq!(path.len(), MANY + 1);
    }

    const NODES: usize = 12;

    fn graphs() -> impl Strategy<Value = Vec<(SessionId, Vec<SessionId>)>> {
        vec(vec(0..NODES, 0..4), 0..NODES).prop_map(|lists| {
            lists
                .into_iter()
                .enumerate()
                .map(|(at, list)| (id(at), list.into_iter().map(id).collect()))
                .collect()
        })
    }

    /// Takes away what depends on nothing that is left, as often as that helps.
    fn has_circle(new: &[(SessionId, Vec<SessionId>)]) -> bool {
        let mut left: Vec<_> = new.to_vec();
        loop {
            let ids: Vec<SessionId> = left.iter().map(|(id, _)| *id).collect();
            let before = left.len();
            left.retain(|(_, list)| list.iter().any(|dependency| ids.contains(dependency)));
            if left.len() == before {
                return before > 0;
            }
        }
    }

    proptest! {
        #[test]
        fn a_check_agrees_with_the_naive_one(new in graphs()) {
            let depends = |from: &SessionId, to: &SessionId| {
                new.iter().any(|(id, list)| id == from && list.contains(to))
            };
            let unknown = new.iter().flat_map(|(_, list)| list).any(|of| {
                !new.iter().any(|(id, _)| id == of)
            });
            match check_new(&new, |_| false) {
                Ok(()) => prop_assert!(!unknown && !has_circle(&new)),
                Err(DependencyError::SelfDependency(id)) => prop_assert!(depends(&id, &id)),
                Err(DependencyError::Unknown(_)) => prop_assert!(unknown),
                Err(DependencyError::Cycle { path }) => {
                    prop_assert!(!unknown && path.len() > 2 && path.first() == path.last());
                    prop_assert!(path.windows(2).all(|pair| depends(&pair[0], &pair[1])));
                }
            }
        }

        #[test]
        fn the_lost_agree_with_the_naive_ones(
            waiting in graphs(),
            standings in vec(0..3_usize, NODES),
        ) {
            let is_waiting = |of: SessionId| waiting.iter().any(|(id, _)| *id == of);
            let standing = |of: SessionId| {
                if is_waiting(of) {
                    return Some(Standing::Open);
                }
                let at = of.0.as_u128() as usize;
                [Some(Standing::Open), Some(Standing::Completed), Some(Standing::Lost)][standings[at]]
            };
            let mut naive: Vec<SessionId> = Vec::new();
            loop {
                let more: Vec<SessionId> = waiting
                    .iter()
                    .filter(|(id, _)| !naive.contains(id))
                    .filter(|(_, list)| list.iter().any(|of| {
                        naive.contains(of) || standing(*of) == Some(Standing::Lost)
                    }))
                    .map(|(id, _)| *id)
                    .collect();
                if more.is_empty() {
                    break;
                }
                naive.extend(more);
            }
            let entries = waiting.iter().map(|(id, list)| (*id, list.as_slice()));
            let found = lost(entries, standing);
            let mut ids: Vec<SessionId> = found.iter().map(|(id, _)| *id).collect();
            for (at, (id, by)) in found.iter().enumerate() {
                let own = waiting.iter().find(|(of, _)| of == id).expect("one of the waiting");
                prop_assert!(own.1.contains(by), "{by} is no dependency of {id}");
                let named_before = ids[..at].contains(by);
                prop_assert!(named_before || standing(*by) == Some(Standing::Lost));
            }
            ids.sort();
            naive.sort();
            prop_assert_eq!(ids, naive);
        }
    }
}
