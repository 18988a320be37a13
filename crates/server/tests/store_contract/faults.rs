//! Kills, damage, full disks, locks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use baton::store::EventBody;
use sqlx::{ConnectOptions, Executor};

use crate::*;

/// Where [`killed_writer`] writes; without it, that test does nothing.
const WRITER_DIR: &str = "BATON_TEST_KILLED_WRITER_DIR";

/// Writes until it is killed, telling each position that was acknowledged. Not a test of its own:
/// the next one runs it in a process.
#[tokio::test]
async fn killed_writer() {
    let Some(dir) = std::env::var_os(WRITER_DIR) else {
        return;
    };
    let store = open(Path::new(&dir)).await;
    if store.standing(id(1)).is_none() {
        create_one(&store, session(1)).await;
    }
    let mut position = store.acked(id(1), Attempt::FIRST).await.expect("known");
    loop {
        position += 1;
        let lines: Vec<_> = (0..200)
            .map(|number| line(format!("{position} {number}")))
            .collect();
        store
            .append_output(id(1), Attempt::FIRST, position, &lines)
            .await
            .expect("appended");
        println!("acknowledged {position}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempdir();
    for round in 1..=5_usize {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "faults::killed_writer", "--nocapture"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test runs");
        let told = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut told = told
            .map(|line| line.expect("a line"))
            .filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        told.by_ref().nth(7 * round).expect("it writes");
        child.kill().expect("it can be killed");
        let last = told.last().unwrap_or(0);
        child.wait().expect("it ends");

        let store = open(dir.path()).await;
        let acked = store.acked(id(1), Attempt::FIRST).await.expect("known");
        assert!(acked >= last, "{acked} of {last}");
        let events = all_events(&store, id(1)).await;
        assert_eq!(events.len() as u64, 1 + 200 * acked);
        for event in &events[1..] {
            let EventBody::Output(line) = &event.body else {
                panic!("{event:?}")
            };
            let (batch, number) = ((event.seq - 2) / 200 + 1, (event.seq - 2) % 200);
            assert_eq!(line.bytes, format!("{batch} {number}"));
        }
        store.close().await;
    }
}

fn segment(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("output/{}/1-{number}.seg", id(1)))
}

#[tokio::test]
async fn what_was_not_recorded_is_cut_off() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    store
        .append_output(id(1), Attempt::FIRST, 1, &[line("kept")])
        .await
        .expect("appended");
    let image = crash_image(dir.path());
    let recorded = std::fs::metadata(segment(image.path(), 0))
        .expect("a file")
        .len();
    let mut file = std::fs::File::options()
        .append(true)
        .open(segment(image.path(), 0));
    file.as_mut()
        .expect("a file")
        .write_all(&[0xa5; 3_000])
        .expect("written");
    std::fs::write(segment(image.path(), 1), "begun, never recorded").expect("written");

    let store = open(image.path()).await;
    assert_eq!(
        std::fs::metadata(segment(image.path(), 0))
            .expect("a file")
            .len(),
        recorded
    );
    assert!(!segment(image.path(), 1).exists());
    store
        .append_output(id(1), Attempt::FIRST, 2, &[line("next")])
        .await
        .expect("appended");
    let texts: Vec<_> = all_events(&store, id(1))
        .await
        .into_iter()
        .map(|event| event.body)
        .collect();
    let expected = [
        EventBody::Created,
        EventBody::Output(line("kept")),
        EventBody::Output(line("next")),
    ];
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn lost_output_is_told_and_nothing_else_fails() {
    let dir = tempdir();
    let (store, _) = with_session(dir.path()).await;
    let lines = [line("first"), line("second"), line("third")];
    store
        .append_output(id(1), Attempt::FIRST, 1, &lines)
        .await
        .expect("appended");
    store
        .append_note(id(1), "after", at(1))
        .await
        .expect("noted");
    let file = std::fs::File::options()
        .write(true)
        .open(segment(dir.path(), 0))
        .expect("a file");
    file.set_len(13 + 5 + 13 + 2)
        .expect("cut in the second line");
    let events = all_events(&store, id(1)).await;
    assert_eq!(events[1].body, EventBody::Output(line("first")));
    let missing = EventBody::Truncated {
        last_seq: 4,
        bytes: 11,
    };
    assert_eq!((events[2].seq, &events[2].body), (3, &missing));
    assert_eq!(
        (events[3].seq, &events[3].body),
        (5, &EventBody::Note("after".into()))
    );
    std::fs::remove_file(segment(dir.path(), 0)).expect("removed");
    let events = all_events(&store, id(1)).await;
    let missing = EventBody::Truncated {
        last_seq: 4,
        bytes: 16,
    };
    assert_eq!((events[1].seq, &events[1].body), (2, &missing));
    assert_eq!(events[2].seq, 5);
}

#[tokio::test]
async fn a_second_server_is_refused_at_once() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    let begun = Instant::now();
    let second = Store::open(dir.path(), StoreSettings::default()).await;
    assert!(
        matches!(second, Err(StoreError::InUse { .. })),
        "{second:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(1));
    let clone = store.clone();
    store.close().await;
    let late = clone.create(new(vec![session(1)])).await;
    assert!(
        matches!(late, Err(StoreError::Unavailable { .. })),
        "{late:?}"
    );
    let late = clone
        .append_output(id(1), Attempt::FIRST, 1, &[line("x")])
        .await;
    assert!(
        matches!(late, Err(StoreError::Unavailable { .. })),
        "{late:?}"
    );
    assert!(clone.ping().await.is_err());
    open(dir.path())
        .await
        .ping()
        .await
        .expect("it is free again");
}

#[tokio::test]
async fn what_another_wrote_to_the_database_is_not_written_over() {
    let dir = tempdir();
    let (store, made) = with_session(dir.path()).await;
    let other = create_one(&store, session(2)).await;
    let mut foreign = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.path().join("baton.db"))
        .connect()
        .await
        .expect("a connection");
    let sql = "UPDATE sessions SET version = version + 1 WHERE ordinal = 1";
    foreign.execute(sql).await.expect("executed");

    let refused = happen(&store, &made, SessionEvent::StartRequested, at(1)).await;
    let Err(StoreError::Corrupt { what, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        what,
        "the database (0 of 1 session states were as expected)"
    );
    let events = all_events(&store, made.id).await;
    assert_eq!(events.len(), 1, "nothing of it was written");
    // Others are written as before, and so is this one when it is as it was.
    let started = happen(&store, &other, SessionEvent::StartRequested, at(2)).await;
    started.expect("recorded");
    let sql = "UPDATE sessions SET version = version - 1 WHERE ordinal = 1";
    foreign.execute(sql).await.expect("executed");
    let started = happen(&store, &made, SessionEvent::StartRequested, at(3)).await;
    started.expect("recorded");
    assert_eq!(all_events(&store, made.id).await.len(), 2);
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_not_touched() {
    let dir = tempdir();
    let store = open(dir.path()).await;
    for number in 1..200 {
        create_one(&store, session(number)).await;
    }
    store.close().await;
    let path = dir.path().join("baton.db");
    let good = std::fs::read(&path).expect("a database");
    let garbage = [0x5a; 4096];
    // All of page 1; page 1 but for the magic; a page in the middle.
    let middle = (good.len() as u64 / 2) / 4096 * 4096;
    for (offset, bytes) in [
        (0, &garbage[..]),
        (16, &garbage[16..]),
        (middle, &garbage[..]),
    ] {
        std::fs::write(&path, &good).expect("written");
        let file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("a file");
        file.write_all_at(bytes, offset).expect("written");
        let damaged = std::fs::read(&path).expect("a database");
        let opened = Store::open(dir.path(), StoreSettings::default()).await;
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "{offset}: {opened:?}"
        );
        assert!(
            std::fs::read(&path).expect("a database") == damaged,
            "nothing was touched"
        );
    }
    std::fs::write(&path, &good).expect("written");
    assert_eq!(open(dir.path()).await.active().len(), 199);
}

#[tokio::test]
async fn a_locked_database_is_an_error_and_then_works_again() {
    let dir = tempdir();
    let (store, session) = with_session(dir.path()).await;
    let mut other = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.path().join("baton.db"))
        .connect()
        .await
        .expect("a connection");
    other.execute("BEGIN EXCLUSIVE").await.expect("locked");
    let begun = Instant::now();
    let lines = [line("x")];
    let (created, moved, noted, appended) = tokio::join!(
        store.create(new(vec![crate::session(2)])),
        happen(&store, &session, SessionEvent::StartRequested, at(1)),
        store.append_note(id(1), "x", at(1)),
        store.append_output(id(1), Attempt::FIRST, 1, &lines),
    );
    assert!(
        begun.elapsed() >= Duration::from_secs(4),
        "it waits for the lock"
    );
    assert!(begun.elapsed() < Duration::from_secs(9), "but not for ever");
    assert!(
        matches!(created, Err(StoreError::Unavailable { .. })),
        "{created:?}"
    );
    assert!(
        matches!(moved, Err(StoreError::Unavailable { .. })),
        "{moved:?}"
    );
    assert!(
        matches!(noted, Err(StoreError::Unavailable { .. })),
        "{noted:?}"
    );
    assert!(
        matches!(appended, Err(StoreError::Unavailable { .. })),
        "{appended:?}"
    );
    unchanged(&store, &session).await;
    other.execute("ROLLBACK").await.expect("unlocked");
    works(&store, &session).await;
}

