//! What operations answer, as JSON.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::view::{OrchestratedView, OrchestrationView, OutputView, SessionView};
use super::{ApiError, ListQuery};
use crate::orchestrator::{
    Orchestrated, OrchestrationDetails, Orchestrator, OutputCursor, SessionDetails, SessionOutput,
};
use baton_domain::session::SessionState;
use baton_domain::{SessionId, Status};

/// The most bytes of sessions in one answer: a page ends early when it gets longer. The last
/// session may go beyond.
pub const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many sessions are read at once for a page.
const PART_SESSIONS: usize = 100;
/// The most bytes of pages kept for those who ask the same again.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
const CACHE_PAGES: usize = 256;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Success<'a, T> {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    data: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionData<'a> {
    session: SessionView<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    waiting_for: &'a [SessionId],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputData<'a> {
    session_id: SessionId,
    status: Status,
    output: Option<OutputView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct OrchestrationData<'a> {
    orchestration: OrchestrationView<'a>,
}

/// Strings, numbers, lists and maps with string keys: such cannot fail to serialise.
fn rendered(value: &impl Serialize) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "serialising our own plain types cannot fail"
    )]
    serde_json::to_vec(value).expect("plain types serialise")
}

fn success(message: Option<&str>, data: impl Serialize) -> Vec<u8> {
    rendered(&Success {
        success: true,
        message,
        data,
    })
}

/// SHA-256 over what is asked for, as it was understood: two bodies that mean the same are the
/// same request.
#[must_use]
pub fn digest(operation: &str, asked: &impl Serialize) -> [u8; 32] {
    Sha256::digest(rendered(&(operation, asked))).into()
}

/// The answer to `session.create`.
#[must_use]
pub fn session_created(details: &SessionDetails) -> Vec<u8> {
    let data = SessionData {
        session: SessionView::new(details),
        waiting_for: &[],
    };
    success(Some("Session created successfully"), data)
}

/// The answer to `session.start`.
#[must_use]
pub fn session_started(details: &SessionDetails) -> Vec<u8> {
    let message = match details.waiting_for.is_empty() {
        true => "Session started",
        false => "Session queued, waiting for dependencies",
    };
    let data = SessionData {
        session: SessionView::new(details),
        waiting_for: &details.waiting_for,
    };
    success(Some(message), data)
}

/// The answer to `session.retry`.
#[must_use]
pub fn session_retried(details: &SessionDetails) -> Vec<u8> {
    let data = SessionData {
        session: SessionView::new(details),
        waiting_for: &details.waiting_for,
    };
    success(Some("Session gets a new attempt"), data)
}

/// The answer to `session.message`.
#[must_use]
pub fn session_messaged(details: &SessionDetails) -> Vec<u8> {
    let message = match details.session.steering.resume {
        Some(_) if details.session.state == SessionState::Queued => {
            "Session goes on with the message"
        }
        _ => "Message accepted; Claude is told as soon as it listens",
    };
    let data = SessionData {
        session: SessionView::new(details),
        waiting_for: &[],
    };
    success(Some(message), data)
}

/// The answer to `session.cancel`.
#[must_use]
pub fn session_told(details: &SessionDetails) -> Vec<u8> {
    let message = match details.session.state {
        SessionState::Stopping { .. } | SessionState::Saving { .. } => {
            "Session is being cancelled; its work is saved first"
        }
        _ => "Session cancelled",
    };
    let data = SessionData {
        session: SessionView::new(details),
        waiting_for: &[],
    };
    success(Some(message), data)
}

/// The answer to `session.get`.
#[must_use]
pub fn session_got(orchestrator: &Orchestrator, details: &SessionDetails) -> Vec<u8> {
    let data = SessionData {
        session: SessionView {
            usage: orchestrator.usage(&details.session),
            ..SessionView::full(details, orchestrator.status_detail(details))
        },
        waiting_for: &[],
    };
    success(None, data)
}

/// The answer to `session.output`.
#[must_use]
pub fn output(output: &SessionOutput) -> Vec<u8> {
    let session = &output.details.session;
    let message = match &output.logs {
        Some(_) => None,
        None => Some(no_output(&output.details)),
    };
    let data = OutputData {
        session_id: session.id,
        status: output.details.status,
        output: output
            .logs
            .as_deref()
            .map(|logs| OutputView::new(logs, session.report.as_ref())),
        next_cursor: output.next_cursor.map(cursor_text),
    };
    success(message.as_deref(), data)
}

