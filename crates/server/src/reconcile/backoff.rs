//! When an action that failed is tried again.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use baton_domain::plan::Action;
use tokio::time::Instant;

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What kind of thing an action does: each has tries of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deed {
    /// [`Action::Remove`] and [`Action::Kill`].
    Remove,
    /// [`Action::Conclude`].
    Conclude,
    /// [`Action::Launch`].
    Launch,
    /// [`Action::TakeSlot`].
    TakeSlot,
    /// [`Action::Prepare`].
    Prepare,
}

impl Deed {
    /// The kind of `action`.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Remove(..) | Action::Kill(_) => Self::Remove,
            Action::Conclude(_) => Self::Conclude,
            Action::Launch(_) => Self::Launch,
            Action::TakeSlot(_) => Self::TakeSlot,
            Action::Prepare(_) => Self::Prepare,
        }
    }
}

/// What failed last time for a reason that may pass.
#[derive(Debug)]
pub struct Backoff<K> {
    failed: HashMap<K, Failed>,
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self {
            failed: HashMap::new(),
        }
    }
}

#[derive(Debug)]
struct Failed {
    tries: u32,
    until: Instant,
}

impl<K: Copy + Eq + Hash> Backoff<K> {
    /// Whether it is too early to try again.
    pub fn holds(&self, what: K) -> bool {
        let failed = self.failed.get(&what);
        failed.is_some_and(|failed| Instant::now() < failed.until)
    }

    /// How often it failed in a row.
    pub fn tries(&self, what: K) -> u32 {
        self.failed.get(&what).map_or(0, |failed| failed.tries)
    }

    /// Notes a failure; the pause doubles with each.
    pub fn failed(&mut self, what: K) {
        let tries = self.tries(what) + 1;
        let pause = PAUSE_MIN.saturating_mul(2u32.saturating_pow(tries.min(16) - 1));
        let until = Instant::now() + pause.min(PAUSE_MAX);
        self.failed.insert(what, Failed { tries, until });
    }

    /// Notes a success.
    pub fn succeeded(&mut self, what: K) {
        self.failed.remove(&what);
    }

    /// Forgets all but what `matters`.
    pub fn retain(&mut self, matters: impl Fn(K) -> bool) {
        self.failed.retain(|what, _| matters(*what));
    }

    /// When the next pause is over.
    pub fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        self.failed
            .values()
            .map(|failed| failed.until)
            .filter(|&until| until > now)
            .min()
    }
}
