//! Requests: reads of a thousand sessions beside raw axum, durable creation beside raw commits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::home::Home;
use crate::http::{self, WEBHOOK, post};
use crate::load::{self, Load, Measured};
use crate::raw_axum::{self, RawAxum};
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, print, print_note, quantile};
use crate::{Bench, disk};

/// What sessions are asked to do that never start.
pub const REQUIREMENTS: &str = "Add a rate limiter to the API, with tests.";

const CONNECTIONS: usize = 16;
const SESSIONS: usize = 1_000;
const PAGE: usize = 50;
/// Creations a second that are to be had at least.
const CREATES_DEMANDED: u32 = 2_500;
const DURATION: Duration = Duration::from_secs(4);
const PROBE_PAUSE: Duration = Duration::from_millis(3);

const IDLE: Order<'_> = Order {
    kind: "implementation",
    requirements: REQUIREMENTS,
    dependencies: &[],
    auto_start: false,
};

/// `session.get`.
pub fn get(bench: &Bench) -> Result<()> {
    let home = Home::new(bench)?;
    let server = Server::start(bench, &home, &[])?;
    let ids = create_sessions(&server)?;
    let baseline = RawAxum::start(SESSIONS)?;
    let request = |id: &str| {
        post(
            WEBHOOK,
            &json!({"data": {"type": "session.get", "sessionId": id}}),
        )
    };
    for id in [&ids[0], &ids[SESSIONS - 1]] {
        ensure!(
            server.session(id)?["id"] == **id,
            "another session than {id} was answered"
        );
    }
    let ours = (0..CONNECTIONS).map(|at| request(&ids[at * 61])).collect();
    let raw = (0..CONNECTIONS)
        .map(|at| request(&raw_axum::id(at * 61)))
        .collect();
    compare("session.get", &server, ours, &baseline, raw)
}

/// `session.list`.
pub fn list(bench: &Bench) -> Result<()> {
    let home = Home::new(bench)?;
    let server = Server::start(bench, &home, &[])?;
    let ids = create_sessions(&server)?;
    let baseline = RawAxum::start(SESSIONS)?;
    let request = json!({"data": {"type": "session.list", "limit": PAGE}});
    let page = server.call(&request["data"])?;
    let page = page["sessions"]
        .as_array()
        .context("a list without sessions")?;
    let right = page
        .iter()
        .zip(&ids)
        .all(|(session, id)| session["id"] == **id);
    ensure!(
        page.len() == PAGE && right,
        "another page than the first was answered"
    );
    let sent = || load::same(post(WEBHOOK, &request), CONNECTIONS);
    compare(
        "session.list, 50 of 1,000",
        &server,
        sent(),
        &baseline,
        sent(),
    )
}

fn create_sessions(server: &Server) -> Result<Vec<String>> {
    (0..SESSIONS).map(|_| server.create(&IDLE)).collect()
}

/// One after the other, so that each has the machine to itself.
fn compare(
    name: &str,
    server: &Server,
    ours: Vec<Vec<u8>>,
    baseline: &RawAxum,
    raw: Vec<Vec<u8>>,
) -> Result<()> {
    let measure = |address, requests: Vec<Vec<u8>>| {
        load::run(Load {
            address,
            requests,
            duration: DURATION,
            interval: None,
            probe: None,
        })
    };
    let bytes = |address, request: &[u8]| body_bytes(address, request);
    print_note(&format!(
        "{CONNECTIONS} connections; answers of {} and {} bytes",
        bytes(server.address, &ours[0])?,
        bytes(baseline.address, &raw[0])?,
    ));
    let raw = measure(baseline.address, raw)?;
    let ours = measure(server.address, ours)?;
    print(&Row {
        figure: name,
        unit: Unit::PerSecond,
        measured: ours.per_second,
        baseline: Some((raw.per_second, "raw axum")),
        aim: Some(Aim::AtLeast(50_000.0)),
    });
    print_times(&ours, &raw, "raw axum", None);
    Ok(())
}

fn print_times(ours: &Measured, raw: &Measured, name: &str, aim: Option<Aim>) {
    for (figure, measured, baseline, aim) in [
        ("  p50", ours.p50_ms(), raw.p50_ms(), None),
        ("  p99", ours.p99_ms(), raw.p99_ms(), aim),
    ] {
        let baseline = Some((baseline, name));
        print(&Row {
            figure,
            unit: Unit::Ms,
            measured,
            baseline,
            aim,
        });
    }
}

fn body_bytes(address: std::net::SocketAddr, request: &[u8]) -> Result<usize> {
    let end = memchr::memmem::find(request, b"\r\n\r\n").context("a request without a head")?;
    let body: Value = serde_json::from_slice(&request[end + 4..])?;
    Ok(http::once(address, "POST", WEBHOOK, Some(&body))?.1.len())
}

/// `session.create`, and `session.get` meanwhile.
pub fn create(bench: &Bench) -> Result<()> {
    let commits = bench
        .runtime
        .block_on(disk::sqlite_commits(bench.scratch.path()))?;
    let appends = disk::appends(bench.scratch.path())?;
    let demanded = Duration::from_secs(CONNECTIONS as u64) / CREATES_DEMANDED;
    for (prepared, interval, figure) in [
        (None, None, "session.create, 16 clients"),
        (
            None,
            Some(demanded),
            "session.create, 16 clients held at 2,500/s",
        ),
        (Some("0"), None, "  with BATON_MAX_PREPARED=0"),
    ] {
        let home = Home::new(bench)?;
        let settings: Vec<_> = prepared
            .map(|count| ("BATON_MAX_PREPARED", count))
            .into_iter()
            .collect();
        let server = Server::start(bench, &home, &settings)?;
        let id = server.create(&IDLE)?;
        let get = json!({"data": {"type": "session.get", "sessionId": id}});
        let measured = load::run(Load {
            address: server.address,
            requests: load::same(post(WEBHOOK, &IDLE.request()), CONNECTIONS),
            duration: DURATION,
            interval,
            probe: Some((post(WEBHOOK, &get), PROBE_PAUSE)),
        })?;
        print(&Row {
            figure,
            unit: Unit::PerSecond,
            measured: measured.per_second,
            baseline: Some((
                commits.per_second,
                "SQLite, one row a commit, FULL, 1 client",
            )),
            aim: interval.is_none().then_some(Aim::AtLeast(2_500.0)),
        });
        print_times(
            &measured,
            &commits,
            "SQLite commit",
            Some(Aim::AtMost(15.0)),
        );
        print(&Row {
            figure: "  session.get meanwhile, p50",
            unit: Unit::Ms,
            measured: quantile(&measured.probe_ms, 0.5),
            baseline: Some((appends.p50_ms(), "append of 1 KB and fdatasync")),
            aim: None,
        });
        print(&Row {
            figure: "  session.get meanwhile, p99",
            unit: Unit::Ms,
            measured: quantile(&measured.probe_ms, 0.99),
            baseline: Some((appends.p99_ms(), "append of 1 KB and fdatasync")),
            aim: Some(Aim::AtMost(2.0)),
        });
    }
    Ok(())
}
