//! Databases that another version of the server made: older ones are brought up to date, newer ones
//! are left alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use baton::store::{EventBody, Orchestration};
use baton_domain::ending::{FailureCode, Outcome, Usage};
use baton_domain::session::Report;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection, Executor};

use crate::*;

const FIRST_SCHEMA: &str = include_str!("../../migrations/sqlite/0001_sessions.sql");

/// What sqlx notes of the first migration, byte for byte: a server compares the checksum with that
/// of the file it was built with. So not even a comment in the file may be changed.
const FIRST_NOTED: &str = "
    CREATE TABLE _sqlx_migrations (
        version BIGINT PRIMARY KEY,
        description TEXT NOT NULL,
        installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
        success BOOLEAN NOT NULL,
        checksum BLOB NOT NULL,
        execution_time BIGINT NOT NULL
    );
    INSERT INTO _sqlx_migrations VALUES (1, 'sessions', '2026-11-22 09:59:00', TRUE,
        X'd92c48c3eaafe089a9a5dde58a76aefc73429322b8396f10d5425100f840488c7a3182d934674f7369d7d8197dcc0eea',
        1000);";

/// Rows as that server wrote them: none of the fields that came later, and no column for them.
const FIRST_ROWS: &str = r#"
    INSERT INTO orchestrations VALUES
        ('00000000-0000-0000-0000-000000000009', '1970-01-01T00:00:05Z',
         '{"repository":"owner/repo","requirements":"all of it"}');
    INSERT INTO sessions VALUES
        (1, '00000000-0000-0000-0000-000000000001', NULL, 'running', 4, 1, 7),
        (2, '00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000009',
         'failed', 2, 1, 2),
        (3, '00000000-0000-0000-0000-000000000003', '00000000-0000-0000-0000-000000000009',
         'blocked', 2, 1, 2);
    INSERT INTO session_briefs VALUES
        (1, '{"kind":"implementation","claude_session_id":"00000000-0000-0000-0000-000000000002","project":{"repository":"owner/repo","requirements":"do 1"},"project_settings":false,"created_at":"2026-11-22T10:00:00.123456789Z"}'),
        (2, '{"kind":"implementation","claude_session_id":"00000000-0000-0000-0000-000000000003","project":{"repository":"owner/repo","branch":"feature/x","requirements":"do 2","context":"beside"},"timeout_s":60,"project_settings":true,"created_at":"2026-11-22T10:00:00.123456789Z"}'),
        (3, '{"kind":"implementation","claude_session_id":"00000000-0000-0000-0000-000000000004","project":{"repository":"owner/repo","requirements":"do 3"},"dependencies":["00000000-0000-0000-0000-000000000002"],"project_settings":false,"created_at":"2026-11-22T10:00:00.123456789Z"}');
    INSERT INTO session_states VALUES
        (1, '{"running":{"attempt":1,"since":"1970-01-01T00:00:30Z"}}', NULL),
        (2, '{"finished":{"started_at":null,"outcome":{"failed":{"code":"oom","message":"too large"}},"at":"1970-01-01T00:00:40Z"}}',
         '{"summary":"half of it","next_steps":["rest"],"artifacts":[],"result":null,"usage":{"inputTokens":3,"outputTokens":2,"costUsd":1.5},"warnings":[]}'),
        (3, '{"blocked":{"dependency":"00000000-0000-0000-0000-000000000002"}}', NULL);
    INSERT INTO events VALUES
        (1, 1, 1000, '"created"'),
        (1, 2, 10000, '{"session":{"event":"start_requested","state":"queued"}}'),
        (1, 3, 20000, '{"session":{"event":{"launch_decided":1},"state":"starting"}}'),
        (1, 4, 30000, '{"session":{"event":{"claude_started":1},"state":"running"}}'),
        (1, 7, 31000, '{"note":"after"}'),
        (2, 1, 1000, '"created"'),
        (2, 2, 40000, '{"session":{"event":{"sandbox_lost":[1,"out_of_memory"]},"state":"failed"}}'),
        (3, 1, 1000, '"created"'),
        (3, 2, 40000, '{"session":{"event":{"dependency_lost":"00000000-0000-0000-0000-000000000002"},"state":"blocked"}}');
    INSERT INTO output_ranges VALUES (1, 5, 2, 1, 0, 0, 37, 11);
    INSERT INTO agent_positions VALUES (1, 1, 9);"#;

