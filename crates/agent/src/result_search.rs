//! Finds Claude's `result` message in its output without reading every line as JSON.

use baton_agent::result::claude_result;
use baton_domain::ending::ClaudeResult;
use memchr::memmem::Finder;

use crate::splitter::Piece;

/// A longer line is not searched for a result. The longest answer a model gives is well below.
const RESULT_LINE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Every result message holds this; the CLI prints its JSON without spaces, and inside of a
/// string the quotes would be escaped. Where in the line it stands differs between versions.
const MARK: &[u8] = br#""type":"result""#;

/// What a piece held.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// The last result in it.
    pub result: ClaudeResult,
    /// Whether nothing came after that.
    pub is_last: bool,
}

/// Looks at a stream piece by piece.
pub struct ResultSearch {
    mark: Finder<'static>,
    /// The line so far, where it came in several pieces.
    long_line: Vec<u8>,
    in_long_line: bool,
}

impl ResultSearch {
    /// One that has seen nothing yet.
    pub fn new() -> Self {
        Self {
            mark: Finder::new(MARK),
            long_line: Vec::new(),
            in_long_line: false,
        }
    }

    /// The last result whose line ends in this piece.
    pub fn see(&mut self, piece: &Piece<'_>) -> Option<Found> {
        if !piece.more && !self.in_long_line {
            return self.search(piece.bytes);
        }
        self.in_long_line = piece.more;
        let room = RESULT_LINE_BYTES_MAX - self.long_line.len();
        let kept = piece.bytes.len().min(room);
        self.long_line.extend_from_slice(&piece.bytes[..kept]);
        if piece.more {
            return None;
        }
        // A line over the limit is cut short here and so fails to parse.
        let line = std::mem::take(&mut self.long_line);
        self.search(&line)
    }

    fn search(&self, lines: &[u8]) -> Option<Found> {
        let mut found = None;
        let mut from = 0;
        while let Some(at) = self.mark.find(&lines[from..]) {
            let at = from + at;
            let start = memchr::memrchr(b'\n', &lines[..at]).map_or(0, |end| end + 1);
            let end = memchr::memchr(b'\n', &lines[at..]).map_or(lines.len(), |end| at + end);
            if let Some(result) = claude_result(&lines[start..end]) {
                let is_last = end + 1 >= lines.len();
                found = Some(Found { result, is_last });
            }
            from = end;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[(&[u8], bool)]) -> Vec<Option<String>> {
        let mut search = ResultSearch::new();
        pieces
            .iter()
            .map(|&(bytes, more)| {
                search
                    .see(&Piece { bytes, more })
                    .map(|found| found.result.text)
            })
            .collect()
    }

    #[test]
    fn the_later_of_two_results_counts() {
        let lines = br#"{"type":"system"}
{"result":"one","type":"result"}
{"type":"result","result":"two"}
{"type":"user","x":{"type":"result","result":"three"}}
"#;
        assert_eq!(texts(&[(lines, false)]), [Some("two".to_owned())]);
    }

    #[test]
    fn whether_anything_follows_is_told() {
        let is_last = |bytes: &[u8]| {
            let found = ResultSearch::new().see(&Piece { bytes, more: false });
            found.map(|found| found.is_last)
        };
        let result = br#"{"type":"result"}"#;
        assert_eq!(is_last(result), Some(true));
        assert_eq!(is_last(&[result, &b"\n"[..]].concat()), Some(true));
        assert_eq!(is_last(&[result, &b"\n{}\n"[..]].concat()), Some(false));
    }

    #[test]
    fn a_result_in_several_pieces_is_put_together() {
        let text = "y".repeat(200_000);
        let line = format!("{{\"result\":\"{text}\",\"type\":\"result\"}}\n");
        let (a, b) = line.as_bytes().split_at(65_535);
        let found = texts(&[(b"x\n", false), (a, true), (b, false), (b"x\n", false)]);
        // Not shown when it fails: it is long.
        assert!(found == [None, None, Some(text), None]);
    }

    #[test]
    fn an_endless_line_is_given_up_and_the_next_one_seen() {
        let part = vec![b'x'; 1_000_000];
        let result = br#"{"type":"result","result":"later"}"#;
        let found = texts(&[
            (&part, true),
            (&part, true),
            (&part, true),
            (b"\n", false),
            (result, false),
        ]);
        assert_eq!(found, [None, None, None, None, Some("later".to_owned())]);
    }
}