/// A place in a session's log, as the wire has it.
#[must_use]
pub fn cursor_text(cursor: OutputCursor) -> String {
    match cursor.lines {
        0 => cursor.seq.to_string(),
        lines => format!("{}.{lines}", cursor.seq),
    }
}

/// Why there is nothing, which is another matter once nothing can come any more.
fn no_output(details: &SessionDetails) -> String {
    let view = SessionView::new(details);
    match (view.error, view.blocked_by) {
        (Some(error), _) => {
            format!("Session has no output: it failed before Claude wrote any. {error}")
        }
        (_, Some(dependency)) => {
            format!("Session has no output: it is blocked by {dependency} and was never started")
        }
        _ if details.status == Status::Cancelled => {
            "Session has no output: it was cancelled before Claude wrote any".to_owned()
        }
        _ if details.session.state.is_over() => {
            "Session has no output: Claude ended without writing any".to_owned()
        }
        _ => "Session has no output yet".to_owned(),
    }
}

/// The answer to `orchestrate`, without the webhook's envelope.
#[must_use]
pub fn orchestrated(made: &Orchestrated) -> Vec<u8> {
    success(
        Some("Orchestration initiated successfully"),
        OrchestratedView::new(made),
    )
}

/// The answer to `orchestration.get` and `orchestration.cancel`.
#[must_use]
pub fn orchestration(details: &OrchestrationDetails) -> Vec<u8> {
    let data = OrchestrationData {
        orchestration: OrchestrationView::new(details),
    };
    success(None, data)
}

/// A page of sessions, rendered, and the count of changes it was rendered at.
#[derive(Clone)]
struct RenderedPage {
    changes: u64,
    body: Bytes,
}

#[derive(Clone)]
struct PageWeight;

impl Weighter<ListQuery, RenderedPage> for PageWeight {
    fn weight(&self, _: &ListQuery, page: &RenderedPage) -> u64 {
        page.body.len() as u64 + 1
    }
}

/// The answers to `session.list`, kept until a session changes.
pub struct RenderedPages(Cache<ListQuery, RenderedPage, PageWeight>);

impl Default for RenderedPages {
    fn default() -> Self {
        Self(Cache::with_weighter(CACHE_PAGES, CACHE_BYTES, PageWeight))
    }
}

impl RenderedPages {
    /// The answer to `session.list`.
    ///
    /// # Errors
    /// An invalid cursor, or the storage fails.
    pub async fn answer(
        &self,
        orchestrator: &Orchestrator,
        query: ListQuery,
    ) -> Result<Bytes, ApiError> {
        // Read before the sessions: a change meanwhile makes the page old at once, not wrong.
        let changes = orchestrator.changes();
        if let Some(page) = self.0.get(&query)
            && page.changes == changes
        {
            return Ok(page.body);
        }
        let body = Bytes::from(render_list(orchestrator, &query).await?);
        let page = RenderedPage {
            changes,
            body: body.clone(),
        };
        self.0.insert(query, page);
        Ok(body)
    }
}

/// Reads and renders in parts, so that neither many sessions nor long ones are in memory at once.
async fn render_list(orchestrator: &Orchestrator, query: &ListQuery) -> Result<Vec<u8>, ApiError> {
    let mut body = br#"{"success":true,"data":{"sessions":["#.to_vec();
    let mut cursor = query.cursor.clone();
    let mut left = query.limit;
    while left > 0 && body.len() < LIST_BYTES_MAX {
        let part = query.part(cursor.clone(), left.min(PART_SESSIONS));
        let (sessions, mut next) = orchestrator.list_sessions(&part).await?;
        let mut taken = 0;
        for details in &sessions {
            if left < query.limit {
                body.push(b',');
            }
            body.extend(rendered(&SessionView::new(details)));
            left -= 1;
            taken += 1;
            if body.len() >= LIST_BYTES_MAX {
                break;
            }
        }
        if taken < sessions.len() {
            // The same part, ended here, has the cursor of what comes next.
            (_, next) = orchestrator
                .list_sessions(&query.part(cursor, taken))
                .await?;
        }
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    body.push(b']');
    if let Some(cursor) = cursor {
        body.extend(br#","nextCursor":"#);
        body.extend(rendered(&cursor));
    }
    body.extend(b"}}");
    Ok(body)
}
