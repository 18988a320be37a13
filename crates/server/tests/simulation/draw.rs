//! Chance, from a number that is printed when something fails.

use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use uuid::Uuid;

pub struct Draw(TestRng);

impl Draw {
    pub fn new(seed: u64) -> Self {
        let bytes = u128::from(seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        Self(TestRng::from_seed(
            RngAlgorithm::XorShift,
            &bytes.to_le_bytes(),
        ))
    }

    /// At least `from` and below `to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        self.0.random_range(from..to)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.between(0, 100) < percent
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        match items.len() {
            0 => None,
            count => items.get(self.between(0, count)),
        }
    }

    pub fn uuid(&mut self) -> Uuid {
        let [high, low]: [u64; 2] = self.0.random();
        Uuid::from_u64_pair(high, low)
    }
}
