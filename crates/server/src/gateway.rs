//! What a sandbox may reach, and nothing else: its own agent's link, the model API, the one
//! repository, and from coordination sessions the sessions that they made, on one Unix socket for
//! each attempt.
//!
//! The socket itself says which session is calling: it lies in a directory that is mounted into
//! one sandbox only. There is no token that could leak.

mod coordination;
pub mod git;
pub mod lines;
pub mod link;
pub mod model;
mod overlaps;
mod spending;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use baton_agent::protocol::{AGENT_NAME, AGENT_PATH, CLAUDE_NAME, Job, SOCKET_NAME, UPGRADE};
use baton_domain::coordination::coordinates;
use baton_domain::ending::Usage;
use baton_domain::overlap::Touched;
use baton_domain::pauses::UsageLimit;
use baton_domain::{Attempt, Repository, Session, SessionId};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OnceCell, Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use self::coordination::McpDoor;
use self::coordination::mcp_call;
use self::git::GitExport;
use self::model::ModelGateway;
use crate::claude::MCP_PATH;
use crate::clock::Clock;
use crate::launch::{GIT_PATH, JobError, Jobs};
use crate::repos::{Repos, base_ref, result_ref, unjoined_refs};
use crate::store::Store;

/// Connections one sandbox may hold at once; more wait.
const CONNECTIONS_MAX: usize = 256;
/// The pause after a connection could not be accepted, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Everybody may connect to the socket: who can see it is decided by where it is mounted, and the
/// data directory above it is closed to others.
const SOCKET_MODE: u32 = 0o666;
/// The sandbox's user must be able to enter the directory.
const DIRECTORY_MODE: u32 = 0o755;

/// What the gateway is made of.
pub struct GatewayParts {
    /// The directory that holds one directory for each attempt.
    pub run_root: PathBuf,
    /// The agent's binary, on the same file system.
    pub agent: PathBuf,
    /// Claude Code for images that may lack it, on the same file system.
    pub claude: Option<PathBuf>,
    /// Sessions and their output.
    pub store: Store,
    /// Mirrors.
    pub repos: Repos,
    /// Model calls.
    pub model: ModelGateway,
    /// Jobs.
    pub jobs: Jobs,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Wakes the reconciler.
    pub wake: Arc<Notify>,
}

/// The sockets of all live sandboxes.
#[derive(Clone)]
pub struct Gateway {
    parts: Arc<GatewayParts>,
    gates: Arc<Mutex<Gates>>,
    touched: Arc<Mutex<Touched>>,
    mcp: Arc<OnceLock<McpDoor>>,
}

type Gates = HashMap<(SessionId, Attempt), Arc<Gate>>;

/// One sandbox's socket.
pub struct Gate {
    session: SessionId,
    attempt: Attempt,
    parts: Arc<GatewayParts>,
    export: GitExport,
    /// Whether it may call the model: Claude may, a command may not.
    has_model: bool,
    /// Whether it may make other sessions.
    coordinates: bool,
    /// Shared by all gates.
    mcp: Arc<OnceLock<McpDoor>>,
    job: OnceCell<Job>,
    stop: watch::Sender<bool>,
    /// Changes when something waits to be said.
    news: watch::Sender<()>,
    link: tokio::sync::Mutex<()>,
    /// Cancelled when a newer link takes over.
    newest: Mutex<CancellationToken>,
    closed: CancellationToken,
    metered: Mutex<Usage>,
    /// Whether it was told that its budget runs low.
    warned: AtomicBool,
    handout: Mutex<Handout>,
    /// When its container was started, by this server.
    launched_at: OnceLock<Timestamp>,
    /// Whether its agent has connected.
    heard: AtomicBool,
    /// Since when its agent is not connected; none while it is.
    absent_since: Mutex<Option<Timestamp>>,
    repository: Repository,
    /// Shared by all gates.
    touched: Arc<Mutex<Touched>>,
    /// All gates, to know what others of the same orchestration cost.
    gates: Weak<Mutex<Gates>>,
    /// The budget of its orchestration that it was told runs low.
    warned_of: Mutex<Option<f64>>,
    /// How many events told of overlaps.
    overlaps_told: AtomicU32,
}

/// What is known of the handing out of a job. An agent that has it may have started Claude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handout {
    /// An earlier server may have handed it out.
    Unknown,
    /// Not handed out yet.
    NotYet,
    /// Handed out.
    Given,
    /// Never handed out, and never to be.
    Withheld,
}

