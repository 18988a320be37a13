//! Claude's messages → log lines for people, a summary, next steps.
//!
//! Claude Code's stream-json differs from release to release, so everything here is tolerant: an
//! unknown message gives no line and never an error; the raw events keep it in full.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::SessionId;
use crate::pauses::UsageLimit;

/// The most characters of one log line; longer ones end with `…`.
pub const LOG_LINE_CHARS_MAX: usize = 2_000;
/// The most bytes of a summary, which dependents' prompts carry too.
pub const SUMMARY_BYTES_MAX: usize = 16 * 1024;
/// The most next steps kept.
pub const NEXT_STEPS_MAX: usize = 50;

/// A thing a session left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Artifact {
    /// A file created or changed.
    File {
        /// Relative to the repository.
        path: String,
    },
    /// A commit.
    Commit {
        /// Its full name.
        sha: String,
    },
}

/// Where a session's work is, with its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionResult {
    /// The branch it landed on; absent where nothing was to land.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub branch: Option<String>,
    /// The commit it started from.
    pub base_commit: String,
    /// The commit with its work; the base where it left no change.
    pub commit: String,
    /// Files that differ between the two.
    pub files_changed: u64,
    /// Lines added.
    pub insertions: u64,
    /// Lines removed.
    pub deletions: u64,
    /// Results of its dependencies that `commit` does not hold, because they contradict it and the
    /// session only reads. Whoever depends on the session gets them beside `commit`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unjoined: Vec<Unjoined>,
}

/// A session's result that contradicts the others it should be joined with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unjoined {
    /// Whose result it is.
    pub session_id: SessionId,
    /// Its commit.
    pub commit: String,
}

/// What a line of Claude's stdout says to people: no line for messages that say nothing to them,
/// one for each paragraph line or tool use otherwise. `workspace` is cut off file names.
///
/// A line that is not JSON is its own text; bytes that are not UTF-8 show as `U+FFFD` here (the
/// raw events keep them).
#[must_use]
pub fn log_lines(line: &[u8], workspace: &str) -> Vec<String> {
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        let text = String::from_utf8_lossy(line);
        return if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![shortened(&text)]
        };
    };
    let mut lines = Vec::new();
    match message["type"].as_str() {
        Some("system") if message["subtype"] == "init" => lines.push(started(&message)),
        Some("assistant") => {
            for part in parts(&message) {
                assistant_part(part, workspace, &mut lines);
            }
        }
        Some("user") => tool_results(&message, workspace, &mut lines),
        Some("result") => lines.push(finished(&message)),
        Some(_) => {}
        None => lines.push(shortened(String::from_utf8_lossy(line))),
    }
    lines
}

/// The usage limit that a line of Claude's stdout tells of, where the account is refused for it.
#[must_use]
pub fn usage_limit(line: &[u8]) -> Option<UsageLimit> {
    let message: Value = serde_json::from_slice(line).ok()?;
    let info = &message["rate_limit_info"];
    let refused = message["type"] == "rate_limit_event"
        && info["status"] == "rejected"
        // What goes beyond the limit is paid for, and answered.
        && info["isUsingOverage"] != true;
    let resets_at = info["resetsAt"].as_i64();
    refused.then(|| UsageLimit {
        resets_at: resets_at.and_then(|second| Timestamp::from_second(second).ok()),
        retry_after: None,
    })
}

