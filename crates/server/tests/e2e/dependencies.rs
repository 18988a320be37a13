//! Order, slots, and what happens to sessions when others do not complete.

use serde_json::json;

use crate::api::wrapped;
use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, count_of, eventually, text};

/// Clients that ask for the same start.
const STARTS_AT_ONCE: usize = 30;

/// Plays only where the prompt has what both implementations said.
const TESTING: &str = r#"
match = ["Write comprehensive tests", "The backend listens on 8080.", "The frontend is one page."]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "test -f backend.js && test -f frontend.js && echo both parts are here"
[[turn]]
text = "Checked: {{last_tool_result}}"
"#;
const BACKEND: &str = r#"
match = ["Implement the backend", "Split it in two."]
[[turn]]
hold = "implementations"
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/backend.js"
content = "listen(8080);\n"
[[turn]]
text = "The backend listens on 8080."
"#;
const FRONTEND: &str = r#"
match = ["Implement the frontend", "Split it in two."]
[[turn]]
hold = "implementations"
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/frontend.js"
content = "render();\n"
[[turn]]
text = "The frontend is one page."
"#;
const ANALYSIS: &str = r#"
match = ["Plan the application"]
closing = "Split it in two."
"#;

#[tokio::test]
async fn diamond_runs_in_order_side_by_side_and_its_code_comes_together() {
    let mut world = World::with_scripts([
        ("10-testing", TESTING),
        ("20-backend", BACKEND),
        ("20-frontend", FRONTEND),
        ("30-analysis", ANALYSIS),
    ])
    .await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;

    let analysis = world
        .create_with(json!({ "type": "analysis" }), "Plan the application")
        .await;
    let backend = world.create("Implement the backend", &[&analysis]).await;
    let frontend = world.create("Implement the frontend", &[&analysis]).await;
    let fields = json!({ "type": "testing", "dependencies": [backend, frontend] });
    let testing = world.create_with(fields, "Write comprehensive tests").await;
    for id in [&testing, &frontend, &backend] {
        let answer = world.start(id).await;
        assert_eq!(
            answer["message"],
            "Session queued, waiting for dependencies"
        );
    }
    let waiting = world.session(&testing).await;
    assert_eq!(waiting["status"], "pending");
    assert_eq!(waiting["waitingFor"], json!([backend, frontend]));
    world.start(&analysis).await;

    world.completed(&analysis).await;
    let journal = world.model.journal();
    let both = |script| {
        move |entries: &[scripted_model::Entry]| entries.iter().any(|entry| entry.asks(script, 0))
    };
    for script in ["20-backend", "20-frontend"] {
        let asked = journal.wait_until(SESSION_LIMIT, both(script)).await;
        asked.unwrap_or_else(|error| panic!("{script}: {error}"));
    }
    assert_eq!(world.session(&backend).await["status"], "running");
    assert_eq!(world.session(&frontend).await["status"], "running");
    assert_eq!(world.session(&testing).await["status"], "pending");
    world.model.release("implementations");

    let session = world.completed(&testing).await;
    assert_eq!(session["output"]["summary"], "Checked: both parts are here");
    for (id, file) in [(&backend, "backend.js"), (&frontend, "frontend.js")] {
        let session = world.completed(id).await;
        let branch = text(&session["result"]["branch"]);
        assert!(branch.starts_with("baton/"), "{branch}");
        assert!(remote.file(&branch, file).await.is_some());
    }
}

