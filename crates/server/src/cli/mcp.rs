//! `baton mcp`: MCP over standard input and output, a bridge to a running server.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::config;
use crate::mcp::Bridge;

/// How long a server may take to answer that was started here.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
const LOOKED_EVERY: Duration = Duration::from_millis(100);

/// Arguments of `baton mcp`.
#[derive(Debug, clap::Args)]
pub struct McpArgs {
    /// Address of the server
    #[arg(
        long,
        env = "BATON_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:3002"
    )]
    connect: String,
    /// Start `baton serve` if no server answers there; it goes on when this ends
    #[arg(long)]
    serve: bool,
}

/// Serves the client at standard input and output until it closes them.
///
/// # Errors
/// Without a token, with an address of no use, and when a server that was to be started does not
/// answer.
pub async fn run(args: McpArgs) -> anyhow::Result<()> {
    let token = config::bearer()?;
    let bridge = Bridge::new(&args.connect, &token)?;
    if args.serve && !bridge.is_there().await {
        start_server(&bridge).await?;
    }
    bridge.run().await
}

/// Starts a server that outlives this process. Its log goes to where ours goes: standard output is
/// the client's.
async fn start_server(bridge: &Bridge) -> anyhow::Result<()> {
    let program = config::own_program().context("the path of this program is unknown")?;
    let mut server = Command::new(program)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A client that ends us by a signal to our group leaves the server alone.
        .process_group(0)
        .spawn()
        .context("`baton serve` could not be started")?;
    let answers = async {
        while !bridge.is_there().await {
            if let Some(status) = server.try_wait()? {
                bail!("`baton serve` ended ({status}); what it says above is why");
            }
            tokio::time::sleep(LOOKED_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(STARTED_WITHIN, answers)
        .await
        .context("`baton serve` was started and does not answer")?
}
