//! Scripts: what the model "decides" in a conversation, one readable file each.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conversation::Conversation;

/// The largest script file that is read.
pub const SCRIPT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most scripts in one directory.
pub const SCRIPTS_MAX: usize = 1_000;
/// The name, without `.toml`, of the script that plays when no other matches.
pub const DEFAULT_SCRIPT: &str = "default";
/// The longest delay that a script may ask for.
pub const DELAY_MS_MAX: u64 = 10 * 60 * 1_000;

/// One script: which conversations it plays in, and its turns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// Texts that must all occur in the first user prompt. Case matters. What the CLI adds to the
    /// prompt by itself (`<system-reminder>` sections) does not count.
    #[serde(default, rename = "match")]
    pub prompt_contains: Vec<String>,
    /// Texts that must all occur in the system prompt.
    #[serde(default, rename = "system")]
    pub system_contains: Vec<String>,
    /// Whether the script plays also where the request offers no tools. The CLI's side requests
    /// (titles, quota probes) offer none, so by default those get a short answer of their own.
    #[serde(default)]
    pub without_tools: bool,
    /// The delay before the first byte of a turn that sets none itself.
    #[serde(default)]
    pub delay_ms: u64,
    /// The delay between the chunks of a turn that sets none itself.
    #[serde(default)]
    pub chunk_ms: u64,
    /// What is said, to end the turn, when all turns are played.
    #[serde(default = "default_closing")]
    pub closing: String,
    /// The turns, in order.
    #[serde(default, rename = "turn")]
    pub turns: Vec<Turn>,
}

/// One answer of the model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// What is said before the tools are used.
    pub text: Option<String>,
    /// The tools used, in order; all in one message.
    #[serde(default, rename = "tool")]
    pub tools: Vec<ToolUse>,
    /// Token counts; where absent, a quarter of the bytes sent and answered.
    #[serde(default)]
    pub usage: Usage,
    /// `tool_use` where tools are used, otherwise `end_turn`.
    pub stop_reason: Option<String>,
    /// The delay before the first byte; the script's own where absent.
    pub delay_ms: Option<u64>,
    /// The delay between chunks; the script's own where absent.
    pub chunk_ms: Option<u64>,
    /// Waits, before anything is answered, until this name is released.
    pub hold: Option<String>,
    /// What goes wrong instead of, or in the middle of, the answer.
    pub fault: Option<Fault>,
    /// How often the fault happens before the turn is played well; always where absent.
    pub fault_times: Option<u32>,
    /// What `fault_times` is counted over.
    #[serde(default)]
    pub fault_scope: FaultScope,
}

/// One use of a tool.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolUse {
    /// The tool, as the CLI names it: `Write`, `Edit`, `Read`, `Bash`, …
    pub name: String,
    /// Its input; `{{cwd}}`, `{{last_tool_result}}` and `{{result.0.field}}` in its strings are
    /// filled in.
    #[serde(default)]
    pub input: serde_json::Map<String, serde_json::Value>,
}

/// Token counts that an answer reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens read that came from no cache.
    pub input_tokens: Option<u64>,
    /// Tokens written.
    pub output_tokens: Option<u64>,
    /// Tokens put into the prompt cache.
    pub cache_creation_input_tokens: Option<u64>,
    /// Tokens read from the prompt cache.
    pub cache_read_input_tokens: Option<u64>,
}

/// What goes wrong in a turn.
///
/// A chunk is one `content_block_delta` event. Where a request asks for no stream, `cut` breaks
/// the body off, `stall` never answers, and `stream_error` answers with the status of its type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Answers with an HTTP error in the API's shape.
    Status {
        /// 400 to 599.
        status: u16,
        /// The error's text; a plain one of the status where absent.
        message: Option<String>,
        /// The `retry-after` header.
        retry_after_s: Option<u64>,
    },
    /// Refuses because the account's usage limit is reached, which is lifted some seconds later.
    UsageLimit {
        /// How many seconds later.
        resets_in_s: u64,
    },
    /// Never answers, not even with headers.
    Hang {},
    /// Closes the connection in the middle of the stream.
    Cut {
        /// How many chunks are sent before.
        #[serde(default)]
        after_chunks: usize,
    },
    /// Says nothing more in the middle of the stream, and keeps the connection.
    Stall {
        /// How many chunks are sent before.
        #[serde(default)]
        after_chunks: usize,
    },
    /// Ends the stream with an `error` event.
    StreamError {
        /// The API's name of the error, e.g. `overloaded_error`.
        error_type: String,
        /// How many chunks are sent before.
        #[serde(default)]
        after_chunks: usize,
    },
}

