//! `GET /api/v1/sessions/{id}/events`: everything that happened to a session, by number.
//!
//! One page is read when the one before has been written, so a client that reads slowly, or not
//! at all, costs one page and no more.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use baton_domain::SessionId;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::HttpState;
use super::openapi::ErrorAnswer;
use super::resources::{Params, PathId};
use super::serve::Place;
use crate::api::{self, ApiError, EventView};
use crate::orchestrator::{Orchestrator, OrchestratorError};
use crate::store::{EventBody, StoredEvent};

/// How many events are read at once.
const PAGE_EVENTS_MAX: usize = 1_000;
/// How many bytes of output are read at once, about.
const PAGE_BYTES_MAX: usize = 256 * 1024;
/// How often a quiet stream says that it is still there. Also how long a lost wake-up can delay
/// an event.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Clients have nothing to say here.
const CLIENT_MESSAGE_BYTES_MAX: usize = 4 * 1024;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// Only events with a greater number; 0 for all.
    after: Option<String>,
    /// How many at most.
    limit: Option<String>,
    /// Whether to wait for events still to come, until the session is over: `true` or `false`.
    /// True for server-sent events and WebSockets, else false.
    follow: Option<String>,
}

/// The events of a session, as NDJSON, as server-sent events (`Accept: text/event-stream`) or over
/// a WebSocket (one text message each).
///
/// Numbers have no gap, so a client that was cut off asks for what comes after the last number it
/// saw. An `EventSource` does so by itself (`Last-Event-ID`), and is told with 204 to stop when the
/// session is over.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}/events",
    tag = "sessions",
    params(
        ("id" = uuid::Uuid, Path),
        EventParams,
        ("Last-Event-ID" = Option<u64>, Header, description = "As `after`, and counts before it"),
    ),
    responses(
        (status = 101, description = "A WebSocket follows"),
        (
            status = 200,
            description = "One event on each line",
            content((EventView = "application/x-ndjson"), (String = "text/event-stream")),
        ),
        (status = 204, description = "To an `EventSource`: the session is over and all was sent"),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
    ),
)]
pub(super) async fn events(
    State(state): State<HttpState>,
    PathId(id): PathId,
    Params(params): Params<EventParams>,
    request: Request,
) -> Result<Response, ApiError> {
    let id = api::session_id(&id)?;
    let headers = request.headers();
    let is_websocket = has_word(headers.get(UPGRADE), "websocket");
    let is_sse = has_word(headers.get(ACCEPT), "text/event-stream");
    let resumed = last_event_id(headers)?;
    let after = api::number_param("after", params.after.as_deref())?.unwrap_or(0);
    let limit = api::number_param("limit", params.limit.as_deref())?;
    let follow = api::flag_param("follow", params.follow.as_deref())?;
    // Unknown sessions are told so before a stream begins.
    let is_over = state
        .orchestrator
        .session(id)
        .await?
        .session
        .state
        .is_over();
    let mut tail = Tail {
        news: state.orchestrator.watch_events(id),
        orchestrator: state.orchestrator.clone(),
        id,
        after: resumed.unwrap_or(after),
        left: limit.unwrap_or(u64::MAX),
        follow: follow.unwrap_or(is_websocket || is_sse),
        stopping: state.stopping.clone(),
    };
    if is_websocket {
        let (mut parts, _) = request.into_parts();
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &state)
            .await
            .map_err(|rejection| ApiError::request(rejection.body_text()))?;
        let upgrade = upgrade.max_message_size(CLIENT_MESSAGE_BYTES_MAX);
        let place = parts.extensions.get::<Place>().cloned();
        return Ok(upgrade.on_upgrade(async move |socket| match place {
            Some(place) => place.hold(send_to(socket, tail)).await,
            // Whoever serves these routes otherwise sets no limit.
            None => send_to(socket, tail).await,
        }));
    }
    if is_sse && resumed.is_some() && is_over && tail.is_at_end().await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let form = match is_sse {
        true => Form::ServerSent,
        false => Form::Lines,
    };
    let mut response = Response::new(body(tail, form));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, form.content_type());
    Ok(response)
}

fn has_word(value: Option<&HeaderValue>, word: &str) -> bool {
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    value
        .split([',', ';'])
        .any(|part| part.trim().eq_ignore_ascii_case(word))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let id = headers.get("last-event-id").filter(|id| !id.is_empty());
    let id = id.map(|id| id.to_str().unwrap_or("?"));
    api::number_param("Last-Event-ID", id)
}

/// Where a client is in a session's events.
struct Tail {
    orchestrator: Orchestrator,
    id: SessionId,
    after: u64,
    left: u64,
    follow: bool,
    news: watch::Receiver<u64>,
    stopping: CancellationToken,
}

enum Next {
    /// In their order; never empty.
    Events(Vec<StoredEvent>),
    /// Nothing for a while.
    Quiet,
    /// Nothing more will come.
    Over,
    /// The stream ends here, though there may be more: a limit, no wish to wait, a server that
    /// stops.
    Cut,
}

