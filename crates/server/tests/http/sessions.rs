//! A session's life as clients see it.

use baton::orchestrator::Refusal;
use baton::store::OutputLine;
use baton_agent::protocol::Stream;
use baton_domain::ending::{Ending, FailureCode, Outcome, Usage};
use baton_domain::output::{Artifact, SessionResult};
use baton_domain::session::Report;
use baton_domain::{Attempt, SessionEvent, SessionId};
use expect_test::expect;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::app::App;

pub fn about(kind: &str, id: SessionId) -> Value {
    json!({ "type": kind, "sessionId": id })
}

pub fn ended(outcome: Outcome) -> Vec<SessionEvent> {
    let attempt = Attempt::FIRST;
    vec![
        SessionEvent::LaunchDecided(attempt),
        SessionEvent::ClaudeStarted(attempt),
        SessionEvent::AgentEnded(attempt, Box::<Ending>::default()),
        SessionEvent::Concluded(attempt, outcome),
    ]
}

pub async fn print(app: &App, id: SessionId, position: u64, lines: &[&[u8]]) {
    let line = |bytes: &&[u8]| OutputLine {
        at: Timestamp::UNIX_EPOCH,
        stream: Stream::Stdout,
        bytes: bytes.to_vec().into(),
        cut_bytes: 0,
        line_end: true,
    };
    let lines: Vec<OutputLine> = lines.iter().map(line).collect();
    let stored = app
        .store
        .append_output(id, Attempt::FIRST, position, &lines)
        .await;
    stored.expect("stored");
}

#[tokio::test]
async fn a_start_waits_for_dependencies_and_says_for_which() {
    let app = App::new().await;
    let first = app.created(&[], false).await;
    let second = app.created(&[first, first], false).await;
    expect![[r#"
        200
        {
          "data": {
            "session": {
              "containerId": "claude-implementation-000000000002",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [
                "00000000-0000-7000-8000-000000000001"
              ],
              "id": "00000000-0000-7000-8000-000000000002",
              "project": {
                "repository": "owner/repo",
                "requirements": "Do it"
              },
              "status": "pending",
              "type": "implementation",
              "waitingFor": [
                "00000000-0000-7000-8000-000000000001"
              ]
            },
            "waitingFor": [
              "00000000-0000-7000-8000-000000000001"
            ]
          },
          "message": "Session queued, waiting for dependencies",
          "success": true
        }
    "#]]
    .assert_eq(&app.webhook(&about("session.start", second)).await.pretty());
    let again = app.webhook(&about("session.start", second)).await.json();
    assert_eq!(again["message"], "Session queued, waiting for dependencies");
    assert_eq!(again["data"]["waitingFor"], json!([first]));

    let detail = app.webhook(&about("session.get", second)).await.json();
    assert_eq!(
        detail["data"]["session"]["statusDetail"],
        format!(
            "It waits for its dependency {first} (not started yet; start it with session.start)."
        )
    );
}

#[tokio::test]
async fn a_start_wakes_the_reconciler_and_one_without_effect_does_not() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    app.wake.notified().await;
    app.webhook(&about("session.start", id)).await;
    app.wake.notified().await;
    let changes = app.store.changes();
    let again = app.webhook(&about("session.start", id)).await.json();
    assert_eq!(again["message"], "Session started");
    assert_eq!(app.store.changes(), changes);
}

#[tokio::test]
async fn a_session_that_runs_or_is_over_cannot_be_started() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    app.happens(id, &ended(Outcome::Completed)[..2], None).await;
    let reply = app.webhook(&about("session.start", id)).await;
    reply.is_error(409, "invalid_transition");
    assert_eq!(
        reply.json()["error"],
        "Session cannot be started in status: running"
    );
    app.happens(id, &ended(Outcome::Completed)[2..], None).await;
    let reply = app.webhook(&about("session.start", id)).await;
    assert_eq!(
        reply.json()["error"],
        "Session cannot be started in status: completed"
    );
    let reply = app.webhook(&about("session.cancel", id)).await;
    reply.is_error(409, "invalid_transition");
}

