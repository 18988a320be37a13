//! The endpoints.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;

use crate::conversation::Conversation;
use crate::journal::{Answered, AuthKind, Entry, excerpt};
use crate::message::{Message, tokens};
use crate::play::{api_error, before_first_byte, broken, new_id, play};
use crate::reply::{Choice, choose, closing_turn, error_message, side_turn};
use crate::script::{FaultScope, Script, Turn};
use crate::server::{API_KEY, FaultKey, Shared};

/// The largest request; the real API's limit.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest that `GET /journal` waits for an entry.
const JOURNAL_WAIT_MAX: Duration = Duration::from_secs(30);

const CLAUDE_SESSION: HeaderName = HeaderName::from_static("x-claude-code-session-id");

/// Every endpoint of the stand-in.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/journal", get(journal))
        .route("/release/{name}", post(release))
        .fallback(probe)
        .method_not_allowed_fallback(probe)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

/// `POST /v1/messages`.
async fn messages(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut entry = entry(&Method::POST, &uri, &headers, body.len());
    if !shared.allows(&headers) {
        shared.journal.record(Entry {
            answered: Answered::Unauthorized,
            ..entry
        });
        return api_error(401, &error_message(401), None);
    }
    let conversation = match Conversation::parse(&body) {
        Ok(conversation) => conversation,
        Err(error) => {
            shared.journal.record(entry);
            return api_error(
                400,
                &format!("the request could not be read: {error}"),
                None,
            );
        }
    };
    drop(body);
    describe(&mut entry, &conversation);
    match choose(&shared.scripts, &conversation) {
        Choice::NoScript => {
            shared.journal.record(entry);
            api_error(
                404,
                "no script matches the prompt, and there is no default.toml",
                None,
            )
        }
        Choice::Side => {
            shared.journal.record(Entry {
                answered: Answered::Side,
                ..entry
            });
            let message = Message::of_turn(&side_turn(&conversation), &conversation, &mut new_id);
            play(&shared, &conversation, message, Duration::ZERO, None)
        }
        Choice::Closing { script, index } => {
            let entry = Entry {
                answered: Answered::Closing,
                ..entry
            };
            let turn = closing_turn(script);
            answer(&shared, &conversation, entry, script, index, &turn).await
        }
        Choice::Turn {
            script,
            index,
            turn,
        } => {
            let entry = Entry {
                answered: Answered::Turn,
                ..entry
            };
            answer(&shared, &conversation, entry, script, index, turn).await
        }
    }
}

/// Records the request and plays `turn`, number `index` of `script`, or its fault.
async fn answer(
    shared: &Arc<Shared>,
    conversation: &Conversation,
    mut entry: Entry,
    script: &Script,
    index: usize,
    turn: &Turn,
) -> Response {
    let own = entry
        .claude_session_id
        .clone()
        .unwrap_or_else(|| conversation.prompt.clone());
    let key = FaultKey {
        script: script.name.clone(),
        turn: index,
        conversation: (turn.fault_scope == FaultScope::Conversation).then_some(own),
    };
    let fault = shared.fault(turn, key);
    if fault.is_some() {
        entry.answered = Answered::Fault;
    }
    entry.script = Some(script.name.clone());
    entry.turn = Some(index);
    shared.journal.record(entry);

    let delay = Duration::from_millis(turn.delay_ms.unwrap_or(script.delay_ms));
    if !before_first_byte(shared, turn, delay, fault, conversation.stream).await {
        return broken();
    }
    let message = Message::of_turn(turn, conversation, &mut new_id);
    let pace = Duration::from_millis(turn.chunk_ms.unwrap_or(script.chunk_ms));
    play(shared, conversation, message, pace, fault)
}

/// `POST /v1/messages/count_tokens`: a guess, and no turn is played.
async fn count_tokens(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let entry = entry(&Method::POST, &uri, &headers, body.len());
    if !shared.allows(&headers) {
        shared.journal.record(Entry {
            answered: Answered::Unauthorized,
            ..entry
        });
        return api_error(401, &error_message(401), None);
    }
    shared.journal.record(Entry {
        answered: Answered::Count,
        ..entry
    });
    axum::Json(json!({"input_tokens": tokens(body.len())})).into_response()
}

/// What `GET /journal` may wait for.
#[derive(Deserialize)]
struct JournalQuery {
    script: Option<String>,
    turn: Option<usize>,
}

/// `GET /journal`: the requests seen. With `?script=NAME&turn=N` it answers when that turn has
/// been asked for, or, with what there is, after [`JOURNAL_WAIT_MAX`].
async fn journal(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<JournalQuery>,
) -> impl IntoResponse {
    if let (Some(script), Some(turn)) = (&query.script, query.turn) {
        let seen = |entries: &[Entry]| entries.iter().any(|entry| entry.asks(script, turn));
        let waiting = async {
            // Not seen: the entries say so themselves.
            let _ = shared.journal.wait_until(JOURNAL_WAIT_MAX, seen).await;
        };
        shared.waited(waiting).await;
    }
    axum::Json(json!({"entries": shared.journal.entries()}))
}

/// `POST /release/{name}`: lets turns with `hold = "<name>"` go on.
async fn release(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> StatusCode {
    shared.release(&name);
    StatusCode::NO_CONTENT
}

/// Everything else. The CLI probes its base URL with `HEAD` before it calls the API.
async fn probe(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let entry = entry(request.method(), request.uri(), request.headers(), 0);
    let is_probe = matches!(*request.method(), Method::GET | Method::HEAD)
        && matches!(request.uri().path(), "/" | "/api/hello");
    if is_probe {
        shared.journal.record(Entry {
            answered: Answered::Probe,
            ..entry
        });
        return axum::Json(json!({"scripted_model": "ready"})).into_response();
    }
    shared.journal.record(entry);
    api_error(
        404,
        &format!("{} {} is not known", request.method(), request.uri().path()),
        None,
    )
}

/// An entry that says `refused`, until it is known better.
fn entry(method: &Method, uri: &Uri, headers: &HeaderMap, body_bytes: usize) -> Entry {
    let bearer = headers.get(AUTHORIZATION).is_some();
    let auth = match (headers.contains_key(&API_KEY), bearer) {
        (true, true) => AuthKind::Both,
        (true, false) => AuthKind::ApiKey,
        (false, true) => AuthKind::Bearer,
        (false, false) => AuthKind::None,
    };
    let session = headers
        .get(&CLAUDE_SESSION)
        .and_then(|value| value.to_str().ok());
    Entry {
        seq: 0,
        at: jiff::Timestamp::now(),
        method: method.to_string(),
        path: uri.path().to_owned(),
        auth,
        claude_session_id: session.map(str::to_owned),
        model: None,
        stream: None,
        script: None,
        turn: None,
        prompt: None,
        last_user_text: None,
        body_bytes,
        answered: Answered::Refused,
    }
}

fn describe(entry: &mut Entry, conversation: &Conversation) {
    entry.model = Some(conversation.model.clone());
    entry.stream = Some(conversation.stream);
    entry.prompt = Some(excerpt(&conversation.prompt));
    entry.last_user_text = Some(excerpt(&conversation.last_user_text));
}
