//! A message as a server-sent event stream, with its pace and its faults.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::message::{Block, Message, usage_json};
use crate::reply::error_json;
use crate::script::{Fault, Usage};

/// Characters of text in one chunk.
const TEXT_CHARS: usize = 24;
/// Characters of a tool's input in one chunk; more, so that whole files don't take all day.
const INPUT_CHARS: usize = 400;

/// What is done next while a stream is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Send(Bytes),
    Wait(Duration),
    /// The connection closes here, though the stream is not complete.
    Break,
    /// Nothing more is said here, and the connection stays open.
    Stall,
}

/// The stream of `message`, with `pace` between its chunks, up to `fault` if it has one.
pub fn steps(message: &Message, pace: Duration, fault: Option<&Fault>) -> Vec<Step> {
    let (chunks_max, last) = match fault {
        Some(Fault::Cut { after_chunks }) => (*after_chunks, Some(Step::Break)),
        Some(Fault::Stall { after_chunks }) => (*after_chunks, Some(Step::Stall)),
        Some(Fault::StreamError {
            error_type,
            after_chunks,
        }) => {
            let error = error_json(error_type, "the stream was ended by the script");
            (*after_chunks, Some(send("error", &error)))
        }
        Some(Fault::Status { .. } | Fault::UsageLimit { .. } | Fault::Hang {}) | None => {
            (usize::MAX, None)
        }
    };
    let mut steps = vec![
        send("message_start", &start(message)),
        send("ping", &json!({"type": "ping"})),
    ];
    let mut chunks = 0;
    for (index, block) in message.content.iter().enumerate() {
        steps.push(send("content_block_start", &block_start(index, block)));
        for delta in deltas(block) {
            if chunks == chunks_max {
                steps.extend(last);
                return steps;
            }
            if chunks > 0 && !pace.is_zero() {
                steps.push(Step::Wait(pace));
            }
            chunks += 1;
            let event = json!({"type": "content_block_delta", "index": index, "delta": delta});
            steps.push(send("content_block_delta", &event));
        }
        steps.push(send(
            "content_block_stop",
            &json!({"type": "content_block_stop", "index": index}),
        ));
    }
    // A fault behind the last chunk still keeps the stream from its end.
    if let Some(last) = last {
        steps.push(last);
        return steps;
    }
    steps.push(send("message_delta", &end(message)));
    steps.push(send("message_stop", &json!({"type": "message_stop"})));
    steps
}

fn send(event: &str, data: &Value) -> Step {
    Step::Send(Bytes::from(format!("event: {event}\ndata: {data}\n\n")))
}

fn start(message: &Message) -> Value {
    // At its start the API has counted the input and next to nothing of the output.
    let usage = Usage {
        output_tokens: Some(1),
        ..message.usage
    };
    json!({"type": "message_start", "message": {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": message.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage_json(&usage),
    }})
}

fn end(message: &Message) -> Value {
    json!({
        "type": "message_delta",
        "delta": {"stop_reason": message.stop_reason, "stop_sequence": null},
        "usage": usage_json(&message.usage),
    })
}

fn block_start(index: usize, block: &Block) -> Value {
    let block = match block {
        Block::Text(_) => json!({"type": "text", "text": ""}),
        Block::ToolUse { id, name, .. } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": {}})
        }
    };
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn deltas(block: &Block) -> Vec<Value> {
    match block {
        Block::Text(text) => pieces(text, TEXT_CHARS)
            .into_iter()
            .map(|piece| json!({"type": "text_delta", "text": piece}))
            .collect(),
        Block::ToolUse { input, .. } => {
            let input = Value::Object(input.clone()).to_string();
            pieces(&input, INPUT_CHARS)
                .into_iter()
                .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                .collect()
        }
    }
}

