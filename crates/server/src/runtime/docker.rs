//! Sandboxes as Docker containers, over the Engine API.
//!
//! Requests carry no API version, which the daemon answers in the newest it knows; only fields
//! that 1.41 (Docker 20.10) has are used. Each request has a connection of its own, so a
//! restarted daemon, an upgraded one too, is simply met by the next request.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use baton_domain::{Attempt, Sandbox, SandboxId, SandboxState, SessionId};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as SummaryStatus};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Mutex, Semaphore};

use crate::failpoint;

use super::body::{LABEL_ATTEMPT, LABEL_INSTANCE, LABEL_SESSION, container_body};
use super::refusal::{failed, is_image_missing, is_status};
use super::sighting::{created_at, inspected_state, labels_of, news, state_of};
use super::{Runtime, RuntimeError, SandboxSpec, Volumes, volumes};

/// Where Docker listens unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// On images built for us: their `/workspace` and `/state` have the right owner already.
pub const LABEL_IMAGE: &str = "dev.baton.image";

/// How long the daemon may take to begin its answer. Long, since a start on a crowded host may
/// take many seconds and its outcome is unknown when we hang up.
const ANSWER_SECONDS_MAX: u64 = 120;
/// More starts at once than this only make each of them slower.
const STARTS_PER_CORE: usize = 2;
/// Exited containers inspected at once while listing.
const INSPECTIONS_MAX: usize = 8;
/// Calls for one sandbox take turns; sandboxes that share a turn merely wait needlessly.
const TURNS: usize = 64;
/// A watch also reports what happened this shortly before it began: the subscription starts a
/// moment later than the call, and a remote daemon's clock may be ahead of ours.
const WATCH_OVERLAP: SignedDuration = SignedDuration::from_secs(5);

/// Sandboxes as containers of one Docker daemon.
pub struct DockerRuntime {
    pub(super) instance: String,
    address: Address,
    client: OnceLock<Docker>,
    starts: Semaphore,
    turns: [Mutex<()>; TURNS],
    /// Whether the daemon's warnings were logged: they repeat with every container.
    warned: AtomicBool,
}

enum Address {
    Unix(String),
    Tcp(String),
}

/// A daemon, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its version, for people.
    pub version: String,
    /// The time by its clock; the epoch where it doesn't tell.
    pub now: Timestamp,
}

/// What is known of an image on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageCheck {
    /// Its content's digest, `sha256:…`.
    pub id: String,
    /// What [`LABEL_IMAGE`] says; absent on a user's own image.
    pub baton_label: Option<String>,
}

