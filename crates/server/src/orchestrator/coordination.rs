//! Who asks for an operation, and what a coordination session may ask for from inside its sandbox.
//!
//! A client may do everything. A coordination session may use the sessions only that it made, and
//! those that they made, all in its own orchestration. While it waits for them it gives up its
//! slot, which they may need.

use std::sync::Arc;

use baton_domain::coordination::{
    CoordinationRefusal, check_caller, check_child, check_spending, coordinates,
};
use baton_domain::{
    Attempt, OrchestrationId, Session, SessionEvent, SessionId, SessionState, Status,
};
use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::{
    Accepted, NewSession, Once, Orchestrator, OrchestratorError, OrchestratorParts, SessionDetails,
};
use crate::open_waits::Wait;
use crate::store::{Orchestration, PAGE_SESSIONS_MAX, SessionQuery, StoreError, Transition};
use crate::transition::TransitionError;

/// How often the cancel of a session with its children is decided anew when others were faster.
const DECISIONS_MAX: usize = 16;
/// More levels than there ever are: whoever walks from child to parent comes to an end.
const LEVELS_MAX: u32 = 1_000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Somebody with the token.
    Client,
    /// A coordination session, from inside its sandbox.
    Session(SessionId),
}

impl Caller {
    /// The idempotency key that stands for `key` when this caller uses it: what one session asked
    /// for is never the answer to another, nor to a client.
    #[must_use]
    pub fn key(self, key: &str) -> String {
        match self {
            Self::Client => key.to_owned(),
            Self::Session(id) => format!("session {id}: {key}"),
        }
    }
}

/// A caller waits for sessions. A coordination session has no slot while this lives.
///
/// When it is dropped, the slot is asked for again without anybody waiting for that; until it is
/// there, the session's calls of the model are held.
#[must_use = "the wait is over when this is dropped"]
pub struct WaitGuard(Option<Held>);

struct Held {
    parts: Arc<OrchestratorParts>,
    session: SessionId,
    attempt: Attempt,
    wait: Wait,
}

impl WaitGuard {
    /// Ends the wait, and returns once the session has a slot again: at once for clients, and where
    /// the same session still waits elsewhere, since its Claude goes on only after that.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`] where the session has ended meanwhile, or was told to.
    pub async fn take_back(self) -> Result<(), OrchestratorError> {
        let Some(held) = self.0 else {
            return Ok(());
        };
        let Held {
            parts,
            session: id,
            attempt,
            wait,
        } = held;
        let mut news = parts.store.watch_events(id);
        if wait.ends() {
            return Ok(());
        }
        loop {
            news.mark_unchanged();
            let session = parts.store.session(id).await?;
            match session.state {
                SessionState::Awaiting { attempt: of, .. } if of == attempt => {}
                SessionState::Running { attempt: of, .. } if of == attempt => return Ok(()),
                _ => return Err(not_at_work(&session)),
            }
            if news.changed().await.is_err() {
                return Err(not_at_work(&session));
            }
        }
    }
}

impl Orchestrator {
    /// Refuses a coordination session every session that it did not make, nor any that it made.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`]; not found.
    pub async fn permits(&self, caller: Caller, id: SessionId) -> Result<(), OrchestratorError> {
        let Caller::Session(asker) = caller else {
            return Ok(());
        };
        check_caller(&*self.parts.store.session(asker).await?)?;
        let session = self.parts.store.session(id).await?;
        match self.is_below(&session, asker).await? {
            true => Ok(()),
            false => Err(CoordinationRefusal::NotYours(id).into()),
        }
    }

    /// Held while what a coordination session asks for is checked and done that changes anything,
    /// so that it is not cancelled with its children in between; nothing for clients.
    pub async fn alone(&self, caller: Caller) -> Option<OwnedMutexGuard<()>> {
        match caller {
            Caller::Client => None,
            Caller::Session(_) => Some(Arc::clone(&self.families).lock_owned().await),
        }
    }

    /// Refuses a coordination session more for one of its children than it may cost itself, and
    /// to let one go on whose budget is spent: what is granted then is for people to say.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`]; not found.
    pub async fn permits_spending(
        &self,
        caller: Caller,
        id: SessionId,
        max_cost_usd: Option<f64>,
    ) -> Result<(), OrchestratorError> {
        let Caller::Session(asker) = caller else {
            return Ok(());
        };
        let own = self.parts.store.session(asker).await?;
        let child = self.parts.store.session(id).await?;
        check_spending(&own, &child, max_cost_usd)?;
        Ok(())
    }

    /// Refuses a coordination session every orchestration but its own.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`].
    pub fn permits_orchestration(
        &self,
        caller: Caller,
        id: OrchestrationId,
    ) -> Result<(), OrchestratorError> {
        match self.orchestration_of(caller) {
            None => Ok(()),
            Some(own) if own == id => Ok(()),
            Some(_) => Err(CoordinationRefusal::NotYourOrchestration(id).into()),
        }
    }

    /// Refuses a coordination session what is done to an orchestration as a whole, its own too.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`].
    pub fn permits_whole(&self, caller: Caller) -> Result<(), OrchestratorError> {
        match caller {
            Caller::Client => Ok(()),
            Caller::Session(_) => Err(CoordinationRefusal::NotForYou.into()),
        }
    }

