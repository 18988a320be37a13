//! Opens connections to the server's socket for as long as it takes.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time;

/// The wait after the first refusal.
const WAIT_FIRST: Duration = Duration::from_millis(5);
/// The longest wait: a restarted server is found after this much at the latest.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The waits between tries, doubling.
pub struct Backoff(Duration);

impl Backoff {
    /// Starts short.
    pub fn new() -> Self {
        Self(WAIT_FIRST)
    }

    /// Waits, the next time for longer.
    pub async fn wait(&mut self) {
        time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(WAIT_MAX);
    }
}

/// A connection to `socket`; tries until there is one.
pub async fn dial(socket: &Path) -> UnixStream {
    let mut backoff = Backoff::new();
    loop {
        // Absent, refused, backlog full: all of them pass.
        if let Ok(stream) = UnixStream::connect(socket).await {
            return stream;
        }
        backoff.wait().await;
    }
}
