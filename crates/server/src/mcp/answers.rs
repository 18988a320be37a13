//! What tools answer: small, complete, and saying what comes next. A caller's context is its
//! scarcest resource, so nothing is told that was asked with, and no list is without an end.

use baton_domain::session::SessionState;
use baton_domain::steering::Pause;
use baton_domain::waits::{Stuck, Waited, Wants};
use baton_domain::{Kind, OrchestrationId, SessionId, Status};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::api::{LandingView, LeftOutView, OrchestrationView, OverlapView, SessionView};
use crate::orchestrator::{
    Caller, Orchestrated, OrchestrationDetails, Orchestrator, SessionDetails, Waiting,
};

/// The most sessions that are told one by one where an answer is about more than one.
const TOLD_MAX: usize = 50;
/// The most characters of a summary where an answer is about more than one session.
const SUMMARY_CHARS_MAX: usize = 400;
/// The most characters of requirements that stand for a title.
const TITLE_CHARS_MAX: usize = 60;

/// Our own plain types, which cannot fail to serialise.
pub(super) fn value(of: &impl Serialize) -> Value {
    #[expect(
        clippy::expect_used,
        reason = "serialising our own plain types cannot fail"
    )]
    serde_json::to_value(of).expect("plain types serialise")
}

/// One session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionAnswer<'a> {
    session_id: SessionId,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    dependencies: &'a [SessionId],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    waiting_for: &'a [SessionId],
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestration_id: Option<OrchestrationId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elapsed_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
    next: String,
}

/// One session, with what comes next.
pub(super) fn session(orchestrator: &Orchestrator, details: &SessionDetails) -> Value {
    let detail = orchestrator.status_detail(details);
    let view = SessionView::full(details, None);
    let usage = orchestrator.usage(&details.session);
    value(&SessionAnswer {
        session_id: view.id,
        kind: view.kind,
        title: view.title,
        status: view.status,
        detail: detail.map(|detail| in_tools_words(&detail)),
        dependencies: view.dependencies,
        waiting_for: view.waiting_for,
        blocked_by: view.blocked_by,
        orchestration_id: view.orchestration_id,
        elapsed_seconds: elapsed_seconds(details, orchestrator.now()),
        cost_usd: usage.map(|usage| to_cents(usage.cost_usd)),
        error: view.error,
        error_code: view.error_code,
        branch: view.result.and_then(|result| result.branch.as_deref()),
        commit: view.result.map(|result| result.commit.as_str()),
        warnings: view.warnings,
        next: next(details),
    })
}

fn elapsed_seconds(details: &SessionDetails, now: Timestamp) -> Option<i64> {
    let state = &details.session.state;
    let until = match state {
        SessionState::Finished { at, .. } => *at,
        _ => now,
    };
    let started_at = state.started_at()?;
    Some(until.duration_since(started_at).as_secs())
}

/// Fractions of a cent are noise to a model.
pub(super) fn to_cents(usd: f64) -> f64 {
    (usd * 100.0).round() / 100.0
}

/// Texts of the API name its operations; here they go by other names.
pub(super) fn in_tools_words(text: &str) -> String {
    [
        ("orchestration.start", "start_claude_session"),
        ("session.start", "start_claude_session"),
        ("session.retry", "retry_session"),
        ("session.message", "message_session"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (operation, tool)| {
        text.replace(operation, tool)
    })
}

/// What a caller would do now.
fn next(details: &SessionDetails) -> String {
    match (&details.session.state, details.status) {
        (SessionState::Created, _) => "start_claude_session".to_owned(),
        (
            SessionState::Paused {
                pause: Pause::Budget { .. },
                ..
            },
            _,
        ) => "message_session, with maxCostUsd for a larger budget".to_owned(),
        (
            SessionState::Paused {
                pause: Pause::OrchestrationBudget,
                ..
            },
            _,
        ) => "start_claude_session with orchestrationId, and maxCostUsd for a larger budget"
            .to_owned(),
        (SessionState::Blocked { dependency, .. }, _) => {
            format!("retry_session for {dependency}, which is in its way")
        }
        (_, Status::Completed) => "get_session_output".to_owned(),
        // A command listens to nobody.
        (_, Status::Failed) if details.session.command.is_some() => "get_session_output".to_owned(),
        (_, Status::Failed) => {
            "get_session_output, then retry_session or message_session".to_owned()
        }
        (_, Status::Cancelled) => "retry_session, to run it again".to_owned(),
        _ => "wait_for_session".to_owned(),
    }
}

/// One of several sessions.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionRow<'a> {
    session_id: SessionId,
    #[serde(rename = "type")]
    kind: Kind,
    status: Status,
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<SessionId>,
}

