//! Restarts of the machine and of the container runtime, under sessions that run.

use baton_domain::ending::Outcome;
use baton_domain::{SessionId, SessionState};

use crate::App;

/// What Docker says of a container that ran when the machine went down.
const DOWN_WITH_THE_MACHINE: i64 = 255;

impl App {
    /// The container of `running` goes down and nobody looks; then a server starts on this boot of
    /// the machine.
    async fn down_and_up(mut self, running: SessionId, boot_id: &'static str) -> Self {
        self.runtime.exits(running, DOWN_WITH_THE_MACHINE, false);
        self.boot_id = Some(boot_id);
        self.restarted().await
    }

    /// A new session, whose Claude is at work.
    async fn one_runs(&mut self) -> SessionId {
        let id = self.create(&[]).await;
        self.settle().await;
        self.claude_starts(id).await;
        id
    }

    /// Of two sessions and one slot.
    async fn one_runs_and_one_waits(&mut self) -> [SessionId; 2] {
        let ids = [self.one_runs().await, self.create(&[]).await];
        self.settle().await;
        assert_eq!(self.states(&ids).await, ["running", "queued"]);
        ids
    }

    /// One that was launched runs to its end.
    async fn completes(&mut self, id: SessionId) {
        self.claude_starts(id).await;
        self.claude_ends(id, false).await;
        self.settle().await;
        assert_eq!(self.states(&[id]).await, ["completed"]);
    }

    /// The `errorCode` of one that failed.
    async fn failure(&self, id: SessionId) -> &'static str {
        match self.state(id).await {
            SessionState::Finished {
                outcome: Outcome::Failed { code, .. },
                ..
            } => code.name(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reboot_fails_what_ran_and_what_was_queued_goes_on() {
    let mut app = App::on_boot(Some("b1"), 1).await;
    let [running, queued] = app.one_runs_and_one_waits().await;

    let mut app = app.down_and_up(running, "b2").await;
    app.settle().await;
    assert_eq!(app.failure(running).await, "host_rebooted");
    assert_eq!(app.states(&[queued]).await, ["starting"]);
    assert_eq!(app.runtime.launched(), [running, queued]);
    app.completes(queued).await;
}

#[tokio::test]
async fn a_reboot_is_told_once_and_a_server_that_merely_restarts_tells_of_none() {
    let mut app = App::on_boot(Some("b1"), 1).await;
    let first = app.one_runs().await;
    // The same boot: whatever ended the container, it was not the machine.
    let mut app = app.down_and_up(first, "b1").await;
    app.settle().await;
    assert_eq!(app.failure(first).await, "sandbox_died");

    let second = app.one_runs().await;
    let mut app = app.down_and_up(second, "b2").await;
    app.settle().await;
    assert_eq!(app.failure(second).await, "host_rebooted");

    // From then on b2 is the boot to compare with.
    let third = app.one_runs().await;
    let mut app = app.down_and_up(third, "b2").await;
    app.settle().await;
    assert_eq!(app.failure(third).await, "sandbox_died");
}

#[tokio::test]
async fn a_restart_of_the_runtime_fails_what_ran_and_what_was_queued_goes_on() {
    let mut app = App::new(1).await;
    let [running, queued] = app.one_runs_and_one_waits().await;

    app.runtime.restarts();
    app.settle_until(|app| app.runtime.launched() == [running, queued])
        .await;
    assert_eq!(app.failure(running).await, "runtime_restarted");
    assert_eq!(app.states(&[queued]).await, ["starting"]);
    app.completes(queued).await;
}
