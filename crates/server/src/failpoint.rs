//! Points at which a test lets the server die, as `kill -9` would.
//!
//! `BATON_FAILPOINT=name` makes the process abort when it reaches that point for the first time.
//! Release builds have no such points.

use std::sync::OnceLock;

static ARMED: OnceLock<String> = OnceLock::new();

/// Arms one point for the life of the process; later calls change nothing.
pub fn arm(name: String) {
    let _ = ARMED.set(name);
}

/// Dies here if this point is armed.
#[inline]
pub fn reach(name: &str) {
    if cfg!(debug_assertions) && ARMED.get().is_some_and(|armed| armed == name) {
        die();
    }
}

/// Ends the process as `kill -9` would: no destructor runs, nothing is flushed.
#[cold]
fn die() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}
