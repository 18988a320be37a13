//! How fast the store is, beside what the machine's disk and SQLite give: `cargo bench --bench store`.
//!
//! Baselines are measured in the same run on the same file system: one row per commit through
//! plain sqlx, and one file written and synced in pieces. `TMPDIR` says where.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton::store::{
    NewSessions, OutputLine, SessionQuery, Store, StoreError, StoreSettings, Transition, Written,
};
use baton_agent::protocol::Stream;
use baton_domain::{
    Attempt, ClaudeSessionId, Kind, Project, Session, SessionEvent, SessionId, SessionState,
};
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Executor};
use uuid::Uuid;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const COMMITS: u64 = 3_000;
const MIB: usize = 1 << 20;
const OUTPUT_BYTES: usize = 200 * MIB;

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Outcome {
    let raw = raw_commits().await?;
    println!("plain sqlx, 1 KB row, FULL:     {raw:>9.0} commits/s");
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), StoreSettings::default()).await?;
    println!("idle RSS:                       {:>9.1} MiB", rss_mib()?);
    for clients in [1, 16] {
        let rate = creations(&store, clients).await?;
        println!("{rate}  {:.2}x", rate.per_second / raw);
    }
    for clients in [1, 16] {
        let rate = transitions(&store, clients).await?;
        println!("{rate}  {:.2}x", rate.per_second / raw);
    }
    reads(&store).await?;
    store.close().await;
    memory().await?;
    output().await
}

struct Rate {
    what: String,
    per_second: f64,
    p50: Duration,
    p99: Duration,
    /// Of all threads, for each call: what a busy machine does not change.
    cpu: Duration,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            per_second,
            p50,
            p99,
            cpu,
        } = self;
        write!(
            f,
            "{what:<31} {per_second:>9.0} /s  p50 {:>6.2} ms  p99 {:>6.2} ms  cpu {:>4} us",
            p50.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3,
            cpu.as_micros()
        )
    }
}

/// Runs `once` `COMMITS` times, spread over clients that wait for each answer.
async fn rate<F>(
    what: String,
    clients: u64,
    once: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Outcome<Rate>
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let cpu_before = cpu_time()?;
    let begun = Instant::now();
    let tasks = (0..clients).map(|client| {
        let once = once.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            for number in (client..COMMITS).step_by(clients as usize) {
                let begun = Instant::now();
                once(number).await?;
                times.push(begun.elapsed());
            }
            Ok::<_, StoreError>(times)
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await??);
    }
    let per_second = COMMITS as f64 / begun.elapsed().as_secs_f64();
    let cpu = (cpu_time()? - cpu_before) / u32::try_from(COMMITS)?;
    times.sort_unstable();
    Ok(Rate {
        what,
        per_second,
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        cpu,
    })
}

async fn raw_commits() -> Outcome<f64> {
    let dir = tempfile::tempdir()?;
    let mut connection = SqliteConnectOptions::new()
        .filename(dir.path().join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    connection
        .execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        .await?;
    let body = "x".repeat(1_000);
    let begun = Instant::now();
    for _ in 0..COMMITS {
        sqlx::query("INSERT INTO t (body) VALUES (?)")
            .bind(&body)
            .execute(&mut connection)
            .await?;
    }
    Ok(COMMITS as f64 / begun.elapsed().as_secs_f64())
}

fn session() -> Session {
    let project = Project {
        repository: "owner/repository"
            .parse()
            .unwrap_or_else(|_| unreachable!("it is one")),
        branch: None,
        requirements: "Write the thing that was asked for. ".repeat(20).into(),
        context: None,
    };
    let (id, conversation) = (SessionId(Uuid::now_v7()), ClaudeSessionId(Uuid::now_v7()));
    Session {
        dependencies: vec![SessionId(Uuid::now_v7())],
        ..Session::new(
            id,
            Kind::Implementation,
            project,
            conversation,
            Timestamp::now(),
        )
    }
}

async fn create(store: &Store) -> Result<Arc<Session>, StoreError> {
    let new = NewSessions {
        sessions: vec![session()],
        ..NewSessions::default()
    };
    match store.create(new).await? {
        Written::Now(mut made) => Ok(made.remove(0)),
        Written::Before { .. } => unreachable!("no key was given"),
    }
}

async fn creations(store: &Store, clients: u64) -> Outcome<Rate> {
    let store = store.clone();
    rate(format!("create, {clients} clients:"), clients, move |_| {
        let store = store.clone();
        async move { create(&store).await.map(drop) }
    })
    .await
}

/// Each session is queued, which is one transition and one event.
async fn transitions(store: &Store, clients: u64) -> Outcome<Rate> {
    let active = store.active().into_iter();
    let created: Vec<_> = active
        .filter(|session| session.state == SessionState::Created)
        .take(COMMITS as usize)
        .collect();
    let created = Arc::new(created);
    let store = store.clone();
    rate(
        format!("transition, {clients} clients:"),
        clients,
        move |number| {
            let (store, created) = (store.clone(), Arc::clone(&created));
            async move {
                let event = SessionEvent::StartRequested;
                let read = &created[number as usize];
                let change = Transition {
                    event,
                    next: Session {
                        state: SessionState::Queued,
                        ..Session::clone(read)
                    },
                    at: Timestamp::now(),
                    told: None,
                };
                store.record(vec![change], None).await.map(drop)
            }
        },
    )
    .await
}

async fn reads(store: &Store) -> Outcome {
    const READS: u32 = 1_000_000;
    let ids: Vec<_> = store.active().iter().map(|session| session.id).collect();
    let begun = Instant::now();
    for at in 0..READS as usize {
        std::hint::black_box(store.cached_session(ids[at % ids.len()]));
    }
    println!(
        "cached session:                 {:>9} ns",
        (begun.elapsed() / READS).as_nanos()
    );
    let query = SessionQuery {
        limit: 1_000,
        ..SessionQuery::default()
    };
    let begun = Instant::now();
    for _ in 0..1_000 {
        std::hint::black_box(store.page(&query).await?);
    }
    println!(
        "page of 1,000:                  {:>9} us",
        (begun.elapsed() / 1_000).as_micros()
    );
    Ok(())
}

async fn memory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), StoreSettings::default()).await?;
    for _ in 0..1_000 {
        create(&store).await?;
    }
    store.close().await;
    let begun = Instant::now();
    let store = Store::open(dir.path(), StoreSettings::default()).await?;
    println!(
        "open with 1,000 live sessions:  {:>9} ms",
        begun.elapsed().as_millis()
    );
    println!("RSS after all this:             {:>9.1} MiB", rss_mib()?);
    store.close().await;
    Ok(())
}

