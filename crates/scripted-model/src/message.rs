//! The API's message: what a turn becomes before it is sent as one body or as a stream.

use serde_json::{Map, Value, json};

use crate::conversation::Conversation;
use crate::script::{ToolUse, Turn, Usage};

/// Bytes per token, roughly; for turns that set no usage.
const BYTES_PER_TOKEN: usize = 4;

/// One answer, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub id: String,
    pub model: String,
    pub content: Vec<Block>,
    pub stop_reason: String,
    pub usage: Usage,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    Text(String),
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

/// A script uses what its conversation does not say.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfilled {
    /// Where it works.
    #[error("the script uses {{{{cwd}}}}, but the request names no primary working directory")]
    Cwd,
    /// A field of what a tool gave back.
    #[error("the script uses {{{{{0}}}}}, but no such result has such a field")]
    Result(String),
}

/// What a field of an earlier tool's result is written as: `{{result.0.sessionId}}`.
const RESULT_START: &str = "{{result.";

impl Message {
    /// The message of `turn`. `new_id` gives a fresh id that begins with the prefix it is given.
    ///
    /// # Errors
    /// [`Unfilled`].
    pub fn of_turn(
        turn: &Turn,
        conversation: &Conversation,
        new_id: &mut dyn FnMut(&str) -> String,
    ) -> Result<Self, Unfilled> {
        let mut content = Vec::new();
        if let Some(text) = &turn.text {
            content.push(Block::Text(filled(text, conversation)?));
        }
        for ToolUse { name, input } in &turn.tools {
            let input = filled_object(input, conversation)?;
            content.push(Block::ToolUse {
                id: new_id("toolu_"),
                name: name.clone(),
                input,
            });
        }
        let natural = if turn.tools.is_empty() {
            "end_turn"
        } else {
            "tool_use"
        };
        let stop_reason = turn.stop_reason.as_deref().unwrap_or(natural).to_owned();
        let usage = complete(turn.usage, conversation, &content);
        Ok(Self {
            id: new_id("msg_"),
            model: conversation.model.clone(),
            content,
            stop_reason,
            usage,
        })
    }

    /// The message as one body.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content.iter().map(Block::to_json).collect::<Vec<_>>(),
            "stop_reason": self.stop_reason,
            "stop_sequence": null,
            "usage": usage_json(&self.usage),
        })
    }
}

impl Block {
    fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::ToolUse { id, name, input } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

/// Counts in the API's shape; the cache's are 0 where a script is silent about them.
pub fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens.unwrap_or(0),
        "cache_creation_input_tokens": usage.cache_creation_input_tokens.unwrap_or(0),
        "cache_read_input_tokens": usage.cache_read_input_tokens.unwrap_or(0),
        "output_tokens": usage.output_tokens.unwrap_or(0),
    })
}

/// A guess at the tokens in `bytes`.
pub fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes / BYTES_PER_TOKEN)
        .unwrap_or(u64::MAX)
        .max(1)
}

fn complete(usage: Usage, conversation: &Conversation, content: &[Block]) -> Usage {
    let answered: usize = content
        .iter()
        .map(|block| block.to_json().to_string().len())
        .sum();
    Usage {
        input_tokens: usage
            .input_tokens
            .or_else(|| Some(tokens(conversation.body_bytes))),
        output_tokens: usage.output_tokens.or_else(|| Some(tokens(answered))),
        ..usage
    }
}

fn filled_object(
    object: &Map<String, Value>,
    conversation: &Conversation,
) -> Result<Map<String, Value>, Unfilled> {
    let filled =
        |(key, value): (&String, &Value)| Ok((key.clone(), filled_value(value, conversation)?));
    object.iter().map(filled).collect()
}

