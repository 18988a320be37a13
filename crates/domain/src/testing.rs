//! Sessions written in a few letters, for the tests of this crate.

use jiff::Timestamp;
use uuid::Uuid;

use crate::ending::Outcome;
use crate::ids::{Attempt, ClaudeSessionId, SessionId, Version};
use crate::project::{Kind, Project};
use crate::session::{Session, SessionState};

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a second within range")
}

/// The id of the session that one letter names.
pub fn session_id(name: &str) -> SessionId {
    SessionId(Uuid::from_u128(u128::from(name.as_bytes()[0])))
}

/// The letter that names a session.
pub fn letter(id: SessionId) -> char {
    char::from(id.0.as_bytes()[15])
}

/// A state by its name; running since second 10, stopping since second 20.
pub fn state(name: &str) -> SessionState {
    let attempt = Attempt::FIRST;
    match name {
        "created" => SessionState::Created,
        "queued" => SessionState::Queued,
        "starting" => SessionState::Starting {
            attempt,
            since: at(10),
        },
        "running" => SessionState::Running {
            attempt,
            since: at(10),
        },
        "awaiting" => SessionState::Awaiting {
            attempt,
            started_at: at(10),
            since: at(30),
        },
        "stopping" => SessionState::Stopping {
            attempt,
            started_at: Some(at(10)),
            since: at(20),
        },
        "concluding" => SessionState::Concluding {
            attempt,
            started_at: Some(at(10)),
            ending: Box::default(),
        },
        "saving" => SessionState::Saving {
            attempt,
            started_at: Some(at(10)),
            outcome: Outcome::Cancelled,
        },
        other => panic!("no state {other}"),
    }
}

/// A session from `b:queued<-ac`.
pub fn session(entry: &str) -> Session {
    let (name, rest) = entry.split_once(':').expect("name:state");
    let (state_name, dependencies) = rest.split_once("<-").unwrap_or((rest, ""));
    let project = Project {
        repository: "o/r".parse().expect("a repository"),
        branch: None,
        requirements: "x".into(),
        context: None,
    };
    let conversation = ClaudeSessionId(Uuid::nil());
    Session {
        state: state(state_name),
        version: Version(1),
        dependencies: dependencies
            .chars()
            .map(|one| session_id(&one.to_string()))
            .collect(),
        ..Session::new(
            session_id(name),
            Kind::Testing,
            project,
            conversation,
            at(0),
        )
    }
}
