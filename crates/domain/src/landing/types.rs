//! What a landing is made of.

use serde::{Deserialize, Serialize};

use crate::ending::{FailureCode, Outcome};
use crate::ids::SessionId;
use crate::session::SessionState;

/// What is being done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Sessions are at work.
    #[default]
    Waiting,
    /// The results are to be merged: onto this tip, or onto the newest.
    Merging {
        /// Where an earlier merge of the same round began.
        onto: Option<Tip>,
    },
    /// They are merged; the gate decides, then they are pushed.
    Merged {
        /// What they were merged onto.
        tip: Tip,
        /// One merge for each leaf, each on top of the one before.
        steps: Vec<Step>,
    },
    /// What is to be pushed was; sessions are told, and what was left out goes to branches of its
    /// own.
    Settling {
        /// What came of the round.
        end: End,
    },
    /// Nothing to do until a session is reopened or added.
    Over {
        /// What came of the newest round.
        end: End,
    },
}

/// A session's result that no other result holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Whose it is.
    pub session: SessionId,
    /// The commit with its work.
    pub commit: String,
    /// What it was asked for, in one line.
    pub title: String,
}

/// What results are merged onto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// The commit.
    pub commit: String,
    /// Whether the branch does not exist yet; the commit is another branch's then.
    pub is_new: bool,
}

/// A leaf merged on top of those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whose result was merged.
    pub session: SessionId,
    /// The merge; the commit before it where that had the result already.
    pub commit: String,
}

/// One run of the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRun {
    /// The session that runs it.
    pub session: SessionId,
    /// Where.
    pub commit: String,
    /// What it said, once that was taken in.
    pub verdict: Option<Verdict>,
}

/// What came of a run of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passed.
    Green,
    /// It failed, ran out of time or out of memory.
    Red,
    /// It broke off for a reason that is not the code's.
    Broken,
    /// Somebody cancelled it.
    Cancelled,
}

/// A result that is not landed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The result.
    pub leaf: Leaf,
    /// Why.
    pub reason: Reason,
    /// The branch that has it instead, once it was brought there.
    pub branch: Option<String>,
}

/// Why a result is not landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It contradicts the branch or a result that was merged before it.
    MergeConflict {
        /// Conflicting paths.
        files: Vec<String>,
    },
    /// The gate is red with it and green without.
    GateFailed {
        /// The run that was red.
        gate: SessionId,
    },
    /// Nothing was landed in this round.
    NothingLanded,
}

/// What came of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The branch has what was not left out.
    Landed,
    /// No session left a change.
    NothingToLand,
    /// The branch is as it was.
    Failed {
        /// Stable, for programs.
        code: LandingFailure,
        /// What happened and what to do, for people.
        message: String,
        /// The gate's run that says it.
        gate: Option<SessionId>,
    },
}

/// A stable code for why a landing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LandingFailure {
    /// Every result had to be left out.
    AllLeftOut,
    /// The gate is red on the branch without any of the results.
    GateRedBefore,
    /// The gate's runs break off.
    GateBroken,
    /// A run of the gate was cancelled.
    GateCancelled,
    /// The orchestration was cancelled.
    Cancelled,
    /// The branch kept moving.
    Contended,
    /// The repository or its remote would not take it.
    Refused,
}

impl Verdict {
    /// What the session that ran the gate says; none while it is open.
    #[must_use]
    pub fn of(state: &SessionState) -> Option<Self> {
        use FailureCode as C;
        match state {
            SessionState::Finished { outcome, .. } => Some(match outcome {
                Outcome::Completed => Self::Green,
                Outcome::Cancelled => Self::Cancelled,
                Outcome::Failed {
                    code: C::GateFailed | C::Timeout | C::Oom,
                    ..
                } => Self::Red,
                Outcome::Failed { .. } => Self::Broken,
            }),
            SessionState::Blocked { .. } => Some(Self::Broken),
            _ => None,
        }
    }
}

impl LandingFailure {
    /// The code on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AllLeftOut => "all_left_out",
            Self::GateRedBefore => "gate_red_before",
            Self::GateBroken => "gate_broken",
            Self::GateCancelled => "gate_cancelled",
            Self::Cancelled => "cancelled",
            Self::Contended => "contended",
            Self::Refused => "refused",
        }
    }

    /// What it means where the gate or somebody's wish is the cause, and what to do.
    #[must_use]
    pub fn explained(self) -> &'static str {
        match self {
            Self::AllLeftOut => "none of the results could be landed; leftOut says why",
            Self::GateRedBefore => {
                "the gate is red on the branch without any of the results; mend the branch or the \
                 gate, then retry the gate's session"
            }
            Self::GateBroken => {
                "the gate's runs broke off for reasons that are not the code's; see its session, \
                 then retry it"
            }
            Self::GateCancelled => {
                "a run of the gate was cancelled; retry its session to land after all"
            }
            Self::Cancelled => "the orchestration was cancelled",
            Self::Contended => {
                "the branch moved again and again before the merged results were pushed; \
                 orchestration.start tries again"
            }
            Self::Refused => "the remote refused the merged results",
        }
    }
}

impl Reason {
    /// The code on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::MergeConflict { .. } => "merge_conflict",
            Self::GateFailed { .. } => "gate_failed",
            Self::NothingLanded => "nothing_landed",
        }
    }
}
