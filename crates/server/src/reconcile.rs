//! The loop that makes what is recorded come true: observe, record, plan, execute.
//!
//! It takes no input. Whoever changes a session wakes it; it also looks by itself every
//! [`TICK`]. Losing every wake-up costs one tick and never correctness, since all it knows it
//! reads: sessions from the store, sandboxes from the runtime. A decision is recorded before it is
//! acted on, and every action may be repeated, so that the process may die between any two steps.

mod actions;
mod backoff;
mod health;
mod landings;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use baton_domain::coordination::is_abandoned;
use baton_domain::dependencies;
use baton_domain::observe::{Sandboxes, Snapshot, losses};
use baton_domain::pauses::{next_change, resumptions};
use baton_domain::plan::{Action, Limits, plan};
use baton_domain::sandbox::{Sandbox, SandboxState, sandbox_id};
use baton_domain::schedule::Durations;
use baton_domain::session::{SessionState, Standing};
use baton_domain::{Attempt, Kind, Session, SessionEvent, SessionId};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use health::RuntimeHealth;

use self::actions::{ActionDone, Actions};
use self::backoff::{Backoff, Deed};
use self::landings::Landings;
use crate::blocked;
use crate::clock::Clock;
use crate::conclude::Concluder;
use crate::config::KindLimits;
use crate::gateway::Gateway;
use crate::landing::Lander;
use crate::open_waits::OpenWaits;
use crate::runtime::{Runtime, RuntimeError};
use crate::store::Store;
use crate::transition::apply;

/// How long a lost wake-up may go unnoticed, and how often the sandboxes are listed.
const TICK: Duration = Duration::from_secs(30);
/// How often a runtime that doesn't answer is asked again, at most.
const RUNTIME_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often one that has just gone away is asked again.
const RUNTIME_PAUSE_MIN: Duration = Duration::from_millis(250);
/// How often volumes that were kept are looked through for old ones.
const VOLUMES_LOOK: Duration = Duration::from_secs(60 * 60);
/// How long a list of the sandboxes may take before the runtime counts as out of reach.
const LIST_WAIT: Duration = Duration::from_secs(15);
/// How many events are recorded at once; the store commits them together.
const RECORDED_AT_ONCE: usize = 64;

/// What the loop works with.
pub struct ReconcilerParts {
    /// Sessions.
    pub store: Store,
    /// Sandboxes.
    pub runtime: Arc<dyn Runtime>,
    /// Sockets.
    pub gateway: Gateway,
    /// Ends of sessions.
    pub concluder: Concluder,
    /// Ends of orchestrations.
    pub lander: Lander,
    /// Whose Claudes wait for other sessions.
    pub waits: OpenWaits,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Wakes the loop.
    pub wake: Arc<Notify>,
    /// What is known of the runtime, for those who accept work.
    pub health: Arc<RuntimeHealth>,
    /// Bounds and names.
    pub settings: ReconcilerSettings,
}

/// Bounds and names.
#[derive(Debug, Clone)]
pub struct ReconcilerSettings {
    /// The image sessions run in.
    pub image: String,
    /// The OCI runtime; the daemon's default when absent.
    pub oci_runtime: Option<String>,
    /// Limits by kind.
    pub limits: Arc<HashMap<Kind, KindLimits>>,
    /// Sessions that may run at once.
    pub slots_max: usize,
    /// Sandboxes that may stand ready.
    pub prepared_max: usize,
    /// How long a session that was told to stop may take to save its work.
    pub stop_grace: SignedDuration,
    /// How long volumes of failed sessions are kept.
    pub keep_volumes: SignedDuration,
    /// Where the machine's boot is remembered, to tell a restart of it.
    pub boot_file: PathBuf,
    /// What names this boot of the machine; none where that cannot be told.
    pub boot_id: Option<String>,
}

/// The loop.
pub struct Reconciler {
    parts: Arc<ReconcilerParts>,
    actions: Actions,
    running: JoinSet<ActionDone>,
    /// Whose action each of those is, to let it go even if it ends abnormally.
    acting: HashMap<tokio::task::Id, (SessionId, Deed)>,
    busy: HashSet<SessionId>,
    backoff: Backoff<(SessionId, Deed)>,
    landings: Landings,
    seen: HashMap<(SessionId, Attempt), Sandbox>,
    sightings: Option<BoxStream<'static, Sandbox>>,
    interrupted_at: Option<Timestamp>,
    host_rebooted: bool,
    watching_since: Timestamp,
    listed_at: Option<Instant>,
    /// Whether sessions may be blocked by what is not lost any more.
    blocked_unseen: bool,
    volumes_looked_at: Option<Instant>,
    runtime_tries: u32,
    kinds_max: Vec<(Kind, usize)>,
    durations: Durations,
}

