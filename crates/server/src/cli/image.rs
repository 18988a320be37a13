//! `baton image …`: the image sessions run in.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::image::{self, BuildOptions};

/// Arguments of `baton image`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    /// Builds the image sessions run in, unless it is up to date
    ///
    /// Needs a Docker daemon, npm, and either a container registry in reach or mmdebstrap.
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Name the image gets
    #[arg(
        long,
        env = "CLAUDE_CONTAINER_IMAGE",
        default_value = "claudecode:latest"
    )]
    image: String,
    /// Baton's data folder; what can be used again is kept in `cache` there
    #[arg(long, env = "BATON_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Debian image to build on, instead of the usual one
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
    /// Where mmdebstrap gets Debian packages, instead of its usual mirror
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Build even if it is up to date, with the newest Debian packages
    #[arg(long)]
    rebuild: bool,
}

/// Runs `baton image …`; progress goes to standard error, one line each.
///
/// # Errors
/// Whatever kept the image from being built, in words for a person.
pub async fn run(args: ImageArgs) -> anyhow::Result<()> {
    let ImageCommand::Build(args) = args.command;
    let options = BuildOptions {
        cache: super::data_dir(args.data_dir)?.join("cache"),
        image: args.image,
        base: args.base,
        mirror: args.mirror,
        rebuild: args.rebuild,
    };
    image::build(&options, &|line| eprintln!("{line}"))
        .await
        .with_context(|| format!("the session image {} was not built", options.image))?;
    Ok(())
}
