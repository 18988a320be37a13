//! The SQLite side of reading.

use std::sync::Arc;

use baton_domain::session::Report;
use baton_domain::steering::Steering;
use baton_domain::waits::Wait;
use baton_domain::{
    Attempt, Kind, OrchestrationId, Session, SessionState, Status, Version, WaitId,
};
use futures::TryStreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::batch::KnownKeys;
use super::directory::{Entry, LandingEntry, OrchestrationEntry};
use super::rows::{Brief, DerivedEvent, OrchestrationBody, Range, Truncation};
use super::sqlite::failed;
use super::types::{Orchestration, StoreError};

/// Reads through a few connections of their own.
#[derive(Clone)]
pub(super) struct Reads {
    pool: SqlitePool,
}

/// What is stored of a session's output.
#[derive(Debug, Default)]
pub(super) struct StoredOutput {
    /// The segments with what is recorded of each, in the order they were begun.
    pub(super) segments: Vec<StoredSegment>,
    pub(super) positions: Vec<(Attempt, u64)>,
    pub(super) newest: Option<Range>,
    pub(super) newest_truncation: Option<Truncation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct StoredSegment {
    pub(super) attempt: Attempt,
    pub(super) number: u32,
    /// How long its file is; what lies beyond was never acknowledged.
    pub(super) bytes: u64,
}

/// A stretch of a session's events.
#[derive(Debug)]
pub(super) enum Stretch {
    Derived {
        seq: u64,
        at: Timestamp,
        body: DerivedEvent,
        bytes: usize,
    },
    Truncated(Truncation),
    Lines(Range),
}

/// Of how many sessions it is read how long they took.
const DURATIONS_MAX: usize = 200;

const SESSION: &str = "SELECT s.ordinal, s.id, s.orchestration_id, s.version, s.attempt,
         b.body, t.state, t.report, t.steering
     FROM sessions s JOIN session_briefs b USING (ordinal) JOIN session_states t USING (ordinal)";

const ORCHESTRATION: &str =
    "SELECT id, created_at, body, lands, parallel_max, max_cost_usd, landing, landing_version, changes
     FROM orchestrations";

impl Reads {
    pub(super) fn new(pool: SqlitePool) -> Self {
        Self { pool }
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        let query = sqlx::query("SELECT max(ordinal) FROM sessions").execute(&self.pool);
        query.await.map(drop).map_err(failed("answer"))
    }

    /// An entry for each session, oldest first.
    pub(super) async fn entries(
        &self,
    ) -> Result<Vec<(Entry, Option<OrchestrationId>)>, StoreError> {
        let mut rows = sqlx::query(
            "SELECT ordinal, id, orchestration_id, state, version, last_seq, spent_usd FROM sessions
             ORDER BY ordinal",
        )
        .fetch(&self.pool);
        let mut entries = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed("load the sessions"))? {
            let row = Columns(&row);
            let entry = Entry {
                id: row.parsed("id")?,
                ordinal: row.number("ordinal")?,
                version: Version(row.number("version")?),
                last_seq: row.number("last_seq")?,
                over: over_of(&row.text("state")?),
                spent_usd: row.column("spent_usd")?,
            };
            entries.push((entry, row.parsed_if_any("orchestration_id")?));
        }
        Ok(entries)
    }

