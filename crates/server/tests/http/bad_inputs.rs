//! What must be refused: each with a clear 4xx and a stable code, nothing stored, the server alive.

use baton_domain::schedule::PRIORITY_MAX;
use baton_domain::steering::MESSAGE_BYTES_MAX;
use serde_json::{Value, json};

use crate::app::App;

const GOOD_ID: &str = "00000000-0000-7000-8000-000000000001";
/// The largest budget that is taken, in US dollars.
const COST_USD_MAX: f64 = 1_000_000.0;
/// Operations that take the id of a session, and nothing else that must be there.
const ABOUT_A_SESSION: [&str; 5] = [
    "session.get",
    "session.start",
    "session.output",
    "session.cancel",
    "session.retry",
];
/// The same of an orchestration.
const ABOUT_AN_ORCHESTRATION: [&str; 3] = [
    "orchestration.get",
    "orchestration.start",
    "orchestration.cancel",
];

/// One server for a whole list of bad requests; nothing of them may leave a trace.
struct Refusing {
    app: App,
    changes: u64,
    list: String,
}

impl Refusing {
    async fn new() -> Self {
        let app = App::new().await;
        app.created(&[], false).await;
        let list = app.get("/api/v1/sessions").await.text();
        Self {
            changes: app.store.changes(),
            list,
            app,
        }
    }

    async fn raw(&self, body: &[u8], status: u16, code: &str) -> Value {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let request = self.app.request("POST", "/api/webhooks/claude", "", body);
        let reply = self.app.send(&request).await;
        let answer = reply.json();
        assert_eq!(
            (reply.status, answer["code"].as_str()),
            (status, Some(code)),
            "{shown} got {answer}"
        );
        reply.is_error(status, code);
        assert_eq!(
            self.app.store.changes(),
            self.changes,
            "{shown} changed something"
        );
        answer
    }

    async fn body(&self, body: &Value, status: u16, code: &str) -> Value {
        self.raw(body.to_string().as_bytes(), status, code).await
    }

    /// A field that breaks its rules, in both forms; the error names its path.
    async fn field(&self, body: &Value, path: &str) {
        for form in [body.clone(), json!({ "data": body })] {
            let answer = self.body(&form, 400, "invalid_field").await;
            assert_eq!(answer["details"]["path"], path, "{answer}");
            let text = answer["error"].as_str().expect("a text");
            assert!(text.starts_with(path), "{text}");
        }
    }

    async fn is_as_before(&self) {
        assert_eq!(self.app.get("/api/v1/sessions").await.text(), self.list);
        assert_eq!(self.app.get("/health").await.status, 200);
    }
}

/// A good `session.create` with one value changed, or taken away.
fn create_with(pointer: &str, value: Option<Value>) -> Value {
    let mut body = json!({
        "type": "session.create",
        "session": {
            "type": "implementation",
            "project": { "repository": "o/r", "branch": "b", "requirements": "x", "context": "y" },
            "dependencies": [],
            "options": { "autoStart": false, "timeout": 5, "projectSettings": false },
        },
    });
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = body
        .pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .expect("an object");
    match value {
        Some(value) => parent.insert(name.to_owned(), value),
        None => parent.remove(name),
    };
    body
}

fn path_of(pointer: &str) -> String {
    pointer[1..].replace('/', ".")
}

/// What no JSON reader may let through, whatever it is sent for.
fn malformed() -> Vec<Vec<u8>> {
    let deep = format!(
        "{{\"type\":\"session.list\",\"x\":{}{}}}",
        "[".repeat(200),
        "]".repeat(200)
    );
    let million = "[".repeat(1_000_000);
    [
        &br#"{"type":"#[..],
        b" ",
        b"{'type':'session.list'}",
        b"// hello\n{\"type\":\"session.list\"}",
        b"\xef\xbb\xbf{\"type\":\"session.list\"}",
        b"{\"type\":\"session.list\",\"type\":\"session.list\"}",
        b"{\"type\":\"session.list\",\"limit\":NaN}",
        b"{\"type\":\"session.list\",\"x\":01}",
        b"{\"type\":\"session.list\",}",
        b"{\"type\":\"session.list\"}{}",
        b"{\"type\":\"session.list\",\"x\":\"\xff\xfe\"}",
        b"{\"type\":\"session.list\",\"x\":\"\n\"}",
        deep.as_bytes(),
        million.as_bytes(),
    ]
    .map(<[u8]>::to_vec)
    .into()
}

