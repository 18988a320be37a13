//! Builds the image sessions run in, with or without a container registry in reach.
//!
//! The steps drive four programs: `npm` fetches the Claude Code CLI (checked against a digest
//! compiled in), `docker pull` or `mmdebstrap` gives a Debian base, and `docker build` runs the
//! same Dockerfile over either, so that both ways lead to the same image. The image carries a
//! digest of its inputs as a label; where that matches, nothing is done.

mod build;
mod error;
mod inputs;
mod program;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use build::Build;
pub use error::ImageError;
use inputs::Inputs;
use program::Programs;

/// Label of a session image: the digest of what it was built from.
pub const LABEL: &str = "dev.baton.image";
/// Label of a session image: the version of the Claude Code CLI in it.
pub const CLI_LABEL: &str = "dev.baton.claude-code";
/// Where the image has the CLI.
const CLI_PATH: &str = "/usr/local/bin/claude";
/// How long copying the CLI out of the image may take.
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// For questions the daemon answers from memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Takes one line of progress for a person.
pub type Report<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// What to build, and where to keep what can be used again.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The name the image gets, for example `claudecode:latest`.
    pub image: String,
    /// Folder for the fetched package (175 MB) and, while building, the build context (400 MB).
    pub cache: PathBuf,
    /// A Debian image to build on, instead of the usual one pulled or bootstrapped.
    pub base: Option<String>,
    /// Where mmdebstrap gets packages, instead of its usual mirror.
    pub mirror: Option<String>,
    /// Build even if the image is up to date, with newest Debian packages.
    pub rebuild: bool,
}

/// How [`build`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildOutcome {
    /// The image was there already, built from the same inputs.
    UpToDate,
    /// The image was built, tried and named.
    Built {
        /// How long that took.
        took: Duration,
    },
}

/// What stands under an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// No image of that name.
    Missing,
    /// An image somebody made in another way; Baton runs sessions in it as it is.
    Foreign,
    /// Built by another version of Baton, or from another base.
    Outdated,
    /// Built from the inputs of this very version.
    UpToDate,
}

/// The version of the Claude Code CLI that [`build`] puts into the image, for example `2.1.330`.
pub fn cli_version() -> &'static str {
    &Inputs::embedded().claude_code.version
}

/// What stands under the name `image`, as far as this version of Baton is concerned.
///
/// # Errors
/// [`ImageError::Daemon`] or [`ImageError::ProgramMissing`] when there is nobody to ask.
pub async fn state(image: &str) -> Result<ImageState, ImageError> {
    Tools::default().state(image, None).await
}

/// Copies the Claude Code CLI out of `image`, one that [`build`] made, to `path`; there already is
/// fine.
///
/// # Errors
/// Any [`ImageError`]; nothing is at `path` then.
pub async fn extract_cli(image: &str, path: &Path) -> Result<(), ImageError> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(ImageError::io("cannot create", folder))?;
    let docker = |step| Programs::default().call("docker", step, COPY_LIMIT);
    let create = docker("making a container to copy the CLI from");
    let container = create.args(["create", image]).answer().await?;
    let partial = path.with_extension("partial");
    let copied = docker("copying the CLI")
        .arg("cp")
        .arg(format!("{container}:{CLI_PATH}"))
        .arg(&partial)
        .answer()
        .await;
    let removed = docker("removing that container")
        .args(["rm", &container])
        .answer()
        .await;
    copied.and(removed)?;
    fs::rename(&partial, path).map_err(ImageError::io("cannot name", path))
}

/// Builds the image named in `options`, unless it is up to date.
///
/// The name moves to the new image only after the CLI in it has answered. Builds with one cache
/// folder run one after the other.
///
/// # Errors
/// Any [`ImageError`]; the image that had the name before keeps it.
pub async fn build(options: &BuildOptions, report: Report<'_>) -> Result<BuildOutcome, ImageError> {
    Tools::default().build(options, report).await
}

/// What a build works with: the programs it runs and the inputs it follows.
#[derive(Debug, Clone)]
struct Tools {
    programs: Programs,
    inputs: Inputs,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            programs: Programs::default(),
            inputs: Inputs::embedded().clone(),
        }
    }
}

impl Tools {
    async fn state(&self, image: &str, base: Option<&str>) -> Result<ImageState, ImageError> {
        let architecture = self.architecture().await?;
        let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
        let found = self
            .programs
            .call("docker", "looking for the image", ANSWER_LIMIT)
            .args(["image", "inspect", "--format", &format, image])
            .answer()
            .await;
        match found {
            Ok(label) if label == self.inputs.label(&architecture, base) => {
                Ok(ImageState::UpToDate)
            }
            Ok(label) if label.is_empty() || label == "<no value>" => Ok(ImageState::Foreign),
            Ok(_) => Ok(ImageState::Outdated),
            // The daemon answered just now, so this says that there is no such image.
            Err(ImageError::ProgramFailed { .. }) => Ok(ImageState::Missing),
            Err(error) => Err(error),
        }
    }

    /// Of the daemon's machine, which need not be this one.
    async fn architecture(&self) -> Result<String, ImageError> {
        let answer = self
            .programs
            .call("docker", "asking the daemon", ANSWER_LIMIT)
            .args(["version", "--format", "{{.Server.Arch}}"])
            .answer();
        answer.await.map_err(|error| match error {
            ImageError::ProgramFailed { said, .. } => ImageError::Daemon { said },
            other => other,
        })
    }

    async fn build(
        &self,
        options: &BuildOptions,
        report: Report<'_>,
    ) -> Result<BuildOutcome, ImageError> {
        let began = Instant::now();
        let image = &options.image;
        let up_to_date = || {
            report(&format!("session image {image} is up to date"));
            Ok(BuildOutcome::UpToDate)
        };
        let base = options.base.as_deref();
        if !options.rebuild && self.state(image, base).await? == ImageState::UpToDate {
            return up_to_date();
        }
        let cache = &options.cache;
        fs::create_dir_all(cache).map_err(ImageError::io("cannot create", cache))?;
        let _lock = lock(cache, report).await?;
        // Another build may have finished while this one waited for its turn.
        match self.state(image, base).await? {
            ImageState::UpToDate if !options.rebuild => return up_to_date(),
            ImageState::Foreign => report(&format!(
                "{image} was not built by Baton: the name moves to the new image, the old one \
                 stays without a name"
            )),
            _ => {}
        }
        let build = Build::prepare(self, options, report).await?;
        let built = build.run().await;
        build.clean_up();
        built?;
        let took = began.elapsed();
        report(&format!(
            "session image {image} is ready after {} s",
            took.as_secs()
        ));
        Ok(BuildOutcome::Built { took })
    }
}

/// Waits for its turn; released when dropped, and by the system if this process dies.
async fn lock(cache: &Path, report: Report<'_>) -> Result<File, ImageError> {
    let path = cache.join("image-build.lock");
    let file = File::create(&path).map_err(ImageError::io("cannot create", &path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => report("another build of the image runs; waiting for it"),
        Err(TryLockError::Error(source)) => {
            return Err(ImageError::Io {
                action: "cannot lock",
                path,
                source,
            });
        }
    }
    // Bounded, since every step of the build that holds the lock is.
    off_thread("waiting for another build", move || {
        file.lock().map_err(ImageError::io("cannot lock", &path))?;
        Ok(file)
    })
    .await
}

async fn off_thread<T: Send + 'static>(
    step: &'static str,
    action: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let ended = tokio::task::spawn_blocking(action).await;
    ended.unwrap_or(Err(ImageError::Interrupted { step }))
}
