//! Creating, changing and listing sessions.

use std::collections::HashSet;

use baton::store::{EventBody, Idempotency, Orchestration, SessionPage, SessionQuery};
use baton_domain::Status;
use baton_domain::ending::{FailureCode, Outcome, Usage};
use baton_domain::output::{Artifact, SessionResult};
use baton_domain::session::{Report, Standing};
use futures::future::join_all;

use crate::*;

#[tokio::test]
async fn all_of_a_session_survives() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let full = Session {
        orchestration_id: Some(orchestration(9)),
        dependencies: vec![id(7), id(8)],
        timeout_s: Some(60),
        project_settings: true,
        project: Project {
            branch: Some("feature/x".parse().expect("a branch")),
            requirements: "NUL \0, quote \", \\u0000, \u{1b}[31m, ö, \u{1f980}\n".into(),
            context: Some("\u{7f}\r\n\t".into()),
            ..session(1).project
        },
        ..session(1)
    };
    let around = Orchestration {
        branch: Some("feature/x".parse().expect("a branch")),
        lands: true,
        gate: Some("make test".into()),
        timeout_s: Some(60),
        summary: "two of them".into(),
        ..Orchestration::new(
            orchestration(9),
            "owner/repo".parse().expect("a repository"),
            "all of it, \0 too".into(),
            at(5),
        )
    };
    let request = NewSessions {
        orchestration: Some(around.clone()),
        sessions: vec![full.clone()],
        idempotency: None,
    };
    store.create(request).await.expect("it can be made");
    let report = Report {
        summary: "done \0".into(),
        next_steps: vec!["rest".into()],
        artifacts: vec![Artifact::File { path: "a".into() }],
        result: Some(SessionResult {
            branch: None,
            base_commit: "b".into(),
            commit: "c".into(),
            files_changed: 1,
            insertions: u64::from(u32::MAX) * 4,
            deletions: 0,
            unjoined: Vec::new(),
        }),
        usage: Some(Usage {
            input_tokens: 1 << 53,
            output_tokens: 2,
            cost_usd: 0.1 + 0.2,
        }),
        warnings: vec![],
    };
    let outcome = Outcome::failed(FailureCode::LaunchFailed, "no \"image\"");
    let next = SessionState::Finished {
        started_at: None,
        outcome: outcome.clone(),
        at: at(6),
    };
    let event = SessionEvent::LaunchFailed(Attempt::FIRST, outcome);
    let read = store.session(id(1)).await.expect("it is there");
    let concluded = Session {
        state: next.clone(),
        report: Some(report.clone()),
        ..Session::clone(&read)
    };
    let changed = record(&store, concluded, event.clone(), at(6)).await;
    let expected = Session {
        state: next,
        version: Version(2),
        report: Some(report),
        ..full
    };
    assert_eq!(*changed.expect("it can be changed"), expected);
    assert_eq!(*store.session(id(1)).await.expect("in memory"), expected);
    store.close().await;

    let store = open(dir.path()).await;
    assert_eq!(store.cached_session(id(1)), None, "it is over");
    assert_eq!(
        *store.session(id(1)).await.expect("in the database"),
        expected
    );
    assert!(store.cached_session(id(1)).is_some(), "kept after reading");
    assert_eq!(
        store.orchestration(orchestration(9)).await.expect("there"),
        around
    );
    let events = all_events(&store, id(1)).await;
    assert_eq!(events[0].body, EventBody::Created);
    let state = "failed".to_owned();
    assert_eq!(events[1].body, EventBody::Session { event, state });
    assert_eq!(events[1].at, at(6));
}

#[tokio::test]
async fn a_refused_creation_leaves_nothing() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let before = store.changes();
    let taken = store
        .create(new(vec![session(2), session(1), session(3)]))
        .await;
    assert!(
        matches!(taken, Err(StoreError::SessionExists(of)) if of == id(1)),
        "{taken:?}"
    );
    let twice = store.create(new(vec![session(2), session(2)])).await;
    assert!(
        matches!(twice, Err(StoreError::SessionExists(of)) if of == id(2)),
        "{twice:?}"
    );
    let mut lost = session(4);
    lost.orchestration_id = Some(orchestration(1));
    let lost = store.create(new(vec![session(2), lost])).await;
    assert!(
        matches!(lost, Err(StoreError::OrchestrationNotFound(_))),
        "{lost:?}"
    );
    for number in 2..5 {
        assert_eq!(store.standing(id(number)), None);
        let missing = store.session(id(number)).await;
        assert!(
            matches!(missing, Err(StoreError::SessionNotFound(_))),
            "{missing:?}"
        );
    }
    assert_eq!(store.changes(), before);
    store.close().await;
    assert_eq!(open(dir.path()).await.active().len(), 1);
}

