//! How an event is applied to a session by anyone: read, decide, compare-and-set, and again when
//! another writer was first.

use std::sync::Arc;

use baton_domain::session::{InvalidTransition, Report};
use baton_domain::{Attempt, Session, SessionEvent, SessionId};

use crate::clock::Clock;
use crate::store::{Store, StoreError, Transition, Written};

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
/// not recorded. A `report` replaces the session's.
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
    write(store, clock, id, None, |session| {
        let reported = Session {
            report: report.clone().or_else(|| session.report.clone()),
            ..session.clone()
        };
        let next = reported.after(event, clock.now())?;
        Ok::<_, TransitionError>((event.clone(), next))
    })
    .await
}

/// Applies `event`; where an agent told of it, its attempt and its position after that are stored
/// in the same step.
///
/// # Errors
/// As [`apply`]; the position is not stored then.
pub async fn apply_told(
    store: &Store,
    clock: &dyn Clock,
    id: SessionId,
    event: &SessionEvent,
    told: Option<(Attempt, u64)>,
) -> Result<Arc<Session>, TransitionError> {
    write(store, clock, id, told, |session| {
        let next = session.after(event, clock.now())?;
        Ok::<_, TransitionError>((event.clone(), next))
    })
    .await
}

/// Records what `decision` makes of the session as it stands, deciding anew when another writer
/// was first. A decision that changes nothing is not recorded.
///
/// # Errors
/// The decision's own, and those of the store.
pub async fn decide<E: From<StoreError>>(
    store: &Store,
    clock: &dyn Clock,
    id: SessionId,
    decision: impl Fn(&Session) -> Result<(SessionEvent, Session), E>,
) -> Result<Arc<Session>, E> {
    write(store, clock, id, None, decision).await
}

async fn write<E: From<StoreError>>(
    store: &Store,
    clock: &dyn Clock,
    id: SessionId,
    told: Option<(Attempt, u64)>,
    decision: impl Fn(&Session) -> Result<(SessionEvent, Session), E>,
) -> Result<Arc<Session>, E> {
    let mut tries = 0;
    loop {
        let session = store.session(id).await?;
        let (event, next) = decision(&session)?;
        if next == *session {
            if let Some((attempt, position)) = told {
                store.append_output(id, attempt, position, &[]).await?;
            }
            return Ok(session);
        }
        tries += 1;
        let change = Transition {
            event,
            next,
            at: clock.now(),
            told,
        };
        match store.record(vec![change], None).await {
            Err(StoreError::Conflict { .. }) if tries < TRIES_MAX => {}
            Ok(Written::Now(sessions)) => {
                return Ok(sessions.into_iter().next().unwrap_or(session));
            }
            // There was no key by which it could have been answered before.
            Ok(Written::Before { .. }) => return Ok(session),
            Err(error) => return Err(error.into()),
        }
    }
}
