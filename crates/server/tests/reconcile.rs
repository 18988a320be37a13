//! The reconciler over a real store, real git and the fake runtime, driven pass by pass.
//!
//! The agents' part is played by hand: what they would report is applied as their link would.

#[path = "reconcile/coordination.rs"]
mod coordination;
#[path = "reconcile/landing.rs"]
mod landing;
#[path = "reconcile/pauses.rs"]
mod pauses;
#[path = "reconcile/restarts.rs"]
mod restarts;
#[path = "reconcile/saving.rs"]
mod saving;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use baton::clock::{Clock, SystemClock};
use baton::conclude::Concluder;
use baton::config::Waits;
use baton::gateway::model::{ModelGateway, ModelSettings};
use baton::gateway::{Gateway, GatewayParts};
use baton::landing::Lander;
use baton::launch::Jobs;
use baton::open_waits::OpenWaits;
use baton::orchestrator::{
    Accepted, Admission, NewSession, Orchestrator, OrchestratorParts, RandomIds,
};
use baton::reconcile::{Reconciler, ReconcilerParts, ReconcilerSettings, RuntimeHealth};
use baton::repos::{RepoSettings, Repos};
use baton::runtime::fake::{FakeRuntime, Verb, unreachable};
use baton::runtime::{Runtime, RuntimeError, Volumes};
use baton::store::{EventBody, Store, StoreSettings};
use baton::transition::apply;
use baton_domain::coordination::CoordinationLimits;
use baton_domain::ending::{ClaudeResult, Ending, Usage};
use baton_domain::pauses::LAUNCHES_LOST_MAX;
use baton_domain::{Attempt, Kind, Project, SessionEvent, SessionId, SessionState, sandbox_id};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::sync::Notify;

/// More passes than any of these tests needs until nothing changes any more.
const PASSES_MAX: usize = 200;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

struct App {
    dir: TempDir,
    clock: Arc<HandClock>,
    store: Store,
    runtime: Arc<FakeRuntime>,
    health: Arc<RuntimeHealth>,
    orchestrator: Orchestrator,
    gateway: Gateway,
    reconciler: Reconciler,
    slots_max: usize,
    /// What names the boot of the machine that this server, and the next, runs on.
    boot_id: Option<&'static str>,
}

impl App {
    async fn new(slots_max: usize) -> Self {
        Self::on_boot(None, slots_max).await
    }

    async fn on_boot(boot_id: Option<&'static str>, slots_max: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        make_remote(&dir.path().join("remotes/o/r.git"));
        std::fs::write(dir.path().join("agent"), "#!/bin/sh\n").expect("an agent");
        let runtime = Arc::new(FakeRuntime::new());
        Self::over(dir, runtime, slots_max, boot_id).await
    }

