//! Numbered frames → whole lines, ready to be stored.

use baton_agent::protocol::{Body, Note, Numbered, Stream};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use crate::store::{LINE_BYTES_MAX, OutputLine};

/// A batch is stored when it holds this many bytes, or when no more output is there.
pub const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// When a line still goes on but this much has gathered behind it, the line is stored in parts.
const PENDING_BYTES_MAX: usize = 2 * BATCH_BYTES;

/// Gathers frames until they are stored.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Vec<OutputLine>,
    bytes: usize,
    position: u64,
    stdout: Option<Part>,
    stderr: Option<Part>,
}

/// A line whose end has not come yet.
#[derive(Debug)]
struct Part {
    at: Timestamp,
    bytes: BytesMut,
    cut_bytes: u64,
}

impl Lines {
    /// An empty batch behind the frame with the number `position`.
    #[must_use]
    pub fn after(position: u64) -> Self {
        Self {
            position,
            ..Self::default()
        }
    }

    /// Takes a frame in; gives back the note it carried, if it did. A frame that was taken before
    /// is passed over.
    ///
    /// # Errors
    /// [`Gap`] when frames before this one are missing.
    pub fn take(&mut self, frame: Numbered) -> Result<Option<Note>, Gap> {
        if frame.seq <= self.position {
            return Ok(None);
        }
        if frame.seq != self.position + 1 {
            return Err(Gap {
                expected: self.position + 1,
                found: frame.seq,
            });
        }
        self.position = frame.seq;
        let at = Timestamp::from_millisecond(frame.at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        match frame.body {
            Body::Note(note) => Ok(Some(note)),
            Body::Output {
                stream,
                more,
                bytes,
            } => {
                self.split(stream, more, bytes, at);
                if self.bytes > PENDING_BYTES_MAX {
                    self.flush();
                }
                Ok(None)
            }
        }
    }

    fn split(&mut self, stream: Stream, more: bool, mut bytes: Bytes, at: Timestamp) {
        while let Some(end) = memchr::memchr(b'\n', &bytes) {
            let piece = bytes.split_to(end);
            let _ = bytes.split_to(1);
            self.complete(stream, piece, at, true);
        }
        if more {
            let kept = self
                .part(stream)
                .get_or_insert_with(|| Part::new(at))
                .extend(&bytes);
            self.bytes += kept;
        } else if !bytes.is_empty() {
            self.complete(stream, bytes, at, false);
        }
    }

    fn complete(&mut self, stream: Stream, bytes: Bytes, at: Timestamp, line_end: bool) {
        // An empty line takes room too.
        self.bytes += bytes.len() + size_of::<OutputLine>();
        let line = match self.part(stream).take() {
            None if bytes.len() <= LINE_BYTES_MAX => OutputLine {
                at,
                stream,
                bytes,
                cut_bytes: 0,
                line_end,
            },
            part => {
                let mut part = part.unwrap_or_else(|| Part::new(at));
                part.extend(&bytes);
                part.line(stream, line_end)
            }
        };
        self.lines.push(line);
    }

    fn part(&mut self, stream: Stream) -> &mut Option<Part> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Turns lines whose end has not come into lines without an end; what follows of them will be
    /// lines of their own.
    pub fn flush(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(part) = self.part(stream).take() {
                self.lines.push(part.line(stream, false));
            }
        }
    }

    /// Whether everything taken can be stored now: no line is open.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Whether the batch is large enough to be stored though more may come at once.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }

    /// The lines to store and the number of the last frame they come from; the batch starts anew.
    pub fn drain(&mut self) -> (u64, Vec<OutputLine>) {
        self.bytes = 0;
        (self.position, std::mem::take(&mut self.lines))
    }
}

impl Part {
    fn new(at: Timestamp) -> Self {
        Self {
            at,
            bytes: BytesMut::new(),
            cut_bytes: 0,
        }
    }

    /// Keeps what there is room for and counts the rest; gives back how much was kept.
    fn extend(&mut self, bytes: &[u8]) -> usize {
        let room = LINE_BYTES_MAX - self.bytes.len();
        let kept = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.cut_bytes += (bytes.len() - kept) as u64;
        kept
    }

    fn line(self, stream: Stream, line_end: bool) -> OutputLine {
        let Self {
            at,
            bytes,
            cut_bytes,
        } = self;
        OutputLine {
            at,
            stream,
            bytes: bytes.freeze(),
            cut_bytes,
            line_end,
        }
    }
}

/// Frames are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame {expected} is missing, {found} came in its place")]
pub struct Gap {
    /// The number that should have come.
    pub expected: u64,
    /// The number that came.
    pub found: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(seq: u64, more: bool, bytes: &[u8]) -> Numbered {
        let body = Body::Output {
            stream: Stream::Stdout,
            more,
            bytes: Bytes::copy_from_slice(bytes),
        };
        Numbered {
            seq,
            at_ms: 0,
            body,
        }
    }

    #[test]
    fn lines_are_whole_and_byte_exact() {
        let mut lines = Lines::after(4);
        assert_eq!(lines.take(output(5, false, b"a\n\xff\xfe\n\n")), Ok(None));
        assert_eq!(lines.take(output(6, true, b"lo")), Ok(None));
        assert!(!lines.is_whole());
        assert_eq!(lines.take(output(7, false, b"ng\nend")), Ok(None));
        let (position, stored) = lines.drain();
        let bytes: Vec<&[u8]> = stored.iter().map(|line| line.bytes.as_ref()).collect();
        assert_eq!(bytes, [&b"a"[..], b"\xff\xfe", b"", b"long", b"end"]);
        assert_eq!(stored.iter().filter(|line| !line.line_end).count(), 1);
        assert_eq!(position, 7);
    }

    #[test]
    fn repeats_are_passed_over_and_gaps_refused() {
        let mut lines = Lines::after(5);
        assert_eq!(lines.take(output(5, false, b"again\n")), Ok(None));
        assert_eq!(lines.drain(), (5, Vec::new()));
        assert_eq!(
            lines.take(output(7, false, b"x\n")),
            Err(Gap {
                expected: 6,
                found: 7
            })
        );
    }

    #[test]
    fn of_an_endless_line_the_head_is_kept_and_the_rest_counted() {
        let mut lines = Lines::after(0);
        let piece = vec![b'x'; 64 * 1024];
        let pieces = 50 * 16;
        for seq in 1..=pieces {
            assert_eq!(lines.take(output(seq, seq < pieces, &piece)), Ok(None));
        }
        let (_, stored) = lines.drain();
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[0].bytes.len(), LINE_BYTES_MAX);
        assert_eq!(
            stored[0].cut_bytes,
            pieces * 64 * 1024 - LINE_BYTES_MAX as u64
        );
    }
}