/// `text` cut every `chars` characters.
fn pieces(text: &str, chars: usize) -> Vec<&str> {
    let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let cuts: Vec<usize> = ends.step_by(chars).chain([text.len()]).collect();
    let pieces = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]);
    pieces.filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn message() -> Message {
        let input = json!({"command": "ls"});
        Message {
            id: "msg_1".into(),
            model: "claude-x".into(),
            content: vec![
                Block::Text("Die Größe der Datei — gemessen.".into()),
                Block::ToolUse {
                    id: "toolu_1".into(),
                    name: "Bash".into(),
                    input: input.as_object().expect("an object").clone(),
                },
            ],
            stop_reason: "tool_use".into(),
            usage: Usage {
                input_tokens: Some(10),
                output_tokens: Some(5),
                ..Usage::default()
            },
        }
    }

    fn render(steps: &[Step]) -> String {
        let line = |step: &Step| match step {
            Step::Send(bytes) => {
                let text = String::from_utf8(bytes.to_vec()).expect("events are UTF-8");
                assert!(text.ends_with("\n\n"), "an event ends with an empty line");
                text.trim_end().replace('\n', " | ") + "\n"
            }
            other => format!("{other:?}\n"),
        };
        steps.iter().map(line).collect()
    }

    #[track_caller]
    fn check(pace_ms: u64, fault: Option<Fault>, expected: Expect) {
        let steps = steps(&message(), Duration::from_millis(pace_ms), fault.as_ref());
        expected.assert_eq(&render(&steps));
    }

    #[test]
    fn whole_stream_has_the_shape_of_the_api() {
        check(
            0,
            None,
            expect![[r#"
            event: message_start | data: {"message":{"content":[],"id":"msg_1","model":"claude-x","role":"assistant","stop_reason":null,"stop_sequence":null,"type":"message","usage":{"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"input_tokens":10,"output_tokens":1}},"type":"message_start"}
            event: ping | data: {"type":"ping"}
            event: content_block_start | data: {"content_block":{"text":"","type":"text"},"index":0,"type":"content_block_start"}
            event: content_block_delta | data: {"delta":{"text":"Die Größe der Datei — ge","type":"text_delta"},"index":0,"type":"content_block_delta"}
            event: content_block_delta | data: {"delta":{"text":"messen.","type":"text_delta"},"index":0,"type":"content_block_delta"}
            event: content_block_stop | data: {"index":0,"type":"content_block_stop"}
            event: content_block_start | data: {"content_block":{"id":"toolu_1","input":{},"name":"Bash","type":"tool_use"},"index":1,"type":"content_block_start"}
            event: content_block_delta | data: {"delta":{"partial_json":"{\"command\":\"ls\"}","type":"input_json_delta"},"index":1,"type":"content_block_delta"}
            event: content_block_stop | data: {"index":1,"type":"content_block_stop"}
            event: message_delta | data: {"delta":{"stop_reason":"tool_use","stop_sequence":null},"type":"message_delta","usage":{"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"input_tokens":10,"output_tokens":5}}
            event: message_stop | data: {"type":"message_stop"}
        "#]],
        );
    }

    #[test]
    fn chunks_are_paced() {
        let steps = steps(&message(), Duration::from_millis(5), None);
        assert_eq!(
            steps
                .iter()
                .filter(|step| matches!(step, Step::Wait(_)))
                .count(),
            2
        );
    }

    #[test]
    fn cut_leaves_the_stream_incomplete() {
        check(
            0,
            Some(Fault::Cut { after_chunks: 1 }),
            expect![[r#"
            event: message_start | data: {"message":{"content":[],"id":"msg_1","model":"claude-x","role":"assistant","stop_reason":null,"stop_sequence":null,"type":"message","usage":{"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"input_tokens":10,"output_tokens":1}},"type":"message_start"}
            event: ping | data: {"type":"ping"}
            event: content_block_start | data: {"content_block":{"text":"","type":"text"},"index":0,"type":"content_block_start"}
            event: content_block_delta | data: {"delta":{"text":"Die Größe der Datei — ge","type":"text_delta"},"index":0,"type":"content_block_delta"}
            Break
        "#]],
        );
    }

    #[test]
    fn fault_behind_the_last_chunk_still_happens() {
        let steps = steps(
            &message(),
            Duration::ZERO,
            Some(&Fault::Stall { after_chunks: 99 }),
        );
        assert_eq!(steps.last(), Some(&Step::Stall));
        assert!(!render(&steps).contains("message_stop"));
    }

    #[test]
    fn pieces_join_to_the_text_again() {
        for text in ["", "a", "äöü€", "exactly8", &"x".repeat(1_000)] {
            assert_eq!(pieces(text, 8).concat(), text);
            assert!(
                pieces(text, 8)
                    .iter()
                    .all(|piece| piece.chars().count() <= 8)
            );
        }
    }
}
