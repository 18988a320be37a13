//! One server's home: its data directory, a remote with one repository, and what it leaves in
//! Docker, which goes with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::Bench;

/// The one repository.
pub const REPOSITORY: &str = "bench/repository";

/// How often it is looked whether something is left to remove.
const REMOVALS_MAX: usize = 10;
const NAMES_AT_ONCE: usize = 50;

/// Removes what its server made when dropped.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new(bench: &Bench) -> Result<Self> {
        let home = Self {
            dir: tempfile::tempdir_in(bench.scratch.path())?,
        };
        home.make_remote()?;
        Ok(home)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn remotes(&self) -> PathBuf {
        self.path().join("remotes")
    }

    /// The label of all that the server makes in Docker; none before its first start.
    pub fn label(&self) -> Option<String> {
        let instance = fs::read_to_string(self.data_dir().join("instance")).ok()?;
        Some(format!("baton.instance={}", instance.trim()))
    }

    fn make_remote(&self) -> Result<()> {
        let remote = self.remotes().join(format!("{REPOSITORY}.git"));
        let first = self.path().join("first");
        git(
            &["init", "--quiet", "--bare", "--initial-branch=main"],
            &remote,
        )?;
        git(&["init", "--quiet", "--initial-branch=main"], &first)?;
        fs::write(first.join("README.md"), "# A repository to be cloned\n")?;
        let first = first.to_string_lossy();
        let remote = remote.to_string_lossy();
        let identity = [
            "-c",
            "user.name=Bench",
            "-c",
            "user.email=bench@example.com",
        ];
        run(Command::new("git").args(["-C", &first, "add", "README.md"]))?;
        run(Command::new("git")
            .args(["-C", &first])
            .args(identity)
            .args(["commit", "--quiet", "-m", "Begin"]))?;
        run(Command::new("git").args(["-C", &first, "push", "--quiet", &remote, "main"]))
    }
}

/// The host's directory of a session's first sandbox.
pub fn sandbox_dir(data_dir: &Path, id: &str) -> PathBuf {
    data_dir
        .join("run")
        .join(format!("{}-1", id.replace('-', "")))
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(label) = self.label() {
            remove_labelled(&label);
        }
    }
}

fn git(args: &[&str], dir: &Path) -> Result<()> {
    run(Command::new("git").args(args).arg(dir))
}

/// Runs a program to its end; what it complains of is told when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} cannot be run"))?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        complaints.trim()
    );
    Ok(())
}

/// Removes containers and volumes with that label. What does not go is told and left.
pub fn remove_labelled(label: &str) {
    for _ in 0..REMOVALS_MAX {
        let containers = listed(&["ps", "--all", "--quiet"], label);
        let volumes = listed(&["volume", "ls", "--quiet"], label);
        if containers.is_empty() && volumes.is_empty() {
            return;
        }
        remove(&["rm", "--force", "--volumes"], &containers);
        remove(&["volume", "rm", "--force"], &volumes);
    }
    eprintln!("not everything with the label {label} was removed");
}

fn listed(list: &[&str], label: &str) -> Vec<String> {
    let mut command = Command::new("docker");
    let output = command
        .args(list)
        .args(["--filter", &format!("label={label}")])
        .output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    let names = String::from_utf8_lossy(&output);
    names.split_whitespace().map(str::to_owned).collect()
}

/// What fails is seen by what is still listed: Docker may still be making what a killed server
/// had asked for.
fn remove(verb: &[&str], names: &[String]) {
    for some in names.chunks(NAMES_AT_ONCE) {
        let _ = run(Command::new("docker").args(verb).args(some));
    }
}
