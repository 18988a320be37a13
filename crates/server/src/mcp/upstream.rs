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

/// How long a server may be away before a call gives up: a restart takes seconds.
const AWAY_MAX: Duration = Duration::from_secs(60);
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
    bearer: HeaderValue,
}

/// Why the bridge cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address is of no use.
    #[error("{0} is no http: or https: address of a server")]
    InvalidUrl(String),
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
    Away,
}

/// Gets each notification that comes before an answer.
pub(super) type Hearing = dyn Fn(Value) -> BoxFuture<'static, ()> + Send + Sync;

/// A request, to be sent as often as it takes.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) params: Value,
    /// The name that proxies are told: of the tool, the prompt or the resource.
    pub(super) name: Option<&'a str>,
}

impl Upstream {
    /// The server at `url`, where `token` is let in.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub(super) fn new(url: &str, token: &SecretString) -> Result<Self, UpstreamError> {
        let invalid = || UpstreamError::InvalidUrl(url.to_owned());
        let mut parsed = Url::parse(url).map_err(|_| invalid())?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(invalid());
        }
        if matches!(parsed.path(), "" | "/") {
            parsed.set_path(MCP_PATH);
        }
        let bearer = format!("Bearer {}", token.expose_secret());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| UpstreamError::InvalidToken)?;
        bearer.set_sensitive(true);
        // One already installed is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(UpstreamError::Client)?;
        Ok(Self {
            client,
            url: parsed,
            bearer,
        })
    }

    /// The answer to a call. A server that is away is waited for; `heard` gets each notification
    /// on the way.
    ///
    /// # Errors
    /// The server's own, or that it is away for too long.
    pub(super) async fn answer(&self, call: Call<'_>, heard: &Hearing) -> Result<Value, ErrorData> {
        let mut pause = PAUSE_MIN;
        let mut away_since: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            match self.tried(&call, heard).await {
                Tried::Answered(answer) => return answer,
                Tried::Away => {}
            }
            // One that broke off late was there for most of it.
            if begun.elapsed() > CONNECT_TIMEOUT {
                away_since = None;
                pause = PAUSE_MIN;
            }
            if away_since.get_or_insert_with(Instant::now).elapsed() > AWAY_MAX {
                return Err(self.away());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether a server answers.
    pub(super) async fn is_there(&self) -> bool {
        let mut url = self.url.clone();
        url.set_path("/health");
        let asked = self.client.get(url).timeout(CONNECT_TIMEOUT).send().await;
        asked.is_ok()
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
            return Tried::Away;
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
                self.url
            );
            return Tried::Answered(Err(ErrorData::invalid_request(text, None)));
        }
        // What stands before a server answers so while the server itself is away.
        if matches!(
            status,
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT
        ) {
            return Tried::Away;
        }
        let Ok(body) = response.bytes().await else {
            return Tried::Away;
        };
        let message: Option<Value> = serde_json::from_slice(&body).ok();
        let answer = message.and_then(answer_of).unwrap_or_else(|| {
            let text = format!("{} answered {status}, and nothing of MCP", self.url);
            Err(ErrorData::invalid_request(text, None))
        });
        Tried::Answered(answer)
    }

    fn away(&self) -> ErrorData {
        let text = format!(
            "no Baton server answers at {}; start one with `baton serve`, or give its address \
             with --connect",
            self.url
        );
        ErrorData::internal_error(text, None)
    }
}

/// Reads a stream up to the answer.
async fn streamed(response: Response, heard: &Hearing) -> Tried {
    let mut events = SseStream::from_bytes_stream(response.bytes_stream());
    while let Some(event) = events.next().await {
        let Ok(event) = event else {
            return Tried::Away;
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
    Tried::Away
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
