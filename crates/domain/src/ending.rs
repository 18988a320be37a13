//! How an attempt ended, and what that means for its session.
//!
//! The outcome is what Claude's `result` message says, not the exit code: Claude Code is known to
//! hang after its result, to stall in the middle of a turn, and to exit 0 without a result.

use std::fmt;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// What Claude's last message, the one of type `result`, said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaudeResult {
    /// Claude's own word for it: `success`, `error_max_turns`, `error_during_execution`, …
    pub subtype: String,
    /// Whether Claude itself counts it as an error.
    pub is_error: bool,
    /// Its closing text; empty where it gave none.
    pub text: String,
    /// Tokens and cost, as the CLI reports them.
    pub usage: Usage,
}

/// Tokens and cost of one session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Tokens read by the model, cached ones included.
    pub input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cost_usd: self.cost_usd + other.cost_usd,
        }
    }

    /// Whether nothing was used.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.input_tokens == 0 && self.output_tokens == 0
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Why the agent stopped Claude before Claude ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Its server asked for it.
    Cancelled,
    /// The container was told to stop by somebody else.
    Terminated,
    /// The session's time was over.
    TimedOut,
    /// It printed nothing at all for too long after its start.
    NoFirstByte,
    /// It went silent in the middle of its work.
    Stalled,
    /// It had given its result and did not exit.
    HungAfterResult,
}

/// A step before Claude's start that failed; Claude never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure {
    /// What was being done: `clone`, `spool`, `claude`.
    pub step: String,
    /// What went wrong, for people.
    pub message: String,
}

/// All that is known of how an attempt's Claude ended, as its agent reports it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ending {
    /// Set when Claude was never started.
    pub setup_failure: Option<SetupFailure>,
    /// Claude's own result, where it gave one.
    pub result: Option<ClaudeResult>,
    /// How Claude's process ended.
    pub exit: Option<Exit>,
    /// Why it was stopped, where it was.
    pub cut: Option<Cut>,
    /// How often the kernel killed a process of the sandbox for want of memory.
    pub oom_kills: u64,
    /// The last of what Claude wrote to stderr, at most 2 KiB.
    pub stderr_tail: String,
    /// The commit the agent pushed, leftovers included; none where nothing changed, and for
    /// sessions that don't write.
    pub pushed: Option<String>,
    /// Why the work could not be saved, where it couldn't.
    pub salvage_failure: Option<String>,
    /// Paths that git still took for conflicting when Claude ended, at most [`UNMERGED_MAX`]. What
    /// was pushed has them as they stood.
    pub unmerged: Vec<String>,
}

/// The step of a [`SetupFailure`] in which an earlier attempt's conversation is taken over.
pub const CONVERSATION_STEP: &str = "conversation";

/// The most bytes of Claude's closing text.
pub const RESULT_TEXT_BYTES_MAX: usize = 256 * 1024;
/// The most bytes of any other text in an ending.
pub const ENDING_TEXT_BYTES_MAX: usize = 4 * 1024;
/// The most paths that are told as unmerged.
pub const UNMERGED_MAX: usize = 100;
/// The most of anything that is counted: what JSON readers keep exactly.
const COUNT_MAX: u64 = 1 << 53;

impl Ending {
    /// The same within bounds. Whoever reports an ending runs beside code that nobody vetted: what
    /// it says is shown in every answer about the session, and must not be as long as it likes.
    #[must_use]
    pub fn capped(mut self) -> Self {
        if let Some(failure) = &mut self.setup_failure {
            cap(&mut failure.step, ENDING_TEXT_BYTES_MAX);
            cap(&mut failure.message, ENDING_TEXT_BYTES_MAX);
        }
        if let Some(result) = &mut self.result {
            let text_max = match result.is_error {
                true => ENDING_TEXT_BYTES_MAX,
                false => RESULT_TEXT_BYTES_MAX,
            };
            cap(&mut result.text, text_max);
            cap(&mut result.subtype, ENDING_TEXT_BYTES_MAX);
            let usage = &mut result.usage;
            usage.input_tokens = usage.input_tokens.min(COUNT_MAX);
            usage.output_tokens = usage.output_tokens.min(COUNT_MAX);
            let is_sane = (0.0..1e9).contains(&usage.cost_usd);
            usage.cost_usd = if is_sane { usage.cost_usd } else { 0.0 };
        }
        cap(&mut self.stderr_tail, ENDING_TEXT_BYTES_MAX);
        for text in [&mut self.pushed, &mut self.salvage_failure]
            .into_iter()
            .flatten()
        {
            cap(text, ENDING_TEXT_BYTES_MAX);
        }
        self.unmerged.truncate(UNMERGED_MAX);
        for path in &mut self.unmerged {
            cap(path, ENDING_TEXT_BYTES_MAX);
        }
        self
    }
}

