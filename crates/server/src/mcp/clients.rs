//! Clients of revisions before 2026-07-28, which have a session with this server: what they said of
//! themselves is kept, so that the next server knows them.

use async_trait::async_trait;
use rmcp::transport::streamable_http_server::session::{
    SessionState, SessionStore, SessionStoreError,
};

use crate::orchestrator::Orchestrator;

/// The most bytes of what a client says of itself that are kept.
const INTRODUCTION_BYTES_MAX: usize = 64 * 1024;

/// Keeps them with everything else.
pub(super) struct Clients(pub(super) Orchestrator);

#[async_trait]
impl SessionStore for Clients {
    async fn load(&self, session_id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let kept = self.0.introduction(session_id).await?;
        Ok(kept.map(|kept| serde_json::from_str(&kept)).transpose()?)
    }

    async fn store(&self, session_id: &str, state: &SessionState) -> Result<(), SessionStoreError> {
        let body = serde_json::to_string(state)?;
        // Such a client is served, and has to begin anew with the next server.
        if body.len() > INTRODUCTION_BYTES_MAX {
            return Ok(());
        }
        self.0.keep_introduction(session_id, Some(body)).await?;
        Ok(())
    }

    async fn delete(&self, session_id: &str) -> Result<(), SessionStoreError> {
        self.0.keep_introduction(session_id, None).await?;
        Ok(())
    }
}
