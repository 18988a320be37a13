//! Snapshot and limits → what to do next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::coordination::coordinates;
use crate::ids::{Attempt, SessionId};
use crate::observe::Snapshot;
use crate::pauses::{account_limit, is_afforded, may_launch};
use crate::project::Kind;
use crate::sandbox::{Sandbox, SandboxState};
use crate::schedule::{Durations, OpenSession, Phase, Slots, choose, rank};
use crate::session::{Session, SessionState, Standing};

/// How old a sandbox without a session must be before it is removed. A sandbox is made after its
/// session is recorded, so a young one belongs to a server that is faster than our listing.
pub const ORPHAN_AGE: SignedDuration = SignedDuration::from_mins(10);

/// What bounds a plan, and what its order rests on.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Sessions that may run at once.
    pub slots_max: usize,
    /// How many of a kind may run at once, of the kinds that have a limit of their own.
    pub kinds_max: &'a [(Kind, usize)],
    /// How long sessions take.
    pub durations: &'a Durations,
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
    /// The work is safe; the conversation may be gone on with.
    KeepState,
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
    /// Give a slot back to a session that waited for others.
    TakeSlot(Arc<Session>),
    /// Make a session's sandbox ahead of its launch.
    Prepare(Arc<Session>),
}

impl Action {
    /// The session it is for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match self {
            Self::Remove(sandbox, _) | Self::Kill(sandbox) => sandbox.session,
            Self::Conclude(session)
            | Self::Launch(session)
            | Self::TakeSlot(session)
            | Self::Prepare(session) => session.id,
        }
    }
}

/// The IO that `snapshot` calls for. Pure: the same snapshot gives the same plan.
///
/// `standing` tells of any session, over or not; none for an id that was never recorded.
/// Removals come first, so that a full host frees room before it is asked for more. In which order
/// sessions that are ready take slots, [`crate::schedule`] says.
pub fn plan(
    snapshot: &Snapshot,
    standing: impl Fn(SessionId) -> Option<Standing>,
    limits: &Limits<'_>,
) -> Vec<Action> {
    let mut actions = removals(snapshot, &standing);
    let idle = snapshot
        .sessions
        .iter()
        .filter(|session| !snapshot.busy.contains(&session.id));
    for session in idle {
        let sandbox = sandbox_of(snapshot, session);
        let sandbox_state = sandbox.map(|sandbox| &sandbox.state);
        match &session.state {
            SessionState::Concluding { .. } | SessionState::Saving { .. } => {
                actions.push(Action::Conclude(Arc::clone(session)));
            }
            SessionState::Starting { .. }
                if matches!(
                    sandbox_state,
                    None | Some(SandboxState::Prepared | SandboxState::Removed)
                ) =>
            {
                // A crash after the decision but before the act, or an unready runtime.
                actions.push(Action::Launch(Arc::clone(session)));
            }
            SessionState::Stopping { since, .. }
                if snapshot
                    .now
                    .duration_since((*since).max(snapshot.watching_since))
                    > limits.stop_grace =>
            {
                actions.extend(sandbox.cloned().map(Action::Kill));
            }
            _ => {}
        }
    }
    let open = open_sessions(snapshot, &standing, limits.durations, limits.slots_max);
    let chosen = choose(&open, slots(snapshot, limits));
    let prepares = prepares(snapshot, &open, &chosen, limits.prepared_max);
    let by_id: HashMap<SessionId, &Arc<Session>> = match chosen.len() + prepares.len() {
        0 => HashMap::new(),
        _ => snapshot.sessions.iter().map(|one| (one.id, one)).collect(),
    };
    let found = |id: &SessionId| by_id.get(id).map(|session| Arc::clone(session));
    let chosen = chosen.iter().filter_map(found);
    actions.extend(chosen.map(|session| match session.state {
        SessionState::Awaiting { .. } => Action::TakeSlot(session),
        _ => Action::Launch(session),
    }));
    actions.extend(prepares.iter().filter_map(found).map(Action::Prepare));
    actions
}

fn sandbox_of<'a>(snapshot: &'a Snapshot, session: &Session) -> Option<&'a Sandbox> {
    snapshot.sandboxes.seen.get(&(session.id, session.attempt))
}

