//! What outlives a server: sandboxes with the agents in them, code, the time, the disk.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use baton::clock::Clock;
use baton::failpoint;
use baton::orchestrator::Ids;
use baton::repos::fake::FakeCodebase;
use baton::repos::{
    Base, BaseRequest, Codebase, DependencyCommit, Landed, RepoError, Started, Unresolved,
    WorkResult,
};
use baton::runtime::{FakeRuntime, Runtime, RuntimeError, SandboxSpec, Volumes};
use baton::store::Store;
use baton_domain::session::Standing;
use baton_domain::{
    Attempt, Branch, ClaudeSessionId, OrchestrationId, Repository, Sandbox, SandboxId,
    SandboxState, Session, SessionId,
};
use futures::stream::BoxStream;
use jiff::Timestamp;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::draw::Draw;
use crate::graph::Bounds;
use crate::life::Death;

/// Where the disk is memory, so that ten thousand graphs do not wait for one.
const MEMORY_DISK: &str = "/dev/shm";

pub type Run = (SessionId, Attempt);

pub struct World {
    pub dir: TempDir,
    pub clock: Arc<HandClock>,
    pub runtime: Arc<FakeRuntime>,
    pub code: FakeCodebase,
    pub ids: Arc<DrawnIds>,
    pub bounds: Bounds,
    pub agents: Agents,
    pub witness: Arc<Witness>,
}

/// The agents of all attempts that ever ran.
pub type Agents = Arc<Mutex<BTreeMap<Run, Agent>>>;

impl World {
    pub fn new(seed: u64, bounds: Bounds) -> Self {
        let memory = Path::new(MEMORY_DISK);
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.expect("a directory");
        std::fs::write(dir.path().join("agent"), "#!/bin/sh\n").expect("an agent");
        let runtime = Arc::new(FakeRuntime::new());
        let clock = Arc::new(HandClock(AtomicI64::new(1_700_000_000_000)));
        runtime.set_now(clock.now());
        let agents = Agents::default();
        Self {
            dir,
            runtime,
            clock,
            code: FakeCodebase::default(),
            ids: Arc::new(DrawnIds(Mutex::new(Draw::new(!seed >> 1)))),
            bounds,
            witness: Arc::new(Witness {
                agents: Arc::clone(&agents),
                told: Mutex::default(),
            }),
            agents,
        }
    }

    pub fn agents(&self) -> MutexGuard<'_, BTreeMap<Run, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the time of day; the other time is moved where the server runs.
    pub fn time_passes(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
        self.runtime.set_now(self.clock.now());
    }
}

/// The time of day, moved by hand.
pub struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::Relaxed)).expect("a time")
    }
}

/// Names that are the same for the same seed.
pub struct DrawnIds(Mutex<Draw>);

impl DrawnIds {
    fn next(&self) -> uuid::Uuid {
        let mut draw = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        draw.uuid()
    }
}

impl Ids for DrawnIds {
    fn session(&self) -> SessionId {
        SessionId(self.next())
    }

    fn orchestration(&self) -> OrchestrationId {
        OrchestrationId(self.next())
    }

    fn claude_session(&self) -> ClaudeSessionId {
        ClaudeSessionId(self.next())
    }
}

/// Sees each launch at the moment it happens, and remembers what should not have been.
pub struct Witness {
    agents: Agents,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    wrong: Vec<String>,
    /// Sessions that had completed and were told to go on.
    reopened: BTreeSet<SessionId>,
    prepares: u64,
    launches: u64,
    removals: u64,
    /// Sessions that coordination sessions made.
    children: BTreeSet<SessionId>,
    /// How often such a session waited, and how often a wait died with its server.
    waits: [u64; 2],
}

impl Witness {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn reopened(&self, session: SessionId) {
        self.told().reopened.insert(session);
    }

    pub fn objects(&self, what: String) {
        self.told().wrong.push(what);
    }

    /// What was wrong so far.
    pub fn wrong(&self) -> Vec<String> {
        self.told().wrong.clone()
    }