impl Gateway {
    /// A gateway without sockets.
    #[must_use]
    pub fn new(parts: GatewayParts) -> Self {
        Self {
            parts: Arc::new(parts),
            gates: Arc::default(),
            touched: Arc::default(),
            mcp: Arc::default(),
        }
    }

    /// Tells who answers what coordination sessions ask for. The first one counts: it is made after
    /// the gateway, since it needs the orchestrator, and that needs this.
    pub fn set_mcp(&self, door: McpDoor) {
        // Who comes second is not needed.
        let _ = self.mcp.set(door);
    }

    /// The directory that is mounted into the sandbox.
    #[must_use]
    pub fn run_dir(&self, session: SessionId, attempt: Attempt) -> PathBuf {
        self.parts
            .run_root
            .join(format!("{}-{attempt}", session.0.simple()))
    }

    /// The attempts that have such a directory: each sandbox that is, and each whose removal was
    /// cut short.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn run_dirs(&self) -> io::Result<Vec<(SessionId, Attempt)>> {
        let entries = match std::fs::read_dir(&self.parts.run_root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut attempts = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            // Anything else in there is not ours.
            attempts.extend(name.to_str().and_then(attempt_of));
        }
        Ok(attempts)
    }

    /// Makes the directory that is mounted into the sandbox, with the agent in it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn prepare(&self, session: SessionId, attempt: Attempt) -> io::Result<PathBuf> {
        let dir = self.run_dir(session, attempt);
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(DIRECTORY_MODE))?;
        link(&self.parts.agent, &dir.join(AGENT_NAME))?;
        if let Some(claude) = &self.parts.claude {
            link(claude, &dir.join(CLAUDE_NAME))?;
        }
        Ok(dir)
    }

    /// Opens the session's socket for its launch, or finds it open.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(&self, session: &Session) -> io::Result<Arc<Gate>> {
        self.open_knowing(session, Handout::NotYet)
    }

    /// Opens the socket of a session that an earlier server may have launched, or finds it open.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn adopt(&self, session: &Session) -> io::Result<Arc<Gate>> {
        self.open_knowing(session, Handout::Unknown)
    }

    fn open_knowing(&self, session: &Session, handout: Handout) -> io::Result<Arc<Gate>> {
        let key = (session.id, session.attempt);
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&key) {
            if handout == Handout::NotYet {
                gate.begins_anew();
            }
            return Ok(Arc::clone(gate));
        }
        let dir = self.prepare(session.id, session.attempt)?;
        let listener = bind(&dir)?;
        let gate = Arc::new(Gate::new(session, self, handout));
        tokio::spawn(accept(listener, Arc::clone(&gate)));
        if handout == Handout::Unknown {
            let adopted = Arc::clone(&gate);
            tokio::spawn(async move { adopted.remember_changes().await });
        }
        gates.insert(key, Arc::clone(&gate));
        Ok(gate)
    }

    /// Tells the session's agent to stop Claude, now or as soon as it connects.
    pub fn stop(&self, session: SessionId, attempt: Attempt) {
        if let Some(gate) = self.gate(session, attempt) {
            gate.stop.send_replace(true);
        }
    }

    /// Whether it is certain that the attempt's agent was not given its job so far.
    #[must_use]
    pub fn is_untold(&self, session: SessionId, attempt: Attempt) -> bool {
        let gate = self.gate(session, attempt);
        gate.is_some_and(|gate| matches!(*gate.handout(), Handout::NotYet | Handout::Withheld))
    }

    /// Whether the attempt's agent has never connected though its container was started, or is
    /// never to have its job, as far as this server knows for certain; with the time from which it
    /// could have.
    #[must_use]
    pub fn unheard(&self, session: SessionId, attempt: Attempt) -> Option<Option<Timestamp>> {
        let gate = self.gate(session, attempt)?;
        let launched_at = gate.launched_at.get().copied();
        match *gate.handout() {
            Handout::NotYet if !gate.heard.load(Ordering::Relaxed) => launched_at.map(Some),
            Handout::Withheld => Some(launched_at),
            Handout::NotYet | Handout::Unknown | Handout::Given => None,
        }
    }

    /// Since when the attempt's agent, which may have its job, is not connected; none where it is.
    #[must_use]
    pub fn absent_since(&self, session: SessionId, attempt: Attempt) -> Option<Timestamp> {
        let gate = self.gate(session, attempt)?;
        match *gate.handout() {
            Handout::Unknown | Handout::Given => *gate.absent_since(),
            Handout::NotYet | Handout::Withheld => None,
        }
    }

    /// Keeps the job from the attempt's agent for good; false where it may have it already.
    #[must_use]
    pub fn withhold(&self, session: SessionId, attempt: Attempt) -> bool {
        let gate = self.gate(session, attempt);
        gate.is_some_and(|gate| gate.withhold())
    }

    /// Has the session's agent told the messages that wait, now or as soon as it connects.
    pub fn say(&self, session: SessionId, attempt: Attempt) {
        if let Some(gate) = self.gate(session, attempt) {
            gate.news.send_replace(());
        }
    }

    /// Tokens counted on the way to and from the model since the socket was opened, and what they
    /// cost as far as prices tell.
    #[must_use]
    pub fn metered(&self, session: SessionId, attempt: Attempt) -> Option<Usage> {
        let gate = self.gate(session, attempt)?;
        let usage = *gate.metered.lock().unwrap_or_else(PoisonError::into_inner);
        Some(usage)
    }

    /// Closes the socket and removes its directory; gone already is fine.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn close(&self, session: SessionId, attempt: Attempt) -> io::Result<()> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.remove(&(session, attempt)) {
            gate.closed.cancel();
        }
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.forget(session);
        drop(touched);
        match std::fs::remove_dir_all(self.run_dir(session, attempt)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn gate(&self, session: SessionId, attempt: Attempt) -> Option<Arc<Gate>> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.get(&(session, attempt)).cloned()
    }
}

