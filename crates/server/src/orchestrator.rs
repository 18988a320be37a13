//! One method per operation: the only thing behind both doors, HTTP and MCP.
//!
//! An operation reads, asks the domain what follows, and records that. It starts nothing itself:
//! the reconciler does, woken after each change.

mod coordination;
mod introductions;
mod orchestrate;
mod output;
mod status_detail;
mod steer;
mod types;
mod waits;

use std::collections::HashSet;
use std::sync::Arc;

use baton_domain::coordination::coordinates;
use baton_domain::dependencies::check_new;
use baton_domain::ending::Usage;
use baton_domain::landing::Landing;
use baton_domain::session::Standing;
use baton_domain::steering::Steering;
use baton_domain::{
    Attempt, OrchestrationId, Session, SessionEvent, SessionId, SessionState, Status,
};
use tokio::sync::watch;

pub use coordination::{Caller, WaitGuard};
pub use output::{OUTPUT_BYTES_MAX, SCANNED_BYTES_MAX};
pub use types::{
    Accepted, Admission, DependencyMode, Ids, Meter, NewMessage, NewOrchestration, NewSession,
    Once, Orchestrated, OrchestrationDetails, OrchestratorError, OrchestratorParts, OutputCursor,
    Planner, RandomIds, Refusal, SessionDetails, SessionOutput, Strategy,
};
pub use waits::Waiting;

use crate::blocked;
use crate::failpoint;
use crate::store::{
    Idempotency, NewSessions, PAGE_SESSIONS_MAX, SessionPage, SessionQuery, StoreError,
    StoredEvent, Written,
};
use crate::transition::decide;

/// How often a change of a landing is decided anew when its own steps were faster.
const LANDING_DECISIONS_MAX: usize = 16;

/// All operations. Clones are the same orchestrator.
#[derive(Clone)]
pub struct Orchestrator {
    parts: Arc<OrchestratorParts>,
    /// Held while a coordination session's child is made, and while one is cancelled with all of
    /// its own. There is one server for each store, so nobody else does either.
    families: Arc<tokio::sync::Mutex<()>>,
}

impl Orchestrator {
    /// An orchestrator working with these parts.
    #[must_use]
    pub fn new(parts: OrchestratorParts) -> Self {
        Self {
            parts: Arc::new(parts),
            families: Arc::default(),
        }
    }

    /// Makes a session for a client. It starts when asked to, or on its own where `auto_start` says
    /// so. A coordination session gets an orchestration of its own, unless it is added to one.
    ///
    /// # Errors
    /// [`OrchestratorError::Dependency`], [`OrchestratorError::Refused`], and from the store: the
    /// id is taken, or the key was used for something else.
    pub async fn create_session(
        &self,
        new: NewSession,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        self.make_session(new, None, once).await
    }

    async fn make_session(
        &self,
        new: NewSession,
        parent: Option<SessionId>,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        let id = new.id.unwrap_or_else(|| self.parts.ids.session());
        let mut sessions = self.new_sessions(vec![(id, new)])?;
        if let Some(response) = self.refused_or_before(once.as_ref()).await? {
            return Ok(Accepted::Before(response));
        }
        let [session] = &mut sessions[..] else {
            return Err(StoreError::SessionNotFound(id).into());
        };
        session.parent = parent;
        let orchestration = self.orchestration_for(session);
        if let Some(orchestration) = &orchestration {
            session.orchestration_id = Some(orchestration.id);
        }
        let details = self.details(Arc::new(session.clone()));
        let is_blocked = matches!(session.state, SessionState::Blocked { .. });
        let new = NewSessions {
            orchestration,
            sessions,
            idempotency: once.as_ref().map(|once| idempotency(once, &details)),
        };
        let before = self.store_new(new).await?;
        if is_blocked {
            // What is in its way may have been retried while it was made.
            blocked::review(&self.parts.store, self.parts.clock.as_ref()).await?;
        }
        Ok(match before {
            None => Accepted::Now(details),
            Some(response) => Accepted::Before(response),
        })
    }

