//! The stand-in over HTTP, as its callers meet it.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, Response, StatusCode};
use expect_test::expect;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use scripted_model::{Answered, AuthKind, Options, ScriptedModel, Scripts};
use serde_json::{Value, json};

/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

async fn started(script: &str, options: Options) -> ScriptedModel {
    let scripts = Scripts::from_texts([("story", script)]).expect("the script is valid");
    ScriptedModel::start("127.0.0.1:0", scripts, options)
        .await
        .expect("a free port")
}

fn conversation(answers: usize, stream: bool) -> Value {
    let mut messages = vec![json!({"role": "user", "content": "tell the story"})];
    for _ in 0..answers {
        messages.push(json!({"role": "assistant", "content": "…"}));
        messages.push(json!({"role": "user", "content": "go on"}));
    }
    json!({"model": "any-model", "stream": stream, "tools": [{"name": "Bash"}], "messages": messages})
}

async fn call(
    model: &ScriptedModel,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Response<axum::body::Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(model.base_url() + path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::from(body.to_string()));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request.body(body).expect("a valid request"));
    let response = tokio::time::timeout(PATIENCE, response)
        .await
        .expect("an answer in time");
    response.expect("an answer").map(axum::body::Body::new)
}

async fn ask(model: &ScriptedModel, request: &Value) -> Response<axum::body::Body> {
    call(model, Method::POST, "/v1/messages", &[], request).await
}

async fn body(response: Response<axum::body::Body>) -> Bytes {
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
    body.expect("a body in time")
        .expect("a whole body")
        .to_bytes()
}

async fn json_of(response: Response<axum::body::Body>) -> Value {
    serde_json::from_slice(&body(response).await).expect("a JSON body")
}

const STORY: &str = "
    match = ['tell the story']
    closing = 'The end.'
    [[turn]]
    text = 'Once upon a time'
    [[turn]]
    text = 'there was a file.'
";

#[tokio::test]
async fn whole_message_is_answered_without_a_stream() {
    let model = started(STORY, Options::default()).await;
    let message = json_of(ask(&model, &conversation(1, false)).await).await;
    assert_eq!(message["content"][0]["text"], "there was a file.");
    assert_eq!(message["model"], "any-model");
    assert_eq!(message["stop_reason"], "end_turn");
}

#[tokio::test]
async fn stream_begins_and_ends_as_the_api_says() {
    let model = started(STORY, Options::default()).await;
    let response = ask(&model, &conversation(0, true)).await;
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let text = String::from_utf8(body(response).await.to_vec()).expect("UTF-8");
    let events: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(events.first(), Some(&"message_start"));
    assert_eq!(events.last(), Some(&"message_stop"));
    assert!(text.contains("Once upon a time"));
}

#[tokio::test]
async fn closing_follows_the_last_turn() {
    let model = started(STORY, Options::default()).await;
    let message = json_of(ask(&model, &conversation(2, false)).await).await;
    assert_eq!(message["content"][0]["text"], "The end.");
}

#[tokio::test]
async fn repeated_request_plays_the_same_turn_after_a_restart_too() {
    for _ in 0..2 {
        let model = started(STORY, Options::default()).await;
        for _ in 0..2 {
            let message = json_of(ask(&model, &conversation(1, false)).await).await;
            assert_eq!(message["content"][0]["text"], "there was a file.");
        }
        model.stop().await;
    }
}

