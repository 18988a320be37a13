//! The connection to the server: frames out of the spool, orders in.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use baton_agent::protocol::{AGENT_PATH, Frame, Hello, Job, UPGRADE};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::dial::{Backoff, dial};
use crate::log;
use crate::outbox::Outbox;
use crate::talk::Sayings;

/// The longest head of an HTTP response, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long the server may take to answer the upgrade.
const UPGRADE_WAIT: Duration = Duration::from_secs(30);
/// How much is read from the spool at once.
const SEND_BYTES: usize = 128 * 1024;
/// How much is read from the server at once; a job comes in several reads.
const RECEIVE_BYTES: usize = 16 * 1024;

/// What the server wants, and whether it is there.
#[derive(Clone)]
pub struct Orders {
    /// The job, once it came.
    pub job: watch::Receiver<Option<Rc<Job>>>,
    /// Whether Claude is to be stopped.
    pub cancel: watch::Receiver<bool>,
    /// What Claude is to be told.
    pub sayings: Rc<Sayings>,
    /// Whether the server is connected.
    pub connected: watch::Receiver<bool>,
    /// Whether Claude waits for other sessions.
    pub waits: watch::Receiver<bool>,
}

impl Orders {
    /// Waits for the job.
    pub async fn job(&self) -> Rc<Job> {
        let mut job = self.job.clone();
        let known = job.wait_for(Option::is_some).await;
        match known.ok().and_then(|job| job.clone()) {
            Some(job) => job,
            // The link is gone, which it never is.
            None => pending().await,
        }
    }

    /// Waits until somebody wants Claude stopped.
    pub async fn cancelled(&self) {
        until(&self.cancel, true).await;
    }

    /// Waits until the server is there.
    pub async fn server_is_there(&self) {
        until(&self.connected, true).await;
    }

    /// Waits until the server is not there.
    pub async fn server_is_away(&self) {
        until(&self.connected, false).await;
    }

    /// Waits until Claude waits for other sessions.
    pub async fn claude_waits(&self) {
        until(&self.waits, true).await;
    }

    /// Waits until Claude does not wait for other sessions.
    pub async fn claude_works(&self) {
        until(&self.waits, false).await;
    }

    /// Waits for as much time with the server there as `limit`. Without it, time does not count:
    /// whatever is waited for may itself be waiting for the server.
    pub async fn connected_for(&self, limit: Duration) {
        let mut left = limit;
        loop {
            self.server_is_there().await;
            let since = Instant::now();
            tokio::select! {
                () = time::sleep(left) => return,
                () = self.server_is_away() => left = left.saturating_sub(since.elapsed()),
            }
        }
    }
}

async fn until(flag: &watch::Receiver<bool>, wanted: bool) {
    let is_reached = flag.clone().wait_for(|now| *now == wanted).await.is_ok();
    if !is_reached {
        // The link is gone, which it never is.
        pending().await
    }
}

/// The sending ends of [`Orders`].
pub struct OrderSenders {
    job: watch::Sender<Option<Rc<Job>>>,
    /// Also raised by a signal.
    pub cancel: watch::Sender<bool>,
    sayings: Rc<Sayings>,
    connected: watch::Sender<bool>,
    waits: watch::Sender<bool>,
}

/// Connected orders and senders.
pub fn orders() -> (OrderSenders, Orders) {
    let (job, job_seen) = watch::channel(None);
    let (cancel, cancel_seen) = watch::channel(false);
    let (connected, connected_seen) = watch::channel(false);
    let (waits, waits_seen) = watch::channel(false);
    let sayings = Rc::<Sayings>::default();
    let senders = OrderSenders {
        job,
        cancel,
        sayings: Rc::clone(&sayings),
        connected,
        waits,
    };
    let orders = Orders {
        job: job_seen,
        cancel: cancel_seen,
        sayings,
        connected: connected_seen,
        waits: waits_seen,
    };
    (senders, orders)
}

