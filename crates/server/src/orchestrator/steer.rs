//! Steering sessions that were started: new attempts, and words to Claude.

use std::sync::Arc;

use baton_domain::session::Standing;
use baton_domain::steering::Resume;
use baton_domain::{Session, SessionEvent, SessionId, SessionState};

use super::{
    Accepted, NewMessage, Once, Orchestrator, OrchestratorError, SessionDetails, idempotency,
};
use crate::blocked;
use crate::failpoint;
use crate::store::{StoreError, Transition, Written};

/// How often a change of several sessions is decided anew when another writer was faster.
const DECISIONS_MAX: usize = 16;

impl Orchestrator {
    /// Asks for a new attempt of a session that failed, was cancelled or is blocked. It starts
    /// anew, from its dependencies' code as it is now; sessions that it alone blocked wait again.
    ///
    /// # Errors
    /// [`OrchestratorError::InvalidTransition`] for one that is not over, or completed;
    /// [`OrchestratorError::Blocked`] while a dependency of its own is lost: that one must be
    /// retried; [`OrchestratorError::Refused`], not found.
    pub async fn retry_session(
        &self,
        id: SessionId,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        self.steer(id, once, |session| {
            let event = SessionEvent::RetryRequested;
            let next = self.after(session, &event, "retried")?;
            match self.lost_dependency(&session.dependencies) {
                Some(dependency) => Err(self.blocked(id, dependency)),
                None => Ok((event, next)),
            }
        })
        .await
    }

    /// Says something to a session's Claude. One that runs, or will, is told as soon as it
    /// listens; one that has ended or paused goes on in its conversation, in a new attempt.
    ///
    /// # Errors
    /// [`OrchestratorError::InvalidTransition`] for one that is being cancelled, is blocked, or
    /// ended before Claude was started; [`OrchestratorError::BudgetSpent`];
    /// [`OrchestratorError::Refused`], not found.
    pub async fn message_session(
        &self,
        id: SessionId,
        message: NewMessage,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        let NewMessage { text, max_cost_usd } = message;
        self.steer(id, once, |session| {
            let goes_on = matches!(
                session.state,
                SessionState::Paused { .. } | SessionState::Finished { .. }
            );
            let event = match goes_on {
                true => SessionEvent::Resumed(Resume {
                    from: session.attempt,
                    text: text.clone(),
                }),
                false => SessionEvent::MessageSent(text.clone()),
            };
            let mut next = self.after(session, &event, "told anything")?;
            if let Some(max_usd) = max_cost_usd {
                let spent_usd = session.spent_usd();
                next.steering.set_budget(max_usd, spent_usd);
                if !next.steering.affords(spent_usd) {
                    return Err(OrchestratorError::BudgetSpent {
                        id,
                        max_usd,
                        spent_usd,
                    });
                }
            }
            Ok((event, next))
        })
        .await
    }

    /// Records what `decision` makes of a session, together with what follows for those it
    /// blocked.
    async fn steer(
        &self,
        id: SessionId,
        once: Option<Once<'_, SessionDetails>>,
        decision: impl Fn(&Session) -> Result<(SessionEvent, Session), OrchestratorError>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        let store = &self.parts.store;
        let mut tries = 0;
        loop {
            let session = store.session(id).await?;
            let decided = decision(&session);
            if decided.is_err()
                && let Some(once) = &once
                && let Some(response) = store.answered_before(&once.key, once.digest).await?
            {
                // What was asked for has happened; the same request again is no mistake.
                return Ok(Accepted::Before(response));
            }
            let (event, next) = decided?;
            if session.state.is_over() {
                self.parts.admission.check()?;
            }
            let at = self.parts.clock.now();
            let waits_again = session.state.standing() == Standing::Lost;
            let mut changes = match waits_again {
                true => blocked::changes(store, Some(id), at).await?,
                false => Vec::new(),
            };
            let details = self.details(Arc::new(next.clone()));
            changes.insert(
                0,
                Transition {
                    event,
                    next,
                    at,
                    told: None,
                },
            );
            let key = once.as_ref().map(|once| idempotency(once, &details));
            tries += 1;
            match store.record(changes, key).await {
                Ok(Written::Before { response }) => return Ok(Accepted::Before(response)),
                Ok(Written::Now(_)) => {
                    failpoint::reach("steered");
                    if waits_again {
                        // Those that were blocked by it while this was decided.
                        blocked::review(store, self.parts.clock.as_ref()).await?;
                    }
                    self.parts.wake.notify_one();
                    return Ok(Accepted::Now(self.details(store.session(id).await?)));
                }
                Err(StoreError::Conflict { .. }) if tries < DECISIONS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
