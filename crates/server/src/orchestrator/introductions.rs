//! What clients said of themselves when they began, so that the next server knows them.

use super::{Orchestrator, OrchestratorError};

impl Orchestrator {
    /// Keeps what a client said of itself, or forgets it; see
    /// [`Store::keep_introduction`](crate::store::Store::keep_introduction).
    ///
    /// # Errors
    /// From the store.
    pub async fn keep_introduction(
        &self,
        id: &str,
        body: Option<String>,
    ) -> Result<(), OrchestratorError> {
        let now = self.parts.clock.now();
        Ok(self.parts.store.keep_introduction(id, body, now).await?)
    }

    /// What a client said of itself; none where that is not known.
    ///
    /// # Errors
    /// From the store.
    pub async fn introduction(&self, id: &str) -> Result<Option<String>, OrchestratorError> {
        Ok(self.parts.store.introduction(id).await?)
    }
}
