//! The SQLite side of writing: opening, the transaction of a batch, closing.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Either, Executor};

use super::rows::{JsonRows, Rows};
use super::types::{Cause, StoreError};

/// How long a statement waits for another process that has the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection.
const READER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading. Most reads are answered from memory.
const READERS_MAX: u32 = 2;
/// Pages a connection keeps in memory; negative means KiB.
const WRITER_CACHE: &str = "-4096";
const READER_CACHE: &str = "-1024";
/// The write-ahead log is cut back to this after a checkpoint, in bytes.
const JOURNAL_BYTES_KEPT: &str = "16777216";
/// Databases up to this size are checked as a whole when they are opened: about 0.2 s. Larger
/// ones show damage only where they are read.
const CHECKED_BYTES_MAX: u64 = 64 * 1024 * 1024;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/sqlite");

/// The one writing connection.
pub(super) struct Database {
    path: PathBuf,
    /// None after an error that may have left it in the middle of a transaction.
    connection: Option<SqliteConnection>,
    readers: SqlitePool,
}

/// The statements of a batch in the order they are run, each with what it writes. Each takes its
/// rows as one argument, a JSON array. A `WHERE true` keeps SQLite from reading `ON CONFLICT` as a
/// join.
const STATEMENTS: [(&str, &str); 17] = [
    (
        "orchestrations",
        "INSERT INTO orchestrations (id, created_at, lands, parallel_max, max_cost_usd, body)
         SELECT value ->> 'id', value ->> 'created_at', value ->> 'lands',
             value ->> 'parallel_max', value ->> 'max_cost_usd', value -> 'body'
         FROM json_each(?);",
    ),
    (
        "landings",
        "UPDATE orchestrations SET landing = rows.value -> 'landing',
             landing_version = rows.value ->> 'version'
         FROM json_each(?) AS rows
         WHERE orchestrations.id = rows.value ->> 'id'
             AND orchestrations.landing_version = rows.value ->> 'read_at';",
    ),
    (
        "budgets",
        "UPDATE orchestrations SET max_cost_usd = rows.value ->> 'max_cost_usd'
         FROM json_each(?) AS rows WHERE orchestrations.id = rows.value ->> 'id';",
    ),
    (
        "reopened orchestrations",
        "UPDATE orchestrations SET changes = changes + 1
         FROM json_each(?) AS rows WHERE orchestrations.id = rows.value ->> 'id';",
    ),
    (
        "sessions",
        "INSERT INTO sessions
             (ordinal, id, orchestration_id, state, version, attempt, last_seq)
         SELECT value ->> 'ordinal', value ->> 'id', value ->> 'orchestration_id',
             value ->> 'state', value ->> 'version', value ->> 'attempt', value ->> 'last_seq'
         FROM json_each(?);",
    ),
    (
        "session_briefs",
        "INSERT INTO session_briefs (ordinal, body)
         SELECT value ->> 'ordinal', value -> 'body' FROM json_each(?);",
    ),
    (
        "session states",
        "UPDATE sessions SET version = rows.value ->> 'version',
             state = rows.value ->> 'state', attempt = rows.value ->> 'attempt',
             last_seq = rows.value ->> 'last_seq', spent_usd = rows.value ->> 'spent_usd'
         FROM json_each(?) AS rows
         WHERE sessions.ordinal = rows.value ->> 'ordinal'
             AND sessions.version = rows.value ->> 'read_at';",
    ),
    (
        "session_states",
        "INSERT INTO session_states (ordinal, state, report, steering)
         SELECT value ->> 'ordinal', value -> 'state', nullif(value -> 'report', 'null'),
             nullif(value -> 'steering', '{}')
         FROM json_each(?) WHERE true
         ON CONFLICT (ordinal) DO UPDATE SET state = excluded.state, report = excluded.report,
             steering = excluded.steering;",
    ),
    (
        "event counters",
        "UPDATE sessions SET last_seq = rows.value ->> 'last_seq'
         FROM json_each(?) AS rows WHERE sessions.ordinal = rows.value ->> 'ordinal';",
    ),
    (
        "idempotency_keys",
        "INSERT INTO idempotency_keys (key_sha256, digest, response)
         SELECT value ->> 'key_sha256', value ->> 'digest', unhex(value ->> 'response')
         FROM json_each(?);",
    ),
    (
        "events",
        "INSERT INTO events (ordinal, seq, at_ms, body)
         SELECT value ->> 'ordinal', value ->> 'seq', value ->> 'at_ms', value -> 'body'
         FROM json_each(?);",
    ),
    (
        "dropped output_ranges",
        "DELETE FROM output_ranges WHERE (ordinal, first_seq) IN
             (SELECT value ->> 'ordinal', value ->> 'first_seq' FROM json_each(?));",
    ),
    (
        "output_ranges",
        "INSERT INTO output_ranges
             (ordinal, first_seq, lines, attempt, segment, offset, bytes, text_bytes)
         SELECT value ->> 'ordinal', value ->> 'first_seq', value ->> 'lines',
             value ->> 'attempt', value ->> 'segment', value ->> 'offset', value ->> 'bytes',
             value ->> 'text_bytes'
         FROM json_each(?) WHERE true
         ON CONFLICT (ordinal, first_seq) DO UPDATE SET lines = excluded.lines,
             bytes = excluded.bytes, text_bytes = excluded.text_bytes;",
    ),
    (
        "truncations",
        "INSERT INTO truncations (ordinal, first_seq, last_seq, at_ms, text_bytes)
         SELECT value ->> 'ordinal', value ->> 'first_seq', value ->> 'last_seq',
             value ->> 'at_ms', value ->> 'text_bytes'
         FROM json_each(?) WHERE true
         ON CONFLICT (ordinal, first_seq) DO UPDATE SET last_seq = excluded.last_seq,
             at_ms = excluded.at_ms, text_bytes = excluded.text_bytes;",
    ),
    (
        "agent_positions",
        "INSERT INTO agent_positions (ordinal, attempt, position)
         SELECT value ->> 'ordinal', value ->> 'attempt', value ->> 'position'
         FROM json_each(?) WHERE true
         ON CONFLICT (ordinal, attempt) DO UPDATE SET position = excluded.position;",
    ),
    (
        "waits",
        "INSERT INTO waits (id, created_ms, body)
         SELECT value ->> 'id', value ->> 'created_ms', value -> 'body'
         FROM json_each(?) WHERE true
         ON CONFLICT (id) DO UPDATE SET body = excluded.body;",
    ),
    (
        "introductions",
        "INSERT INTO introductions (id, created_ms, body)
         SELECT value ->> 'id', value ->> 'created_ms', value ->> 'body'
         FROM json_each(?) WHERE true
         ON CONFLICT (id) DO UPDATE SET body = excluded.body;",
    ),
];

