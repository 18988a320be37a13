//! The door for models, over the wire as clients of either revision write it.

use std::time::Duration;

use baton::store::OutputLine;
use baton_agent::protocol::Stream;
use baton_domain::ending::{FailureCode, Outcome};
use baton_domain::session::Report;
use baton_domain::{Attempt, SessionEvent, SessionId};
use serde_json::{Value, json};

use crate::app::{App, Connection, Reply};

const REVISION: &str = "2026-07-28";
/// Longer than anything here takes; hit only when something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client says of itself in each request.
fn meta(capabilities: &Value, client: &str) -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientInfo": { "name": client, "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    })
}

fn tasks() -> Value {
    json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } })
}

fn request(app: &App, method: &str, name: Option<&str>, params: &Value) -> Vec<u8> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let mut headers = format!(
        "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {REVISION}\r\n\
         Mcp-Method: {method}\r\n"
    );
    if let Some(name) = name {
        headers.push_str(&format!("Mcp-Name: {name}\r\n"));
    }
    app.request("POST", "/mcp", &headers, body.to_string().as_bytes())
}

/// The messages of an answer, whether it came as one or as a stream.
fn messages(reply: &Reply) -> Vec<Value> {
    let text = reply.text();
    if reply.header("content-type") == Some("application/json") {
        return vec![reply.json()];
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let data = data.map(str::trim).filter(|data| !data.is_empty());
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

impl App {
    async fn mcp_as(
        &self,
        client: &str,
        capabilities: &Value,
        method: &str,
        params: Value,
    ) -> Value {
        let mut params = params;
        params["_meta"] = meta(capabilities, client);
        let name = ["name", "uri", "taskId"]
            .iter()
            .find_map(|key| params[*key].as_str());
        let name = name.map(str::to_owned);
        let reply = self
            .send(&request(self, method, name.as_deref(), &params))
            .await;
        let last = messages(&reply).pop();
        last.unwrap_or_else(|| panic!("{} {}", reply.status, reply.text()))
    }

    async fn mcp(&self, method: &str, params: Value) -> Value {
        self.mcp_as("test", &json!({}), method, params).await
    }

    /// A tool's answer, whatever it is.
    async fn tool(&self, name: &str, arguments: Value) -> Value {
        let answer = self
            .mcp(
                "tools/call",
                json!({ "name": name, "arguments": arguments }),
            )
            .await;
        assert!(answer["error"].is_null(), "{answer}");
        answer["result"].clone()
    }

    /// What a tool answers that does what it is asked.
    async fn did(&self, name: &str, arguments: Value) -> Value {
        let result = self.tool(name, arguments).await;
        assert_ne!(result["isError"], true, "{result}");
        let told = result["structuredContent"].clone();
        let text = result["content"][0]["text"].as_str().expect("a text");
        let of_text: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(of_text, told, "text and structure are the same");
        told
    }

    async fn refused(&self, name: &str, arguments: Value) -> Value {
        let result = self.tool(name, arguments).await;
        assert_eq!(result["isError"], true, "{result}");
        // Some clients would hold it against the schema of an answer.
        assert!(result["structuredContent"].is_null(), "{result}");
        let text = result["content"][0]["text"].as_str().expect("a text");
        serde_json::from_str(text).expect("JSON")
    }

    async fn ends(&self, id: SessionId, outcome: Outcome, summary: &str) {
        let attempt = Attempt::FIRST;
        let report = Report {
            summary: summary.to_owned(),
            ..Report::default()
        };
        self.happens(
            id,
            &[
                SessionEvent::LaunchDecided(attempt),
                SessionEvent::ClaudeStarted(attempt),
                SessionEvent::AgentEnded(attempt, Box::default()),
                SessionEvent::Concluded(attempt, outcome),
            ],
            Some(report),
        )
        .await;
    }
}

fn id_of(told: &Value) -> SessionId {
    let id = told["sessionId"].as_str().expect("an id");
    id.parse().expect("a UUID")
}

fn new_session(kind: &str, dependencies: &[SessionId]) -> Value {
    json!({
        "sessionType": kind,
        "repository": "owner/repo",
        "requirements": "Do it\nand more",
        "dependencies": dependencies,
    })
}

#[tokio::test]
async fn a_graph_is_made_started_and_looked_at_by_tools() {
    let app = App::new().await;
    let analysis = id_of(
        &app.did("create_claude_session", new_session("analysis", &[]))
            .await,
    );
    let one = id_of(
        &app.did(
            "create_claude_session",
            new_session("implementation", &[analysis]),
        )
        .await,
    );
    let other = id_of(
        &app.did(
            "create_claude_session",
            new_session("implementation", &[analysis]),
        )
        .await,
    );
    let tests = app
        .did(
            "create_claude_session",
            new_session("testing", &[one, other]),
        )
        .await;
    assert_eq!(tests["status"], "initializing");
    assert_eq!(tests["next"], "start_claude_session");
    let tests = id_of(&tests);
    for id in [analysis, one, other, tests] {
        app.did("start_claude_session", json!({ "sessionId": id }))
            .await;
    }
    let stands = app
        .did("get_session_status", json!({ "sessionId": tests }))
        .await;
    assert_eq!(stands["status"], "pending");
    assert_eq!(stands["waitingFor"], json!([one, other]));
    assert_eq!(stands["next"], "wait_for_session");

    app.ends(analysis, Outcome::Completed, "Two parts.").await;
    let output = app
        .did("get_session_output", json!({ "sessionId": analysis }))
        .await;
    assert_eq!(output["status"], "completed");
    assert_eq!(output["summary"], "Two parts.");
    assert_eq!(output["truncated"], false);
    app.ends(
        one,
        Outcome::failed(FailureCode::ClaudeError, "It broke."),
        "",
    )
    .await;
    let stands = app
        .did("get_session_status", json!({ "sessionId": one }))
        .await;
    assert_eq!(
        (&stands["status"], &stands["error"]),
        (&json!("failed"), &json!("It broke."))
    );
    let retried = app.did("retry_session", json!({ "sessionId": one })).await;
    assert_eq!(retried["status"], "queued");
    let told = app
        .did(
            "message_session",
            json!({ "sessionId": one, "text": "Mind the gap" }),
        )
        .await;
    assert_eq!(told["sessionId"], json!(one));
    let cancelled = app
        .did("cancel_session", json!({ "sessionId": tests }))
        .await;
    assert_eq!(cancelled["status"], "cancelled");

    let list = app
        .did("list_sessions", json!({ "status": "completed,cancelled" }))
        .await;
    assert_eq!(list["total"], 2);
    assert_eq!(
        list["sessions"][0]["sessionId"],
        json!(tests),
        "newest first"
    );
    assert_eq!(list["sessions"][0]["title"], "Do it");
}

#[tokio::test]
async fn an_orchestration_is_made_of_the_sessions_named() {
    let app = App::new().await;
    let made = app
        .did(
            "orchestrate",
            json!({
                "repository": "owner/repo",
                "requirements": "Notes",
                "sessions": [
                    { "key": "plan", "type": "analysis", "requirements": "Plan" },
                    { "key": "a", "requirements": "Do a", "dependsOn": ["plan"] },
                    { "key": "t", "type": "testing", "requirements": "Test", "depends_on": ["a"] },
                ],
            }),
        )
        .await;
    let sessions = made["sessions"].as_array().expect("sessions");
    assert_eq!(sessions.len(), 3);
    assert_eq!(
        sessions[2]["dependencies"],
        json!([sessions[1]["sessionId"]])
    );
    let got = app
        .did(
            "get_orchestration",
            json!({ "orchestrationId": made["orchestrationId"] }),
        )
        .await;
    assert_eq!(got["status"], "running");
    assert_eq!(got["landing"]["status"], "waiting");
    assert_eq!(got["sessions"].as_array().map(Vec::len), Some(3));
    let list = app
        .did(
            "list_sessions",
            json!({ "orchestrationId": made["orchestrationId"], "limit": 2 }),
        )
        .await;
    assert_eq!(list["total"], 3);
    let rest = app
        .did(
            "list_sessions",
            json!({
                "orchestrationId": made["orchestrationId"],
                "limit": 2,
                "cursor": list["nextCursor"],
            }),
        )
        .await;
    assert_eq!(rest["sessions"][0]["sessionId"], sessions[0]["sessionId"]);
    assert!(rest["nextCursor"].is_null());

    let cancelled = app
        .did(
            "cancel_session",
            json!({ "orchestrationId": made["orchestrationId"] }),
        )
        .await;
    assert_eq!(cancelled["status"], "cancelled");
    let statuses = cancelled["sessions"].as_array().expect("sessions").iter();
    let statuses: Vec<&Value> = statuses.map(|one| &one["status"]).collect();
    assert_eq!(statuses, ["cancelled"; 3]);
    let neither = app.refused("cancel_session", json!({})).await;
    assert_eq!(neither["error"], "sessionId or orchestrationId is required");
}

#[tokio::test]
async fn what_is_wrong_is_told_with_what_is_right() {
    let app = App::new().await;
    let wrong = app
        .refused(
            "create_session",
            json!({ "session_type": "documentation", "repository": "o/r", "requirements": "x" }),
        )
        .await;
    assert_eq!(wrong["code"], "invalid_field");
    let text = wrong["error"].as_str().expect("a text");
    assert!(
        text.starts_with("sessionType ") && text.contains("analysis"),
        "{text}"
    );
    let gone = "0192d1f6-0000-7000-8000-00000000dead";
    let wrong = app
        .refused("start_session", json!({ "session_id": gone }))
        .await;
    assert_eq!(wrong["code"], "session_not_found");
    let wrong = app.refused("get_session_status", json!({})).await;
    assert_eq!(wrong["error"], "sessionId is required");
    let wrong = app
        .refused("wait_for_session", json!({ "sessionIds": [gone] }))
        .await;
    assert_eq!(wrong["code"], "session_not_found");
    let coffee = json!({ "name": "make_coffee", "arguments": {} });
    let wrong = app.mcp("tools/call", coffee).await;
    assert_eq!(wrong["error"]["code"], -32602);
    assert!(
        wrong["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("orchestrate"))
    );
    let id = app.created(&[], false).await;
    let wrong = app
        .refused("retry_session", json!({ "sessionId": id }))
        .await;
    assert_eq!(wrong["code"], "invalid_transition");
}

#[tokio::test]
async fn one_key_makes_one_session_and_is_of_tools_alone() {
    let app = App::new().await;
    let mut new = new_session("analysis", &[]);
    new["idempotencyKey"] = json!("k1");
    let first = app.did("create_claude_session", new.clone()).await;
    let again = app.did("create_claude_session", new.clone()).await;
    assert_eq!(first, again);
    new["requirements"] = json!("Something else");
    let other = app.refused("create_claude_session", new).await;
    assert_eq!(other["code"], "idempotency_mismatch");
    assert_eq!(app.did("list_sessions", json!({})).await["total"], 1);
}

#[tokio::test]
async fn definitions_and_lists_are_small() {
    let app = App::new().await;
    let listed = app.mcp("tools/list", json!({})).await;
    let tools = &listed["result"]["tools"];
    let bytes = tools.to_string().len();
    assert!(bytes < baton::mcp::DEFINITIONS_BYTES_MAX, "{bytes}");
    for tool in tools.as_array().expect("tools") {
        assert_eq!(tool["inputSchema"]["type"], "object", "{tool}");
        assert_eq!(tool["outputSchema"]["type"], "object", "{tool}");
        assert!(tool["annotations"].is_object(), "{tool}");
    }
    let discovered = app.mcp("server/discover", json!({})).await;
    let instructions = discovered["result"]["instructions"]
        .as_str()
        .expect("instructions");
    assert!(instructions.len() < 4_000, "{}", instructions.len());

    for _ in 0..1_000 {
        app.created(&[], false).await;
    }
    let list = app.did("list_sessions", json!({})).await;
    assert_eq!(list["total"], 1_000);
    let bytes = list.to_string().len();
    assert!(bytes < 8_000, "{bytes}");
}

#[tokio::test]
async fn a_wait_is_answered_when_all_are_over() {
    let app = App::new().await;
    let one = app.created(&[], true).await;
    let other = app.created(&[], true).await;
    let wait = json!({ "sessionIds": [one, other], "timeoutSeconds": 0 });
    let told = app.did("wait_for_session", wait).await;
    assert_eq!(told["done"], false);
    assert_eq!(told["pending"].as_array().map(Vec::len), Some(2));

    let waiting = app.did("wait_for_session", json!({ "sessionIds": [one, other] }));
    let ending = async {
        app.ends(one, Outcome::Completed, "One is done.").await;
        app.ends(other, Outcome::failed(FailureCode::ClaudeError, "No."), "")
            .await;
    };
    let (told, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(waiting, ending) })
        .await
        .expect("an answer in time");
    assert_eq!(told["done"], true);
    assert_eq!(told["finished"][0]["summary"], "One is done.");
    assert_eq!(told["finished"][1]["error"], "No.");
    assert_eq!(told["next"], "get_session_output of those you need");
}

#[tokio::test]
async fn nobody_waits_for_a_session_that_was_not_started() {
    let app = App::new().await;
    let created = app.created(&[], false).await;
    let dependent = app.created(&[created], true).await;
    let told = app
        .did("wait_for_session", json!({ "sessionIds": [dependent] }))
        .await;
    assert_eq!(told["done"], false);
    let attention = told["attention"][0].as_str().expect("a word");
    assert!(attention.contains(&created.to_string()), "{attention}");
    let last = app.created(&[dependent], true).await;
    let told = app
        .did("wait_for_session", json!({ "sessionIds": [last] }))
        .await;
    let attention = told["attention"][0].as_str().expect("a word");
    assert!(attention.contains(&created.to_string()), "{attention}");
}

/// Reads messages of a stream as they come.
struct Messages(Connection, String);

impl Messages {
    async fn open(app: &App, request: &[u8]) -> Self {
        let mut connection = app.connect().await;
        connection.write(request).await;
        let head = connection.head().await;
        assert_eq!(head.status, 200);
        Self(connection, String::new())
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.1.find("\n\n") {
                let event = self.1.drain(..end + 2).collect::<String>();
                let data = event.lines().filter_map(|line| line.strip_prefix("data:"));
                let data = data.collect::<String>();
                if !data.trim().is_empty() {
                    return Some(serde_json::from_str(&data).expect("JSON"));
                }
                continue;
            }
            let chunk = self.0.chunk().await?;
            self.1.push_str(
                &String::from_utf8(chunk)
                    .expect("UTF-8")
                    .replace("\r\n", "\n"),
            );
        }
    }
}

#[tokio::test]
async fn who_asks_for_progress_hears_of_it_at_once() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let mut meta = meta(&json!({}), "claude-code");
    meta["progressToken"] = json!("p1");
    let params = json!({
        "name": "wait_for_session",
        "arguments": { "sessionIds": [id] },
        "_meta": meta,
    });
    let call = request(&app, "tools/call", Some("wait_for_session"), &params);
    let mut stream = Messages::open(&app, &call).await;
    let progress = stream.next().await.expect("progress");
    assert_eq!(progress["method"], "notifications/progress");
    assert_eq!(progress["params"]["progressToken"], "p1");
    let message = progress["params"]["message"].as_str().expect("a message");
    assert!(message.starts_with("0 of 1 over"), "{message}");
    app.ends(id, Outcome::Completed, "Done.").await;
    let answer = loop {
        let message = stream.next().await.expect("an answer");
        if message["id"] == 1 {
            break message;
        }
    };
    assert_eq!(answer["result"]["structuredContent"]["done"], true);
}

