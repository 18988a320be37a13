//! Pauses: what a session waits for that is neither a dependency nor a slot. The end of a usage
//! limit, a larger budget, a host that gets better.
//!
//! All of it follows from the sessions as they are recorded, so a restart changes nothing.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::budget::{Bounds, Budget};
use crate::ending::{Ending, FailureCode, Outcome};
use crate::ids::{Attempt, OrchestrationId};
use crate::session::{Session, SessionEvent, SessionState};
use crate::steering::{Pause, Resume};

/// What Claude is told when a pause is over that nobody ended by a message.
pub const RESUME_TEXT: &str = "You were interrupted by a limit that is lifted now. Continue where \
                               you stopped.";
/// How far the starts of limited sessions are apart, so that they do not all call at once.
pub const RESUME_STAGGER: SignedDuration = SignedDuration::from_secs(5);
/// When a resumption is looked at again that is due and did not happen.
const OVERDUE_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// How often a launch is lost to the host before the session fails for it.
pub const LAUNCHES_LOST_MAX: u64 = 5;
/// The pause after the first lost launch; it doubles.
const LAUNCH_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// A limit that is told to end at once is believed to last this long: clocks differ, and trying
/// again costs an attempt.
const LIMIT_MIN: SignedDuration = SignedDuration::from_secs(10);
/// What is waited when the end of a limit is not told.
const LIMIT_DEFAULT: SignedDuration = SignedDuration::from_mins(5);
/// The longest limit that the model API is believed: its longest windows are of 7 days.
pub const LIMIT_TOLD_MAX: SignedDuration = SignedDuration::from_hours(8 * 24);
/// The longest limit that a line in a sandbox is believed, where anybody may have printed it. When
/// it holds longer, the model API says so the next time.
pub const LIMIT_PRINTED_MAX: SignedDuration = SignedDuration::from_hours(6);
/// A usage limit that ends no later than this after the one that is known is no news.
pub(crate) const LIMIT_NEWS: SignedDuration = SignedDuration::from_secs(60);
/// What Claude Code ends with at the end of `--max-budget-usd`.
const BUDGET_SUBTYPE: &str = "error_max_budget_usd";

/// The account's usage limit is reached, as somebody told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageLimit {
    /// When it is lifted.
    pub resets_at: Option<Timestamp>,
    /// In how long to ask again, where nobody told when it is lifted.
    pub retry_after: Option<SignedDuration>,
}

impl UsageLimit {
    /// Until when to wait, `longest` at most.
    #[must_use]
    pub fn until(self, now: Timestamp, longest: SignedDuration) -> Timestamp {
        let wait = self.retry_after.unwrap_or(LIMIT_DEFAULT);
        let wait = wait.clamp(LIMIT_MIN, longest);
        let resets_at = self.resets_at.unwrap_or(now + wait);
        resets_at.clamp(now + LIMIT_MIN, now + longest)
    }
}

/// Whether a session whose Claude ended like this goes on later instead of being over.
///
/// It does when the end was an error that the budget or a usage limit explains, and its work is
/// safe. `spent_usd` is what all its attempts cost, this one included; `shares_budget` says whether
/// its orchestration has a budget.
#[must_use]
pub fn pause_after(
    session: &Session,
    ending: &Ending,
    spent_usd: f64,
    shares_budget: bool,
) -> Option<Pause> {
    use FailureCode as C;
    // A command uses no model: what it prints of limits is somebody's text.
    if session.command.is_some() {
        return None;
    }
    let Outcome::Failed { code, .. } = Outcome::of(ending) else {
        return None;
    };
    let is_error = matches!(
        code,
        C::ClaudeError | C::ClaudeExited | C::NoResult | C::Stalled
    );
    if !is_error || ending.salvage_failure.is_some() {
        return None;
    }
    let stopped_by_budget = ending
        .result
        .as_ref()
        .is_some_and(|result| result.subtype == BUDGET_SUBTYPE);
    let steering = &session.steering;
    let stopped_by_budget = stopped_by_budget || steering.budget_spent;
    if stopped_by_budget && shares_budget && steering.affords(spent_usd) {
        return Some(Pause::OrchestrationBudget);
    }
    if stopped_by_budget || !steering.affords(spent_usd) {
        return Some(Pause::Budget { spent_usd });
    }
    // An earlier attempt's limit was over before this one began.
    let until = steering
        .limited_until
        .filter(|until| session.state.started_at().is_none_or(|at| *until > at))?;
    Some(Pause::UsageLimit { until })
}

