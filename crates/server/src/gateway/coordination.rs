//! What a coordination session's sandbox gets beside the others: the way to the sessions that it
//! made, and patience while it waits for them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use baton_domain::{SessionId, SessionState};
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::Gate;
use super::model::later;

/// Answers what the coordination session of that id asks for by MCP.
pub type McpDoor = Arc<dyn Fn(SessionId, Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// How long a call of the model is held whose session has no slot. Claude Code 2.1.330 was seen to
/// give a call up after six minutes without a byte, whatever its settings for that say.
const HOLD_TIME_MAX: Duration = Duration::from_secs(4 * 60);
/// Seconds after which a call is to be repeated that was held for so long.
const HELD_RETRY_S: u64 = 1;
/// Seconds after which is to be asked again who asks while the server starts.
const STARTING_RETRY_S: u64 = 1;

pub(super) async fn mcp_call(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    if !gate.coordinates {
        return StatusCode::NOT_FOUND.into_response();
    }
    let session = gate.parts.store.cached_session(gate.session);
    if session.is_none_or(|session| session.attempt != gate.attempt) {
        let text = "another attempt of this session has taken its place\n";
        return (StatusCode::CONFLICT, text).into_response();
    }
    match gate.mcp.get() {
        Some(door) => door(gate.session, request).await,
        None => {
            let after = [(header::RETRY_AFTER, HeaderValue::from(STARTING_RETRY_S))];
            let text = "the server is starting; ask again\n";
            (StatusCode::SERVICE_UNAVAILABLE, after, text).into_response()
        }
    }
}

impl Gate {
    /// Holds a call of the model as long as its session is to do nothing: it has no slot, and its
    /// Claude begins to work when it has one again. After a while it is asked to repeat the call;
    /// none where it may be made.
    ///
    /// Mostly nobody is held, since a wait is answered only when the slot is there. But the
    /// connection may have broken, with the server for example.
    pub(super) async fn held_call(&self) -> Option<Response> {
        if !self.coordinates {
            return None;
        }
        let until = Instant::now() + HOLD_TIME_MAX;
        let mut news = self.parts.store.watch_events(self.session);
        loop {
            news.mark_unchanged();
            let session = self.parts.store.cached_session(self.session)?;
            let is_held = session.attempt == self.attempt && session.state.stands_still();
            if !is_held {
                return None;
            }
            let changed = tokio::time::timeout_at(until, news.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Some(later(
                    "this session waits for a slot to go on; the call may be repeated",
                    HELD_RETRY_S,
                ));
            }
        }
    }

    /// Whether its Claude waits for other sessions, or for a slot after that.
    pub(super) fn awaits(&self) -> bool {
        let session = self.parts.store.cached_session(self.session);
        session.is_some_and(|session| match session.state {
            SessionState::Awaiting { attempt, .. } => attempt == self.attempt,
            _ => false,
        })
    }
}
