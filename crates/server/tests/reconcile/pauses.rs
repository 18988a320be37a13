//! Usage limits, budgets, and launches that are lost to the host.

use baton::orchestrator::{Accepted, NewOrchestration, NewSession, OrchestratorError, Strategy};
use baton_domain::decompose::{DependencyMode, ProposedGraph, ProposedSession};
use baton_domain::ending::{ABSENCE_MAX, ClaudeResult, Ending, Usage};
use baton_domain::observe::CONNECT_WAIT;
use baton_domain::pauses::{LAUNCHES_LOST_MAX, RESUME_STAGGER};
use baton_domain::steering::Resume;
use baton_domain::{Attempt, Kind, OrchestrationId, Project, SessionEvent, SessionId};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::{App, Clock as _, EventBody, Verb, unreachable};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const SECOND: SignedDuration = SignedDuration::from_secs(1);

impl App {
    /// The newest attempt's Claude is started.
    pub(super) async fn begins(&self, id: SessionId) -> Attempt {
        let attempt = self.store.session(id).await.expect("a session").attempt;
        self.tell(id, SessionEvent::ClaudeStarted(attempt)).await;
        attempt
    }

    /// The newest attempt's Claude ends with this result.
    pub(super) async fn ends(&self, id: SessionId, is_error: bool, subtype: &str, cost_usd: f64) {
        let attempt = self.store.session(id).await.expect("a session").attempt;
        let result = ClaudeResult {
            subtype: subtype.into(),
            is_error,
            text: "said".into(),
            usage: Usage {
                cost_usd,
                ..Usage::default()
            },
        };
        let ending = Ending {
            result: Some(result),
            ..Ending::default()
        };
        let ended = SessionEvent::AgentEnded(attempt, Box::new(ending));
        self.tell(id, ended).await;
        self.runtime.exits(id, 0, false);
    }

    /// A session that runs is refused until `until`, and its Claude ends for it.
    async fn is_limited(&self, id: SessionId, until: Timestamp) {
        let attempt = self.begins(id).await;
        self.tell(id, SessionEvent::LimitHit(attempt, until)).await;
        self.ends(id, true, "success", 0.0).await;
    }

    async fn attempts(&self, ids: &[SessionId]) -> Vec<u32> {
        let mut attempts = Vec::new();
        for &id in ids {
            attempts.push(self.store.session(id).await.expect("a session").attempt.0);
        }
        attempts
    }

