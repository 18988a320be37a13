//! What an attempt starts from that goes on where an earlier one of its session ended.

use baton_domain::Attempt;

use super::base::Decision;
use super::{Base, BaseRequest, RepoError, Repos, result_ref};

impl Repos {
    /// Decides and records what an attempt starts from that goes on from `earlier`: what that one
    /// left, or where it left nothing, what it started from; and what that one had to merge. The
    /// first call for an attempt decides; later ones give the same answer.
    ///
    /// # Errors
    /// [`RepoError::NoBase`] where the earlier attempt never had a base; [`RepoError::Git`],
    /// [`RepoError::Io`].
    pub async fn resumed_base(
        &self,
        request: BaseRequest<'_>,
        earlier: Attempt,
    ) -> Result<Base, RepoError> {
        if let Some(base) = self.decided(&request).await? {
            return Ok(base);
        }
        let (repository, session) = (request.repository, request.session);
        let commit = match self.read_ref(repository, &result_ref(session, earlier))? {
            Some(left) => left,
            None => self.base_of(repository, session, earlier).await?,
        };
        let unjoined = self.unjoined_of(repository, session, earlier)?;
        let decision = Decision { commit, unjoined };
        if let Err(error) = self.record(&request, &decision).await {
            // Somebody asked for the same base at the same time and was first.
            return self.decided(&request).await?.ok_or(error);
        }
        self.base(&request, decision).await
    }
}
