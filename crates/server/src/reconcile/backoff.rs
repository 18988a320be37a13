//! When an action that failed is tried again.

use std::collections::HashMap;
use std::time::Duration;

use baton_domain::SessionId;
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
            Action::Prepare(_) => Self::Prepare,
        }
    }
}

/// Actions that failed last time for a reason that may pass.
#[derive(Debug, Default)]
pub struct Backoff {
    failed: HashMap<(SessionId, Deed), Failed>,
}

#[derive(Debug)]
struct Failed {
    tries: u32,
    until: Instant,
}

impl Backoff {
    /// Whether it is too early to try again.
    pub fn holds(&self, session: SessionId, deed: Deed) -> bool {
        let failed = self.failed.get(&(session, deed));
        failed.is_some_and(|failed| Instant::now() < failed.until)
    }

    /// How often it failed in a row.
    pub fn tries(&self, session: SessionId, deed: Deed) -> u32 {
        self.failed
            .get(&(session, deed))
            .map_or(0, |failed| failed.tries)
    }

    /// Notes a failure; the pause doubles with each.
    pub fn failed(&mut self, session: SessionId, deed: Deed) {
        let tries = self.tries(session, deed) + 1;
        let pause = PAUSE_MIN.saturating_mul(2u32.saturating_pow(tries.min(16) - 1));
        let until = Instant::now() + pause.min(PAUSE_MAX);
        self.failed.insert((session, deed), Failed { tries, until });
    }

    /// Notes a success.
    pub fn succeeded(&mut self, session: SessionId, deed: Deed) {
        self.failed.remove(&(session, deed));
    }

    /// Forgets all sessions but those that `matter`.
    pub fn retain(&mut self, matter: impl Fn(SessionId) -> bool) {
        self.failed.retain(|(session, _), _| matter(*session));
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
