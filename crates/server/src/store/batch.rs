//! What the writer is asked for, and many such requests turned into the rows of one transaction.
//!
//! Each request is checked against the directory, which holds what was committed last. So that
//! this is the truth, a batch takes at most one request for any one session, key or
//! orchestration; the next one waits for the next batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use baton_domain::landing::Landing;
use baton_domain::waits::Wait;
use baton_domain::{Attempt, OrchestrationId, Session, SessionId, Version, WaitId};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::directory::{Change, Entry, LandingEntry, OrchestrationEntry, Place, Tables};
use super::rows::{
    Brief, BriefRow, BudgetRow, CounterRow, DerivedEvent, EventRow, FirstSeq, IntroductionRow,
    KeyRow, LandingRow, MoveRow, Of, OrchestrationBody, OrchestrationRow, PositionRow, Range,
    ReopeningRow, Rows, SessionRow, StateRow, Truncation, WaitRow, hex,
};
use super::types::{Idempotency, NewSessions, Orchestration, StoreError, Transition, Written};

/// Ranges grow up to so many bytes, so that reading from the middle of one skips little. An
/// append that is larger gets ranges as large as itself.
const RANGE_BYTES_MAX: u64 = 256 * 1024;

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One thing to be written.
pub(super) enum Request {
    Create {
        new: Box<NewSessions>,
        answer: Answer<Written>,
    },
    Record {
        changes: Vec<Transition>,
        idempotency: Option<Idempotency>,
        answer: Answer<Written>,
    },
    Landing {
        id: OrchestrationId,
        read_at: Version,
        landing: Box<Landing>,
        answer: Answer<()>,
    },
    Budget {
        id: OrchestrationId,
        max_usd: f64,
        answer: Answer<()>,
    },
    Note {
        id: SessionId,
        text: String,
        at: Timestamp,
        answer: Answer<()>,
    },
    Output {
        append: Box<Append>,
        answer: Answer<Option<Range>>,
    },
    Wait {
        id: WaitId,
        wait: Box<Wait>,
        answer: Answer<()>,
    },
    Introduction {
        id: String,
        at: Timestamp,
        body: Option<String>,
        answer: Answer<()>,
    },
    /// Write what was asked for before, then stop.
    Close,
}

/// Output whose bytes are in their files already.
pub(super) struct Append {
    pub(super) id: SessionId,
    pub(super) attempt: Attempt,
    pub(super) position: u64,
    /// What was written where; the numbers are given here.
    pub(super) pieces: Vec<Piece>,
    /// The session's newest range, which may be made longer.
    pub(super) newest: Option<Range>,
    /// Ranges to be forgotten, and what stands for them.
    pub(super) dropped: Vec<Range>,
    pub(super) truncations: Vec<Truncation>,
}

/// Lines that were written in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) lines: u64,
    pub(super) bytes: u64,
    pub(super) text_bytes: u64,
}

/// What two requests of one batch must not both write.
#[derive(PartialEq, Eq, Hash)]
enum Claim {
    Session(SessionId),
    Orchestration(OrchestrationId),
    Key(String),
    Wait(WaitId),
    Introduction(String),
}

/// The stored digest and response of an idempotency key.
pub(super) type KnownKeys = HashMap<String, ([u8; 32], Vec<u8>)>;

type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// One transaction, and what to do after it.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Rows,
    pub(super) changes: Vec<Change>,
    /// Sessions with new events, and the newest number of each.
    pub(super) news: Vec<(SessionId, u64)>,
    pub(super) replies: Vec<Reply>,
    claims: HashSet<Claim>,
    reopened: HashSet<OrchestrationId>,
    sessions_new: u64,
}

impl Request {
    /// The hash of its idempotency key.
    pub(super) fn key_hash(&self) -> Option<String> {
        match self {
            Self::Create { new, .. } => new.idempotency.as_ref().map(key_hash),
            Self::Record { idempotency, .. } => idempotency.as_ref().map(key_hash),
            _ => None,
        }
    }

