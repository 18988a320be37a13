//! What a session put out, as lines for people.

use baton_agent::protocol::{Stream, WORKSPACE_DIR};
use baton_domain::SessionId;
use baton_domain::output::log_lines;

use super::{Orchestrator, OrchestratorError, OutputCursor, SessionOutput};
use crate::store::{EventBody, StoredEvent};

/// The most bytes of lines in one answer; the last line may go beyond.
pub const OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most bytes of raw output read for one answer: most of it may say nothing to people.
pub const SCANNED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What an event counts besides its text.
const EVENT_BYTES: usize = 256;
const PAGE_EVENTS_MAX: usize = 1_000;
const PAGE_BYTES_MAX: usize = 256 * 1024;

impl Orchestrator {
    /// Log lines of a session from `cursor` on, at most `lines_max` and about
    /// [`OUTPUT_BYTES_MAX`] bytes.
    ///
    /// There is a next cursor until the session is over and all of it has been told: whoever goes
    /// on with it follows the session to its end. An answer may hold fewer lines than there are,
    /// even none, and a cursor: long stretches of raw output say nothing to people, and no answer
    /// reads more than [`SCANNED_BYTES_MAX`].
    ///
    /// # Errors
    /// Not found.
    pub async fn session_output(
        &self,
        id: SessionId,
        cursor: Option<OutputCursor>,
        lines_max: usize,
    ) -> Result<SessionOutput, OrchestratorError> {
        // Read before the events: a session that is over then has no event still to come.
        let details = self.session(id).await?;
        let mut reading = Reading {
            lines: Vec::new(),
            lines_max,
            line_bytes: 0,
            scanned_bytes: 0,
            at: cursor.unwrap_or_default(),
        };
        let is_over = details.session.state.is_over();
        let (all_told, next_cursor) = loop {
            let page = self
                .events(id, reading.at.seq, PAGE_EVENTS_MAX, PAGE_BYTES_MAX)
                .await?;
            if page.is_empty() {
                break (true, (!is_over).then_some(reading.at));
            }
            if page.iter().any(|event| !reading.take(event)) {
                break (false, Some(reading.at));
            }
        };
        let none_at_all = cursor.is_none()
            && all_told
            && reading.lines.is_empty()
            && details.session.report.is_none();
        Ok(SessionOutput {
            details,
            logs: (!none_at_all).then_some(reading.lines),
            next_cursor: next_cursor.filter(|_| !none_at_all),
        })
    }
}

struct Reading {
    lines: Vec<String>,
    lines_max: usize,
    line_bytes: usize,
    scanned_bytes: usize,
    at: OutputCursor,
}

impl Reading {
    /// Takes the lines of one event; false when some had to be left for the next answer.
    fn take(&mut self, event: &StoredEvent) -> bool {
        let is_full = self.lines.len() >= self.lines_max
            || self.line_bytes >= OUTPUT_BYTES_MAX
            || self.scanned_bytes >= SCANNED_BYTES_MAX;
        let lines = event_lines(event);
        if is_full && !lines.is_empty() {
            return false;
        }
        if let EventBody::Output(line) = &event.body {
            // Reading an empty line costs, too.
            self.scanned_bytes += line.bytes.len() + EVENT_BYTES;
        }
        for line in lines.into_iter().skip(self.at.lines) {
            if self.lines.len() >= self.lines_max || self.line_bytes >= OUTPUT_BYTES_MAX {
                return false;
            }
            self.at.lines += 1;
            self.line_bytes += line.len();
            self.lines.push(line);
        }
        self.at = OutputCursor {
            seq: last_seq(event),
            lines: 0,
        };
        self.scanned_bytes < SCANNED_BYTES_MAX
    }
}

fn last_seq(event: &StoredEvent) -> u64 {
    match event.body {
        EventBody::Truncated { last_seq, .. } => last_seq,
        _ => event.seq,
    }
}

fn event_lines(event: &StoredEvent) -> Vec<String> {
    match &event.body {
        EventBody::Output(line) if line.stream == Stream::Stdout => {
            log_lines(&line.bytes, WORKSPACE_DIR)
        }
        EventBody::Output(line) => {
            let text = String::from_utf8_lossy(&line.bytes);
            match text.trim_end() {
                "" => Vec::new(),
                text => vec![text.to_owned()],
            }
        }
        EventBody::Note(text) => vec![text.clone()],
        EventBody::Truncated { bytes, .. } => {
            vec![format!("[{bytes} bytes of output are not kept]")]
        }
        EventBody::Created | EventBody::Session { .. } => Vec::new(),
    }
}