fn filled_value(value: &Value, conversation: &Conversation) -> Result<Value, Unfilled> {
    Ok(match value {
        Value::String(text) => Value::String(filled(text, conversation)?),
        Value::Array(values) => {
            let values = values.iter().map(|value| filled_value(value, conversation));
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Value::Object(object) => Value::Object(filled_object(object, conversation)?),
        other => other.clone(),
    })
}

/// `{{cwd}}` first: a tool's result may contain braces of its own.
fn filled(text: &str, conversation: &Conversation) -> Result<String, Unfilled> {
    let mut text = text.to_owned();
    if text.contains("{{cwd}}") {
        text = text.replace("{{cwd}}", conversation.cwd.as_deref().ok_or(Unfilled::Cwd)?);
    }
    let text = with_results(&text, &conversation.tool_results)?;
    let last = conversation.tool_results.last();
    Ok(text.replace("{{last_tool_result}}", last.map_or("", String::as_str)))
}

fn with_results(text: &str, results: &[String]) -> Result<String, Unfilled> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(RESULT_START) {
        let Some((path, after)) = after.split_once("}}") else {
            break;
        };
        filled.push_str(before);
        let unknown = || Unfilled::Result(format!("result.{path}"));
        filled.push_str(&field(path, results).ok_or_else(unknown)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The field that `path` names: the number of a result, then keys and places in its JSON.
fn field(path: &str, results: &[String]) -> Option<String> {
    let (number, path) = path.split_once('.')?;
    let result = results.get(number.parse::<usize>().ok()?)?;
    // Something may stand before it and after it.
    let json = &result[result.find('{')?..];
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let value = values.next()?.ok()?;
    let found = value.pointer(&format!("/{}", path.replace('.', "/")))?;
    Some(match found {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Scripts;

    const WRITE: &str = r#"
        [[turn]]
        text = "Tests said: {{last_tool_result}}"
        usage = { input_tokens = 100, output_tokens = 7 }
        [[turn.tool]]
        name = "Write"
        [turn.tool.input]
        file_path = "{{cwd}}/a.py"
        edits = [{ new = "{{cwd}}" }]
        replace_all = true
    "#;

    fn message(conversation: &Conversation) -> Result<Message, Unfilled> {
        let scripts = Scripts::from_texts([("default", WRITE)]).expect("the script is valid");
        let script = scripts.iter().next().expect("one script");
        Message::of_turn(&script.turns[0], conversation, &mut |prefix| {
            format!("{prefix}1")
        })
    }

    #[test]
    fn templates_are_filled_at_every_depth() {
        let conversation = Conversation {
            cwd: Some("/workspace".into()),
            tool_results: vec!["OK".into()],
            ..Conversation::default()
        };
        let message = message(&conversation)
            .expect("everything is known")
            .to_json();
        assert_eq!(message["content"][0]["text"], "Tests said: OK");
        assert_eq!(
            message["content"][1]["input"]["file_path"],
            "/workspace/a.py"
        );
        assert_eq!(
            message["content"][1]["input"]["edits"][0]["new"],
            "/workspace"
        );
        assert_eq!(message["content"][1]["input"]["replace_all"], true);
        assert_eq!(message["stop_reason"], "tool_use");
        assert_eq!(message["usage"]["input_tokens"], 100);
        assert_eq!(message["usage"]["output_tokens"], 7);
    }

    #[test]
    fn fields_of_earlier_results_are_filled_in() {
        let results = [
            r#"Made: {"sessionId":"s1","list":[{"id":7}]} and more"#.to_owned(),
            "no JSON".to_owned(),
        ];
        let fill = |text: &str| with_results(text, &results);
        assert_eq!(
            fill("{{result.0.sessionId}}, {{result.0.list.0.id}}!"),
            Ok("s1, 7!".to_owned())
        );
        for unknown in ["result.0.other", "result.1.x", "result.2.x"] {
            let unfilled = fill(&format!("{{{{{unknown}}}}}"));
            assert_eq!(unfilled, Err(Unfilled::Result(unknown.to_owned())));
        }
    }

    #[test]
    fn unknown_cwd_is_an_error() {
        assert_eq!(message(&Conversation::default()), Err(Unfilled::Cwd));
    }
}