#[tokio::test]
async fn one_bad_request_does_not_spoil_those_committed_with_it() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let requests = (0..40).map(|number| {
        // Every other one wants the id that is taken.
        let number = if number % 2 == 0 { 1 } else { 100 + number };
        store.create(new(vec![session(number)]))
    });
    let made = join_all(requests)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(made, 20);
    assert_eq!(store.active().len(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_makes_one_session_however_often_it_is_used() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let request = |number: u128, digest: u8| NewSessions {
        sessions: vec![session(number)],
        idempotency: Some(Idempotency {
            key: "key \0 ö".into(),
            digest: [digest; 32],
            response: format!("made {number}\0").into_bytes(),
        }),
        ..NewSessions::default()
    };
    let tasks = (0..50).map(|number| {
        let (store, request) = (store.clone(), request(number, 1));
        tokio::spawn(async move { store.create(request).await })
    });
    let mut made = Vec::new();
    let mut repeated = HashSet::new();
    for task in tasks.collect::<Vec<_>>() {
        match task.await.expect("no panic").expect("no error") {
            Written::Now(sessions) => made.extend(sessions),
            Written::Before { response } => drop(repeated.insert(response)),
        }
    }
    let [made] = &made[..] else {
        panic!("{} were made", made.len())
    };
    let response = format!("made {}\0", made.project.requirements.replace("do ", ""));
    assert_eq!(repeated, HashSet::from([response.clone().into_bytes()]));
    let other = store.create(request(60, 2)).await;
    assert!(
        matches!(other, Err(StoreError::IdempotencyMismatch)),
        "{other:?}"
    );
    assert_eq!(store.active().len(), 1);
    store.close().await;

    let store = open(dir.path()).await;
    let again = store.create(request(61, 1)).await.expect("no error");
    let Written::Before { response: before } = again else {
        panic!("it was made again")
    };
    assert_eq!(before, response.into_bytes());
}

#[tokio::test]
async fn of_those_who_read_the_same_version_one_writes() {
    let dir = tempdir();
    let (store, session) = with_session(dir.path()).await;
    let writers = (0..20).map(|_| happen(&store, &session, SessionEvent::StartRequested, at(1)));
    let (won, lost): (Vec<_>, Vec<_>) =
        join_all(writers).await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 19));
    for error in lost {
        let expected = matches!(
            error,
            Err(StoreError::Conflict { id: of, read_at: Version(1) }) if of == id(1)
        );
        assert!(expected, "{error:?}");
    }
    assert_eq!(
        store.session(id(1)).await.expect("there").version,
        Version(2)
    );
    assert_eq!(all_events(&store, id(1)).await.len(), 2);
}

#[tokio::test]
async fn the_attempt_follows_the_launch() {
    let dir = tempdir();
    let (store, session) = with_session(dir.path()).await;
    let queued = happen(&store, &session, SessionEvent::StartRequested, at(1)).await;
    let launch = SessionEvent::LaunchDecided(Attempt(3));
    let starting = happen(&store, &queued.expect("queued"), launch, at(2)).await;
    assert_eq!(starting.expect("starting").attempt, Attempt(3));
    let image = crash_image(dir.path());
    let store = open(image.path()).await;
    assert_eq!(store.active()[0].attempt, Attempt(3));
}

#[tokio::test]
async fn standings_tell_of_every_session_ever() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    for number in 1..=4 {
        create_one(&store, session(number)).await;
    }
    finish(&store, 2, Outcome::Completed).await;
    finish(&store, 3, Outcome::Cancelled).await;
    let four = store.session(id(4)).await.expect("there");
    happen(&store, &four, SessionEvent::DependencyLost(id(3)), at(1))
        .await
        .expect("blocked");
    let standings = [None, Some(Standing::Open), Some(Standing::Completed)];
    let expected = standings.into_iter().chain([Some(Standing::Lost); 2]);
    let found = |store: &Store| (0..=4).map(|number| store.standing(id(number))).collect();
    let found_before: Vec<_> = found(&store);
    assert_eq!(found_before, expected.collect::<Vec<_>>());
    let active: Vec<_> = store.active().iter().map(|session| session.id).collect();
    assert_eq!(active, [id(1)]);
    store.close().await;
    let store = open(dir.path()).await;
    let found_after: Vec<_> = found(&store);
    assert_eq!(found_after, found_before);
}

async fn finish(store: &Store, number: u128, outcome: Outcome) {
    let session = store.session(id(number)).await.expect("there");
    let event = SessionEvent::Concluded(Attempt::FIRST, outcome.clone());
    let next = SessionState::Finished {
        started_at: None,
        outcome,
        at: at(9),
    };
    let finished = Session {
        state: next,
        ..Session::clone(&session)
    };
    record(store, finished, event, at(9))
        .await
        .expect("recorded");
}

fn numbers(page: &SessionPage) -> Vec<u128> {
    page.sessions
        .iter()
        .map(|session| session.id.0.as_u128())
        .collect()
}

async fn listed(store: &Store, query: SessionQuery) -> Vec<u128> {
    let mut query = query;
    let mut found = Vec::new();
    for _ in 0..1_000 {
        let page = store.page(&query).await.expect("a page");
        assert!(page.sessions.len() <= query.limit);
        found.extend(numbers(&page));
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            return found;
        }
        assert!(
            !page.sessions.is_empty(),
            "a page before another is not empty"
        );
    }
    panic!("the pages have no end");
}