fn row(details: &SessionDetails) -> SessionRow<'_> {
    let view = SessionView::new(details);
    SessionRow {
        session_id: view.id,
        kind: view.kind,
        status: view.status,
        title: title(details),
        error_code: view.error_code,
        blocked_by: view.blocked_by,
    }
}

/// A few words on what a session does: its title, or how its requirements begin.
pub(super) fn title(details: &SessionDetails) -> String {
    let session = &details.session;
    match &session.title {
        Some(title) => title.clone(),
        None => {
            let requirements = session.project.requirements.trim_start();
            shortened(requirements.lines().next().unwrap_or(""), TITLE_CHARS_MAX)
        }
    }
}

/// `text`, or its beginning.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListAnswer<'a> {
    sessions: Vec<SessionRow<'a>>,
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A page of sessions, of `total` in all.
pub(super) fn list(
    sessions: &[SessionDetails],
    total: usize,
    next_cursor: Option<String>,
) -> Value {
    value(&ListAnswer {
        sessions: sessions.iter().map(row).collect(),
        total,
        next_cursor,
    })
}

/// One of those waited for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitedRow<'a> {
    #[serde(flatten)]
    row: SessionRow<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitAnswer<'a> {
    done: bool,
    finished: Vec<WaitedRow<'a>>,
    pending: Vec<SessionRow<'a>>,
    /// How many more there are of each than are told.
    #[serde(skip_serializing_if = "is_none")]
    more_finished: usize,
    #[serde(skip_serializing_if = "is_none")]
    more_pending: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attention: Vec<String>,
    next: &'static str,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_none(number: &usize) -> bool {
    *number == 0
}

/// How those that were waited for stand.
pub(super) fn waited(waiting: &Waiting, caller: Caller) -> Value {
    let (finished, pending): (Vec<_>, Vec<_>) = waiting
        .sessions
        .iter()
        .partition(|(_, stands)| *stands == Waited::Finished);
    let attention: Vec<String> = waiting
        .sessions
        .iter()
        .filter_map(|(details, stands)| match stands {
            Waited::Stuck(stuck) => Some(wanted(details.session.id, *stuck, caller)),
            _ => None,
        })
        .take(TOLD_MAX)
        .collect();
    let next = if pending.is_empty() {
        "get_session_output of those you need"
    } else if !attention.is_empty() {
        "do what attention says, then wait_for_session again"
    } else if pending.len() > TOLD_MAX {
        "wait_for_session with the same sessionIds"
    } else {
        "wait_for_session with the sessionIds in pending"
    };
    value(&WaitAnswer {
        done: waiting.is_done,
        more_finished: finished.len().saturating_sub(TOLD_MAX),
        more_pending: pending.len().saturating_sub(TOLD_MAX),
        finished: finished
            .into_iter()
            .take(TOLD_MAX)
            .map(|(details, _)| WaitedRow {
                row: row(details),
                summary: summary(details),
                error: SessionView::new(details).error,
            })
            .collect(),
        pending: pending
            .into_iter()
            .take(TOLD_MAX)
            .map(|(details, _)| row(details))
            .collect(),
        attention,
        next,
    })
}

fn summary(details: &SessionDetails) -> Option<String> {
    let report = details.session.report.as_ref()?;
    let summary = report.summary.trim();
    (!summary.is_empty()).then(|| shortened(summary, SUMMARY_CHARS_MAX))
}

