//! The simplified orchestration: one session that was asked for by `sessionType`.

use serde_json::{Value, json};

use crate::world::{SESSION_LIMIT, World, eventually, text};

const SCRIPT: &str = r#"
match = ["Orchestrate building a full-stack application with authentication"]
closing = "Split it into a backend and a frontend."
"#;

/// The body as it is documented.
fn seed_body() -> Value {
    json!({
        "data": {
            "type": "orchestrate",
            "sessionType": "coordination",
            "autoStart": false,
            "project": {
                "repository": "owner/repo",
                "requirements": "Orchestrate building a full-stack application with authentication"
            }
        }
    })
}

/// The one session of an answer in the original's envelope, and its orchestration's id.
#[track_caller]
fn only_session(answer: &Value) -> (Value, String) {
    assert_eq!(answer["message"], "Webhook processed");
    assert_eq!(answer["event"], "orchestrate");
    assert_eq!(answer["handlerCount"], 1);
    let [result] = answer["results"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    else {
        panic!("not one result: {answer}");
    };
    assert_eq!(result["success"], true);
    assert_eq!(result["message"], "Orchestration initiated successfully");
    assert_eq!(result["data"]["status"], "initiated");
    assert!(
        text(&result["data"]["summary"]).contains("owner/repo"),
        "{result}"
    );
    let [session] = result["data"]["sessions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    else {
        panic!("not one session: {result}");
    };
    assert_eq!(session["type"], "coordination");
    assert_eq!(session["dependencies"], json!([]));
    assert!(text(&session["containerId"]).starts_with("claude-coordination-"));
    (session.clone(), text(&result["data"]["orchestrationId"]))
}

#[tokio::test]
async fn orchestration_waits_for_its_start_where_auto_start_is_false() {
    let mut world = World::with_scripts([("coordination", SCRIPT)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let other = world.create("Something else", &[]).await;

    let (session, orchestration) = only_session(&world.api.webhook(&seed_body()).await.ok());
    let id = text(&session["id"]);
    assert_eq!(session["status"], "initializing");

    let fields = json!({ "orchestrationId": orchestration });
    let listed = world.api.call("session.list", fields.clone()).await;
    assert_eq!(
        listed["data"]["sessions"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    assert_eq!(listed["data"]["sessions"][0]["id"], id.as_str());
    assert_eq!(
        listed["data"]["sessions"][0]["orchestrationId"],
        orchestration.as_str()
    );
    assert_ne!(id, other);

    world.start(&id).await;
    let session = world.completed(&id).await;
    assert_eq!(
        session["output"]["summary"],
        "Split it into a backend and a frontend."
    );
    let got = world.api.call("orchestration.get", fields).await;
    assert_eq!(got["data"]["orchestration"]["id"], orchestration.as_str());
    // It is there to think, so it leaves no branch.
    let branches = remote.git(&["for-each-ref", "--format=%(refname)"]).await;
    assert_eq!(branches, "refs/heads/main");
}

#[tokio::test]
async fn orchestration_starts_by_itself_and_is_cancelled_as_a_whole() {
    let script = [SCRIPT, "[[turn]]\ntext = 'x'\nhold = 'never'\n"].concat();
    let mut world = World::with_scripts([("coordination", &script)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let mut body = seed_body()["data"].take();
    body.as_object_mut().expect("an object").remove("autoStart");

    let (session, orchestration) = only_session(&world.api.webhook(&body).await.ok());
    let id = text(&session["id"]);
    world.until(&id, "running").await;
    let fields = json!({ "orchestrationId": orchestration });
    world.api.call("orchestration.cancel", fields).await;
    assert_eq!(world.over(&id).await["status"], "cancelled");
}

const STORE: &str = r#"
match = ["Write the store"]
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/shared/app.js"
content = "store();\n"
[[turn]]
text = "Written."
hold = "both"
"#;
const PAGE: &str = r#"
match = ["Write the page"]
[[turn]]
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/shared/app.js"
content = "page();\n"
[[turn]]
text = "Written."
hold = "both"
"#;

#[tokio::test]
async fn sessions_that_change_the_same_file_are_told_of_each_other() {
    let mut world = World::with_scripts([("10-store", STORE), ("20-page", PAGE)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let body = json!({
        "type": "orchestrate",
        "project": { "repository": "owner/repo", "requirements": "Both" },
        "plan": { "sessions": [
            { "key": "store", "requirements": "Write the store" },
            { "key": "page", "requirements": "Write the page" },
        ] },
    });
    let answer = world.api.webhook(&body).await.ok();
    let data = &answer["results"][0]["data"];
    let fields = json!({ "orchestrationId": data["orchestrationId"] });
    let mut got = json!(null);
    let seen = eventually(SESSION_LIMIT, async || {
        let answer = world.api.call("orchestration.get", fields.clone()).await;
        got = answer["data"]["orchestration"].clone();
        got["overlaps"].is_array()
    })
    .await;
    assert!(seen, "no overlap was told: {got:#}");
    assert_eq!(got["overlaps"][0]["path"], "shared/app.js");
    let [store, page] = [0, 1].map(|at| text(&data["sessions"][at]["id"]));
    for (id, other) in [(&store, &page), (&page, &store)] {
        let told = eventually(SESSION_LIMIT, async || {
            let events = world.events(id).await;
            events
                .iter()
                .any(|event| event["type"] == "note" && event.to_string().contains(other.as_str()))
        });
        assert!(told.await, "{id} was not told of {other}");
    }
    let summary = text(&got["summary"]);
    assert!(summary.contains("2 sessions: 2 running."), "{summary}");
    world.model.release("both");
}
