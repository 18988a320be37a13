//! Sessions that are blocked: whether what is in their way still is.
//!
//! A session is blocked by what was read of its dependencies a moment before, and freed by whoever
//! retries one of them. Either may be recorded while the other is being decided, so whoever records
//! one looks again afterwards.

use std::collections::HashMap;
use std::sync::Arc;

use baton_domain::dependencies::reviewed;
use baton_domain::session::Standing;
use baton_domain::{Session, SessionEvent, SessionId, SessionState, Status};
use jiff::Timestamp;

use crate::clock::Clock;
use crate::store::{PAGE_SESSIONS_MAX, SessionQuery, Store, StoreError, Transition};

/// How often a review is made anew when another writer was faster.
const REVIEWS_MAX: usize = 16;

/// The changes that follow for blocked sessions, as if `retried` were open already.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn changes(
    store: &Store,
    retried: Option<SessionId>,
    at: Timestamp,
) -> Result<Vec<Transition>, StoreError> {
    let blocked = read(store).await?;
    // The retried one itself is changed by whoever retries it.
    let others = blocked.iter().filter(|one| retried != Some(one.id));
    let entries = others.filter_map(|one| match one.state {
        SessionState::Blocked { dependency, .. } => {
            Some((one.id, dependency, one.dependencies.as_slice()))
        }
        _ => None,
    });
    let found = reviewed(entries, |of| match retried == Some(of) {
        true => Some(Standing::Open),
        false => store.standing(of),
    });
    let by_id: HashMap<SessionId, &Arc<Session>> =
        blocked.iter().map(|one| (one.id, one)).collect();
    let changes = found.into_iter().filter_map(|(id, by)| {
        let event = match by {
            None => SessionEvent::DependencyRetried,
            Some(dependency) => SessionEvent::DependencyLost(dependency),
        };
        let next = by_id.get(&id)?.after(&event, at).ok()?;
        Some(Transition {
            event,
            next,
            at,
            told: None,
        })
    });
    Ok(changes.collect())
}

/// Records what is not true any more of blocked sessions; true when there was something.
///
/// # Errors
/// [`StoreError::Unavailable`]; [`StoreError::Conflict`] when others were faster all the time.
pub async fn review(store: &Store, clock: &dyn Clock) -> Result<bool, StoreError> {
    let mut tries = 0;
    loop {
        let changes = changes(store, None, clock.now()).await?;
        if changes.is_empty() {
            return Ok(false);
        }
        tries += 1;
        match store.record(changes, None).await {
            Err(StoreError::Conflict { .. }) if tries < REVIEWS_MAX => {}
            recorded => return recorded.map(|_| true),
        }
    }
}

async fn read(store: &Store) -> Result<Vec<Arc<Session>>, StoreError> {
    let mut query = SessionQuery {
        statuses: vec![Status::Blocked],
        limit: PAGE_SESSIONS_MAX,
        ..SessionQuery::default()
    };
    let mut blocked = Vec::new();
    loop {
        let page = store.page(&query).await?;
        blocked.extend(page.sessions);
        if page.next_cursor.is_none() {
            return Ok(blocked);
        }
        query.cursor = page.next_cursor;
    }
}