    /// Asks for a session to run. It starts when its dependencies have completed and a slot is
    /// free; asking again before that changes nothing.
    ///
    /// # Errors
    /// [`OrchestratorError::InvalidTransition`] for a session that runs or is over,
    /// [`OrchestratorError::Blocked`], [`OrchestratorError::Refused`], not found.
    pub async fn start_session(&self, id: SessionId) -> Result<SessionDetails, OrchestratorError> {
        let session = self
            .decide(id, |session| {
                let lost = self.lost_dependency(&session.dependencies);
                let event = match (&session.state, lost) {
                    (SessionState::Blocked { dependency, .. }, _) => {
                        return Err(self.blocked(id, *dependency));
                    }
                    (SessionState::Created | SessionState::Queued, Some(dependency)) => {
                        SessionEvent::DependencyLost(dependency)
                    }
                    _ => SessionEvent::StartRequested,
                };
                let next = self.after(session, &event, "started")?;
                if event == SessionEvent::StartRequested && next != *session {
                    self.parts.admission.check()?;
                }
                Ok((event, next))
            })
            .await?;
        match session.state {
            SessionState::Blocked { dependency, .. } => Err(self.blocked(id, dependency)),
            _ => Ok(self.details(session)),
        }
    }

    /// Asks for a session to stop. One that runs saves its work first; one that was cancelled
    /// before is answered as it stands. With a coordination session stop those that it made.
    ///
    /// # Errors
    /// [`OrchestratorError::InvalidTransition`] for a session that ended otherwise; not found.
    pub async fn cancel_session(&self, id: SessionId) -> Result<SessionDetails, OrchestratorError> {
        if coordinates(&*self.parts.store.session(id).await?) {
            return self.cancel_family(id).await;
        }
        let session = self
            .decide(id, |session| {
                Ok((SessionEvent::CancelRequested, self.cancelled(session)?))
            })
            .await?;
        Ok(self.details(session))
    }

    fn cancelled(&self, session: &Session) -> Result<Session, OrchestratorError> {
        match session.state.status(false) {
            Status::Cancelled => Ok(session.clone()),
            _ => self.after(session, &SessionEvent::CancelRequested, "cancelled"),
        }
    }

    /// One session.
    ///
    /// # Errors
    /// Not found.
    pub async fn session(&self, id: SessionId) -> Result<SessionDetails, OrchestratorError> {
        match self.parts.store.cached_session(id) {
            Some(session) => Ok(self.details(session)),
            None => Ok(self.details(self.parts.store.session(id).await?)),
        }
    }

    /// Sessions in order of creation, with the cursor of the next page.
    ///
    /// # Errors
    /// [`StoreError::InvalidCursor`].
    pub async fn list_sessions(
        &self,
        query: &SessionQuery,
    ) -> Result<(Vec<SessionDetails>, Option<String>), OrchestratorError> {
        let SessionPage {
            sessions,
            next_cursor,
        } = self.parts.store.page(query).await?;
        let sessions = sessions.into_iter().map(|session| self.details(session));
        Ok((sessions.collect(), next_cursor))
    }

    /// The time, as everything is told that happens.
    #[must_use]
    pub fn now(&self) -> jiff::Timestamp {
        self.parts.clock.now()
    }

    /// How many sessions a query asks for, on all pages together.
    #[must_use]
    pub fn count_sessions(&self, query: &SessionQuery) -> usize {
        self.parts.store.count(query)
    }

