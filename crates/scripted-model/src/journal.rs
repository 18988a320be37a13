//! What was asked of the stand-in, so that a test can say "Claude was started once".

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

/// Entries kept; the oldest go first.
pub const ENTRIES_MAX: usize = 10_000;
/// Characters of a prompt that an entry keeps.
pub const EXCERPT_CHARS_MAX: usize = 400;

/// One request, as it was seen on arrival: before any scripted delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Counts every request since the start, from 0.
    pub seq: u64,
    /// When it arrived, RFC 3339.
    pub at: jiff::Timestamp,
    /// `POST`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Which credential came with it; never its value.
    pub auth: AuthKind,
    /// Claude's own session, from `x-claude-code-session-id`.
    pub claude_session_id: Option<String>,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether a stream was asked for.
    pub stream: Option<bool>,
    /// The script that plays.
    pub script: Option<String>,
    /// Its turn, from 0; the number of turns, or more, for the closing text.
    pub turn: Option<usize>,
    /// The beginning of the first user prompt.
    pub prompt: Option<String>,
    /// The beginning of the newest thing the user said.
    pub last_user_text: Option<String>,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// What it got.
    pub answered: Answered,
}

/// The credential of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthKind {
    /// None.
    None,
    /// `x-api-key`.
    ApiKey,
    /// `authorization: Bearer`.
    Bearer,
    /// Both headers.
    Both,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answered {
    /// A turn of a script, played well.
    Turn,
    /// A turn's fault.
    Fault,
    /// The closing text of a script whose turns are all played.
    Closing,
    /// A short answer: the CLI asked something beside the conversation.
    Side,
    /// A count of tokens.
    Count,
    /// 401: not the credential that is required.
    Unauthorized,
    /// 400 or 404: no request that a script can answer.
    Refused,
    /// 200 of a probe that is no call to the API.
    Probe,
}

/// The newest [`ENTRIES_MAX`] requests.
#[derive(Debug)]
pub struct Journal {
    entries: Mutex<VecDeque<Entry>>,
    /// Entries ever recorded; also the next `seq`.
    recorded: watch::Sender<u64>,
}

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("no such request within {0:?}")]
pub struct NotSeen(pub Duration);

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            entries: Mutex::new(VecDeque::new()),
            recorded: watch::Sender::new(0),
        }
    }

    /// Adds `entry`, and numbers it.
    pub(crate) fn record(&self, mut entry: Entry) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entry.seq = *self.recorded.borrow();
        entries.push_back(entry);
        self.recorded.send_modify(|recorded| *recorded += 1);
    }

    /// The requests seen, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().cloned().collect()
    }

    /// Requests that asked for turn `turn` of `script`. Repeats count: a retry asks again.
    pub fn asked(&self, script: &str, turn: usize) -> usize {
        self.entries()
            .iter()
            .filter(|entry| entry.asks(script, turn))
            .count()
    }

    /// Waits, at most `limit`, until the requests seen are as `seen` wants them.
    ///
    /// # Errors
    /// [`NotSeen`] after `limit`.
    pub async fn wait_until(
        &self,
        limit: Duration,
        seen: impl Fn(&[Entry]) -> bool,
    ) -> Result<Vec<Entry>, NotSeen> {
        let mut recorded = self.recorded.subscribe();
        let waiting = async {
            loop {
                recorded.borrow_and_update();
                let entries = self.entries();
                if seen(&entries) {
                    return entries;
                }
                if recorded.changed().await.is_err() {
                    // The sender lives in `self`; should that ever change, the limit ends this.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(limit, waiting)
            .await
            .map_err(|_| NotSeen(limit))
    }
}

impl Entry {
    /// Whether this request asked for turn `turn` of `script`.
    pub fn asks(&self, script: &str, turn: usize) -> bool {
        self.script.as_deref() == Some(script) && self.turn == Some(turn)
    }
}

/// The beginning of `text`, for an entry.
pub fn excerpt(text: &str) -> String {
    text.trim().chars().take(EXCERPT_CHARS_MAX).collect()
}
