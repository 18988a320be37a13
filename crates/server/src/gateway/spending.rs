//! What a sandbox's model calls cost, and the limits they meet.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use baton_domain::budget::{Bounds, Budget};
use baton_domain::pauses::{LIMIT_TOLD_MAX, UsageLimit};
use baton_domain::{Attempt, OrchestrationId, Session, SessionEvent, SessionId};

use super::model::{TokenCounts, budget_spent};
use super::{Gate, Gates, Gateway};

impl Gateway {
    /// What bounds the orchestrations of these sessions together, of those that are bounded.
    #[must_use]
    pub fn bounds(&self, sessions: &[Arc<Session>]) -> HashMap<OrchestrationId, Bounds> {
        let metered = |session, attempt| metered_usd(&self.gates, session, attempt);
        self.parts.store.bounds(sessions, metered)
    }
}

/// About how many US dollars an attempt under way has cost, since its socket was opened.
fn metered_usd(gates: &Mutex<Gates>, session: SessionId, attempt: Attempt) -> f64 {
    let gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
    gates.get(&(session, attempt)).map_or(0.0, |gate| {
        let metered = gate.metered.lock().unwrap_or_else(PoisonError::into_inner);
        metered.cost_usd
    })
}

impl Gate {
    /// Counts an answer of the model.
    pub(super) fn meter(&self, counts: &TokenCounts) {
        let cost_usd = self.parts.model.cost_usd(counts);
        let mut metered = self.metered.lock().unwrap_or_else(PoisonError::into_inner);
        metered.input_tokens += counts.input_tokens
            + counts.cache_creation_input_tokens
            + counts.cache_read_input_tokens;
        metered.output_tokens += counts.output_tokens;
        metered.cost_usd += cost_usd;
    }

    /// What a call of the model is answered without asking the API, because far more than the
    /// session's budget is spent, or all of its orchestration's; none where it may be made. Gives
    /// one warning of each on the way. That a call was refused is recorded before Claude hears of
    /// it, so that its end is known for a pause.
    pub(super) async fn refused_call(&self) -> Option<Response> {
        let session = self.parts.store.cached_session(self.session)?;
        if session.attempt != self.attempt {
            return None;
        }
        let message = match self.refused_by_own(&session).await {
            None => self.refused_by_shared(&session).await,
            own => own,
        }?;
        let event = SessionEvent::BudgetSpent(self.attempt);
        if !session.steering.budget_spent
            && let Err(error) = self.apply(&event, None).await
        {
            tracing::warn!(session = %self.session, %error, "a spent budget was not recorded");
        }
        Some(budget_spent(&message))
    }

    /// The budget of the session's orchestration, what runs of it included.
    pub(super) fn budget(&self, session: &Session) -> Option<Budget> {
        let gates = self.gates.upgrade()?;
        let metered = |session, attempt| metered_usd(&gates, session, attempt);
        self.parts.store.budget(session.orchestration_id?, metered)
    }

    /// Why the budget of its orchestration allows no call.
    async fn refused_by_shared(&self, session: &Session) -> Option<String> {
        let budget = self.budget(session)?;
        let (spent_usd, max_usd) = (budget.spending.total_usd(), budget.max_usd);
        if budget.is_over() {
            tracing::warn!(session = %self.session, spent_usd, max_usd, "over its orchestration's budget");
            return Some(format!(
                "the sessions of the orchestration have spent about ${spent_usd:.2} of its budget \
                 of ${max_usd:.2}; they pause until somebody raises options.maxCostUsd"
            ));
        }
        let is_known = || {
            let mut warned_of = self
                .warned_of
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            warned_of.replace(max_usd) == Some(max_usd)
        };
        if budget.runs_low() && !is_known() {
            self.note(&format!(
                "About ${spent_usd:.2} of the orchestration's budget of ${max_usd:.2} are spent; \
                 at 100 % its sessions pause and ask."
            ))
            .await;
        }
        None
    }

    /// Why its own budget allows no call.
    async fn refused_by_own(&self, session: &Session) -> Option<String> {
        let steering = &session.steering;
        let max_usd = steering.max_cost_usd?;
        let metered = *self.metered.lock().unwrap_or_else(PoisonError::into_inner);
        let spent_usd = steering.cost_before_usd + metered.cost_usd;
        if steering.is_far_over(spent_usd) {
            tracing::warn!(session = %self.session, spent_usd, max_usd, "far over its budget");
            return Some(format!(
                "the session has spent about ${spent_usd:.2} of its budget of ${max_usd:.2}; it \
                 pauses until somebody sends it a message or raises options.maxCostUsd"
            ));
        }
        if steering.runs_low(spent_usd) && !self.warned.swap(true, Ordering::Relaxed) {
            self.note(&format!(
                "About ${spent_usd:.2} of the budget of ${max_usd:.2} are spent; at 100 % the \
                 session pauses and asks."
            ))
            .await;
        }
        None
    }

    async fn note(&self, text: &str) {
        let now = self.parts.clock.now();
        if let Err(error) = self.parts.store.append_note(self.session, text, now).await {
            tracing::warn!(session = %self.session, %error, "a warning was not recorded");
        }
    }

    /// Records that the API refuses the account's calls, before Claude hears of it.
    pub(super) async fn note_limit(&self, limit: UsageLimit) {
        let until = limit.until(self.parts.clock.now(), LIMIT_TOLD_MAX);
        tracing::warn!(session = %self.session, %until, "the account's usage limit is reached");
        let event = SessionEvent::LimitHit(self.attempt, until);
        if let Err(error) = self.apply(&event, None).await {
            tracing::warn!(session = %self.session, %error, "a usage limit was not recorded");
        }
    }
}
