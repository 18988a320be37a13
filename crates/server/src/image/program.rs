//! Runs the programs that build an image: each bounded in time, its words kept for when it fails.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::ImageError;

/// How much of what a program wrote is looked at to say why it failed.
const TAIL_BYTES_MAX: u64 = 4096;
/// How many of its last lines go into the error.
const TAIL_LINES_MAX: usize = 6;
/// How long a program that took too long gets to clean up (mmdebstrap has mounts to undo).
const GRACE: Duration = Duration::from_secs(10);

/// Where programs are found: `PATH`, or first in one folder (so tests can stand in for them).
#[derive(Debug, Clone, Default)]
pub(super) struct Programs {
    pub folder: Option<PathBuf>,
}

impl Programs {
    /// A call of `name`, to be completed with arguments.
    pub fn call(&self, name: &'static str, step: &'static str, limit: Duration) -> Call {
        let in_folder = self.folder.as_ref().map(|folder| folder.join(name));
        let program = in_folder
            .filter(|path| path.exists())
            .unwrap_or_else(|| name.into());
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Call {
            name,
            step,
            limit,
            command,
        }
    }
}

/// One run of one program.
pub(super) struct Call {
    name: &'static str,
    /// What it is done for, as in "failed while …".
    step: &'static str,
    limit: Duration,
    command: Command,
}

impl Call {
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn folder(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs it with its output going to `log`.
    pub async fn logged(mut self, log: &Log) -> Result<(), ImageError> {
        let start = log.length()?;
        self.command.stdout(log.handle()?).stderr(log.handle()?);
        let mut child = self.spawn()?;
        let status = self.wait(&mut child).await?;
        self.checked(status, || log.tail(start))
    }

    /// Runs it and gives what it wrote to its standard output, trimmed. For short answers.
    pub async fn answer(mut self) -> Result<String, ImageError> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn()?;
        let output = tokio::time::timeout(self.limit, child.wait_with_output())
            .await
            .map_err(|_| self.timed_out())?
            .map_err(|source| self.not_run(source))?;
        self.checked(output.status, || last_lines(&output.stderr))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn spawn(&mut self) -> Result<Child, ImageError> {
        self.command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ImageError::ProgramMissing {
                program: self.name,
                step: self.step,
            },
            _ => self.not_run(source),
        })
    }

    async fn wait(&self, child: &mut Child) -> Result<ExitStatus, ImageError> {
        if let Ok(ended) = tokio::time::timeout(self.limit, child.wait()).await {
            return ended.map_err(|source| self.not_run(source));
        }
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // Gone already is as good as asked to go.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            child.kill().await.map_err(|source| self.not_run(source))?;
        }
        Err(self.timed_out())
    }

    fn checked(&self, status: ExitStatus, said: impl FnOnce() -> String) -> Result<(), ImageError> {
        if status.success() {
            return Ok(());
        }
        Err(ImageError::ProgramFailed {
            program: self.name,
            step: self.step,
            status,
            said: said(),
        })
    }

    fn timed_out(&self) -> ImageError {
        ImageError::TimedOut {
            program: self.name,
            step: self.step,
            limit_seconds: self.limit.as_secs(),
        }
    }

    fn not_run(&self, source: std::io::Error) -> ImageError {
        ImageError::ProgramNotRun {
            program: self.name,
            step: self.step,
            source,
        }
    }
}

/// The file that keeps what the programs of one build wrote.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Starts the log at `path` anew.
    pub fn create(path: PathBuf) -> Result<Self, ImageError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|_| OpenOptions::new().append(true).read(true).open(&path))
            .map_err(ImageError::io("cannot write", &path))?;
        Ok(Self { file, path })
    }

    fn handle(&self) -> Result<Stdio, ImageError> {
        let file = self
            .file
            .try_clone()
            .map_err(ImageError::io("cannot write", &self.path))?;
        Ok(file.into())
    }

    fn length(&self) -> Result<u64, ImageError> {
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(ImageError::io("cannot read", &self.path))?
            .len())
    }

    /// The last lines written since `start`, or a note that they cannot be read.
    fn tail(&self, start: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let from = file
                .metadata()?
                .len()
                .saturating_sub(TAIL_BYTES_MAX)
                .max(start);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => format!(
                "{}\n  (all of it: {})",
                last_lines(&bytes),
                self.path.display()
            ),
            Err(error) => format!("see {} ({error})", self.path.display()),
        }
    }
}

/// The end of what a program wrote, one indented line each.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(TAIL_LINES_MAX);
    lines[from..]
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str, limit: Duration) -> Call {
        Programs::default()
            .call("sh", "testing", limit)
            .args(["-c", script])
    }

    fn log(folder: &tempfile::TempDir) -> Log {
        Log::create(folder.path().join("log")).expect("a log in a fresh folder")
    }

    #[tokio::test]
    async fn answer_is_the_trimmed_standard_output() {
        let answer = shell("echo ' yes '; echo no >&2", LIMIT).answer().await;
        assert_eq!(answer.expect("sh runs"), "yes");
    }

    #[tokio::test]
    async fn failure_quotes_the_last_lines_and_names_the_log() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = log(&folder);
        shell("echo earlier", LIMIT)
            .logged(&log)
            .await
            .expect("sh runs");
        let error = shell("seq 1 100; exit 3", LIMIT)
            .logged(&log)
            .await
            .expect_err("exits 3");
        let text = error.to_string();
        assert!(
            text.starts_with("sh failed (exit status: 3) while testing"),
            "{text}"
        );
        assert!(
            text.contains("\n  95\n") && text.contains("\n  100\n"),
            "{text}"
        );
        assert!(
            !text.contains("\n  94\n") && !text.contains("earlier"),
            "{text}"
        );
        assert!(text.contains(&log.path.display().to_string()), "{text}");
    }

    #[tokio::test]
    async fn program_that_takes_too_long_may_clean_up() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = log(&folder);
        // Waits on a pipe that nobody writes to, in a way that a signal interrupts.
        let script = "trap 'echo cleaned; exit 1' TERM; mkfifo pipe; exec 3<>pipe; read -r _ <&3";
        let call = shell(script, Duration::from_millis(500)).folder(folder.path());
        let error = call
            .logged(&log)
            .await
            .expect_err("it never ends by itself");
        assert!(
            matches!(error, ImageError::TimedOut { program: "sh", .. }),
            "{error}"
        );
        assert!(log.tail(0).contains("cleaned"), "{}", log.tail(0));
    }

    #[tokio::test]
    async fn missing_program_is_named() {
        let call = Programs::default().call("baton-no-such-program", "testing", LIMIT);
        let error = call.answer().await.expect_err("there is no such program");
        assert!(
            matches!(error, ImageError::ProgramMissing { .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains("baton-no-such-program"),
            "{error}"
        );
    }
}
