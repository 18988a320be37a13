//! What is asked of a session after it was made: messages, going on from an earlier attempt,
//! another budget; and the pauses it takes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::Attempt;

/// The most bytes of one message to Claude.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// The most messages that may wait to be told.
pub const MESSAGES_WAITING_MAX: usize = 100;

/// The most bytes of all of them together: they may have to be told at once.
pub const MESSAGES_WAITING_BYTES_MAX: usize = 512 * 1024;

/// What was asked of a session after it was made, kept beside its state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Steering {
    /// Where the attempt that runs, or would run next, goes on; absent: it starts anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
    /// What Claude was not told yet, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// How many messages were given a number.
    #[serde(skip_serializing_if = "is_zero")]
    pub messages_numbered: u64,
    /// US dollars that all attempts together may cost before the session pauses and asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<f64>,
    /// Until when the model API refuses the account's calls, as the last attempt was told that was
    /// refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_until: Option<Timestamp>,
    /// US dollars that earlier attempts cost.
    #[serde(skip_serializing_if = "is_nothing")]
    pub cost_before_usd: f64,
    /// US dollars that were spent when `max_cost_usd` was last granted.
    #[serde(skip_serializing_if = "is_nothing")]
    pub granted_from_usd: f64,
    /// When it last took its dependencies' results for its base; what goes on does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub based_at: Option<Timestamp>,
    /// Whether the attempt was refused calls of the model, because a budget is spent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub budget_spent: bool,
    /// How many launches in a row were lost to the host.
    #[serde(skip_serializing_if = "is_zero")]
    pub launches_lost: u64,
    /// Not to be launched before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_after: Option<Timestamp>,
}

/// Where an attempt goes on: in the conversation and from the code of an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The attempt whose conversation is taken up.
    pub from: Attempt,
    /// What Claude is told first.
    pub text: String,
}

/// Something a client says to Claude.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its number, from 1.
    pub number: u64,
    /// What is said.
    pub text: String,
}

/// Why a session that had begun waits now. Its work is saved, its sandbox ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// The account's usage limit is reached; it goes on by itself.
    UsageLimit {
        /// When the limit is lifted.
        until: Timestamp,
    },
    /// Its budget is spent; a message or a larger budget lets it go on.
    Budget {
        /// US dollars spent by all attempts together.
        spent_usd: f64,
    },
    /// The budget of its orchestration is spent; a larger one lets it go on.
    OrchestrationBudget,
}

impl Steering {
    /// Takes up a message.
    pub(crate) fn add_message(&mut self, text: &str) {
        self.messages_numbered += 1;
        self.messages.push(Message {
            number: self.messages_numbered,
            text: text.to_owned(),
        });
    }

    /// All that waits to be told, as one text, no longer waiting.
    /// Adds a message before those that wait; numbers go on growing, and all of them get new ones.
    pub(crate) fn add_first(&mut self, text: &str) {
        let later = std::mem::take(&mut self.messages);
        self.add_message(text);
        for message in later {
            self.add_message(&message.text);
        }
    }

    /// Whether one more message may wait.
    pub(crate) fn has_room_for(&self, text: &str) -> bool {
        let bytes: usize = self.messages.iter().map(|one| one.text.len()).sum();
        self.messages.len() < MESSAGES_WAITING_MAX
            && bytes + text.len() <= MESSAGES_WAITING_BYTES_MAX
    }

    pub(crate) fn take_messages(&mut self) -> String {
        let texts: Vec<String> = self
            .messages
            .drain(..)
            .map(|message| message.text)
            .collect();
        texts.join("\n\n")
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_nothing(amount: &f64) -> bool {
    *amount <= 0.0
}
