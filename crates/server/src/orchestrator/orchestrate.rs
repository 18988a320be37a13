//! One request to a graph of sessions.

use std::sync::Arc;

use baton_domain::budget::Budget;
use baton_domain::decompose::{Planning, ProposedGraph, Request, decompose, plan_prompt};
use baton_domain::{
    Kind, OrchestrationId, Project, Session, SessionEvent, SessionId, SessionState,
};

use super::{
    Accepted, NewOrchestration, NewSession, Once, Orchestrated, OrchestrationDetails, Orchestrator,
    OrchestratorError, Planner, Strategy, idempotency,
};
use crate::failpoint;
use crate::store::{NewSessions, Orchestration, StoreError, Transition};

/// How often a start of many sessions is decided anew when another writer was faster.
const DECISIONS_MAX: usize = 16;

impl Orchestrator {
    /// Makes an orchestration. Its sessions are those of the plan that came with it; or exactly
    /// one, where a kind is named and no strategy; or what the requirements are divided into.
    ///
    /// # Errors
    /// As [`Orchestrator::create_session`].
    pub async fn orchestrate(
        &self,
        new: NewOrchestration,
        once: Option<Once<'_, Orchestrated>>,
    ) -> Result<Accepted<Orchestrated>, OrchestratorError> {
        if let Some(response) = self.refused_or_before(once.as_ref()).await? {
            return Ok(Accepted::Before(response));
        }
        let id = self.parts.ids.orchestration();
        let (sessions, how) = self.divided(&new, id).await?;
        let sessions = self.new_sessions(sessions)?;
        let details = |session: &Session| self.details(Arc::new(session.clone()));
        let made = Orchestrated {
            id,
            sessions: sessions.iter().map(details).collect(),
            summary: summary(&new, sessions.len(), &how),
        };
        let orchestration = self.new_orchestration(&new, &made);
        let new = NewSessions {
            orchestration: Some(orchestration),
            sessions,
            idempotency: once.as_ref().map(|once| idempotency(once, &made)),
        };
        Ok(match self.store_new(new).await? {
            None => Accepted::Now(made),
            Some(response) => Accepted::Before(response),
        })
    }

    /// An orchestration lands as a whole, unless it was asked for as exactly one session that does
    /// all of it itself.
    fn new_orchestration(&self, new: &NewOrchestration, made: &Orchestrated) -> Orchestration {
        let only = new.kind.filter(|kind| *kind != Kind::Coordination);
        let is_single = new.plan.is_none() && only.is_some() && new.strategy.is_none();
        let strategy = new.strategy.as_ref();
        Orchestration {
            branch: new.project.branch.clone(),
            lands: !is_single,
            gate: strategy.and_then(|strategy| strategy.gate.clone()),
            timeout_s: strategy.and_then(|strategy| strategy.timeout_s),
            max_cost_usd: new.max_cost_usd,
            parallel_max: strategy
                .and_then(|strategy| strategy.parallel_sessions)
                .and_then(|most| u32::try_from(most).ok()),
            summary: made.summary.clone(),
            ..Orchestration::new(
                made.id,
                new.project.repository.clone(),
                Arc::clone(&new.project.requirements),
                self.parts.clock.now(),
            )
        }
    }

