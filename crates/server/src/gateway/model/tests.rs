//! The gateway against a stand-in for the API, over real sockets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use baton_domain::pauses::UsageLimit;
use tokio::sync::{mpsc, oneshot};

use super::*;

const CANARY: &str = "sk-canary-0123456789";
const DUMMY: &str = "dummy-from-the-sandbox";

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// One call as the API saw it.
#[derive(Debug, Clone)]
struct Seen {
    uri: String,
    headers: HeaderMap,
    body: Bytes,
}

type Answer = Arc<dyn Fn(&Seen) -> Response + Send + Sync>;

#[derive(Clone)]
struct Upstream {
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
    url: String,
}

impl Upstream {
    async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let upstream = Self {
            answer: Arc::new(answer),
            seen: Arc::default(),
            url: format!("http://{address}/base/"),
        };
        let router = Router::new()
            .fallback(any(Self::handle))
            .with_state(upstream.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        upstream
    }

    async fn handle(State(this): State<Self>, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let seen = Seen {
            uri: head.uri.to_string(),
            headers: head.headers,
            body: axum::body::to_bytes(body, 1 << 20)
                .await
                .expect("a whole body"),
        };
        let answer = (this.answer)(&seen);
        let mut all = this.seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
        answer
    }

    fn gateway(&self, credential: Option<Credential>) -> ModelGateway {
        ModelGateway::new(ModelSettings {
            base_url: self.url.clone(),
            credential,
        })
        .expect("usable settings")
    }

    fn only_call(&self) -> Seen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }

    fn is_untouched(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_empty()
    }
}

fn api_key() -> Option<Credential> {
    Some(Credential::ApiKey(CANARY.into()))
}

