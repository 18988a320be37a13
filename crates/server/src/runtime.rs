//! Where sandboxes run: the seven things asked of a runtime, and how they fail.

use std::collections::HashSet;
use std::error::Error;
use std::path::PathBuf;

use async_trait::async_trait;
pub use baton_domain::plan::Volumes;
use baton_domain::{Attempt, Kind, Sandbox, SandboxId, SessionId, sandbox_id};
use futures::stream::BoxStream;
use jiff::Timestamp;

mod body;
pub mod docker;
pub mod fake;
mod refusal;
mod sighting;
mod volumes;

pub use docker::{DockerRuntime, ImageCheck};
pub use fake::FakeRuntime;

/// Where sandboxes run. Every call may safely be repeated: a crash between the call and our
/// record of it leads to the same call again.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes the sandbox of `spec.session` and `spec.attempt` without starting it, or finds it
    /// there already, prepared or running.
    ///
    /// # Errors
    /// [`RuntimeError::AlreadyExited`] when it ran before; every other kind too.
    async fn prepare(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError>;

    /// Starts the sandbox, made first where [`Runtime::prepare`] was not asked to. One that runs
    /// already is a success. Returns on acceptance; its exit is seen through [`Runtime::watch`]
    /// and [`Runtime::list`].
    ///
    /// # Errors
    /// [`RuntimeError::AlreadyExited`]: an exited sandbox is never started again, since that
    /// would repeat paid work.
    async fn launch(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError>;

    /// Every sandbox of our instance, exited ones too, in no order. Others' are never listed.
    async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError>;

    /// What happens to our sandboxes from now on: exits and removals, each as it stands then.
    ///
    /// An item may come twice. The stream ends when the runtime goes away or the reader falls
    /// far behind; the reader then watches again, *then* lists, and so misses nothing.
    async fn watch(&self) -> Result<BoxStream<'static, Sandbox>, RuntimeError>;

    /// Kills and deletes; a sandbox that is gone already is a success. With
    /// [`Volumes::Remove`] its volumes go too, also those left by an earlier call that kept them;
    /// with [`Volumes::KeepState`] only the workspace does.
    ///
    /// # Errors
    /// [`RuntimeError::NameTaken`] when what bears the name is not ours: it stays.
    async fn remove(&self, id: &SandboxId, volumes: Volumes) -> Result<(), RuntimeError>;

    /// Removes our volumes made before `before` that no sandbox holds and that are not of one of
    /// the `spared` sessions, and says how many. A pair of volumes that was kept counts as two.
    async fn remove_kept_volumes(
        &self,
        before: Timestamp,
        spared: &HashSet<SessionId>,
    ) -> Result<usize, RuntimeError>;

    /// Whether sandboxes can be made from `image`.
    ///
    /// # Errors
    /// [`RuntimeError::ImageMissing`].
    async fn check_image(&self, image: &str) -> Result<(), RuntimeError>;
}

/// One sandbox to be made. Nothing in it is secret: all of it shows in `docker inspect`.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxSpec {
    /// Whose it is.
    pub session: SessionId,
    /// Which of the session's attempts.
    pub attempt: Attempt,
    /// What the session is for; part of the name.
    pub kind: Kind,
    /// The image, as its user named it. Never pulled.
    pub image: String,
    /// The host's directory with the agent and the session's socket; must exist. It is mounted
    /// read-only at [`RUN_MOUNT`].
    pub run_dir: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// The OCI runtime, such as `runsc`; the daemon's default when absent.
    pub runtime: Option<String>,
    /// The attempt whose conversation is gone on with: its state volume is mounted read-only.
    pub earlier: Option<Attempt>,
}

impl SandboxSpec {
    /// The name this sandbox has.
    #[must_use]
    pub fn id(&self) -> SandboxId {
        sandbox_id(self.kind, self.session, self.attempt)
    }
}

/// Where [`SandboxSpec::run_dir`] is seen inside.
pub const RUN_MOUNT: &str = "/run/baton";

/// What one sandbox may use of the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Memory, tmpfs contents included. There is no swap beyond it.
    pub memory_bytes: u64,
    /// CPU time per time, 1.0 being one core.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: i64,
    /// Open files of one process.
    pub nofile: i64,
    /// The size of `/tmp`.
    pub tmp_bytes: u64,
}

/// Why a runtime did not do what it was asked. Holds no secret: a spec has none, and no other
/// input reaches the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers there. Says nothing about any sandbox; ask again later.
    #[error("the container runtime is unreachable (while asked to {step})")]
    Unavailable {
        /// What was being asked.
        step: &'static str,
        /// What the connection said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The image is not on the host. It is not pulled: what runs is what the operator put there.
    #[error("image {image} is not on this host")]
    ImageMissing {
        /// As given in the spec.
        image: String,
    },
    /// The derived name belongs to something else: another instance, another session whose id
    /// ends alike, or somebody's own container.
    #[error("the name {name}, wanted for session {session}, belongs to {holder}")]
    NameTaken {
        /// The container's or volume's name.
        name: String,
        /// Who wanted it; the sandbox's name where only that is known.
        session: String,
        /// Who has it, as far as labels tell.
        holder: String,
    },
    /// The earlier attempt's state is gone: it was kept long enough, or somebody removed it.
    #[error("what attempt {attempt} of session {session} left of its conversation is gone")]
    StateGone {
        /// Whose it was.
        session: SessionId,
        /// Which attempt's.
        attempt: Attempt,
    },
    /// The attempt ran and ended; it is not run again.
    #[error("the sandbox of session {session} attempt {attempt} has already exited")]
    AlreadyExited {
        /// Whose it is.
        session: SessionId,
        /// Which one.
        attempt: Attempt,
    },
    /// The runtime answered, and refused.
    #[error("the container runtime refused to {step} {id}: {message}")]
    Refused {
        /// What was being asked.
        step: &'static str,
        /// The sandbox, or what else it was about.
        id: String,
        /// In the runtime's own words, cut at [`MESSAGE_CHARS_MAX`].
        message: String,
    },
    /// The configured address is none this runtime can dial.
    #[error("docker host {host} is neither unix:///path nor tcp://host:port")]
    BadHost {
        /// As configured.
        host: String,
    },
}

/// How much of a runtime's own words an error quotes.
pub const MESSAGE_CHARS_MAX: usize = 500;

impl RuntimeError {
    /// Whether the same call may succeed later with nothing changed on our side.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
