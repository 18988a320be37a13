//! Runs Claude: starts it, keeps what it prints, stops it when patience is over.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::future::pending;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use baton_agent::protocol::{ClaudeCommand, Cut, Exit, Job, Note, SetupFailure, Stream, Timers};
use baton_domain::ending::{CONVERSATION_STEP, ClaudeResult};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::{self, Instant};

use crate::children::{Children, Owned};
use crate::conversation;
use crate::link::Orders;
use crate::log;
use crate::outbox::{Outbox, retry};
use crate::patience::{Patience, Verdict};
use crate::places::Places;
use crate::result_search::ResultSearch;
use crate::splitter::{Piece, Splitter};
use crate::tail::Tail;
use crate::talk::talk;

/// How much of stderr the report of the end carries, in bytes.
const STDERR_TAIL_BYTES: usize = 2 * 1024;
/// How much of the repository's `CLAUDE.md` is passed on, in bytes.
const CLAUDE_MD_BYTES_MAX: usize = 64 * 1024;
/// After Claude's end, its pipes may be held open by a process that got away; after this long
/// without a byte they are given up.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// Makes Claude take messages on stdin for as long as it works.
const LISTENING: [&str; 2] = ["--input-format", "stream-json"];

/// How a run of Claude ended.
#[derive(Debug, Default)]
pub struct Ran {
    /// The last result it gave, with the tokens of all of them.
    pub result: Option<ClaudeResult>,
    /// How its process ended.
    pub exit: Option<Exit>,
    /// Why it was stopped, if it was.
    pub cut: Option<Cut>,
    /// The last of its stderr.
    pub stderr_tail: String,
}

/// What running Claude needs.
pub struct Surroundings {
    /// Directories.
    pub places: Places,
    /// Where its process is noted.
    pub children: Children,
    /// Where its output goes.
    pub outbox: Rc<Outbox>,
    /// Whether it is to be stopped.
    pub orders: Orders,
    /// Added to its environment: who commits.
    pub identity: Vec<(String, String)>,
}

/// Runs Claude to its end, and leaves no process behind.
///
/// # Errors
/// When it could not be started.
pub async fn run(job: &Job, around: &Surroundings) -> Result<Ran, SetupFailure> {
    let failure = |message: String| SetupFailure {
        step: "claude".to_owned(),
        message,
    };
    if let Some(name) = &job.conversation {
        conversation::take_over(&around.places, name).map_err(|error| SetupFailure {
            step: CONVERSATION_STEP.to_owned(),
            message: error.to_string(),
        })?;
    }
    let mut command = command(&job.claude, around).map_err(failure)?;
    mark_started(&around.places.started_marker())
        .map_err(|error| failure(format!("the start could not be recorded: {error}")))?;
    let mut claude = around
        .children
        .spawn(&mut command)
        .map_err(|error| failure(format!("{} could not be run: {error}", job.claude.program)))?;
    around.outbox.note(Note::ClaudeStarted).await;

    let seen = Rc::new(Seen::new(job.timers));
    let (stop, stopped) = watch::channel(false);
    let talking = claude.child.stdin.take().map(|stdin| {
        let (sayings, outbox) = (&around.orders.sayings, &around.outbox);
        let prompt = job.claude.prompt.clone();
        spawn_local(talk(
            stdin,
            prompt,
            Rc::clone(sayings),
            Rc::clone(outbox),
            Rc::clone(&seen),
        ))
    });
    let stdout = claude.child.stdout.take();
    let stderr = claude.child.stderr.take();
    let pump = |stream| Pump {
        stream,
        outbox: Rc::clone(&around.outbox),
        seen: Rc::clone(&seen),
        stopped: stopped.clone(),
    };
    let out = spawn_local(pump(Stream::Stdout).run(stdout));
    let err = spawn_local(pump(Stream::Stderr).run(stderr));

    let cut = tokio::select! {
        biased;
        _ = claude.wait() => None,
        () = around.orders.cancelled() => Some(Cut::Cancelled),
        cut = seen.impatience(&around.orders) => Some(cut),
    };
    if let Some(cut) = cut {
        log(format_args!("claude is stopped: {cut:?}"));
        stop_group(&mut claude, Duration::from_millis(job.timers.term_grace_ms)).await;
    }
    let status = claude.wait().await;
    if let Some(talking) = talking {
        // Nothing is told any more, nor noted: the report of the end is the last note.
        talking.abort();
        let _ = talking.await;
    }
    claude.signal_group(Signal::KILL);
    around.children.end_all().await;

    let drained = async {
        // Neither task panics nor is aborted.
        let _ = tokio::join!(out, err);
    };
    tokio::pin!(drained);
    tokio::select! {
        () = &mut drained => {}
        () = seen.silence(DRAIN_WAIT) => {
            stop.send_replace(true);
            drained.await;
        }
    }
    Ok(Ran {
        result: seen.result.take(),
        exit: status.ok().and_then(exit),
        cut,
        stderr_tail: seen.stderr_tail.borrow().text(),
    })
}

