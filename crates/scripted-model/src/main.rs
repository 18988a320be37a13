//! The stand-in as a program: `scripted-model --scripts DIR`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use scripted_model::{Options, ScriptedModel, Scripts};
use tokio::signal::unix::{SignalKind, signal};

/// Plays scripts as the Anthropic Messages API.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The directory of scripts (*.toml).
    #[arg(long)]
    scripts: PathBuf,
    /// The only key that is let in, as `x-api-key` or bearer token; otherwise everyone is.
    #[arg(long, env = "SCRIPTED_MODEL_REQUIRE_KEY", hide_env_values = true)]
    require_key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let scripts = Scripts::load(&arguments.scripts)?;
    anyhow::ensure!(
        scripts.iter().next().is_some(),
        "no script (*.toml) in {}",
        arguments.scripts.display()
    );
    let options = Options {
        require_key: arguments.require_key,
    };
    let mut terminated = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let model = ScriptedModel::start(&arguments.listen, scripts, options).await?;

    // The line that callers wait for; a pipe would keep it without the flush.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", model.base_url())?;
    stdout.flush()?;

    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("could not wait for ^C")?,
    }
    model.stop().await;
    Ok(())
}
