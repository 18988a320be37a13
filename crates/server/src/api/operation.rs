//! Requests into operations: what may be asked, and the rules each field must meet.

use std::str::FromStr;

use baton_domain::decompose::{PlanError, PlanLimits, ProposedGraph};
use baton_domain::schedule::PRIORITY_MAX;
use baton_domain::steering::MESSAGE_BYTES_MAX;
use baton_domain::{Branch, Kind, OrchestrationId, Project, Repository, SessionId, Status};

use super::json::{self, Object};
use super::{ApiError, Code};
use crate::orchestrator::{
    DependencyMode, NewMessage, NewOrchestration, NewSession, OutputCursor, Planner, Strategy,
};
use crate::store::{PAGE_SESSIONS_MAX, SessionQuery};
use axum::http::StatusCode;

/// The most dependencies of one session.
pub const DEPENDENCIES_MAX: usize = 1_000;
/// The longest a session may be allowed to run, in seconds: a week.
pub const TIMEOUT_S_MAX: u64 = 7 * 86_400;
/// How many log lines an answer holds when nothing else is asked for.
pub const OUTPUT_LINES_DEFAULT: usize = 1_000;
/// The most log lines in one answer.
pub const OUTPUT_LINES_MAX: usize = 10_000;

/// What every number of an event fits in, and the database's integers hold.
const NUMBER_MAX: u64 = i64::MAX as u64;
const CURSOR_BYTES_MAX: usize = 256;
const PARALLEL_SESSIONS_MAX: u64 = 1_000;
/// The largest budget, in US dollars.
const COST_USD_MAX: f64 = 1_000_000.0;
const PHASES_MAX: usize = 100;
/// The most sessions of a plan that a client made.
const PLAN_SESSIONS_MAX: usize = 10_000;
/// The most bytes that the context may come to in all sessions of such a plan together.
const PLAN_CONTEXT_BYTES_MAX: usize = 16 * 1024 * 1024;
const PHASE_BYTES_MAX: usize = 200;
/// The longest gate.
const GATE_BYTES_MAX: usize = 4 * 1024;
const TYPE_SHOWN_CHARS_MAX: usize = 64;

/// All types of [`Operation`], as the wire names them.
const TYPES: &str = "session.create, session.start, session.get, session.output, session.list, \
                     session.cancel, session.retry, session.message, orchestrate, \
                     orchestration.get, orchestration.start, \
                     orchestration.cancel";

/// The field that may hold everything else, and all fields an operation may have.
const FIELDS: [&str; 15] = [
    "data",
    "type",
    "sessionId",
    "session",
    "options",
    "orchestrationId",
    "status",
    "cursor",
    "limit",
    "project",
    "sessionType",
    "strategy",
    "autoStart",
    "text",
    "plan",
];
const SESSION_FIELDS: [&str; 7] = [
    "id",
    "type",
    "sessionType",
    "project",
    "dependencies",
    "options",
    "orchestrationId",
];
const OPTION_FIELDS: [&str; 5] = [
    "autoStart",
    "timeout",
    "projectSettings",
    "priority",
    "maxCostUsd",
];
const PROJECT_FIELDS: [&str; 4] = ["repository", "branch", "requirements", "context"];
const STRATEGY_FIELDS: [&str; 6] = [
    "dependencyMode",
    "parallelSessions",
    "phases",
    "timeout",
    "planner",
    "gate",
];

/// Something a client asks for.
#[derive(Debug, Clone)]
pub enum Operation {
    /// `session.create`
    SessionCreate(Box<NewSession>),
    /// `session.start`
    SessionStart(SessionId),
    /// `session.get`
    SessionGet(SessionId),
    /// `session.output`
    SessionOutput {
        /// Of which session.
        id: SessionId,
        /// From where.
        cursor: Option<OutputCursor>,
        /// How many lines at most.
        lines_max: usize,
    },
    /// `session.list`
    SessionList(ListQuery),
    /// `session.cancel`
    SessionCancel(SessionId),
    /// `session.retry`
    SessionRetry(SessionId),
    /// `session.message`
    SessionMessage(SessionId, NewMessage),
    /// `orchestrate`
    Orchestrate(Box<NewOrchestration>),
    /// `orchestration.get`
    OrchestrationGet(OrchestrationId),
    /// `orchestration.start`, with what it may cost from now on, in US dollars
    OrchestrationStart(OrchestrationId, Option<f64>),
    /// `orchestration.cancel`
    OrchestrationCancel(OrchestrationId),
}

