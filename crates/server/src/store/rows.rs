//! Rows as they go to the database: arrays of JSON objects, one array for each table written.
//!
//! A whole batch then is a handful of statements, however many rows it has. The statements are in
//! [`super::sqlite`].

use baton_domain::decompose::Planning;
use baton_domain::landing::Landing;
use baton_domain::session::Report;
use baton_domain::steering::Steering;
use baton_domain::{
    Attempt, Branch, ClaudeSessionId, Kind, Project, Repository, SessionEvent, SessionId,
    SessionState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A JSON array under construction.
#[derive(Debug, Default)]
pub(super) struct JsonRows {
    text: Vec<u8>,
    count: u64,
}

impl JsonRows {
    pub(super) fn push(&mut self, row: &impl Serialize) -> Result<(), serde_json::Error> {
        self.text.push(if self.count == 0 { b'[' } else { b',' });
        self.count += 1;
        serde_json::to_writer(&mut self.text, row)
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The array as text.
    pub(super) fn finish(mut self) -> String {
        if self.count == 0 {
            self.text.push(b'[');
        }
        self.text.push(b']');
        // serde_json writes UTF-8 only.
        String::from_utf8(self.text).unwrap_or_default()
    }
}

/// Everything one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) orchestrations: JsonRows,
    pub(super) landings: JsonRows,
    pub(super) budgets: JsonRows,
    pub(super) reopenings: JsonRows,
    pub(super) sessions: JsonRows,
    pub(super) briefs: JsonRows,
    pub(super) moves: JsonRows,
    pub(super) states: JsonRows,
    pub(super) counters: JsonRows,
    pub(super) keys: JsonRows,
    pub(super) events: JsonRows,
    pub(super) dropped_ranges: JsonRows,
    pub(super) ranges: JsonRows,
    pub(super) truncations: JsonRows,
    pub(super) positions: JsonRows,
    pub(super) waits: JsonRows,
    pub(super) introductions: JsonRows,
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        [
            &self.orchestrations,
            &self.landings,
            &self.budgets,
            &self.sessions,
            &self.moves,
            &self.counters,
            &self.keys,
            &self.events,
            &self.dropped_ranges,
            &self.ranges,
            &self.truncations,
            &self.positions,
            &self.waits,
            &self.introductions,
        ]
        .iter()
        .all(|rows| rows.count == 0)
    }
}

#[derive(Serialize)]
pub(super) struct OrchestrationRow<'a> {
    pub(super) id: baton_domain::OrchestrationId,
    pub(super) created_at: Timestamp,
    pub(super) lands: u8,
    pub(super) parallel_max: Option<u32>,
    pub(super) max_cost_usd: Option<f64>,
    pub(super) body: &'a OrchestrationBody,
}

/// What never changes of an orchestration. A new field needs a default, for the rows that lack it.
#[derive(Serialize, Deserialize)]
pub(super) struct OrchestrationBody {
    pub(super) repository: Repository,
    pub(super) requirements: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) branch: Option<Branch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout_s: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) summary: String,
}

/// A change of an orchestration's landing, guarded by the version that was read.
#[derive(Serialize)]
pub(super) struct LandingRow<'a> {
    pub(super) id: baton_domain::OrchestrationId,
    pub(super) read_at: u64,
    pub(super) version: u64,
    pub(super) landing: &'a Landing,
}

/// A wait that is made, or changed.
#[derive(Serialize)]
pub(super) struct WaitRow<'a> {
    pub(super) id: baton_domain::WaitId,
    pub(super) created_ms: i64,
    pub(super) body: &'a baton_domain::waits::Wait,
}

/// What a client said of itself when it began; nothing once it has ended.
#[derive(Serialize)]
pub(super) struct IntroductionRow<'a> {
    pub(super) id: &'a str,
    pub(super) created_ms: i64,
    pub(super) body: Option<&'a str>,
}

/// What an orchestration may cost from now on.
#[derive(Serialize)]
pub(super) struct BudgetRow {
    pub(super) id: baton_domain::OrchestrationId,
    pub(super) max_cost_usd: f64,
}

/// An orchestration a session of which was reopened, or added.
#[derive(Serialize)]
pub(super) struct ReopeningRow {
    pub(super) id: baton_domain::OrchestrationId,
}

#[derive(Serialize)]
pub(super) struct SessionRow {
    pub(super) ordinal: u64,
    pub(super) id: SessionId,
    pub(super) orchestration_id: Option<baton_domain::OrchestrationId>,
    pub(super) state: &'static str,
    pub(super) version: u64,
    pub(super) attempt: Attempt,
    pub(super) last_seq: u64,
}

#[derive(Serialize)]
pub(super) struct BriefRow<'a> {
    pub(super) ordinal: u64,
    pub(super) body: &'a Brief,
}

/// What never changes of a session. A new field needs a default, for the rows that lack it.
#[derive(Serialize, Deserialize)]
pub(super) struct Brief {
    pub(super) kind: Kind,
    pub(super) claude_session_id: ClaudeSessionId,
    pub(super) project: Project,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dependencies: Vec<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout_s: Option<u64>,
    #[serde(default)]
    pub(super) project_settings: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) title: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) priority: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) planning: Option<Planning>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<SessionId>,
    pub(super) created_at: Timestamp,
}

/// A change of a session's small row, guarded by the version that was read.
#[derive(Serialize)]
pub(super) struct MoveRow {
    pub(super) ordinal: u64,
    pub(super) read_at: u64,
    pub(super) version: u64,
    pub(super) state: &'static str,
    pub(super) attempt: Attempt,
    pub(super) last_seq: u64,
    pub(super) spent_usd: f64,
}

#[derive(Serialize)]
pub(super) struct StateRow<'a> {
    pub(super) ordinal: u64,
    pub(super) state: &'a SessionState,
    pub(super) report: Option<&'a Report>,
    pub(super) steering: &'a Steering,
}

#[derive(Serialize)]
pub(super) struct CounterRow {
    pub(super) ordinal: u64,
    pub(super) last_seq: u64,
}

#[derive(Serialize)]
pub(super) struct KeyRow {
    pub(super) key_sha256: String,
    pub(super) digest: String,
    /// Hex: JSON cannot carry bytes.
    pub(super) response: String,
}

#[derive(Serialize)]
pub(super) struct EventRow<'a> {
    pub(super) ordinal: u64,
    pub(super) seq: u64,
    pub(super) at_ms: i64,
    pub(super) body: &'a DerivedEvent,
}

/// An event that is a row, not a line of output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DerivedEvent {
    Created,
    Session { event: SessionEvent, state: String },
    Note(String),
}

/// Lines in one piece of one segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    pub(super) first_seq: u64,
    pub(super) lines: u64,
    pub(super) attempt: Attempt,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) text_bytes: u64,
}

/// Numbers whose lines were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Truncation {
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// When the last of them were dropped.
    pub(super) at_ms: i64,
    pub(super) text_bytes: u64,
}

/// A row of a session.
#[derive(Serialize)]
pub(super) struct Of<T> {
    pub(super) ordinal: u64,
    #[serde(flatten)]
    pub(super) row: T,
}

#[derive(Serialize)]
pub(super) struct FirstSeq {
    pub(super) first_seq: u64,
}

#[derive(Serialize)]
pub(super) struct PositionRow {
    pub(super) attempt: Attempt,
    pub(super) position: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}