fn wanted(id: SessionId, stuck: Stuck, caller: Caller) -> String {
    let of_whom = match stuck.at == id {
        true => id.to_string(),
        false => format!("{id} depends on {}, which", stuck.at),
    };
    match stuck.wants {
        Wants::Budget | Wants::OrchestrationBudget if caller != Caller::Client => format!(
            "{of_whom} waits for a larger budget, which a person has to give: finish without it, \
             and say so in your closing words"
        ),
        Wants::Start => format!("{of_whom} was not started: start_claude_session"),
        Wants::Budget => {
            format!("{of_whom} has spent its budget: message_session, with a larger maxCostUsd")
        }
        Wants::OrchestrationBudget => format!(
            "{of_whom} waits for a larger budget of its orchestration: start_claude_session with \
             orchestrationId and maxCostUsd"
        ),
    }
}

/// How a wait stands, in a few words.
pub(super) fn progress(waiting: &Waiting) -> String {
    let finished = |(_, stands): &&(SessionDetails, Waited)| *stands == Waited::Finished;
    let over = waiting.sessions.iter().filter(finished).count();
    let first = waiting
        .sessions
        .iter()
        .find(|(_, stands)| *stands != Waited::Finished)
        .map(|(details, _)| format!("; {}: {}", title(details), details.status.name()));
    format!(
        "{over} of {} over{}",
        waiting.sessions.len(),
        first.unwrap_or_default()
    )
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrchestratedAnswer<'a> {
    orchestration_id: OrchestrationId,
    sessions: Vec<PlannedRow<'a>>,
    #[serde(skip_serializing_if = "is_none")]
    more_sessions: usize,
    summary: &'a str,
    next: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlannedRow<'a> {
    #[serde(flatten)]
    row: SessionRow<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    dependencies: &'a [SessionId],
}

/// What an `orchestrate` made.
pub(super) fn orchestrated(made: &Orchestrated, auto_start: bool) -> Value {
    value(&OrchestratedAnswer {
        orchestration_id: made.id,
        sessions: made
            .sessions
            .iter()
            .take(TOLD_MAX)
            .map(|details| PlannedRow {
                row: row(details),
                dependencies: &details.session.dependencies,
            })
            .collect(),
        more_sessions: made.sessions.len().saturating_sub(TOLD_MAX),
        summary: &made.summary,
        next: match auto_start {
            true => "wait_for_session with all sessionIds, then get_orchestration",
            false => "start_claude_session with orchestrationId",
        },
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrchestrationAnswer<'a> {
    orchestration_id: OrchestrationId,
    status: &'static str,
    summary: String,
    cost_usd: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    landing: Option<LandingAnswer<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overlaps: Vec<OverlapView<'a>>,
    sessions: Vec<PlannedRow<'a>>,
    #[serde(skip_serializing_if = "is_none")]
    more_sessions: usize,
}

/// Where its results land as a whole.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LandingAnswer<'a> {
    status: &'static str,
    branch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    /// Of how many sessions the work is in the branch.
    landed: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<LeftOutView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
}

impl<'a> LandingAnswer<'a> {
    fn new(mut view: LandingView<'a>) -> Self {
        view.left_out.truncate(TOLD_MAX);
        Self {
            status: view.status,
            branch: view.branch,
            commit: view.commit,
            landed: view.landed.len(),
            left_out: view.left_out,
            error: view.error,
            error_code: view.error_code,
        }
    }
}

/// An orchestration.
pub(super) fn orchestration(details: &OrchestrationDetails) -> Value {
    let view = OrchestrationView::new(details);
    let sessions = &details.sessions;
    let mut overlaps = view.overlaps;
    overlaps.truncate(TOLD_MAX);
    value(&OrchestrationAnswer {
        orchestration_id: view.id,
        status: view.status,
        summary: view.summary,
        cost_usd: to_cents(view.usage.cost_usd),
        landing: view.landing.map(LandingAnswer::new),
        overlaps,
        sessions: sessions
            .iter()
            .take(TOLD_MAX)
            .map(|of| PlannedRow {
                row: row(of),
                dependencies: &of.session.dependencies,
            })
            .collect(),
        more_sessions: sessions.len().saturating_sub(TOLD_MAX),
    })
}
