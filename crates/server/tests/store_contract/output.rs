//! Output and events: order, bytes, limits.

use baton::store::{EventBody, LINE_BYTES_MAX};

use crate::*;

fn texts(events: &[StoredEvent]) -> Vec<&[u8]> {
    let lines = events.iter().filter_map(|event| match &event.body {
        EventBody::Output(line) => Some(&line.bytes[..]),
        _ => None,
    });
    lines.collect()
}

#[tokio::test]
async fn lines_come_back_byte_for_byte() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let lines = vec![
        line(b"\xff\xfe invalid \x00 NUL".to_vec()),
        line(""),
        OutputLine {
            stream: Stream::Stderr,
            line_end: false,
            at: "2026-11-22T10:00:00.123Z".parse().expect("a time"),
            ..line("no end")
        },
        OutputLine {
            cut_bytes: 50 << 20,
            ..line(vec![b'x'; LINE_BYTES_MAX])
        },
        line("{\"after\":\"it\"}"),
    ];
    store
        .append_output(id(1), Attempt::FIRST, 5, &lines)
        .await
        .expect("appended");
    for store in [store, open(crash_image(dir.path()).path()).await] {
        let events = all_events(&store, id(1)).await;
        assert_eq!(events[0].body, EventBody::Created);
        for (at, (event, line)) in events[1..].iter().zip(&lines).enumerate() {
            assert_eq!(event.seq, at as u64 + 2);
            assert_eq!(event.at, line.at);
            assert_eq!(event.body, EventBody::Output(line.clone()));
        }
        assert_eq!(events.len(), 1 + lines.len());
        assert_eq!(store.acked(id(1), Attempt::FIRST).await.expect("known"), 5);
    }
}

#[tokio::test]
async fn a_repeat_changes_nothing() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let append = async |attempt, position, text: &str| {
        store
            .append_output(id(1), attempt, position, &[line(text)])
            .await
            .expect("appended");
    };
    append(Attempt::FIRST, 3, "a").await;
    append(Attempt::FIRST, 3, "again").await;
    append(Attempt::FIRST, 2, "older").await;
    append(Attempt(2), 1, "of another attempt").await;
    store
        .append_output(id(1), Attempt::FIRST, 9, &[])
        .await
        .expect("moved");
    append(Attempt::FIRST, 9, "again").await;
    let events = all_events(&store, id(1)).await;
    assert_eq!(texts(&events), [&b"a"[..], b"of another attempt"]);
    assert_eq!(store.acked(id(1), Attempt::FIRST).await.expect("known"), 9);
    assert_eq!(store.acked(id(1), Attempt(2)).await.expect("known"), 1);
    assert_eq!(store.acked(id(1), Attempt(3)).await.expect("known"), 0);
    let unknown = store.append_output(id(2), Attempt::FIRST, 1, &[]).await;
    assert!(
        matches!(unknown, Err(StoreError::SessionNotFound(_))),
        "{unknown:?}"
    );
    let unknown = store.events(id(2), 0, 1, 1).await;
    assert!(
        matches!(unknown, Err(StoreError::SessionNotFound(_))),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn a_line_that_was_not_cut_is_refused() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let lines = [line("a"), line(vec![b'x'; LINE_BYTES_MAX + 1])];
    let refused = store.append_output(id(1), Attempt::FIRST, 1, &lines).await;
    assert!(
        matches!(refused, Err(StoreError::LineTooLong { .. })),
        "{refused:?}"
    );
    assert_eq!(all_events(&store, id(1)).await.len(), 1);
}

#[tokio::test]
async fn reading_keeps_to_its_limits() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    for batch in 0..20_u64 {
        let lines: Vec<_> = (0..50)
            .map(|number| line(format!("{batch:03} {number:05}\n")))
            .collect();
        store
            .append_output(id(1), Attempt::FIRST, batch + 1, &lines)
            .await
            .expect("appended");
        store
            .append_note(id(1), "between", at(1))
            .await
            .expect("noted");
    }
    let all = all_events(&store, id(1)).await;
    assert_eq!(all.len(), 1 + 20 * 51);
    for (limit, bytes_max) in [(1, ALL), (7, ALL), (ALL, 25), (ALL, 1), (100, 1_000)] {
        let mut read: Vec<StoredEvent> = Vec::new();
        while read.len() < all.len() {
            let after = read.last().map_or(0, |event| event.seq);
            let some = store
                .events(id(1), after, limit, bytes_max)
                .await
                .expect("read");
            assert!(!some.is_empty() && some.len() <= limit);
            let bytes: usize = texts(&some).iter().map(|text| text.len()).sum();
            assert!(bytes <= bytes_max || some.len() == 1, "{bytes} bytes");
            read.extend(some);
        }
        assert_eq!(read, all);
    }
    assert_eq!(
        store
            .events(id(1), all.len() as u64, 1, 1)
            .await
            .expect("read"),
        []
    );
}

