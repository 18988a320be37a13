//! The bodies of the original's documentation, as they stand there, in both forms.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::app::App;

const CREATE: &str = r#"{
  "data": {
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
  }
}"#;

const ORCHESTRATE: &str = r#"{
  "data": {
    "type": "orchestrate",
    "sessionType": "coordination",
    "autoStart": false,
    "project": {
      "repository": "owner/repo",
      "requirements": "Orchestrate building a full-stack application with authentication"
    }
  }
}"#;

fn wrapped(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// The same answer to both forms, on servers that have seen nothing else.
async fn check(before: Option<&str>, body: Value, expected: Expect) {
    let mut answers = Vec::new();
    for form in [&body, &body["data"]] {
        let app = App::new().await;
        if let Some(before) = before {
            app.webhook(&wrapped(before)).await;
        }
        answers.push(app.webhook(form).await.pretty());
    }
    assert_eq!(answers[0], answers[1]);
    expected.assert_eq(&answers[0]);
}

fn about(kind: &str) -> Value {
    json!({ "data": { "type": kind, "sessionId": "00000000-0000-7000-8000-000000000001" } })
}

#[tokio::test]
async fn create() {
    check(
        None,
        wrapped(CREATE),
        expect![[r#"
        200
        {
          "data": {
            "session": {
              "containerId": "claude-implementation-000000000001",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [],
              "id": "00000000-0000-7000-8000-000000000001",
              "project": {
                "branch": "feature-branch",
                "context": "Use existing Express framework",
                "repository": "owner/repo",
                "requirements": "Implement user authentication with JWT"
              },
              "status": "initializing",
              "type": "implementation"
            }
          },
          "message": "Session created successfully",
          "success": true
        }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn start() {
    check(
        Some(CREATE),
        about("session.start"),
        expect![[r#"
        200
        {
          "data": {
            "session": {
              "containerId": "claude-implementation-000000000001",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [],
              "id": "00000000-0000-7000-8000-000000000001",
              "project": {
                "branch": "feature-branch",
                "context": "Use existing Express framework",
                "repository": "owner/repo",
                "requirements": "Implement user authentication with JWT"
              },
              "status": "queued",
              "type": "implementation"
            }
          },
          "message": "Session started",
          "success": true
        }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn get() {
    check(
        Some(CREATE),
        about("session.get"),
        expect![[r#"
        200
        {
          "data": {
            "session": {
              "containerId": "claude-implementation-000000000001",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [],
              "id": "00000000-0000-7000-8000-000000000001",
              "project": {
                "branch": "feature-branch",
                "context": "Use existing Express framework",
                "repository": "owner/repo",
                "requirements": "Implement user authentication with JWT"
              },
              "status": "initializing",
              "statusDetail": "It was created and not started yet; start it with session.start.",
              "type": "implementation"
            }
          },
          "success": true
        }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn output() {
    check(
        Some(CREATE),
        about("session.output"),
        expect![[r#"
        200
        {
          "data": {
            "output": null,
            "sessionId": "00000000-0000-7000-8000-000000000001",
            "status": "initializing"
          },
          "message": "Session has no output yet",
          "success": true
        }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn list() {
    let all = json!({ "data": { "type": "session.list" } });
    check(
        Some(CREATE),
        all,
        expect![[r#"
        200
        {
          "data": {
            "sessions": [
              {
                "containerId": "claude-implementation-000000000001",
                "createdAt": "2026-11-22T07:38:22.005Z",
                "dependencies": [],
                "id": "00000000-0000-7000-8000-000000000001",
                "project": {
                  "branch": "feature-branch",
                  "context": "Use existing Express framework",
                  "repository": "owner/repo",
                  "requirements": "Implement user authentication with JWT"
                },
                "status": "initializing",
                "type": "implementation"
              }
            ]
          },
          "success": true
        }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn list_of_an_orchestration() {
    let of_one = json!({ "data": {
        "type": "session.list",
        "orchestrationId": "00000000-0000-7000-8000-000000000001",
    } });
    check(Some(ORCHESTRATE), of_one, expect![[r#"
        200
        {
          "data": {
            "sessions": [
              {
                "containerId": "claude-coordination-000000000002",
                "createdAt": "2026-11-22T07:38:22.005Z",
                "dependencies": [],
                "id": "00000000-0000-7000-8000-000000000002",
                "orchestrationId": "00000000-0000-7000-8000-000000000001",
                "project": {
                  "repository": "owner/repo",
                  "requirements": "Orchestrate building a full-stack application with authentication"
                },
                "status": "initializing",
                "type": "coordination"
              }
            ]
          },
          "success": true
        }
    "#]]).await;
}

#[tokio::test]
async fn orchestrate() {
    check(None, wrapped(ORCHESTRATE), expect![[r#"
        200
        {
          "event": "orchestrate",
          "handlerCount": 1,
          "message": "Webhook processed",
          "results": [
            {
              "data": {
                "orchestrationId": "00000000-0000-7000-8000-000000000001",
                "sessions": [
                  {
                    "containerId": "claude-coordination-000000000002",
                    "createdAt": "2026-11-22T07:38:22.005Z",
                    "dependencies": [],
                    "id": "00000000-0000-7000-8000-000000000002",
                    "orchestrationId": "00000000-0000-7000-8000-000000000001",
                    "project": {
                      "repository": "owner/repo",
                      "requirements": "Orchestrate building a full-stack application with authentication"
                    },
                    "status": "initializing",
                    "type": "coordination"
                  }
                ],
                "status": "initiated",
                "summary": "Created 1 Claude session for owner/repo, not started yet"
              },
              "message": "Orchestration initiated successfully",
              "success": true
            }
          ]
        }
    "#]]).await;
}

/// As existing clients send it, with options beside the session and fields of their own.
#[tokio::test]
async fn options_beside_the_session_and_unknown_fields() {
    let app = App::new().await;
    let created = app
        .webhook(&json!({
            "type": "session.create",
            "session": {
                "type": "implementation",
                "status": "completed",
                "containerId": "mine",
                "project": { "repository": "owner/repo", "requirements": "x" },
                "dependencies": ["none", "", null],
                "metadata": { "batchId": "b1", "tags": ["x"], "priority": "high" },
            },
            "options": { "autoStart": true, "timeout": 5, "notifyUrl": "http://127.0.0.1:1/x" },
        }))
        .await;
    let session = &created.json()["data"]["session"];
    assert_eq!(session["status"], "queued");
    assert_eq!(session["dependencies"], json!([]));
    assert_eq!(session["containerId"], "claude-implementation-000000000001");
    let stored = app.store.active();
    assert_eq!(stored[0].timeout_s, Some(5));
}

#[tokio::test]
async fn orchestrate_divides_the_requirements_as_the_strategy_says() {
    let app = App::new().await;
    let made = app
        .webhook(&json!({
            "type": "orchestrate",
            "strategy": {
                "parallelSessions": 3,
                "phases": ["analysis", "implementation"],
                "dependencyMode": "wait_for_core",
                "timeout": 1500,
            },
            "project": { "repository": "o/r", "requirements": "api frontend auth" },
        }))
        .await;
    let result = &made.json()["results"][0];
    let sessions = result["data"]["sessions"].as_array().expect("sessions");
    let shown = |session: &Value| {
        let waits = session["dependencies"].as_array().map_or(0, Vec::len);
        let text = |name: &str| session[name].as_str().unwrap_or("").to_owned();
        format!(
            "{} {} <- {waits}: {}",
            text("type"),
            text("status"),
            text("title")
        )
    };
    let shown: Vec<String> = sessions.iter().map(shown).collect();
    expect![[r#"
        analysis queued <- 0: Analysis
        implementation pending <- 1: API/backend
        implementation pending <- 1: Authentication
        implementation pending <- 2: Frontend"#]]
    .assert_eq(&shown.join("\n"));
    let summary = result["data"]["summary"].as_str().expect("a summary");
    assert!(
        summary.starts_with("Started 4 Claude sessions for o/r"),
        "{summary}"
    );
    let bounds = app.store.bounds(&app.store.active(), |_, _| 0.0);
    let limits: Vec<_> = bounds.values().map(|one| one.parallel_max).collect();
    assert_eq!(limits, [Some(3)]);
}
