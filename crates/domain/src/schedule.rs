//! Which ready session takes the next free slot.
//!
//! **The order.** Sessions go by their *turn*: when they were made, less what speeds them up.
//!
//! - Each step of priority is worth [`STEP_S`] seconds of waiting. A dependency has the priority
//!   of the most urgent session that waits for it.
//! - The longest remaining path, the seconds a session and those that wait for it one after the
//!   other are expected to take, is worth nearly its length while that is short. It is worth more
//!   the longer it is, and always less than a step.
//!
//! So of sessions made at the same time the higher priority goes first, then the longer path, then
//! the older one. Of others age and path add up: first goes what would otherwise be over last,
//! counted from when it was made.
//!
//! **Nobody starves.** A turn does not depend on the time or on who else is ready, and is never
//! far from when the session was made. A ready session is therefore passed over only by sessions
//! made before it, or less than `STEP_S × (1 + what their priority is higher by)` seconds after
//! it: at most [`HEAD_START_S`]. Each of them takes one slot for each of its attempts; however many
//! come later, they wait. Nothing is counted meanwhile, so a restart of the server changes nothing.
//!
//! **No slot is idle** while a ready session may take it: one whose kind or orchestration has no
//! place left is skipped. With one exception, which the promise above needs: where a session lacks
//! one place of the two, the last free one of the other is held against sessions that come after it
//! and were made more than [`STEP_S`] seconds later.

mod durations;
mod path;
mod slots;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use jiff::Timestamp;

pub use durations::{Durations, REMEMBERED_MAX};
pub use slots::Slots;

use crate::ids::{OrchestrationId, SessionId};
use crate::project::Kind;
use path::Ahead;

/// The seconds of waiting that one step of priority is worth: half a working day, so that a step
/// is felt by everything that is asked for in one sitting.
pub const STEP_S: u64 = 4 * 60 * 60;

/// Priorities are from minus this to this; what lies beyond counts as this.
pub const PRIORITY_MAX: i32 = 10;

/// No session passes over a ready one that was made this many seconds before it.
pub const HEAD_START_S: u64 = STEP_S * (2 * PRIORITY_MAX as u64 + 1);

/// Where a session stands with regard to slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A dependency is open, or nobody asked for it to run yet.
    Waiting,
    /// It could run, and has no slot.
    Ready,
    /// It has a slot, or is about to be given one already.
    HoldsSlot,
}

/// What the order depends on, of a session that is not over.
#[derive(Debug, Clone, Copy)]
pub struct OpenSession<'a> {
    /// Which one.
    pub id: SessionId,
    /// What it is for.
    pub kind: Kind,
    /// The orchestration whose limit it is under.
    pub orchestration: Option<OrchestrationId>,
    /// Higher goes first; see [`PRIORITY_MAX`].
    pub priority: i32,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The seconds it is expected to take, as [`Durations::expected_s`] says.
    pub expected_s: u64,
    /// All its dependencies; those that are over make no difference.
    pub dependencies: &'a [SessionId],
    /// Where it stands.
    pub phase: Phase,
}

/// The ready sessions, in the order in which they should get slots.
///
/// `open` holds all sessions that are not over, in any order. Linear in them and their
/// dependencies, but for the sorting of those that are ready.
#[must_use]
pub fn rank(open: &[OpenSession<'_>]) -> Vec<SessionId> {
    let places = in_turn(open).into_iter().map(|place| open[place.at].id);
    places.collect()
}

/// The ready sessions to launch now, first things first.
///
/// `open` holds all sessions that are not over, in any order; those that hold slots are taken off
/// `slots` here. Costs next to nothing while all slots are taken or nobody is ready.
#[must_use]
pub fn choose(open: &[OpenSession<'_>], mut slots: Slots) -> Vec<SessionId> {
    for session in open {
        if session.phase == Phase::HoldsSlot {
            slots.occupy(session.kind, session.orchestration);
        }
    }
    let mut chosen = Vec::new();
    if slots.is_full() || open.iter().all(|session| session.phase != Phase::Ready) {
        return chosen;
    }
    for place in in_turn(open) {
        if slots.is_full() {
            break;
        }
        let session = &open[place.at];
        if slots.take(session.kind, session.orchestration, session.created_at) {
            chosen.push(session.id);
        }
    }
    chosen
}

/// When it is whose turn: seconds on a clock of its own, see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn(i64);

impl Turn {
    fn of(session: &OpenSession<'_>, ahead: Ahead) -> Self {
        let steps = ahead.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX);
        // Grows with the path for ever and stays below a step: two paths never look the same
        // because both are long, and no path outweighs a priority.
        let path_s = u128::from(ahead.path_s);
        let step_s = u128::from(STEP_S);
        let path_credit_s = (path_s * step_s / (path_s + step_s)) as i64;
        Self(session.created_at.as_second() - i64::from(steps) * STEP_S as i64 - path_credit_s)
    }
}

struct Place {
    turn: Turn,
    at: usize,
}

fn in_turn(open: &[OpenSession<'_>]) -> Vec<Place> {
    let ahead = path::ahead(open);
    let ready = (0..open.len()).filter(|&at| open[at].phase == Phase::Ready);
    let mut places: Vec<Place> = ready
        .map(|at| Place {
            turn: Turn::of(&open[at], ahead[at]),
            at,
        })
        .collect();
    // The id last, so that the answer does not depend on the order of the sessions.
    places.sort_unstable_by_key(|place| {
        let session = &open[place.at];
        let path_s = ahead[place.at].path_s;
        (place.turn, Reverse(path_s), session.created_at, session.id)
    });
    places
}