fn cap(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let cut = (0..=bytes_max)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
}

/// How long an agent that may have started Claude may stay away while its container runs. It dials
/// again within seconds; one that does not will never tell how Claude ended.
pub const ABSENCE_MAX: SignedDuration = SignedDuration::from_mins(10);

/// How a sandbox can be lost without its agent having reported an ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The kernel killed the agent itself for want of memory.
    OutOfMemory,
    /// The container is gone; somebody removed it.
    Removed,
    /// It exited with this code and no report.
    Exited(i64),
    /// The container runtime was restarted and took it down.
    RuntimeRestarted,
    /// The machine was restarted.
    HostRebooted,
    /// It was told to stop, did not, and was killed.
    Killed,
    /// The runtime could not start it; Claude never ran.
    NotLaunched,
    /// It runs, but nothing was heard from its agent any more.
    Silent,
}

/// A stable code for why a session failed; the wire's `errorCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The repository could not be fetched or cloned.
    CloneFailed,
    /// The branch to start from is not in the repository.
    BranchNotFound,
    /// The sandbox could not be made or started.
    LaunchFailed,
    /// Claude's result says that it failed.
    ClaudeError,
    /// Claude exited with an error and without a result.
    ClaudeExited,
    /// Claude exited as if all were well, but without a result.
    NoResult,
    /// Claude went silent.
    Stalled,
    /// The session's time was over.
    Timeout,
    /// The kernel ended it for want of memory.
    Oom,
    /// The container was removed from outside.
    ContainerLost,
    /// The container exited without a report, or its agent was not heard from any more.
    SandboxDied,
    /// The container runtime was restarted.
    RuntimeRestarted,
    /// The machine was restarted.
    HostRebooted,
    /// Claude was stopped from outside, or had been started before: it may not be started twice in
    /// one attempt.
    Interrupted,
    /// Results to be joined contradict each other: the session was to merge them and left conflicts,
    /// or its own does not go together with the branch it was to land on.
    MergeConflict,
    /// The work is safe in the mirror, but the remote would not take it.
    LandingFailed,
    /// Claude's work could not be taken out of its sandbox; the volumes are kept.
    SalvageFailed,
    /// The conversation that was to be gone on with is gone.
    ConversationLost,
    /// The command of a landing's gate exited with an error.
    GateFailed,
}

impl FailureCode {
    /// The code on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloneFailed => "clone_failed",
            Self::BranchNotFound => "branch_not_found",
            Self::LaunchFailed => "launch_failed",
            Self::ClaudeError => "claude_error",
            Self::ClaudeExited => "claude_exited",
            Self::NoResult => "no_result",
            Self::Stalled => "stalled",
            Self::Timeout => "timeout",
            Self::Oom => "oom",
            Self::ContainerLost => "container_lost",
            Self::SandboxDied => "sandbox_died",
            Self::RuntimeRestarted => "runtime_restarted",
            Self::HostRebooted => "host_rebooted",
            Self::Interrupted => "interrupted",
            Self::MergeConflict => "merge_conflict",
            Self::LandingFailed => "landing_failed",
            Self::SalvageFailed => "salvage_failed",
            Self::ConversationLost => "conversation_lost",
            Self::GateFailed => "gate_failed",
        }
    }
}

/// What became of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Claude reported success and its work is safe.
    Completed,
    /// It did not come to a good end.
    Failed {
        /// Stable, for programs.
        code: FailureCode,
        /// What happened and what to do, for people.
        message: String,
    },
    /// Somebody cancelled it.
    Cancelled,
}

impl Outcome {
    /// A failure with its text.
    #[must_use]
    pub fn failed(code: FailureCode, message: impl Into<String>) -> Self {
        Self::Failed {
            code,
            message: message.into(),
        }
    }

