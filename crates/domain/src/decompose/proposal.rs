//! The second planner: Claude draws the graph, and this is what keeps it within the rules.
//!
//! A session is asked with [`plan_prompt`] and held to [`plan_schema`] by the CLI. What it answers
//! is still only a text of somebody who read a repository that anybody may have written:
//! [`ProposedGraph::from_plan_json`] lets through what the first planner could have proposed too.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::wording::{TITLE_LETTERS_MAX, fenced, one_line};
use super::{DependencyMode, ProposedGraph, ProposedSession, Request, SESSIONS_MAX};
use crate::dependencies::circle;
use crate::project::{Kind, Repository};

/// The most bytes of a session's key.
const KEY_BYTES_MAX: usize = 64;
/// The most bytes of a session's title.
const TITLE_BYTES_MAX: usize = 200;
/// The most bytes of a plan's summary.
const SUMMARY_BYTES_MAX: usize = 4 * 1024;
/// The most bytes of a value that an error repeats.
const SHOWN_LETTERS_MAX: usize = 64;
/// The kinds a plan may ask for. A coordination would plan again.
const KINDS: [Kind; 4] = [
    Kind::Analysis,
    Kind::Implementation,
    Kind::Testing,
    Kind::Review,
];

/// What a plan must keep to.
#[derive(Debug, Clone, Copy)]
pub struct PlanLimits<'a> {
    /// The only repository it may name.
    pub repository: &'a Repository,
    /// The most sessions.
    pub sessions_max: usize,
    /// The most bytes of one session's requirements.
    pub requirements_bytes_max: usize,
    /// The most bytes of all requirements together.
    pub total_bytes_max: usize,
}

impl<'a> PlanLimits<'a> {
    /// [`SESSIONS_MAX`] sessions with 64 KiB each, 1 MiB together.
    #[must_use]
    pub fn of(repository: &'a Repository) -> Self {
        Self {
            repository,
            sessions_max: SESSIONS_MAX,
            requirements_bytes_max: 64 * 1024,
            total_bytes_max: 1024 * 1024,
        }
    }
}

/// Why a plan was not taken. The text names the path in the plan and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not JSON, or JSON that nests too deep.
    #[error("the plan is not JSON: {0}")]
    NotJson(String),
    /// A value breaks a rule.
    #[error("{path} {rule}")]
    Field {
        /// Like `sessions[2].dependencies[0]`; `plan` for the whole.
        path: String,
        /// Like `must be a text`.
        rule: String,
    },
    /// Sessions wait for each other.
    #[error("sessions depend on each other in a circle: {}", path.join(" -> "))]
    Cycle {
        /// Keys, the first being the last.
        path: Vec<String>,
    },
}

impl PlanError {
    fn field(path: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::Field {
            path: path.into(),
            rule: rule.into(),
        }
    }
}

/// A session of a plan as it was read.
struct Planned<'a> {
    key: &'a str,
    kind: Kind,
    title: String,
    requirements: &'a str,
    /// Path and key of each.
    dependencies: Vec<(String, &'a str)>,
}

impl ProposedGraph {
    /// The graph that a plan's text draws; see [`ProposedGraph::from_plan_json`].
    ///
    /// # Errors
    /// [`PlanError`]: the first rule that is broken.
    pub fn from_plan_text(plan: &str, limits: &PlanLimits<'_>) -> Result<Self, PlanError> {
        let plan =
            serde_json::from_str(plan).map_err(|error| PlanError::NotJson(error.to_string()))?;
        Self::from_plan_json(&plan, limits)
    }

    /// The graph that a plan of [`plan_schema`]'s shape draws. Its sessions are ordered anew, so
    /// that each comes after those it waits for; otherwise they stay in the plan's order. The mode
    /// is [`DependencyMode::WaitForCore`], for want of a better word: the plan says itself what
    /// waits for what. Fields that are not known are ignored, but for `repository`, which must be
    /// the given one.
    ///
    /// # Errors
    /// [`PlanError`]: the first rule that is broken.
    pub fn from_plan_json(plan: &Value, limits: &PlanLimits<'_>) -> Result<Self, PlanError> {
        let fields = object(plan, "plan")?;
        check_repository(fields, "", limits)?;
        let sessions = match fields.get("sessions") {
            Some(Value::Array(sessions)) => sessions,
            _ => return Err(PlanError::field("sessions", "must be a list")),
        };
        if sessions.is_empty() || sessions.len() > limits.sessions_max {
            let rule = format!(
                "must hold 1 to {} sessions, not {}",
                limits.sessions_max,
                sessions.len()
            );
            return Err(PlanError::field("sessions", rule));
        }
        let planned = sessions
            .iter()
            .enumerate()
            .map(|(at, session)| planned(session, &format!("sessions[{at}]"), limits))
            .collect::<Result<Vec<_>, _>>()?;
        let total: usize = planned
            .iter()
            .map(|session| session.requirements.len())
            .sum();
        if total > limits.total_bytes_max {
            let rule = format!(
                "must hold at most {} bytes of requirements together",
                limits.total_bytes_max
            );
            return Err(PlanError::field("sessions", rule));
        }
        let edges = edges(&planned)?;
        let summary = match fields.get("summary") {
            None | Some(Value::Null) => format!("Claude planned {} sessions.", planned.len()),
            Some(summary) => text(summary, "summary", SUMMARY_BYTES_MAX)?
                .trim()
                .to_owned(),
        };
        Ok(Self {
            mode: DependencyMode::WaitForCore,
            sessions: in_order(planned, &edges),
            summary,
        })
    }
}