/// The two lines of the first session's range: length, milliseconds, flags (a line's end), text.
const FIRST_OUTPUT: &[u8] = b"\
    \x05\0\0\0\x58\x1b\0\0\0\0\0\0\x02first\
    \x06\0\0\0\x58\x1b\0\0\0\0\0\0\x02second";

fn database(dir: &Path) -> PathBuf {
    dir.join("baton.db")
}

async fn connect(dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(database(dir))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .connect()
        .await
        .expect("a connection")
}

/// What the first version of the server leaves behind when it stops.
async fn made_by_the_first(dir: &Path) {
    let mut connection = connect(dir).await;
    for sql in [FIRST_SCHEMA, FIRST_NOTED, FIRST_ROWS] {
        connection.execute(sql).await.expect("executed");
    }
    connection.close().await.expect("closed");
    let output = dir.join(format!("output/{}", id(1)));
    std::fs::create_dir_all(&output).expect("a folder");
    std::fs::write(output.join("1-0.seg"), FIRST_OUTPUT).expect("written");
}

/// The session that runs, as today's server sees it.
fn running() -> Session {
    let since = at(30);
    let attempt = Attempt::FIRST;
    Session {
        version: Version(4),
        state: SessionState::Running { attempt, since },
        ..session(1)
    }
}

async fn is_all_there(store: &Store) {
    let session_of = async |number| store.session(id(number)).await.expect("it is there");
    assert_eq!(*session_of(1).await, running());
    let report = Report {
        summary: "half of it".into(),
        next_steps: vec!["rest".into()],
        usage: Some(Usage {
            input_tokens: 3,
            output_tokens: 2,
            cost_usd: 1.5,
        }),
        ..Report::default()
    };
    let failed = Session {
        version: Version(2),
        state: SessionState::Finished {
            started_at: None,
            outcome: Outcome::failed(FailureCode::Oom, "too large"),
            at: at(40),
        },
        orchestration_id: Some(orchestration(9)),
        project: Project {
            branch: Some("feature/x".parse().expect("a branch")),
            context: Some("beside".into()),
            ..session(2).project
        },
        timeout_s: Some(60),
        project_settings: true,
        report: Some(report),
        ..session(2)
    };
    assert_eq!(*session_of(2).await, failed);
    let blocked = Session {
        version: Version(2),
        // That server blocked only what had been asked to run.
        state: SessionState::Blocked {
            dependency: id(2),
            asked: true,
        },
        orchestration_id: Some(orchestration(9)),
        dependencies: vec![id(2)],
        ..session(3)
    };
    assert_eq!(*session_of(3).await, blocked);
    let around = Orchestration::new(
        orchestration(9),
        "owner/repo".parse().expect("a repository"),
        "all of it".into(),
        at(5),
    );
    assert_eq!(
        store.orchestration(orchestration(9)).await.expect("there"),
        around
    );
}