    /// An entry for each orchestration.
    pub(super) async fn orchestrations(
        &self,
    ) -> Result<Vec<(OrchestrationId, OrchestrationEntry)>, StoreError> {
        let rows = sqlx::query("SELECT id, parallel_max, max_cost_usd FROM orchestrations")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("load the orchestrations"))?;
        let entries = rows.iter().map(|row| {
            let row = Columns(row);
            let entry = OrchestrationEntry {
                parallel_max: row.column("parallel_max")?,
                max_cost_usd: row.column("max_cost_usd")?,
            };
            Ok((row.parsed("id")?, entry))
        });
        entries.collect()
    }

    /// What is kept in memory of the orchestrations that land as a whole.
    pub(super) async fn landings(
        &self,
    ) -> Result<Vec<(OrchestrationId, LandingEntry)>, StoreError> {
        let text = format!("{ORCHESTRATION} WHERE lands = 1");
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(text)).fetch(&self.pool);
        let mut entries = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed("load the landings"))? {
            let orchestration = orchestration_of(&row)?;
            entries.push((orchestration.id, LandingEntry::of(&orchestration)));
        }
        Ok(entries)
    }

    /// All sessions that are not over, with their rows.
    pub(super) async fn live(&self) -> Result<Vec<(u64, Arc<Session>)>, StoreError> {
        let text = format!(
            "{SESSION} WHERE s.state NOT IN ('completed', 'failed', 'cancelled', 'blocked')
             ORDER BY s.ordinal"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("load the sessions"))?;
        rows.iter().map(session_of).collect()
    }

    /// The sessions with these rows, in the order of their rows.
    pub(super) async fn sessions(
        &self,
        ordinals: &[u64],
    ) -> Result<Vec<(u64, Arc<Session>)>, StoreError> {
        let text = format!(
            "{SESSION} WHERE s.ordinal IN (SELECT value FROM json_each(?)) ORDER BY s.ordinal"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(serde_json::json!(ordinals).to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read sessions"))?;
        rows.iter().map(session_of).collect()
    }

    pub(super) async fn orchestration(
        &self,
        id: OrchestrationId,
    ) -> Result<Orchestration, StoreError> {
        let text = format!("{ORCHESTRATION} WHERE id = ?");
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read an orchestration"))?
            .ok_or(StoreError::OrchestrationNotFound(id))?;
        orchestration_of(&row)
    }

    pub(super) async fn wait(&self, id: WaitId) -> Result<Option<Wait>, StoreError> {
        let row = sqlx::query("SELECT body FROM waits WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read a wait"))?;
        row.map(|row| Columns(&row).json("body")).transpose()
    }

    pub(super) async fn introduction(&self, id: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT body FROM introductions WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read an introduction"))?;
        row.map_or(Ok(None), |row| Columns(&row).text_if_any("body"))
    }

    /// What is stored of those keys.
    pub(super) async fn known_keys(&self, keys: &[String]) -> Result<KnownKeys, StoreError> {
        if keys.is_empty() {
            return Ok(KnownKeys::new());
        }
        let rows = sqlx::query(
            "SELECT key_sha256, unhex(digest), response FROM idempotency_keys
             WHERE key_sha256 IN (SELECT value FROM json_each(?))",
        )
        .bind(serde_json::json!(keys).to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read the idempotency keys"))?;
        let mut known = KnownKeys::with_capacity(rows.len());
        for row in rows {
            let (key, digest, response): (String, Vec<u8>, Vec<u8>) =
                (row.get(0), row.get(1), row.get(2));
            let digest = digest.try_into().map_err(|_| StoreError::Corrupt {
                what: format!("row {key} of idempotency_keys"),
                source: None,
            })?;
            known.insert(key, (digest, response));
        }
        Ok(known)
    }

    /// How long the newest completed sessions took, oldest first.
    pub(super) async fn durations(&self) -> Result<Vec<(Kind, u64)>, StoreError> {
        let text = format!(
            "{SESSION} WHERE s.state = 'completed' ORDER BY s.ordinal DESC LIMIT {DURATIONS_MAX}"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read how long sessions took"))?;
        let mut took = Vec::with_capacity(rows.len());
        for row in rows.iter().rev() {
            let (_, session) = session_of(row)?;
            took.extend(
                session
                    .state
                    .seconds_to_completion()
                    .map(|s| (session.kind, s)),
            );
        }
        Ok(took)
    }

    pub(super) async fn position(&self, ordinal: u64, attempt: Attempt) -> Result<u64, StoreError> {
        let row =
            sqlx::query("SELECT position FROM agent_positions WHERE ordinal = ? AND attempt = ?")
                .bind(signed(ordinal))
                .bind(attempt.0)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("read an agent's position"))?;
        row.map_or(Ok(0), |row| Columns(&row).number("position"))
    }

    /// What is stored of a session's output. One statement: it is seen at one moment, and asked
    /// for before the first line of a session is acknowledged.
    pub(super) async fn output(&self, ordinal: u64) -> Result<StoredOutput, StoreError> {
        let row = sqlx::query(
            "SELECT
                 (SELECT json_group_array(json_array(attempt, position))
                  FROM agent_positions WHERE ordinal = ?1) AS positions,
                 (SELECT json_group_array(json_object('attempt', attempt, 'number', segment,
                      'bytes', bytes) ORDER BY first_seq)
                  FROM (SELECT attempt, segment, max(offset + bytes) AS bytes,
                            min(first_seq) AS first_seq
                        FROM output_ranges WHERE ordinal = ?1 GROUP BY attempt, segment)
                 ) AS segments,
                 (SELECT json_object('first_seq', first_seq, 'lines', lines, 'attempt', attempt,
                      'segment', segment, 'offset', offset, 'bytes', bytes,
                      'text_bytes', text_bytes)
                  FROM output_ranges WHERE ordinal = ?1 ORDER BY first_seq DESC LIMIT 1
                 ) AS newest,
                 (SELECT json_object('first_seq', first_seq, 'last_seq', last_seq, 'at_ms', at_ms,
                      'text_bytes', text_bytes)
                  FROM truncations WHERE ordinal = ?1 ORDER BY first_seq DESC LIMIT 1
                 ) AS newest_truncation",
        )
        .bind(signed(ordinal))
        .fetch_one(&self.pool)
        .await
        .map_err(failed("read a session's output"))?;
        let row = Columns(&row);
        Ok(StoredOutput {
            positions: row.json("positions")?,
            segments: row.json("segments")?,
            newest: row.json_if_any("newest")?,
            newest_truncation: row.json_if_any("newest_truncation")?,
        })
    }

    /// The segments that are recorded of a session, in the order they were begun.
    pub(super) async fn segments(&self, ordinal: u64) -> Result<Vec<StoredSegment>, StoreError> {
        let rows = sqlx::query(
            "SELECT attempt, segment, max(offset + bytes) AS bytes FROM output_ranges
             WHERE ordinal = ? GROUP BY attempt, segment ORDER BY min(first_seq)",
        )
        .bind(signed(ordinal))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read a session's output"))?;
        rows.iter()
            .map(|row| {
                let row = Columns(row);
                Ok(StoredSegment {
                    attempt: row.attempt()?,
                    number: row.small("segment")?,
                    bytes: row.number("bytes")?,
                })
            })
            .collect()
    }

    /// The ranges in one segment.
    pub(super) async fn ranges_in(
        &self,
        ordinal: u64,
        segment: StoredSegment,
    ) -> Result<Vec<Range>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM output_ranges WHERE ordinal = ? AND attempt = ? AND segment = ?
             ORDER BY first_seq",
        )
        .bind(signed(ordinal))
        .bind(segment.attempt.0)
        .bind(segment.number)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read a session's output"))?;
        rows.iter().map(range_of).collect()
    }

    /// At most `limit` stretches, without a gap, from the one that number `after + 1` is in.
    /// One statement, so that all three tables are seen at one moment.
    pub(super) async fn stretches(
        &self,
        ordinal: u64,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Stretch>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq AS first_seq, seq AS last_seq, at_ms, body, 0 AS lines, 0 AS attempt,
                 0 AS segment, 0 AS offset, 0 AS bytes, 0 AS text_bytes
             FROM events WHERE ordinal = ?1 AND seq > ?2
             UNION ALL
             SELECT first_seq, last_seq, at_ms, NULL, 0, 0, 0, 0, 0, text_bytes
             FROM truncations WHERE ordinal = ?1 AND last_seq > ?2
             UNION ALL
             SELECT first_seq, first_seq + lines - 1, 0, NULL, lines, attempt, segment, offset,
                 bytes, text_bytes
             FROM output_ranges WHERE ordinal = ?1 AND first_seq + lines - 1 > ?2
                 AND first_seq >= coalesce((SELECT max(first_seq) FROM output_ranges
                     WHERE ordinal = ?1 AND first_seq <= ?2), 0)
             ORDER BY first_seq LIMIT ?3",
        )
        .bind(signed(ordinal))
        .bind(signed(after))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read events"))?;
        rows.iter().map(stretch_of).collect()
    }
}

