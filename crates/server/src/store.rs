//! Everything that must outlive the server: sessions, their events, their output.
//!
//! Sessions and derived events are rows of an SQLite database; output is in segment files beside
//! it, found through rows. All writes go through one writer that commits many at once. What is
//! asked for often (sessions, their order, which of them are over) is also in memory, and follows
//! the database after each commit.

mod batch;
mod directory;
mod events;
mod output;
mod rows;
mod segments;
mod sqlite;
mod sqlite_reads;
mod types;
mod watchers;
mod writer;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use baton_domain::budget::{Bounds, Budget, Spending};
use baton_domain::landing::Landing;
use baton_domain::session::Standing;
use baton_domain::waits::Wait;
use baton_domain::{Attempt, Kind, OrchestrationId, Session, SessionId, Status, Version, WaitId};
use jiff::Timestamp;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use batch::{Answer, Request};
use directory::{Directory, Found};
use events::Limits;
use output::{Appender, blocking};
use sqlite::Database;
use sqlite_reads::Reads;
use watchers::Watchers;
use writer::{QUEUE_MAX, Writer};

pub use types::{
    Cause, EventBody, Idempotency, LINE_BYTES_MAX, NewSessions, Orchestration, OutputLine,
    PAGE_SESSIONS_MAX, SessionPage, SessionQuery, StoreError, StoreSettings, StoredEvent,
    Transition, Unlanded, Written,
};

/// The lock's name in the data directory.
const LOCK_NAME: &str = "lock";
/// The database's name in the data directory.
const DATABASE_NAME: &str = "baton.db";
/// The folder of the segment files.
const OUTPUT_NAME: &str = "output";
/// What a cursor begins with.
const CURSOR_MARK: &str = "c";
/// How often a session is read again when it changes while it is being read.
const READS_MAX: usize = 3;