#[tokio::test]
async fn pages_hold_what_the_query_asks_for() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let mut first = Some(Orchestration::new(
        orchestration(1),
        "owner/repo".parse().expect("a repository"),
        "x".into(),
        at(0),
    ));
    for number in 1..=30_u128 {
        let mut session = session(number);
        session.orchestration_id = (number % 3 == 0).then(|| orchestration(1));
        // Waits for one that is completed, for one that is not, for an unknown one.
        session.dependencies = match number {
            28 => vec![id(2)],
            29 => vec![id(2), id(1)],
            30 => vec![id(77)],
            _ => Vec::new(),
        };
        let request = NewSessions {
            orchestration: first.take_if(|_| number == 3),
            sessions: vec![session],
            idempotency: None,
        };
        store.create(request).await.expect("made");
    }
    for number in (2..=10).step_by(2) {
        finish(&store, number, Outcome::Completed).await;
    }
    for number in 28..=30 {
        let session = store.session(id(number)).await.expect("there");
        happen(&store, &session, SessionEvent::StartRequested, at(1))
            .await
            .expect("queued");
    }
    for (store, what) in [
        (store.clone(), "in memory"),
        (open(crash_image(dir.path()).path()).await, "loaded"),
    ] {
        for limit in [1, 2, 7, 30, 5_000] {
            let query = |statuses: &[Status], of: Option<u128>| SessionQuery {
                orchestration: of.map(orchestration),
                statuses: statuses.to_vec(),
                newest_first: false,
                cursor: None,
                limit,
            };
            for asked in [
                query(&[], None),
                query(&[], Some(1)),
                query(&[Status::Pending], None),
                query(&[Status::Queued, Status::Completed], None),
            ] {
                let forwards = listed(&store, asked.clone()).await;
                assert_eq!(store.count(&asked), forwards.len(), "{what}");
                let newest_first = SessionQuery {
                    newest_first: true,
                    ..asked
                };
                let mut backwards = listed(&store, newest_first).await;
                backwards.reverse();
                assert_eq!(backwards, forwards, "{what}, {limit} a page");
            }
            let all = listed(&store, query(&[], None)).await;
            assert_eq!(all, (1..=30).collect::<Vec<_>>(), "{what}");
            let of_one = listed(&store, query(&[], Some(1))).await;
            assert_eq!(of_one, (3..=30).step_by(3).collect::<Vec<_>>(), "{what}");
            let completed = listed(&store, query(&[Status::Completed], None)).await;
            assert_eq!(completed, [2, 4, 6, 8, 10], "{what}");
            let both = listed(&store, query(&[Status::Completed], Some(1))).await;
            assert_eq!(both, [6], "{what}");
            let waiting = listed(&store, query(&[Status::Pending], None)).await;
            assert_eq!(waiting, [29, 30], "{what}");
            let mixed = listed(&store, query(&[Status::Queued, Status::Completed], None)).await;
            assert_eq!(mixed, [2, 4, 6, 8, 10, 28], "{what}");
            let none = listed(&store, query(&[], Some(5))).await;
            assert!(none.is_empty(), "{what}");
        }
    }
    for wrong in ["", "c", "x1", "c01", "cg", "c-1", "cffffffffffffffffff"] {
        let query = SessionQuery {
            cursor: Some(wrong.into()),
            limit: 1,
            ..SessionQuery::default()
        };
        let page = store.page(&query).await;
        assert!(
            matches!(page, Err(StoreError::InvalidCursor)),
            "{wrong:?}: {page:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_stay_in_order_while_sessions_are_made() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let makers = (0..8).map(|maker| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..50 {
                create_one(&store, session(1_000 * (maker + 1) + number)).await;
            }
        })
    });
    let makers: Vec<_> = makers.collect();
    let query = SessionQuery {
        limit: 7,
        ..SessionQuery::default()
    };
    let mut seen: Vec<u128> = Vec::new();
    while seen.len() < 400 {
        let now = listed(&store, query.clone()).await;
        assert_eq!(
            now[..seen.len()],
            seen[..],
            "what was listed stays where it was"
        );
        seen = now;
        tokio::task::yield_now().await;
    }
    join_all(makers).await;
    let distinct: HashSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), 400);
    store.close().await;
    assert_eq!(listed(&open(dir.path()).await, query).await, seen);
}

#[tokio::test]
async fn changes_count_what_changes_the_list() {
    let dir = tempdir();
    let (store, session) = with_session(dir.path()).await;
    let made = store.changes();
    store.append_note(id(1), "x", at(1)).await.expect("noted");
    assert_eq!(store.changes(), made, "a note is not in the list");
    happen(&store, &session, SessionEvent::StartRequested, at(1))
        .await
        .expect("queued");
    assert!(store.changes() > made);
}
