//! The work of a planning session: what it is to divide, and the sessions its answer becomes.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DependencyMode, PlanLimits, ProposedGraph, ProposedSession, Request, decompose};
use crate::ids::{ClaudeSessionId, SessionId};
use crate::project::Project;
use crate::session::{Session, SessionState};

/// What a planning session divides. Kept with it, so that its answer can be taken whenever it
/// comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planning {
    /// What is to be done, in the client's words.
    pub requirements: Arc<str>,
    /// See [`Request::mode`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DependencyMode>,
    /// See [`Request::phases`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<String>,
    /// See [`Request::parallel_sessions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_sessions: Option<u64>,
    /// Whether the sessions of the plan start at once.
    pub auto_start: bool,
}

/// A planning session's answer, as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What is to be made.
    pub graph: ProposedGraph,
    /// Why the answer itself was not taken, and the words of the requirements were divided instead.
    pub refused: Option<String>,
}

impl Planning {
    /// What is asked for, as both planners take it.
    #[must_use]
    pub fn request<'a>(&'a self, context: Option<&'a str>) -> Request<'a> {
        Request {
            requirements: &self.requirements,
            context,
            mode: self.mode,
            phases: &self.phases,
            parallel_sessions: self.parallel_sessions,
        }
    }

    /// Takes the answer, or divides by words what it was to divide.
    #[must_use]
    pub fn answer(&self, text: &str, project: &Project) -> Answer {
        let limits = PlanLimits::of(&project.repository);
        match ProposedGraph::from_plan_text(text.trim(), &limits) {
            Ok(graph) => Answer {
                graph,
                refused: None,
            },
            Err(error) => Answer {
                graph: decompose(&self.request(project.context.as_deref())),
                refused: Some(error.to_string()),
            },
        }
    }
}

/// The sessions of a graph that `planner` drew, in its orchestration and with what was asked for
/// it. Those that wait for no other of the graph wait for the planner.
pub fn planned_sessions(
    planner: &Session,
    graph: &ProposedGraph,
    auto_start: bool,
    names: impl Fn(usize) -> (SessionId, ClaudeSessionId),
    now: Timestamp,
) -> Vec<Session> {
    let session = |(at, proposed): (usize, &ProposedSession)| {
        let (id, conversation) = names(at);
        let project = Project {
            requirements: proposed.requirements.as_str().into(),
            ..planner.project.clone()
        };
        let mut dependencies: Vec<SessionId> = proposed
            .dependencies
            .iter()
            .map(|&of| names(of).0)
            .collect();
        if dependencies.is_empty() {
            dependencies.push(planner.id);
        }
        Session {
            state: match auto_start {
                true => SessionState::Queued,
                false => SessionState::Created,
            },
            orchestration_id: planner.orchestration_id,
            dependencies,
            timeout_s: planner.timeout_s,
            project_settings: planner.project_settings,
            title: Some(proposed.title.clone()),
            priority: planner.priority,
            ..Session::new(id, proposed.kind, project, conversation, now)
        }
    };
    graph.sessions.iter().enumerate().map(session).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{at, session};

    fn planning() -> Planning {
        Planning {
            requirements: "Build an API with a React frontend".into(),
            mode: None,
            phases: Vec::new(),
            parallel_sessions: None,
            auto_start: true,
        }
    }

    fn names(at: usize) -> (SessionId, ClaudeSessionId) {
        let id = uuid::Uuid::from_u128(1_000 + at as u128);
        (SessionId(id), ClaudeSessionId(id))
    }

    #[test]
    fn the_roots_of_a_plan_wait_for_the_planner() {
        let planner = session("p:running");
        let plan = json!({ "summary": "two steps", "sessions": [
            { "key": "b", "requirements": "then", "dependencies": ["a"] },
            { "key": "a", "requirements": "first" },
        ] });
        let answer = planning().answer(&plan.to_string(), &planner.project);
        assert_eq!(answer.refused, None);
        let made = planned_sessions(&planner, &answer.graph, true, names, at(9));
        let waits: Vec<_> = made.iter().map(|one| one.dependencies.clone()).collect();
        assert_eq!(waits, [vec![planner.id], vec![names(0).0]]);
        assert!(made.iter().all(|one| one.state == SessionState::Queued));
    }

    #[test]
    fn an_answer_that_is_no_plan_is_replaced_and_told() {
        let planner = session("p:running");
        for text in ["I could not decide.", "{\"sessions\":[]}", ""] {
            let answer = planning().answer(text, &planner.project);
            assert!(answer.refused.is_some(), "{text}");
            assert!(answer.graph.sessions.len() > 2, "{text}");
        }
    }
}
