//! Reads token counts out of the model API's answers as they pass by.

use serde::Deserialize;

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

impl TokenCounts {
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
        self.is_too_large |= self.line.len() + self.data.len() + bytes.len() > EVENT_BYTES_MAX;
        if !self.is_too_large {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() && !self.is_too_large {
            self.end_event();
            return;
        }
        if self.line.is_empty() {
            // The end of an event that was passed over, or the end of its long line.
            self.end_event_if_over();
            return;
        }
        if let Some(data) = self.line.strip_prefix(b"data:") {
            self.data
                .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.data.push(b'\n');
        }
        self.line.clear();
    }
}
