//! From `session.start` to the first event of the real Claude Code CLI, beside the same CLI run
//! with nothing around it. Both talk to the scripted model.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::home::{Home, run as run_program};
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, median, print};
use crate::{Bench, docker, steps};

const RUNS: usize = 7;
const LIMIT: Duration = Duration::from_secs(60);
const IMAGE: &str = "claudecode:latest";
const KEY: &str = "the-benchmarks-own-key";
const REQUIREMENTS: &str = "Say what this repository is for.";

/// All of it.
pub fn run(bench: &Bench) -> Result<()> {
    let model = Model::start(bench)?;
    let claude = claude(bench)?;
    let home = Home::new(bench)?;
    let settings = [
        ("ANTHROPIC_BASE_URL", model.url.as_str()),
        ("ANTHROPIC_API_KEY", KEY),
    ];
    let server = Server::start(bench, &home, &settings)?;
    let (mut ours, mut bare, mut sessions) = (Vec::new(), Vec::new(), Vec::new());
    let began = jiff::Timestamp::now();
    // Turn by turn, so that both meet the same machine; the first of each warms up.
    for turn in 0..=RUNS {
        let bare_ms = run_bare(bench, &claude, &model.url)?;
        let (our_ms, session) = run_session(&server)?;
        if turn > 0 {
            bare.push(bare_ms);
            ours.push(our_ms);
            sessions.push(session);
        }
    }
    print(&Row {
        figure: "cold session.start to Claude's first event",
        unit: Unit::Ms,
        measured: median(ours),
        baseline: Some((median(bare), "the bare CLI on the host")),
        aim: Some(Aim::RatioAtMost(1.2)),
    });
    let label = home.label().context("a server without an instance")?;
    let engine = docker::connect()?;
    let seen = bench
        .runtime
        .block_on(docker::events(&engine, &label, began))?;
    steps::print(&sessions, &server, &seen);
    Ok(())
}

/// The time in milliseconds, and the session with its events.
fn run_session(server: &Server) -> Result<(f64, (String, Vec<Value>))> {
    let id = server.create(&Order {
        kind: "analysis",
        requirements: REQUIREMENTS,
        dependencies: &[],
        auto_start: false,
    })?;
    let asked = jiff::Timestamp::now();
    server.start_session(&id)?;
    server.wait_completed(&id, LIMIT)?;
    let events = server.session_events(&id)?;
    let first = steps::line_ms(&events);
    anyhow::ensure!(first.is_finite(), "Claude printed nothing");
    Ok((first - asked.as_nanosecond() as f64 / 1e6, (id, events)))
}

/// The CLI as a user runs it in a fresh directory; milliseconds until its first line.
fn run_bare(bench: &Bench, claude: &Path, model: &str) -> Result<f64> {
    let dir = tempfile::tempdir_in(bench.scratch.path())?;
    let begin = Instant::now();
    let mut child = Command::new(claude)
        .args([
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--setting-sources",
            "",
        ])
        .args(["--strict-mcp-config", REQUIREMENTS])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env("CLAUDE_CONFIG_DIR", dir.path().join("claude"))
        .env("ANTHROPIC_BASE_URL", model)
        .env("ANTHROPIC_AUTH_TOKEN", KEY)
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take().context("the CLI has no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    lines.next().context("the CLI printed nothing")??;
    let first = begin.elapsed();
    lines.for_each(drop);
    child.wait()?;
    Ok(first.as_secs_f64() * 1e3)
}

/// The CLI of the session image, on the host.
fn claude(bench: &Bench) -> Result<PathBuf> {
    let name = format!("baton-bench-{}", uuid::Uuid::new_v4().simple());
    let path = bench.scratch.path().join("claude");
    run_program(Command::new("docker").args(["create", "--name", &name, IMAGE]))?;
    let copied = run_program(
        Command::new("docker")
            .args([
                "cp",
                "--follow-link",
                &format!("{name}:/usr/local/bin/claude"),
            ])
            .arg(&path),
    );
    run_program(Command::new("docker").args(["rm", &name]))?;
    copied.map(|()| path)
}

/// The scripted model's process; killed when dropped.
struct Model {
    child: Child,
    url: String,
}

impl Model {
    fn start(bench: &Bench) -> Result<Self> {
        let program = bench.program.with_file_name("scripted-model");
        let scripts = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../scripted-model/scripts/demo"
        );
        let mut child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--scripts", scripts])
            .env("SCRIPTED_MODEL_REQUIRE_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the scripted model cannot be run")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .context("the model does not listen")?;
        let url = url.to_owned();
        Ok(Self { child, url })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