fn planned<'a>(
    session: &'a Value,
    path: &str,
    limits: &PlanLimits<'_>,
) -> Result<Planned<'a>, PlanError> {
    let fields = object(session, path)?;
    check_repository(fields, &format!("{path}."), limits)?;
    let at = |name: &str| format!("{path}.{name}");
    let read = |name: &str, bytes_max| {
        text(
            fields.get(name).unwrap_or(&Value::Null),
            &at(name),
            bytes_max,
        )
    };
    let key = read("key", KEY_BYTES_MAX)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !key.bytes().all(fits) {
        return Err(PlanError::field(
            at("key"),
            "must be of letters, digits, -, _ and .",
        ));
    }
    let kind = read("type", KEY_BYTES_MAX)?;
    let kind = KINDS.into_iter().find(|known| known.name() == kind);
    let kind = kind.ok_or_else(|| {
        PlanError::field(
            at("type"),
            "must be analysis, implementation, testing or review",
        )
    })?;
    let title = read("title", TITLE_BYTES_MAX)?;
    let title = Some(one_line(title, TITLE_LETTERS_MAX)).filter(|title| !title.is_empty());
    let requirements = read("requirements", limits.requirements_bytes_max)?;
    let dependencies = match fields.get("dependencies") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) if list.len() <= limits.sessions_max => list.as_slice(),
        Some(_) => {
            let rule = format!("must be a list of at most {} keys", limits.sessions_max);
            return Err(PlanError::field(at("dependencies"), rule));
        }
    };
    let dependencies = dependencies.iter().enumerate().map(|(index, key)| {
        let path = format!("{path}.dependencies[{index}]");
        let key = text(key, &path, KEY_BYTES_MAX)?;
        Ok((path, key))
    });
    Ok(Planned {
        key,
        kind,
        title: title.unwrap_or_else(|| key.to_owned()),
        requirements,
        dependencies: dependencies.collect::<Result<_, PlanError>>()?,
    })
}

/// A text that is not blank.
fn text<'a>(value: &'a Value, path: &str, bytes_max: usize) -> Result<&'a str, PlanError> {
    match value.as_str() {
        Some(text) if !text.trim().is_empty() && text.len() <= bytes_max => Ok(text),
        _ => {
            let rule = format!("must be a text of 1 to {bytes_max} bytes that is not blank");
            Err(PlanError::field(path, rule))
        }
    }
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, PlanError> {
    value
        .as_object()
        .ok_or_else(|| PlanError::field(path, "must be an object"))
}

fn check_repository(
    fields: &Map<String, Value>,
    before: &str,
    limits: &PlanLimits<'_>,
) -> Result<(), PlanError> {
    match fields.get("repository") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(name)) if name == limits.repository.as_str() => Ok(()),
        Some(_) => {
            let rule = format!("must be {} or left out", limits.repository);
            Err(PlanError::field(format!("{before}repository"), rule))
        }
    }
}