    fn claims(&self) -> Vec<Claim> {
        match self {
            Self::Create { new, .. } => {
                let sessions = new
                    .sessions
                    .iter()
                    .map(|session| Claim::Session(session.id));
                let orchestration = new.orchestration.iter().map(|o| Claim::Orchestration(o.id));
                let key = self.key_hash().map(Claim::Key);
                sessions.chain(orchestration).chain(key).collect()
            }
            Self::Record { changes, .. } => {
                let sessions = changes.iter().map(|change| Claim::Session(change.next.id));
                sessions.chain(self.key_hash().map(Claim::Key)).collect()
            }
            Self::Landing { id, .. } | Self::Budget { id, .. } => vec![Claim::Orchestration(*id)],
            Self::Note { id, .. } => vec![Claim::Session(*id)],
            Self::Output { append, .. } => vec![Claim::Session(append.id)],
            Self::Wait { id, .. } => vec![Claim::Wait(*id)],
            Self::Introduction { id, .. } => vec![Claim::Introduction(id.clone())],
            Self::Close => Vec::new(),
        }
    }

    /// Orchestrations that must be there before.
    fn orchestrations_needed(&self) -> impl Iterator<Item = OrchestrationId> {
        let new = match self {
            Self::Create { new, .. } => Some(new),
            _ => None,
        };
        new.into_iter().flat_map(|new| {
            let own = new
                .orchestration
                .as_ref()
                .map(|orchestration| orchestration.id);
            let named = new
                .sessions
                .iter()
                .filter_map(|session| session.orchestration_id);
            named.filter(move |id| Some(*id) != own)
        })
    }

    /// Tells the asker that it cannot be done.
    pub(super) fn refuse(self, error: StoreError) {
        // Who does not wait any more needs no answer.
        match self {
            Self::Create { answer, .. } => drop(answer.send(Err(error))),
            Self::Record { answer, .. } => drop(answer.send(Err(error))),
            Self::Landing { answer, .. }
            | Self::Budget { answer, .. }
            | Self::Note { answer, .. }
            | Self::Wait { answer, .. }
            | Self::Introduction { answer, .. } => {
                drop(answer.send(Err(error)));
            }
            Self::Output { answer, .. } => drop(answer.send(Err(error))),
            Self::Close => {}
        }
    }
}

