//! One request, a graph of sessions.

use baton_domain::SessionId;
use baton_domain::ending::{Outcome, Usage};
use baton_domain::session::Report;
use serde_json::{Value, json};

use crate::app::{App, METERED};
use crate::sessions::ended;

fn project() -> Value {
    json!({ "repository": "o/r", "requirements": "Build a task app" })
}

fn orchestrate(more: &Value) -> Value {
    let mut body = json!({ "type": "orchestrate", "project": project() });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

fn plan() -> Value {
    json!({ "sessions": [
        { "key": "join", "type": "testing", "requirements": "test", "dependencies": ["a", "b"] },
        { "key": "a", "requirements": "do a", "title": "First" },
        { "key": "b", "requirements": "do b" },
    ] })
}

async fn made(app: &App, body: &Value) -> Value {
    let reply = app.webhook(body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["results"][0]["data"].clone()
}

#[tokio::test]
async fn a_client_may_bring_its_own_plan() {
    let app = App::new().await;
    let data = made(&app, &orchestrate(&json!({ "plan": plan() }))).await;
    let sessions = data["sessions"].as_array().expect("sessions");
    let titles: Vec<&Value> = sessions.iter().map(|one| &one["title"]).collect();
    assert_eq!(titles, [&json!("First"), &json!("b"), &json!("join")]);
    assert_eq!(
        sessions[2]["dependencies"],
        json!([sessions[0]["id"], sessions[1]["id"]])
    );
    assert_eq!(sessions[2]["status"], "pending");
    assert_eq!(sessions[0]["project"]["requirements"], "do a");
}

#[tokio::test]
async fn a_plan_that_cannot_be_makes_nothing_and_says_why() {
    let app = App::new().await;
    let circle = json!({ "sessions": [
        { "key": "a", "requirements": "x", "dependencies": ["b"] },
        { "key": "b", "requirements": "x", "dependencies": ["a"] },
    ] });
    app.webhook(&orchestrate(&json!({ "plan": circle })))
        .await
        .is_error(400, "dependency_cycle");
    let nobody = json!({ "sessions": [
        { "key": "a", "requirements": "x", "dependencies": ["z"] },
    ] });
    let reply = app.webhook(&orchestrate(&json!({ "plan": nobody }))).await;
    reply.is_error(400, "invalid_field");
    assert_eq!(
        reply.json()["details"]["path"],
        "plan.sessions[0].dependencies[0]"
    );
    assert!(app.store.active().is_empty());
}

#[tokio::test]
async fn a_context_that_comes_to_too_much_in_all_sessions_is_refused() {
    let app = App::new().await;
    let sessions: Vec<Value> = (0..100)
        .map(|at| json!({ "key": format!("s{at}"), "requirements": "x" }))
        .collect();
    let mut body = orchestrate(&json!({ "plan": { "sessions": sessions } }));
    body["project"]["context"] = json!("x".repeat(200 * 1024));
    let reply = app.webhook(&body).await;
    reply.is_error(400, "invalid_field");
    assert_eq!(reply.json()["details"]["path"], "project.context");
    assert!(app.store.active().is_empty());
}

#[tokio::test]
async fn all_sessions_are_cancelled_however_many() {
    let app = App::new().await;
    let sessions: Vec<Value> = (0..1_100)
        .map(|at| json!({ "key": format!("s{at}"), "requirements": "x" }))
        .collect();
    let data = made(
        &app,
        &orchestrate(&json!({ "plan": { "sessions": sessions } })),
    )
    .await;
    assert_eq!(app.store.active().len(), 1_100);
    let id = &data["orchestrationId"];
    let cancel = json!({ "type": "orchestration.cancel", "orchestrationId": id });
    assert_eq!(app.webhook(&cancel).await.status, 200);
    assert!(app.store.active().is_empty());
}

#[tokio::test]
async fn a_graph_can_be_looked_at_before_anything_runs() {
    let app = App::new().await;
    let body = orchestrate(&json!({ "plan": plan(), "autoStart": false }));
    let data = made(&app, &body).await;
    let statuses = |sessions: &Value| -> Vec<String> {
        let sessions = sessions.as_array().expect("sessions").iter();
        sessions
            .map(|one| one["status"].as_str().unwrap_or("").to_owned())
            .collect()
    };
    assert_eq!(statuses(&data["sessions"]), ["initializing"; 3]);
    let id = data["orchestrationId"].as_str().expect("an id");
    let start = json!({ "type": "orchestration.start", "orchestrationId": id });
    let reply = app.webhook(&start).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let started = &reply.json()["data"]["orchestration"];
    assert_eq!(
        statuses(&started["sessions"]),
        ["queued", "queued", "pending"]
    );
    let path = format!("/api/v1/orchestrations/{id}/start");
    let again = app.post(&path, &json!({})).await;
    assert_eq!(again.json(), reply.json());
    let start = json!({ "type": "orchestration.start",
        "orchestrationId": "00000000-0000-7000-8000-0000000000ff" });
    app.webhook(&start)
        .await
        .is_error(404, "orchestration_not_found");
}

#[tokio::test]
async fn options_hold_for_every_session() {
    let app = App::new().await;
    let options = json!({ "priority": 3, "maxCostUsd": 1.5 });
    made(
        &app,
        &orchestrate(&json!({ "plan": plan(), "options": options })),
    )
    .await;
    let stored = app.store.active();
    assert_eq!(stored.len(), 3);
    assert!(stored.iter().all(|one| one.priority == 3));
    // The budget is for all of them together.
    assert!(stored.iter().all(|one| one.steering.max_cost_usd.is_none()));
    let too_high = json!({ "plan": plan(), "options": { "priority": 11 } });
    app.webhook(&orchestrate(&too_high))
        .await
        .is_error(400, "invalid_field");
}

#[tokio::test]
async fn a_budget_holds_for_all_sessions_together_and_can_be_raised() {
    let app = App::new().await;
    let options = json!({ "maxCostUsd": 2.0 });
    let data = made(
        &app,
        &orchestrate(&json!({ "plan": plan(), "options": options })),
    )
    .await;
    let id = data["orchestrationId"].as_str().expect("an id");
    let get = json!({ "type": "orchestration.get", "orchestrationId": id });
    let shown = async || app.webhook(&get).await.json()["data"]["orchestration"].clone();
    let budget = |spent_usd: f64, status: &str| json!({ "maxCostUsd": 2.0, "spentUsd": spent_usd, "status": status });
    assert_eq!(shown().await["budget"], budget(0.0, "open"));

    let session = |at: usize| -> SessionId {
        let id = data["sessions"][at]["id"].as_str().expect("an id");
        id.parse().expect("a UUID")
    };
    // What runs counts by estimate.
    app.happens(session(1), &ended(Outcome::Completed)[..2], None)
        .await;
    assert_eq!(shown().await["budget"], budget(METERED.cost_usd, "open"));
    let report = Report {
        usage: Some(Usage {
            cost_usd: 1.75,
            ..Usage::default()
        }),
        ..Report::default()
    };
    app.happens(session(0), &ended(Outcome::Completed), Some(report))
        .await;
    let orchestration = shown().await;
    assert_eq!(orchestration["budget"], budget(2.0, "spent"));
    assert_eq!(orchestration["usage"]["costUsd"], 2.0);
    let summary = orchestration["summary"].as_str().expect("a summary");
    assert!(summary.contains("($2.00 of $2.00)"), "{summary}");

    let path = format!("/api/v1/orchestrations/{id}/start");
    let raise = |max_usd: f64| json!({ "options": { "maxCostUsd": max_usd } });
    let refused = app.post(&path, &raise(2.01)).await;
    refused.is_error(400, "invalid_field");
    assert_eq!(refused.json()["details"]["path"], "options.maxCostUsd");
    let mut body = raise(8.0);
    body["type"] = json!("orchestration.start");
    body["orchestrationId"] = json!(id);
    let reply = app.webhook(&body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let raised = &reply.json()["data"]["orchestration"]["budget"];
    assert_eq!(
        *raised,
        json!({ "maxCostUsd": 8.0, "spentUsd": 2.0, "status": "open" })
    );
    // Asked for without a body, it stays.
    let again = app.send(&app.request("POST", &path, "", b"")).await;
    assert_eq!(again.json(), reply.json());
    let nobody = json!({ "type": "orchestration.start", "options": { "maxCostUsd": 3 },
        "orchestrationId": "00000000-0000-7000-8000-0000000000ff" });
    app.webhook(&nobody)
        .await
        .is_error(404, "orchestration_not_found");
}
