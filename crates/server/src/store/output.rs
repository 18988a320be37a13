//! Appending output: bytes to segment files first, then one transaction that records them.
//!
//! Until that is committed the bytes do not count, and the next append writes over them. Appends
//! of one session go one after the other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use baton_domain::{Attempt, Session, SessionId};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use super::batch::{Append, Piece, Request};
use super::directory::Directory;
use super::rows::{Range, Truncation};
use super::segments::{self, Spot};
use super::sqlite_reads::{Reads, StoredOutput, StoredSegment};
use super::types::{LINE_BYTES_MAX, OutputLine, StoreError};
use crate::failpoint;

/// Of how many sessions it is remembered where their output ends; of others it is read again.
const REMEMBERED_MAX: usize = 256;
/// How many segments make up what is kept of a session: half of them at its head, half at its
/// tail.
const SEGMENTS_KEPT: u64 = 8;

/// With less room on the disk than this the store counts as unavailable: a few batches of output
/// are that large.
const ROOM_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// None: to be read from the database first.
type Remembered = Arc<AsyncMutex<Option<StoredOutput>>>;

pub(super) struct Appender {
    pub(super) directory: Arc<Directory>,
    pub(super) reads: Reads,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) output_dir: PathBuf,
    pub(super) bytes_max: u64,
    pub(super) remembered: Mutex<HashMap<SessionId, Remembered>>,
}

/// What a session's output loses to keep within its limit.
#[derive(Debug, Default)]
struct Dropped {
    segments: Vec<StoredSegment>,
    ranges: Vec<Range>,
    truncations: Vec<Truncation>,
}

impl Appender {
    /// See [`super::Store::append_output`]. Must run to its end once begun: the caller spawns it,
    /// so that somebody who stops waiting does not stop it between file and database.
    pub(super) async fn append(
        &self,
        id: SessionId,
        attempt: Attempt,
        position: u64,
        lines: Vec<OutputLine>,
    ) -> Result<(), StoreError> {
        if let Some(line) = lines.iter().find(|line| line.bytes.len() > LINE_BYTES_MAX) {
            let bytes = line.bytes.len();
            return Err(StoreError::LineTooLong { id, bytes });
        }
        let entry = self.directory.tables().find(id);
        let ordinal = entry.ok_or(StoreError::SessionNotFound(id))?.ordinal;
        let remembered = self.remembered(id);
        let mut slot = remembered.lock().await;
        let mut stored = match slot.take() {
            Some(stored) => stored,
            None => self.reads.output(ordinal).await?,
        };
        // After an error the slot stays empty: what is stored is read again.
        if position > stored.position(attempt) {
            self.add(&mut stored, id, ordinal, (attempt, position), lines)
                .await?;
        }
        *slot = Some(stored);
        Ok(())
    }

    async fn add(
        &self,
        stored: &mut StoredOutput,
        id: SessionId,
        ordinal: u64,
        (attempt, position): (Attempt, u64),
        lines: Vec<OutputLine>,
    ) -> Result<(), StoreError> {
        let segment_bytes_max = (self.bytes_max / SEGMENTS_KEPT).max(1);
        let placed = segments::place(&lines, stored.spot(attempt), segment_bytes_max);
        let pieces: Vec<Piece> = placed.iter().map(|(piece, _)| *piece).collect();
        let at_ms = lines.last().map_or(0, |line| line.at.as_millisecond());
        let dropped = self.make_room(stored, ordinal, &pieces, at_ms).await?;
        let session_dir = segments::session_dir(&self.output_dir, id);
        if !placed.is_empty() {
            let session_dir = session_dir.clone();
            blocking(move || {
                placed.iter().try_for_each(|(piece, at)| {
                    segments::write(&session_dir, attempt, piece, &lines[at.clone()])
                })
            })
            .await?
            .map_err(StoreError::io("write output"))?;
            failpoint::reach("output_written");
        }
        let (answer, answered) = oneshot::channel();
        let append = Append {
            id,
            attempt,
            position,
            pieces: pieces.clone(),
            newest: stored.newest,
            dropped: dropped.ranges,
            truncations: dropped.truncations.clone(),
        };
        let append = Box::new(append);
        let request = Request::Output { append, answer };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| StoreError::closed())?;
        stored.newest = answered.await.map_err(|_| StoreError::closed())??;
        stored.follow(attempt, position, &pieces, &dropped.segments);
        stored.newest_truncation = dropped
            .truncations
            .last()
            .copied()
            .or(stored.newest_truncation);
        if !dropped.segments.is_empty() {
            blocking(move || remove(&session_dir, &dropped.segments)).await?;
        }
        Ok(())
    }

    /// What must go so that `pieces` fit: whole segments between the head and the tail, oldest
    /// first. An append that is itself larger than an eighth of the limit may pass it for a while.
    async fn make_room(
        &self,
        stored: &StoredOutput,
        ordinal: u64,
        pieces: &[Piece],
        at_ms: i64,
    ) -> Result<Dropped, StoreError> {
        let mut dropped = Dropped::default();
        let new: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        let kept: u64 = stored.segments.iter().map(|segment| segment.bytes).sum();
        let mut excess = (kept + new).saturating_sub(self.bytes_max);
        let mut newest = stored.newest_truncation;
        for segment in stored.middle(self.bytes_max / 2) {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(segment.bytes);
            let ranges = self.reads.ranges_in(ordinal, *segment).await?;
            for range in &ranges {
                let (truncation, longer) = truncated(range, newest, at_ms);
                if longer {
                    dropped
                        .truncations
                        .pop_if(|last| last.first_seq == truncation.first_seq);
                }
                dropped.truncations.push(truncation);
                newest = Some(truncation);
            }
            dropped.ranges.extend(ranges);
            dropped.segments.push(*segment);
        }
        Ok(dropped)
    }

    /// Whether the disk has room for what sessions are about to print.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it has not.
    pub(super) async fn has_room(&self) -> Result<(), StoreError> {
        let output_dir = self.output_dir.clone();
        let free = blocking(move || rustix::fs::statvfs(&output_dir)).await?;
        let free = free.map_err(|error| StoreError::io("look at the disk")(error.into()))?;
        // Some file systems do not say how large they are.
        let is_told = free.f_blocks > 0;
        match !is_told || free.f_bavail.saturating_mul(free.f_frsize) >= ROOM_BYTES_MIN {
            true => Ok(()),
            false => Err(StoreError::Unavailable {
                what: "find room on the disk",
                source: None,
            }),
        }
    }

    fn remembered(&self, id: SessionId) -> Remembered {
        let mut all = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED_MAX && !all.contains_key(&id) {
            // Those in use stay: two must not append to one session at once.
            all.retain(|_, remembered| Arc::strong_count(remembered) > 1);
        }
        Arc::clone(all.entry(id).or_default())
    }

    /// Cuts the files of these sessions back to what is recorded.
    pub(super) async fn cut_back(&self, live: &[(u64, Arc<Session>)]) -> Result<(), StoreError> {
        let failed = "cut output back to what is recorded";
        let folders = live.iter().map(|(ordinal, session)| {
            let session_dir = segments::session_dir(&self.output_dir, session.id);
            (*ordinal, session_dir)
        });
        let folders: Vec<_> = folders.collect();
        // Most have not written anything: a look for the folder is cheaper than a query.
        let begun = blocking(move || {
            let there = |(_, folder): &(u64, PathBuf)| folder.is_dir();
            folders.into_iter().filter(there).collect::<Vec<_>>()
        });
        for (ordinal, session_dir) in begun.await? {
            let recorded = self.reads.segments(ordinal).await?;
            blocking(move || {
                segments::cut_back(&session_dir, |attempt, number| {
                    let mut recorded = recorded.iter();
                    recorded
                        .find(|segment| (segment.attempt, segment.number) == (attempt, number))
                        .map(|segment| segment.bytes)
                })
            })
            .await?
            .map_err(StoreError::io(failed))?;
        }
        Ok(())
    }
}