impl Reconciler {
    /// A loop that has not seen anything yet.
    #[must_use]
    pub fn new(parts: ReconcilerParts) -> Self {
        let parts = Arc::new(parts);
        Self {
            actions: Actions::new(Arc::clone(&parts)),
            landings: Landings::new(parts.lander.clone()),
            host_rebooted: host_rebooted(&parts.settings),
            watching_since: parts.clock.now(),
            kinds_max: kinds_max(&parts.settings.limits),
            parts,
            running: JoinSet::new(),
            acting: HashMap::new(),
            busy: HashSet::new(),
            backoff: Backoff::default(),
            seen: HashMap::new(),
            sightings: None,
            interrupted_at: None,
            listed_at: None,
            blocked_unseen: true,
            volumes_looked_at: None,
            runtime_tries: 0,
            durations: Durations::default(),
        }
    }

    /// Opens the sockets of all live sessions, so that their agents find the server again.
    pub fn adopt(&self) {
        for session in self.parts.store.active() {
            // A launch under way opens its socket itself, and knows more about it.
            if session.state.live_attempt().is_some()
                && !self.busy.contains(&session.id)
                && let Err(error) = self.parts.gateway.adopt(&session)
            {
                tracing::error!(session = %session.id, %error, "a session's socket was not opened");
            }
        }
    }

    /// Runs until told to stop. Sandboxes are left as they are.
    pub async fn run(mut self, stop: CancellationToken) {
        self.adopt();
        match self.parts.store.durations().await {
            Ok(past) => self.durations = past.into_iter().collect(),
            Err(error) => tracing::warn!(%error, "how long sessions take is learnt anew"),
        }
        loop {
            // A look at a runtime that hangs must not hold up the stop.
            tokio::select! {
                () = self.pass() => {}
                () = stop.cancelled() => break,
            }
            let next_look = self.next_look();
            tokio::select! {
                () = self.parts.wake.notified() => {}
                Some(done) = self.running.join_next_with_id() => self.note_done(done),
                () = self.landings.done() => {}
                sighting = next_sighting(&mut self.sightings) => self.note_sighting(sighting),
                () = tokio::time::sleep_until(next_look) => {}
                () = stop.cancelled() => break,
            }
        }
        // What is under way is safe to cut: each action is repeated by the next server.
        self.running.shutdown().await;
        self.landings.shutdown().await;
    }

    /// One look at everything. Actions it starts go on after it returns.
    pub async fn pass(&mut self) {
        while let Some(done) = self.running.try_join_next_with_id() {
            self.note_done(done);
        }
        self.note_sightings_so_far();
        let complete = self.look_at_runtime().await;
        let snapshot = self.snapshot(complete);
        let snapshot = match self.record(&snapshot).await {
            true => self.snapshot(false),
            false => snapshot,
        };
        self.talk_to_sessions(&snapshot);
        let limits = Limits {
            slots_max: self.parts.settings.slots_max,
            kinds_max: &self.kinds_max,
            durations: &self.durations,
            prepared_max: self.parts.settings.prepared_max,
            stop_grace: self.parts.settings.stop_grace,
        };
        let store = &self.parts.store;
        let actions = plan(&snapshot, |id| store.standing(id), &limits);
        for action in actions {
            self.execute(action);
        }
        self.landings.look(&self.parts.store, &snapshot.sessions);
    }

    /// Waits until every action that is under way has ended; for tests that drive passes by hand.
    pub async fn settle(&mut self) {
        while let Some(done) = self.running.join_next_with_id().await {
            self.note_done(done);
        }
        self.landings.settle().await;
    }

