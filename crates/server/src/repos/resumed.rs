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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repos::fixture::{Fixture, session};

    async fn resumed(fixture: &Fixture, attempt: u32, earlier: u32) -> Result<String, RepoError> {
        let request = BaseRequest {
            repository: &fixture.repository,
            session: session(1),
            attempt: Attempt(attempt),
            branch: None,
            dependencies: &[],
        };
        let base = fixture.repos.resumed_base(request, Attempt(earlier)).await;
        base.map(|base| base.commit)
    }

    #[tokio::test]
    async fn an_attempt_goes_on_from_the_code_that_the_earlier_one_left() {
        let fixture = Fixture::new();
        let first = fixture.base(session(1)).await;
        assert_eq!(resumed(&fixture, 2, 1).await.expect("a base"), first);
        let left = fixture.worked(session(1), &first, &[("a.txt", Some("a\n"))]);
        let again = resumed(&fixture, 2, 1).await.expect("a base");
        assert_eq!(again, first, "it was decided before");
        assert_eq!(resumed(&fixture, 3, 1).await.expect("a base"), left);
        // That one made nothing, so the next goes on from what it started from.
        fixture.pushed_by_others("main", &[("b.txt", Some("b\n"))]);
        assert_eq!(resumed(&fixture, 4, 3).await.expect("a base"), left);
        let repository = &fixture.repository;
        let work = fixture
            .repos
            .result_since(repository, session(1), Attempt(4), &left, &first)
            .await
            .expect("it is there");
        assert_eq!((work.commit, work.files_changed), (left, 1));
    }

    #[tokio::test]
    async fn an_attempt_that_never_had_code_cannot_be_gone_on_from() {
        let fixture = Fixture::new();
        fixture.base(session(1)).await;
        let refused = resumed(&fixture, 3, 2).await;
        assert!(
            matches!(refused, Err(RepoError::NoBase { .. })),
            "{refused:?}"
        );
    }
}
