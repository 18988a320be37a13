//! Operations that both the webhook and the resources offer, answered alike.

use axum::http::HeaderMap;
use bytes::Bytes;

use super::HttpState;
use crate::api::{self, ApiError};
use crate::orchestrator::{Accepted, NewMessage, NewOrchestration, NewSession, Once};
use baton_domain::SessionId;

/// A header by which a repeated request is answered as the first was.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_BYTES_MAX: usize = 255;

impl HttpState {
    pub(super) async fn create_session(
        &self,
        new: NewSession,
        key: Option<String>,
    ) -> Result<Bytes, ApiError> {
        let once = key.map(|key| Once {
            key,
            digest: api::digest("session.create", &new),
            render: &api::session_created,
        });
        Ok(match self.orchestrator.create_session(new, once).await? {
            Accepted::Now(details) => api::session_created(&details).into(),
            Accepted::Before(response) => response.into(),
        })
    }

    pub(super) async fn retry_session(
        &self,
        id: SessionId,
        key: Option<String>,
    ) -> Result<Bytes, ApiError> {
        let once = key.map(|key| Once {
            key,
            digest: api::digest("session.retry", &id),
            render: &api::session_retried,
        });
        Ok(match self.orchestrator.retry_session(id, once).await? {
            Accepted::Now(details) => api::session_retried(&details).into(),
            Accepted::Before(response) => response.into(),
        })
    }

    pub(super) async fn message_session(
        &self,
        id: SessionId,
        message: NewMessage,
        key: Option<String>,
    ) -> Result<Bytes, ApiError> {
        let once = key.map(|key| Once {
            key,
            digest: api::digest("session.message", &(id, &message)),
            render: &api::session_messaged,
        });
        let accepted = self.orchestrator.message_session(id, message, once).await?;
        Ok(match accepted {
            Accepted::Now(details) => api::session_messaged(&details).into(),
            Accepted::Before(response) => response.into(),
        })
    }

    pub(super) async fn orchestrate(
        &self,
        new: NewOrchestration,
        key: Option<String>,
    ) -> Result<Bytes, ApiError> {
        let once = key.map(|key| Once {
            key,
            digest: api::digest("orchestrate", &new),
            render: &api::orchestrated,
        });
        Ok(match self.orchestrator.orchestrate(new, once).await? {
            Accepted::Now(made) => api::orchestrated(&made).into(),
            Accepted::Before(response) => response.into(),
        })
    }
}

/// The idempotency key of a request, where it has one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let visible = value.as_bytes().iter().all(u8::is_ascii_graphic);
    let fits = (1..=KEY_BYTES_MAX).contains(&value.len());
    match value.to_str() {
        Ok(key) if visible && fits && values.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(ApiError::field(
            "Idempotency-Key",
            format!("must be one header of 1 to {KEY_BYTES_MAX} visible ASCII characters"),
        )),
    }
}
