//! What must be true of a session's record, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use baton::store::{EventBody, StoredEvent};
use baton_domain::session::Standing;
use baton_domain::steering::Pause;
use baton_domain::{Attempt, Session, SessionEvent, SessionId, SessionState};

use crate::life::Server;
use crate::part::is_held_by_budget;
use crate::world::World;

/// The records of all sessions.
pub struct Records {
    sessions: BTreeMap<SessionId, Record>,
}

struct Record {
    session: Session,
    events: Vec<StoredEvent>,
}

impl Records {
    pub async fn read(server: &Server, ids: &BTreeSet<SessionId>) -> Self {
        let mut sessions = BTreeMap::new();
        for &id in ids {
            let session = server.store.session(id).await.expect("a session");
            let session = Session::clone(&session);
            let events = server.store.events(id, 0, usize::MAX, usize::MAX).await;
            let events = events.expect("its events");
            sessions.insert(id, Record { session, events });
        }
        Self { sessions }
    }

    pub fn session(&self, id: SessionId) -> &Session {
        &self.sessions[&id].session
    }

    pub fn all(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|record| &record.session)
    }

    /// Those that a person has to start or to let go on, and those that wait for them.
    fn waiting_for_somebody(&self, server: &Server) -> BTreeSet<SessionId> {
        let mut found = BTreeSet::new();
        loop {
            let more = self.all().filter(|session| match session.state {
                SessionState::Created | SessionState::Paused { .. } => true,
                SessionState::Queued => {
                    is_held_by_budget(server, session)
                        || session.dependencies.iter().any(|of| found.contains(of))
                }
                _ => false,
            });
            let more: BTreeSet<SessionId> = more.map(|session| session.id).collect();
            if more == found {
                return found;
            }
            found = more;
        }
    }

    /// What happened to a session, in short.
    pub fn course(&self, id: SessionId) -> String {
        let changes = self.sessions[&id].changes();
        let words = changes.map(|(event, state, _)| format!("{} → {state}", event.name()));
        words.collect::<Vec<_>>().join(", ")
    }

    /// Whether anybody ever had it stopped.
    pub fn was_cancelled(&self, id: SessionId) -> bool {
        let mut changes = self.sessions[&id].changes();
        changes.any(|(event, ..)| *event == SessionEvent::CancelRequested)
    }

    /// What is wrong with them.
    pub async fn wrong(&self, world: &World, server: &Server) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, record) in &self.sessions {
            let mut say = |what: String| wrong.push(format!("session {id}: {what}"));
            let numbers = record.events.iter().map(|event| event.seq);
            if !numbers.eq(1..=record.events.len() as u64) {
                say("its events have a gap".into());
            }
            if let Err(why) = record.replay() {
                say(why);
            }
            record.attempts(&mut say);
            record.is_saved(world, &mut say);
            self.order(record, &mut say);
            self.output(record, world, server, &mut say).await;
        }
        for (run, agent) in world.agents().iter() {
            if agent.claude_starts() > 1 {
                wrong.push(format!("Claude was started more than once: {run:?}"));
            }
        }
        wrong
    }

    /// Launches come after the completion of dependencies.
    fn order(&self, record: &Record, say: &mut impl FnMut(String)) {
        for (event, _, at) in record.changes() {
            if !matches!(event, SessionEvent::LaunchDecided(_)) {
                continue;
            }
            for dependency in &record.session.dependencies {
                let mut changes = self.sessions[dependency].changes();
                let is_complete =
                    changes.any(|(_, state, when)| state == "completed" && when <= at);
                if !is_complete {
                    say(format!("launched before {dependency} had completed"));
                }
            }
        }
    }

    /// Output is there once, in order, as far as it was acknowledged.
    async fn output(
        &self,
        record: &Record,
        world: &World,
        server: &Server,
        say: &mut impl FnMut(String),
    ) {
        let id = record.session.id;
        for attempt in (1..=record.session.attempt.0).map(Attempt) {
            let acked = server.store.acked(id, attempt).await.expect("a position");
            let mark = format!("{attempt} ");
            let stored = record.events.iter().filter_map(|event| match &event.body {
                EventBody::Output(line) if line.bytes.starts_with(mark.as_bytes()) => {
                    Some(&line.bytes)
                }
                _ => None,
            });
            let agents = world.agents();
            let agent = agents.get(&(id, attempt));
            let told = agent.into_iter().flat_map(|agent| agent.output(acked));
            let (stored, told): (Vec<_>, Vec<_>) = (stored.collect(), told.collect());
            if agent.is_some_and(|agent| agent.keeps_its_spool()) && stored != told {
                say(format!(
                    "of attempt {attempt} {stored:?} is stored, not {told:?}"
                ));
            }
        }
    }
}

impl Record {
    fn changes(&self) -> impl Iterator<Item = (&SessionEvent, &str, jiff::Timestamp)> {
        self.events.iter().filter_map(|one| match &one.body {
            EventBody::Session { event, state } => Some((event, state.as_str(), one.at)),
            _ => None,
        })
    }

    /// Applying the events one after the other leads to where the session is.
    fn replay(&self) -> Result<(), String> {
        let mut began = vec![SessionState::Created, SessionState::Queued];
        for dependency in &self.session.dependencies {
            for asked in [true, false] {
                let dependency = *dependency;
                began.push(SessionState::Blocked { dependency, asked });
            }
        }
        let mut why = String::new();
        for state in began {
            match self.replay_from(state) {
                Ok(()) => return Ok(()),
                Err(error) if why.is_empty() => why = error,
                Err(_) => {}
            }
        }
        Err(why)
    }

