//! Sessions and orchestrations as the wire shows them.

use std::borrow::Cow;
use std::fmt;

use baton_domain::budget::Budget;
use baton_domain::ending::{Outcome, Usage};
use baton_domain::output::{Artifact, SessionResult};
use baton_domain::sandbox::sandbox_id;
use baton_domain::session::{Report, SessionState};
use baton_domain::steering::Pause;
use baton_domain::{Attempt, ClaudeSessionId, Kind, OrchestrationId, Project, SessionId, Status};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::landing::{LandingView, status_of_orchestration};
use crate::orchestrator::{Orchestrated, OrchestrationDetails, SessionDetails};

/// A time as RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Millis(pub Timestamp);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// A session. Fields that do not apply are left out.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Session)]
pub struct SessionView<'a> {
    /// The session's id.
    #[schema(value_type = uuid::Uuid)]
    pub id: SessionId,
    /// analysis, implementation, testing, review or coordination.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Kind,
    /// A few words on what it does; where a plan gave some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<&'a str>,
    /// initializing, pending, queued, running, completed, failed, cancelled or blocked.
    #[schema(value_type = String)]
    pub status: Status,
    /// The name of its container, reserved at creation.
    pub container_id: String,
    /// What it works on.
    #[schema(value_type = ProjectView)]
    pub project: &'a Project,
    /// Sessions that must complete before it starts.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub dependencies: &'a [SessionId],
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Millis,
    /// The orchestration it was made in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub orchestration_id: Option<OrchestrationId>,
    /// The coordination session that made it; none where a client did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub parent_id: Option<SessionId>,
    /// Claude's own name for its conversation, once it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub claude_session_id: Option<ClaudeSessionId>,
    /// When Claude was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Millis>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Millis>,
    /// The shell command it runs instead of Claude: the gate of a landing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<&'a str>,
    /// The dependencies a pending session waits for.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Option<Vec<uuid::Uuid>>)]
    pub waiting_for: &'a [SessionId],
    /// The dependency in the way of a blocked session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub blocked_by: Option<SessionId>,
    /// Which run of it this is, once one was decided on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub attempt: Option<Attempt>,
    /// Why it failed, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// Why it failed, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    /// What keeps it from getting on, for people; when one session is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_detail: Option<Cow<'static, str>>,
    /// Why it stopped in the middle, where it goes on later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseView>,
    /// The commit it left, with its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<&'a SessionResult>,
    /// Tokens and cost of all attempts; with an estimate of the one that runs, when one session is
    /// asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Usage>,
    /// What a person should know though the outcome stands.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Option<Vec<String>>)]
    pub warnings: &'a [String],
    /// What it left; when one session is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<ReportView<'a>>,
}

impl<'a> SessionView<'a> {
    /// The session as lists show it.
    #[must_use]
    pub fn new(details: &'a SessionDetails) -> Self {
        let session = &*details.session;
        let (error, error_code) = match &session.state {
            SessionState::Finished {
                outcome: Outcome::Failed { code, message },
                ..
            } => (Some(message.as_str()), Some(code.name())),
            _ => (None, None),
        };
        let started_at = session.state.started_at();
        let launched = !matches!(
            session.state,
            SessionState::Created | SessionState::Queued | SessionState::Blocked { .. }
        );
        let report = session.report.as_ref();
        Self {
            id: session.id,
            kind: session.kind,
            title: session.title.as_deref(),
            status: details.status,
            container_id: sandbox_id(session.kind, session.id, session.attempt).0,
            project: &session.project,
            dependencies: &session.dependencies,
            created_at: Millis(session.created_at),
            orchestration_id: session.orchestration_id,
            parent_id: session.parent,
            claude_session_id: started_at
                .filter(|_| session.command.is_none())
                .map(|_| session.claude_session_id),
            started_at: started_at.map(Millis),
            completed_at: match &session.state {
                SessionState::Finished { at, .. } => Some(Millis(*at)),
                _ => None,
            },
            command: session.command.as_deref(),
            waiting_for: &details.waiting_for,
            blocked_by: match &session.state {
                SessionState::Blocked { dependency, .. } => Some(*dependency),
                _ => None,
            },
            attempt: (launched || session.attempt > Attempt::FIRST).then_some(session.attempt),
            error,
            error_code,
            status_detail: None,
            pause: match &session.state {
                SessionState::Paused { pause, .. } => Some(PauseView::new(pause)),
                _ => None,
            },
            result: report.and_then(|report| report.result.as_ref()),
            usage: report.and_then(|report| report.usage),
            warnings: report.map_or(&[], |report| &report.warnings),
            output: None,
        }
    }

