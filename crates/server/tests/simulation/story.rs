//! One seed's story: graphs, what clients ask, what breaks, and how it all ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use baton::orchestrator::{NewSession, OrchestratorError};
use baton::runtime::RuntimeError;
use baton::runtime::fake::{Verb, unreachable};
use baton::store::{PAGE_SESSIONS_MAX, SessionQuery, StoreError};
use baton_domain::ending::Outcome;
use baton_domain::session::Standing;
use baton_domain::{
    Kind, OrchestrationId, Sandbox, SandboxState, Session, SessionId, SessionState,
};

use crate::agent::{Mood, step};
use crate::checks::{Records, waiting};
use crate::client::{Request, Wish};
use crate::draw::Draw;
use crate::graph::{self, Bounds, Graph};
use crate::life::Life;
use crate::world::{Run, World};

/// Longer than the loop's tick, so that it lists the sandboxes in each look.
const TICK_MS: i64 = 31_000;
/// Longer than volumes are kept, and than the loop waits between two looks at them.
const VOLUMES_MS: i64 = 2 * 60 * 60 * 1000;
/// More US dollars than all sessions of a story cost.
const BUDGET_ENOUGH_USD: f64 = 1e6;
/// More looks than anything needs until nothing changes any more.
const LOOKS_MAX: usize = 300;

/// How often what happened.
#[derive(Default, Clone)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    pub fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    pub fn join(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            self.add(what, *count);
        }
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, count)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {what}")?;
        }
        Ok(())
    }
}

/// What was found to be wrong.
pub type Wrong = Vec<String>;

pub struct Story {
    draw: Draw,
    world: World,
    life: Option<Life>,
    counts: Counts,
    requests: u64,
    waiting: Option<Request>,
    /// Whether a server died before it answered that.
    in_doubt: bool,
    sessions: BTreeSet<SessionId>,
    orchestrations: Vec<OrchestrationId>,
    /// Sessions that somebody wants to run.
    asked: BTreeSet<SessionId>,
    cancelled: BTreeSet<SessionId>,
    said: Vec<(SessionId, String)>,
    runtime_is_away: bool,
}

/// Lets the story of `seed` happen.
pub fn tell(seed: u64) -> Result<Counts, Wrong> {
    let mut draw = Draw::new(seed);
    let bounds = Bounds::drawn(&mut draw);
    Story::new(seed, draw, bounds).happens()
}

/// Lets a quiet story of `seed` happen, in which nothing breaks but one server, at the `point`-th
/// point that it reaches.
pub fn tell_of_one_death(seed: u64, point: u64) -> Result<Counts, Wrong> {
    let mut draw = Draw::new(seed);
    let bounds = Bounds::drawn(&mut draw);
    Story::new(seed, draw, bounds).happens_with_one_death(point)
}

/// Lets a story of `seed` happen of a coordination session and those that it makes, with one slot
/// for all of them, in which one server dies at the `point`-th point that it reaches.
pub fn tell_of_one_slot(seed: u64, point: u64) -> Result<Counts, Wrong> {
    let mut draw = Draw::new(seed);
    let bounds = Bounds {
        slots_max: 1,
        kinds: HashMap::new(),
        ..Bounds::drawn(&mut draw)
    };
    Story::new(seed, draw, bounds).happens_in_one_slot(point)
}

impl Story {
    fn happens_with_one_death(mut self, point: u64) -> Result<Counts, Wrong> {
        let now = baton::clock::Clock::now(self.world.clock.as_ref());
        let graph = Graph::diamond(&mut self.draw, now);
        self.life().death.comes_after(point);
        self.run(async |_, server, _| server.comes_to_rest(LOOKS_MAX).await);
        let mut wishes = vec![Wish::Graph(Box::new(graph.clone()))];
        let last = graph.sessions[3].id;
        wishes.push(Wish::Message(last, "mind the tests".into()));
        wishes.push(Wish::Cancel(graph.sessions[1].id));
        wishes.push(Wish::Retry(graph.sessions[1].id));
        for wish in wishes {
            self.request(wish);
            while self.waiting.is_some() {
                self.asks();
            }
            self.rests()?;
            self.agents_act(Mood::Finishing);
            self.rests()?;
        }
        self.comes_to_its_end()?;
        self.nothing_is_left()?;
        self.messages_arrived()?;
        self.count();
        Ok(self.counts)
    }

