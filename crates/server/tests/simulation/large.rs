//! Graphs of ten thousand sessions, made at once, in the first looks of a server.

use baton::store::{NewSessions, Written};
use baton_domain::{Session, SessionId, SessionState};
use jiff::Timestamp;

use crate::draw::Draw;
use crate::graph::{self, Bounds};
use crate::life::Life;
use crate::world::World;

const SESSIONS: usize = 10_000;
const SLOTS: usize = 4;

#[derive(Clone, Copy)]
enum Shape {
    Chain,
    FanOut,
    FanIn,
}

fn sessions(shape: Shape) -> Vec<Session> {
    let mut draw = Draw::new(1);
    let mut sessions: Vec<Session> = Vec::with_capacity(SESSIONS);
    for at in 0..SESSIONS {
        let ids = sessions.iter().map(|one| one.id);
        let dependencies: Vec<SessionId> = match shape {
            Shape::Chain => ids.rev().take(1).collect(),
            Shape::FanOut => ids.take(1).collect(),
            Shape::FanIn if at + 1 == SESSIONS => ids.collect(),
            Shape::FanIn => Vec::new(),
        };
        let session = graph::session(&mut draw, Timestamp::UNIX_EPOCH, dependencies);
        sessions.push(Session {
            state: SessionState::Queued,
            ..session
        });
    }
    sessions
}

fn ten_thousand_run_in_order(shape: Shape, launched: usize) {
    let bounds = Bounds {
        slots_max: SLOTS,
        prepared_max: 0,
        kinds: std::collections::HashMap::new(),
    };
    let world = World::new(1, bounds);
    let mut life = Life::begin(&world);
    life.run(async |server| {
        let new = NewSessions {
            sessions: sessions(shape),
            ..NewSessions::default()
        };
        let made = server.store.create(new).await.expect("made at once");
        assert!(matches!(made, Written::Now(made) if made.len() == SESSIONS));
        assert!(server.comes_to_rest(10).await);
        assert_eq!(world.runtime.running().len(), launched);
    })
    .expect("it lives");
    assert!(
        world.witness.wrong().is_empty(),
        "{:?}",
        world.witness.wrong()
    );
}

#[test]
fn ten_thousand_in_a_chain_are_made_at_once_and_begin_with_the_first() {
    ten_thousand_run_in_order(Shape::Chain, 1);
}

#[test]
fn ten_thousand_that_wait_for_one_are_made_at_once_and_begin_with_it() {
    ten_thousand_run_in_order(Shape::FanOut, 1);
}

#[test]
fn ten_thousand_that_one_waits_for_are_made_at_once_and_fill_the_slots() {
    ten_thousand_run_in_order(Shape::FanIn, SLOTS);
}