/// What `fault_times` is counted over. The count is kept in memory by one server process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultScope {
    /// Each conversation has its own count.
    #[default]
    Conversation,
    /// All conversations that play the script share one: the second one may find the fault gone.
    Script,
}

/// The scripts of one server, in the order of their names.
#[derive(Debug, Clone, Default)]
pub struct Scripts {
    ordered: Vec<Script>,
    default: Option<Script>,
}

/// Why scripts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A directory or a file could not be read.
    #[error("could not read {path}")]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is no script.
    #[error("script {name} could not be parsed")]
    Parse {
        /// The script.
        name: String,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A script can be parsed but not played.
    #[error("script {name} cannot be played: {reason}")]
    Unplayable {
        /// The script.
        name: String,
        /// What to change.
        reason: String,
    },
    /// A directory holds more than [`SCRIPTS_MAX`] scripts.
    #[error("{0} holds more than {SCRIPTS_MAX} scripts")]
    TooMany(PathBuf),
}

impl Scripts {
    /// Reads every `*.toml` of `directory` (not of directories inside it), by order of name.
    ///
    /// # Errors
    /// [`ScriptError`] names the file; one bad script fails the whole directory.
    pub fn load(directory: &Path) -> Result<Self, ScriptError> {
        let read = |source| ScriptError::Read {
            path: directory.to_owned(),
            source,
        };
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            if texts.len() == SCRIPTS_MAX {
                return Err(ScriptError::TooMany(directory.to_owned()));
            }
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            texts.push((name, read_script(&path)?));
        }
        Self::from_texts(texts)
    }

    /// Scripts given as pairs of name and TOML text; the order is that of the names.
    ///
    /// # Errors
    /// [`ScriptError::Parse`] and [`ScriptError::Unplayable`].
    pub fn from_texts<N: Into<String>, T: AsRef<str>>(
        texts: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self, ScriptError> {
        let mut scripts = Self::default();
        for (name, text) in texts {
            let script = Script::parse(name.into(), text.as_ref())?;
            if script.name == DEFAULT_SCRIPT {
                scripts.default = Some(script);
            } else {
                scripts.ordered.push(script);
            }
        }
        scripts.ordered.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scripts)
    }

    /// Every script, the default one last.
    pub fn iter(&self) -> impl Iterator<Item = &Script> {
        self.ordered.iter().chain(&self.default)
    }

    /// The first script that matches, otherwise the default one.
    pub(crate) fn find(&self, conversation: &Conversation) -> Option<&Script> {
        self.iter()
            .filter(|script| script.without_tools || conversation.offers_tools)
            .find(|script| script.matches(&conversation.prompt, &conversation.system))
    }
}

impl Script {
    fn parse(name: String, text: &str) -> Result<Self, ScriptError> {
        let mut script: Self = toml::from_str(text).map_err(|source| ScriptError::Parse {
            name: name.clone(),
            source: Box::new(source),
        })?;
        script.name = name;
        match script.obstacle() {
            Some(reason) => Err(ScriptError::Unplayable {
                name: script.name,
                reason,
            }),
            None => Ok(script),
        }
    }

    /// Whether the script plays in a conversation with this first prompt and this system prompt.
    pub fn matches(&self, prompt: &str, system: &str) -> bool {
        self.prompt_contains
            .iter()
            .all(|text| prompt.contains(text))
            && self
                .system_contains
                .iter()
                .all(|text| system.contains(text))
    }

    /// What keeps this script from being played, said so that its author can mend it.
    fn obstacle(&self) -> Option<String> {
        let matches_everything = self.prompt_contains.is_empty() && self.system_contains.is_empty();
        if matches_everything && self.name != DEFAULT_SCRIPT {
            return Some("it has no `match`; only default.toml may play everywhere".into());
        }
        if self
            .prompt_contains
            .iter()
            .chain(&self.system_contains)
            .any(String::is_empty)
        {
            return Some("a text to match is empty".into());
        }
        let delays = self
            .turns
            .iter()
            .flat_map(|turn| [turn.delay_ms, turn.chunk_ms])
            .flatten();
        if delays
            .chain([self.delay_ms, self.chunk_ms])
            .any(|delay| delay > DELAY_MS_MAX)
        {
            return Some(format!("a delay is over {DELAY_MS_MAX} ms"));
        }
        self.turns.iter().enumerate().find_map(|(index, turn)| {
            let reason = turn.obstacle()?;
            Some(format!("turn {index}: {reason}"))
        })
    }
}