    /// A coordination session, its children and one slot, in which a server dies once.
    fn happens_in_one_slot(mut self, point: u64) -> Result<Counts, Wrong> {
        let now = baton::clock::Clock::now(self.world.clock.as_ref());
        let graph = Graph::coordinated(&mut self.draw, now);
        self.life().death.comes_after(point);
        self.run(async |_, server, _| server.comes_to_rest(LOOKS_MAX).await);
        self.request(Wish::Graph(Box::new(graph)));
        while self.waiting.is_some() {
            self.asks();
        }
        self.comes_to_its_end()?;
        self.nothing_is_left()?;
        self.count();
        Ok(self.counts)
    }

    fn new(seed: u64, draw: Draw, bounds: Bounds) -> Self {
        Self {
            world: World::new(seed, bounds),
            draw,
            life: None,
            counts: Counts::default(),
            requests: 0,
            waiting: None,
            in_doubt: false,
            sessions: BTreeSet::new(),
            orchestrations: Vec::new(),
            asked: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            said: Vec::new(),
            runtime_is_away: false,
        }
    }

    fn happens(mut self) -> Result<Counts, Wrong> {
        let now = baton::clock::Clock::now(self.world.clock.as_ref());
        let graphs = Graph::some(&mut self.draw, now);
        for graph in graphs {
            if self.draw.chance(10) {
                self.dies_later();
            }
            self.request(Wish::Graph(Box::new(graph)));
            while self.waiting.is_some() {
                self.asks();
            }
        }
        for _ in 0..20 + 8 * self.sessions.len() {
            self.goes_on();
            self.nothing_is_wrong()?;
        }
        self.faults_end()?;
        self.comes_to_its_end()?;
        self.retry_frees()?;
        self.comes_to_its_end()?;
        self.budgets_are_raised()?;
        self.comes_to_its_end()?;
        self.nothing_is_left()?;
        self.messages_arrived()?;
        self.count();
        Ok(self.counts)
    }

    // --- the server -------------------------------------------------------------------------------

    fn life(&mut self) -> &mut Life {
        if self.life.is_none() {
            self.life = Some(Life::begin(&self.world));
        }
        self.life.as_mut().expect("it began")
    }

    /// Lets the server do something; none when it died over it.
    fn run<T>(
        &mut self,
        deed: impl AsyncFnOnce(&World, &mut crate::life::Server, &mut Draw) -> T,
    ) -> Option<T> {
        self.life();
        let Self {
            life, world, draw, ..
        } = self;
        let life = life.as_mut().expect("it began");
        let done = life.run(async |server| deed(world, server, draw).await);
        if done.is_none() {
            self.dies();
        }
        done
    }

    fn dies(&mut self) {
        self.counts.add("crashes", 1);
        self.life = None;
    }

    fn dies_later(&mut self) {
        let points = self.draw.between(1, 40) as u64;
        self.life().death.comes_after(points);
    }

    fn time_passes(&mut self, ms: i64) {
        self.world.time_passes(ms);
        self.run(async |_, _, _| {
            tokio::time::advance(Duration::from_millis(ms as u64)).await;
        });
    }

    // --- what happens -----------------------------------------------------------------------------

    fn goes_on(&mut self) {
        let ms = self.draw.between(1, 400) as i64;
        self.time_passes(ms);
        match self.draw.between(0, 100) {
            0..40 => self.agents_act(Mood::Any),
            40..62 => {
                self.run(async |_, server, _| {
                    server.reconciler.pass().await;
                    server.settle().await;
                });
            }
            62..68 => {
                self.run(async |_, server, draw| {
                    server.reconciler.pass().await;
                    for _ in 0..draw.between(0, 6) {
                        tokio::task::yield_now().await;
                    }
                });
            }
            68..76 => {
                let long = [1_000, 10_000, TICK_MS, TICK_MS, 3 * TICK_MS, 3_600_000];
                let ms = *self.draw.pick(&long).expect("one");
                self.time_passes(ms);
            }
            76..88 => {
                if self.waiting.is_none() {
                    let wish = self.wish();
                    self.request(wish);
                }
                self.asks();
            }
            88..94 => self.breaks(),
            94..97 => self.dies_later(),
            97..99 => {
                if self.life.is_some() {
                    self.dies();
                }
            }
            _ => {
                if let Some(life) = self.life.take() {
                    self.counts.add("restarts", 1);
                    life.ends();
                }
            }
        }
    }

    fn running(&self) -> Vec<Sandbox> {
        let sandboxes = self.world.runtime.sandboxes().into_iter();
        sandboxes
            .filter(|sandbox| sandbox.state == SandboxState::Running)
            .collect()
    }

