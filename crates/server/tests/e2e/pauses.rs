//! Waiting for the end of a usage limit, or for somebody to raise a budget.

use serde_json::{Value, json};

use crate::world::{SESSION_LIMIT, World, count_of, eventually, text};

// The last turn of both scripts stands twice: going on after an interruption, the CLI adds an answer of
// its own to the conversation, so that a turn is passed over.
/// Writes a file, and is refused once before it goes on.
const LIMITED: &str = r#"
match = ["Write as far as the limit"]
closing = "Written."
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/limited.txt"
content = "before the limit\n"
[[turn]]
fault = { kind = "usage_limit", resets_in_s = 20 }
fault_times = 1
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "grep -q after limited.txt || echo after the limit >> limited.txt"
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "grep -q after limited.txt || echo after the limit >> limited.txt"
"#;
const OTHER: &str = r#"
match = ["Wait for the account"]
closing = "Waited."
"#;
/// Turns of about 42 US cents each.
const COSTLY: &str = r#"
match = ["Spend a lot"]
closing = "Spent."
[[turn]]
usage = { input_tokens = 100000, output_tokens = 1000 }
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/costly.txt"
content = "begun\n"
[[turn]]
usage = { input_tokens = 100000, output_tokens = 1000 }
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "true"
[[turn]]
usage = { input_tokens = 100000, output_tokens = 1000 }
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "grep -q completed costly.txt || echo completed >> costly.txt"
[[turn]]
usage = { input_tokens = 100000, output_tokens = 1000 }
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "grep -q completed costly.txt || echo completed >> costly.txt"
"#;

const CHEAP: &str = r#"
match = ["Spend a little"]
closing = "Spent a little."
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/cheap.txt"
content = "done\n"
"#;

/// Waits until a session pauses, and gives it.
async fn paused(world: &World, id: &str, reason: &str) -> Value {
    let mut session = Value::Null;
    let paused = eventually(SESSION_LIMIT, async || {
        session = world.session(id).await;
        session["pause"]["reason"] == reason
    })
    .await;
    assert!(paused, "{session:#}");
    assert_eq!(session["status"], "queued");
    session
}

