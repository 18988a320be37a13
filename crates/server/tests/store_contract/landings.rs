//! What is kept of the landings of orchestrations, and when they are to be looked at again.

use baton::store::Orchestration;
use baton_domain::ending::{FailureCode, Outcome};
use baton_domain::landing::{End, Landing, Stage};

use crate::*;

/// Orchestration 9 with sessions 1 and 2.
async fn with_orchestration(dir: &Path, lands: bool) -> Store {
    let store = open(dir).await;
    let around = Orchestration {
        lands,
        ..Orchestration::new(
            orchestration(9),
            "owner/repo".parse().expect("a repository"),
            "x".into(),
            at(0),
        )
    };
    let request = NewSessions {
        orchestration: Some(around),
        sessions: vec![member(1), member(2)],
        idempotency: None,
    };
    store.create(request).await.expect("it can be made");
    store
}

fn member(number: u128) -> Session {
    Session {
        orchestration_id: Some(orchestration(9)),
        ..session(number)
    }
}

fn over(seen: u64) -> Landing {
    Landing {
        seen,
        stage: Stage::Over { end: End::Landed },
        ..Landing::default()
    }
}

async fn read(store: &Store) -> Orchestration {
    let read = store.orchestration(orchestration(9)).await;
    read.expect("it can be read")
}

async fn land(store: &Store, landing: Landing) {
    let read_at = read(store).await.landing_version;
    let recorded = store.record_landing(orchestration(9), read_at, landing);
    recorded.await.expect("it can be recorded");
}

fn unlanded(store: &Store) -> usize {
    store.unlanded().len()
}

async fn fail(store: &Store, number: u128) {
    let session = store.session(id(number)).await.expect("there");
    let queued = happen(store, &session, SessionEvent::StartRequested, at(1)).await;
    let outcome = Outcome::failed(FailureCode::Timeout, "late");
    let failed = SessionEvent::LaunchFailed(Attempt::FIRST, outcome);
    happen(store, &queued.expect("queued"), failed, at(2))
        .await
        .expect("failed");
}

#[tokio::test]
async fn of_those_who_read_the_same_landing_one_writes() {
    let dir = tempdir();
    let store = with_orchestration(dir.path(), true).await;
    let read_at = read(&store).await.landing_version;
    let write = |seen| store.record_landing(orchestration(9), read_at, over(seen));
    let (first, second) = tokio::join!(write(0), write(0));
    let conflicts = [&first, &second]
        .into_iter()
        .filter(|one| matches!(one, Err(StoreError::LandingConflict(_))));
    assert_eq!(conflicts.count(), 1, "{first:?} {second:?}");
    assert_eq!(read(&store).await.landing, over(0));
    store.close().await;
    let store = open(dir.path()).await;
    assert_eq!(read(&store).await.landing, over(0));
    assert_eq!(unlanded(&store), 0);
}

#[tokio::test]
async fn a_landing_is_looked_at_again_when_a_session_is_reopened_or_added() {
    let dir = tempdir();
    let store = with_orchestration(dir.path(), true).await;
    assert_eq!((unlanded(&store), read(&store).await.changes), (1, 0));
    fail(&store, 1).await;
    land(&store, over(0)).await;
    assert_eq!(unlanded(&store), 0);

    let failed = store.session(id(1)).await.expect("there");
    let retried = happen(&store, &failed, SessionEvent::RetryRequested, at(3)).await;
    retried.expect("it can be retried");
    assert_eq!((unlanded(&store), read(&store).await.changes), (1, 1));
    land(&store, over(1)).await;

    create_one(&store, member(3)).await;
    assert_eq!((unlanded(&store), read(&store).await.changes), (1, 2));
    store.close().await;
    let store = open(dir.path()).await;
    assert_eq!(unlanded(&store), 1, "a restart forgets nothing of it");
    land(&store, over(2)).await;

    let mut gate = member(4);
    gate.command = Some("make test".into());
    create_one(&store, gate).await;
    assert_eq!(unlanded(&store), 0, "a gate is the landing's own");
    fail(&store, 4).await;
    let failed = store.session(id(4)).await.expect("there");
    let retried = happen(&store, &failed, SessionEvent::RetryRequested, at(3)).await;
    retried.expect("it can be retried");
    assert_eq!(unlanded(&store), 1, "one that is retried is news");
}

#[tokio::test]
async fn many_reopened_at_once_are_one_change_or_several_and_never_an_error() {
    let dir = tempdir();
    let store = with_orchestration(dir.path(), true).await;
    for number in [1, 2] {
        fail(&store, number).await;
    }
    land(&store, over(0)).await;
    let one = store.session(id(1)).await.expect("there");
    let two = store.session(id(2)).await.expect("there");
    let retry = |session: &Arc<Session>| {
        let session = Arc::clone(session);
        let store = store.clone();
        async move { happen(&store, &session, SessionEvent::RetryRequested, at(3)).await }
    };
    let land = async {
        let read_at = read(&store).await.landing_version;
        store
            .record_landing(orchestration(9), read_at, over(0))
            .await
    };
    let (first, second, landed) = tokio::join!(retry(&one), retry(&two), land);
    first.expect("it can be retried");
    second.expect("it can be retried");
    landed.expect("nobody else landed");
    assert_eq!(unlanded(&store), 1);
    let changes = read(&store).await.changes;
    assert!((1..=2).contains(&changes), "{changes}");
    store.close().await;
    let store = open(dir.path()).await;
    assert_eq!((unlanded(&store), read(&store).await.changes), (1, changes));
}

#[tokio::test]
async fn sessions_of_others_land_by_themselves() {
    let dir = tempdir();
    let store = with_orchestration(dir.path(), true).await;
    assert!(store.lands_with_others(&member(1)));
    assert!(!store.lands_with_others(&session(1)));
    let elsewhere = Session {
        project: Project {
            repository: "owner/other".parse().expect("a repository"),
            ..session(5).project
        },
        ..member(5)
    };
    assert!(!store.lands_with_others(&elsewhere));
    let other = tempdir();
    let store = with_orchestration(other.path(), false).await;
    assert!(!store.lands_with_others(&member(1)));
    assert_eq!(unlanded(&store), 0);
    let refused = store
        .record_landing(orchestration(9), Version(0), over(0))
        .await;
    assert!(matches!(refused, Err(StoreError::OrchestrationNotFound(_))));
}