#[tokio::test]
async fn a_client_that_knows_tasks_gets_one_and_may_end_it() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let call = json!({ "name": "wait_for_session", "arguments": { "sessionIds": [id] } });
    let begun = app
        .mcp_as("test", &tasks(), "tools/call", call.clone())
        .await;
    let task = &begun["result"];
    assert_eq!(
        (&task["resultType"], &task["status"]),
        (&json!("task"), &json!("working")),
        "{begun}"
    );
    let task_id = json!({ "taskId": task["taskId"] });
    let ended = app.mcp_as("test", &tasks(), "tools/call", call).await;
    let ended_id = json!({ "taskId": ended["result"]["taskId"] });
    let cancelled = app
        .mcp_as("test", &tasks(), "tasks/cancel", ended_id.clone())
        .await;
    assert!(cancelled["error"].is_null(), "{cancelled}");
    let got = app.mcp_as("test", &tasks(), "tasks/get", ended_id).await;
    assert_eq!(got["result"]["status"], "cancelled", "{got}");
    let stands = app
        .did("get_session_status", json!({ "sessionId": id }))
        .await;
    assert_eq!(stands["status"], "queued", "the session goes on");

    let got = app
        .mcp_as("test", &tasks(), "tasks/get", task_id.clone())
        .await;
    assert_eq!(got["result"]["status"], "working", "{got}");
    app.ends(id, Outcome::Completed, "Done.").await;
    let got = app.mcp_as("test", &tasks(), "tasks/get", task_id).await;
    assert_eq!(got["result"]["status"], "completed", "{got}");
    assert_eq!(got["result"]["result"]["structuredContent"]["done"], true);
    let unknown = json!({ "taskId": "0192d1f6-0000-7000-8000-00000000dead" });
    let got = app.mcp_as("test", &tasks(), "tasks/get", unknown).await;
    assert_eq!(got["error"]["code"], -32602, "{got}");
}

