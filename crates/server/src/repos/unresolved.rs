//! Whether an attempt that started with contradicting results has merged them, read from the
//! commit its sandbox pushed.
//!
//! Of each merge it made git is asked again what conflicted; those paths are looked at in its
//! result, and no others. A line that looks like a conflict marker and was in one of the merged
//! sides already is content, in a text about git for example.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use baton_domain::{Repository, SessionId};

use super::error::shown;
use super::merge::{Conflict, Unrelated, shown_paths};
use super::{DependencyCommit, RepoError, Repos};

/// Merges of one attempt that are looked at, the newest.
const MERGES_MAX: usize = 100;

/// Paths or blobs named in one call of git: a command line takes 128 KiB of one argument and some
/// MiB of all.
const NAMES_MAX: usize = 256;

/// Marker lines read of one file. With more of them it is unresolved anyhow.
const MARKERS_MAX: &str = "1000";

/// The lines that git puts around the sides of a conflict, with a name behind them; attributes may
/// make them longer. The line between the sides is no sign: it underlines headings too. Of the one
/// in front of the common side it depends on the name, since tables begin like that.
const MARKERS: &str =
    "^(<{7,}|>{7,}) [^ ]|^[|]{7,} ([0-9a-f]{7,}|merged common ancestors|empty tree)";

/// What an attempt started from and had to merge.
#[derive(Debug, Clone, Copy)]
pub struct Started<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// The base's commit.
    pub base: &'a str,
    /// The results that contradict it.
    pub unjoined: &'a [DependencyCommit],
}

