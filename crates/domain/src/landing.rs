//! The landing of an orchestration as a whole: its results are merged onto the target branch's
//! tip, a gate is run on the merged code, who makes it red is left out, and the rest is pushed.
//!
//! [`Landing`] is kept with its orchestration and says all there is to say of it. [`Landing::next`]
//! tells what follows; whoever does that gives the outcome to one of the other methods, which give
//! the landing as it is to be kept then. A step that was cut short is found again by `next` and
//! may be repeated: merges are the same to the byte, a gate's run is named before it is started,
//! and pushing what was pushed changes nothing.

mod bisect;
mod leaves;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use bisect::{Finding, find};
pub use leaves::{Candidate, held_by, leaves};
pub use types::{End, GateRun, LandingFailure, Leaf, LeftOut, Reason, Stage, Step, Tip, Verdict};

/// How often a gate is run at one commit whose runs break off without an answer.
pub const GATE_RUNS_MAX: usize = 3;
/// How often the branch may move before the results were pushed, in one round.
pub const MOVES_MAX: u32 = 16;

/// Where the landing of an orchestration stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Landing {
    /// How often its results were taken up to be landed.
    pub round: u32,
    /// How many changes among its sessions had been seen when its results were last looked at.
    pub seen: u64,
    /// What is being done.
    pub stage: Stage,
    /// The results the newest round began with, oldest first.
    pub considered: Vec<Leaf>,
    /// Those of them that are still to land, in the order in which they are merged.
    pub leaves: Vec<Leaf>,
    /// Results the newest round goes without.
    pub left_out: Vec<LeftOut>,
    /// Sessions whose work is in the branch, those that leaves build on included.
    pub landed: Vec<SessionId>,
    /// Their commits: what a later round goes without is in the branch all the same.
    pub landed_commits: Vec<String>,
    /// Runs of the gate that may still tell something, oldest first.
    pub gates: Vec<GateRun>,
    /// The branch's commit after the newest landing.
    pub commit: Option<String>,
    /// How often the branch had moved in this round when the results were to be pushed.
    pub moves: u32,
    /// Nothing is to be landed of the sessions there are: the orchestration was cancelled.
    pub cancelled: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Rest,
    /// Look which results there are: [`Landing::considered`].
    Consider,
    /// Merge the leaves: [`Landing::merged`].
    Merge {
        /// Onto this, or the branch's newest tip.
        onto: Option<Tip>,
    },
    /// Name a run of the gate at this commit: [`Landing::gating`].
    Gate {
        /// Where.
        commit: String,
    },
    /// See to it that this run is started, and what it said: [`Landing::said`].
    Look(GateRun),
    /// Go on without this one: [`Landing::without`].
    LeaveOut(SessionId, Reason),
    /// Land nothing: [`Landing::failed`].
    Fail(LandingFailure, Option<SessionId>),
    /// Push this commit to the branch: [`Landing::pushed`] or [`Landing::moved`].
    Push {
        /// What was merged last.
        commit: String,
    },
    /// Land nothing, unless a server died after it had pushed this commit: [`Landing::pushed`] or
    /// [`Landing::failed`].
    Withdraw {
        /// What was merged last.
        commit: String,
    },
    /// Tell the sessions, bring what was left out to branches of its own: [`Landing::settled`].
    Settle,
}

impl Landing {
    /// What follows. `gated` says whether there is a gate; `changes` counts how often the
    /// orchestration's sessions were reopened or added to. Not to be asked while one is open.
    #[must_use]
    pub fn next(&self, gated: bool, changes: u64) -> Next {
        let due = changes > self.seen;
        match &self.stage {
            Stage::Settling { .. } => Next::Settle,
            Stage::Over { .. } if !due => Next::Rest,
            Stage::Waiting | Stage::Over { .. } => Next::Consider,
            Stage::Merging { .. } | Stage::Merged { .. } if due => Next::Consider,
            Stage::Merging { .. } if self.cancelled => Next::Fail(LandingFailure::Cancelled, None),
            Stage::Merging { onto } => Next::Merge { onto: onto.clone() },
            Stage::Merged { tip, steps } if self.cancelled => {
                match self.after_merging(gated, tip, steps) {
                    Next::Push { commit } => Next::Withdraw { commit },
                    _ => Next::Fail(LandingFailure::Cancelled, None),
                }
            }
            Stage::Merged { tip, steps } => self.after_merging(gated, tip, steps),
        }
    }

