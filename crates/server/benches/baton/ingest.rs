//! Output: 200 MB of one session, byte for byte, beside the disk and a bare socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use baton_agent::protocol::{
    AGENT_PATH, Body, Frame, Hello, Numbered, OUTPUT_BYTES_MAX, Stream, UPGRADE,
};
use bytes::{Bytes, BytesMut};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::docker::FakeImage;
use crate::home::{Home, run as run_program, sandbox_dir};
use crate::server::{Order, Server};
use crate::table::{Aim, Row, Unit, print, print_note};
use crate::{Bench, chain, disk, http, process, steps};

const BYTES: usize = 200_000_000;
const LIMIT: Duration = Duration::from_secs(120);
const READ_BYTES: usize = 64 * 1024;
/// What an agent may be ahead of the acknowledged, in frames: more than the server ever holds.
const AHEAD_MAX: u64 = 512;

/// At the gateway, and through a whole sandbox.
pub fn run(bench: &Bench) -> Result<()> {
    let image = FakeImage::build(bench)?;
    let home = Home::new(bench)?;
    let settings = [
        ("CLAUDE_CONTAINER_IMAGE", image.name.as_str()),
        ("BATON_OUTPUT_MIB", "1024"),
    ];
    let server = Server::start(bench, &home, &settings)?;
    print_note(&format!(
        "a bare Unix socket carries {:.0} MB/s",
        disk::unix_socket(BYTES)?
    ));
    for (number, line_bytes) in [1_000, 100].into_iter().enumerate() {
        let disk = disk::blocks(bench.scratch.path(), BYTES)?;
        gateway(&server, &home, line_bytes, number + 1, disk)?;
    }
    for line_bytes in [1_000, 100] {
        let disk = disk::blocks(bench.scratch.path(), BYTES)?;
        whole(&server, line_bytes, disk)?;
    }
    Ok(())
}

/// The bench speaks as a sandbox's agent, whose own container stands still meanwhile.
fn gateway(server: &Server, home: &Home, line_bytes: usize, nth: usize, disk: f64) -> Result<()> {
    let id = server.create(&Order {
        kind: "analysis",
        requirements: "wait",
        dependencies: &[],
        auto_start: true,
    })?;
    server.wait_for_line("\"claude started\"", nth, LIMIT)?;
    let container = chain::container(server, &id)?;
    docker(&["pause", &container])?;
    let chunks = chunks(line_bytes);
    let before = process::rss_mib(server.pid())?;
    process::forget_peak(server.pid())?;
    let seconds = send(&home.data_dir(), &id, &chunks)?;
    let growth = process::peak_mib(server.pid())? - before;
    print_rate(
        &format!("output at the gateway, {line_bytes}-byte lines"),
        seconds,
        disk,
    );
    print(&Row {
        figure: "  growth of the server's memory meanwhile",
        unit: Unit::Mib,
        measured: growth,
        baseline: None,
        aim: Some(Aim::AtMost(16.0)),
    });
    let begun = Instant::now();
    read_back(server, &id, &chunks)?;
    print_note(&format!(
        "read back by the events' endpoint, byte for byte, at {:.0} MB/s",
        BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64()
    ));
    docker(&["rm", "--force", "--volumes", &container])
}

fn print_rate(figure: &str, seconds: f64, disk: f64) {
    print(&Row {
        figure,
        unit: Unit::MegabytesPerSecond,
        measured: BYTES as f64 / 1e6 / seconds,
        baseline: Some((disk, "write and fdatasync of 1 MiB blocks")),
        aim: Some(Aim::AtLeast(150.0)),
    });
}

fn docker(args: &[&str]) -> Result<()> {
    run_program(Command::new("docker").args(args))
}

/// Lines that all differ, in pieces as an agent frames them.
fn chunks(line_bytes: usize) -> Vec<Bytes> {
    let lines_each = OUTPUT_BYTES_MAX / line_bytes;
    let mut number = 0_usize;
    let mut chunks = Vec::new();
    let mut total = 0;
    while total < BYTES {
        let mut chunk = Vec::with_capacity(lines_each * line_bytes);
        for _ in 0..lines_each {
            let digits = number.to_string();
            chunk.extend_from_slice(digits.as_bytes());
            let fill = b'a' + u8::try_from(number % 26).unwrap_or(0);
            chunk.resize(chunk.len() + line_bytes - digits.len() - 1, fill);
            chunk.push(b'\n');
            number += 1;
        }
        total += chunk.len();
        chunks.push(chunk.into());
    }
    chunks
}

