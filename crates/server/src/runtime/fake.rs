//! A runtime in memory, driven by hand: what tests and simulations launch sandboxes on.
//!
//! It keeps the contract of [`Runtime`] (one suite runs against it and against Docker), and
//! exits, losses and faults happen exactly when the test says so.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use baton_domain::{Attempt, Sandbox, SandboxId, SandboxState, SessionId};
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{Runtime, RuntimeError, SandboxSpec, Volumes};

/// A watcher that is this many items behind loses its stream, as with Docker.
const NEWS_MAX: usize = 4_096;
/// What a container gets that its runtime killed.
const KILLED: i64 = 137;

/// The calls of [`Runtime`], to name the one that is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Runtime::prepare`]
    Prepare,
    /// [`Runtime::launch`]
    Launch,
    /// [`Runtime::list`]
    List,
    /// [`Runtime::watch`]
    Watch,
    /// [`Runtime::remove`]
    Remove,
    /// [`Runtime::remove_kept_volumes`]
    RemoveKeptVolumes,
    /// [`Runtime::check_image`]
    CheckImage,
}

/// Sandboxes that exist only in memory. Shared by reference; all methods take `&self`.
pub struct FakeRuntime {
    host: Mutex<Host>,
    /// `None` says that the runtime went away: streams end.
    news: broadcast::Sender<Option<Sandbox>>,
}

struct Host {
    now: Timestamp,
    away: bool,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// Each sandbox's volumes. They outlive it unless removed.
    volumes: BTreeMap<SandboxId, Pair>,
    launches: Vec<(SessionId, Attempt)>,
    images_missing: HashSet<String>,
    foreign_names: HashSet<String>,
    faults: HashMap<Verb, VecDeque<Fault>>,
}

/// The volumes of one attempt.
struct Pair {
    session: SessionId,
    attempt: Attempt,
    made: Timestamp,
    /// Whether that with the code is still there, and not only that with the conversation.
    workspace: bool,
}

impl Pair {
    fn count(&self) -> usize {
        if self.workspace { 2 } else { 1 }
    }
}