/// Which sessions to list. Equal queries get equal answers as long as no session changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListQuery {
    /// Only those of one orchestration.
    pub orchestration: Option<OrchestrationId>,
    /// Only those with one of these statuses; empty means all.
    pub statuses: Vec<Status>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
    /// How many at most.
    pub limit: usize,
}

impl ListQuery {
    /// The same question to the store, for a part of the sessions.
    pub(super) fn part(&self, cursor: Option<String>, limit: usize) -> SessionQuery {
        SessionQuery {
            orchestration: self.orchestration,
            statuses: self.statuses.clone(),
            newest_first: false,
            cursor,
            limit,
        }
    }
}

/// Reads the body of a webhook: `{"data":{"type":…,…}}`, or the same object unwrapped. Where
/// `data` is there, it holds everything. Paths in errors are those of the unwrapped form.
///
/// # Errors
/// [`Code::InvalidJson`], [`Code::InvalidRequest`], [`Code::UnknownType`],
/// [`Code::InvalidField`], [`Code::InvalidDependency`].
pub fn operation(body: &[u8]) -> Result<Operation, ApiError> {
    let outer = Object::read(json::checked(body)?, "", FIELDS)?;
    match outer.raw("data") {
        None => unwrapped(&outer),
        Some(data) if data.starts_with('{') => unwrapped(&Object::read(data, "", FIELDS)?),
        Some(_) => Err(ApiError::request(
            "`data` must be an object with the operation's fields; it must not be turned into a \
             string or a list",
        )),
    }
}

fn unwrapped(fields: &Object<'_, 15>) -> Result<Operation, ApiError> {
    let Some(raw) = fields.raw("type") else {
        return Err(ApiError::request(format!(
            "`type` is missing; it is one of {TYPES}"
        )));
    };
    let kind = json::text(raw).map_err(|rule| ApiError::request(format!("`type` {rule}")))?;
    Ok(match kind.as_ref() {
        "session.create" => {
            let session = fields.object("session", SESSION_FIELDS)?;
            let session = fields.required("session", session)?;
            let beside = fields.object("options", OPTION_FIELDS)?;
            Operation::SessionCreate(Box::new(new_session_of(&session, beside)?))
        }
        "session.start" => Operation::SessionStart(id_field(fields, "sessionId")?),
        "session.get" => Operation::SessionGet(id_field(fields, "sessionId")?),
        "session.cancel" => Operation::SessionCancel(id_field(fields, "sessionId")?),
        "session.retry" => Operation::SessionRetry(id_field(fields, "sessionId")?),
        "session.message" => {
            let options = fields.object("options", OPTION_FIELDS)?;
            Operation::SessionMessage(
                id_field(fields, "sessionId")?,
                new_message_of(fields, options)?,
            )
        }
        "session.output" => Operation::SessionOutput {
            id: id_field(fields, "sessionId")?,
            cursor: output_cursor_field(fields)?,
            lines_max: limit_field(fields, OUTPUT_LINES_MAX)?.unwrap_or(OUTPUT_LINES_DEFAULT),
        },
        "session.list" => Operation::SessionList(ListQuery {
            orchestration: optional_id_field(fields, "orchestrationId")?,
            statuses: status_field(fields)?,
            cursor: cursor_field(fields)?,
            limit: limit_field(fields, PAGE_SESSIONS_MAX)?.unwrap_or(PAGE_SESSIONS_MAX),
        }),
        "orchestrate" => Operation::Orchestrate(Box::new(new_orchestration_of(fields)?)),
        "orchestration.get" => Operation::OrchestrationGet(id_field(fields, "orchestrationId")?),
        "orchestration.start" => {
            let id = id_field(fields, "orchestrationId")?;
            Operation::OrchestrationStart(id, budget_option(fields)?)
        }
        "orchestration.cancel" => {
            Operation::OrchestrationCancel(id_field(fields, "orchestrationId")?)
        }
        unknown => return Err(unknown_type(unknown)),
    })
}