    /// What an ending means, before its work has landed.
    #[must_use]
    pub fn of(ending: &Ending) -> Self {
        use FailureCode as C;
        if ending.cut == Some(Cut::Cancelled) {
            return Self::Cancelled;
        }
        if let Some(failure) = &ending.setup_failure {
            let code = match failure.step.as_str() {
                "clone" => C::CloneFailed,
                "interrupted" => C::Interrupted,
                CONVERSATION_STEP => C::ConversationLost,
                _ => C::LaunchFailed,
            };
            return Self::failed(code, failure.message.clone());
        }
        if let Some(result) = &ending.result {
            return Self::of_result(result, ending);
        }
        let killed_for_memory = ending.exit == Some(Exit::Signal(9)) && ending.oom_kills > 0;
        match (ending.cut, ending.exit) {
            (Some(Cut::TimedOut), _) => Self::failed(
                C::Timeout,
                "the session's time was over; raise options.timeout or ask for less",
            ),
            (Some(Cut::Terminated), _) => Self::failed(
                C::Interrupted,
                "the container was told to stop from outside; the work up to there is kept",
            ),
            (Some(Cut::NoFirstByte | Cut::Stalled), _) => Self::failed(
                C::Stalled,
                "Claude went silent and was stopped; look at its log, then create the session again",
            ),
            _ if killed_for_memory => Self::failed(
                C::Oom,
                "Claude was killed because the sandbox ran out of memory; raise the memory limit \
                 of this session type",
            ),
            (_, Some(Exit::Code(0)) | None) => Self::failed(
                C::NoResult,
                "Claude exited without a result message; its work up to there is kept",
            ),
            (_, Some(exit)) => {
                let mut message = format!("Claude ended with {exit} and without a result message");
                let stderr = ending.stderr_tail.trim();
                if !stderr.is_empty() {
                    message.push_str(": ");
                    message.push_str(stderr);
                }
                Self::failed(C::ClaudeExited, message)
            }
        }
    }

    /// What the ending of a session means that ran a command instead of Claude. `last_lines` is
    /// the end of what the command printed.
    #[must_use]
    pub fn of_command(ending: &Ending, last_lines: &str) -> Self {
        let failed = |what: String| {
            let mut message = what;
            if !last_lines.trim().is_empty() {
                message.push_str("; its last lines:\n");
                message.push_str(last_lines.trim_end());
            }
            Self::failed(FailureCode::GateFailed, message)
        };
        match (&ending.setup_failure, ending.cut, ending.exit) {
            (None, None, Some(Exit::Code(0))) => Self::Completed,
            (None, None, Some(Exit::Signal(9))) if ending.oom_kills > 0 => Self::failed(
                FailureCode::Oom,
                "the command was killed because the sandbox ran out of memory; raise the memory \
                 limit of this session type",
            ),
            (None, None, Some(exit)) => failed(format!("the command ended with {exit}")),
            (None, Some(Cut::TimedOut | Cut::NoFirstByte | Cut::Stalled), _) => Self::failed(
                FailureCode::Timeout,
                "the command's time was over; raise the time limit of this session type",
            ),
            _ => Self::of(ending),
        }
    }

    fn of_result(result: &ClaudeResult, ending: &Ending) -> Self {
        if result.is_error {
            let text = result.text.trim();
            let text = if text.is_empty() {
                "it gave no reason"
            } else {
                text
            };
            // An API that refuses the key ends as `success` that is an error.
            let kind = match result.subtype.as_str() {
                "success" | "unknown" => "an error",
                subtype => subtype,
            };
            return Self::failed(
                FailureCode::ClaudeError,
                format!("Claude reported {kind}: {text}"),
            );
        }
        if let Some(why) = &ending.salvage_failure {
            return Self::failed(
                FailureCode::SalvageFailed,
                format!(
                    "Claude completed, but its work could not be pushed out of the sandbox: {why}; the workspace volume is kept"
                ),
            );
        }
        Self::Completed
    }

    /// What the loss of a sandbox means.
    #[must_use]
    pub fn of_loss(loss: Loss) -> Self {
        use FailureCode as C;
        match loss {
            Loss::OutOfMemory => Self::failed(
                C::Oom,
                "the sandbox ran out of memory; raise the memory limit of this session type",
            ),
            Loss::Removed => Self::failed(
                C::ContainerLost,
                "the container was removed from outside while the session ran; its volumes, if \
                 still there, hold the work",
            ),
            Loss::Exited(code) => Self::failed(
                C::SandboxDied,
                format!(
                    "the container exited with code {code} and without a report; see docker logs and the session's log"
                ),
            ),
            Loss::Silent => Self::failed(
                C::SandboxDied,
                format!(
                    "the agent in the container was not heard from for {} minutes; the container \
                     was removed, its volumes hold the work",
                    ABSENCE_MAX.as_mins()
                ),
            ),
            Loss::RuntimeRestarted => Self::failed(
                C::RuntimeRestarted,
                "the container runtime was restarted and took the session down; its volumes hold \
                 the work",
            ),
            Loss::HostRebooted => Self::failed(
                C::HostRebooted,
                "the machine was restarted while the session ran; its volumes hold the work",
            ),
            Loss::Killed => Self::Cancelled,
            Loss::NotLaunched => Self::failed(
                C::LaunchFailed,
                "the sandbox could not be started; run `baton doctor`",
            ),
        }
    }