    fn agents_act(&mut self, mood: Mood) {
        let running = self.running();
        let runs: BTreeSet<Run> = running.iter().map(|of| (of.session, of.attempt)).collect();
        // The connection of a call ends with its sandbox.
        self.run(async |_, server, _| server.calls.retain(|run, _| runs.contains(run)));
        for sandbox in running {
            if mood == Mood::Finishing || self.draw.chance(60) {
                self.run(async |world, server, draw| {
                    step(world, server, &sandbox, draw, mood).await;
                });
            }
        }
        // A child may have been made by a server that died over it; its parent finds it again.
        let children = self.world.witness.new_children();
        self.asked.extend(&children);
        self.sessions.extend(&children);
    }

    /// Those that were made by a server that died before it answered, for parents that ended.
    fn learns_of_children(&mut self) {
        let found = self.run(async |_, server, _| {
            let mut query = SessionQuery {
                limit: PAGE_SESSIONS_MAX,
                ..SessionQuery::default()
            };
            let mut children = Vec::new();
            loop {
                let page = server.store.page(&query).await.expect("sessions");
                let of_page = page.sessions.iter().filter(|one| one.parent.is_some());
                children.extend(of_page.map(|one| one.id));
                query.cursor = page.next_cursor;
                if query.cursor.is_none() {
                    return children;
                }
            }
        });
        for id in found.unwrap_or_default() {
            self.sessions.insert(id);
            self.asked.insert(id);
        }
    }

    fn wish(&mut self) -> Wish {
        let ids: Vec<SessionId> = self.sessions.iter().copied().collect();
        let draw = &mut self.draw;
        let id = *draw.pick(&ids).expect("a session");
        self.requests += 1;
        match draw.between(0, 20) {
            0..4 => Wish::Cancel(id),
            4 => match draw.pick(&self.orchestrations) {
                Some(id) => Wish::CancelAll(*id),
                None => Wish::Start(id),
            },
            5..9 => Wish::Retry(id),
            9..14 => Wish::Message(id, format!("message {}", self.requests)),
            14..16 => Wish::Start(id),
            16 => match draw.pick(&self.orchestrations) {
                Some(id) => Wish::Budget(*id, draw.between(1, 20) as f64),
                None => Wish::Start(id),
            },
            _ => {
                let mut dependencies = Vec::new();
                for _ in 0..draw.between(0, 3) {
                    dependencies.extend(draw.pick(&ids));
                }
                let (mut kind, project) = (graph::kind(draw), graph::project(draw));
                let orchestration_id = draw.pick(&self.orchestrations).copied();
                if orchestration_id.is_none() && kind == Kind::Coordination {
                    // It would get one that lands as a whole, for which there is no git here.
                    kind = Kind::Review;
                }
                Wish::Create(Box::new(NewSession {
                    id: Some(SessionId(draw.uuid())),
                    dependencies,
                    auto_start: draw.chance(80),
                    max_cost_usd: draw.chance(20).then_some(1.5),
                    orchestration_id,
                    ..NewSession::new(kind, project)
                }))
            }
        }
    }

    fn request(&mut self, wish: Wish) {
        self.requests += 1;
        let key = format!("key {}", self.requests);
        self.waiting = Some(Request { key, wish });
    }

    /// Asks what waits to be asked, sometimes while the loop looks.
    fn asks(&mut self) {
        let Some(request) = self.waiting.clone() else {
            return;
        };
        if let Wish::Message(id, _) = &request.wish {
            // Told to go on, it may be launched and be open again at any time from here.
            self.world.witness.reopened(*id);
        }
        let at_once = self.draw.chance(40);
        let asked = request.clone();
        let answer = self.run(async |_, server, _| {
            let orchestrator = server.orchestrator.clone();
            let store = server.store.clone();
            let asking = asked.ask(&orchestrator, &store);
            if at_once {
                tokio::join!(asking, server.reconciler.pass()).0
            } else {
                asking.await
            }
        });
        let Some(answer) = answer else {
            self.in_doubt = true;
            return;
        };
        if self.in_doubt && matches!(answer, Err(OrchestratorError::Refused(_))) {
            // It may have been done: it is asked again until somebody knows.
            return;
        }
        self.waiting = None;
        self.in_doubt = false;
        if let Err(OrchestratorError::Store(error @ StoreError::Unavailable { .. })) = &answer {
            self.world
                .witness
                .objects(format!("storage failed: {error}"));
        }
        self.is_answered(request, answer.is_ok());
    }

