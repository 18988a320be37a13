//! Reads token counts out of the model API's answers as they pass by.

use serde::Deserialize;

use crate::config::Price;

/// The largest event or JSON answer looked into; those with counts are far smaller, except for
/// a whole answer in one piece.
const EVENT_BYTES_MAX: usize = 256 << 10;
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What one call of the model used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// The model's name, as the API gave it.
    pub model: Option<String>,
    /// Tokens read, neither from nor into the cache.
    pub input_tokens: u64,
    /// Tokens read and written into the prompt cache.
    pub cache_creation_input_tokens: u64,
    /// Tokens read from the prompt cache.
    pub cache_read_input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
}

/// Tokens that a price is for.
const PRICED_TOKENS: f64 = 1_000_000.0;

impl TokenCounts {
    /// US dollars at `price`.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "no call uses more tokens than a double counts exactly"
    )]
    pub fn cost_usd(&self, price: &Price) -> f64 {
        let dollars = self.input_tokens as f64 * price.input
            + self.output_tokens as f64 * price.output
            + self.cache_creation_input_tokens as f64 * price.cache_write
            + self.cache_read_input_tokens as f64 * price.cache_read;
        dollars / PRICED_TOKENS
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn read(&mut self, message: MessageFields) {
        if message.model.is_some() {
            self.model = message.model;
        }
        let Some(usage) = message.usage else { return };
        // Counts are totals so far: a later event repeats or raises them.
        for (count, newer) in [
            (&mut self.input_tokens, usage.input_tokens),
            (
                &mut self.cache_creation_input_tokens,
                usage.cache_creation_input_tokens,
            ),
            (
                &mut self.cache_read_input_tokens,
                usage.cache_read_input_tokens,
            ),
            (&mut self.output_tokens, usage.output_tokens),
        ] {
            *count = (*count).max(newer.unwrap_or(0));
        }
    }
}

#[derive(Deserialize)]
struct EventFields {
    #[serde(rename = "type")]
    kind: String,
    message: Option<MessageFields>,
    usage: Option<UsageFields>,
}

#[derive(Deserialize)]
struct MessageFields {
    model: Option<String>,
    usage: Option<UsageFields>,
}

#[derive(Deserialize)]
struct UsageFields {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// Takes an answer's blocks, cut anywhere, and gives its counts.
#[derive(Debug)]
pub(super) enum Meter {
    /// Server-sent events.
    Events(EventScanner),
    /// One JSON object; too large ones are given up and counted as nothing.
    Answer { body: Vec<u8>, is_too_large: bool },
    /// Nothing to count.
    Off,
}

impl Meter {
    pub(super) fn events() -> Self {
        Self::Events(EventScanner::default())
    }

    pub(super) fn answer() -> Self {
        Self::Answer {
            body: Vec::new(),
            is_too_large: false,
        }
    }

    pub(super) fn read(&mut self, block: &[u8]) {
        match self {
            Self::Events(scanner) => scanner.read(block),
            Self::Answer { body, is_too_large } => {
                *is_too_large |= body.len() + block.len() > ANSWER_BYTES_MAX;
                if *is_too_large {
                    *body = Vec::new();
                } else {
                    body.extend_from_slice(block);
                }
            }
            Self::Off => {}
        }
    }

