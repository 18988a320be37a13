//! The last of a stream.

use std::collections::VecDeque;

use tokio::io::AsyncReadExt;

/// Keeps the last bytes that came by.
pub struct Tail {
    bytes: VecDeque<u8>,
    bytes_max: usize,
}

impl Tail {
    /// Keeps `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            bytes_max,
        }
    }

    /// These came by.
    pub fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        let surplus = (self.bytes.len() + kept.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..surplus);
        self.bytes.extend(kept);
    }

    /// The tail as text of at most as many bytes, whole characters only.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        // A character cut at the front would only be shown as damage.
        let cut = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80)
            .count();
        let mut text = String::from_utf8_lossy(&bytes[cut..]).into_owned();
        // Damage elsewhere grows when it is made visible.
        let surplus = text.len().saturating_sub(self.bytes_max);
        text.drain(..text.ceil_char_boundary(surplus));
        text
    }
}

/// Reads to the end.
pub async fn read_tail(reader: Option<impl AsyncReadExt + Unpin>, tail: &mut Tail) {
    let Some(mut reader) = reader else {
        return;
    };
    let mut block = [0; 4 * 1024];
    while let Ok(count @ 1..) = reader.read(&mut block).await {
        tail.push(&block[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pushed: &[&[u8]], bytes_max: usize, expected: &str) {
        let mut tail = Tail::new(bytes_max);
        for bytes in pushed {
            tail.push(bytes);
        }
        assert_eq!(tail.text(), expected);
    }

    #[test]
    fn the_last_bytes_are_kept() {
        check(&[b"abc", b"def"], 4, "cdef");
        check(&[b"abcdefgh"], 3, "fgh");
        check(&[b"ab"], 4, "ab");
        check(&[], 4, "");
    }

    #[test]
    fn characters_are_not_cut_and_damage_does_not_grow_it() {
        check(&["éé".as_bytes()], 3, "é");
        check(&[b"a\xffb\xff"], 4, "b\u{fffd}");
    }
}