    /// Whether dependents may build on it.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        matches!(self, Self::Completed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(is_error: bool) -> ClaudeResult {
        ClaudeResult {
            subtype: "success".into(),
            is_error,
            text: "done".into(),
            usage: Usage::default(),
        }
    }

    #[track_caller]
    fn check(ending: Ending, expected: &str) {
        let outcome = match Outcome::of(&ending) {
            Outcome::Completed => "completed",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed { code, .. } => code.name(),
        };
        assert_eq!(outcome, expected, "{ending:?}");
    }

    #[test]
    fn the_result_decides_not_the_exit() {
        let hung = Ending {
            result: Some(result(false)),
            cut: Some(Cut::HungAfterResult),
            exit: Some(Exit::Signal(9)),
            ..Ending::default()
        };
        check(hung, "completed");
        let nonzero = Ending {
            result: Some(result(false)),
            exit: Some(Exit::Code(1)),
            ..Ending::default()
        };
        check(nonzero, "completed");
        let failed = Ending {
            result: Some(result(true)),
            exit: Some(Exit::Code(0)),
            ..Ending::default()
        };
        check(failed, "claude_error");
        check(
            Ending {
                exit: Some(Exit::Code(0)),
                ..Ending::default()
            },
            "no_result",
        );
        check(
            Ending {
                exit: Some(Exit::Code(2)),
                ..Ending::default()
            },
            "claude_exited",
        );
    }

    #[test]
    fn out_of_memory_is_told_from_other_kills() {
        let killed = Ending {
            exit: Some(Exit::Signal(9)),
            ..Ending::default()
        };
        check(killed.clone(), "claude_exited");
        check(
            Ending {
                oom_kills: 1,
                ..killed
            },
            "oom",
        );
        // A child of Claude's died for memory and Claude went on: a normal outcome.
        let child = Ending {
            result: Some(result(false)),
            exit: Some(Exit::Code(0)),
            oom_kills: 3,
            ..Ending::default()
        };
        check(child, "completed");
    }

    #[test]
    fn a_report_is_as_long_as_we_allow_and_no_longer() {
        let long = "ö".repeat(RESULT_TEXT_BYTES_MAX);
        let mut said = result(true);
        said.text.clone_from(&long);
        said.usage = Usage {
            input_tokens: u64::MAX,
            output_tokens: 1,
            cost_usd: -1e300,
        };
        let ending = Ending {
            result: Some(said),
            stderr_tail: long.clone(),
            salvage_failure: Some(long.clone()),
            unmerged: vec![long; UNMERGED_MAX + 1],
            ..Ending::default()
        };
        let Outcome::Failed { message, .. } = Outcome::of(&ending.clone().capped()) else {
            panic!("{ending:?}");
        };
        assert!(
            message.len() < 2 * ENDING_TEXT_BYTES_MAX,
            "{}",
            message.len()
        );
        let capped = ending.capped();
        assert_eq!(capped.unmerged.len(), UNMERGED_MAX);
        assert!(capped.unmerged[0].len() < 2 * ENDING_TEXT_BYTES_MAX);
        let usage = capped.result.map(|result| result.usage);
        let expected = Usage {
            input_tokens: COUNT_MAX,
            output_tokens: 1,
            cost_usd: 0.0,
        };
        assert_eq!(usage, Some(expected));
    }

    #[test]
    fn a_command_is_judged_by_its_exit_alone() {
        let of = |ending: Ending| match Outcome::of_command(&ending, "2 tests failed\n") {
            Outcome::Failed { code, message } => format!("{}: {message}", code.name()),
            other => format!("{other:?}"),
        };
        let exited = |exit| Ending {
            exit: Some(exit),
            // Whatever it prints, it is no Claude.
            result: Some(result(true)),
            ..Ending::default()
        };
        assert_eq!(of(exited(Exit::Code(0))), "Completed");
        assert_eq!(
            of(exited(Exit::Code(1))),
            "gate_failed: the command ended with code 1; its last lines:\n2 tests failed"
        );
        assert!(of(exited(Exit::Signal(11))).starts_with("gate_failed: "));
        let cut = |cut| Ending {
            cut: Some(cut),
            ..exited(Exit::Code(0))
        };
        assert!(of(cut(Cut::TimedOut)).starts_with("timeout: "));
        assert_eq!(of(cut(Cut::Cancelled)), "Cancelled");
        let unstarted = Ending {
            setup_failure: Some(SetupFailure {
                step: "clone".into(),
                message: "no".into(),
            }),
            ..Ending::default()
        };
        assert!(of(unstarted).starts_with("clone_failed: "));
    }

    #[test]
    fn cancelled_wins_over_everything() {
        let ending = Ending {
            cut: Some(Cut::Cancelled),
            result: Some(result(false)),
            ..Ending::default()
        };
        check(ending, "cancelled");
    }
}
