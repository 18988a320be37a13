//! One operation that a tool was called for, and the tool's answer.

use std::collections::VecDeque;

use baton_domain::{OrchestrationId, SessionId, Status};
use rmcp::model::{CallToolResult, ContentBlock, Resource};
use serde::Serialize;
use serde_json::{Value, json};

use super::answers;
use super::arguments::{Arguments, OutputWanted, told_of_arguments};
use super::resources;
use crate::api::{self, ApiError, ListQuery, Operation};
use crate::orchestrator::{
    Accepted, Caller, NewSession, Once, Orchestrated, Orchestrator, OrchestratorError,
    OutputCursor, SessionDetails,
};
use crate::store::SessionQuery;

/// How many lines the end of a log has.
const TAIL_LINES: usize = 20;
/// How many events back the end of a log is looked for: most of them say nothing to people.
const TAIL_EVENTS: u64 = 400;
/// The most characters of log when nothing else is asked for.
const TAIL_CHARS: usize = 4_000;
const PAGE_CHARS: usize = 20_000;
/// The most lines read for one page of a log.
const PAGE_LINES_MAX: usize = 2_000;
/// The most characters of a summary in an answer.
const SUMMARY_CHARS_MAX: usize = 12_000;
/// The most artifacts in an answer.
const ARTIFACTS_MAX: usize = 100;

/// An answer, and the resource that holds more of it.
pub(super) struct Answer {
    value: Value,
    link: Option<Resource>,
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self { value, link: None }
    }
}

impl Answer {
    /// As a client gets it: programs and models read the structure, others its text.
    pub(super) fn into_result(self) -> CallToolResult {
        let mut result = CallToolResult::structured(self.value);
        result
            .content
            .extend(self.link.map(ContentBlock::ResourceLink));
        result
    }
}

/// A refusal as a client gets it: what was wrong, the valid values, what to do. In its text alone:
/// there are clients that hold structure against the schema of a tool's answers even where it says
/// what went wrong, and show neither.
pub(super) fn refused(error: ApiError) -> CallToolResult {
    let error = told_of_arguments(error);
    let mut told = json!({
        "error": answers::in_tools_words(&error.message),
        "code": error.code,
    });
    if let Some(details) = &error.details {
        told["details"] = details.clone();
    }
    if let Some(seconds) = error.retry_after_s {
        told["next"] = json!(format!("try again in {seconds} seconds"));
    }
    CallToolResult::error(vec![ContentBlock::text(told.to_string())])
}

/// Does what a tool was called for; `arguments` say how to answer it.
pub(super) async fn call(
    orchestrator: &Orchestrator,
    caller: Caller,
    operation: Operation,
    arguments: &Arguments,
) -> Result<Answer, ApiError> {
    let key = arguments.key()?;
    let _alone = match operation {
        // One that makes sessions takes its turn by itself.
        Operation::SessionCreate(_) => None,
        Operation::SessionGet(_)
        | Operation::SessionOutput { .. }
        | Operation::SessionList(_)
        | Operation::OrchestrationGet(_) => None,
        _ => orchestrator.alone(caller).await,
    };
    let told = |details: &SessionDetails| answers::session(orchestrator, details);
    Ok(match operation {
        Operation::SessionCreate(new) => create(orchestrator, caller, *new, key).await?,
        Operation::SessionStart(id) => {
            orchestrator.permits(caller, id).await?;
            told(&started(orchestrator, id).await?)
        }
        Operation::SessionGet(id) => {
            orchestrator.permits(caller, id).await?;
            told(&orchestrator.session(id).await?)
        }
        Operation::SessionOutput { id, cursor, .. } => {
            orchestrator.permits(caller, id).await?;
            return output(orchestrator, id, cursor, &arguments.output_wanted()?).await;
        }
        Operation::SessionCancel(id) => {
            orchestrator.permits(caller, id).await?;
            told(&orchestrator.cancel_session(id).await?)
        }
        Operation::SessionRetry(id) => {
            orchestrator.permits(caller, id).await?;
            orchestrator.permits_spending(caller, id, None).await?;
            let render = rendering(told);
            let once = once(caller, key, "retry_session", &id, &render);
            answered(orchestrator.retry_session(id, once).await?, told)
        }
        Operation::SessionMessage(id, message) => {
            orchestrator.permits(caller, id).await?;
            let max_cost_usd = message.max_cost_usd;
            orchestrator
                .permits_spending(caller, id, max_cost_usd)
                .await?;
            let render = rendering(told);
            let once = once(caller, key, "message_session", &(id, &message), &render);
            let accepted = orchestrator.message_session(id, message, once).await?;
            answered(accepted, told)
        }
        Operation::SessionList(query) => list(orchestrator, caller, query).await?,
        Operation::Orchestrate(new) => {
            orchestrator.permits_whole(caller)?;
            let auto_start = new.auto_start;
            let told = |made: &Orchestrated| answers::orchestrated(made, auto_start);
            let render = rendering(told);
            let once = once(caller, key, "orchestrate", &new, &render);
            answered(orchestrator.orchestrate(*new, once).await?, told)
        }
        Operation::OrchestrationGet(id) => {
            orchestrator.permits_orchestration(caller, id)?;
            answers::orchestration(&orchestrator.orchestration(id).await?)
        }
        Operation::OrchestrationStart(id, max_cost_usd) => {
            orchestrator.permits_whole(caller)?;
            let started = orchestrator.start_orchestration(id, max_cost_usd).await?;
            answers::orchestration(&started)
        }
        Operation::OrchestrationCancel(id) => {
            orchestrator.permits_whole(caller)?;
            answers::orchestration(&orchestrator.cancel_orchestration(id).await?)
        }
    }
    .into())
}