#[tokio::test]
async fn prompt_without_a_script_is_not_found() {
    let model = started(STORY, Options::default()).await;
    let mut request = conversation(0, true);
    request["messages"][0]["content"] = json!("sing");
    let response = ask(&model, &request).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(json_of(response).await["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn only_the_required_key_is_let_in() {
    let options = Options {
        require_key: Some("right".into()),
    };
    let model = started(STORY, options).await;
    let request = conversation(0, false);
    let cases: [(&[(&str, &str)], StatusCode); 5] = [
        (&[], StatusCode::UNAUTHORIZED),
        (&[("x-api-key", "wrong")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "right")], StatusCode::UNAUTHORIZED),
        (&[("x-api-key", "right")], StatusCode::OK),
        (&[("authorization", "Bearer right")], StatusCode::OK),
    ];
    for (headers, status) in cases {
        let response = call(&model, Method::POST, "/v1/messages", headers, &request).await;
        assert_eq!(response.status(), status, "{headers:?}");
    }
    let entries = model.journal().entries();
    let kinds: Vec<AuthKind> = entries.iter().map(|entry| entry.auth).collect();
    use AuthKind as A;
    assert_eq!(kinds, [A::None, A::ApiKey, A::Bearer, A::ApiKey, A::Bearer]);
    assert_eq!(
        entries
            .iter()
            .filter(|e| e.answered == Answered::Unauthorized)
            .count(),
        3
    );
    // Nowhere in what is shown of them does the key occur.
    let response = call(&model, Method::GET, "/journal", &[], &json!(null)).await;
    assert!(!String::from_utf8_lossy(&body(response).await).contains("right"));
}

#[tokio::test]
async fn fault_happens_as_often_as_asked_in_each_conversation() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'fine'\nfault_times = 2
         fault = { kind = 'status', status = 429, retry_after_s = 7 }",
        Options::default(),
    )
    .await;
    for session in ["a", "b"] {
        let headers = [("x-claude-code-session-id", session)];
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let request = conversation(0, false);
            let response = call(&model, Method::POST, "/v1/messages", &headers, &request).await;
            if response.status() != StatusCode::OK {
                assert_eq!(response.headers()["retry-after"], "7");
            }
            statuses.push(response.status().as_u16());
        }
        assert_eq!(statuses, [429, 429, 200]);
    }
}

#[tokio::test]
async fn usage_limit_is_told_in_the_headers_of_the_real_one() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'fine'\nfault_times = 1
         fault = { kind = 'usage_limit', resets_in_s = 60 }",
        Options::default(),
    )
    .await;
    let request = conversation(0, false);
    let response = call(&model, Method::POST, "/v1/messages", &[], &request).await;
    assert_eq!(response.status(), 429);
    let headers = response.headers();
    assert_eq!(headers["anthropic-ratelimit-unified-status"], "rejected");
    let reset = headers["anthropic-ratelimit-unified-reset"].to_str();
    let reset: i64 = reset.expect("digits").parse().expect("seconds");
    assert!((55..=60).contains(&(reset - jiff::Timestamp::now().as_second())));
    let response = call(&model, Method::POST, "/v1/messages", &[], &request).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn fault_of_a_script_is_counted_over_all_conversations() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'fine'\nfault_times = 1\nfault_scope = 'script'
         fault = { kind = 'status', status = 529 }",
        Options::default(),
    )
    .await;
    for (session, status) in [("a", 529), ("b", 200)] {
        let headers = [("x-claude-code-session-id", session)];
        let request = conversation(0, false);
        let response = call(&model, Method::POST, "/v1/messages", &headers, &request).await;
        assert_eq!(response.status().as_u16(), status);
    }
}

#[tokio::test]
async fn error_has_the_shape_of_the_api() {
    let model = started(
        "match = ['tell']\n[[turn]]\nfault = { kind = 'status', status = 529 }",
        Options::default(),
    )
    .await;
    let mut error = json_of(ask(&model, &conversation(0, true)).await).await;
    assert!(
        error["request_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("req_"))
    );
    error["request_id"] = json!("req_1");
    expect![[
        r#"{"error":{"message":"Overloaded","type":"overloaded_error"},"request_id":"req_1","type":"error"}"#
    ]]
    .assert_eq(&error.to_string());
}

#[tokio::test]
async fn cut_stream_breaks_the_connection() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'a text that takes more than one chunk'
         fault = { kind = 'cut', after_chunks = 1 }",
        Options::default(),
    )
    .await;
    for stream in [true, false] {
        let response = ask(&model, &conversation(0, stream)).await;
        assert_eq!(response.status(), StatusCode::OK);
        response
            .into_body()
            .collect()
            .await
            .expect_err("the body must break off");
    }
}

