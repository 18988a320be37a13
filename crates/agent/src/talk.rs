//! What Claude is told: its prompt, and what the server says while it works.
//!
//! Claude reads one JSON message per line. Of one that comes in the middle of a turn it takes
//! notice with the next answer of a tool; one that comes too late for that begins another turn,
//! which ends with a result of its own. It answers whatever it was told before its stdin was
//! closed, and then exits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use baton_agent::protocol::{Note, Say};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::Notify;

use crate::claude::Seen;
use crate::outbox::Outbox;

/// What the server said and Claude was not told yet. The server limits how much that can be.
#[derive(Default)]
pub struct Sayings {
    waiting: RefCell<VecDeque<Say>>,
    /// The highest number that came.
    heard: Cell<u64>,
    more: Notify,
}

impl Sayings {
    /// Takes up what the server said; what it says again is passed over.
    pub fn hear(&self, say: Say) {
        if say.number > self.heard.get() {
            self.heard.set(say.number);
            self.waiting.borrow_mut().push_back(say);
            self.more.notify_one();
        }
    }

    /// The oldest that waits; waits until there is one.
    async fn next(&self) -> Say {
        loop {
            if let Some(say) = self.waiting.borrow_mut().pop_front() {
                return say;
            }
            self.more.notified().await;
        }
    }
}

/// Tells Claude `prompt`, then what is said, until it gave a result and nothing more waits. What
/// is said after that is not noted as told: the server goes on with it in another attempt.
pub async fn talk(
    mut stdin: ChildStdin,
    prompt: String,
    sayings: Rc<Sayings>,
    outbox: Rc<Outbox>,
    seen: Rc<Seen>,
) {
    // A Claude that does not read what it is told says so itself, by how it ends.
    let mut results = seen.results();
    if stdin.write_all(&line(&prompt)).await.is_err() {
        return;
    }
    drop(prompt);
    loop {
        let say = tokio::select! {
            biased;
            say = sayings.next() => say,
            () = seen.results_after(results) => return,
        };
        // Counted before the message is written: where a result comes meanwhile, Claude answers
        // the message all the same, its stdin closed or not.
        results = seen.results();
        seen.told();
        if stdin.write_all(&line(&say.text)).await.is_err() {
            return;
        }
        let number = say.number;
        outbox.note(Note::Told { number }).await;
    }
}

/// A user's message as the CLI wants it on stdin.
///
/// What begins with a slash may be a command to the CLI: `/clear` would throw the conversation away.
/// What is said is for Claude, so a blank goes before it.
fn line(text: &str) -> Vec<u8> {
    let blank = if text.starts_with('/') { " " } else { "" };
    let content = format!("{blank}{text}");
    let message = json!({ "type": "user", "message": { "role": "user", "content": content } });
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(numbers: &[u64]) -> Vec<u64> {
        let sayings = Sayings::default();
        for &number in numbers {
            let text = String::new();
            sayings.hear(Say { number, text });
        }
        let waiting = sayings.waiting.borrow();
        waiting.iter().map(|say| say.number).collect()
    }

    #[test]
    fn what_is_said_again_is_passed_over() {
        assert_eq!(said(&[3, 4, 3, 4, 5, 1]), [3, 4, 5]);
    }

    #[test]
    fn words_are_no_commands() {
        let line = String::from_utf8(line("/clear")).expect("text");
        assert!(line.contains(r#"" /clear""#), "{line}");
    }

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let line = line("a\nb \"c\" \u{2028}");
        assert_eq!(memchr::memchr_iter(b'\n', &line).count(), 1);
        let message: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(message["message"]["content"], "a\nb \"c\" \u{2028}");
    }
}
