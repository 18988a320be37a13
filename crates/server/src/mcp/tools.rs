//! The tools: their names, and their definitions as clients see them.

use std::sync::LazyLock;

use rmcp::model::{ErrorData, JsonObject, MetaObject, Tool as Definition};
use serde_json::json;

use super::answers::shortened;

/// The most bytes of all definitions together: each client pays for them in its context.
pub const DEFINITIONS_BYTES_MAX: usize = 6_000;
/// The most characters of a name that are said back.
const NAME_CHARS_SHOWN: usize = 64;

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Create,
    Start,
    Status,
    Output,
    List,
    Wait,
    Cancel,
    Retry,
    Message,
    Orchestrate,
    Orchestration,
}

impl Tool {
    /// The tool of that name. Names that peers of ours use for the same are understood, and not
    /// listed.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "create_claude_session" | "create_session" => Self::Create,
            "start_claude_session" | "start_session" => Self::Start,
            "get_session_status" | "get_session" | "session_status" => Self::Status,
            "get_session_output" | "session_output" => Self::Output,
            "list_sessions" | "list_claude_sessions" => Self::List,
            "wait_for_session" | "wait_for_sessions" => Self::Wait,
            "cancel_session" | "cancel_claude_session" | "stop_session" => Self::Cancel,
            "retry_session" => Self::Retry,
            "message_session" | "send_message" => Self::Message,
            "orchestrate" => Self::Orchestrate,
            "get_orchestration" => Self::Orchestration,
            _ => return None,
        })
    }

    /// Whether it makes something, with each call anew.
    pub(super) fn makes(self) -> bool {
        matches!(
            self,
            Self::Create | Self::Orchestrate | Self::Message | Self::Retry
        )
    }

    /// Whether it may be called from inside a coordination session: all but what makes an
    /// orchestration of its own.
    pub(super) fn is_for_sessions(self) -> bool {
        self != Self::Orchestrate
    }
}

#[expect(
    clippy::expect_used,
    reason = "the file is part of the binary, and tested"
)]
static DEFINITIONS: LazyLock<Vec<Definition>> =
    LazyLock::new(|| serde_json::from_str(include_str!("tools.json")).expect("tools.json"));

/// The definitions, always in the same order: callers keep them in a cache.
pub(super) fn definitions(for_sessions: bool) -> Vec<Definition> {
    let wanted = |definition: &&Definition| {
        !for_sessions || Tool::named(&definition.name).is_some_and(Tool::is_for_sessions)
    };
    let picked = DEFINITIONS.iter().filter(wanted).cloned();
    match for_sessions {
        false => picked.collect(),
        // A coordination session needs nearly all of them at once; without this Claude Code shows
        // it their names first and their definitions only when asked.
        true => picked.map(|tool| tool.with_meta(always_loaded())).collect(),
    }
}

fn always_loaded() -> MetaObject {
    let mut meta = JsonObject::new();
    meta.insert("anthropic/alwaysLoad".to_owned(), json!(true));
    MetaObject::from(meta)
}

/// The tool of that name, of those that may be called.
///
/// # Errors
/// There is none. That is an error of the protocol, as it is wherever tools are called.
pub(super) fn known(name: &str, for_sessions: bool) -> Result<Tool, ErrorData> {
    let tool = Tool::named(name).filter(|tool| !for_sessions || tool.is_for_sessions());
    tool.ok_or_else(|| {
        let shown = shortened(name, NAME_CHARS_SHOWN);
        let text = format!("Unknown tool {shown:?}; known are {}", names());
        ErrorData::invalid_params(text, None)
    })
}

fn names() -> String {
    let names = DEFINITIONS.iter().map(|tool| tool.name.as_ref());
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_small_and_each_can_be_called() {
        let definitions = definitions(false);
        let bytes = serde_json::to_vec(&definitions).expect("JSON").len();
        assert!(bytes < DEFINITIONS_BYTES_MAX, "{bytes}");
        assert_eq!(definitions.len(), 11);
        for definition in &definitions {
            assert!(
                Tool::named(&definition.name).is_some(),
                "{}",
                definition.name
            );
        }
    }

    #[test]
    fn names_of_peers_are_understood_and_not_listed() {
        assert_eq!(Tool::named("create_session"), Some(Tool::Create));
        assert_eq!(Tool::named("start_session"), Some(Tool::Start));
        assert!(!names().split(", ").any(|name| name == "create_session"));
    }
}
