//! What goes into the store and comes out of it.

use std::path::PathBuf;
use std::sync::Arc;

use baton_agent::protocol::Stream;
use baton_domain::landing::Landing;
use baton_domain::{
    Attempt, Branch, OrchestrationId, Repository, Session, SessionEvent, SessionId, Status, Version,
};
use bytes::Bytes;
use jiff::Timestamp;

/// How much the store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Bytes of output kept of one session, all attempts together. Past it the middle is dropped:
    /// the first and the last half stay.
    pub output_bytes_max: u64,
    /// The database's file; `baton.db` in the data directory when absent.
    pub database: Option<PathBuf>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            output_bytes_max: 64 * 1024 * 1024,
            database: None,
        }
    }
}

/// Sessions to be made together, or not at all.
#[derive(Debug, Clone, Default)]
pub struct NewSessions {
    /// The orchestration they belong to, where it is made with them.
    pub orchestration: Option<Orchestration>,
    /// In the order they are to be listed.
    pub sessions: Vec<Session>,
    /// The request's key and what it is answered, where the client gave a key.
    pub idempotency: Option<Idempotency>,
}

/// What makes a repeated request answer as the first did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's key. Only its SHA-256 is kept.
    pub key: String,
    /// SHA-256 of the request.
    pub digest: [u8; 32],
    /// What the first request was answered.
    pub response: Vec<u8>,
}

/// A change of one session.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Why.
    pub event: SessionEvent,
    /// The session as it is to be, its version still the one that was read.
    pub next: Session,
    /// When.
    pub at: Timestamp,
    /// The attempt whose agent told of it, and the agent's position after that: stored with it.
    pub told: Option<(Attempt, u64)>,
}

/// What became of a request that may have been made before.
#[derive(Debug, Clone)]
pub enum Written {
    /// It was written now; the sessions as they are then.
    Now(Vec<Arc<Session>>),
    /// The same request was answered before.
    Before {
        /// With this.
        response: Vec<u8>,
    },
}

/// Sessions that were asked for together, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Orchestration {
    /// Its name.
    pub id: OrchestrationId,
    /// What its sessions work on.
    pub repository: Repository,
    /// What is to be done, in the client's words.
    pub requirements: Arc<str>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The branch it lands on; one of its own when absent.
    pub branch: Option<Branch>,
    /// Whether it lands as a whole. Its sessions do not land by themselves then when they complete.
    pub lands: bool,
    /// The shell command that must pass on the merged results before the branch moves.
    pub gate: Option<String>,
    /// Seconds that all of it may take from the first start of a session on.
    pub timeout_s: Option<u64>,
    /// How many of its sessions may run at once.
    pub parallel_max: Option<u32>,
    /// US dollars that all its sessions together may cost.
    pub max_cost_usd: Option<f64>,
    /// What was made of the requirements, in a sentence or two.
    pub summary: String,
    /// Where its landing stands, where it lands as a whole.
    pub landing: Landing,
    /// How often its landing was changed; a write names the version it read.
    pub landing_version: Version,
    /// How often a session of it was reopened or added to it.
    pub changes: u64,
}

impl Orchestration {
    /// One of which nothing more is wanted: each session lands by itself.
    #[must_use]
    pub fn new(
        id: OrchestrationId,
        repository: Repository,
        requirements: Arc<str>,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            repository,
            requirements,
            created_at,
            branch: None,
            lands: false,
            gate: None,
            timeout_s: None,
            parallel_max: None,
            max_cost_usd: None,
            summary: String::new(),
            landing: Landing::default(),
            landing_version: Version(0),
            changes: 0,
        }
    }

    /// The branch it lands on.
    #[must_use]
    pub fn target(&self) -> Branch {
        let own = || Branch::own(self.id.0);
        self.branch.clone().unwrap_or_else(own)
    }
}

/// An orchestration whose landing is not over, as far as it is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlanded {
    /// Which.
    pub id: OrchestrationId,
    /// Where it lands.
    pub target: (Repository, Branch),
    /// Whether its landing is under way: others wait for the branch then.
    pub is_under_way: bool,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionQuery {
    /// Only those of one orchestration.
    pub orchestration: Option<OrchestrationId>,
    /// Only those with one of these statuses; empty means all.
    pub statuses: Vec<Status>,
    /// Whether the newest come first.
    pub newest_first: bool,
    /// `next_cursor` of the page before, of the same query.
    pub cursor: Option<String>,
    /// How many at most; less than 1 counts as 1, more than [`PAGE_SESSIONS_MAX`] as that.
    pub limit: usize,
}