/// The store of one server. Clones are the same store; when the last is dropped, what was asked
/// of it is still written.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Arc<Directory>,
    watchers: Arc<Watchers>,
    reads: Reads,
    requests: mpsc::Sender<Request>,
    appender: Arc<Appender>,
    /// Appends hold it for reading: their files must not be written once the lock is gone.
    open: Arc<RwLock<bool>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in `data_dir`, making what is missing.
    ///
    /// # Errors
    /// [`StoreError::InUse`] at once when another server has it; [`StoreError::Corrupt`] when the
    /// database cannot be read, with nothing touched; [`StoreError::Schema`] when a newer Baton
    /// made it; [`StoreError::Unavailable`].
    pub async fn open(data_dir: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        let lock = lock(data_dir)?;
        let database = Database::open(
            settings
                .database
                .unwrap_or_else(|| data_dir.join(DATABASE_NAME)),
        )
        .await?;
        let reads = Reads::new(database.readers());
        let directory = Arc::new(Directory::new());
        let live = reads.live().await?;
        directory.load(
            reads.orchestrations().await?,
            reads.landings().await?,
            reads.entries().await?,
            live.iter()
                .map(|(_, session)| Arc::clone(session))
                .collect(),
        );
        let output_dir = data_dir.join(OUTPUT_NAME);
        segments::make_output_dir(&output_dir)
            .map_err(StoreError::io("make the folder of all output"))?;
        let (requests, received) = mpsc::channel(QUEUE_MAX);
        let appender = Appender {
            directory: Arc::clone(&directory),
            reads: reads.clone(),
            requests: requests.clone(),
            output_dir,
            bytes_max: settings.output_bytes_max,
            remembered: Mutex::default(),
        };
        appender.cut_back(&live).await?;
        let watchers = Arc::new(Watchers::default());
        let writer = Writer {
            database,
            reads: reads.clone(),
            directory: Arc::clone(&directory),
            watchers: Arc::clone(&watchers),
            requests: received,
            lock,
            closing: false,
        };
        let inner = Inner {
            directory,
            watchers,
            reads,
            requests,
            appender: Arc::new(appender),
            open: Arc::new(RwLock::new(true)),
            writer: Mutex::new(Some(tokio::spawn(writer.run()))),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Makes sessions, all or nothing; durable on return. Each gets its first event.
    ///
    /// # Errors
    /// [`StoreError::SessionExists`], [`StoreError::OrchestrationExists`],
    /// [`StoreError::OrchestrationNotFound`] for a session of an orchestration that is neither
    /// stored nor made with it, [`StoreError::IdempotencyMismatch`].
    pub async fn create(&self, new: NewSessions) -> Result<Written, StoreError> {
        let new = Box::new(new);
        self.ask(|answer| Request::Create { new, answer }).await
    }

    /// The session as it stands; from memory unless it was over long ago.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn session(&self, id: SessionId) -> Result<Arc<Session>, StoreError> {
        let mut read = None;
        for _ in 0..READS_MAX {
            if let Some(session) = self.cached_session(id) {
                return Ok(session);
            }
            let entry = self.inner.directory.tables().find(id);
            let entry = entry.ok_or(StoreError::SessionNotFound(id))?;
            read = self.inner.load(&[entry.ordinal]).await?.pop();
            let is_current = |session: &Arc<Session>| session.version == entry.version;
            if read
                .as_ref()
                .is_some_and(|(_, session)| is_current(session))
            {
                break;
            }
        }
        // Not current after all tries: it was when it was read.
        read.map(|(_, session)| session)
            .ok_or(StoreError::SessionNotFound(id))
    }

    /// The session if it is in memory: always, unless it is over.
    #[must_use]
    pub fn cached_session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.inner.directory.session(id)
    }

    /// All sessions that are not over, oldest first.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<Session>> {
        self.inner.directory.active()
    }

    /// What dependents may make of a session; none when there never was one of that id.
    #[must_use]
    pub fn standing(&self, id: SessionId) -> Option<Standing> {
        let entry = self.inner.directory.tables().find(id);
        entry.map(|entry| entry.standing())
    }

    /// The status people see of the session of that id; none when there never was one.
    #[must_use]
    pub fn status_of(&self, id: SessionId) -> Option<Status> {
        self.inner.directory.tables().status_of(id)
    }

    /// The status people see. A queued session is `pending` while any dependency is not
    /// completed, an unknown one included.
    #[must_use]
    pub fn status(&self, session: &Session) -> Status {
        self.inner.directory.tables().status(session)
    }

    /// Records changes with the events that led to them, all or none: none when one of the
    /// sessions was changed since it was read. Durable on return.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: read again and decide again; [`StoreError::SessionNotFound`],
    /// [`StoreError::IdempotencyMismatch`].
    pub async fn record(
        &self,
        changes: Vec<Transition>,
        idempotency: Option<Idempotency>,
    ) -> Result<Written, StoreError> {
        self.ask(|answer| Request::Record {
            changes,
            idempotency,
            answer,
        })
        .await
    }

    /// How many seconds the newest completed sessions took, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn durations(&self) -> Result<Vec<(Kind, u64)>, StoreError> {
        self.inner.reads.durations().await
    }

    /// What a request with this idempotency key was answered, if there was one.
    ///
    /// # Errors
    /// [`StoreError::IdempotencyMismatch`] when it was another request.
    pub async fn answered_before(
        &self,
        key: &str,
        digest: [u8; 32],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let hash = batch::hash_of_key(key);
        let mut known = self
            .inner
            .reads
            .known_keys(std::slice::from_ref(&hash))
            .await?;
        match known.remove(&hash) {
            None => Ok(None),
            Some((other, _)) if other != digest => Err(StoreError::IdempotencyMismatch),
            Some((_, response)) => Ok(Some(response)),
        }
    }

    /// Sessions in order of creation, or against it. Of those made meanwhile, pages in order show
    /// all and pages against it none. Where all are in memory, nothing is read.
    ///
    /// # Errors
    /// [`StoreError::InvalidCursor`].
    pub async fn page(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        let after = query.cursor.as_deref().map_or(Ok(0), ordinal_of)?;
        let limit = query.limit.clamp(1, PAGE_SESSIONS_MAX);
        let listing = self.inner.directory.list(query, after, limit);
        let absent = listing.found.iter().filter_map(|found| match found {
            Found::Here(_) => None,
            Found::Row(ordinal) => Some(*ordinal),
        });
        let absent: Vec<u64> = absent.collect();
        // Both in the order of rows, or against it.
        let mut loaded = self.inner.load(&absent).await?;
        if query.newest_first {
            loaded.reverse();
        }
        let mut loaded = loaded.into_iter().peekable();
        let sessions = listing.found.into_iter().filter_map(|found| match found {
            Found::Here(session) => Some(session),
            Found::Row(row) => loaded
                .next_if(|(ordinal, _)| *ordinal == row)
                .map(|(_, session)| session),
        });
        Ok(SessionPage {
            sessions: sessions.collect(),
            next_cursor: listing.more_after.map(cursor_of),
        })
    }

    /// One orchestration.
    ///
    /// # Errors
    /// [`StoreError::OrchestrationNotFound`].
    pub async fn orchestration(&self, id: OrchestrationId) -> Result<Orchestration, StoreError> {
        self.inner.reads.orchestration(id).await
    }

    /// Whether a session's result waits for its orchestration to land as a whole, where it
    /// completes. Answered from memory.
    #[must_use]
    pub fn lands_with_others(&self, session: &Session) -> bool {
        let tables = self.inner.directory.tables();
        let entry = session.orchestration_id.and_then(|id| tables.landing(id));
        entry.is_some_and(|entry| *entry.repository() == session.project.repository)
    }

    /// What bounds the orchestrations of these sessions, of those that are bounded; `metered`
    /// estimates what an attempt under way has cost in US dollars. Answered from memory.
    #[must_use]
    pub fn bounds(
        &self,
        sessions: &[Arc<Session>],
        metered: impl Fn(SessionId, Attempt) -> f64,
    ) -> HashMap<OrchestrationId, Bounds> {
        let bounded = self.inner.directory.tables().bounded(sessions);
        let bounds = bounded.into_iter().map(|(id, parallel_max)| {
            let budget = self.budget(id, &metered);
            let bounds = Bounds {
                parallel_max,
                budget,
            };
            (id, bounds)
        });
        bounds.collect()
    }

    /// The budget of an orchestration, where it has one; see [`Store::bounds`].
    #[must_use]
    pub fn budget(
        &self,
        id: OrchestrationId,
        metered: impl Fn(SessionId, Attempt) -> f64,
    ) -> Option<Budget> {
        let max_usd = self.inner.directory.tables().max_cost_usd(id)?;
        let spending = self.spending(id, metered);
        Some(Budget { max_usd, spending })
    }

    /// What the sessions of an orchestration cost so far; see [`Store::bounds`].
    #[must_use]
    pub fn spending(
        &self,
        id: OrchestrationId,
        metered: impl Fn(SessionId, Attempt) -> f64,
    ) -> Spending {
        let (reported, running) = self.inner.directory.tables().spending(id);
        Spending {
            running_usd: running
                .iter()
                .map(|(id, attempt)| metered(*id, *attempt))
                .sum(),
            ..reported
        }
    }

    /// Sets what all sessions of an orchestration together may cost, in US dollars; durable on
    /// return.
    ///
    /// # Errors
    /// [`StoreError::OrchestrationNotFound`].
    pub async fn set_budget(&self, id: OrchestrationId, max_usd: f64) -> Result<(), StoreError> {
        self.ask(|answer| Request::Budget {
            id,
            max_usd,
            answer,
        })
        .await
    }

    /// Orchestrations whose landing is not over, or has something new to look at; oldest first.
    #[must_use]
    pub fn unlanded(&self) -> Vec<Unlanded> {
        self.inner.directory.tables().unlanded()
    }

    /// Records where a landing stands; durable on return.
    ///
    /// # Errors
    /// [`StoreError::LandingConflict`] when it was changed since version `read_at`: read again and
    /// decide again; [`StoreError::OrchestrationNotFound`] for one that does not land as a whole.
    pub async fn record_landing(
        &self,
        id: OrchestrationId,
        read_at: Version,
        landing: Landing,
    ) -> Result<(), StoreError> {
        let landing = Box::new(landing);
        self.ask(|answer| Request::Landing {
            id,
            read_at,
            landing,
            answer,
        })
        .await
    }

    /// Keeps a wait, or what became of it; durable on return. It is forgotten when it is older than
    /// [`WAIT_KEPT`](baton_domain::waits::WAIT_KEPT).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn keep_wait(&self, id: WaitId, wait: Wait) -> Result<(), StoreError> {
        let wait = Box::new(wait);
        self.ask(|answer| Request::Wait { id, wait, answer }).await
    }

    /// A wait that was kept; none where there never was one, or it is forgotten.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn wait(&self, id: WaitId) -> Result<Option<Wait>, StoreError> {
        self.inner.reads.wait(id).await
    }

    /// Keeps what a client said of itself when it began, under the name its session was given, or
    /// forgets it; durable on return. It is forgotten after 30 days in any case.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn keep_introduction(
        &self,
        id: &str,
        body: Option<String>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.ask(|answer| Request::Introduction {
            id,
            at,
            body,
            answer,
        })
        .await
    }

    /// What the client of that session said of itself; none where that is not known.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn introduction(&self, id: &str) -> Result<Option<String>, StoreError> {
        self.inner.reads.introduction(id).await
    }

    /// How many sessions a query asks for, on all pages together. Answered from memory.
    #[must_use]
    pub fn count(&self, query: &SessionQuery) -> usize {
        self.inner.directory.count(query)
    }

    /// Counts the committed changes of all sessions and landings; equal numbers mean an unchanged list.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inner.directory.changes()
    }

    /// How far the agent of that attempt is stored for good; 0 before its first frame.
    ///
    /// # Errors
    /// [`StoreError::SessionNotFound`].
    pub async fn acked(&self, id: SessionId, attempt: Attempt) -> Result<u64, StoreError> {
        let ordinal = self.inner.ordinal(id)?;
        self.inner.reads.position(ordinal, attempt).await
    }

    /// Appends lines and moves the agent's position to `position`, in one step; without lines it
    /// just moves. A position that is not beyond the stored one is a repeat: nothing happens.
    ///
    /// Goes on to its end even if the caller stops waiting. Best given about 1 MiB at a time.
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
        let open = Arc::clone(&self.inner.open).read_owned().await;
        if !*open {
            return Err(StoreError::closed());
        }
        let appender = Arc::clone(&self.inner.appender);
        let lines = lines.to_vec();
        let append = tokio::spawn(async move {
            let outcome = appender.append(id, attempt, position, lines).await;
            drop(open);
            outcome
        });
        append.await.map_err(|source| StoreError::Unavailable {
            what: "append output",
            source: Some(Arc::new(source)),
        })?
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
        self.ask(|answer| Request::Note {
            id,
            text: text.to_owned(),
            at: now,
            answer,
        })
        .await
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
        let ordinal = self.inner.ordinal(id)?;
        let limits = Limits {
            events: limit.max(1),
            bytes: bytes_max,
        };
        let stretches = self
            .inner
            .reads
            .stretches(ordinal, after, limits.events)
            .await?;
        let session_dir = segments::session_dir(&self.inner.appender.output_dir, id);
        let session = self.cached_session(id);
        let made_at = session.map_or(Timestamp::UNIX_EPOCH, |session| session.created_at);
        blocking(move || events::collect(&session_dir, stretches, after, limits, made_at)).await?
    }

    /// The number of a session's newest event; changes wake the receiver. 0 for an unknown
    /// session.
    #[must_use]
    pub fn watch_events(&self, id: SessionId) -> watch::Receiver<u64> {
        let directory = &self.inner.directory;
        self.inner.watchers.subscribe(id, || {
            let entry = directory.tables().find(id);
            entry.map_or(0, |entry| entry.last_seq)
        })
    }

    /// Whether the database answers, and the disk has room for what comes next.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        if self.inner.requests.is_closed() {
            return Err(StoreError::closed());
        }
        self.inner.appender.has_room().await?;
        self.inner.reads.ping().await
    }

    /// Writes out what was asked for before, and lets go of the files and the lock. Other clones
    /// get [`StoreError::Unavailable`] from here on, but for what is in memory.
    pub async fn close(self) {
        *self.inner.open.write().await = false;
        let writer = self
            .inner
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // An error says that it is closed already.
        drop(self.inner.requests.send(Request::Close).await);
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the store's writer did not end in order");
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.inner.requests.send(request(answer)).await;
        sent.map_err(|_| StoreError::closed())?;
        answered.await.map_err(|_| StoreError::closed())?
    }
}

