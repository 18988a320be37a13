//! Brings the results of an orchestration to its branch as a whole, step by step.
//!
//! What the next step is, [`baton_domain::landing`] decides. Each is recorded before the one after
//! it is taken, and each may be repeated: a server that dies in between goes on where it was.

mod settle;

use std::collections::HashMap;
use std::sync::Arc;

use baton_domain::landing::{
    Candidate, End, GateRun, Landing, LandingFailure, Leaf, Next, Stage, Step, Tip, Verdict,
};
use baton_domain::{Kind, Project, Session, SessionId, SessionState};

use crate::clock::Clock;
use crate::failpoint;
use crate::orchestrator::Ids;
use crate::repos::{RepoError, Repos, StackRequest};
use crate::store::{
    NewSessions, Orchestration, PAGE_SESSIONS_MAX, SessionQuery, Store, StoreError,
};
use crate::transition::TransitionError;

/// Steps taken in one go; a landing of a thousand culprits needs more, and goes on at the next look.
const STEPS_MAX: usize = 1_000;

/// Lands orchestrations.
#[derive(Clone)]
pub struct Lander {
    store: Store,
    repos: Repos,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
}

/// Why a landing could not go on yet; it will be tried again.
#[derive(Debug, thiserror::Error)]
pub enum LandError {
    /// The repository's mirror or its remote did not do what was asked.
    #[error("the results of orchestration {} are not on {} yet", .0.id, .0.target())]
    Repository(Box<Orchestration>, #[source] RepoError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A session could not be told.
    #[error(transparent)]
    Transition(#[from] TransitionError),
}

/// The sessions of an orchestration, as its landing sees them.
struct Members {
    /// Without the runs of its gate.
    candidates: Vec<Candidate>,
    /// What the runs of its gate say.
    verdicts: HashMap<SessionId, Verdict>,
    any_open: bool,
}

impl Lander {
    /// A lander over these parts.
    #[must_use]
    pub fn new(store: Store, repos: Repos, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        Self {
            store,
            repos,
            clock,
            ids,
        }
    }

    /// Takes all steps that can be taken now: until the landing is over, or a run of its gate has
    /// to be waited for. With `last_try` a remote that does not answer ends the landing instead of
    /// being waited for; the work stays in the mirror.
    ///
    /// # Errors
    /// [`LandError`]: nothing is lost, try again.
    pub async fn go_on(
        &self,
        id: baton_domain::OrchestrationId,
        last_try: bool,
    ) -> Result<(), LandError> {
        for _ in 0..STEPS_MAX {
            let orchestration = self.store.orchestration(id).await?;
            let stepped = match self.step(&orchestration, last_try).await {
                Err(LandError::Repository(_, error)) if last_try || !error.is_retryable() => {
                    tracing::warn!(orchestration = %id, %error, "the landing is given up");
                    let code = LandingFailure::Refused;
                    let landing = &orchestration.landing;
                    Some(landing.refused(code, error.to_string(), None))
                }
                stepped => stepped?,
            };
            let Some(landing) = stepped else {
                return Ok(());
            };
            let read_at = orchestration.landing_version;
            let has_landed = matches!(landing.stage, Stage::Settling { end: End::Landed });
            match self
                .store
                .record_landing(id, read_at, landing.clone())
                .await
            {
                // Somebody cancelled it meanwhile, and too late: the branch has it.
                Err(StoreError::LandingConflict(_)) if has_landed => {
                    let read_at = self.store.orchestration(id).await?.landing_version;
                    self.store.record_landing(id, read_at, landing).await?;
                }
                // Somebody cancelled it meanwhile: decide anew.
                Ok(()) | Err(StoreError::LandingConflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes one step; gives the landing to be recorded, or none where it has to wait.
    async fn step(
        &self,
        orchestration: &Orchestration,
        last_try: bool,
    ) -> Result<Option<Landing>, LandError> {
        let landing = &orchestration.landing;
        let next = landing.next(orchestration.gate.is_some(), orchestration.changes);
        tracing::debug!(orchestration = %orchestration.id, ?next, "landing");
        Ok(Some(match next {
            Next::Rest => return Ok(None),
            Next::Consider => {
                let members = self.members(orchestration).await?;
                if members.any_open {
                    return Ok(None);
                }
                let changes = orchestration.changes;
                let considered =
                    landing.considered(&members.candidates, &members.verdicts, changes);
                failpoint::reach("landing_considered");
                considered
            }
            Next::Merge { onto } => self.merge(orchestration, onto.as_ref()).await?,
            Next::Gate { commit } => landing.gating(self.ids.session(), commit),
            Next::Look(run) => match self.look(orchestration, &run).await? {
                None => return Ok(None),
                Some(verdict) => {
                    tracing::info!(orchestration = %orchestration.id, gate = %run.session, ?verdict, "the gate has ended");
                    landing.said(run.session, verdict)
                }
            },
            Next::LeaveOut(session, reason) => {
                tracing::info!(orchestration = %orchestration.id, %session, reason = reason.name(), "left out");
                let members = self.members(orchestration).await?;
                landing.without(session, reason, &members.candidates)
            }
            Next::Fail(code, gate) => landing.failed(code, gate),
            Next::Push { commit } => self.push(orchestration, commit).await?,
            Next::Withdraw { commit } => self.withdraw(orchestration, commit).await?,
            Next::Settle => {
                let branches = self.settle(orchestration, last_try).await?;
                failpoint::reach("landing_settled");
                landing.settled(&branches)
            }
        }))
    }

    async fn merge(
        &self,
        orchestration: &Orchestration,
        onto: Option<&Tip>,
    ) -> Result<Landing, LandError> {
        let landing = &orchestration.landing;
        let request = StackRequest {
            repository: &orchestration.repository,
            orchestration: orchestration.id,
            target: &orchestration.target(),
            onto,
            leaves: &landing.leaves,
            always_merge: landing.considered.len() > 1,
        };
        let stacked = self.repos.stack(request).await;
        let stacked = stacked.map_err(|error| repository(orchestration, error))?;
        failpoint::reach("landing_merged");
        let mut candidates = Vec::new();
        if !stacked.conflicts.is_empty() {
            candidates = self.members(orchestration).await?.candidates;
        }
        let steps = stacked
            .commits
            .into_iter()
            .map(|(session, commit)| Step { session, commit });
        let steps = steps.collect();
        Ok(landing.merged(stacked.tip, steps, stacked.conflicts, &candidates))
    }

    /// What a run of the gate said; none while it runs, which it does from here on.
    async fn look(
        &self,
        orchestration: &Orchestration,
        run: &GateRun,
    ) -> Result<Option<Verdict>, LandError> {
        match self.store.session(run.session).await {
            Ok(session) => return Ok(Verdict::of(&session.state)),
            Err(StoreError::SessionNotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        failpoint::reach("gate_decided");
        let new = NewSessions {
            sessions: vec![self.gate_session(orchestration, run)],
            ..NewSessions::default()
        };
        match self.store.create(new).await {
            Ok(_) | Err(StoreError::SessionExists(_)) => {
                failpoint::reach("gate_created");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn gate_session(&self, orchestration: &Orchestration, run: &GateRun) -> Session {
        let command = orchestration.gate.clone().unwrap_or_default();
        let project = Project {
            repository: orchestration.repository.clone(),
            branch: Some(orchestration.target()),
            requirements: format!("Gate of orchestration {}: {command}", orchestration.id).into(),
            context: None,
        };
        let conversation = self.ids.claude_session();
        let now = self.clock.now();
        Session {
            state: SessionState::Queued,
            orchestration_id: Some(orchestration.id),
            title: Some("Gate".to_owned()),
            command: Some(command),
            start_commit: Some(run.commit.clone()),
            ..Session::new(run.session, Kind::Testing, project, conversation, now)
        }
    }

    async fn push(
        &self,
        orchestration: &Orchestration,
        commit: String,
    ) -> Result<Landing, LandError> {
        let target = orchestration.target();
        let landing = &orchestration.landing;
        let pushed = self
            .repos
            .advance(&orchestration.repository, &commit, &target)
            .await
            .map_err(|error| repository(orchestration, error))?;
        if !pushed {
            return Ok(landing.moved());
        }
        failpoint::reach("landing_pushed");
        self.has_pushed(orchestration, commit).await
    }

    /// Lands nothing, unless that was done by a server that died before it could record it.
    async fn withdraw(
        &self,
        orchestration: &Orchestration,
        commit: String,
    ) -> Result<Landing, LandError> {
        let target = orchestration.target();
        let is_there = self
            .repos
            .has(&orchestration.repository, &commit, &target)
            .await
            .map_err(|error| repository(orchestration, error))?;
        match is_there {
            true => self.has_pushed(orchestration, commit).await,
            false => {
                let landing = &orchestration.landing;
                Ok(landing.failed(LandingFailure::Cancelled, None))
            }
        }
    }

    async fn has_pushed(
        &self,
        orchestration: &Orchestration,
        commit: String,
    ) -> Result<Landing, LandError> {
        let branch = orchestration.target();
        tracing::info!(orchestration = %orchestration.id, %branch, commit, "landed");
        let members = self.members(orchestration).await?;
        let landing = &orchestration.landing;
        Ok(landing.pushed(commit, &members.candidates))
    }

    async fn members(&self, orchestration: &Orchestration) -> Result<Members, StoreError> {
        let mut members = Members {
            candidates: Vec::new(),
            verdicts: HashMap::new(),
            any_open: false,
        };
        let mut query = SessionQuery {
            orchestration: Some(orchestration.id),
            limit: PAGE_SESSIONS_MAX,
            ..SessionQuery::default()
        };
        loop {
            let page = self.store.page(&query).await?;
            for session in &page.sessions {
                members.any_open |= !session.state.is_over();
                if session.command.is_some() {
                    let verdict = Verdict::of(&session.state);
                    members
                        .verdicts
                        .extend(verdict.map(|verdict| (session.id, verdict)));
                } else if session.project.repository == orchestration.repository {
                    members.candidates.push(Candidate::of(session));
                }
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return Ok(members);
            }
        }
    }
}

fn repository(orchestration: &Orchestration, error: RepoError) -> LandError {
    LandError::Repository(Box::new(orchestration.clone()), error)
}

/// The message of a commit that brings a single result somewhere.
fn message_of(leaf: &Leaf) -> String {
    format!("Land session {}\n\n{}", leaf.session, leaf.title)
}
