//! The model API as a sandbox reaches it: the few calls that Claude Code makes, with our
//! credential in place of whatever the sandbox sent, and with the tokens counted.

mod limit;
mod scrub;
#[cfg(test)]
mod tests;
mod usage;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream::BoxStream};
use secrecy::{ExposeSecret, SecretString};

use crate::config::{Credential, Prices};
use scrub::Scrubber;
use usage::Meter;
pub use usage::TokenCounts;

/// How long the model API may take to accept a connection. Answers have no limit: a long one
/// is not a broken one.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// How often a quiet connection is asked whether it still stands, and how long it may take to
/// say so. Without it, one that died silently would be waited on for ever.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(20);

/// What the API wants to be told about a subscription's token.
const OAUTH_BETA: &str = "oauth-2025-04-20";

const BETA_HEADER: HeaderName = HeaderName::from_static("anthropic-beta");
const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Headers of a request that end here: credentials, those that concern one connection only, and
/// those that tell of the way. `accept-encoding` goes so that answers can be read for counts.
const REQUEST_HEADERS_DROPPED: [&str; 19] = [
    "accept-encoding",
    "authorization",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-api-key",
    "x-real-ip",
    "http2-settings",
];

/// Headers of an answer that end here. Its length may change, and it is framed anew.
const RESPONSE_HEADERS_DROPPED: [&str; 11] = [
    "alt-svc",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where model calls go, and as whom.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// `http:` or `https:`; may have a path of its own.
    pub base_url: String,
    /// Without one, every call is answered 401 with a text on how to set one.
    pub credential: Option<Credential>,
}

impl Credential {
    fn secret(&self) -> SecretString {
        let (Self::ApiKey(secret) | Self::OauthToken(secret) | Self::AuthToken(secret)) = self;
        // A file or a shell often adds a line end.
        secret.expose_secret().trim().into()
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let secret = self.secret();
        let (name, text) = match self {
            Self::ApiKey(_) => (API_KEY_HEADER, secret.expose_secret().to_owned()),
            Self::OauthToken(_) | Self::AuthToken(_) => (
                header::AUTHORIZATION,
                format!("Bearer {}", secret.expose_secret()),
            ),
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    }
}

/// Why model calls cannot be forwarded with these settings.
#[derive(Debug, thiserror::Error)]
pub enum ModelGatewayError {
    /// The address is of no use; says which.
    #[error("ANTHROPIC_BASE_URL must be an http: or https: address with a host")]
    InvalidBaseUrl,
    /// The credential has characters that no header can carry.
    #[error("the model credential has characters that cannot be sent, such as a line break")]
    InvalidCredential,
    /// No client could be made, for example without a single trusted certificate.
    #[error("the client for the model API cannot be made; are CA certificates installed?")]
    Client(#[source] reqwest::Error),
}

/// Forwards model calls. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct ModelGateway {
    client: reqwest::Client,
    base_url: String,
    host: String,
    credential: Option<UsedCredential>,
    prices: Arc<Prices>,
}

#[derive(Clone)]
struct UsedCredential {
    name: HeaderName,
    value: HeaderValue,
    secret: SecretString,
    is_oauth: bool,
}

impl ModelGateway {
    /// Does no IO but reading the machine's trusted certificates.
    ///
    /// # Errors
    /// [`ModelGatewayError`].
    pub fn new(settings: ModelSettings) -> Result<Self, ModelGatewayError> {
        let url = reqwest::Url::parse(&settings.base_url)
            .map_err(|_| ModelGatewayError::InvalidBaseUrl)?;
        let is_plain = url.scheme() == "http";
        let host = url
            .host_str()
            .filter(|_| is_plain || url.scheme() == "https")
            .ok_or(ModelGatewayError::InvalidBaseUrl)?;
        let credential = match &settings.credential {
            None => None,
            Some(credential) => {
                let (name, value) = credential
                    .header()
                    .ok_or(ModelGatewayError::InvalidCredential)?;
                Some(UsedCredential {
                    name,
                    value,
                    secret: credential.secret(),
                    is_oauth: matches!(credential, Credential::OauthToken(_)),
                })
            }
        };
        Ok(Self {
            client: client(is_plain, host)?,
            base_url: settings.base_url.trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            credential,
            prices: Arc::default(),
        })
    }

    /// The same, reckoning with `prices`.
    #[must_use]
    pub fn priced(self, prices: Prices) -> Self {
        Self {
            prices: Arc::new(prices),
            ..self
        }
    }

    /// About how many US dollars a call cost.
    #[must_use]
    pub fn cost_usd(&self, counts: &TokenCounts) -> f64 {
        let price = self.prices.of(counts.model.as_deref().unwrap_or_default());
        counts.cost_usd(&price)
    }

