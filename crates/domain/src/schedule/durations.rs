//! How long sessions of a kind take, learnt from those that are over.

use std::collections::VecDeque;

use crate::project::Kind;

/// How many of the newest sessions of a kind the estimate rests on: enough that a few odd ones
/// do not move it, few enough that it follows when projects or models change.
pub const REMEMBERED_MAX: usize = 31;

/// Below this the default says more than what was seen.
const OBSERVED_MIN: usize = 3;

const KINDS: usize = Kind::ALL.len();

/// The seconds a session of each kind is expected to take.
///
/// The median of the last [`REMEMBERED_MAX`] completed ones, so that a session which hung, or had
/// nothing to do, counts as one and no more. Until three were seen it is a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations {
    newest: [VecDeque<u64>; KINDS],
    expected_s: [u64; KINDS],
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            newest: Default::default(),
            expected_s: Kind::ALL.map(default_s),
        }
    }
}

impl Durations {
    /// The seconds a session of this kind is expected to take; at least 1, so that each session
    /// makes a path longer.
    #[must_use]
    pub fn expected_s(&self, kind: Kind) -> u64 {
        self.expected_s[kind as usize]
    }

    /// Learns from a session that took `seconds` from its launch to its end. Only completed ones
    /// tell how long the work takes; those that failed or were cancelled should not be given.
    pub fn observe(&mut self, kind: Kind, seconds: u64) {
        let newest = &mut self.newest[kind as usize];
        if newest.len() == REMEMBERED_MAX {
            newest.pop_front();
        }
        newest.push_back(seconds);
        if newest.len() >= OBSERVED_MIN {
            self.expected_s[kind as usize] = median(newest).max(1);
        }
    }
}

/// From past sessions, oldest first; the same as observing them one by one.
impl FromIterator<(Kind, u64)> for Durations {
    fn from_iter<T: IntoIterator<Item = (Kind, u64)>>(past: T) -> Self {
        let mut durations = Self::default();
        for (kind, seconds) in past {
            durations.observe(kind, seconds);
        }
        durations
    }
}

/// What is assumed until something is known. Only their proportions matter: writing takes longer
/// than reading, and conducting lasts as long as what is conducted.
fn default_s(kind: Kind) -> u64 {
    match kind {
        Kind::Analysis => 300,
        Kind::Implementation => 900,
        Kind::Testing => 600,
        Kind::Review => 300,
        Kind::Coordination => 1_800,
    }
}

/// The middle one, of an even number the lower of the two; 0 of nothing.
fn median(values: &VecDeque<u64>) -> u64 {
    let mut sorted = [0; REMEMBERED_MAX];
    let sorted = &mut sorted[..values.len()];
    for (place, value) in sorted.iter_mut().zip(values) {
        *place = *value;
    }
    sorted.sort_unstable();
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(seconds: &[u64], expected_s: u64) {
        let past = seconds.iter().map(|&one| (Kind::Testing, one));
        let durations: Durations = past.collect();
        assert_eq!(durations.expected_s(Kind::Testing), expected_s);
        let untouched = Durations::default();
        assert_eq!(
            durations.expected_s(Kind::Review),
            untouched.expected_s(Kind::Review)
        );
    }

    #[test]
    fn the_default_stands_until_three_were_seen() {
        let default_s = default_s(Kind::Testing);
        check(&[], default_s);
        check(&[5, 5], default_s);
        check(&[5, 5, 5], 5);
        let unknown = Durations::default();
        let of_all = Kind::ALL.map(|kind| unknown.expected_s(kind));
        assert_eq!(of_all, [300, 900, 600, 300, 1_800]);
    }

    #[test]
    fn one_that_hung_does_not_move_the_estimate() {
        check(&[100, 110, 86_400, 120, 105], 110);
        check(&[0, 0, 0], 1);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let past = [1_000; 500].into_iter().chain([10; REMEMBERED_MAX]);
        check(&past.collect::<Vec<_>>(), 10);
    }

    proptest! {
        #[test]
        fn the_estimate_is_the_middle_of_the_newest(seconds in vec(1..100_000_u64, 3..80)) {
            let durations: Durations = seconds.iter().map(|&one| (Kind::Review, one)).collect();
            let newest = &seconds[seconds.len().saturating_sub(REMEMBERED_MAX)..];
            let estimate = durations.expected_s(Kind::Review);
            let below = newest.iter().filter(|&&one| one < estimate).count();
            let above = newest.iter().filter(|&&one| one > estimate).count();
            prop_assert!(newest.contains(&estimate));
            prop_assert!(below <= newest.len() / 2 && above <= newest.len() / 2);
        }
    }
}
