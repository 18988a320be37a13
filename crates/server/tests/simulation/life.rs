//! One server, from its start to its death: everything it holds goes with it, at any instant.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use baton::clock::Clock;
use baton::conclude::Concluder;
use baton::config::Waits;
use baton::failpoint;
use baton::gateway::model::{ModelGateway, ModelSettings};
use baton::gateway::{Gateway, GatewayParts};
use baton::landing::Lander;
use baton::launch::Jobs;
use baton::open_waits::OpenWaits;
use baton::orchestrator::{Orchestrator, OrchestratorParts};
use baton::reconcile::{Reconciler, ReconcilerParts, ReconcilerSettings, RuntimeHealth};
use baton::repos::fake::FakeCodebase;
use baton::repos::{RepoSettings, Repos};
use baton::runtime::Runtime;
use baton::store::{Store, StoreSettings};
use baton_domain::coordination::CoordinationLimits;
use futures::FutureExt as _;
use jiff::SignedDuration;
use tokio::sync::Notify;

use crate::part::Call;
use crate::world::{Mortal, Run, World};

/// Longer than any pause in which an action asks an unreachable remote again.
const REMOTE_PAUSE: Duration = Duration::from_secs(40);
/// How long volumes are kept; short, so that graphs see it end.
pub const KEEP_VOLUMES: SignedDuration = SignedDuration::from_hours(1);
/// How many sessions the coordination sessions of an orchestration may make; few, so that graphs
/// come to an end.
const CHILDREN_MAX: usize = 8;
/// How long a session may take to stop.
pub const STOP_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// When a server dies, and whether it has.
#[derive(Default)]
pub struct Death {
    has_come: AtomicBool,
    told: Notify,
    /// Points still to be reached before it comes; 0 for never.
    points_left: AtomicU64,
}

impl Death {
    pub fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Relaxed)
    }

    /// Lets it come at the `points`-th point from here.
    pub fn comes_after(&self, points: u64) {
        self.points_left.store(points, Ordering::Relaxed);
    }

    /// Whether the server lives on past this point.
    fn passes_by(&self) -> bool {
        if self.has_come() {
            return false;
        }
        let left = self.points_left.load(Ordering::Relaxed);
        self.points_left
            .store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            self.has_come.store(true, Ordering::Relaxed);
            self.told.notify_one();
        }
        left != 1
    }
}

/// What a server is made of.
pub struct Server {
    pub store: Store,
    pub orchestrator: Orchestrator,
    pub reconciler: Reconciler,
    pub gateway: Gateway,
    /// Calls of coordination sessions that wait for an answer.
    pub calls: HashMap<Run, Call>,
    code: FakeCodebase,
}

/// A server and the threads it runs on.
pub struct Life {
    pub death: Arc<Death>,
    /// None once it is over.
    server: Option<Server>,
    /// While it lives, the clock stands still unless it is moved: a runtime whose threads wait
    /// would move it by itself. Goes before the runtime, which waits for who listens to it.
    _still: std::sync::mpsc::Sender<()>,
    tokio: tokio::runtime::Runtime,
}

