//! Runs the `git` program: no configuration but ours, bounded time, bounded output, and a gentle
//! end, since a git that is killed outright leaves its lock files behind.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// How long a git that only touches the mirror may take.
pub(crate) const LOCAL_TIME_MAX: Duration = Duration::from_secs(120);

/// How long a fetch or push may take; the first fetch of a large repository is the long one.
pub(crate) const NETWORK_TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// How long git may take to put away its lock files once it is told to end.
const GRACE: Duration = Duration::from_secs(5);

/// The most of a command's output that is kept in memory.
const STDOUT_BYTES_MAX: usize = 8 << 20;

/// The most of git's complaints that is kept; the rest is read and dropped.
const STDERR_BYTES_MAX: usize = 4 << 10;

/// What git may know of our own environment: where programs are, how to get out, whom to trust.
/// Everything else is kept from it, our secrets first.
const INHERITED: [&str; 13] = [
    "PATH",
    "TMPDIR",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_EXEC_PATH",
];

/// Settings of every call. Hooks and credential helpers are off; nothing is collected, since
/// sessions may be reading; what git reports as written is on the disk.
const CONFIG: [(&str, &str); 10] = [
    ("core.hooksPath", "/dev/null"),
    ("core.attributesFile", "/dev/null"),
    ("core.fsync", "all"),
    ("core.filesRefLockTimeout", "2000"),
    ("core.packedRefsTimeout", "10000"),
    ("credential.helper", ""),
    ("fetch.recurseSubmodules", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("receive.autogc", "false"),
];

static ENVIRONMENT: LazyLock<Vec<(&'static str, OsString)>> = LazyLock::new(|| {
    INHERITED
        .iter()
        .filter_map(|name| Some((*name, std::env::var_os(name)?)))
        .collect()
});

/// Where `git` is. Found once: given a bare name and a changed environment the standard library
/// falls back from `posix_spawn` to `fork`, which is slow for a process of our size.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("git"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| PathBuf::from("git"))
});

/// One call of git, not yet made.
pub(crate) struct GitCall {
    command: Command,
    config: Vec<(String, String)>,
    stdin: Vec<u8>,
    time_max: Duration,
}

/// What a finished call left.
#[derive(Debug)]
pub(crate) struct GitOutput {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    /// At most [`STDOUT_BYTES_MAX`].
    pub stdout: Vec<u8>,
    /// At most [`STDERR_BYTES_MAX`], lossily decoded and trimmed.
    pub stderr: String,
}

/// Why a call did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitCallError {
    #[error("git cannot be run; is it installed?")]
    Spawn(#[source] std::io::Error),
    #[error("the output of git cannot be read")]
    Pipe(#[source] std::io::Error),
    #[error("git took longer than {} s and was stopped", .0.as_secs())]
    TimedOut(Duration),
    #[error("git printed more than {STDOUT_BYTES_MAX} bytes")]
    OutputTooLarge,
}

impl GitCall {
    /// `git <args>` in a bare repository.
    pub(crate) fn new<I>(git_dir: &Path, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = Command::new(PROGRAM.as_path());
        command
            .args(args)
            .env_clear()
            .envs(ENVIRONMENT.iter().map(|(name, value)| (name, value)))
            .env("GIT_DIR", git_dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            // Names of files are chosen in sandboxes: none of them is a pattern.
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_ALLOW_PROTOCOL", "https:file")
            // Curl would read a .netrc there.
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its helpers end with it, and a Ctrl-C meant for us does not cut it off.
            .process_group(0);
        let config = CONFIG
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Self {
            command,
            config,
            stdin: Vec::new(),
            time_max: LOCAL_TIME_MAX,
        }
    }

    /// Sets a configuration value for this call, through the environment: not visible in `ps`.
    /// Multi-valued keys may be given several times.
    pub(crate) fn config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub(crate) fn time_max(mut self, time_max: Duration) -> Self {
        self.time_max = time_max;
        self
    }

    /// The arguments as `ps` would show them, and the configuration.
    #[cfg(test)]
    pub(crate) fn shown(&self) -> (String, &[(String, String)]) {
        let arguments = self.command.as_std().get_args();
        (format!("{:?}", arguments.collect::<Vec<_>>()), &self.config)
    }

    /// Starts it with stdin closed unless `stdin_open`; both outputs are pipes.
    pub(crate) fn spawn(&mut self, stdin_open: bool) -> Result<GitProcess, GitCallError> {
        self.command
            .env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (index, (key, value)) in self.config.iter().enumerate() {
            self.command
                .env(format!("GIT_CONFIG_KEY_{index}"), key)
                .env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        self.command.stdin(if stdin_open {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let child = self.command.spawn().map_err(GitCallError::Spawn)?;
        Ok(GitProcess { child: Some(child) })
    }

    /// Runs it to its end. May be called again.
    pub(crate) async fn run(&mut self) -> Result<GitOutput, GitCallError> {
        let time_max = self.time_max;
        let mut process = self.spawn(!self.stdin.is_empty())?;
        let input = &self.stdin;
        let (stdin, stdout, stderr) = process.pipes();
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A git that ends early says why on stderr; the broken pipe says nothing.
                    let _ = stdin.write_all(input).await;
                }
            };
            let ((), stdout, stderr) =
                tokio::join!(write, read_whole(stdout), read_complaints(stderr));
            let status = process.wait().await.map_err(GitCallError::Pipe)?;
            Ok(GitOutput {
                code: status.code().unwrap_or(-1),
                stdout: stdout?,
                stderr,
            })
        };
        match tokio::time::timeout(time_max, talk).await {
            Ok(output) => output,
            Err(_) => Err(GitCallError::TimedOut(time_max)),
        }
    }
}

/// A running git. Dropping it tells git and its helpers to end, and sees to it that they do.
pub(crate) struct GitProcess {
    child: Option<Child>,
}

impl GitProcess {
    /// Its pipes, once.
    pub(crate) fn pipes(
        &mut self,
    ) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        match &mut self.child {
            Some(child) => (child.stdin.take(), child.stdout.take(), child.stderr.take()),
            None => (None, None, None),
        }
    }

    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => Err(std::io::Error::other("git was given up")),
        }
    }
}

impl Drop for GitProcess {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // No id: it has ended and was waited for.
        let Some(group) = child.id().and_then(process_group) else {
            return;
        };
        let _ = kill_process_group(group, Signal::TERM);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    let _ = kill_process_group(group, Signal::KILL);
                    let _ = child.wait().await;
                }
            });
        }
    }
}

fn process_group(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

async fn read_whole(pipe: Option<ChildStdout>) -> Result<Vec<u8>, GitCallError> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(STDOUT_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(GitCallError::Pipe)?;
    }
    if bytes.len() > STDOUT_BYTES_MAX {
        return Err(GitCallError::OutputTooLarge);
    }
    Ok(bytes)
}

/// Reads to the end, so that git never blocks on it, and keeps the beginning.
pub(crate) async fn read_complaints(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut block).await {
        let room = STDERR_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&block[..count.min(room)]);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}
