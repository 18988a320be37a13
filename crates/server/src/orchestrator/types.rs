//! What operations are asked with, what they answer, and why they may not be done.

use std::sync::Arc;

use baton_domain::budget::Budget;
use baton_domain::coordination::{CoordinationLimits, CoordinationRefusal};
pub use baton_domain::decompose::DependencyMode;
use baton_domain::decompose::{Planning, ProposedGraph};
use baton_domain::dependencies::DependencyError;
use baton_domain::ending::Usage;
use baton_domain::overlap::Overlap;
use baton_domain::{
    Attempt, ClaudeSessionId, Kind, OrchestrationId, Project, Session, SessionId, Status, WaitId,
};
use serde::Serialize;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::Clock;
use crate::open_waits::OpenWaits;
use crate::store::{Orchestration, Store, StoreError};

/// Makes names for new things. No name is ever given twice.
pub trait Ids: Send + Sync {
    /// For a session; later ones sort after earlier ones.
    fn session(&self) -> SessionId;
    /// For an orchestration; later ones sort after earlier ones.
    fn orchestration(&self) -> OrchestrationId;
    /// For Claude's conversation.
    fn claude_session(&self) -> ClaudeSessionId;
    /// For a client's wait.
    fn wait(&self) -> WaitId {
        WaitId(self.session().0)
    }
}

/// Names from the machine's randomness: UUIDs of version 7, for Claude of version 4.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl Ids for RandomIds {
    fn session(&self) -> SessionId {
        SessionId(Uuid::now_v7())
    }

    fn orchestration(&self) -> OrchestrationId {
        OrchestrationId(Uuid::now_v7())
    }

    fn claude_session(&self) -> ClaudeSessionId {
        ClaudeSessionId(Uuid::new_v4())
    }
}

/// Says whether new work can be accepted.
pub trait Admission: Send + Sync {
    /// Answers at once, from what was last seen of the runtime.
    ///
    /// # Errors
    /// [`Refusal`]: work accepted now could not be started.
    fn check(&self) -> Result<(), Refusal>;
}

/// Why no new work can be accepted for now. What is accepted already stays, and is read as ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The container runtime does not answer.
    #[error(
        "the container runtime does not answer; check that Docker is running, or run `baton doctor`"
    )]
    RuntimeUnavailable,
    /// The image sessions run in is not there.
    #[error("the session image {image} is missing; run `baton image build`, or pull it")]
    ImageMissing {
        /// Its name.
        image: String,
    },
}

/// Estimates what an attempt that runs has used so far; none where nothing is known of it. Answers
/// at once.
pub type Meter = Arc<dyn Fn(SessionId, Attempt) -> Option<Usage> + Send + Sync>;

/// What an orchestrator works with.
#[derive(Clone)]
pub struct OrchestratorParts {
    /// Where everything is kept.
    pub store: Store,
    /// Tells when things happened.
    pub clock: Arc<dyn Clock>,
    /// Names new things.
    pub ids: Arc<dyn Ids>,
    /// Told after every change that the reconciler should look at.
    pub wake: Arc<Notify>,
    /// Says whether new work can be accepted.
    pub admission: Arc<dyn Admission>,
    /// How many sessions may run at once; told to those who ask why theirs waits.
    pub slots_max: usize,
    /// Estimates what running attempts have used.
    pub meter: Meter,
    /// Tells which files several of these running sessions have changed.
    pub overlaps: Overlaps,
    /// Whose Claudes wait for other sessions; the reconciler looks at the same.
    pub waits: OpenWaits,
    /// How far coordination sessions may go.
    pub coordination: CoordinationLimits,
}

/// See [`OrchestratorParts::overlaps`].
pub type Overlaps = Arc<dyn Fn(&[SessionId]) -> Vec<Overlap> + Send + Sync>;

/// A session to be made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewSession {
    /// The id the client wants; a new one when absent.
    pub id: Option<SessionId>,
    /// What it is for.
    pub kind: Kind,
    /// What it works on.
    pub project: Project,
    /// Sessions that must complete first; each counts once.
    pub dependencies: Vec<SessionId>,
    /// Whether it starts as soon as its dependencies allow, without being asked again.
    pub auto_start: bool,
    /// Seconds Claude may run; the configured default when absent.
    pub timeout_s: Option<u64>,
    /// Whether the project's own Claude settings are let in.
    pub project_settings: bool,
    /// The orchestration it is added to.
    pub orchestration_id: Option<OrchestrationId>,
    /// A few words for lists.
    pub title: Option<String>,
    /// See [`Session::priority`].
    pub priority: i32,
    /// See [`Session::planning`].
    pub planning: Option<Planning>,
    /// US dollars it may cost before it pauses and asks; no limit when absent.
    pub max_cost_usd: Option<f64>,
}

/// Something to be said to a session's Claude.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewMessage {
    /// What is said.
    pub text: String,
    /// US dollars that all attempts of the session together may cost, those before included; as
    /// before when absent, or as much again where that is spent.
    pub max_cost_usd: Option<f64>,
}

impl NewSession {
    /// A session to be started by itself, with nothing asked for but this.
    #[must_use]
    pub fn new(kind: Kind, project: Project) -> Self {
        Self {
            id: None,
            kind,
            project,
            dependencies: Vec::new(),
            auto_start: true,
            timeout_s: None,
            project_settings: false,
            orchestration_id: None,
            title: None,
            priority: 0,
            planning: None,
            max_cost_usd: None,
        }
    }
}