    /// What was counted, if anything.
    pub(super) fn finish(&mut self) -> Option<TokenCounts> {
        let counts = match std::mem::replace(self, Self::Off) {
            Self::Events(mut scanner) => {
                // A stream that was cut has counted what came.
                scanner.end_event();
                scanner.counts
            }
            Self::Answer { body, .. } => {
                let mut counts = TokenCounts::default();
                if let Ok(message) = serde_json::from_slice(&body) {
                    counts.read(message);
                }
                counts
            }
            Self::Off => TokenCounts::default(),
        };
        (!counts.is_empty()).then_some(counts)
    }
}

/// Finds the `data` of server-sent events and reads those with counts.
#[derive(Debug, Default)]
pub(super) struct EventScanner {
    counts: TokenCounts,
    line: Vec<u8>,
    /// The line has bytes, kept or not.
    is_line_begun: bool,
    data: Vec<u8>,
    /// The event is over [`EVENT_BYTES_MAX`] and passed over.
    is_too_large: bool,
    /// The block before ended in a carriage return; a line feed now belongs to it.
    after_return: bool,
}

impl EventScanner {
    fn read(&mut self, mut block: &[u8]) {
        if self.after_return && block.first() == Some(&b'\n') {
            block = &block[1..];
            self.after_return = false;
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', block) {
            self.extend_line(&block[..end]);
            self.end_line();
            let is_return = block[end] == b'\r';
            block = &block[end + 1..];
            self.after_return = is_return && block.is_empty();
            if is_return && block.first() == Some(&b'\n') {
                block = &block[1..];
            }
        }
        if !block.is_empty() {
            self.after_return = false;
            self.extend_line(block);
        }
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        self.is_line_begun |= !bytes.is_empty();
        self.is_too_large |= self.line.len() + self.data.len() + bytes.len() > EVENT_BYTES_MAX;
        if !self.is_too_large {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self) {
        if !self.is_line_begun {
            self.end_event();
        } else if let Some(data) = self.line.strip_prefix(b"data:") {
            self.data
                .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.data.push(b'\n');
        }
        self.line.clear();
        self.is_line_begun = false;
    }

    fn end_event(&mut self) {
        // Most events are pieces of text; only two kinds are worth parsing.
        let may_count = !self.is_too_large
            && (memchr::memmem::find(&self.data, b"message_start").is_some()
                || memchr::memmem::find(&self.data, b"message_delta").is_some());
        if may_count && let Ok(event) = serde_json::from_slice::<EventFields>(&self.data) {
            match (event.kind.as_str(), event.message) {
                ("message_start", Some(message)) => self.counts.read(message),
                ("message_delta", _) => self.counts.read(MessageFields {
                    model: None,
                    usage: event.usage,
                }),
                _ => {}
            }
        }
        self.data.clear();
        self.is_too_large = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        "event: message_start\n",
        r#"data: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":25,"#,
        r#""cache_creation_input_tokens":3,"cache_read_input_tokens":7,"output_tokens":1}}}"#,
        "\n\n: a comment\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "event: content_block_delta\n",
        r#"data: {"type":"content_block_delta","delta":{"type":"text_delta","#,
        r#""text":"\"message_delta\" {\"usage\":{\"output_tokens\":999}} äö"}}"#,
        "\n\nevent: message_delta\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"#,
        r#""usage":{"output_tokens":15,"input_tokens":null}}"#,
        "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );

    fn expected() -> TokenCounts {
        TokenCounts {
            model: Some("claude-x".into()),
            input_tokens: 25,
            cache_creation_input_tokens: 3,
            cache_read_input_tokens: 7,
            output_tokens: 15,
        }
    }

    fn counted(mut meter: Meter, blocks: &[&[u8]]) -> Option<TokenCounts> {
        for block in blocks {
            meter.read(block);
        }
        meter.finish()
    }

    proptest! {
        #[test]
        fn events_are_counted_wherever_they_are_cut(
            cuts in prop::collection::vec(0..STREAM.len(), 0..12),
            line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let stream = STREAM.replace('\n', line_end).into_bytes();
            let mut cuts = cuts;
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let blocks: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
            prop_assert_eq!(counted(Meter::events(), &blocks), Some(expected()));
        }

        #[test]
        fn no_bytes_upset_the_scanner(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let counts = counted(Meter::events(), &[&bytes, b"\n\n", STREAM.as_bytes()]);
            prop_assert_eq!(counts, Some(expected()));
        }
    }

    #[test]
    fn an_event_that_is_too_large_is_passed_over() {
        let large = format!("data: {}\n\n", "message_start".repeat(EVENT_BYTES_MAX / 8));
        let (start, end) = large.as_bytes().split_at(EVENT_BYTES_MAX + 10);
        let blocks = [start, end, STREAM.as_bytes()];
        assert_eq!(counted(Meter::events(), &blocks), Some(expected()));
    }

    #[test]
    fn a_stream_that_was_cut_counts_what_came() {
        let end = STREAM.find("event: message_delta").expect("in the stream");
        let counts = counted(Meter::events(), &[&STREAM.as_bytes()[..end]]);
        assert_eq!(counts.map(|counts| counts.output_tokens), Some(1));
        assert_eq!(counted(Meter::events(), &[b": nothing\n\n"]), None);
    }

    #[test]
    fn an_answer_in_one_piece_is_counted() {
        let body =
            br#"{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":25,
            "cache_creation_input_tokens":3,"cache_read_input_tokens":7,"output_tokens":15}}"#;
        let (start, end) = body.split_at(40);
        assert_eq!(counted(Meter::answer(), &[start, end]), Some(expected()));
        assert_eq!(counted(Meter::answer(), &[b"{}"]), None);
        assert_eq!(counted(Meter::answer(), &[b"not json"]), None);
    }
}
