//! Whatever is done to a session, its events have every number once.

use baton::store::EventBody;
use proptest::prelude::*;

use crate::*;

#[derive(Debug, Clone)]
enum Step {
    Note,
    /// A transition, while there is one.
    Move,
    /// Lines of these lengths, in an attempt.
    Append(Attempt, Vec<usize>),
    /// The server is killed and started again.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (1..3_u32, prop::collection::vec(0..900_usize, 0..12));
    let step = prop_oneof![
        2 => Just(Step::Note),
        2 => Just(Step::Move),
        8 => append.prop_map(|(attempt, lengths)| Step::Append(Attempt(attempt), lengths)),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// What each number must be; the first is number 1.
#[derive(Debug, PartialEq)]
enum Expected {
    Derived,
    Line(Vec<u8>),
}

async fn play(steps: Vec<Step>, page: usize) {
    const KEPT: u64 = 8 * 1024;
    let mut dir = tempdir();
    let mut store = open_small(dir.path(), KEPT).await;
    let mut session = create_one(&store, session(1)).await;
    let mut expected = vec![Expected::Derived];
    let mut positions = [0_u64; 3];
    let mut moves = vec![
        SessionEvent::CancelRequested,
        SessionEvent::ClaudeStarted(Attempt::FIRST),
        SessionEvent::LaunchDecided(Attempt::FIRST),
        SessionEvent::StartRequested,
    ];
    for step in steps {
        match step {
            Step::Note => {
                store
                    .append_note(id(1), "a note", at(1))
                    .await
                    .expect("noted");
                expected.push(Expected::Derived);
            }
            Step::Move => {
                if let Some(event) = moves.pop() {
                    session = happen(&store, &session, event, at(2)).await.expect("moved");
                    expected.push(Expected::Derived);
                }
            }
            Step::Append(attempt, lengths) => {
                let position = &mut positions[attempt.0 as usize];
                *position += 1;
                let numbers = expected.len()..;
                let texts: Vec<_> = lengths
                    .into_iter()
                    .zip(numbers)
                    .map(|(length, number)| format!("{number:0>length$}").into_bytes())
                    .collect();
                let lines: Vec<_> = texts.iter().cloned().map(line).collect();
                let appended = store.append_output(id(1), attempt, *position, &lines).await;
                appended.expect("appended");
                expected.extend(texts.into_iter().map(Expected::Line));
            }
            Step::Crash => {
                let image = crash_image(dir.path());
                store.close().await;
                dir = image;
                store = open_small(dir.path(), KEPT).await;
                session = store.session(id(1)).await.expect("there");
            }
        }
    }
    let last = *store.watch_events(id(1)).borrow();
    assert_eq!(last, expected.len() as u64);
    let mut next = 1;
    while next <= last {
        let events = store
            .events(id(1), next - 1, page, ALL)
            .await
            .expect("read");
        assert!(!events.is_empty() && events.len() <= page);
        for event in events {
            assert_eq!(event.seq, next, "no gap and no repeat");
            next = check(&event, &expected) + 1;
        }
    }
    assert_eq!(next, last + 1);
    store.close().await;
}

/// Checks one event; gives back the last number it stands for.
fn check(event: &StoredEvent, expected: &[Expected]) -> u64 {
    let at = event.seq as usize - 1;
    match &event.body {
        EventBody::Output(line) => {
            assert_eq!(expected[at], Expected::Line(line.bytes.to_vec()));
            event.seq
        }
        EventBody::Truncated { last_seq, .. } => {
            let dropped = &expected[at..*last_seq as usize];
            assert!(dropped.iter().all(|was| matches!(was, Expected::Line(_))));
            *last_seq
        }
        _ => {
            assert_eq!(expected[at], Expected::Derived);
            event.seq
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_number_comes_once(steps in steps(), page in 1..50_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(play(steps, page));
    }
}
