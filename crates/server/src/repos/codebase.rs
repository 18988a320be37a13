//! What running sessions asks of the code: the edge at which tests put a codebase in memory.

use async_trait::async_trait;
use baton_domain::{Attempt, Branch, Repository, SessionId};

use super::{
    Base, BaseRequest, DependencyCommit, Landed, RepoError, Repos, Started, Unresolved, WorkResult,
};

/// The code sessions start from and leave. Every call may be repeated; [`Repos`] has the contract
/// of each.
#[async_trait]
pub trait Codebase: Send + Sync {
    /// See [`Repos::prepare_base`].
    async fn prepare_base(&self, request: BaseRequest<'_>) -> Result<Base, RepoError>;

    /// See [`Repos::base_at`].
    async fn base_at(&self, request: BaseRequest<'_>, commit: &str) -> Result<Base, RepoError>;

    /// See [`Repos::resumed_base`].
    async fn resumed_base(
        &self,
        request: BaseRequest<'_>,
        earlier: Attempt,
    ) -> Result<Base, RepoError>;

    /// See [`Repos::base_of`].
    async fn base_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<String, RepoError>;

    /// See [`Repos::unjoined_of`].
    fn unjoined_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Vec<DependencyCommit>, RepoError>;

    /// See [`Repos::result_since`].
    async fn result_since(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        first: &str,
    ) -> Result<WorkResult, RepoError>;

    /// See [`Repos::unresolved`].
    async fn unresolved(
        &self,
        started: Started<'_>,
        commit: &str,
        unmerged: &[String],
    ) -> Result<Option<Unresolved>, RepoError>;

    /// See [`Repos::land`].
    async fn land(
        &self,
        repository: &Repository,
        commit: &str,
        base: &str,
        target: &Branch,
        message: &str,
    ) -> Result<Landed, RepoError>;
}

#[async_trait]
impl Codebase for Repos {
    async fn prepare_base(&self, request: BaseRequest<'_>) -> Result<Base, RepoError> {
        self.prepare_base(request).await
    }

    async fn base_at(&self, request: BaseRequest<'_>, commit: &str) -> Result<Base, RepoError> {
        self.base_at(request, commit).await
    }

    async fn resumed_base(
        &self,
        request: BaseRequest<'_>,
        earlier: Attempt,
    ) -> Result<Base, RepoError> {
        self.resumed_base(request, earlier).await
    }

    async fn base_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<String, RepoError> {
        self.base_of(repository, session, attempt).await
    }

    fn unjoined_of(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
    ) -> Result<Vec<DependencyCommit>, RepoError> {
        self.unjoined_of(repository, session, attempt)
    }

    async fn result_since(
        &self,
        repository: &Repository,
        session: SessionId,
        attempt: Attempt,
        base: &str,
        first: &str,
    ) -> Result<WorkResult, RepoError> {
        self.result_since(repository, session, attempt, base, first)
            .await
    }

    async fn unresolved(
        &self,
        started: Started<'_>,
        commit: &str,
        unmerged: &[String],
    ) -> Result<Option<Unresolved>, RepoError> {
        self.unresolved(started, commit, unmerged).await
    }

    async fn land(
        &self,
        repository: &Repository,
        commit: &str,
        base: &str,
        target: &Branch,
        message: &str,
    ) -> Result<Landed, RepoError> {
        self.land(repository, commit, base, target, message).await
    }
}
