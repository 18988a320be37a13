//! Who is let in, and with what.

use std::time::Duration;

use baton::http::{BODY_TIMEOUT, ServeSettings, openapi};
use baton::orchestrator::Refusal;
use serde_json::json;

use crate::app::{App, OLD_SECRET, SECRET};

const LIST: &[u8] = br#"{"type":"session.list"}"#;

async fn post(app: &App, headers: &str, body: &[u8]) -> crate::app::Reply {
    app.send(&app.request("POST", "/api/webhooks/claude", headers, body))
        .await
}

#[tokio::test]
async fn only_the_right_token_is_let_in() {
    let app = App::new().await;
    for good in [SECRET, OLD_SECRET] {
        let reply = post(&app, &format!("Authorization: bearer  {good} \r\n"), LIST).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let long = format!("Bearer {}", "x".repeat(10_000));
    let twice = format!("Bearer {SECRET}\r\nAuthorization: Bearer {SECRET}");
    for bad in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer sesame",
        "Basic eDp5",
        SECRET,
        &long,
        &twice,
    ] {
        let reply = post(&app, &format!("Authorization: {bad}\r\n"), LIST).await;
        reply.is_error(401, "unauthorized");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert!(!reply.text().contains("sesame"));
    }
}

#[tokio::test]
async fn a_stranger_is_refused_before_the_body_is_read() {
    let app = App::new().await;
    let mut connection = app.connect().await;
    let head = format!(
        "POST /api/webhooks/claude HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n\r\n",
        app.address
    );
    connection.write(head.as_bytes()).await;
    connection.reply().await.is_error(401, "unauthorized");
    for path in ["/", "/api/v1/openapi.json", "/metrics"] {
        let request = app.request("GET", path, "Authorization: Bearer wrong\r\n", b"");
        app.send(&request).await.is_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn many_failures_are_told_to_wait_and_the_right_token_is_not() {
    let app = App::new().await;
    for _ in 0..10 {
        post(&app, "Authorization: Bearer wrong\r\n", LIST)
            .await
            .is_error(401, "unauthorized");
    }
    let reply = post(&app, "Authorization: Bearer wrong\r\n", LIST).await;
    reply.is_error(429, "too_many_requests");
    let wait: u64 = reply
        .header("retry-after")
        .and_then(|s| s.parse().ok())
        .expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(post(&app, "", LIST).await.status, 200);
}

/// Anybody can write these headers: who does could try a thousand tokens as a thousand clients.
#[tokio::test]
async fn failures_are_counted_whomever_the_client_says_it_is() {
    let app = App::new().await;
    let wrong = |number: u8| {
        let from = format!("203.0.113.{number}");
        format!(
            "Authorization: Bearer wrong{number}\r\nX-Forwarded-For: {from}\r\n\
             Forwarded: for={from}\r\nX-Real-IP: {from}\r\n"
        )
    };
    for number in 1..=10 {
        post(&app, &wrong(number), LIST)
            .await
            .is_error(401, "unauthorized");
    }
    post(&app, &wrong(11), LIST)
        .await
        .is_error(429, "too_many_requests");
}

#[tokio::test]
async fn no_method_of_the_door_for_models_is_open_to_strangers() {
    let app = App::new().await;
    for method in ["GET", "DELETE", "POST"] {
        let request = format!(
            "{method} /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Accept: application/json, text/event-stream\r\nMcp-Session-Id: 1\r\n\r\n",
            app.address
        );
        let reply = app.send(request.as_bytes()).await;
        assert_eq!(reply.status, 401, "{method}: {}", reply.text());
        reply.is_error(401, "unauthorized");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{method}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_and_rebound_names_are_refused() {
    let app = App::new().await;
    let own = app.address;
    for origin in [
        "null",
        "https://evil.example",
        "http://localhost:1",
        "http://127.0.0.1",
    ] {
        let reply = post(&app, &format!("Origin: {origin}\r\n"), LIST).await;
        reply.is_error(403, "forbidden_origin");
        let health = app.request("GET", "/health", &format!("Origin: {origin}\r\n"), b"");
        app.send(&health).await.is_error(403, "forbidden_origin");
    }
    assert_eq!(
        post(&app, &format!("Origin: http://{own}\r\n"), LIST)
            .await
            .status,
        200
    );
    for (host, status) in [
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
        ("localhost", 200),
        ("LocalHost:3002", 200),
        ("[::1]:1", 200),
        ("baton.example", 200),
    ] {
        let request = String::from_utf8(app.request("GET", "/health", "", b"")).expect("text");
        let request = request.replace(&format!("Host: {own}"), &format!("Host: {host}"));
        let reply = app.send(request.as_bytes()).await;
        assert_eq!(reply.status, status, "{host:?}: {}", reply.text());
    }
    let two = app.request("GET", "/health", "Host: localhost\r\n", b"");
    app.send(&two).await.is_error(403, "forbidden_origin");
    let whole = format!("GET http://evil.example/health HTTP/1.1\r\nHost: {own}\r\n\r\n");
    app.send(whole.as_bytes())
        .await
        .is_error(403, "forbidden_origin");
}

#[tokio::test]
async fn answers_say_how_they_may_be_used() {
    let app = App::new().await;
    for path in ["/health", "/nothing", "/api/v1/sessions"] {
        let reply = app.get(path).await;
        assert_eq!(
            reply.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
        assert!(
            reply.header("access-control-allow-origin").is_none(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn methods_and_types_a_path_does_not_take() {
    let app = App::new().await;
    for (method, path, allowed) in [
        ("GET", "/api/webhooks/claude", "POST"),
        ("PUT", "/api/webhooks/claude", "POST"),
        ("DELETE", "/api/v1/sessions", "GET,HEAD,POST"),
        ("OPTIONS", "/api/v1/sessions", "GET,HEAD,POST"),
        ("POST", "/health", "GET,HEAD"),
    ] {
        let reply = app.send(&app.request(method, path, "", b"")).await;
        reply.is_error(405, "method_not_allowed");
        assert_eq!(reply.header("allow"), Some(allowed), "{method} {path}");
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin1",
        "application/jsonx",
        "",
    ] {
        let reply = post(&app, &format!("Content-Type: {kind}\r\n"), LIST).await;
        reply.is_error(415, "unsupported_media_type");
    }
    for kind in [
        "application/json;charset=utf-8",
        "Application/JSON; charset=\"UTF-8\"",
    ] {
        let reply = post(&app, &format!("Content-Type: {kind}\r\n"), LIST).await;
        assert_eq!(reply.status, 200, "{kind}");
    }
    let untyped = app.request("POST", "/api/webhooks/claude", "", b"");
    app.send(&untyped)
        .await
        .is_error(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_body_is_a_mebibyte_at_most() {
    let app = App::new().await;
    let fits = format!(
        "{}{}",
        "{\"type\":\"session.list\"}",
        " ".repeat(1024 * 1024 - 23)
    );
    assert_eq!(fits.len(), 1024 * 1024);
    assert_eq!(post(&app, "", fits.as_bytes()).await.status, 200);
    post(&app, "", format!("{fits} ").as_bytes())
        .await
        .is_error(413, "too_large");

    // Said to be too long: refused without a byte of it.
    let mut connection = app.connect().await;
    let head =
        String::from_utf8(app.request("POST", "/api/webhooks/claude", "", b"x")).expect("text");
    let head = head.replace("Content-Length: 1\r\n", "Content-Length: 99999999999\r\n");
    connection.write(head.as_bytes()).await;
    connection.reply().await.is_error(413, "too_large");

    // Not said: refused when it gets there, and not read any further.
    let mut connection = app.connect().await;
    let head = head.replace(
        "Content-Length: 99999999999\r\n",
        "Transfer-Encoding: chunked\r\n",
    );
    connection.write(&head.as_bytes()[..head.len() - 1]).await;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..17 {
        connection.write(chunk.as_bytes()).await;
    }
    connection.reply().await.is_error(413, "too_large");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let app = App::with(ServeSettings::default(), Duration::from_millis(50)).await;
    let mut connection = app.connect().await;
    let whole = app.request("POST", "/api/webhooks/claude", "", LIST);
    connection.write(&whole[..whole.len() - 1]).await;
    connection.reply().await.is_error(408, "request_timeout");
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let settings = ServeSettings {
        header_timeout: Duration::from_millis(50),
        connections_max: 1,
        ..ServeSettings::default()
    };
    let app = App::with(settings, BODY_TIMEOUT).await;
    let mut slow = app.connect().await;
    slow.write(b"GET /health HTTP/1.1\r\nHost: ").await;
    // There is one place only: this is answered when the slow one was shown out.
    assert_eq!(app.get("/health").await.status, 200);
    while slow.line().await.is_some() {}
    // An idle connection does not keep its place either.
    let mut idle = app.connect().await;
    idle.write(format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", app.address).as_bytes())
        .await;
    assert_eq!(idle.reply().await.status, 200);
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test]
async fn health_says_which_part_does_not_work_and_no_more() {
    let app = App::new().await;
    for path in ["/health", "/api/webhooks/health"] {
        app.admission.set(None);
        let request = app.request("GET", path, "Authorization: \r\n", b"");
        assert_eq!(app.send(&request).await.json(), json!({ "status": "ok" }));
        app.admission.set(Some(Refusal::RuntimeUnavailable));
        let reply = app.send(&request).await;
        assert_eq!(
            reply.json(),
            json!({ "status": "degraded", "degraded": ["runtime"] })
        );
    }
}

#[tokio::test]
async fn the_description_lists_every_path() {
    let app = App::new().await;
    let document = app.get("/api/v1/openapi.json").await.json();
    let described = serde_json::to_value(openapi()).expect("JSON");
    assert_eq!(document, described);
    let paths = document["paths"].as_object().expect("paths");
    for path in [
        "/api/webhooks/claude",
        "/api/v1/sessions",
        "/api/v1/sessions/{id}",
        "/api/v1/sessions/{id}/start",
        "/api/v1/sessions/{id}/cancel",
        "/api/v1/sessions/{id}/output",
        "/api/v1/sessions/{id}/events",
        "/api/v1/orchestrations",
        "/api/v1/orchestrations/{id}",
        "/api/v1/orchestrations/{id}/cancel",
        "/health",
        "/api/webhooks/health",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    assert_eq!(
        document["components"]["securitySchemes"]["bearer"]["scheme"],
        "bearer"
    );
}

#[tokio::test]
async fn a_stopped_server_finishes_what_it_began_and_ends() {
    let mut app = App::new().await;
    let id = app.created(&[], false).await;
    let mut stream = app.connect().await;
    let path = format!("/api/v1/sessions/{id}/events?follow=true");
    stream.write(&app.request("GET", &path, "", b"")).await;
    assert_eq!(stream.head().await.status, 200);
    assert!(stream.chunk().await.is_some());
    app.stopping.cancel();
    assert!(stream.chunk().await.is_none());
    let served = app.served.take().expect("a server");
    tokio::time::timeout(Duration::from_secs(30), served)
        .await
        .expect("in time")
        .expect("its end");
}
