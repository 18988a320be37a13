//! Sessions conducted by models: the real Claude Code as a client of the server, over HTTP and over
//! stdio, and waits that outlive the server.

use std::path::PathBuf;
use std::process::Stdio;

use baton::image::extract_cli;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::api::Answer;
use crate::world::{API_KEY, SECRET, SESSION_LIMIT, World, text};

/// What Claude does on the other side: it makes the graph, starts it, waits, and reads what came
/// of it. Each id comes from what a tool gave back before.
const CONDUCTOR: &str = r#"
match = ["Conduct the application"]

[[turn]]
text = "I draw the graph."
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "analysis"
repository = "owner/repo"
requirements = "Plan the application"

[[turn]]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "implementation"
repository = "owner/repo"
requirements = "Implement the backend"
dependencies = ["{{result.0.sessionId}}"]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "implementation"
repository = "owner/repo"
requirements = "Implement the frontend"
dependencies = ["{{result.0.sessionId}}"]

[[turn]]
[[turn.tool]]
name = "mcp__baton__create_claude_session"
[turn.tool.input]
sessionType = "testing"
repository = "owner/repo"
branch = "application"
requirements = "Test the application"
dependencies = ["{{result.1.sessionId}}", "{{result.2.sessionId}}"]

[[turn]]
text = "All of them start at once."
[[turn.tool]]
name = "mcp__baton__start_claude_session"
input = { sessionId = "{{result.0.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__start_claude_session"
input = { sessionId = "{{result.1.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__start_claude_session"
input = { sessionId = "{{result.2.sessionId}}" }
[[turn.tool]]
name = "mcp__baton__start_claude_session"
input = { sessionId = "{{result.3.sessionId}}" }

[[turn]]
[[turn.tool]]
name = "mcp__baton__wait_for_session"
[turn.tool.input]
sessionIds = [
    "{{result.0.sessionId}}", "{{result.1.sessionId}}", "{{result.2.sessionId}}", "{{result.3.sessionId}}",
]
mode = "all"

[[turn]]
[[turn.tool]]
name = "mcp__baton__get_session_output"
input = { sessionId = "{{result.3.sessionId}}" }

[[turn]]
text = "The tests said: {{result.9.summary}} Waited: {{result.8.done}}."
"#;
const ANALYSIS: &str = r#"
match = ["Plan the application"]
closing = "Split it in two."
"#;
const BACKEND: &str = r#"
match = ["Implement the backend", "Split it in two."]
[[turn]]
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
[[turn.tool]]
name = "Write"
[turn.tool.input]
file_path = "{{cwd}}/frontend.js"
content = "render();\n"
[[turn]]
text = "The frontend is one page."
"#;
const TESTING: &str = r#"
match = ["Test the application", "The backend listens on 8080.", "The frontend is one page."]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "test -f backend.js && test -f frontend.js && touch tests.js && echo both parts are here"
[[turn]]
text = "{{last_tool_result}}."
"#;
/// [`CONDUCTOR`] and the Claudes of the sessions that it makes.
pub const SCRIPTS: [(&str, &str); 5] = [
    ("00-conductor", CONDUCTOR),
    ("10-testing", TESTING),
    ("20-backend", BACKEND),
    ("20-frontend", FRONTEND),
    ("30-analysis", ANALYSIS),
];

/// The Claude Code that sessions run, on this machine.
async fn claude(world: &World) -> PathBuf {
    let path = world.data_dir().join("client/claude");
    extract_cli("claudecode:latest", &path)
        .await
        .expect("the session image has Claude Code");
    path
}

/// Has Claude conduct with this server of its configuration; gives its closing words.
async fn conducted(world: &World, server: Value) -> String {
    let config = json!({ "mcpServers": { "baton": server } });
    let home = world.data_dir().join("client/home");
    std::fs::create_dir_all(&home).expect("a home");
    let output = Command::new(claude(world).await)
        .args(["-p", "Conduct the application", "--output-format", "json"])
        .args(["--mcp-config", &config.to_string(), "--strict-mcp-config"])
        .args(["--allowedTools", "mcp__baton"])
        .current_dir(&home)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default())
        .env("HOME", &home)
        .env("ANTHROPIC_BASE_URL", world.model.base_url())
        .env("ANTHROPIC_API_KEY", API_KEY)
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SESSION_LIMIT, output)
        .await
        .expect("Claude ends in time")
        .expect("Claude runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let result: Value = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr))
    });
    text(&result["result"])
}