    async fn over(
        dir: TempDir,
        runtime: Arc<FakeRuntime>,
        slots_max: usize,
        boot_id: Option<&'static str>,
    ) -> Self {
        let settings = StoreSettings {
            output_bytes_max: 64 << 20,
            database: None,
        };
        let store = Store::open(&dir.path().join("data"), settings)
            .await
            .expect("a store");
        let hand_clock = Arc::new(HandClock::default());
        let clock: Arc<dyn Clock> = Arc::clone(&hand_clock) as _;
        let wake = Arc::new(Notify::new());
        let health = Arc::new(RuntimeHealth::default());
        let repos = Repos::new(RepoSettings {
            root: dir.path().join("data/repos"),
            base_url: format!("file://{}", dir.path().join("remotes").display()),
            token: None,
        });
        let waits = Waits {
            first_byte_s: 9,
            silence_s: 9,
            result_grace_s: 9,
            term_grace_s: 9,
        };
        let limits = Arc::new(HashMap::new());
        let model = ModelSettings {
            base_url: "http://127.0.0.1:9".into(),
            credential: None,
        };
        let gateway = Gateway::new(GatewayParts {
            run_root: dir.path().join("data/run"),
            agent: dir.path().join("agent"),
            claude: None,
            store: store.clone(),
            repos: repos.clone(),
            model: ModelGateway::new(model).expect("a model gateway"),
            jobs: Jobs::new(
                store.clone(),
                repos.clone(),
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
            ids: Arc::new(RandomIds),
            wake: Arc::clone(&wake),
            admission: Arc::new(Open),
            slots_max,
            meter: Arc::new(|_, _| None),
            overlaps: Arc::new(|_| Vec::new()),
            waits: waits.clone(),
            coordination: CoordinationLimits::default(),
        });
        let reconciler = Reconciler::new(ReconcilerParts {
            store: store.clone(),
            runtime: Arc::clone(&runtime) as Arc<dyn Runtime>,
            gateway: gateway.clone(),
            concluder: Concluder::new(store.clone(), repos.clone(), Arc::clone(&clock)),
            lander: Lander::new(
                store.clone(),
                repos,
                Arc::clone(&clock),
                Arc::new(RandomIds),
            ),
            waits,
            clock,
            wake,
            health: Arc::clone(&health),
            settings: ReconcilerSettings {
                image: "image".into(),
                oci_runtime: None,
                limits,
                slots_max,
                prepared_max: 2,
                stop_grace: SignedDuration::from_secs(60),
                keep_volumes: SignedDuration::from_hours(1),
                boot_file: dir.path().join("data/boot"),
                boot_id: boot_id.map(str::to_owned),
            },
        });
        Self {
            dir,
            clock: hand_clock,
            store,
            runtime,
            health,
            orchestrator,
            gateway,
            reconciler,
            slots_max,
            boot_id,
        }
    }

    /// Another server on the same data and the same sandboxes.
    async fn restarted(self) -> Self {
        let Self {
            dir,
            clock,
            store,
            runtime,
            slots_max,
            boot_id,
            ..
        } = self;
        store.close().await;
        let app = Self::over(dir, runtime, slots_max, boot_id).await;
        app.clock.passed(clock.ahead());
        app
    }

    async fn create(&self, dependencies: &[SessionId]) -> SessionId {
        let new = new_session(dependencies);
        match self
            .orchestrator
            .create_session(new, None)
            .await
            .expect("accepted")
        {
            Accepted::Now(details) => details.session.id,
            Accepted::Before(_) => panic!("there was no key"),
        }
    }

    /// Passes until no state changes and no action is under way.
    async fn settle(&mut self) {
        for _ in 0..PASSES_MAX {
            let before = self.store.changes();
            self.reconciler.pass().await;
            self.reconciler.settle().await;
            if self.store.changes() == before {
                return;
            }
        }
        panic!("still not at rest after {PASSES_MAX} passes");
    }

    /// Settles again and again until `seen`: a runtime that went away is asked a moment later.
    async fn settle_until(&mut self, seen: impl Fn(&Self) -> bool) {
        for _ in 0..PASSES_MAX {
            self.settle().await;
            if seen(self) {
                return;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        panic!("not seen after {PASSES_MAX} looks");
    }

    async fn tell(&self, id: SessionId, event: SessionEvent) {
        apply(&self.store, self.clock.as_ref(), id, &event, None)
            .await
            .expect("a possible event");
    }

    async fn claude_starts(&self, id: SessionId) {
        self.tell(id, SessionEvent::ClaudeStarted(Attempt::FIRST))
            .await;
    }

    /// What an agent reports when Claude has ended, and its exit after the acknowledgement.
    async fn claude_ends(&self, id: SessionId, is_error: bool) {
        let result = ClaudeResult {
            subtype: "success".into(),
            is_error,
            text: "done".into(),
            usage: Usage::default(),
        };
        let ending = Ending {
            result: Some(result),
            ..Ending::default()
        };
        self.tell(
            id,
            SessionEvent::AgentEnded(Attempt::FIRST, Box::new(ending)),
        )
        .await;
        self.runtime.exits(id, 0, false);
    }

    async fn state(&self, id: SessionId) -> SessionState {
        self.store
            .session(id)
            .await
            .expect("a session")
            .state
            .clone()
    }

    async fn states(&self, ids: &[SessionId]) -> Vec<&'static str> {
        let mut names = Vec::new();
        for &id in ids {
            names.push(self.state(id).await.name());
        }
        names
    }

    async fn outcomes_recorded(&self, id: SessionId) -> usize {
        let events = self
            .store
            .events(id, 0, usize::MAX, usize::MAX)
            .await
            .expect("events");
        let is_outcome = |body: &EventBody| {
            matches!(
                body,
                EventBody::Session {
                    event: SessionEvent::Concluded(..),
                    ..
                }
            )
        };
        events
            .iter()
            .filter(|event| is_outcome(&event.body))
            .count()
    }
}

/// The machine's clock, put forward by hand.
#[derive(Default)]
struct HandClock {
    ahead_ms: AtomicI64,
}

impl HandClock {
    /// So much time has passed.
    fn passed(&self, time: SignedDuration) {
        let ms = i64::try_from(time.as_millis()).expect("not for ever");
        self.ahead_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn ahead(&self) -> SignedDuration {
        SignedDuration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + self.ahead()
    }
}

fn new_session(dependencies: &[SessionId]) -> NewSession {
    let project = Project {
        repository: "o/r".parse().expect("a repository"),
        branch: None,
        requirements: "look".into(),
        context: None,
    };
    NewSession {
        dependencies: dependencies.to_vec(),
        ..NewSession::new(Kind::Analysis, project)
    }
}

/// Lets everybody in.
struct Open;

impl Admission for Open {
    fn check(&self) -> Result<(), baton::orchestrator::Refusal> {
        Ok(())
    }
}

fn make_remote(path: &Path) {
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .args(arguments)
            .status()
            .expect("git runs");
        assert!(done.success(), "git {arguments:?}");
    };
    let path = path.to_str().expect("a path in UTF-8");
    git(&["init", "--quiet", "--bare", "--initial-branch=main", path]);
}

#[tokio::test]
async fn a_session_starts_when_its_dependency_has_completed() {
    let mut app = App::new(4).await;
    let first = app.create(&[]).await;
    let second = app.create(&[first]).await;
    app.settle().await;
    assert_eq!(app.runtime.launched(), [first]);
    app.claude_starts(first).await;
    app.settle().await;
    assert_eq!(app.states(&[first, second]).await, ["running", "queued"]);

    app.claude_ends(first, false).await;
    app.settle().await;
    assert_eq!(app.runtime.launched(), [first, second]);
    assert_eq!(
        app.states(&[first, second]).await,
        ["completed", "starting"]
    );
    assert_eq!(app.runtime.volumes_of(first), 1, "its conversation stays");
}

#[tokio::test]
async fn no_more_than_the_slots_run() {
    let mut app = App::new(2).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(app.create(&[]).await);
    }
    app.settle().await;
    assert_eq!(app.runtime.launched(), ids[..2]);
    for next in 2..5 {
        app.claude_ends(ids[next - 2], false).await;
        app.settle().await;
        assert_eq!(app.runtime.launched(), ids[..=next]);
        assert!(app.runtime.running().len() <= 2);
    }
}

#[tokio::test]
async fn a_failure_blocks_everything_downstream_at_once() {
    let mut app = App::new(4).await;
    let first = app.create(&[]).await;
    let mut chain = vec![first];
    for _ in 0..300 {
        chain.push(app.create(&[*chain.last().expect("one")]).await);
    }
    app.settle().await;
    app.claude_ends(first, true).await;
    app.settle().await;
    assert_eq!(
        app.states(&chain[..3]).await,
        ["failed", "blocked", "blocked"]
    );
    let last = app.state(chain[300]).await;
    assert_eq!(
        last,
        SessionState::Blocked {
            dependency: chain[299],
            asked: true
        }
    );
    // Lost work is kept for a person to look at.
    assert_eq!(app.runtime.volumes_of(first), 2);
}

#[tokio::test]
async fn a_restart_adopts_what_runs_and_finishes_what_was_begun() {
    let mut app = App::new(4).await;
    let running = app.create(&[]).await;
    let ended = app.create(&[]).await;
    let dependent = app.create(&[ended]).await;
    app.settle().await;
    app.claude_starts(running).await;
    app.claude_ends(ended, false).await;

    let mut app = app.restarted().await;
    app.settle().await;
    assert_eq!(
        app.states(&[running, ended]).await,
        ["running", "completed"]
    );
    assert_eq!(app.runtime.launched(), [ended, running, dependent]);
    assert_eq!(app.outcomes_recorded(ended).await, 1);
}

#[tokio::test]
async fn volumes_left_by_a_crash_go_with_the_next_start() {
    let mut app = App::new(4).await;
    // Of now, so that they are not removed for their age.
    app.runtime.set_now(Timestamp::now());
    let session = app.create(&[]).await;
    app.settle().await;
    app.claude_ends(session, false).await;
    // What a server leaves that dies between the two removals.
    let sandbox = sandbox_id(Kind::Analysis, session, Attempt::FIRST);
    app.runtime
        .remove(&sandbox, Volumes::Keep)
        .await
        .expect("it is there");
    assert_eq!(app.runtime.volumes_of(session), 2);

    let mut app = app.restarted().await;
    app.settle().await;
    let mut app = app.restarted().await;
    app.settle().await;
    assert_eq!(app.states(&[session]).await, ["completed"]);
    assert_eq!(app.runtime.volumes_of(session), 1);
}

#[tokio::test]
async fn a_launch_whose_answer_was_lost_is_not_made_twice() {
    let mut app = App::new(4).await;
    app.settle().await;
    app.runtime.lose_reply_of_next(Verb::Launch, unreachable());
    let session = app.create(&[]).await;
    app.settle().await;
    let mut app = app.restarted().await;
    app.settle().await;
    assert_eq!(app.runtime.launched(), [session]);
    app.claude_starts(session).await;
    app.claude_ends(session, false).await;
    app.settle().await;
    assert_eq!(app.states(&[session]).await, ["completed"]);
}

#[tokio::test]
async fn a_runtime_that_is_away_fails_nothing() {
    let mut app = App::new(4).await;
    let session = app.create(&[]).await;
    app.settle().await;
    app.claude_starts(session).await;
    app.runtime.goes_away();
    app.settle_until(|app| app.health.check().is_err()).await;
    assert_eq!(app.states(&[session]).await, ["running"]);

    app.runtime.comes_back();
    let mut app = app.restarted().await;
    app.settle().await;
    assert!(app.health.check().is_ok());
    assert_eq!(app.states(&[session]).await, ["running"]);
}

#[tokio::test]
async fn a_container_that_somebody_removed_fails_its_session() {
    let mut app = App::new(4).await;
    let session = app.create(&[]).await;
    app.settle().await;
    app.claude_starts(session).await;
    app.runtime.vanishes(session);
    app.settle().await;
    assert_eq!(app.states(&[session]).await, ["failed"]);
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_fails_its_session_with_the_reason() {
    let mut app = App::new(4).await;
    app.settle().await;
    let refused = || RuntimeError::Refused {
        step: "start",
        id: "x".into(),
        message: "no such runtime: runsc".into(),
    };
    let session = app.create(&[]).await;
    for tries in 0..=LAUNCHES_LOST_MAX {
        assert_eq!(app.states(&[session]).await, ["queued"], "{tries} tries");
        app.runtime.fail_next(Verb::Launch, refused());
        app.clock.passed(SignedDuration::from_secs(16));
        app.settle().await;
    }
    let state = app.state(session).await;
    let SessionState::Finished { outcome, .. } = &state else {
        panic!("{state:?}")
    };
    assert!(
        format!("{outcome:?}").contains("no such runtime: runsc"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn looking_twice_without_news_changes_nothing() {
    let mut app = App::new(1).await;
    let running = app.create(&[]).await;
    app.create(&[running]).await;
    app.create(&[]).await;
    app.settle().await;
    app.claude_starts(running).await;
    app.settle().await;
    let (changes, launched) = (app.store.changes(), app.runtime.launched());
    for _ in 0..3 {
        app.settle().await;
    }
    assert_eq!(
        (app.store.changes(), app.runtime.launched()),
        (changes, launched)
    );
}
