//! Coordination sessions and those that they make, one slot for all of them.

use baton::orchestrator::{Caller, Once, OrchestratorError, SessionDetails, WaitGuard};
use baton_domain::coordination::CoordinationRefusal;
use baton_domain::{Branch, OrchestrationId, Repository};
use futures::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::landing::{commit_work, git, seed};
use super::*;

/// How long a held call is watched to see that it is held.
const HELD_WATCHED: Duration = Duration::from_millis(300);

impl App {
    /// A coordination session that runs, made by a client.
    async fn coordinator(&mut self) -> SessionId {
        let new = NewSession::new(Kind::Coordination, new_session(&[]).project);
        let made = self.orchestrator.create_session(new, None).await;
        let Ok(Accepted::Now(details)) = made else {
            panic!("{made:?}");
        };
        let id = details.session.id;
        self.settle().await;
        self.claude_starts(id).await;
        id
    }

    async fn makes(
        &self,
        parent: SessionId,
        kind: Kind,
        dependencies: &[SessionId],
    ) -> Result<SessionId, OrchestratorError> {
        self.makes_of(parent, kind, dependencies, |_| {}).await
    }

    async fn makes_of(
        &self,
        parent: SessionId,
        kind: Kind,
        dependencies: &[SessionId],
        change: impl FnOnce(&mut NewSession),
    ) -> Result<SessionId, OrchestratorError> {
        let mut new = NewSession {
            kind,
            ..new_session(dependencies)
        };
        change(&mut new);
        let caller = Caller::Session(parent);
        let made = self
            .orchestrator
            .create_session_for(caller, new, None)
            .await?;
        match made {
            Accepted::Now(details) => Ok(details.session.id),
            Accepted::Before(_) => panic!("there was no key"),
        }
    }

    async fn waits(&mut self, id: SessionId) -> WaitGuard {
        let wait = self.orchestrator.begin_wait(Caller::Session(id)).await;
        let wait = wait.expect("it may wait");
        self.settle().await;
        wait
    }

    /// Plays the part of one that writes `file`.
    async fn writes(&mut self, id: SessionId, file: &str) {
        self.claude_starts(id).await;
        let mirror = self.dir.path().join("data/repos/o/r.git");
        commit_work(&mirror, id, Attempt::FIRST, &[(file, "x\n")]);
        self.claude_ends(id, false).await;
        self.settle().await;
    }

    /// Plays the part of one that changes nothing.
    async fn reads(&mut self, id: SessionId) {
        self.claude_starts(id).await;
        self.claude_ends(id, false).await;
        self.settle().await;
    }

    async fn orchestration_of(&self, id: SessionId) -> OrchestrationId {
        let session = self.store.session(id).await.expect("a session");
        session.orchestration_id.expect("it is in one")
    }