    /// What the session's sandbox gets for a call of the model: the status and the body.
    async fn calls_the_model(&self, id: SessionId) -> String {
        let attempt = self.store.session(id).await.expect("a session").attempt;
        let run_dir = format!("data/run/{}-{attempt}", id.0.simple());
        let socket = self.dir.path().join(run_dir).join("session.sock");
        let mut stream = UnixStream::connect(socket).await.expect("an open socket");
        let call = b"POST /model/v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\
            connection: close\r\n\r\n{}";
        stream.write_all(call).await.expect("a call");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// Sessions that wait for nothing, in an orchestration with a budget.
    async fn orchestrated(
        &self,
        count: usize,
        parallel_sessions: Option<u64>,
        max_cost_usd: impl Into<Option<f64>>,
    ) -> (OrchestrationId, Vec<SessionId>) {
        let proposed = |at| ProposedSession {
            kind: Kind::Analysis,
            component: None,
            title: format!("Look at {at}"),
            requirements: format!("Look at {at}"),
            dependencies: Vec::new(),
        };
        let new = NewOrchestration {
            kind: None,
            project: Project {
                repository: "o/r".parse().expect("a repository"),
                branch: None,
                requirements: "all of it".into(),
                context: None,
            },
            strategy: Some(Strategy {
                parallel_sessions,
                ..Strategy::default()
            }),
            plan: Some(ProposedGraph {
                mode: DependencyMode::Parallel,
                sessions: (0..count).map(proposed).collect(),
                summary: "some".into(),
            }),
            auto_start: true,
            priority: 0,
            project_settings: false,
            max_cost_usd: max_cost_usd.into(),
        };
        let made = self.orchestrator.orchestrate(new, None).await;
        let Accepted::Now(made) = made.expect("accepted") else {
            panic!("there was no key");
        };
        let sessions = made.sessions.iter().map(|of| of.session.id).collect();
        (made.id, sessions)
    }

    /// What Claude is told that it may cost.
    async fn allowance(&self, id: SessionId) -> String {
        let session = self.store.session(id).await.expect("a session");
        let gate = self.gateway.open(&session).expect("a socket");
        let job = gate.job().await.expect("a job");
        let mut args = job.claude.args.iter();
        args.find(|arg| *arg == "--max-budget-usd");
        args.next().cloned().unwrap_or_default()
    }

    async fn notes(&self, id: SessionId) -> Vec<String> {
        let events = self.store.events(id, 0, usize::MAX, usize::MAX).await;
        let events = events.expect("events").into_iter();
        let notes = events.filter_map(|event| match event.body {
            EventBody::Note(text) => Some(text),
            _ => None,
        });
        notes.collect()
    }

    async fn detail(&self, id: SessionId) -> String {
        let details = self.orchestrator.session(id).await.expect("a session");
        let detail = self.orchestrator.status_detail(&details);
        detail.map(String::from).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_limit_stops_everything_until_it_is_lifted_and_then_all_complete() {
    let mut app = App::new(2).await;
    let [first, second, third] = [
        app.create(&[]).await,
        app.create(&[]).await,
        app.create(&[]).await,
    ];
    app.settle().await;
    let until = app.clock.now() + HOUR;
    app.is_limited(first, until).await;
    app.is_limited(second, until).await;
    app.settle().await;
    let all = [first, second, third];
    assert_eq!(app.states(&all).await, ["paused", "paused", "queued"]);
    assert_eq!(app.runtime.launched(), [first, second]);
    let detail = app.detail(third).await;
    let time = format!("{until:.0}");
    assert!(
        detail.contains("usage limit") && detail.contains(&time),
        "{detail}"
    );
    assert!(app.detail(first).await.contains(&time));

    // All of it is in the store.
    let mut app = app.restarted().await;
    app.clock.passed(HOUR - SECOND * 30);
    app.settle().await;
    assert_eq!(app.states(&all).await, ["paused", "paused", "queued"]);
    app.clock.passed(SECOND * 31);
    app.settle().await;
    assert_eq!(app.states(&all).await, ["starting", "paused", "queued"]);
    app.clock.passed(RESUME_STAGGER);
    app.settle().await;
    assert_eq!(app.states(&all).await, ["starting", "starting", "queued"]);
    assert_eq!(app.attempts(&all).await, [2, 2, 1]);

    for id in all {
        app.begins(id).await;
        app.ends(id, false, "success", 0.0).await;
        app.settle().await;
    }
    assert_eq!(app.states(&all).await, ["completed"; 3]);
    assert_eq!(
        app.runtime.launched(),
        [first, second, first, second, third]
    );
}

#[tokio::test]
async fn a_session_that_completes_in_spite_of_a_limit_has_completed() {
    let mut app = App::new(2).await;
    let id = app.create(&[]).await;
    app.settle().await;
    let attempt = app.begins(id).await;
    let until = app.clock.now() + HOUR;
    app.tell(id, SessionEvent::LimitHit(attempt, until)).await;
    app.ends(id, false, "success", 0.0).await;
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["completed"]);
}

#[tokio::test]
async fn a_spent_budget_pauses_and_each_go_ahead_grants_as_much_again() {
    let mut app = App::new(2).await;
    let id = app.create(&[]).await;
    app.tell(id, SessionEvent::BudgetSet(1.0)).await;
    app.settle().await;
    app.begins(id).await;
    app.ends(id, true, "error_max_budget_usd", 1.2).await;
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["paused"]);
    assert!(app.detail(id).await.contains("$1.20"));
    app.clock.passed(HOUR);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["paused"]);

