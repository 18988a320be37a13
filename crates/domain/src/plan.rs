//! Snapshot and limits → what to do next.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::ids::{Attempt, SessionId};
use crate::observe::Snapshot;
use crate::sandbox::{Sandbox, SandboxState};
use crate::session::{Session, SessionState, Standing};

/// How old a sandbox without a session must be before it is removed. A sandbox is made after its
/// session is recorded, so a young one belongs to a server that is faster than our listing.
pub const ORPHAN_AGE: SignedDuration = SignedDuration::from_mins(10);

/// What bounds a plan.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sessions that may run at once.
    pub slots_max: usize,
    /// Sandboxes that may stand ready before their sessions are launched.
    pub prepared_max: usize,
    /// How long a session that was told to stop may take to save its work.
    pub stop_grace: SignedDuration,
}

/// What becomes of a sandbox's volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// They may hold work that is nowhere else.
    Keep,
    /// Nothing is lost with them.
    Remove,
}

/// Something to do. Every action may be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Delete a sandbox that is of no more use.
    Remove(Sandbox, Volumes),
    /// Kill a sandbox that was told to stop and does not; its volumes stay.
    Kill(Sandbox),
    /// Record and land what a session left.
    Conclude(Arc<Session>),
    /// Start a session's sandbox: a new decision, or one whose act was cut short.
    Launch(Arc<Session>),
    /// Make a session's sandbox ahead of its launch.
    Prepare(Arc<Session>),
}

impl Action {
    /// The session it is for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match self {
            Self::Remove(sandbox, _) | Self::Kill(sandbox) => sandbox.session,
            Self::Conclude(session) | Self::Launch(session) | Self::Prepare(session) => session.id,
        }
    }
}

/// The IO that `snapshot` calls for. Pure: the same snapshot gives the same plan.
///
/// `standing` tells of any session, over or not; none for an id that was never recorded.
/// Removals come first, so that a full host frees room before it is asked for more. Among
/// sessions that are ready the oldest goes first.
pub fn plan(
    snapshot: &Snapshot,
    standing: impl Fn(SessionId) -> Option<Standing>,
    limits: &Limits,
) -> Vec<Action> {
    let mut actions = removals(snapshot, &standing);
    let slots_held = snapshot.sessions.iter().filter(|session| session.state.holds_slot()).count();
    let mut slots_free = limits.slots_max.saturating_sub(slots_held);
    let mut prepared_free = limits.prepared_max.saturating_sub(prepared(snapshot));
    for session in &snapshot.sessions {
        if snapshot.busy.contains(&session.id) {
            // An attempted launch of a queued session will take a slot when it is recorded.
            if matches!(session.state, SessionState::Queued) {
                slots_free = slots_free.saturating_sub(1);
            }
            continue;
        }
        let sandbox = snapshot.sandboxes.seen.get(&(session.id, session.attempt));
        let sandbox_state = sandbox.map(|sandbox| sandbox.state);
        match &session.state {
            SessionState::Concluding { .. } => actions.push(Action::Conclude(Arc::clone(session))),
            SessionState::Starting { .. }
                if matches!(sandbox_state, None | Some(SandboxState::Prepared)) =>
            {
                // A crash after the decision but before the act, or an unready runtime.
                actions.push(Action::Launch(Arc::clone(session)));
            }
            SessionState::Stopping { since, .. }
                if snapshot.now.duration_since(*since) > limits.stop_grace =>
            {
                actions.extend(sandbox.cloned().map(Action::Kill));
            }
            SessionState::Queued if slots_free > 0 && ready(session, &standing) => {
                slots_free -= 1;
                actions.push(Action::Launch(Arc::clone(session)));
            }
            SessionState::Created | SessionState::Queued
                if prepared_free > 0 && matches!(sandbox_state, None | Some(SandboxState::Removed)) =>
            {
                prepared_free -= 1;
                actions.push(Action::Prepare(Arc::clone(session)));
            }
            _ => {}
        }
    }
    actions
}

fn ready(session: &Session, standing: &impl Fn(SessionId) -> Option<Standing>) -> bool {
    session.dependencies.iter().all(|&id| standing(id) == Some(Standing::Completed))
}

/// Sandboxes that stand ready or are being made.
fn prepared(snapshot: &Snapshot) -> usize {
    snapshot
        .sandboxes
        .seen
        .values()
        .filter(|sandbox| sandbox.state == SandboxState::Prepared)
        .count()
}

fn removals(
    snapshot: &Snapshot,
    standing: &impl Fn(SessionId) -> Option<Standing>,
) -> Vec<Action> {
    let active: HashMap<SessionId, &Session> =
        snapshot.sessions.iter().map(|session| (session.id, session.as_ref())).collect();
    let mut removals: Vec<Action> = snapshot
        .sandboxes
        .seen
        .values()
        .filter(|sandbox| sandbox.state != SandboxState::Removed)
        .filter(|sandbox| !snapshot.busy.contains(&sandbox.session))
        .filter_map(|sandbox| {
            let volumes = match active.get(&sandbox.session) {
                Some(session) if needs(session, sandbox.attempt) => return None,
                Some(_) => Volumes::Keep,
                None => fate(sandbox, standing(sandbox.session), snapshot.now)?,
            };
            let unused = sandbox.state == SandboxState::Prepared;
            let volumes = if unused { Volumes::Remove } else { volumes };
            Some(Action::Remove(sandbox.clone(), volumes))
        })
        .collect();
    removals.sort_by(|a, b| a.session().cmp(&b.session()));
    removals
}

/// Whether a session that is not over may still use the sandbox of `attempt`. Its container goes
/// only when the outcome is recorded.
fn needs(session: &Session, attempt: Attempt) -> bool {
    attempt == session.attempt
}

/// What becomes of the volumes of a sandbox whose session is over; none: leave it alone for now.
fn fate(sandbox: &Sandbox, standing: Option<Standing>, now: Timestamp) -> Option<Volumes> {
    match standing {
        Some(Standing::Completed) => Some(Volumes::Remove),
        Some(Standing::Lost) => Some(Volumes::Keep),
        // Recorded after the sessions were read.
        Some(Standing::Open) => None,
        None if now.duration_since(sandbox.created_at) > ORPHAN_AGE => Some(Volumes::Keep),
        None => None,
    }
}
