//! The end of a session that ran a command instead of Claude: it leaves words and no work.

use baton_domain::SessionId;
use baton_domain::ending::{Ending, Outcome};
use baton_domain::session::Report;

use crate::store::{EventBody, Store, StoreError};

/// How many of a command's last lines are told with its failure.
const LAST_LINES_MAX: usize = 20;
/// The most characters of each of them.
const LINE_CHARS_MAX: usize = 300;
/// How far back they are looked for: other events may stand between them.
const EVENTS_READ: u64 = 60;
/// The most bytes of output read for them.
const BYTES_READ_MAX: usize = 1024 * 1024;

/// What a command's ending means, and what is told of it.
pub(super) async fn judged(
    store: &Store,
    session: SessionId,
    ending: &Ending,
) -> Result<(Outcome, Report), StoreError> {
    let lines = last_lines(store, session).await?;
    let outcome = Outcome::of_command(ending, &lines);
    let report = Report {
        summary: lines,
        ..Report::default()
    };
    Ok((outcome, report))
}

async fn last_lines(store: &Store, session: SessionId) -> Result<String, StoreError> {
    let newest = *store.watch_events(session).borrow();
    let after = newest.saturating_sub(EVENTS_READ);
    let events = store
        .events(session, after, EVENTS_READ as usize, BYTES_READ_MAX)
        .await?;
    let lines: Vec<String> = events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Output(line) => {
                let text = String::from_utf8_lossy(&line.bytes);
                Some(text.trim_end().chars().take(LINE_CHARS_MAX).collect())
            }
            _ => None,
        })
        .filter(|line: &String| !line.is_empty())
        .collect();
    Ok(lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n"))
}