/// An orchestration to be made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewOrchestration {
    /// What its one session is for, where it is to have just one.
    pub kind: Option<Kind>,
    /// What it works on.
    pub project: Project,
    /// How it should be divided.
    pub strategy: Option<Strategy>,
    /// The sessions, where the client divided the work itself.
    pub plan: Option<ProposedGraph>,
    /// Whether its sessions start at once.
    pub auto_start: bool,
    /// See [`Session::priority`].
    pub priority: i32,
    /// Whether the project's own Claude settings are let in.
    pub project_settings: bool,
    /// US dollars that its sessions together may cost before they pause and ask; no limit when
    /// absent.
    pub max_cost_usd: Option<f64>,
}

/// Who divides requirements into sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Planner {
    /// The words in the requirements; see [`baton_domain::decompose`].
    #[default]
    Words,
    /// A session of Claude's, which reads the repository first.
    Claude,
}

/// How requirements should be divided into sessions, and how they land.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Strategy {
    /// What waits for what.
    pub dependency_mode: Option<DependencyMode>,
    /// How many sessions of the orchestration may run at once.
    pub parallel_sessions: Option<u64>,
    /// Names of phases.
    pub phases: Vec<String>,
    /// Who divides.
    pub planner: Planner,
    /// Seconds that all of it may take; for a single session, what that one may.
    pub timeout_s: Option<u64>,
    /// The shell command that must pass on the merged results before they land.
    pub gate: Option<String>,
}

/// Makes a request answer once: repeated with the same key, it is answered what it was answered
/// first, and nothing is made anew.
pub struct Once<'a, T> {
    /// The client's key.
    pub key: String,
    /// SHA-256 of what is asked for.
    pub digest: [u8; 32],
    /// The answer to keep.
    pub render: &'a (dyn Fn(&T) -> Vec<u8> + Sync),
}

/// What became of a request that makes something.
#[derive(Debug, Clone)]
pub enum Accepted<T> {
    /// It was done now.
    Now(T),
    /// The same request was answered this before.
    Before(Vec<u8>),
}

/// A session and how it stands among the others.
#[derive(Debug, Clone)]
pub struct SessionDetails {
    /// The session.
    pub session: Arc<Session>,
    /// The status people see.
    pub status: Status,
    /// The dependencies it waits for; empty unless it is pending.
    pub waiting_for: Vec<SessionId>,
}

/// An orchestration with its sessions.
#[derive(Debug, Clone)]
pub struct OrchestrationDetails {
    /// What was asked for.
    pub orchestration: Orchestration,
    /// In order of creation, 1,000 at most.
    pub sessions: Vec<SessionDetails>,
    /// Tokens and cost of them, with an estimate of the attempts under way.
    pub usage: Usage,
    /// What all its sessions may cost together, where that is limited.
    pub budget: Option<Budget>,
    /// What several of them have changed that run at the same time.
    pub overlaps: Vec<Overlap>,
}

/// What an `orchestrate` made.
#[derive(Debug, Clone)]
pub struct Orchestrated {
    /// The orchestration's name.
    pub id: OrchestrationId,
    /// Its sessions.
    pub sessions: Vec<SessionDetails>,
    /// What happened, in a sentence or two.
    pub summary: String,
}

/// A stretch of what a session put out.
#[derive(Debug, Clone)]
pub struct SessionOutput {
    /// The session.
    pub details: SessionDetails,
    /// Lines for people; none means that there is no output at all.
    pub logs: Option<Vec<String>>,
    /// Where to read on, when there is more.
    pub next_cursor: Option<OutputCursor>,
}

/// A place between two lines of a session's log: after `lines` lines of the event that follows
/// event number `seq`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputCursor {
    /// The last event read to its end.
    pub seq: u64,
    /// Lines already read of the one after it.
    pub lines: usize,
}

/// Why an operation was not done. Nothing was changed then, but for a session found to be blocked.
#[derive(Debug, thiserror::Error)]
pub enum OrchestratorError {
    /// Something is not there, taken, or the storage fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Dependencies that cannot be accepted.
    #[error(transparent)]
    Dependency(#[from] DependencyError),
    /// The session's state forbids it.
    #[error("session {id} cannot be {verb} in status: {}", status.name())]
    InvalidTransition {
        /// The session.
        id: SessionId,
        /// `started`, `cancelled`, `retried`, `told anything`.
        verb: &'static str,
        /// How it stands.
        status: Status,
    },
    /// The session cannot start, because a dependency will not complete.
    #[error("session {id} is blocked by {dependency}")]
    Blocked {
        /// The session.
        id: SessionId,
        /// The dependency in its way.
        dependency: SessionId,
        /// How that one stands; none when nothing is known of it any more.
        dependency_status: Option<Status>,
    },
    /// The budget asked for is spent already.
    #[error("session {id} has spent ${spent_usd:.2}, and may cost ${max_usd:.2} at most")]
    BudgetSpent {
        /// The session.
        id: SessionId,
        /// What was asked for.
        max_usd: f64,
        /// What is spent.
        spent_usd: f64,
    },
    /// The budget asked for is spent already.
    #[error("orchestration {id} has spent ${spent_usd:.2}, and may cost ${max_usd:.2} at most")]
    OrchestrationBudgetSpent {
        /// The orchestration.
        id: OrchestrationId,
        /// What was asked for.
        max_usd: f64,
        /// What is spent.
        spent_usd: f64,
    },
    /// A coordination session may not do that.
    #[error(transparent)]
    Coordination(#[from] CoordinationRefusal),
    /// No new work for now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}