    /// How often the runtime was asked to change anything.
    pub fn deeds(&self) -> (u64, u64, u64) {
        let told = self.told();
        (told.prepares, told.launches, told.removals)
    }

    pub fn sees_child(&self, session: SessionId) {
        self.told().children.insert(session);
    }

    /// Sessions that coordination sessions made, of which the story does not know yet.
    pub fn new_children(&self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.told().children)
    }

    pub fn sees_wait(&self) {
        self.told().waits[0] += 1;
    }

    pub fn sees_broken_wait(&self) {
        self.told().waits[1] += 1;
    }

    /// How often coordination sessions waited, and how often a wait died with its server.
    pub fn waits(&self) -> [u64; 2] {
        self.told().waits
    }

    /// Whether Claude works in a sandbox or may yet be started in it.
    fn is_occupied(&self, store: &Store, sandbox: &Sandbox) -> bool {
        let run = (sandbox.session, sandbox.attempt);
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let agent = agents.get(&run);
        let session = store.cached_session(sandbox.session);
        let may_start = session.is_some_and(|one| one.state.live_attempt() == Some(run.1));
        sandbox.state == SandboxState::Running
            && match agent {
                Some(agent) if agent.has_ended() || agent.stands_still() => false,
                Some(agent) if agent.has_job() => true,
                _ => may_start,
            }
    }

    /// What is on a volume that is gone is forgotten.
    fn sees_volumes(&self, runtime: &FakeRuntime) {
        let there: BTreeSet<Run> = runtime.volumes().into_iter().collect();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = agents.iter_mut().filter(|(run, _)| !there.contains(*run));
        gone.for_each(|(_, agent)| agent.forgets());
    }

    /// A Claude that stood still works again.
    pub fn goes_on(&self, run: Run, runtime: &FakeRuntime, store: &Store, bounds: &Bounds) {
        match store.cached_session(run.0) {
            Some(session) => self.count(&session, runtime, store, bounds),
            None => self.objects(format!("session {} goes on when it is over", run.0)),
        }
    }

    /// Looks whether more work at once than may, now that `session` does.
    fn count(&self, session: &Arc<Session>, runtime: &FakeRuntime, store: &Store, bounds: &Bounds) {
        let sandboxes = runtime.sandboxes();
        let occupied: Vec<_> = sandboxes
            .iter()
            .filter(|sandbox| self.is_occupied(store, sandbox))
            .filter_map(|sandbox| Some((sandbox, store.cached_session(sandbox.session)?)))
            .collect();
        let count = |most: usize, what: &str, of: &dyn Fn(&Session) -> bool| {
            let running = occupied.iter().filter(|(_, one)| of(one));
            let running: Vec<_> = running
                .map(|(sandbox, one)| format!("{} in a {} session's", sandbox.id, one.state.name()))
                .collect();
            if running.len() > most {
                let count = running.len();
                self.objects(format!(
                    "{count} run at once, {most} may: {what}: {running:?}"
                ));
            }
        };
        count(bounds.slots_max, "in all", &|_| true);
        if let Some(most) = bounds
            .kinds
            .get(&session.kind)
            .and_then(|of| of.max_running)
        {
            count(most, session.kind.name(), &|one| one.kind == session.kind);
        }
        let bounds = store.bounds(std::slice::from_ref(session), |_, _| 0.0);
        for (id, bounds) in bounds {
            let most = bounds.parallel_max.map_or(usize::MAX, |most| most as usize);
            count(most, "of an orchestration", &|one| {
                one.orchestration_id == Some(id)
            });
        }
    }

    fn launched(&self, run: Run, runtime: &FakeRuntime, store: &Store, bounds: &Bounds) {
        let Some(session) = store.cached_session(run.0) else {
            return self.objects(format!("session {} was launched when it was over", run.0));
        };
        if session.attempt != run.1 {
            self.objects(format!("an older attempt was launched: {run:?}"));
        }
        self.count(&session, runtime, store, bounds);
        for dependency in &session.dependencies {
            let has_completed = store.standing(*dependency) == Some(Standing::Completed)
                || self.told().reopened.contains(dependency);
            if !has_completed {
                self.objects(format!(
                    "session {} was launched before {dependency} had completed",
                    run.0
                ));
            }
        }
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.entry(run).or_default().boots();
    }
}