    /// Sends a request by a session's socket.
    async fn asks(&self, id: SessionId, request: &str) -> UnixStream {
        let run_dir = format!("data/run/{}-1", id.0.simple());
        let socket = self.dir.path().join(run_dir).join("session.sock");
        let mut stream = UnixStream::connect(socket).await.expect("an open socket");
        let request = format!(
            "{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("a call");
        stream
    }

    async fn answer(&self, id: SessionId, request: &str) -> String {
        let mut stream = self.asks(id, request).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, OrchestratorError>) -> CoordinationRefusal {
    match answer {
        Err(OrchestratorError::Coordination(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn one_slot_is_enough_for_a_coordination_session_and_all_that_it_makes() {
    let mut app = App::new(1).await;
    seed(&app);
    let conductor = app.coordinator().await;
    let plan = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let make = async |app: &App, dependencies: &[SessionId]| {
        let made = app
            .makes(conductor, Kind::Implementation, dependencies)
            .await;
        made.expect("made")
    };
    let one = make(&app, &[plan]).await;
    let two = make(&app, &[plan]).await;
    let tests = app
        .makes(conductor, Kind::Testing, &[one, two])
        .await
        .expect("made");
    app.settle().await;
    assert_eq!(app.runtime.launched(), [conductor], "there is one slot");

    let wait = app.waits(conductor).await;
    for (id, file) in [(plan, ""), (one, "1.txt"), (two, "2.txt"), (tests, "3.txt")] {
        assert_eq!(app.states(&[conductor, id]).await, ["awaiting", "starting"]);
        match file {
            "" => app.reads(id).await,
            file => app.writes(id, file).await,
        }
    }
    assert_eq!(
        app.states(&[tests, conductor]).await,
        ["completed", "awaiting"]
    );
    let id = app.orchestration_of(conductor).await;
    let landing = app.store.orchestration(id).await.expect("there").landing;
    assert!(landing.landed.is_empty(), "more may be asked for");

    let mut back = std::pin::pin!(wait.take_back());
    assert!(
        back.as_mut().now_or_never().is_none(),
        "no slot without the reconciler"
    );
    app.settle().await;
    back.await.expect("a slot");
    assert_eq!(app.states(&[conductor]).await, ["running"]);
    app.claude_ends(conductor, false).await;
    app.settle_until(|app| app.store.unlanded().is_empty())
        .await;

    let landing = app.store.orchestration(id).await.expect("there").landing;
    assert_eq!(landing.landed, [one, two, tests]);
    let branch = Branch::own(id.0).to_string();
    let remote = app.dir.path().join("remotes/o/r.git");
    let files = git(&remote, &["ls-tree", "--name-only", &branch]);
    assert_eq!(files.trim(), "1.txt\n2.txt\n3.txt\nREADME.md");
}

#[tokio::test]
async fn who_waited_when_the_server_died_gets_a_slot_and_may_wait_again() {
    let mut app = App::new(1).await;
    seed(&app);
    let conductor = app.coordinator().await;
    let one = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let two = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let wait = app.waits(conductor).await;
    app.claude_starts(one).await;
    drop(wait);

    let mut app = app.restarted().await;
    app.settle().await;
    let all = [conductor, one, two];
    assert_eq!(app.states(&all).await, ["awaiting", "running", "queued"]);
    assert!(
        app.detail_of(conductor)
            .await
            .contains("as soon as a slot is free")
    );
    // Nobody knows of a wait, so its turn comes as soon as the slot is free.
    app.claude_ends(one, false).await;
    app.settle().await;
    assert_eq!(app.states(&all).await, ["running", "completed", "queued"]);
    let wait = app.waits(conductor).await;
    assert_eq!(
        app.states(&all).await,
        ["awaiting", "completed", "starting"]
    );
    assert!(app.detail_of(conductor).await.contains("holds no slot"));
    app.reads(two).await;
    let (back, ()) = tokio::join!(wait.take_back(), app.settle());
    back.expect("a slot");
    assert_eq!(
        app.states(&all).await,
        ["running", "completed", "completed"]
    );
}

impl App {
    async fn detail_of(&self, id: SessionId) -> String {
        let details = self.orchestrator.session(id).await.expect("a session");
        let detail = self.orchestrator.status_detail(&details);
        detail.map(String::from).unwrap_or_default()
    }
}

#[tokio::test]
async fn waits_of_one_session_nest() {
    let mut app = App::new(1).await;
    let conductor = app.coordinator().await;
    let child = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let first = app.waits(conductor).await;
    let second = app.waits(conductor).await;
    // Its Claude goes on only when both are answered.
    first.take_back().await.expect("at once");
    app.settle().await;
    assert_eq!(
        app.states(&[conductor, child]).await,
        ["awaiting", "starting"]
    );
    app.reads(child).await;
    // One that breaks off has the slot taken back as well.
    drop(second);
    app.settle().await;
    assert_eq!(
        app.states(&[conductor, child]).await,
        ["running", "completed"]
    );
    let client = app.orchestrator.begin_wait(Caller::Client).await;
    client
        .expect("anybody may")
        .take_back()
        .await
        .expect("at once");
}

#[tokio::test]
async fn a_wait_that_begins_while_the_slot_of_the_last_one_comes_back_is_left_without() {
    let mut app = App::new(1).await;
    let conductor = app.coordinator().await;
    let child = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    for _ in 0..20 {
        let wait = app
            .orchestrator
            .begin_wait(Caller::Session(conductor))
            .await;
        drop(wait.expect("it may wait"));
        // The reconciler takes the slot back while the next wait begins.
        let again = app.orchestrator.begin_wait(Caller::Session(conductor));
        let (again, ()) = tokio::join!(again, app.reconciler.pass());
        let again = again.expect("it may wait");
        app.reconciler.settle().await;
        assert_eq!(app.states(&[conductor]).await, ["awaiting"]);
        drop(again);
        if app.state(child).await != SessionState::Queued {
            break;
        }
        app.settle().await;
    }
}

#[tokio::test]
async fn calls_of_the_model_are_held_while_there_is_no_slot() {
    let mut app = App::new(1).await;
    let conductor = app.coordinator().await;
    let child = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let wait = app.waits(conductor).await;
    let call = "POST /model/v1/messages";
    let held = app.asks(conductor, call).await;
    let mut held = held;
    let mut answer = String::new();
    let reading = held.read_to_string(&mut answer);
    let early = tokio::time::timeout(HELD_WATCHED, reading).await;
    assert!(early.is_err(), "answered: {answer}");
    // Others are not.
    app.claude_starts(child).await;
    assert!(app.answer(child, call).await.starts_with("HTTP/1.1 401"));

    app.claude_ends(child, false).await;
    drop(wait);
    app.settle().await;
    answer.clear();
    held.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn only_coordination_sessions_reach_the_tools() {
    let mut app = App::new(2).await;
    let conductor = app.coordinator().await;
    let other = app.create(&[]).await;
    app.settle().await;
    let call = "POST /mcp";
    let early = app.answer(conductor, call).await;
    assert!(early.starts_with("HTTP/1.1 503"), "{early}");
    assert!(early.contains("retry-after"), "{early}");
    app.gateway.set_mcp(Arc::new(|session, _| {
        Box::pin(
            async move { axum::response::IntoResponse::into_response(format!("for {session}")) },
        )
    }));
    let answer = app.answer(conductor, call).await;
    assert!(answer.contains(&format!("for {conductor}")), "{answer}");
    assert!(app.answer(other, call).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_coordination_session_uses_only_what_it_made() {
    let mut app = App::new(2).await;
    let conductor = app.coordinator().await;
    let foreign = app.create(&[]).await;
    let other = app.coordinator().await;
    let child = app
        .makes(conductor, Kind::Coordination, &[])
        .await
        .expect("made");
    let caller = Caller::Session(conductor);
    let orchestrator = app.orchestrator.clone();

    orchestrator.permits(caller, child).await.expect("its own");
    orchestrator
        .permits(Caller::Client, foreign)
        .await
        .expect("anybody's");
    for id in [foreign, other, conductor] {
        let refusal = refused(orchestrator.permits(caller, id).await);
        assert_eq!(refusal, CoordinationRefusal::NotYours(id));
    }
    let refusal = refused(orchestrator.permits(Caller::Session(other), child).await);
    assert_eq!(refusal, CoordinationRefusal::NotYours(child));
    let nobody = orchestrator
        .permits(caller, SessionId(uuid::Uuid::from_u128(7)))
        .await;
    assert!(
        matches!(nobody, Err(OrchestratorError::Store(_))),
        "{nobody:?}"
    );

    let own = app.orchestration_of(conductor).await;
    assert_eq!(orchestrator.orchestration_of(caller), Some(own));
    assert_eq!(orchestrator.orchestration_of(Caller::Client), None);
    orchestrator
        .permits_orchestration(caller, own)
        .expect("its own");
    let theirs = app.orchestration_of(other).await;
    let refusal = refused(orchestrator.permits_orchestration(caller, theirs));
    assert_eq!(refusal, CoordinationRefusal::NotYourOrchestration(theirs));
    let refusal = refused(orchestrator.permits_whole(caller));
    assert_eq!(refusal, CoordinationRefusal::NotForYou);
    orchestrator
        .permits_whole(Caller::Client)
        .expect("anybody's");

    // Neither a session that coordinates nothing nor one that is over may ask for anything.
    for (id, why) in [(foreign, "no coordination"), (child, "not started")] {
        let caller = Caller::Session(id);
        refused(app.makes(id, Kind::Analysis, &[]).await);
        refused(orchestrator.permits(caller, child).await);
        refused(orchestrator.begin_wait(caller).await.map(drop));
        assert_ne!(orchestrator.orchestration_of(caller), Some(own), "{why}");
    }
}

#[tokio::test]
async fn children_are_made_within_limits() {
    let mut app = App::new(4).await;
    let conductor = app.coordinator().await;
    let foreign = app.create(&[]).await;
    let refusal = refused(app.makes(conductor, Kind::Testing, &[foreign]).await);
    assert_eq!(refusal, CoordinationRefusal::NotYours(foreign));
    let unknown = SessionId(uuid::Uuid::from_u128(7));
    let answer = app.makes(conductor, Kind::Testing, &[unknown]).await;
    assert!(
        matches!(answer, Err(OrchestratorError::Dependency(_))),
        "{answer:?}"
    );
    let elsewhere: Repository = "o/other".parse().expect("a repository");
    let elsewhere = |new: &mut NewSession| new.project.repository = elsewhere;
    let refusal = refused(app.makes_of(conductor, Kind::Testing, &[], elsewhere).await);
    assert!(matches!(
        refusal,
        CoordinationRefusal::OtherRepository { .. }
    ));
    let main = |new: &mut NewSession| new.project.branch = Some("main".parse().expect("a branch"));
    let refusal = refused(app.makes_of(conductor, Kind::Testing, &[], main).await);
    assert!(matches!(refusal, CoordinationRefusal::OtherBranch { .. }));

    // What it is not to decide, it does not.
    let wishes = |new: &mut NewSession| {
        new.priority = 10;
        new.project_settings = true;
        new.id = Some(foreign);
        new.orchestration_id = None;
    };
    let child = app
        .makes_of(conductor, Kind::Coordination, &[], wishes)
        .await
        .expect("made");
    let made = app.store.session(child).await.expect("there");
    assert_eq!((made.priority, made.project_settings), (0, false));
    assert_eq!(made.parent, Some(conductor));
    assert_eq!(
        made.orchestration_id,
        Some(app.orchestration_of(conductor).await)
    );

    app.settle().await;
    app.claude_starts(child).await;
    let grandchild = app
        .makes(child, Kind::Analysis, &[])
        .await
        .expect("two levels");
    let caller = Caller::Session(conductor);
    app.orchestrator
        .permits(caller, grandchild)
        .await
        .expect("at any depth");
    refused(
        app.orchestrator
            .permits(Caller::Session(child), conductor)
            .await,
    );
    let refusal = refused(app.makes(child, Kind::Coordination, &[]).await);
    assert_eq!(refusal, CoordinationRefusal::NoLevelLeft { depth_max: 2 });

    // All that are made in an orchestration count, by whomever, and also side by side.
    let limit = CoordinationLimits::default().sessions_max;
    let many = (2..limit + 5).map(|_| app.makes(conductor, Kind::Analysis, &[]));
    let answers = futures::future::join_all(many).await;
    let made = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(made, limit - 2);
    let refusal = refused(app.makes(child, Kind::Analysis, &[]).await);
    assert!(
        matches!(refusal, CoordinationRefusal::TooMany { .. }),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_key_of_one_session_is_none_of_another() {
    let mut app = App::new(2).await;
    let conductor = app.coordinator().await;
    let other = app.coordinator().await;
    let render = |details: &SessionDetails| details.session.id.to_string().into_bytes();
    let ask = async |id: SessionId| {
        let once = Once {
            key: "plan".into(),
            digest: [0; 32],
            render: &render,
        };
        let caller = Caller::Session(id);
        let new = new_session(&[]);
        let made = app
            .orchestrator
            .create_session_for(caller, new, Some(once))
            .await;
        match made.expect("made") {
            Accepted::Now(details) => details.session.id.to_string(),
            Accepted::Before(answer) => String::from_utf8(answer).expect("text"),
        }
    };
    let first = ask(conductor).await;
    assert_eq!(ask(conductor).await, first);
    assert_ne!(ask(other).await, first);
}

#[tokio::test]
async fn with_a_coordination_session_stops_what_it_made() {
    let mut app = App::new(2).await;
    let conductor = app.coordinator().await;
    let done = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let inner = app
        .makes(conductor, Kind::Coordination, &[done])
        .await
        .expect("made");
    let last = app
        .makes(conductor, Kind::Analysis, &[inner])
        .await
        .expect("made");
    app.settle().await;
    app.reads(done).await;
    app.claude_starts(inner).await;
    let below = app.makes(inner, Kind::Analysis, &[]).await.expect("made");
    let stranger = app.create(&[]).await;
    let wait = app.waits(conductor).await;

    app.orchestrator
        .cancel_session(conductor)
        .await
        .expect("it runs");
    let all = [conductor, done, inner, last, below];
    let states = app.states(&all).await;
    assert_eq!(
        states[..4],
        ["stopping", "completed", "stopping", "cancelled"]
    );
    assert!(["stopping", "cancelled"].contains(&states[4]), "{states:?}");
    assert!(!app.state(stranger).await.is_over());
    // It makes no more, and its wait is over.
    refused(app.makes(conductor, Kind::Analysis, &[]).await);
    refused(wait.take_back().await);
    // Asked again, it stands as it does.
    app.orchestrator
        .cancel_session(conductor)
        .await
        .expect("no mistake");
}

#[tokio::test]
async fn what_a_coordination_session_made_goes_on_when_it_ends() {
    let mut app = App::new(2).await;
    seed(&app);
    let conductor = app.coordinator().await;
    let child = app
        .makes(conductor, Kind::Implementation, &[])
        .await
        .expect("made");
    let never_started = app
        .makes_of(conductor, Kind::Implementation, &[], |new| {
            new.auto_start = false;
        })
        .await
        .expect("made");
    app.settle().await;
    app.claude_ends(conductor, true).await;
    app.settle().await;
    assert_eq!(
        app.states(&[conductor, child]).await,
        ["failed", "starting"]
    );
    // Nobody will start it any more, and the others would wait for it before they land.
    assert_eq!(app.states(&[never_started]).await, ["cancelled"]);
    app.writes(child, "1.txt").await;
    app.settle_until(|app| app.store.unlanded().is_empty())
        .await;
    let id = app.orchestration_of(conductor).await;
    let landing = app.store.orchestration(id).await.expect("there").landing;
    assert_eq!(landing.landed, [child]);
}

#[tokio::test]
async fn a_coordination_session_gives_away_no_more_than_it_has() {
    let mut app = App::new(2).await;
    let new = NewSession {
        max_cost_usd: Some(5.0),
        ..NewSession::new(Kind::Coordination, new_session(&[]).project)
    };
    let made = app.orchestrator.create_session(new, None).await;
    let Ok(Accepted::Now(details)) = made else {
        panic!("{made:?}");
    };
    let conductor = details.session.id;
    app.settle().await;
    app.claude_starts(conductor).await;
    let id = app.orchestration_of(conductor).await;
    let orchestration = app.store.orchestration(id).await.expect("there");
    assert_eq!(orchestration.max_cost_usd, Some(5.0), "for all of them");
    let child = app
        .makes(conductor, Kind::Analysis, &[])
        .await
        .expect("made");
    let caller = Caller::Session(conductor);
    let permits = async |usd| app.orchestrator.permits_spending(caller, child, usd).await;
    permits(None).await.expect("nothing is spent");
    permits(Some(5.0)).await.expect("as much as its own");
    assert!(matches!(
        refused(permits(Some(5.5)).await),
        CoordinationRefusal::Budget { .. }
    ));
}
