//! Segment files: where lines of output are kept, byte for byte.
//!
//! `<output>/<session>/<attempt>-<number>.seg` holds one record after the other:
//!
//! ```text
//! u32 length, i64 milliseconds, u8 flags, [u64 cut bytes, if flagged], the line
//! ```
//!
//! little-endian. Which records count is in the database: what lies beyond was never
//! acknowledged and is written over. All functions here block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use baton_agent::protocol::Stream;
use baton_domain::{Attempt, SessionId};
use bytes::Bytes;
use jiff::Timestamp;

use super::batch::Piece;
use super::rows::Range;
use super::types::{LINE_BYTES_MAX, OutputLine};

const HEADER_BYTES: usize = 4 + 8 + 1;
const CUT_BYTES: usize = 8;
const STDERR: u8 = 1;
const LINE_END: u8 = 2;
const CUT: u8 = 4;
/// Records are written in blocks of about this size: few system calls, and no buffer as large as
/// what is appended.
const BLOCK_BYTES: usize = 128 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// Where a session's next record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: u32,
    pub(super) offset: u64,
}

/// How much of a range was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// All of it.
    Complete,
    /// Enough.
    Full,
    /// From number `seq` on it is not what was written; `text_bytes` are missing.
    Damaged { seq: u64, text_bytes: u64 },
}

/// The folder of a session's segments.
pub(super) fn session_dir(output_dir: &Path, id: SessionId) -> PathBuf {
    output_dir.join(id.to_string())
}

pub(super) fn path(session_dir: &Path, attempt: Attempt, segment: u32) -> PathBuf {
    session_dir.join(format!("{attempt}-{segment}.seg"))
}

/// The most lines of one range: to read the last of them, those before it are skipped one by one.
const RANGE_LINES_MAX: u64 = 16_384;

/// Which lines go where: on from `spot`, into a new segment whenever one would outgrow
/// `segment_bytes_max`. A record larger than that gets a segment for itself.
pub(super) fn place(
    lines: &[OutputLine],
    spot: Spot,
    segment_bytes_max: u64,
) -> Vec<(Piece, ops::Range<usize>)> {
    let mut placed: Vec<(Piece, ops::Range<usize>)> = Vec::new();
    let mut end = spot;
    for (at, line) in lines.iter().enumerate() {
        let bytes = record_bytes(line);
        if end.offset > 0 && end.offset + bytes > segment_bytes_max {
            end = Spot {
                segment: end.segment + 1,
                offset: 0,
            };
        }
        match placed.last_mut() {
            Some((piece, range))
                if piece.segment == end.segment && piece.lines < RANGE_LINES_MAX =>
            {
                piece.lines += 1;
                piece.bytes += bytes;
                piece.text_bytes += line.bytes.len() as u64;
                range.end = at + 1;
            }
            _ => {
                let piece = Piece {
                    segment: end.segment,
                    offset: end.offset,
                    lines: 1,
                    bytes,
                    text_bytes: line.bytes.len() as u64,
                };
                placed.push((piece, at..at + 1));
            }
        }
        end.offset += bytes;
    }
    placed
}