enum Fault {
    /// The call fails and has no effect.
    Fails(RuntimeError),
    /// The call has its effect, and the caller is told that it failed.
    LosesReply(RuntimeError),
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// A host with every image and no sandbox; its clock stands at the epoch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            host: Mutex::new(Host {
                now: Timestamp::UNIX_EPOCH,
                away: false,
                sandboxes: BTreeMap::new(),
                volumes: BTreeMap::new(),
                launches: Vec::new(),
                images_missing: HashSet::new(),
                foreign_names: HashSet::new(),
                faults: HashMap::new(),
            }),
            news: broadcast::Sender::new(NEWS_MAX),
        }
    }

    /// Sets the host's clock, which stamps what is made and what exits.
    pub fn set_now(&self, now: Timestamp) {
        self.host().now = now;
    }

    /// The session of every start so far, oldest first. A launch that found its sandbox running
    /// started nothing.
    #[must_use]
    pub fn launched(&self) -> Vec<SessionId> {
        let launches = self.launches();
        launches.into_iter().map(|(session, _)| session).collect()
    }

    /// The same with the attempts.
    #[must_use]
    pub fn launches(&self) -> Vec<(SessionId, Attempt)> {
        self.host().launches.clone()
    }

    /// Every sandbox as it stands, whether the runtime answers or not, in the order of names.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.host().sandboxes.values().cloned().collect()
    }

    /// Whose attempts there are volumes of, in the order of the sandboxes' names.
    #[must_use]
    pub fn volumes(&self) -> Vec<(SessionId, Attempt)> {
        let host = self.host();
        let pairs = host.volumes.values();
        pairs.map(|pair| (pair.session, pair.attempt)).collect()
    }

    /// The sessions whose sandboxes run, in no particular order.
    #[must_use]
    pub fn running(&self) -> Vec<SessionId> {
        let host = self.host();
        let running = |sandbox: &&Sandbox| sandbox.state == SandboxState::Running;
        let running = host.sandboxes.values().filter(running);
        running.map(|sandbox| sandbox.session).collect()
    }

    /// How many volumes exist of any attempt of `session`: two for each at most.
    #[must_use]
    pub fn volumes_of(&self, session: SessionId) -> usize {
        let host = self.host();
        let pairs = host.volumes.values();
        let of_session = pairs.filter(|pair| pair.session == session);
        of_session.map(Pair::count).sum()
    }

    /// The newest attempt of `session` exits.
    ///
    /// # Panics
    /// When it does not run: the test lost track.
    #[track_caller]
    pub fn exits(&self, session: SessionId, code: i64, oom_killed: bool) {
        let mut host = self.host();
        let newest = host.newest(session).cloned();
        let Some(sandbox) = newest.filter(|sandbox| sandbox.state == SandboxState::Running) else {
            panic!("session {session} has no running sandbox that could exit");
        };
        self.end(&mut host, &sandbox.id, code, oom_killed);
    }

    /// One sandbox exits, of whatever attempt; nothing happens where it does not run.
    pub fn sandbox_exits(&self, id: &SandboxId, code: i64, oom_killed: bool) {
        let mut host = self.host();
        self.end(&mut host, id, code, oom_killed);
    }

    fn end(&self, host: &mut Host, id: &SandboxId, code: i64, oom_killed: bool) {
        let finished_at = host.now;
        let sandbox = host.sandboxes.get_mut(id);
        let Some(sandbox) = sandbox.filter(|sandbox| sandbox.state == SandboxState::Running) else {
            return;
        };
        sandbox.state = SandboxState::Exited {
            code,
            oom_killed,
            finished_at,
        };
        self.tell(sandbox.clone());
    }

    /// Somebody removes the sandbox of `session`'s newest attempt by hand.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn vanishes(&self, session: SessionId) {
        let mut host = self.host();
        let Some(id) = host.newest(session).map(|sandbox| sandbox.id.clone()) else {
            panic!("session {session} has no sandbox that could vanish");
        };
        self.delete(&mut host, &id);
    }

    /// Somebody removes one sandbox by hand; nothing happens where there is none.
    pub fn sandbox_vanishes(&self, id: &SandboxId) {
        let mut host = self.host();
        self.delete(&mut host, id);
    }

    /// Faults that were planned and not met yet do not come any more.
    pub fn has_no_more_faults(&self) {
        self.host().faults.clear();
    }

    /// The runtime stops answering, and streams end. Sandboxes run on.
    pub fn goes_away(&self) {
        self.host().away = true;
        let _ = self.news.send(None); // nobody may be watching
    }

    /// The runtime answers again.
    pub fn comes_back(&self) {
        self.host().away = false;
    }

    /// The runtime was restarted and took every sandbox down, as Docker does unless told to
    /// keep them alive. Watchers lose their streams before they could hear of it.
    pub fn restarts(&self) {
        let _ = self.news.send(None);
        let mut host = self.host();
        host.away = false;
        let finished_at = host.now;
        for sandbox in host.sandboxes.values_mut() {
            if sandbox.state == SandboxState::Running {
                sandbox.state = SandboxState::Exited {
                    code: KILLED,
                    oom_killed: false,
                    finished_at,
                };
            }
        }
    }

    /// The host has no image of that name.
    pub fn lacks_image(&self, image: impl Into<String>) {
        self.host().images_missing.insert(image.into());
    }

    /// Something that is not ours bears this name.
    pub fn occupies(&self, name: impl Into<String>) {
        self.host().foreign_names.insert(name.into());
    }

    /// Whether that something is still there.
    #[must_use]
    pub fn is_occupied(&self, name: &str) -> bool {
        self.host().foreign_names.contains(name)
    }

    /// The next call of `verb` fails without effect. Calls queue up: two make the next two fail.
    pub fn fail_next(&self, verb: Verb, error: RuntimeError) {
        self.plan(verb, Fault::Fails(error));
    }

    /// The next call of `verb` has its effect, but its caller hears `error`: what a lost
    /// connection looks like, and what makes calls be repeated.
    pub fn lose_reply_of_next(&self, verb: Verb, error: RuntimeError) {
        self.plan(verb, Fault::LosesReply(error));
    }

    fn plan(&self, verb: Verb, fault: Fault) {
        let mut host = self.host();
        host.faults.entry(verb).or_default().push_back(fault);
    }

    /// Runs one call, with the fault planned for it.
    fn call<T>(
        &self,
        verb: Verb,
        act: impl FnOnce(&mut Host) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let mut host = self.host();
        if host.away {
            return Err(unreachable());
        }
        let fault = host.faults.get_mut(&verb).and_then(VecDeque::pop_front);
        match fault {
            None => act(&mut host),
            Some(Fault::Fails(error)) => Err(error),
            Some(Fault::LosesReply(error)) => act(&mut host).and(Err(error)),
        }
    }

    fn delete(&self, host: &mut Host, id: &SandboxId) {
        if let Some(mut sandbox) = host.sandboxes.remove(id) {
            sandbox.state = SandboxState::Removed;
            sandbox.created_at = host.now;
            self.tell(sandbox);
        }
    }

    fn tell(&self, sandbox: Sandbox) {
        let _ = self.news.send(Some(sandbox)); // nobody may be watching
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        // A test that panicked elsewhere shows its own message, not this lock's.
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a runtime that is away, for [`FakeRuntime::fail_next`].
#[must_use]
pub fn unreachable() -> RuntimeError {
    RuntimeError::Unavailable {
        step: "do anything",
        source: "the fake runtime is away".into(),
    }
}

impl Host {
    fn newest(&mut self, session: SessionId) -> Option<&mut Sandbox> {
        let of_session = self.sandboxes.values_mut();
        of_session
            .filter(|sandbox| sandbox.session == session)
            .max_by_key(|sandbox| sandbox.attempt)
    }

    fn prepare(&mut self, spec: &SandboxSpec) -> Result<&mut Sandbox, RuntimeError> {
        let id = spec.id();
        if self.images_missing.contains(&spec.image) {
            let image = spec.image.clone();
            return Err(RuntimeError::ImageMissing { image });
        }
        if self.foreign_names.contains(&id.0) {
            let holder = "something that is not ours";
            return Err(name_taken(
                &id.0,
                spec.session.to_string(),
                holder.to_owned(),
            ));
        }
        let of_earlier = |earlier: Attempt| {
            let mut pairs = self.volumes.values();
            pairs.any(|pair| (pair.session, pair.attempt) == (spec.session, earlier))
        };
        if let Some(attempt) = spec.earlier.filter(|earlier| !of_earlier(*earlier)) {
            let session = spec.session;
            return Err(RuntimeError::StateGone { session, attempt });
        }
        let made = self.now;
        let sandbox = self.sandboxes.entry(id.clone()).or_insert(Sandbox {
            id: id.clone(),
            session: spec.session,
            attempt: spec.attempt,
            state: SandboxState::Prepared,
            created_at: made,
        });
        if (sandbox.session, sandbox.attempt) != (spec.session, spec.attempt) {
            let holder = format!("session {} attempt {}", sandbox.session, sandbox.attempt);
            return Err(name_taken(&id.0, spec.session.to_string(), holder));
        }
        if matches!(sandbox.state, SandboxState::Exited { .. }) {
            return Err(RuntimeError::AlreadyExited {
                session: spec.session,
                attempt: spec.attempt,
            });
        }
        self.volumes.entry(id).or_insert(Pair {
            session: spec.session,
            attempt: spec.attempt,
            made,
            workspace: true,
        });
        Ok(sandbox)
    }
}

fn name_taken(name: &str, session: String, holder: String) -> RuntimeError {
    RuntimeError::NameTaken {
        name: name.to_owned(),
        session,
        holder,
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn prepare(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        self.call(Verb::Prepare, |host| {
            host.prepare(spec).map(|sandbox| sandbox.id.clone())
        })
    }

    async fn launch(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        self.call(Verb::Launch, |host| {
            let sandbox = host.prepare(spec)?;
            let id = sandbox.id.clone();
            if sandbox.state == SandboxState::Prepared {
                sandbox.state = SandboxState::Running;
                host.launches.push((spec.session, spec.attempt));
            }
            Ok(id)
        })
    }

    async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        self.call(Verb::List, |host| {
            Ok(host.sandboxes.values().cloned().collect())
        })
    }

    async fn watch(&self) -> Result<BoxStream<'static, Sandbox>, RuntimeError> {
        let news = self.call(Verb::Watch, |_| Ok(self.news.subscribe()))?;
        let sandboxes = stream::unfold(news, |mut news| async {
            let sandbox = news.recv().await.ok().flatten()?;
            Some((sandbox, news))
        });
        Ok(sandboxes.boxed())
    }

    async fn remove(&self, id: &SandboxId, volumes: Volumes) -> Result<(), RuntimeError> {
        self.call(Verb::Remove, |host| {
            if host.foreign_names.contains(&id.0) {
                let holder = "something that is not ours";
                return Err(name_taken(&id.0, id.0.clone(), holder.to_owned()));
            }
            self.delete(host, id);
            match (volumes, host.volumes.get_mut(id)) {
                (Volumes::Remove, _) => drop(host.volumes.remove(id)),
                (Volumes::KeepState, Some(pair)) => pair.workspace = false,
                _ => {}
            }
            Ok(())
        })
    }

    async fn remove_kept_volumes(
        &self,
        before: Timestamp,
        spared: &HashSet<SessionId>,
    ) -> Result<usize, RuntimeError> {
        self.call(Verb::RemoveKeptVolumes, |host| {
            let sandboxes = &host.sandboxes;
            let mut removed = 0;
            host.volumes.retain(|id, pair| {
                let stays = sandboxes.contains_key(id)
                    || pair.made >= before
                    || spared.contains(&pair.session);
                removed += if stays { 0 } else { pair.count() };
                stays
            });
            Ok(removed)
        })
    }

    async fn check_image(&self, _image: &str) -> Result<(), RuntimeError> {
        self.call(Verb::CheckImage, |_| Ok(()))
    }
}