#[tokio::test]
async fn what_waits_for_a_failed_session_is_blocked() {
    let app = App::new().await;
    let failed = app.created(&[], true).await;
    let waiting = app.created(&[failed], false).await;
    let outcome = Outcome::failed(FailureCode::NoResult, "Claude exited without a result");
    app.happens(failed, &ended(outcome), None).await;

    let reply = app.webhook(&about("session.start", waiting)).await;
    reply.is_error(409, "invalid_transition");
    assert_eq!(reply.json()["details"]["blockedBy"], json!(failed));
    let late = app.created(&[failed], true).await;
    expect![[r#"
        200
        {
          "data": {
            "session": {
              "blockedBy": "00000000-0000-7000-8000-000000000001",
              "containerId": "claude-implementation-000000000003",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [
                "00000000-0000-7000-8000-000000000001"
              ],
              "id": "00000000-0000-7000-8000-000000000003",
              "project": {
                "repository": "owner/repo",
                "requirements": "Do it"
              },
              "status": "blocked",
              "statusDetail": "Its dependency 00000000-0000-7000-8000-000000000001 (failed) will not complete unless it is retried with session.retry.",
              "type": "implementation"
            }
          },
          "success": true
        }
    "#]].assert_eq(&app.webhook(&about("session.get", late)).await.pretty());
    let reply = app.webhook(&about("session.output", late)).await.json();
    assert_eq!(
        reply["message"],
        format!("Session has no output: it is blocked by {failed} and was never started")
    );
}

#[tokio::test]
async fn a_completed_session_shows_all_it_left() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let report = Report {
        summary: "Implemented JWT authentication middleware".into(),
        next_steps: vec!["Add refresh token support".into()],
        artifacts: vec![
            Artifact::File {
                path: "src/auth.js".into(),
            },
            Artifact::Commit {
                sha: "abc123def".into(),
            },
        ],
        result: Some(SessionResult {
            branch: Some("baton/1".into()),
            base_commit: "0".repeat(40),
            commit: "1".repeat(40),
            files_changed: 1,
            insertions: 2,
            deletions: 3,
            unjoined: Vec::new(),
        }),
        usage: Some(Usage {
            input_tokens: 10,
            output_tokens: 20,
            cost_usd: 0.25,
        }),
        warnings: vec!["a child ran out of memory".into()],
    };
    print(
        &app,
        id,
        1,
        &[br#"{"type":"assistant","message":{"content":[{"type":"text","text":"Hello\nyou"}]}}"#],
    )
    .await;
    app.happens(id, &ended(Outcome::Completed), Some(report))
        .await;
    expect![[r#"
        200
        {
          "data": {
            "session": {
              "attempt": 1,
              "claudeSessionId": "00000000-0000-4000-8000-000000c1a0de",
              "completedAt": "2026-11-22T07:38:22.005Z",
              "containerId": "claude-implementation-000000000001",
              "createdAt": "2026-11-22T07:38:22.005Z",
              "dependencies": [],
              "id": "00000000-0000-7000-8000-000000000001",
              "output": {
                "artifacts": [
                  {
                    "path": "src/auth.js",
                    "type": "file"
                  },
                  {
                    "sha": "abc123def",
                    "type": "commit"
                  }
                ],
                "nextSteps": [
                  "Add refresh token support"
                ],
                "summary": "Implemented JWT authentication middleware"
              },
              "project": {
                "repository": "owner/repo",
                "requirements": "Do it"
              },
              "result": {
                "baseCommit": "0000000000000000000000000000000000000000",
                "branch": "baton/1",
                "commit": "1111111111111111111111111111111111111111",
                "deletions": 3,
                "filesChanged": 1,
                "insertions": 2
              },
              "startedAt": "2026-11-22T07:38:22.005Z",
              "status": "completed",
              "type": "implementation",
              "usage": {
                "costUsd": 0.25,
                "inputTokens": 10,
                "outputTokens": 20
              },
              "warnings": [
                "a child ran out of memory"
              ]
            }
          },
          "success": true
        }
    "#]]
    .assert_eq(&app.webhook(&about("session.get", id)).await.pretty());
    expect![[r#"
        200
        {
          "data": {
            "output": {
              "artifacts": [
                {
                  "path": "src/auth.js",
                  "type": "file"
                },
                {
                  "sha": "abc123def",
                  "type": "commit"
                }
              ],
              "logs": [
                "Hello",
                "you"
              ],
              "nextSteps": [
                "Add refresh token support"
              ],
              "summary": "Implemented JWT authentication middleware"
            },
            "sessionId": "00000000-0000-7000-8000-000000000001",
            "status": "completed"
          },
          "success": true
        }
    "#]]
    .assert_eq(&app.webhook(&about("session.output", id)).await.pretty());
}

#[tokio::test]
async fn a_failed_session_says_why_it_has_no_output() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let outcome = Outcome::failed(FailureCode::CloneFailed, "no such repository");
    app.happens(
        id,
        &[SessionEvent::LaunchFailed(Attempt::FIRST, outcome)],
        None,
    )
    .await;
    let session = app.webhook(&about("session.get", id)).await.json()["data"]["session"].clone();
    assert_eq!(session["errorCode"], "clone_failed");
    assert_eq!(session["error"], "no such repository");
    expect![[r#"
        200
        {
          "data": {
            "output": null,
            "sessionId": "00000000-0000-7000-8000-000000000001",
            "status": "failed"
          },
          "message": "Session has no output: it failed before Claude wrote any. no such repository",
          "success": true
        }
    "#]]
    .assert_eq(&app.webhook(&about("session.output", id)).await.pretty());
}

#[tokio::test]
async fn output_comes_in_pages_without_gap_or_repeat() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let three = br#"{"type":"assistant","message":{"content":[{"type":"text","text":"a\nb\nc"}]}}"#;
    print(
        &app,
        id,
        1,
        &[three, b"plain", b"{\"type\":\"unknown\"}", three],
    )
    .await;
    for limit in 1..=8 {
        let mut lines = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let page = app
                .webhook(&json!({
                    "type": "session.output", "sessionId": id, "limit": limit, "cursor": cursor,
                }))
                .await
                .json();
            let logs = page["data"]["output"]["logs"]
                .as_array()
                .expect("lines")
                .clone();
            assert!(logs.len() <= limit, "{page}");
            // There is a cursor as long as more may come.
            cursor = page["data"]["nextCursor"].clone();
            assert!(!cursor.is_null(), "{page}");
            if logs.is_empty() {
                break;
            }
            lines.extend(logs);
        }
        assert_eq!(
            json!(lines),
            json!(["a", "b", "c", "plain", "a", "b", "c"]),
            "by {limit}"
        );
    }
    let path = format!("/api/v1/sessions/{id}/output?limit=2");
    let page = app.get(&path).await.json();
    assert_eq!(page["data"]["output"]["logs"], json!(["a", "b"]));
    app.webhook(&about("session.cancel", id)).await;
    let page = app.get(&format!("/api/v1/sessions/{id}/output")).await;
    assert!(page.json()["data"]["nextCursor"].is_null());
}

#[tokio::test]
async fn a_cancelled_session_stays_cancelled() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    for _ in 0..2 {
        let reply = app.webhook(&about("session.cancel", id)).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["data"]["session"]["status"], "cancelled");
    }
    let running = app.created(&[], true).await;
    app.happens(running, &ended(Outcome::Completed)[..2], None)
        .await;
    let reply = app
        .post(&format!("/api/v1/sessions/{running}/cancel"), &Value::Null)
        .await
        .json();
    assert_eq!(reply["data"]["session"]["status"], "running");
    assert_eq!(
        reply["message"],
        "Session is being cancelled; its work is saved first"
    );
}

#[tokio::test]
async fn without_a_runtime_reads_work_and_new_work_is_refused() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    let queued = app.created(&[], true).await;
    let changes = app.store.changes();
    app.admission.set(Some(Refusal::ImageMissing {
        image: "claudecode:latest".into(),
    }));
    let project = json!({ "repository": "o/r", "requirements": "x" });
    for body in [
        json!({ "type": "session.create", "session": { "project": project } }),
        json!({ "type": "orchestrate", "project": project }),
        about("session.start", id),
    ] {
        let reply = app.webhook(&body).await;
        reply.is_error(503, "image_missing");
        assert!(reply.header("retry-after").is_some());
        assert!(
            reply.json()["error"]
                .as_str()
                .expect("text")
                .contains("claudecode:latest")
        );
    }
    assert_eq!(app.store.changes(), changes);
    let got = app.webhook(&about("session.get", queued)).await.json();
    let detail = got["data"]["session"]["statusDetail"]
        .as_str()
        .expect("a text");
    assert!(detail.contains("baton image build"), "{detail}");

    app.admission.set(Some(Refusal::RuntimeUnavailable));
    app.webhook(&about("session.start", id))
        .await
        .is_error(503, "runtime_unavailable");
    // What was asked for before is answered as before.
    assert_eq!(
        app.webhook(&about("session.start", queued)).await.status,
        200
    );
    assert_eq!(
        app.webhook(&about("session.cancel", queued)).await.status,
        200
    );
}

#[tokio::test]
async fn a_coordination_session_is_in_an_orchestration_that_lands_as_a_whole() {
    let app = App::new().await;
    let project = json!({ "repository": "o/r", "branch": "shop", "requirements": "x" });
    let made = app
        .post(
            "/api/v1/sessions",
            &json!({ "type": "coordination", "project": project }),
        )
        .await;
    assert_eq!(made.status, 201);
    let made = made.json();
    let session = &made["data"]["session"];
    assert_eq!(session["parentId"], Value::Null);
    let id = session["orchestrationId"].as_str().expect("an id");
    let got = app
        .get(&format!("/api/v1/orchestrations/{id}"))
        .await
        .json();
    let orchestration = &got["data"]["orchestration"];
    assert_eq!(orchestration["sessions"][0]["id"], session["id"]);
    assert_eq!(orchestration["landing"]["status"], "waiting");
    assert_eq!(orchestration["landing"]["branch"], "shop");
}

#[tokio::test]
async fn an_orchestration_is_got_and_cancelled() {
    let app = App::new().await;
    let project = json!({ "repository": "o/r", "requirements": "x" });
    let made = app
        .post(
            "/api/v1/orchestrations",
            &json!({ "project": project, "sessionType": "coordination" }),
        )
        .await;
    assert_eq!(made.status, 201);
    let id = made.json()["data"]["orchestrationId"]
        .as_str()
        .expect("an id")
        .to_owned();
    let path = format!("/api/v1/orchestrations/{id}");
    assert_eq!(
        app.get(&path).await.json()["data"]["orchestration"]["status"],
        "running"
    );
    let reply = app
        .webhook(&json!({ "type": "orchestration.cancel", "orchestrationId": id }))
        .await;
    expect![[r#"
        200
        {
          "data": {
            "orchestration": {
              "createdAt": "2026-11-22T07:38:22.005Z",
              "id": "00000000-0000-7000-8000-000000000001",
              "landing": {
                "branch": "baton/000000000001",
                "landed": [],
                "leftOut": [],
                "status": "waiting"
              },
              "repository": "o/r",
              "requirements": "x",
              "sessions": [
                {
                  "attempt": 1,
                  "completedAt": "2026-11-22T07:38:22.005Z",
                  "containerId": "claude-coordination-000000000002",
                  "createdAt": "2026-11-22T07:38:22.005Z",
                  "dependencies": [],
                  "id": "00000000-0000-7000-8000-000000000002",
                  "orchestrationId": "00000000-0000-7000-8000-000000000001",
                  "project": {
                    "repository": "o/r",
                    "requirements": "x"
                  },
                  "status": "cancelled",
                  "type": "coordination"
                }
              ],
              "status": "cancelled",
              "summary": "Started 1 Claude session for o/r. 1 session: 1 cancelled.",
              "usage": {
                "costUsd": 0.0,
                "inputTokens": 0,
                "outputTokens": 0
              }
            }
          },
          "success": true
        }
    "#]]
    .assert_eq(&reply.pretty());
    assert_eq!(app.get(&path).await.text(), reply.text());
    let other = path.replace("0001", "0009");
    app.get(&other)
        .await
        .is_error(404, "orchestration_not_found");
}
