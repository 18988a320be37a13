//! The official conformance suites against the fixture: all that they test, as far as the library
//! for MCP has it. What it has not is in the list of scenarios, with the reason.

#[expect(dead_code, reason = "not all of it is needed here")]
#[path = "../../server/tests/mcp/program.rs"]
mod program;

use std::process::Stdio;

use program::{node, passes, run, told};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const TOKEN: &str = "a token of the tests";

/// The fixture, until it is dropped.
struct Fixture {
    url: String,
    _process: Child,
}

impl Fixture {
    async fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mcp-fixture"))
            .env("MCP_FIXTURE_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the fixture can be run");
        let stdout = process.stdout.take().expect("its output is a pipe");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).await;
        read.expect("it says where it listens");
        let url = line.trim().strip_prefix("listening on ");
        Self {
            url: url.expect("it says where it listens").to_owned(),
            _process: process,
        }
    }

    fn judge(&self, kind: &str, suite: &str) -> Command {
        let mut command = node("conformance.mjs");
        command.args([kind, &self.url, suite]);
        command.env("MCP_TOKEN", TOKEN);
        command
    }
}

async fn fixture_passes(suite: &str) {
    let fixture = Fixture::start().await;
    passes(&mut fixture.judge("fixture", suite)).await;
}

#[tokio::test]
async fn fixture_passes_the_stable_suite() {
    fixture_passes("0.1.16").await;
}

#[tokio::test]
async fn fixture_passes_what_2025_11_25_requires() {
    fixture_passes("2025-11-25").await;
}

#[tokio::test]
async fn fixture_passes_what_2026_07_28_requires() {
    fixture_passes("2026-07-28").await;
}

#[tokio::test]
async fn fixture_passes_what_is_there_for_skills() {
    fixture_passes("skills").await;
}

/// The wrong token is as good as no server.
#[tokio::test]
async fn judge_fails_who_is_not_let_in() {
    let fixture = Fixture::start().await;
    let output = run(fixture
        .judge("fixture", "0.1.16")
        .env("MCP_TOKEN", "another"))
    .await;
    let text = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no scenario passed"), "{text}");
}
