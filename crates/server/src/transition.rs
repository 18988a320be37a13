//! How an event is applied to a session by anyone: read, decide, compare-and-set, and again when
//! another writer was first.

use std::sync::Arc;

use baton_domain::session::{InvalidTransition, Report};
use baton_domain::{Session, SessionEvent, SessionId};

use crate::clock::Clock;
use crate::store::{Store, StoreError};

/// How often a decision is made again because another writer was first.
const TRIES_MAX: usize = 16;

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// It cannot happen in the state the session is in.
    #[error(transparent)]
    Invalid(#[from] InvalidTransition),
    /// It could not be recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Applies `event` to the session and returns it as it is then. An event that changes nothing is
/// not recorded.
///
/// # Errors
/// [`TransitionError::Invalid`] when the event cannot happen any more or yet;
/// [`TransitionError::Store`] when it could not be recorded: nothing changed then.
pub async fn apply(
    store: &Store,
    clock: &dyn Clock,
    id: SessionId,
    event: &SessionEvent,
    report: Option<Report>,
) -> Result<Arc<Session>, TransitionError> {
    let mut tries = 0;
    loop {
        let session = store.session(id).await?;
        let now = clock.now();
        let next = session.state.after(event, now)?;
        if next == session.state && report.is_none() {
            return Ok(session);
        }
        tries += 1;
        match store
            .record(&session, event, next, report.clone(), now)
            .await
        {
            Err(StoreError::Conflict { .. }) if tries < TRIES_MAX => {}
            recorded => return Ok(recorded?),
        }
    }
}