    /// The session with all there is to say, as one that is asked for by itself.
    #[must_use]
    pub fn full(details: &'a SessionDetails, status_detail: Option<Cow<'static, str>>) -> Self {
        Self {
            status_detail,
            output: details.session.report.as_ref().map(ReportView::new),
            ..Self::new(details)
        }
    }
}

/// What a session that stopped in the middle waits for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Pause)]
pub struct PauseView {
    /// `usage_limit`: it goes on by itself. `budget`: a message or a larger budget lets it go on.
    /// `orchestration_budget`: a larger budget of its orchestration does.
    pub reason: &'static str,
    /// Of `usage_limit`: when the limit is lifted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Millis>,
    /// Of `budget`: US dollars that all its attempts cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent_usd: Option<f64>,
}

impl PauseView {
    fn new(pause: &Pause) -> Self {
        match pause {
            Pause::UsageLimit { until } => Self {
                reason: "usage_limit",
                until: Some(Millis(*until)),
                spent_usd: None,
            },
            Pause::Budget { spent_usd } => Self {
                reason: "budget",
                until: None,
                spent_usd: Some(*spent_usd),
            },
            Pause::OrchestrationBudget => Self {
                reason: "orchestration_budget",
                until: None,
                spent_usd: None,
            },
        }
    }
}

/// What a session works on. This is how [`Project`] looks on the wire.
#[derive(Debug, ToSchema)]
#[schema(as = Project)]
pub struct ProjectView {
    /// `owner/name`.
    pub repository: String,
    /// The branch the result lands on; `baton/<id>` when absent.
    pub branch: Option<String>,
    /// What is to be done.
    pub requirements: String,
    /// What else Claude should know.
    pub context: Option<String>,
}

/// What a session left, without its log.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Report)]
pub struct ReportView<'a> {
    /// Files and commits: `{"type":"file","path":…}`, `{"type":"commit","sha":…}`.
    #[schema(value_type = Vec<Object>)]
    pub artifacts: &'a [Artifact],
    /// Claude's closing words; empty before there are any.
    pub summary: &'a str,
    /// What Claude proposes to do next.
    pub next_steps: &'a [String],
}

impl<'a> ReportView<'a> {
    fn new(report: &'a Report) -> Self {
        Self {
            artifacts: &report.artifacts,
            summary: &report.summary,
            next_steps: &report.next_steps,
        }
    }
}

/// What a session put out.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Output)]
pub struct OutputView<'a> {
    /// Lines for people, oldest first.
    pub logs: &'a [String],
    /// Files and commits.
    #[schema(value_type = Vec<Object>)]
    pub artifacts: &'a [Artifact],
    /// Claude's closing words; empty before there are any.
    pub summary: &'a str,
    /// What Claude proposes to do next.
    pub next_steps: &'a [String],
}

impl<'a> OutputView<'a> {
    /// Log lines with what the session left, where it left something.
    #[must_use]
    pub fn new(logs: &'a [String], report: Option<&'a Report>) -> Self {
        Self {
            logs,
            artifacts: report.map_or(&[], |report| &report.artifacts),
            summary: report.map_or("", |report| &report.summary),
            next_steps: report.map_or(&[], |report| &report.next_steps),
        }
    }
}

/// What an `orchestrate` made.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Orchestrated)]
pub struct OrchestratedView<'a> {
    /// The orchestration's id.
    #[schema(value_type = uuid::Uuid)]
    pub orchestration_id: OrchestrationId,
    /// Always `initiated`.
    pub status: &'static str,
    /// Its sessions.
    pub sessions: Vec<SessionView<'a>>,
    /// What happened, in a sentence or two.
    pub summary: &'a str,
}

impl<'a> OrchestratedView<'a> {
    /// The view of it.
    #[must_use]
    pub fn new(made: &'a Orchestrated) -> Self {
        Self {
            orchestration_id: made.id,
            status: "initiated",
            sessions: made.sessions.iter().map(SessionView::new).collect(),
            summary: &made.summary,
        }
    }
}

/// An orchestration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Orchestration)]
pub struct OrchestrationView<'a> {
    /// The orchestration's id.
    #[schema(value_type = uuid::Uuid)]
    pub id: OrchestrationId,
    /// `initiated` before any session was started, `running` while one is not over or the results
    /// are being landed, then `completed`, `cancelled`, or `failed` where a session failed or is
    /// blocked, or a result was not landed.
    pub status: &'static str,
    /// What its sessions work on.
    #[schema(value_type = String)]
    pub repository: &'a str,
    /// What is to be done.
    pub requirements: &'a str,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Millis,
    /// Where its results are landed as a whole, how that stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landing: Option<LandingView<'a>>,
    /// How it stands, in a sentence or two.
    pub summary: String,
    /// When the first of its sessions began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Millis>,
    /// Tokens and cost of all its sessions so far, with an estimate of those that run.
    #[schema(value_type = Object)]
    pub usage: Usage,
    /// What its sessions may cost together, where that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetView>,
    /// Files that several of its running sessions have changed: they will have to be merged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<OverlapView<'a>>,
    /// Its sessions in order of creation, runs of its gate included.
    pub sessions: Vec<SessionView<'a>>,
}

