//! A whole server, put together from its parts.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::SignedDuration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent_binary;
use crate::clock::{Clock, SystemClock};
use crate::conclude::Concluder;
use crate::config::{Config, IMAGE_DEFAULT};
use crate::gateway::model::{ModelGateway, ModelSettings};
use crate::gateway::{Gateway, GatewayParts};
use crate::http::{self, HttpParts, ServeSettings};
use crate::image::{self, ImageState};
use crate::landing::Lander;
use crate::launch::Jobs;
use crate::mcp::{self, SandboxDoor};
use crate::open_waits::OpenWaits;
use crate::orchestrator::{Admission, Ids, Orchestrator, OrchestratorParts, RandomIds};
use crate::reconcile::{Reconciler, ReconcilerParts, ReconcilerSettings, RuntimeHealth};
use crate::repos::{RepoSettings, Repos};
use crate::runtime::{DockerRuntime, Runtime};
use crate::store::{Store, StoreSettings};

/// How long the first look at the runtime may hold up the first request.
const FIRST_LOOK_WAIT: Duration = Duration::from_secs(2);
/// What a stopped session gets beyond the grace between its signals: the time to save its work.
const SAVE_WORK_SECONDS: u64 = 60;
/// Names the boot of this machine on Linux.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// A server that accepts requests.
pub struct Server {
    address: SocketAddr,
    store: Store,
    serving: JoinHandle<()>,
    reconciling: JoinHandle<()>,
}

