//! A running server, as the bridge reaches it: one request of the current revision at a time, each
//! complete in itself, so that it can be repeated when the server was away in the middle of it.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use futures::StreamExt;
use futures::future::BoxFuture;
use reqwest::{Client, Response, Url};
use rmcp::model::{ErrorCode, ErrorData, ProtocolVersion, RequestMetaObject};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::time::Instant;

use super::MCP_PATH;

/// How long a server may be away before a call gives up: a restart takes seconds, and clients give up
/// after a minute.
const AWAY_MAX: Duration = Duration::from_secs(40);
/// The pauses between tries grow from the one to the other.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What each request says of itself in headers, for what stands between.
const HEADERS: [&str; 3] = ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"];
/// Keys of what each request of the current revision says of its client.
const META_KEYS: [&str; 3] = [
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
];

/// A server at an address.
#[derive(Clone)]
pub(super) struct Upstream {
    client: Client,
    url: Url,
    /// The address as it may be shown: without a password.
    shown: Url,
    bearer: HeaderValue,
}

/// Why the bridge cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address is of no use.
    #[error("--connect must be the http: or https: address of a server")]
    InvalidUrl,
    /// The token has characters that no header can carry.
    #[error("the token in CLAUDE_WEBHOOK_SECRET has characters that cannot be sent")]
    InvalidToken,
    /// No client could be made.
    #[error("the client for the server cannot be made")]
    Client(#[source] reqwest::Error),
}

/// What comes of one try.
enum Tried {
    Answered(Result<Value, ErrorData>),
    /// The server was not there, or went away before it had answered.
    Away {
        /// Whether an answer had begun.
        begun: bool,
    },
}

/// Gets each notification that comes before an answer.
pub(super) type Hearing = dyn Fn(Value) -> BoxFuture<'static, ()> + Send + Sync;

/// A request, to be sent as often as it takes.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) params: Value,
    /// The name that proxies are told: of the tool, the prompt or the resource.
    pub(super) name: Option<&'a str>,
    /// Of a wait whose client hears of no progress: how long it may take in all.
    pub(super) wait_within: Option<Duration>,
}

