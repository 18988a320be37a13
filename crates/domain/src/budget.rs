//! What a session costs, and what follows when its budget runs low.
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
