//! Plays what was chosen: the delays, the faults, the body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::json;
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::message::{Message, Unfilled};
use crate::reply::{error_json, error_message, error_status, error_type};
use crate::script::{Fault, Turn};
use crate::server::Shared;
use crate::stream::{Step, steps};

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const LIMIT_STATUS: HeaderName = HeaderName::from_static("anthropic-ratelimit-unified-status");
const LIMIT_RESET: HeaderName = HeaderName::from_static("anthropic-ratelimit-unified-reset");
const LIMIT_CLAIM: HeaderName =
    HeaderName::from_static("anthropic-ratelimit-unified-representative-claim");

/// Everything that is waited for before the first byte; false where it never comes.
pub async fn before_first_byte(
    shared: &Shared,
    turn: &Turn,
    delay: Duration,
    fault: Option<&Fault>,
    stream: bool,
) -> bool {
    if let Some(name) = &turn.hold
        && !shared.waited(shared.released(name)).await
    {
        return false;
    }
    if !shared.waited(tokio::time::sleep(delay)).await {
        return false;
    }
    // Without a stream there is no middle in which to fall silent.
    let silent = matches!(fault, Some(Fault::Hang {}))
        || (!stream && matches!(fault, Some(Fault::Stall { .. })));
    !silent || shared.waited(std::future::pending()).await
}

/// Sends `message` as the request wants it, or the fault in its place.
pub fn play(
    shared: &Arc<Shared>,
    conversation: &Conversation,
    message: Result<Message, Unfilled>,
    pace: Duration,
    fault: Option<&Fault>,
) -> Response {
    let message = match message {
        Ok(message) => message,
        Err(error) => return api_error(400, &error.to_string(), None),
    };
    if let Some(Fault::Status {
        status,
        message,
        retry_after_s,
    }) = fault
    {
        let text = message.clone().unwrap_or_else(|| error_message(*status));
        return api_error(*status, &text, *retry_after_s);
    }
    if let Some(Fault::UsageLimit { resets_in_s }) = fault {
        return usage_limit(*resets_in_s);
    }
    if conversation.stream {
        let steps = steps(&message, pace, fault);
        return with_body(
            "text/event-stream; charset=utf-8",
            body_of(steps, shared.clone()),
        );
    }
    let whole = message.to_json().to_string();
    match fault {
        Some(Fault::StreamError { error_type, .. }) => {
            let status = error_status(error_type);
            api_error(status, &error_message(status), None)
        }
        Some(Fault::Cut { .. }) => {
            // A tenth of a message is no JSON, whatever it says.
            let start = Bytes::from(whole).slice(..10);
            with_body(
                "application/json",
                body_of(vec![Step::Send(start), Step::Break], shared.clone()),
            )
        }
        _ => with_body("application/json", Body::from(whole)),
    }
}

/// A body that takes one step after the other.
fn body_of(steps: Vec<Step>, shared: Arc<Shared>) -> Body {
    let next = |(mut steps, shared): (std::vec::IntoIter<Step>, Arc<Shared>)| async move {
        loop {
            let wait = match steps.next()? {
                Step::Send(bytes) => return Some((Ok(bytes), (steps, shared))),
                Step::Wait(pace) => shared.waited(tokio::time::sleep(pace)).await,
                Step::Stall => shared.waited(std::future::pending()).await,
                Step::Break => {
                    // What was sent before is in a buffer still; a turn of waiting flushes it.
                    tokio::task::yield_now().await;
                    false
                }
            };
            if !wait {
                let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                return Some((Err(error), (Vec::new().into_iter(), shared)));
            }
        }
    };
    Body::from_stream(stream::unfold((steps.into_iter(), shared), next))
}

/// No response at all: an error before anything was flushed closes the connection.
pub fn broken() -> Response {
    let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let nothing = stream::iter([Err::<Bytes, _>(error)]);
    with_body("application/json", Body::from_stream(nothing))
}

/// A fresh id that begins with `prefix`.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// An error in the shape of the API. `status` is one of a script, and those are checked when it is read.
pub fn api_error(status: u16, message: &str, retry_after_s: Option<u64>) -> Response {
    let id = new_id("req_");
    let mut body = error_json(error_type(status), message);
    body["request_id"] = json!(id);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, with_id(id), axum::Json(body)).into_response();
    if let Some(seconds) = retry_after_s {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The refusal of an account that has used what its subscription holds for some hours.
fn usage_limit(resets_in_s: u64) -> Response {
    let text = "This request would exceed your account's rate limit. Please try again later.";
    let mut response = api_error(429, text, Some(resets_in_s));
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(LIMIT_STATUS, HeaderValue::from_static("rejected"));
    headers.insert(LIMIT_RESET, HeaderValue::from(now + resets_in_s));
    headers.insert(LIMIT_CLAIM, HeaderValue::from_static("five_hour"));
    response
}

fn with_body(content_type: &'static str, body: Body) -> Response {
    (
        with_id(new_id("req_")),
        [(CONTENT_TYPE, content_type)],
        body,
    )
        .into_response()
}

fn with_id(id: String) -> [(HeaderName, String); 1] {
    [(REQUEST_ID, id)]
}
