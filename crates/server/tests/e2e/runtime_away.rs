//! A server whose container runtime does not answer, or has no image.

use serde_json::json;

use crate::api::{Answer, wrapped};
use crate::world::World;

fn create() -> serde_json::Value {
    let project = json!({ "repository": "owner/repo", "requirements": "Do it" });
    wrapped(
        "session.create",
        json!({ "session": { "project": project } }),
    )
}

#[track_caller]
fn check_refused(answer: &Answer, code: &str) {
    assert_eq!(answer.status, 503, "{}", answer.text);
    let body = answer.json();
    assert_eq!(body["success"], false);
    assert_eq!(body["code"], code);
    let retry_after = answer
        .headers
        .get("retry-after")
        .and_then(|value| value.to_str().ok());
    let seconds: Option<u32> = retry_after.and_then(|value| value.parse().ok());
    assert!(seconds > Some(0), "retry-after is {retry_after:?}");
}

#[tokio::test]
async fn server_without_a_runtime_starts_says_so_and_can_be_read() {
    let mut world = World::with_scripts([]).await;
    world.set("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    world.start_server().await;
    for path in ["/health", "/api/webhooks/health"] {
        let health = world.api.get(path).await;
        assert_eq!(health.json()["status"], "degraded", "{}", health.text);
    }
    check_refused(&world.api.webhook(&create()).await, "runtime_unavailable");
    let listed = world.api.call("session.list", json!({})).await;
    assert_eq!(listed["data"]["sessions"], json!([]));
}

#[tokio::test]
async fn session_that_was_accepted_waits_for_the_runtime_to_come_back() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_PREPARED", 0);
    world.start_server().await;
    let steps = crate::fake_claude::steps(json!([["result", "Done."]]));
    let id = world.create(&steps, &[]).await;
    world.stop_server().await;
    let docker_host = std::env::var("DOCKER_HOST").ok();
    world.set("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    world.start_server().await;
    assert_eq!(world.session(&id).await["status"], "initializing");
    let start = wrapped("session.start", json!({ "sessionId": id }));
    check_refused(&world.api.webhook(&start).await, "runtime_unavailable");
    world.stop_server().await;
    match docker_host {
        Some(docker_host) => world.set("DOCKER_HOST", docker_host),
        None => world.unset("DOCKER_HOST"),
    }
    world.start_server().await;
    world.start(&id).await;
    world.completed(&id).await;
}

#[tokio::test]
async fn missing_image_is_named_and_never_pulled() {
    let mut world = World::with_scripts([]).await;
    world.set("CLAUDE_CONTAINER_IMAGE", "baton-test-no-such-image:none");
    world.start_server().await;
    let health = world.api.get("/health").await;
    assert_eq!(health.json()["status"], "degraded", "{}", health.text);
    let answer = world.api.webhook(&create()).await;
    check_refused(&answer, "image_missing");
    assert!(
        answer.text.contains("baton-test-no-such-image:none"),
        "{}",
        answer.text
    );
    let listed = world.api.call("session.list", json!({})).await;
    assert_eq!(listed["data"]["sessions"], json!([]));
}