    let resume = Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    };
    app.tell(id, SessionEvent::Resumed(resume)).await;
    app.settle_until(|app| app.runtime.launched().len() == 2)
        .await;
    let on = app.store.session(id).await.expect("a session");
    assert_eq!(on.steering.max_cost_usd, Some(2.2));
    app.begins(id).await;
    app.ends(id, false, "success", 0.9).await;
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["completed"]);
    let done = app.store.session(id).await.expect("a session");
    assert!((done.spent_usd() - 2.1).abs() < 1e-9, "{done:?}");
    let report = done.report.as_ref().expect("a report");
    assert!(
        report.warnings[0].contains("$2.10 of its budget of $2.20"),
        "{report:?}"
    );
}

#[tokio::test]
async fn the_model_is_called_within_the_budget_and_a_little_beyond() {
    let mut app = App::new(2).await;
    let id = app.create(&[]).await;
    app.tell(id, SessionEvent::BudgetSet(1.0)).await;
    app.settle().await;
    app.begins(id).await;
    app.ends(id, true, "error_max_budget_usd", 5.0).await;
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["paused"]);
    // Raised: it goes on by itself.
    app.tell(id, SessionEvent::BudgetSet(6.0)).await;
    app.settle_until(|app| app.runtime.launched().len() == 2)
        .await;
    app.begins(id).await;
    // There is no credential, so that is as far as a call gets.
    assert!(app.calls_the_model(id).await.starts_with("HTTP/1.1 401"));
    assert!(app.calls_the_model(id).await.starts_with("HTTP/1.1 401"));
    let notes = app.notes(id).await;
    let [note] = notes.as_slice() else {
        panic!("not one warning: {notes:?}");
    };
    assert!(note.contains("$5.00 of the budget of $6.00"), "{note}");

    app.tell(id, SessionEvent::BudgetSet(4.0)).await;
    let answer = app.calls_the_model(id).await;
    assert!(answer.starts_with("HTTP/1.1 402"), "{answer}");
    assert!(answer.contains("x-should-retry: false"), "{answer}");
}

#[tokio::test]
async fn a_sandbox_lost_before_it_was_told_what_to_do_is_replaced_but_not_for_ever() {
    let mut app = App::new(2).await;
    let id = app.create(&[]).await;
    app.settle().await;
    for tries in 1..=5 {
        app.runtime.exits(id, 137, false);
        app.settle().await;
        assert_eq!(app.states(&[id]).await, ["queued"], "{tries} tries");
        assert!(app.detail(id).await.contains("lost"));
        app.clock.passed(SECOND * 16);
        app.settle().await;
        assert_eq!(app.states(&[id]).await, ["starting"], "{tries} tries");
    }
    assert_eq!(app.attempts(&[id]).await, [6]);
    app.runtime.exits(id, 137, false);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["failed"]);
}

#[tokio::test]
async fn a_sandbox_that_another_server_may_have_told_what_to_do_is_not_replaced() {
    let mut app = App::new(2).await;
    let id = app.create(&[]).await;
    app.settle().await;
    let mut app = app.restarted().await;
    app.settle().await;
    app.runtime.exits(id, 137, false);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["failed"]);
    assert_eq!(app.attempts(&[id]).await, [1]);
}

