//! A running server, seen from outside: its address, its process, its log.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::Bench;
use crate::home::{Home, REPOSITORY};
use crate::http::{self, SECRET, WEBHOOK};

const START_WAIT: Duration = Duration::from_secs(30);
const LISTENS: &str = "baton listens on http://";

/// A server; killed when dropped.
pub struct Server {
    child: Child,
    log: Arc<Log>,
    /// Where it listens.
    pub address: SocketAddr,
    /// When its process was started.
    pub started: Instant,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<(Instant, String)>>,
    grown: Condvar,
}

impl Server {
    /// Starts a server in `home` and waits until it listens.
    pub fn start(bench: &Bench, home: &Home, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(&bench.program);
        for name in [
            "ANTHROPIC_API_KEY",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "ANTHROPIC_AUTH_TOKEN",
        ] {
            command.env_remove(name);
        }
        let remotes = format!("file://{}", home.remotes().display());
        let started = Instant::now();
        let mut child = command
            .arg("serve")
            .current_dir(home.path())
            .env("CLAUDE_WEBHOOK_SECRET", SECRET)
            .env("BATON_DATA_DIR", home.data_dir())
            .env("BATON_LISTEN", "127.0.0.1:0")
            .env("BATON_GIT_BASE_URL", remotes)
            .env("RUST_LOG", "info,baton=debug")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("the server cannot be run")?;
        let stderr = child.stderr.take().context("the server has no stderr")?;
        let log = Arc::new(Log::default());
        let reading = Arc::clone(&log);
        std::thread::spawn(move || reading.read(BufReader::new(stderr)));
        let mut server = Self {
            child,
            log,
            address: ([127, 0, 0, 1], 0).into(),
            started,
        };
        server.wait_for_line(LISTENS, 1, START_WAIT)?;
        let line = server
            .lines(LISTENS)
            .pop()
            .context("the server does not listen")?;
        server.address = line.trim_start_matches(LISTENS).trim().parse()?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The lines of its log that hold `words`.
    pub fn lines(&self, words: &str) -> Vec<String> {
        let lines = self
            .log
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .filter(|(_, line)| line.contains(words))
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Waits for the line that is the `count`th to hold `words`; when it came.
    pub fn wait_for_line(&self, words: &str, count: usize, limit: Duration) -> Result<Instant> {
        let deadline = Instant::now() + limit;
        let mut lines = self
            .log
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut found) = (0, 0);
        loop {
            for (came, line) in &lines[at..] {
                found += usize::from(line.contains(words));
                if found == count {
                    return Ok(*came);
                }
            }
            at = lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail: Vec<&str> = lines
                    .iter()
                    .rev()
                    .take(5)
                    .map(|(_, line)| line.as_str())
                    .collect();
                bail!("{found} of {count} times {words:?} after {limit:?}; last: {tail:#?}");
            }
            let waited = self.log.grown.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Posts to the endpoint and gives `data`.
    pub fn call(&self, request: &Value) -> Result<Value> {
        let (status, body) = http::once(self.address, "POST", WEBHOOK, Some(request))?;
        let mut answer: Value = serde_json::from_slice(&body)
            .with_context(|| format!("{status}: {}", String::from_utf8_lossy(&body)))?;
        ensure!(status == 200, "{request} was answered {status}: {answer}");
        Ok(answer["data"].take())
    }

    /// Makes a session and gives its id.
    pub fn create(&self, order: &Order<'_>) -> Result<String> {
        let data = self.call(&order.request())?;
        Ok(data["session"]["id"]
            .as_str()
            .context("a session without an id")?
            .to_owned())
    }

    pub fn start_session(&self, id: &str) -> Result<()> {
        self.call(&json!({"type": "session.start", "sessionId": id}))
            .map(drop)
    }

    pub fn session(&self, id: &str) -> Result<Value> {
        let mut data = self.call(&json!({"type": "session.get", "sessionId": id}))?;
        Ok(data["session"].take())
    }

    /// Waits until a session is over; fails when it did not complete.
    pub fn wait_completed(&self, id: &str, limit: Duration) -> Result<()> {
        let path = format!("/api/v1/sessions/{id}/events?follow=true");
        let stream = http::open(self.address, "GET", &path, None)?;
        stream.set_read_timeout(Some(limit))?;
        for line in BufReader::with_capacity(1 << 20, stream).split(b'\n') {
            line.with_context(|| format!("session {id} was not over in time"))?;
        }
        let session = self.session(id)?;
        ensure!(session["status"] == "completed", "not completed: {session}");
        Ok(())
    }

    /// Those events of a session that are no output.
    pub fn session_events(&self, id: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/sessions/{id}/events");
        let (status, body) = http::once(self.address, "GET", &path, None)?;
        ensure!(status == 200, "the events of {id} were answered {status}");
        let lines = body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| Ok(serde_json::from_slice(line)?))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn read(&self, mut from: impl std::io::BufRead) {
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|count| count > 0) {
            let now = Instant::now();
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push((now, std::mem::take(&mut line)));
            self.grown.notify_all();
        }
    }
}

/// A session to be made.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The wire's `type`.
    pub kind: &'a str,
    /// What the fake Claude does; see `docker::CLAUDE`.
    pub requirements: &'a str,
    /// Sessions to wait for.
    pub dependencies: &'a [String],
    /// Whether it starts by itself.
    pub auto_start: bool,
}

impl Order<'_> {
    pub fn request(&self) -> Value {
        json!({"data": {"type": "session.create", "session": {
            "type": self.kind,
            "project": {"repository": REPOSITORY, "requirements": self.requirements},
            "dependencies": self.dependencies,
            "options": {"autoStart": self.auto_start},
        }}})
    }
}
