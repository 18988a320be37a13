//! The command line: one file for each subcommand.

mod doctor;
mod image;
mod mcp;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use directories::ProjectDirs;
use tracing_subscriber::EnvFilter;

/// What is logged where `RUST_LOG` is silent. The library for MCP tells of each request.
const LOG_FILTER: &str = "info,rmcp=warn";

/// Runs many Claude Code sessions, each in its own sealed container, in the order that their
/// dependencies set.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server: SQLite and the local Docker by default
    Serve(serve::ServeArgs),
    /// Speaks MCP over standard input and output for a server that runs
    Mcp(mcp::McpArgs),
    /// Makes the image sessions run in
    Image(image::ImageArgs),
    /// Checks daemon, image, credentials, disk, clock and versions; says how to mend each
    Doctor(doctor::DoctorArgs),
}

/// Reads the arguments, runs the subcommand, tells an error in one chain of words.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("baton: the process could not be set up: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match arguments.command {
            Command::Serve(args) => serve::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Mcp(args) => mcp::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Image(args) => image::run(args).await.map(|()| ExitCode::SUCCESS),
            Command::Doctor(args) => doctor::run(args).await,
        }
    });
    done.unwrap_or_else(|error| {
        eprintln!("baton: {error:#}");
        ExitCode::FAILURE
    })
}

/// The data folder that is given, or the platform's.
fn data_dir(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    given
        .or_else(|| ProjectDirs::from("", "", "baton").map(|dirs| dirs.data_dir().to_owned()))
        .context("no home directory: set BATON_DATA_DIR")
}

/// Logs at `info` unless `RUST_LOG` says otherwise; as JSON, with control characters escaped, when
/// nobody watches.
fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Where nobody listens any more, a server goes on: a complaint about that would end it.
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        log.init()
    } else {
        log.json().init()
    }
}
