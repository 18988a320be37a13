//! The spool as the agent's parts share it: Claude's output goes in, the link takes it out.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baton_agent::protocol::{Body, Note, Stream};
use tokio::sync::Notify;
use tokio::time;

use crate::log;
use crate::spool::{Cursor, Spool, output};

/// How often a write that failed for want of space is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// See the module.
pub struct Outbox {
    spool: RefCell<Spool>,
    appended: Notify,
    acked: Notify,
}

impl Outbox {
    /// Opens the spool in `dir`.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            spool: RefCell::new(Spool::open(dir)?),
            appended: Notify::new(),
            acked: Notify::new(),
        })
    }

    /// Whether output would have to wait: more than the spool may hold waits for the server.
    pub fn is_full(&self) -> bool {
        self.spool.borrow().is_full()
    }

    /// Waits until [`Outbox::is_full`] is false.
    pub async fn has_room(&self) {
        self.wait_until(|spool| !spool.is_full()).await;
    }

    /// Tries to keep a piece of output.
    ///
    /// # Errors
    /// When the disk does not take it; nothing is changed then.
    pub fn try_output(&self, stream: Stream, more: bool, bytes: &[u8]) -> io::Result<()> {
        self.append(output(stream, more, bytes))
    }

    /// Keeps a note, for as long as it takes: there is nobody else to tell.
    pub async fn note(&self, note: Note) {
        let body = Body::Note(note);
        retry(|| self.append(body.clone())).await;
    }

    /// See [`Spool::ack`].
    pub fn ack(&self, seq: u64) {
        self.spool.borrow_mut().ack(seq);
        self.acked.notify_waiters();
    }

    /// Waits until the server has stored everything.
    pub async fn delivered(&self) {
        self.wait_until(Spool::is_delivered).await;
    }

    /// See [`Spool::last_seq`].
    pub fn last_seq(&self) -> u64 {
        self.spool.borrow().last_seq()
    }

    /// See [`Spool::has_ended`].
    pub fn has_ended(&self) -> bool {
        self.spool.borrow().has_ended()
    }

    /// See [`Spool::cursor`].
    ///
    /// # Errors
    /// As there.
    pub fn cursor(&self) -> io::Result<Cursor> {
        self.spool.borrow().cursor()
    }

    /// As [`Spool::read`], but waits until there is something.
    ///
    /// # Errors
    /// As there.
    pub async fn read(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.spool.borrow().read(cursor, buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.appended.notified().await;
        }
    }

    fn append(&self, body: Body) -> io::Result<()> {
        self.spool.borrow_mut().append(now_ms(), body)?;
        self.appended.notify_one();
        Ok(())
    }

    async fn wait_until(&self, holds: impl Fn(&Spool) -> bool) {
        loop {
            // Armed before the look, so that a change between the two is not missed.
            let changed = self.acked.notified();
            if holds(&self.spool.borrow()) {
                return;
            }
            changed.await;
        }
    }
}

/// Tries `write` until the disk takes it.
pub async fn retry(mut write: impl FnMut() -> io::Result<()>) {
    let mut told = false;
    while let Err(error) = write() {
        if !told {
            log(format_args!(
                "the spool cannot be written, waiting: {error}"
            ));
            told = true;
        }
        time::sleep(RETRY).await;
    }
}

/// Milliseconds since the epoch.
fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
