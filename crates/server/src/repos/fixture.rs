//! Real repositories for tests, made by the real git.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use baton_domain::{Attempt, Repository, SessionId};
use uuid::Uuid;

use super::{BaseRequest, RepoSettings, Repos};

/// A remote that holds one repository, and the mirrors of it.
pub(crate) struct Fixture {
    pub folder: tempfile::TempDir,
    pub repository: Repository,
    pub repos: Repos,
}

impl Fixture {
    /// The remote has no commit; its default branch is to be `main`.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repos = Repos::new(RepoSettings {
            root: folder.path().join("repos"),
            base_url: format!("file://{}", folder.path().join("remotes").display()),
            token: None,
        });
        let fixture = Self {
            folder,
            repository: "owner/project".parse().expect("a repository"),
            repos,
        };
        let remote = fixture.remote();
        std::fs::create_dir_all(&remote).expect("a folder");
        git(
            &remote,
            &["init", "--quiet", "--bare", "--initial-branch=main"],
        );
        fixture
    }

    /// The remote has `main` with one commit: `README.md` and `src/lib.rs`.
    pub fn new() -> Self {
        let fixture = Self::empty();
        commit(
            &fixture.remote(),
            "refs/heads/main",
            None,
            &[
                ("README.md", Some("hello\n")),
                ("src/lib.rs", Some("one\ntwo\nthree\n")),
            ],
        );
        fixture
    }

    pub fn remote(&self) -> PathBuf {
        self.folder.path().join("remotes/owner/project.git")
    }

    pub fn mirror(&self) -> PathBuf {
        self.repos.mirror_path(&self.repository)
    }

    /// The tip of a branch of the remote.
    pub fn tip(&self, branch: &str) -> String {
        id(&self.remote(), &format!("refs/heads/{branch}"))
    }

    /// Somebody else commits to a branch of the remote.
    pub fn pushed_by_others(&self, branch: &str, files: &[(&str, Option<&str>)]) -> String {
        let reference = format!("refs/heads/{branch}");
        let from = exists(&self.remote(), &reference).then(|| self.tip(branch));
        commit(&self.remote(), &reference, from.as_deref(), files)
    }

    /// What the first attempt of `session` starts from, without branch and dependencies.
    pub async fn base(&self, session: SessionId) -> String {
        let request = BaseRequest {
            repository: &self.repository,
            session,
            attempt: Attempt::FIRST,
            branch: None,
            dependencies: &[],
        };
        let base = self.repos.prepare_base(request).await.expect("a base");
        base.commit
    }

    /// The first attempt of `session` pushed a commit on top of `base`.
    pub fn worked(&self, session: SessionId, base: &str, files: &[(&str, Option<&str>)]) -> String {
        let reference = super::result_ref(session, Attempt::FIRST);
        commit(&self.mirror(), &reference, Some(base), files)
    }

    pub fn remote_files(&self, branch: &str) -> Vec<String> {
        let listed = git(&self.remote(), &["ls-tree", "-r", "--name-only", branch]);
        listed.lines().map(str::to_owned).collect()
    }
}

pub(crate) fn session(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "Somebody")
            .env(format!("GIT_{role}_EMAIL"), "somebody@example.com");
    }
    command
}

/// Runs the real git in `folder`, whatever comes of it.
pub(crate) fn try_git(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("git runs")
}

/// Runs the real git in `folder` and gives what it printed.
#[track_caller]
pub(crate) fn git(folder: &Path, args: &[&str]) -> String {
    let output = try_git(folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
pub(crate) fn id(folder: &Path, name: &str) -> String {
    git(folder, &["rev-parse", "--verify", name])
}

pub(crate) fn exists(folder: &Path, name: &str) -> bool {
    let output = try_git(folder, &["rev-parse", "--verify", "--quiet", name]);
    output.status.success()
}

/// Commits to `reference` on top of `from`: content for a path, or its removal.
#[track_caller]
pub(crate) fn commit(
    folder: &Path,
    reference: &str,
    from: Option<&str>,
    files: &[(&str, Option<&str>)],
) -> String {
    let mut stream = format!(
        "commit {reference}\ncommitter Somebody <somebody@example.com> 1700000000 +0000\n\
         data 6\nchange\n"
    );
    if let Some(from) = from {
        stream.push_str(&format!("from {from}\n"));
    }
    for (path, content) in files {
        let path = format!("\"{}\"", path.replace('"', "\\\"").replace('\n', "\\n"));
        match content {
            Some(content) => stream.push_str(&format!(
                "M 100644 inline {path}\ndata {}\n{content}\n",
                content.len()
            )),
            None => stream.push_str(&format!("D {path}\n")),
        }
    }
    let mut child = command(folder, &["fast-import", "--quiet", "--force"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("git runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(stream.as_bytes()).expect("git reads");
    drop(stdin);
    assert!(child.wait().expect("git ends").success());
    id(folder, reference)
}

/// Text that no compression makes much smaller.
pub(crate) fn noise(bytes: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b' ' + u8::try_from(state >> 58).unwrap_or(0)));
    }
    text
}
