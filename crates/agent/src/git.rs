//! The `git` program, as the agent itself runs it: without hooks, signing, prompts or settings
//! from outside of the workspace.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::children::Children;
use crate::link::Orders;
use crate::tail::{Tail, read_tail};

/// How long one run may take, not counting the time the server is away.
const RUN_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How much of a run's stdout is kept, in bytes; the rest is read and dropped.
const STDOUT_BYTES_MAX: usize = 64 * 1024;
/// How much of a failed run's stderr is told, in bytes.
const STDERR_BYTES_MAX: usize = 2 * 1024;

/// Settings that a workspace must not have a say in. Claude may have changed them, not from
/// malice only: a commit of ours must not open an editor or wait for a hook.
const SETTINGS: [&str; 7] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "commit.gpgSign=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "safe.directory=*",
];

/// Why a run of git failed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git, or no process to be had.
    #[error("git {verb} could not be started: {source}")]
    Start {
        /// What it was to do.
        verb: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long and was ended.
    #[error("git {verb} did not end within {} minutes", RUN_LIMIT.as_secs() / 60)]
    TimedOut {
        /// What it did.
        verb: String,
    },
    /// It said no.
    #[error("git {verb} failed with {status}: {stderr}")]
    Failed {
        /// What it did.
        verb: String,
        /// Its code or signal.
        status: String,
        /// The last it wrote to stderr.
        stderr: String,
    },
}

/// Runs git in one workspace.
pub struct Git {
    /// Where.
    pub workspace: PathBuf,
    /// Author and committer.
    pub identity: Vec<(String, String)>,
    /// Where its processes are noted.
    pub children: Children,
    /// To know whether the server is there.
    pub orders: Orders,
}

impl Git {
    /// Runs `verb` with `args` and gives the beginning of its stdout. Dropped before the end, the
    /// run is killed.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn run(&self, verb: &str, args: &[&str]) -> Result<Vec<u8>, GitError> {
        self.run_with(&[], verb, args).await
    }

    /// As [`Git::run`] with further settings.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn run_with(
        &self,
        settings: &[&str],
        verb: &str,
        args: &[&str],
    ) -> Result<Vec<u8>, GitError> {
        let mut command = Command::new("git");
        for setting in SETTINGS.iter().chain(settings) {
            command.args(["-c", setting]);
        }
        command
            .arg(verb)
            .args(args)
            .current_dir(&self.workspace)
            .envs(self.identity.iter().cloned())
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start_error = |source| GitError::Start {
            verb: verb.to_owned(),
            source,
        };
        let mut owned = self.children.spawn(&mut command).map_err(start_error)?;
        let stdout = owned.child.stdout.take();
        let stderr = owned.child.stderr.take();
        let mut tail = Tail::new(STDERR_BYTES_MAX);
        let run = async {
            tokio::join!(
                read_head(stdout),
                read_tail(stderr, &mut tail),
                owned.wait()
            )
        };
        let (head, (), status) = tokio::select! {
            ended = run => ended,
            () = self.orders.connected_for(RUN_LIMIT) => {
                return Err(GitError::TimedOut { verb: verb.to_owned() });
            }
        };
        let status = status.map_err(start_error)?;
        if status.success() {
            return Ok(head);
        }
        Err(GitError::Failed {
            verb: verb.to_owned(),
            status: status.to_string(),
            stderr: tail.text().trim().to_owned(),
        })
    }
}

async fn read_head(reader: Option<impl AsyncReadExt + Unpin>) -> Vec<u8> {
    let mut head = Vec::new();
    let Some(mut reader) = reader else {
        return head;
    };
    let mut block = [0; 4 * 1024];
    while let Ok(count @ 1..) = reader.read(&mut block).await {
        let kept = count.min(STDOUT_BYTES_MAX - head.len());
        head.extend_from_slice(&block[..kept]);
    }
    head
}
