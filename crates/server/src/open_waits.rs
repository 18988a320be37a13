//! Whose Claudes wait for other sessions at this moment, and the slots they give up meanwhile.
//!
//! That a session has no slot is recorded. That its Claude needs none is known here only, by the
//! calls it holds open; a server that starts anew knows of no such call, so whoever waited gets a
//! slot as soon as one is free, and asks again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_domain::{Attempt, Session, SessionEvent, SessionId};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::failpoint;
use crate::store::Store;
use crate::transition::{TransitionError, apply};

/// The waits of all sessions. Clones are the same.
#[derive(Clone, Default)]
pub struct OpenWaits {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many calls each holds open.
    open: Mutex<HashMap<SessionId, usize>>,
    /// Held while a slot is given up or given back. A wait that begins while the slot of an earlier
    /// one is being given back would otherwise be left with it.
    recording: tokio::sync::Mutex<()>,
}

/// One open wait; over when it is dropped.
pub(crate) struct Wait {
    waits: OpenWaits,
    session: SessionId,
    wake: Arc<Notify>,
}

impl OpenWaits {
    /// The sessions that wait.
    #[must_use]
    pub fn sessions(&self) -> HashSet<SessionId> {
        self.open().keys().copied().collect()
    }

    /// Begins a wait; `wake` is notified when it is over.
    pub(crate) fn begin(&self, session: SessionId, wake: Arc<Notify>) -> Wait {
        *self.open().entry(session).or_default() += 1;
        Wait {
            waits: self.clone(),
            session,
            wake,
        }
    }

    /// Records that a session has no slot while it waits.
    ///
    /// # Errors
    /// As [`apply`]: it does not run any more.
    pub(crate) async fn give_slot_up(
        &self,
        store: &Store,
        clock: &dyn Clock,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Arc<Session>, TransitionError> {
        let _alone = self.inner.recording.lock().await;
        let event = SessionEvent::SlotYielded(attempt);
        let given_up = apply(store, clock, session, &event, None).await;
        failpoint::reach("slot_given_up");
        given_up
    }

    /// Records that a session has a slot again, unless it waits anew.
    ///
    /// # Errors
    /// As [`apply`]: it has ended meanwhile, or was told to.
    pub(crate) async fn take_slot_back(
        &self,
        store: &Store,
        clock: &dyn Clock,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<(), TransitionError> {
        let _alone = self.inner.recording.lock().await;
        if self.is_open(session) {
            return Ok(());
        }
        let event = SessionEvent::SlotTaken(attempt);
        apply(store, clock, session, &event, None).await?;
        failpoint::reach("slot_taken_back");
        Ok(())
    }

    fn is_open(&self, session: SessionId) -> bool {
        self.open().contains_key(&session)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SessionId, usize>> {
        self.inner
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// Ends it; true where the session has others open.
    pub(crate) fn ends(self) -> bool {
        let (waits, session) = (self.waits.clone(), self.session);
        drop(self);
        waits.is_open(session)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut open = self.waits.open();
        if let Some(count) = open.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.session);
            }
        }
        drop(open);
        self.wake.notify_one();
    }
}
