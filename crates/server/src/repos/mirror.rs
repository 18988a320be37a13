//! A mirror's files: making it, fetching into it, reading references, clearing what crashes left.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use baton_domain::{Branch, Repository};

use super::{RepoError, Repos};

/// A lock file this old is left over from a crash: git holds them for milliseconds.
pub(super) const STALE_LOCK_AGE: Duration = Duration::from_secs(10);

/// A half-received pack this old has no git behind it any more.
const STALE_PACK_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Files looked at in one clearing, so that a strange mirror cannot hold it up for ever.
const FILES_CLEARED_MAX: usize = 1_000_000;

/// The tip of the remote's default branch.
pub(super) const REMOTE_HEAD: &str = "refs/baton/remote-head";

/// What one process knows of one mirror.
#[derive(Default)]
pub(super) struct MirrorState {
    /// Left-overs of an earlier process were cleared.
    cleared: AtomicBool,
    /// Fetches begun so far.
    pub(super) fetches_begun: AtomicU64,
    /// Held while fetching; the newest finished fetch: its number and how it went.
    fetch: tokio::sync::Mutex<Option<(u64, Result<(), RepoError>)>>,
    branches: Mutex<HashMap<Branch, Arc<tokio::sync::Mutex<()>>>>,
}

impl MirrorState {
    pub(super) fn branch_turn(&self, branch: &Branch) -> Arc<tokio::sync::Mutex<()>> {
        let mut branches = self.branches.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody holds or waits for those that only this map knows.
        branches.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(branches.entry(branch.clone()).or_default())
    }
}

impl Repos {
    /// Brings the mirror up to the remote. Callers at the same time share one fetch, one that
    /// began after they asked, so that each sees what was pushed before it called.
    pub(super) async fn fetch(&self, repository: &Repository) -> Result<(), RepoError> {
        let state = self.state(repository);
        let begun_before = state.fetches_begun.load(Ordering::SeqCst);
        let mut newest = state.fetch.lock().await;
        if let Some((number, result)) = newest.as_ref()
            && *number > begun_before
        {
            return result.clone();
        }
        let number = state.fetches_begun.fetch_add(1, Ordering::SeqCst) + 1;
        let result = self.fetch_now(repository).await;
        *newest = Some((number, result.clone()));
        result
    }

    async fn fetch_now(&self, repository: &Repository) -> Result<(), RepoError> {
        let is_new = self.ensure_mirror(repository).await?;
        let url = self.remote_url(repository);
        // The default branch by its tip: asking for its name would take a second connection.
        let head = format!("+HEAD:{REMOTE_HEAD}");
        let args = [
            "fetch",
            "--quiet",
            "--prune",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--force",
            &url,
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
            &head,
        ];
        let output = self.remote(repository, "fetch", &args).await?;
        if output.code == 0 {
            if is_new {
                self.name_default_branch(repository, &url).await?;
            }
            return Ok(());
        }
        if !output.stderr.contains("couldn't find remote ref HEAD") {
            return Err(RepoError::of_remote("fetch", repository, output.stderr));
        }
        // No commit yet, or a default branch that does not exist.
        let without_head = &args[..args.len() - 1];
        let output = self.remote(repository, "fetch", without_head).await?;
        if output.code != 0 {
            return Err(RepoError::of_remote("fetch", repository, output.stderr));
        }
        let forget = self.call(repository, ["update-ref", "-d", REMOTE_HEAD]);
        self.local(repository, "forget the default branch", forget)
            .await?;
        Ok(())
    }

    /// Points the mirror's `HEAD` where the remote's points, for clones that name no branch.
    /// Done once: nothing of ours reads it.
    async fn name_default_branch(
        &self,
        repository: &Repository,
        url: &str,
    ) -> Result<(), RepoError> {
        let args = ["ls-remote", "--symref", url, "HEAD"];
        let output = self
            .remote(repository, "read the default branch", &args)
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        if let Some(name) = name.filter(|name| name.starts_with("refs/heads/")) {
            let call = self.call(repository, ["symbolic-ref", "HEAD", name]);
            self.local(repository, "name the default branch", call)
                .await?;
        }
        Ok(())
    }

