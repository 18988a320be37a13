//! A chain of sessions that do nothing, beside the same containers with nothing around them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::Bench;
use crate::docker::{self, FakeImage, RawSandboxes};
use crate::home::{Home, sandbox_dir};
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, median, print, print_note};

const SESSIONS: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

/// Both chains and the baseline.
pub fn run(bench: &Bench) -> Result<()> {
    let image = FakeImage::build(bench)?;
    let engine = docker::connect()?;
    let home = Home::new(bench)?;
    let server = Server::start(
        bench,
        &home,
        &[("CLAUDE_CONTAINER_IMAGE", image.name.as_str())],
    )?;
    // Also warms everything up: mirror, page cache, Docker.
    let first = server.create(&Order {
        kind: "implementation",
        requirements: "wait",
        dependencies: &[],
        auto_start: true,
    })?;
    server.wait_for_line("\"claude started\"", 1, LIMIT)?;
    let body = bench
        .runtime
        .block_on(docker::body_of(&engine, &container(&server, &first)?))?;
    let sandbox = sandbox_dir(&home.data_dir(), &first);
    let sandboxes = RawSandboxes::new(bench, &engine, body, &sandbox)?;
    server.call(&serde_json::json!({"type": "session.cancel", "sessionId": first}))?;
    server.wait_for_line("\"ended\"", 1, LIMIT)?;

    let raw_ms = raw(bench, sandboxes)?;
    for (kind, requirements) in [("analysis", "nothing"), ("implementation", "write")] {
        let began = Timestamp::now();
        let chain = Chain::run(&server, kind, requirements)?;
        print(&Row {
            figure: &format!("chain of {SESSIONS} {kind} sessions, each"),
            unit: Unit::Ms,
            measured: chain.ms_each(),
            baseline: Some((raw_ms, "Engine: create, start, wait")),
            aim: (kind == "analysis").then_some(Aim::RatioAtMost(1.15)),
        });
        let label = home.label().context("a server without an instance")?;
        let seen = bench
            .runtime
            .block_on(docker::events(&engine, &label, began))?;
        chain.print_steps(&server, &seen);
    }
    Ok(())
}

/// A session's container.
pub fn container(server: &Server, id: &str) -> Result<String> {
    let session = server.session(id)?;
    let base = session["containerId"]
        .as_str()
        .context("a session without a container")?;
    Ok(base.to_owned())
}

fn raw(bench: &Bench, mut sandboxes: RawSandboxes<'_>) -> Result<f64> {
    let mut lives = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        lives.push(bench.runtime.block_on(sandboxes.run())?);
    }
    let of = |part: fn(&docker::Life) -> f64| median(lives.iter().map(part).collect());
    print_note(&format!(
        "Engine alone, medians: create {:.1} ms, start {:.1} ms, wait {:.1} ms",
        of(|life| life.create_ms),
        of(|life| life.start_ms),
        of(|life| life.wait_ms),
    ));
    Ok(of(|life| life.create_ms + life.start_ms + life.wait_ms))
}

struct Chain {
    /// Each session's events, in the order they ran.
    sessions: Vec<(String, Vec<Value>)>,
}

impl Chain {
    fn run(server: &Server, kind: &str, requirements: &str) -> Result<Self> {
        let mut ids: Vec<String> = Vec::new();
        for number in 0..SESSIONS {
            let requirements = format!("{requirements} {number}");
            let before = ids.last().cloned();
            ids.push(server.create(&Order {
                kind,
                requirements: &requirements,
                dependencies: before.as_slice(),
                auto_start: false,
            })?);
        }
        // The first one last: nothing runs while the others are still being asked for.
        for id in ids.iter().rev() {
            server.start_session(id)?;
        }
        server.wait_completed(ids.last().context("an empty chain")?, LIMIT)?;
        let sessions = ids.into_iter().map(|id| {
            let events = server.session_events(&id)?;
            Ok((id, events))
        });
        Ok(Self {
            sessions: sessions.collect::<Result<_>>()?,
        })
    }

    fn ms_each(&self) -> f64 {
        let at = |session: Option<&(String, Vec<Value>)>, event| {
            session.map_or(0.0, |(_, events)| event_ms(events, event))
        };
        let begin = at(self.sessions.first(), "launch_decided");
        (at(self.sessions.last(), "concluded") - begin) / self.sessions.len() as f64
    }

    /// Where the time of a session goes: the medians of its steps.
    fn print_steps(&self, server: &Server, docker: &[(String, String, f64)]) {
        let log: Vec<Value> = server
            .lines("{")
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
        let mut before = None;
        for (id, events) in &self.sessions {
            let logged = |message: &str, step: Option<&str>| logged_ms(&log, id, message, step);
            let seen = |action: &str| {
                let found = docker
                    .iter()
                    .find(|(of, what, _)| of == id && what == action);
                found.map_or(f64::NAN, |(.., at)| *at)
            };
            let marks = [
                ("launch decided", event_ms(events, "launch_decided")),
                ("container started (Docker's event)", seen("start")),
                ("agent connected", logged("agent connected", None)),
                ("job read, clone begins", logged("agent", Some("clone"))),
                ("clone done", logged("agent", Some("claude"))),
                ("claude started", event_ms(events, "claude_started")),
                ("claude's first line", line_ms(events)),
                ("claude ended, work saved", event_ms(events, "claude_ended")),
                ("concluded", event_ms(events, "concluded")),
            ];
            let mut last = before;
            for (name, at) in marks {
                let place = steps.iter().position(|(step, _)| *step == name);
                let place = place.unwrap_or_else(|| {
                    steps.push((name, Vec::new()));
                    steps.len() - 1
                });
                if let Some(last) = last
                    && f64::is_finite(at)
                {
                    steps[place].1.push(at - last);
                }
                if at.is_finite() {
                    last = Some(at);
                }
            }
            before = last;
        }
        print_note(
            "where it goes, median ms since the step before (the first: since the one before concluded):",
        );
        for (name, times) in steps {
            print_note(&format!("  {:>7.1}  {name}", median(times)));
        }
    }
}

fn event_ms(events: &[Value], name: &str) -> f64 {
    let event = events.iter().find(|event| event["event"] == name);
    event.map_or(f64::NAN, |event| ms(&event["at"]))
}

fn line_ms(events: &[Value]) -> f64 {
    let event = events.iter().find(|event| event["type"] == "claude");
    event.map_or(f64::NAN, |event| ms(&event["at"]))
}

fn logged_ms(log: &[Value], session: &str, message: &str, step: Option<&str>) -> f64 {
    let line = log.iter().find(|line| {
        let fields = &line["fields"];
        fields["session"] == session
            && fields["message"] == message
            && step.is_none_or(|step| fields["step"] == step)
    });
    line.map_or(f64::NAN, |line| ms(&line["timestamp"]))
}

/// A time as milliseconds since the epoch.
pub fn ms(at: &Value) -> f64 {
    let at = at.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    at.map_or(f64::NAN, |at| at.as_nanosecond() as f64 / 1e6)
}
