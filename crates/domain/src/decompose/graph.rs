//! Who waits for whom among the sessions of a graph.

use super::DependencyMode;
use super::component::Component;
use super::demand::Demand;
use super::phases::Draft;
use crate::project::Kind;

/// The stages with each in an order in which its sessions could run one by one.
pub(super) fn ordered<'a>(
    mut stages: Vec<Vec<Draft<'a>>>,
    mode: DependencyMode,
    demand: &Demand<'_>,
) -> Vec<Vec<Draft<'a>>> {
    let as_written = mode == DependencyMode::Sequential && (demand.ordered || demand.numbered);
    if !as_written {
        for stage in &mut stages {
            stage.sort_by_key(rank);
        }
    }
    stages
}

/// Components in the order they are built in; what belongs to none is built beside the frontend.
fn rank(draft: &Draft<'_>) -> Component {
    draft.component.unwrap_or(Component::Frontend)
}

/// For each session, stage by stage, the places of those it waits for, ascending.
pub(super) fn edges(stages: &[Vec<Draft<'_>>], mode: DependencyMode) -> Vec<Vec<usize>> {
    let mut edges: Vec<Vec<usize>> = Vec::new();
    // Sessions that nobody waits for yet, and those of the stage before.
    let mut loose: Vec<usize> = Vec::new();
    let mut before: Vec<usize> = Vec::new();
    for stage in stages {
        let start = edges.len();
        for (offset, draft) in stage.iter().enumerate() {
            let at = start + offset;
            edges.push(match mode {
                DependencyMode::Sequential => at.checked_sub(1).into_iter().collect(),
                DependencyMode::Parallel if begins_at_once(draft) => Vec::new(),
                DependencyMode::Parallel => union(&before, &loose),
                DependencyMode::WaitForCore => {
                    let mut waits = union(&before, &loose);
                    waits.extend(built_on(stage, draft.component).map(|other| start + other));
                    waits
                }
            });
        }
        let of_stage = start..edges.len();
        loose.extend(of_stage.clone());
        let waited_for = edges[of_stage.clone()].concat();
        loose.retain(|at| !waited_for.contains(at));
        before = of_stage.collect();
    }
    edges
}

/// Whether the client's word that its pieces are independent goes for this session.
fn begins_at_once(draft: &Draft<'_>) -> bool {
    match draft.kind {
        Kind::Analysis => true,
        Kind::Implementation => draft.component != Some(Component::Deployment),
        Kind::Testing | Kind::Review | Kind::Coordination => false,
    }
}

fn union(before: &[usize], loose: &[usize]) -> Vec<usize> {
    let mut all = [before, loose].concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// The sessions of the same stage whose code a session of `component` uses. Where a component
/// between them is missing, the one below it is used directly. Those stand earlier in the stage,
/// since it is ordered by component.
fn built_on(stage: &[Draft<'_>], component: Option<Component>) -> impl Iterator<Item = usize> {
    let mut wanted = Component::builds_on(component);
    while !wanted.is_empty() && !stage.iter().any(|draft| is_one_of(draft, wanted)) {
        wanted = Component::builds_on(wanted.first().copied());
    }
    let stage = stage.iter().enumerate();
    stage
        .filter(|(_, draft)| is_one_of(draft, wanted))
        .map(|(at, _)| at)
}

fn is_one_of(draft: &Draft<'_>, components: &[Component]) -> bool {
    draft.component.is_some_and(|of| components.contains(&of))
}
