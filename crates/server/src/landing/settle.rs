//! The end of a round: each session is told where its work is, and what was left out goes to a
//! branch of its own.

use std::collections::HashMap;

use baton_domain::landing::{End, LeftOut, Reason, Stage};
use baton_domain::session::InvalidTransition;
use baton_domain::{Branch, SessionEvent, SessionId, SessionState};

use super::{LandError, Lander, message_of, repository};
use crate::store::Orchestration;
use crate::transition::{TransitionError, decide};

/// How many sessions are told at once; the store commits them together.
const TOLD_AT_ONCE: usize = 64;
/// What the warnings of sessions that were left out begin with.
const LEFT_OUT: &str = "Left out of the landing of orchestration";

impl Lander {
    /// Gives the branches that have what was left out. May be repeated.
    pub(super) async fn settle(
        &self,
        orchestration: &Orchestration,
        last_try: bool,
    ) -> Result<HashMap<SessionId, String>, LandError> {
        let landing = &orchestration.landing;
        if let Stage::Settling { end: End::Landed } = landing.stage {
            let target = orchestration.target().to_string();
            for some in landing.landed.chunks(TOLD_AT_ONCE) {
                let told = some.iter().map(|&id| self.tell(id, &target, None));
                futures::future::try_join_all(told).await?;
            }
        }
        let mut branches = HashMap::new();
        for out in &landing.left_out {
            let session = out.leaf.session;
            let own = Branch::own(session.0);
            let landed = self
                .repos
                .land(
                    &orchestration.repository,
                    &out.leaf.commit,
                    "",
                    &own,
                    &message_of(&out.leaf),
                )
                .await;
            match landed {
                Ok(_) => {
                    let branch = own.to_string();
                    let warning = warning(orchestration, out);
                    self.tell(session, &branch, Some(warning)).await?;
                    branches.insert(session, branch);
                }
                Err(error) if error.is_retryable() && !last_try => {
                    return Err(repository(orchestration, error));
                }
                Err(error) => {
                    tracing::warn!(%session, %error, "its work stays in the mirror");
                }
            }
        }
        Ok(branches)
    }

    /// Notes with a finished session which branch has its work. One that was reopened meanwhile is
    /// told in the next round.
    async fn tell(
        &self,
        id: SessionId,
        branch: &str,
        warning: Option<String>,
    ) -> Result<(), LandError> {
        let event = SessionEvent::Landed(branch.to_owned());
        let told = decide(&self.store, self.clock.as_ref(), id, |session| {
            if !matches!(session.state, SessionState::Finished { .. }) {
                let error = InvalidTransition {
                    from: session.state.name(),
                    event: event.name(),
                };
                return Err(TransitionError::Invalid(error));
            }
            let mut next = session.after(&event, self.clock.now())?;
            if let Some(report) = &mut next.report {
                report.warnings.retain(|one| !one.starts_with(LEFT_OUT));
                report.warnings.extend(warning.clone());
                if let Some(result) = &mut report.result {
                    result.branch = Some(branch.to_owned());
                }
            }
            Ok((event.clone(), next))
        });
        match told.await {
            Ok(_) | Err(TransitionError::Invalid(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn warning(orchestration: &Orchestration, out: &LeftOut) -> String {
    let why = match &out.reason {
        Reason::MergeConflict { files } => {
            format!("its result contradicts the branch in {}", files.join(", "))
        }
        Reason::GateFailed { gate } => {
            format!("the gate is red with it; see the output of session {gate}")
        }
        Reason::NothingLanded => "nothing was landed".to_owned(),
    };
    format!("{LEFT_OUT} {}: {why}", orchestration.id)
}