impl DockerRuntime {
    /// A runtime for the sandboxes labelled `instance`, at `docker_host` as `DOCKER_HOST` spells
    /// it, or at [`DEFAULT_HOST`]. Dials nothing yet: the daemon may be away.
    ///
    /// # Errors
    /// [`RuntimeError::BadHost`] for anything but `unix://` and (unencrypted) `tcp://`.
    pub fn connect(
        instance: impl Into<String>,
        docker_host: Option<&str>,
    ) -> Result<Self, RuntimeError> {
        let host = docker_host.unwrap_or(DEFAULT_HOST);
        let address = match host.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(host.to_owned()),
            Some(("tcp" | "http", at)) if !at.is_empty() => Address::Tcp(host.to_owned()),
            _ => {
                let host = host.to_owned();
                return Err(RuntimeError::BadHost { host });
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            instance: instance.into(),
            address,
            client: OnceLock::new(),
            starts: Semaphore::new(cores * STARTS_PER_CORE),
            turns: std::array::from_fn(|_| Mutex::new(())),
            warned: AtomicBool::new(false),
        })
    }

    /// Whether the daemon answers.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), RuntimeError> {
        const STEP: &str = "answer a ping";
        let answer = self.client(STEP)?.ping().await;
        answer.map(|_| ()).map_err(failed(STEP, "the daemon"))
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    pub async fn daemon(&self) -> Result<Daemon, RuntimeError> {
        const STEP: &str = "describe itself";
        let answer = self.client(STEP)?.info().await;
        let info = answer.map_err(failed(STEP, "the daemon"))?;
        let now = info.system_time.and_then(|time| time.parse().ok());
        Ok(Daemon {
            version: info.server_version.unwrap_or_default(),
            now: now.unwrap_or_default(),
        })
    }

    /// What the daemon knows of `image`, `None` where it has none of that name.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] or [`RuntimeError::Refused`].
    pub async fn image_exists(&self, image: &str) -> Result<Option<ImageCheck>, RuntimeError> {
        const STEP: &str = "inspect the image";
        match self.client(STEP)?.inspect_image(image).await {
            Ok(found) => Ok(Some(ImageCheck {
                id: found.id.unwrap_or_default(),
                baton_label: found
                    .config
                    .and_then(|config| config.labels)
                    .and_then(|mut labels| labels.remove(LABEL_IMAGE))
                    .filter(|label| !label.is_empty()),
            })),
            Err(error) if is_status(&error, 404) => Ok(None),
            Err(error) => Err(failed(STEP, image)(error)),
        }
    }

    /// The client, made when first needed: making one fails where the socket does not exist.
    pub(super) fn client(&self, step: &'static str) -> Result<&Docker, RuntimeError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let made = match &self.address {
            Address::Unix(host) => {
                Docker::connect_with_unix(host, ANSWER_SECONDS_MAX, API_DEFAULT_VERSION)
            }
            Address::Tcp(host) => {
                Docker::connect_with_http(host, ANSWER_SECONDS_MAX, API_DEFAULT_VERSION)
            }
        };
        let client = made.map_err(failed(step, "the daemon"))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Waits for this sandbox's turn. A container that exited between another call's look and
    /// its start would be started a second time, since Docker restarts whatever has exited.
    fn turn(&self, id: &SandboxId) -> &Mutex<()> {
        let sum = id.0.bytes().fold(0_usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        &self.turns[sum % TURNS]
    }

    /// The container of `spec`, made if there was none, ready to start if it was never started.
    /// Says where it stands.
    async fn create_or_find(
        &self,
        spec: &SandboxSpec,
        id: &SandboxId,
    ) -> Result<SandboxState, RuntimeError> {
        const STEP: &str = "create";
        let options = CreateContainerOptionsBuilder::new().name(&id.0).build();
        let body = container_body(spec, &self.instance);
        let client = self.client(STEP)?;
        if let Some(earlier) = spec.earlier {
            volumes::check_earlier(self, spec.session, earlier).await?;
        }
        match client.create_container(Some(options), body).await {
            Ok(made) => self.warn_once(&made.warnings),
            // The name is derived, so this is the very container, or somebody else's.
            Err(error) if is_status(&error, 409) => {}
            Err(error) if is_image_missing(&error) => {
                let image = spec.image.clone();
                return Err(RuntimeError::ImageMissing { image });
            }
            Err(error) => return Err(failed(STEP, &id.0)(error)),
        }
        let found = client
            .inspect_container(&id.0, None::<InspectContainerOptions>)
            .await
            .map_err(failed(STEP, &id.0))?;
        let labels = labels_of(&found);
        if self.owner(labels) != Some((spec.session, spec.attempt)) {
            return Err(self.name_taken(&id.0, &spec.session.to_string(), labels));
        }
        let state = state_of(found.state.as_ref(), created_at(&found));
        if state == SandboxState::Prepared {
            let foreign_image = labels.get(LABEL_IMAGE).is_none_or(String::is_empty);
            volumes::make_ready(self, spec, id, foreign_image).await?;
        }
        Ok(state)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        const STEP: &str = "start";
        // Never closed, so this cannot fail; and without a permit a start is merely slower.
        let _permit = self.starts.acquire().await;
        self.client(STEP)?
            .start_container(&id.0, None::<StartContainerOptions>)
            .await
            .map_err(failed(STEP, &id.0))
    }

    /// Deletes the container `name` if it is ours. `false`: there was none.
    pub(super) async fn delete(&self, name: &str) -> Result<bool, RuntimeError> {
        const STEP: &str = "remove";
        let client = self.client(STEP)?;
        let found = match client
            .inspect_container(name, None::<InspectContainerOptions>)
            .await
        {
            Ok(found) => found,
            Err(error) if is_status(&error, 404) => return Ok(false),
            Err(error) => return Err(failed(STEP, name)(error)),
        };
        let labels = labels_of(&found);
        if !self.is_ours(labels) {
            return Err(self.name_taken(name, name, labels));
        }
        // `v`: a foreign image may declare volumes; those are nameless and go along. Ours stay.
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        // By its id: the name may have passed on since we looked.
        let container = found.id.as_deref().unwrap_or(name);
        match client.remove_container(container, Some(options)).await {
            Err(error) if !is_status(&error, 404) => Err(failed(STEP, name)(error)),
            _ => Ok(true),
        }
    }

    /// Docker's words for our instance's label.
    pub(super) fn our_label(&self) -> String {
        format!("{LABEL_INSTANCE}={}", self.instance)
    }

    pub(super) fn is_ours(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(LABEL_INSTANCE) == Some(&self.instance)
    }

    /// Whose sandbox it is by its labels; `None` for what is not ours or no sandbox.
    pub(super) fn owner(&self, labels: &HashMap<String, String>) -> Option<(SessionId, Attempt)> {
        if !self.is_ours(labels) {
            return None;
        }
        let session = labels.get(LABEL_SESSION)?.parse().ok()?;
        let attempt = labels.get(LABEL_ATTEMPT)?.parse().ok()?;
        Some((session, Attempt(attempt)))
    }

    pub(super) fn name_taken(
        &self,
        name: &str,
        wanted_for: &str,
        labels: &HashMap<String, String>,
    ) -> RuntimeError {
        let holder = match (self.owner(labels), labels.get(LABEL_INSTANCE)) {
            (Some((session, attempt)), _) => format!("session {session} attempt {attempt}"),
            (None, Some(instance)) if *instance != self.instance => {
                format!("the instance {instance}")
            }
            (None, _) => "something that is not ours".to_owned(),
        };
        RuntimeError::NameTaken {
            name: name.to_owned(),
            session: wanted_for.to_owned(),
            holder,
        }
    }

    /// A limit the host cannot enforce is accepted with no more than a warning.
    fn warn_once(&self, warnings: &[String]) {
        if !warnings.is_empty() && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(?warnings, "docker made a sandbox, but not quite as asked");
        }
    }

    /// The listed container as a sandbox; `None` for what is no sandbox or is gone by now.
    async fn sighting(&self, listed: ContainerSummary) -> Result<Option<Sandbox>, RuntimeError> {
        let labels = listed.labels.unwrap_or_default();
        let (Some((session, attempt)), Some(container)) = (self.owner(&labels), listed.id) else {
            return Ok(None);
        };
        let name = listed.names.and_then(|names| names.into_iter().next());
        let id = SandboxId(name.unwrap_or_default().trim_start_matches('/').to_owned());
        let created_at = listed
            .created
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .unwrap_or_default();
        let state = match listed.state {
            Some(SummaryStatus::CREATED | SummaryStatus::EMPTY) | None => SandboxState::Prepared,
            Some(SummaryStatus::REMOVING) => return Ok(None),
            // The list has neither the exit code nor whether memory ran out.
            Some(SummaryStatus::EXITED | SummaryStatus::DEAD) => {
                let client = self.client("list")?;
                match inspected_state(client, &container).await? {
                    SandboxState::Removed => return Ok(None),
                    state => state,
                }
            }
            Some(
                SummaryStatus::RUNNING
                | SummaryStatus::PAUSED
                | SummaryStatus::RESTARTING
                | SummaryStatus::STOPPING,
            ) => SandboxState::Running,
        };
        Ok(Some(Sandbox {
            id,
            session,
            attempt,
            state,
            created_at,
        }))
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn prepare(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        let id = spec.id();
        let _turn = self.turn(&id).lock().await;
        match self.create_or_find(spec, &id).await? {
            SandboxState::Prepared | SandboxState::Running => Ok(id),
            SandboxState::Exited { .. } | SandboxState::Removed => Err(already_exited(spec)),
        }
    }

    async fn launch(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        let id = spec.id();
        let _turn = self.turn(&id).lock().await;
        match self.create_or_find(spec, &id).await? {
            SandboxState::Prepared => self.start(&id).await?,
            SandboxState::Running => {}
            SandboxState::Exited { .. } | SandboxState::Removed => {
                return Err(already_exited(spec));
            }
        }
        Ok(id)
    }

    async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        const STEP: &str = "list";
        let filters = HashMap::from([("label", vec![self.our_label()])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self
            .client(STEP)?
            .list_containers(Some(options))
            .await
            .map_err(failed(STEP, "sandboxes"))?;
        stream::iter(listed)
            .map(|container| self.sighting(container))
            .buffer_unordered(INSPECTIONS_MAX)
            .try_filter_map(|sandbox| async { Ok(sandbox) })
            .try_collect()
            .await
    }

    async fn watch(&self) -> Result<BoxStream<'static, Sandbox>, RuntimeError> {
        const STEP: &str = "watch";
        // The stream dials when first polled; whether anybody is there is to be known now.
        self.ping().await?;
        let client = self.client(STEP)?.clone();
        let since = Timestamp::now() - WATCH_OVERLAP;
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", ["die", "oom", "destroy"].map(String::from).into()),
            ("label", vec![self.our_label()]),
        ]);
        let options = EventsOptionsBuilder::new()
            .since(&format!(
                "{}.{:09}",
                since.as_second(),
                since.subsec_nanosecond()
            ))
            .filters(&filters)
            .build();
        let events = Box::pin(client.events(Some(options)));
        let sandboxes = stream::unfold((events, client), |(mut events, client)| async {
            loop {
                match events.next().await? {
                    Ok(event) => {
                        if let Some(sandbox) = news(&client, event).await? {
                            return Some((sandbox, (events, client)));
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "docker's events ended");
                        return None;
                    }
                }
            }
        });
        Ok(sandboxes.boxed())
    }

    async fn remove(&self, id: &SandboxId, volumes: Volumes) -> Result<(), RuntimeError> {
        let _turn = self.turn(id).lock().await;
        self.delete(&id.0).await?;
        volumes::delete_primer(self, id).await?;
        failpoint::reach("sandbox_deleted");
        match volumes {
            Volumes::Keep => Ok(()),
            Volumes::KeepState => volumes::remove_workspace_of(self, id).await,
            Volumes::Remove => volumes::remove_of(self, id).await,
        }
    }

    async fn remove_kept_volumes(
        &self,
        before: Timestamp,
        spared: &HashSet<SessionId>,
    ) -> Result<usize, RuntimeError> {
        volumes::remove_unheld(self, before, spared).await
    }

    async fn check_image(&self, image: &str) -> Result<(), RuntimeError> {
        match self.image_exists(image).await? {
            Some(_) => Ok(()),
            None => Err(RuntimeError::ImageMissing {
                image: image.to_owned(),
            }),
        }
    }
}

fn already_exited(spec: &SandboxSpec) -> RuntimeError {
    RuntimeError::AlreadyExited {
        session: spec.session,
        attempt: spec.attempt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_we_can_dial_are_taken() {
        for host in [
            None,
            Some("unix:///nowhere/docker.sock"),
            Some("tcp://10.0.0.1:2375"),
        ] {
            assert!(DockerRuntime::connect("here", host).is_ok(), "{host:?}");
        }
        for host in [
            "",
            "/var/run/docker.sock",
            "unix://docker.sock",
            "ssh://host",
            "tcp://",
        ] {
            assert!(
                matches!(
                    DockerRuntime::connect("here", Some(host)),
                    Err(RuntimeError::BadHost { .. })
                ),
                "{host:?}"
            );
        }
    }
}
