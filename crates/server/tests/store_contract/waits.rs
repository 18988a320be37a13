//! Waits of clients that outlive the server.

use baton_domain::WaitId;
use baton_domain::waits::{WAIT_KEPT, Wait, WaitMode};
use uuid::Uuid;

use super::{at, crash_image, id, open, tempdir};

fn wait(second: i64) -> Wait {
    Wait {
        sessions: vec![id(1), id(2)],
        mode: WaitMode::Any,
        created_at: at(second),
        until: Some(at(second + 60)),
        answer: None,
        cancelled_at: None,
    }
}

#[tokio::test]
async fn a_wait_outlives_the_server_and_is_forgotten_when_it_is_old() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let old = WaitId(Uuid::from_u128(1));
    store.keep_wait(old, wait(1_000)).await.expect("kept");
    let mut cancelled = wait(1_000);
    cancelled.cancelled_at = Some(at(1_001));
    store.keep_wait(old, cancelled.clone()).await.expect("kept");
    for store in [store.clone(), open(crash_image(dir.path()).path()).await] {
        assert_eq!(
            store.wait(old).await.expect("read"),
            Some(cancelled.clone())
        );
    }
    let young = WaitId(Uuid::from_u128(2));
    let kept_s = WAIT_KEPT.as_secs();
    store
        .keep_wait(young, wait(1_000 + kept_s))
        .await
        .expect("kept");
    assert!(store.wait(old).await.expect("read").is_some());
    let younger = WaitId(Uuid::from_u128(3));
    store
        .keep_wait(younger, wait(1_001 + kept_s))
        .await
        .expect("kept");
    assert_eq!(store.wait(old).await.expect("read"), None);
    assert!(store.wait(young).await.expect("read").is_some());
}