async fn output() -> Outcome {
    let raw = raw_writes()?;
    println!("file, 1 MiB pieces, synced:     {raw:>9.0} MB/s");
    for length in [100, 1_000] {
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path(), StoreSettings::default()).await?;
        let id = create(&store).await?.id;
        let lines = vec![line(length); MIB / length];
        let before = rss_mib()?;
        let cpu_before = cpu_time()?;
        let begun = Instant::now();
        for position in 1..=(OUTPUT_BYTES / MIB) as u64 {
            store
                .append_output(id, Attempt::FIRST, position, &lines)
                .await?;
        }
        let rate = OUTPUT_BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64();
        let grown = rss_mib()? - before;
        let cpu = (cpu_time()? - cpu_before) / u32::try_from(OUTPUT_BYTES / MIB)?;
        println!(
            "output, {length:>5}-byte lines:       {rate:>9.0} MB/s  {:.2}x  RSS {grown:+.1} MiB  \
             cpu {} us/MiB",
            rate / raw,
            cpu.as_micros()
        );
        let read = read_all(&store, id).await?;
        println!("reading it, {length:>5}-byte lines:   {read:>9.0} MB/s");
        let live = live_lines(&store, id, length).await?;
        println!("output, one line an append:     {live:>9.0} /s");
        store.close().await;
    }
    Ok(())
}

fn raw_writes() -> Outcome<f64> {
    let dir = tempfile::tempdir()?;
    let mut file = File::create(Path::join(dir.path(), "raw"))?;
    let piece = vec![b'x'; MIB];
    let cpu_before = cpu_time()?;
    let begun = Instant::now();
    for _ in 0..OUTPUT_BYTES / MIB {
        file.write_all(&piece)?;
        file.sync_data()?;
    }
    let cpu = (cpu_time()? - cpu_before) / u32::try_from(OUTPUT_BYTES / MIB)?;
    println!(
        "  of which cpu                  {:>9} us/MiB",
        cpu.as_micros()
    );
    Ok(OUTPUT_BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn line(length: usize) -> OutputLine {
    OutputLine {
        at: Timestamp::now(),
        stream: Stream::Stdout,
        bytes: Bytes::from(vec![b'x'; length]),
        cut_bytes: 0,
        line_end: true,
    }
}

async fn read_all(store: &Store, id: SessionId) -> Outcome<f64> {
    use baton::store::EventBody;
    let begun = Instant::now();
    let (mut after, mut bytes) = (0, 0);
    loop {
        let events = store.events(id, after, 10_000, MIB).await?;
        let Some(last) = events.last() else {
            return Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        };
        after = match last.body {
            EventBody::Truncated { last_seq, .. } => last_seq,
            _ => last.seq,
        };
        for event in &events {
            if let EventBody::Output(line) = &event.body {
                bytes += line.bytes.len();
            }
        }
    }
}

async fn live_lines(store: &Store, id: SessionId, length: usize) -> Outcome<f64> {
    const LINES: u64 = 1_000;
    let lines = [line(length)];
    let first = store.acked(id, Attempt::FIRST).await? + 1;
    let begun = Instant::now();
    for position in first..first + LINES {
        store
            .append_output(id, Attempt::FIRST, position, &lines)
            .await?;
    }
    Ok(LINES as f64 / begun.elapsed().as_secs_f64())
}

fn rss_mib() -> Outcome<f64> {
    const PAGE_BYTES: f64 = 4096.0;
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * PAGE_BYTES / (1 << 20) as f64)
}

fn cpu_time() -> Outcome<Duration> {
    const TICK_MS: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the name, which may hold anything: user time is the 12th field, system time the 13th.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: Vec<u64> = fields
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(TICK_MS * ticks.iter().sum::<u64>()))
}