    fn is_answered(&mut self, request: Request, is_accepted: bool) {
        let named = match &request.wish {
            Wish::Graph(_) => "graphs",
            Wish::Create(_) => "sessions added",
            Wish::Start(_) => "starts",
            Wish::Cancel(_) | Wish::CancelAll(_) => "cancels",
            Wish::Retry(_) => "retries",
            Wish::Message(..) => "messages",
            Wish::Budget(..) => "budgets",
        };
        if !is_accepted {
            return self.counts.add("refusals", 1);
        }
        self.counts.add(named, 1);
        match request.wish {
            Wish::Graph(graph) => {
                self.orchestrations
                    .extend(graph.orchestration.as_ref().map(|one| one.id));
                for session in &graph.sessions {
                    self.sessions.insert(session.id);
                    if session.state == SessionState::Queued {
                        self.asked.insert(session.id);
                    }
                }
            }
            Wish::Create(new) => {
                let id = new.id.expect("it was named");
                self.sessions.insert(id);
                if new.auto_start {
                    self.asked.insert(id);
                }
            }
            Wish::Start(id) | Wish::Retry(id) => {
                self.asked.insert(id);
            }
            Wish::Cancel(id) => {
                self.cancelled.insert(id);
            }
            // Whom it started is read from the records.
            Wish::Budget(..) => {}
            Wish::CancelAll(_) => {
                // Whom it met is read from the records.
            }
            Wish::Message(id, text) => self.said.push((id, text)),
        }
    }

    fn breaks(&mut self) {
        let Self { draw, world, .. } = self;
        let runtime = &world.runtime;
        let verbs = [Verb::Prepare, Verb::Launch, Verb::Launch, Verb::Remove];
        let verb = *draw.pick(&verbs).expect("one");
        let ids: Vec<SessionId> = self.sessions.iter().copied().collect();
        self.counts.add("faults", 1);
        match draw.between(0, 12) {
            0 if self.runtime_is_away => {
                runtime.comes_back();
                self.runtime_is_away = false;
            }
            0 => {
                runtime.goes_away();
                self.runtime_is_away = true;
            }
            1 => {
                runtime.restarts();
                self.runtime_is_away = false;
            }
            2 => runtime.fail_next(verb, unreachable()),
            3 => runtime.lose_reply_of_next(verb, unreachable()),
            4 => {
                let looks = [Verb::List, Verb::Watch, Verb::CheckImage];
                runtime.fail_next(*draw.pick(&looks).expect("one"), unreachable());
            }
            5 => runtime.fail_next(
                Verb::Launch,
                RuntimeError::Refused {
                    step: "start",
                    id: "x".into(),
                    message: "no".into(),
                },
            ),
            6 => runtime.fail_next(
                Verb::Launch,
                RuntimeError::ImageMissing {
                    image: "image".into(),
                },
            ),
            7 => world.code.remote_goes_away(),
            8 => world.code.remote_comes_back(),
            9 => {
                world.code.contradicts(*draw.pick(&ids).expect("a session"));
            }
            10 => {
                let sandboxes = runtime.sandboxes();
                if let Some(sandbox) = draw.pick(&sandboxes) {
                    runtime.sandbox_vanishes(&sandbox.id);
                }
            }
            _ => {
                let sandboxes = runtime.sandboxes();
                if let Some(sandbox) = draw.pick(&sandboxes) {
                    let code = [1, 137, 255][draw.between(0, 3)];
                    runtime.sandbox_exits(&sandbox.id, code, draw.chance(50));
                }
            }
        }
    }

    // --- the end ----------------------------------------------------------------------------------

    fn faults_end(&mut self) -> Result<(), Wrong> {
        self.world.runtime.comes_back();
        self.world.runtime.has_no_more_faults();
        self.world.code.remote_comes_back();
        self.runtime_is_away = false;
        self.life().death.comes_after(0);
        while self.waiting.is_some() {
            self.rests()?;
            self.asks();
        }
        Ok(())
    }

    fn rests(&mut self) -> Result<(), Wrong> {
        self.time_passes(TICK_MS);
        let rests = self.run(async |_, server, _| server.comes_to_rest(LOOKS_MAX).await);
        match rests {
            // One that died over it is followed by another, which rests later.
            Some(true) | None => Ok(()),
            Some(false) => self.is_wrong("it never comes to rest".into()),
        }
    }

