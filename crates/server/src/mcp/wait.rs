//! `wait_for_session`: as a task where the client knows tasks, which survives its connection and
//! this server; else as a call that tells at once and every few seconds that it goes on; else as a
//! call short enough for any client. Ending a wait touches no session.

use std::time::Duration;

use baton_domain::waits::{Wait, WaitMode};
use baton_domain::{SessionId, WaitId};
use rmcp::model::{
    CallToolResponse, CallToolResult, CreateTaskResult, DetailedTask, ErrorData, JsonObject,
    ProgressNotificationParam, ProgressToken, Task, TaskPayload, TaskStatus,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;

use super::answers;
use super::arguments::Arguments;
use super::call::Answer;
use crate::api::{ApiError, Millis};
use crate::orchestrator::{Caller, Orchestrator, Waiting};

/// How long a wait lasts that any client can bear: some give up on a call after a minute.
pub(super) const SHORT: Duration = Duration::from_secs(45);
/// How long a wait lasts for Claude Code, which is told about progress meanwhile.
const LONG: Duration = Duration::from_secs(25 * 60);
/// How long a wait lasts for a coordination session, which has nothing else to do.
const OF_SESSION: Duration = Duration::from_secs(6 * 60 * 60);
/// The longest wait of a client that hears of progress.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// How often is told that a wait goes on. Clients give up after minutes without a word.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How often a client should ask for a task.
const POLL_INTERVAL_MS: u64 = 5_000;
/// How long a task is remembered, in milliseconds.
const TASK_KEPT_MS: u64 = baton_domain::waits::WAIT_KEPT.as_millis() as u64;
/// What Claude Code calls itself.
const CLAUDE_CODE: &str = "claude-code";

/// Who is waited for, and how long.
struct Wish {
    ids: Vec<SessionId>,
    mode: WaitMode,
    timeout_s: Option<u64>,
}

/// Answers a call.
pub(super) async fn wait(
    orchestrator: &Orchestrator,
    caller: Caller,
    arguments: &Arguments,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ApiError> {
    let wish = wished(orchestrator, caller, arguments).await?;
    let waiting = orchestrator.waiting(&wish.ids, wish.mode).await?;
    if waiting.is_answered || wish.timeout_s == Some(0) {
        return Ok(answer(&waiting, caller).into());
    }
    let knows_tasks = context
        .client_capabilities()
        .is_some_and(|capabilities| capabilities.supports_tasks());
    if knows_tasks && caller == Caller::Client {
        let (id, wait, waiting) = orchestrator
            .keep_wait(wish.ids, wish.mode, wish.timeout_s)
            .await?;
        let task = task(id, &wait, &waiting, TaskStatus::Working, orchestrator);
        return Ok(CallToolResponse::Task(CreateTaskResult::new(task)));
    }
    let waiting = blocking(orchestrator, caller, &wish, context).await?;
    Ok(answer(&waiting, caller).into())
}

/// How those that are waited for stand now, who is not let wait any longer.
pub(super) async fn at_once(
    orchestrator: &Orchestrator,
    caller: Caller,
    arguments: &Arguments,
) -> Result<CallToolResponse, ApiError> {
    let wish = wished(orchestrator, caller, arguments).await?;
    let waiting = orchestrator.waiting(&wish.ids, wish.mode).await?;
    Ok(answer(&waiting, caller).into())
}

/// What a call asks for, which its caller may know of.
async fn wished(
    orchestrator: &Orchestrator,
    caller: Caller,
    arguments: &Arguments,
) -> Result<Wish, ApiError> {
    let (ids, mode, timeout_s) = arguments.wait()?;
    for id in &ids {
        orchestrator.permits(caller, *id).await?;
    }
    Ok(Wish {
        ids,
        mode,
        timeout_s,
    })
}

fn answer(waiting: &Waiting, caller: Caller) -> CallToolResult {
    Answer::from(answers::waited(waiting, caller)).into_result()
}

/// How long the call may take.
fn patience(caller: Caller, wish: &Wish, context: &RequestContext<RoleServer>) -> Duration {
    let hears_progress = context.meta.get_progress_token().is_some();
    let asked = wish.timeout_s.map(Duration::from_secs);
    if let Caller::Session(_) = caller {
        return asked.unwrap_or(OF_SESSION).min(OF_SESSION);
    }
    if !hears_progress {
        return asked.unwrap_or(SHORT).min(SHORT);
    }
    let client = context.client_info();
    let usual = match client.is_some_and(|client| client.name == CLAUDE_CODE) {
        true => LONG,
        false => SHORT,
    };
    asked.unwrap_or(usual).min(LONGEST)
}

async fn blocking(
    orchestrator: &Orchestrator,
    caller: Caller,
    wish: &Wish,
    context: &RequestContext<RoleServer>,
) -> Result<Waiting, ApiError> {
    let patience = patience(caller, wish, context);
    let guard = orchestrator.begin_wait(caller).await?;
    let wait = async {
        let news = orchestrator.wait_for(caller, &wish.ids, wish.mode);
        let waiting = match tokio::time::timeout(patience, news).await {
            Ok(waiting) => waiting?,
            Err(_) => orchestrator.waiting(&wish.ids, wish.mode).await?,
        };
        guard.take_back().await?;
        Ok(waiting)
    };
    tokio::select! {
        waiting = wait => waiting,
        // Nobody listens any more.
        () = context.ct.cancelled() => Ok(orchestrator.waiting(&wish.ids, wish.mode).await?),
        never = tell_progress(orchestrator, wish, context) => match never {},
    }
}

/// Tells at once and then every [`PROGRESS_EVERY`] how the wait stands, whether anything changed
/// or not: what a client wants to hear is that somebody is there.
async fn tell_progress(
    orchestrator: &Orchestrator,
    wish: &Wish,
    context: &RequestContext<RoleServer>,
) -> std::convert::Infallible {
    let Some(token) = context.meta.get_progress_token() else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let mut told = 0.0;
    loop {
        ticks.tick().await;
        told += 1.0;
        let progress = progress(orchestrator, wish, &token, told).await;
        // Who does not hear it is noticed when the answer cannot be sent.
        let _unheard = context.peer.notify_progress(progress).await;
    }
}

/// The number only has to grow; what there is to know is in the message.
async fn progress(
    orchestrator: &Orchestrator,
    wish: &Wish,
    token: &ProgressToken,
    told: f64,
) -> ProgressNotificationParam {
    let progress = ProgressNotificationParam::new(token.clone(), told);
    match orchestrator.waiting(&wish.ids, wish.mode).await {
        Ok(waiting) => progress.with_message(answers::progress(&waiting)),
        Err(_) => progress,
    }
}

/// `tasks/get`
///
/// # Errors
/// No task has this id; the storage does not answer.
pub(super) async fn get(
    orchestrator: &Orchestrator,
    caller: Caller,
    task_id: &str,
) -> Result<DetailedTask, ErrorData> {
    let id = wait_id(task_id)?;
    let kept = orchestrator.kept_wait(id).await.map_err(of_storage)?;
    let (wait, waiting) = kept.ok_or_else(|| unknown(task_id))?;
    for of in &wait.sessions {
        let permitted = orchestrator.permits(caller, *of).await;
        permitted.map_err(|_| unknown(task_id))?;
    }
    let payload = if wait.cancelled_at.is_some() {
        TaskPayload::Cancelled
    } else if let Some(answer) = &wait.answer {
        TaskPayload::Completed {
            result: object(answer.clone()),
        }
    } else if waiting.is_answered {
        let answer = answers::value(&answer(&waiting, caller));
        let kept = orchestrator.keep_answer(id, &wait, answer.clone()).await;
        kept.map_err(of_storage)?;
        TaskPayload::Completed {
            result: object(answer),
        }
    } else {
        TaskPayload::Working
    };
    let task = task(id, &wait, &waiting, payload.status(), orchestrator);
    Ok(DetailedTask::new(task, payload))
}

/// `tasks/cancel`: the wait ends, the sessions go on.
///
/// # Errors
/// No task has this id; the storage does not answer.
pub(super) async fn cancel(
    orchestrator: &Orchestrator,
    caller: Caller,
    task_id: &str,
) -> Result<(), ErrorData> {
    // Tells those apart that are not there, or not the caller's.
    let task = get(orchestrator, caller, task_id).await?;
    if task.status().is_terminal() {
        return Ok(());
    }
    let cancelled = orchestrator.cancel_wait(wait_id(task_id)?).await;
    cancelled.map(drop).map_err(of_storage)
}

fn task(
    id: WaitId,
    wait: &Wait,
    waiting: &Waiting,
    status: TaskStatus,
    orchestrator: &Orchestrator,
) -> Task {
    let now = Millis(orchestrator.now()).to_string();
    let created_at = Millis(wait.created_at).to_string();
    Task::new(id.to_string(), status, created_at, now)
        .with_status_message(answers::progress(waiting))
        .with_ttl_ms(TASK_KEPT_MS)
        .with_poll_interval_ms(POLL_INTERVAL_MS)
}

fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(object) => object,
        _ => JsonObject::new(),
    }
}

fn wait_id(task_id: &str) -> Result<WaitId, ErrorData> {
    task_id.parse().map_err(|_| unknown(task_id))
}

fn unknown(task_id: &str) -> ErrorData {
    let shown = answers::shortened(task_id, 64);
    let text = format!(
        "Task not found: {shown:?}. Tasks are forgotten after 30 days; call wait_for_session again"
    );
    ErrorData::invalid_params(text, None)
}

/// What went wrong is in the log; who asks can only ask again.
fn of_storage(error: crate::orchestrator::OrchestratorError) -> ErrorData {
    let error = ApiError::from(error);
    ErrorData::internal_error(answers::in_tools_words(&error.message), None)
}
