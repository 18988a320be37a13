//! What a session costs, and what follows when its budget runs low.
//!
//! A session may have a budget, and an orchestration one for all its sessions together.
//!
//! A budget never kills work: Claude Code is told what is left and stops between two turns, the
//! session pauses with its work saved, and somebody is asked.

use crate::session::Session;
use crate::steering::Steering;

/// The share of a budget at which a warning is given.
const WARNED_SHARE: f64 = 0.8;
/// The share of a budget past which the model is not called any more. Claude Code stops by itself
/// at 100 %, after the turn that reaches it; this is for one that does not.
const REFUSED_SHARE: f64 = 1.25;
/// US dollars that are as good as nothing: less is not worth another attempt.
const NOTHING_USD: f64 = 0.01;
/// The share of an orchestration's budget that is as good as nothing: the cost of what runs is an
/// estimate, and sessions that go on for a trifle pay for their whole conversation again.
const NOTHING_SHARE: f64 = 0.01;

/// What bounds the sessions of an orchestration together, those added later included.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// How many of them may run at once.
    pub parallel_max: Option<u32>,
    /// What they may cost.
    pub budget: Option<Budget>,
}

impl Bounds {
    /// How many of the sessions may run at once, for both reasons.
    #[must_use]
    pub fn running_max(&self) -> Option<usize> {
        let asked = self.parallel_max.map(|most| most as usize);
        let afforded = self.budget.as_ref().and_then(Budget::running_max);
        asked.into_iter().chain(afforded).min()
    }
}

/// What the sessions of an orchestration cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spending {
    /// US dollars that were reported.
    pub reported_usd: f64,
    /// How many sessions reported some.
    pub reported_by: u32,
    /// US dollars that attempts under way cost besides, by estimate.
    pub running_usd: f64,
}

impl Spending {
    /// US dollars in all.
    #[must_use]
    pub fn total_usd(&self) -> f64 {
        self.reported_usd + self.running_usd
    }
}

/// The budget of an orchestration, and what is spent of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// US dollars that all its sessions together may cost before they pause and somebody is asked.
    pub max_usd: f64,
    /// What they cost so far.
    pub spending: Spending,
}

impl Budget {
    /// US dollars that are left.
    #[must_use]
    pub fn left_usd(&self) -> f64 {
        (self.max_usd - self.spending.total_usd()).max(NOTHING_USD)
    }

    /// Whether nothing more is to be begun with it.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        let nothing_usd = NOTHING_USD.max(NOTHING_SHARE * self.max_usd);
        let spent_usd = self.spending.total_usd();
        spent_usd > 0.0 && self.max_usd - spent_usd < nothing_usd
    }

    /// Whether so much is spent that a person should know.
    #[must_use]
    pub fn runs_low(&self) -> bool {
        self.spending.total_usd() >= WARNED_SHARE * self.max_usd
    }

    /// Whether the model is called no more. Each session's own Claude was told what was left when
    /// it started, and does not know of the others.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.spending.total_usd() >= self.max_usd
    }

    /// How many sessions may run at once so that they end within the budget, if they cost what
    /// those before them did; one in any case. None before there is anything to go by.
    #[must_use]
    pub fn running_max(&self) -> Option<usize> {
        let Spending {
            reported_usd,
            reported_by,
            ..
        } = self.spending;
        let usual_usd = reported_usd / f64::from(reported_by);
        if !usual_usd.is_finite() || usual_usd <= 0.0 {
            return None;
        }
        let affordable = ((self.max_usd - reported_usd) / usual_usd).floor();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast takes what is too large or too small for the nearest number there is"
        )]
        Some((affordable as usize).max(1))
    }
}

impl Steering {
    /// US dollars that the attempt to come may cost; none without a budget.
    #[must_use]
    pub fn left_usd(&self) -> Option<f64> {
        let max_usd = self.max_cost_usd?;
        Some((max_usd - self.cost_before_usd).max(NOTHING_USD))
    }

    /// Whether somebody who has spent `spent_usd` may go on.
    #[must_use]
    pub fn affords(&self, spent_usd: f64) -> bool {
        self.max_cost_usd
            .is_none_or(|max_usd| max_usd - spent_usd >= NOTHING_USD)
    }

    /// Whether so much is spent that a person should know. They then know before it is all spent.
    #[must_use]
    pub fn runs_low(&self, spent_usd: f64) -> bool {
        self.max_cost_usd
            .is_some_and(|max_usd| spent_usd >= WARNED_SHARE * max_usd)
    }

    /// Whether so much more than the budget is spent that the model is called no more.
    #[must_use]
    pub fn is_far_over(&self, spent_usd: f64) -> bool {
        self.max_cost_usd
            .is_some_and(|max_usd| spent_usd >= REFUSED_SHARE * max_usd)
    }

    /// Lets a session go on whose budget is spent, with as much again as it was last given.
    pub(crate) fn grant(&mut self, spent_usd: f64) {
        let Some(max_usd) = self.max_cost_usd.filter(|_| !self.affords(spent_usd)) else {
            return;
        };
        let amount_usd = (max_usd - self.granted_from_usd).max(NOTHING_USD);
        self.max_cost_usd = Some(spent_usd + amount_usd);
        self.granted_from_usd = spent_usd;
    }

    /// Takes up a budget that a client sets, when `spent_usd` are spent.
    pub fn set_budget(&mut self, max_usd: f64, spent_usd: f64) {
        self.max_cost_usd = Some(max_usd);
        self.granted_from_usd = spent_usd;
    }
}