/// The budget of an orchestration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Budget)]
pub struct BudgetView {
    /// US dollars that its sessions together may cost.
    pub max_cost_usd: f64,
    /// US dollars that are spent, with an estimate of the attempts under way.
    pub spent_usd: f64,
    /// `open`; `low` from 80 % on; `spent`: nothing new starts, and what ran pauses.
    pub status: &'static str,
}

impl BudgetView {
    fn new(budget: &Budget) -> Self {
        Self {
            max_cost_usd: budget.max_usd,
            spent_usd: budget.spending.total_usd(),
            status: match (budget.is_spent(), budget.runs_low()) {
                (true, _) => "spent",
                (false, true) => "low",
                (false, false) => "open",
            },
        }
    }
}

/// A file that several running sessions have changed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Overlap)]
pub struct OverlapView<'a> {
    /// Relative to the repository.
    pub path: &'a str,
    /// In the order in which they first changed it.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub session_ids: &'a [SessionId],
}

impl<'a> OrchestrationView<'a> {
    /// The view of it.
    #[must_use]
    pub fn new(details: &'a OrchestrationDetails) -> Self {
        let orchestration = &details.orchestration;
        let sessions = details.sessions.iter().map(|of| &of.session);
        let started_at = sessions.filter_map(|of| of.state.started_at());
        let overlaps = details.overlaps.iter().map(|overlap| OverlapView {
            path: &overlap.path,
            session_ids: &overlap.sessions,
        });
        Self {
            id: orchestration.id,
            status: orchestration_status(details),
            repository: orchestration.repository.as_str(),
            requirements: &orchestration.requirements,
            created_at: Millis(orchestration.created_at),
            landing: LandingView::new(orchestration),
            summary: standing(details),
            started_at: started_at.min().map(Millis),
            usage: details.usage,
            budget: details.budget.as_ref().map(BudgetView::new),
            overlaps: overlaps.collect(),
            sessions: details.sessions.iter().map(SessionView::new).collect(),
        }
    }
}

/// What was made of the requirements, and how many of its sessions stand where.
fn standing(details: &OrchestrationDetails) -> String {
    let sessions = details.sessions.iter();
    let own = sessions.filter(|of| of.session.command.is_none());
    let counts = Status::ALL.iter().filter_map(|status| {
        let count = own.clone().filter(|of| of.status == *status).count();
        (count > 0).then(|| format!("{count} {}", status.name()))
    });
    let counts: Vec<String> = counts.collect();
    let all = own.count();
    let plural = if all == 1 { "" } else { "s" };
    let how = details.orchestration.summary.trim_end_matches('.');
    let stop = if how.is_empty() { "" } else { ". " };
    let counts = counts.join(", ");
    let cost = details.budget.as_ref().map_or_else(String::new, cost);
    format!("{how}{stop}{all} session{plural}: {counts}.{cost}")
}

/// What a person should know of a budget; empty while there is nothing.
fn cost(budget: &Budget) -> String {
    let (spent_usd, max_usd) = (budget.spending.total_usd(), budget.max_usd);
    if budget.is_spent() {
        return format!(
            " The budget is spent (${spent_usd:.2} of ${max_usd:.2}): a larger one lets it go on, \
             with orchestration.start and options.maxCostUsd."
        );
    }
    match budget.runs_low() {
        true => format!(" About ${spent_usd:.2} of the budget of ${max_usd:.2} are spent."),
        false => String::new(),
    }
}

/// Runs of the gate count by what came of the landing only.
fn orchestration_status(details: &OrchestrationDetails) -> &'static str {
    let sessions = details.sessions.iter();
    let own = sessions.filter(|of| of.session.command.is_none());
    let any = |wanted: &[Status]| own.clone().any(|of| wanted.contains(&of.status));
    let started = |of: &SessionDetails| of.session.state != SessionState::Created;
    let landing = status_of_orchestration(&details.orchestration);
    if !own.clone().any(started) {
        "initiated"
    } else if own.clone().any(|of| !of.session.state.is_over())
        || landing == Some("running") && any(&[Status::Completed])
    {
        "running"
    } else if landing == Some("failed") || any(&[Status::Failed, Status::Blocked]) {
        "failed"
    } else if landing == Some("cancelled") || any(&[Status::Cancelled]) {
        "cancelled"
    } else {
        "completed"
    }
}
