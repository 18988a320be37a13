//! The life of one attempt, from the job to the acknowledged report of its end.

use std::fs;
use std::process::ExitCode;
use std::rc::Rc;

use baton_agent::protocol::{Checkout, Cut, Ending, Job, Note, SetupFailure};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;

use crate::checkout::{check_out, identity};
use crate::children::Children;
use crate::claude::{self, Surroundings};
use crate::git::Git;
use crate::link::{self, OrderSenders, Orders};
use crate::outbox::Outbox;
use crate::places::Places;
use crate::salvage::salvage;
use crate::{forward, log};

/// Where the kernel counts the processes it killed for want of memory: cgroup v2, then v1.
const OOM_COUNTERS: [&str; 2] = [
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
];

/// Lives until the server has stored the report of the end; fails only where there is no way to
/// keep one. To be run in a [`tokio::task::LocalSet`].
pub async fn live(places: Places) -> ExitCode {
    let children = Children::default();
    let (senders, orders) = link::orders();
    let senders = Rc::new(senders);
    spawn_local(children.clone().reap_orphans());
    spawn_local(cancel_on_signal(Rc::clone(&senders)));

    let (outbox, spool_failure) = open_outbox(&places);
    let Some(outbox) = outbox else {
        return ExitCode::FAILURE;
    };
    let listener = TcpListener::bind(("127.0.0.1", places.port)).await;
    spawn_local(link::keep(places.socket(), Rc::clone(&outbox), senders));
    if !outbox.has_ended() {
        let ending = match (spool_failure, listener) {
            (Some(failure), _) => not_started(failure),
            (None, Err(error)) => not_started(SetupFailure {
                step: "loopback".to_owned(),
                message: format!("port {} cannot be had: {error}", places.port),
            }),
            (None, Ok(listener)) => {
                let port = listener.local_addr().map_or(places.port, |at| at.port());
                spawn_local(forward::serve(listener, places.socket()));
                attempt(places, port, children, Rc::clone(&outbox), orders).await
            }
        };
        let ending = Ending {
            oom_kills: oom_kills(),
            ..ending
        };
        outbox.note(Note::Ended(Box::new(ending))).await;
    }
    outbox.delivered().await;
    ExitCode::SUCCESS
}

/// Where the state volume cannot be written, the failure is at least reported.
fn open_outbox(places: &Places) -> (Option<Rc<Outbox>>, Option<SetupFailure>) {
    let error = match Outbox::open(&places.spool()) {
        Ok(outbox) => return (Some(Rc::new(outbox)), None),
        Err(error) => error,
    };
    log(format_args!("the spool cannot be opened: {error}"));
    let failure = SetupFailure {
        step: "spool".to_owned(),
        message: format!("the spool cannot be opened: {error}"),
    };
    match Outbox::open(&std::env::temp_dir().join("baton-spool")) {
        Ok(outbox) => (Some(Rc::new(outbox)), Some(failure)),
        Err(error) => {
            log(format_args!("nor can one in its place: {error}"));
            (None, Some(failure))
        }
    }
}

async fn cancel_on_signal(senders: Rc<OrderSenders>) {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        log(format_args!("signals are not handled"));
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    senders.cancel.send_replace(true);
}

async fn attempt(
    places: Places,
    port: u16,
    children: Children,
    outbox: Rc<Outbox>,
    orders: Orders,
) -> Ending {
    // A second start of the container is no second start of Claude.
    let was_started = claude::was_started(&places);
    let job = tokio::select! {
        job = orders.job() => job,
        () = orders.cancelled(), if !was_started => return cancelled(),
    };
    let url = remote_url(&job.checkout, port);
    let git = Git {
        workspace: places.workspace_dir.clone(),
        identity: identity(&job.checkout),
        children: children.clone(),
        orders: orders.clone(),
    };
    if was_started {
        let ending = not_started(SetupFailure {
            step: "interrupted".to_owned(),
            message: "the sandbox was restarted while Claude ran; what it had done is kept"
                .to_owned(),
        });
        let ending = Ending {
            cut: orders.cancel.borrow().then_some(Cut::Cancelled),
            ..ending
        };
        return with_work_saved(ending, &git, &job, &url).await;
    }

    note_setup(&outbox, "clone").await;
    let checked_out = tokio::select! {
        done = check_out(&git, &job.checkout, &url) => done,
        () = orders.cancelled() => return cancelled(),
    };
    if let Err(error) = checked_out {
        return not_started(SetupFailure {
            step: "clone".to_owned(),
            message: error.to_string(),
        });
    }
    note_setup(&outbox, "claude").await;
    let around = Surroundings {
        places,
        children,
        outbox,
        identity: git.identity.clone(),
        orders,
    };
    match claude::run(&job, &around).await {
        Ok(ran) => {
            let ending = Ending {
                result: ran.result,
                exit: ran.exit,
                cut: ran.cut,
                stderr_tail: ran.stderr_tail,
                ..Ending::default()
            };
            with_work_saved(ending, &git, &job, &url).await
        }
        Err(failure) => not_started(failure),
    }
}

async fn with_work_saved(ending: Ending, git: &Git, job: &Job, url: &str) -> Ending {
    let saved = salvage(git, job, url).await;
    Ending {
        pushed: saved.pushed,
        salvage_failure: saved.failure,
        unmerged: saved.unmerged,
        ..ending
    }
}

async fn note_setup(outbox: &Outbox, step: &str) {
    let step = step.to_owned();
    outbox.note(Note::Setup { step }).await;
}

fn not_started(failure: SetupFailure) -> Ending {
    log(format_args!(
        "claude is not started: {}: {}",
        failure.step, failure.message
    ));
    Ending {
        setup_failure: Some(failure),
        ..Ending::default()
    }
}

fn cancelled() -> Ending {
    Ending {
        cut: Some(Cut::Cancelled),
        ..Ending::default()
    }
}

/// Where git finds the repository. A path that is a URL already stays one.
fn remote_url(checkout: &Checkout, port: u16) -> String {
    if checkout.path.contains("://") {
        return checkout.path.clone();
    }
    format!("http://127.0.0.1:{port}{}", checkout.path)
}

fn oom_kills() -> u64 {
    OOM_COUNTERS
        .iter()
        .find_map(|path| oom_kills_in(&fs::read_to_string(path).ok()?))
        .unwrap_or(0)
}

fn oom_kills_in(counters: &str) -> Option<u64> {
    let line = counters
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_cgroup_tell_the_kills() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(oom_kills_in(v1), Some(3));
        assert_eq!(oom_kills_in(v2), Some(2));
        assert_eq!(oom_kills_in("oom_kill_disable 0\n"), None);
    }
}
