//! What is removed from Docker after sessions, and what is left alone.

use serde_json::json;

use crate::docker::{containers, docker, inspect, volumes};
use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, eventually, text};

#[tokio::test]
async fn failed_session_keeps_its_volumes_and_a_completed_one_its_conversation() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let failed = world
        .run(
            &steps(json!([["write", "kept.txt", "kept"], ["exit", 1]])),
            &[],
        )
        .await;
    let completed = world.run(&steps(json!([["result", "Done."]])), &[]).await;
    world.failed(&failed, "claude_exited").await;
    world.completed(&completed).await;
    world.no_container().await;
    let mut expected = [
        format!("baton-{completed}-1-state"),
        format!("baton-{failed}-1-state"),
        format!("baton-{failed}-1-workspace"),
    ];
    expected.sort();
    let mut kept = Vec::new();
    let as_expected = eventually(SESSION_LIMIT, async || {
        kept = volumes(&world.instance).await;
        kept.sort();
        kept == expected
    })
    .await;
    assert!(as_expected, "{kept:?} is kept");
    let cleared = eventually(SESSION_LIMIT, async || world.run_dirs() == 0).await;
    assert!(cleared, "directories of sockets are left");
}

#[tokio::test]
async fn containers_that_are_young_or_not_ours_are_left_alone() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let image = crate::fake_claude::image().await;
    let label = |name: &str, value: &str| format!("--label=baton.{name}={value}");
    // As if another server, faster than our listing, had just made it.
    let unknown = uuid::Uuid::now_v7().to_string();
    let young = docker([
        "create",
        &label("instance", &world.instance),
        &label("session", &unknown),
        &label("attempt", "1"),
        &image,
        "true",
    ])
    .await;
    let foreign = Foreign(docker(["create", "--label=baton.test=e2e", &image, "true"]).await);
    let other_instance = Foreign(
        docker([
            "create",
            &label("instance", "somebody-else"),
            &label("session", &unknown),
            &label("attempt", "1"),
            &image,
            "true",
        ])
        .await,
    );
    world.start_server().await;
    let session = world.ran(&steps(json!([["result", "Done."]]))).await;
    assert_eq!(session["status"], "completed", "{session:#}");
    let own = text(&session["containerId"]);
    let gone = eventually(SESSION_LIMIT, async || {
        !containers(&world.instance).await.contains(&own)
    })
    .await;
    assert!(gone, "{own} is left");
    for container in [&young, &foreign.0, &other_instance.0] {
        let inspected = inspect(container).await.expect("it is left alone");
        assert_eq!(inspected["State"]["Status"], "created");
    }
}

/// A container of nobody's instance, removed at the end of the test.
struct Foreign(String);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .args(["rm", "--force", &self.0])
            .output();
    }
}
