//! Events as the wire shows them: one JSON object each, on one line.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use baton_agent::protocol::Stream;
use baton_domain::ending::Outcome;
use baton_domain::{SessionEvent, SessionId};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Millis;
use crate::store::{EventBody, OutputLine, StoredEvent};

/// One event of a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Event)]
pub struct EventView<'a> {
    /// Its number; a session's first is 1, and there is no gap. `truncated` stands for all numbers
    /// up to its `lastSeq`.
    pub seq: u64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub at: Millis,
    /// `session` for a change of state, `claude` for a message of Claude's, `stdout` and `stderr`
    /// for other lines, `truncated` for lines that are not kept, `note` for what the server tells.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Of `session`: what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<&'static str>,
    /// Of `session`: the state it led to; absent for the first event, `created`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'a str>,
    /// Of `session`: the dependency in its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub blocked_by: Option<SessionId>,
    /// Of `session`: why it failed, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// Of `session`: why it failed, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    /// Of `claude`: the message as Claude wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub message: Option<Cow<'a, RawValue>>,
    /// Of `stdout` and `stderr`: the line without its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<&'a str>,
    /// Of `stdout` and `stderr`: the line, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Of `stdout` and `stderr`: how many bytes of the line are missing at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_bytes: Option<u64>,
    /// Of `truncated`: the last number it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// Of `truncated`: how many bytes of output were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of `note`: what there is to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'a str>,
}

impl<'a> EventView<'a> {
    /// The view of it.
    #[must_use]
    pub fn new(event: &'a StoredEvent) -> Self {
        let view = Self {
            seq: event.seq,
            at: Millis(event.at),
            kind: "session",
            event: None,
            state: None,
            blocked_by: None,
            error: None,
            error_code: None,
            message: None,
            line: None,
            base64: None,
            cut_bytes: None,
            last_seq: None,
            bytes: None,
            text: None,
        };
        match &event.body {
            EventBody::Created => Self {
                event: Some("created"),
                ..view
            },
            EventBody::Session { event, state } => view.of_session(event, state),
            EventBody::Output(line) => view.of_line(line),
            EventBody::Truncated { last_seq, bytes } => Self {
                kind: "truncated",
                last_seq: Some(*last_seq),
                bytes: Some(*bytes),
                ..view
            },
            EventBody::Note(text) => Self {
                kind: "note",
                text: Some(text),
                ..view
            },
        }
    }

    fn of_session(self, event: &'a SessionEvent, state: &'a str) -> Self {
        let failure = match event {
            SessionEvent::Concluded(_, outcome) | SessionEvent::LaunchFailed(_, outcome) => {
                match outcome {
                    Outcome::Failed { code, message } => Some((code.name(), message.as_str())),
                    Outcome::Completed | Outcome::Cancelled => None,
                }
            }
            _ => None,
        };
        Self {
            event: Some(event_name(event)),
            state: Some(state),
            blocked_by: match event {
                SessionEvent::DependencyLost(dependency) => Some(*dependency),
                _ => None,
            },
            error: failure.map(|(_, message)| message),
            error_code: failure.map(|(code, _)| code),
            ..self
        }
    }

    fn of_line(self, line: &'a OutputLine) -> Self {
        let kind = match line.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let view = Self {
            kind,
            cut_bytes: (line.cut_bytes > 0).then_some(line.cut_bytes),
            ..self
        };
        let Ok(text) = std::str::from_utf8(&line.bytes) else {
            return Self {
                base64: Some(STANDARD.encode(&line.bytes)),
                ..view
            };
        };
        match message(text) {
            Some(message) if line.stream == Stream::Stdout && line.cut_bytes == 0 => Self {
                kind: "claude",
                message: Some(message),
                ..view
            },
            _ => Self {
                line: Some(text),
                ..view
            },
        }
    }

    /// Its JSON, in one line and without a line end.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        #[expect(
            clippy::expect_used,
            reason = "serialising our own plain types cannot fail"
        )]
        serde_json::to_writer(out, self).expect("plain types serialise");
    }
}

/// The JSON object that a line is, if it is one.
fn message(line: &str) -> Option<Cow<'_, RawValue>> {
    if !line.trim_ascii_start().starts_with('{') {
        return None;
    }
    // A carriage return is white space between JSON's parts, and ends a line elsewhere.
    if line.contains('\r') {
        let line = line.replace('\r', " ");
        return serde_json::from_str(&line).ok().map(Cow::Owned);
    }
    serde_json::from_str(line).ok().map(Cow::Borrowed)
}

/// A stable word for programs.
fn event_name(event: &SessionEvent) -> &'static str {
    match event {
        SessionEvent::StartRequested => "start_requested",
        SessionEvent::DependencyLost(_) => "dependency_lost",
        SessionEvent::LaunchDecided(_) => "launch_decided",
        SessionEvent::ClaudeStarted(_) => "claude_started",
        SessionEvent::SlotYielded(_) => "slot_yielded",
        SessionEvent::SlotTaken(_) => "slot_taken",
        SessionEvent::CancelRequested => "cancel_requested",
        SessionEvent::AgentEnded(..) => "claude_ended",
        SessionEvent::SandboxLost(..) => "sandbox_lost",
        SessionEvent::LaunchFailed(..) => "launch_failed",
        SessionEvent::Concluded(..) => "concluded",
        SessionEvent::Paused(..) => "paused",
        SessionEvent::Saved(_) => "saved",
        SessionEvent::LaunchLost(_) => "launch_lost",
        SessionEvent::RetryRequested => "retry_requested",
        SessionEvent::DependencyRetried => "dependency_retried",
        SessionEvent::Resumed(_) => "resumed",
        SessionEvent::MessageSent(_) => "message_sent",
        SessionEvent::MessageTold(..) => "message_told",
        SessionEvent::LimitHit(..) => "usage_limit_hit",
        SessionEvent::BudgetSpent(_) => "budget_spent",
        SessionEvent::BudgetSet(_) => "budget_set",
        SessionEvent::Landed(_) => "landed",
    }
}
