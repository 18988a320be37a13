//! What a session costs beyond Docker, git and Claude: every operation, transition, append and
//! plan of its life, in this process, one after the other, with a real store on the real disk.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use baton::clock::{Clock, SystemClock};
use baton::open_waits::OpenWaits;
use baton::orchestrator::{
    Accepted, Admission, NewSession, Orchestrator, OrchestratorParts, RandomIds, Refusal,
};
use baton::store::{OutputLine, Store, StoreSettings};
use baton::transition;
use baton_agent::protocol::{Ending, Exit, Stream};
use baton_domain::coordination::CoordinationLimits;
use baton_domain::ending::{ClaudeResult, Outcome};
use baton_domain::observe::{Sandboxes, Snapshot};
use baton_domain::plan::{Limits, plan};
use baton_domain::schedule::Durations;
use baton_domain::session::Report;
use baton_domain::{Attempt, Kind, Project, SessionEvent, SessionId};
use jiff::SignedDuration;
use tokio::sync::Notify;

use crate::table::{Aim, Row, Unit, median, print, print_note};
use crate::{Bench, disk};

const SESSIONS: usize = 500;
const SLOTS_MAX: usize = 4;

/// A chain; each session with its six changes of state and what Claude said in between.
pub fn run(bench: &Bench) -> Result<()> {
    let commits = bench
        .runtime
        .block_on(disk::sqlite_commits(bench.scratch.path()))?;
    let (lives, laps) = bench.runtime.block_on(async {
        let upkeep = Upkeep::new(bench).await?;
        let mut lives = Vec::with_capacity(SESSIONS);
        let (mut before, mut laps) = (None, Laps::default());
        for _ in 0..SESSIONS {
            let begin = Instant::now();
            before = Some(upkeep.live(before, &mut laps).await?);
            lives.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        upkeep.store.close().await;
        anyhow::Ok((lives, laps))
    })?;
    let own_ms = median(lives);
    print(&Row {
        figure: "a session without Docker, git and Claude",
        unit: Unit::Ms,
        measured: own_ms,
        baseline: Some((commits.p50_ms(), "one durable SQLite commit")),
        aim: Some(Aim::AtMost(2.0)),
    });
    print_note("8 durable commits and 2 appends; medians in ms:");
    for (name, times) in laps.times {
        print_note(&format!("  {:>7.2}  {name}", median(times)));
    }
    Ok(())
}

struct Upkeep {
    store: Store,
    orchestrator: Orchestrator,
    clock: Arc<dyn Clock>,
    durations: Durations,
    _dir: tempfile::TempDir,
}

/// What each part of a life takes.
#[derive(Default)]
struct Laps {
    at: Option<Instant>,
    times: Vec<(&'static str, Vec<f64>)>,
}

impl Laps {
    fn begin(&mut self) {
        self.at = Some(Instant::now());
    }

    fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        let before = self.at.replace(now).unwrap_or(now);
        let ms = (now - before).as_secs_f64() * 1e3;
        match self.times.iter_mut().find(|(lap, _)| *lap == name) {
            Some((_, times)) => times.push(ms),
            None => self.times.push((name, vec![ms])),
        }
    }
}

struct AlwaysOpen;

impl Admission for AlwaysOpen {
    fn check(&self) -> Result<(), Refusal> {
        Ok(())
    }
}

impl Upkeep {
    async fn new(bench: &Bench) -> Result<Self> {
        let dir = tempfile::tempdir_in(bench.scratch.path())?;
        let store = Store::open(dir.path(), StoreSettings::default()).await?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let orchestrator = Orchestrator::new(OrchestratorParts {
            store: store.clone(),
            clock: Arc::clone(&clock),
            ids: Arc::new(RandomIds),
            wake: Arc::new(Notify::new()),
            admission: Arc::new(AlwaysOpen),
            slots_max: SLOTS_MAX,
            meter: Arc::new(|_, _| None),
            overlaps: Arc::new(|_| Vec::new()),
            waits: OpenWaits::default(),
            coordination: CoordinationLimits::default(),
        });
        Ok(Self {
            store,
            orchestrator,
            clock,
            durations: Durations::default(),
            _dir: dir,
        })
    }

    /// One session from its creation to its end, as the server takes it there.
    async fn live(&self, dependency: Option<SessionId>, laps: &mut Laps) -> Result<SessionId> {
        laps.begin();
        let project = Project {
            repository: crate::home::REPOSITORY.parse()?,
            branch: None,
            requirements: crate::requests::REQUIREMENTS.into(),
            context: None,
        };
        let new = NewSession {
            dependencies: dependency.into_iter().collect(),
            auto_start: false,
            ..NewSession::new(Kind::Implementation, project)
        };
        let Accepted::Now(made) = self.orchestrator.create_session(new, None).await? else {
            anyhow::bail!("it was made before");
        };
        let id = made.session.id;
        laps.end("made");
        self.orchestrator.start_session(id).await?;
        laps.end("asked for");
        let attempt = Attempt::FIRST;
        ensure!(self.actions() == 1, "its launch was not planned");
        laps.end("planned");
        self.apply(id, &SessionEvent::LaunchDecided(attempt), None)
            .await?;
        laps.end("launched");
        self.apply(id, &SessionEvent::ClaudeStarted(attempt), None)
            .await?;
        laps.end("begun");
        for (position, name) in [(1, "first output"), (2, "more output")] {
            self.store
                .append_output(id, attempt, position, &[line()])
                .await?;
            laps.end(name);
        }
        self.apply(
            id,
            &SessionEvent::AgentEnded(attempt, Box::new(ending())),
            None,
        )
        .await?;
        laps.end("ended");
        ensure!(self.actions() == 1, "its end was not planned");
        let concluded = SessionEvent::Concluded(attempt, Outcome::Completed);
        self.apply(id, &concluded, Some(Report::default())).await?;
        laps.end("concluded");
        self.actions();
        Ok(id)
    }

    async fn apply(
        &self,
        id: SessionId,
        event: &SessionEvent,
        report: Option<Report>,
    ) -> Result<()> {
        let applied = transition::apply(&self.store, self.clock.as_ref(), id, event, report);
        applied
            .await
            .map(drop)
            .with_context(|| format!("{} was not recorded", event.name()))
    }

    /// How many actions a pass of the reconciler plans.
    fn actions(&self) -> usize {
        let snapshot = Snapshot {
            sessions: self.store.active(),
            orchestrations: std::collections::HashMap::new(),
            sandboxes: Sandboxes::default(),
            busy: std::collections::HashSet::new(),
            waits: std::collections::HashSet::new(),
            now: self.clock.now(),
            watching_since: self.clock.now(),
        };
        let limits = Limits {
            slots_max: SLOTS_MAX,
            kinds_max: &[],
            durations: &self.durations,
            prepared_max: SLOTS_MAX,
            stop_grace: SignedDuration::from_secs(60),
        };
        plan(&snapshot, |id| self.store.standing(id), &limits).len()
    }
}

fn line() -> OutputLine {
    OutputLine {
        at: jiff::Timestamp::UNIX_EPOCH,
        stream: Stream::Stdout,
        bytes: br#"{"type":"assistant","message":{"content":[{"type":"text","text":"Done."}]}}"#
            .as_slice()
            .into(),
        cut_bytes: 0,
        line_end: true,
    }
}

fn ending() -> Ending {
    Ending {
        result: Some(ClaudeResult {
            subtype: "success".into(),
            is_error: false,
            text: "Done.".into(),
            usage: baton_agent::protocol::Usage::default(),
        }),
        exit: Some(Exit::Code(0)),
        ..Ending::default()
    }
}
