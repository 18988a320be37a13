//! Words to a Claude that runs, to one that has ended, and new attempts.

use serde_json::{Value, json};

use crate::api::wrapped;
use crate::docker::docker;
use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, count_of, eventually, stdout_lines, text};

/// Plays from when the conversation holds what was said in between.
const TOLD: &str = r#"
match = ["Write the greeting"]
system = ["The user sent a new message while you were working", "Greet in French"]
[[turn]]
text = "Never said: Claude is not told yet."
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/greeting.txt"
content = "bonjour"
[[turn]]
text = "Greeted in French."
"#;
const NOT_TOLD: &str = r#"
match = ["Write the greeting"]
[[turn]]
hold = "working"
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "true"
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/greeting.txt"
content = "hello"
[[turn]]
text = "Greeted."
"#;

/// The third turn is played only where the model is shown the first two.
const TWO_PARTS: &str = r#"
match = ["Write the first part"]
[[turn]]
usage = { input_tokens = 1000, output_tokens = 100 }
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/first.txt"
content = "one"
[[turn]]
usage = { input_tokens = 1000, output_tokens = 100 }
text = "The first part is there."
[[turn]]
usage = { input_tokens = 1000, output_tokens = 100 }
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/second.txt"
content = "two"
[[turn]]
usage = { input_tokens = 1000, output_tokens = 100 }
text = "The second part is there."
"#;

const TOO_LATE_FOR_THE_TURN: &str = r#"
match = ["Say something"]
[[turn]]
hold = "last"
usage = { input_tokens = 1000, output_tokens = 100 }
text = "Something."
[[turn]]
usage = { input_tokens = 1000, output_tokens = 100 }
text = "And more."
"#;

const FAILS_ONCE: &str = r#"
match = ["Lay the ground"]
[[turn]]
fault = { kind = "status", status = 403 }
fault_times = 1
fault_scope = "script"
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/ground.txt"
content = "firm"
[[turn]]
text = "Laid."
"#;
const BUILDS: &str = r#"
match = ["Build on it"]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "cat ground.txt"
[[turn]]
text = "The ground is {{last_tool_result}}."
"#;

async fn world(scripts: [(&str, &str); 2]) -> (World, crate::remote::Remote) {
    let mut world = World::with_scripts(scripts).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    (world, remote)
}

/// Waits until Claude was told everything.
async fn told(world: &World, id: &str) {
    let told = eventually(SESSION_LIMIT, async || {
        count_of(&world.events(id).await, "message_told") > 0
    })
    .await;
    assert!(told, "{:#?}", world.events(id).await);
}

#[tokio::test]
async fn message_to_a_running_session_changes_what_it_does() {
    let (world, remote) = world([("10-told", TOLD), ("20-not-told", NOT_TOLD)]).await;
    let id = world.run("Write the greeting", &[]).await;
    let asked = world.model.journal().wait_until(SESSION_LIMIT, |entries| {
        entries.iter().any(|entry| entry.asks("20-not-told", 0))
    });
    asked.await.expect("Claude asks the model");
    let answer = world.say(&id, "Greet in French").await;
    assert_eq!(answer["data"]["session"]["status"], "running", "{answer}");
    told(&world, &id).await;
    world.model.release("working");

    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "Greeted in French.");
    let branch = text(&session["result"]["branch"]);
    let greeting = remote.file(&branch, "greeting.txt").await;
    assert_eq!(greeting.as_deref(), Some("bonjour"));
    assert_eq!(session["attempt"], 1, "{session:#}");
    let events = world.events(&id).await;
    for once in ["message_sent", "message_told", "claude_started"] {
        assert_eq!(count_of(&events, once), 1, "{once}");
    }
}