#[tokio::test]
async fn past_the_limit_head_and_tail_stay() {
    const KEPT: u64 = 64 * 1024;
    let dir = tempdir();
    let store = open_small(dir.path(), KEPT).await;
    create_one(&store, session(1)).await;
    let text = |number: u64| format!("{number:0>100}");
    for batch in 0..100 {
        let lines: Vec<_> = (batch * 20..(batch + 1) * 20)
            .map(|number| line(text(number)))
            .collect();
        store
            .append_output(id(1), Attempt::FIRST, batch + 1, &lines)
            .await
            .expect("appended");
    }
    for store in [
        store,
        open_small(crash_image(dir.path()).path(), KEPT).await,
    ] {
        let events = all_events(&store, id(1)).await;
        let dropped: Vec<_> = events
            .iter()
            .filter_map(|event| match event.body {
                EventBody::Truncated { last_seq, bytes } => Some((event.seq, last_seq, bytes)),
                _ => None,
            })
            .collect();
        let [(first, last, bytes)] = dropped[..] else {
            panic!("{dropped:?} for one run of lines")
        };
        assert_eq!(bytes, 100 * (last - first + 1));
        let mut next = 1;
        for event in &events {
            assert_eq!(event.seq, next);
            next = match &event.body {
                EventBody::Truncated { last_seq, .. } => last_seq + 1,
                EventBody::Output(line) => {
                    assert_eq!(line.bytes, text(event.seq - 2));
                    event.seq + 1
                }
                _ => event.seq + 1,
            };
        }
        assert_eq!(next, 2_002, "every number is told of");
        let record = 100 + 13;
        let (head, tail) = ((first - 2) * record, (2_001 - last) * record);
        assert!(
            (KEPT * 7 / 16..=KEPT / 2).contains(&head),
            "a head of {head} bytes"
        );
        assert!(
            (KEPT * 3 / 8..=KEPT / 2 + record).contains(&tail),
            "a tail of {tail} bytes"
        );
        let inside = store.events(id(1), first + 5, 2, ALL).await.expect("read");
        assert_eq!((inside[0].seq, inside[1].seq), (first + 6, last + 1));
    }
    let files = walk(&dir.path().join("output"));
    assert!(files.iter().sum::<u64>() <= KEPT, "{files:?}");
}

fn walk(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let sizes = entries.flat_map(|entry| {
        let entry = entry.expect("an entry");
        if entry.path().is_dir() {
            walk(&entry.path())
        } else {
            vec![entry.metadata().expect("metadata").len()]
        }
    });
    sizes.collect()
}

#[tokio::test]
async fn watchers_see_every_commit() {
    let dir = tempdir();
    let (store, session) = with_session(dir.path()).await;
    let mut newest = store.watch_events(id(1));
    assert_eq!(*newest.borrow_and_update(), 1);
    let mut unknown = store.watch_events(id(2));
    assert_eq!(*unknown.borrow_and_update(), 0);
    store.append_note(id(1), "x", at(1)).await.expect("noted");
    newest.changed().await.expect("still watched");
    assert_eq!(*newest.borrow_and_update(), 2);
    let lines = [line("a"), line("b")];
    store
        .append_output(id(1), Attempt::FIRST, 1, &lines)
        .await
        .expect("appended");
    assert_eq!(*newest.borrow_and_update(), 4);
    happen(&store, &session, SessionEvent::StartRequested, at(1))
        .await
        .expect("queued");
    assert_eq!(*newest.borrow_and_update(), 5);
    assert_eq!(*store.watch_events(id(1)).borrow(), 5);
    create_one(&store, crate::session(2)).await;
    assert_eq!(*unknown.borrow_and_update(), 1);
}

#[tokio::test]
async fn an_append_ends_even_if_nobody_waits() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    for position in 1..=50 {
        let lines = [line(format!("{position}"))];
        let append = store.append_output(id(1), Attempt::FIRST, position, &lines);
        // Polled a few times, then dropped.
        let mut append = Box::pin(append);
        for _ in 0..position % 4 {
            let once = futures::future::poll_immediate(&mut append).await;
            if once.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    store
        .append_output(id(1), Attempt::FIRST, 51, &[line("51")])
        .await
        .expect("appended");
    let events = all_events(&store, id(1)).await;
    let numbers: Vec<u32> = texts(&events)
        .into_iter()
        .map(|text| String::from_utf8_lossy(text).parse().expect("a number"))
        .collect();
    assert!(
        numbers.is_sorted() && numbers.last() == Some(&51),
        "{numbers:?}"
    );
    assert_eq!(numbers.len() + 1, events.len(), "{numbers:?}");
}