    /// The orchestration a caller lists within; none for clients, who see all.
    #[must_use]
    pub fn orchestration_of(&self, caller: Caller) -> Option<OrchestrationId> {
        let Caller::Session(asker) = caller else {
            return None;
        };
        // One that may ask is not over, and so in memory.
        let session = self.parts.store.cached_session(asker);
        let session = session.filter(|session| check_caller(session).is_ok());
        let own = session.and_then(|session| session.orchestration_id);
        // No orchestration has this name, and nothing is in it.
        Some(own.unwrap_or(OrchestrationId(Uuid::nil())))
    }

    /// Makes a session for a caller. A coordination session's becomes its child: in its
    /// orchestration, on its branch, with its priority and no larger a budget than its own.
    ///
    /// # Errors
    /// As [`Orchestrator::create_session`]; [`OrchestratorError::Coordination`] for what a
    /// coordination session may not have.
    pub async fn create_session_for(
        &self,
        caller: Caller,
        new: NewSession,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        let Caller::Session(asker) = caller else {
            return self.create_session(new, once).await;
        };
        let once = once.map(|once| Once {
            key: caller.key(&once.key),
            ..once
        });
        // One after the other: each counts those before it, and none is made by one that is being
        // cancelled with its children.
        let _alone = self.families.lock().await;
        if let Some(once) = &once
            && let Some(response) = self
                .parts
                .store
                .answered_before(&once.key, once.digest)
                .await?
        {
            // It may be the last one that could be made.
            return Ok(Accepted::Before(response));
        }
        let parent = self.parts.store.session(asker).await?;
        let new = self.child(&parent, new).await?;
        self.make_session(new, Some(asker), once).await
    }

    /// What a child is made of.
    async fn child(
        &self,
        parent: &Session,
        new: NewSession,
    ) -> Result<NewSession, OrchestratorError> {
        check_caller(parent)?;
        let Some(orchestration_id) = parent.orchestration_id else {
            return Err(CoordinationRefusal::NoOrchestration(parent.id).into());
        };
        for dependency in &new.dependencies {
            // What is unknown is told later, all of it at once.
            if self.parts.store.standing(*dependency).is_some() {
                let dependency = self.parts.store.session(*dependency).await?;
                if !self.is_below(&dependency, parent.id).await? {
                    return Err(CoordinationRefusal::NotYours(dependency.id).into());
                }
            }
        }
        let depth = self.depth(parent).await?;
        let made = self.made_by_sessions(orchestration_id).await?;
        let limits = &self.parts.coordination;
        check_child(parent, new.kind, &new.project, depth, made, limits)?;
        // Its own budget is the most that each of its children may cost; what all of them may cost
        // together is for its orchestration to say.
        let budgets = [new.max_cost_usd, parent.steering.max_cost_usd];
        let mut project = new.project;
        project.branch.clone_from(&parent.project.branch);
        Ok(NewSession {
            id: None,
            project,
            orchestration_id: Some(orchestration_id),
            priority: parent.priority,
            planning: None,
            project_settings: parent.project_settings,
            max_cost_usd: budgets.into_iter().flatten().reduce(f64::min),
            ..new
        })
    }

    /// The orchestration that a client's coordination session is in which was made without one.
    pub(super) fn orchestration_for(&self, session: &Session) -> Option<Orchestration> {
        let lacks_one = coordinates(session) && session.orchestration_id.is_none();
        lacks_one.then(|| Orchestration {
            branch: session.project.branch.clone(),
            lands: true,
            // What it may cost is what all of it may cost.
            max_cost_usd: session.steering.max_cost_usd,
            summary: format!("Coordinated by session {}", session.id),
            ..Orchestration::new(
                self.parts.ids.orchestration(),
                session.project.repository.clone(),
                Arc::clone(&session.project.requirements),
                session.created_at,
            )
        })
    }

    /// A caller begins to wait for sessions; see [`WaitGuard`]. To be called only where there is
    /// something to wait for: a slot given up may be another's a moment later.
    ///
    /// # Errors
    /// [`OrchestratorError::Coordination`] for a session that is not at work.
    pub async fn begin_wait(&self, caller: Caller) -> Result<WaitGuard, OrchestratorError> {
        let Caller::Session(id) = caller else {
            return Ok(WaitGuard(None));
        };
        let parts = &self.parts;
        let mut news = parts.store.watch_events(id);
        let attempt = loop {
            news.mark_unchanged();
            let session = parts.store.session(id).await?;
            check_caller(&session)?;
            match session.state {
                // Its agent is about to tell that Claude was started.
                SessionState::Starting { .. } => {}
                _ => break session.attempt,
            }
            if news.changed().await.is_err() {
                return Err(not_at_work(&session));
            }
        };
        // Known before it is recorded: what is recorded without it is mended by the reconciler.
        let wait = parts.waits.begin(id, Arc::clone(&parts.wake));
        let given_up = parts
            .waits
            .give_slot_up(&parts.store, parts.clock.as_ref(), id, attempt);
        match given_up.await {
            Ok(_) => {}
            Err(TransitionError::Invalid(_)) => {
                return Err(not_at_work(&*parts.store.session(id).await?));
            }
            Err(TransitionError::Store(error)) => return Err(error.into()),
        }
        parts.wake.notify_one();
        Ok(WaitGuard(Some(Held {
            parts: Arc::clone(parts),
            session: id,
            attempt,
            wait,
        })))
    }

