//! Results on top of each other, against real repositories.

use baton_domain::OrchestrationId;
use baton_domain::landing::Leaf;
use uuid::Uuid;

use super::fixture::{Fixture, commit, exists, git, session};
use super::*;

/// Sessions that each changed one file on top of `main`.
async fn leaves(fixture: &Fixture, files: &[(&str, &str)]) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (number, (file, content)) in (1..).zip(files) {
        let base = fixture.base(session(number)).await;
        leaves.push(Leaf {
            session: session(number),
            commit: fixture.worked(session(number), &base, &[(file, Some(content))]),
            title: format!("Write {file}"),
        });
    }
    leaves
}

async fn stack(
    fixture: &Fixture,
    leaves: &[Leaf],
    always_merge: bool,
) -> Result<Stacked, RepoError> {
    let request = StackRequest {
        repository: &fixture.repository,
        orchestration: OrchestrationId(Uuid::from_u128(9)),
        target: &"feature".parse().expect("a branch"),
        onto: None,
        leaves,
        always_merge,
    };
    fixture.repos.stack(request).await
}

async fn advance(fixture: &Fixture, commit: &str) -> Result<bool, RepoError> {
    let target = "feature".parse().expect("a branch");
    fixture
        .repos
        .advance(&fixture.repository, commit, &target)
        .await
}

#[tokio::test]
async fn results_are_merged_one_on_top_of_the_other_and_always_the_same() {
    let fixture = Fixture::new();
    let leaves = leaves(&fixture, &[("a", "1"), ("b", "1"), ("README.md", "1")]).await;
    let first = stack(&fixture, &leaves, true).await.expect("merges");
    assert_eq!(first, stack(&fixture, &leaves, true).await.expect("merges"));
    assert!(first.tip.is_new && first.conflicts.is_empty());
    let (_, top) = first.commits.last().expect("three");
    let story = git(
        &fixture.mirror(),
        &["log", "--first-parent", "--format=%s", top],
    );
    let merges = [3, 2, 1].map(|number| format!("Land session {}", session(number)));
    assert_eq!(
        story.lines().take(3).collect::<Vec<_>>(),
        merges,
        "each has a merge of its own"
    );
    assert!(!exists(&fixture.remote(), "refs/heads/feature"));
    assert!(advance(&fixture, top).await.expect("is pushed"));
    assert!(advance(&fixture, top).await.expect("changes nothing"));
    assert_eq!(fixture.tip("feature"), *top);

    // What the branch has already is no merge any more.
    let again = stack(&fixture, &leaves, true).await.expect("merges");
    assert!(!again.tip.is_new);
    assert!(again.commits.iter().all(|(_, commit)| commit == top));
}

#[tokio::test]
async fn one_result_alone_is_what_the_branch_moves_to() {
    let fixture = Fixture::new();
    let leaves = leaves(&fixture, &[("a", "1")]).await;
    let stacked = stack(&fixture, &leaves, false).await.expect("merges");
    assert_eq!(stacked.commits[0].1, leaves[0].commit);
}

#[tokio::test]
async fn a_result_that_conflicts_is_told_and_the_others_merged() {
    let fixture = Fixture::new();
    let files = [("README.md", "1"), ("README.md", "2"), ("b", "1")];
    let leaves = leaves(&fixture, &files).await;
    let stacked = stack(&fixture, &leaves, true).await.expect("merges");
    let conflict = (session(2), vec!["README.md".to_owned()]);
    assert_eq!(stacked.conflicts, [conflict]);
    let merged: Vec<SessionId> = stacked.commits.iter().map(|(of, _)| *of).collect();
    assert_eq!(merged, [session(1), session(3)]);
}

#[tokio::test]
async fn a_branch_that_has_moved_is_not_pushed_over() {
    let fixture = Fixture::new();
    let leaves = leaves(&fixture, &[("a", "1"), ("b", "1")]).await;
    let stacked = stack(&fixture, &leaves, true).await.expect("merges");
    let main = fixture.tip("main");
    let theirs = commit(
        &fixture.remote(),
        "refs/heads/feature",
        Some(&main),
        &[("theirs", Some("1"))],
    );
    let (_, top) = stacked.commits.last().expect("two");
    assert!(!advance(&fixture, top).await.expect("is told"));
    assert_eq!(fixture.tip("feature"), theirs);
    let stacked = stack(&fixture, &leaves, true).await.expect("merges");
    assert_eq!(stacked.tip.commit, theirs);
    let (_, top) = stacked.commits.last().expect("two");
    assert!(advance(&fixture, top).await.expect("is pushed"));
    assert_eq!(
        fixture.remote_files("feature"),
        ["README.md", "a", "b", "src/lib.rs", "theirs"]
    );
}

#[tokio::test]
async fn an_attempt_starts_where_it_is_told_and_stays_there() {
    let fixture = Fixture::new();
    let leaves = leaves(&fixture, &[("a", "1"), ("b", "1")]).await;
    let request = BaseRequest {
        repository: &fixture.repository,
        session: session(7),
        attempt: Attempt::FIRST,
        branch: None,
        dependencies: &[],
    };
    let at = async |commit: &str| fixture.repos.base_at(request, commit).await;
    let base = at(&leaves[0].commit).await.expect("a base");
    assert_eq!(base.commit, leaves[0].commit);
    assert_eq!(at(&leaves[1].commit).await.expect("the same"), base);
    let missing = "0123456789012345678901234567890123456789";
    let nowhere = BaseRequest {
        session: session(8),
        ..request
    };
    let error = fixture.repos.base_at(nowhere, missing).await;
    assert!(matches!(error, Err(RepoError::CommitNotFound { .. })));
}
