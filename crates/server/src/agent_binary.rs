//! The agent's program, carried inside of the server, and its place on the disk.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use baton_agent::protocol::AGENT_NAME;
use sha2::{Digest, Sha256};

/// The static program, for the server's own target.
static AGENT: &[u8] = include_bytes!(env!("BATON_AGENT_PATH"));

/// Bytes of the digest that name the agent's directory.
const DIGEST_BYTES: usize = 8;

/// Writes the agent to `<data_dir>/agent/<digest>/agent`, unless it is there already, and gives
/// its path. It is on the same file system as the run directories, which have hard links to it.
///
/// Each version has a directory of its own, so an update changes nothing for sandboxes that run.
/// May be called by several processes at once. Mode 0755.
///
/// # Errors
/// When `data_dir` cannot be written.
pub fn install(data_dir: &Path) -> io::Result<PathBuf> {
    let dir = data_dir.join("agent").join(digest(AGENT));
    let path = dir.join(AGENT_NAME);
    // Its whole content is compared: a server may have died over writing it with an older file
    // system than ours, and a broken agent breaks every sandbox.
    if fs::read(&path).is_ok_and(|found| found == AGENT) {
        return Ok(path);
    }
    fs::create_dir_all(&dir)?;
    let unfinished = dir.join(format!("{AGENT_NAME}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&unfinished)?;
    file.write_all(AGENT)?;
    // The mode above is subject to the umask.
    file.set_permissions(Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .take(DIGEST_BYTES)
        .fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn the_installed_agent_runs_and_needs_no_library() {
        let data = tempfile::tempdir().expect("a directory");
        let path = install(data.path()).expect("it is installed");
        let output = Command::new(&path)
            .arg("--nonsense")
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let interpreter = AGENT.windows(8).any(|bytes| bytes == b"/ld-linu");
        assert!(!interpreter, "it asks for a dynamic linker");
    }

    #[test]
    fn it_is_written_once_and_mended_when_it_is_broken() {
        let data = tempfile::tempdir().expect("a directory");
        let path = install(data.path()).expect("it is installed");
        let inode = || fs::metadata(&path).expect("it is there").ino();
        let first = inode();
        assert_eq!(install(data.path()).expect("it is installed"), path);
        assert_eq!(inode(), first);
        fs::write(&path, b"broken").expect("writable");
        install(data.path()).expect("it is installed");
        assert!(fs::read(&path).expect("readable") == AGENT);
        let mode = fs::metadata(&path).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
