//! Official SDKs and Inspector, each over each transport.

use std::path::Path;
use std::sync::Arc;

use tokio::process::Command;

use crate::app::{App, SECRET};
use crate::program::{node, passes, python};
use crate::stand_in::StandIn;

/// Runs a client against a server whose sessions complete as soon as they may run.
async fn conducts(client: &mut Command) {
    let app = Arc::new(App::new().await);
    let _stand_in = StandIn::new(&app);
    passes(reaching(client, &app)).await;
}

/// Runs a client against a server whose sessions stay in the queue.
async fn waits(client: &mut Command) {
    let app = App::new().await;
    passes(reaching(client, &app)).await;
}

/// Tells a client where the server is.
pub fn reaching<'a>(client: &'a mut Command, app: &App) -> &'a mut Command {
    let baton = Path::new(env!("CARGO_BIN_EXE_baton"));
    client
        .env("MCP_URL", format!("http://{}/mcp", app.address))
        .env("MCP_TOKEN", SECRET)
        .env("BATON", baton)
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sdk_conducts_over_http() {
    conducts(python("orchestra.py").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sdk_conducts_over_stdio() {
    conducts(python("orchestra.py").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sdk_waits_by_a_task_over_http() {
    waits(python("tasks.py").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sdk_waits_by_a_task_over_stdio() {
    waits(python("tasks.py").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_typescript_sdk_conducts_over_http() {
    conducts(node("typescript-v1.mjs").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_typescript_sdk_conducts_over_stdio() {
    conducts(node("typescript-v1.mjs").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_typescript_sdk_conducts_over_http() {
    conducts(node("typescript-v2.mjs").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_typescript_sdk_conducts_over_stdio() {
    conducts(node("typescript-v2.mjs").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_in_time_or_when_it_is_cancelled_over_http() {
    waits(node("patience.mjs").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_in_time_or_when_it_is_cancelled_over_stdio() {
    waits(node("patience.mjs").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspector_works_over_http() {
    conducts(node("inspector.mjs").arg("http")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspector_works_over_stdio() {
    conducts(node("inspector.mjs").arg("stdio")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_rebound_names_and_strangers_are_refused() {
    conducts(&mut node("strangers.mjs")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_a_thousand_sessions_is_small() {
    let app = App::new().await;
    for _ in 0..1_000 {
        app.created(&[], false).await;
    }
    passes(reaching(&mut node("list.mjs"), &app)).await;
}