#[tokio::test]
async fn resources_are_read_and_their_changes_are_told() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let uri = format!("baton://sessions/{id}");
    let read = app.mcp("resources/read", json!({ "uri": uri })).await;
    let text = read["result"]["contents"][0]["text"]
        .as_str()
        .expect("a text");
    let session: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(session["id"], json!(id));
    let log = app
        .mcp("resources/read", json!({ "uri": format!("{uri}/log") }))
        .await;
    assert_eq!(
        log["result"]["contents"][0]["mimeType"], "text/plain",
        "{log}"
    );
    let gone = "baton://sessions/0192d1f6-0000-7000-8000-00000000dead";
    let missing = app.mcp("resources/read", json!({ "uri": gone })).await;
    assert_eq!(missing["error"]["code"], -32602, "{missing}");
    let listed = app.mcp("resources/list", json!({})).await;
    assert_eq!(listed["result"]["resources"][0]["uri"], json!(uri));

    let params = json!({
        "notifications": { "resourceSubscriptions": [uri, "file:///etc/passwd"] },
        "_meta": meta(&json!({}), "test"),
    });
    let listen = request(&app, "subscriptions/listen", None, &params);
    let mut stream = Messages::open(&app, &listen).await;
    let accepted = stream.next().await.expect("an acknowledgement");
    assert_eq!(
        accepted["params"]["notifications"]["resourceSubscriptions"],
        json!([uri]),
        "{accepted}"
    );
    app.ends(id, Outcome::Completed, "Done.").await;
    let told = stream.next().await.expect("news");
    assert_eq!(
        (&told["method"], &told["params"]["uri"]),
        (&json!("notifications/resources/updated"), &json!(uri)),
    );
}

