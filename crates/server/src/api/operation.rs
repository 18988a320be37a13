//! Requests into operations: what may be asked.

mod fields;
mod orchestrations;
mod sessions;

use axum::http::StatusCode;
use baton_domain::{OrchestrationId, SessionId, Status};

pub use fields::{DEPENDENCIES_MAX, flag_param, number_param};
use fields::{
    Fields, OPTION_FIELDS, budget_option, cursor_field, id_field, limit_field, limit_param,
    optional_id_field, output_cursor, output_cursor_field, parsed, short_cursor, status_field,
    statuses_of,
};
use orchestrations::new_orchestration_of;
pub use sessions::TIMEOUT_S_MAX;
use sessions::{SESSION_FIELDS, new_message_of, new_session_of};

use super::json::{self, Object};
use super::{ApiError, Code};
use crate::orchestrator::{NewMessage, NewOrchestration, NewSession, OutputCursor};
use crate::store::{PAGE_SESSIONS_MAX, SessionQuery};

/// How many log lines an answer holds when nothing else is asked for.
pub const OUTPUT_LINES_DEFAULT: usize = 1_000;
/// The most log lines in one answer.
pub const OUTPUT_LINES_MAX: usize = 10_000;

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

fn unwrapped(fields: &Fields<'_>) -> Result<Operation, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::fields::PROJECT_FIELDS;
    use super::orchestrations::STRATEGY_FIELDS;
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
