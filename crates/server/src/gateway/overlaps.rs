//! Sessions that change the same files at the same time are told of each other, in their events.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use baton_agent::protocol::{Stream, WORKSPACE_DIR};
use baton_domain::SessionId;
use baton_domain::output::changed_file;
use baton_domain::overlap::Overlap;

use super::{Gate, Gateway};
use crate::store::{EventBody, OutputLine};

/// The most events of this kind for one session: what it calls its files is its own choice.
const NOTES_MAX: u32 = 100;
/// How much of a stored session is read at once.
const PAGE_EVENTS: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;
/// The most letters of a path that an event repeats.
const PATH_CHARS_MAX: usize = 300;

impl Gateway {
    /// What several of these sessions have changed, while their sandboxes are there.
    #[must_use]
    pub fn overlaps(&self, ids: &[SessionId]) -> Vec<Overlap> {
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.among(ids)
    }
}

impl Gate {
    /// Looks for changed files in lines that were stored.
    pub(super) async fn look_for_overlaps(&self, lines: &[OutputLine]) {
        for line in lines {
            let Some(path) = changed(line) else {
                continue;
            };
            for other in self.touch(&path) {
                let path: String = path.chars().take(PATH_CHARS_MAX).collect();
                self.tell_overlap(self.session, other, &path).await;
                self.tell_overlap(other, self.session, &path).await;
            }
        }
    }

    /// Finds out again what an earlier server knew.
    pub(super) async fn remember_changes(&self) {
        let mut after = 0;
        loop {
            let page = self
                .parts
                .store
                .events(self.session, after, PAGE_EVENTS, PAGE_BYTES);
            let Ok(page) = page.await else {
                return;
            };
            let Some(last) = page.last() else {
                return;
            };
            after = match last.body {
                EventBody::Truncated { last_seq, .. } => last_seq,
                _ => last.seq,
            };
            for event in &page {
                if let EventBody::Output(line) = &event.body
                    && let Some(path) = changed(line)
                {
                    // The others were told then.
                    self.touch(&path);
                }
            }
        }
    }

    fn touch(&self, path: &str) -> Vec<SessionId> {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.touch(self.session, &self.repository, path)
    }

    async fn tell_overlap(&self, id: SessionId, other: SessionId, path: &str) {
        if self.overlaps_told.fetch_add(1, Ordering::Relaxed) >= 2 * NOTES_MAX {
            return;
        }
        let text = format!(
            "{path:?} was changed by session {other} too, which runs at the same time; the two \
             changes will have to be merged"
        );
        let now = self.parts.clock.now();
        if let Err(error) = self.parts.store.append_note(id, &text, now).await {
            tracing::debug!(session = %id, %error, "an overlap was not told");
        }
    }
}

fn changed(line: &OutputLine) -> Option<String> {
    match line.stream {
        Stream::Stdout => changed_file(&line.bytes, WORKSPACE_DIR),
        Stream::Stderr => None,
    }
}