fn request(method: &str, body: &'static str) -> Request {
    Request::builder()
        .method(method)
        .uri("/model/ignored")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {DUMMY}"))
        .header("x-api-key", DUMMY)
        .header("cookie", DUMMY)
        .header("proxy-authorization", DUMMY)
        .header("x-forwarded-for", "10.0.0.1")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", DUMMY)
        .header("accept-encoding", "gzip, br")
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "one-2025-01-01,two-2025-01-01")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .expect("a request")
}

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .expect("a whole body");
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Forwards a message and gives what the API saw.
async fn seen_with(credential: Credential) -> Seen {
    let upstream = Upstream::start(|_| "{}".into_response()).await;
    let gateway = upstream.gateway(Some(credential));
    let response = gateway
        .forward(
            "/v1/messages?beta=true",
            request("POST", "{\"a\":1}"),
            |_| {},
        )
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let seen = upstream.only_call();
    assert_eq!(seen.uri, "/base/v1/messages?beta=true");
    assert_eq!(seen.body, "{\"a\":1}");
    assert!(!format!("{:?}", seen.headers).contains(DUMMY), "{seen:?}");
    for gone in ["cookie", "x-hop", "x-forwarded-for", "proxy-authorization"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(seen.headers["anthropic-version"], "2023-06-01");
    assert_eq!(seen.headers["accept-encoding"], "identity");
    seen
}

#[tokio::test]
async fn an_api_key_takes_the_place_of_what_the_sandbox_sent() {
    let seen = seen_with(Credential::ApiKey(format!("{CANARY}\n").into())).await;
    assert_eq!(seen.headers["x-api-key"], CANARY);
    assert!(!seen.headers.contains_key("authorization"));
    assert_eq!(
        seen.headers["anthropic-beta"],
        "one-2025-01-01,two-2025-01-01"
    );
}

#[tokio::test]
async fn a_subscription_token_is_a_bearer_with_its_beta() {
    let seen = seen_with(Credential::OauthToken(CANARY.into())).await;
    assert_eq!(seen.headers["authorization"], format!("Bearer {CANARY}"));
    assert!(!seen.headers.contains_key("x-api-key"));
    assert_eq!(
        seen.headers["anthropic-beta"],
        "one-2025-01-01,two-2025-01-01,oauth-2025-04-20"
    );
}

#[tokio::test]
async fn an_auth_token_is_a_plain_bearer() {
    let seen = seen_with(Credential::AuthToken(CANARY.into())).await;
    assert_eq!(seen.headers["authorization"], format!("Bearer {CANARY}"));
    assert!(!seen.headers.contains_key("x-api-key"));
    assert_eq!(
        seen.headers["anthropic-beta"],
        "one-2025-01-01,two-2025-01-01"
    );
}

#[tokio::test]
async fn only_the_calls_claude_makes_get_through() {
    let upstream = Upstream::start(|_| "{}".into_response()).await;
    let gateway = upstream.gateway(api_key());
    for (method, path) in [
        ("GET", "/v1/messages"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/organizations/api_keys"),
        ("DELETE", "/v1/models"),
        ("GET", "/v1/models/../files"),
        ("GET", "/v1/models/%2e%2e/files"),
        ("GET", "/v1/models/a/b"),
        ("POST", "/"),
        ("POST", "//v1/messages"),
        ("POST", "@elsewhere/v1/messages"),
    ] {
        let response = gateway.forward(path, request(method, ""), |_| {}).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{method} {path}");
        assert!(text(response).await.contains("\"not_found_error\""));
    }
    assert!(upstream.is_untouched());
    for (method, path) in [
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/models?limit=2"),
        ("GET", "/v1/models/claude-x-4.1"),
        ("HEAD", "/"),
        ("GET", "/"),
    ] {
        let response = gateway.forward(path, request(method, ""), |_| {}).await;
        assert_eq!(response.status(), StatusCode::OK, "{method} {path}");
    }
}

#[tokio::test]
async fn without_a_credential_the_answer_says_what_to_set() {
    let upstream = Upstream::start(|_| "{}".into_response()).await;
    let gateway = upstream.gateway(None);
    let response = gateway
        .forward("/v1/messages", request("POST", "{}"), |_| {})
        .await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let text = text(response).await;
    assert!(text.contains("\"authentication_error\""), "{text}");
    assert!(text.contains("ANTHROPIC_API_KEY"), "{text}");
    assert!(upstream.is_untouched());
}

#[tokio::test]
async fn an_api_out_of_reach_is_an_error_that_clients_repeat() {
    let gateway = ModelGateway::new(ModelSettings {
        // Nothing listens on port 1.
        base_url: "http://127.0.0.1:1".to_owned(),
        credential: api_key(),
    })
    .expect("usable settings");
    let response = gateway
        .forward("/v1/messages", request("POST", "{}"), |_| {})
        .await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()["x-should-retry"], "true");
    let text = text(response).await;
    assert!(text.contains("\"api_error\""), "{text}");
    assert!(text.contains("cannot be reached"), "{text}");
}

/// What Claude Code gets for an API that answers with `status` and `headers`, and the limit in it.
async fn refused_with(
    status: StatusCode,
    headers: &'static [(&'static str, &'static str)],
) -> (HeaderMap, Option<UsageLimit>) {
    let upstream = Upstream::start(move |_| {
        let mut answer = (status, "{}").into_response();
        for (name, value) in headers {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(*name, value);
        }
        answer
    })
    .await;
    let response = upstream
        .gateway(api_key())
        .forward("/v1/messages", request("POST", "{}"), |_| {})
        .await;
    assert_eq!(response.status(), status);
    let limit = response.extensions().get().copied();
    (response.headers().clone(), limit)
}

#[tokio::test]
async fn a_usage_limit_is_told_and_not_asked_about_again() {
    let rejected = ("anthropic-ratelimit-unified-status", "rejected");
    let reset = ("anthropic-ratelimit-unified-reset", "1795358226");
    let headers: &[_] = Box::leak(Box::new([rejected, reset, ("retry-after", "7200")]));
    let (headers, limit) = refused_with(StatusCode::TOO_MANY_REQUESTS, headers).await;
    assert_eq!(headers["x-should-retry"], "false");
    let limit = limit.expect("a limit");
    assert_eq!(
        limit.resets_at.map(jiff::Timestamp::as_second),
        Some(1_795_358_226)
    );
    assert_eq!(limit.retry_after.map(|wait| wait.as_secs()), Some(7_200));
    // Beyond the limit, but answered.
    let (_, limit) = refused_with(StatusCode::OK, Box::leak(Box::new([rejected]))).await;
    assert_eq!(limit, None);
}

#[tokio::test]
async fn a_call_that_came_too_early_is_left_to_claude() {
    let status = ("anthropic-ratelimit-unified-status", "allowed");
    let headers: &[_] = Box::leak(Box::new([status, ("retry-after", "7")]));
    for headers in [headers, &[]] {
        let (headers, limit) = refused_with(StatusCode::TOO_MANY_REQUESTS, headers).await;
        assert!(!headers.contains_key("x-should-retry"));
        assert_eq!(limit, None);
    }
}

#[tokio::test]
async fn a_spent_budget_ends_the_turn() {
    let response = budget_spent("spent");
    assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(text(response).await.contains("\"billing_error\""));
}

#[test]
fn a_call_costs_what_its_tokens_cost() {
    let gateway = ModelGateway::new(ModelSettings {
        base_url: "http://127.0.0.1".to_owned(),
        credential: None,
    });
    let counts = TokenCounts {
        model: Some("claude-opus-5-5".to_owned()),
        input_tokens: 100_000,
        cache_creation_input_tokens: 10_000,
        cache_read_input_tokens: 1_000_000,
        output_tokens: 1_000,
    };
    let cost_usd = gateway.expect("usable settings").cost_usd(&counts);
    assert!((cost_usd - 0.67).abs() < 1e-9, "{cost_usd}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let upstream = Upstream::start(|_| {
        (
            StatusCode::TEMPORARY_REDIRECT,
            [("location", "http://127.0.0.1:1/")],
        )
            .into_response()
    })
    .await;
    let response = upstream
        .gateway(api_key())
        .forward("/v1/messages", request("POST", "{}"), |_| {})
        .await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(!response.headers().contains_key("location"));
}

