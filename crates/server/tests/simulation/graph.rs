//! Random graphs of sessions, and what bounds their running.

use std::collections::{BTreeSet, HashMap};

use baton::config::KindLimits;
use baton::store::Orchestration;
use baton_domain::{Branch, SessionState};
use baton_domain::{ClaudeSessionId, Kind, OrchestrationId, Project, Session, SessionId};
use jiff::Timestamp;

use crate::draw::Draw;

/// The most sessions of one graph.
const SESSIONS_MAX: usize = 30;

/// Bounds of one server.
#[derive(Clone)]
pub struct Bounds {
    pub slots_max: usize,
    pub prepared_max: usize,
    pub kinds: HashMap<Kind, KindLimits>,
}

impl Bounds {
    pub fn drawn(draw: &mut Draw) -> Self {
        let mut kinds = HashMap::new();
        if draw.chance(40) {
            let kind = Kind::ALL[draw.between(0, Kind::ALL.len())];
            let max_running = Some(draw.between(1, 3));
            kinds.insert(
                kind,
                KindLimits {
                    max_running,
                    ..KindLimits::default()
                },
            );
        }
        Self {
            slots_max: draw.between(1, 6),
            prepared_max: draw.between(0, 3),
            kinds,
        }
    }
}

/// One orchestration with all its sessions, or sessions without one.
#[derive(Clone)]
pub struct Graph {
    pub orchestration: Option<Orchestration>,
    pub sessions: Vec<Session>,
}

impl Graph {
    /// A few graphs; sessions of later ones may depend on sessions of earlier ones.
    pub fn some(draw: &mut Draw, now: Timestamp) -> Vec<Self> {
        let count = match draw.between(0, 10) {
            0 => draw.between(12, SESSIONS_MAX + 1),
            1..4 => draw.between(6, 13),
            _ => draw.between(1, 8),
        };
        let parts = draw.between(1, 4).min(count);
        let mut known = Vec::new();
        let mut graphs = Vec::new();
        for part in 0..parts {
            let left = count - known.len();
            let size = match part + 1 == parts {
                true => left,
                false => draw.between(1, left - (parts - part - 1) + 1),
            };
            let graph = Self::drawn(draw, now, size, &known);
            known.extend(graph.sessions.iter().map(|session| session.id));
            graphs.push(graph);
        }
        graphs
    }

    /// One, two that wait for it, and one that waits for both.
    pub fn diamond(draw: &mut Draw, now: Timestamp) -> Self {
        let mut sessions: Vec<Session> = Vec::new();
        for waits_for in [0..0, 0..1, 0..1, 1..3] {
            let dependencies = sessions[waits_for].iter().map(|one| one.id).collect();
            let session = session(draw, now, dependencies);
            sessions.push(Session {
                state: SessionState::Queued,
                ..session
            });
        }
        Self {
            orchestration: None,
            sessions,
        }
    }

    /// One coordination session that makes the others itself.
    pub fn coordinated(draw: &mut Draw, now: Timestamp) -> Self {
        let id = OrchestrationId(draw.uuid());
        let repository = repository().parse().expect("a repository");
        let session = session(draw, now, Vec::new());
        Self {
            orchestration: Some(Orchestration::new(id, repository, "all of it".into(), now)),
            sessions: vec![Session {
                kind: Kind::Coordination,
                state: SessionState::Queued,
                orchestration_id: Some(id),
                ..session
            }],
        }
    }

    fn drawn(draw: &mut Draw, now: Timestamp, size: usize, known: &[SessionId]) -> Self {
        let mut orchestration = draw.chance(60).then(|| {
            let id = OrchestrationId(draw.uuid());
            let repository = repository().parse().expect("a repository");
            Orchestration::new(id, repository, "all of it".into(), now)
        });
        let parallel_max = draw.chance(50).then(|| draw.between(1, 4) as u32);
        if let Some(orchestration) = &mut orchestration {
            orchestration.parallel_max = parallel_max;
            orchestration.max_cost_usd = draw.chance(40).then(|| draw.between(1, 9) as f64);
        }
        let starts = draw.chance(85);
        let shape = draw.between(0, 5);
        let mut sessions: Vec<Session> = Vec::with_capacity(size);
        for at in 0..size {
            let own: Vec<SessionId> = sessions.iter().map(|one| one.id).collect();
            let mut dependencies: BTreeSet<SessionId> = BTreeSet::new();
            match shape {
                0 => dependencies.extend(own.last()),
                1 => dependencies.extend(own.first()),
                2 if at + 1 == size => dependencies.extend(&own),
                3 => {
                    for earlier in &own {
                        if draw.chance(25) {
                            dependencies.insert(*earlier);
                        }
                    }
                }
                4 if at > 1 => dependencies.extend(&own[at / 2 - 1..=at / 2]),
                _ => {}
            }
            if draw.chance(10) {
                dependencies.extend(draw.pick(known));
            }
            let mut session = session(draw, now, dependencies.into_iter().collect());
            session.orchestration_id = orchestration.as_ref().map(|one| one.id);
            if starts {
                session.state = SessionState::Queued;
            }
            sessions.push(session);
        }
        Self {
            orchestration,
            sessions,
        }
    }
}

/// One session that was not asked to start.
pub fn session(draw: &mut Draw, now: Timestamp, dependencies: Vec<SessionId>) -> Session {
    let id = SessionId(draw.uuid());
    let claude = ClaudeSessionId(draw.uuid());
    let session = Session::new(id, kind(draw), project(draw), claude, now);
    Session {
        dependencies,
        priority: draw.between(0, 5) as i32 - 2,
        ..session
    }
}

pub fn kind(draw: &mut Draw) -> Kind {
    match draw.between(0, 10) {
        0 => Kind::Coordination,
        1 => Kind::Review,
        2..4 => Kind::Testing,
        4..6 => Kind::Analysis,
        _ => Kind::Implementation,
    }
}

pub fn project(draw: &mut Draw) -> Project {
    Project {
        repository: repository().parse().expect("a repository"),
        branch: draw.chance(30).then(branch),
        requirements: "look".into(),
        context: None,
    }
}

/// The branch that several sessions land on.
pub fn branch() -> Branch {
    "shared".parse().expect("a branch")
}

pub fn repository() -> &'static str {
    "o/r"
}