impl Life {
    /// Starts a server on what its predecessors left.
    pub fn begin(world: &World) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let (still, ends) = std::sync::mpsc::channel::<()>();
        tokio.spawn_blocking(move || ends.recv());
        let death = Arc::new(Death::default());
        let watching = Arc::clone(&death);
        failpoint::watch(Some(Box::new(move |_| watching.passes_by())));
        let server = tokio.block_on(Server::new(world, &death));
        Self {
            death,
            server: Some(server),
            tokio,
            _still: still,
        }
    }

    /// Lets the server do something; none when it died over it.
    pub fn run<T>(&mut self, deed: impl AsyncFnOnce(&mut Server) -> T) -> Option<T> {
        let server = self.server.as_mut().expect("it lives");
        let death = Arc::clone(&self.death);
        self.tokio.block_on(async {
            let deed = AssertUnwindSafe(deed(server)).catch_unwind();
            let done = tokio::select! {
                biased;
                () = death.told.notified() => None,
                done = deed => Some(done),
            };
            match done? {
                Ok(done) => (!death.has_come()).then_some(done),
                Err(_) if death.has_come() => None,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Ends in order: what was asked of the store is written.
    pub fn ends(mut self) {
        if let Some(server) = self.server.take() {
            let store = server.store.clone();
            self.tokio.block_on(async {
                drop(server);
                store.close().await;
            });
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        failpoint::watch(None);
        let _inside = self.tokio.enter();
        self.server = None;
    }
}

impl Server {
    async fn new(world: &World, death: &Arc<Death>) -> Self {
        let data = world.dir.path().join("data");
        let store = Store::open(&data, StoreSettings::default())
            .await
            .expect("a store");
        let mortal = Mortal {
            death: Arc::clone(death),
            runtime: Arc::clone(&world.runtime),
            code: world.code.clone(),
            witness: Arc::clone(&world.witness),
            store: store.clone(),
            bounds: world.bounds.clone(),
        };
        let clock = Arc::clone(&world.clock) as Arc<dyn Clock>;
        let wake = Arc::new(Notify::new());
        let health = Arc::new(RuntimeHealth::default());
        let limits = Arc::new(world.bounds.kinds.clone());
        let waits = Waits {
            first_byte_s: 9,
            silence_s: 9,
            result_grace_s: 9,
            term_grace_s: 9,
        };
        let model = ModelSettings {
            base_url: "http://127.0.0.1:9".into(),
            credential: None,
        };
        // For the git that sandboxes would call, and for landings as a whole: nobody does here.
        let repos = Repos::new(RepoSettings {
            root: data.join("repos"),
            base_url: "file:///nonexistent".into(),
            token: None,
        });
        let gateway = Gateway::new(GatewayParts {
            run_root: data.join("run"),
            agent: world.dir.path().join("agent"),
            claude: None,
            store: store.clone(),
            repos: repos.clone(),
            model: ModelGateway::new(model).expect("a model gateway"),
            jobs: Jobs::new(
                store.clone(),
                mortal.clone(),
                waits,
                Arc::clone(&limits),
                Arc::clone(&clock),
            ),
            clock: Arc::clone(&clock),
            wake: Arc::clone(&wake),
        });
        let waits = OpenWaits::default();
        let orchestrator = Orchestrator::new(OrchestratorParts {
            store: store.clone(),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&world.ids) as _,
            wake: Arc::clone(&wake),
            admission: Arc::clone(&health) as _,
            slots_max: world.bounds.slots_max,
            meter: Arc::new(|_, _| None),
            overlaps: Arc::new(|_| Vec::new()),
            waits: waits.clone(),
            coordination: CoordinationLimits {
                depth_max: 2,
                sessions_max: CHILDREN_MAX,
            },
        });
        let reconciler = Reconciler::new(ReconcilerParts {
            store: store.clone(),
            runtime: Arc::new(mortal.clone()) as Arc<dyn Runtime>,
            gateway: gateway.clone(),
            concluder: Concluder::new(store.clone(), mortal, Arc::clone(&clock)),
            lander: Lander::new(
                store.clone(),
                repos,
                Arc::clone(&clock),
                Arc::clone(&world.ids) as _,
            ),
            waits,
            clock,
            wake,
            health,
            settings: ReconcilerSettings {
                image: "image".into(),
                oci_runtime: None,
                limits,
                slots_max: world.bounds.slots_max,
                prepared_max: world.bounds.prepared_max,
                stop_grace: STOP_GRACE,
                keep_volumes: KEEP_VOLUMES,
                boot_file: data.join("boot"),
                boot_id: None,
            },
        });
        // As `run` begins: whom an earlier server may have told what to do is known before anybody acts.
        reconciler.adopt();
        Self {
            store,
            orchestrator,
            reconciler,
            gateway,
            calls: HashMap::new(),
            code: world.code.clone(),
        }
    }

    /// Waits for all actions under way; those that wait before they ask a remote again are helped
    /// by moving the clock.
    pub async fn settle(&mut self) {
        let settled = self.reconciler.settle();
        let moved = move_clock_for(&self.code);
        tokio::select! {
            biased;
            () = settled => {}
            () = moved => {}
        }
    }

    /// Looks until nothing changes any more; false when that takes too many looks.
    pub async fn comes_to_rest(&mut self, looks_max: usize) -> bool {
        for _ in 0..looks_max {
            let before = self.store.changes();
            self.reconciler.pass().await;
            self.settle().await;
            if self.store.changes() == before {
                return true;
            }
        }
        false
    }
}

/// Never ends: moves the clock whenever somebody was turned away by a remote.
pub async fn move_clock_for(code: &FakeCodebase) {
    loop {
        code.turned_away().await;
        tokio::time::advance(REMOTE_PAUSE).await;
    }
}
