//! `session.list`: order, pages, filters.

use baton::api::LIST_BYTES_MAX;
use baton_domain::{Attempt, SessionEvent, SessionId};
use serde_json::{Value, json};

use crate::app::{App, Reply};

fn ids(reply: &Reply) -> Vec<SessionId> {
    let sessions = reply.json()["data"]["sessions"]
        .as_array()
        .expect("sessions")
        .clone();
    let id = |session: &Value| session["id"].as_str().and_then(|id| id.parse().ok());
    sessions
        .iter()
        .map(|session| id(session).expect("an id"))
        .collect()
}

#[tokio::test]
async fn pages_join_to_the_whole_in_order_of_creation() {
    let app = App::new().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(app.created(&[], false).await);
    }
    assert_eq!(
        ids(&app.webhook(&json!({ "type": "session.list" })).await),
        made
    );
    for limit in 1..=8 {
        let mut listed = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let query = json!({ "type": "session.list", "limit": limit, "cursor": cursor });
            let page = app.webhook(&query).await;
            let found = ids(&page);
            assert!(found.len() <= limit);
            listed.extend(found);
            cursor = page.json()["data"]["nextCursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!(listed, made, "by {limit}");
    }
}

#[tokio::test]
async fn a_page_asked_for_again_shows_what_changed() {
    let app = App::new().await;
    let first = app.created(&[], true).await;
    let second = app.created(&[first], true).await;
    let listed = |status: &str| format!("/api/v1/sessions?status={status}");
    assert_eq!(ids(&app.get(&listed("pending")).await), [second]);
    assert_eq!(ids(&app.get(&listed("queued")).await), [first]);
    assert_eq!(
        ids(&app.get(&listed("queued,pending")).await),
        [first, second]
    );
    assert_eq!(ids(&app.get(&listed("running")).await), []);
    let attempt = Attempt::FIRST;
    let runs = [
        SessionEvent::LaunchDecided(attempt),
        SessionEvent::ClaudeStarted(attempt),
    ];
    app.happens(first, &runs, None).await;
    assert_eq!(ids(&app.get(&listed("running")).await), [first]);
    assert_eq!(ids(&app.get(&listed("queued")).await), []);
    let several = json!({ "type": "session.list", "status": ["running", "pending"] });
    assert_eq!(ids(&app.webhook(&several).await), [first, second]);
}

#[tokio::test]
async fn a_list_without_sessions_is_empty() {
    let app = App::new().await;
    let of_nothing = json!({ "type": "session.list", "orchestrationId": uuid::Uuid::nil() });
    let reply = app.webhook(&of_nothing).await;
    assert_eq!(reply.text(), r#"{"success":true,"data":{"sessions":[]}}"#);
}

#[tokio::test]
async fn a_page_of_long_sessions_ends_early() {
    let app = App::new().await;
    let long = "x".repeat(900 * 1024);
    let mut made = 0;
    for _ in 0..12 {
        let body = json!({ "project": { "repository": "o/r", "requirements": long } });
        made += usize::from(app.post("/api/v1/sessions", &body).await.status == 201);
    }
    let page = app.get("/api/v1/sessions").await;
    assert!(page.body.len() < LIST_BYTES_MAX + 2 * long.len());
    let cursor = page.json()["data"]["nextCursor"].clone();
    let cursor = cursor.as_str().expect("a cursor");
    let rest = app.get(&format!("/api/v1/sessions?cursor={cursor}")).await;
    let (first, second) = (ids(&page), ids(&rest));
    assert_eq!(first.len() + second.len(), made);
    assert!(first.last() < second.first());
}
