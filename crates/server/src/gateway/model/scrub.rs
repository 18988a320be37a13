//! Takes a secret out of a stream of bytes, wherever it is cut.

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

/// A shorter secret is none, and taking it out would spoil ordinary text.
const SECRET_BYTES_MIN: usize = 8;

const REPLACEMENT: &[u8] = b"[redacted]";

/// Replaces every occurrence of one secret. Holds bytes back only while they may be its beginning.
#[derive(Debug)]
pub(super) struct Scrubber {
    secret: SecretString,
    held: Vec<u8>,
}

impl Scrubber {
    pub(super) fn new(secret: SecretString) -> Self {
        Self {
            secret,
            held: Vec::new(),
        }
    }

    /// The bytes that may go on; `block` itself where there is nothing to do.
    pub(super) fn pass(&mut self, block: Bytes) -> Bytes {
        let secret = self.secret.expose_secret().as_bytes();
        if secret.len() < SECRET_BYTES_MIN {
            return block;
        }
        let is_clean = self.held.is_empty()
            && beginning_at_end(&block, secret) == 0
            && memchr::memmem::find(&block, secret).is_none();
        if is_clean {
            return block;
        }
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(&block);
        let mut passed = Vec::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Some(at) = memchr::memmem::find(rest, secret) {
            passed.extend_from_slice(&rest[..at]);
            passed.extend_from_slice(REPLACEMENT);
            rest = &rest[at + secret.len()..];
        }
        let (safe, held) = rest.split_at(rest.len() - beginning_at_end(rest, secret));
        passed.extend_from_slice(safe);
        self.held = held.to_vec();
        passed.into()
    }

    /// What was held back, once nothing more comes.
    pub(super) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }
}

/// How many of the last bytes are a beginning of `secret`, though not all of it.
fn beginning_at_end(bytes: &[u8], secret: &[u8]) -> usize {
    (1..secret.len())
        .rev()
        .find(|length| bytes.ends_with(&secret[..*length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "abcabcabd";

    proptest! {
        #[test]
        fn the_secret_is_gone_wherever_it_is_cut(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["abc", "ab", "a", "d", SECRET, "x"]), 0..20),
            cuts in prop::collection::vec(0..100_usize, 0..10),
        ) {
            let text = pieces.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut scrubber = Scrubber::new(SECRET.into());
            let mut passed = Vec::new();
            for cut in cuts.windows(2) {
                let block = text.as_bytes()[cut[0]..cut[1]].to_vec();
                passed.extend_from_slice(&scrubber.pass(block.into()));
            }
            passed.extend_from_slice(&scrubber.finish());
            prop_assert_eq!(String::from_utf8_lossy(&passed), text.replace(SECRET, "[redacted]"));
        }
    }

    #[test]
    fn nothing_is_held_back_without_need() {
        let mut scrubber = Scrubber::new(SECRET.into());
        assert_eq!(scrubber.pass("data: x\n\n".into()), "data: x\n\n");
        assert_eq!(scrubber.pass("ab".into()), "");
        assert_eq!(scrubber.pass("x".into()), "abx");
    }
}
