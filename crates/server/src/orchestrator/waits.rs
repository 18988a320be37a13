//! Waits for sessions, which change nothing about them, however they end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use baton_domain::waits::{Wait, WaitMode, Waited, is_answered, is_done, waited};
use baton_domain::{OrchestrationId, Session, SessionId, WaitId};
use futures::future::select_all;

use super::{Caller, Orchestrator, OrchestratorError, SessionDetails};

/// How long what no event of a session tells can stay unseen: that one it depends on was started.
const LOOKED_AGAIN: Duration = Duration::from_secs(5);
/// However much there is to hear, nobody looks more often than that.
const LOOKED_EVERY: Duration = Duration::from_millis(200);

/// How sessions stand to somebody who waits for them.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// In the order in which they were named.
    pub sessions: Vec<(SessionDetails, Waited)>,
    /// Whether what was waited for is there.
    pub is_done: bool,
    /// Whether there is something to answer: it is, or will not be by itself.
    pub is_answered: bool,
}

impl Orchestrator {
    /// How these sessions stand now.
    ///
    /// # Errors
    /// Not found.
    pub async fn waiting(
        &self,
        ids: &[SessionId],
        mode: WaitMode,
    ) -> Result<Waiting, OrchestratorError> {
        let mut sessions = Vec::with_capacity(ids.len());
        let budgets = Budgets::default();
        for id in ids {
            let details = self.session(*id).await?;
            let stands = self.waited(&details.session, &budgets);
            sessions.push((details, stands));
        }
        let stands: Vec<Waited> = sessions.iter().map(|(_, stands)| *stands).collect();
        Ok(Waiting {
            sessions,
            is_done: is_done(mode, &stands),
            is_answered: is_answered(mode, &stands),
        })
    }

    /// Returns when there is something to answer, or to tell a coordination session that waits:
    /// its Claude hears a message only after that. May be dropped before.
    ///
    /// # Errors
    /// Not found.
    pub async fn wait_for(
        &self,
        caller: Caller,
        ids: &[SessionId],
        mode: WaitMode,
    ) -> Result<Waiting, OrchestratorError> {
        let own = match caller {
            Caller::Client => None,
            Caller::Session(id) => Some(id),
        };
        let mut news: Vec<_> = ids
            .iter()
            .chain(&own)
            .map(|id| self.watch_events(*id))
            .collect();
        // Tells those that are not there.
        let waiting = self.waiting(ids, mode).await?;
        if waiting.is_answered {
            return Ok(waiting);
        }
        loop {
            // Marked as seen before they are looked at, so that nothing in between is missed.
            for one in &mut news {
                one.borrow_and_update();
            }
            // From memory alone: a session that talks much wakes this often.
            let budgets = Budgets::default();
            let stands = ids.iter().map(|id| {
                let session = self.parts.store.cached_session(*id);
                session.map_or(Waited::Finished, |session| self.waited(&session, &budgets))
            });
            let is_told_something = own
                .and_then(|id| self.parts.store.cached_session(id))
                .is_some_and(|own| !own.steering.messages.is_empty());
            if is_told_something || is_answered(mode, &stands.collect::<Vec<_>>()) {
                return self.waiting(ids, mode).await;
            }
            let changes = news.iter_mut().map(|one| Box::pin(one.changed()));
            // Without news in time they are looked at all the same.
            let _quiet = tokio::time::timeout(LOOKED_AGAIN, select_all(changes)).await;
            tokio::time::sleep(LOOKED_EVERY).await;
        }
    }

    /// Keeps a wait, so that it can be asked for until it is forgotten, whatever happens to the
    /// server. Durable on return.
    ///
    /// # Errors
    /// Not found; from the store.
    pub async fn keep_wait(
        &self,
        sessions: Vec<SessionId>,
        mode: WaitMode,
        timeout_s: Option<u64>,
    ) -> Result<(WaitId, Wait, Waiting), OrchestratorError> {
        let waiting = self.waiting(&sessions, mode).await?;
        let created_at = self.parts.clock.now();
        let timeout = timeout_s.and_then(|seconds| i64::try_from(seconds).ok());
        let wait = Wait {
            sessions,
            mode,
            created_at,
            until: timeout.and_then(|seconds| {
                let timeout = jiff::SignedDuration::from_secs(seconds);
                created_at.checked_add(timeout).ok()
            }),
            answer: None,
            cancelled_at: None,
        };
        let id = self.parts.ids.wait();
        self.parts.store.keep_wait(id, wait.clone()).await?;
        Ok((id, wait, waiting))
    }

    /// A wait that was kept, with how its sessions stand; none where it is not known any more.
    /// Its time being up, it counts as answered.
    ///
    /// # Errors
    /// From the store.
    pub async fn kept_wait(
        &self,
        id: WaitId,
    ) -> Result<Option<(Wait, Waiting)>, OrchestratorError> {
        let Some(wait) = self.parts.store.wait(id).await? else {
            return Ok(None);
        };
        let mut waiting = self.waiting(&wait.sessions, wait.mode).await?;
        let now = self.parts.clock.now();
        waiting.is_answered |= wait.until.is_some_and(|until| until <= now);
        Ok(Some((wait, waiting)))
    }

    /// Keeps what a wait was answered: what becomes of its sessions later changes nothing about it.
    ///
    /// # Errors
    /// From the store.
    pub async fn keep_answer(
        &self,
        id: WaitId,
        wait: &Wait,
        answer: serde_json::Value,
    ) -> Result<(), OrchestratorError> {
        let wait = Wait {
            answer: Some(answer),
            ..wait.clone()
        };
        Ok(self.parts.store.keep_wait(id, wait).await?)
    }

    /// Ends a wait that was kept; false where there is none.
    ///
    /// # Errors
    /// From the store.
    pub async fn cancel_wait(&self, id: WaitId) -> Result<bool, OrchestratorError> {
        let Some(mut wait) = self.parts.store.wait(id).await? else {
            return Ok(false);
        };
        if wait.cancelled_at.is_none() {
            wait.cancelled_at = Some(self.parts.clock.now());
            self.parts.store.keep_wait(id, wait).await?;
        }
        Ok(true)
    }

    fn waited(&self, session: &Session, budgets: &Budgets) -> Waited {
        let open = |id| {
            let session = self.parts.store.cached_session(id);
            session.filter(|session| !session.state.is_over())
        };
        waited(session, open, |of| match of.orchestration_id {
            None => true,
            // What its sessions spent is added up once for a look, not for each of them.
            Some(id) if of.command.is_none() => {
                let mut known = budgets.0.borrow_mut();
                *known
                    .entry(id)
                    .or_insert_with(|| self.spent_budget(of).is_none())
            }
            Some(_) => self.spent_budget(of).is_none(),
        })
    }
}

/// Whether the budgets of orchestrations let sessions begin, as far as it was looked at.
#[derive(Default)]
struct Budgets(RefCell<HashMap<OrchestrationId, bool>>);