impl Upstream {
    /// The server at `url`, where `token` is let in.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub(super) fn new(url: &str, token: &SecretString) -> Result<Self, UpstreamError> {
        let mut parsed = Url::parse(url).map_err(|_| UpstreamError::InvalidUrl)?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(UpstreamError::InvalidUrl);
        }
        if matches!(parsed.path(), "" | "/") {
            parsed.set_path(MCP_PATH);
        }
        let bearer = format!("Bearer {}", token.expose_secret());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| UpstreamError::InvalidToken)?;
        bearer.set_sensitive(true);
        // One already installed is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&parsed) {
            // A proxy's loopback is another one.
            client = client.no_proxy();
        }
        if parsed.scheme() == "http" {
            // No certificate is needed, and a machine without any should still do.
            client = client.tls_certs_only([]);
        }
        let mut shown = parsed.clone();
        // An address with a host takes both.
        let _ = (shown.set_username(""), shown.set_password(None));
        Ok(Self {
            client: client.build().map_err(UpstreamError::Client)?,
            url: parsed,
            shown,
            bearer,
        })
    }

    /// The answer to a call. A server that is away is waited for; `heard` gets each notification
    /// on the way.
    ///
    /// # Errors
    /// The server's own, or that it is away for too long.
    pub(super) async fn answer(&self, call: Call<'_>, heard: &Hearing) -> Result<Value, ErrorData> {
        let mut call = call;
        let asked = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut away_since: Option<Instant> = None;
        loop {
            match self.tried(&call, heard).await {
                Tried::Answered(answer) => return answer,
                // It was there until now.
                Tried::Away { begun: true } => {
                    away_since = None;
                    pause = PAUSE_MIN;
                }
                Tried::Away { begun: false } => {}
            }
            let away = away_since.get_or_insert_with(Instant::now).elapsed();
            if away + pause > AWAY_MAX {
                return Err(self.away());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if let Some(within) = call.wait_within {
                // What is left of a wait whose client hears of no progress.
                let left_s = within.saturating_sub(asked.elapsed()).as_secs();
                call.params["arguments"]["timeoutSeconds"] = json!(left_s);
            }
        }
    }

    /// Where a server on this machine would listen to be found here; none for another machine.
    pub(super) fn local(&self) -> Option<String> {
        let port = self.url.port_or_known_default()?;
        let is_here = is_loopback(&self.url) && self.url.scheme() == "http";
        is_here.then(|| match self.url.host_str() {
            Some("[::1]") => format!("[::1]:{port}"),
            _ => format!("127.0.0.1:{port}"),
        })
    }

    /// Whether a server answers.
    pub(super) async fn is_there(&self) -> bool {
        let mut url = self.url.clone();
        url.set_path("/health");
        let asked = self.client.get(url).timeout(CONNECT_TIMEOUT).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    async fn tried(&self, call: &Call<'_>, heard: &Hearing) -> Tried {
        let body = json!({
            "jsonrpc": "2.0",
            "id": 1,
            "method": call.method,
            "params": call.params,
        });
        let values = [ProtocolVersion::V_2026_07_28.as_str(), call.method];
        let values = values.into_iter().chain(call.name);
        let mut request = self
            .client
            .post(self.url.clone())
            .header(AUTHORIZATION, self.bearer.clone())
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        for (name, value) in HEADERS.iter().zip(values) {
            let Ok(value) = HeaderValue::from_str(value) else {
                let text = format!("{name} cannot be sent as a header");
                return Tried::Answered(Err(ErrorData::invalid_params(text, None)));
            };
            request = request.header(*name, value);
        }
        let Ok(response) = request.send().await else {
            return Tried::Away { begun: false };
        };
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("text/event-stream"));
        match is_stream {
            true => streamed(response, heard).await,
            false => self.whole(response).await,
        }
    }

    async fn whole(&self, response: Response) -> Tried {
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let text = format!(
                "the server at {} does not let this bridge in ({status}); check \
                 CLAUDE_WEBHOOK_SECRET and the address",
                self.shown
            );
            return Tried::Answered(Err(ErrorData::invalid_request(text, None)));
        }
        let Ok(body) = response.bytes().await else {
            return Tried::Away { begun: true };
        };
        let message: Option<Value> = serde_json::from_slice(&body).ok();
        match message.and_then(answer_of) {
            Some(answer) => Tried::Answered(answer),
            // A server that stops answers so, and what stands before one that is away.
            None if status.is_server_error() => Tried::Away { begun: false },
            None => {
                let text = format!("{} answered {status}, and nothing of MCP", self.shown);
                Tried::Answered(Err(ErrorData::invalid_request(text, None)))
            }
        }
    }

    fn away(&self) -> ErrorData {
        let text = format!(
            "no Baton server answers at {}; start one with `baton serve`, or give its address \
             with --connect",
            self.shown
        );
        ErrorData::internal_error(text, None)
    }
}

/// Whether an address is on this machine.
fn is_loopback(url: &Url) -> bool {
    matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

/// Reads a stream up to the answer.
async fn streamed(response: Response, heard: &Hearing) -> Tried {
    let mut events = SseStream::from_bytes_stream(response.bytes_stream());
    while let Some(event) = events.next().await {
        let Ok(event) = event else {
            return Tried::Away { begun: true };
        };
        let data = event.data.filter(|data| !data.trim().is_empty());
        let message = data.and_then(|data| serde_json::from_str::<Value>(&data).ok());
        let Some(message) = message else {
            continue;
        };
        if message.get("method").is_some() {
            heard(message).await;
        } else if let Some(answer) = answer_of(message) {
            return Tried::Answered(answer);
        }
    }
    Tried::Away { begun: true }
}

/// What a message of JSON-RPC answers.
fn answer_of(mut message: Value) -> Option<Result<Value, ErrorData>> {
    if let Some(result) = message.get_mut("result") {
        return Some(Ok(result.take()));
    }
    let error = message.get_mut("error").map(Value::take)?;
    let internal = || ErrorData::new(ErrorCode::INTERNAL_ERROR, error.to_string(), None);
    Some(Err(
        serde_json::from_value(error.clone()).unwrap_or_else(|_| internal())
    ))
}

/// What a request of the current revision says of its client, whichever revision that speaks.
pub(super) fn meta(of: &RequestMetaObject, client: Value, capabilities: Value) -> Value {
    let mut meta = serde_json::to_value(of).unwrap_or_else(|_| json!({}));
    let version = json!(ProtocolVersion::V_2026_07_28.as_str());
    for (key, value) in META_KEYS.iter().zip([version, client, capabilities]) {
        meta[*key] = value;
    }
    meta
}
