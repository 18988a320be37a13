//! Code between sessions: one bare mirror per repository, what a session starts from, what it
//! made, and bringing that to the remote.
//!
//! Mirrors have no work tree, no hooks and no configuration but ours. References in them:
//!
//! - `refs/heads/*` and `refs/tags/*` as the remote has them, at the newest fetch;
//! - `refs/baton/remote-head`: the tip of the remote's default branch;
//! - `refs/baton/base/<session>/<attempt>`: what an attempt started from, written once;
//! - `refs/baton/unjoined/<session>/<attempt>/<n>-<dependency>`: results that contradict that base
//!   and are for the session to merge, in their order, written just before it;
//! - `refs/baton/result/<session>/<attempt>`: what its sandbox pushed;
//! - `refs/baton/landing/<orchestration>`: its results merged, while they are landing.
//!
//! They keep everything reachable until [`Repos::remove_refs`].

mod base;
mod codebase;
#[cfg(test)]
mod credential_tests;
mod error;
pub mod fake;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod git;
mod landing;
mod merge;
mod mirror;
mod result;
mod resumed;
mod stack;
#[cfg(test)]
mod stack_tests;
#[cfg(test)]
mod tests;
mod unjoined;
#[cfg(test)]
mod unjoined_tests;
mod unresolved;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use baton_domain::{Attempt, Branch, Repository, SessionId};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

pub use base::{Base, BaseRequest, DependencyCommit};
pub use codebase::Codebase;
pub use error::RepoError;
use git::{GitCall, GitCallError, GitOutput, NETWORK_TIME_MAX};
pub use landing::Landed;
use mirror::MirrorState;
pub use result::{Change, FileChange, RESULT_COMMITS_MAX, RESULT_FILES_MAX, WorkResult};
pub use stack::{StackRequest, Stacked};
pub use unjoined::Unjoined;
pub use unresolved::{Started, Unresolved};

/// Conflicting paths listed for one merge.
pub const CONFLICT_FILES_MAX: usize = 100;

/// Git processes at once that only touch mirrors. Each may use a core.
const LOCAL_PROCESSES_MAX: usize = 8;

/// Fetches and pushes at once; apart from the local ones, so that a slow remote holds up nobody
/// who does not need it.
const NETWORK_PROCESSES_MAX: usize = 8;

/// How often a call is made again when another git holds a lock. Each waits for 2 s inside git,
/// together longer than [`mirror::STALE_LOCK_AGE`], after which the lock is removed.
const LOCKED_TRIES_MAX: usize = 8;

/// Where mirrors are and where they come from.
#[derive(Debug, Clone)]
pub struct RepoSettings {
    /// The folder of all mirrors; made when absent.
    pub root: PathBuf,
    /// `owner/repo` is at `<base_url>/owner/repo.git`; `https:` or `file:`. Plain `http:` works
    /// for loopback addresses only, and never gets the token.
    pub base_url: String,
    /// A GitHub token, given to git for `https:` remotes alone.
    pub token: Option<SecretString>,
}

/// The mirrors of all repositories. Cheap to clone; clones share locks and limits.
#[derive(Clone)]
pub struct Repos {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    base_url: String,
    /// The key and value of the header that opens the remote.
    credential: Option<(String, SecretString)>,
    /// What must not show up in any text.
    secrets: Vec<SecretString>,
    local: Semaphore,
    network: Semaphore,
    /// One entry per repository ever used; a few hundred bytes each.
    mirrors: Mutex<HashMap<Repository, Arc<MirrorState>>>,
}

/// The reference an attempt starts from, in its repository's mirror.
#[must_use]
pub fn base_ref(session: SessionId, attempt: Attempt) -> String {
    format!("refs/baton/base/{session}/{attempt}")
}

/// Where the references are that hold what contradicts an attempt's base.
#[must_use]
pub fn unjoined_refs(session: SessionId, attempt: Attempt) -> String {
    format!("refs/baton/unjoined/{session}/{attempt}")
}