    fn snapshot(&self, complete: bool) -> Snapshot {
        let sessions = self.parts.store.active();
        let gateway = &self.parts.gateway;
        let starting = sessions
            .iter()
            .filter(|session| matches!(session.state, SessionState::Starting { .. }))
            .map(|session| (session.id, session.attempt));
        let untold = starting
            .clone()
            .filter(|&(session, attempt)| gateway.is_untold(session, attempt));
        let unheard = starting.filter_map(|(session, attempt)| {
            let since = gateway.unheard(session, attempt)?;
            Some(((session, attempt), since))
        });
        let attempts = sessions
            .iter()
            .filter_map(|session| Some((session.id, session.state.live_attempt()?)));
        let absent = attempts.filter_map(|(session, attempt)| {
            let since = gateway.absent_since(session, attempt)?;
            Some(((session, attempt), since))
        });
        Snapshot {
            sandboxes: Sandboxes {
                seen: self.seen.clone(),
                complete,
                interrupted_at: self.interrupted_at,
                host_rebooted: self.host_rebooted,
                untold: untold.collect(),
                unheard: unheard.collect(),
                absent: absent.collect(),
            },
            orchestrations: self.parts.gateway.bounds(&sessions),
            sessions,
            busy: self.busy.clone(),
            waits: self.parts.waits.sessions(),
            now: self.parts.clock.now(),
            watching_since: self.watching_since,
        }
    }

    // --- observe ----------------------------------------------------------------------------------

