//! A repository where the server fetches from and lands on.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::Command;

/// A bare repository below the directory that `BATON_GIT_BASE_URL` names.
pub struct Remote {
    path: PathBuf,
}

impl Remote {
    /// `<root>/<name>.git` with one commit of `files` on `main`.
    pub async fn create(root: &Path, name: &str, files: &[(&str, &str)]) -> Self {
        let path = root.join(format!("{name}.git"));
        let remote = Self { path };
        std::fs::create_dir_all(&remote.path).expect("a directory for the remote");
        remote
            .git(&["init", "--quiet", "--bare", "--initial-branch=main", "."])
            .await;
        let tree = root.join(format!("{name}.tree"));
        for (file, text) in files {
            let file = tree.join(file);
            std::fs::create_dir_all(file.parent().expect("files are in the tree"))
                .expect("a directory for a file");
            std::fs::write(file, text).expect("a file of the first commit");
        }
        let tree = format!("--work-tree={}", tree.display());
        remote
            .git(&[&tree, "-c", "core.bare=false", "add", "--all"])
            .await;
        remote
            .git(&[
                &tree,
                "-c",
                "core.bare=false",
                "commit",
                "--quiet",
                "-m",
                "Begin",
            ])
            .await;
        remote
    }

    /// A repository that is there already, such as the server's mirror.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Runs git in it, whatever comes of it.
    pub async fn try_git(&self, args: &[&str]) -> Output {
        let command = Command::new("git")
            .args(args)
            .current_dir(&self.path)
            .env("GIT_DIR", &self.path)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "Test")))
            .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "test@localhost")))
            .stdin(Stdio::null())
            .output()
            .await;
        command.expect("git can be run")
    }

    /// Runs git in it; gives what it printed, trimmed.
    pub async fn git(&self, args: &[&str]) -> String {
        let output = self.try_git(args).await;
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {args:?}: {complaints}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The text of `file` on `branch`; none when there is no such file or branch.
    pub async fn file(&self, branch: &str, file: &str) -> Option<String> {
        let output = self.try_git(&["show", &format!("{branch}:{file}")]).await;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The names of the commits that `branch` has and `main` has not, newest first.
    pub async fn commits(&self, branch: &str) -> Vec<String> {
        let list = self.git(&["rev-list", &format!("main..{branch}")]).await;
        list.lines().map(str::to_owned).collect()
    }
}