#[tokio::test]
async fn a_goal_becomes_a_prompt_and_ids_are_completed() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    let got = app
        .mcp(
            "prompts/get",
            json!({
                "name": "orchestrate",
                "arguments": { "goal": "Notes with search", "repository": "owner/repo" },
            }),
        )
        .await;
    let text = got["result"]["messages"][0]["content"]["text"]
        .as_str()
        .expect("a text");
    assert!(text.contains("Notes with search") && text.contains("owner/repo"));
    let missing = app
        .mcp(
            "prompts/get",
            json!({ "name": "orchestrate", "arguments": { "goal": "x" } }),
        )
        .await;
    assert_eq!(missing["error"]["code"], -32602);
    let completed = async |of: Value, name: &str, value: &str| {
        let argument = json!({ "name": name, "value": value });
        let answer = app
            .mcp(
                "completion/complete",
                json!({ "ref": of, "argument": argument }),
            )
            .await;
        answer["result"]["completion"]["values"].clone()
    };
    let sessions = json!({ "type": "ref/resource", "uri": "baton://sessions/{id}" });
    assert_eq!(
        completed(sessions, "id", &id.to_string()[..4]).await,
        json!([id])
    );
    let prompt = json!({ "type": "ref/prompt", "name": "orchestrate" });
    assert_eq!(
        completed(prompt, "repository", "own").await,
        json!(["owner/repo"])
    );
    let unknown = json!({ "type": "ref/prompt", "name": "another" });
    assert_eq!(completed(unknown, "x", "").await, json!([]));
}

