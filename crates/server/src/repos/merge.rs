//! Merges without a work tree, repeatable to the byte.

use baton_domain::Repository;

use super::{CONFLICT_FILES_MAX, RepoError, Repos};

/// The latest date a merge takes from its parents, the end of 2099: a commit may claim any date,
/// and git refuses some.
const DATE_MAX: i64 = 4_102_444_799;

/// What git says of histories without a common commit.
const UNRELATED: &str = "unrelated histories";

/// A merge commit, or the paths that conflict, at most [`CONFLICT_FILES_MAX`].
pub(super) type Merge = Result<String, Vec<String>>;

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
        let call = self.call(
            repository,
            [
                "merge-tree",
                "--write-tree",
                "-z",
                "--name-only",
                "--no-messages",
                ours,
                theirs,
            ],
        );
        let output = self.local_any_code(repository, "merge", call).await?;
        let mut parts = output
            .stdout
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy);
        let tree = parts.next().unwrap_or_default().trim().to_owned();
        match output.code {
            0 => {
                let date = self.later_date(repository, ours, theirs).await?;
                let commit = self
                    .commit_tree(repository, &tree, &[ours, theirs], date, message)
                    .await?;
                Ok(Ok(commit))
            }
            1 => Ok(Err(parts
                .take_while(|path| !path.is_empty())
                .take(CONFLICT_FILES_MAX)
                .map(|path| path.into_owned())
                .collect())),
            // Nothing in common is a conflict in everything, and a person has to look at it.
            _ if output.stderr.contains(UNRELATED) => {
                Ok(Err(vec!["all files: the histories share no commit".into()]))
            }
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