/// Sends all as one agent would; the seconds until the last was acknowledged.
fn send(data_dir: &Path, id: &str, chunks: &[Bytes]) -> Result<f64> {
    let mut stream = connect(data_dir, id)?;
    let mut answers = stream.try_clone()?;
    answers.set_read_timeout(Some(LIMIT))?;
    let mut buffer = upgrade(&mut stream, &mut answers)?;
    let mut wire = BytesMut::new();
    let hello = Hello {
        agent_version: "bench".into(),
        has_job: true,
        last_seq: 0,
        listens: false,
        excuses: false,
    };
    Frame::Hello(hello).encode(&mut wire);
    stream.write_all(&wire)?;
    let before = next_ack(&mut answers, &mut buffer)?;
    let begin = Instant::now();
    let (acked, acks) = std::sync::mpsc::channel();
    let last = before + chunks.len() as u64;
    let reading = std::thread::spawn(move || -> Result<()> {
        loop {
            let seq = next_ack(&mut answers, &mut buffer)?;
            if acked.send(seq).is_err() || seq == last {
                return Ok(());
            }
        }
    });
    let mut known = before;
    for (seq, chunk) in (before + 1..).zip(chunks) {
        while seq - known > AHEAD_MAX {
            known = acks.recv().context("the server hung up")?;
        }
        let body = Body::Output {
            stream: Stream::Stdout,
            more: false,
            bytes: chunk.clone(),
        };
        wire.clear();
        let at_ms = jiff::Timestamp::now().as_millisecond();
        Frame::Numbered(Numbered { seq, at_ms, body }).encode(&mut wire);
        stream.write_all(&wire)?;
    }
    while known != last {
        known = acks.recv().context("the server hung up")?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    reading.join().ok().context("the reader panicked")??;
    Ok(seconds)
}

fn connect(data_dir: &Path, id: &str) -> Result<UnixStream> {
    let dir = sandbox_dir(data_dir, id);
    let dir = std::fs::File::open(&dir).with_context(|| format!("no {}", dir.display()))?;
    // Its own path may be longer than a socket's may be.
    let short = format!("/proc/self/fd/{}/session.sock", dir.as_raw_fd());
    UnixStream::connect(short).context("no connection to the session's socket")
}

fn upgrade(stream: &mut UnixStream, answers: &mut UnixStream) -> Result<BytesMut> {
    let request = format!(
        "GET {AGENT_PATH} HTTP/1.1\r\nHost: baton\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(end) = memchr::memmem::find(&buffer, b"\r\n\r\n") {
            let head = buffer.split_to(end + 4);
            ensure!(head.starts_with(b"HTTP/1.1 101"), "the upgrade was refused");
            return Ok(buffer);
        }
        receive(answers, &mut buffer)?;
    }
}

fn next_ack(answers: &mut UnixStream, buffer: &mut BytesMut) -> Result<u64> {
    loop {
        match Frame::decode(buffer)? {
            Some(Frame::Ack(seq)) => return Ok(seq),
            Some(other) => bail!("the server said {other:?}"),
            None => receive(answers, buffer)?,
        }
    }
}

fn receive(answers: &mut UnixStream, buffer: &mut BytesMut) -> Result<()> {
    let mut bytes = [0; READ_BYTES];
    let count = answers.read(&mut bytes)?;
    ensure!(count > 0, "the server hung up");
    buffer.extend_from_slice(&bytes[..count]);
    Ok(())
}

/// Compares what the server gives back with what was sent.
fn read_back(server: &Server, id: &str, chunks: &[Bytes]) -> Result<()> {
    let mut sent = Sha256::new();
    chunks.iter().for_each(|chunk| sent.update(chunk));
    let mut kept = Sha256::new();
    let path = format!("/api/v1/sessions/{id}/events");
    let stream = http::open(server.address, "GET", &path, None)?;
    let mut seq = 0;
    for line in BufReader::with_capacity(1 << 20, stream).split(b'\n') {
        let line = line?;
        if !line.starts_with(b"{") {
            continue; // the head of the answer
        }
        let event: Value = serde_json::from_slice(&line)?;
        seq += 1;
        ensure!(event["seq"] == seq, "event {seq} is missing");
        if event["type"] == "stdout" {
            let line = event["line"].as_str().context("a line without text")?;
            kept.update(line.as_bytes());
            kept.update(b"\n");
        }
    }
    ensure!(
        kept.finalize() == sent.finalize(),
        "what came back differs from what was sent"
    );
    Ok(())
}

/// A fake Claude prints all of it in a real sandbox.
fn whole(server: &Server, line_bytes: usize, disk: f64) -> Result<()> {
    let before = process::rss_mib(server.pid())?;
    process::forget_peak(server.pid())?;
    let id = server.create(&Order {
        kind: "analysis",
        requirements: &format!("print {line_bytes}"),
        dependencies: &[],
        auto_start: true,
    })?;
    let words = format!("\"session\":\"{id}\"");
    let time_of = |event: &str| -> Result<f64> {
        let lines = server.lines(event);
        let line = lines.iter().find(|line| line.contains(&words));
        let line: Value = serde_json::from_str(line.context("no such line in the log")?)?;
        Ok(steps::ms(&line["timestamp"]))
    };
    let deadline = Instant::now() + LIMIT;
    while server.session(&id)?["status"] != "completed" {
        ensure!(Instant::now() < deadline, "{}", server.session(&id)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    let growth = process::peak_mib(server.pid())? - before;
    let seconds = (time_of("\"ended\"")? - time_of("\"claude started\"")?) / 1e3;
    print_rate(
        &format!("output of a real sandbox, {line_bytes}-byte lines"),
        seconds,
        disk,
    );
    print(&Row {
        figure: "  growth of the server's memory meanwhile",
        unit: Unit::Mib,
        measured: growth,
        baseline: None,
        aim: Some(Aim::AtMost(16.0)),
    });
    Ok(())
}
