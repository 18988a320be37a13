//! Running what `scripts/mcp-clients` installed.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Longer than any of them takes; hit only when something hangs.
const PATIENCE: Duration = Duration::from_secs(280);

/// A script of `clients` for Node.
pub fn node(script: &str) -> Command {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => panic!("there is no Node for {other} in package.json"),
    };
    let node = installed().join(format!("node_modules/node-linux-{arch}/bin/node"));
    let mut command = Command::new(node);
    // The libraries are beside the link to the scripts, not beside the scripts.
    command.args(["--preserve-symlinks", "--preserve-symlinks-main"]);
    command.arg(installed().join("clients").join(script));
    command
}

/// A script of `clients` for Python.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(installed().join("python/bin/python"));
    command
        .arg("-B")
        .arg(installed().join("clients").join(script));
    command
}

/// Runs to the end; fails the test if that is not a good one.
pub async fn passes(command: &mut Command) {
    let output = run(command).await;
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    // Shown with `--no-capture`: what passed, and how much of it.
    println!("{told}");
}

/// Runs to the end, however that is.
pub async fn run(command: &mut Command) -> Output {
    let running = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, running).await;
    output.expect("it ends in time").expect("it can be run")
}

/// What it printed, for a person to read.
pub fn told(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn installed() -> PathBuf {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/mcp-clients");
    assert!(
        place.join("python.installed").exists() && place.join("node.installed").exists(),
        "the MCP clients are not installed; run scripts/mcp-clients"
    );
    place
}