impl Batch {
    /// Takes a request up, or gives it back for the next batch. One that is refused is answered
    /// at once: the refusal rests on what is committed.
    ///
    /// # Errors
    /// What JSON cannot express; nothing of this batch may be written then.
    pub(super) fn take(
        &mut self,
        request: Request,
        tables: &Tables,
        known: &KnownKeys,
    ) -> Result<Option<Request>, serde_json::Error> {
        let claims = request.claims();
        let clashes = claims.iter().any(|claim| self.claims.contains(claim))
            || request
                .orchestrations_needed()
                .any(|id| self.claims.contains(&Claim::Orchestration(id)));
        // The claims of one that waits count too: those after it must not overtake it.
        self.claims.extend(claims);
        if clashes {
            return Ok(Some(request));
        }
        match request {
            Request::Create { new, answer } => match checked(&new, tables, known) {
                Ok(None) => self.create(*new, tables, answer)?,
                Ok(Some(before)) => drop(answer.send(Ok(before))),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Request::Record {
                changes,
                idempotency,
                answer,
            } => match places(&changes, idempotency.as_ref(), tables, known) {
                Ok(Ok(places)) => {
                    let mut moved = Vec::with_capacity(changes.len());
                    for (change, place) in changes.into_iter().zip(places) {
                        moved.push(self.record(change, place, tables)?);
                    }
                    self.keep_answer(idempotency)?;
                    self.reply(answer, Written::Now(moved));
                }
                Ok(Err(before)) => drop(answer.send(Ok(before))),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Request::Landing {
                id,
                read_at,
                landing,
                answer,
            } => match tables.landing(id).map(|entry| entry.version) {
                None => drop(answer.send(Err(StoreError::OrchestrationNotFound(id)))),
                Some(version) if version != read_at => {
                    drop(answer.send(Err(StoreError::LandingConflict(id))));
                }
                Some(_) => {
                    self.rows.landings.push(&LandingRow {
                        id,
                        read_at: read_at.0,
                        version: read_at.next().0,
                        landing: &landing,
                    })?;
                    self.changes.push(Change::Landing(id, landing));
                    self.reply(answer, ());
                }
            },
            Request::Budget {
                id,
                max_usd,
                answer,
            } => match tables.has_orchestration(id) {
                false => drop(answer.send(Err(StoreError::OrchestrationNotFound(id)))),
                true => {
                    let max_cost_usd = max_usd;
                    self.rows.budgets.push(&BudgetRow { id, max_cost_usd })?;
                    self.changes.push(Change::Budget(id, max_usd));
                    self.reply(answer, ());
                }
            },
            Request::Note {
                id,
                text,
                at,
                answer,
            } => match tables.place(id) {
                None => drop(answer.send(Err(StoreError::SessionNotFound(id)))),
                Some(place) => {
                    let entry = tables.entry(place);
                    let seq = entry.last_seq + 1;
                    self.event(entry.ordinal, seq, at, &DerivedEvent::Note(text))?;
                    self.count(place, &entry, seq)?;
                    self.reply(answer, ());
                }
            },
            Request::Output { append, answer } => match tables.place(append.id) {
                None => drop(answer.send(Err(StoreError::SessionNotFound(append.id)))),
                Some(place) => {
                    let newest = self.output(&append, place, &tables.entry(place))?;
                    self.reply(answer, newest);
                }
            },
            Request::Wait { id, wait, answer } => {
                self.rows.waits.push(&WaitRow {
                    id,
                    created_ms: wait.created_at.as_millisecond(),
                    body: &wait,
                })?;
                self.reply(answer, ());
            }
            Request::Introduction {
                id,
                at,
                body,
                answer,
            } => {
                self.rows.introductions.push(&IntroductionRow {
                    id: &id,
                    created_ms: at.as_millisecond(),
                    body: body.as_deref(),
                })?;
                self.reply(answer, ());
            }
            // The writer keeps these to itself.
            Request::Close => {}
        }
        Ok(None)
    }

    fn create(
        &mut self,
        new: NewSessions,
        tables: &Tables,
        answer: Answer<Written>,
    ) -> Result<(), serde_json::Error> {
        if let Some(orchestration) = new.orchestration {
            self.insert_orchestration(orchestration)?;
        }
        self.keep_answer(new.idempotency)?;
        let mut made = Vec::with_capacity(new.sessions.len());
        for session in new.sessions {
            self.sessions_new += 1;
            let ordinal = tables.ordinal_max() + self.sessions_new;
            let session = Arc::new(session);
            // Of one that is made with it nothing was looked at yet, and a gate's run is the
            // landing's own.
            if session.command.is_none() {
                self.reopen(session.orchestration_id, tables)?;
            }
            self.insert(ordinal, &session)?;
            self.changes.push(Change::New {
                ordinal,
                last_seq: 1,
                session: Arc::clone(&session),
            });
            self.news.push((session.id, 1));
            made.push(session);
        }
        self.reply(answer, Written::Now(made));
        Ok(())
    }

    fn insert_orchestration(&mut self, new: Orchestration) -> Result<(), serde_json::Error> {
        let landing = new.lands.then(|| Box::new(LandingEntry::of(&new)));
        self.changes.push(Change::Orchestration(
            new.id,
            OrchestrationEntry::of(&new),
            landing,
        ));
        self.rows.orchestrations.push(&OrchestrationRow {
            id: new.id,
            created_at: new.created_at,
            lands: u8::from(new.lands),
            parallel_max: new.parallel_max,
            max_cost_usd: new.max_cost_usd,
            body: &OrchestrationBody {
                repository: new.repository,
                requirements: new.requirements,
                branch: new.branch,
                gate: new.gate,
                timeout_s: new.timeout_s,
                summary: new.summary,
            },
        })
    }

    /// Has the landing of an orchestration look at its sessions again.
    fn reopen(
        &mut self,
        id: Option<OrchestrationId>,
        tables: &Tables,
    ) -> Result<(), serde_json::Error> {
        let Some(id) = id.filter(|id| tables.landing(*id).is_some()) else {
            return Ok(());
        };
        // One row and one count for a whole batch: it is looked at after all of it.
        if self.reopened.insert(id) {
            self.rows.reopenings.push(&ReopeningRow { id })?;
            self.changes.push(Change::Reopened(id));
        }
        Ok(())
    }

    fn insert(&mut self, ordinal: u64, session: &Session) -> Result<(), serde_json::Error> {
        self.rows.sessions.push(&SessionRow {
            ordinal,
            id: session.id,
            orchestration_id: session.orchestration_id,
            state: session.state.name(),
            version: session.version.0,
            attempt: session.attempt,
            last_seq: 1,
        })?;
        self.rows.briefs.push(&BriefRow {
            ordinal,
            body: &Brief {
                kind: session.kind,
                claude_session_id: session.claude_session_id,
                project: session.project.clone(),
                dependencies: session.dependencies.clone(),
                timeout_s: session.timeout_s,
                project_settings: session.project_settings,
                created_at: session.created_at,
                title: session.title.clone(),
                priority: session.priority,
                command: session.command.clone(),
                planning: session.planning.clone(),
                start_commit: session.start_commit.clone(),
                parent: session.parent,
            },
        })?;
        self.rows.states.push(&StateRow {
            ordinal,
            state: &session.state,
            report: session.report.as_ref(),
            steering: &session.steering,
        })?;
        self.event(ordinal, 1, session.created_at, &DerivedEvent::Created)
    }

    fn record(
        &mut self,
        change: Transition,
        place: Place,
        tables: &Tables,
    ) -> Result<Arc<Session>, serde_json::Error> {
        let entry = tables.entry(place);
        let last_seq = entry.last_seq + 1;
        if entry.over.is_some() && !change.next.state.is_over() {
            self.reopen(change.next.orchestration_id, tables)?;
        }
        let next = Arc::new(Session {
            version: change.next.version.next(),
            ..change.next
        });
        self.rows.moves.push(&MoveRow {
            ordinal: entry.ordinal,
            read_at: entry.version.0,
            version: next.version.0,
            state: next.state.name(),
            attempt: next.attempt,
            last_seq,
            spent_usd: next.spent_usd(),
        })?;
        self.rows.states.push(&StateRow {
            ordinal: entry.ordinal,
            state: &next.state,
            report: next.report.as_ref(),
            steering: &next.steering,
        })?;
        if let Some((attempt, position)) = change.told {
            let row = PositionRow { attempt, position };
            self.rows.positions.push(&Of {
                ordinal: entry.ordinal,
                row,
            })?;
        }
        let event = DerivedEvent::Session {
            event: change.event,
            state: next.state.name().to_owned(),
        };
        self.event(entry.ordinal, last_seq, change.at, &event)?;
        self.changes.push(Change::Moved {
            place,
            last_seq,
            session: Arc::clone(&next),
        });
        self.news.push((next.id, last_seq));
        Ok(next)
    }

    fn keep_answer(&mut self, idempotency: Option<Idempotency>) -> Result<(), serde_json::Error> {
        let Some(key) = idempotency else {
            return Ok(());
        };
        self.rows.keys.push(&KeyRow {
            key_sha256: key_hash(&key),
            digest: hex(&key.digest),
            response: hex(&key.response),
        })
    }

    /// Numbers the lines; gives back the session's newest range.
    fn output(
        &mut self,
        append: &Append,
        place: Place,
        entry: &Entry,
    ) -> Result<Option<Range>, serde_json::Error> {
        let ordinal = entry.ordinal;
        for range in &append.dropped {
            let first_seq = range.first_seq;
            self.rows.dropped_ranges.push(&Of {
                ordinal,
                row: FirstSeq { first_seq },
            })?;
        }
        for truncation in &append.truncations {
            self.rows.truncations.push(&Of {
                ordinal,
                row: truncation,
            })?;
        }
        let mut newest = append.newest;
        let mut last_seq = entry.last_seq;
        for piece in &append.pieces {
            let range = ranged(piece, append.attempt, last_seq + 1, newest);
            last_seq += piece.lines;
            self.rows.ranges.push(&Of {
                ordinal,
                row: range,
            })?;
            newest = Some(range);
        }
        self.rows.positions.push(&Of {
            ordinal,
            row: PositionRow {
                attempt: append.attempt,
                position: append.position,
            },
        })?;
        if last_seq > entry.last_seq {
            self.count(place, entry, last_seq)?;
        }
        Ok(newest)
    }

    fn event(
        &mut self,
        ordinal: u64,
        seq: u64,
        at: Timestamp,
        body: &DerivedEvent,
    ) -> Result<(), serde_json::Error> {
        self.rows.events.push(&EventRow {
            ordinal,
            seq,
            at_ms: at.as_millisecond(),
            body,
        })
    }

    fn count(
        &mut self,
        place: Place,
        entry: &Entry,
        last_seq: u64,
    ) -> Result<(), serde_json::Error> {
        self.rows.counters.push(&CounterRow {
            ordinal: entry.ordinal,
            last_seq,
        })?;
        self.changes.push(Change::Counted { place, last_seq });
        self.news.push((entry.id, last_seq));
        Ok(())
    }

    /// To be answered once the batch is committed, or has failed.
    fn reply<T: Send + 'static>(&mut self, answer: Answer<T>, value: T) {
        self.replies.push(Box::new(move |outcome| {
            // Who does not wait any more needs no answer.
            drop(answer.send(outcome.map(|()| value)));
        }));
    }
}

/// What a request with this key was answered, if there was one.
fn answered_before(
    idempotency: Option<&Idempotency>,
    known: &KnownKeys,
) -> Result<Option<Written>, StoreError> {
    let Some(key) = idempotency else {
        return Ok(None);
    };
    match known.get(&key_hash(key)) {
        None => Ok(None),
        Some((digest, _)) if *digest != key.digest => Err(StoreError::IdempotencyMismatch),
        Some((_, response)) => Ok(Some(Written::Before {
            response: response.clone(),
        })),
    }
}

/// Where the sessions of these changes are, if all are as they were read; or what the first such
/// request was answered.
fn places(
    changes: &[Transition],
    idempotency: Option<&Idempotency>,
    tables: &Tables,
    known: &KnownKeys,
) -> Result<Result<Vec<Place>, Written>, StoreError> {
    if let Some(before) = answered_before(idempotency, known)? {
        return Ok(Err(before));
    }
    let mut places = Vec::with_capacity(changes.len());
    for Transition { next, .. } in changes {
        let (id, read_at) = (next.id, next.version);
        let place = tables.place(id).ok_or(StoreError::SessionNotFound(id))?;
        if tables.entry(place).version != read_at {
            return Err(StoreError::Conflict { id, read_at });
        }
        places.push(place);
    }
    Ok(Ok(places))
}

/// Whether these sessions can be made: `None`, or what the first such request was answered.
fn checked(
    new: &NewSessions,
    tables: &Tables,
    known: &KnownKeys,
) -> Result<Option<Written>, StoreError> {
    if let Some(before) = answered_before(new.idempotency.as_ref(), known)? {
        return Ok(Some(before));
    }
    let own = new
        .orchestration
        .as_ref()
        .map(|orchestration| orchestration.id);
    if let Some(id) = own.filter(|id| tables.has_orchestration(*id)) {
        return Err(StoreError::OrchestrationExists(id));
    }
    let mut ids = HashSet::with_capacity(new.sessions.len());
    for session in &new.sessions {
        if tables.place(session.id).is_some() || !ids.insert(session.id) {
            return Err(StoreError::SessionExists(session.id));
        }
        if let Some(id) = session.orchestration_id
            && Some(id) != own
            && !tables.has_orchestration(id)
        {
            return Err(StoreError::OrchestrationNotFound(id));
        }
    }
    Ok(None)
}

/// The range of a piece whose first line gets `first_seq`: the newest one made longer, where the
/// piece follows it in number and in the file.
fn ranged(piece: &Piece, attempt: Attempt, first_seq: u64, newest: Option<Range>) -> Range {
    if let Some(range) = newest
        && range.first_seq + range.lines == first_seq
        && (range.attempt, range.segment) == (attempt, piece.segment)
        && range.offset + range.bytes == piece.offset
        && range.bytes + piece.bytes <= RANGE_BYTES_MAX
    {
        return Range {
            lines: range.lines + piece.lines,
            bytes: range.bytes + piece.bytes,
            text_bytes: range.text_bytes + piece.text_bytes,
            ..range
        };
    }
    Range {
        first_seq,
        lines: piece.lines,
        attempt,
        segment: piece.segment,
        offset: piece.offset,
        bytes: piece.bytes,
        text_bytes: piece.text_bytes,
    }
}

/// What stands for a key in the database: of one length, and telling nothing of the key.
pub(super) fn hash_of_key(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

fn key_hash(idempotency: &Idempotency) -> String {
    hash_of_key(&idempotency.key)
}