    /// Asks for all sessions of an orchestration to run that were only created. With
    /// `max_cost_usd` they may cost so much together from now on, what is spent included; those
    /// that wait for a larger budget go on by themselves. A landing that left anything out is tried
    /// again.
    ///
    /// # Errors
    /// Not found, [`OrchestratorError::Refused`], [`OrchestratorError::OrchestrationBudgetSpent`].
    /// One whose sessions were all started before is answered as it stands.
    pub async fn start_orchestration(
        &self,
        id: OrchestrationId,
        max_cost_usd: Option<f64>,
    ) -> Result<OrchestrationDetails, OrchestratorError> {
        self.parts.admission.check()?;
        let store = &self.parts.store;
        if let Some(max_usd) = max_cost_usd {
            store.orchestration(id).await?;
            let spending = store.spending(id, self.metered_usd());
            if (Budget { max_usd, spending }).is_spent() {
                return Err(OrchestratorError::OrchestrationBudgetSpent {
                    id,
                    max_usd,
                    spent_usd: spending.total_usd(),
                });
            }
            store.set_budget(id, max_usd).await?;
            failpoint::reach("budget_set");
            self.parts.wake.notify_one();
        }
        self.change_landing(id, |landing, _| landing.again())
            .await?;
        let mut tries = 0;
        loop {
            // Read first, to tell one that is not there.
            store.orchestration(id).await?;
            let at = self.parts.clock.now();
            let created = store.active().into_iter().filter(|session| {
                session.orchestration_id == Some(id) && session.state == SessionState::Created
            });
            let changes: Vec<Transition> = created
                .filter_map(|session| {
                    let event = SessionEvent::StartRequested;
                    let next = session.after(&event, at).ok()?;
                    Some(Transition {
                        event,
                        next,
                        at,
                        told: None,
                    })
                })
                .collect();
            if changes.is_empty() {
                return self.orchestration(id).await;
            }
            tries += 1;
            match store.record(changes, None).await {
                Ok(_) => self.parts.wake.notify_one(),
                Err(StoreError::Conflict { .. }) if tries < DECISIONS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The sessions of a new orchestration, and how they came about in a sentence or two.
    async fn divided(
        &self,
        new: &NewOrchestration,
        id: OrchestrationId,
    ) -> Result<(Vec<(SessionId, NewSession)>, String), OrchestratorError> {
        let strategy = new.strategy.clone().unwrap_or_default();
        let base = NewSession {
            auto_start: new.auto_start,
            orchestration_id: Some(id),
            priority: new.priority,
            project_settings: new.project_settings,
            timeout_s: strategy.timeout_s,
            ..NewSession::new(Kind::Coordination, new.project.clone())
        };
        Ok(match (&new.plan, new.kind, &new.strategy) {
            (Some(plan), ..) => (self.of_graph(plan, &base), plan.summary.clone()),
            (None, Some(kind), None) => {
                let only = NewSession { kind, ..base };
                (vec![(self.parts.ids.session(), only)], String::new())
            }
            _ if strategy.planner == Planner::Claude => {
                let how = "A session of Claude's reads the repository first and plans the others";
                (
                    vec![(self.parts.ids.session(), planner(new, strategy, base))],
                    how.to_owned(),
                )
            }
            _ => {
                let project = new.project.clone();
                // A text may be a megabyte.
                let divide =
                    tokio::task::spawn_blocking(move || decompose(&request(&project, &strategy)));
                let graph = divide.await.map_err(|source| StoreError::Unavailable {
                    what: "divide the requirements",
                    source: Some(Arc::new(source)),
                })?;
                (self.of_graph(&graph, &base), graph.summary)
            }
        })
    }

    fn of_graph(&self, graph: &ProposedGraph, base: &NewSession) -> Vec<(SessionId, NewSession)> {
        let ids: Vec<SessionId> = graph
            .sessions
            .iter()
            .map(|_| self.parts.ids.session())
            .collect();
        let sessions = graph.sessions.iter().zip(&ids);
        let sessions = sessions.map(|(proposed, id)| {
            let session = NewSession {
                kind: proposed.kind,
                project: Project {
                    requirements: proposed.requirements.as_str().into(),
                    ..base.project.clone()
                },
                dependencies: proposed.dependencies.iter().map(|&at| ids[at]).collect(),
                title: Some(proposed.title.clone()),
                ..base.clone()
            };
            (*id, session)
        });
        sessions.collect()
    }
}

/// The session that plans the others. It runs even where they are not to start yet: there would
/// be nothing to look at.
fn planner(new: &NewOrchestration, strategy: Strategy, base: NewSession) -> NewSession {
    let planning = Planning {
        requirements: Arc::clone(&new.project.requirements),
        mode: strategy.dependency_mode,
        phases: strategy.phases,
        parallel_sessions: strategy.parallel_sessions,
        auto_start: new.auto_start,
    };
    let prompt = plan_prompt(&planning.request(new.project.context.as_deref()));
    NewSession {
        kind: Kind::Analysis,
        project: Project {
            requirements: prompt.into(),
            ..new.project.clone()
        },
        title: Some("Plan".to_owned()),
        auto_start: true,
        planning: Some(planning),
        ..base
    }
}

fn request<'a>(project: &'a Project, strategy: &'a Strategy) -> Request<'a> {
    Request {
        requirements: &project.requirements,
        context: project.context.as_deref(),
        mode: strategy.dependency_mode,
        phases: &strategy.phases,
        parallel_sessions: strategy.parallel_sessions,
    }
}

/// Says what was made.
fn summary(new: &NewOrchestration, count: usize, how: &str) -> String {
    let repository = &new.project.repository;
    let plural = if count == 1 { "" } else { "s" };
    let mut text = match new.auto_start {
        true => format!("Started {count} Claude session{plural} for {repository}"),
        false => {
            format!("Created {count} Claude session{plural} for {repository}, not started yet")
        }
    };
    if !how.is_empty() {
        text.push_str(". ");
        text.push_str(how);
    }
    text
}