#[tokio::test]
async fn a_client_of_the_revision_before_is_served_with_a_session() {
    let app = App::new().await;
    let accept = "Accept: application/json, text/event-stream\r\n";
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "test", "version": "1" },
        },
    });
    let body = initialize.to_string();
    let reply = app
        .send(&app.request("POST", "/mcp", accept, body.as_bytes()))
        .await;
    let session = reply
        .header("mcp-session-id")
        .expect("a session")
        .to_owned();
    let answer = messages(&reply).pop().expect("an answer");
    assert_eq!(answer["result"]["protocolVersion"], "2025-11-25");
    let headers =
        format!("{accept}Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: 2025-11-25\r\n");
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let body = initialized.to_string();
    let reply = app
        .send(&app.request("POST", "/mcp", &headers, body.as_bytes()))
        .await;
    assert_eq!(reply.status, 202);
    let call = json!({
        "jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": { "name": "list_sessions", "arguments": {} },
    });
    let body = call.to_string();
    let reply = app
        .send(&app.request("POST", "/mcp", &headers, body.as_bytes()))
        .await;
    let answer = messages(&reply).pop().expect("an answer");
    assert_eq!(
        answer["result"]["structuredContent"]["total"], 0,
        "{answer}"
    );
}

#[tokio::test]
async fn the_door_is_behind_the_gate() {
    let app = App::new().await;
    let params = json!({ "_meta": meta(&json!({}), "test") });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params });
    let body = body.to_string();
    let with = |headers: &str| app.request("POST", "/mcp", headers, body.as_bytes());
    let stranger = app.send(&with("Authorization: Bearer nobody\r\n")).await;
    stranger.is_error(401, "unauthorized");
    let page = app.send(&with("Origin: http://evil.example\r\n")).await;
    page.is_error(403, "forbidden_origin");
    let rebound = String::from_utf8(with("")).expect("UTF-8");
    let rebound = rebound.replacen(&format!("Host: {}", app.address), "Host: evil.example", 1);
    let rebound = app.send(rebound.as_bytes()).await;
    rebound.is_error(403, "forbidden_origin");
    let large = vec![b' '; 1024 * 1024 + 1];
    let accept = "Accept: application/json, text/event-stream\r\n";
    let large = app.send(&app.request("POST", "/mcp", accept, &large)).await;
    assert_eq!(large.status, 413);
}

