//! The end of a planning session: its answer becomes sessions.

use baton_domain::decompose::{Answer, Planning, planned_sessions};
use baton_domain::ending::Ending;
use baton_domain::session::Report;
use baton_domain::{ClaudeSessionId, Session, SessionId};
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::Concluder;
use crate::store::{NewSessions, StoreError};

impl Concluder {
    /// Makes the sessions that a planning session's answer asks for, before its end is recorded:
    /// their names follow from its own, so that nothing is made twice.
    pub(super) async fn make_planned(
        &self,
        planner: &Session,
        planning: &Planning,
        ending: &Ending,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        if let Some(id) = planner.orchestration_id
            && self.store.orchestration(id).await?.landing.cancelled
        {
            report
                .warnings
                .push("the orchestration was cancelled: the plan is not carried out".to_owned());
            return Ok(());
        }
        let text = ending.result.as_ref().map_or("", |result| &result.text);
        let Answer { graph, refused } = planning.answer(text, &planner.project);
        let sessions = planned_sessions(
            planner,
            &graph,
            planning.auto_start,
            |at| names(planner.id, at),
            self.clock.now(),
        );
        let summary = graph.summary;
        if let Some(why) = refused {
            report.warnings.push(format!(
                "the answer is no plan ({why}); the requirements were divided by their words instead"
            ));
        }
        let new = NewSessions {
            sessions,
            ..NewSessions::default()
        };
        match self.store.create(new).await {
            Err(StoreError::SessionExists(_)) if planner.steering.resume.is_some() => {
                report.warnings.push(
                    "its sessions were made before: what it planned since is not carried out"
                        .to_owned(),
                );
            }
            Ok(_) | Err(StoreError::SessionExists(_)) => report.summary = summary,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The names of the session at that place of a planner's graph: UUIDs made of the SHA-256 of both,
/// of version 8 and, for Claude's conversation, of version 4.
fn names(planner: SessionId, at: usize) -> (SessionId, ClaudeSessionId) {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(planner.0.as_bytes())
        .chain_update((at as u64).to_le_bytes())
        .finalize()
        .into();
    let mut halves = [[0; 16]; 2];
    for (half, bytes) in halves.iter_mut().zip(digest.chunks_exact(16)) {
        half.copy_from_slice(bytes);
    }
    let [id, conversation] = halves;
    (
        SessionId(Builder::from_custom_bytes(id).into_uuid()),
        ClaudeSessionId(Builder::from_random_bytes(conversation).into_uuid()),
    )
}