/// Starts a session. Whoever repeats that, because no answer came, is told how it stands.
async fn started(orchestrator: &Orchestrator, id: SessionId) -> Result<SessionDetails, ApiError> {
    match orchestrator.start_session(id).await {
        Err(OrchestratorError::InvalidTransition {
            status: Status::Initializing | Status::Queued | Status::Running | Status::Completed,
            ..
        }) => Ok(orchestrator.session(id).await?),
        started => Ok(started?),
    }
}

async fn create(
    orchestrator: &Orchestrator,
    caller: Caller,
    new: NewSession,
    key: Option<&str>,
) -> Result<Value, ApiError> {
    let told = |details: &SessionDetails| answers::session(orchestrator, details);
    let render = rendering(told);
    let once = once(caller, key, "create_claude_session", &new, &render);
    let accepted = orchestrator.create_session_for(caller, new, once).await?;
    Ok(answered(accepted, told))
}

/// What is kept of an answer, for the same call with the same key.
fn rendering<T>(told: impl Fn(&T) -> Value + Sync) -> impl Fn(&T) -> Vec<u8> + Sync {
    move |of| told(of).to_string().into_bytes()
}

/// Keys of callers of tools are their own: an answer of the API would be none of a tool.
fn once<'a, T>(
    caller: Caller,
    key: Option<&str>,
    tool: &str,
    asked: &impl Serialize,
    render: &'a (dyn Fn(&T) -> Vec<u8> + Sync),
) -> Option<Once<'a, T>> {
    key.map(|key| Once {
        key: caller.key(&format!("mcp: {key}")),
        digest: api::digest(tool, asked),
        render,
    })
}

fn answered<T>(accepted: Accepted<T>, told: impl Fn(&T) -> Value) -> Value {
    match accepted {
        Accepted::Now(of) => told(&of),
        // It was rendered by us.
        Accepted::Before(response) => serde_json::from_slice(&response).unwrap_or_default(),
    }
}

async fn list(
    orchestrator: &Orchestrator,
    caller: Caller,
    asked: ListQuery,
) -> Result<Value, ApiError> {
    let own: Option<OrchestrationId> = orchestrator.orchestration_of(caller);
    if let Some(id) = asked.orchestration {
        orchestrator.permits_orchestration(caller, id)?;
    }
    let query = SessionQuery {
        orchestration: asked.orchestration.or(own),
        statuses: asked.statuses,
        newest_first: true,
        cursor: asked.cursor,
        limit: asked.limit,
    };
    let (sessions, next_cursor) = orchestrator.list_sessions(&query).await?;
    let total = orchestrator.count_sessions(&query);
    Ok(answers::list(&sessions, total, next_cursor))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputAnswer<'a> {
    session_id: SessionId,
    status: Status,
    summary: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    next_steps: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    artifacts: &'a [baton_domain::output::Artifact],
    #[serde(skip_serializing_if = "Option::is_none")]
    more_artifacts: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    logs: Vec<String>,
    /// Where to read on.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// Whether the log is longer than what is here.
    truncated: bool,
}