impl StoredOutput {
    pub(super) fn position(&self, attempt: Attempt) -> u64 {
        let mut positions = self.positions.iter();
        let found = positions.find(|(of, _)| *of == attempt);
        found.map_or(0, |(_, position)| *position)
    }

    /// Where the next record of an attempt goes.
    fn spot(&self, attempt: Attempt) -> Spot {
        if let Some(last) = self.segments.last().filter(|last| last.attempt == attempt) {
            return Spot {
                segment: last.number,
                offset: last.bytes,
            };
        }
        let of_attempt = self
            .segments
            .iter()
            .filter(|segment| segment.attempt == attempt);
        Spot {
            segment: of_attempt
                .map(|segment| segment.number + 1)
                .max()
                .unwrap_or(0),
            offset: 0,
        }
    }

    /// The segments that belong neither to the head, of at most `head_bytes_max` but at least one
    /// segment, nor are being written.
    fn middle(&self, head_bytes_max: u64) -> &[StoredSegment] {
        let mut bytes = 0;
        let mut segments = self.segments.iter();
        let head = segments
            .position(|segment| {
                bytes += segment.bytes;
                bytes > head_bytes_max
            })
            .unwrap_or(self.segments.len())
            .max(1);
        let last = self.segments.len().saturating_sub(1);
        self.segments.get(head..last).unwrap_or_default()
    }

    fn follow(
        &mut self,
        attempt: Attempt,
        position: u64,
        pieces: &[Piece],
        dropped: &[StoredSegment],
    ) {
        self.segments.retain(|segment| !dropped.contains(segment));
        for piece in pieces {
            let end = piece.offset + piece.bytes;
            match self.segments.last_mut() {
                Some(last) if (last.attempt, last.number) == (attempt, piece.segment) => {
                    last.bytes = end;
                }
                _ => self.segments.push(StoredSegment {
                    attempt,
                    number: piece.segment,
                    bytes: end,
                }),
            }
        }
        self.positions.retain(|(of, _)| *of != attempt);
        self.positions.push((attempt, position));
    }
}

/// What stands for a dropped range, and whether that is the newest truncation made longer.
fn truncated(range: &Range, newest: Option<Truncation>, at_ms: i64) -> (Truncation, bool) {
    let last_seq = range.first_seq + range.lines - 1;
    match newest {
        Some(before) if before.last_seq + 1 == range.first_seq => {
            let longer = Truncation {
                last_seq,
                at_ms,
                text_bytes: before.text_bytes + range.text_bytes,
                ..before
            };
            (longer, true)
        }
        _ => {
            let alone = Truncation {
                first_seq: range.first_seq,
                last_seq,
                at_ms,
                text_bytes: range.text_bytes,
            };
            (alone, false)
        }
    }
}

/// Removes files that no row names any more.
fn remove(session_dir: &Path, dropped: &[StoredSegment]) {
    for segment in dropped {
        let path = segments::path(session_dir, segment.attempt, segment.number);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "a dropped segment could not be removed");
        }
    }
}

/// Runs what blocks on a thread for such.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    // It fails only when the runtime is being shut down, or the work panicked.
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|source| StoreError::Unavailable {
        what: "run a file operation",
        source: Some(Arc::new(source)),
    })
}
