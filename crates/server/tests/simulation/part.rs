//! A Claude that makes sessions of its own, starts them and waits for them: what it remembers, and
//! the calls that one server has open.

use baton::orchestrator::{
    Accepted, Caller, NewSession, Once, OrchestratorError, SessionDetails, WaitGuard,
};
use baton_domain::pauses::is_afforded;
use baton_domain::session::Standing;
use baton_domain::{Session, SessionId, SessionState};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::agent::Mood;
use crate::draw::Draw;
use crate::graph;
use crate::life::Server;
use crate::world::{Run, World};

/// What Claude has done so far, and does now. It outlives servers.
pub struct Part {
    /// How many sessions it is going to make.
    wanted: usize,
    made: Vec<SessionId>,
    does: Does,
}

#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// It thinks, with a slot: makes sessions, and waits for them then.
    Thinks,
    /// It waits for an answer.
    Waits,
    /// Its wait broke off. It wants to think; the gateway holds its calls of the model.
    IsHeld,
}

/// A call that a server has open.
pub enum Call {
    /// It waits for sessions.
    Open(WaitGuard),
    /// They are over; it waits for its slot.
    Returns(BoxFuture<'static, Result<(), OrchestratorError>>),
}

impl Part {
    pub fn drawn(draw: &mut Draw, mood: Mood) -> Option<Self> {
        let part = Self {
            wanted: draw.between(1, 5),
            made: Vec::new(),
            does: Does::Thinks,
        };
        (mood == Mood::Finishing || draw.chance(80)).then_some(part)
    }

    pub fn stands_still(&self) -> bool {
        self.does != Does::Thinks
    }
}

/// Lets Claude go on with its part as far as it goes.
pub async fn step(world: &World, server: &mut Server, run: Run, draw: &mut Draw, mood: Mood) {
    loop {
        let does = match &world.agents()[&run].part {
            Some(part) => part.does,
            None => return,
        };
        let goes_on = match does {
            Does::Thinks if !has_slot(server, run) => false,
            Does::Thinks => thinks(world, server, run, draw).await,
            Does::Waits => waits(world, server, run, draw, mood).await,
            Does::IsHeld => is_held(world, server, run),
        };
        if !goes_on || (mood == Mood::Any && draw.chance(40)) {
            return;
        }
    }
}

fn part<T>(world: &World, run: Run, change: impl FnOnce(&mut Part) -> T) -> Option<T> {
    let mut agents = world.agents();
    let agent = agents.get_mut(&run)?;
    agent.part.as_mut().map(change)
}

/// What it was to do is done, or cannot be.
fn is_done(world: &World, run: Run) -> bool {
    if let Some(agent) = world.agents().get_mut(&run) {
        agent.part = None;
    }
    false
}

/// Whether its session runs: it has a slot, and its agent told that Claude was started.
fn has_slot(server: &Server, run: Run) -> bool {
    let session = server.store.cached_session(run.0);
    session.is_some_and(|session| match session.state {
        SessionState::Running { attempt, .. } => attempt == run.1,
        _ => false,
    })
}

fn begins_to_think(world: &World, server: &Server, run: Run) -> bool {
    part(world, run, |part| part.does = Does::Thinks);
    world
        .witness
        .goes_on(run, &world.runtime, &server.store, &world.bounds);
    true
}

async fn thinks(world: &World, server: &mut Server, run: Run, draw: &mut Draw) -> bool {
    let known = part(world, run, |part| (part.wanted, part.made.clone()));
    let Some((wanted, made)) = known else {
        return false;
    };
    let caller = Caller::Session(run.0);
    if made.len() < wanted {
        let mut dependencies = Vec::new();
        if draw.chance(50) {
            dependencies.extend(draw.pick(&made));
        }
        let (kind, mut project) = (graph::kind(draw), graph::project(draw));
        project.branch = None;
        let new = NewSession {
            dependencies,
            ..NewSession::new(kind, project)
        };
        let render = |details: &SessionDetails| details.session.id.to_string().into_bytes();
        let once = Once {
            // In another attempt, and after an answer that was lost, the same are found.
            key: format!("child {}", made.len()),
            digest: [0; 32],
            render: &render,
        };
        let answer = server
            .orchestrator
            .create_session_for(caller, new, Some(once));
        let id = match answer.await {
            Ok(Accepted::Now(details)) => details.session.id,
            Ok(Accepted::Before(id)) => {
                let id = String::from_utf8(id).expect("text");
                SessionId(id.parse().expect("an id"))
            }
            // It tries again later.
            Err(OrchestratorError::Refused(_)) => return false,
            Err(_) => return is_done(world, run),
        };
        world.witness.sees_child(id);
        part(world, run, |part| part.made.push(id));
        return true;
    }
    if made.iter().all(|id| is_settled(server, *id)) {
        return is_done(world, run);
    }
    // The server may die over it: from here on Claude does nothing until it is answered.
    part(world, run, |part| part.does = Does::Waits);
    match server.orchestrator.begin_wait(caller).await {
        Ok(guard) => {
            world.witness.sees_wait();
            server.calls.insert(run, Call::Open(guard));
            true
        }
        Err(_) => is_done(world, run),
    }
}

async fn waits(world: &World, server: &mut Server, run: Run, draw: &mut Draw, mood: Mood) -> bool {
    let made = part(world, run, |part| part.made.clone()).unwrap_or_default();
    let is_over = made.iter().all(|id| is_settled(server, *id));
    let breaks_off = mood == Mood::Any && draw.chance(10);
    match server.calls.remove(&run) {
        // The server that it asked is dead.
        None => {
            world.witness.sees_broken_wait();
            part(world, run, |part| part.does = Does::IsHeld);
            true
        }
        Some(_) if breaks_off => {
            part(world, run, |part| part.does = Does::IsHeld);
            true
        }
        Some(Call::Open(guard)) if is_over => {
            let back = guard.take_back().boxed();
            server.calls.insert(run, Call::Returns(back));
            true
        }
        Some(Call::Open(guard)) => {
            server.calls.insert(run, Call::Open(guard));
            false
        }
        Some(Call::Returns(mut back)) => match back.as_mut().now_or_never() {
            Some(Ok(())) => begins_to_think(world, server, run),
            Some(Err(_)) => is_done(world, run),
            None => {
                server.calls.insert(run, Call::Returns(back));
                false
            }
        },
    }
}

fn is_held(world: &World, server: &Server, run: Run) -> bool {
    match has_slot(server, run) {
        true => begins_to_think(world, server, run),
        false => false,
    }
}

/// Whether nothing more comes of a session unless somebody does something about it.
fn is_settled(server: &Server, id: SessionId) -> bool {
    let Some(session) = server.store.cached_session(id) else {
        // Those that are not over are all in memory.
        return true;
    };
    match session.state {
        SessionState::Created | SessionState::Paused { .. } => true,
        SessionState::Queued => {
            let mut dependencies = session.dependencies.iter();
            is_held_by_budget(server, &session)
                || dependencies.any(|of| {
                    server.store.standing(*of) != Some(Standing::Completed)
                        && is_settled(server, *of)
                })
        }
        _ => session.state.is_over(),
    }
}

/// Whether the budget of its orchestration is spent.
pub fn is_held_by_budget(server: &Server, session: &Session) -> bool {
    let id = session.orchestration_id;
    let budget = id.and_then(|id| server.store.budget(id, |_, _| 0.0));
    !is_afforded(session, budget.as_ref())
}
