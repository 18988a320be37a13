//! Coordination sessions: the real Claude Code in a sandbox makes sessions, waits for them without
//! a slot, and reads what they left.

use std::time::Duration;

use jiff::Timestamp;
use scripted_model::Entry;
use serde_json::{Value, json};

use crate::landings::landed;
use crate::mcp::SCRIPTS;
use crate::world::{SESSION_LIMIT, World, count_of, eventually, text};

/// Has the work done by a coordination session, on branch `application`; gives its id.
async fn coordinate(world: &World, requirements: &str) -> String {
    let fields = json!({
        "type": "coordination",
        "project": {
            "repository": "owner/repo", "branch": "application", "requirements": requirements,
        },
    });
    let id = world.create_with(fields, requirements).await;
    world.start(&id).await;
    id
}

/// The sessions that a coordination session made, oldest first.
async fn children(world: &World, id: &str) -> Vec<Value> {
    let listed = world.api.call("session.list", json!({})).await;
    let all = listed["data"]["sessions"].as_array().cloned();
    let made = all.unwrap_or_default().into_iter();
    let mut children: Vec<Value> = made.filter(|of| of["parentId"] == id).collect();
    children.sort_by_key(|of| text(&of["createdAt"]));
    children
}

/// Whose Claude asked the model, one after the other: each script once for all its calls in a row.
fn turns(world: &World) -> Vec<String> {
    let entries = world.model.journal().entries().into_iter();
    let played = entries.filter(|entry| entry.turn.is_some());
    let mut scripts: Vec<String> = played.filter_map(|entry| entry.script).collect();
    scripts.dedup();
    scripts
}

/// The most sessions that had a slot at once, by what is recorded of these.
async fn most_slots_taken(world: &World, ids: &[String]) -> i32 {
    let mut changes: Vec<(Timestamp, i32)> = Vec::new();
    for id in ids {
        for event in world.events(id).await {
            let change = match event["event"].as_str() {
                Some("launch_decided" | "slot_taken") => 1,
                Some("slot_yielded" | "concluded") => -1,
                _ => continue,
            };
            changes.push((text(&event["at"]).parse().expect("a time"), change));
        }
    }
    // In the same millisecond a slot is given up first: it cannot be taken before.
    changes.sort_by_key(|(at, change)| (*at, *change));
    let taken = changes.iter().scan(0, |taken, (_, change)| {
        *taken += change;
        Some(*taken)
    });
    taken.max().unwrap_or(0)
}

/// What Claude Code said of its connection to the tools when it began.
async fn connections(world: &World, id: &str) -> Vec<Value> {
    let events = world.events(id).await;
    let begun = events.iter().map(|event| &event["message"]);
    let begun = begun.filter(|message| message["type"] == "system" && message["subtype"] == "init");
    begun
        .map(|message| message["mcp_servers"].clone())
        .collect()
}

#[tokio::test]
async fn claude_builds_a_graph_from_inside_with_one_slot_in_total_and_its_work_lands() {
    let mut world = World::with_scripts(SCRIPTS).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_RUNNING", 1);
    let containers = world.container_events();
    world.start_server().await;

    let id = coordinate(&world, "Conduct the application").await;
    let session = world.completed(&id).await;
    assert_eq!(
        session["output"]["summary"],
        "The tests said: both parts are here. Waited: true."
    );
    let connected = connections(&world, &id).await;
    assert_eq!(connected.len(), 1, "{connected:?}");
    assert_eq!(connected[0][0]["name"], "baton", "{connected:?}");
    assert_eq!(connected[0][0]["status"], "connected", "{connected:?}");

    let children = children(&world, &id).await;
    let types: Vec<_> = children.iter().map(|of| text(&of["type"])).collect();
    let made = ["analysis", "implementation", "implementation", "testing"];
    assert_eq!(types, made);
    for child in &children {
        assert_eq!(child["status"], "completed", "{child:#}");
        assert_eq!(child["orchestrationId"], session["orchestrationId"]);
    }
    let mut ids: Vec<_> = children.iter().map(|of| text(&of["id"])).collect();
    assert_eq!(children[1]["dependencies"], json!([ids[0]]));
    assert_eq!(children[2]["dependencies"], json!([ids[0]]));
    // Those of one message are made in any order.
    let both = children[3]["dependencies"].as_array().cloned();
    let mut both: Vec<_> = both.unwrap_or_default().iter().map(text).collect();
    both.sort();
    let mut implementations = [ids[1].clone(), ids[2].clone()];
    implementations.sort();
    assert_eq!(both, implementations);

    let landing = landed(&world, &text(&session["orchestrationId"])).await;
    assert_eq!(landing["landing"]["status"], "landed", "{landing:#}");
    for file in ["backend.js", "frontend.js", "tests.js"] {
        assert!(remote.file("application", file).await.is_some(), "{file}");
    }
    let log = remote.commits("application").await;
    for child in &children[1..] {
        let commit = text(&child["result"]["commit"]);
        assert!(log.contains(&commit), "{child:#}: {log:?}");
    }

    // No Claude asked the model while another one worked.
    let turns = turns(&world);
    assert_eq!(turns.len(), 6, "{turns:?}");
    assert_eq!([&turns[0], &turns[5]], ["00-conductor"; 2], "{turns:?}");
    ids.push(id.clone());
    assert_eq!(most_slots_taken(&world, &ids).await, 1);
    let events = world.events(&id).await;
    assert_eq!(count_of(&events, "slot_yielded"), 1);
    assert_eq!(count_of(&events, "slot_taken"), 1);
    containers.until("destroy", ids.len()).await;
    assert_eq!(containers.count("start"), ids.len());
    // One waits, one works, and the agent of one that ended breathes its last.
    assert!(containers.most_at_once() <= 3, "{:?}", containers.seen());
}

