//! An orchestration to be made: the work, how to divide it, or a plan of the client's own.

use baton_domain::Project;
use baton_domain::decompose::{PlanError, PlanLimits, ProposedGraph};

use super::super::json::{self, Object};
use super::super::{ApiError, Code};
use super::fields::{
    COST_USD_MAX, Fields, OPTION_FIELDS, Options, first_of, kind_field, priority_option,
    project_field,
};
use super::sessions::TIMEOUT_S_MAX;
use crate::orchestrator::{DependencyMode, NewOrchestration, Planner, Strategy};

const PARALLEL_SESSIONS_MAX: u64 = 1_000;
const PHASES_MAX: usize = 100;
/// The most sessions of a plan that a client made.
const PLAN_SESSIONS_MAX: usize = 10_000;
/// The most bytes that the context may come to in all sessions of such a plan together.
const PLAN_CONTEXT_BYTES_MAX: usize = 16 * 1024 * 1024;
const PHASE_BYTES_MAX: usize = 200;
/// The longest gate.
const GATE_BYTES_MAX: usize = 4 * 1024;
pub(super) const STRATEGY_FIELDS: [&str; 6] = [
    "dependencyMode",
    "parallelSessions",
    "phases",
    "timeout",
    "planner",
    "gate",
];

pub(super) fn new_orchestration_of(fields: &Fields<'_>) -> Result<NewOrchestration, ApiError> {
    let project = project_field(fields)?;
    let plan = fields.raw("plan").map(|plan| plan_of(plan, &project));
    let options: Vec<Options<'_>> = fields
        .object("options", OPTION_FIELDS)?
        .into_iter()
        .collect();
    Ok(NewOrchestration {
        kind: kind_field(fields, "sessionType")?,
        plan: plan.transpose()?,
        priority: priority_option(&options)?,
        project_settings: first_of(&options, |options| options.boolean("projectSettings"))?
            .unwrap_or(false),
        max_cost_usd: first_of(&options, |options| {
            options.amount("maxCostUsd", COST_USD_MAX)
        })?,
        project,
        strategy: fields
            .object("strategy", STRATEGY_FIELDS)?
            .map(|strategy| strategy_of(&strategy))
            .transpose()?,
        auto_start: fields.boolean("autoStart")?.unwrap_or(true),
    })
}

/// A client's own division of the work.
fn plan_of(plan: &str, project: &Project) -> Result<ProposedGraph, ApiError> {
    let limits = PlanLimits {
        sessions_max: PLAN_SESSIONS_MAX,
        ..PlanLimits::of(&project.repository)
    };
    let graph = ProposedGraph::from_plan_text(plan, &limits).map_err(|error| match error {
        PlanError::Field { path, rule } => {
            let path = match path.as_str() {
                "plan" => path,
                _ => format!("plan.{path}"),
            };
            ApiError::field(&path, rule)
        }
        PlanError::Cycle { path } => ApiError {
            code: Code::DependencyCycle,
            ..ApiError::field(
                "plan.sessions",
                format!("depend on each other in a circle: {}", path.join(" -> ")),
            )
        },
        error @ PlanError::NotJson(_) => ApiError::field("plan", error),
    })?;
    let context_bytes = project.context.as_ref().map_or(0, |context| context.len());
    if graph.sessions.len() * context_bytes > PLAN_CONTEXT_BYTES_MAX {
        let rule = format!(
            "is given to each of {} sessions: together it must be at most {PLAN_CONTEXT_BYTES_MAX} \
             bytes",
            graph.sessions.len()
        );
        return Err(ApiError::field("project.context", rule));
    }
    Ok(graph)
}

fn strategy_of(strategy: &Object<'_, 6>) -> Result<Strategy, ApiError> {
    let mode = strategy.text("dependencyMode")?;
    let known = |word: &str| {
        DependencyMode::ALL
            .into_iter()
            .find(|mode| mode.name() == word)
    };
    let dependency_mode = mode
        .map(|word| {
            known(&word).ok_or_else(|| {
                let rule = "must be parallel, sequential or wait_for_core";
                strategy.invalid("dependencyMode", rule)
            })
        })
        .transpose()?;
    let phases = strategy.list("phases")?.unwrap_or_default();
    if phases.len() > PHASES_MAX {
        let rule = format!("must hold at most {PHASES_MAX} names");
        return Err(strategy.invalid("phases", rule));
    }
    let phase = |raw: &&serde_json::value::RawValue| match json::text(raw.get()) {
        Ok(text) if text.len() <= PHASE_BYTES_MAX => Ok(text.into_owned()),
        _ => {
            let rule = format!("must hold names of at most {PHASE_BYTES_MAX} bytes");
            Err(strategy.invalid("phases", rule))
        }
    };
    let planner = match strategy.text("planner")?.as_deref() {
        None | Some("words") => Planner::Words,
        Some("claude") => Planner::Claude,
        Some(_) => return Err(strategy.invalid("planner", "must be words or claude")),
    };
    Ok(Strategy {
        dependency_mode,
        planner,
        parallel_sessions: strategy.integer("parallelSessions", 1..=PARALLEL_SESSIONS_MAX)?,
        phases: phases.iter().map(phase).collect::<Result<_, _>>()?,
        // Milliseconds here, as the original's clients send them; a part of a second counts whole.
        timeout_s: strategy
            .integer("timeout", 1..=TIMEOUT_S_MAX * 1_000)?
            .map(|timeout_ms| timeout_ms.div_ceil(1_000)),
        gate: gate_field(strategy)?,
    })
}

fn gate_field(strategy: &Object<'_, 6>) -> Result<Option<String>, ApiError> {
    let Some(gate) = strategy.text("gate")? else {
        return Ok(None);
    };
    if gate.trim().is_empty() || gate.len() > GATE_BYTES_MAX || gate.contains('\0') {
        let rule = format!("must be a shell command of 1 to {GATE_BYTES_MAX} bytes");
        return Err(strategy.invalid("gate", rule));
    }
    Ok(Some(gate.into_owned()))
}
