//! What can go wrong while an image is built.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why an image could not be built. Texts say what to do; nothing in them is secret.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No daemon, or none for this user.
    #[error(
        "the Docker daemon does not answer: {said}\nstart it, or run this as root or as a member \
         of the group `docker`; DOCKER_HOST names a daemon elsewhere"
    )]
    Daemon {
        /// What the `docker` program said.
        said: String,
    },
    /// The daemon's machine is of a kind for which no Claude Code package is pinned.
    #[error("no Claude Code package is known for architecture {architecture}, only for {known}")]
    Architecture {
        /// As the daemon names it.
        architecture: String,
        /// Those that would do.
        known: String,
    },
    /// A program the build needs is not there.
    #[error(
        "the program {program}, for {step}, is not installed; install the package of that name"
    )]
    ProgramMissing {
        /// Its name.
        program: &'static str,
        /// What it is needed for.
        step: &'static str,
    },
    /// A program could not be run or waited for.
    #[error("cannot run {program} for {step}")]
    ProgramNotRun {
        /// Its name.
        program: &'static str,
        /// What it was run for.
        step: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program said no.
    #[error("{program} failed ({status}) while {step}:{said}")]
    ProgramFailed {
        /// Its name.
        program: &'static str,
        /// What it was run for.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        said: String,
    },
    /// A program took longer than it may.
    #[error("{program} did not finish {step} within {limit_seconds} s")]
    TimedOut {
        /// Its name.
        program: &'static str,
        /// What it was run for.
        step: &'static str,
        /// How long it had.
        limit_seconds: u64,
    },
    /// What was fetched is not what was pinned.
    #[error(
        "{path} has the digest {found} instead of {expected}: it was damaged or replaced on its \
         way; it is not used"
    )]
    Integrity {
        /// The file.
        path: PathBuf,
        /// The digest compiled in.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// Both ways to a base failed.
    #[error("no base to build on\npulled: {pulled}\nbootstrapped: {bootstrapped}")]
    NoBase {
        /// Why not with an image from a registry.
        pulled: Box<ImageError>,
        /// Why not with mmdebstrap.
        bootstrapped: Box<ImageError>,
    },
    /// The image was built, but what it is for does not work.
    #[error("the new image was not named {image}: `claude --version` in it said {said:?}")]
    Unusable {
        /// The name it would have got.
        image: String,
        /// What was said instead of the version.
        said: String,
    },
    /// A file of the build.
    #[error("{action} {path}")]
    Io {
        /// As in "cannot read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A step that ran on another thread was lost.
    #[error("{step} was interrupted")]
    Interrupted {
        /// The step.
        step: &'static str,
    },
}

impl ImageError {
    /// An error with a file, to be completed with its cause.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