#[tokio::test]
async fn the_credential_never_comes_back() {
    let upstream = Upstream::start(|seen| {
        let key = seen.headers["x-api-key"].to_str().unwrap_or_default();
        let (start, end) = key.split_at(5);
        let blocks = [format!("{{\"key\":\"{start}"), format!("{end}\"}}")];
        let blocks = blocks.map(|block| Ok::<_, io::Error>(Bytes::from(block)));
        (
            StatusCode::BAD_REQUEST,
            [
                ("x-echo", format!("was {key}")),
                ("set-cookie", "a=b".to_owned()),
                ("request-id", "req_1".to_owned()),
            ],
            Body::from_stream(futures::stream::iter(blocks)),
        )
            .into_response()
    })
    .await;
    let response = upstream
        .gateway(api_key())
        .forward("/v1/messages", request("POST", "{}"), |_| {})
        .await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(response.headers()["request-id"], "req_1");
    assert!(!response.headers().contains_key("x-echo"));
    assert!(!response.headers().contains_key("set-cookie"));
    assert_eq!(text(response).await, "{\"key\":\"[redacted]\"}");
}

/// An API that streams what it is told to, for as long as it is not told to end.
async fn streaming_upstream() -> (Upstream, mpsc::UnboundedSender<&'static str>) {
    let (sender, receiver) = mpsc::unbounded_channel::<&str>();
    let receiver = Mutex::new(Some(receiver));
    let upstream = Upstream::start(move |_| {
        let receiver = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .expect("one call");
        let blocks = futures::stream::unfold(receiver, |mut receiver| async move {
            let block = receiver.recv().await?;
            Some((Ok::<_, io::Error>(Bytes::from(block)), receiver))
        });
        (
            [("content-type", "text/event-stream; charset=utf-8")],
            Body::from_stream(blocks),
        )
            .into_response()
    })
    .await;
    (upstream, sender)
}

const MESSAGE_START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":\
    {\"model\":\"m\",\"usage\":{\"input_tokens\":4,\"output_tokens\":1}}}\n\n";
const MESSAGE_DELTA: &str =
    "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":9}}\n\n";

#[tokio::test]
async fn a_stream_is_passed_on_as_it_comes_and_counted() {
    let (upstream, say) = streaming_upstream().await;
    let (report, reported) = oneshot::channel();
    say.send(MESSAGE_START).expect("the stream is open");
    let response = upstream
        .gateway(api_key())
        .forward("/v1/messages", request("POST", "{}"), move |counts| {
            let _ = report.send(counts);
        })
        .await;
    let mut blocks = response.into_body().into_data_stream();
    // The API has not ended its answer, and does not before the first piece has come through.
    let first = tokio::time::timeout(PATIENCE, blocks.next())
        .await
        .expect("unbuffered")
        .expect("a piece")
        .expect("whole");
    assert_eq!(first, MESSAGE_START);
    say.send(MESSAGE_DELTA).expect("the stream is open");
    drop(say);
    let second = blocks.next().await.expect("a piece").expect("whole");
    assert_eq!(second, MESSAGE_DELTA);
    assert!(blocks.next().await.is_none());
    let counts = reported.await.expect("a report");
    assert_eq!((counts.input_tokens, counts.output_tokens), (4, 9));
}

#[tokio::test]
async fn a_stream_given_up_by_the_client_is_still_counted() {
    let (upstream, say) = streaming_upstream().await;
    let (report, reported) = oneshot::channel();
    say.send(MESSAGE_START).expect("the stream is open");
    let response = upstream
        .gateway(api_key())
        .forward("/v1/messages", request("POST", "{}"), move |counts| {
            let _ = report.send(counts);
        })
        .await;
    let mut blocks = response.into_body().into_data_stream();
    blocks.next().await.expect("a piece").expect("whole");
    drop(blocks);
    let counts = reported.await.expect("a report");
    assert_eq!(counts.input_tokens, 4);
    // The API is let go too.
    tokio::time::timeout(PATIENCE, say.closed())
        .await
        .expect("the upstream call ends");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let new = |base_url: &str, secret: &str| {
        ModelGateway::new(ModelSettings {
            base_url: base_url.to_owned(),
            credential: Some(Credential::ApiKey(secret.into())),
        })
    };
    for bad in ["", "api.example.com", "ftp://h", "unix:/x"] {
        assert!(
            matches!(new(bad, "k"), Err(ModelGatewayError::InvalidBaseUrl)),
            "{bad}"
        );
    }
    assert!(matches!(
        new("http://127.0.0.1", "a\nb"),
        Err(ModelGatewayError::InvalidCredential)
    ));
    assert!(new("https://127.0.0.1/base", "k").is_ok());
}
