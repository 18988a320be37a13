//! The agent's own processes, and the orphans that come to it as PID 1.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::future::pending;
use std::io;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process_group, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

use crate::log;

/// Orphans are looked for this often even without a signal: signals that come close together
/// count as one.
const REAP_EVERY: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone.
const GONE_WAIT: Duration = Duration::from_secs(5);
/// How often that is looked at.
const GONE_CHECK: Duration = Duration::from_millis(2);

/// Which children were started here. Their exit statuses belong to whoever started them; all
/// others are reaped.
#[derive(Clone, Default)]
pub struct Children(Rc<RefCell<HashSet<i32>>>);

/// A child in a process group of its own. Dropped before its end was seen, it is killed with its
/// group.
pub struct Owned {
    /// To wait for and talk to.
    pub child: Child,
    pid: Option<Pid>,
    waited: bool,
    children: Children,
}

impl Children {
    /// Starts `command` in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Owned> {
        // No await between the start and the note of it: the reaper runs on this thread too.
        let child = command.process_group(0).spawn()?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok());
        self.0.borrow_mut().extend(raw);
        Ok(Owned {
            child,
            pid: raw.and_then(Pid::from_raw),
            waited: false,
            children: self.clone(),
        })
    }

    /// Reaps orphans as they end, for ever.
    pub async fn reap_orphans(self) {
        let Ok(mut ended) = signal(SignalKind::child()) else {
            log(format_args!("orphans are not reaped: no signal handler"));
            return pending().await;
        };
        loop {
            tokio::select! {
                _ = ended.recv() => {}
                () = time::sleep(REAP_EVERY) => {}
            }
            self.reap();
        }
    }

    /// Ends every process but this one and waits, for a while, until they are gone. Does nothing
    /// where this is not PID 1: the processes then are not ours.
    pub async fn end_all(&self) {
        if !getpid().is_init() {
            return;
        }
        // Refused only when there is none.
        let _ = kill_process_group(Pid::INIT, Signal::KILL);
        let gone = async {
            while self.reap() > 0 {
                time::sleep(GONE_CHECK).await;
            }
        };
        if time::timeout(GONE_WAIT, gone).await.is_err() {
            log(format_args!("killed processes are still there"));
        }
    }

    /// Reaps the orphans that ended and gives the number of those that still run.
    fn reap(&self) -> usize {
        let own = self.0.borrow();
        orphans(&own)
            .into_iter()
            .filter(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)))
            .count()
    }
}

/// Children of this process that are not in `own`. All of them belong to the main thread: it is
/// the only one that starts any, and as the oldest it inherits the orphans.
fn orphans(own: &HashSet<i32>) -> Vec<Pid> {
    let path = format!("/proc/self/task/{}/children", getpid());
    let list = fs::read_to_string(path).unwrap_or_default();
    list.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .filter(|raw| !own.contains(raw))
        .filter_map(Pid::from_raw)
        .collect()
}

impl Owned {
    /// Waits for its end. May be dropped and called again.
    ///
    /// # Errors
    /// When the status cannot be had.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.forget();
        Ok(status)
    }

    /// Signals its whole group; what has ended already is no error.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let _ = kill_process_group(pid, signal);
        }
    }

    fn forget(&mut self) {
        self.waited = true;
        if let Some(pid) = self.pid {
            self.children
                .0
                .borrow_mut()
                .remove(&pid.as_raw_nonzero().get());
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.waited {
            self.signal_group(Signal::KILL);
            self.forget();
        }
    }
}
