//! Why a session stands where it stands, in plain words, and what to do about it.

use std::borrow::Cow;
use std::sync::Arc;

use baton_domain::pauses::{account_limit, is_afforded, may_launch};
use baton_domain::session::{SessionState, Standing};
use baton_domain::steering::Pause;
use baton_domain::{Session, SessionId, Status};

use super::{Orchestrator, SessionDetails};

/// How many dependencies a text names.
const NAMED_MAX: usize = 5;

impl Orchestrator {
    /// What keeps a session from getting on; none when it runs or has ended, where its outcome
    /// says it all.
    #[must_use]
    pub fn status_detail(&self, details: &SessionDetails) -> Option<Cow<'static, str>> {
        match &details.session.state {
            SessionState::Created => Some(Cow::Borrowed(
                "It was created and not started yet; start it with session.start.",
            )),
            SessionState::Starting { .. } => Some(match self.parts.admission.check() {
                Err(refusal) => format!("Its container cannot start: {refusal}.").into(),
                Ok(()) => Cow::Borrowed(
                    "Its container is starting, and its code is fetched from the remote.",
                ),
            }),
            SessionState::Queued if details.status == Status::Pending => {
                Some(self.waits_for(&details.waiting_for).into())
            }
            SessionState::Queued => Some(match self.parts.admission.check() {
                Err(refusal) => format!("It waits to be started: {refusal}.").into(),
                Ok(()) => self.waits_for_launch(&details.session).into(),
            }),
            SessionState::Blocked { dependency, .. } => Some(self.is_blocked(*dependency).into()),
            SessionState::Paused {
                pause: Pause::OrchestrationBudget,
                ..
            } => Some(match self.spent_budget(&details.session) {
                Some(spent) => format!("{spent} Its work is saved.").into(),
                None => Cow::Borrowed("It is about to go on: its orchestration has a new budget."),
            }),
            SessionState::Paused { pause, .. } => Some(paused(pause).into()),
            SessionState::Awaiting { .. } => Some(self.awaits(&details.session)),
            SessionState::Stopping { .. } => {
                Some(Cow::Borrowed("It was told to stop and is saving its work."))
            }
            SessionState::Concluding { .. } => Some(Cow::Borrowed(
                "Claude has ended; its work is being recorded and landed.",
            )),
            SessionState::Saving { .. } => Some(Cow::Borrowed(
                "It has ended; what it left is being brought to a branch of its own.",
            )),
            SessionState::Finished { .. } if self.waits_to_land(&details.session) => {
                Some(Cow::Borrowed(
                    "Its work waits to be landed with that of the others of its orchestration.",
                ))
            }
            SessionState::Running { .. } | SessionState::Finished { .. } => None,
        }
    }

    fn waits_to_land(&self, session: &Session) -> bool {
        let report = session.report.as_ref();
        let result = report.and_then(|report| report.result.as_ref());
        result.is_some_and(|result| result.branch.is_none() && result.commit != result.base_commit)
            && session.state.standing() == Standing::Completed
            && self.parts.store.lands_with_others(session)
    }

    fn waits_for(&self, waiting_for: &[SessionId]) -> String {
        let mut text = match waiting_for.len() {
            1 => "It waits for its dependency ".to_owned(),
            count => format!("It waits for {count} dependencies: "),
        };
        for (at, id) in waiting_for.iter().take(NAMED_MAX).enumerate() {
            if at > 0 {
                text.push_str(", ");
            }
            text.push_str(&self.described(*id));
        }
        if waiting_for.len() > NAMED_MAX {
            text.push_str(", …");
        }
        text.push('.');
        text
    }

    fn described(&self, id: SessionId) -> String {
        match self.parts.store.cached_session(id) {
            Some(session) if session.state == SessionState::Created => {
                format!("{id} (not started yet; start it with session.start)")
            }
            Some(session) => {
                let status = self.parts.store.status(&session);
                format!("{id} ({})", status.name())
            }
            None => id.to_string(),
        }
    }

    fn waits_for_launch(&self, session: &Arc<Session>) -> String {
        let active = self.parts.store.active();
        let now = self.parts.clock.now();
        let limit = account_limit(&active, now);
        if let Some(spent) = self.spent_budget(session) {
            return spent;
        }
        if may_launch(session, limit, now) {
            return self.waits_for_slot(session, &active);
        }
        if let Some(until) = limit.filter(|_| session.command.is_none()) {
            return format!(
                "The account's usage limit is reached, as another session was told: nothing new \
                 starts before {until:.0}."
            );
        }
        format!(
            "Its container was lost before Claude could be started ({} times in a row); it is \
             about to be started again.",
            session.steering.launches_lost
        )
    }

    /// That nothing starts with the budget of a session's orchestration, where that is so.
    pub(super) fn spent_budget(&self, session: &Session) -> Option<String> {
        let id = session.orchestration_id?;
        let budget = self.parts.store.budget(id, self.metered_usd())?;
        (!is_afforded(session, Some(&budget))).then(|| {
            format!(
                "The budget of its orchestration is spent (${:.2} of ${:.2}); a larger one lets \
                 its sessions go on: orchestration.start with options.maxCostUsd.",
                budget.spending.total_usd(),
                budget.max_usd
            )
        })
    }

    fn waits_for_slot(&self, session: &Arc<Session>, active: &[Arc<Session>]) -> String {
        let taken = active.iter().filter(|session| session.state.holds_slot());
        let bounds = std::slice::from_ref(session);
        let bounds = self.parts.store.bounds(bounds, self.metered_usd());
        for (id, bounds) in bounds {
            let of_it = taken.clone().filter(|one| one.orchestration_id == Some(id));
            let running = of_it.count();
            if let Some(most) = bounds.running_max().filter(|most| running >= *most) {
                return format!(
                    "It waits for others of its orchestration: {running} of them run, and no more \
                     than {most} may at once."
                );
            }
        }
        let slots_max = self.parts.slots_max;
        match taken.count() {
            taken if taken >= slots_max => format!(
                "It waits for a slot: {taken} of {slots_max} are taken. BATON_MAX_RUNNING sets \
                 how many there are."
            ),
            taken => format!("It is about to start: {taken} of {slots_max} slots are taken."),
        }
    }

    fn awaits(&self, session: &Session) -> Cow<'static, str> {
        match self.parts.waits.sessions().contains(&session.id) {
            true => {
                Cow::Borrowed("It waits for sessions that it made, and holds no slot meanwhile.")
            }
            false => {
                Cow::Borrowed("It waited for other sessions and goes on as soon as a slot is free.")
            }
        }
    }

    fn is_blocked(&self, dependency: SessionId) -> String {
        format!(
            "Its dependency {} will not complete unless it is retried with session.retry.",
            self.described(dependency)
        )
    }
}

fn paused(pause: &Pause) -> String {
    match pause {
        Pause::UsageLimit { until } => {
            format!("The account's usage limit is reached; it goes on by itself after {until:.0}.")
        }
        Pause::Budget { spent_usd } => format!(
            "Its budget is spent (${spent_usd:.2}); a message, with a larger maxCostUsd where you \
             like, lets it go on: session.message."
        ),
        Pause::OrchestrationBudget => "The budget of its orchestration is spent.".to_owned(),
    }
}