impl Gate {
    fn new(session: &Session, gateway: &Gateway, handout: Handout) -> Self {
        let parts = Arc::clone(&gateway.parts);
        let now = parts.clock.now();
        let export = GitExport::new(
            parts.repos.mirror_path(&session.project.repository),
            base_ref(session.id, session.attempt),
            unjoined_refs(session.id, session.attempt),
            session
                .pushes()
                .then(|| result_ref(session.id, session.attempt)),
        );
        Self {
            session: session.id,
            attempt: session.attempt,
            has_model: session.command.is_none(),
            coordinates: coordinates(session),
            mcp: Arc::clone(&gateway.mcp),
            parts,
            export,
            job: OnceCell::new(),
            stop: watch::Sender::new(false),
            news: watch::Sender::new(()),
            link: tokio::sync::Mutex::default(),
            newest: Mutex::default(),
            closed: CancellationToken::new(),
            metered: Mutex::default(),
            warned: AtomicBool::new(false),
            handout: Mutex::new(handout),
            launched_at: OnceLock::new(),
            heard: AtomicBool::new(false),
            absent_since: Mutex::new(Some(now)),
            repository: session.project.repository.clone(),
            touched: Arc::clone(&gateway.touched),
            gates: Arc::downgrade(&gateway.gates),
            warned_of: Mutex::default(),
            overlaps_told: AtomicU32::new(0),
        }
    }

    /// The session's job, made on the first call that succeeds.
    ///
    /// # Errors
    /// [`JobError`].
    pub async fn job(&self) -> Result<Job, JobError> {
        let make = async || {
            let session = self.parts.store.session(self.session).await?;
            match self.budget(&session) {
                None => self.parts.jobs.job(&session, self.attempt).await,
                Some(budget) => {
                    let session = session.within(&budget);
                    self.parts.jobs.job(&session, self.attempt).await
                }
            }
        };
        self.job.get_or_try_init(make).await.cloned()
    }