    fn after_merging(&self, gated: bool, tip: &Tip, steps: &[Step]) -> Next {
        let top = steps.last().map_or(&tip.commit, |step| &step.commit);
        let push = || Next::Push {
            commit: top.clone(),
        };
        let is_there_already = *top == tip.commit && !tip.is_new;
        if !gated || is_there_already {
            return push();
        }
        if let Some(run) = self.gates.iter().find(|run| run.verdict.is_none()) {
            return Next::Look(run.clone());
        }
        let commits: Vec<&str> = std::iter::once(tip.commit.as_str())
            .chain(steps.iter().map(|step| step.commit.as_str()))
            .collect();
        let is_green = |commit: &str| {
            let answer = self.answer_at(commit)?;
            Some(answer.verdict == Some(Verdict::Green))
        };
        let gate_at = |at: usize| self.answer_at(commits[at]).map(|run| run.session);
        match find(&commits, is_green) {
            Finding::Green => push(),
            Finding::Ask(at) => self.ask(commits[at]),
            Finding::RedBefore => Next::Fail(LandingFailure::GateRedBefore, gate_at(0)),
            Finding::Culprit(at) => match gate_at(at) {
                Some(gate) => Next::LeaveOut(steps[at - 1].session, Reason::GateFailed { gate }),
                None => self.ask(commits[at]),
            },
        }
    }

    /// Another run at `commit`, unless those there were say that it makes no sense.
    fn ask(&self, commit: &str) -> Next {
        let mut here = self.gates.iter().filter(|run| run.commit == commit);
        if let Some(run) = here
            .clone()
            .find(|run| run.verdict == Some(Verdict::Cancelled))
        {
            return Next::Fail(LandingFailure::GateCancelled, Some(run.session));
        }
        if here.clone().count() >= GATE_RUNS_MAX {
            let last = here.next_back().map(|run| run.session);
            return Next::Fail(LandingFailure::GateBroken, last);
        }
        Next::Gate {
            commit: commit.to_owned(),
        }
    }

    fn answer_at(&self, commit: &str) -> Option<&GateRun> {
        let decided = |run: &&GateRun| matches!(run.verdict, Some(Verdict::Green | Verdict::Red));
        self.gates
            .iter()
            .filter(|run| run.commit == commit)
            .rfind(decided)
    }

