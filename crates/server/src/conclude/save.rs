//! The end of a session that nobody reports: what its attempts had left, on no branch so far, is
//! brought to one of its own.

use baton_domain::ending::Outcome;
use baton_domain::{Attempt, Session, SessionEvent};

use super::{ConcludeError, Concluder, Work, not_found, told, unfinished};
use crate::failpoint;
use crate::repos::RepoError;

impl Concluder {
    /// Saves what was left and ends the session. May be repeated, as [`Concluder::conclude`].
    pub(super) async fn save(
        &self,
        session: &Session,
        attempt: Attempt,
        outcome: &Outcome,
        last_try: bool,
    ) -> Result<(), ConcludeError> {
        let mut report = session.report.clone().unwrap_or_default();
        match self.unreported(session, attempt).await {
            Ok(Some(work)) => report.result = Some(told(work, &mut report)),
            Ok(None) => {}
            Err(error) if !last_try => return Err(unfinished(session, error)),
            Err(error) => drop(not_found(outcome.clone(), &error, &mut report)),
        }
        if let Some(result) = report.result.take() {
            self.land(session, result, outcome.clone(), &mut report, last_try)
                .await?;
        }
        failpoint::reach("work_saved");
        self.record(session.id, &SessionEvent::Saved(attempt), report)
            .await
    }

    /// What the newest attempt pushed, where the session's report does not tell of that.
    async fn unreported(
        &self,
        session: &Session,
        attempt: Attempt,
    ) -> Result<Option<Work>, RepoError> {
        let repository = &session.project.repository;
        let base = match self.repos.base_of(repository, session.id, attempt).await {
            // It never had code.
            Err(RepoError::NoBase { .. }) => return Ok(None),
            base => base?,
        };
        let first = self.first_base(session, &base).await?;
        let result = self
            .repos
            .result_since(repository, session.id, attempt, &base, &first)
            .await?;
        let report = session.report.as_ref();
        let reported = report.and_then(|report| report.result.as_ref());
        let is_known = reported.is_some_and(|known| known.commit == result.commit);
        Ok((!is_known && result.commit != first).then(|| Work {
            base: first,
            result,
            unjoined: Vec::new(),
            unresolved: None,
        }))
    }
}
