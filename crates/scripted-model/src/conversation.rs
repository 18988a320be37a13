//! What a request says about the conversation so far. Everything a script needs is derived from
//! the request alone, so that a repeated request, or a restarted server, plays the same turn.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

const REMINDER_START: &str = "<system-reminder>";
const REMINDER_END: &str = "</system-reminder>";
/// How the CLI tells the model where it works.
const CWD_LABEL: &str = "Primary working directory: ";

/// One request to the Messages API, reduced to what scripts look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    pub model: String,
    pub stream: bool,
    /// The first user message, without the sections that the CLI adds.
    pub prompt: String,
    /// The newest user message that says something, without those sections.
    pub last_user_text: String,
    /// The system prompt and every message of role `system`.
    pub system: String,
    /// The answers the model gave so far: the number of the turn to be played.
    pub answers: usize,
    pub offers_tools: bool,
    /// Whether the answer has to be JSON of a schema.
    pub wants_json: bool,
    /// The directory in which the CLI says it works.
    pub cwd: Option<String>,
    /// What each tool use gave back, oldest first.
    pub tool_results: Vec<String>,
    pub body_bytes: usize,
}

#[derive(Deserialize)]
struct Request {
    model: String,
    #[serde(default)]
    stream: bool,
    messages: Vec<Message>,
    #[serde(default)]
    system: Value,
    #[serde(default)]
    tools: Vec<IgnoredAny>,
    #[serde(default)]
    output_config: Value,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Value,
}

impl Conversation {
    /// # Errors
    /// Where `body` is no request to the Messages API.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        let request: Request = serde_json::from_slice(body)?;
        let system_messages = request
            .messages
            .iter()
            .filter(|message| message.role == "system");
        let system = std::iter::once(&request.system)
            .chain(system_messages.map(|message| &message.content))
            .flat_map(texts)
            .collect::<Vec<_>>()
            .join("\n");
        let user_messages = || {
            request
                .messages
                .iter()
                .filter(|message| message.role == "user")
                .map(|m| &m.content)
        };
        let user_texts = || user_messages().map(said);

        Ok(Self {
            stream: request.stream,
            prompt: user_texts().next().unwrap_or_default(),
            last_user_text: user_texts()
                .rfind(|text| !text.is_empty())
                .unwrap_or_default(),
            answers: answers(&request.messages),
            offers_tools: !request.tools.is_empty(),
            wants_json: !request.output_config["format"].is_null(),
            cwd: cwd(&system).or_else(|| user_messages().flat_map(texts).find_map(cwd)),
            tool_results: user_messages().flat_map(tool_results).collect(),
            body_bytes: body.len(),
            model: request.model,
            system,
        })
    }
}

/// Adjacent assistant messages are one answer that the client split.
fn answers(messages: &[Message]) -> usize {
    let is_answer = |message: &Message| message.role == "assistant";
    let starts = messages
        .iter()
        .zip(std::iter::once(None).chain(messages.iter().map(Some)));
    starts
        .filter(|(message, before)| is_answer(message) && !before.is_some_and(is_answer))
        .count()
}

/// The texts of a message's or system prompt's content: a string, or a list of blocks.
fn texts(content: &Value) -> Vec<&str> {
    match content {
        Value::String(text) => vec![text],
        Value::Array(blocks) => blocks
            .iter()
            .filter_map(|block| block["text"].as_str())
            .collect(),
        _ => Vec::new(),
    }
}

fn tool_results(content: &Value) -> Vec<String> {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let results = blocks.iter().filter(|block| block["type"] == "tool_result");
    results
        .map(|block| texts(&block["content"]).join("\n"))
        .collect()
}

/// What the user said in `content`, without what the CLI added.
fn said(content: &Value) -> String {
    let parts = texts(content).into_iter().map(without_reminders);
    parts
        .filter(|text| !text.trim().is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

fn without_reminders(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(REMINDER_START) {
        let Some(length) = rest[start..].find(REMINDER_END) else {
            break;
        };
        kept.push_str(&rest[..start]);
        rest = &rest[start + length + REMINDER_END.len()..];
    }
    kept.push_str(rest);
    kept
}

fn cwd(text: &str) -> Option<String> {
    let (_, after) = text.split_once(CWD_LABEL)?;
    Some(after.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(request: &Value) -> Conversation {
        Conversation::parse(request.to_string().as_bytes()).expect("the request is valid")
    }

    /// The shape that Claude Code 2.1.330 sends, shortened.
    fn second_request() -> Value {
        json!({
            "model": "claude-opus-5-5", "stream": true, "max_tokens": 64000,
            "system": [{"type": "text", "text": "You are a Claude agent."}],
            "tools": [{"name": "Bash"}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "<system-reminder>\nRecent commits:\nabc Write the tests\n</system-reminder>"},
                    {"type": "text", "text": "Store the list\n"}]},
                {"role": "system", "content": [
                    {"type": "text", "text": "# Environment\n - Primary working directory: /workspace\n - Shell: bash"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3 files"}]}]},
            ],
        })
    }

    #[test]
    fn request_of_the_cli_is_understood() {
        let conversation = parsed(&second_request());
        assert_eq!(conversation.model, "claude-opus-5-5");
        assert_eq!(conversation.prompt.trim(), "Store the list");
        assert_eq!(conversation.answers, 1);
        assert_eq!(conversation.cwd.as_deref(), Some("/workspace"));
        assert_eq!(conversation.tool_results, ["3 files"]);
        assert!(conversation.offers_tools && conversation.stream);
        assert!(conversation.system.contains("You are a Claude agent."));
    }

    #[test]
    fn newest_words_of_the_user_are_found_behind_tool_results() {
        let mut request = second_request();
        assert_eq!(parsed(&request).last_user_text.trim(), "Store the list");
        let more = json!({"role": "user", "content": "And now?"});
        request["messages"]
            .as_array_mut()
            .expect("messages")
            .push(more);
        assert_eq!(parsed(&request).last_user_text, "And now?");
    }

    #[test]
    fn adjacent_assistant_messages_are_one_answer() {
        let assistant = json!({"role": "assistant", "content": "x"});
        let user = json!({"role": "user", "content": "y"});
        let messages = json!([user, assistant, assistant, user, assistant, user]);
        assert_eq!(
            parsed(&json!({"model": "m", "messages": messages})).answers,
            2
        );
    }

    #[test]
    fn reminder_without_an_end_is_kept() {
        assert_eq!(
            without_reminders("a <system-reminder> b"),
            "a <system-reminder> b"
        );
        let twice = "<system-reminder>x</system-reminder>a<system-reminder>y</system-reminder>b";
        assert_eq!(without_reminders(twice), "ab");
    }
}