#[tokio::test]
async fn a_spent_budget_of_all_holds_everything_and_a_larger_one_lets_it_go_on() {
    let mut app = App::new(2).await;
    let (whole, ids) = app.orchestrated(4, None, 2.0).await;
    app.settle().await;
    assert_eq!(app.runtime.launched(), ids[..2]);
    assert_eq!(app.allowance(ids[0]).await, "2.00");
    app.begins(ids[0]).await;
    app.begins(ids[1]).await;
    app.ends(ids[0], false, "success", 1.5).await;
    app.settle().await;
    // Another one that costs as much would be too much.
    assert_eq!(app.runtime.launched(), ids[..2]);
    let detail = app.detail(ids[2]).await;
    assert!(detail.contains("no more than 1 may"), "{detail}");

    app.ends(ids[1], true, "error_max_budget_usd", 0.6).await;
    app.settle().await;
    let held = ["completed", "paused", "queued", "queued"];
    assert_eq!(app.states(&ids).await, held);
    for id in &ids[1..] {
        let detail = app.detail(*id).await;
        assert!(detail.contains("($2.10 of $2.00)"), "{detail}");
    }
    // All of it is in the store.
    let mut app = app.restarted().await;
    app.clock.passed(HOUR);
    app.settle().await;
    assert_eq!(app.states(&ids).await, held);

    let too_little = app.orchestrator.start_orchestration(whole, Some(2.1)).await;
    let is_refused = matches!(
        too_little,
        Err(OrchestratorError::OrchestrationBudgetSpent { .. })
    );
    assert!(is_refused, "{too_little:?}");
    let raised = app.orchestrator.start_orchestration(whole, Some(9.0)).await;
    assert!(raised.is_ok(), "{raised:?}");
    let mut app = app.restarted().await;
    app.settle_until(|app| app.runtime.launched().len() == 4)
        .await;
    // Both at once.
    let mut launched = app.runtime.launched().split_off(2);
    launched.sort_unstable();
    assert_eq!(launched, ids[1..3]);
    assert_eq!(app.attempts(&ids).await, [1, 2, 1, 1]);
    assert_eq!(app.allowance(ids[2]).await, "6.90");
    for id in &ids[1..] {
        app.begins(*id).await;
        app.ends(*id, false, "success", 0.5).await;
        app.settle().await;
    }
    assert_eq!(app.states(&ids).await, ["completed"; 4]);
}

#[tokio::test]
async fn the_model_is_called_no_more_for_anybody_when_the_budget_of_all_is_spent() {
    let mut app = App::new(3).await;
    let (whole, ids) = app.orchestrated(3, None, 10.0).await;
    app.settle().await;
    for id in &ids {
        app.begins(*id).await;
    }
    let [first, second, third] = ids[..] else {
        panic!("not three: {ids:?}");
    };
    assert!(app.calls_the_model(third).await.starts_with("HTTP/1.1 401"));
    assert_eq!(app.notes(third).await, Vec::<String>::new());
    app.ends(first, false, "success", 8.5).await;
    app.settle().await;
    assert!(app.calls_the_model(third).await.starts_with("HTTP/1.1 401"));
    assert!(app.calls_the_model(third).await.starts_with("HTTP/1.1 401"));
    let notes = app.notes(third).await;
    let [note] = notes.as_slice() else {
        panic!("not one warning: {notes:?}");
    };
    assert!(
        note.contains("$8.50 of the orchestration's budget of $10.00"),
        "{note}"
    );

    app.ends(second, false, "success", 1.6).await;
    app.settle().await;
    let answer = app.calls_the_model(third).await;
    assert!(answer.starts_with("HTTP/1.1 402"), "{answer}");
    // What it reports of itself is far from any budget: that it was refused is known.
    app.ends(third, true, "success", 0.1).await;
    app.settle().await;
    assert_eq!(app.states(&[third]).await, ["paused"]);
    let raised = app
        .orchestrator
        .start_orchestration(whole, Some(20.0))
        .await;
    assert!(raised.is_ok(), "{raised:?}");
    app.settle_until(|app| app.runtime.launched().len() == 4)
        .await;
    app.begins(third).await;
    app.ends(third, true, "success", 0.1).await;
    app.settle().await;
    assert_eq!(
        app.states(&[third]).await,
        ["failed"],
        "an error of its own"
    );
}

/// Adds two sessions to an orchestration whose first has completed, at some cost.
async fn check_added(parallel_sessions: Option<u64>, max_cost_usd: Option<f64>) {
    let mut app = App::new(4).await;
    let made = app.orchestrated(1, parallel_sessions, max_cost_usd).await;
    let (whole, ids) = made;
    app.settle().await;
    app.begins(ids[0]).await;
    app.ends(ids[0], false, "success", 4.0).await;
    app.settle().await;
    assert_eq!(app.states(&ids).await, ["completed"]);
    let mut app = app.restarted().await;
    let mut added = Vec::new();
    for _ in 0..2 {
        let new = NewSession {
            orchestration_id: Some(whole),
            ..crate::new_session(&[])
        };
        let made = app.orchestrator.create_session(new, None).await;
        let Accepted::Now(details) = made.expect("accepted") else {
            panic!("there was no key");
        };
        added.push(details.session.id);
    }
    app.settle().await;
    assert_eq!(app.states(&added).await, ["starting", "queued"]);
    if max_cost_usd == Some(5.0) {
        assert_eq!(app.allowance(added[0]).await, "1.00");
    }
}

