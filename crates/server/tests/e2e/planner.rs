//! `strategy.planner: "claude"`: a session reads the repository and draws the graph.

use serde_json::{Value, json};

use crate::world::{SESSION_LIMIT, World, eventually, text};

const PLANNER: &str = r#"
match = ["divide the request below into sessions", "A guest book"]
[[turn]]
text = "I have read it."
[[turn.tool]]
name = "StructuredOutput"
[turn.tool.input]
summary = "The store first, then the page."
[[turn.tool.input.sessions]]
key = "store"
type = "implementation"
title = "The store"
requirements = "Write the store of the guest book"
dependencies = []
[[turn.tool.input.sessions]]
key = "page"
type = "implementation"
title = "The page"
requirements = "Write the page of the guest book"
dependencies = ["store"]
"#;
/// What it says is no plan: it waits for itself.
const BAD_PLANNER: &str = r#"
match = ["divide the request below into sessions", "A guest book"]
[[turn]]
[[turn.tool]]
name = "StructuredOutput"
[turn.tool.input]
summary = "In a circle."
[[turn.tool.input.sessions]]
key = "store"
type = "implementation"
title = "The store"
requirements = "Write the store of the guest book"
dependencies = ["store"]
"#;
const STORE: &str = r#"
match = ["Write the store of the guest book", "The store first, then the page."]
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/store.js"
content = "store();\n"
[[turn]]
text = "The store keeps guests."
"#;
const PAGE: &str = r#"
match = ["Write the page of the guest book", "The store keeps guests."]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "test -f store.js && echo 'page();' > page.js"
[[turn]]
text = "The page shows them."
"#;

fn body(auto_start: bool) -> Value {
    json!({
        "type": "orchestrate",
        "autoStart": auto_start,
        "strategy": { "planner": "claude" },
        "project": { "repository": "owner/repo", "branch": "guest-book", "requirements": "A guest book" },
    })
}

/// The orchestration's id and that of its planner, which is its only session at first.
async fn orchestrate(world: &World, auto_start: bool) -> (String, String) {
    let answer = world.api.webhook(&body(auto_start)).await.ok();
    let data = &answer["results"][0]["data"];
    assert_eq!(
        data["sessions"].as_array().map(Vec::len),
        Some(1),
        "{answer}"
    );
    assert_eq!(data["sessions"][0]["type"], "analysis");
    (
        text(&data["orchestrationId"]),
        text(&data["sessions"][0]["id"]),
    )
}

async fn sessions(world: &World, orchestration: &str) -> Vec<Value> {
    let fields = json!({ "orchestrationId": orchestration });
    let got = world.api.call("orchestration.get", fields).await;
    let sessions = &got["data"]["orchestration"]["sessions"];
    sessions.as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn claude_plans_and_its_plan_runs() {
    let mut world = World::with_scripts([
        ("10-planner", PLANNER),
        ("20-store", STORE),
        ("20-page", PAGE),
    ])
    .await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let (orchestration, planner) = orchestrate(&world, true).await;

    let planned = world.completed(&planner).await;
    assert_eq!(
        planned["output"]["summary"],
        "The store first, then the page."
    );
    let made = sessions(&world, &orchestration).await;
    let titles: Vec<String> = made.iter().map(|one| text(&one["title"])).collect();
    assert_eq!(titles, ["Plan", "The store", "The page"]);
    assert_eq!(made[1]["dependencies"], json!([planner]));
    assert_eq!(made[2]["dependencies"], json!([made[1]["id"]]));
    world.completed(&text(&made[2]["id"])).await;
    let landed = eventually(SESSION_LIMIT, async || {
        remote.file("guest-book", "page.js").await.is_some()
    });
    assert!(landed.await, "the page did not land");
    assert!(remote.file("guest-book", "store.js").await.is_some());
}

#[tokio::test]
async fn plan_of_claudes_can_be_looked_at_before_it_runs() {
    let mut world = World::with_scripts([("10-planner", PLANNER)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let (orchestration, planner) = orchestrate(&world, false).await;
    world.completed(&planner).await;
    let made = sessions(&world, &orchestration).await;
    let statuses: Vec<String> = made.iter().map(|one| text(&one["status"])).collect();
    assert_eq!(statuses, ["completed", "initializing", "initializing"]);
}

#[tokio::test]
async fn plan_that_cannot_be_is_replaced_by_one_made_of_words() {
    let mut world = World::with_scripts([("10-planner", BAD_PLANNER)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let (orchestration, planner) = orchestrate(&world, false).await;
    let planned = world.completed(&planner).await;
    let warning = text(&planned["warnings"][0]);
    assert!(warning.contains("no plan"), "{warning}");
    let made = sessions(&world, &orchestration).await;
    assert!(made.len() > 2, "{made:?}");
}
