//! Who wants to know when a session has a new event.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use baton_domain::SessionId;
use tokio::sync::watch;

/// From this many on, entries that nobody listens to any more are looked for.
const SWEEP_FROM: usize = 64;

/// One channel for each session that somebody listens to.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Table>);

#[derive(Default)]
struct Table {
    senders: HashMap<SessionId, watch::Sender<u64>>,
    /// Sweep when there are so many; twice what the last sweep left, so that a subscription costs
    /// constant time on average.
    sweep_at: usize,
}

impl Watchers {
    /// Listens to a session. `newest` is asked under the lock that [`Self::tell`] takes, so no
    /// number is missed in between.
    pub(super) fn subscribe(
        &self,
        id: SessionId,
        newest: impl FnOnce() -> u64,
    ) -> watch::Receiver<u64> {
        let mut table = self.table();
        if table.senders.len() >= table.sweep_at.max(SWEEP_FROM) {
            table
                .senders
                .retain(|_, sender| sender.receiver_count() > 0);
            table.sweep_at = 2 * table.senders.len();
        }
        let sender = table
            .senders
            .entry(id)
            .or_insert_with(|| watch::channel(newest()).0);
        sender.subscribe()
    }

    /// Tells everybody who listens. To be called after [`super::directory::Directory`] knows.
    pub(super) fn tell(&self, news: &[(SessionId, u64)]) {
        let mut table = self.table();
        if table.senders.is_empty() {
            return;
        }
        for (id, last_seq) in news {
            let Some(sender) = table.senders.get(id) else {
                continue;
            };
            if sender.receiver_count() == 0 {
                table.senders.remove(id);
            } else {
                sender.send_if_modified(|newest| {
                    let newer = *last_seq > *newest;
                    *newest = (*newest).max(*last_seq);
                    newer
                });
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> SessionId {
        SessionId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn entries_vanish_when_nobody_listens() {
        let watchers = Watchers::default();
        let kept = watchers.subscribe(id(0), || 0);
        for number in 1..10_000 {
            drop(watchers.subscribe(id(number), || 0));
        }
        assert!(watchers.table().senders.len() <= 2 * SWEEP_FROM);
        watchers.tell(&[(id(0), 3), (id(9_999), 1)]);
        assert_eq!(*kept.borrow(), 3);
        drop(kept);
        watchers.tell(&[(id(0), 4)]);
        assert!(!watchers.table().senders.contains_key(&id(0)));
    }
}