    fn replay_from(&self, state: SessionState) -> Result<(), String> {
        let session = &self.session;
        let new = Session::new(
            session.id,
            session.kind,
            session.project.clone(),
            session.claude_session_id,
            session.created_at,
        );
        let mut replayed = Session { state, ..new };
        for (event, state, at) in self.changes() {
            let next = replayed.after(event, at);
            replayed = next.map_err(|error| format!("its events do not follow: {error}"))?;
            if replayed.state.name() != state {
                let is = replayed.state.name();
                return Err(format!("{} leads to {is}, not to {state}", event.name()));
            }
        }
        let same = replayed.state.name() == session.state.name()
            && replayed.attempt == session.attempt
            && replayed.steering.messages == session.steering.messages
            && replayed.steering.resume == session.steering.resume;
        match same {
            true => Ok(()),
            false => Err(format!(
                "its events lead to {replayed:?}, not to {session:?}"
            )),
        }
    }

    /// What a session left that is over and did not complete is on a branch, unless that could not
    /// be.
    fn is_saved(&self, world: &World, say: &mut impl FnMut(String)) {
        let SessionState::Finished { outcome, .. } = &self.session.state else {
            return;
        };
        let Some(report) = &self.session.report else {
            return;
        };
        let left = report.result.as_ref();
        let left = left.filter(|left| left.commit != left.base_commit && !outcome.is_completed());
        let Some(left) = left else {
            return;
        };
        // A remote that refuses it, or does not answer for long, is told of.
        let told = format!("{outcome:?} {:?}", report.warnings);
        let is_told = told.contains("in the server's mirror");
        let branch = left.branch.as_ref().map(|branch| branch.parse());
        match branch {
            Some(branch) => {
                let branch = branch.expect("a branch");
                let repository = &self.session.project.repository;
                let landed = world.code.landed(repository, &branch);
                if !world.code.works(&left.commit).is_subset(&landed) {
                    say(format!("its work is not on {branch}"));
                }
            }
            None if is_told => {}
            None => say("its work is on no branch".into()),
        }
    }

    /// Each attempt was launched once, started Claude once at most, and has one outcome.
    fn attempts(&self, say: &mut impl FnMut(String)) {
        let mut launches = BTreeMap::<Attempt, usize>::new();
        let mut starts = BTreeMap::<Attempt, usize>::new();
        let mut outcomes = BTreeMap::<Attempt, usize>::new();
        for (event, ..) in self.changes() {
            match event {
                SessionEvent::LaunchDecided(of) => *launches.entry(*of).or_default() += 1,
                SessionEvent::ClaudeStarted(of) => *starts.entry(*of).or_default() += 1,
                SessionEvent::Concluded(of, _)
                | SessionEvent::Paused(of, _)
                | SessionEvent::LaunchLost(of)
                | SessionEvent::LaunchFailed(of, _)
                | SessionEvent::SandboxLost(of, _) => *outcomes.entry(*of).or_default() += 1,
                _ => {}
            }
        }
        let state = &self.session.state;
        let is_under_way = state.holds_slot() || state.live_attempt().is_some();
        for (attempt, count) in &launches {
            let goes_on = is_under_way && *attempt == self.session.attempt;
            let outcomes = outcomes.get(attempt).copied().unwrap_or(0);
            if *count != 1 || outcomes != usize::from(!goes_on) {
                say(format!(
                    "attempt {attempt} has {count} launches and {outcomes} outcomes"
                ));
            }
        }
        if starts
            .values()
            .chain(outcomes.values())
            .any(|count| *count > 1)
        {
            say("an attempt has two starts or two outcomes".into());
        }
    }
}

/// What waits without a reason, of a graph at rest: everybody who was asked for is over, and
/// whoever is blocked is blocked by what it names.
pub fn waiting(records: &Records, server: &Server, asked: &BTreeSet<SessionId>) -> Vec<String> {
    let mut wrong = Vec::new();
    let for_somebody = records.waiting_for_somebody(server);
    for session in records.all() {
        let lost = |id: &SessionId| server.store.standing(*id) == Some(Standing::Lost);
        let id = session.id;
        match &session.state {
            SessionState::Paused {
                pause: Pause::OrchestrationBudget,
                ..
            } if !is_held_by_budget(server, session) => {
                wrong.push(format!("session {id} has a budget and does not go on"));
            }
            SessionState::Finished { .. } | SessionState::Paused { .. } => {}
            SessionState::Created if asked.contains(&id) => {
                wrong.push(format!("session {id} was asked for and does not run"));
            }
            SessionState::Created if session.dependencies.iter().any(lost) => {
                wrong.push(format!("session {id} is not blocked by what is lost"));
            }
            SessionState::Created => {}
            SessionState::Blocked { dependency, .. } => {
                let named = records.session(*dependency).state.name();
                if !session.dependencies.iter().any(lost) {
                    wrong.push(format!(
                        "session {id} is blocked by nobody ({named} {dependency})"
                    ));
                } else if !lost(dependency) || !session.dependencies.contains(dependency) {
                    wrong.push(format!("session {id} names {dependency}, which is {named}"));
                }
            }
            SessionState::Queued if for_somebody.contains(&id) => {}
            state => wrong.push(format!("session {id} waits for ever, {}", state.name())),
        }
    }
    wrong
}