/// Keeps a connection to the server at `socket`, for ever.
pub async fn keep(socket: PathBuf, outbox: Rc<Outbox>, senders: Rc<OrderSenders>) {
    let mut backoff = Backoff::new();
    let mut told = String::new();
    loop {
        let stream = dial(&socket).await;
        let trouble = match time::timeout(UPGRADE_WAIT, upgrade(stream)).await {
            Ok(Ok((stream, rest))) => {
                backoff = Backoff::new();
                let lost = converse(stream, rest, &outbox, &senders).await;
                senders.connected.send_replace(false);
                format!("connection lost: {lost}")
            }
            Ok(Err(error)) => format!("upgrade refused: {error}"),
            Err(_) => "upgrade not answered".to_owned(),
        };
        // Not again with every try.
        if told != trouble {
            log(format_args!("{trouble}"));
            told = trouble;
        }
        backoff.wait().await;
    }
}

/// Asks for the frame protocol. What came after the response's head is given along.
async fn upgrade(mut stream: UnixStream) -> io::Result<(UnixStream, BytesMut)> {
    let request = format!(
        "GET {AGENT_PATH} HTTP/1.1\r\nHost: baton\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = BytesMut::with_capacity(RECEIVE_BYTES);
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(&answer, b"\r\n\r\n") {
            break at + 4;
        }
        if answer.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of the answer is too long"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = answer.split_to(head_end);
    let status = head
        .get(b"HTTP/1.1 ".len()..)
        .and_then(|rest| rest.get(..3));
    if status != Some(b"101") {
        let head = String::from_utf8_lossy(&head);
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(line.to_owned()));
    }
    Ok((stream, answer))
}

/// Speaks until the connection is lost, and says why.
async fn converse(
    stream: UnixStream,
    rest: BytesMut,
    outbox: &Outbox,
    senders: &OrderSenders,
) -> io::Error {
    let (reader, mut writer) = stream.into_split();
    let hello = Frame::Hello(Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        has_job: senders.job.borrow().is_some(),
        last_seq: outbox.last_seq(),
        listens: true,
        excuses: true,
    });
    let mut greeting = BytesMut::new();
    hello.encode(&mut greeting);
    if let Err(error) = writer.write_all(&greeting).await {
        return error;
    }
    senders.connected.send_replace(true);
    let ended = tokio::select! {
        sent = send(writer, outbox) => sent,
        received = receive(reader, rest, outbox, senders) => received,
    };
    ended
        .err()
        .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn send(mut writer: OwnedWriteHalf, outbox: &Outbox) -> io::Result<()> {
    let mut cursor = outbox.cursor()?;
    let mut buffer = vec![0; SEND_BYTES];
    loop {
        let count = outbox.read(&mut cursor, &mut buffer).await?;
        writer.write_all(&buffer[..count]).await?;
    }
}

async fn receive(
    mut reader: OwnedReadHalf,
    mut buffer: BytesMut,
    outbox: &Outbox,
    senders: &OrderSenders,
) -> io::Result<()> {
    loop {
        while let Some(frame) = Frame::decode(&mut buffer).map_err(io::Error::other)? {
            match frame {
                Frame::Ack(seq) => outbox.ack(seq),
                Frame::Cancel => {
                    senders.cancel.send_replace(true);
                }
                Frame::Say(say) => senders.sayings.hear(say),
                // What an earlier connection told holds until it is told anew.
                Frame::Waits(waits) => {
                    senders.waits.send_replace(waits);
                }
                Frame::Job(job) => {
                    senders.job.send_if_modified(|known| {
                        // The first one counts; what comes again with each connection is the same.
                        let is_new = known.is_none();
                        known.get_or_insert_with(|| Rc::from(job));
                        is_new
                    });
                }
                Frame::Hello(_) | Frame::Numbered(_) => {
                    return Err(io::Error::other("the server sent a frame of the agent's"));
                }
            }
        }
        if reader.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.reserve(RECEIVE_BYTES);
    }
}
