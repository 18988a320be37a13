//! What the disk and the kernel allow, measured where the server keeps its data.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};

use crate::load::Measured;

const DURATION: Duration = Duration::from_secs(2);
const ROW_BYTES: usize = 1_000;
const BLOCK_BYTES: usize = 1024 * 1024;
const SOCKET_BYTES: usize = 64 * 1024;

/// Commits of one row each, durable on return, by one client.
pub async fn sqlite_commits(dir: &Path) -> Result<Measured> {
    let dir = tempfile::tempdir_in(dir)?;
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join("commits.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::query("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        .execute(&mut connection)
        .await?;
    let row = vec![b'x'; ROW_BYTES];
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < DURATION {
        let before = Instant::now();
        sqlx::query("INSERT INTO rows (body) VALUES ($1)")
            .bind(row.as_slice())
            .execute(&mut connection)
            .await?;
        times.push(before.elapsed());
    }
    let elapsed = start.elapsed();
    connection.close().await?;
    Ok(measured(times, elapsed))
}

/// Appends of one row each, durable on return.
pub fn appends(dir: &Path) -> Result<Measured> {
    let mut file = tempfile::tempfile_in(dir)?;
    let row = vec![b'x'; ROW_BYTES];
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < DURATION {
        let before = Instant::now();
        file.write_all(&row)?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    Ok(measured(times, start.elapsed()))
}

fn measured(times: Vec<Duration>, elapsed: Duration) -> Measured {
    let mut times_ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    times_ms.sort_by(f64::total_cmp);
    let per_second = times_ms.len() as f64 / elapsed.as_secs_f64();
    Measured {
        per_second,
        times_ms,
        probe_ms: Vec::new(),
    }
}

/// Millions of bytes in a second, written in blocks of 1 MiB, each made durable.
pub fn blocks(dir: &Path, bytes: usize) -> Result<f64> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    let block = vec![b'x'; BLOCK_BYTES];
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let count = left.min(BLOCK_BYTES);
        file.write_all(&block[..count])?;
        file.sync_data()?;
        left -= count;
    }
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// Millions of bytes in a second through a Unix socket.
pub fn unix_socket(bytes: usize) -> Result<f64> {
    let (mut writer, mut reader) = UnixStream::pair()?;
    let start = Instant::now();
    let reading = std::thread::spawn(move || -> std::io::Result<usize> {
        let mut buffer = vec![0; SOCKET_BYTES];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(total),
                count => total += count,
            }
        }
    });
    let block = vec![b'x'; SOCKET_BYTES];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(SOCKET_BYTES);
        writer.write_all(&block[..count])?;
        left -= count;
    }
    drop(writer);
    let total = reading.join().ok().context("the reader panicked")??;
    Ok(total as f64 / 1e6 / start.elapsed().as_secs_f64())
}