impl Server {
    /// Opens the store, adopts what runs, and listens. It stops when `stop` is cancelled.
    ///
    /// # Errors
    /// Whatever keeps it from starting, in words for a person. A container runtime that does not
    /// answer is no such thing: what is stored can be read without it.
    pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Self> {
        let data_dir = config.data_dir.clone();
        make_data_dir(&data_dir)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener
            .local_addr()
            .context("the address listened on is unknown")?;
        let output = StoreSettings {
            output_bytes_max: config.output_bytes_max,
            database: config.database.clone(),
        };
        let store = Store::open(&data_dir, output)
            .await
            .with_context(|| format!("the store in {} cannot be opened", data_dir.display()))?;
        let agent =
            agent_binary::install(&data_dir).context("the agent's binary cannot be laid down")?;

        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn Ids> = Arc::new(RandomIds);
        let wake = Arc::new(Notify::new());
        let health = Arc::new(RuntimeHealth::default());
        let repos = Repos::new(RepoSettings {
            root: data_dir.join("repos"),
            base_url: config.git_base_url.clone(),
            token: config.github_token.clone(),
        });
        let limits = Arc::new(config.limits.clone());
        let jobs = Jobs::new(
            store.clone(),
            repos.clone(),
            config.waits,
            Arc::clone(&limits),
            Arc::clone(&clock),
        );
        let model = ModelGateway::new(ModelSettings {
            base_url: config.model_base_url.clone(),
            credential: config.credential.clone(),
        })
        .context("model calls cannot be forwarded")?
        .priced(config.prices.clone());
        let gateway = Gateway::new(GatewayParts {
            run_root: data_dir.join("run"),
            agent,
            claude: claude_for(&config.image, &data_dir).await,
            store: store.clone(),
            repos: repos.clone(),
            model,
            jobs,
            clock: Arc::clone(&clock),
            wake: Arc::clone(&wake),
        });
        let runtime: Arc<dyn Runtime> = Arc::new(DockerRuntime::connect(
            instance(&data_dir)?,
            config.docker_host.as_deref(),
        )?);
        let waits = OpenWaits::default();
        let reconciler = Reconciler::new(ReconcilerParts {
            store: store.clone(),
            runtime,
            gateway: gateway.clone(),
            concluder: Concluder::new(store.clone(), repos.clone(), Arc::clone(&clock)),
            lander: Lander::new(store.clone(), repos, Arc::clone(&clock), Arc::clone(&ids)),
            waits: waits.clone(),
            clock: Arc::clone(&clock),
            wake: Arc::clone(&wake),
            health: Arc::clone(&health),
            settings: reconciler_settings(&config, limits),
        });
        let orchestrator = Orchestrator::new(OrchestratorParts {
            store: store.clone(),
            clock,
            ids,
            wake,
            admission: Arc::clone(&health) as Arc<dyn Admission>,
            slots_max: config.max_running,
            overlaps: {
                let gateway = gateway.clone();
                Arc::new(move |ids| gateway.overlaps(ids))
            },
            meter: {
                let gateway = gateway.clone();
                Arc::new(move |session, attempt| gateway.metered(session, attempt))
            },
            waits,
            coordination: config.coordination,
        });
        let sandbox_door = SandboxDoor::new(orchestrator.clone(), stop.clone());
        gateway.set_mcp(Arc::new(move |session, request| {
            let door = sandbox_door.clone();
            Box::pin(async move { door.answer(session, request).await })
        }));
        // Agents connect as soon as it adopts their sandboxes: all that they reach is there by then.
        let reconciling = tokio::spawn(reconciler.run(stop.clone()));
        health.first_look(FIRST_LOOK_WAIT).await;

        let router = http::router(HttpParts {
            mcp: mcp::routes(orchestrator.clone(), stop.clone()),
            orchestrator,
            secrets: config.secrets,
            listen: address,
            allowed_hosts: config.allowed_hosts,
            body_timeout: http::BODY_TIMEOUT,
            stopping: stop.clone(),
        });
        let serving = tokio::spawn(http::serve(
            listener,
            router,
            ServeSettings::default(),
            stop,
        ));
        Ok(Self {
            address,
            store,
            serving,
            reconciling,
        })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until everything has come to rest after the stop.
    ///
    /// # Errors
    /// When serving ended for another reason.
    pub async fn stopped(self) -> anyhow::Result<()> {
        let served = self.serving.await.context("serving ended abnormally");
        self.reconciling
            .await
            .context("the reconciler ended abnormally")?;
        self.store.close().await;
        served
    }
}

/// Claude Code for an image that is none of ours and may lack it: the one of the image that
/// `baton image build` makes. None where it isn't needed or cannot be had; what is missing then
/// shows in the sessions and in `baton doctor`.
async fn claude_for(image: &str, data_dir: &Path) -> Option<PathBuf> {
    if !matches!(image::state(image).await, Ok(ImageState::Foreign)) {
        return None;
    }
    let path = data_dir
        .join("claude-code")
        .join(image::cli_version())
        .join("claude");
    match image::extract_cli(IMAGE_DEFAULT, &path).await {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::warn!(%error, "{image} gets no Claude Code from here; it must hold its own");
            None
        }
    }
}

fn reconciler_settings(
    config: &Config,
    limits: Arc<std::collections::HashMap<baton_domain::Kind, crate::config::KindLimits>>,
) -> ReconcilerSettings {
    let stop_seconds = config.waits.term_grace_s.saturating_add(SAVE_WORK_SECONDS);
    ReconcilerSettings {
        image: config.image.clone(),
        oci_runtime: config.oci_runtime.clone(),
        limits,
        slots_max: config.max_running,
        prepared_max: config.max_prepared,
        stop_grace: SignedDuration::from_secs(i64::try_from(stop_seconds).unwrap_or(i64::MAX)),
        keep_volumes: SignedDuration::from_hours(24 * i64::from(config.keep_days)),
        boot_file: config.data_dir.join("boot"),
        boot_id: std::fs::read_to_string(BOOT_ID_FILE).ok(),
    }
}

/// Closed to others: it holds people's code and the sockets of all sandboxes.
fn make_data_dir(data_dir: &Path) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(data_dir)
        .and_then(|()| std::fs::set_permissions(data_dir, std::fs::Permissions::from_mode(0o700)));
    made.with_context(|| format!("the data directory {} cannot be made", data_dir.display()))
}

/// The name by which this data directory's containers are known; chosen at its first start.
fn instance(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("instance");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        _ => {
            let name = uuid::Uuid::new_v4().simple().to_string();
            std::fs::write(&path, &name)
                .with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(name)
        }
    }
}