#[tokio::test]
async fn stalled_stream_says_nothing_until_the_server_ends() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'x'\nfault = { kind = 'stall', after_chunks = 1 }",
        Options::default(),
    )
    .await;
    let mut body = ask(&model, &conversation(0, true)).await.into_body();
    let mut seen = String::new();
    while !seen.contains("content_block_delta") {
        let frame = body.frame().await.expect("more to come").expect("a frame");
        seen.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
    model.stop().await;
    let rest = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .expect("an end in time");
    rest.expect_err("the stream must not end well");
    assert!(!seen.contains("message_stop"));
}

#[tokio::test]
async fn held_turn_is_played_once_released() {
    let model = started(
        "match = ['tell']\n[[turn]]\ntext = 'released'\nhold = 'gate'",
        Options::default(),
    )
    .await;
    let request = conversation(0, false);
    let release = async {
        model
            .journal()
            .wait_until(PATIENCE, |entries| {
                entries.iter().any(|entry| entry.asks("story", 0))
            })
            .await
            .expect("the request arrives");
        call(&model, Method::POST, "/release/gate", &[], &json!(null)).await
    };
    let (answer, released) = tokio::join!(ask(&model, &request), release);
    assert_eq!(released.status(), StatusCode::NO_CONTENT);
    assert_eq!(json_of(answer).await["content"][0]["text"], "released");
}

#[tokio::test]
async fn journal_tells_scripts_and_turns() {
    let model = started(STORY, Options::default()).await;
    let headers = [
        ("x-claude-code-session-id", "s1"),
        ("authorization", "Bearer secret"),
    ];
    let request = conversation(1, false);
    call(&model, Method::POST, "/v1/messages", &headers, &request).await;
    let path = "/journal?script=story&turn=1";
    let journal = json_of(call(&model, Method::GET, path, &[], &json!(null)).await).await;
    let mut entry = journal["entries"][0].clone();
    entry["at"] = json!("…");
    entry["body_bytes"] = json!(0);
    expect![[
        r#"{"answered":"turn","at":"…","auth":"bearer","body_bytes":0,"claude_session_id":"s1","last_user_text":"go on","method":"POST","model":"any-model","path":"/v1/messages","prompt":"tell the story","script":"story","seq":0,"stream":false,"turn":1}"#
    ]]
    .assert_eq(&entry.to_string());
    assert_eq!(model.journal().asked("story", 1), 1);
}

#[tokio::test]
async fn probes_and_unknown_paths_are_answered() {
    let model = started(STORY, Options::default()).await;
    let cases = [
        (Method::HEAD, "/", 200),
        (Method::GET, "/", 200),
        (Method::HEAD, "/api/hello", 200),
        (Method::POST, "/v1/messages/count_tokens", 200),
        (Method::GET, "/v1/nothing", 404),
        (Method::GET, "/v1/messages", 404),
    ];
    for (method, path, status) in cases {
        let response = call(&model, method.clone(), path, &[], &conversation(0, false)).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        if path == "/v1/nothing" {
            assert_eq!(json_of(response).await["type"], "error");
        }
    }
}

#[tokio::test]
async fn stopped_server_frees_its_address() {
    let model = started(STORY, Options::default()).await;
    let address = model.address().to_string();
    ask(&model, &conversation(0, true)).await;
    model.stop().await;
    let scripts = Scripts::from_texts([("story", STORY)]).expect("the script is valid");
    ScriptedModel::start(&address, scripts, Options::default())
        .await
        .expect("the same port");
}