#[tokio::test]
async fn one_slot_is_never_taken_twice() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_RUNNING", 1);
    let containers = world.container_events();
    world.start_server().await;
    let requirements = steps(json!([["numbered", 10, 20], ["result", "Done."]]));
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(world.run(&requirements, &[]).await);
    }
    world.until(&ids[0], "running").await;
    assert_eq!(world.session(&ids[2]).await["status"], "queued");
    let mut most_running = 0;
    let done = eventually(SESSION_LIMIT, async || {
        let listed = world.api.call("session.list", json!({})).await;
        let sessions = listed["data"]["sessions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let with = |status: &str| sessions.iter().filter(|of| of["status"] == status).count();
        // All of them were asked to start, so one that initializes has its slot.
        most_running = most_running.max(with("running") + with("initializing"));
        with("completed") == ids.len()
    })
    .await;
    assert!(done, "not all completed in time");
    assert_eq!(most_running, 1);
    containers.until("destroy", ids.len()).await;
    // A slot is free when the work is safe; the agent's own last breath comes after that.
    assert!(containers.most_at_once() <= 2, "{:?}", containers.seen());
    assert_eq!(containers.count("create"), ids.len());
    assert_eq!(containers.count("start"), ids.len());
}

#[tokio::test]
async fn session_that_many_start_at_once_starts_once() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let containers = world.container_events();
    world.start_server().await;
    let requirements = steps(json!([["count_start"], ["result", "Done."]]));
    let id = world.create(&requirements, &[]).await;
    let start = wrapped("session.start", json!({ "sessionId": id }));
    let asked = (0..STARTS_AT_ONCE).map(|_| world.api.webhook(&start));
    for answer in futures::future::join_all(asked).await {
        // Later ones may find it running.
        assert!([200, 409].contains(&answer.status), "{}", answer.text);
    }
    world.completed(&id).await;
    containers.until("destroy", 1).await;
    assert_eq!(containers.count("start"), 1, "{:?}", containers.seen());
    assert_eq!(world.model.journal().entries().len(), 1);
    let events = world.events(&id).await;
    assert_eq!(count_of(&events, "start_requested"), 1);
    assert_eq!(count_of(&events, "claude_started"), 1);
}

#[tokio::test]
async fn failure_blocks_all_that_depend_on_it_and_nobody_else() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let failing = world.create(&steps(json!([["exit", 3]])), &[]).await;
    let fine = steps(json!([["result", "Fine."]]));
    let near = world.create(&fine, &[&failing]).await;
    let far = world.create(&fine, &[&near]).await;
    let other = world.run(&fine, &[]).await;
    world.start(&far).await;
    world.start(&near).await;
    world.start(&failing).await;

    world.failed(&failing, "claude_exited").await;
    let near_session = world.until(&near, "blocked").await;
    assert_eq!(near_session["blockedBy"], failing.as_str());
    let far_session = world.until(&far, "blocked").await;
    assert_eq!(far_session["blockedBy"], near.as_str());
    assert_eq!(far_session.get("attempt"), None);
    world.completed(&other).await;
    let start = wrapped("session.start", json!({ "sessionId": far }));
    assert_eq!(world.api.webhook(&start).await.status, 409);
}

#[tokio::test]
async fn cancelled_session_is_told_to_stop_and_its_work_is_kept() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let requirements = steps(json!([
        ["tell_term"],
        ["write", "half.txt", "half of it\n"],
        ["numbered", 1, 0],
        ["hang"],
    ]));
    let id = world.run(&requirements, &[]).await;
    let last_line = format!("line 000000 {:064}", 0);
    world.printed(&id, &last_line).await;
    world.cancel(&id).await;
    let session = world.over(&id).await;
    assert_eq!(session["status"], "cancelled", "{session:#}");

    let output = world.output(&id).await;
    assert!(
        crate::world::lines_of(&output).contains(&"told to stop"),
        "{output:#}"
    );
    let kept = format!("refs/baton/result/{id}/1");
    let half = world.mirror("owner/repo").file(&kept, "half.txt").await;
    assert_eq!(half.as_deref(), Some("half of it\n"));
    let branch = text(&session["result"]["branch"]);
    assert_eq!(
        remote.file(&branch, "half.txt").await.as_deref(),
        Some("half of it\n")
    );
    assert_eq!(remote.file("main", "half.txt").await, None);
    // Asking again changes nothing.
    assert_eq!(
        world.cancel(&id).await["data"]["session"]["status"],
        "cancelled"
    );
}
