//! Numbered frames on the state volume, kept until the server has stored them.
//!
//! A segment file holds frames exactly as they go over the wire and is named after the number of
//! its first one. The newest segment stays even when all of it is acknowledged: its name and
//! content say, after a restart of the container, which number comes next. Nothing is synced to
//! the disk: what must survive is the end of a process, not of the machine.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use baton_agent::protocol::{Body, Frame, Note, Numbered};
use bytes::{Bytes, BytesMut};

/// A segment that has reached this size is followed by a new one, in bytes.
const SEGMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How much may wait for the server before Claude has to, in bytes.
const SPOOL_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// How much is read at once where frames are counted.
const SCAN_BYTES: usize = 256 * 1024;

/// See the module.
pub struct Spool {
    dir: PathBuf,
    limits: Limits,
    /// Oldest first; never empty.
    segments: VecDeque<Segment>,
    newest: Rc<File>,
    last_seq: u64,
    acked: u64,
    bytes: u64,
    ended: bool,
    scratch: BytesMut,
}

/// Sizes in bytes; others than the constants only in tests.
#[derive(Clone, Copy)]
struct Limits {
    segment: u64,
    spool: u64,
}

struct Segment {
    first_seq: u64,
    bytes: u64,
}

/// Where a sender stands. It keeps its segment readable even when that is deleted meanwhile, so
/// a frame is never cut.
pub struct Cursor {
    file: Rc<File>,
    first_seq: u64,
    offset: u64,
}

impl Spool {
    /// Opens the spool in `dir`, which is created where missing, and goes on after its last whole
    /// frame. What a crash left of a frame after that is cut off.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be read or written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let limits = Limits {
            segment: SEGMENT_BYTES_MAX,
            spool: SPOOL_BYTES_MAX,
        };
        Self::open_with(dir, limits)
    }

    fn open_with(dir: &Path, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut segments = VecDeque::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Names that are no numbers are not ours.
            if let Some(first_seq) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                let bytes = entry.metadata()?.len();
                segments.push_back(Segment { first_seq, bytes });
            }
        }
        segments
            .make_contiguous()
            .sort_by_key(|segment| segment.first_seq);
        if segments.is_empty() {
            segments.push_back(Segment {
                first_seq: 1,
                bytes: 0,
            });
        }
        let acked = segments[0].first_seq.saturating_sub(1);
        let last = segments.len() - 1;
        let first_seq = segments[last].first_seq;
        let newest = Rc::new(open_segment(dir, first_seq)?);

        let mut last_seq = first_seq.saturating_sub(1);
        let mut ended = false;
        let whole = scan(&newest, first_seq, |frame| {
            last_seq = frame.seq;
            ended = matches!(frame.body, Body::Note(Note::Ended(_)));
            true
        })?;
        newest.set_len(whole)?;
        segments[last].bytes = whole;
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            newest,
            last_seq,
            acked,
            ended,
            scratch: BytesMut::new(),
        })
    }

    /// The number of the last frame; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Whether the last frame is the report of the end, after which none may come.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether everything is acknowledged.
    pub fn is_delivered(&self) -> bool {
        self.acked == self.last_seq
    }

    /// Whether more output should wait. Notes are small and need not.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.spool
    }

    /// Gives `body` the next number and keeps it.
    ///
    /// # Errors
    /// When it cannot be written, as on a full disk. Nothing is changed then; it may be tried
    /// again.
    pub fn append(&mut self, at_ms: i64, body: Body) -> io::Result<()> {
        let seq = self.last_seq + 1;
        let ended = matches!(body, Body::Note(Note::Ended(_)));
        self.scratch.clear();
        Frame::Numbered(Numbered { seq, at_ms, body }).encode(&mut self.scratch);
        if self
            .segments
            .back()
            .is_some_and(|segment| segment.bytes >= self.limits.segment)
        {
            self.newest = Rc::new(open_segment(&self.dir, seq)?);
            self.segments.push_back(Segment {
                first_seq: seq,
                bytes: 0,
            });
        }
        let Some(segment) = self.segments.back_mut() else {
            return Err(io::Error::other("the spool has no segment"));
        };
        if let Err(error) = (&*self.newest).write_all(&self.scratch) {
            self.newest.set_len(segment.bytes)?;
            return Err(error);
        }
        let length = self.scratch.len() as u64;
        segment.bytes += length;
        self.bytes += length;
        self.last_seq = seq;
        self.ended = ended;
        Ok(())
    }

    /// Everything up to `seq` is stored elsewhere; segments that hold nothing else are deleted.
    pub fn ack(&mut self, seq: u64) {
        self.acked = self.acked.max(seq.min(self.last_seq));
        while self
            .segments
            .get(1)
            .is_some_and(|next| next.first_seq <= self.acked + 1)
        {
            let Some(segment) = self.segments.pop_front() else {
                return;
            };
            self.bytes -= segment.bytes;
            // One that stays behind is found, and acknowledged again, after a restart.
            let _ = fs::remove_file(segment_path(&self.dir, segment.first_seq));
        }
    }

    /// A cursor at the first frame that is not acknowledged.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn cursor(&self) -> io::Result<Cursor> {
        let wanted = self.acked + 1;
        let at = self
            .segments
            .partition_point(|segment| segment.first_seq <= wanted);
        let first_seq = self.segments[at.saturating_sub(1)].first_seq;
        let mut cursor = self.cursor_at_start(first_seq)?;
        cursor.offset = scan(&cursor.file, first_seq, |frame| frame.seq < wanted)?;
        Ok(cursor)
    }

    /// Copies what follows the cursor into `buffer` and moves it on; 0 when there is no more yet.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let end = match self.segment(cursor.first_seq) {
                Some(segment) => segment.bytes,
                None => cursor.file.metadata()?.len(),
            };
            let left = usize::try_from(end - cursor.offset.min(end)).unwrap_or(usize::MAX);
            if left > 0 {
                let wanted = left.min(buffer.len());
                let count = cursor.file.read_at(&mut buffer[..wanted], cursor.offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                cursor.offset += count as u64;
                return Ok(count);
            }
            let next = self
                .segments
                .partition_point(|segment| segment.first_seq <= cursor.first_seq);
            match self.segments.get(next) {
                Some(segment) => *cursor = self.cursor_at_start(segment.first_seq)?,
                None => return Ok(0),
            }
        }
    }

    fn segment(&self, first_seq: u64) -> Option<&Segment> {
        let at = self
            .segments
            .binary_search_by_key(&first_seq, |segment| segment.first_seq);
        self.segments.get(at.ok()?)
    }

    fn cursor_at_start(&self, first_seq: u64) -> io::Result<Cursor> {
        let is_newest = self
            .segments
            .back()
            .is_some_and(|segment| segment.first_seq == first_seq);
        let file = if is_newest {
            Rc::clone(&self.newest)
        } else {
            Rc::new(File::open(segment_path(&self.dir, first_seq))?)
        };
        Ok(Cursor {
            file,
            first_seq,
            offset: 0,
        })
    }
}