fn unknown_type(word: &str) -> ApiError {
    let shown: String = word.chars().take(TYPE_SHOWN_CHARS_MAX).collect();
    ApiError::new(
        StatusCode::BAD_REQUEST,
        Code::UnknownType,
        format!("Unknown type {shown:?}; known are {TYPES}"),
    )
}

/// Reads the body of `POST /api/v1/sessions`: what `session` holds in the webhook.
///
/// # Errors
/// As [`operation`].
pub fn new_session(body: &[u8]) -> Result<NewSession, ApiError> {
    new_session_of(
        &Object::read(json::checked(body)?, "", SESSION_FIELDS)?,
        None,
    )
}

/// Reads the body of `POST /api/v1/orchestrations`: the webhook's `orchestrate` without `type`.
///
/// # Errors
/// As [`operation`].
pub fn new_orchestration(body: &[u8]) -> Result<NewOrchestration, ApiError> {
    new_orchestration_of(&Object::read(json::checked(body)?, "", FIELDS)?)
}

/// Reads the body of `POST /api/v1/sessions/{id}/message`: the webhook's `session.message` without
/// `type` and `sessionId`.
///
/// # Errors
/// As [`operation`].
pub fn new_message(body: &[u8]) -> Result<NewMessage, ApiError> {
    let fields = Object::read(json::checked(body)?, "", FIELDS)?;
    let options = fields.object("options", OPTION_FIELDS)?;
    new_message_of(&fields, options)
}

/// Reads the body of `POST /api/v1/orchestrations/{id}/start`, which may be empty: the webhook's
/// `orchestration.start` without `type` and `orchestrationId`. Gives what it may cost from now on.
///
/// # Errors
/// As [`operation`].
pub fn orchestration_start(body: &[u8]) -> Result<Option<f64>, ApiError> {
    match body.is_empty() {
        true => Ok(None),
        false => budget_option(&Object::read(json::checked(body)?, "", FIELDS)?),
    }
}

/// Reads the query of `GET /api/v1/sessions`.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn list_query(
    orchestration_id: Option<&str>,
    status: Option<&str>,
    cursor: Option<String>,
    limit: Option<&str>,
) -> Result<ListQuery, ApiError> {
    let statuses = status.map(|status| statuses_of(status.split(','), "status"));
    Ok(ListQuery {
        orchestration: orchestration_id
            .map(|id| parsed(id, "orchestrationId"))
            .transpose()?,
        statuses: statuses.transpose()?.unwrap_or_default(),
        cursor: cursor.map(short_cursor).transpose()?,
        limit: limit_param(limit, PAGE_SESSIONS_MAX)?.unwrap_or(PAGE_SESSIONS_MAX),
    })
}

/// Reads the query of `GET /api/v1/sessions/{id}/output`: where to read on, and how many lines.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn output_query(
    cursor: Option<&str>,
    limit: Option<&str>,
) -> Result<(Option<OutputCursor>, usize), ApiError> {
    let cursor = cursor.map(output_cursor).transpose()?;
    let limit = limit_param(limit, OUTPUT_LINES_MAX)?;
    Ok((cursor, limit.unwrap_or(OUTPUT_LINES_DEFAULT)))
}

/// Reads a parameter that is a number.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn number_param(name: &str, value: Option<&str>) -> Result<Option<u64>, ApiError> {
    let number = value.map(|value| {
        json::integer(value, 0..=NUMBER_MAX).map_err(|rule| ApiError::field(name, rule))
    });
    number.transpose()
}