impl Turn {
    fn obstacle(&self) -> Option<String> {
        match &self.fault {
            Some(Fault::Status { status, .. }) if !(400..600).contains(status) => {
                return Some(format!("status {status} is no error"));
            }
            None if self.fault_times.is_some() => {
                return Some("`fault_times` without a `fault`".into());
            }
            _ => {}
        }
        let says_nothing = self.text.is_none() && self.tools.is_empty();
        let never_played = self.fault.is_some() && self.fault_times.is_none();
        (says_nothing && !never_played).then(|| "it has neither `text` nor a `tool`".into())
    }
}

fn default_closing() -> String {
    "Done: the script has no more turns.".into()
}

fn read_script(path: &Path) -> Result<String, ScriptError> {
    let read = |source| ScriptError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(read)?.len() > SCRIPT_BYTES_MAX {
        return Err(read(std::io::Error::other(format!(
            "it is over {SCRIPT_BYTES_MAX} bytes"
        ))));
    }
    std::fs::read_to_string(path).map_err(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check_refused(name: &str, text: &str, expected: Expect) {
        let error = Scripts::from_texts([(name, text)]).expect_err("the script must be refused");
        expected.assert_eq(&error.to_string());
    }

    fn conversation(prompt: &str) -> Conversation {
        Conversation {
            prompt: prompt.into(),
            offers_tools: true,
            ..Conversation::default()
        }
    }

    fn found(scripts: &[(&str, &str)], conversation: &Conversation) -> Option<String> {
        let scripts = Scripts::from_texts(scripts.iter().copied()).expect("the scripts are valid");
        scripts.find(conversation).map(|script| script.name.clone())
    }

    const BOTH: [(&str, &str); 3] = [
        ("20-store", "match = ['store']"),
        ("10-store-and-test", "match = ['store', 'test']"),
        ("default", "closing = 'nothing to do'"),
    ];

    #[test]
    fn first_matching_script_by_name_wins() {
        let name = found(&BOTH, &conversation("test the store"));
        assert_eq!(name.as_deref(), Some("10-store-and-test"));
    }

    #[test]
    fn every_text_of_a_match_must_occur() {
        assert_eq!(
            found(&BOTH, &conversation("the store")).as_deref(),
            Some("20-store")
        );
    }

    #[test]
    fn default_plays_where_nothing_matches() {
        assert_eq!(
            found(&BOTH, &conversation("sing")).as_deref(),
            Some("default")
        );
    }

    #[test]
    fn nothing_plays_without_a_default() {
        assert_eq!(found(&BOTH[..2], &conversation("sing")), None);
    }

    #[test]
    fn system_prompt_can_be_matched() {
        let scripts = [("review", "system = ['You review']"), ("default", "")];
        let mut reviewing = conversation("go");
        reviewing.system = "You review code.".into();
        assert_eq!(found(&scripts, &reviewing).as_deref(), Some("review"));
        assert_eq!(
            found(&scripts, &conversation("go")).as_deref(),
            Some("default")
        );
    }

    #[test]
    fn script_that_matches_everything_is_refused() {
        check_refused(
            "10-any",
            "",
            expect![
                "script 10-any cannot be played: it has no `match`; only default.toml may play everywhere"
            ],
        );
    }

    #[test]
    fn turn_that_says_nothing_is_refused() {
        check_refused(
            "default",
            "[[turn]]\ndelay_ms = 1",
            expect!["script default cannot be played: turn 0: it has neither `text` nor a `tool`"],
        );
    }

    #[test]
    fn misspelt_field_is_refused() {
        check_refused(
            "default",
            "[[turn]]\ntxt = 'x'",
            expect!["script default could not be parsed"],
        );
    }

    #[test]
    fn status_that_is_no_error_is_refused() {
        check_refused(
            "default",
            "[[turn]]\nfault = { kind = 'status', status = 200 }",
            expect!["script default cannot be played: turn 0: status 200 is no error"],
        );
    }
}
