//! The events of a session, in all forms.

use std::time::Duration;

use baton::http::{BODY_TIMEOUT, ServeSettings};
use baton_domain::ending::{Ending, Outcome};
use baton_domain::{Attempt, SessionEvent, SessionId};
use expect_test::expect;
use serde_json::{Value, json};

use crate::app::{App, Connection, SECRET};
use crate::sessions::print;

const RUNS: [SessionEvent; 2] = [
    SessionEvent::LaunchDecided(Attempt::FIRST),
    SessionEvent::ClaudeStarted(Attempt::FIRST),
];

fn ends() -> [SessionEvent; 2] {
    [
        SessionEvent::AgentEnded(Attempt::FIRST, Box::<Ending>::default()),
        SessionEvent::Concluded(Attempt::FIRST, Outcome::Completed),
    ]
}

fn path(id: SessionId, query: &str) -> String {
    format!("/api/v1/sessions/{id}/events{query}")
}

/// A session that ran, printed all kinds of lines, and ended.
async fn finished(app: &App) -> SessionId {
    let id = app.created(&[], true).await;
    app.happens(id, &RUNS, None).await;
    let lines: [&[u8]; 6] = [
        b"{\"type\":\"system\", \"n\":1}",
        b"{\"a\":\r1}",
        b"plain \x1b[31m",
        b"{broken",
        b"\xff\xfe",
        b"",
    ];
    print(app, id, 1, &lines).await;
    app.happens(id, &ends(), None).await;
    id
}

fn seqs(lines: &str) -> Vec<u64> {
    let seq = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("JSON");
        event["seq"].as_u64().expect("a number")
    };
    lines.lines().map(seq).collect()
}

