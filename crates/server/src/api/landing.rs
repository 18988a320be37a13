//! The landing of an orchestration as the wire shows it.

use baton_domain::landing::{End, LandingFailure, LeftOut, Reason, Stage, Verdict};
use baton_domain::{OrchestrationId, SessionId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::Orchestration;

/// Where the landing of an orchestration stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Landing)]
pub struct LandingView<'a> {
    /// `waiting` for sessions, `merging`, `gating`, then `landed`, `failed` or `nothing_to_land`.
    pub status: &'static str,
    /// The branch the results are for.
    pub branch: String,
    /// Its commit after the newest landing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<&'a str>,
    /// Sessions whose work is in the branch.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub landed: &'a [SessionId],
    /// Sessions whose work is not, and why.
    pub left_out: Vec<LeftOutView<'a>>,
    /// The command that must pass before the branch moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<&'a str>,
    /// The runs of the gate, oldest first: sessions, with logs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gate_runs: Vec<GateRunView<'a>>,
    /// Why nothing was landed, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// Why nothing was landed, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    /// The run of the gate that says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub gate_session_id: Option<SessionId>,
}

/// A result that is not in the branch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = LeftOut)]
pub struct LeftOutView<'a> {
    /// Whose result it is.
    #[schema(value_type = uuid::Uuid)]
    pub session_id: SessionId,
    /// `merge_conflict`, `gate_failed` or `nothing_landed`.
    pub reason: &'static str,
    /// The commit with its work.
    pub commit: &'a str,
    /// The branch that has it instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<&'a str>,
    /// Conflicting paths.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub files: &'a [String],
    /// The run of the gate that was red with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub gate_session_id: Option<SessionId>,
    /// What happened and what to do, for people.
    pub detail: String,
}

/// A run of the gate.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GateRun)]
pub struct GateRunView<'a> {
    /// The session that runs it.
    #[schema(value_type = uuid::Uuid)]
    pub session_id: SessionId,
    /// The commit it runs at.
    pub commit: &'a str,
    /// `green`, `red`, `broken` or `cancelled`; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
}

impl<'a> LandingView<'a> {
    /// The view of it; none of an orchestration whose sessions land by themselves.
    #[must_use]
    pub fn new(orchestration: &'a Orchestration) -> Option<Self> {
        if !orchestration.lands {
            return None;
        }
        let landing = &orchestration.landing;
        let mut view = Self {
            status: status(orchestration),
            branch: orchestration.target().to_string(),
            commit: landing.commit.as_deref(),
            landed: &landing.landed,
            left_out: landing
                .left_out
                .iter()
                .map(|out| LeftOutView::new(out, orchestration.id))
                .collect(),
            gate: orchestration.gate.as_deref(),
            gate_runs: landing
                .gates
                .iter()
                .map(|run| GateRunView {
                    session_id: run.session,
                    commit: &run.commit,
                    verdict: run.verdict.map(verdict_name),
                })
                .collect(),
            error: None,
            error_code: None,
            gate_session_id: None,
        };
        if let Some(End::Failed {
            code,
            message,
            gate,
        }) = end(orchestration)
        {
            view.error = Some(message);
            view.error_code = Some(code.name());
            view.gate_session_id = *gate;
        }
        Some(view)
    }
}

/// What the landing adds to the status of its orchestration; none where it adds nothing.
pub(super) fn status_of_orchestration(orchestration: &Orchestration) -> Option<&'static str> {
    if !orchestration.lands {
        return None;
    }
    match end(orchestration) {
        None => Some("running"),
        Some(End::Failed {
            code: LandingFailure::Cancelled,
            ..
        }) => Some("cancelled"),
        Some(End::Failed { .. }) => Some("failed"),
        Some(End::Landed) if !orchestration.landing.left_out.is_empty() => Some("failed"),
        Some(End::Landed | End::NothingToLand) => None,
    }
}

/// What came of it, if it is over and nothing has changed since.
fn end(orchestration: &Orchestration) -> Option<&End> {
    match &orchestration.landing.stage {
        Stage::Over { end } if orchestration.landing.seen == orchestration.changes => Some(end),
        _ => None,
    }
}

fn status(orchestration: &Orchestration) -> &'static str {
    match (&orchestration.landing.stage, end(orchestration)) {
        (_, Some(End::Landed)) => "landed",
        (_, Some(End::NothingToLand)) => "nothing_to_land",
        (_, Some(End::Failed { .. })) => "failed",
        (Stage::Waiting | Stage::Over { .. }, None) => "waiting",
        (Stage::Merged { .. }, None) if orchestration.gate.is_some() => "gating",
        (_, None) => "merging",
    }
}

impl<'a> LeftOutView<'a> {
    fn new(out: &'a LeftOut, orchestration: OrchestrationId) -> Self {
        let session = out.leaf.session;
        let again = format!(
            "say what is to be done by session.message to {session}: when it has completed again, \
             orchestration {orchestration} lands again"
        );
        let (files, gate, detail) = match &out.reason {
            Reason::MergeConflict { files } => (
                files.as_slice(),
                None,
                format!("It contradicts what was merged before it in the files listed; {again}."),
            ),
            Reason::GateFailed { gate } => (
                &[][..],
                Some(*gate),
                format!(
                    "The gate is red with it and green without; session.output of {gate} has the \
                     log; {again}."
                ),
            ),
            Reason::NothingLanded => (
                &[][..],
                None,
                "Nothing was landed; error says why.".to_owned(),
            ),
        };
        Self {
            session_id: session,
            reason: out.reason.name(),
            commit: &out.leaf.commit,
            branch: out.branch.as_deref(),
            files,
            gate_session_id: gate,
            detail,
        }
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Green => "green",
        Verdict::Red => "red",
        Verdict::Broken => "broken",
        Verdict::Cancelled => "cancelled",
    }
}
