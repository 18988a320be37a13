//! A chain of sessions that do nothing, beside the same containers with nothing around them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::Bench;
use crate::docker::{self, FakeImage, RawSandboxes};
use crate::home::{Home, sandbox_dir};
use crate::server::{Order, Server};
use crate::steps::{self, event_ms};
use crate::table::{Aim, Row, Unit, median, print, print_note};

const ROUNDS: usize = 4;
/// Sessions of one round.
const LINKS: usize = 5;
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
    let mut sandboxes = RawSandboxes::new(bench, &engine, body, &sandbox)?;
    server.call(&serde_json::json!({"type": "session.cancel", "sessionId": first}))?;
    server.wait_for_line("\"ended\"", 1, LIMIT)?;

    for (kind, requirements) in [("analysis", "nothing"), ("implementation", "write")] {
        let began = Timestamp::now();
        let mut lives = Vec::new();
        let mut chain = Chain::default();
        // Turn by turn, so that both meet the same machine.
        for _ in 0..ROUNDS {
            for _ in 0..LINKS {
                lives.push(bench.runtime.block_on(sandboxes.run())?);
            }
            chain.grow(&server, kind, requirements)?;
        }
        print(&Row {
            figure: &format!("chain of {kind} sessions, each"),
            unit: Unit::Ms,
            measured: median(chain.links_ms.clone()),
            baseline: Some((raw_ms(&lives), "Engine: create, start, wait")),
            aim: (kind == "analysis").then_some(Aim::RatioAtMost(1.15)),
        });
        let label = home.label().context("a server without an instance")?;
        let seen = bench
            .runtime
            .block_on(docker::events(&engine, &label, began))?;
        steps::print(&chain.sessions, &server, &seen);
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

/// What one takes, and of what that is made.
fn raw_ms(lives: &[docker::Life]) -> f64 {
    let of = |part: fn(&docker::Life) -> f64| median(lives.iter().map(part).collect());
    print_note(&format!(
        "Engine alone, medians: create {:.1} ms, start {:.1} ms, wait {:.1} ms",
        of(|life| life.create_ms),
        of(|life| life.start_ms),
        of(|life| life.wait_ms),
    ));
    of(|life| life.create_ms + life.start_ms + life.wait_ms)
}

#[derive(Default)]
struct Chain {
    /// Each session's events, in the order they ran.
    sessions: Vec<(String, Vec<Value>)>,
    /// What each took: from the end of the one before, the first of a round from its launch.
    links_ms: Vec<f64>,
}

impl Chain {
    /// Runs one more round.
    fn grow(&mut self, server: &Server, kind: &str, requirements: &str) -> Result<()> {
        let mut ids: Vec<String> = Vec::new();
        for number in 0..LINKS {
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
        let files = u64::from(kind == "implementation");
        let mut before = f64::NAN;
        for id in ids {
            let changed = server.session(&id)?["result"]["filesChanged"].as_u64();
            ensure!(
                changed.unwrap_or(0) == files,
                "{id} changed {changed:?} files, not {files}: the stand-in does not do as it is told"
            );
            let events = server.session_events(&id)?;
            let begin = if before.is_nan() {
                event_ms(&events, "launch_decided")
            } else {
                before
            };
            before = event_ms(&events, "concluded");
            self.links_ms.push(before - begin);
            self.sessions.push((id, events));
        }
        Ok(())
    }
}
