//! A server for the conformance suites of MCP: they call tools, read resources and get prompts that
//! no product has, to see how transport and protocol behave. This program has them, behind the
//! same door as Baton's own.
//!
//! What the suites look for is written down in the descriptions of their scenarios; what has no
//! logic of its own stands in `catalogue.json`. It is for tests and is not shipped.

mod background;
mod catalogue;
mod door;
mod handler;
mod rounds;
mod skills;
mod tools;

use std::io::Write;

use anyhow::Context;
use baton::mcp::MCP_PATH;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Serves what the conformance suites of MCP want to see.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The only bearer token that is let in.
    #[arg(long, env = "MCP_FIXTURE_TOKEN", hide_env_values = true)]
    token: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let mut terminated = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let open = door::open(&arguments.listen, arguments.token).await?;

    // The line that callers wait for; a pipe would keep it without the flush.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{}{MCP_PATH}", open.address)?;
    stdout.flush()?;

    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("could not wait for ^C")?,
    }
    open.close().await;
    Ok(())
}