/// The most sessions in one page.
pub const PAGE_SESSIONS_MAX: usize = 1_000;

/// Sessions in order of creation.
#[derive(Debug, Clone, Default)]
pub struct SessionPage {
    /// At most as many as were asked for.
    pub sessions: Vec<Arc<Session>>,
    /// Where the next page begins; absent on the last.
    pub next_cursor: Option<String>,
}

/// The most bytes of one line of output that are kept.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// One line of output, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLine {
    /// When the agent read it; kept to the millisecond.
    pub at: Timestamp,
    /// The stream it was written to.
    pub stream: Stream,
    /// Without the line end; at most [`LINE_BYTES_MAX`].
    pub bytes: Bytes,
    /// How many bytes of the line are missing after these.
    pub cut_bytes: u64,
    /// Whether the line had an end; only the last line of a stream may lack it.
    pub line_end: bool,
}

/// One event of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its number; a session's first is 1, and there is no gap.
    pub seq: u64,
    /// When it happened, to the millisecond.
    pub at: Timestamp,
    /// What happened.
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventBody {
    /// The session was accepted. Always number 1.
    Created,
    /// The session's state changed.
    Session {
        /// Why.
        event: SessionEvent,
        /// The name of the state it led to; see [`baton_domain::SessionState::name`].
        state: String,
    },
    /// Claude wrote a line.
    Output(OutputLine),
    /// Output that is not kept any more, or cannot be read.
    Truncated {
        /// The last number it stands for; the first is the event's own.
        last_seq: u64,
        /// Bytes of output, line ends not counted, in all the numbers dropped together with it:
        /// reading on from the middle tells the same figure.
        bytes: u64,
    },
    /// Something worth telling.
    Note(String),
}

/// What was behind an error of the storage.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No session has this id.
    #[error("session {0} does not exist")]
    SessionNotFound(SessionId),
    /// No orchestration has this id.
    #[error("orchestration {0} does not exist")]
    OrchestrationNotFound(OrchestrationId),
    /// The id is taken.
    #[error("session {0} exists already")]
    SessionExists(SessionId),
    /// The id is taken.
    #[error("orchestration {0} exists already")]
    OrchestrationExists(OrchestrationId),
    /// The key was used with another request.
    #[error("the idempotency key was used with a different request")]
    IdempotencyMismatch,
    /// Another writer was first; read again and decide again.
    #[error("session {id} was changed by another writer since version {read_at}")]
    Conflict {
        /// The session.
        id: SessionId,
        /// The version the decision was based on.
        read_at: Version,
    },
    /// Another writer was first; read again and decide again.
    #[error("the landing of orchestration {0} was changed by another writer")]
    LandingConflict(OrchestrationId),
    /// A cursor that no page of this store ends with.
    #[error("the cursor is not one this server gave out")]
    InvalidCursor,
    /// A line longer than [`LINE_BYTES_MAX`].
    #[error("a line of {bytes} bytes of session {id} was not cut")]
    LineTooLong {
        /// The session.
        id: SessionId,
        /// Its length.
        bytes: usize,
    },
    /// Another server has the data directory.
    #[error("another server uses {}", path.display())]
    InUse {
        /// The lock file it holds.
        path: PathBuf,
    },
    /// The database cannot be read; nothing was changed.
    #[error("{what} is damaged; restore it from a backup")]
    Corrupt {
        /// The file, or the table and row.
        what: String,
        /// What was found.
        #[source]
        source: Option<Cause>,
    },
    /// The database was made by a version of Baton that this one does not understand.
    #[error("{} cannot be brought to this version's schema", path.display())]
    Schema {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// The disk is full, the database locked, the file system failing: nothing was changed, and a
    /// later try may work.
    #[error("storage failed to {what}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// What was found; none when the store was closed.
        #[source]
        source: Option<Cause>,
    },
}

impl StoreError {
    /// The store was closed, or its writer has ended.
    pub(super) fn closed() -> Self {
        Self::Unavailable {
            what: "answer: it was closed",
            source: None,
        }
    }

    /// A file could not be read or written.
    pub(super) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Unavailable {
            what,
            source: Some(Arc::new(source)),
        }
    }
}