/// For each session the places of those it waits for, each once.
fn edges(planned: &[Planned<'_>]) -> Result<Vec<Vec<usize>>, PlanError> {
    let mut places = HashMap::new();
    for (at, session) in planned.iter().enumerate() {
        if let Some(before) = places.insert(session.key, at) {
            let rule = format!("must be another key than sessions[{before}].key");
            return Err(PlanError::field(format!("sessions[{at}].key"), rule));
        }
    }
    let mut edges = Vec::with_capacity(planned.len());
    for session in planned {
        let mut of_session = Vec::new();
        for (path, key) in &session.dependencies {
            let place = places.get(key).ok_or_else(|| {
                let rule = format!(
                    "must be the key of a session of this plan, not {:?}",
                    one_line(key, SHOWN_LETTERS_MAX)
                );
                PlanError::field(path, rule)
            })?;
            of_session.push(*place);
        }
        of_session.sort_unstable();
        of_session.dedup();
        edges.push(of_session);
    }
    match circle(&edges) {
        None => Ok(edges),
        Some(path) => Err(PlanError::Cycle {
            path: path
                .into_iter()
                .map(|at| planned[at].key.to_owned())
                .collect(),
        }),
    }
}

/// Each session after those it waits for: again and again the first one whose turn has come.
/// Quadratic in at most [`PlanLimits::sessions_max`].
fn in_order(planned: Vec<Planned<'_>>, edges: &[Vec<usize>]) -> Vec<ProposedSession> {
    let mut new_places: Vec<Option<usize>> = vec![None; planned.len()];
    let mut sessions = Vec::with_capacity(planned.len());
    while let Some(next) = (0..planned.len()).find(|at| {
        new_places[*at].is_none() && edges[*at].iter().all(|of| new_places[*of].is_some())
    }) {
        new_places[next] = Some(sessions.len());
        let session = &planned[next];
        let mut dependencies: Vec<usize> = edges[next]
            .iter()
            .filter_map(|of| new_places[*of])
            .collect();
        dependencies.sort_unstable();
        sessions.push(ProposedSession {
            kind: session.kind,
            component: None,
            title: session.title.clone(),
            requirements: session.requirements.to_owned(),
            dependencies,
        });
    }
    sessions
}

/// The JSON Schema of a plan, for the CLI's `--json-schema`. What it cannot say, such as "no
/// circles", is in [`plan_prompt`] and checked by [`ProposedGraph::from_plan_json`].
#[must_use]
pub fn plan_schema() -> Value {
    let kinds = KINDS.map(Kind::name);
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["summary", "sessions"],
        "properties": {
            "summary": { "type": "string", "minLength": 1 },
            "sessions": {
                "type": "array",
                "minItems": 1,
                "maxItems": SESSIONS_MAX,
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["key", "type", "title", "requirements", "dependencies"],
                    "properties": {
                        "key": { "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" },
                        "type": { "enum": kinds },
                        "title": { "type": "string", "minLength": 1, "maxLength": TITLE_LETTERS_MAX },
                        "requirements": { "type": "string", "minLength": 1 },
                        "dependencies": { "type": "array", "items": { "type": "string" } },
                    },
                },
            },
        },
    })
}

/// What the planning session is asked: to answer with a plan for `request`.
#[must_use]
pub fn plan_prompt(request: &Request<'_>) -> String {
    let mut prompt = format!(
        "Read the project, then divide the request below into sessions and answer with the plan. \
         Change nothing.\n\n\
         - Each session is one Claude Code process with a copy of the repository. It starts from \
         the merged work of the sessions it depends on, and knows nothing of this conversation: \
         its requirements must say all it needs, with the files and interfaces you found.\n\
         - Sessions that do not depend on each other run at the same time. Give them different \
         files, and agree on interfaces in their requirements.\n\
         - type: analysis reads, implementation writes code, testing writes and runs tests, review \
         reads and judges.\n\
         - dependencies are keys of this plan, without a circle. At most {SESSIONS_MAX} sessions; \
         as few as do the work well.\n\
         - All work is in this one repository.\n\
         - summary says in a few sentences how you divided the work, and why.\n"
    );
    if let Some(mode) = request.mode {
        let rule = match mode {
            DependencyMode::Parallel => "let as many sessions as possible run at once",
            DependencyMode::Sequential => "make one chain, each session after the one before",
            DependencyMode::WaitForCore => {
                "first what others build on, then implementations together, then testing and review"
            }
        };
        prompt.push_str(&format!("- Asked for by the client: {rule}.\n"));
    }
    if let Some(sessions) = request.parallel_sessions {
        prompt.push_str(&format!("- At most {sessions} sessions run at once.\n"));
    }
    if !request.phases.is_empty() {
        let names: Vec<String> = request
            .phases
            .iter()
            .take(SESSIONS_MAX)
            .map(|name| one_line(name, SHOWN_LETTERS_MAX))
            .collect();
        prompt.push_str(&format!(
            "- Phases the client wants, in this order: {}.\n",
            names.join(", ")
        ));
    }
    prompt.push_str(&format!(
        "\n<request>\n{}\n</request>",
        fenced(request.requirements.trim())
    ));
    prompt
}

#[cfg(test)]
mod tests;
