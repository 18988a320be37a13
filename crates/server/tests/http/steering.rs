//! New attempts, and words to Claude.

use baton::clock::SystemClock;
use baton::transition::apply;
use baton_domain::ending::{FailureCode, Outcome, Usage};
use baton_domain::session::Report;
use baton_domain::steering::Pause;
use baton_domain::{Attempt, SessionEvent, SessionId, SessionState};
use serde_json::{Value, json};

use crate::app::{App, METERED, Reply};
use crate::idempotency::keyed;
use crate::sessions::{about, ended};

const WEBHOOK: &str = "/api/webhooks/claude";

fn failure() -> Vec<SessionEvent> {
    ended(Outcome::failed(FailureCode::NoResult, "no result"))
}

async fn message(app: &App, id: SessionId, text: &str) -> Reply {
    app.webhook(&json!({ "type": "session.message", "sessionId": id, "text": text }))
        .await
}

async fn shown(app: &App, id: SessionId) -> Value {
    app.webhook(&about("session.get", id)).await.json()["data"]["session"].clone()
}

#[tokio::test]
async fn a_retry_is_a_new_attempt_and_those_it_blocked_wait_again() {
    let app = App::new().await;
    let failed = app.created(&[], true).await;
    let asked = app.created(&[failed], true).await;
    let made = app.created(&[asked], false).await;
    app.happens(failed, &failure(), None).await;
    for (id, by) in [(asked, failed), (made, asked)] {
        app.happens(id, &[SessionEvent::DependencyLost(by)], None)
            .await;
    }
    app.webhook(&about("session.retry", asked))
        .await
        .is_error(409, "invalid_transition");

    let reply = app.webhook(&about("session.retry", failed)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["data"]["session"]["attempt"], 2);
    assert_eq!(shown(&app, failed).await["status"], "queued");
    assert_eq!(shown(&app, asked).await["status"], "pending");
    assert_eq!(shown(&app, made).await["status"], "initializing");
    app.webhook(&about("session.retry", failed))
        .await
        .is_error(409, "invalid_transition");
}

#[tokio::test]
async fn a_repeated_retry_with_a_key_makes_one_attempt() {
    let app = App::new().await;
    let failed = app.created(&[], true).await;
    app.happens(failed, &failure(), None).await;
    let body = about("session.retry", failed);
    let first = keyed(&app, WEBHOOK, "k1", &body).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(keyed(&app, WEBHOOK, "k1", &body).await.text(), first.text());
    let path = format!("/api/v1/sessions/{failed}/retry");
    assert_eq!(
        keyed(&app, &path, "k1", &json!({})).await.text(),
        first.text()
    );
    assert_eq!(shown(&app, failed).await["attempt"], 2);
}

#[tokio::test]
async fn a_message_waits_for_a_claude_that_runs_and_resumes_one_that_ended() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let begun = &ended(Outcome::Completed)[..2];
    app.happens(id, begun, None).await;
    let reply = message(&app, id, "use tabs").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let kept = app.store.session(id).await.expect("it");
    assert_eq!(kept.steering.messages[0].text, "use tabs");

    let told = SessionEvent::MessageTold(Attempt::FIRST, 1);
    let rest = ended(Outcome::Completed).split_off(2);
    app.happens(id, &[vec![told], rest].concat(), None).await;
    assert_eq!(shown(&app, id).await["status"], "completed");
    let reply = message(&app, id, "and now spaces").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let on = app.store.session(id).await.expect("it");
    assert_eq!((&on.state, on.attempt), (&SessionState::Queued, Attempt(2)));
    let resume = on.steering.resume.as_ref().expect("goes on");
    assert_eq!(resume.text, "and now spaces");
}

#[tokio::test]
async fn a_spent_budget_is_shown_and_only_a_larger_one_is_taken() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let attempt = Attempt::FIRST;
    let pause = Pause::Budget { spent_usd: 2.5 };
    let until_paused = [
        SessionEvent::BudgetSet(2.0),
        SessionEvent::LaunchDecided(attempt),
        SessionEvent::ClaudeStarted(attempt),
        SessionEvent::AgentEnded(attempt, Box::default()),
    ];
    app.happens(id, &until_paused[..3], None).await;
    assert_eq!(shown(&app, id).await["usage"]["costUsd"], METERED.cost_usd);
    app.happens(id, &until_paused[3..], None).await;
    let report = Report {
        usage: Some(Usage {
            cost_usd: 2.5,
            ..Usage::default()
        }),
        ..Report::default()
    };
    let paused = SessionEvent::Paused(attempt, pause);
    apply(&app.store, &SystemClock, id, &paused, Some(report))
        .await
        .expect("it concludes");
    let session = shown(&app, id).await;
    assert_eq!(session["status"], "queued");
    assert_eq!(
        session["pause"],
        json!({ "reason": "budget", "spentUsd": 2.5 })
    );

    let say = |max_usd: f64| {
        let options = json!({ "maxCostUsd": max_usd });
        json!({ "type": "session.message", "sessionId": id, "text": "on", "options": options })
    };
    let refused = app.webhook(&say(2.5)).await;
    refused.is_error(400, "invalid_field");
    let reply = app.webhook(&say(9.0)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let on = app.store.session(id).await.expect("it");
    assert_eq!(on.state, SessionState::Queued);
    assert_eq!(on.steering.max_cost_usd, Some(9.0));
}

#[tokio::test]
async fn a_cancelled_session_does_not_go_on_with_what_it_was_not_told() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let all = ended(Outcome::Cancelled);
    let (begun, rest) = all.split_at(2);
    app.happens(id, begun, None).await;
    message(&app, id, "use tabs").await;
    app.webhook(&about("session.cancel", id)).await;
    message(&app, id, "never mind")
        .await
        .is_error(409, "invalid_transition");
    app.happens(id, rest, None).await;
    assert_eq!(shown(&app, id).await["status"], "cancelled");

    // Whoever wants it after all is not to say it twice.
    app.webhook(&about("session.retry", id)).await;
    let kept = app.store.session(id).await.expect("it");
    assert_eq!(kept.state, SessionState::Queued);
    assert_eq!(kept.steering.messages[0].text, "use tabs");
}

#[tokio::test]
async fn who_cannot_listen_is_told_nothing() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    app.webhook(&about("session.cancel", id)).await;
    message(&app, id, "hello")
        .await
        .is_error(409, "invalid_transition");
    message(&app, id, "  ").await.is_error(400, "invalid_field");
    let nobody: SessionId = "00000000-0000-7000-8000-0000000000ff"
        .parse()
        .expect("an id");
    message(&app, nobody, "hello")
        .await
        .is_error(404, "session_not_found");
}

#[tokio::test]
async fn a_session_can_be_added_to_an_orchestration() {
    let app = App::new().await;
    let project = json!({ "repository": "o/r", "requirements": "x" });
    let reply = app
        .webhook(&json!({ "type": "orchestrate", "sessionType": "testing", "project": project }))
        .await
        .json();
    let id = reply["results"][0]["data"]["orchestrationId"].clone();
    let added = json!({ "type": "session.create", "session": {
        "project": project, "orchestrationId": id,
    } });
    let reply = app.webhook(&added).await;
    assert_eq!(reply.json()["data"]["session"]["orchestrationId"], id);
    let nowhere = json!({ "type": "session.create", "session": {
        "project": project, "orchestrationId": "00000000-0000-7000-8000-0000000000ff",
    } });
    app.webhook(&nowhere)
        .await
        .is_error(404, "orchestration_not_found");
}