/// A file system of so many bytes, for as long as this value lives.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// None where mounting is not allowed: that takes root.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempdir();
        let options = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy: the store may still hold files of a test that failed.
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "the test's disk is unmounted"
        );
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_then_works_again() {
    let Some(disk) = SmallDisk::mount(16 << 20) else {
        eprintln!("not run: mounting a small disk takes root");
        return;
    };
    let dir = disk.0.path();
    let (store, session) = with_session(dir).await;
    // More than a page of it is still free in the write-ahead log, so the rows must be large.
    let filler = dir.join("filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut large = crate::session(2);
    large.project.requirements = "x".repeat(1 << 20).into();
    let created = store.create(new(vec![large.clone()])).await;
    assert!(
        matches!(created, Err(StoreError::Unavailable { .. })),
        "{created:?}"
    );
    let noted = store.append_note(id(1), &"x".repeat(1 << 20), at(1)).await;
    assert!(
        matches!(noted, Err(StoreError::Unavailable { .. })),
        "{noted:?}"
    );
    let lines = vec![line(vec![b'x'; 1 << 20]); 2];
    let appended = store.append_output(id(1), Attempt::FIRST, 1, &lines).await;
    assert!(
        matches!(appended, Err(StoreError::Unavailable { .. })),
        "{appended:?}"
    );
    unchanged(&store, &session).await;
    drop(file);
    std::fs::remove_file(&filler).expect("room again");
    works(&store, &session).await;
    create_one(&store, Session { id: id(3), ..large }).await;
    store
        .append_output(id(1), Attempt::FIRST, 2, &lines)
        .await
        .expect("appended");
    assert_eq!(all_events(&store, id(1)).await.len(), 6);
    store.close().await;
}

/// Session 1 is as it was, in memory and in the database, and session 2 was not made.
async fn unchanged(store: &Store, session: &Arc<Session>) {
    assert_eq!(store.session(id(1)).await.expect("there"), *session);
    assert_eq!(store.standing(id(2)), None);
    assert_eq!(all_events(store, id(1)).await.len(), 1);
    assert_eq!(store.acked(id(1), Attempt::FIRST).await.expect("known"), 0);
    assert_eq!(*store.watch_events(id(1)).borrow(), 1);
}

/// What failed before succeeds now, and once.
async fn works(store: &Store, session: &Session) {
    create_one(store, crate::session(2)).await;
    happen(store, session, SessionEvent::StartRequested, at(1))
        .await
        .expect("queued");
    store
        .append_output(id(1), Attempt::FIRST, 1, &[line("x")])
        .await
        .expect("appended");
    store.append_note(id(1), "x", at(1)).await.expect("noted");
    let numbers: Vec<_> = all_events(store, id(1))
        .await
        .iter()
        .map(|event| event.seq)
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}