/// Keys that come twice in what only the webhook reads.
const TWICE_IN_A_WEBHOOK: [&[u8]; 2] = [
    b"{\"data\":{\"type\":\"session.list\",\"type\":\"session.get\"}}",
    b"{\"type\":\"session.create\",\"session\":{\"project\":{},\"project\":{}}}",
];

#[tokio::test]
async fn malformed_json() {
    let refusing = Refusing::new().await;
    for body in malformed() {
        refusing.raw(&body, 400, "invalid_json").await;
    }
    for body in TWICE_IN_A_WEBHOOK {
        refusing.raw(body, 400, "invalid_json").await;
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn malformed_json_for_a_resource() {
    let refusing = Refusing::new().await;
    let twice = [
        &br#"{"project":{"repository":"o/r","repository":"o/r","requirements":"x"}}"#[..],
        br#"{"project":{"repository":"o/r","requirements":"x"},"options":{"priority":1,"priority":2}}"#,
    ];
    let not_json = malformed().into_iter().chain(twice.map(<[u8]>::to_vec));
    let not_json = not_json.map(|body| (body, "invalid_json"));
    // What is in fields that are not known here is not looked at; what is needed is missed.
    let webhooks = TWICE_IN_A_WEBHOOK.map(|body| (body.to_vec(), "invalid_field"));
    for (body, code) in not_json.chain(webhooks) {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let request = refusing.app.request("POST", "/api/v1/sessions", "", &body);
        let reply = refusing.app.send(&request).await;
        assert_eq!(reply.status, 400, "{shown} got {}", reply.text());
        reply.is_error(400, code);
    }
    assert_eq!(refusing.app.store.changes(), refusing.changes);
    refusing.is_as_before().await;
}

#[tokio::test]
async fn malformed_json_for_models() {
    let refusing = Refusing::new().await;
    let bodies = malformed().into_iter();
    for body in bodies.chain(TWICE_IN_A_WEBHOOK.map(<[u8]>::to_vec)) {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        // As clients of the earlier revisions ask, and as those of the newest.
        for revision in [
            "",
            "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/list\r\n",
        ] {
            let headers = format!("Accept: application/json, text/event-stream\r\n{revision}");
            let request = refusing.app.request("POST", "/mcp", &headers, &body);
            let reply = refusing.app.send(&request).await;
            let status = reply.status;
            assert!(
                (400..500).contains(&status),
                "{shown} got {status} {}",
                reply.text()
            );
        }
    }
    assert_eq!(refusing.app.store.changes(), refusing.changes);
    refusing.is_as_before().await;
}

#[tokio::test]
async fn bodies_that_are_no_operation() {
    let refusing = Refusing::new().await;
    for body in [
        json!([1]),
        json!("x"),
        json!(null),
        json!(1),
        json!({}),
        json!({ "session": {} }),
        json!({ "type": 5 }),
        json!({ "type": null }),
        json!({ "type": ["session.list"] }),
        json!({ "data": "{\"type\":\"session.list\"}" }),
        json!({ "data": [] }),
        json!({ "data": {} }),
        json!({ "data": { "data": { "type": "session.list" } } }),
    ] {
        refusing.body(&body, 400, "invalid_request").await;
    }
    for unknown in [
        "session.delete",
        "Session.Create",
        "session.create ",
        "",
        "foo",
        "coordinate",
    ] {
        let answer = refusing
            .body(&json!({ "type": unknown }), 400, "unknown_type")
            .await;
        let text = answer["error"].as_str().expect("a text");
        assert!(
            text.contains("session.create") && text.contains("orchestrate"),
            "{text}"
        );
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn wrong_types_at_every_field() {
    let refusing = Refusing::new().await;
    let string = [
        "/session/type",
        "/session/id",
        "/session/project/repository",
        "/session/project/branch",
        "/session/project/requirements",
        "/session/project/context",
    ];
    let cases = string
        .iter()
        .map(|path| (*path, vec![json!(1), json!(true), json!([]), json!({})]));
    let others = [
        ("/session", vec![json!(1), json!("x"), json!([])]),
        ("/session/project", vec![json!(1), json!("o/r"), json!([])]),
        (
            "/session/dependencies",
            vec![json!(1), json!("x"), json!({})],
        ),
        ("/session/options", vec![json!(1), json!("x"), json!([])]),
        (
            "/session/options/autoStart",
            vec![json!(1), json!("true"), json!([])],
        ),
        (
            "/session/options/projectSettings",
            vec![json!(0), json!("yes")],
        ),
        (
            "/session/options/timeout",
            vec![
                json!("5"),
                json!(0),
                json!(-1),
                json!(1.5),
                json!(1e30),
                json!(604_801),
            ],
        ),
    ];
    for (pointer, values) in cases.chain(others) {
        for value in values {
            refusing
                .field(&create_with(pointer, Some(value)), &path_of(pointer))
                .await;
        }
    }
    for pointer in [
        "/session",
        "/session/project",
        "/session/project/repository",
        "/session/project/requirements",
    ] {
        refusing
            .field(&create_with(pointer, None), &path_of(pointer))
            .await;
        refusing
            .field(&create_with(pointer, Some(Value::Null)), &path_of(pointer))
            .await;
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn names_against_the_rules() {
    let refusing = Refusing::new().await;
    for repository in [
        "",
        "o",
        "o/",
        "/r",
        "o/r/x",
        "o/..",
        "../r",
        "o/r.git",
        "-o/r",
        "o/r;id",
        "o/$(id)",
        "o/r\n",
        "https://github.com/o/r",
        "git@github.com:o/r",
        "file:///etc",
        "ext::sh",
        "o\u{3000}/r",
        "o/r\0",
    ] {
        let body = create_with("/session/project/repository", Some(json!(repository)));
        refusing.field(&body, "session.project.repository").await;
    }
    for branch in [
        "",
        "-b",
        "--upload-pack=x",
        "a..b",
        "a b",
        "a\u{3000}b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a[",
        "a\\",
        "a.lock",
        "/a",
        "a/",
        "a//b",
        "@{u}",
        "HEAD",
        "a\n",
        "a;id",
        "$(id)",
    ] {
        let body = create_with("/session/project/branch", Some(json!(branch)));
        refusing.field(&body, "session.project.branch").await;
    }
    for kind in ["banana", "Implementation", "", "x; touch PWNED; echo "] {
        let body = create_with("/session/type", Some(json!(kind)));
        refusing.field(&body, "session.type").await;
    }
    for requirements in ["", " \n\t"] {
        let body = create_with("/session/project/requirements", Some(json!(requirements)));
        refusing.field(&body, "session.project.requirements").await;
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn ids_that_are_none() {
    let refusing = Refusing::new().await;
    let ids = [
        json!("my-own-id"),
        json!(""),
        json!(format!("{GOOD_ID}\n")),
        json!(format!("{{{GOOD_ID}}}")),
        json!(format!("urn:uuid:{GOOD_ID}")),
        json!(GOOD_ID.replace('-', "")),
        json!("../../../../etc/passwd"),
        json!("; rm -rf /"),
        json!(1),
        json!([GOOD_ID]),
    ];
    for id in ids {
        refusing
            .field(&create_with("/session/id", Some(id.clone())), "session.id")
            .await;
        for kind in ABOUT_A_SESSION {
            refusing
                .field(&json!({ "type": kind, "sessionId": id }), "sessionId")
                .await;
        }
        let message = json!({ "type": "session.message", "sessionId": id, "text": "x" });
        refusing.field(&message, "sessionId").await;
        for kind in ABOUT_AN_ORCHESTRATION {
            let about = json!({ "type": kind, "orchestrationId": id });
            refusing.field(&about, "orchestrationId").await;
        }
        let list = json!({ "type": "session.list", "orchestrationId": id });
        refusing.field(&list, "orchestrationId").await;
    }
    for kind in ABOUT_A_SESSION.into_iter().chain(["session.message"]) {
        let about = |id: Value| json!({ "type": kind, "sessionId": id, "text": "x" });
        refusing
            .field(&json!({ "type": kind, "text": "x" }), "sessionId")
            .await;
        refusing.field(&about(Value::Null), "sessionId").await;
        refusing
            .body(&about(json!(uuid::Uuid::nil())), 404, "session_not_found")
            .await;
    }
    let taken = create_with("/session/id", Some(json!(GOOD_ID)));
    refusing.body(&taken, 409, "already_exists").await;
    for kind in ABOUT_AN_ORCHESTRATION {
        let about = |id: Value| json!({ "type": kind, "orchestrationId": id });
        refusing
            .field(&json!({ "type": kind }), "orchestrationId")
            .await;
        refusing.field(&about(Value::Null), "orchestrationId").await;
        refusing
            .body(
                &about(json!(uuid::Uuid::nil())),
                404,
                "orchestration_not_found",
            )
            .await;
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn dependencies_that_cannot_be() {
    let refusing = Refusing::new().await;
    let with = |list: Value| create_with("/session/dependencies", Some(list));
    for entry in [
        json!("not-a-uuid"),
        json!(1),
        json!({}),
        json!([GOOD_ID]),
        json!("None"),
        json!(" "),
    ] {
        let answer = refusing
            .body(&with(json!([GOOD_ID, entry])), 400, "invalid_dependency")
            .await;
        assert_eq!(answer["details"]["path"], "session.dependencies[1]");
    }
    let unknown = "00000000-0000-4000-8000-00000000ABCD";
    let answer = refusing
        .body(&with(json!([GOOD_ID, unknown])), 400, "unknown_dependency")
        .await;
    assert_eq!(
        answer["details"]["unknown"],
        json!([unknown.to_lowercase()])
    );

    let mut own = with(json!([unknown]));
    own["session"]["id"] = json!(unknown.to_lowercase());
    let answer = refusing.body(&own, 400, "dependency_cycle").await;
    assert_eq!(
        answer["details"]["path"],
        json!([unknown.to_lowercase(), unknown.to_lowercase()])
    );

    let many: Vec<&str> = vec![GOOD_ID; 10_001];
    refusing
        .field(&with(json!(many)), "session.dependencies")
        .await;
    refusing.is_as_before().await;
}

#[tokio::test]
async fn what_lists_outputs_and_orchestrations_do_not_take() {
    let refusing = Refusing::new().await;
    let list = |name: &str, value: Value| json!({ "type": "session.list", name: value });
    for (name, values) in [
        (
            "limit",
            vec![
                json!(0),
                json!(1001),
                json!(-1),
                json!("5"),
                json!(1.5),
                json!([]),
            ],
        ),
        (
            "status",
            vec![
                json!("done"),
                json!(""),
                json!(1),
                json!(["running", "x"]),
                json!([1]),
            ],
        ),
        (
            "cursor",
            vec![json!("garbage\n"), json!(5), json!("x".repeat(10_000))],
        ),
    ] {
        for value in values {
            refusing.field(&list(name, value), name).await;
        }
    }
    let output = |name: &str, value: Value| json!({ "type": "session.output", "sessionId": GOOD_ID, name: value });
    for (name, values) in [
        ("limit", vec![json!(0), json!(10_001)]),
        (
            "cursor",
            vec![
                json!("x"),
                json!(-1),
                json!("1.x"),
                json!("1.2.3"),
                json!(true),
            ],
        ),
    ] {
        for value in values {
            refusing.field(&output(name, value), name).await;
        }
    }
    let orchestrate = |name: &str, value: Value| {
        let mut body = json!({ "type": "orchestrate" });
        body["project"] = json!({ "repository": "o/r", "requirements": "x" });
        body[name] = value;
        body
    };
    for (name, value, path) in [
        ("project", Value::Null, "project"),
        ("sessionType", json!("x"), "sessionType"),
        ("autoStart", json!("no"), "autoStart"),
        ("strategy", json!("parallel"), "strategy"),
        (
            "strategy",
            json!({ "dependencyMode": "x" }),
            "strategy.dependencyMode",
        ),
        (
            "strategy",
            json!({ "parallelSessions": 0 }),
            "strategy.parallelSessions",
        ),
        (
            "strategy",
            json!({ "phases": "analysis" }),
            "strategy.phases",
        ),
        ("strategy", json!({ "phases": [1] }), "strategy.phases"),
        ("strategy", json!({ "timeout": 0 }), "strategy.timeout"),
        ("strategy", json!({ "gate": " " }), "strategy.gate"),
        ("strategy", json!({ "gate": ["make"] }), "strategy.gate"),
        (
            "strategy",
            json!({ "gate": "x".repeat(5_000) }),
            "strategy.gate",
        ),
        (
            "strategy",
            json!({ "timeout": 604_800_001 }),
            "strategy.timeout",
        ),
    ] {
        refusing.field(&orchestrate(name, value), path).await;
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn messages_that_say_nothing_or_too_much() {
    let refusing = Refusing::new().await;
    let id = refusing.app.store.active()[0].id;
    let say = |text: Value| json!({ "type": "session.message", "sessionId": id, "text": text });
    let long = "x".repeat(MESSAGE_BYTES_MAX + 1);
    // Bytes count, not letters: these are two each.
    let wide = "\u{f6}".repeat(MESSAGE_BYTES_MAX / 2 + 1);
    for text in [
        json!(1),
        json!(true),
        json!(["x"]),
        json!({ "text": "x" }),
        json!(null),
        json!(""),
        json!(" \n\t\u{3000}"),
        json!(long),
        json!(wide),
    ] {
        refusing.field(&say(text), "text").await;
    }
    let silent = json!({ "type": "session.message", "sessionId": id });
    refusing.field(&silent, "text").await;

    let path = format!("/api/v1/sessions/{id}/message");
    for body in [json!({}), json!({ "text": 1 }), json!({ "text": long })] {
        let reply = refusing.app.post(&path, &body).await;
        reply.is_error(400, "invalid_field");
        assert_eq!(reply.json()["details"]["path"], "text");
    }
    assert_eq!(refusing.app.store.changes(), refusing.changes);
    refusing.is_as_before().await;

    // As long as it may be, it is taken.
    let fits = "x".repeat(MESSAGE_BYTES_MAX);
    let reply = refusing.app.webhook(&say(json!(fits))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let kept = refusing.app.store.session(id).await.expect("it");
    assert_eq!(kept.steering.messages[0].text, fits);
}

/// Wherever options are taken.
#[tokio::test]
async fn priorities_and_budgets_that_are_none() {
    let refusing = Refusing::new().await;
    let id = refusing.app.store.active()[0].id;
    let project = json!({ "repository": "o/r", "requirements": "x" });
    let session = json!({ "project": project });
    let orchestrate = json!({ "type": "orchestrate", "project": project });
    let message = json!({ "type": "session.message", "sessionId": id, "text": "x" });
    let start = json!({ "type": "orchestration.start", "orchestrationId": GOOD_ID });
    let with = |body: &Value, name: &str, value: &Value| {
        let mut body = body.clone();
        body["options"] = json!({ name: value });
        body
    };
    let inside = |name: &str, value: &Value| json!({ "type": "session.create", "session": with(&session, name, value) });
    let beside = |name: &str, value: &Value| {
        with(
            &json!({ "type": "session.create", "session": session }),
            name,
            value,
        )
    };
    for priority in [
        json!("5"),
        json!(true),
        json!([1]),
        json!({}),
        json!(1.5),
        json!(1e30),
        json!(PRIORITY_MAX + 1),
        json!(-PRIORITY_MAX - 1),
        json!(i64::MAX),
    ] {
        let name = "priority";
        refusing
            .field(&inside(name, &priority), "session.options.priority")
            .await;
        for body in [beside(name, &priority), with(&orchestrate, name, &priority)] {
            refusing.field(&body, "options.priority").await;
        }
    }
    for budget in [
        json!("5"),
        json!(true),
        json!([1]),
        json!({}),
        json!(0),
        json!(-0.01),
        json!(COST_USD_MAX + 0.01),
        json!(1e300),
    ] {
        let name = "maxCostUsd";
        refusing
            .field(&inside(name, &budget), "session.options.maxCostUsd")
            .await;
        for body in [
            beside(name, &budget),
            with(&orchestrate, name, &budget),
            with(&message, name, &budget),
            with(&start, name, &budget),
        ] {
            refusing.field(&body, "options.maxCostUsd").await;
        }
    }
    // More than a double holds.
    let huge = br#"{"type":"session.create","session":{"project":{"repository":"o/r","requirements":"x"},"options":{"maxCostUsd":1e400}}}"#;
    let answer = refusing.raw(huge, 400, "invalid_field").await;
    assert_eq!(answer["details"]["path"], "session.options.maxCostUsd");
    for options in [json!(1), json!("x"), json!([])] {
        for body in [&orchestrate, &message, &start] {
            let mut body = body.clone();
            body["options"] = options.clone();
            refusing.field(&body, "options").await;
        }
    }
    refusing.is_as_before().await;
}

#[tokio::test]
async fn paths_and_queries_that_are_none() {
    let refusing = Refusing::new().await;
    let app = &refusing.app;
    for path in [
        "/api/v1/sessions/x",
        "/api/v1/sessions/%ff",
        "/api/v1/sessions/..%2f..%2fetc",
        "/api/v1/sessions?limit=x",
        "/api/v1/sessions?limit=1&limit=2",
        "/api/v1/sessions?status=x",
        "/api/v1/sessions?orchestrationId=x",
        "/api/v1/sessions?cursor=%ff",
        "/api/v1/orchestrations/x",
        "/api/v1/sessions/00000000-0000-7000-8000-000000000001/events?after=-1",
        "/api/v1/sessions/00000000-0000-7000-8000-000000000001/events?follow=maybe",
        "/api/v1/sessions/00000000-0000-7000-8000-000000000001/output?limit=0",
    ] {
        let reply = app.get(path).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.text());
        assert_eq!(reply.json()["success"], false);
    }
    for path in [
        "/",
        "/api/v1/sessions/",
        "/api/v2/sessions",
        "/api/webhooks/github",
        "/api/v1/sessions/00000000-0000-7000-8000-000000000001/",
    ] {
        app.get(path).await.is_error(404, "not_found");
    }
    for unknown in ["", "/events", "/output"] {
        let path = format!("/api/v1/sessions/{}{unknown}", uuid::Uuid::nil());
        app.get(&path).await.is_error(404, "session_not_found");
    }
    refusing.is_as_before().await;
}

/// Control characters and the like are the client's own words: kept byte for byte, and only ever
/// shown escaped.
#[tokio::test]
async fn free_text_is_kept_byte_for_byte() {
    let app = App::new().await;
    let text = "\u{1b}[31mred\u{7} \0 \u{202e} 😀 $(id) `id` '; DROP TABLE sessions; -- \u{9b}";
    let mut body = create_with("/session/project/requirements", Some(json!(text)));
    body["session"]["project"]["context"] = json!(text);
    let created = app.webhook(&body).await;
    assert!(!created.body.contains(&0x1b) && !created.body.contains(&0));
    let project = &created.json()["data"]["session"]["project"];
    assert_eq!(
        (&project["requirements"], &project["context"]),
        (&json!(text), &json!(text))
    );
    assert_eq!(&*app.store.active()[0].project.requirements, text);
}

/// Mixed case is the same id; each counts once.
#[tokio::test]
async fn ids_are_told_apart_by_value() {
    let app = App::new().await;
    let id = "abcdef00-0000-4000-8000-00000000abcd";
    app.webhook(&create_with("/session/id", Some(json!(id.to_uppercase()))))
        .await;
    let list = json!([id, id.to_uppercase(), null, "none", ""]);
    let created = app
        .webhook(&create_with("/session/dependencies", Some(list)))
        .await;
    assert_eq!(
        created.json()["data"]["session"]["dependencies"],
        json!([id])
    );
}