    /// Whether a landing is under way: the branch's turn is its own until it is over.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Waiting | Stage::Over { .. })
    }

    /// Whether nothing is to be done as long as no session is reopened or added.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over { .. })
    }

    /// The results were looked at. A new round begins where they differ from those that were
    /// considered last, or where a run of the gate that was against them has passed since.
    ///
    /// `sessions` are the orchestration's own in order of creation, `gates` what its gate's runs
    /// say today, `changes` what was counted before they were read.
    #[must_use]
    pub fn considered(
        &self,
        sessions: &[Candidate],
        gates: &HashMap<SessionId, Verdict>,
        changes: u64,
    ) -> Self {
        let mut next = Self {
            seen: changes,
            ..self.clone()
        };
        let found = leaves(sessions, &HashSet::new());
        let passed_since = self.gates.iter().any(|run| {
            !matches!(run.verdict, None | Some(Verdict::Green))
                && gates.get(&run.session) == Some(&Verdict::Green)
        });
        let is_first = self.stage == Stage::Waiting;
        let is_news = found != self.considered || passed_since || is_first;
        let is_withdrawn = self.cancelled && found.iter().all(|leaf| self.has_landed(leaf));
        if !is_news || (self.is_over() && is_withdrawn) {
            next.cancelled &= !self.is_over();
            return next;
        }
        next.round += 1;
        next.moves = 0;
        next.left_out = Vec::new();
        next.gates.retain_mut(|run| {
            run.verdict = gates.get(&run.session).copied();
            matches!(run.verdict, None | Some(Verdict::Green))
        });
        next.considered.clone_from(&found);
        next.leaves = found;
        next.stage = Stage::Merging { onto: None };
        if next.leaves.is_empty() {
            next.cancelled = false;
            next.stage = Stage::Over {
                end: End::NothingToLand,
            };
        }
        next
    }

    fn has_landed(&self, leaf: &Leaf) -> bool {
        self.landed_commits.contains(&leaf.commit)
    }

    /// The leaves were merged onto `tip`, but for those that conflict.
    #[must_use]
    pub fn merged(
        &self,
        tip: Tip,
        steps: Vec<Step>,
        conflicts: Vec<(SessionId, Vec<String>)>,
        sessions: &[Candidate],
    ) -> Self {
        if conflicts.is_empty() {
            return Self {
                stage: Stage::Merged { tip, steps },
                ..self.clone()
            };
        }
        let out = conflicts
            .into_iter()
            .map(|(session, files)| (session, Reason::MergeConflict { files }));
        self.leaving_out(out.collect(), sessions, Some(tip))
    }

    /// A run of the gate was named; it may be started now.
    #[must_use]
    pub fn gating(&self, session: SessionId, commit: String) -> Self {
        let mut next = self.clone();
        next.gates.push(GateRun {
            session,
            commit,
            verdict: None,
        });
        next
    }

    /// A run of the gate has ended.
    #[must_use]
    pub fn said(&self, session: SessionId, verdict: Verdict) -> Self {
        let mut next = self.clone();
        for run in next.gates.iter_mut().filter(|run| run.session == session) {
            run.verdict = Some(verdict);
        }
        next
    }

    /// The round goes on without the result of `session`; what that one was built on is taken up
    /// by itself.
    #[must_use]
    pub fn without(&self, session: SessionId, reason: Reason, sessions: &[Candidate]) -> Self {
        let tip = match &self.stage {
            Stage::Merged { tip, .. } => Some(tip.clone()),
            _ => None,
        };
        self.leaving_out(vec![(session, reason)], sessions, tip)
    }

    fn leaving_out(
        &self,
        out: Vec<(SessionId, Reason)>,
        sessions: &[Candidate],
        tip: Option<Tip>,
    ) -> Self {
        let mut next = self.clone();
        for (session, reason) in out {
            let Some(at) = next.leaves.iter().position(|leaf| leaf.session == session) else {
                continue;
            };
            next.left_out.push(LeftOut {
                leaf: next.leaves.remove(at),
                reason,
                branch: None,
            });
        }
        let excluded = next.left_out.iter().map(|out| out.leaf.session).collect();
        // Those that stay keep their places, so that what the gate said of them stays true.
        for exposed in leaves(sessions, &excluded) {
            if !next
                .leaves
                .iter()
                .any(|leaf| leaf.session == exposed.session)
            {
                next.leaves.push(exposed);
            }
        }
        next.stage = match next.leaves.is_empty() {
            true => Stage::Settling {
                end: End::Failed {
                    code: LandingFailure::AllLeftOut,
                    message: LandingFailure::AllLeftOut.explained().to_owned(),
                    gate: None,
                },
            },
            false => Stage::Merging { onto: tip },
        };
        next
    }

    /// Nothing is landed in this round.
    #[must_use]
    pub fn failed(&self, code: LandingFailure, gate: Option<SessionId>) -> Self {
        self.refused(code, code.explained().to_owned(), gate)
    }

    /// The same, with words of its own.
    #[must_use]
    pub fn refused(&self, code: LandingFailure, message: String, gate: Option<SessionId>) -> Self {
        let mut next = self.clone();
        let leaves = std::mem::take(&mut next.leaves).into_iter();
        let out = leaves
            .filter(|leaf| !self.has_landed(leaf))
            .map(|leaf| LeftOut {
                leaf,
                reason: Reason::NothingLanded,
                branch: None,
            });
        next.left_out.extend(out);
        next.cancelled &= code != LandingFailure::Cancelled;
        next.stage = Stage::Settling {
            end: End::Failed {
                code,
                message,
                gate,
            },
        };
        next
    }

    /// The branch has `commit`.
    #[must_use]
    pub fn pushed(&self, commit: String, sessions: &[Candidate]) -> Self {
        let landed = held_by(sessions, &self.leaves);
        let of_landed = sessions.iter().filter(|one| landed.contains(&one.session));
        Self {
            commit: Some(commit),
            landed_commits: of_landed.filter_map(|one| one.commit.clone()).collect(),
            landed,
            cancelled: false,
            stage: Stage::Settling { end: End::Landed },
            ..self.clone()
        }
    }

    /// The branch had moved: the results are merged onto what it is now.
    #[must_use]
    pub fn moved(&self) -> Self {
        let next = Self {
            moves: self.moves + 1,
            stage: Stage::Merging { onto: None },
            ..self.clone()
        };
        if next.moves <= MOVES_MAX {
            return next;
        }
        self.failed(LandingFailure::Contended, None)
    }

    /// Sessions were told, and what was left out is on these branches.
    #[must_use]
    pub fn settled(&self, branches: &HashMap<SessionId, String>) -> Self {
        let Stage::Settling { end } = &self.stage else {
            return self.clone();
        };
        let mut next = self.clone();
        next.stage = Stage::Over { end: end.clone() };
        for out in &mut next.left_out {
            out.branch = branches.get(&out.leaf.session).cloned();
        }
        next
    }

    /// Somebody asks for what was not landed to be tried again, in a new round. None where nothing is
    /// left to try, or it is under way.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        let has_failed = match &self.stage {
            Stage::Over {
                end: End::Failed { .. },
            } => true,
            Stage::Over { end: End::Landed } => !self.left_out.is_empty(),
            _ => false,
        };
        has_failed.then(|| Self {
            cancelled: false,
            stage: Stage::Waiting,
            ..self.clone()
        })
    }

    /// The orchestration is cancelled: what its sessions have made is not to be landed. None where
    /// there is no landing to keep from it. `changes` is as for [`Landing::next`]: with some that
    /// were not seen another round is about to begin.
    #[must_use]
    pub fn cancelled(&self, changes: u64) -> Option<Self> {
        let can_be = match self.stage {
            Stage::Waiting | Stage::Merging { .. } | Stage::Merged { .. } => true,
            Stage::Over { .. } => changes > self.seen,
            Stage::Settling { .. } => false,
        };
        (can_be && !self.cancelled).then(|| Self {
            cancelled: true,
            ..self.clone()
        })
    }
}
