//! Who asks, and what they may ask for.

use baton_domain::{OrchestrationId, SessionId};

use super::{Accepted, NewSession, Once, Orchestrator, OrchestratorError, SessionDetails};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Somebody with the token.
    Client,
    /// A coordination session, from inside its sandbox.
    Session(SessionId),
}

/// Held while a caller waits.
#[derive(Debug)]
pub struct WaitGuard;

impl Orchestrator {
    /// Stub.
    ///
    /// # Errors
    /// None.
    pub fn permits(&self, _: Caller, _: SessionId) -> Result<(), OrchestratorError> {
        Ok(())
    }

    /// Stub.
    ///
    /// # Errors
    /// None.
    pub fn permits_orchestration(
        &self,
        _: Caller,
        _: OrchestrationId,
    ) -> Result<(), OrchestratorError> {
        Ok(())
    }

    /// Stub.
    ///
    /// # Errors
    /// None.
    pub async fn create_session_for(
        &self,
        _: Caller,
        new: NewSession,
        once: Option<Once<'_, SessionDetails>>,
    ) -> Result<Accepted<SessionDetails>, OrchestratorError> {
        self.create_session(new, once).await
    }

    /// Stub.
    #[must_use]
    pub fn orchestration_of(&self, _: Caller) -> Option<OrchestrationId> {
        None
    }

    /// Stub.
    ///
    /// # Errors
    /// None.
    pub async fn begin_wait(&self, _: Caller) -> Result<WaitGuard, OrchestratorError> {
        Ok(WaitGuard)
    }
}

impl WaitGuard {
    /// Stub.
    ///
    /// # Errors
    /// None.
    pub async fn take_back(self) -> Result<(), OrchestratorError> {
        Ok(())
    }
}
