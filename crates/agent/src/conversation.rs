//! Claude's conversation of an earlier attempt, taken over from that attempt's state.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::Deserialize;

use crate::places::Places;

/// Where Claude keeps conversations, each in a file of its name for it, by working directory.
const DIRECTORY: &str = "projects";
/// Directories walked at most; Claude keeps a conversation's parts three deep.
const DIRS_MAX: usize = 10_000;
/// What Claude remembers to have spent. Left out, so that it counts an attempt's own cost only.
const COST: &str = "cost-state";

/// Why a conversation cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// Nothing of that name is there.
    #[error(
        "Claude's conversation {0} is not in the state that the earlier attempt left; retry the \
         session to start it anew"
    )]
    Missing(String),
    /// The files cannot be copied.
    #[error("Claude's conversation could not be taken over from the earlier attempt: {0}")]
    Io(#[from] io::Error),
}

/// Copies all conversations of the earlier attempt; that named `conversation` must be among them.
/// May be repeated.
///
/// # Errors
/// [`ConversationError`].
pub fn take_over(places: &Places, conversation: &str) -> Result<(), ConversationError> {
    let from = Places::claude_state(&places.earlier_dir).join(DIRECTORY);
    let to = Places::claude_state(&places.state_dir).join(DIRECTORY);
    let name = format!("{conversation}.jsonl");
    let mut found = false;
    let mut dirs = vec![(from, to)];
    let mut walked = 0;
    while let Some((from, to)) = dirs.pop() {
        walked += 1;
        if walked > DIRS_MAX {
            return Err(io::Error::other("it has too many directories").into());
        }
        let entries = match fs::read_dir(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        fs::create_dir_all(&to)?;
        for entry in entries {
            let entry = entry?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            // What is neither, a link above all, Claude did not make.
            match entry.file_type()? {
                kind if kind.is_dir() => dirs.push((path, to)),
                kind if !kind.is_file() => {}
                _ if *entry.file_name() == *name => {
                    found = true;
                    copy_without_cost(&path, &to)?;
                }
                _ => drop(fs::copy(&path, &to)?),
            }
        }
    }
    match found {
        true => Ok(()),
        false => Err(ConversationError::Missing(conversation.to_owned())),
    }
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<&'a str>,
}

fn copy_without_cost(from: &Path, to: &Path) -> io::Result<()> {
    let mut lines = BufReader::new(File::open(from)?);
    let mut copy = BufWriter::new(File::create(to)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if !is_cost(&line) {
            copy.write_all(&line)?;
        }
        line.clear();
    }
    copy.flush()
}

fn is_cost(line: &[u8]) -> bool {
    // Most lines are long and need not be parsed.
    memchr::memmem::find(line, COST.as_bytes()).is_some()
        && serde_json::from_slice(line).is_ok_and(|entry: Entry<'_>| entry.kind == Some(COST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const NAME: &str = "a1";
    const SPENT: &str = r#"{"type":"cost-state","totalCostUSD":0.5}"#;

    fn places(dir: &TempDir) -> Places {
        let arguments = ["--state-dir", "--earlier-dir"]
            .into_iter()
            .flat_map(|name| {
                let path = dir.path().join(&name[2..]);
                [name.to_owned(), path.display().to_string()]
            });
        Places::from_arguments(arguments).expect("they are known")
    }

    fn write(places: &Places, path: &str, text: &str) {
        let path = places.earlier_dir.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn taken(places: &Places, path: &str) -> Option<String> {
        fs::read_to_string(places.state_dir.join(path)).ok()
    }

    #[test]
    fn conversations_are_copied_without_what_they_cost() {
        let dir = TempDir::new().expect("a directory");
        let places = places(&dir);
        let said = r#"{"type":"user","message":{"content":"cost-state"}}"#;
        let path = "claude/projects/-workspace/a1.jsonl";
        write(&places, path, &format!("{said}\n{SPENT}\n{said}"));
        write(&places, "claude/projects/-workspace/a1/part/b.jsonl", "b");
        write(&places, "claude/settings.json", "{}");
        std::os::unix::fs::symlink("/etc", places.earlier_dir.join("claude/projects/link"))
            .expect("linked");
        for _ in 0..2 {
            take_over(&places, NAME).expect("it is there");
        }
        assert_eq!(taken(&places, path), Some(format!("{said}\n{said}")));
        let part = taken(&places, "claude/projects/-workspace/a1/part/b.jsonl");
        assert_eq!(part.as_deref(), Some("b"));
        assert_eq!(taken(&places, "claude/settings.json"), None);
        assert!(!places.state_dir.join("claude/projects/link").exists());
    }

    #[test]
    fn a_conversation_that_is_not_there_is_told() {
        let dir = TempDir::new().expect("a directory");
        let places = places(&dir);
        let missing =
            |places| matches!(take_over(places, NAME), Err(ConversationError::Missing(_)));
        assert!(missing(&places));
        write(&places, "claude/projects/-workspace/other.jsonl", SPENT);
        assert!(missing(&places));
    }
}