/// Until when the model API refuses the account's calls, as far as is known; in the past where
/// limited sessions are about to go on.
#[must_use]
pub fn account_limit<'a>(
    sessions: impl IntoIterator<Item = &'a Arc<Session>>,
    now: Timestamp,
) -> Option<Timestamp> {
    let told = sessions
        .into_iter()
        .filter_map(|session| match session.state {
            SessionState::Paused {
                pause: Pause::UsageLimit { until },
                ..
            } => Some(until),
            SessionState::Paused { .. }
            | SessionState::Concluding { .. }
            | SessionState::Queued => session.steering.limited_until.filter(|until| *until > now),
            // One that runs on in spite of it found a way.
            _ => None,
        });
    told.max()
}

/// Whether the budget of a session's orchestration lets it run. A command costs nothing.
#[must_use]
pub fn is_afforded(session: &Session, budget: Option<&Budget>) -> bool {
    session.command.is_some() || budget.is_none_or(|budget| !budget.is_spent())
}

/// Whether a queued session may be launched as far as limits and lost launches are concerned.
#[must_use]
pub fn may_launch(session: &Session, account_limit: Option<Timestamp>, now: Timestamp) -> bool {
    if session.steering.launch_after.is_some_and(|at| at > now) {
        return false;
    }
    match account_limit {
        // A command calls no model.
        Some(_) if session.command.is_some() => true,
        Some(until) if until > now => false,
        // Those that were limited go first.
        Some(_) => session.steering.resume.is_some(),
        None => true,
    }
}

/// The pauses that are over, with the events that end them. `sessions` are all that are not over,
/// oldest first, `orchestrations` bound them.
#[must_use]
pub fn resumptions(
    sessions: &[Arc<Session>],
    orchestrations: &HashMap<OrchestrationId, Bounds>,
    now: Timestamp,
) -> Vec<(Arc<Session>, SessionEvent)> {
    let due = limits_end(sessions, now)
        .into_iter()
        .filter(|(_, at)| *at <= now)
        .map(|(session, _)| session);
    let granted = sessions.iter().filter(|session| match &session.state {
        SessionState::Paused {
            pause: Pause::Budget { spent_usd },
            ..
        } => session.steering.affords(*spent_usd),
        SessionState::Paused {
            pause: Pause::OrchestrationBudget,
            ..
        } => {
            let bounds = session.orchestration_id.map(|id| orchestrations.get(&id));
            let budget = bounds.flatten().and_then(|bounds| bounds.budget.as_ref());
            is_afforded(session, budget)
        }
        _ => false,
    });
    let ended = due.chain(granted).map(|session| {
        let resume = Resume {
            from: session.attempt,
            text: RESUME_TEXT.to_owned(),
        };
        (Arc::clone(session), SessionEvent::Resumed(resume))
    });
    ended.collect()
}

/// When something is to be done next that nobody will ask for.
#[must_use]
pub fn next_change(sessions: &[Arc<Session>], now: Timestamp) -> Option<Timestamp> {
    let resumed = limits_end(sessions, now)
        .into_iter()
        .map(|(_, at)| if at > now { at } else { now + OVERDUE_PAUSE });
    let launched = sessions
        .iter()
        .filter(|session| session.state == SessionState::Queued)
        .filter_map(|session| session.steering.launch_after);
    let lifted = account_limit(sessions, now);
    let times = resumed.chain(launched).chain(lifted);
    times.filter(|at| *at > now).min()
}

/// When each limited session goes on: the k-th oldest k steps after the limit is lifted. Those
/// that went on already keep their places.
fn limits_end(sessions: &[Arc<Session>], now: Timestamp) -> Vec<(&Arc<Session>, Timestamp)> {
    let Some(lifted) = account_limit(sessions, now) else {
        return Vec::new();
    };
    let is_paused = |session: &Session| {
        matches!(
            session.state,
            SessionState::Paused {
                pause: Pause::UsageLimit { .. },
                ..
            }
        )
    };
    let limited = sessions
        .iter()
        .filter(|session| is_paused(session) || session.steering.limited_until == Some(lifted));
    let mut at = lifted;
    let mut ends = Vec::new();
    for session in limited {
        if is_paused(session) {
            ends.push((session, at));
        }
        at += RESUME_STAGGER;
    }
    ends
}

/// What the loss of a launch means for a session whose Claude cannot have been started: another
/// try, but not for ever.
#[must_use]
pub fn launch_lost(session: &Session, attempt: Attempt) -> Option<SessionEvent> {
    let starting =
        matches!(&session.state, SessionState::Starting { attempt: of, .. } if *of == attempt);
    (starting && session.steering.launches_lost < LAUNCHES_LOST_MAX)
        .then_some(SessionEvent::LaunchLost(attempt))
}

/// When a session may be launched again that has lost `launches_lost` launches in a row.
pub(crate) fn launch_after(launches_lost: u64, now: Timestamp) -> Timestamp {
    let doublings = launches_lost.clamp(1, LAUNCHES_LOST_MAX) - 1;
    now + LAUNCH_PAUSE * (1 << doublings)
}
