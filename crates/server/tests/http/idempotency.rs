//! A repeated request with an `Idempotency-Key` answers as the first did.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::{App, Reply};

pub async fn keyed(app: &App, path: &str, key: &str, body: &Value) -> Reply {
    let headers = format!("Idempotency-Key: {key}\r\n");
    let body = body.to_string();
    app.send(&app.request("POST", path, &headers, body.as_bytes()))
        .await
}

fn session(requirements: &str) -> Value {
    json!({ "project": { "repository": "o/r", "requirements": requirements } })
}

fn create(requirements: &str) -> Value {
    json!({ "type": "session.create", "session": session(requirements) })
}

const WEBHOOK: &str = "/api/webhooks/claude";

#[tokio::test]
async fn the_same_request_is_answered_the_same_in_every_form() {
    let app = App::new().await;
    let first = keyed(&app, WEBHOOK, "k1", &create("x")).await;
    assert_eq!(first.status, 200);
    let wrapped = json!({ "data": create("x") });
    assert_eq!(
        keyed(&app, WEBHOOK, "k1", &create("x")).await.text(),
        first.text()
    );
    assert_eq!(
        keyed(&app, WEBHOOK, "k1", &wrapped).await.text(),
        first.text()
    );
    assert_eq!(
        keyed(&app, "/api/v1/sessions", "k1", &session("x"))
            .await
            .text(),
        first.text()
    );
    assert_eq!(app.store.active().len(), 1);

    keyed(&app, WEBHOOK, "k1", &create("y"))
        .await
        .is_error(422, "idempotency_mismatch");
    let orchestrate = json!({ "type": "orchestrate", "project": session("x")["project"] });
    keyed(&app, WEBHOOK, "k1", &orchestrate)
        .await
        .is_error(422, "idempotency_mismatch");
    let made = keyed(&app, WEBHOOK, "k2", &orchestrate).await;
    let count = app.store.active().len();
    assert_eq!(
        keyed(&app, WEBHOOK, "k2", &orchestrate).await.text(),
        made.text()
    );
    assert_eq!(app.store.active().len(), count);
}

#[tokio::test]
async fn fifty_at_once_make_one_session() {
    let app = Arc::new(App::new().await);
    let posts = (0..50).map(|_| {
        let app = Arc::clone(&app);
        tokio::spawn(async move { keyed(&app, WEBHOOK, "k", &create("x")).await.text() })
    });
    let mut answers = Vec::new();
    for post in posts.collect::<Vec<_>>() {
        answers.push(post.await.expect("an answer"));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(app.store.active().len(), 1);
}

#[tokio::test]
async fn a_key_is_short_and_visible() {
    let app = App::new().await;
    let long = "k".repeat(256);
    for key in ["", "a b", "ä", "a\u{7f}", &long] {
        let reply = keyed(&app, WEBHOOK, key, &create("x")).await;
        assert_eq!(reply.status, 400, "{key:?}: {}", reply.text());
    }
    assert_eq!(app.store.active().len(), 0);
    assert_eq!(
        keyed(&app, WEBHOOK, &"k".repeat(255), &create("x"))
            .await
            .status,
        200
    );
}