/// The reference an attempt's sandbox pushes its work to.
#[must_use]
pub fn result_ref(session: SessionId, attempt: Attempt) -> String {
    format!("refs/baton/result/{session}/{attempt}")
}

impl Repos {
    /// Does no IO; mirrors are made when first needed.
    #[must_use]
    pub fn new(settings: RepoSettings) -> Self {
        let base_url = settings.base_url.trim_end_matches('/').to_owned();
        let token = settings.token.filter(|_| base_url.starts_with("https://"));
        let mut secrets = Vec::new();
        let credential = token.map(|token| {
            let (key, header, encoded) = authorization(&base_url, &token);
            secrets.extend([token, encoded]);
            (key, header)
        });
        Self {
            shared: Arc::new(Shared {
                root: settings.root,
                base_url,
                credential,
                secrets,
                local: Semaphore::new(LOCAL_PROCESSES_MAX),
                network: Semaphore::new(NETWORK_PROCESSES_MAX),
                mirrors: Mutex::default(),
            }),
        }
    }

    /// The bare repository that mirrors `repository`; it may not exist yet.
    #[must_use]
    pub fn mirror_path(&self, repository: &Repository) -> PathBuf {
        self.shared.root.join(format!("{repository}.git"))
    }

    /// What `git version` prints, without the words: `2.47.3`.
    ///
    /// # Errors
    /// [`RepoError::Io`] when git cannot be run.
    pub async fn git_version() -> Result<String, RepoError> {
        let output = GitCall::new(Path::new("/nonexistent"), ["version"])
            .run()
            .await
            .map_err(|error| RepoError::io("run git")(std::io::Error::other(error)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.trim().trim_start_matches("git version ").to_owned())
    }

    /// Forgets what `session` started from and made, all attempts. Commits that nothing else
    /// holds may then be collected.
    ///
    /// # Errors
    /// [`RepoError::Git`], [`RepoError::Io`].
    pub async fn remove_refs(
        &self,
        repository: &Repository,
        session: SessionId,
    ) -> Result<(), RepoError> {
        if !mirror::exists(&self.mirror_path(repository)) {
            return Ok(());
        }
        let list = self.call(
            repository,
            [
                "for-each-ref".to_owned(),
                "--format=delete %(refname)".to_owned(),
                format!("refs/baton/base/{session}"),
                format!("refs/baton/result/{session}"),
                format!("refs/baton/unjoined/{session}"),
            ],
        );
        let output = self.local(repository, "list references", list).await?;
        if output.stdout.is_empty() {
            return Ok(());
        }
        let delete = self
            .call(repository, ["update-ref", "--stdin"])
            .stdin(output.stdout);
        self.local(repository, "remove references", delete).await?;
        Ok(())
    }

    fn remote_url(&self, repository: &Repository) -> String {
        format!("{}/{repository}.git", self.shared.base_url)
    }

    fn state(&self, repository: &Repository) -> Arc<MirrorState> {
        let mut mirrors = self
            .shared
            .mirrors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(mirrors.entry(repository.clone()).or_default())
    }

    /// A lock per branch of the remote, so that landings on it queue.
    fn branch_turn(&self, repository: &Repository, branch: &Branch) -> Arc<tokio::sync::Mutex<()>> {
        self.state(repository).branch_turn(branch)
    }

    fn call<I>(&self, repository: &Repository, args: I) -> GitCall
    where
        I: IntoIterator,
        I::Item: AsRef<std::ffi::OsStr>,
    {
        let author = [("NAME", "Baton"), ("EMAIL", "baton@localhost")];
        let mut call = GitCall::new(&self.mirror_path(repository), args);
        for (part, value) in author {
            call = call
                .env(&format!("GIT_AUTHOR_{part}"), value)
                .env(&format!("GIT_COMMITTER_{part}"), value);
        }
        call
    }

    /// Runs a call that only touches the mirror; an exit code other than 0 is an error.
    async fn local(
        &self,
        repository: &Repository,
        step: &'static str,
        call: GitCall,
    ) -> Result<GitOutput, RepoError> {
        let output = self.local_any_code(repository, step, call).await?;
        if output.code == 0 {
            return Ok(output);
        }
        Err(self.failure(repository, step, output.stderr))
    }

    async fn local_any_code(
        &self,
        repository: &Repository,
        step: &'static str,
        call: GitCall,
    ) -> Result<GitOutput, RepoError> {
        let _permit = self.shared.local.acquire().await;
        self.run(repository, call)
            .await
            .map_err(|error| self.call_failure(repository, step, error))
    }

    /// Runs a call to the remote, with the credential. The exit code is the caller's to judge.
    async fn remote(
        &self,
        repository: &Repository,
        step: &'static str,
        args: &[&str],
    ) -> Result<GitOutput, RepoError> {
        let _permit = self.shared.network.acquire().await;
        let call = self.with_remote(self.call(repository, args));
        self.run(repository, call)
            .await
            .map_err(|error| match error {
                GitCallError::TimedOut(_) => RepoError::RemoteUnreachable {
                    repository: repository.clone(),
                    reason: error.to_string(),
                },
                error => self.call_failure(repository, step, error),
            })
    }

    /// Runs `call`, again where a lock is in its way: another git holds it, or a crash left it.
    async fn run(
        &self,
        repository: &Repository,
        mut call: GitCall,
    ) -> Result<GitOutput, GitCallError> {
        let mut tries_left = LOCKED_TRIES_MAX;
        loop {
            tries_left -= 1;
            let mut output = call.run().await?;
            if tries_left == 0 || output.code == 0 || !mirror::says_locked(&output.stderr) {
                output.stderr = self.redacted(output.stderr);
                return Ok(output);
            }
            mirror::remove_stale_files(self.mirror_path(repository)).await;
        }
    }

    fn with_remote(&self, call: GitCall) -> GitCall {
        let call = call
            .time_max(NETWORK_TIME_MAX)
            // A line that is dead but not closed: under 1 kB/s for two minutes.
            .config("http.lowSpeedLimit", "1000")
            .config("http.lowSpeedTime", "120");
        if is_loopback(&self.shared.base_url) {
            return call.env("GIT_ALLOW_PROTOCOL", "https:file:http");
        }
        match &self.shared.credential {
            Some((key, header)) => call.config(key, header.expose_secret()),
            None => call,
        }
    }

    fn failure(&self, repository: &Repository, step: &'static str, stderr: String) -> RepoError {
        RepoError::Git {
            step,
            repository: repository.clone(),
            stderr: self.redacted(stderr),
        }
    }

    fn call_failure(
        &self,
        repository: &Repository,
        step: &'static str,
        error: GitCallError,
    ) -> RepoError {
        match error {
            GitCallError::Spawn(source) => RepoError::io("run git; is it installed?")(source),
            GitCallError::Pipe(source) => RepoError::io("talk to git")(source),
            other => self.failure(repository, step, other.to_string()),
        }
    }

    fn redacted(&self, text: String) -> String {
        self.shared.secrets.iter().fold(text, |text, secret| {
            text.replace(secret.expose_secret(), "[redacted]")
        })
    }
}

/// The configuration key and value that make git send `token` to hosts under `base_url` and to
/// no other, and the encoded form that a debugging git might print.
fn authorization(base_url: &str, token: &SecretString) -> (String, SecretString, SecretString) {
    let encoded = BASE64.encode(format!("x-access-token:{}", token.expose_secret()));
    (
        format!("http.{base_url}/.extraHeader"),
        format!("Authorization: Basic {encoded}").into(),
        encoded.into(),
    )
}

/// Plain HTTP is for tests and local experiments: it never leaves the machine.
fn is_loopback(base_url: &str) -> bool {
    let Some(rest) = base_url.strip_prefix("http://") else {
        return false;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    // "127.0.0.1:80@elsewhere" is a user name and another host.
    !authority.contains('@') && matches!(host, "127.0.0.1" | "localhost" | "::1")
}