    /// Without faults everything ends.
    fn comes_to_its_end(&mut self) -> Result<(), Wrong> {
        let rounds_max = 40 + 10 * self.sessions.len();
        let mut quiet = 0;
        for _ in 0..rounds_max {
            let before = (self.world.witness.deeds(), self.changes());
            self.rests()?;
            self.agents_act(Mood::Finishing);
            self.nothing_is_wrong()?;
            let is_quiet = before == (self.world.witness.deeds(), self.changes());
            quiet = if is_quiet { quiet + 1 } else { 0 };
            // Sessions that do not stop have their grace, and actions that fail their pauses.
            if quiet == 4 {
                return self.all_is_true();
            }
        }
        self.is_wrong(format!("it does not end in {rounds_max} rounds"))
    }

    fn changes(&mut self) -> u64 {
        let changes = self.run(async |_, server, _| server.store.changes());
        changes.unwrap_or_default()
    }

    fn all_is_true(&mut self) -> Result<(), Wrong> {
        self.learns_of_children();
        let (ids, asked) = (self.sessions.clone(), self.asked.clone());
        let wrong = self.run(async |world, server, _| {
            let records = Records::read(server, &ids).await;
            let mut wrong = records.wrong(world, server).await;
            wrong.extend(waiting(&records, server, &asked));
            wrong
        });
        self.unless(wrong.unwrap_or_default())
    }

    /// Somebody grants all that anything could cost; then nobody waits for that any more.
    fn budgets_are_raised(&mut self) -> Result<(), Wrong> {
        for id in self.orchestrations.clone() {
            let held = self.run(async |_, server, _| {
                let budget = server.store.budget(id, |_, _| 0.0);
                budget.is_some_and(|budget| budget.is_spent())
            });
            if held != Some(true) {
                continue;
            }
            self.counts.add("budgets spent", 1);
            self.request(Wish::Budget(id, BUDGET_ENOUGH_USD));
            self.asks();
            if self.waiting.is_some() {
                return self.is_wrong(format!("the budget of {id} cannot be raised"));
            }
        }
        Ok(())
    }

    /// Whoever was blocked by one session alone waits again when that is retried.
    fn retry_frees(&mut self) -> Result<(), Wrong> {
        let ids = self.sessions.clone();
        let lost = self.run(async |_, server, _| {
            let records = Records::read(server, &ids).await;
            let is_lost = |id: &SessionId| server.store.standing(*id) == Some(Standing::Lost);
            let roots = records.all().filter(|session| {
                matches!(session.state, SessionState::Finished { .. })
                    && is_lost(&session.id)
                    && !session.dependencies.iter().any(is_lost)
            });
            roots.map(|session| session.id).collect::<Vec<_>>()
        });
        let Some(root) = self.draw.pick(&lost.unwrap_or_default()).copied() else {
            return Ok(());
        };
        self.request(Wish::Retry(root));
        self.asks();
        if !self.asked.contains(&root) {
            return self.is_wrong(format!("session {root} cannot be retried"));
        }
        let wrong = self.run(async |_, server, _| {
            let records = Records::read(server, &ids).await;
            let is_lost = |id: &SessionId| server.store.standing(*id) == Some(Standing::Lost);
            let blocked = records.all().filter(|session| {
                matches!(session.state, SessionState::Blocked { .. })
                    && !session.dependencies.iter().any(is_lost)
            });
            let wrong = blocked.map(|one| format!("session {} is not freed", one.id));
            wrong.collect::<Vec<_>>()
        });
        self.unless(wrong.unwrap_or_default())
    }

