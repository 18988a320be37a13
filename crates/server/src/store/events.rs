//! Reading a session's events: rows and lines of output, merged by number.

use std::path::Path;

use jiff::Timestamp;

use super::rows::{DerivedEvent, Range};
use super::segments::{self, ReadEnd};
use super::sqlite_reads::Stretch;
use super::types::{EventBody, StoreError, StoredEvent};

/// What may be read at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// Events under collection.
struct Events {
    found: Vec<StoredEvent>,
    bytes: usize,
    limits: Limits,
}

impl Events {
    /// Adds an event of about so many bytes; false when there is no room for it.
    fn add(&mut self, event: StoredEvent, bytes: usize) -> bool {
        let fits = self.found.len() < self.limits.events
            && (self.found.is_empty() || self.bytes + bytes <= self.limits.bytes);
        if fits {
            self.bytes += bytes;
            self.found.push(event);
        }
        fits
    }
}

/// The events of `stretches` numbered after `after`, as many as the limits let. What is found to be
/// lost is dated like the event before it, or `at`. Blocks.
pub(super) fn collect(
    session_dir: &Path,
    stretches: Vec<Stretch>,
    after: u64,
    limits: Limits,
    mut at: Timestamp,
) -> Result<Vec<StoredEvent>, StoreError> {
    let mut events = Events {
        found: Vec::new(),
        bytes: 0,
        limits,
    };
    for stretch in stretches {
        let goes_on = match stretch {
            Stretch::Derived {
                seq,
                at: when,
                body,
                bytes,
            } => {
                at = when;
                let body = match body {
                    DerivedEvent::Created => EventBody::Created,
                    DerivedEvent::Session { event, state } => EventBody::Session { event, state },
                    DerivedEvent::Note(text) => EventBody::Note(text),
                };
                events.add(StoredEvent { seq, at, body }, bytes)
            }
            Stretch::Truncated(truncation) => {
                let event = StoredEvent {
                    seq: truncation.first_seq.max(after + 1),
                    // It was made from a timestamp.
                    at: Timestamp::from_millisecond(truncation.at_ms).unwrap_or(at),
                    body: EventBody::Truncated {
                        last_seq: truncation.last_seq,
                        bytes: truncation.text_bytes,
                    },
                };
                events.add(event, 0)
            }
            Stretch::Lines(range) => lines(session_dir, &range, after, &mut events, &mut at)?,
        };
        if !goes_on {
            break;
        }
    }
    Ok(events.found)
}

/// Adds the lines of a range; false when there was no room for all of them.
fn lines(
    session_dir: &Path,
    range: &Range,
    after: u64,
    events: &mut Events,
    at: &mut Timestamp,
) -> Result<bool, StoreError> {
    let end = segments::read(session_dir, range, after, |seq, line| {
        *at = line.at;
        let bytes = line.bytes.len();
        let event = StoredEvent {
            seq,
            at: line.at,
            body: EventBody::Output(line),
        };
        events.add(event, bytes)
    });
    match end.map_err(StoreError::io("read output"))? {
        ReadEnd::Complete => Ok(true),
        ReadEnd::Full => Ok(false),
        // The file was lost, or its segment dropped since the row was read.
        ReadEnd::Damaged { seq, text_bytes } => {
            let event = StoredEvent {
                seq,
                at: *at,
                body: EventBody::Truncated {
                    last_seq: range.first_seq + range.lines - 1,
                    bytes: text_bytes,
                },
            };
            Ok(events.add(event, 0))
        }
    }
}
