//! Work of sessions whose end nobody reports: it is saved on a branch of its own.

use baton::orchestrator::NewMessage;
use baton::transition::{TransitionError, decide};
use baton_domain::Session;
use baton_domain::ending::Loss;

use crate::landing::{commit_work, git, seed};
use crate::*;

/// One that writes and is to land on `feature`.
struct Writer {
    app: App,
    id: SessionId,
}

impl Writer {
    async fn new() -> Self {
        let mut app = App::new(1).await;
        seed(&app);
        app.settle().await;
        let project = Project {
            branch: Some("feature".parse().expect("a branch")),
            ..new_session(&[]).project
        };
        let new = NewSession {
            max_cost_usd: Some(1.0),
            ..NewSession::new(Kind::Implementation, project)
        };
        let made = app.orchestrator.create_session(new, None).await;
        let Accepted::Now(details) = made.expect("accepted") else {
            panic!("there was no key");
        };
        let id = details.session.id;
        app.settle().await;
        Self { app, id }
    }

    /// The newest attempt's Claude is started and its agent pushes this file.
    async fn works(&mut self, file: &str) {
        self.begins().await;
        let attempt = self.session().await.attempt;
        let mirror = self.app.dir.path().join("data/repos/o/r.git");
        commit_work(&mirror, self.id, attempt, &[(file, "x\n")]);
    }

    async fn pauses(&mut self) {
        let subtype = "error_max_budget_usd";
        self.app.ends(self.id, true, subtype, 1.2).await;
        self.app.settle().await;
        assert_eq!(self.app.states(&[self.id]).await, ["paused"]);
    }

    async fn goes_on(&self) {
        let message = NewMessage {
            text: "go on".into(),
            max_cost_usd: None,
        };
        let told = self
            .app
            .orchestrator
            .message_session(self.id, message, None);
        told.await.expect("may go on");
    }

    async fn is_cancelled(&self) {
        let cancelled = self.app.orchestrator.cancel_session(self.id).await;
        cancelled.expect("may be cancelled");
    }

    /// Its container is killed before its agent could tell anything.
    async fn is_lost(&mut self) {
        self.app.runtime.exits(self.id, 137, false);
        self.is_over().await;
    }

    async fn is_over(&mut self) {
        let id = self.id;
        let is_over = |app: &App| {
            let session = app.store.cached_session(id);
            session.is_some_and(|session| session.state.is_over())
        };
        self.app.settle_until(is_over).await;
    }

    /// The newest attempt's Claude is started, when there is a sandbox for it.
    async fn begins(&mut self) {
        let id = self.id;
        let is_starting = |app: &App| {
            let session = app.store.cached_session(id);
            session.is_some_and(|session| session.state.name() == "starting")
        };
        self.app.settle_until(is_starting).await;
        self.app.begins(id).await;
    }

    async fn session(&self) -> Arc<Session> {
        self.app.store.session(self.id).await.expect("a session")
    }

    /// The branch it landed on, and the files there.
    async fn landed(&self) -> (String, String) {
        let session = self.session().await;
        let report = session.report.as_ref().expect("a report");
        let result = report.result.as_ref().expect("a result");
        let branch = result.branch.clone().expect("a branch");
        let remote = self.app.dir.path().join("remotes/o/r.git");
        let files = git(&remote, &["ls-tree", "--name-only", &branch]);
        (branch, files.lines().collect::<Vec<_>>().join(" "))
    }

    /// It ended in this state, with these files on its own branch.
    async fn check_saved(&self, state: &str, files: &str) {
        assert_eq!(self.app.states(&[self.id]).await, [state]);
        let (branch, found) = self.landed().await;
        assert!(branch.starts_with("baton/"), "{branch}");
        assert_eq!(found, files);
        let own = format!("refs/heads/{branch}");
        let remote = self.app.dir.path().join("remotes/o/r.git");
        let branches = git(&remote, &["for-each-ref", "--format=%(refname)"]);
        assert_eq!(
            branches.lines().collect::<Vec<_>>(),
            [&own, "refs/heads/main"]
        );
    }
}

#[tokio::test]
async fn work_of_a_session_that_is_cancelled_while_it_pauses_is_saved() {
    let mut writer = Writer::new().await;
    writer.works("a.txt").await;
    writer.pauses().await;
    writer.is_cancelled().await;
    assert_eq!(writer.app.states(&[writer.id]).await, ["saving"]);
    // A server that dies over it is followed by one that does it.
    writer.app = writer.app.restarted().await;
    writer.is_over().await;
    writer.check_saved("cancelled", "README.md a.txt").await;
    let session = writer.session().await;
    let usage = session.report.as_ref().and_then(|report| report.usage);
    assert!(usage.is_some_and(|usage| usage.cost_usd > 1.1), "{usage:?}");
}