    /// Forwards `request` to `path_and_query` of the API and streams the answer back, piece by
    /// piece as it comes. `on_usage` is called at most once, when the answer ends or is given up,
    /// if the API said what it used.
    ///
    /// Answers of our own have the API's error shape: 404 for anything but messages, token
    /// counts and models; 401 without a credential; 502 when the API cannot be reached, which
    /// clients repeat by themselves. An answer that refuses for the account's usage limit has a
    /// [`UsageLimit`](baton_domain::pauses::UsageLimit) among its extensions, and tells clients
    /// not to repeat it.
    pub async fn forward(
        &self,
        path_and_query: &str,
        request: Request,
        on_usage: impl FnOnce(TokenCounts) + Send + 'static,
    ) -> Response {
        let (head, body) = request.into_parts();
        let path = path_and_query.split('?').next().unwrap_or_default();
        if !is_allowed(&head.method, path) {
            return failure(
                StatusCode::NOT_FOUND,
                "not_found_error",
                "sessions may only call messages, token counting and models here",
            );
        }
        let Some(credential) = &self.credential else {
            return failure(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "the Baton server has no model credential: set ANTHROPIC_API_KEY, \
                 CLAUDE_CODE_OAUTH_TOKEN or ANTHROPIC_AUTH_TOKEN, or its _FILE form, where \
                 `baton serve` runs, and restart it",
            );
        };
        let url = format!("{}{path_and_query}", self.base_url);
        let mut upstream = self
            .client
            .request(head.method.clone(), url)
            .headers(forwarded_headers(head.headers, credential));
        if head.method == Method::POST {
            upstream = upstream.body(reqwest::Body::wrap_stream(body.into_data_stream()));
        }
        match upstream.send().await {
            Ok(answer) if answer.status().is_redirection() => failure(
                StatusCode::BAD_GATEWAY,
                "api_error",
                &format!(
                    "the model API at {} redirects elsewhere, which is not followed; set \
                     ANTHROPIC_BASE_URL to where it leads",
                    self.host
                ),
            ),
            Ok(answer) => passed_back(answer, credential, path, on_usage),
            Err(error) => self.unreachable(&error),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Response {
        let what = if error.is_timeout() {
            "did not accept a connection in time"
        } else if error.is_connect() {
            "cannot be reached"
        } else {
            "broke off the call"
        };
        tracing::warn!(host = %self.host, what, cause = %cause(error), "model call failed");
        let mut response = failure(
            StatusCode::BAD_GATEWAY,
            "api_error",
            &format!(
                "the model API at {} {what} from the Baton server; if this lasts, check \
                 ANTHROPIC_BASE_URL and the server's network",
                self.host
            ),
        );
        response
            .headers_mut()
            .insert(limit::SHOULD_RETRY, HeaderValue::from_static("true"));
        response
    }
}

fn client(is_plain: bool, host: &str) -> Result<reqwest::Client, ModelGatewayError> {
    // Fails where it is installed already, and that is as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIME_MAX)
        .tcp_keepalive(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIME_MAX);
    if is_plain {
        // No certificate is needed, and a machine without any should still do.
        builder = builder.tls_certs_only([]);
    }
    if matches!(host, "127.0.0.1" | "localhost" | "[::1]") {
        builder = builder.no_proxy();
    }
    builder.build().map_err(ModelGatewayError::Client)
}

/// The innermost cause, without the address, which may hold a password.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if std::ptr::addr_eq(cause, error) {
        return "no further cause".to_owned();
    }
    cause.to_string()
}

fn is_allowed(method: &Method, path: &str) -> bool {
    let is_read = method == Method::GET || method == Method::HEAD;
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => method == Method::POST,
        "/" => is_read,
        "/v1/models" => method == Method::GET,
        _ => {
            let is_name = |name: &str| {
                name.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte))
                    && !name.is_empty()
                    && !name.starts_with('.')
            };
            method == Method::GET && path.strip_prefix("/v1/models/").is_some_and(is_name)
        }
    }
}

fn forwarded_headers(mut headers: HeaderMap, credential: &UsedCredential) -> HeaderMap {
    drop_connection_headers(&mut headers);
    for name in REQUEST_HEADERS_DROPPED {
        headers.remove(name);
    }
    let on_the_way: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-forwarded-"))
        .cloned()
        .collect();
    for name in on_the_way {
        headers.remove(name);
    }
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    headers.insert(credential.name.clone(), credential.value.clone());
    if credential.is_oauth {
        add_beta(&mut headers);
    }
    headers
}