/// What an attempt left unmerged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// Sessions whose results its result does not contain.
    pub sessions: Vec<SessionId>,
    /// Whether it does not even contain its base.
    pub without_base: bool,
    /// Paths with conflicts in them, by name, without those of `sessions` that were never begun.
    pub files: Vec<String>,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.files.is_empty() {
            parts.push(format!("conflicts are left in {}", shown(&self.files)));
        }
        if !self.sessions.is_empty() {
            let names: Vec<String> = self.sessions.iter().map(ToString::to_string).collect();
            let names = shown(&names);
            parts.push(format!("not merged are the results of sessions {names}"));
        }
        if self.without_base {
            parts.push("the code it started from is no longer in it".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

/// A path that conflicted in a merge, and the tree that git made of it, markers included.
struct Met {
    conflict: Conflict,
    tree: String,
}

impl Repos {
    /// What is left to merge in `commit`, the result of an attempt; none where it merged all.
    /// `unmerged` are the paths that were in conflict for git when Claude ended: where no marker
    /// could show it, of a binary file or one that a side deleted, they say that nobody decided.
    ///
    /// # Errors
    /// [`RepoError::Git`], [`RepoError::Io`].
    pub async fn unresolved(
        &self,
        started: Started<'_>,
        commit: &str,
        unmerged: &[String],
    ) -> Result<Option<Unresolved>, RepoError> {
        let missing = self.missing(started, commit).await?;
        let met = self.conflicts_met(started, commit).await?;
        let mut files = self
            .with_conflicts(started.repository, commit, met, unmerged)
            .await?;
        let mut sessions = Vec::new();
        for one in started.unjoined {
            if !missing.contains(&one.commit) {
                continue;
            }
            sessions.push(one.session);
            let merged = self
                .merged_tree(
                    started.repository,
                    started.base,
                    &one.commit,
                    Unrelated::Merged,
                )
                .await?;
            files.extend(merged.map_or_else(Vec::new, |merged| shown_paths(&merged.conflicts)));
        }
        let unresolved = Unresolved {
            sessions,
            without_base: missing.contains(started.base),
            files: files.into_iter().collect(),
        };
        Ok((unresolved != Unresolved::default()).then_some(unresolved))
    }

    /// Those of base and results that `commit` does not contain.
    async fn missing(
        &self,
        started: Started<'_>,
        commit: &str,
    ) -> Result<HashSet<String>, RepoError> {
        let unjoined = started.unjoined.iter().map(|one| one.commit.as_str());
        let args = ["merge-base", "--independent", commit, started.base];
        let call = self.call(started.repository, args.into_iter().chain(unjoined));
        let output = self
            .local(started.repository, "look for what is to be merged", call)
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Where it is one of them itself, it contains that one.
        let missing = text.lines().filter(|line| *line != commit);
        Ok(missing.map(str::to_owned).collect())
    }

    /// What conflicted in the merges that the attempt made.
    async fn conflicts_met(
        &self,
        started: Started<'_>,
        commit: &str,
    ) -> Result<Vec<Met>, RepoError> {
        let mut args = vec![
            "rev-list".to_owned(),
            "--merges".to_owned(),
            "--parents".to_owned(),
            format!("--max-count={MERGES_MAX}"),
            "--end-of-options".to_owned(),
            commit.to_owned(),
            format!("^{}", started.base),
        ];
        args.extend(
            started
                .unjoined
                .iter()
                .map(|one| format!("^{}", one.commit)),
        );
        let call = self.call(started.repository, args);
        let output = self
            .local(started.repository, "list a result's merges", call)
            .await?;
        let mut met = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut ids = line.split(' ').skip(1);
            // Git merges more than two only where nothing conflicts.
            let (Some(ours), Some(theirs), None) = (ids.next(), ids.next(), ids.next()) else {
                continue;
            };
            let merged = self
                .merged_tree(started.repository, ours, theirs, Unrelated::Merged)
                .await?;
            if let Some(merged) = merged {
                met.extend(merged.conflicts.into_iter().map(|conflict| Met {
                    conflict,
                    tree: merged.tree.clone(),
                }));
            }
        }
        Ok(met)
    }

    /// Those paths that conflict in `commit` still.
    async fn with_conflicts(
        &self,
        repository: &Repository,
        commit: &str,
        met: Vec<Met>,
        unmerged: &[String],
    ) -> Result<BTreeSet<String>, RepoError> {
        let paths = met.iter().map(|met| met.conflict.path.as_slice());
        let results = self.blobs_at(repository, commit, paths).await?;
        let mut blobs: BTreeSet<&str> = results.values().map(String::as_str).collect();
        blobs.extend(
            met.iter()
                .flat_map(|met| &met.conflict.sides)
                .map(String::as_str),
        );
        let markers = self.marker_lines(repository, blobs).await?;
        let has_markers = |blob: Option<&String>, lines: &Lines, conflict: &Conflict| {
            let Some(found) = blob.and_then(|blob| lines.get(blob)) else {
                return false;
            };
            let of_sides = |line| {
                let mut sides = conflict.sides.iter().filter_map(|side| markers.get(side));
                sides.any(|side| side.contains(line))
            };
            !found.iter().all(of_sides)
        };

        let mut files = BTreeSet::new();
        let mut with_markers = BTreeSet::new();
        for Met { conflict, tree } in &met {
            let path = String::from_utf8_lossy(&conflict.path).into_owned();
            if has_markers(results.get(&conflict.path), &markers, conflict) {
                files.insert(path.clone());
            }
            if unmerged.contains(&path) {
                // Where git put markers, their absence says that it was resolved.
                let merged = self
                    .blobs_at(repository, tree, [conflict.path.as_slice()])
                    .await?;
                let merged = merged.get(&conflict.path);
                let lines = self
                    .marker_lines(repository, merged.map(String::as_str))
                    .await?;
                if has_markers(merged, &lines, conflict) {
                    with_markers.insert(path);
                }
            }
        }
        let undecided = unmerged.iter().filter(|path| !with_markers.contains(*path));
        files.extend(undecided.cloned());
        Ok(files)
    }

    /// The blobs that `tree` has at `paths`.
    async fn blobs_at(
        &self,
        repository: &Repository,
        tree: &str,
        paths: impl IntoIterator<Item = &[u8]>,
    ) -> Result<HashMap<Vec<u8>, String>, RepoError> {
        let paths: BTreeSet<&[u8]> = paths.into_iter().collect();
        let paths: Vec<&OsStr> = paths.into_iter().map(OsStr::from_bytes).collect();
        let mut blobs = HashMap::new();
        for paths in paths.chunks(NAMES_MAX) {
            let mut args: Vec<OsString> = ["ls-tree", "-z", "--full-tree", tree, "--"]
                .map(OsString::from)
                .to_vec();
            args.extend(paths.iter().map(|path| (*path).to_owned()));
            let call = self.call(repository, args);
            let output = self.local(repository, "look for files", call).await?;
            for entry in output.stdout.split(|byte| *byte == 0) {
                // `<mode> blob <id> TAB <path>`
                let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else {
                    continue;
                };
                let head = String::from_utf8_lossy(&entry[..tab]);
                let mut words = head.split(' ').skip(1);
                if let (Some("blob"), Some(id)) = (words.next(), words.next()) {
                    blobs.insert(entry[tab + 1..].to_vec(), id.to_owned());
                }
            }
        }
        Ok(blobs)
    }

    /// The lines of each blob that look like conflict markers; binary blobs have none.
    async fn marker_lines<'a>(
        &self,
        repository: &Repository,
        blobs: impl IntoIterator<Item = &'a str>,
    ) -> Result<Lines, RepoError> {
        let blobs: Vec<&str> = blobs.into_iter().collect();
        let mut lines = Lines::new();
        for blobs in blobs.chunks(NAMES_MAX) {
            let mut args = vec!["grep", "-I", "-z", "--no-color", "--max-count", MARKERS_MAX];
            args.extend(["--extended-regexp", "-e", MARKERS]);
            args.extend(blobs);
            let call = self.call(repository, args);
            let output = self
                .local_any_code(repository, "look for conflict markers", call)
                .await?;
            // 1 is for none.
            if !matches!(output.code, 0 | 1) {
                return Err(self.failure(repository, "look for conflict markers", output.stderr));
            }
            for found in output.stdout.split(|byte| *byte == b'\n') {
                // `<id> NUL <line>`
                if let Some(at) = found.iter().position(|byte| *byte == 0) {
                    let blob = String::from_utf8_lossy(&found[..at]).into_owned();
                    lines
                        .entry(blob)
                        .or_default()
                        .insert(found[at + 1..].trim_ascii_end().to_vec());
                }
            }
        }
        Ok(lines)
    }
}

/// Marker lines by blob.
type Lines = HashMap<String, HashSet<Vec<u8>>>;