/// Writes the lines of one piece, durable on return.
pub(super) fn write(
    session_dir: &Path,
    attempt: Attempt,
    piece: &Piece,
    lines: &[OutputLine],
) -> io::Result<()> {
    let path = path(session_dir, attempt, piece.segment);
    let begun = piece.offset > 0;
    if !begun {
        fs::create_dir_all(session_dir)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(!begun)
        .truncate(!begun)
        .open(&path)?;
    let mut block = Vec::with_capacity(BLOCK_BYTES.min(piece.bytes as usize + 1));
    let mut offset = piece.offset;
    for line in lines {
        if !block.is_empty()
            && block.len() + line.bytes.len() + HEADER_BYTES + CUT_BYTES > BLOCK_BYTES
        {
            file.write_all_at(&block, offset)?;
            offset += block.len() as u64;
            block.clear();
        }
        encode(line, &mut block);
    }
    file.write_all_at(&block, offset)?;
    file.sync_data()?;
    if !begun {
        // The file's name must last as well, and with the first file the folder's.
        let folders = if piece.segment == 0 { 2 } else { 1 };
        for folder in path.ancestors().skip(1).take(folders) {
            File::open(folder)?.sync_all()?;
        }
    }
    Ok(())
}

/// Reads the lines of `range` numbered after `after`, and hands each with its number to `take`
/// until that says no.
pub(super) fn read(
    session_dir: &Path,
    range: &Range,
    after: u64,
    mut take: impl FnMut(u64, OutputLine) -> bool,
) -> io::Result<ReadEnd> {
    let mut text_bytes = range.text_bytes;
    let mut seq = range.first_seq;
    let outcome = open_at(session_dir, range).and_then(|mut records| {
        while seq < range.first_seq + range.lines {
            let header = records.header()?;
            let length = i64::from(header.length);
            if seq <= after {
                records.skip(length)?;
            } else if !take(seq, records.line(&header)?) {
                return Ok(ReadEnd::Full);
            }
            text_bytes = text_bytes.saturating_sub(u64::from(header.length));
            seq += 1;
        }
        Ok(ReadEnd::Complete)
    });
    match outcome {
        Err(error) if is_damage(&error) => Ok(ReadEnd::Damaged {
            seq: seq.max(after + 1),
            text_bytes,
        }),
        outcome => outcome,
    }
}

/// Cuts the session's files back to what is recorded of each, and removes those of which nothing
/// is: what a crash left between writing and recording.
pub(super) fn cut_back(
    session_dir: &Path,
    recorded: impl Fn(Attempt, u32) -> Option<u64>,
) -> io::Result<()> {
    for file in entries(session_dir)? {
        let Some((attempt, number)) = named(&file) else {
            continue;
        };
        match recorded(attempt, number) {
            None => fs::remove_file(&file)?,
            Some(bytes) if fs::metadata(&file)?.len() > bytes => {
                OpenOptions::new().write(true).open(&file)?.set_len(bytes)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(found) => found.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The attempt and number of a segment file; none of any other file.
fn named(path: &Path) -> Option<(Attempt, u32)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    let (attempt, number) = name.split_once('-')?;
    Some((Attempt(attempt.parse().ok()?), number.parse().ok()?))
}

/// Makes the folder of all output, to last.
pub(super) fn make_output_dir(output_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(output_dir)?;
    output_dir
        .parent()
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn record_bytes(line: &OutputLine) -> u64 {
    let cut = if line.cut_bytes > 0 { CUT_BYTES } else { 0 };
    (HEADER_BYTES + cut + line.bytes.len()) as u64
}

fn encode(line: &OutputLine, out: &mut Vec<u8>) {
    // The store refuses lines longer than LINE_BYTES_MAX.
    let length = u32::try_from(line.bytes.len()).unwrap_or(u32::MAX);
    let mut flags = 0;
    if line.stream == Stream::Stderr {
        flags |= STDERR;
    }
    if line.line_end {
        flags |= LINE_END;
    }
    if line.cut_bytes > 0 {
        flags |= CUT;
    }
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&line.at.as_millisecond().to_le_bytes());
    out.push(flags);
    if line.cut_bytes > 0 {
        out.extend_from_slice(&line.cut_bytes.to_le_bytes());
    }
    out.extend_from_slice(&line.bytes);
}

fn open_at(session_dir: &Path, range: &Range) -> io::Result<Records> {
    let mut file = File::open(path(session_dir, range.attempt, range.segment))?;
    file.seek(SeekFrom::Start(range.offset))?;
    let buffered = READ_BYTES.min(range.bytes as usize);
    Ok(Records(BufReader::with_capacity(buffered, file)))
}

struct Records(BufReader<File>);

struct Header {
    length: u32,
    at: Timestamp,
    flags: u8,
    cut_bytes: u64,
}

impl Records {
    fn header(&mut self) -> io::Result<Header> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let length = u32::from_le_bytes(self.array()?);
        let at_ms = i64::from_le_bytes(self.array()?);
        let [flags] = self.array()?;
        let cut_bytes = if flags & CUT == 0 {
            0
        } else {
            u64::from_le_bytes(self.array()?)
        };
        if length as usize > LINE_BYTES_MAX || flags > STDERR | LINE_END | CUT {
            return Err(invalid());
        }
        Ok(Header {
            length,
            at: Timestamp::from_millisecond(at_ms).map_err(|_| invalid())?,
            flags,
            cut_bytes,
        })
    }

    fn line(&mut self, header: &Header) -> io::Result<OutputLine> {
        let mut bytes = vec![0; header.length as usize];
        self.0.read_exact(&mut bytes)?;
        let stream = if header.flags & STDERR == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        Ok(OutputLine {
            at: header.at,
            stream,
            bytes: Bytes::from(bytes),
            cut_bytes: header.cut_bytes,
            line_end: header.flags & LINE_END != 0,
        })
    }

    fn skip(&mut self, length: i64) -> io::Result<()> {
        self.0.seek_relative(length)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether the file is not what was written, in contrast to not being readable just now.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: usize) -> OutputLine {
        OutputLine {
            at: Timestamp::UNIX_EPOCH,
            stream: Stream::Stdout,
            bytes: Bytes::from(vec![b'x'; bytes]),
            cut_bytes: 0,
            line_end: true,
        }
    }

    #[track_caller]
    fn check(lines: &[usize], spot: (u32, u64), expected: &[(u32, u64, u64)]) {
        let lines: Vec<_> = lines
            .iter()
            .map(|bytes| line(bytes - HEADER_BYTES))
            .collect();
        let (segment, offset) = spot;
        let placed = place(&lines, Spot { segment, offset }, 100);
        let found: Vec<_> = placed
            .iter()
            .map(|(piece, _)| (piece.segment, piece.offset, piece.bytes))
            .collect();
        assert_eq!(found, expected);
        let counted: Vec<_> = placed
            .iter()
            .map(|(piece, at)| (piece.lines, at.len()))
            .collect();
        assert!(counted.iter().all(|(lines, len)| *lines == *len as u64));
        assert_eq!(placed.last().map_or(0, |(_, at)| at.end), lines.len());
    }

    #[test]
    fn lines_fill_segments_and_never_cross_their_borders() {
        check(&[], (0, 0), &[]);
        check(&[50, 50], (0, 0), &[(0, 0, 100)]);
        check(&[50, 51], (0, 0), &[(0, 0, 50), (1, 0, 51)]);
        check(&[20, 30], (3, 80), &[(3, 80, 20), (4, 0, 30)]);
        check(&[20], (3, 100), &[(4, 0, 20)]);
        check(&[500, 20], (0, 0), &[(0, 0, 500), (1, 0, 20)]);
        check(&[20, 500], (0, 0), &[(0, 0, 20), (1, 0, 500)]);
    }
}