/// Adds [`OAUTH_BETA`] to the list of betas that the client asked for.
fn add_beta(headers: &mut HeaderMap) {
    let mut betas: Vec<String> = headers
        .get_all(BETA_HEADER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|beta| beta.trim().to_owned())
        .filter(|beta| !beta.is_empty() && beta != OAUTH_BETA)
        .collect();
    betas.push(OAUTH_BETA.to_owned());
    if let Ok(value) = HeaderValue::from_str(&betas.join(",")) {
        headers.insert(BETA_HEADER, value);
    }
}

/// Removes what `Connection` names: headers of one connection only.
fn drop_connection_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn passed_back(
    answer: reqwest::Response,
    credential: &UsedCredential,
    path: &str,
    on_usage: impl FnOnce(TokenCounts) + Send + 'static,
) -> Response {
    let status = answer.status();
    let mut headers = answer.headers().clone();
    drop_connection_headers(&mut headers);
    for name in RESPONSE_HEADERS_DROPPED {
        headers.remove(name);
    }
    let secret = credential.secret.expose_secret().as_bytes();
    let telling: Vec<HeaderName> = headers
        .iter()
        .filter(|(_, value)| memchr::memmem::find(value.as_bytes(), secret).is_some())
        .map(|(name, _)| name.clone())
        .collect();
    for name in telling {
        headers.remove(name);
    }
    let usage_limit = limit::usage_limit(status, &headers);
    if usage_limit.is_some() {
        limit::end_turn(&mut headers);
    }
    let is_counted = path == "/v1/messages" && status.is_success();
    let body = PassedBody {
        blocks: Some(answer.bytes_stream().boxed()),
        meter: if is_counted {
            meter(&headers)
        } else {
            Meter::Off
        },
        scrubber: Scrubber::new(credential.secret.clone()),
        on_usage: Some(Box::new(on_usage)),
    };
    let mut response = (status, headers, Body::from_stream(body)).into_response();
    if let Some(usage_limit) = usage_limit {
        response.extensions_mut().insert(usage_limit);
    }
    response
}

fn meter(headers: &HeaderMap) -> Meter {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        tracing::warn!("the model API compressed an answer unasked; its tokens are not counted");
        return Meter::Off;
    }
    let kind = headers.get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if is_stream {
        Meter::events()
    } else {
        Meter::answer()
    }
}

/// The answer to a call of a session whose budget is spent: Claude Code ends its turn with it, so
/// that its work can be saved.
#[must_use]
pub fn budget_spent(message: &str) -> Response {
    let mut response = failure(StatusCode::PAYMENT_REQUIRED, "billing_error", message);
    limit::end_turn(response.headers_mut());
    response
}

/// The answer to a call that is to be repeated after so many seconds, because its session has to
/// stand still. No 529: of those Claude Code takes a few only.
#[must_use]
pub fn later(message: &str, retry_after_s: u64) -> Response {
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, "api_error", message);
    let headers = response.headers_mut();
    headers.insert(limit::SHOULD_RETRY, HeaderValue::from_static("true"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    response
}

/// An error of our own in the API's shape, which Claude Code shows to people.
fn failure(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = serde_json::json!({
        "type": "error",
        "error": {"type": kind, "message": message},
    });
    (status, axum::Json(body)).into_response()
}

/// An answer on its way to the sandbox: counted, the credential taken out, not a byte kept longer
/// than that needs.
struct PassedBody {
    /// None once it ended.
    blocks: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    meter: Meter,
    scrubber: Scrubber,
    on_usage: Option<Box<dyn FnOnce(TokenCounts) + Send>>,
}

impl PassedBody {
    fn report(&mut self) {
        if let Some(on_usage) = self.on_usage.take()
            && let Some(counts) = self.meter.finish()
        {
            on_usage(counts);
        }
    }
}

impl Stream for PassedBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(blocks) = &mut self.blocks else {
                return Poll::Ready(None);
            };
            let Poll::Ready(block) = blocks.poll_next_unpin(context) else {
                return Poll::Pending;
            };
            let passed = match block {
                Some(Ok(block)) => {
                    self.meter.read(&block);
                    self.scrubber.pass(block)
                }
                Some(Err(error)) => {
                    self.blocks = None;
                    self.report();
                    return Poll::Ready(Some(Err(io::Error::other(cause(&error)))));
                }
                None => {
                    self.blocks = None;
                    self.report();
                    self.scrubber.finish()
                }
            };
            // Empty where all of it was held back.
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(passed)));
            }
        }
    }
}

impl Drop for PassedBody {
    /// A client that went away has still used what it used.
    fn drop(&mut self) {
        self.report();
    }
}