    /// Returns when the session was told to stop.
    pub async fn stopped(&self) {
        // The sender lives as long as the gate.
        let _ = self.stop.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Notes that the container was started.
    pub fn launched(&self, now: Timestamp) {
        // A launch that is repeated finds it started.
        let _before = self.launched_at.set(now);
        self.begins_anew();
    }

    /// An agent that is not connected has all its time from now on: to start a container may take
    /// long, and that is not its fault.
    fn begins_anew(&self) {
        if let Some(since) = &mut *self.absent_since() {
            *since = self.parts.clock.now();
        }
    }

    /// See [`Gateway::withhold`].
    #[must_use]
    pub fn withhold(&self) -> bool {
        let mut handout = self.handout();
        if *handout == Handout::NotYet {
            *handout = Handout::Withheld;
        }
        *handout == Handout::Withheld
    }

    /// Keeps the job for good from an agent that has just said that it has none: whoever handed it
    /// out before did not reach it. False where it was handed out by this server.
    #[must_use]
    pub fn deny(&self) -> bool {
        let mut handout = self.handout();
        if *handout == Handout::Unknown {
            *handout = Handout::Withheld;
        }
        drop(handout);
        self.withhold()
    }

    /// Notes that the agent has the job, or is about to; false where it must not have it.
    #[must_use]
    pub fn hand_out(&self) -> bool {
        let mut handout = self.handout();
        if *handout != Handout::Withheld {
            *handout = Handout::Given;
        }
        *handout == Handout::Given
    }

    /// Notes that the agent is connected, until what is given back is dropped.
    #[must_use]
    fn present(&self) -> Present<'_> {
        self.heard.store(true, Ordering::Relaxed);
        *self.absent_since() = None;
        Present(self)
    }

    fn absent_since(&self) -> MutexGuard<'_, Option<Timestamp>> {
        let since = self.absent_since.lock();
        since.unwrap_or_else(PoisonError::into_inner)
    }

    fn handout(&self) -> MutexGuard<'_, Handout> {
        self.handout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the link that is being served and gives back what a later one will end this with.
    fn supersede(&self) -> CancellationToken {
        let mine = self.closed.child_token();
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *newest, mine.clone()).cancel();
        mine
    }
}

/// The agent is connected while this lives.
struct Present<'a>(&'a Gate);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        *self.0.absent_since() = Some(self.0.parts.clock.now());
    }
}

/// Costs no copy; there already is fine.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The attempt whose directory has this name.
fn attempt_of(name: &str) -> Option<(SessionId, Attempt)> {
    let (session, attempt) = name.split_once('-')?;
    let session = uuid::Uuid::try_parse(session).ok()?;
    Some((SessionId(session), Attempt(attempt.parse().ok()?)))
}

/// Binds by way of the directory's descriptor: the path of a Unix socket has at most 107 bytes,
/// and nobody should have to choose a data directory by that.
fn bind(dir: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let path = dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = std::fs::File::open(dir)?;
    let short = format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd());
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, gate: Arc<Gate>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let routes = Router::new()
        .route(AGENT_PATH, get(agent))
        .route("/model", any(model_call))
        .route("/model/{*path}", any(model_call))
        .route("/git/{*path}", any(git_call))
        .route(MCP_PATH, any(mcp_call))
        .with_state(Arc::clone(&gate));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = gate.closed.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, routes.clone(), gate.closed.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(session = %gate.session, %error, "a sandbox's call was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, routes: Router, closed: CancellationToken) {
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .with_upgrades();
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, "a sandbox's connection ended");
            }
        }
        () = closed.cancelled() => {}
    }
}

async fn agent(State(gate): State<Arc<Gate>>, mut request: Request) -> Response {
    let wants = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    if wants != Some(UPGRADE) {
        return (StatusCode::UPGRADE_REQUIRED, [(header::UPGRADE, UPGRADE)]).into_response();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let session = gate.session;
        match upgrade.await {
            Ok(io) => match link::serve(gate, TokioIo::new(io)).await {
                Ok(()) => tracing::debug!(%session, "agent disconnected"),
                Err(error) => tracing::warn!(%session, %error, "the agent's link ended"),
            },
            Err(error) => tracing::debug!(%session, %error, "an upgrade failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

async fn model_call(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    if !gate.has_model {
        return (StatusCode::FORBIDDEN, "a command has no model\n").into_response();
    }
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let path = path.strip_prefix("/model").unwrap_or(path).to_owned();
    if request.method() == Method::POST {
        if let Some(later) = gate.held_call().await {
            return later;
        }
        if let Some(refusal) = gate.refused_call().await {
            return refusal;
        }
    }
    let metering = Arc::clone(&gate);
    let response = gate
        .parts
        .model
        .forward(&path, request, move |counts| metering.meter(&counts))
        .await;
    if let Some(limit) = response.extensions().get::<UsageLimit>() {
        gate.note_limit(*limit).await;
    }
    response
}

async fn git_call(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let path = request.uri().path();
    match path.strip_prefix(GIT_PATH) {
        Some(_) => git::serve(&gate.export, request).await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