fn changed(event: SessionEvent, state: &str) -> EventBody {
    EventBody::Session {
        event,
        state: state.to_owned(),
    }
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date_with_all_that_is_in_it() {
    let dir = tempdir();
    made_by_the_first(dir.path()).await;

    let store = open(dir.path()).await;
    is_all_there(&store).await;
    let attempt = Attempt::FIRST;
    let expected = [
        (1, at(1), EventBody::Created),
        (2, at(10), changed(SessionEvent::StartRequested, "queued")),
        (
            3,
            at(20),
            changed(SessionEvent::LaunchDecided(attempt), "starting"),
        ),
        (
            4,
            at(30),
            changed(SessionEvent::ClaudeStarted(attempt), "running"),
        ),
        (5, at(7), EventBody::Output(line("first"))),
        (6, at(7), EventBody::Output(line("second"))),
        (7, at(31), EventBody::Note("after".into())),
    ];
    let told = |events: Vec<StoredEvent>| -> Vec<_> {
        let parts = events
            .into_iter()
            .map(|event| (event.seq, event.at, event.body));
        parts.collect()
    };
    assert_eq!(told(all_events(&store, id(1)).await), expected);
    assert_eq!(all_events(&store, id(2)).await.len(), 2);
    assert_eq!(all_events(&store, id(3)).await.len(), 2);
    assert_eq!(store.acked(id(1), attempt).await.expect("known"), 9);

    // Its agent goes on where it was, and the session after it in its order.
    store
        .append_output(id(1), attempt, 9, &[line("again")])
        .await
        .expect("a repeat");
    store
        .append_output(id(1), attempt, 10, &[line("third")])
        .await
        .expect("appended");
    create_one(&store, session(4)).await;
    store.close().await;

    // The second start finds a database of its own version.
    let store = open(dir.path()).await;
    is_all_there(&store).await;
    let third = (8, at(7), EventBody::Output(line("third")));
    let expected: Vec<_> = expected.into_iter().chain([third]).collect();
    assert_eq!(told(all_events(&store, id(1)).await), expected);
    assert_eq!(*store.session(id(4)).await.expect("there"), session(4));
    store.close().await;

    // What a later column holds is worked out from what was there.
    let mut connection = connect(dir.path()).await;
    let spent: Vec<f64> = sqlx::query_scalar("SELECT spent_usd FROM sessions ORDER BY ordinal")
        .fetch_all(&mut connection)
        .await
        .expect("a column");
    assert_eq!(spent, [0.0, 1.5, 0.0, 0.0]);
}

/// All files of a data directory with what is in them.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            // One that has gone since it was listed is SQLite's own; see `is_of_a_reader`.
            found.insert(path, bytes);
        }
    }
    found
}

/// What SQLite keeps beside a database that is open and not written to. A connection that was
/// dropped is closed by a thread of its own, a moment later.
fn is_of_a_reader(path: &Path, bytes: &[u8]) -> bool {
    let name = path.to_string_lossy();
    name.ends_with("-shm") || (name.ends_with("-wal") && bytes.is_empty())
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_not_touched() {
    let dir = tempdir();
    let (store, made) = with_session(dir.path()).await;
    store
        .append_output(id(1), Attempt::FIRST, 1, &[line("kept")])
        .await
        .expect("appended");
    store.close().await;
    let mut newer = connect(dir.path()).await;
    newer
        .execute(
            "INSERT INTO _sqlx_migrations VALUES
                 (9999, 'of tomorrow', '2030-01-01 00:00:00', TRUE, X'00', 1000)",
        )
        .await
        .expect("noted");
    // Closed in order, so that all of it is in the database and nothing in a log beside it.
    newer.close().await.expect("closed");
    let before = files(dir.path());

    for _ in 0..2 {
        let opened = Store::open(dir.path(), StoreSettings::default()).await;
        let Err(StoreError::Schema { path, .. }) = &opened else {
            panic!("{opened:?}")
        };
        assert_eq!(*path, database(dir.path()));
        let mut after = files(dir.path());
        after.retain(|path, bytes| !is_of_a_reader(path, bytes));
        assert!(after == before, "nothing was touched");
    }

    // With that version away again it is as usable as ever.
    let mut newer = connect(dir.path()).await;
    newer
        .execute("DELETE FROM _sqlx_migrations WHERE version = 9999")
        .await
        .expect("forgotten");
    newer.close().await.expect("closed");
    let store = open(dir.path()).await;
    assert_eq!(store.session(id(1)).await.expect("there"), made);
}
