//! Everything that must outlive the server: sessions, their events, their output.
//!
//! Sessions and derived events are rows of an SQLite database; output is in segment files beside
//! it, found through rows. All writes go through one writer that commits many at once. What is
//! asked for often (sessions, their order, which of them are over) is also in memory, and follows
//! the database after each commit.

mod interim;
mod types;

use std::path::Path;
use std::sync::Arc;

use baton_domain::session::{Report, Standing};
use baton_domain::{
    Attempt, OrchestrationId, Session, SessionEvent, SessionId, SessionState, Status,
};
use jiff::Timestamp;
use tokio::sync::watch;

pub use types::{
    Cause, Created, EventBody, Idempotency, LINE_BYTES_MAX, NewSessions, Orchestration, OutputLine,
    PAGE_SESSIONS_MAX, SessionPage, SessionQuery, StoreError, StoreSettings, StoredEvent,
};

/// The store of one server. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<interim::Interim>,
}

impl Store {
    /// Opens the store in `data_dir`, making what is missing.
    ///
    /// # Errors
    /// [`StoreError::InUse`] at once when another server has it; [`StoreError::Corrupt`] when the
    /// database cannot be read, with nothing touched.
    pub async fn open(data_dir: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        Ok(Self {
            inner: Arc::new(interim::Interim::new(data_dir, settings)),
        })
    }

    /// Makes sessions, all or nothing; durable on return. Each gets its first event.
    ///
    /// # Errors
    /// [`StoreError::SessionExists`], [`StoreError::OrchestrationExists`],
    /// [`StoreError::OrchestrationNotFound`] for a session of an orchestration that is neither
    /// stored nor made with it, [`StoreError::IdempotencyMismatch`].
    pub async fn create(&self, new: NewSessions) -> Result<Created, StoreError> {
        self.inner.create(new)
    }

    /// The session as it stands; from memory unless it was over long ago.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn session(&self, id: SessionId) -> Result<Arc<Session>, StoreError> {
        self.cached_session(id)
            .ok_or(StoreError::SessionNotFound(id))
    }

    /// The session if it is in memory: always, unless it is over.
    #[must_use]
    pub fn cached_session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.inner.session(id)
    }

    /// All sessions that are not over, oldest first.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<Session>> {
        self.inner.active()
    }

    /// What dependents may make of a session; none when there never was one of that id.
    #[must_use]
    pub fn standing(&self, id: SessionId) -> Option<Standing> {
        self.cached_session(id)
            .map(|session| session.state.standing())
    }

    /// The status people see; a dependency that is not completed, lost or unknown keeps a session
    /// `pending`.
    #[must_use]
    pub fn status(&self, session: &Session) -> Status {
        let waits = session
            .dependencies
            .iter()
            .any(|id| self.standing(*id) != Some(Standing::Completed));
        session.state.status(waits)
    }

    /// Records `next` and, if there is one, `report`, unless the session was changed since it was
    /// read; and the event that led there, as having happened at `now`. Durable on return.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: read again and decide again.
    pub async fn record(
        &self,
        session: &Session,
        event: &SessionEvent,
        next: SessionState,
        report: Option<Report>,
        now: Timestamp,
    ) -> Result<Arc<Session>, StoreError> {
        self.inner.record(session, event, next, report, now)
    }

    /// Sessions in order of creation. Sessions made meanwhile come on later pages.
    ///
    /// # Errors
    /// [`StoreError::InvalidCursor`].
    pub async fn page(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        self.inner.page(query, |session| self.status(session))
    }

    /// One orchestration.
    ///
    /// # Errors
    /// [`StoreError::OrchestrationNotFound`].
    pub async fn orchestration(&self, id: OrchestrationId) -> Result<Orchestration, StoreError> {
        self.inner.orchestration(id)
    }

    /// Counts the committed changes of all sessions; equal numbers mean an unchanged list.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inner.changes()
    }

    /// How far the agent of that attempt is stored for good; 0 before its first frame.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn acked(&self, id: SessionId, attempt: Attempt) -> Result<u64, StoreError> {
        self.inner.acked(id, attempt)
    }

    /// Appends lines and moves the agent's position to `position`, in one step; without lines it
    /// just moves. A position that is not beyond the stored one is a repeat: nothing happens.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`], [`StoreError::LineTooLong`].
    pub async fn append_output(
        &self,
        id: SessionId,
        attempt: Attempt,
        position: u64,
        lines: &[OutputLine],
    ) -> Result<(), StoreError> {
        self.inner.append_output(id, attempt, position, lines)
    }

    /// Adds an event that the server itself has to tell, as having happened at `now`.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn append_note(
        &self,
        id: SessionId,
        text: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.inner.append_note(id, text, now)
    }

    /// The events numbered after `after`: at most `limit`, and no more than fit in about
    /// `bytes_max` bytes of output, but at least one if there is any.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn events(
        &self,
        id: SessionId,
        after: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(id, after, limit, bytes_max)
    }

    /// The number of a session's newest event; changes wake the receiver. 0 for an unknown
    /// session.
    #[must_use]
    pub fn watch_events(&self, id: SessionId) -> watch::Receiver<u64> {
        self.inner.watch_events(id)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Writes out what is queued, and lets go of the files. Other clones get
    /// [`StoreError::Unavailable`] from here on.
    pub async fn close(self) {}
}
