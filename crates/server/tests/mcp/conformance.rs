//! The official conformance suites. Which scenarios are about a product is in
//! `clients/scenarios.json`; the others are for the fixture, in the crate `mcp-fixture`.

use tokio::net::TcpListener;
use tokio::process::Command;

use crate::app::{App, SECRET};
use crate::program::{node, passes, run, told};

/// The judge of a suite that runs against `url`.
fn judge(url: &str, suite: &str) -> Command {
    let mut command = node("conformance.mjs");
    command
        .args(["product", url, suite])
        .env("MCP_TOKEN", SECRET);
    command
}

async fn product_passes(suite: &str) {
    let app = App::new().await;
    let url = format!("http://{}/mcp", app.address);
    passes(&mut judge(&url, suite)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn product_passes_the_stable_suite() {
    product_passes("0.1.16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn product_passes_what_2025_11_25_requires() {
    product_passes("2025-11-25").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn product_passes_what_2026_07_28_requires() {
    product_passes("2026-07-28").await;
}

/// Where nobody listens, and where somebody does who does not speak MCP.
#[tokio::test(flavor = "multi_thread")]
async fn judge_fails_who_does_not_speak_mcp() {
    let app = App::new().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("its address")
    };
    for url in [
        format!("http://{closed}/mcp"),
        format!("http://{}/health", app.address),
    ] {
        let output = run(&mut judge(&url, "2026-07-28")).await;
        let text = told(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("no scenario passed"), "{text}");
    }
}

#[test]
fn table_in_the_docs_is_the_list_of_scenarios() {
    let clients = include_str!("clients/scenarios.json");
    let list: serde_json::Value = serde_json::from_str(clients).expect("it is JSON");
    let word = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let rows = list["scenarios"].as_array().expect("a list").iter();
    let rows = rows.map(|scenario| {
        let suites = scenario["suites"].as_array().expect("a list").iter();
        let suites: Vec<String> = suites.map(word).collect();
        format!(
            "| `{}` | {} | {} | {} |",
            word(&scenario["name"]),
            suites.join(", "),
            word(&scenario["product"]),
            word(&scenario["fixture"]),
        )
    });
    let rows: Vec<String> = rows.collect();
    let page = include_str!("../../../../docs/mcp-conformance.md");
    let told: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("| scenario |"))
        .skip(2)
        .collect();
    assert_eq!(told, rows);
}