/// Reads a parameter that is `true` or `false`.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn flag_param(name: &str, value: Option<&str>) -> Result<Option<bool>, ApiError> {
    match value {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(ApiError::field(name, "must be true or false")),
    }
}

/// Reads a session's id in a path.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn session_id(text: &str) -> Result<SessionId, ApiError> {
    parsed(text, "id")
}

/// Reads an orchestration's id in a path.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn orchestration_id(text: &str) -> Result<OrchestrationId, ApiError> {
    parsed(text, "id")
}

fn new_session_of(
    session: &Object<'_, 7>,
    beside: Option<Object<'_, 5>>,
) -> Result<NewSession, ApiError> {
    let inside = session.object("options", OPTION_FIELDS)?;
    // What stands in the session itself counts before what stands beside it.
    let places: Vec<Object<'_, 5>> = inside.into_iter().chain(beside).collect();
    let flag = |name| first_of(&places, |options| options.boolean(name));
    let timeout_s = first_of(&places, |options| {
        options.integer("timeout", 1..=TIMEOUT_S_MAX)
    })?;
    let kind = match kind_field(session, "type")? {
        Some(kind) => Some(kind),
        None => kind_field(session, "sessionType")?,
    };
    Ok(NewSession {
        id: optional_id_field(session, "id")?,
        kind: kind.unwrap_or(Kind::Implementation),
        project: project_field(session)?,
        dependencies: dependencies_field(session)?,
        auto_start: flag("autoStart")?.unwrap_or(false),
        timeout_s,
        project_settings: flag("projectSettings")?.unwrap_or(false),
        orchestration_id: optional_id_field(session, "orchestrationId")?,
        title: None,
        planning: None,
        priority: priority_option(&places)?,
        max_cost_usd: first_of(&places, |options| {
            options.amount("maxCostUsd", COST_USD_MAX)
        })?,
    })
}

fn new_message_of(
    fields: &Object<'_, 15>,
    options: Option<Object<'_, 5>>,
) -> Result<NewMessage, ApiError> {
    let text = fields.text("text")?;
    let text = fields.required("text", text)?;
    if text.trim().is_empty() || text.len() > MESSAGE_BYTES_MAX {
        let rule = format!("must hold 1 to {MESSAGE_BYTES_MAX} bytes of text");
        return Err(fields.invalid("text", rule));
    }
    let max_cost_usd = options.map(|options| options.amount("maxCostUsd", COST_USD_MAX));
    Ok(NewMessage {
        text: text.into_owned(),
        max_cost_usd: max_cost_usd.transpose()?.flatten(),
    })
}

fn budget_option(fields: &Object<'_, 15>) -> Result<Option<f64>, ApiError> {
    match fields.object("options", OPTION_FIELDS)? {
        Some(options) => options.amount("maxCostUsd", COST_USD_MAX),
        None => Ok(None),
    }
}