#[tokio::test]
async fn lines_hold_everything_that_happened() {
    let app = App::new().await;
    let id = finished(&app).await;
    let reply = app.get(&path(id, "")).await;
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    expect![[r#"
        {"seq":1,"at":"2026-11-22T07:38:22.005Z","type":"session","event":"created"}
        {"seq":2,"at":"2026-11-22T07:38:22.005Z","type":"session","event":"launch_decided","state":"starting"}
        {"seq":3,"at":"2026-11-22T07:38:22.005Z","type":"session","event":"claude_started","state":"running"}
        {"seq":4,"at":"1970-01-01T00:00:00.000Z","type":"claude","message":{"type":"system", "n":1}}
        {"seq":5,"at":"1970-01-01T00:00:00.000Z","type":"claude","message":{"a": 1}}
        {"seq":6,"at":"1970-01-01T00:00:00.000Z","type":"stdout","line":"plain \u001b[31m"}
        {"seq":7,"at":"1970-01-01T00:00:00.000Z","type":"stdout","line":"{broken"}
        {"seq":8,"at":"1970-01-01T00:00:00.000Z","type":"stdout","base64":"//4="}
        {"seq":9,"at":"1970-01-01T00:00:00.000Z","type":"stdout","line":""}
        {"seq":10,"at":"2026-11-22T07:38:22.005Z","type":"session","event":"claude_ended","state":"concluding"}
        {"seq":11,"at":"2026-11-22T07:38:22.005Z","type":"session","event":"concluded","state":"completed"}
    "#]].assert_eq(&reply.text());
}

#[tokio::test]
async fn any_place_is_resumed_without_gap_or_repeat() {
    let app = App::new().await;
    let id = finished(&app).await;
    let all = seqs(&app.get(&path(id, "")).await.text());
    let newest = all.len() as u64;
    assert_eq!(all, (1..=newest).collect::<Vec<_>>());
    for after in 0..=newest {
        let rest = app
            .get(&path(id, &format!("?after={after}&follow=true")))
            .await;
        assert_eq!(seqs(&rest.text()), (after + 1..=newest).collect::<Vec<_>>());
        let two = app.get(&path(id, &format!("?after={after}&limit=2"))).await;
        assert_eq!(
            seqs(&two.text()),
            (after + 1..=newest.min(after + 2)).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn long_output_comes_in_many_pages() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    app.happens(id, &RUNS, None).await;
    let line = "x".repeat(1_000);
    let lines: Vec<&[u8]> = vec![line.as_bytes(); 5_000];
    print(&app, id, 1, &lines).await;
    let reply = app.get(&path(id, "")).await;
    assert_eq!(seqs(&reply.text()), (1..=5_003).collect::<Vec<_>>());
}

/// The next server-sent event: its id and its data.
async fn sent(stream: &mut Connection, buffer: &mut String) -> Option<(Option<u64>, String)> {
    while !buffer.contains("\n\n") {
        let chunk = stream.chunk().await?;
        buffer.push_str(&String::from_utf8(chunk).expect("UTF-8"));
    }
    let (event, rest) = buffer.split_once("\n\n").expect("an event");
    let event = event.to_owned();
    *buffer = rest.to_owned();
    let field = |name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let id = field("id").and_then(|id| id.parse().ok());
    Some((id, field("data").unwrap_or_default().to_owned()))
}

#[tokio::test]
async fn server_sent_events_come_as_they_happen_and_end_with_the_session() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let mut stream = app.connect().await;
    let accept = "Accept: text/event-stream\r\n";
    stream
        .write(&app.request("GET", &path(id, ""), accept, b""))
        .await;
    let head = stream.head().await;
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let mut buffer = String::new();
    let mut next = 1;
    let mut expect_next = async |count: u64, stream: &mut Connection| {
        for _ in 0..count {
            let (id, data) = sent(stream, &mut buffer).await.expect("an event");
            assert_eq!(id, Some(next));
            assert_eq!(
                serde_json::from_str::<Value>(&data).expect("JSON")["seq"],
                next
            );
            next += 1;
        }
    };
    expect_next(1, &mut stream).await;
    app.happens(id, &RUNS, None).await;
    expect_next(2, &mut stream).await;
    print(&app, id, 1, &[b"{\"a\":\r1}", b"two"]).await;
    expect_next(2, &mut stream).await;
    app.happens(id, &ends(), None).await;
    expect_next(2, &mut stream).await;
    assert_eq!(
        sent(&mut stream, &mut buffer).await,
        Some((None, "{}".to_owned()))
    );
    assert!(stream.chunk().await.is_none());

    let resumed = format!("{accept}Last-Event-ID: 5\r\n");
    let rest = app
        .send(&app.request("GET", &path(id, "?after=1"), &resumed, b""))
        .await;
    assert!(
        rest.text().starts_with("id: 6\n") && rest.text().ends_with("event: end\ndata: {}\n\n")
    );
    let at_end = format!("{accept}Last-Event-ID: 7\r\n");
    let nothing = app
        .send(&app.request("GET", &path(id, ""), &at_end, b""))
        .await;
    assert_eq!(nothing.status, 204);
}

/// A text message of a WebSocket; none when it is closed. The server does not mask what it sends.
async fn message(stream: &mut Connection) -> Option<String> {
    let head = stream.bytes(2).await;
    let length = match head[1] {
        126 => {
            let length = stream.bytes(2).await;
            usize::from(length[0]) << 8 | usize::from(length[1])
        }
        length => usize::from(length),
    };
    let payload = stream.bytes(length).await;
    let text = String::from_utf8_lossy(&payload).into_owned();
    (head[0] == 0x81).then_some(text)
}

/// Asks for a WebSocket.
fn upgrade(app: &App, path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
        app.address
    )
}

#[tokio::test]
async fn a_web_socket_keeps_its_place_and_does_not_hold_up_the_end() {
    let settings = ServeSettings {
        connections_max: 1,
        drain_timeout: Duration::from_millis(50),
        ..ServeSettings::default()
    };
    let mut app = App::with(settings, BODY_TIMEOUT).await;
    let id = app.created(&[], true).await;
    app.happens(id, &RUNS, None).await;
    let bearer = format!("Authorization: Bearer {SECRET}\r\n");
    let mut stream = app.connect().await;
    let asked = upgrade(&app, &path(id, "?after=3"), &bearer);
    stream.write(asked.as_bytes()).await;
    assert_eq!(stream.head().await.status, 101);
    let mut other = app.connect().await;
    other.write(&app.request("GET", "/health", "", b"")).await;
    {
        let answer = other.reply();
        tokio::pin!(answer);
        // The server has had all the time it takes to answer.
        for position in 1..=20 {
            print(&app, id, position, &[b"{\"n\":1}"]).await;
            message(&mut stream).await.expect("a message");
            let is_answered = futures::poll!(answer.as_mut()).is_ready();
            assert!(!is_answered, "there is one place only");
        }
        drop(stream);
        assert_eq!(answer.await.status, 200);
    }
    drop(other);

    // More than what the kernel keeps for a client that does not read.
    let line = vec![b'x'; 1024 * 1024];
    for position in 21..=40 {
        print(&app, id, position, &[&line]).await;
    }
    let mut stuck = app.connect().await;
    stuck.write(asked.as_bytes()).await;
    assert_eq!(stuck.head().await.status, 101);
    app.stopping.cancel();
    let served = app.served.take().expect("a server");
    served.await.expect("the server came to its end");
}

#[tokio::test]
async fn a_web_socket_gets_one_message_for_each_event() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    app.happens(id, &RUNS, None).await;
    let upgrade = |headers: &str| upgrade(&app, &path(id, "?after=1"), headers);
    let stranger = app.send(upgrade("").as_bytes()).await;
    stranger.is_error(401, "unauthorized");
    let bearer = format!("Authorization: Bearer {SECRET}\r\n");
    let other = upgrade(&format!("{bearer}Origin: https://evil.example\r\n"));
    app.send(other.as_bytes())
        .await
        .is_error(403, "forbidden_origin");

    let mut stream = app.connect().await;
    stream.write(upgrade(&bearer).as_bytes()).await;
    assert_eq!(stream.head().await.status, 101);
    print(&app, id, 1, &[b"{\"n\":1}"]).await;
    app.happens(id, &ends(), None).await;
    for seq in 2..=6 {
        let text = message(&mut stream).await.expect("a message");
        let event: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(event["seq"], seq);
        if seq == 4 {
            assert_eq!(
                (&event["type"], &event["message"]),
                (&json!("claude"), &json!({ "n": 1 }))
            );
        }
    }
    assert_eq!(message(&mut stream).await, None);
}
