//! Where things are.

use std::path::{Path, PathBuf};

use baton_agent::protocol::{
    EARLIER_DIR, LOOPBACK_PORT, RUN_DIR, SOCKET_NAME, STATE_DIR, WORKSPACE_DIR,
};

/// Directories and the port. In a sandbox the defaults hold; tests run the agent as an ordinary
/// process elsewhere.
#[derive(Debug, Clone)]
pub struct Places {
    /// Holds the server's socket.
    pub run_dir: PathBuf,
    /// Holds the spool and Claude's own state.
    pub state_dir: PathBuf,
    /// Holds the state of the attempt that is gone on with.
    pub earlier_dir: PathBuf,
    /// Holds the clone.
    pub workspace_dir: PathBuf,
    /// Claude's home.
    pub home_dir: PathBuf,
    /// The loopback port; 0 for any.
    pub port: u16,
}

/// An argument that the agent does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "argument {0:?} is not one of --run-dir, --state-dir, --earlier-dir, --workspace-dir, --home-dir, --port, each with a value"
)]
pub struct UnknownArgument(String);

impl Places {
    /// The defaults, changed by `arguments`, which come in pairs of name and value.
    ///
    /// # Errors
    /// [`UnknownArgument`].
    pub fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, UnknownArgument> {
        let mut places = Self {
            run_dir: RUN_DIR.into(),
            state_dir: STATE_DIR.into(),
            earlier_dir: EARLIER_DIR.into(),
            workspace_dir: WORKSPACE_DIR.into(),
            home_dir: "/home/agent".into(),
            port: LOOPBACK_PORT,
        };
        while let Some(name) = arguments.next() {
            let Some(value) = arguments.next() else {
                return Err(UnknownArgument(name));
            };
            match name.as_str() {
                "--run-dir" => places.run_dir = value.into(),
                "--state-dir" => places.state_dir = value.into(),
                "--earlier-dir" => places.earlier_dir = value.into(),
                "--workspace-dir" => places.workspace_dir = value.into(),
                "--home-dir" => places.home_dir = value.into(),
                "--port" => places.port = value.parse().map_err(|_| UnknownArgument(name))?,
                _ => return Err(UnknownArgument(name)),
            }
        }
        Ok(places)
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }

    /// The spool's directory.
    pub fn spool(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// Where Claude keeps its own state, in the state directory of any attempt.
    pub fn claude_state(state_dir: &Path) -> PathBuf {
        state_dir.join("claude")
    }

    /// The file that is there once Claude has been started.
    pub fn started_marker(&self) -> PathBuf {
        self.state_dir.join("started")
    }
}
