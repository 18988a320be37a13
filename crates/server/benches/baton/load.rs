//! Load: a few connections that ask again as soon as they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;

use crate::http::Connection;
use crate::table::quantile;

/// How long answers do not count yet.
const WARM: Duration = Duration::from_secs(1);

/// What to ask, and for how long.
pub struct Load {
    /// Who is asked.
    pub address: SocketAddr,
    /// One connection for each.
    pub requests: Vec<Vec<u8>>,
    /// How long answers count.
    pub duration: Duration,
    /// How often each connection asks at most; as soon as it is answered when absent.
    pub interval: Option<Duration>,
    /// A request made on one more connection at intervals meanwhile.
    pub probe: Option<(Vec<u8>, Duration)>,
}

/// What came of it.
pub struct Measured {
    /// Answers in a second.
    pub per_second: f64,
    /// Each answer's time in milliseconds, sorted.
    pub times_ms: Vec<f64>,
    /// The same of the probe.
    pub probe_ms: Vec<f64>,
}

impl Measured {
    pub fn p50_ms(&self) -> f64 {
        quantile(&self.times_ms, 0.50)
    }

    pub fn p99_ms(&self) -> f64 {
        quantile(&self.times_ms, 0.99)
    }
}

/// Makes the load; on a thread of its own, so that it costs the server no more than one core. The
/// probe has another: its time is the server's, not that of a client busy with sixteen others.
pub fn run(load: Load) -> Result<Measured> {
    let address = load.address;
    let start = Instant::now() + WARM;
    let end = start + load.duration;
    let probe = load.probe;
    let probing = on_a_thread(async move || match probe {
        Some((request, pause)) => {
            let pace = Pace::After(pause);
            ask(address, &request, Some(pace), start, end).await
        }
        None => Ok(Vec::new()),
    });
    let (requests, interval) = (load.requests, load.interval);
    let asking = on_a_thread(async move || {
        let pace = interval.map(Pace::Every);
        let begun = Instant::now();
        // Held at a rate they ask one after the other, as clients do that know nothing of each
        // other, not all in the same moment.
        let apart = interval.unwrap_or_default() / requests.len().max(1) as u32;
        let asking = requests.iter().zip(0..).map(async |(request, number)| {
            tokio::time::sleep_until((begun + apart * number).into()).await;
            ask(address, request, pace, start, end).await
        });
        let asked: Result<Vec<Vec<Duration>>> = join_all(asking).await.into_iter().collect();
        Ok(asked?.concat())
    });
    let (times, probed) = (joined(asking)?, joined(probing)?);
    ensure!(!times.is_empty(), "nothing was answered in time");
    Ok(Measured {
        per_second: times.len() as f64 / load.duration.as_secs_f64(),
        times_ms: sorted_ms(times),
        probe_ms: sorted_ms(probed),
    })
}

type Times = Result<Vec<Duration>>;

fn on_a_thread(work: impl AsyncFnOnce() -> Times + Send + 'static) -> JoinHandle<Times> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(work())
    })
}

fn joined(thread: JoinHandle<Times>) -> Times {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
}

/// How fast a connection asks.
#[derive(Clone, Copy)]
enum Pace {
    /// This long after each answer.
    After(Duration),
    /// This often; one that is late has the next follow sooner, so that the rate is kept.
    Every(Duration),
}

fn sorted_ms(times: Vec<Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times
        .into_iter()
        .map(|time| time.as_secs_f64() * 1e3)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Asks until `end`; the times of those answers that came after `start`.
async fn ask(
    address: SocketAddr,
    request: &[u8],
    pace: Option<Pace>,
    start: Instant,
    end: Instant,
) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(address).await?;
    let mut times = Vec::with_capacity(1 << 16);
    let mut asked = Instant::now();
    let mut due = asked;
    while asked < end {
        let (status, _) = connection
            .exchange(request)
            .await
            .context("a request failed")?;
        let answered = Instant::now();
        ensure!(status == 200, "a request was answered {status}");
        if answered >= start && answered < end {
            times.push(answered - asked);
        }
        due = match pace {
            None => answered,
            Some(Pace::After(pause)) => answered + pause,
            Some(Pace::Every(interval)) => due + interval,
        };
        if due > answered {
            tokio::time::sleep_until(due.into()).await;
            asked = Instant::now();
        } else {
            asked = answered;
        }
    }
    Ok(times)
}

/// As many of the same request as there are connections.
pub fn same(request: Vec<u8>, connections: usize) -> Vec<Vec<u8>> {
    let request = Arc::new(request);
    (0..connections).map(|_| request.to_vec()).collect()
}
