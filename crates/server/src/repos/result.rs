//! What an attempt made, read from the commit its sandbox pushed and from nothing it said.

use baton_domain::{Attempt, Repository, SessionId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::git::{GitCallError, LOCAL_TIME_MAX, read_complaints};
use super::{RepoError, Repos, result_ref};

/// Changed paths listed in a [`WorkResult`]; the counts cover all.
pub const RESULT_FILES_MAX: usize = 1_000;

/// Commits listed in a [`WorkResult`], the newest.
pub const RESULT_COMMITS_MAX: usize = 200;

/// The longest entry of a diff that is read: a path is at most 4 KiB on Linux.
const ENTRY_BYTES_MAX: u64 = 64 << 10;

/// What an attempt made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkResult {
    /// Its last commit; the base where it changed nothing.
    pub commit: String,
    /// What it changed, by path, at most [`RESULT_FILES_MAX`].
    pub files: Vec<FileChange>,
    /// Its commits, oldest first; of more than [`RESULT_COMMITS_MAX`] the newest.
    pub commits: Vec<String>,
    /// Changed files, all of them.
    pub files_changed: u64,
    /// Lines added in all of them; binary files count none.
    pub insertions: u64,
    /// Lines removed from all of them; binary files count none.
    pub deletions: u64,
}

/// One changed file. A renamed one is a deletion and a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Relative to the top of the repository; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What became of it.
    pub change: Change,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// Its content, mode or type changed.
    Changed,
    /// It is no longer there.
    Deleted,
}

impl WorkResult {
    /// Of an attempt that left everything as it was.
    #[must_use]
    pub fn unchanged(base: &str) -> Self {
        Self {
            commit: base.to_owned(),
            files: Vec::new(),
            commits: Vec::new(),
            files_changed: 0,
            insertions: 0,
            deletions: 0,
        }
    }
}

impl Repos {
    /// What an attempt made on top of `base`. An attempt that pushed nothing changed nothing.
    ///
    /// # Errors
    /// [`RepoError::Git`], also where the sandbox pushed something that is no commit;
    /// [`RepoError::Io`].
    pub async fn result_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
    ) -> Result<WorkResult, RepoError> {
        self.result_since(repository, session, attempt, base, base)
            .await
    }

    /// What an attempt on top of `base` and those before it made since `first`.
    ///
    /// # Errors
    /// As [`Repos::result_of`].
    pub async fn result_since(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        first: &str,
    ) -> Result<WorkResult, RepoError> {
        let pushed = self.read_ref(repository, &result_ref(session, attempt))?;
        let commit = match pushed {
            Some(pushed) => self.peeled(repository, &pushed).await?,
            None => base.to_owned(),
        };
        if commit == first {
            return Ok(WorkResult {
                commit,
                ..WorkResult::default()
            });
        }
        let (commits, diff) = tokio::try_join!(
            self.commits_between(repository, first, &commit),
            self.diff(repository, first, &commit),
        )?;
        Ok(WorkResult {
            commit,
            commits,
            ..diff
        })
    }

    /// The commit itself where a sandbox pushed a tag of it.
    async fn peeled(&self, repository: &Repository, pushed: &str) -> Result<String, RepoError> {
        let name = format!("{pushed}^{{commit}}");
        let call = self.call(
            repository,
            ["rev-parse", "--verify", "--end-of-options", &name],
        );
        let output = self
            .local(repository, "find the pushed commit", call)
            .await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn commits_between(
        &self,
        repository: &Repository,
        base: &str,
        commit: &str,
    ) -> Result<Vec<String>, RepoError> {
        let call = self.call(
            repository,
            [
                "rev-list",
                "--topo-order",
                &format!("--max-count={RESULT_COMMITS_MAX}"),
                "--end-of-options",
                &format!("{commit}^{{commit}}"),
                &format!("^{base}"),
            ],
        );
        let output = self
            .local(repository, "list a result's commits", call)
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut commits: Vec<String> = text.lines().map(str::to_owned).collect();
        commits.reverse();
        Ok(commits)
    }

    /// Reads entry by entry: a session may have changed more files than fit into memory.
    async fn diff(
        &self,
        repository: &Repository,
        base: &str,
        commit: &str,
    ) -> Result<WorkResult, RepoError> {
        const STEP: &str = "compare a result with its base";
        let mut call = self.call(
            repository,
            [
                "diff-tree",
                "-r",
                "-z",
                "--raw",
                "--numstat",
                "--no-renames",
                "--no-ext-diff",
                "--no-textconv",
                "--end-of-options",
                base,
                commit,
            ],
        );
        let _permit = self.shared.local.acquire().await;
        let read = async {
            let mut process = call.spawn(false)?;
            let (_, stdout, stderr) = process.pipes();
            let entries = async {
                let mut entries = DiffEntries::default();
                if let Some(stdout) = stdout {
                    let mut stdout = BufReader::new(stdout);
                    let mut entry = Vec::new();
                    while (&mut stdout)
                        .take(ENTRY_BYTES_MAX)
                        .read_until(0, &mut entry)
                        .await?
                        > 0
                    {
                        entries.read(entry.strip_suffix(&[0]).unwrap_or(&entry));
                        entry.clear();
                    }
                }
                Ok(entries)
            };
            let (entries, stderr) = tokio::join!(entries, read_complaints(stderr));
            let entries = entries.map_err(GitCallError::Pipe)?;
            let status = process.wait().await.map_err(GitCallError::Pipe)?;
            Ok((entries.found, status.success(), stderr))
        };
        let read = tokio::time::timeout(LOCAL_TIME_MAX, read).await;
        let (found, success, stderr) = read
            .unwrap_or(Err(GitCallError::TimedOut(LOCAL_TIME_MAX)))
            .map_err(|error| self.call_failure(repository, STEP, error))?;
        if success {
            Ok(found)
        } else {
            Err(self.failure(repository, STEP, stderr))
        }
    }
}

/// Reads `diff-tree -z --raw --numstat`: first `:<modes and ids> <letter>` and a path for each
/// file, then `<added> TAB <removed> TAB <path>` for each.
#[derive(Default)]
struct DiffEntries {
    found: WorkResult,
    /// Set between an entry's letter and its path.
    change: Option<Change>,
}

impl DiffEntries {
    fn read(&mut self, entry: &[u8]) {
        if let Some(change) = self.change.take() {
            self.found.files_changed += 1;
            if self.found.files.len() < RESULT_FILES_MAX {
                self.found.files.push(FileChange {
                    path: String::from_utf8_lossy(entry).into_owned(),
                    change,
                });
            }
        } else if entry.first() == Some(&b':') {
            self.change = Some(match entry.last() {
                Some(b'A') => Change::Created,
                Some(b'D') => Change::Deleted,
                _ => Change::Changed,
            });
        } else {
            // A binary file has dashes.
            let mut counts = entry.splitn(3, |byte| *byte == b'\t').map(|count| {
                let text = std::str::from_utf8(count).unwrap_or_default();
                text.parse::<u64>().unwrap_or(0)
            });
            self.found.insertions += counts.next().unwrap_or(0);
            self.found.deletions += counts.next().unwrap_or(0);
        }
    }
}