async fn output(
    orchestrator: &Orchestrator,
    id: SessionId,
    cursor: Option<OutputCursor>,
    wanted: &OutputWanted,
) -> Result<Answer, ApiError> {
    let mut log = match wanted.detailed || cursor.is_some() {
        true => {
            let chars_max = wanted.chars_max.unwrap_or(PAGE_CHARS);
            page(orchestrator, id, cursor, chars_max).await?
        }
        false => tail(orchestrator, id, wanted.chars_max.unwrap_or(TAIL_CHARS)).await?,
    };
    let details = &log.details;
    let view = api::SessionView::full(details, None);
    let report = details.session.report.as_ref();
    let artifacts = report.map_or(&[][..], |report| &report.artifacts);
    let told = &artifacts[..artifacts.len().min(ARTIFACTS_MAX)];
    let answer = OutputAnswer {
        session_id: id,
        status: details.status,
        summary: report.map_or(String::new(), |report| {
            answers::shortened(&report.summary, SUMMARY_CHARS_MAX)
        }),
        next_steps: report.map_or(&[], |report| &report.next_steps),
        artifacts: told,
        more_artifacts: Some(artifacts.len() - told.len()).filter(|more| *more > 0),
        error: view.error,
        logs: std::mem::take(&mut log.lines),
        next_cursor: log.next_cursor.map(api::cursor_text),
        truncated: log.truncated,
    };
    Ok(Answer {
        value: answers::value(&answer),
        link: Some(resources::log_of(id)),
    })
}

/// A stretch of a session's log.
struct Log {
    details: SessionDetails,
    lines: Vec<String>,
    next_cursor: Option<OutputCursor>,
    truncated: bool,
}

/// The log from a place on, as many lines as fit.
async fn page(
    orchestrator: &Orchestrator,
    id: SessionId,
    cursor: Option<OutputCursor>,
    chars_max: usize,
) -> Result<Log, ApiError> {
    let mut lines_max = PAGE_LINES_MAX;
    loop {
        let read = orchestrator.session_output(id, cursor, lines_max).await?;
        let lines = read.logs.unwrap_or_default();
        // One line that is longer than all that may be told is cut; its rest is in the log.
        let kept = fitting(lines.iter(), chars_max).max(1);
        if kept < lines.len() {
            // The cursor of a shorter page is told by reading that page.
            lines_max = kept;
            continue;
        }
        let lines = lines.iter().map(|line| answers::shortened(line, chars_max));
        return Ok(Log {
            truncated: read.next_cursor.is_some(),
            next_cursor: read.next_cursor,
            details: read.details,
            lines: lines.collect(),
        });
    }
}

/// The end of the log.
async fn tail(
    orchestrator: &Orchestrator,
    id: SessionId,
    chars_max: usize,
) -> Result<Log, ApiError> {
    let newest = *orchestrator.watch_events(id).borrow();
    let mut cursor = OutputCursor {
        seq: newest.saturating_sub(TAIL_EVENTS),
        lines: 0,
    };
    let mut is_cut = cursor.seq > 0;
    let mut lines: VecDeque<String> = VecDeque::new();
    let details = loop {
        let read = orchestrator
            .session_output(id, Some(cursor), PAGE_LINES_MAX)
            .await?;
        for line in read.logs.unwrap_or_default() {
            lines.push_back(line);
            if lines.len() > TAIL_LINES {
                is_cut = true;
                lines.pop_front();
            }
        }
        match read.next_cursor {
            Some(next) if next != cursor => cursor = next,
            _ => break read.details,
        }
    };
    let kept = fitting(lines.iter().rev(), chars_max).max(1);
    let skipped = lines.len().saturating_sub(kept);
    let lines = lines.iter().skip(skipped);
    Ok(Log {
        details,
        truncated: is_cut || skipped > 0,
        lines: lines
            .map(|line| answers::shortened(line, chars_max))
            .collect(),
        next_cursor: None,
    })
}

/// How many of the first lines fit into so many characters together.
fn fitting<'a>(lines: impl Iterator<Item = &'a String>, chars_max: usize) -> usize {
    let mut left = chars_max;
    let fits = |line: &&String| {
        let chars = line.chars().count() + 1;
        let fits = chars <= left;
        left = left.saturating_sub(chars);
        fits
    };
    lines.take_while(fits).count()
}