/// Fails, so that nothing is committed, unless the statement before it changed so many rows. A
/// temporary table is the connection's own; this one takes no row.
const CHECK: &str = "INSERT INTO temp.unexpected SELECT 1 WHERE changes() <> CAST(? AS INTEGER);";
const CHECKS: &str = "CREATE TEMP TABLE unexpected (row INTEGER CHECK (false))";

/// Whether a statement may change fewer rows than it was given. One that inserts fails instead.
fn is_guarded(sql: &str) -> bool {
    !sql.starts_with("INSERT")
}

/// The rows of each of [`STATEMENTS`].
fn arguments(rows: Rows) -> [JsonRows; STATEMENTS.len()] {
    [
        rows.orchestrations,
        rows.landings,
        rows.budgets,
        rows.reopenings,
        rows.sessions,
        rows.briefs,
        rows.moves,
        rows.states,
        rows.counters,
        rows.keys,
        rows.events,
        rows.dropped_ranges,
        rows.ranges,
        rows.truncations,
        rows.positions,
        rows.waits,
        rows.introductions,
    ]
}

impl Database {
    /// Opens the database at `path`, makes it or brings its schema up to date. A damaged one
    /// is refused before anything is written.
    pub(super) async fn open(path: PathBuf) -> Result<Self, StoreError> {
        let bytes = check_header(&path)?;
        let mut connection = connect(&path).await?;
        if bytes > 0 && bytes <= CHECKED_BYTES_MAX {
            quick_check(&mut connection, &path).await?;
        }
        MIGRATIONS
            .run(&mut connection)
            .await
            .map_err(|source| match source {
                sqlx::migrate::MigrateError::Execute(source) => failed("migrate")(source),
                source => StoreError::Schema {
                    path: path.clone(),
                    source: Arc::new(source),
                },
            })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(READER_TIMEOUT)
            // A connection to a file does not go stale.
            .test_before_acquire(false)
            .connect_lazy_with(
                options(&path)
                    .pragma("cache_size", READER_CACHE)
                    .pragma("query_only", "ON"),
            );
        Ok(Self {
            path,
            connection: Some(connection),
            readers,
        })
    }

    pub(super) fn readers(&self) -> SqlitePool {
        self.readers.clone()
    }

    /// Writes the rows in one transaction; all of them or, on error, none.
    pub(super) async fn apply(&mut self, rows: Rows) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.path).await?,
        };
        let outcome = transact(&mut connection, rows).await;
        let at_rest = outcome.is_ok() || rolled_back(&mut connection).await;
        if at_rest {
            self.connection = Some(connection);
        }
        outcome
    }

    /// Moves the log into the database file and lets go of it.
    pub(super) async fn close(self) {
        self.readers.close().await;
        let Some(mut connection) = self.connection else {
            return;
        };
        // What fails here is done again by the next start.
        let checkpoint = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection);
        if let Err(error) = checkpoint.await {
            tracing::warn!(%error, "the write-ahead log was left for the next start");
        }
        if let Err(error) = connection.close().await {
            tracing::warn!(%error, "the database was not closed in order");
        }
    }
}

