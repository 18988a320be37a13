//! The store in memory alone, so that its callers can be built; the database takes its place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::types::*;
use baton_domain::session::Report;
use baton_domain::{
    Attempt, OrchestrationId, Session, SessionEvent, SessionId, SessionState, Status,
};
use jiff::Timestamp;
use tokio::sync::watch;

#[derive(Default)]
struct Rows {
    sessions: Vec<Arc<Session>>,
    orchestrations: Vec<Orchestration>,
    keys: HashMap<String, Idempotency>,
    events: HashMap<SessionId, Vec<StoredEvent>>,
    positions: HashMap<(SessionId, Attempt), u64>,
    watchers: HashMap<SessionId, watch::Sender<u64>>,
    changes: u64,
}

impl Rows {
    fn push(&mut self, id: SessionId, at: Timestamp, body: EventBody) {
        let events = self.events.entry(id).or_default();
        let seq = events.len() as u64 + 1;
        events.push(StoredEvent { seq, at, body });
        if let Some(sender) = self.watchers.get(&id) {
            sender.send_replace(seq);
        }
    }

    fn index(&self, id: SessionId) -> Result<usize, StoreError> {
        self.sessions
            .iter()
            .position(|s| s.id == id)
            .ok_or(StoreError::SessionNotFound(id))
    }
}

pub(super) struct Interim(Mutex<Rows>);

impl Interim {
    pub(super) fn new(_: &Path, _: StoreSettings) -> Self {
        Self(Mutex::default())
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create(&self, new: NewSessions) -> Result<Created, StoreError> {
        let mut rows = self.rows();
        if let Some(key) = &new.idempotency {
            if let Some(before) = rows.keys.get(&key.key) {
                if before.digest != key.digest {
                    return Err(StoreError::IdempotencyMismatch);
                }
                return Ok(Created::Before {
                    response: before.response.clone(),
                });
            }
        }
        if let Some(taken) = new.sessions.iter().find(|s| rows.index(s.id).is_ok()) {
            return Err(StoreError::SessionExists(taken.id));
        }
        let made: Vec<_> = new.sessions.into_iter().map(Arc::new).collect();
        rows.orchestrations.extend(new.orchestration);
        if let Some(key) = new.idempotency {
            rows.keys.insert(key.key.clone(), key);
        }
        for session in &made {
            rows.push(session.id, session.created_at, EventBody::Created);
        }
        rows.sessions.extend(made.iter().cloned());
        rows.changes += 1;
        Ok(Created::Now(made))
    }

    pub(super) fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        let rows = self.rows();
        rows.index(id).ok().map(|at| Arc::clone(&rows.sessions[at]))
    }

    pub(super) fn active(&self) -> Vec<Arc<Session>> {
        self.rows()
            .sessions
            .iter()
            .filter(|s| !s.state.is_over())
            .cloned()
            .collect()
    }

    pub(super) fn record(
        &self,
        session: &Session,
        event: &SessionEvent,
        next: SessionState,
        report: Option<Report>,
        now: Timestamp,
    ) -> Result<Arc<Session>, StoreError> {
        let mut rows = self.rows();
        let at = rows.index(session.id)?;
        let old = Arc::clone(&rows.sessions[at]);
        if old.version != session.version {
            return Err(StoreError::Conflict {
                id: session.id,
                read_at: session.version,
            });
        }
        let state = next.name().to_owned();
        let new = Arc::new(Session {
            attempt: next.live_attempt().unwrap_or(old.attempt),
            state: next,
            version: old.version.next(),
            report: report.or_else(|| old.report.clone()),
            ..Session::clone(&old)
        });
        rows.sessions[at] = Arc::clone(&new);
        rows.push(
            new.id,
            now,
            EventBody::Session {
                event: event.clone(),
                state,
            },
        );
        rows.changes += 1;
        Ok(new)
    }

    pub(super) fn page(
        &self,
        query: &SessionQuery,
        status: impl Fn(&Session) -> Status,
    ) -> Result<SessionPage, StoreError> {
        let from: usize = match &query.cursor {
            Some(cursor) => cursor.parse().map_err(|_| StoreError::InvalidCursor)?,
            None => 0,
        };
        let all = self.rows().sessions.clone();
        let limit = query.limit.clamp(1, PAGE_SESSIONS_MAX);
        let mut page = SessionPage::default();
        for (at, session) in all.into_iter().enumerate().skip(from) {
            let fits = query.statuses.is_empty() || query.statuses.contains(&status(&session));
            if !fits
                || query
                    .orchestration
                    .is_some_and(|o| session.orchestration_id != Some(o))
            {
                continue;
            }
            if page.sessions.len() == limit {
                page.next_cursor = Some(at.to_string());
                break;
            }
            page.sessions.push(session);
        }
        Ok(page)
    }

    pub(super) fn orchestration(&self, id: OrchestrationId) -> Result<Orchestration, StoreError> {
        let rows = self.rows();
        let found = rows.orchestrations.iter().find(|o| o.id == id).cloned();
        found.ok_or(StoreError::OrchestrationNotFound(id))
    }

    pub(super) fn changes(&self) -> u64 {
        self.rows().changes
    }

    pub(super) fn acked(&self, id: SessionId, attempt: Attempt) -> Result<u64, StoreError> {
        Ok(self
            .rows()
            .positions
            .get(&(id, attempt))
            .copied()
            .unwrap_or(0))
    }

    pub(super) fn append_output(
        &self,
        id: SessionId,
        attempt: Attempt,
        position: u64,
        lines: &[OutputLine],
    ) -> Result<(), StoreError> {
        let mut rows = self.rows();
        rows.index(id)?;
        if rows.positions.get(&(id, attempt)).copied().unwrap_or(0) >= position {
            return Ok(());
        }
        rows.positions.insert((id, attempt), position);
        for line in lines {
            rows.push(id, line.at, EventBody::Output(line.clone()));
        }
        Ok(())
    }

    pub(super) fn append_note(
        &self,
        id: SessionId,
        text: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut rows = self.rows();
        rows.index(id)?;
        rows.push(id, now, EventBody::Note(text.to_owned()));
        Ok(())
    }

    pub(super) fn events(
        &self,
        id: SessionId,
        after: u64,
        limit: usize,
        _: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let rows = self.rows();
        rows.index(id)?;
        let events = rows.events.get(&id).into_iter().flatten();
        Ok(events
            .filter(|e| e.seq > after)
            .take(limit)
            .cloned()
            .collect())
    }

    pub(super) fn watch_events(&self, id: SessionId) -> watch::Receiver<u64> {
        let mut rows = self.rows();
        let newest = rows.events.get(&id).map_or(0, |events| events.len() as u64);
        rows.watchers
            .entry(id)
            .or_insert_with(|| watch::channel(newest).0)
            .subscribe()
    }
}