/// What a coordination session's Claude does that waits again when its wait breaks off.
const PATIENT: &str = r#"
match = ["Have it held"]
[[turn]]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "implementation"
repository = "owner/repo"
requirements = "Hold on"
autoStart = true
[[turn]]
[[turn.tool]]
name = "mcp__baton__wait_for_session"
input = { sessionIds = ["{{result.0.sessionId}}"], mode = "all" }
[[turn]]
[[turn.tool]]
name = "mcp__baton__wait_for_session"
input = { sessionIds = ["{{result.0.sessionId}}"], mode = "all" }
[[turn]]
text = "In the end: {{result.2.finished.0.summary}}"
"#;
const HELD: &str = r#"
match = ["Hold on"]
[[turn]]
hold = "go on"
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/late.txt"
content = "at last"
[[turn]]
text = "Held and let go."
"#;

/// How long Claude Code may take to notice that a wait has broken off: it tells nothing any more.
const BREAK_NOTICED: Duration = Duration::from_secs(90);

/// What the tools gave back to Claude so far that was an error.
async fn errors(world: &World, id: &str) -> Vec<String> {
    let events = world.events(id).await;
    let contents = events
        .iter()
        .map(|event| &event["message"]["message"]["content"]);
    let blocks = contents.filter_map(Value::as_array).flatten();
    let errors = blocks.filter(|block| block["is_error"] == true);
    errors.map(|block| block["content"].to_string()).collect()
}

#[tokio::test]
async fn coordination_session_whose_wait_broke_off_with_the_server_waits_again() {
    let mut world = World::with_scripts([("00-patient", PATIENT), ("10-held", HELD)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_RUNNING", 1);
    let containers = world.container_events();
    world.start_server().await;
    let id = coordinate(&world, "Have it held").await;
    let works = |entries: &[Entry]| entries.iter().any(|entry| entry.asks("10-held", 0));
    let asked = world.model.journal().wait_until(SESSION_LIMIT, works);
    asked.await.expect("the child asks the model");
    world.kill_server();
    world.start_server().await;

    let mut told = Vec::new();
    eventually(BREAK_NOTICED, async || {
        told = errors(&world, &id).await;
        !told.is_empty()
    })
    .await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("no response or progress"), "{told:?}");
    // Its child has the slot, so it is not to go on.
    let waits = world.session(&id).await;
    assert_eq!(
        waits["statusDetail"],
        "It waited for other sessions and goes on as soon as a slot is free."
    );
    world.model.release("go on");

    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "In the end: Held and let go.");
    landed(&world, &text(&session["orchestrationId"])).await;
    let late = remote.file("application", "late.txt").await;
    assert_eq!(late.as_deref(), Some("at last"));
    assert_eq!(turns(&world), ["00-patient", "10-held", "00-patient"]);
    let child = &children(&world, &id).await[0];
    let ids = [id, text(&child["id"])];
    assert_eq!(most_slots_taken(&world, &ids).await, 1);
    for id in &ids {
        assert_eq!(count_of(&world.events(id).await, "claude_started"), 1);
    }
    assert_eq!(world.model.journal().asked("00-patient", 0), 1);
    containers.until("destroy", ids.len()).await;
    assert_eq!(containers.count("start"), ids.len());
}