    /// Cancels a coordination session together with all sessions below it that are not over, in one
    /// step: nobody would look at what they do. Where its orchestration is there for it alone,
    /// nothing is landed of that.
    pub(super) async fn cancel_family(
        &self,
        id: SessionId,
    ) -> Result<SessionDetails, OrchestratorError> {
        let store = &self.parts.store;
        let _alone = self.families.lock().await;
        if let Some(own) = self.of_its_own(&*store.session(id).await?).await? {
            self.cancel_landing(own).await?;
        }
        let mut tries = 0;
        loop {
            let session = store.session(id).await?;
            let at = self.parts.clock.now();
            let next = self.cancelled(&session)?;
            let mut changes = Vec::new();
            if next != *session {
                changes.push(cancel(next, at));
            }
            if session.state.status(false) != Status::Cancelled {
                for below in self.open_below(&session).await? {
                    let next = below.after(&SessionEvent::CancelRequested, at);
                    // What has ended and is being recorded ends as it did.
                    let next = next.ok().filter(|next| *next != *below);
                    changes.extend(next.map(|next| cancel(next, at)));
                }
            }
            if changes.is_empty() {
                return Ok(self.details(session));
            }
            tries += 1;
            match store.record(changes, None).await {
                Ok(_) => {
                    self.parts.wake.notify_one();
                    return Ok(self.details(store.session(id).await?));
                }
                Err(StoreError::Conflict { .. }) if tries < DECISIONS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn open_below(&self, session: &Session) -> Result<Vec<Arc<Session>>, OrchestratorError> {
        let mut below = Vec::new();
        // Those that are blocked would wait again when somebody retries what is in their way.
        let mut query = SessionQuery {
            orchestration: session.orchestration_id,
            statuses: vec![Status::Blocked],
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        let mut open = self.parts.store.active();
        loop {
            let page = self.parts.store.page(&query).await?;
            open.extend(page.sessions);
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        for one in open {
            let is_near = one.parent.is_some() && one.orchestration_id == session.orchestration_id;
            if is_near && self.is_below(&one, session.id).await? {
                below.push(one);
            }
        }
        Ok(below)
    }

    /// The orchestration of a session where all others in it are below that one.
    async fn of_its_own(
        &self,
        session: &Session,
    ) -> Result<Option<OrchestrationId>, OrchestratorError> {
        let Some(id) = session
            .orchestration_id
            .filter(|_| session.parent.is_none())
        else {
            return Ok(None);
        };
        if self.cancelled(session).is_err() {
            // It has ended; what it made goes on as before.
            return Ok(None);
        }
        let mut query = SessionQuery {
            orchestration: Some(id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        loop {
            let page = self.parts.store.page(&query).await?;
            let is_other = |one: &Arc<Session>| {
                one.id != session.id && one.parent.is_none() && one.command.is_none()
            };
            if page.sessions.iter().any(is_other) {
                return Ok(None);
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return Ok(Some(id));
            }
        }
    }

    /// Whether `session` was made by `ancestor`, or by one that was.
    async fn is_below(
        &self,
        session: &Session,
        ancestor: SessionId,
    ) -> Result<bool, OrchestratorError> {
        let mut parent = session.parent;
        for _ in 0..LEVELS_MAX {
            match parent {
                None => return Ok(false),
                Some(id) if id == ancestor => return Ok(true),
                Some(id) => parent = self.parts.store.session(id).await?.parent,
            }
        }
        Ok(false)
    }

    /// How many levels a session is below one that a client made.
    async fn depth(&self, session: &Session) -> Result<u32, OrchestratorError> {
        let mut parent = session.parent;
        for depth in 0..LEVELS_MAX {
            match parent {
                None => return Ok(depth),
                Some(id) => parent = self.parts.store.session(id).await?.parent,
            }
        }
        Ok(LEVELS_MAX)
    }

    /// How many sessions of an orchestration were made by coordination sessions.
    async fn made_by_sessions(&self, id: OrchestrationId) -> Result<usize, OrchestratorError> {
        let mut query = SessionQuery {
            orchestration: Some(id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        let mut made = 0;
        loop {
            let page = self.parts.store.page(&query).await?;
            let children = page.sessions.iter().filter(|one| one.parent.is_some());
            made += children.count();
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return Ok(made);
            }
        }
    }
}

fn cancel(next: Session, at: Timestamp) -> Transition {
    Transition {
        event: SessionEvent::CancelRequested,
        next,
        at,
        told: None,
    }
}

fn not_at_work(session: &Session) -> OrchestratorError {
    let refusal = CoordinationRefusal::NotAtWork {
        id: session.id,
        state: session.state.name(),
    };
    refusal.into()
}