#[tokio::test]
async fn message_during_the_last_words_begins_another_turn() {
    let scripts = [
        ("late", TOO_LATE_FOR_THE_TURN),
        ("other", "match = ['Other']"),
    ];
    let (world, _remote) = world(scripts).await;
    let id = world.run("Say something", &[]).await;
    let asked = world.model.journal().wait_until(SESSION_LIMIT, |entries| {
        entries.iter().any(|entry| entry.asks("late", 0))
    });
    asked.await.expect("Claude asks the model");
    world.say(&id, "And what else?").await;
    told(&world, &id).await;
    world.model.release("last");

    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "And more.");
    assert_eq!(session["attempt"], 1);
    assert_eq!(session["usage"]["outputTokens"], 200, "of both turns");
    let events = world.events(&id).await;
    let lines = stdout_lines(&events);
    let results = lines
        .iter()
        .filter(|line| line.contains(r#""type":"result""#));
    assert_eq!(results.count(), 2);
}

#[tokio::test]
async fn message_that_came_too_late_is_gone_on_with() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_RESULT_GRACE_SECONDS", 3);
    world.start_server().await;
    // It hangs after its result, with nobody listening any more.
    let script = json!([["keep_conversation"], ["result", "One."], ["hang"]]);
    let id = world.run(&steps(script), &[]).await;
    let ended = eventually(SESSION_LIMIT, async || {
        let lines = stdout_lines(&world.events(&id).await);
        lines.iter().any(|line| line.contains("One."))
    })
    .await;
    assert!(ended, "it gives no result");
    world.say(&id, &steps(json!([["result", "Two."]]))).await;
    let resumed = eventually(SESSION_LIMIT, async || {
        let session = world.session(&id).await;
        session["attempt"] == 2 && session["status"] == "completed"
    })
    .await;
    let session = world.session(&id).await;
    assert!(resumed, "{session:#}");
    assert_eq!(session["output"]["summary"], "Two.");
    assert_eq!(count_of(&world.events(&id).await, "message_told"), 0);
}