fn stretch_of(row: &SqliteRow) -> Result<Stretch, StoreError> {
    let columns = Columns(row);
    if let Some(text) = columns.text_if_any("body")? {
        let at: i64 = columns.column("at_ms")?;
        return Ok(Stretch::Derived {
            seq: columns.number("first_seq")?,
            at: Timestamp::from_millisecond(at).map_err(|_| columns.unreadable("at_ms"))?,
            body: columns.json("body")?,
            bytes: text.len(),
        });
    }
    if columns.number("lines")? == 0 {
        return truncation_of(row).map(Stretch::Truncated);
    }
    range_of(row).map(Stretch::Lines)
}

fn truncation_of(row: &SqliteRow) -> Result<Truncation, StoreError> {
    let row = Columns(row);
    Ok(Truncation {
        first_seq: row.number("first_seq")?,
        last_seq: row.number("last_seq")?,
        at_ms: row.column("at_ms")?,
        text_bytes: row.number("text_bytes")?,
    })
}

fn range_of(row: &SqliteRow) -> Result<Range, StoreError> {
    let row = Columns(row);
    Ok(Range {
        first_seq: row.number("first_seq")?,
        lines: row.number("lines")?,
        attempt: row.attempt()?,
        segment: row.small("segment")?,
        offset: row.number("offset")?,
        bytes: row.number("bytes")?,
        text_bytes: row.number("text_bytes")?,
    })
}

