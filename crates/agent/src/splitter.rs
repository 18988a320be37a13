//! Cuts a stream of Claude's into the pieces the protocol asks for: whole lines, or parts of a
//! line that is too long for a frame.

use baton_agent::protocol::OUTPUT_BYTES_MAX;

/// Whole lines with their line ends; or a part of a long line.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// At least one byte, at most [`OUTPUT_BYTES_MAX`].
    pub bytes: &'a [u8],
    /// Whether the line goes on in the next piece.
    pub more: bool,
}

/// A buffer of one frame's size between a pipe and the spool.
///
/// Read into [`Splitter::room`], say how much came with [`Splitter::filled`], then take pieces
/// until there are none.
#[derive(Debug)]
pub struct Splitter {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Whether the last piece left its line unfinished.
    in_long_line: bool,
}

impl Splitter {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; OUTPUT_BYTES_MAX].into_boxed_slice(),
            start: 0,
            end: 0,
            in_long_line: false,
        }
    }

    /// Where the next bytes go; never empty once [`Splitter::next`] returned none.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of the room now hold output.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next piece; none when more must be read first. With `at_end` the rest is given out
    /// even where it lacks a line end.
    pub fn next(&mut self, at_end: bool) -> Option<Piece<'_>> {
        let waiting = &self.buffer[self.start..self.end];
        let full = waiting.len() == self.buffer.len();
        let line_end = if self.in_long_line {
            // Its last part stands alone, so that every other frame begins with a line.
            memchr::memchr(b'\n', waiting)
        } else {
            memchr::memrchr(b'\n', waiting)
        };
        let (length, more) = match line_end {
            Some(at) => (at + 1, false),
            // One byte stays behind: whatever follows, the line's last part is not empty.
            None if full => (waiting.len() - 1, true),
            None if at_end && !waiting.is_empty() => (waiting.len(), false),
            None => {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                return None;
            }
        };
        let from = self.start;
        self.start += length;
        self.in_long_line = more;
        Some(Piece {
            bytes: &self.buffer[from..from + length],
            more,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `input` in reads of `sizes`, over and over, and collects the pieces.
    fn split(input: &[u8], sizes: &[usize]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::new();
        let mut pieces = Vec::new();
        let mut left = input;
        let mut sizes = sizes.iter().cycle();
        while !left.is_empty() {
            let room = splitter.room();
            assert!(!room.is_empty(), "a reader without room would see an end");
            let count = sizes
                .next()
                .map_or(1, |n| *n)
                .min(room.len())
                .min(left.len());
            room[..count].copy_from_slice(&left[..count]);
            splitter.filled(count);
            left = &left[count..];
            while let Some(piece) = splitter.next(false) {
                pieces.push((piece.bytes.to_vec(), piece.more));
            }
        }
        while let Some(piece) = splitter.next(true) {
            pieces.push((piece.bytes.to_vec(), piece.more));
        }
        pieces
    }

    fn check(input: &[u8], sizes: &[usize]) {
        let pieces = split(input, sizes);
        let whole: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        assert!(whole == input, "bytes were lost, added or moved");
        let mut in_long_line = false;
        for (at, (bytes, more)) in pieces.iter().enumerate() {
            assert!(!bytes.is_empty() && bytes.len() <= OUTPUT_BYTES_MAX);
            let ends = memchr::memchr_iter(b'\n', bytes).count();
            if *more {
                assert_eq!(ends, 0, "a part of a line with a line end in it");
                assert!(at + 1 < pieces.len(), "a line that goes on nowhere");
            } else {
                let last = at + 1 == pieces.len();
                assert!(bytes.ends_with(b"\n") || last, "half a line in the middle");
                assert!(
                    !in_long_line || ends <= 1,
                    "lines after a long line's last part"
                );
            }
            in_long_line = *more;
        }
    }

    #[test]
    fn lines_come_together_and_as_soon_as_they_are_whole() {
        let pieces = split(b"a\nb\nc", &[64]);
        let expected = [(b"a\nb\n".to_vec(), false), (b"c".to_vec(), false)];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn lines_around_the_limit_of_a_frame() {
        for length in OUTPUT_BYTES_MAX - 2..=OUTPUT_BYTES_MAX + 2 {
            for tail in [&b""[..], b"\n", b"\nnext\n", b"\n\n"] {
                let mut input = vec![b'x'; length];
                input.extend_from_slice(tail);
                check(&input, &[OUTPUT_BYTES_MAX]);
                check(&input, &[4_096, 1]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_stream_comes_through_whole(
            lines in proptest::collection::vec(
                prop_oneof![8 => 0_usize..200, 1 => 0_usize..200_000], 0..20),
            sizes in proptest::collection::vec(1_usize..70_000, 1..6),
            ended in any::<bool>(),
        ) {
            let mut input = Vec::new();
            for (at, length) in lines.iter().enumerate() {
                input.resize(input.len() + length, b'a' + u8::try_from(at % 26).unwrap_or(0));
                input.push(b'\n');
            }
            if !ended {
                input.pop();
            }
            check(&input, &sizes);
        }
    }
}
