//! Claude's `result` message: the one line of its stream-json that says how the work ended.

use baton_domain::ending::{ClaudeResult, Usage};
use serde::Deserialize;

/// The most of the result's closing text that is kept, in bytes. Escaped at its worst it still
/// fits a frame.
pub const RESULT_TEXT_BYTES_MAX: usize = 256 * 1024;

/// What the CLI prints. Everything but `type` may be missing or new: its version is not ours to
/// choose, and an outcome must not hang on a field that was renamed.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "lenient")]
    subtype: String,
    #[serde(default, deserialize_with = "lenient")]
    is_error: bool,
    #[serde(default, deserialize_with = "lenient")]
    result: String,
    /// Stands in for `result` in results that tell of errors.
    #[serde(default, deserialize_with = "lenient")]
    errors: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    total_cost_usd: f64,
    #[serde(default, deserialize_with = "lenient")]
    usage: Tokens,
}

#[derive(Default, Deserialize)]
struct Tokens {
    #[serde(default, deserialize_with = "lenient")]
    input_tokens: u64,
    #[serde(default, deserialize_with = "lenient")]
    cache_read_input_tokens: u64,
    #[serde(default, deserialize_with = "lenient")]
    cache_creation_input_tokens: u64,
    #[serde(default, deserialize_with = "lenient")]
    output_tokens: u64,
}

/// A value of another shape than expected, `null` above all, counts as missing.
fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::de::DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// Reads one line of Claude's stdout; none when it is not a `result` message.
///
/// The text is cut after [`RESULT_TEXT_BYTES_MAX`] bytes. Where the CLI gives `errors` instead of
/// a text, they are joined by line ends.
#[must_use]
pub fn claude_result(line: &[u8]) -> Option<ClaudeResult> {
    let text = String::from_utf8_lossy(line);
    let line: Line = serde_json::from_str(text.trim()).ok()?;
    if line.kind != "result" {
        return None;
    }
    let mut text = line.result;
    if text.is_empty() {
        text = line.errors.join("\n");
    }
    text.truncate(text.floor_char_boundary(RESULT_TEXT_BYTES_MAX));
    let tokens = line.usage;
    Some(ClaudeResult {
        subtype: line.subtype,
        is_error: line.is_error,
        text,
        usage: Usage {
            input_tokens: tokens
                .input_tokens
                .saturating_add(tokens.cache_read_input_tokens)
                .saturating_add(tokens.cache_creation_input_tokens),
            output_tokens: tokens.output_tokens,
            cost_usd: line.total_cost_usd,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_the_real_cli_is_read() {
        // Shortened from what version 2.1.330 printed; `type` comes last but one there.
        let line = br#"{"duration_api_ms":853,"total_cost_usd":0.128608,"usage":{"input_tokens":29807,"cache_creation_input_tokens":5,"cache_read_input_tokens":300,"output_tokens":466,"service_tier":"standard","cache_creation":{"ephemeral_1h_input_tokens":0}},"permission_denials":[],"is_error":false,"num_turns":5,"subtype":"success","api_error_status":null,"result":"Added it.\n\nNext steps:\n- Tests.","type":"result","uuid":"x"}
"#;
        let expected = ClaudeResult {
            subtype: "success".into(),
            is_error: false,
            text: "Added it.\n\nNext steps:\n- Tests.".into(),
            usage: Usage {
                input_tokens: 30_112,
                output_tokens: 466,
                cost_usd: 0.128_608,
            },
        };
        assert_eq!(claude_result(line), Some(expected));
    }

    #[test]
    fn errors_stand_in_for_the_text() {
        let line = br#"{"type":"result","subtype":"error_max_turns","is_error":true,"errors":["a","b"],"usage":null}"#;
        let result = claude_result(line).expect("a result");
        assert!(result.is_error);
        assert_eq!(result.subtype, "error_max_turns");
        assert_eq!(result.text, "a\nb");
        assert_eq!(result.usage, Usage::default());
    }

    #[test]
    fn other_messages_and_nonsense_are_no_results() {
        for line in [
            &br#"{"type":"assistant","message":{"type":"result"}}"#[..],
            br#"{"subtype":"success"}"#,
            br#"{"type":"result""#,
            b"\xff\xfe",
            b"",
        ] {
            assert_eq!(claude_result(line), None, "{line:?}");
        }
    }

    #[test]
    fn invalid_utf8_does_not_cost_the_outcome() {
        let line = b"{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"caf\xe9\"}";
        let result = claude_result(line).expect("a result");
        assert_eq!(result.text, "caf\u{fffd}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "é".repeat(RESULT_TEXT_BYTES_MAX);
        let line = format!(r#"{{"type":"result","result":"x{text}"}}"#);
        let result = claude_result(line.as_bytes()).expect("a result");
        assert_eq!(result.text.len(), RESULT_TEXT_BYTES_MAX - 1);
    }
}
