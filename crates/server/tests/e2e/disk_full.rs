//! A server whose disk is full.

use serde_json::{Value, json};

use crate::api::wrapped;
use crate::crashes::check;
use crate::fake_claude::{numbered, steps};
use crate::world::{SESSION_LIMIT, World, eventually, stdout_lines};

/// Enough for the server's files, little enough to be filled at once.
const DISK_MIB: u64 = 64;
/// Lines of the session that runs meanwhile.
const LINES: usize = 400;
/// Milliseconds between them.
const LINE_PAUSE_MS: u64 = 10;
/// So many of them are stored before there is no room any more.
const LINES_BEFORE: usize = 20;

#[tokio::test]
async fn session_goes_on_while_the_disk_is_full_and_its_output_waits() {
    let mut world = World::with_fake_claude().await;
    let disk = world.on_a_disk_of(DISK_MIB);
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let id = world.run(&numbered(LINES, LINE_PAUSE_MS), &[]).await;
    let flows = eventually(SESSION_LIMIT, async || {
        stdout_lines(&world.events_after(&id, 0).await).len() > LINES_BEFORE
    });
    assert!(flows.await, "nothing is printed");

    let health = async |status: &str, parts: Value| {
        let seen = eventually(SESSION_LIMIT, async || {
            let health = world.api.get("/health").await.json();
            health["status"] == status && health["degraded"] == parts
        });
        assert!(seen.await, "health is never {status}");
    };
    health("ok", Value::Null).await;
    disk.fill();
    let waits = eventually(SESSION_LIMIT, async || {
        world.log().contains("output waits to be stored")
    });
    assert!(waits.await, "output is stored without room for it");
    let project = json!({ "repository": "owner/repo", "requirements": "Do it" });
    let session = json!({ "session": { "project": project } });
    let create = wrapped("session.create", session);
    let refused = world.api.webhook(&create).await;
    refused.unavailable("storage_unavailable");
    health("degraded", json!(["storage"])).await;
    assert_eq!(world.session(&id).await["status"], "running");
    let listed = world.api.call("session.list", json!({})).await;
    let listed = listed["data"]["sessions"].as_array().map(Vec::len);
    assert_eq!(listed, Some(1), "what was refused left nothing behind");

    disk.free();
    health("ok", Value::Null).await;
    check(&world, &remote, &id, LINES).await;
    let next = world.ran(&steps(json!([["result", "Done."]]))).await;
    assert_eq!(next["status"], "completed", "{next:#}");
}