#[tokio::test]
async fn what_is_added_later_keeps_to_the_limits_of_its_orchestration() {
    check_added(Some(1), None).await;
    check_added(None, Some(5.0)).await;
}

#[tokio::test]
async fn who_cannot_go_on_is_told_so_before_it_has_a_slot() {
    let mut app = App::new(1).await;
    let id = app.create(&[]).await;
    app.settle().await;
    app.begins(id).await;
    app.ends(id, false, "success", 0.0).await;
    app.settle().await;
    let other = app.create(&[]).await;
    app.settle().await;
    // By now its volumes are old, and a server that starts removes them.
    let mut app = app.restarted().await;
    app.settle().await;
    assert_eq!(app.runtime.volumes_of(id), 0);
    let resume = Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    };
    app.tell(id, SessionEvent::Resumed(resume)).await;
    app.settle().await;
    assert_eq!(app.states(&[id, other]).await, ["failed", "starting"]);
    let error = format!("{:?}", app.state(id).await);
    assert!(error.contains("ConversationLost"), "{error}");
}

#[tokio::test]
async fn an_agent_that_never_connects_is_replaced_but_not_for_ever() {
    let mut app = App::new(1).await;
    let id = app.create(&[]).await;
    app.settle().await;
    for tries in 1..=LAUNCHES_LOST_MAX {
        app.settle().await;
        assert_eq!(app.states(&[id]).await, ["starting"], "{tries} tries");
        app.clock.passed(CONNECT_WAIT + SECOND);
        app.settle().await;
        assert_eq!(app.states(&[id]).await, ["queued"], "{tries} tries");
        app.clock.passed(SECOND * 16);
        app.settle().await;
    }
    assert_eq!(app.states(&[id]).await, ["starting"]);
    assert_eq!(app.attempts(&[id]).await, [6]);
    assert_eq!(app.runtime.running().len(), 1, "those before are removed");
    app.clock.passed(CONNECT_WAIT + SECOND);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["failed"]);
    let error = format!("{:?}", app.state(id).await);
    assert!(error.contains("did not get ready"), "{error}");
}

#[tokio::test]
async fn an_agent_that_another_server_may_have_told_what_to_do_has_more_time_but_not_for_ever() {
    let mut app = App::new(1).await;
    let id = app.create(&[]).await;
    app.settle().await;
    let mut app = app.restarted().await;
    app.settle().await;
    app.clock.passed(CONNECT_WAIT + SECOND);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["starting"]);
    app.clock.passed(ABSENCE_MAX);
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["failed"]);
    assert_eq!(app.attempts(&[id]).await, [1]);
    assert!(app.runtime.running().is_empty(), "its container is removed");
    let error = format!("{:?}", app.state(id).await);
    assert!(error.contains("not heard from for 10 minutes"), "{error}");
}

#[tokio::test]
async fn an_agent_has_all_its_time_from_when_its_container_is_started_at_last() {
    let mut app = App::new(1).await;
    app.runtime.fail_next(Verb::Launch, unreachable());
    let id = app.create(&[]).await;
    app.reconciler.pass().await;
    app.reconciler.settle().await;
    assert_eq!(app.states(&[id]).await, ["starting"]);
    assert!(app.runtime.running().is_empty(), "it could not be started");
    // The next server does not know what this one told whom, and cannot start it either.
    app.runtime.fail_next(Verb::Launch, unreachable());
    let mut app = app.restarted().await;
    app.reconciler.pass().await;
    app.reconciler.settle().await;
    assert!(app.runtime.running().is_empty(), "it could not be started");
    app.clock.passed(ABSENCE_MAX + SECOND);
    app.settle_until(|app| !app.runtime.running().is_empty())
        .await;
    app.settle().await;
    assert_eq!(app.states(&[id]).await, ["starting"]);
    app.clock.passed(ABSENCE_MAX + SECOND);
    app.settle().await;
    assert_ne!(app.states(&[id]).await, ["starting"]);
}
