//! Brings the code into the workspace.

use std::fs;
use std::io;
use std::iter;
use std::path::Path;
use std::time::Duration;

use baton_agent::protocol::Checkout;
use tokio::time;

use crate::git::{Git, GitError};
use crate::log;

/// How often a fetch is tried.
const FETCH_TRIES: u32 = 3;
/// The wait after the first try; it doubles.
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// Directories walked in search of locks: branches have few levels.
const LOCK_DIRS_MAX: usize = 1_000;

/// Why there is no code to work on.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// The workspace cannot be written.
    #[error("the workspace cannot be written: {0}")]
    Workspace(#[from] io::Error),
    /// Git could not.
    #[error(transparent)]
    Git(#[from] GitError),
}

/// Fetches and checks out `checkout` from `url`, and begins its first merge where that is asked
/// for. May be repeated: what an earlier try left is written over.
///
/// The repository is laid out by hand, which takes two runs of git where `init`, `config`,
/// `remote`, `fetch` and `checkout` would take six.
///
/// # Errors
/// [`CheckoutError`].
pub async fn check_out(git: &Git, checkout: &Checkout, url: &str) -> Result<(), CheckoutError> {
    lay_out(&git.workspace, checkout, url)?;
    remove_locks(&git.workspace);
    let merges = checkout.merges.iter().map(|merge| &merge.fetch_ref);
    let refspecs: Vec<String> = iter::once(&checkout.fetch_ref)
        .chain(merges)
        .map(|name| format!("+{name}"))
        .collect();
    // What is fetched can be fetched again, so it need not be safe on the disk.
    let settings = ["core.fsync=none", "fetch.unpackLimit=1"];
    let mut args = vec!["-q", "--no-tags", "--no-recurse-submodules", "--", "origin"];
    args.extend(refspecs.iter().map(String::as_str));
    let mut wait = FETCH_WAIT;
    for tries in 1.. {
        match git.run_with(&settings, "fetch", &args).await {
            Ok(_) => break,
            Err(error) if tries == FETCH_TRIES => return Err(error.into()),
            Err(error) => {
                log(format_args!("fetch is tried again: {error}"));
                git.orders.server_is_there().await;
                time::sleep(wait).await;
                wait *= 2;
            }
        }
    }
    git.run_with(&settings, "reset", &["-q", "--hard", &checkout.commit])
        .await?;
    match checkout.merges.first() {
        Some(merge) if checkout.begin_merge => begin_merge(git, &settings, &merge.commit).await?,
        _ => {}
    }
    Ok(())
}

/// Begins a merge and leaves it in the middle, whether it conflicts or not: the commit is Claude's.
async fn begin_merge(git: &Git, settings: &[&str], commit: &str) -> Result<(), GitError> {
    let args = [
        "-q",
        "--no-ff",
        "--no-commit",
        "--no-stat",
        "--allow-unrelated-histories",
        commit,
    ];
    match git.run_with(settings, "merge", &args).await {
        // Conflicts are a failure in git's eyes.
        Err(GitError::Failed { .. }) if is_merging(&git.workspace) => Ok(()),
        done => done.map(drop),
    }
}

/// Whether a merge was begun in the workspace and neither committed nor given up.
pub fn is_merging(workspace: &Path) -> bool {
    workspace.join(".git/MERGE_HEAD").exists()
}

/// Author and committer of commits, for git's environment.
pub fn identity(checkout: &Checkout) -> Vec<(String, String)> {
    let pair = |name: &str, value: &String| (name.to_owned(), value.clone());
    vec![
        pair("GIT_AUTHOR_NAME", &checkout.author_name),
        pair("GIT_AUTHOR_EMAIL", &checkout.author_email),
        pair("GIT_COMMITTER_NAME", &checkout.author_name),
        pair("GIT_COMMITTER_EMAIL", &checkout.author_email),
    ]
}

/// Writes what `git init`, `git remote add` and `git config` would write.
fn lay_out(workspace: &Path, checkout: &Checkout, url: &str) -> io::Result<()> {
    let dir = workspace.join(".git");
    for part in [
        "objects/pack",
        "objects/info",
        "refs/heads",
        "refs/tags",
        "info",
    ] {
        fs::create_dir_all(dir.join(part))?;
    }
    fs::write(dir.join("config"), config(checkout, url))?;
    fs::write(
        dir.join("HEAD"),
        format!("ref: refs/heads/{}\n", checkout.branch),
    )
}

fn config(checkout: &Checkout, url: &str) -> String {
    let is_sha256 = checkout.commit.len() == 64;
    let mut text = String::from("[core]\n\tbare = false\n\tlogallrefupdates = true\n");
    if is_sha256 {
        text += "\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n";
    } else {
        text += "\trepositoryformatversion = 0\n";
    }
    let mut section = |name: &str, settings: &[(&str, &str)]| {
        text += &format!("[{name}]\n");
        for (key, value) in settings {
            text += &format!("\t{key} = {}\n", quoted(value));
        }
    };
    let author = [
        ("name", checkout.author_name.as_str()),
        ("email", checkout.author_email.as_str()),
    ];
    section("user", &author);
    let fetch = "+refs/heads/*:refs/remotes/origin/*";
    section("remote \"origin\"", &[("url", url), ("fetch", fetch)]);
    // An egress proxy in the environment must not catch the way to the server.
    section(&format!("http \"{url}\""), &[("proxy", "")]);
    section("push", &[("autoSetupRemote", "true")]);
    // What a place was before both sides changed it tells what each of them wanted.
    section("merge", &[("conflictStyle", "diff3")]);
    section("rerere", &[("enabled", "false")]);
    // The workspace does not live long enough for it to pay.
    section("gc", &[("auto", "0")]);
    section("maintenance", &[("auto", "false")]);
    text
}

/// A value as a configuration file of git's wants it.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for char in value.chars() {
        match char {
            '"' => text += "\\\"",
            '\\' => text += "\\\\",
            '\n' => text += "\\n",
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

/// Removes the locks that a killed git leaves. Only for when no git runs.
pub fn remove_locks(workspace: &Path) {
    let dir = workspace.join(".git");
    for name in [
        "index.lock",
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        "shallow.lock",
    ] {
        // Most of them are never there.
        let _ = fs::remove_file(dir.join(name));
    }
    let mut dirs = vec![dir.join("refs")];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        seen += 1;
        if seen > LOCK_DIRS_MAX {
            return;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "lock")
            {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_git() {
        assert_eq!(quoted("a \"b\" \\ c; #d\n"), r#""a \"b\" \\ c; #d\n""#);
        assert_eq!(quoted(""), "\"\"");
    }
}
