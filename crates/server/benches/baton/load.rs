//! Load: a few connections that ask again as soon as they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join};

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

/// Makes the load; on a thread of its own, so that it costs the server no more than one core.
pub fn run(load: Load) -> Result<Measured> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(make(load))
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
}

async fn make(load: Load) -> Result<Measured> {
    let start = Instant::now() + WARM;
    let end = start + load.duration;
    let asking = load
        .requests
        .iter()
        .map(|request| ask(load.address, request, None, start, end));
    let probing = async {
        match &load.probe {
            Some((request, pause)) => ask(load.address, request, Some(*pause), start, end).await,
            None => Ok(Vec::new()),
        }
    };
    let asking = async { Ok(join_all(asking).await) };
    let (asked, probed) = try_join(asking, probing).await?;
    let mut times: Vec<Duration> = Vec::new();
    for one in asked {
        times.extend(one?);
    }
    ensure!(!times.is_empty(), "nothing was answered in time");
    Ok(Measured {
        per_second: times.len() as f64 / load.duration.as_secs_f64(),
        times_ms: sorted_ms(times),
        probe_ms: sorted_ms(probed),
    })
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
    pause: Option<Duration>,
    start: Instant,
    end: Instant,
) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(address).await?;
    let mut times = Vec::with_capacity(1 << 16);
    let mut asked = Instant::now();
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
        asked = answered;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
            asked = Instant::now();
        }
    }
    Ok(times)
}

/// As many of the same request as there are connections.
pub fn same(request: Vec<u8>, connections: usize) -> Vec<Vec<u8>> {
    let request = Arc::new(request);
    (0..connections).map(|_| request.to_vec()).collect()
}