/// All sessions as the scheduler sees them.
fn open_sessions<'a>(
    snapshot: &'a Snapshot,
    standing: &impl Fn(SessionId) -> Option<Standing>,
    durations: &Durations,
    slots_max: usize,
) -> Vec<OpenSession<'a>> {
    let limit = account_limit(&snapshot.sessions, snapshot.now);
    let sessions = snapshot.sessions.iter();
    // Who waits without a slot has a container all the same. What was begun is finished before
    // another begins that will wait; one below another may always begin, or that would wait for
    // ever.
    let waiting = sessions.clone().filter(|one| one.state.awaits()).count();
    let is_one_too_many =
        |one: &Session| waiting >= slots_max && one.parent.is_none() && coordinates(one);
    let open = sessions.map(|session| {
        // Since when it waits for others, where it does.
        let awaits = match session.state {
            SessionState::Awaiting { since, .. } => Some(since),
            _ => None,
        };
        let wants_slot = awaits.is_some() || session.state == SessionState::Queued;
        let is_ready = || match awaits {
            Some(_) => !snapshot.waits.contains(&session.id),
            None => {
                may_launch(session, limit, snapshot.now)
                    && is_afforded(session, snapshot.budget_of(session))
                    && !is_one_too_many(session)
                    && ready(session, standing)
            }
        };
        let phase = if session.state.holds_slot() {
            Phase::HoldsSlot
        } else if wants_slot && snapshot.busy.contains(&session.id) {
            // What is under way takes a slot when it is recorded.
            Phase::HoldsSlot
        } else if wants_slot && is_ready() {
            Phase::Ready
        } else {
            Phase::Waiting
        };
        OpenSession {
            id: session.id,
            kind: session.kind,
            orchestration: session.orchestration_id,
            // It comes back again and again. If it kept the turn of the day it was made, two such
            // could pass one slot to each other for ever, and their own children got none. So it
            // counts as made when it began to wait; and, since its container stands there with
            // work begun, as more urgent than others by a step.
            priority: session.priority.saturating_add(i32::from(awaits.is_some())),
            created_at: awaits.unwrap_or(session.created_at),
            expected_s: durations.expected_s(session.kind),
            dependencies: &session.dependencies,
            phase,
        }
    });
    open.collect()
}

fn slots(snapshot: &Snapshot, limits: &Limits<'_>) -> Slots {
    let kinds = limits.kinds_max.iter();
    let slots = kinds.fold(Slots::new(limits.slots_max), |slots, (kind, most)| {
        slots.with_kind(*kind, *most)
    });
    let narrowed = snapshot.orchestrations.iter();
    narrowed.fold(slots, |slots, (id, bounds)| match bounds.running_max() {
        Some(most) => slots.with_orchestration(*id, most),
        None => slots,
    })
}

/// The sessions whose sandboxes are made ahead: those that are ready, in the order in which they
/// will be launched, then the others, oldest first.
fn prepares(
    snapshot: &Snapshot,
    open: &[OpenSession<'_>],
    launches: &[SessionId],
    prepared_max: usize,
) -> Vec<SessionId> {
    let room = prepared_max.saturating_sub(prepared(snapshot));
    if room == 0 {
        return Vec::new();
    }
    let lacking: HashSet<SessionId> = snapshot
        .sessions
        .iter()
        .filter(|session| {
            matches!(session.state, SessionState::Created | SessionState::Queued)
                && !snapshot.busy.contains(&session.id)
                && !launches.contains(&session.id)
                && matches!(
                    sandbox_of(snapshot, session).map(|sandbox| &sandbox.state),
                    None | Some(SandboxState::Removed)
                )
        })
        .map(|session| session.id)
        .collect();
    if lacking.is_empty() {
        return Vec::new();
    }
    let ranked = rank(open);
    let mut seen = HashSet::new();
    let others = snapshot.sessions.iter().map(|session| session.id);
    let wanted = ranked.into_iter().chain(others);
    wanted
        .filter(|id| lacking.contains(id) && seen.insert(*id))
        .take(room)
        .collect()
}

fn ready(session: &Session, standing: &impl Fn(SessionId) -> Option<Standing>) -> bool {
    session
        .dependencies
        .iter()
        .all(|&id| standing(id) == Some(Standing::Completed))
}

/// Sandboxes that stand ready or are being made. Those being made count by their sessions, for
/// which an action is under way: until it ends, nothing is seen of them.
fn prepared(snapshot: &Snapshot) -> usize {
    let ready = snapshot
        .sandboxes
        .seen
        .values()
        .filter(|sandbox| sandbox.state == SandboxState::Prepared);
    let being_made = snapshot.sessions.iter().filter(|session| {
        matches!(session.state, SessionState::Created | SessionState::Queued)
            && snapshot.busy.contains(&session.id)
            && !snapshot
                .sandboxes
                .seen
                .contains_key(&(session.id, session.attempt))
    });
    ready.count() + being_made.count()
}

fn removals(snapshot: &Snapshot, standing: &impl Fn(SessionId) -> Option<Standing>) -> Vec<Action> {
    let active: HashMap<SessionId, &Session> = snapshot
        .sessions
        .iter()
        .map(|session| (session.id, session.as_ref()))
        .collect();
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
    removals.sort_by_key(Action::session);
    removals
}

/// Whether a session that is not over may still use the sandbox of `attempt`. Its container goes
/// only when the outcome is recorded, or known.
fn needs(session: &Session, attempt: Attempt) -> bool {
    attempt == session.attempt && !matches!(session.state, SessionState::Saving { .. })
}

/// What becomes of the volumes of a sandbox whose session is over; none: leave it alone for now.
fn fate(sandbox: &Sandbox, standing: Option<Standing>, now: Timestamp) -> Option<Volumes> {
    match standing {
        Some(Standing::Completed) => Some(Volumes::KeepState),
        Some(Standing::Lost) => Some(Volumes::Keep),
        // Recorded after the sessions were read.
        Some(Standing::Open) => None,
        None if now.duration_since(sandbox.created_at) > ORPHAN_AGE => Some(Volumes::Keep),
        None => None,
    }
}

#[cfg(test)]
mod tests;
