//! Docker, asked by its own command line as a person would.

use std::ffi::OsStr;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::world::eventually;

/// How long one command may take on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long Docker may take to tell of something that has happened.
const TOLD_LIMIT: Duration = Duration::from_secs(20);

/// Runs `docker args…`, whatever comes of it.
pub async fn try_docker<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Output {
    let mut command = Command::new("docker");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_LIMIT, command.output()).await;
    output
        .expect("docker answers in time")
        .expect("docker can be run")
}

/// Runs `docker args…`, which must succeed; gives what it printed, trimmed.
pub async fn docker<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> String {
    let output = try_docker(args).await;
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker: {complaints}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What `docker inspect` says of one container; none when it is gone.
pub async fn inspect(container: &str) -> Option<Value> {
    let output = try_docker(["container", "inspect", container]).await;
    let mut list: Value = serde_json::from_slice(&output.stdout).ok()?;
    output.status.success().then(|| list[0].take())
}

/// The names of an instance's volumes.
pub async fn volumes(instance: &str) -> Vec<String> {
    let label = format!("label=baton.instance={instance}");
    let names = docker(["volume", "ls", "--quiet", "--filter", &label]).await;
    names.lines().map(str::to_owned).collect()
}

/// The names of an instance's containers, exited ones too.
pub async fn containers(instance: &str) -> Vec<String> {
    let label = format!("label=baton.instance={instance}");
    let names = docker([
        "ps",
        "--all",
        "--format",
        "{{.Names}}",
        "--no-trunc",
        "--filter",
        &label,
    ])
    .await;
    names.lines().map(str::to_owned).collect()
}

/// What happened to the containers of one instance, from the beginning.
pub struct ContainerEvents {
    seen: Arc<Mutex<Vec<ContainerEvent>>>,
    _child: Child,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// `create`, `start`, `kill`, `die`, `destroy`, …
    pub action: String,
    /// The container's name.
    pub name: String,
    /// The signal of a `kill`, the exit code of a `die`.
    pub detail: String,
}

impl ContainerEvents {
    /// Listens from now on.
    pub fn listen(instance: &str) -> Self {
        let now = jiff::Timestamp::now().as_second().to_string();
        let mut child = Command::new("docker")
            // What happens while it connects is told afterwards.
            .args(["events", "--format", "{{json .}}", "--since", &now])
            .args(["--filter", "type=container"])
            .args(["--filter", &format!("label=baton.instance={instance}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("docker can be run");
        let lines = BufReader::new(child.stdout.take().expect("its output is piped"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let found = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut lines = lines.lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let event: Value = serde_json::from_str(&line).expect("docker prints JSON");
                let attributes = &event["Actor"]["Attributes"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let detail = [&attributes["signal"], &attributes["exitCode"]];
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(ContainerEvent {
                        action: text(&event["Action"]),
                        name: text(&attributes["name"]),
                        detail: detail.map(text).concat(),
                    });
            }
        });
        Self {
            seen,
            _child: child,
        }
    }

    /// All of them so far.
    pub fn seen(&self) -> Vec<ContainerEvent> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How often `action` happened so far.
    pub fn count(&self, action: &str) -> usize {
        self.seen()
            .iter()
            .filter(|event| event.action == action)
            .count()
    }

    /// Waits until `action` was told of `times` times.
    pub async fn until(&self, action: &str, times: usize) {
        let told = eventually(TOLD_LIMIT, async || self.count(action) >= times).await;
        assert!(told, "no {times} × {action}: {:?}", self.seen());
    }

    /// The most containers that ran at once.
    pub fn most_at_once(&self) -> usize {
        let mut running: usize = 0;
        let mut most = 0;
        for event in self.seen() {
            match event.action.as_str() {
                "start" => running += 1,
                "die" => running = running.saturating_sub(1),
                _ => {}
            }
            most = most.max(running);
        }
        most
    }
}