impl Tail {
    /// Waits for what comes next. May be dropped while it waits: nothing is lost.
    async fn next(&mut self) -> Result<Next, OrchestratorError> {
        loop {
            if self.left == 0 {
                return Ok(Next::Cut);
            }
            // Looked at in this order, so that nothing that comes meanwhile is missed: first the
            // bell, then whether more can come, then what is there.
            self.news.borrow_and_update();
            let is_over = self
                .orchestrator
                .session(self.id)
                .await?
                .session
                .state
                .is_over();
            let events = self.read().await?;
            if let Some(newest) = events.last() {
                self.after = last_seq(newest);
                self.left = self.left.saturating_sub(events.len() as u64);
                return Ok(Next::Events(events));
            }
            if is_over {
                return Ok(Next::Over);
            }
            if !self.follow {
                return Ok(Next::Cut);
            }
            tokio::select! {
                rung = self.news.changed() => if rung.is_err() {
                    return Ok(Next::Cut);
                },
                () = tokio::time::sleep(KEEP_ALIVE) => return Ok(Next::Quiet),
                () = self.stopping.cancelled() => return Ok(Next::Cut),
            }
        }
    }

    async fn read(&self) -> Result<Vec<StoredEvent>, OrchestratorError> {
        let limit = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(PAGE_EVENTS_MAX);
        self.orchestrator
            .events(self.id, self.after, limit, PAGE_BYTES_MAX)
            .await
    }

    async fn is_at_end(&mut self) -> Result<bool, OrchestratorError> {
        Ok(self.read().await?.is_empty())
    }
}

/// The number to go on after.
fn last_seq(event: &StoredEvent) -> u64 {
    match event.body {
        EventBody::Truncated { last_seq, .. } => last_seq,
        _ => event.seq,
    }
}

#[derive(Clone, Copy)]
enum Form {
    Lines,
    ServerSent,
}

impl Form {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Lines => "application/x-ndjson",
            Self::ServerSent => "text/event-stream",
        })
    }

    fn of_events(self, events: &[StoredEvent]) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE_BYTES_MAX.min(events.len() * 512));
        for event in events {
            match self {
                Self::Lines => {
                    EventView::new(event).append_to(&mut out);
                    out.push(b'\n');
                }
                Self::ServerSent => {
                    out.extend(format!("id: {}\ndata: ", last_seq(event)).into_bytes());
                    EventView::new(event).append_to(&mut out);
                    out.extend(b"\n\n");
                }
            }
        }
        out
    }

    /// What a quiet stream says: that it is still there. Lines have no word for it.
    fn of_quiet(self) -> Option<&'static [u8]> {
        match self {
            Self::Lines => None,
            Self::ServerSent => Some(b": still here\n\n"),
        }
    }

    /// What the last of all events is followed by, so that an `EventSource` can close.
    fn of_end(self) -> Option<&'static [u8]> {
        match self {
            Self::Lines => None,
            Self::ServerSent => Some(b"event: end\ndata: {}\n\n"),
        }
    }
}

fn body(tail: Tail, form: Form) -> Body {
    let pages = futures::stream::try_unfold(Some(tail), move |tail| async move {
        let Some(mut tail) = tail else {
            return Ok(None);
        };
        loop {
            return match tail.next().await {
                Ok(Next::Events(events)) => {
                    Ok(Some((Bytes::from(form.of_events(&events)), Some(tail))))
                }
                Ok(Next::Quiet) => match form.of_quiet() {
                    Some(word) => Ok(Some((Bytes::from_static(word), Some(tail)))),
                    None => continue,
                },
                Ok(Next::Over) => Ok(form.of_end().map(|word| (Bytes::from_static(word), None))),
                Ok(Next::Cut) => Ok(None),
                // The connection is cut then, so that nobody takes it for the end.
                Err(error) => {
                    tracing::error!(session = %tail.id, %error, "event stream failed");
                    Err(error)
                }
            };
        }
    });
    Body::from_stream(pages)
}

async fn send_to(mut socket: WebSocket, mut tail: Tail) {
    let code = match send_all(&mut socket, &mut tail).await {
        Ok(code) => code,
        Err(()) => return,
    };
    let close = CloseFrame {
        code,
        reason: "".into(),
    };
    // The client may be gone; there is nobody else to tell.
    let _gone = socket.send(Message::Close(Some(close))).await;
}

/// Sends until there is nothing more to send; an error means that the client is gone.
async fn send_all(socket: &mut WebSocket, tail: &mut Tail) -> Result<u16, ()> {
    loop {
        let next = tokio::select! {
            next = tail.next() => next,
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(()),
                Some(Ok(_)) => continue,
            },
        };
        match next {
            Ok(Next::Events(events)) => {
                for event in &events {
                    let mut text = Vec::new();
                    EventView::new(event).append_to(&mut text);
                    let text = String::from_utf8(text).map_err(|_| ())?;
                    socket
                        .send(Message::Text(text.into()))
                        .await
                        .map_err(|_| ())?;
                }
            }
            Ok(Next::Quiet) => {
                let ping = Message::Ping(Bytes::new());
                socket.send(ping).await.map_err(|_| ())?;
            }
            Ok(Next::Over | Next::Cut) => return Ok(close_code::NORMAL),
            Err(error) => {
                tracing::error!(session = %tail.id, %error, "event stream failed");
                return Ok(close_code::ERROR);
            }
        }
    }
}
