//! A server that is killed while 200 sessions run, and started again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bollard::query_parameters::ListContainersOptionsBuilder;
use serde_json::json;

use crate::Bench;
use crate::docker::{self, FakeImage};
use crate::home::Home;
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, print, print_note};

const SESSIONS: usize = 200;
const LIMIT: Duration = Duration::from_secs(300);
/// Long enough for every agent to dial as rarely as it ever does.
const AWAY: Duration = Duration::from_secs(3);

/// All of it.
pub fn run(bench: &Bench) -> Result<()> {
    let image = FakeImage::build(bench)?;
    let home = Home::new(bench)?;
    let settings = [
        ("CLAUDE_CONTAINER_IMAGE", image.name.as_str()),
        ("BATON_MAX_RUNNING", "200"),
    ];
    let server = Server::start(bench, &home, &settings)?;
    let begin = Instant::now();
    for _ in 0..SESSIONS {
        server.create(&Order {
            kind: "analysis",
            requirements: "wait",
            dependencies: &[],
            auto_start: true,
        })?;
    }
    let running = server.wait_for_line("\"claude started\"", SESSIONS, LIMIT)?;
    print_note(&format!(
        "{SESSIONS} sessions were created and running after {:.1} s",
        (running - begin).as_secs_f64()
    ));
    server.kill()?;
    std::thread::sleep(AWAY);

    let server = Server::start(bench, &home, &settings)?;
    let listening = server.started.elapsed();
    let linked = server.wait_for_line("agent connected", SESSIONS, LIMIT)?;
    let label = home.label().unwrap_or_default();
    let listed = bench.runtime.block_on(list(&label))?;
    print(&Row {
        figure: "all 200 sessions linked again after kill -9",
        unit: Unit::Ms,
        measured: (linked - server.started).as_secs_f64() * 1e3,
        baseline: Some((listed.as_secs_f64() * 1e3, "Engine: list by label")),
        aim: Some(Aim::AtMost(1_000.0)),
    });
    print_note(&format!(
        "it listens after {:.0} ms",
        listening.as_secs_f64() * 1e3
    ));
    let page = server.call(&json!({"type": "session.list", "status": "running"}))?;
    let running = page["sessions"].as_array().map_or(0, Vec::len);
    ensure!(
        running == SESSIONS,
        "{running} of {SESSIONS} sessions run on"
    );
    Ok(())
}

async fn list(label: &str) -> Result<Duration> {
    let engine = docker::connect()?;
    let filters = std::collections::HashMap::from([("label", vec![label])]);
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    let begin = Instant::now();
    let listed = engine.list_containers(Some(options)).await?;
    ensure!(
        listed.len() >= SESSIONS,
        "{} containers are left",
        listed.len()
    );
    Ok(begin.elapsed())
}
