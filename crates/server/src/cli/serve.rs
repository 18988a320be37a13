//! `baton serve`: the server.

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Settings};
use crate::failpoint;
use crate::server::Server;

/// Arguments of `baton serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// File with settings, instead of `baton.toml` in the working directory
    #[arg(long, env = "BATON_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Every connection, sandbox and git process takes descriptors, and the usual soft limit of 1,024
/// dates from programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Serves until SIGTERM or SIGINT. Containers go on; the next server adopts them.
///
/// # Errors
/// Whatever keeps it from starting, in words for a person.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings.with_file(args.config.as_deref())?;
    let mut config = Config::from_settings(settings)?;
    if let Some(point) = config.failpoint.take() {
        failpoint::arm(point);
    }
    raise_descriptor_limit();
    let stop = CancellationToken::new();
    let server = Server::start(config, stop.clone()).await?;
    eprintln!("baton listens on http://{}", server.address());
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; running sessions go on and are adopted by the next server");
    stop.cancel();
    server.stopped().await
}