#[tokio::test]
async fn a_usage_limit_is_waited_for_and_nothing_new_starts_meanwhile() {
    let mut world = World::with_scripts([("limited", LIMITED), ("other", OTHER)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_RUNNING", 1);
    world.start_server().await;
    let limited = world.run("Write as far as the limit", &[]).await;
    let other = world.run("Wait for the account", &[]).await;

    let session = paused(&world, &limited, "usage_limit").await;
    let until: jiff::Timestamp = text(&session["pause"]["until"]).parse().expect("a time");
    assert!(text(&session["statusDetail"]).contains("usage limit"));
    let waiting = world.session(&other).await;
    assert_eq!(waiting["status"], "queued", "{waiting:#}");
    let detail = text(&waiting["statusDetail"]);
    let time = format!("{until:.0}");
    assert!(
        detail.contains("usage limit") && detail.contains(&time),
        "{detail}"
    );
    // What is not finished lands nowhere.
    let branches = remote.git(&["for-each-ref", "--format=%(refname)"]).await;
    assert_eq!(branches, "refs/heads/main");

    let session = world.completed(&limited).await;
    assert_eq!(session["attempt"], 2);
    let branch = text(&session["result"]["branch"]);
    let file = remote.file(&branch, "limited.txt").await;
    assert_eq!(
        file.as_deref().map(str::trim_end),
        Some("before the limit\nafter the limit")
    );
    let waited = world.completed(&other).await;
    for session in [&session, &waited] {
        let started: jiff::Timestamp = text(&session["startedAt"]).parse().expect("a time");
        assert!(started >= until, "{session:#}");
    }
    let events = world.events(&limited).await;
    assert_eq!(count_of(&events, "usage_limit_hit"), 1, "{events:#?}");
}

#[tokio::test]
async fn a_budget_that_is_spent_is_asked_about_and_a_message_lets_the_work_go_on() {
    let mut world = World::with_scripts([("costly", COSTLY)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let options = json!({ "options": { "autoStart": true, "maxCostUsd": 0.5 } });
    let id = world.create_with(options, "Spend a lot").await;

    let session = paused(&world, &id, "budget").await;
    let spent_usd = session["pause"]["spentUsd"].as_f64().expect("an amount");
    assert!((0.5..1.2).contains(&spent_usd), "{session:#}");
    assert_eq!(session["usage"]["costUsd"], spent_usd);
    assert!(text(&session["statusDetail"]).contains("session.message"));
    let branches = remote.git(&["for-each-ref", "--format=%(refname)"]).await;
    assert_eq!(branches, "refs/heads/main");

    let say = |max_usd: f64| {
        let options = json!({ "maxCostUsd": max_usd });
        json!({ "sessionId": id, "text": "Go on", "options": options })
    };
    world.api.call("session.message", say(50.0)).await;
    let session = world.completed(&id).await;
    let cost_usd = session["usage"]["costUsd"].as_f64().expect("an amount");
    assert!(cost_usd > spent_usd, "{session:#}");
    let branch = text(&session["result"]["branch"]);
    let file = remote.file(&branch, "costly.txt").await;
    assert_eq!(file.as_deref().map(str::trim_end), Some("begun\ncompleted"));
    let events = world.events(&id).await;
    let warned = |event: &&Value| event["type"] == "note" && event["text"] != Value::Null;
    assert_eq!(events.iter().filter(warned).count(), 1, "{events:#?}");
}

#[tokio::test]
async fn a_spent_budget_of_an_orchestration_holds_all_of_it_until_it_is_raised() {
    let mut world = World::with_scripts([("costly", COSTLY), ("cheap", CHEAP)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_RUNNING", 1);
    world.start_server().await;
    let session = |key, requirements| json!({ "key": key, "requirements": requirements });
    let fields = json!({
        "project": { "repository": "owner/repo", "branch": "feature", "requirements": "Some of it" },
        "plan": { "sessions": [session("lot", "Spend a lot"), session("little", "Spend a little")] },
        "options": { "maxCostUsd": 0.5 },
    });
    let made = world.api.call("orchestrate", fields).await;
    let made = &made["results"][0]["data"];
    let whole = text(&made["orchestrationId"]);
    let [costly, cheap] = [0, 1].map(|at: usize| text(&made["sessions"][at]["id"]));
    let get = async |world: &World| {
        let fields = json!({ "orchestrationId": whole });
        let mut got = world.api.call("orchestration.get", fields).await;
        got["data"]["orchestration"].take()
    };

    paused(&world, &costly, "orchestration_budget").await;
    let got = get(&world).await;
    assert_eq!(got["budget"]["status"], "spent", "{got:#}");
    let spent_usd = got["budget"]["spentUsd"].as_f64().expect("an amount");
    assert!((0.5..1.2).contains(&spent_usd), "{got:#}");
    // All of it is on the disk.
    world.kill_server();
    world.start_server().await;
    for id in [&costly, &cheap] {
        let session = world.session(id).await;
        assert_eq!(session["status"], "queued", "{session:#}");
        assert!(text(&session["statusDetail"]).contains("budget"));
    }
    assert_eq!(world.session(&cheap).await["startedAt"], Value::Null);

    let raised = json!({ "orchestrationId": whole, "options": { "maxCostUsd": 50.0 } });
    world.api.call("orchestration.start", raised).await;
    let session = world.completed(&costly).await;
    assert_eq!(session["attempt"], 2);
    world.completed(&cheap).await;
    let mut got = Value::Null;
    let has_landed = eventually(SESSION_LIMIT, async || {
        got = get(&world).await;
        got["landing"]["status"] == "landed"
    });
    assert!(has_landed.await, "{got:#}");
    assert_eq!(got["budget"]["status"], "open", "{got:#}");
    let file = remote.file("feature", "costly.txt").await;
    assert_eq!(file.as_deref().map(str::trim_end), Some("begun\ncompleted"));
    let file = remote.file("feature", "cheap.txt").await;
    assert_eq!(file.as_deref().map(str::trim_end), Some("done"));
}
