//! What every store promises, tried on real SQLite files.

mod faults;
mod landings;
mod numbering;
mod output;
mod sessions;
mod upgrades;
mod waits;

use std::path::Path;
use std::sync::Arc;

use baton::store::{
    NewSessions, OutputLine, Store, StoreError, StoreSettings, StoredEvent, Transition, Written,
};
use baton_agent::protocol::Stream;
use baton_domain::{
    Attempt, ClaudeSessionId, Kind, OrchestrationId, Project, Session, SessionEvent, SessionId,
    SessionState, Version,
};
use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

/// More than any test reads at once.
const ALL: usize = usize::MAX;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a second within range")
}

fn id(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

fn session(number: u128) -> Session {
    let project = Project {
        repository: "owner/repo".parse().expect("a repository"),
        branch: None,
        requirements: format!("do {number}").into(),
        context: None,
    };
    let conversation = ClaudeSessionId(Uuid::from_u128(number + 1));
    let created_at = "2026-11-22T10:00:00.123456789Z".parse().expect("a time");
    Session {
        version: Version(1),
        ..Session::new(
            id(number),
            Kind::Implementation,
            project,
            conversation,
            created_at,
        )
    }
}

fn new(sessions: Vec<Session>) -> NewSessions {
    NewSessions {
        sessions,
        ..NewSessions::default()
    }
}

fn orchestration(number: u128) -> OrchestrationId {
    OrchestrationId(Uuid::from_u128(number))
}

fn line(text: impl Into<Vec<u8>>) -> OutputLine {
    OutputLine {
        at: at(7),
        stream: Stream::Stdout,
        bytes: Bytes::from(text.into()),
        cut_bytes: 0,
        line_end: true,
    }
}

async fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default())
        .await
        .expect("the store opens")
}

async fn open_small(dir: &Path, output_bytes_max: u64) -> Store {
    let settings = StoreSettings {
        output_bytes_max,
        database: None,
    };
    Store::open(dir, settings).await.expect("the store opens")
}

/// A store with one session.
async fn with_session(dir: &Path) -> (Store, Arc<Session>) {
    let store = open(dir).await;
    let session = create_one(&store, session(1)).await;
    (store, session)
}

async fn create_one(store: &Store, session: Session) -> Arc<Session> {
    match store
        .create(new(vec![session]))
        .await
        .expect("it can be made")
    {
        Written::Now(mut made) => made.pop().expect("one session"),
        Written::Before { .. } => panic!("no key was given"),
    }
}

async fn record(
    store: &Store,
    next: Session,
    event: SessionEvent,
    at: Timestamp,
) -> Result<Arc<Session>, StoreError> {
    let change = Transition {
        event,
        next,
        at,
        told: None,
    };
    match store.record(vec![change], None).await? {
        Written::Now(mut changed) => Ok(changed.pop().expect("one session")),
        Written::Before { .. } => panic!("no key was given"),
    }
}

async fn happen(
    store: &Store,
    session: &Session,
    event: SessionEvent,
    now: Timestamp,
) -> Result<Arc<Session>, StoreError> {
    let next = session.after(&event, now).expect("a possible event");
    record(store, next, event, now).await
}

async fn all_events(store: &Store, id: SessionId) -> Vec<StoredEvent> {
    store
        .events(id, 0, ALL, ALL)
        .await
        .expect("events can be read")
}

/// What a killed server leaves: the files as they are, without the lock.
fn crash_image(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let path = entry.expect("an entry").path();
            let target = to.join(path.file_name().expect("a name"));
            if path.is_dir() {
                copy(&path, &target);
            } else {
                std::fs::copy(&path, &target).expect("a file");
            }
        }
    }
    let image = tempfile::tempdir().expect("a folder");
    copy(dir, image.path());
    image
}

fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a folder")
}
