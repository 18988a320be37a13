//! Takes the work out of the sandbox, whatever state Claude left it in.

use std::time::Duration;

use baton_agent::protocol::Job;
use baton_domain::ending::UNMERGED_MAX;
use tokio::time;

use crate::checkout::{is_merging, remove_locks};
use crate::git::{Git, GitError};
use crate::log;

/// How often a push is tried that the server is there for and does not take.
const PUSH_TRIES: u32 = 8;
/// The wait after the first try; it doubles.
const PUSH_WAIT: Duration = Duration::from_millis(250);
/// How long all tries may take together, not counting the time the server is away. Longer than
/// that, the report of the end is worth more: the workspace is kept.
const PUSH_LIMIT: Duration = Duration::from_secs(10 * 60);

/// What became of the work.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// The commit that was pushed.
    pub pushed: Option<String>,
    /// What could not be saved, and why.
    pub failure: Option<String>,
    /// Of a job with merges, the paths that git took for conflicting, at most [`UNMERGED_MAX`].
    /// They are saved as they stood.
    pub unmerged: Vec<String>,
}

/// Commits what is uncommitted and pushes `HEAD`, on whatever branch or none, to the job's
/// `push_ref`. A job without one, or a `HEAD` that is still where it began, has no work to save.
pub async fn salvage(git: &Git, job: &Job, url: &str) -> Salvaged {
    let Some(push_ref) = &job.push_ref else {
        return Salvaged::default();
    };
    remove_locks(&git.workspace);
    let unmerged = match job.checkout.merges.is_empty() {
        true => Vec::new(),
        false => unmerged(git).await,
    };
    let mut failures = Vec::new();
    let head = match commit_leftovers(git, &job.session, &mut failures).await {
        // Without a push the server takes the base for the result.
        Ok(head) if head.is_none() || head.as_ref() == Some(&job.checkout.commit) => Ok(None),
        Ok(head) => push(git, url, push_ref).await.map(|()| head),
        Err(error) => Err(error.to_string()),
    };
    let pushed = head.unwrap_or_else(|failure| {
        failures.push(failure);
        None
    });
    let failure = (!failures.is_empty()).then(|| failures.join("; "));
    if let Some(failure) = &failure {
        log(format_args!("work was not saved: {failure}"));
    }
    Salvaged {
        pushed,
        failure,
        unmerged,
    }
}

/// Where this fails, so does the saving, and that is told.
async fn unmerged(git: &Git) -> Vec<String> {
    let args = ["--name-only", "--diff-filter=U", "-z"];
    let paths = git.run("diff", &args).await.unwrap_or_default();
    let mut paths: Vec<String> = paths
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
        .take(UNMERGED_MAX)
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect();
    paths.dedup();
    paths
}

/// Gives the commit that `HEAD` then is; none where there is neither a commit nor a file. What
/// goes wrong without keeping the rest from being saved is added to `failures`.
async fn commit_leftovers(
    git: &Git,
    session: &str,
    failures: &mut Vec<String>,
) -> Result<Option<String>, GitError> {
    let args = [
        "--porcelain=v2",
        "--branch",
        "-z",
        "--no-ahead-behind",
        "--untracked-files=normal",
        // What is inside a submodule cannot be committed from here.
        "--ignore-submodules=dirty",
    ];
    let status = Status::parse(&git.run("status", &args).await?);
    // A merge that was resolved to what was there before leaves no trace but itself.
    if !status.is_dirty && !is_merging(&git.workspace) {
        return Ok(status.head);
    }
    // Also settles the conflicts of a merge that was left half done, as they stand. What cannot be
    // read is left out and told; the rest is kept.
    if let Err(error) = git.run("add", &["--all", "--ignore-errors"]).await {
        failures.push(error.to_string());
    }
    let message = format!("Keep uncommitted work of session {session}");
    if let Err(error) = git
        .run("commit", &["-q", "--no-verify", "-m", &message])
        .await
    {
        failures.push(error.to_string());
    }
    match git.run("rev-parse", &["-q", "--verify", "HEAD"]).await {
        Ok(head) => Ok(Some(String::from_utf8_lossy(&head).trim().to_owned())),
        Err(error) if status.head.is_some() => Err(error),
        Err(_) => Ok(None),
    }
}

/// What `git status` says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    /// None before the first commit.
    head: Option<String>,
    /// Whether there is something to commit.
    is_dirty: bool,
}

impl Status {
    fn parse(output: &[u8]) -> Self {
        let mut status = Self {
            head: None,
            is_dirty: false,
        };
        for record in output.split(|byte| *byte == 0) {
            match record.strip_prefix(b"# ") {
                Some(header) => {
                    if let Some(oid) = header.strip_prefix(b"branch.oid ")
                        && oid != b"(initial)"
                    {
                        status.head = Some(String::from_utf8_lossy(oid).into_owned());
                    }
                }
                None => status.is_dirty |= !record.is_empty(),
            }
        }
        status
    }
}

async fn push(git: &Git, url: &str, push_ref: &str) -> Result<(), String> {
    let mut last_error = String::from("the push did not end in time");
    tokio::select! {
        pushed = push_repeatedly(git, url, push_ref, &mut last_error) => if pushed {
            return Ok(());
        },
        () = git.orders.connected_for(PUSH_LIMIT) => {}
    }
    Err(last_error)
}

async fn push_repeatedly(git: &Git, url: &str, push_ref: &str, last_error: &mut String) -> bool {
    let refspec = format!("HEAD:{push_ref}");
    let args = [
        "-q",
        "--force",
        "--no-verify",
        "--recurse-submodules=no",
        "--",
        url,
        &refspec,
    ];
    let mut wait = PUSH_WAIT;
    let mut tries = 0;
    while tries < PUSH_TRIES {
        match git.run("push", &args).await {
            Ok(_) => return true,
            Err(error) => *last_error = error.to_string(),
        }
        log(format_args!("push is tried again: {last_error}"));
        if *git.orders.connected.borrow() {
            tries += 1;
            time::sleep(wait).await;
            wait *= 2;
        } else {
            git.orders.server_is_there().await;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(output: &[u8], head: Option<&str>, is_dirty: bool) {
        let head = head.map(str::to_owned);
        assert_eq!(Status::parse(output), Status { head, is_dirty });
    }

    #[test]
    fn status_tells_the_commit_and_whether_something_is_left() {
        check(
            b"# branch.oid abc\0# branch.head main\0",
            Some("abc"),
            false,
        );
        check(
            b"# branch.oid abc\0# branch.head (detached)\0? new file\0",
            Some("abc"),
            true,
        );
        check(b"# branch.oid (initial)\0# branch.head main\0", None, false);
        check(b"", None, false);
    }
}