async fn conducts(server: impl Fn(&World) -> Value) {
    let mut world = World::with_scripts(SCRIPTS).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let said = conducted(&world, server(&world)).await;
    assert_eq!(said, "The tests said: both parts are here. Waited: true.");
    for file in ["backend.js", "frontend.js", "tests.js"] {
        assert!(remote.file("application", file).await.is_some(), "{file}");
    }
}

#[tokio::test]
async fn claude_code_conducts_sessions_over_http() {
    conducts(|world| {
        json!({
            "type": "http",
            "url": format!("{}/mcp", world.api.base_url()),
            "headers": { "Authorization": format!("Bearer {SECRET}") },
        })
    })
    .await;
}

#[tokio::test]
async fn claude_code_conducts_sessions_over_stdio() {
    conducts(|world| {
        json!({
            "command": env!("CARGO_BIN_EXE_baton"),
            "args": ["mcp", "--connect", world.api.base_url()],
            "env": { "CLAUDE_WEBHOOK_SECRET": SECRET },
        })
    })
    .await;
}

/// A client of `baton mcp`, of the revision before the current one.
struct Stdio25 {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    sent: u64,
}

impl Stdio25 {
    async fn start(world: &World) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["mcp", "--connect", &world.api.base_url()])
            .env("CLAUDE_WEBHOOK_SECRET", SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the bridge can be run");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut client = Self {
            process,
            input,
            output,
            sent: 0,
        };
        let begun = client
            .ask(
                "initialize",
                json!({
                    "protocolVersion": "2025-11-25",
                    "capabilities": {},
                    "clientInfo": { "name": "claude-code", "version": "1" },
                }),
            )
            .await;
        assert_eq!(begun["serverInfo"]["name"], "baton");
        client
            .send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
            .await;
        client
    }

    async fn send(&mut self, message: &Value) {
        let line = format!("{message}\n");
        let sent = self.input.write_all(line.as_bytes()).await;
        sent.expect("the bridge reads");
    }

    async fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.sent += 1;
        let id = self.sent;
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.send(&message).await;
        id
    }

    /// The next message.
    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(SESSION_LIMIT, self.output.next_line()).await;
        let line = line.expect("a word in time").expect("a line");
        serde_json::from_str(&line.expect("the bridge runs")).expect("JSON")
    }

    /// What answers the request of that number.
    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let mut message = self.next().await;
            if message["id"] == id {
                assert!(message["error"].is_null(), "{message}");
                return message["result"].take();
            }
        }
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params).await;
        self.answer(id).await
    }

    async fn end(mut self) {
        drop(self.input);
        let ended = tokio::time::timeout(SESSION_LIMIT, self.process.wait()).await;
        let status = ended.expect("the bridge ends with its client");
        assert!(status.expect("our child").success());
    }
}

/// What the server answers to a message, sent with these headers.
async fn posted(world: &World, headers: &[(&str, &str)], message: &Value) -> Answer {
    let usual = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    let headers = [&usual[..], headers].concat();
    let body = message.to_string();
    let sent = world
        .api
        .request(Method::POST, "/mcp", &headers, body.as_bytes());
    sent.await.expect("an answer")
}

/// One request of the current revision over HTTP, by a client that knows tasks.
async fn asked(world: &World, method: &str, name: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {
            "extensions": { "io.modelcontextprotocol/tasks": {} },
        },
    });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", method),
        ("mcp-name", name),
    ];
    let answer = posted(world, &headers, &body).await;
    let data = answer
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .rfind(|data| !data.trim().is_empty());
    let mut message: Value =
        serde_json::from_str(data.unwrap_or(&answer.text)).expect("a message of JSON-RPC");
    assert!(message["error"].is_null(), "{message}");
    message["result"].take()
}

