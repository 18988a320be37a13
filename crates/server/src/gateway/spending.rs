//! What a sandbox's model calls cost, and the limits they meet.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use axum::response::Response;
use baton_domain::waiting::{LIMIT_TOLD_MAX, UsageLimit};
use baton_domain::{Session, SessionEvent};

use super::Gate;
use super::model::{TokenCounts, budget_spent};

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
    /// session's budget is spent; none where it may be made. Gives the session's one warning on
    /// the way.
    pub(super) async fn refused_call(&self) -> Option<Response> {
        let session = self.parts.store.cached_session(self.session)?;
        if session.attempt != self.attempt {
            return None;
        }
        let steering = &session.steering;
        let max_usd = steering.max_cost_usd?;
        let metered = *self.metered.lock().unwrap_or_else(PoisonError::into_inner);
        let spent_usd = steering.cost_before_usd + metered.cost_usd;
        if steering.is_far_over(spent_usd) {
            let message = format!(
                "the session has spent about ${spent_usd:.2} of its budget of ${max_usd:.2}; it \
                 pauses until somebody sends it a message or raises options.maxCostUsd"
            );
            tracing::warn!(session = %self.session, spent_usd, max_usd, "far over its budget");
            return Some(budget_spent(&message));
        }
        if steering.runs_low(spent_usd) && !self.warned.swap(true, Ordering::Relaxed) {
            self.warn(&session, spent_usd, max_usd).await;
        }
        None
    }

    async fn warn(&self, session: &Session, spent_usd: f64, max_usd: f64) {
        let text = format!(
            "About ${spent_usd:.2} of the budget of ${max_usd:.2} are spent; at 100 % the session \
             pauses and asks."
        );
        let now = self.parts.clock.now();
        if let Err(error) = self.parts.store.append_note(session.id, &text, now).await {
            tracing::warn!(session = %session.id, %error, "a warning was not recorded");
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
