//! When an action that failed is tried again.

use std::collections::HashMap;
use std::time::Duration;

use baton_domain::SessionId;
use tokio::time::Instant;

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Sessions whose last action failed for a reason that may pass.
#[derive(Debug, Default)]
pub struct Backoff {
    failed: HashMap<SessionId, Failed>,
}

#[derive(Debug)]
struct Failed {
    tries: u32,
    until: Instant,
}

impl Backoff {
    /// Whether it is too early to try again.
    pub fn holds(&self, session: SessionId) -> bool {
        self.failed
            .get(&session)
            .is_some_and(|failed| Instant::now() < failed.until)
    }

    /// How often it failed in a row.
    pub fn tries(&self, session: SessionId) -> u32 {
        self.failed.get(&session).map_or(0, |failed| failed.tries)
    }

    /// Notes a failure; the pause doubles with each.
    pub fn failed(&mut self, session: SessionId) {
        let tries = self.tries(session) + 1;
        let pause = PAUSE_MIN.saturating_mul(2u32.saturating_pow(tries.min(16) - 1));
        let until = Instant::now() + pause.min(PAUSE_MAX);
        self.failed.insert(session, Failed { tries, until });
    }

    /// Notes a success.
    pub fn succeeded(&mut self, session: SessionId) {
        self.failed.remove(&session);
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