#[tokio::test]
async fn a_log_is_read_to_its_end_whatever_is_in_it() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let long = "x".repeat(5_000);
    let texts: Vec<&str> = ["first", &long, "third", "fourth", &long]
        .into_iter()
        .collect();
    let lines: Vec<OutputLine> = texts
        .iter()
        .map(|text| OutputLine {
            at: jiff::Timestamp::UNIX_EPOCH,
            stream: Stream::Stderr,
            bytes: text.as_bytes().to_vec().into(),
            cut_bytes: 0,
            line_end: true,
        })
        .collect();
    let stored = app.store.append_output(id, Attempt::FIRST, 1, &lines);
    stored.await.expect("stored");
    app.ends(id, Outcome::Completed, "Done.").await;
    let mut read = Vec::new();
    let mut cursor = Value::Null;
    for _ in 0..20 {
        let page = app
            .did(
                "get_session_output",
                json!({
                    "sessionId": id, "detail": "detailed", "maxChars": 1_000, "cursor": cursor,
                }),
            )
            .await;
        let lines = page["logs"].as_array().expect("lines");
        read.extend(
            lines
                .iter()
                .filter_map(|line| line.as_str().map(str::to_owned)),
        );
        cursor = page["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    let begins: Vec<String> = texts
        .iter()
        .map(|text| text.chars().take(5).collect())
        .collect();
    let read: Vec<String> = read
        .iter()
        .map(|line| line.chars().take(5).collect())
        .collect();
    assert_eq!(read[..begins.len()], begins[..], "{read:?}");
    let end = app
        .did(
            "get_session_output",
            json!({ "sessionId": id, "maxChars": 100 }),
        )
        .await;
    let last = end["logs"]
        .as_array()
        .and_then(|lines| lines.last().cloned());
    assert!(
        last.is_some_and(|line| line.as_str().is_some_and(|line| line.starts_with("xxx"))),
        "{end}"
    );
    assert_eq!(end["truncated"], true);
}

#[tokio::test]
async fn a_start_may_be_repeated() {
    let app = App::new().await;
    let id = app.created(&[], false).await;
    let running = [
        SessionEvent::StartRequested,
        SessionEvent::LaunchDecided(Attempt::FIRST),
        SessionEvent::ClaudeStarted(Attempt::FIRST),
    ];
    app.happens(id, &running, None).await;
    let told = app
        .did("start_claude_session", json!({ "sessionId": id }))
        .await;
    assert_eq!(told["status"], "running");
}

#[tokio::test]
async fn a_finished_task_stays_as_it_was() {
    let app = App::new().await;
    let id = app.created(&[], true).await;
    let call = json!({ "name": "wait_for_session", "arguments": { "sessionIds": [id] } });
    let begun = app.mcp_as("test", &tasks(), "tools/call", call).await;
    let task_id = json!({ "taskId": begun["result"]["taskId"] });
    app.ends(id, Outcome::failed(FailureCode::ClaudeError, "No."), "")
        .await;
    let before = app
        .mcp_as("test", &tasks(), "tasks/get", task_id.clone())
        .await;
    assert_eq!(before["result"]["status"], "completed", "{before}");
    app.did("retry_session", json!({ "sessionId": id })).await;
    let after = app.mcp_as("test", &tasks(), "tasks/get", task_id).await;
    assert_eq!(after["result"]["status"], "completed", "{after}");
    assert_eq!(after["result"]["result"], before["result"]["result"]);
}