/// Runs the batch's statements and commits, all in one message to the connection's thread whatever
/// the number of rows: each message costs two thread switches.
async fn transact(connection: &mut SqliteConnection, rows: Rows) -> Result<(), StoreError> {
    let mut text = String::from("BEGIN IMMEDIATE;");
    let mut values = Vec::new();
    // How many rows each statement is to change, of those of which that is not certain.
    let mut expected = vec![None];
    for ((what, sql), rows) in STATEMENTS.into_iter().zip(arguments(rows)) {
        let count = rows.count();
        if count == 0 {
            continue;
        }
        text.push_str(sql);
        values.push(rows.finish());
        if is_guarded(sql) {
            text.push_str(CHECK);
            values.push(count.to_string());
            expected.push(Some((what, count)));
        }
        expected.push(None);
    }
    text.push_str("COMMIT;");
    expected.push(None);
    // The text is made of the constants above alone, and of few combinations: each is prepared
    // once.
    let mut query = sqlx::query(AssertSqlSafe(text));
    for value in values {
        query = query.bind(value);
    }
    let mut results = (&mut *connection).fetch_many(query);
    let mut expected = expected.into_iter();
    let mut unexpected = None;
    loop {
        match results.try_next().await {
            Ok(Some(Either::Left(done))) => {
                let written = done.rows_affected();
                // One result for each statement, in their order.
                if let Some((what, rows)) = expected.next().flatten()
                    && written != rows
                {
                    unexpected = Some(format!("{written} of {rows} {what}"));
                }
            }
            Ok(Some(Either::Right(_))) => {}
            Ok(None) if expected.len() == 0 => return Ok(()),
            Ok(None) => {
                return Err(StoreError::Unavailable {
                    what: "write",
                    source: Some(Arc::new(sqlx::Error::WorkerCrashed)),
                });
            }
            Err(error) => {
                return Err(match unexpected {
                    // The directory differs from the rows: somebody else wrote to the database.
                    Some(found) => StoreError::Corrupt {
                        what: format!("the database ({found} were as expected)"),
                        source: None,
                    },
                    None => failed("write")(error),
                });
            }
        }
    }
}

/// Whether the connection is outside of any transaction again.
async fn rolled_back(connection: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => true,
        // SQLite rolls back by itself on some errors; and BEGIN may have been what failed.
        Err(error) => error.to_string().contains("no transaction is active"),
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
}

async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = options(path)
        .journal_mode(SqliteJournalMode::Wal)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("journal_size_limit", JOURNAL_BYTES_KEPT);
    let opened = options.connect().await;
    let mut connection = opened.map_err(failed("open the database"))?;
    let checks = connection.execute(CHECKS).await;
    checks.map_err(failed("open the database"))?;
    Ok(connection)
}

/// The size of the database, 0 when there is none; looks without SQLite, which might write.
fn check_header(path: &Path) -> Result<u64, StoreError> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(StoreError::io("open the database")(error)),
    };
    let bytes = file
        .metadata()
        .map_err(StoreError::io("open the database"))?
        .len();
    let mut header = [0; MAGIC.len()];
    if bytes > 0 && (file.read_exact(&mut header).is_err() || header != *MAGIC) {
        return Err(corrupt(path, None));
    }
    Ok(bytes)
}

async fn quick_check(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(connection)
        .await
        .map_err(failed("check the database"))?;
    if found == "ok" {
        return Ok(());
    }
    let cause: Box<dyn std::error::Error + Send + Sync> = found.into();
    Err(corrupt(path, Some(cause.into())))
}

fn corrupt(path: &Path, source: Option<Cause>) -> StoreError {
    StoreError::Corrupt {
        what: path.display().to_string(),
        source,
    }
}

/// What an error of SQLite's means to the store's callers.
pub(super) fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    const CORRUPT: i32 = 11;
    const NOT_A_DATABASE: i32 = 26;
    move |source| match primary_code(&source) {
        Some(CORRUPT | NOT_A_DATABASE) => StoreError::Corrupt {
            what: "the database".to_owned(),
            source: Some(Arc::new(source)),
        },
        _ => StoreError::Unavailable {
            what,
            source: Some(Arc::new(source)),
        },
    }
}

/// Whether another process had the database locked for [`BUSY_TIMEOUT`].
pub(super) fn is_locked(error: &StoreError) -> bool {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    let StoreError::Unavailable {
        source: Some(source),
        ..
    } = error
    else {
        return false;
    };
    let code = source.downcast_ref::<sqlx::Error>().and_then(primary_code);
    matches!(code, Some(BUSY | LOCKED))
}

/// SQLite's result code without its extension.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|code| code & 0xff)
}