    /// Counts changes: while it stays equal, so does what [`Orchestrator::list_sessions`] answers.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.parts.store.changes()
    }

    /// One orchestration with its sessions.
    ///
    /// # Errors
    /// Not found.
    pub async fn orchestration(
        &self,
        id: OrchestrationId,
    ) -> Result<OrchestrationDetails, OrchestratorError> {
        let orchestration = self.parts.store.orchestration(id).await?;
        let query = SessionQuery {
            orchestration: Some(id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        let (sessions, _) = self.list_sessions(&query).await?;
        let running: Vec<SessionId> = sessions
            .iter()
            .filter(|of| of.session.state.live_attempt().is_some())
            .map(|of| of.session.id)
            .collect();
        let usage = sessions.iter().filter_map(|of| self.usage(&of.session));
        let usage = usage.fold(Usage::default(), Usage::and);
        Ok(OrchestrationDetails {
            orchestration,
            usage,
            budget: self.parts.store.budget(id, self.metered_usd()),
            overlaps: (self.parts.overlaps)(&running),
            sessions,
        })
    }

    /// Asks for all sessions of an orchestration to stop that are not over. What others of it have
    /// made is not landed, if it lands as a whole and has not yet.
    ///
    /// # Errors
    /// Not found. A session that ends by itself meanwhile is no error.
    pub async fn cancel_orchestration(
        &self,
        id: OrchestrationId,
    ) -> Result<OrchestrationDetails, OrchestratorError> {
        self.cancel_landing(id).await?;
        let mut query = SessionQuery {
            orchestration: Some(id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        loop {
            let (sessions, next_cursor) = self.list_sessions(&query).await?;
            for details in sessions {
                let blocked = matches!(details.session.state, SessionState::Blocked { .. });
                if details.session.state.is_over() && !blocked {
                    continue;
                }
                match self.cancel_session(details.session.id).await {
                    Ok(_) | Err(OrchestratorError::InvalidTransition { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if next_cursor.is_none() {
                return self.orchestration(id).await;
            }
            query.cursor = next_cursor;
        }
    }

    pub(super) async fn cancel_landing(
        &self,
        id: OrchestrationId,
    ) -> Result<(), OrchestratorError> {
        self.change_landing(id, Landing::cancelled).await
    }

    /// Records what `change` makes of the landing of an orchestration that lands as a whole, where
    /// it makes something of it.
    async fn change_landing(
        &self,
        id: OrchestrationId,
        change: impl Fn(&Landing, u64) -> Option<Landing>,
    ) -> Result<(), OrchestratorError> {
        let store = &self.parts.store;
        let mut tries = 0;
        loop {
            let orchestration = store.orchestration(id).await?;
            let changed = change(&orchestration.landing, orchestration.changes);
            let Some(landing) = changed.filter(|_| orchestration.lands) else {
                return Ok(());
            };
            tries += 1;
            let read_at = orchestration.landing_version;
            match store.record_landing(id, read_at, landing).await {
                Err(StoreError::LandingConflict(_)) if tries < LANDING_DECISIONS_MAX => {}
                recorded => {
                    self.parts.wake.notify_one();
                    return Ok(recorded?);
                }
            }
        }
    }

    /// The events of a session numbered after `after`; see [`crate::store::Store::events`].
    ///
    /// # Errors
    /// Not found.
    pub async fn events(
        &self,
        id: SessionId,
        after: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<StoredEvent>, OrchestratorError> {
        Ok(self.parts.store.events(id, after, limit, bytes_max).await?)
    }

    /// Changes when a session has a new event.
    #[must_use]
    pub fn watch_events(&self, id: SessionId) -> watch::Receiver<u64> {
        self.parts.store.watch_events(id)
    }

    /// What cannot be done at the moment; empty when all is well.
    pub async fn degraded(&self) -> Vec<&'static str> {
        let mut parts = Vec::new();
        if self.parts.store.ping().await.is_err() {
            parts.push("storage");
        }
        match self.parts.admission.check() {
            Ok(()) => {}
            Err(Refusal::RuntimeUnavailable) => parts.push("runtime"),
            Err(Refusal::ImageMissing { .. }) => parts.push("image"),
        }
        parts
    }

    /// Sessions that can be stored together, in the states they begin in.
    fn new_sessions(
        &self,
        new: Vec<(SessionId, NewSession)>,
    ) -> Result<Vec<Session>, OrchestratorError> {
        let graph: Vec<(SessionId, Vec<SessionId>)> = new
            .iter()
            .map(|(id, new)| {
                let mut seen = HashSet::new();
                let distinct = new.dependencies.iter().copied();
                (*id, distinct.filter(|of| seen.insert(*of)).collect())
            })
            .collect();
        check_new(&graph, |of| self.parts.store.standing(of).is_some())?;
        let now = self.parts.clock.now();
        let sessions = new.into_iter().zip(graph);
        let sessions = sessions.map(|((id, new), (_, dependencies))| {
            let state = match self.lost_dependency(&dependencies) {
                Some(dependency) => SessionState::Blocked {
                    dependency,
                    asked: new.auto_start,
                },
                None if new.auto_start => SessionState::Queued,
                None => SessionState::Created,
            };
            let conversation = self.parts.ids.claude_session();
            Session {
                state,
                orchestration_id: new.orchestration_id,
                dependencies,
                timeout_s: new.timeout_s,
                project_settings: new.project_settings,
                title: new.title,
                priority: new.priority,
                planning: new.planning,
                steering: Steering {
                    max_cost_usd: new.max_cost_usd,
                    ..Steering::default()
                },
                ..Session::new(id, new.kind, new.project, conversation, now)
            }
        });
        Ok(sessions.collect())
    }

    /// Whether new work is accepted; where it is not, what the same request was answered before.
    async fn refused_or_before<T>(
        &self,
        once: Option<&Once<'_, T>>,
    ) -> Result<Option<Vec<u8>>, OrchestratorError> {
        let Err(refusal) = self.parts.admission.check() else {
            return Ok(None);
        };
        let before = match once {
            Some(once) => {
                let store = &self.parts.store;
                store.answered_before(&once.key, once.digest).await?
            }
            None => None,
        };
        before.map(Some).ok_or(refusal.into())
    }

    /// What was answered before to the same request, if it was.
    async fn store_new(&self, new: NewSessions) -> Result<Option<Vec<u8>>, OrchestratorError> {
        match self.parts.store.create(new).await? {
            Written::Before { response } => Ok(Some(response)),
            Written::Now(_) => {
                failpoint::reach("created");
                self.parts.wake.notify_one();
                Ok(None)
            }
        }
    }

    /// Records what `decision` makes of a session, and wakes the reconciler.
    async fn decide(
        &self,
        id: SessionId,
        decision: impl Fn(&Session) -> Result<(SessionEvent, Session), OrchestratorError>,
    ) -> Result<Arc<Session>, OrchestratorError> {
        let parts = &self.parts;
        let session = decide(&parts.store, parts.clock.as_ref(), id, decision).await?;
        parts.wake.notify_one();
        Ok(session)
    }

    /// The session after an event that a client asked for by `verb`.
    fn after(
        &self,
        session: &Session,
        event: &SessionEvent,
        verb: &'static str,
    ) -> Result<Session, OrchestratorError> {
        let next = session.after(event, self.parts.clock.now());
        next.map_err(|_| self.not_possible(session, verb))
    }

    /// What all attempts of a session used, an estimate for one that runs; none before there is
    /// anything to tell.
    #[must_use]
    pub fn usage(&self, session: &Session) -> Option<Usage> {
        let before = session.report.as_ref().and_then(|report| report.usage);
        let running = session.state.live_attempt();
        let metered = running.and_then(|attempt| (self.parts.meter)(session.id, attempt));
        match metered.filter(|usage| !usage.is_nothing()) {
            Some(metered) => Some(before.unwrap_or_default().and(metered)),
            None => before,
        }
    }

    /// Estimates what attempts under way have cost, in US dollars.
    fn metered_usd(&self) -> impl Fn(SessionId, Attempt) -> f64 {
        |session, attempt| (self.parts.meter)(session, attempt).map_or(0.0, |usage| usage.cost_usd)
    }

    fn details(&self, session: Arc<Session>) -> SessionDetails {
        let status = self.parts.store.status(&session);
        let waiting_for = match status {
            Status::Pending => self.waiting_for(&session),
            _ => Vec::new(),
        };
        SessionDetails {
            session,
            status,
            waiting_for,
        }
    }

    fn waiting_for(&self, session: &Session) -> Vec<SessionId> {
        let incomplete =
            |of: &SessionId| self.parts.store.standing(*of) != Some(Standing::Completed);
        session
            .dependencies
            .iter()
            .copied()
            .filter(incomplete)
            .collect()
    }

    fn lost_dependency(&self, dependencies: &[SessionId]) -> Option<SessionId> {
        let lost = |of: &SessionId| self.parts.store.standing(*of) == Some(Standing::Lost);
        dependencies.iter().copied().find(lost)
    }

    fn blocked(&self, id: SessionId, dependency: SessionId) -> OrchestratorError {
        OrchestratorError::Blocked {
            id,
            dependency,
            dependency_status: self.parts.store.status_of(dependency),
        }
    }

    fn not_possible(&self, session: &Session, verb: &'static str) -> OrchestratorError {
        OrchestratorError::InvalidTransition {
            id: session.id,
            verb,
            status: self.parts.store.status(session),
        }
    }
}

fn idempotency<T>(once: &Once<'_, T>, made: &T) -> Idempotency {
    Idempotency {
        key: once.key.clone(),
        digest: once.digest,
        response: (once.render)(made),
    }
}