impl Session {
    /// US dollars that all attempts together cost, as far as they were reported.
    #[must_use]
    pub fn spent_usd(&self) -> f64 {
        let told = self.report.as_ref().and_then(|report| report.usage);
        told.map_or(self.steering.cost_before_usd, |usage| usage.cost_usd)
    }

    /// The session as its next attempt is to see it: with no larger a budget of its own than its
    /// orchestration has left.
    #[must_use]
    pub fn within(&self, budget: &Budget) -> Self {
        let mut session = self.clone();
        let steering = &mut session.steering;
        let most_usd = steering.cost_before_usd + budget.left_usd();
        let own_usd = steering.max_cost_usd.unwrap_or(most_usd);
        steering.max_cost_usd = Some(own_usd.min(most_usd));
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steering(max_cost_usd: f64) -> Steering {
        Steering {
            max_cost_usd: Some(max_cost_usd),
            ..Steering::default()
        }
    }

    #[track_caller]
    fn check(spent_usd: f64, expected: &str) {
        let steering = steering(10.0);
        let marks = [
            (steering.affords(spent_usd), "affords"),
            (steering.runs_low(spent_usd), "runs low"),
            (steering.is_far_over(spent_usd), "far over"),
        ];
        let marks = marks.iter().filter(|(holds, _)| *holds);
        let words: Vec<&str> = marks.map(|(_, word)| *word).collect();
        assert_eq!(words.join(", "), expected, "{spent_usd}");
    }

    #[test]
    fn a_budget_warns_then_pauses_then_refuses() {
        check(7.9, "affords");
        check(8.0, "affords, runs low");
        check(10.0, "runs low");
        check(12.4, "runs low");
        check(12.5, "runs low, far over");
    }

    #[test]
    fn without_a_budget_nothing_is_ever_spent() {
        let steering = Steering::default();
        assert_eq!(steering.left_usd(), None);
        assert!(steering.affords(1e9) && !steering.runs_low(1e9) && !steering.is_far_over(1e9));
    }

    fn budget(reported_usd: f64, reported_by: u32, running_usd: f64) -> Budget {
        Budget {
            max_usd: 10.0,
            spending: Spending {
                reported_usd,
                reported_by,
                running_usd,
            },
        }
    }

    #[track_caller]
    fn check_shared(reported_usd: f64, running_usd: f64, expected: &str) {
        let budget = budget(reported_usd, 1, running_usd);
        let marks = [
            (budget.runs_low(), "runs low"),
            (budget.is_spent(), "spent"),
            (budget.is_over(), "over"),
        ];
        let marks = marks.iter().filter(|(holds, _)| *holds);
        let words: Vec<&str> = marks.map(|(_, word)| *word).collect();
        assert_eq!(words.join(", "), expected, "{budget:?}");
    }

    #[test]
    fn a_shared_budget_counts_what_was_reported_and_what_runs() {
        check_shared(5.0, 2.9, "");
        check_shared(5.0, 3.0, "runs low");
        check_shared(5.0, 4.95, "runs low, spent");
        check_shared(5.0, 5.0, "runs low, spent, over");
        check_shared(12.0, 0.0, "runs low, spent, over");
    }

    #[test]
    fn no_more_run_at_once_than_will_likely_end_within_the_budget() {
        assert_eq!(budget(0.0, 0, 3.0).running_max(), None);
        assert_eq!(budget(2.0, 1, 0.0).running_max(), Some(4));
        assert_eq!(budget(6.0, 3, 1.0).running_max(), Some(2));
        assert_eq!(budget(9.0, 3, 0.0).running_max(), Some(1));
        assert_eq!(budget(40.0, 3, 0.0).running_max(), Some(1));
        let bounds = |parallel_max| Bounds {
            parallel_max,
            budget: Some(budget(2.0, 1, 0.0)),
        };
        assert_eq!(bounds(Some(3)).running_max(), Some(3));
        assert_eq!(bounds(Some(9)).running_max(), Some(4));
        assert_eq!(bounds(None).running_max(), Some(4));
        assert_eq!(Bounds::default().running_max(), None);
    }

    #[test]
    fn an_attempt_may_cost_what_both_budgets_leave() {
        let left = |own_usd: Option<f64>| {
            let mut session = crate::testing::session("a:queued");
            session.steering.cost_before_usd = 1.0;
            session.steering.max_cost_usd = own_usd;
            let session = session.within(&budget(6.0, 2, 1.0));
            session.steering.left_usd()
        };
        assert_eq!(left(None), Some(3.0));
        assert_eq!(left(Some(3.0)), Some(2.0));
        assert_eq!(left(Some(30.0)), Some(3.0));
    }

    #[test]
    fn each_grant_is_as_large_as_the_last_one() {
        let mut steering = steering(5.0);
        steering.grant(5.5);
        assert_eq!(steering.max_cost_usd, Some(10.5));
        steering.grant(10.6);
        assert_eq!(steering.max_cost_usd, Some(15.6));
        // A client raised it: that is what counts, and what is granted the next time.
        steering.set_budget(35.6, 15.6);
        steering.grant(15.6);
        assert_eq!(steering.max_cost_usd, Some(35.6));
        steering.grant(35.6);
        assert_eq!(steering.max_cost_usd, Some(55.6));
    }
}
