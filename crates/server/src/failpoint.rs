//! Points at which a test lets the server die, as `kill -9` would.
//!
//! `BATON_FAILPOINT=name` makes the process abort when it reaches that point for the first time.
//! Simulations, which run many servers in one process, [`watch`] the points of a thread instead.
//! Release builds have no such points.

use std::cell::RefCell;
use std::sync::OnceLock;

static ARMED: OnceLock<String> = OnceLock::new();

thread_local! {
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Told of every point reached on its thread; false says that the server is dead.
pub type Watcher = Box<dyn FnMut(&str) -> bool>;

/// Arms one point for the life of the process; later calls change nothing.
pub fn arm(name: String) {
    let _ = ARMED.set(name);
}

/// Lets `watcher` decide for each point that is reached on this thread whether the server lives on;
/// none takes the former one away. Where it does not, what reached the point ends by unwinding: on
/// a runtime of one thread that is the spawned task. The rest is the watcher's to stop.
pub fn watch(watcher: Option<Watcher>) {
    WATCHER.set(watcher);
}

/// Dies here if this point is armed.
#[inline]
pub fn reach(name: &str) {
    if cfg!(debug_assertions) {
        if ARMED.get().is_some_and(|armed| armed == name) {
            die();
        }
        let lives = WATCHER.with_borrow_mut(|watcher| {
            let watcher = watcher.as_mut();
            watcher.is_none_or(|watcher| watcher(name))
        });
        if !lives {
            std::panic::resume_unwind(Box::new("the server died at a failpoint"));
        }
    }
}

/// Ends the process as `kill -9` would: no destructor runs, nothing is flushed.
#[cold]
fn die() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}