#[tokio::test]
async fn message_to_a_finished_session_goes_on_in_its_conversation_and_from_its_code() {
    let (world, remote) = world([("two-parts", TWO_PARTS), ("other", "match = ['Other']")]).await;
    let id = world.run("Write the first part", &[]).await;
    let first = world.completed(&id).await;
    world.no_container().await;
    let answer = world.say(&id, "And now the second").await;
    assert_eq!(answer["data"]["session"]["attempt"], 2, "{answer}");
    let second = world.completed(&id).await;

    assert_eq!(second["attempt"], 2);
    assert_eq!(second["output"]["summary"], "The second part is there.");
    assert_eq!(second["claudeSessionId"], first["claudeSessionId"]);
    let entries = world.model.journal().entries();
    let said = entries.iter().find(|entry| entry.asks("two-parts", 2));
    let said = said.expect("the conversation went on");
    assert_eq!(said.last_user_text.as_deref(), Some("And now the second"));

    // The commits of both are there, told of as one piece of work.
    let (before, after) = (&first["result"], &second["result"]);
    assert_eq!(after["baseCommit"], before["baseCommit"]);
    assert_eq!(after["branch"], before["branch"]);
    assert_ne!(after["commit"], before["commit"]);
    assert_eq!(after["filesChanged"], 2);
    let branch = text(&after["branch"]);
    let commits = remote.git(&["rev-list", "--max-count=2", &branch]).await;
    assert_eq!(
        commits.lines().collect::<Vec<_>>(),
        [text(&after["commit"]), text(&before["commit"])]
    );
    for (file, content) in [("first.txt", "one"), ("second.txt", "two")] {
        let found = remote.file(&branch, file).await;
        assert_eq!(found.as_deref(), Some(content), "{file}");
    }

    // What the CLI says it cost after going on counts this attempt only.
    let usage = |of: &Value, name: &str| of["usage"][name].as_f64().expect("a number");
    assert!(usage(&first, "costUsd") > 0.0, "{first:#}");
    for name in ["costUsd", "inputTokens", "outputTokens"] {
        let (one, both) = (usage(&first, name), usage(&second, name));
        assert!(
            (both - 2.0 * one).abs() < one / 1e6,
            "{name}: {one}, {both}"
        );
    }

    let events = world.events(&id).await;
    assert_eq!(count_of(&events, "claude_started"), 2);
    assert_eq!(count_of(&events, "concluded"), 2);
    let inits = stdout_lines(&events);
    let inits = inits.iter().filter(|line| line.contains(r#""init""#));
    assert_eq!(inits.count(), 2, "the output of both attempts is kept");
    let output = world.output(&id).await;
    let lines = crate::world::lines_of(&output);
    for said in ["The first part is there.", "The second part is there."] {
        assert!(lines.contains(&said), "{said} is not in {lines:#?}");
    }
}

#[tokio::test]
async fn session_whose_conversation_is_gone_says_so_and_can_be_retried() {
    let (world, _remote) = world([("two-parts", TWO_PARTS), ("other", "match = ['Other']")]).await;
    let id = world.run("Write the first part", &[]).await;
    world.completed(&id).await;
    world.no_container().await;
    docker(["volume", "rm", &format!("baton-{id}-1-state")]).await;
    world.say(&id, "And now the second").await;
    let session = world.failed(&id, "conversation_lost").await;
    assert!(text(&session["error"]).contains("retry the session"));

    world.retry(&id).await;
    let session = world.completed(&id).await;
    assert_eq!(session["attempt"], 3);
    assert_eq!(session["output"]["summary"], "The first part is there.");
}

#[tokio::test]
async fn retry_of_a_failed_session_lets_those_run_that_it_blocked() {
    let (world, remote) = world([("fails-once", FAILS_ONCE), ("builds", BUILDS)]).await;
    let first = world.create("Lay the ground", &[]).await;
    let dependent = world.create("Build on it", &[&first]).await;
    world.start(&dependent).await;
    world.start(&first).await;
    world.failed(&first, "claude_error").await;
    let blocked = world.over(&dependent).await;
    assert_eq!(blocked["status"], "blocked");

    world.retry(&first).await;
    let session = world.completed(&first).await;
    assert_eq!(session["attempt"], 2);
    let branch = text(&session["result"]["branch"]);
    assert!(remote.file(&branch, "ground.txt").await.is_some());
    let session = world.completed(&dependent).await;
    assert_eq!(session["output"]["summary"], "The ground is firm.");
    assert_eq!(session["attempt"], 1);
    let events = world.events(&first).await;
    assert_eq!(count_of(&events, "claude_started"), 2);
}

/// The server dies where a message reaches `point`; the client repeats what was not answered.
async fn dies_at(point: &str) {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_FAILPOINT", point);
    world.start_server().await;
    let script = json!([["numbered", 1, 0], ["listen", 1], ["result", "Heard."]]);
    let id = world.run(&steps(script), &[]).await;
    world.printed(&id, &format!("line 000000 {:064}", 0)).await;
    let message = wrapped(
        "session.message",
        json!({ "sessionId": id, "text": "Hello" }),
    );
    let key = [("idempotency-key", "the-one-message")];
    // Whether it is answered depends on the point.
    let _ = world.api.try_webhook(&message, &key).await;
    world.server_died().await;
    world.unset("BATON_FAILPOINT");
    world.start_server().await;
    let repeated = world.api.try_webhook(&message, &key).await;
    repeated.expect("the second server answers").ok();

    let session = world.completed(&id).await;
    assert_eq!(session["attempt"], 1, "{session:#}");
    let events = world.events(&id).await;
    let heard = stdout_lines(&events);
    let heard = heard.iter().filter(|line| *line == "told Hello");
    assert_eq!(heard.count(), 1);
    for once in ["message_sent", "message_told"] {
        assert_eq!(count_of(&events, once), 1, "{once}");
    }
}

#[tokio::test]
async fn server_dies_when_a_message_was_accepted() {
    dies_at("steered").await;
}

#[tokio::test]
async fn server_dies_when_a_message_was_said() {
    dies_at("message_said").await;
}

#[tokio::test]
async fn server_dies_when_it_was_recorded_that_a_message_was_told() {
    dies_at("told_recorded").await;
}

#[tokio::test]
async fn server_dies_when_it_was_acknowledged_that_a_message_was_told() {
    dies_at("told_acknowledged").await;
}