/// SIGTERM to all of them, and after `grace` SIGKILL.
async fn stop_group(claude: &mut Owned, grace: Duration) {
    claude.signal_group(Signal::TERM);
    if time::timeout(grace, claude.wait()).await.is_err() {
        claude.signal_group(Signal::KILL);
    }
}

fn exit(status: ExitStatus) -> Option<Exit> {
    let signal = || status.signal().map(Exit::Signal);
    status.code().map(Exit::Code).or_else(signal)
}

/// Creates the marker that keeps Claude from being started twice in one attempt.
fn mark_started(marker: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(marker)?;
    file.sync_all()?;
    match marker.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn command(claude: &ClaudeCommand, around: &Surroundings) -> Result<Command, String> {
    let places = &around.places;
    let program = find_program(&claude.program, places)
        .ok_or_else(|| format!("{} is not in the image", claude.program))?;
    let config_dir = Places::claude_state(&places.state_dir);
    fs::create_dir_all(&config_dir).map_err(|error| format!("no directory for state: {error}"))?;
    let mut command = Command::new(program);
    command
        .args(&claude.args)
        .current_dir(&places.workspace_dir)
        .env("HOME", &places.home_dir)
        .env("CLAUDE_CONFIG_DIR", config_dir)
        .env("GIT_TERMINAL_PROMPT", "0")
        .envs(around.identity.iter().cloned())
        .envs(claude.env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if claude.listens {
        command.args(LISTENING).stdin(Stdio::piped());
    }
    let prompt = system_prompt(claude, &places.workspace_dir);
    if !prompt.is_empty() {
        // By file: an argument of 128 KiB would keep Claude from starting.
        let path = places.state_dir.join("system-prompt.md");
        fs::write(&path, prompt).map_err(|error| format!("no file for its prompt: {error}"))?;
        command.arg("--append-system-prompt-file").arg(path);
    }
    Ok(command)
}

fn find_program(name: &str, places: &Places) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([places.run_dir.clone()])
        .map(|dir| dir.join(name))
        .find(is_program)
}

fn system_prompt(claude: &ClaudeCommand, workspace: &Path) -> String {
    let mut prompt = claude.system_prompt.clone();
    if claude.pass_claude_md
        && let Some(text) = claude_md(workspace)
    {
        if !prompt.is_empty() {
            prompt += "\n\n";
        }
        prompt += "The repository's CLAUDE.md:\n\n";
        prompt += &text;
    }
    prompt
}

/// The text of the repository's `CLAUDE.md`; a link that leads out of the workspace is not
/// followed. Nothing else runs in the workspace yet, so the look and the read see the same.
fn claude_md(workspace: &Path) -> Option<String> {
    let workspace = workspace.canonicalize().ok()?;
    let path = workspace.join("CLAUDE.md").canonicalize().ok()?;
    if !path.starts_with(&workspace) || path.starts_with(workspace.join(".git")) {
        return None;
    }
    if !fs::metadata(&path).ok()?.is_file() {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    text.truncate(text.floor_char_boundary(CLAUDE_MD_BYTES_MAX));
    Some(text).filter(|text| !text.trim().is_empty())
}

/// What both pipes have shown so far.
pub struct Seen {
    patience: RefCell<Patience>,
    last_byte: Cell<Instant>,
    /// Pipes that are not read because their output has to wait for room.
    blocked: Cell<u32>,
    /// Something happened that may shorten the wait.
    changed: Notify,
    result: RefCell<Option<ClaudeResult>>,
    results: watch::Sender<u64>,
    stderr_tail: RefCell<Tail>,
}

impl Seen {
    fn new(timers: Timers) -> Self {
        Self {
            patience: RefCell::new(Patience::new(timers, Instant::now())),
            last_byte: Cell::new(Instant::now()),
            blocked: Cell::new(0),
            changed: Notify::new(),
            result: RefCell::new(None),
            results: watch::Sender::new(0),
            stderr_tail: RefCell::new(Tail::new(STDERR_TAIL_BYTES)),
        }
    }

    fn hear(&self) {
        let now = Instant::now();
        self.last_byte.set(now);
        if self.patience.borrow_mut().hear(now) {
            self.changed.notify_one();
        }
    }

    /// The cost that a result tells is that of all of them, the tokens are its own.
    fn result(&self, mut result: ClaudeResult) {
        if let Some(before) = self.result.take() {
            let usage = &mut result.usage;
            usage.input_tokens = usage.input_tokens.saturating_add(before.usage.input_tokens);
            usage.output_tokens = usage
                .output_tokens
                .saturating_add(before.usage.output_tokens);
        }
        self.result.replace(Some(result));
        self.patience.borrow_mut().result(Instant::now());
        self.changed.notify_one();
        self.results.send_modify(|count| *count += 1);
    }

    /// How many results came.
    pub fn results(&self) -> u64 {
        *self.results.borrow()
    }

    /// Waits until more than `count` results came.
    pub async fn results_after(&self, count: u64) {
        // The sender is this.
        let _ = self.results.subscribe().wait_for(|now| *now > count).await;
    }

    /// Claude is being told something.
    pub fn told(&self) {
        self.patience.borrow_mut().told(Instant::now());
        self.changed.notify_one();
    }

    /// Runs `wait` without its time counting as Claude's silence.
    async fn pausing(&self, wait: impl Future<Output = ()>) {
        self.patience.borrow_mut().pause(Instant::now());
        wait.await;
        self.patience.borrow_mut().resume(Instant::now());
        self.changed.notify_one();
    }

    /// Runs `wait`, in which Claude waits for other sessions.
    async fn excusing(&self, wait: impl Future<Output = ()>) {
        self.patience.borrow_mut().excuse(Instant::now());
        wait.await;
        self.patience.borrow_mut().demand(Instant::now());
        self.changed.notify_one();
    }

    /// Runs `wait`, in which output waits for room.
    async fn blocking(&self, wait: impl Future<Output = ()>) {
        self.blocked.update(|pipes| pipes + 1);
        self.pausing(wait).await;
        self.blocked.update(|pipes| pipes - 1);
    }

    /// Waits until patience is over.
    async fn impatience(&self, orders: &Orders) -> Cut {
        let away = async {
            loop {
                orders.server_is_away().await;
                self.pausing(orders.server_is_there()).await;
            }
        };
        let awaiting = async {
            loop {
                orders.claude_waits().await;
                self.excusing(orders.claude_works()).await;
            }
        };
        let over = async {
            loop {
                let verdict = self.patience.borrow().verdict(Instant::now());
                let left = match verdict {
                    Verdict::Cut(cut) => return cut,
                    Verdict::Wait(left) => left,
                };
                tokio::select! {
                    () = time::sleep(left) => {}
                    () = self.changed.notified() => {}
                }
            }
        };
        tokio::select! {
            cut = over => cut,
            () = away => pending().await,
            () = awaiting => pending().await,
        }
    }

    /// Waits until no pipe had anything to read for `limit` from now on.
    async fn silence(&self, limit: Duration) {
        let start = Instant::now();
        loop {
            time::sleep(limit).await;
            let since = self.last_byte.get().max(start);
            if self.blocked.get() == 0 && since.elapsed() >= limit {
                return;
            }
        }
    }
}

/// Carries one of Claude's pipes to the spool.
struct Pump {
    stream: Stream,
    outbox: Rc<Outbox>,
    seen: Rc<Seen>,
    stopped: watch::Receiver<bool>,
}

impl Pump {
    async fn run(mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else {
            return;
        };
        let mut splitter = Splitter::new();
        let mut search = (self.stream == Stream::Stdout).then(ResultSearch::new);
        loop {
            if self.outbox.is_full() {
                self.seen.blocking(self.outbox.has_room()).await;
            }
            let count = tokio::select! {
                biased;
                _ = self.stopped.wait_for(|stopped| *stopped) => 0,
                // A pipe that cannot be read is at its end.
                count = pipe.read(splitter.room()) => count.unwrap_or(0),
            };
            let at_end = count == 0;
            if !at_end {
                self.seen.hear();
            }
            splitter.filled(count);
            while let Some(piece) = splitter.next(at_end) {
                self.keep(&piece).await;
                let found = search.as_mut().and_then(|search| search.see(&piece));
                if let Some(found) = found {
                    self.seen.result(found.result);
                    if !found.is_last {
                        self.seen.hear();
                    }
                }
            }
            if at_end {
                return;
            }
        }
    }

    async fn keep(&self, piece: &Piece<'_>) {
        let write = || self.outbox.try_output(self.stream, piece.more, piece.bytes);
        if write().is_err() {
            self.seen.blocking(retry(write)).await;
        }
        if self.stream == Stream::Stderr {
            self.seen.stderr_tail.borrow_mut().push(piece.bytes);
        }
    }
}

/// Whether Claude has been started in this attempt already.
pub fn was_started(places: &Places) -> bool {
    // An unreadable marker is no proof that there is none, and a second start costs money.
    !matches!(places.started_marker().try_exists(), Ok(false))
}