/// The runtime and the code as one server sees them: once it is dead it cannot do anything more,
/// and before and after each deed it may die.
#[derive(Clone)]
pub struct Mortal {
    pub death: Arc<Death>,
    pub runtime: Arc<FakeRuntime>,
    pub code: FakeCodebase,
    pub witness: Arc<Witness>,
    pub store: Store,
    pub bounds: Bounds,
}

impl Mortal {
    async fn does<T>(&self, point: &'static str, deed: impl Future<Output = T>) -> T {
        failpoint::reach(point);
        if self.death.has_come() {
            return std::future::pending().await;
        }
        let done = deed.await;
        failpoint::reach(point);
        done
    }
}

#[async_trait]
impl Runtime for Mortal {
    async fn prepare(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        self.witness.told().prepares += 1;
        self.does("preparing", self.runtime.prepare(spec)).await
    }

    async fn launch(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        self.witness.told().launches += 1;
        self.does("launching", async {
            let before = self.runtime.launches().len();
            let launched = self.runtime.launch(spec).await;
            if self.runtime.launches().len() > before {
                let run = (spec.session, spec.attempt);
                self.witness
                    .launched(run, &self.runtime, &self.store, &self.bounds);
            }
            launched
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        self.runtime.list().await
    }

    async fn watch(&self) -> Result<BoxStream<'static, Sandbox>, RuntimeError> {
        self.runtime.watch().await
    }

    async fn remove(&self, id: &SandboxId, volumes: Volumes) -> Result<(), RuntimeError> {
        self.witness.told().removals += 1;
        self.does("removing", async {
            let removed = self.runtime.remove(id, volumes).await;
            self.witness.sees_volumes(&self.runtime);
            removed
        })
        .await
    }

    async fn remove_kept_volumes(
        &self,
        before: Timestamp,
        needed: &HashSet<SessionId>,
    ) -> Result<usize, RuntimeError> {
        let removed = self.runtime.remove_kept_volumes(before, needed).await;
        self.witness.sees_volumes(&self.runtime);
        removed
    }

    async fn check_image(&self, image: &str) -> Result<(), RuntimeError> {
        self.runtime.check_image(image).await
    }
}

#[async_trait]
impl Codebase for Mortal {
    async fn prepare_base(&self, request: BaseRequest<'_>) -> Result<Base, RepoError> {
        self.does("deciding_base", self.code.prepare_base(request))
            .await
    }

    async fn base_at(&self, request: BaseRequest<'_>, commit: &str) -> Result<Base, RepoError> {
        self.code.base_at(request, commit).await
    }

    async fn resumed_base(
        &self,
        request: BaseRequest<'_>,
        earlier: Attempt,
    ) -> Result<Base, RepoError> {
        let base = self.code.resumed_base(request, earlier);
        self.does("deciding_base", base).await
    }

    async fn base_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<String, RepoError> {
        self.code.base_of(repository, session, attempt).await
    }

    fn unjoined_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Vec<DependencyCommit>, RepoError> {
        self.code.unjoined_of(repository, session, attempt)
    }

    async fn result_since(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        first: &str,
    ) -> Result<WorkResult, RepoError> {
        let result = self
            .code
            .result_since(repository, session, attempt, base, first);
        result.await
    }

    async fn unresolved(
        &self,
        started: Started<'_>,
        commit: &str,
        unmerged: &[String],
    ) -> Result<Option<Unresolved>, RepoError> {
        self.code.unresolved(started, commit, unmerged).await
    }

    async fn land(
        &self,
        repository: &Repository,
        commit: &str,
        base: &str,
        target: &Branch,
        message: &str,
    ) -> Result<Landed, RepoError> {
        let landed = self.code.land(repository, commit, base, target, message);
        self.does("landing", landed).await
    }
}