/// What the first of several objects holds that holds anything; all are checked.
fn first_of<T>(
    places: &[Object<'_, 5>],
    read: impl Fn(&Object<'_, 5>) -> Result<Option<T>, ApiError>,
) -> Result<Option<T>, ApiError> {
    let mut first = None;
    for place in places {
        let value = read(place)?;
        first = first.or(value);
    }
    Ok(first)
}

fn new_orchestration_of(fields: &Object<'_, 15>) -> Result<NewOrchestration, ApiError> {
    let project = project_field(fields)?;
    let plan = fields.raw("plan").map(|plan| plan_of(plan, &project));
    let options: Vec<Object<'_, 5>> = fields
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

fn priority_option(places: &[Object<'_, 5>]) -> Result<i32, ApiError> {
    let priority = first_of(places, |options| {
        options.signed("priority", -PRIORITY_MAX..=PRIORITY_MAX)
    });
    Ok(priority?.unwrap_or(0))
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

fn project_field<const N: usize>(fields: &Object<'_, N>) -> Result<Project, ApiError> {
    let project = fields.object("project", PROJECT_FIELDS)?;
    let project = fields.required("project", project)?;
    let repository = project.text("repository")?;
    let repository = project.required("repository", repository)?;
    let requirements = project.text("requirements")?;
    let requirements = project.required("requirements", requirements)?;
    if requirements.trim().is_empty() {
        return Err(project.invalid("requirements", "must say what is to be done"));
    }
    let branch = project.text("branch")?.map(|branch| {
        let branch = Branch::from_str(&branch);
        branch.map_err(|rule| project.invalid("branch", rule))
    });
    let context = project.text("context")?;
    Ok(Project {
        repository: Repository::from_str(&repository)
            .map_err(|rule| project.invalid("repository", rule))?,
        branch: branch.transpose()?,
        requirements: requirements.into(),
        context: context.map(Into::into),
    })
}

/// Dependencies without what clients send for "none": null, the empty string and the word.
fn dependencies_field(session: &Object<'_, 7>) -> Result<Vec<SessionId>, ApiError> {
    let entries = session.list("dependencies")?.unwrap_or_default();
    if entries.len() > DEPENDENCIES_MAX {
        let rule = format!("must hold at most {DEPENDENCIES_MAX} ids");
        return Err(session.invalid("dependencies", rule));
    }
    let mut dependencies = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        if entry.get() == "null" {
            continue;
        }
        let text = json::text(entry.get());
        if matches!(text.as_deref(), Ok("" | "none")) {
            continue;
        }
        let id = text.ok().and_then(|text| SessionId::from_str(&text).ok());
        dependencies.push(id.ok_or_else(|| {
            let path = session.path("dependencies");
            ApiError {
                code: Code::InvalidDependency,
                ..ApiError::field(
                    &format!("{path}[{at}]"),
                    "must be the id of a session, a UUID",
                )
            }
        })?);
    }
    Ok(dependencies)
}

fn kind_field<const N: usize>(
    fields: &Object<'_, N>,
    name: &str,
) -> Result<Option<Kind>, ApiError> {
    let kind = fields.text(name)?.map(|word| {
        let kind = Kind::from_str(&word);
        kind.map_err(|rule| fields.invalid(name, format!("is an {rule}")))
    });
    kind.transpose()
}

fn optional_id_field<T: FromStr, const N: usize>(
    fields: &Object<'_, N>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    let id = fields.text(name)?;
    id.map(|id| parsed(&id, &fields.path(name))).transpose()
}

fn id_field<T: FromStr, const N: usize>(fields: &Object<'_, N>, name: &str) -> Result<T, ApiError> {
    let id = optional_id_field(fields, name)?;
    fields.required(name, id)
}

fn parsed<T: FromStr>(text: &str, path: &str) -> Result<T, ApiError> {
    T::from_str(text).map_err(|_| {
        ApiError::field(
            path,
            "must be a UUID of the form 8-4-4-4-12 hexadecimal digits",
        )
    })
}

/// One status, or a list of them.
fn status_field(fields: &Object<'_, 15>) -> Result<Vec<Status>, ApiError> {
    let Some(raw) = fields.raw("status") else {
        return Ok(Vec::new());
    };
    if !raw.starts_with('[') {
        let text = fields.text("status")?.unwrap_or_default();
        return statuses_of(text.split(','), "status");
    }
    let entries = fields.list("status")?.unwrap_or_default();
    let words: Result<Vec<_>, _> = entries
        .iter()
        .map(|entry| json::text(entry.get()))
        .collect();
    let words = words.map_err(|rule| fields.invalid("status", rule))?;
    statuses_of(words.iter().map(AsRef::as_ref), "status")
}

/// Known statuses, each once, in one order: so that equal questions look equal.
fn statuses_of<'a>(
    words: impl Iterator<Item = &'a str>,
    path: &str,
) -> Result<Vec<Status>, ApiError> {
    let mut wanted = [false; Status::ALL.len()];
    for word in words {
        let known = Status::ALL
            .iter()
            .position(|status| status.name() == word.trim());
        let known = known.ok_or_else(|| {
            let names = Status::ALL.map(Status::name).join(", ");
            ApiError::field(path, format!("must be one of {names}"))
        })?;
        wanted[known] = true;
    }
    let all = Status::ALL.into_iter().zip(wanted);
    Ok(all
        .filter_map(|(status, wanted)| wanted.then_some(status))
        .collect())
}

fn limit_field(fields: &Object<'_, 15>, max: usize) -> Result<Option<usize>, ApiError> {
    let limit = fields.integer("limit", 1..=max as u64)?;
    Ok(limit.and_then(|limit| usize::try_from(limit).ok()))
}

fn limit_param(limit: Option<&str>, max: usize) -> Result<Option<usize>, ApiError> {
    let limit = limit.map(|limit| {
        json::integer(limit, 1..=max as u64).map_err(|rule| ApiError::field("limit", rule))
    });
    Ok(limit
        .transpose()?
        .and_then(|limit| usize::try_from(limit).ok()))
}

fn cursor_field(fields: &Object<'_, 15>) -> Result<Option<String>, ApiError> {
    let cursor = fields.text("cursor")?;
    cursor
        .map(|cursor| short_cursor(cursor.into_owned()))
        .transpose()
}

fn short_cursor(cursor: String) -> Result<String, ApiError> {
    match cursor.len() <= CURSOR_BYTES_MAX {
        true => Ok(cursor),
        false => Err(ApiError::field(
            "cursor",
            "must be the nextCursor of an answer to the same query",
        )),
    }
}

/// The number of an event, alone or in a string, where needed with a number of lines: `17`,
/// `"17"`, `"17.2"`.
fn output_cursor_field(fields: &Object<'_, 15>) -> Result<Option<OutputCursor>, ApiError> {
    match fields.raw("cursor") {
        None => Ok(None),
        Some(raw) if raw.starts_with('"') => {
            let text = fields.text("cursor")?.unwrap_or_default();
            output_cursor(&text).map(Some)
        }
        Some(raw) => output_cursor(raw).map(Some),
    }
}

fn output_cursor(text: &str) -> Result<OutputCursor, ApiError> {
    let (seq, lines) = text.split_once('.').unwrap_or((text, "0"));
    let number = |digits| json::integer(digits, 0..=NUMBER_MAX);
    match (number(seq), number(lines).map(usize::try_from)) {
        (Ok(seq), Ok(Ok(lines))) => Ok(OutputCursor { seq, lines }),
        _ => Err(ApiError::field(
            "cursor",
            "must be the nextCursor of an answer, or the number of an event",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::strategy::Strategy;
    use serde_json::{Value, json};

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            Just(json!("o/r")),
            Just(json!("none")),
            Just(json!("00000000-0000-7000-8000-000000000001")),
        ];
        let names = FIELDS
            .into_iter()
            .chain(SESSION_FIELDS)
            .chain(OPTION_FIELDS)
            .chain(PROJECT_FIELDS)
            .chain(STRATEGY_FIELDS)
            .map(str::to_owned)
            .collect::<Vec<_>>();
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(prop::sample::select(names.clone()), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn types() -> impl Strategy<Value = String> {
        prop::sample::select(TYPES.split(", ").map(str::to_owned).collect::<Vec<_>>())
    }

    proptest! {
        /// Whatever the fields hold, the answer is an operation or a 400, the same in both forms.
        #[test]
        fn a_body_is_an_operation_or_the_clients_mistake(
            kind in types(),
            fields in values(),
            session in values(),
        ) {
            let mut body = json!({ "session": session });
            if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
                body.extend(fields);
                body.remove("data");
            }
            body["type"] = json!(kind);
            let bare = operation(body.to_string().as_bytes());
            let wrapped = operation(json!({ "data": body }).to_string().as_bytes());
            if let Err(error) = &bare {
                prop_assert_eq!(error.status, StatusCode::BAD_REQUEST);
            }
            let shown = |read: &Result<Operation, ApiError>| match read {
                Ok(operation) => format!("{operation:?}"),
                Err(error) => error.message.clone(),
            };
            prop_assert_eq!(shown(&bare), shown(&wrapped));
        }
    }
}
