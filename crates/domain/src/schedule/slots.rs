//! How many sessions may run at once: in all, of an orchestration, of a kind.

use std::collections::HashMap;

use jiff::Timestamp;

use super::STEP_S;
use crate::ids::OrchestrationId;
use crate::project::Kind;

/// The slots that are free, within three limits.
///
/// A session takes a slot of all, a place of its kind, and a place of its orchestration; a limit
/// that was not set is none. What is lowered below what runs frees nothing until enough have
/// ended.
#[derive(Debug, Clone)]
pub struct Slots {
    free: usize,
    kinds: [Places; Kind::ALL.len()],
    orchestrations: HashMap<OrchestrationId, Places>,
}

impl Slots {
    /// As many free slots as may be taken at once, without further limits.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            free: slots_max,
            kinds: [Places::new(usize::MAX); Kind::ALL.len()],
            orchestrations: HashMap::new(),
        }
    }

    /// Lets at most `running_max` sessions of this kind run at once. To be called before slots are
    /// taken.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind, running_max: usize) -> Self {
        self.kinds[kind as usize] = Places::new(running_max);
        self
    }

    /// Lets at most `parallel_max` sessions of this orchestration run at once. To be called before
    /// slots are taken.
    #[must_use]
    pub fn with_orchestration(mut self, id: OrchestrationId, parallel_max: usize) -> Self {
        self.orchestrations.insert(id, Places::new(parallel_max));
        self
    }

    /// Whether all slots are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free == 0
    }

    /// Whether a session can take a slot now, as far as the limits go.
    #[must_use]
    pub fn can_take(&self, kind: Kind, orchestration: Option<OrchestrationId>) -> bool {
        let places = orchestration.and_then(|id| self.orchestrations.get(&id));
        self.free > 0
            && self.kinds[kind as usize].free > 0
            && places.is_none_or(|places| places.free > 0)
    }

    /// Notes a session that has its slot already, whatever the limits say.
    pub fn occupy(&mut self, kind: Kind, orchestration: Option<OrchestrationId>) {
        self.free = self.free.saturating_sub(1);
        self.kinds[kind as usize].occupy();
        if let Some(places) = orchestration.and_then(|id| self.orchestrations.get_mut(&id)) {
            places.occupy();
        }
    }

    /// Takes a slot for a session, if it can have one. To be asked in the order of turns.
    ///
    /// Who lacks one place of two holds the other against those made much later. Without that, an
    /// endless stream of sessions could take the places of its kind and of its orchestration by
    /// turns, and there would never be both.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        orchestration: Option<OrchestrationId>,
        created_at: Timestamp,
    ) -> bool {
        if self.is_full() {
            return false;
        }
        let of_kind = &mut self.kinds[kind as usize];
        let of_orchestration = orchestration.and_then(|id| self.orchestrations.get_mut(&id));
        let taken = match of_orchestration {
            None => of_kind.is_open(created_at),
            Some(of_orchestration) => {
                let open = (
                    of_kind.is_open(created_at),
                    of_orchestration.is_open(created_at),
                );
                match open {
                    // One that cannot run at all keeps nobody waiting.
                    (true, false) if of_orchestration.places_max > 0 => of_kind.hold(created_at),
                    (false, true) if of_kind.places_max > 0 => of_orchestration.hold(created_at),
                    _ => {}
                }
                open == (true, true)
            }
        };
        if taken {
            self.occupy(kind, orchestration);
        }
        taken
    }
}

/// What one limit leaves.
#[derive(Debug, Clone, Copy)]
struct Places {
    places_max: usize,
    free: usize,
    /// When the oldest session was made that wants a place here and lacks another.
    held_by: Option<Timestamp>,
}

impl Places {
    fn new(places_max: usize) -> Self {
        Self {
            places_max,
            free: places_max,
            held_by: None,
        }
    }

    fn occupy(&mut self) {
        self.free = self.free.saturating_sub(1);
    }

    fn is_open(&self, created_at: Timestamp) -> bool {
        let late = |by: Timestamp| created_at.as_second() - by.as_second() > STEP_S as i64;
        self.free > usize::from(self.held_by.is_some_and(late))
    }

    fn hold(&mut self, created_at: Timestamp) {
        self.held_by = Some(self.held_by.map_or(created_at, |by| by.min(created_at)));
    }
}
