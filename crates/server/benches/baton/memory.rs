//! Memory: of the server idle and full, and of each live session outside Claude.

use std::time::Duration;

use anyhow::Result;

use crate::docker::{self, FakeImage};
use crate::home::Home;
use crate::requests::REQUIREMENTS;
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, print, print_note};
use crate::{Bench, chain, process};

const CREATED: usize = 1_000;
const LIVE: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

/// All of it.
pub fn run(bench: &Bench) -> Result<()> {
    let image = FakeImage::build(bench)?;
    let home = Home::new(bench)?;
    let settings = [
        ("CLAUDE_CONTAINER_IMAGE", image.name.as_str()),
        ("BATON_MAX_RUNNING", "20"),
    ];
    let server = Server::start(bench, &home, &settings)?;
    let row = |figure: &str, measured, most| {
        print(&Row {
            figure,
            unit: Unit::Mib,
            measured,
            baseline: None,
            aim: Some(Aim::AtMost(most)),
        });
    };
    row("server, idle", process::rss_mib(server.pid())?, 20.0);

    let live: Vec<String> = (0..LIVE)
        .map(|_| {
            server.create(&Order {
                kind: "analysis",
                requirements: "wait",
                dependencies: &[],
                auto_start: false,
            })
        })
        .collect::<Result<_>>()?;
    let before = process::rss_mib(server.pid())?;
    for id in &live {
        server.start_session(id)?;
    }
    server.wait_for_line("\"claude started\"", LIVE, LIMIT)?;
    let growth = (process::rss_mib(server.pid())? - before) / LIVE as f64;
    let engine = docker::connect()?;
    let (mut agents, mut shims) = (0.0, 0.0);
    for id in &live {
        let name = chain::container(&server, id)?;
        let pid = bench.runtime.block_on(docker::pid_of(&engine, &name))?;
        agents += process::pss_mib(pid)? / LIVE as f64;
        shims += process::pss_mib(process::parent(pid)?)? / LIVE as f64;
    }
    row(
        "each live session outside Claude",
        growth + agents + shims,
        5.0,
    );
    print_note(&format!(
        "of which server {growth:.2}, agent {agents:.2} (Pss), containerd's shim {shims:.2} (Pss)"
    ));

    for _ in LIVE..CREATED {
        server.create(&Order {
            kind: "implementation",
            requirements: REQUIREMENTS,
            dependencies: &[],
            auto_start: false,
        })?;
    }
    row(
        "server, 1,000 sessions, 20 of them live",
        process::rss_mib(server.pid())?,
        40.0,
    );
    Ok(())
}