fn orchestration_of(row: &SqliteRow) -> Result<Orchestration, StoreError> {
    let row = Columns(row);
    let body: OrchestrationBody = row.json("body")?;
    Ok(Orchestration {
        id: row.parsed("id")?,
        repository: body.repository,
        requirements: body.requirements,
        created_at: row.parsed("created_at")?,
        branch: body.branch,
        lands: row.number("lands")? == 1,
        gate: body.gate,
        timeout_s: body.timeout_s,
        parallel_max: row.column("parallel_max")?,
        max_cost_usd: row.column("max_cost_usd")?,
        summary: body.summary,
        landing: row.json_if_any("landing")?.unwrap_or_default(),
        landing_version: Version(row.number("landing_version")?),
        changes: row.number("changes")?,
    })
}

fn session_of(row: &SqliteRow) -> Result<(u64, Arc<Session>), StoreError> {
    let row = Columns(row);
    let brief: Brief = row.json("body")?;
    let state: SessionState = row.json("state")?;
    let steering: Option<Steering> = row.json_if_any("steering")?;
    let report: Option<Report> = row.json_if_any("report")?;
    let session = Session {
        id: row.parsed("id")?,
        kind: brief.kind,
        state,
        version: Version(row.number("version")?),
        orchestration_id: row.parsed_if_any("orchestration_id")?,
        claude_session_id: brief.claude_session_id,
        attempt: row.attempt()?,
        project: brief.project,
        dependencies: brief.dependencies,
        timeout_s: brief.timeout_s,
        project_settings: brief.project_settings,
        created_at: brief.created_at,
        title: brief.title,
        priority: brief.priority,
        command: brief.command,
        planning: brief.planning,
        start_commit: brief.start_commit,
        parent: brief.parent,
        steering: steering.unwrap_or_default(),
        report,
    };
    Ok((row.number("ordinal")?, Arc::new(session)))
}

/// The status of a session whose state has this name, if it is over.
fn over_of(state: &str) -> Option<Status> {
    match state {
        "completed" => Some(Status::Completed),
        "failed" => Some(Status::Failed),
        "cancelled" => Some(Status::Cancelled),
        "blocked" => Some(Status::Blocked),
        _ => None,
    }
}

/// SQLite's integers are signed; none of ours comes near the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads columns; one that this code cannot have written is an error that names it.
struct Columns<'a>(&'a SqliteRow);

impl Columns<'_> {
    fn column<'r, T>(&'r self, name: &'static str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.0.try_get(name).map_err(|source| StoreError::Corrupt {
            what: format!("column {name} of the database"),
            source: Some(Arc::new(source)),
        })
    }

    fn unreadable(&self, name: &'static str) -> StoreError {
        StoreError::Corrupt {
            what: format!("column {name} of the database"),
            source: None,
        }
    }

    fn number(&self, name: &'static str) -> Result<u64, StoreError> {
        let number: i64 = self.column(name)?;
        u64::try_from(number).map_err(|_| self.unreadable(name))
    }

    fn small(&self, name: &'static str) -> Result<u32, StoreError> {
        u32::try_from(self.number(name)?).map_err(|_| self.unreadable(name))
    }

    fn attempt(&self) -> Result<Attempt, StoreError> {
        self.small("attempt").map(Attempt)
    }

    fn text(&self, name: &'static str) -> Result<String, StoreError> {
        self.column(name)
    }

    fn text_if_any(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.column(name)
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, StoreError> {
        let text: &str = self.column(name)?;
        text.parse().map_err(|_| self.unreadable(name))
    }

    fn parsed_if_any<T: std::str::FromStr>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text: Option<&str> = self.column(name)?;
        text.map(|text| text.parse().map_err(|_| self.unreadable(name)))
            .transpose()
    }

    fn json<T: DeserializeOwned>(&self, name: &'static str) -> Result<T, StoreError> {
        self.json_if_any(name)?.ok_or_else(|| self.unreadable(name))
    }

    fn json_if_any<T: DeserializeOwned>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text: Option<&str> = self.column(name)?;
        let value = text.map(serde_json::from_str).transpose();
        value.map_err(|source| StoreError::Corrupt {
            what: format!("column {name} of the database"),
            source: Some(Arc::new(source)),
        })
    }
}
