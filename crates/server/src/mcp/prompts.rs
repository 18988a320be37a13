//! The prompt that lets a person say what they want, and the completion of what can be named.

use std::collections::BTreeSet;

use rmcp::model::{
    CompleteRequestParams, CompletionInfo, ErrorData, GetPromptRequestParams, GetPromptResult,
    Prompt, PromptArgument, PromptMessage, Reference, Role,
};
use serde_json::json;

use super::answers::shortened;
use crate::orchestrator::{Caller, Orchestrator, OrchestratorError};
use crate::store::{PAGE_SESSIONS_MAX, SessionQuery};

const ORCHESTRATE: &str = "orchestrate";
/// The most characters of an argument.
const ARGUMENT_CHARS_MAX: usize = 100_000;

/// All prompts.
pub(super) fn list() -> Vec<Prompt> {
    let argument = |name: &str, description: &str| {
        PromptArgument::new(name)
            .with_description(description)
            .with_required(true)
    };
    vec![Prompt::new(
        ORCHESTRATE,
        Some("Have a goal reached by several Claude Code sessions on one branch"),
        Some(vec![
            argument("goal", "What is to be built, mended or found out"),
            argument("repository", "owner/name"),
        ]),
    )]
}

/// `prompts/get`
///
/// # Errors
/// There is no such prompt, or an argument is missing.
pub(super) fn get(request: &GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    if request.name != ORCHESTRATE {
        let shown = shortened(&request.name, 64);
        let text = format!("Prompt not found: {shown:?}; there is {ORCHESTRATE}");
        return Err(ErrorData::invalid_params(text, None));
    }
    let argument = |name: &str| {
        let given = request.arguments.as_ref().and_then(|all| all.get(name));
        let given = given.and_then(serde_json::Value::as_str);
        let given = given.map(|text| shortened(text.trim(), ARGUMENT_CHARS_MAX));
        given.filter(|given| !given.is_empty()).ok_or_else(|| {
            let text = format!("The argument {name} is missing");
            ErrorData::invalid_params(text, Some(json!({ "argument": name })))
        })
    };
    let text = format!(
        "Have this goal reached in the repository {}:\n\n{}\n\n{}",
        argument("repository")?,
        argument("goal")?,
        include_str!("orchestrate.md").trim_end()
    );
    let message = PromptMessage::new_text(Role::User, text);
    Ok(GetPromptResult::new(vec![message]))
}

/// `completion/complete`: ids of sessions and orchestrations, and repositories that were worked
/// on; nothing for what we know nothing of.
///
/// # Errors
/// The storage does not answer.
pub(super) async fn complete(
    orchestrator: &Orchestrator,
    caller: Caller,
    request: &CompleteRequestParams,
) -> Result<CompletionInfo, OrchestratorError> {
    let wanted = match &request.r#ref {
        Reference::Resource(of) if of.uri.starts_with("baton://sessions/") => Wanted::Session,
        Reference::Resource(of) if of.uri.starts_with("baton://orchestrations/") => {
            Wanted::Orchestration
        }
        Reference::Prompt(of)
            if of.name == ORCHESTRATE && request.argument.name == "repository" =>
        {
            Wanted::Repository
        }
        _ => return Ok(CompletionInfo::default()),
    };
    let query = SessionQuery {
        orchestration: orchestrator.orchestration_of(caller),
        newest_first: true,
        limit: PAGE_SESSIONS_MAX,
        ..SessionQuery::default()
    };
    let (sessions, _) = orchestrator.list_sessions(&query).await?;
    let names = sessions.iter().filter_map(|details| {
        let session = &details.session;
        match wanted {
            Wanted::Session => Some(session.id.to_string()),
            Wanted::Orchestration => session.orchestration_id.map(|id| id.to_string()),
            Wanted::Repository => Some(session.project.repository.to_string()),
        }
    });
    let mut seen = BTreeSet::new();
    let begun = request.argument.value.as_str();
    let mut fitting: Vec<String> = names
        .filter(|name| name.starts_with(begun) && seen.insert(name.clone()))
        .collect();
    let total = fitting.len();
    fitting.truncate(CompletionInfo::MAX_VALUES);
    let has_more = total > fitting.len();
    let total = u32::try_from(total).ok();
    Ok(CompletionInfo::with_pagination(fitting, total, has_more).unwrap_or_default())
}

#[derive(Clone, Copy)]
enum Wanted {
    Session,
    Orchestration,
    Repository,
}
