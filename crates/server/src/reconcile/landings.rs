//! Which orchestrations are landed now, and trying again those that could not be.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use baton_domain::{OrchestrationId, Session};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::backoff::Backoff;
use crate::landing::Lander;
use crate::store::Store;

/// How often a landing is tried while the remote doesn't answer: about two hours.
const LANDING_TRIES_MAX: u32 = 250;

/// Landings under way.
pub struct Landings {
    lander: Lander,
    running: JoinSet<bool>,
    /// Whose each of those is, to let it go even if it ends abnormally.
    whose: HashMap<Id, OrchestrationId>,
    busy: HashSet<OrchestrationId>,
    backoff: Backoff<OrchestrationId>,
}

impl Landings {
    pub fn new(lander: Lander) -> Self {
        Self {
            lander,
            running: JoinSet::new(),
            whose: HashMap::new(),
            busy: HashSet::new(),
            backoff: Backoff::default(),
        }
    }

    /// Goes on with those that can: no session of theirs is open, and no other one is landing on
    /// their branch. `active` are all sessions that are not over.
    pub fn look(&mut self, store: &Store, active: &[Arc<Session>]) {
        while let Some(done) = self.running.try_join_next_with_id() {
            self.note_done(done);
        }
        let mut unlanded = store.unlanded();
        if unlanded.is_empty() {
            return;
        }
        let with_open = |is_gate: bool| -> HashSet<OrchestrationId> {
            let open = active.iter().filter(|of| of.command.is_some() == is_gate);
            open.filter_map(|of| of.orchestration_id).collect()
        };
        let (at_work, gating) = (with_open(false), with_open(true));
        // Who has begun keeps the branch until it is done.
        unlanded.sort_by_key(|one| !(one.is_under_way || self.busy.contains(&one.id)));
        let mut taken = HashSet::new();
        for one in unlanded {
            // Whose sessions were asked for more in the middle of it gives the branch free: they may
            // take days.
            if at_work.contains(&one.id) || !taken.insert(one.target) {
                continue;
            }
            if gating.contains(&one.id) || self.backoff.holds(one.id) || !self.busy.insert(one.id) {
                continue;
            }
            self.go_on(one.id);
        }
    }

    fn go_on(&mut self, id: OrchestrationId) {
        let last_try = self.backoff.tries(id) + 1 >= LANDING_TRIES_MAX;
        let lander = self.lander.clone();
        let handle = self.running.spawn(async move {
            let went = lander.go_on(id, last_try).await;
            if let Err(error) = &went {
                let error = error as &dyn std::error::Error;
                tracing::warn!(orchestration = %id, error, "not landed yet");
            }
            went.is_ok()
        });
        self.whose.insert(handle.id(), id);
    }

    /// Returns when one has come to rest; never while none is under way.
    pub async fn done(&mut self) {
        match self.running.join_next_with_id().await {
            Some(done) => self.note_done(done),
            None => std::future::pending().await,
        }
    }

    /// Waits until none is under way.
    pub async fn settle(&mut self) {
        while let Some(done) = self.running.join_next_with_id().await {
            self.note_done(done);
        }
    }

    /// Cuts off what is under way: the next server goes on with it.
    pub async fn shutdown(&mut self) {
        self.running.shutdown().await;
    }

    /// When one that failed is tried again.
    pub fn next(&self) -> Option<Instant> {
        self.backoff.next()
    }

    fn note_done(&mut self, done: Result<(Id, bool), JoinError>) {
        let (task, went) = match done {
            Ok((task, went)) => (task, went),
            Err(error) => {
                tracing::error!(%error, "a landing ended abnormally");
                (error.id(), false)
            }
        };
        let Some(id) = self.whose.remove(&task) else {
            return;
        };
        self.busy.remove(&id);
        match went {
            true => self.backoff.succeeded(id),
            false => self.backoff.failed(id),
        }
    }
}
