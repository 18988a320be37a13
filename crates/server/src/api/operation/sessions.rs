//! A session to be made, and a message to one.

use baton_domain::Kind;
use baton_domain::steering::MESSAGE_BYTES_MAX;

use super::super::ApiError;
use super::super::json::Object;
use super::fields::{
    COST_USD_MAX, Fields, OPTION_FIELDS, Options, dependencies_field, first_of, kind_field,
    optional_id_field, priority_option, project_field,
};
use crate::orchestrator::{NewMessage, NewSession};

/// The longest a session may be allowed to run, in seconds: a week.
pub const TIMEOUT_S_MAX: u64 = 7 * 86_400;
pub(super) const SESSION_FIELDS: [&str; 7] = [
    "id",
    "type",
    "sessionType",
    "project",
    "dependencies",
    "options",
    "orchestrationId",
];

pub(super) fn new_session_of(
    session: &Object<'_, 7>,
    beside: Option<Options<'_>>,
) -> Result<NewSession, ApiError> {
    let inside = session.object("options", OPTION_FIELDS)?;
    // What stands in the session itself counts before what stands beside it.
    let places: Vec<Options<'_>> = inside.into_iter().chain(beside).collect();
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

pub(super) fn new_message_of(
    fields: &Fields<'_>,
    options: Option<Options<'_>>,
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