impl Inner {
    fn ordinal(&self, id: SessionId) -> Result<u64, StoreError> {
        let entry = self.directory.tables().find(id);
        entry
            .map(|entry| entry.ordinal)
            .ok_or(StoreError::SessionNotFound(id))
    }

    /// The sessions of these rows, in the order of rows; they stay in memory for a while.
    async fn load(&self, ordinals: &[u64]) -> Result<Vec<(u64, Arc<Session>)>, StoreError> {
        if ordinals.is_empty() {
            return Ok(Vec::new());
        }
        let loaded = self.reads.sessions(ordinals).await?;
        for (_, session) in &loaded {
            self.directory.keep(session);
        }
        Ok(loaded)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Takes the data directory for this process. The kernel lets go of it when the process ends,
/// however it ends.
fn lock(data_dir: &Path) -> Result<File, StoreError> {
    let path = data_dir.join(LOCK_NAME);
    let open = || {
        // What sessions print is for the one who runs the server.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)?;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().map_err(StoreError::io("open the data directory"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path }),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock the data directory")(error)),
    }
}

fn cursor_of(ordinal: u64) -> String {
    format!("{CURSOR_MARK}{ordinal:x}")
}

fn ordinal_of(cursor: &str) -> Result<u64, StoreError> {
    let digits = cursor
        .strip_prefix(CURSOR_MARK)
        .ok_or(StoreError::InvalidCursor)?;
    let ordinal = u64::from_str_radix(digits, 16).map_err(|_| StoreError::InvalidCursor)?;
    // One spelling for each.
    if cursor_of(ordinal) == cursor {
        Ok(ordinal)
    } else {
        Err(StoreError::InvalidCursor)
    }
}