#[tokio::test]
async fn work_of_a_session_that_went_on_and_is_cancelled_before_it_starts_is_saved() {
    let mut writer = Writer::new().await;
    writer.works("a.txt").await;
    writer.pauses().await;
    writer.goes_on().await;
    assert_eq!(writer.app.states(&[writer.id]).await, ["queued"]);
    writer.is_cancelled().await;
    writer.is_over().await;
    writer.check_saved("cancelled", "README.md a.txt").await;
}

#[tokio::test]
async fn work_of_a_session_that_went_on_and_is_lost_is_saved() {
    let mut writer = Writer::new().await;
    writer.works("a.txt").await;
    writer.pauses().await;
    writer.goes_on().await;
    writer.begins().await;
    writer.is_lost().await;
    writer.check_saved("failed", "README.md a.txt").await;
}

#[tokio::test]
async fn what_was_pushed_and_not_reported_is_saved_and_gone_on_from() {
    let mut writer = Writer::new().await;
    writer.works("a.txt").await;
    writer.is_lost().await;
    writer.check_saved("failed", "README.md a.txt").await;
    writer.goes_on().await;
    writer.works("b.txt").await;
    writer.is_lost().await;
    writer.check_saved("failed", "README.md a.txt b.txt").await;
    let session = writer.session().await;
    let result = session.report.as_ref().and_then(|of| of.result.as_ref());
    assert_eq!(result.map(|result| result.files_changed), Some(2));

    // Nothing more is to be done, and all of it lands.
    writer.goes_on().await;
    writer.begins().await;
    writer.app.ends(writer.id, false, "success", 0.1).await;
    writer.app.settle().await;
    assert_eq!(writer.app.states(&[writer.id]).await, ["completed"]);
    let landed = ("feature".to_owned(), "README.md a.txt b.txt".to_owned());
    assert_eq!(writer.landed().await, landed);
}

/// An attempt was lost that had pushed, and its work was not saved: so an earlier version did, and so
/// it is where the mirror could not be read for long.
async fn check_unsaved(is_first: bool, files: &str) {
    let mut writer = Writer::new().await;
    if !is_first {
        writer.works("a.txt").await;
        writer.pauses().await;
        writer.goes_on().await;
    }
    writer.works("b.txt").await;
    let attempt = writer.session().await.attempt;
    let (store, clock) = (&writer.app.store, writer.app.clock.as_ref());
    let lost = SessionEvent::SandboxLost(attempt, Loss::Removed);
    let unsaved = decide(store, clock, writer.id, |session| {
        let state = session.state.after(&lost, clock.now())?;
        let next = Session {
            state,
            ..session.clone()
        };
        Ok::<_, TransitionError>((lost.clone(), next))
    });
    unsaved.await.expect("it is recorded");
    assert_eq!(writer.app.states(&[writer.id]).await, ["failed"]);

    writer.goes_on().await;
    writer.begins().await;
    writer.app.ends(writer.id, false, "success", 0.1).await;
    writer.app.settle().await;
    assert_eq!(writer.app.states(&[writer.id]).await, ["completed"]);
    let landed = ("feature".to_owned(), files.to_owned());
    assert_eq!(writer.landed().await, landed);
}

#[tokio::test]
async fn what_an_attempt_left_that_is_lost_lands_though_nothing_more_is_done() {
    check_unsaved(true, "README.md b.txt").await;
    check_unsaved(false, "README.md a.txt b.txt").await;
}

#[tokio::test]
async fn work_is_saved_when_the_remote_is_back() {
    let mut writer = Writer::new().await;
    writer.works("a.txt").await;
    writer.pauses().await;
    let remotes = writer.app.dir.path().join("remotes");
    let away = writer.app.dir.path().join("away");
    std::fs::rename(&remotes, &away).expect("it is moved");
    writer.is_cancelled().await;
    writer.app.settle().await;
    assert_eq!(writer.app.states(&[writer.id]).await, ["saving"]);
    std::fs::rename(&away, &remotes).expect("it is moved back");
    writer.is_over().await;
    writer.check_saved("cancelled", "README.md a.txt").await;
}
