//! Which stages a graph has, and what is done in each.

use super::component::Component;
use super::demand::{Demand, Part};
use super::words::fold_into;
use super::{Request, SESSIONS_MAX};
use crate::project::Kind;

/// A session before it has words and edges.
#[derive(Debug, Clone)]
pub(super) struct Draft<'a> {
    pub kind: Kind,
    pub component: Option<Component>,
    /// What it is made for, where that is less than a component: a feature or a named phase.
    pub feature: Option<&'a str>,
    /// How many more features were put together with that one.
    pub more: usize,
    /// The pieces of the text that concern it; none where it is all of the text.
    pub texts: Vec<&'a str>,
}

impl<'a> Draft<'a> {
    fn of_kind(kind: Kind, texts: Vec<&'a str>) -> Self {
        Self {
            kind,
            component: (kind == Kind::Testing).then_some(Component::Testing),
            feature: None,
            more: 0,
            texts,
        }
    }

    fn of_part(part: &Part<'a>) -> Self {
        Self {
            kind: Kind::Implementation,
            component: part.component,
            feature: part.feature,
            more: part.more,
            texts: part.texts.clone(),
        }
    }

    fn named(feature: Option<&'a str>, component: Option<Component>) -> Self {
        Self {
            kind: Kind::Implementation,
            component,
            feature,
            more: 0,
            texts: Vec::new(),
        }
    }
}

/// A phase as a client may ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase<'a> {
    Of(Kind),
    Building(Component),
    Named(&'a str),
}

/// The stages of the graph, none of them empty, at most [`SESSIONS_MAX`] sessions together.
pub(super) fn stages<'a>(request: &Request<'a>, demand: &Demand<'a>) -> Vec<Vec<Draft<'a>>> {
    let asked = phases(request.phases);
    let phases = if asked.is_empty() {
        phases_of(request.requirements, demand)
    } else {
        asked
    };
    // Deployment waits for a stage it can share with testing.
    let mut deployment: Vec<Draft<'a>> = Vec::new();
    let mut stages: Vec<Vec<Draft<'a>>> = Vec::new();
    let mut room = SESSIONS_MAX;
    for (at, phase) in phases.iter().enumerate() {
        // Each phase to come needs room for one session.
        let to_come = phases.len() - at - 1;
        let room_here = room.saturating_sub(to_come.min(room.saturating_sub(1)));
        let mut stage = match *phase {
            Phase::Of(Kind::Implementation) => {
                let (stage, later) = implementations(demand, &phases);
                deployment = later;
                stage
            }
            Phase::Of(Kind::Testing) => {
                let testing = Draft::of_kind(Kind::Testing, demand.testing.clone());
                [testing].into_iter().chain(deployment.drain(..)).collect()
            }
            Phase::Of(kind) => vec![Draft::of_kind(kind, said_of(kind, demand))],
            Phase::Building(component) => building(component, demand),
            Phase::Named(name) => vec![Draft::named(Some(name), None)],
        };
        stage.truncate(room_here);
        room -= stage.len();
        stages.push(stage);
        let tests_follow = phases.get(at + 1) == Some(&Phase::Of(Kind::Testing));
        if !deployment.is_empty() && !tests_follow && room > to_come {
            room -= deployment.len();
            stages.push(std::mem::take(&mut deployment));
        }
    }
    stages.retain(|stage| !stage.is_empty());
    stages
}

fn said_of<'a>(kind: Kind, demand: &Demand<'a>) -> Vec<&'a str> {
    match kind {
        Kind::Analysis => demand.analysis.clone(),
        _ => demand.review.clone(),
    }
}