    /// Lists the sandboxes when it is time to; true when a complete list was made.
    async fn look_at_runtime(&mut self) -> bool {
        let now = Instant::now();
        if self
            .listed_at
            .is_some_and(|at| now < at + self.look_interval())
        {
            return false;
        }
        self.listed_at = Some(now);
        let listed = match tokio::time::timeout(LIST_WAIT, self.list()).await {
            Ok(Ok(sandboxes)) => Ok(sandboxes),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LIST_WAIT.as_secs())),
        };
        match listed {
            Ok(sandboxes) => {
                self.runtime_tries = 0;
                let busy = &self.busy;
                // What an action under way knows is newer than the list.
                self.seen.retain(|(session, _), _| busy.contains(session));
                for sandbox in sandboxes {
                    let key = (sandbox.session, sandbox.attempt);
                    if !self.busy.contains(&sandbox.session) {
                        self.seen.insert(key, sandbox);
                    }
                }
                self.adopt();
                self.look_at_run_dirs().await;
                self.parts.health.reachable(&self.parts).await;
                self.look_at_volumes().await;
                let (store, seen) = (&self.parts.store, &self.seen);
                self.backoff.retain(|(session, _)| {
                    store.standing(session) == Some(Standing::Open)
                        || seen.keys().any(|(seen, _)| *seen == session)
                });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the container runtime does not answer");
                self.interrupted_at = Some(self.parts.clock.now());
                self.sightings = None;
                self.runtime_tries += 1;
                self.parts.health.unreachable();
                false
            }
        }
    }

    /// Watches first and lists then, so that nothing happens unseen between the two.
    async fn list(&mut self) -> Result<Vec<Sandbox>, RuntimeError> {
        if self.sightings.is_none() {
            self.sightings = Some(self.parts.runtime.watch().await?);
        }
        self.parts.runtime.list().await
    }

    fn look_interval(&self) -> Duration {
        if self.runtime_tries == 0 {
            return TICK;
        }
        let doubled = RUNTIME_PAUSE_MIN * 2u32.saturating_pow(self.runtime_tries.min(16) - 1);
        doubled.min(RUNTIME_PAUSE_MAX)
    }

    fn next_look(&self) -> Instant {
        let listing = self
            .listed_at
            .map_or_else(Instant::now, |at| at + self.look_interval());
        let now = self.parts.clock.now();
        let change = next_change(&self.parts.store.active(), now)
            .and_then(|at| Duration::try_from(at.duration_since(now)).ok())
            .map(|wait| Instant::now() + wait.min(TICK));
        let times = [self.backoff.next(), self.landings.next(), change];
        times.into_iter().flatten().fold(listing, Instant::min)
    }

    /// A removal that was cut short may have left volumes and a directory, and no sandbox that
    /// could be listed. The directory goes last: while it is there, the removal is asked for again.
    async fn look_at_run_dirs(&mut self) {
        let attempts = match self.parts.gateway.run_dirs() {
            Ok(attempts) => attempts,
            Err(error) => {
                tracing::warn!(%error, "directories of sandboxes were not looked through");
                return;
            }
        };
        for (session, attempt) in attempts {
            if self.busy.contains(&session) || self.seen.contains_key(&(session, attempt)) {
                continue;
            }
            let Ok(session) = self.parts.store.session(session).await else {
                continue;
            };
            if session.attempt == attempt && !session.state.is_over() {
                continue;
            }
            let now = self.parts.clock.now();
            let sandbox = Sandbox {
                id: sandbox_id(session.kind, session.id, attempt),
                session: session.id,
                attempt,
                state: SandboxState::Exited {
                    code: 0,
                    oom_killed: false,
                    finished_at: now,
                },
                created_at: now,
            };
            self.seen.insert((session.id, attempt), sandbox);
        }
    }

    async fn look_at_volumes(&mut self) {
        let now = Instant::now();
        if self
            .volumes_looked_at
            .is_some_and(|at| now < at + VOLUMES_LOOK)
        {
            return;
        }
        self.volumes_looked_at = Some(now);
        let before = self.parts.clock.now() - self.parts.settings.keep_volumes;
        // A session that is not over may need what its earlier attempts left, however old that is.
        let open = self.parts.store.active();
        let open = open.iter().map(|session| session.id).collect();
        match self.parts.runtime.remove_kept_volumes(before, &open).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed volumes that were kept long enough"),
            Err(error) => tracing::warn!(%error, "old volumes were not removed"),
        }
    }

    /// Takes in what has been seen already, without waiting for more.
    fn note_sightings_so_far(&mut self) {
        while let Some(stream) = &mut self.sightings {
            match stream.next().now_or_never() {
                Some(sighting) => self.note_sighting(sighting),
                None => return,
            }
        }
    }

    fn note_sighting(&mut self, sighting: Option<Sandbox>) {
        match sighting {
            Some(sandbox) => {
                self.seen
                    .insert((sandbox.session, sandbox.attempt), sandbox);
            }
            None => {
                // The stream has ended: the runtime went away, or we fell behind. List again.
                // Not at once: a stream may be refused each time it is asked for.
                self.sightings = None;
                self.listed_at = Instant::now().checked_sub(TICK - RUNTIME_PAUSE_MIN);
                self.interrupted_at = Some(self.parts.clock.now());
            }
        }
    }

    /// Called when the losses that a reboot brought are recorded: from then on this boot is the one
    /// to compare with.
    fn remember_boot(&self) {
        let settings = &self.parts.settings;
        if let Some(boot_id) = &settings.boot_id
            && let Err(error) = std::fs::write(&settings.boot_file, boot_id)
        {
            tracing::warn!(%error, "this boot of the machine could not be remembered");
        }
    }

    // --- record -----------------------------------------------------------------------------------

    /// Records what the snapshot shows to have happened; true when there was something.
    async fn record(&mut self, snapshot: &Snapshot) -> bool {
        let lost = losses(snapshot);
        let mut any_news = !lost.is_empty();
        for (session, event) in lost {
            if let SessionEvent::LaunchLost(attempt) | SessionEvent::LaunchFailed(attempt, _) =
                event
            {
                // An agent that was given the job in the meantime is lost in the next pass.
                if !self.parts.gateway.withhold(session.id, attempt) {
                    continue;
                }
            }
            tracing::warn!(session = %session.id, event = ?event, "a sandbox is lost");
            record(&self.parts, session.id, event).await;
        }
        let resumed = resumptions(&snapshot.sessions, &snapshot.orchestrations, snapshot.now);
        for (session, event) in resumed {
            record(&self.parts, session.id, event).await;
            any_news = true;
        }
        if snapshot.sandboxes.complete {
            self.host_rebooted = false;
            self.remember_boot();
        }
        let active = if any_news {
            self.parts.store.active()
        } else {
            snapshot.sessions.clone()
        };
        let waiting = active
            .iter()
            .filter(|session| matches!(session.state, SessionState::Created | SessionState::Queued))
            .filter(|session| !session.dependencies.is_empty())
            .map(|session| (session.id, session.dependencies.as_slice()));
        let store = &self.parts.store;
        let blocked = dependencies::lost(waiting, |id| store.standing(id));
        let blocked: Vec<_> = blocked
            .into_iter()
            .map(|(session, dependency)| (session, SessionEvent::DependencyLost(dependency)))
            .collect();
        // Whoever made them never will start them, and the others would not land for them.
        let abandoned: Vec<_> = active
            .iter()
            .filter(|session| is_abandoned(session, |id| store.standing(id)))
            .map(|session| (session.id, SessionEvent::CancelRequested))
            .collect();
        let any_blocked = !blocked.is_empty() || !abandoned.is_empty();
        // A session comes after the one that is in its way, so these are recorded in their order.
        for events in [blocked, abandoned] {
            let mut events = events.into_iter().peekable();
            while events.peek().is_some() {
                let some = events.by_ref().take(RECORDED_AT_ONCE);
                let recorded = some.map(|(session, event)| record(&self.parts, session, event));
                futures::future::join_all(recorded).await;
            }
        }
        let any_freed = (any_blocked || self.blocked_unseen) && self.review_blocked().await;
        any_news || any_blocked || any_freed
    }

    /// What is in the way of a session may be retried while that it is blocked is recorded, also by
    /// a server that died before it looked again.
    async fn review_blocked(&mut self) -> bool {
        let reviewed = blocked::review(&self.parts.store, self.parts.clock.as_ref()).await;
        self.blocked_unseen = reviewed.is_err();
        reviewed.unwrap_or_else(|error| {
            tracing::warn!(%error, "what blocks sessions was not looked at again");
            false
        })
    }

    // --- execute ----------------------------------------------------------------------------------

    /// Stops those that are to stop, and has those told something for whom messages wait.
    fn talk_to_sessions(&self, snapshot: &Snapshot) {
        for session in &snapshot.sessions {
            match session.state {
                SessionState::Stopping { attempt, .. } => {
                    self.parts.gateway.stop(session.id, attempt);
                }
                SessionState::Starting { attempt, .. }
                | SessionState::Running { attempt, .. }
                | SessionState::Awaiting { attempt, .. }
                    if !session.steering.messages.is_empty() =>
                {
                    self.parts.gateway.say(session.id, attempt);
                }
                _ => {}
            }
        }
    }

    fn execute(&mut self, action: Action) {
        let (session, deed) = (action.session(), Deed::of(&action));
        if self.backoff.holds((session, deed)) || !self.busy.insert(session) {
            return;
        }
        if matches!(deed, Deed::Prepare | Deed::Launch) {
            // Said of an earlier container: this action makes one, or finds it.
            self.seen
                .retain(|(id, _), one| *id != session || one.state != SandboxState::Removed);
        }
        let tries = self.backoff.tries((session, deed));
        let actions = self.actions.clone();
        let handle = self
            .running
            .spawn(async move { actions.execute(action, tries).await });
        self.acting.insert(handle.id(), (session, deed));
    }

    fn note_done(&mut self, done: Result<(tokio::task::Id, ActionDone), tokio::task::JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some((session, deed)) = self.acting.remove(&id) else {
            return;
        };
        self.busy.remove(&session);
        let done = match done {
            Ok((_, done)) => done,
            Err(error) => {
                tracing::error!(%session, %error, "an action ended abnormally");
                self.backoff.failed((session, deed));
                return;
            }
        };
        if done.retry {
            self.backoff.failed((session, deed));
        } else {
            self.backoff.succeeded((session, deed));
        }
        if let Some((kind, seconds)) = done.took {
            self.durations.observe(kind, seconds);
        }
        if done.look_again {
            self.listed_at = None;
        }
        if let Some((key, state)) = done.seen {
            match state {
                Some(sandbox) => self.note_newer(key, sandbox),
                None => {
                    self.seen.remove(&key);
                }
            }
        }
    }

    /// A sandbox whose exit was seen while its start was still being answered stays exited.
    fn note_newer(&mut self, key: (SessionId, Attempt), sandbox: Sandbox) {
        let known = self.seen.get(&key).map(|sandbox| &sandbox.state);
        if !matches!(
            known,
            Some(SandboxState::Exited { .. } | SandboxState::Removed)
        ) {
            self.seen.insert(key, sandbox);
        }
    }
}

async fn record(parts: &ReconcilerParts, id: SessionId, event: SessionEvent) {
    match apply(&parts.store, parts.clock.as_ref(), id, &event, None).await {
        Ok(session) => {
            tracing::info!(session = %id, state = session.state.name(), "{}", event.name());
        }
        Err(error) => tracing::debug!(session = %id, %error, "an event was not recorded"),
    }
}

async fn next_sighting(sightings: &mut Option<BoxStream<'static, Sandbox>>) -> Option<Sandbox> {
    match sightings {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// The kinds of which only so many may run at once.
fn kinds_max(limits: &HashMap<Kind, KindLimits>) -> Vec<(Kind, usize)> {
    let limited = limits.iter();
    limited
        .filter_map(|(kind, limits)| Some((*kind, limits.max_running?)))
        .collect()
}

fn host_rebooted(settings: &ReconcilerSettings) -> bool {
    let Some(boot_id) = &settings.boot_id else {
        return false;
    };
    let remembered = std::fs::read_to_string(&settings.boot_file);
    remembered.is_ok_and(|remembered| remembered.trim() != boot_id.trim())
}

/// The session as an action's log names it.
fn named(session: &Session) -> String {
    format!("{} {}", session.kind, session.id)
}
