//! Merges without a work tree, repeatable to the byte.

use baton_domain::Repository;

use super::{CONFLICT_FILES_MAX, RepoError, Repos};

/// The latest date a merge takes from its parents, the end of 2099: a commit may claim any date,
/// and git refuses some.
const DATE_MAX: i64 = 4_102_444_799;

/// What git says of histories without a common commit.
const UNRELATED: &str = "unrelated histories";

/// The mode of a submodule's commit, which is in another repository.
const SUBMODULE_MODE: &str = "160000";

/// A merge commit, or the paths that conflict, at most [`CONFLICT_FILES_MAX`].
pub(super) type Merge = Result<String, Vec<String>>;

/// What git makes of two commits.
pub(super) struct MergedTree {
    /// The tree of it; files that conflict have markers in there, where they can have any.
    pub tree: String,
    /// Whether all went together.
    pub is_clean: bool,
    /// What conflicts, by path. A directory renamed in two ways conflicts in none.
    pub conflicts: Vec<Conflict>,
}

/// A path whose sides do not go together.
pub(super) struct Conflict {
    /// As bytes: git takes any but NUL.
    pub path: Vec<u8>,
    /// The blobs that were to be merged: the common one, ours and theirs, as far as there are.
    pub sides: Vec<String>,
}

/// What to make of histories that share no commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unrelated {
    /// There is nothing to merge by: no tree.
    Refused,
    /// As if they shared an empty commit.
    Merged,
}

impl Repos {
    /// Merges `theirs` into `ours`. The same arguments give the same commit: its date is the
    /// later one of its parents.
    pub(super) async fn merge(
        &self,
        repository: &Repository,
        ours: &str,
        theirs: &str,
        message: &str,
    ) -> Result<Merge, RepoError> {
        let merged = self
            .merged_tree(repository, ours, theirs, Unrelated::Refused)
            .await?;
        let Some(merged) = merged else {
            // Nothing in common is a conflict in everything, and somebody has to look at it.
            return Ok(Err(vec!["all files: the histories share no commit".into()]));
        };
        if !merged.is_clean {
            return Ok(Err(shown_paths(&merged.conflicts)));
        }
        let date = self.later_date(repository, ours, theirs).await?;
        let commit = self
            .commit_tree(repository, &merged.tree, &[ours, theirs], date, message)
            .await?;
        Ok(Ok(commit))
    }

    /// Merges `theirs` into `ours` and writes the tree alone; none where they share no commit and
    /// `unrelated` says so.
    pub(super) async fn merged_tree(
        &self,
        repository: &Repository,
        ours: &str,
        theirs: &str,
        unrelated: Unrelated,
    ) -> Result<Option<MergedTree>, RepoError> {
        let mut args = vec!["merge-tree", "--write-tree", "-z", "--no-messages"];
        if unrelated == Unrelated::Merged {
            args.push("--allow-unrelated-histories");
        }
        args.extend([ours, theirs]);
        let call = self.call(repository, args);
        let output = self.local_any_code(repository, "merge", call).await?;
        match output.code {
            code @ (0 | 1) => {
                let (tree, conflicts) = read_merged(&output.stdout);
                Ok(Some(MergedTree {
                    tree,
                    is_clean: code == 0,
                    conflicts,
                }))
            }
            _ if output.stderr.contains(UNRELATED) => Ok(None),
            _ => Err(self.failure(repository, "merge", output.stderr)),
        }
    }

    pub(super) async fn commit_tree(
        &self,
        repository: &Repository,
        tree: &str,
        parents: &[&str],
        date: i64,
        message: &str,
    ) -> Result<String, RepoError> {
        let mut args = vec!["commit-tree", tree, "-F", "-"];
        for parent in parents {
            args.extend(["-p", parent]);
        }
        let date = format!("@{date} +0000");
        let call = self
            .call(repository, args)
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_DATE", &date)
            .stdin(format!("{}\n", message.trim_end()));
        let output = self.local(repository, "write a commit", call).await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn later_date(
        &self,
        repository: &Repository,
        ours: &str,
        theirs: &str,
    ) -> Result<i64, RepoError> {
        let call = self.call(
            repository,
            ["log", "--no-walk", "--format=%ct", ours, theirs],
        );
        let output = self.local(repository, "read dates", call).await?;
        let latest = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.parse().ok())
            .max();
        Ok(latest.unwrap_or(0).clamp(0, DATE_MAX))
    }
}

/// The paths for people, at most [`CONFLICT_FILES_MAX`].
pub(super) fn shown_paths(conflicts: &[Conflict]) -> Vec<String> {
    let paths = conflicts.iter().take(CONFLICT_FILES_MAX);
    paths
        .map(|conflict| String::from_utf8_lossy(&conflict.path).into_owned())
        .collect()
}

/// Reads `merge-tree -z`: the tree, then `<mode> <id> <stage> TAB <path>` for each side of each
/// conflict, those of one path together.
fn read_merged(stdout: &[u8]) -> (String, Vec<Conflict>) {
    let mut parts = stdout.split(|byte| *byte == 0);
    let tree = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let mut conflicts: Vec<Conflict> = Vec::new();
    for part in parts {
        let Some(tab) = part.iter().position(|byte| *byte == b'\t') else {
            continue;
        };
        let (entry, path) = (String::from_utf8_lossy(&part[..tab]), &part[tab + 1..]);
        let mut words = entry.split(' ');
        let (mode, id) = (words.next(), words.next());
        if conflicts.last().is_none_or(|last| last.path != path) {
            conflicts.push(Conflict {
                path: path.to_vec(),
                sides: Vec::new(),
            });
        }
        if let (Some(last), Some(id)) = (conflicts.last_mut(), id)
            && mode != Some(SUBMODULE_MODE)
        {
            last.sides.push(id.to_owned());
        }
    }
    (tree.trim().to_owned(), conflicts)
}