/// The phases of a text that asks for none by name.
fn phases_of(requirements: &str, demand: &Demand<'_>) -> Vec<Phase<'static>> {
    let asks_for_some = [&demand.testing, &demand.review, &demand.analysis]
        .iter()
        .any(|texts| !texts.is_empty());
    let kinds: Vec<Kind> = if requirements.trim().is_empty() {
        vec![Kind::Analysis]
    } else if !demand.parts.is_empty() || !asks_for_some {
        let tested = !demand.excluded.contains(Component::Testing);
        let kinds = Kind::ALL.into_iter();
        kinds
            .filter(|kind| *kind != Kind::Coordination && (*kind != Kind::Testing || tested))
            .collect()
    } else if !demand.testing.is_empty() {
        vec![Kind::Analysis, Kind::Testing, Kind::Review]
    } else {
        let kinds = [
            (Kind::Analysis, &demand.analysis),
            (Kind::Review, &demand.review),
        ];
        let asked = kinds.into_iter().filter(|(_, texts)| !texts.is_empty());
        asked.map(|(kind, _)| kind).collect()
    };
    kinds.into_iter().map(Phase::Of).collect()
}

fn phases(names: &[String]) -> Vec<Phase<'_>> {
    let mut phases: Vec<Phase<'_>> = Vec::new();
    for name in names {
        if let Some(phase) = phase(name).filter(|phase| !phases.contains(phase)) {
            phases.push(phase);
        }
        if phases.len() == SESSIONS_MAX {
            break;
        }
    }
    phases
}

/// None for a blank name, and for `coordination`: the graph coordinates itself.
fn phase(name: &str) -> Option<Phase<'_>> {
    let name = name.trim();
    let mut folded = String::new();
    fold_into(name, &mut folded);
    Some(match folded.as_str() {
        "" | "coordination" => return None,
        "analysis" | "analyze" | "analyse" | "planning" | "plan" | "design" | "research"
        | "architecture" | "discovery" | "analisis" | "planung" => Phase::Of(Kind::Analysis),
        "implementation" | "implement" | "development" | "build" | "coding" | "code" | "core"
        | "implementierung" | "umsetzung" | "entwicklung" | "implementacion" | "desarrollo"
        | "developpement" => Phase::Of(Kind::Implementation),
        "testing" | "test" | "tests" | "qa" | "verification" | "validation" | "testen"
        | "pruebas" => Phase::Of(Kind::Testing),
        "review" | "code review" | "code-review" | "reviews" | "revision" | "revue" => {
            Phase::Of(Kind::Review)
        }
        "database" | "db" | "datenbank" | "schema" => Phase::Building(Component::Database),
        "api" | "backend" | "api/backend" => Phase::Building(Component::Api),
        "authentication" | "auth" => Phase::Building(Component::Authentication),
        "frontend" | "ui" => Phase::Building(Component::Frontend),
        "deployment" | "deploy" | "ci/cd" => Phase::Building(Component::Deployment),
        _ => Phase::Named(name),
    })
}

/// What the implementation phase builds: all that no phase of its own does. Deployment comes apart,
/// as what is to be done later, unless it is all there is.
fn implementations<'a>(
    demand: &Demand<'a>,
    phases: &[Phase<'_>],
) -> (Vec<Draft<'a>>, Vec<Draft<'a>>) {
    if demand.parts.is_empty() {
        return (vec![Draft::named(None, None)], Vec::new());
    }
    let has_phase = |part: &&Part<'a>| {
        part.component
            .is_some_and(|component| phases.contains(&Phase::Building(component)))
    };
    let parts = demand.parts.iter().filter(|part| !has_phase(part));
    let (deployment, others): (Vec<_>, Vec<_>) = parts
        .map(Draft::of_part)
        .partition(|draft| draft.component == Some(Component::Deployment));
    if others.is_empty() {
        (deployment, Vec::new())
    } else {
        (others, deployment)
    }
}

fn building<'a>(component: Component, demand: &Demand<'a>) -> Vec<Draft<'a>> {
    let parts = demand.parts.iter();
    let found = parts.filter(|part| part.component == Some(component));
    let drafts: Vec<Draft<'a>> = found.map(Draft::of_part).collect();
    if drafts.is_empty() {
        vec![Draft::named(None, Some(component))]
    } else {
        drafts
    }
}