fn parts(message: &Value) -> &[Value] {
    message["message"]["content"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn started(message: &Value) -> String {
    let version = message["claude_code_version"].as_str().unwrap_or("");
    let model = message["model"].as_str().unwrap_or("the default model");
    let space = if version.is_empty() { "" } else { " " };
    format!("Claude Code{space}{version} started with {model}")
}

fn assistant_part(part: &Value, workspace: &str, lines: &mut Vec<String>) {
    match part["type"].as_str() {
        Some("text") => {
            let text = part["text"].as_str().unwrap_or("");
            lines.extend(
                text.lines()
                    .filter(|line| !line.trim().is_empty())
                    .map(shortened),
            );
        }
        Some("tool_use") => {
            let name = part["name"].as_str().unwrap_or("?");
            if let Some(line) = tool_use(name, &part["input"], workspace) {
                lines.push(shortened(&line));
            }
        }
        _ => {}
    }
}

/// Writes and edits are told by their results, when they have happened.
fn tool_use(name: &str, input: &Value, workspace: &str) -> Option<String> {
    let field = |key: &str| input[key].as_str().unwrap_or("").trim().to_owned();
    Some(match name {
        "Write" | "Edit" | "MultiEdit" | "NotebookEdit" | "TodoWrite" => return None,
        "Bash" => format!("Ran: {}", field("command").replace('\n', " ⏎ ")),
        "Read" => format!("Read file: {}", relative(&field("file_path"), workspace)),
        "Grep" | "Glob" => format!("Searched: {}", field("pattern")),
        "Task" | "Agent" => format!("Delegated: {}", field("description")),
        "WebFetch" => format!("Fetched: {}", field("url")),
        other => format!("Used tool: {other}"),
    })
}

fn tool_results(message: &Value, workspace: &str, lines: &mut Vec<String>) {
    for part in parts(message) {
        if part["type"] == "tool_result" && part["is_error"] == true {
            let text = match &part["content"] {
                Value::String(text) => text.clone(),
                Value::Array(parts) => parts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .collect(),
                _ => String::new(),
            };
            let first = text
                .lines()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("no reason");
            lines.push(shortened(format!("Tool failed: {first}")));
            return;
        }
    }
    let result = &message["tool_use_result"];
    if let Some(path) = result["filePath"].as_str() {
        let path = relative(path, workspace);
        let changed = match result["type"].as_str() {
            Some("create") => format!("Created file: {path}"),
            Some("update") => format!("Changed file: {path}"),
            None if result.get("structuredPatch").is_some() => format!("Changed file: {path}"),
            _ => return,
        };
        lines.push(shortened(changed));
    }
}

/// The longest name of a file that is believed: what Linux takes as a path.
const FILE_NAME_BYTES_MAX: usize = 4096;

/// The file that a line of Claude's stdout tells was written or edited, relative to `workspace`;
/// none for all other lines, and for files outside of it.
#[must_use]
pub fn changed_file(line: &[u8], workspace: &str) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    // Most lines tell of something else: they are not parsed.
    if !line.contains("\"filePath\"") {
        return None;
    }
    let message: Value = serde_json::from_str(line).ok()?;
    let result = &message["tool_use_result"];
    let wrote = matches!(result["type"].as_str(), Some("create" | "update"))
        || result.get("structuredPatch").is_some();
    let path = result["filePath"].as_str().filter(|_| wrote)?;
    let inside = path.strip_prefix(workspace)?.trim_start_matches('/');
    (1..=FILE_NAME_BYTES_MAX)
        .contains(&inside.len())
        .then(|| inside.to_owned())
}

fn finished(message: &Value) -> String {
    if message["is_error"] == true {
        let what = message["result"].as_str().filter(|text| !text.is_empty());
        let subtype = message["subtype"].as_str().unwrap_or("error");
        return shortened(format!("Failed: {}", what.unwrap_or(subtype)));
    }
    let turns = message["num_turns"].as_u64().unwrap_or(0);
    let cost = message["total_cost_usd"].as_f64().unwrap_or(0.0);
    format!(
        "Finished after {turns} {}, ${cost:.4}",
        if turns == 1 { "turn" } else { "turns" }
    )
}

fn relative(path: &str, workspace: &str) -> String {
    let inside = path
        .strip_prefix(workspace)
        .map(|rest| rest.trim_start_matches('/'));
    inside.unwrap_or(path).to_owned()
}

fn shortened(line: impl AsRef<str>) -> String {
    let line = line.as_ref().trim_end();
    match line.char_indices().nth(LOG_LINE_CHARS_MAX) {
        None => line.to_owned(),
        Some((cut, _)) => format!("{}…", &line[..cut]),
    }
}

/// Claude's closing text parted into what it did and what it proposes next.
///
/// Next steps are the list items below a heading or line that says so, up to the next heading.
/// Without such a line the whole text is the summary, cut at [`SUMMARY_BYTES_MAX`].
#[must_use]
pub fn closing(text: &str) -> (String, Vec<String>) {
    let mut summary = Vec::new();
    let mut next_steps: Vec<String> = Vec::new();
    let mut in_steps = false;
    for line in text.lines() {
        let bare = line.trim().trim_matches(['#', '*', '_', ' ', ':']);
        if bare.eq_ignore_ascii_case("next steps") || bare.eq_ignore_ascii_case("next step") {
            in_steps = true;
            continue;
        }
        if !in_steps {
            let heading = bare.eq_ignore_ascii_case("summary") && line.trim() != bare;
            if !heading {
                summary.push(line);
            }
            continue;
        }
        if line.trim_start().starts_with('#') {
            in_steps = false;
            summary.push(line);
        } else if let Some(item) = list_item(line) {
            next_steps.push(shortened(item));
        } else if let (Some(last), false) = (next_steps.last_mut(), line.trim().is_empty()) {
            last.push(' ');
            last.push_str(line.trim());
        }
    }
    next_steps.truncate(NEXT_STEPS_MAX);
    (capped(summary.join("\n").trim()), next_steps)
}

fn list_item(line: &str) -> Option<&str> {
    let line = line.trim_start();
    for bullet in ["- ", "* ", "• ", "+ "] {
        if let Some(item) = line.strip_prefix(bullet) {
            let item = item.trim_start();
            let unticked = item.strip_prefix("[ ] ").unwrap_or(item);
            return Some(unticked);
        }
    }
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &line[digits..];
    let item = rest.strip_prefix(". ").or_else(|| rest.strip_prefix(") "));
    item.filter(|_| digits > 0).map(str::trim_start)
}

fn capped(text: &str) -> String {
    if text.len() <= SUMMARY_BYTES_MAX {
        return text.to_owned();
    }
    let cut = (0..=SUMMARY_BYTES_MAX)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    format!("{}…", &text[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(line: &str, expected: Expect) {
        expected.assert_eq(&log_lines(line.as_bytes(), "/workspace").join("\n"));
    }

    #[test]
    fn what_was_done_is_told_in_sentences() {
        check(
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"I start.\n\nNow."},
               {"type":"tool_use","name":"Bash","input":{"command":"git commit -m x"}},
               {"type":"tool_use","name":"Write","input":{"file_path":"/workspace/src/a.js"}}]}}"#,
            expect![[r#"
                I start.
                Now.
                Ran: git commit -m x"#]],
        );
        check(
            r#"{"type":"user","message":{"content":[{"type":"tool_result","content":"ok"}]},
                "tool_use_result":{"type":"create","filePath":"/workspace/src/auth.js"}}"#,
            expect!["Created file: src/auth.js"],
        );
        check(
            r#"{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,
                "content":"File does not exist.\nmore"}]}}"#,
            expect!["Tool failed: File does not exist."],
        );
        check(
            r#"{"type":"result","subtype":"success","is_error":false,"num_turns":3,
                "total_cost_usd":0.0125,"result":"done"}"#,
            expect!["Finished after 3 turns, $0.0125"],
        );
    }

    #[test]
    fn a_changed_file_is_told_by_its_tools_result() {
        let told = |line: &str| changed_file(line.as_bytes(), "/workspace");
        let written =
            r#"{"type":"user","tool_use_result":{"type":"create","filePath":"/workspace/a/b.js"}}"#;
        assert_eq!(told(written).as_deref(), Some("a/b.js"));
        let edited =
            r#"{"type":"user","tool_use_result":{"filePath":"/workspace/c","structuredPatch":[]}}"#;
        assert_eq!(told(edited).as_deref(), Some("c"));
        for other in [
            r#"{"type":"user","tool_use_result":{"type":"text","filePath":"/workspace/read"}}"#,
            r#"{"type":"user","tool_use_result":{"type":"create","filePath":"/tmp/x"}}"#,
            r#"{"type":"assistant"}"#,
            "\"filePath\"",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }

    #[test]
    fn a_line_that_is_no_message_is_its_own_text() {
        check("plain words", expect!["plain words"]);
        check(r#"{"type":"a_message_of_tomorrow"}"#, expect![""]);
        check("", expect![""]);
        assert_eq!(log_lines(b"\xff\xfe", ""), ["\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn the_closing_text_is_parted_into_summary_and_next_steps() {
        let (summary, steps) = closing(
            "## Summary\nImplemented JWT middleware.\n\n**Next steps:**\n\
             - Add refresh tokens\n- Rate limiting\n  for every route\n\n## Notes\nNone.",
        );
        assert_eq!(summary, "Implemented JWT middleware.\n\n## Notes\nNone.");
        assert_eq!(
            steps,
            ["Add refresh tokens", "Rate limiting for every route"]
        );
        assert_eq!(
            closing("Only words."),
            ("Only words.".to_owned(), Vec::new())
        );
        assert_eq!(closing("Next steps:\n1. One\n2) Two").1, ["One", "Two"]);
    }

    #[test]
    fn a_usage_limit_is_one_that_refuses() {
        let limit = |info: &str| {
            let line = format!(r#"{{"type":"rate_limit_event","rate_limit_info":{{{info}}}}}"#);
            usage_limit(line.as_bytes()).map(|limit| limit.resets_at.map(Timestamp::as_second))
        };
        assert_eq!(
            limit(r#""status":"rejected","resetsAt":77,"isUsingOverage":false"#),
            Some(Some(77))
        );
        assert_eq!(limit(r#""status":"rejected""#), Some(None));
        assert_eq!(limit(r#""status":"allowed_warning","resetsAt":77"#), None);
        assert_eq!(limit(r#""status":"rejected","isUsingOverage":true"#), None);
        assert_eq!(usage_limit(b"rate_limit_event"), None);
    }
}