    /// Makes the mirror if it is missing; true when it was. Safe to repeat after a crash in it.
    pub(super) async fn ensure_mirror(&self, repository: &Repository) -> Result<bool, RepoError> {
        let path = self.mirror_path(repository);
        if !self.state(repository).cleared.swap(true, Ordering::SeqCst) {
            remove_stale_files(path.clone()).await;
        }
        if exists(&path) {
            return Ok(false);
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(RepoError::io("make the folder of a mirror"))?;
        let init = self
            .call(repository, ["init", "--quiet", "--bare", "--template="])
            // `read_ref` below reads this format.
            .env("GIT_DEFAULT_REF_FORMAT", "files");
        self.local(repository, "make the mirror", init).await?;
        Ok(true)
    }

    /// What reference `name` points to.
    ///
    /// Reads git's files rather than asking git: a process costs milliseconds, and this happens
    /// several times for each session. None of the references asked for is symbolic.
    pub(super) fn read_ref(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<String>, RepoError> {
        read_ref(&self.mirror_path(repository), name)
            .map_err(RepoError::io("read a reference of a mirror"))
    }

    /// The references below `folder`, as the rest of their names and what they point to, without
    /// order. They lie in it directly. Reads git's files, as [`Repos::read_ref`] does.
    pub(super) fn refs_below(
        &self,
        repository: &Repository,
        folder: &str,
    ) -> Result<HashMap<String, String>, RepoError> {
        refs_below(&self.mirror_path(repository), folder)
            .map_err(RepoError::io("read references of a mirror"))
    }

    /// Packs references and joins small packs. Safe beside everything else: nothing is thrown
    /// away. Worth calling once a day for each repository in use.
    ///
    /// # Errors
    /// [`RepoError::Git`], [`RepoError::Io`].
    pub async fn maintain(&self, repository: &Repository) -> Result<(), RepoError> {
        if !exists(&self.mirror_path(repository)) {
            return Ok(());
        }
        let pack_refs = self.call(repository, ["pack-refs", "--all"]);
        self.local(repository, "pack references", pack_refs).await?;
        let repack = self
            .call(repository, ["repack", "-d", "--quiet", "--geometric=2"])
            .time_max(super::NETWORK_TIME_MAX);
        self.local(repository, "join packs", repack).await?;
        Ok(())
    }
}

/// Whether a mirror was made there completely enough for git to take it for one.
pub(super) fn exists(mirror: &Path) -> bool {
    ["HEAD", "config", "objects", "refs"]
        .iter()
        .all(|part| mirror.join(part).exists())
}

fn read_ref(mirror: &Path, name: &str) -> io::Result<Option<String>> {
    // Loose first, then packed: packing writes the packed file before it removes the loose one.
    let loose = absent_is_none(fs::read_to_string(mirror.join(name)))?;
    if let Some(id) = loose.as_deref().map(str::trim).filter(|id| is_id(id)) {
        return Ok(Some(id.to_owned()));
    }
    let packed = absent_is_none(fs::read_to_string(mirror.join("packed-refs")))?;
    Ok(packed.and_then(|packed| {
        let mut lines = packed.lines();
        let id = lines.find_map(|line| line.strip_suffix(name)?.strip_suffix(' '))?;
        is_id(id).then(|| id.to_owned())
    }))
}

fn refs_below(mirror: &Path, folder: &str) -> io::Result<HashMap<String, String>> {
    // Loose first, for the same reason; one that is in both is the same or newer there.
    let mut loose = Vec::new();
    for entry in absent_is_none(fs::read_dir(mirror.join(folder)))?
        .into_iter()
        .flatten()
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(id) = read_ref(mirror, &format!("{folder}/{name}"))? {
            loose.push((name, id));
        }
    }
    let packed = absent_is_none(fs::read_to_string(mirror.join("packed-refs")))?;
    let packed = packed.unwrap_or_default();
    let of_folder = packed.lines().filter_map(|line| {
        let (id, name) = line.split_once(' ')?;
        let name = name.strip_prefix(folder)?.strip_prefix('/')?;
        is_id(id).then(|| (name.to_owned(), id.to_owned()))
    });
    Ok(of_folder.chain(loose).collect())
}

/// Whether `text` is a full object id, SHA-1 or SHA-256.
pub(super) fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind as K;
    match result {
        Ok(read) => Ok(Some(read)),
        Err(error)
            if matches!(
                error.kind(),
                K::NotFound | K::IsADirectory | K::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether git gave up because a lock file was in its way.
pub(super) fn says_locked(stderr: &str) -> bool {
    stderr.contains(".lock': File exists")
}

/// Removes lock files and half-received packs that a crash left behind.
pub(super) async fn remove_stale_files(mirror: PathBuf) {
    // Failing here only means that git will complain by itself.
    let _ = tokio::task::spawn_blocking(move || {
        let objects = mirror.join("objects");
        let mut folders = vec![mirror];
        let mut left = FILES_CLEARED_MAX;
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                left = left.saturating_sub(1);
                if left == 0 {
                    return;
                }
                clear(&entry, &objects, &mut folders);
            }
        }
    })
    .await;
}

fn clear(entry: &fs::DirEntry, objects: &Path, folders: &mut Vec<PathBuf>) {
    // A branch may be called `tmp_x` and is a file of that name, but not among the objects.
    let is_object = entry.path().starts_with(objects);
    let name = entry.file_name();
    let name = name.to_string_lossy();
    let Ok(kind) = entry.file_type() else { return };
    if kind.is_dir() {
        if is_object && name.starts_with("tmp_objdir-") {
            if is_older(entry, STALE_PACK_AGE) {
                let _ = fs::remove_dir_all(entry.path());
            }
        // Loose objects: many folders, no locks.
        } else if !(name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            folders.push(entry.path());
        }
        return;
    }
    let stale = (name.ends_with(".lock") && is_older(entry, STALE_LOCK_AGE))
        || (is_object && name.starts_with("tmp_") && is_older(entry, STALE_PACK_AGE));
    if stale {
        let _ = fs::remove_file(entry.path());
    }
}

fn is_older(entry: &fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| {
        SystemTime::now()
            .duration_since(at)
            .is_ok_and(|passed| passed > age)
    })
}