/// A session that runs until the model is told to "go on", on a server whose address stays.
async fn held() -> (World, String) {
    const HELD: &str = r#"
match = ["Hold on"]
[[turn]]
hold = "go on"
text = "Held and let go."
"#;
    let mut world = World::with_scripts([("held", HELD)]).await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.listen_on_a_free_port();
    world.start_server().await;
    let id = world.run("Hold on", &[]).await;
    world.until(&id, "running").await;
    (world, id)
}

#[tokio::test]
async fn wait_is_answered_though_the_server_was_killed_in_the_middle_of_it() {
    let (mut world, id) = held().await;

    let wait = json!({ "name": "wait_for_session", "arguments": { "sessionIds": [id] } });
    let task = asked(&world, "tools/call", "wait_for_session", wait).await;
    assert_eq!(task["status"], "working", "{task}");
    let task_id = text(&task["taskId"]);
    let mut client = Stdio25::start(&world).await;
    let call = client
        .begin(
            "tools/call",
            json!({
                "name": "wait_for_session",
                "arguments": { "sessionIds": [id] },
                "_meta": { "progressToken": "p" },
            }),
        )
        .await;
    // The wait has begun.
    let progress = client.next().await;
    assert_eq!(progress["method"], "notifications/progress", "{progress}");

    world.kill_server();
    world.start_server().await;
    let got = asked(&world, "tasks/get", &task_id, json!({ "taskId": task_id })).await;
    assert_eq!(got["status"], "working", "{got}");
    world.model.release("go on");

    let answer = client.answer(call).await;
    let told = &answer["structuredContent"];
    assert_eq!(told["done"], true, "{answer}");
    assert_eq!(told["finished"][0]["summary"], "Held and let go.");
    let got = asked(&world, "tasks/get", &task_id, json!({ "taskId": task_id })).await;
    assert_eq!(got["status"], "completed", "{got}");
    assert_eq!(got["result"]["structuredContent"]["done"], true, "{got}");
    client.end().await;
}

#[tokio::test]
async fn bridge_shows_its_tools_without_a_server() {
    let world = World::with_scripts([]).await;
    world.api.listens_on("http://127.0.0.1:9");
    let mut client = Stdio25::start(&world).await;
    let listed = client.ask("tools/list", json!({})).await;
    assert_eq!(listed["tools"].as_array().map(Vec::len), Some(11));
    let prompts = client.ask("prompts/list", json!({})).await;
    assert_eq!(prompts["prompts"][0]["name"], "orchestrate");
    client.end().await;
}

#[tokio::test]
async fn client_of_the_revision_before_is_known_to_the_next_server() {
    let mut world = World::with_scripts([]).await;
    world.start_server().await;
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "test", "version": "1" },
        },
    });
    let begun = posted(&world, &[], &initialize).await;
    let session = begun.headers["mcp-session-id"]
        .to_str()
        .expect("a name")
        .to_owned();
    let headers = [
        ("mcp-session-id", session.as_str()),
        ("mcp-protocol-version", "2025-11-25"),
    ];
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(posted(&world, &headers, &initialized).await.status, 202);

    world.kill_server();
    world.start_server().await;
    let call = json!({
        "jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": { "name": "list_sessions", "arguments": {} },
    });
    let answer = posted(&world, &headers, &call).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("\"total\":0"), "{}", answer.text);
}

#[tokio::test]
async fn server_that_is_asked_to_stop_answers_who_waits() {
    let (mut world, id) = held().await;
    let mut client = Stdio25::start(&world).await;
    let wait = json!({
        "name": "wait_for_session",
        "arguments": { "sessionIds": [id] },
        "_meta": { "progressToken": "p" },
    });
    let call = client.begin("tools/call", wait.clone()).await;
    let progress = client.next().await;
    assert_eq!(progress["method"], "notifications/progress", "{progress}");

    world.stop_server().await;
    let answer = client.answer(call).await;
    assert_eq!(answer["structuredContent"]["done"], false, "{answer}");
    // Asked while there is no server, it waits for the next one.
    let call = client.begin("tools/call", wait).await;
    world.start_server().await;
    world.model.release("go on");
    let answer = client.answer(call).await;
    assert_eq!(answer["structuredContent"]["done"], true, "{answer}");
    client.end().await;
}