    /// No sandbox, directory or volume is left without a reason.
    fn nothing_is_left(&mut self) -> Result<(), Wrong> {
        self.time_passes(VOLUMES_MS);
        self.rests()?;
        let ids = self.sessions.clone();
        let prepared_max = self.world.bounds.prepared_max;
        let wrong = self.run(async |world, server, _| {
            let records = Records::read(server, &ids).await;
            let mut wrong = Vec::new();
            let sandboxes = world.runtime.sandboxes();
            let mut ready = 0;
            for sandbox in &sandboxes {
                let state = &records.session(sandbox.session).state;
                let is_ready = sandbox.state == SandboxState::Prepared && !state.is_over();
                ready += usize::from(is_ready);
                // A paused session keeps its last one until it goes on.
                if !is_ready && !matches!(state, SessionState::Paused { .. }) {
                    wrong.push(format!("a sandbox is left of a {} session", state.name()));
                }
            }
            if ready > prepared_max {
                wrong.push(format!("{ready} sandboxes stand ready"));
            }
            let owners: BTreeSet<_> = sandboxes
                .iter()
                .map(|sandbox| (sandbox.session, sandbox.attempt))
                .collect();
            // A session that is not over may go on with what an earlier attempt left.
            let volumes = world.runtime.volumes().into_iter();
            let volumes: BTreeSet<_> = volumes
                .filter(|(session, _)| records.session(*session).state.is_over())
                .collect();
            let directories = server.gateway.run_dirs().expect("directories");
            // Nor does one that pauses let its directory go, if its sandbox was removed by hand.
            let is_kept = |session: &Session, attempt| {
                session.attempt == attempt && matches!(session.state, SessionState::Paused { .. })
            };
            let directories: BTreeSet<_> = directories
                .into_iter()
                .filter(|(session, attempt)| !is_kept(records.session(*session), *attempt))
                .collect();
            for (what, left) in [("volumes", volumes), ("directories", directories)] {
                let left: Vec<_> = left.difference(&owners).collect();
                if !left.is_empty() {
                    wrong.push(format!("{what} are left of {left:?}"));
                }
            }
            wrong
        });
        self.unless(wrong.unwrap_or_default())
    }

    /// What was said to a session reached its Claude, waits for a person to retry it, or the
    /// session was cancelled.
    fn messages_arrived(&mut self) -> Result<(), Wrong> {
        let ids = self.sessions.clone();
        let records = self.run(async |_, server, _| Records::read(server, &ids).await);
        let records = records.expect("no server dies any more");
        let mut wrong = Vec::new();
        for (id, text) in &self.said {
            let session = records.session(*id);
            let is_in = |words: &str| words.split("\n\n").any(|one| one == text);
            let agents = self.world.agents();
            let mut agents = agents.iter().filter(|((of, _), _)| of == id);
            let arrived = agents.any(|(_, agent)| agent.said.iter().any(|words| is_in(words)));
            let steering = &session.steering;
            let waits = steering.messages.iter().any(|one| is_in(&one.text))
                || steering.resume.as_ref().is_some_and(|one| is_in(&one.text));
            let was_cancelled = records.was_cancelled(*id);
            if !arrived && !waits && !was_cancelled {
                let state = session.state.name();
                let course = records.course(*id);
                wrong.push(format!(
                    "{text:?} to {state} session {id} is lost: {course}"
                ));
            }
        }
        self.unless(wrong)
    }

    fn count(&mut self) {
        let ids = self.sessions.clone();
        let records = self.run(async |_, server, _| Records::read(server, &ids).await);
        let records = records.expect("no server dies any more");
        self.counts.add("sessions", ids.len() as u64);
        for session in records.all() {
            self.counts.add("attempts", u64::from(session.attempt.0));
            let outcome = match &session.state {
                SessionState::Finished { outcome, .. } => match outcome {
                    Outcome::Completed => "completed",
                    Outcome::Failed { .. } => "failed",
                    Outcome::Cancelled => "cancelled",
                },
                SessionState::Blocked { .. } => "blocked",
                _ => "not asked for",
            };
            self.counts.add(outcome, 1);
        }
        let [waits, broken] = self.world.witness.waits();
        self.counts.add("waits", waits);
        self.counts.add("waits that died", broken);
        self.counts
            .add("launches", self.world.runtime.launches().len() as u64);
    }

    fn nothing_is_wrong(&mut self) -> Result<(), Wrong> {
        self.unless(self.world.witness.wrong())
    }

    fn is_wrong(&mut self, what: String) -> Result<(), Wrong> {
        let ids = self.sessions.clone();
        let states = self.run(async |_, server, _| {
            let mut states = Vec::new();
            for id in &ids {
                let session = server.store.session(*id).await.expect("a session");
                let of = &session.dependencies;
                states.push(format!(
                    "{id} #{} {:?} <- {of:?}",
                    session.attempt, session.state
                ));
            }
            states
        });
        let mut wrong = self.world.witness.wrong();
        wrong.push(what);
        wrong.extend(states.unwrap_or_default());
        wrong.extend(
            self.world
                .runtime
                .sandboxes()
                .iter()
                .map(|of| format!("{of:?}")),
        );
        Err(wrong)
    }

    fn unless(&self, wrong: Wrong) -> Result<(), Wrong> {
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong),
        }
    }
}