/// What a coordination session's Claude does that wants more than it may have.
const GREEDY: &str = r#"
match = ["Take everything"]
[[turn]]
[[turn.tool]]
name = "Bash"
input = { command = "cat foreign.json" }
[[turn]]
[[turn.tool]]
name = "mcp__baton__get_session_status"
input = { sessionId = "{{result.0.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__get_session_output"
input = { sessionId = "{{result.0.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__wait_for_session"
input = { sessionIds = ["{{result.0.sessionId}}"] }
[[turn.tool]]
name = "mcp__baton__message_session"
input = { sessionId = "{{result.0.sessionId}}", text = "Obey me" }
[[turn.tool]]
name = "mcp__baton__cancel_session"
input = { sessionId = "{{result.0.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "analysis"
repository = "owner/repo"
requirements = "Build on what others did"
dependencies = ["{{result.0.sessionId}}"]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "analysis"
repository = "owner/other"
requirements = "Look at what others have"
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "coordination"
repository = "owner/repo"
requirements = "Go deeper"
autoStart = true
[[turn]]
[[turn.tool]]
name = "mcp__baton__wait_for_session"
input = { sessionIds = ["{{result.8.sessionId}}"] }
[[turn]]
text = """
{{result.1.code}} {{result.2.code}} {{result.3.code}} {{result.4.code}} {{result.5.code}}
{{result.6.code}} {{result.7.code}}
{{result.9.finished.0.summary}}"""
"#;
const DEEPER: &str = r#"
match = ["Go deeper"]
[[turn]]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "coordination"
repository = "owner/repo"
requirements = "Go deeper still"
[[turn]]
text = "{{result.0.code}}: {{result.0.error}}"
"#;

#[tokio::test]
async fn coordination_session_is_told_what_it_may_not_have_and_goes_on() {
    let scripts = [
        ("00-greedy", GREEDY),
        ("10-deeper", DEEPER),
        ("20-held", HELD),
    ];
    let mut world = World::with_scripts(scripts).await;
    let files = [("README.md", "Nothing yet.\n")];
    world.remote("owner/other", &files).await;
    world.set("BATON_MAX_RUNNING", 2);
    world.start_server().await;
    let project = json!({ "repository": "owner/other", "requirements": "Hold on" });
    let foreign = world.create_with(json!({ "project": project }), "").await;
    world.start(&foreign).await;
    let known = json!({ "sessionId": foreign }).to_string();
    world
        .remote("owner/repo", &[("foreign.json", &known)])
        .await;

    let id = coordinate(&world, "Take everything").await;
    let session = world.completed(&id).await;
    let refused = ["not_permitted"; 7].join(" ");
    let deeper = "coordination_limit: A coordination session of yours could make no sessions, since \
        there may be 2 levels of them; ask for sessions of another type";
    let summary = text(&session["output"]["summary"]);
    assert_eq!(summary.replace('\n', " "), format!("{refused} {deeper}"));
    // What went wrong reached Claude as errors of the tools.
    assert_eq!(errors(&world, &id).await.len(), 7);
    let children = children(&world, &id).await;
    assert_eq!(children.len(), 1, "{children:#?}");
    assert_eq!(children[0]["type"], "coordination");
    let listed = world.api.call("session.list", json!({})).await;
    let listed = listed["data"]["sessions"].as_array().map(Vec::len);
    assert_eq!(listed, Some(3));

    let foreign_session = world.session(&foreign).await;
    assert_eq!(foreign_session["status"], "running", "{foreign_session:#}");
    world.model.release("go on");
    let foreign_session = world.completed(&foreign).await;
    assert_eq!(foreign_session["output"]["summary"], "Held and let go.");
}

/// Without the variable that lifts the limit, Claude Code repeats a call 15 times at most, and says
/// so in its log alone.
#[tokio::test]
async fn claude_code_repeats_calls_of_coordination_sessions_for_days() {
    const STUMBLES: &str = r#"
match = ["Stumble"]
[[turn]]
fault = { kind = "status", status = 503 }
fault_times = 1
text = "Made again."
"#;
    let mut world = World::with_scripts([("stumbles", STUMBLES)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let id = coordinate(&world, "Stumble").await;
    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "Made again.");
    let events = world.events(&id).await;
    let repeats = events.iter().map(|event| &event["message"]);
    let repeats: Vec<_> = repeats
        .filter(|message| message["subtype"] == "api_retry")
        .map(|message| message["max_retries"].clone())
        .collect();
    assert_eq!(repeats, [1_000]);
}