fn segment_path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}"))
}

fn open_segment(dir: &Path, first_seq: u64) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(segment_path(dir, first_seq))
}

/// Walks the frames of a segment for as long as `go_on` says so and they are whole and numbered
/// without gap. Gives the offset of the first one that was not passed.
fn scan(file: &File, first_seq: u64, mut go_on: impl FnMut(&Numbered) -> bool) -> io::Result<u64> {
    let mut buffer = BytesMut::new();
    let mut block = vec![0; SCAN_BYTES];
    let mut read = 0;
    let mut passed = 0;
    let mut expected = first_seq;
    loop {
        loop {
            let before = buffer.len();
            match Frame::decode(&mut buffer) {
                Ok(Some(Frame::Numbered(frame))) if frame.seq == expected => {
                    if !go_on(&frame) {
                        return Ok(passed);
                    }
                    passed += (before - buffer.len()) as u64;
                    expected += 1;
                }
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => return Ok(passed),
            }
        }
        let count = file.read_at(&mut block, read)?;
        if count == 0 {
            return Ok(passed);
        }
        read += count as u64;
        buffer.extend_from_slice(&block[..count]);
    }
}

/// The body of an output frame.
pub fn output(stream: baton_agent::protocol::Stream, more: bool, bytes: &[u8]) -> Body {
    Body::Output {
        stream,
        more,
        bytes: Bytes::copy_from_slice(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_agent::protocol::Stream;
    use proptest::prelude::*;
    use tempfile::TempDir;

    const SMALL: Limits = Limits {
        segment: 200,
        spool: 2_000,
    };

    fn spool(dir: &TempDir) -> Spool {
        Spool::open_with(dir.path(), SMALL).expect("the spool opens")
    }

    fn append(spool: &mut Spool, count: u64) {
        for _ in 0..count {
            let text = format!("line {}\n", spool.last_seq() + 1);
            let body = output(Stream::Stdout, false, text.as_bytes());
            spool.append(0, body).expect("the spool takes it");
        }
    }

    /// The numbers of the frames that follow `cursor`, read in blocks of an odd size.
    fn numbers(spool: &Spool, cursor: &mut Cursor) -> Vec<u64> {
        let mut wire = BytesMut::new();
        let mut block = [0; 37];
        loop {
            let count = spool.read(cursor, &mut block).expect("readable");
            if count == 0 {
                break;
            }
            wire.extend_from_slice(&block[..count]);
        }
        let mut numbers = Vec::new();
        while let Some(Frame::Numbered(frame)) = Frame::decode(&mut wire).expect("whole frames") {
            numbers.push(frame.seq);
        }
        assert!(wire.is_empty(), "a frame was cut");
        numbers
    }

    fn files(dir: &TempDir) -> usize {
        fs::read_dir(dir.path()).expect("readable").count()
    }

    #[test]
    fn a_new_connection_starts_after_the_last_acknowledged_frame() {
        let dir = TempDir::new().expect("a directory");
        let mut spool = spool(&dir);
        append(&mut spool, 30);
        for acked in [0, 1, 6, 7, 8, 29, 30] {
            spool.ack(acked);
            let mut cursor = spool.cursor().expect("a cursor");
            assert_eq!(
                numbers(&spool, &mut cursor),
                (acked + 1..=30).collect::<Vec<_>>()
            );
        }
        assert!(spool.is_delivered());
        assert_eq!(files(&dir), 1, "only the newest segment stays");
    }

    #[test]
    fn a_sender_goes_on_when_its_segment_is_deleted_under_it() {
        let dir = TempDir::new().expect("a directory");
        let mut spool = spool(&dir);
        append(&mut spool, 30);
        let mut cursor = spool.cursor().expect("a cursor");
        let mut start = [0; 10];
        spool.read(&mut cursor, &mut start).expect("readable");
        spool.ack(20);
        let mut wire = BytesMut::from(&start[..]);
        let mut block = [0; 100];
        loop {
            let count = spool.read(&mut cursor, &mut block).expect("readable");
            if count == 0 {
                break;
            }
            wire.extend_from_slice(&block[..count]);
        }
        let mut last = 0;
        while let Some(Frame::Numbered(frame)) = Frame::decode(&mut wire).expect("whole frames") {
            assert!(frame.seq > last);
            last = frame.seq;
        }
        assert_eq!(last, 30);
    }

    #[test]
    fn numbers_go_on_after_a_restart_even_when_all_was_acknowledged() {
        let dir = TempDir::new().expect("a directory");
        let mut first = spool(&dir);
        append(&mut first, 30);
        first.ack(30);
        drop(first);
        let mut second = spool(&dir);
        assert_eq!(second.last_seq(), 30);
        append(&mut second, 1);
        assert_eq!(second.last_seq(), 31);
    }

    #[test]
    fn half_a_frame_at_the_end_is_cut_off() {
        let dir = TempDir::new().expect("a directory");
        let mut first = spool(&dir);
        append(&mut first, 3);
        let path = segment_path(dir.path(), 1);
        let whole = fs::metadata(&path).expect("there").len();
        drop(first);
        for cut in 1..20 {
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .expect("writable");
            file.set_len(whole - cut).expect("cut");
            let mut again = spool(&dir);
            assert_eq!(again.last_seq(), 2, "cut by {cut}");
            append(&mut again, 1);
            let mut cursor = again.cursor().expect("a cursor");
            assert_eq!(numbers(&again, &mut cursor), [1, 2, 3]);
        }
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_counts_for_nothing_more() {
        let dir = TempDir::new().expect("a directory");
        let mut spool = spool(&dir);
        append(&mut spool, 2);
        spool.ack(u64::MAX);
        append(&mut spool, 1);
        assert!(!spool.is_delivered());
        spool.ack(1);
        let mut cursor = spool.cursor().expect("a cursor");
        assert_eq!(
            numbers(&spool, &mut cursor),
            [3],
            "acknowledged once is for good"
        );
    }

    #[test]
    fn it_is_full_until_something_is_acknowledged() {
        let dir = TempDir::new().expect("a directory");
        let mut spool = spool(&dir);
        while !spool.is_full() {
            append(&mut spool, 1);
        }
        let half = spool.last_seq() / 2;
        spool.ack(half);
        assert!(!spool.is_full());
    }

    #[test]
    fn a_reported_end_is_remembered() {
        let dir = TempDir::new().expect("a directory");
        let mut first = spool(&dir);
        append(&mut first, 1);
        assert!(!first.has_ended());
        let note = Note::Ended(Box::default());
        first
            .append(0, Body::Note(note))
            .expect("the spool takes it");
        drop(first);
        assert!(spool(&dir).has_ended());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_happens_the_rest_is_complete(
            steps in proptest::collection::vec((0_u64..12, 0_u64..40, any::<bool>()), 1..12),
        ) {
            let dir = TempDir::new().expect("a directory");
            let mut current = spool(&dir);
            let mut acked = 0;
            for (appended, ack, restart) in steps {
                append(&mut current, appended);
                current.ack(ack);
                acked = acked.max(ack.min(current.last_seq()));
                if restart {
                    let last = current.last_seq();
                    drop(current);
                    current = spool(&dir);
                    prop_assert_eq!(current.last_seq(), last);
                    // An acknowledgement may be forgotten, and is given again.
                    current.ack(acked);
                }
                let mut cursor = current.cursor().expect("a cursor");
                let rest: Vec<u64> = (acked + 1..=current.last_seq()).collect();
                prop_assert_eq!(numbers(&current, &mut cursor), rest);
            }
        }
    }
}
