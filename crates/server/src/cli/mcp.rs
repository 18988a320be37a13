//! `baton mcp`: MCP over standard input and output, a bridge to a running server.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::config;
use crate::mcp::Bridge;

/// How long a server may take to answer that was started here.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
const LOOKED_EVERY: Duration = Duration::from_millis(100);
/// The log of a server that was started here, in the data directory.
const LOG_NAME: &str = "serve.log";

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
    /// Data folder of a server that is started
    #[arg(long, env = "BATON_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
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
        start_server(&bridge, super::data_dir(args.data_dir)?).await?;
    }
    bridge.run().await
}

/// Starts a server that outlives this process, and so does its log: a file in the data directory.
async fn start_server(bridge: &Bridge, data_dir: PathBuf) -> anyhow::Result<()> {
    let listen = bridge.local().context(
        "--serve starts a server on this machine: --connect must name a loopback address",
    )?;
    std::fs::create_dir_all(&data_dir)
        .with_context(|| format!("the data directory {} cannot be made", data_dir.display()))?;
    let log = data_dir.join(LOG_NAME);
    let opened = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("the log {} cannot be written", log.display()))?;
    let program = config::own_program().context("the path of this program is unknown")?;
    let mut server = Command::new(program)
        .args(["serve", "--listen", &listen, "--data-dir"])
        .arg(&data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(opened)
        // A client that ends us by a signal to our group leaves the server alone.
        .process_group(0)
        .spawn()
        .context("`baton serve` could not be started")?;
    let answers = async {
        while !bridge.is_there().await {
            if let Some(status) = server.try_wait()? {
                bail!("`baton serve` ended ({status}); {} says why", log.display());
            }
            tokio::time::sleep(LOOKED_EVERY).await;
        }
        Ok(())
    };
    match tokio::time::timeout(STARTED_WITHIN, answers).await {
        Ok(answers) => answers,
        Err(_) => {
            server.kill().await.context("a server does not end")?;
            bail!(
                "`baton serve` was started and does not answer; {} says why",
                log.display()
            )
        }
    }
}
