//! The bodies that existing clients send, with one real session from creation to landed code.

use serde_json::{Value, json};

use crate::docker;
use crate::world::{World, lines_of, text};

const SCRIPT: &str = r#"
match = ["Implement user authentication with JWT", "Use existing Express framework"]

[[turn]]
text = "I write the middleware."
usage = { input_tokens = 1200, output_tokens = 90 }
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/src/auth.js"
content = "module.exports = (request, response, next) => next();\n"

[[turn]]
usage = { input_tokens = 1300, output_tokens = 40 }
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "git add --all && git commit --quiet --message 'Implement JWT authentication middleware'"
description = "Commit the work"

[[turn]]
usage = { input_tokens = 1400, output_tokens = 60 }
text = '''
Implemented JWT authentication middleware

Next steps:
- Add refresh token support
- Implement rate limiting
'''
"#;

fn documented(data: Value) -> Value {
    json!({ "data": data })
}

/// What existing claude-hub clients send.
fn unwrapped(data: Value) -> Value {
    data
}

#[tokio::test]
async fn documented_bodies_take_a_session_from_creation_to_landed_code() {
    whole_life(documented).await;
}

#[tokio::test]
async fn unwrapped_bodies_mean_the_same() {
    whole_life(unwrapped).await;
}

async fn whole_life(body: fn(Value) -> Value) {
    let mut world = World::with_scripts([("auth", SCRIPT)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "An API.\n")])
        .await;
    world.start_server().await;
    let call = async |data: Value| world.api.webhook(&body(data)).await.ok();

    let created = call(json!({
        "type": "session.create",
        "session": {
            "type": "implementation",
            "project": {
                "repository": "owner/repo",
                "branch": "feature-branch",
                "requirements": "Implement user authentication with JWT",
                "context": "Use existing Express framework"
            },
            "dependencies": []
        }
    }))
    .await;
    assert_eq!(created["success"], true);
    assert_eq!(created["message"], "Session created successfully");
    let session = &created["data"]["session"];
    let id = text(&session["id"]);
    assert_eq!(session["type"], "implementation");
    assert_eq!(session["status"], "initializing");
    let container = text(&session["containerId"]);
    assert!(
        container.starts_with("claude-implementation-"),
        "{container}"
    );
    assert_eq!(session["project"]["branch"], "feature-branch");
    assert_eq!(session["dependencies"], json!([]));

    let early = call(json!({ "type": "session.output", "sessionId": id })).await;
    assert_eq!(early["message"], "Session has no output yet");
    assert_eq!(early["data"]["output"], Value::Null);

    let started = call(json!({ "type": "session.start", "sessionId": id })).await;
    assert_eq!(started["success"], true);
    assert_eq!(started["message"], "Session started");
    assert_eq!(started["data"]["session"]["id"], id.as_str());

    world.completed(&id).await;
    let got = call(json!({ "type": "session.get", "sessionId": id })).await;
    assert_eq!(got["success"], true);
    check_session(&got["data"]["session"], &container);
    let commit = text(&got["data"]["session"]["result"]["commit"]);

    let output = call(json!({ "type": "session.output", "sessionId": id })).await;
    assert_eq!(output["data"]["sessionId"], id.as_str());
    assert_eq!(output["data"]["status"], "completed");
    check_output(&output["data"]["output"], &commit);

    let listed = call(json!({ "type": "session.list" })).await;
    assert_eq!(
        listed["data"]["sessions"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    assert_eq!(listed["data"]["sessions"][0]["id"], id.as_str());

    assert_eq!(remote.commits("feature-branch").await, [commit]);
    let landed = remote.file("feature-branch", "src/auth.js").await;
    assert_eq!(
        landed.as_deref(),
        Some("module.exports = (request, response, next) => next();\n")
    );
    assert_eq!(remote.file("main", "src/auth.js").await, None);

    world.docker_is_empty().await;
    assert!(docker::inspect(&container).await.is_none());
    let again = world
        .api
        .webhook(&body(json!({ "type": "session.start", "sessionId": id })))
        .await;
    assert_eq!(again.status, 409, "{}", again.text);
    assert_eq!(again.json()["code"], "invalid_transition");
}

#[track_caller]
fn check_session(session: &Value, container: &str) {
    assert_eq!(session["status"], "completed");
    assert_eq!(session["containerId"], container);
    assert_eq!(session["attempt"], 1);
    for time in ["createdAt", "startedAt", "completedAt"] {
        let time = text(&session[time]);
        let milliseconds = time.strip_suffix('Z').and_then(|time| time.split_once('.'));
        assert_eq!(
            milliseconds.map(|(_, digits)| digits.len()),
            Some(3),
            "{time}"
        );
    }
    assert_eq!(text(&session["claudeSessionId"]).len(), 36);
    let result = &session["result"];
    assert_eq!(result["branch"], "feature-branch");
    assert_eq!(
        (&result["filesChanged"], &result["insertions"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(result["deletions"], 0);
    let usage = &session["usage"];
    assert!(usage["inputTokens"].as_u64() >= Some(3_900), "{usage}");
    assert!(usage["outputTokens"].as_u64() >= Some(190), "{usage}");
    assert!(usage["costUsd"].as_f64() > Some(0.0), "{usage}");
    assert_eq!(
        session["output"]["summary"],
        "Implemented JWT authentication middleware"
    );
    assert!(session["output"].get("logs").is_none());
}

#[track_caller]
fn check_output(output: &Value, commit: &str) {
    let logs = lines_of(output);
    assert!(logs.contains(&"Created file: src/auth.js"), "{logs:#?}");
    assert!(logs.contains(&"I write the middleware."), "{logs:#?}");
    assert!(
        logs.iter()
            .any(|line| line.starts_with("Ran: git add --all")),
        "{logs:#?}"
    );
    assert!(
        !logs.iter().any(|line| line.starts_with('{')),
        "raw JSON: {logs:#?}"
    );
    let artifacts = json!([
        { "type": "file", "path": "src/auth.js" },
        { "type": "commit", "sha": commit },
    ]);
    assert_eq!(output["artifacts"], artifacts);
    assert_eq!(
        output["summary"],
        "Implemented JWT authentication middleware"
    );
    assert_eq!(
        output["nextSteps"],
        json!(["Add refresh token support", "Implement rate limiting"])
    );
}
