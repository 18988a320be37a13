//! The HTTP side: takes requests, plays what was chosen.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::journal::{Answered, AuthKind, Entry, Journal, excerpt};
use crate::message::{CwdUnknown, Message, tokens};
use crate::reply::{
    Choice, choose, error_json, error_message, error_status, error_type, side_turn,
};
use crate::script::{Fault, FaultScope, ScriptError, Scripts, Turn};
use crate::stream::{Step, steps};

/// The largest request; the real API's limit.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest that a request hangs, stalls or is held; then its connection breaks.
const SILENCE_MAX: Duration = Duration::from_secs(60 * 60);
/// The longest that `GET /journal` waits for an entry.
const JOURNAL_WAIT_MAX: Duration = Duration::from_secs(30);
/// Conversations whose faults are counted. Beyond that, counting starts over.
const FAULT_COUNTS_MAX: usize = 10_000;
/// Names that may be released.
const RELEASES_MAX: usize = 10_000;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const CLAUDE_SESSION: HeaderName = HeaderName::from_static("x-claude-code-session-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// How a server differs from the plain one.
#[derive(Clone, Default)]
pub struct Options {
    /// Where set, a call to the API needs exactly this value, as `x-api-key` or as bearer token.
    pub require_key: Option<String>,
}

/// A running server. It ends, and breaks the connections it holds, when this is dropped.
#[derive(Debug)]
pub struct ScriptedModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    closing: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its scripts are no good.
    #[error(transparent)]
    Scripts(#[from] ScriptError),
    /// Its address could not be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// As it was given.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

struct Shared {
    scripts: Scripts,
    options: Options,
    journal: Journal,
    /// Names that no longer hold a turn back.
    released: watch::Sender<HashSet<String>>,
    /// How often a fault happened.
    faults: Mutex<HashMap<FaultKey, u32>>,
    closing: watch::Receiver<bool>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the options: they hold the key.
        f.debug_struct("Shared")
            .field("scripts", &self.scripts)
            .finish_non_exhaustive()
    }
}

#[derive(PartialEq, Eq, Hash)]
struct FaultKey {
    script: String,
    turn: usize,
    /// None where all conversations share one count.
    conversation: Option<String>,
}

impl ScriptedModel {
    /// Starts a server on `listen`, e.g. `127.0.0.1:0` for any free port.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub async fn start(
        listen: &str,
        scripts: Scripts,
        options: Options,
    ) -> Result<Self, StartError> {
        let fail = |source| StartError::Listen {
            address: listen.to_owned(),
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(Shared {
            scripts,
            options,
            journal: Journal::new(),
            released: watch::Sender::new(HashSet::new()),
            faults: Mutex::new(HashMap::new()),
            closing: closed,
        });
        let serve = axum::serve(listener, router(shared.clone())).with_graceful_shutdown({
            let shared = shared.clone();
            async move { shared.closed().await }
        });
        let serving = tokio::spawn(async move { serve.await });
        Ok(Self {
            address,
            shared,
            closing,
            serving,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value for `ANTHROPIC_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far.
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Lets every turn with `hold = "<name>"` be played, now and later.
    pub fn release(&self, name: &str) {
        self.shared.release(name);
    }

    /// Ends the server: connections in use break, and the address is free again on return.
    pub async fn stop(self) {
        self.closing.send_replace(true);
        // How it ended changes nothing for the caller: it is gone either way.
        let _ = self.serving.await;
    }
}

impl Shared {
    /// Returns when the server ends, also when its owner is dropped.
    async fn closed(&self) {
        let mut closing = self.closing.clone();
        let _ = closing.wait_for(|closing| *closing).await;
    }

    fn release(&self, name: &str) {
        self.released.send_modify(|released| {
            if released.len() < RELEASES_MAX {
                released.insert(name.to_owned());
            }
        });
    }

    /// Waits for `wait`; false where the server ended or [`SILENCE_MAX`] passed before.
    async fn waited(&self, wait: impl Future<Output = ()>) -> bool {
        tokio::select! {
            waited = tokio::time::timeout(SILENCE_MAX, wait) => waited.is_ok(),
            () = self.closed() => false,
        }
    }

    async fn released(&self, name: &str) {
        let mut released = self.released.subscribe();
        // The sender lives in `self`, so the only way out is the name.
        let _ = released.wait_for(|released| released.contains(name)).await;
    }

    /// Whether the fault of this turn happens once more.
    fn fault<'t>(&self, turn: &'t Turn, key: FaultKey) -> Option<&'t Fault> {
        let fault = turn.fault.as_ref()?;
        let Some(times) = turn.fault_times else {
            return Some(fault);
        };
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= FAULT_COUNTS_MAX && !faults.contains_key(&key) {
            faults.clear();
        }
        let happened = faults.entry(key).or_default();
        *happened = happened.saturating_add(1);
        (*happened <= times).then_some(fault)
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.options.require_key else {
            return true;
        };
        let value = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        value(&API_KEY) == Some(key)
            || value(&AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
    }
}

fn router(shared: Arc<Shared>) -> Router {
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
            entry.script = Some(script.name.clone());
            entry.turn = Some(index);
            shared.journal.record(Entry {
                answered: Answered::Closing,
                ..entry
            });
            if !shared
                .waited(tokio::time::sleep(Duration::from_millis(script.delay_ms)))
                .await
            {
                return broken();
            }
            let message = Message::closing(script, &conversation, &mut new_id);
            play(
                &shared,
                &conversation,
                message,
                Duration::from_millis(script.chunk_ms),
                None,
            )
        }
        Choice::Turn {
            script,
            index,
            turn,
        } => {
            entry.script = Some(script.name.clone());
            entry.turn = Some(index);
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
            let answered = if fault.is_some() {
                Answered::Fault
            } else {
                Answered::Turn
            };
            shared.journal.record(Entry { answered, ..entry });
            let delay = Duration::from_millis(turn.delay_ms.unwrap_or(script.delay_ms));
            if !before_first_byte(&shared, turn, delay, fault, conversation.stream).await {
                return broken();
            }
            let message = Message::of_turn(turn, &conversation, &mut new_id);
            let pace = Duration::from_millis(turn.chunk_ms.unwrap_or(script.chunk_ms));
            play(&shared, &conversation, message, pace, fault)
        }
    }
}

/// Everything that is waited for before the first byte; false where it never comes.
async fn before_first_byte(
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
fn play(
    shared: &Arc<Shared>,
    conversation: &Conversation,
    message: Result<Message, CwdUnknown>,
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
fn broken() -> Response {
    let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let nothing = stream::iter([Err::<Bytes, _>(error)]);
    with_body("application/json", Body::from_stream(nothing))
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

fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// `status` is one of a script, and those are checked when it is read.
fn api_error(status: u16, message: &str, retry_after_s: Option<u64>) -> Response {
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
