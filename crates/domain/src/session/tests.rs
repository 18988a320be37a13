use super::*;
use crate::ending::{Cut, Ending, FailureCode, Loss};
use crate::steering::MESSAGES_WAITING_BYTES_MAX;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a second within range")
}

fn starting() -> SessionState {
    SessionState::Starting {
        attempt: Attempt::FIRST,
        since: at(1),
    }
}

fn running() -> SessionState {
    SessionState::Running {
        attempt: Attempt::FIRST,
        since: at(2),
    }
}

#[test]
fn asking_twice_for_a_start_changes_nothing() {
    let queued = SessionState::Queued;
    assert_eq!(
        queued.after(&SessionEvent::StartRequested, at(5)),
        Ok(SessionState::Queued)
    );
    assert!(
        running()
            .after(&SessionEvent::StartRequested, at(5))
            .is_err()
    );
}

#[test]
fn an_older_attempt_says_nothing_about_this_one() {
    let second = SessionState::Running {
        attempt: Attempt(2),
        since: at(2),
    };
    let old_end = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let old_loss = SessionEvent::SandboxLost(Attempt::FIRST, Loss::Removed);
    assert!(second.after(&old_end, at(3)).is_err());
    assert!(second.after(&old_loss, at(3)).is_err());
}

#[test]
fn a_cancelled_session_keeps_its_start_and_ends_cancelled() {
    let stopping = running()
        .after(&SessionEvent::CancelRequested, at(3))
        .expect("may stop");
    assert_eq!(stopping.started_at(), Some(at(2)));
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let concluding = stopping.after(&ended, at(4)).expect("may end");
    let SessionState::Concluding { ending, .. } = &concluding else {
        panic!("{concluding:?}");
    };
    assert_eq!(Outcome::of(ending), Outcome::Cancelled);
}

#[test]
fn a_stop_that_nobody_asked_for_is_no_cancellation() {
    let ending = Ending {
        cut: Some(Cut::Cancelled),
        ..Ending::default()
    };
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::new(ending));
    let concluding = running().after(&ended, at(3)).expect("may end");
    let SessionState::Concluding { ending, .. } = &concluding else {
        panic!("{concluding:?}");
    };
    let Outcome::Failed { code, .. } = Outcome::of(ending) else {
        panic!("{ending:?}");
    };
    assert_eq!(code, FailureCode::Interrupted);
}

fn awaiting() -> SessionState {
    let yielded = SessionEvent::SlotYielded(Attempt::FIRST);
    running().after(&yielded, at(7)).expect("may wait")
}

#[test]
fn who_waits_for_others_gives_its_slot_up_and_takes_it_back() {
    let awaiting = awaiting();
    assert!(running().holds_slot() && !awaiting.holds_slot());
    assert_eq!(awaiting.status(false), Status::Running);
    // A second wait beside the first, or one that is asked for again.
    let again = awaiting.after(&SessionEvent::SlotYielded(Attempt::FIRST), at(8));
    assert_eq!(again.as_ref(), Ok(&awaiting));
    let back = awaiting.after(&SessionEvent::SlotTaken(Attempt::FIRST), at(9));
    assert_eq!(back, Ok(running()), "it started when it did");
    let other = SessionEvent::SlotTaken(Attempt(2));
    assert!(awaiting.after(&other, at(9)).is_err());
    assert!(
        starting()
            .after(&SessionEvent::SlotYielded(Attempt::FIRST), at(9))
            .is_err()
    );
}

#[test]
fn whatever_may_happen_to_one_that_runs_may_happen_while_it_waits() {
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let events = [
        ended,
        SessionEvent::CancelRequested,
        SessionEvent::SandboxLost(Attempt::FIRST, Loss::Removed),
        SessionEvent::MessageSent("hello".into()),
        SessionEvent::MessageTold(Attempt::FIRST, 1),
        SessionEvent::LimitHit(Attempt::FIRST, at(90)),
        SessionEvent::BudgetSet(1.0),
        SessionEvent::LaunchFailed(
            Attempt::FIRST,
            Outcome::failed(FailureCode::CloneFailed, "no such repository"),
        ),
    ];
    for event in events {
        let of_running = running().after(&event, at(9)).expect("may happen");
        let of_awaiting = awaiting().after(&event, at(9)).expect("may happen");
        if of_running == running() {
            assert_eq!(of_awaiting, awaiting(), "{}", event.name());
        } else {
            assert_eq!(of_awaiting, of_running, "{}", event.name());
        }
        assert_eq!(of_awaiting.started_at(), Some(at(2)), "{}", event.name());
    }
}

#[test]
fn an_outcome_is_recorded_once() {
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let concluding = starting().after(&ended, at(3)).expect("may end");
    let concluded = SessionEvent::Concluded(Attempt::FIRST, Outcome::Completed);
    let finished = concluding.after(&concluded, at(4)).expect("may conclude");
    assert_eq!(finished.standing(), Standing::Completed);
    assert!(finished.after(&concluded, at(5)).is_err());
    assert!(finished.after(&ended, at(5)).is_err());
    assert!(
        finished
            .after(&SessionEvent::CancelRequested, at(5))
            .is_err()
    );
}

#[test]
fn a_launch_that_cannot_be_fails_the_session() {
    let outcome = Outcome::failed(FailureCode::CloneFailed, "no such repository");
    let event = SessionEvent::LaunchFailed(Attempt::FIRST, outcome);
    assert_eq!(
        starting().after(&event, at(3)).map(|s| s.name()),
        Ok("failed")
    );
    assert_eq!(
        SessionState::Queued.after(&event, at(3)).map(|s| s.name()),
        Ok("failed")
    );
}

fn finished(outcome: Outcome) -> Session {
    let mut session = crate::testing::session("a:running");
    session.state = session.state.finished(outcome, at(5));
    session
}

#[test]
fn a_retry_is_a_new_attempt_from_the_start() {
    let mut failed = finished(Outcome::failed(FailureCode::Stalled, "silent"));
    failed.steering.resume = Some(Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    });
    let again = failed
        .after(&SessionEvent::RetryRequested, at(6))
        .expect("may be retried");
    assert_eq!(again.state, SessionState::Queued);
    assert_eq!((again.attempt, again.steering.resume), (Attempt(2), None));
    let completed = finished(Outcome::Completed);
    assert!(
        completed
            .after(&SessionEvent::RetryRequested, at(6))
            .is_err()
    );
}

#[test]
fn what_an_attempt_spent_counts_once_though_the_next_is_lost() {
    let mut failed = finished(Outcome::failed(FailureCode::Stalled, "silent"));
    let usage = Some(Usage {
        cost_usd: 0.5,
        ..Usage::default()
    });
    failed.report = Some(Report {
        usage,
        ..Report::default()
    });
    let again = [
        SessionEvent::RetryRequested,
        SessionEvent::LaunchDecided(Attempt(2)),
        SessionEvent::SandboxLost(Attempt(2), Loss::Removed),
        SessionEvent::RetryRequested,
    ]
    .iter()
    .try_fold(failed, |session, event| session.after(event, at(6)))
    .expect("may be retried");
    assert_eq!(again.attempt, Attempt(3));
    assert!((again.steering.cost_before_usd - 0.5).abs() < f64::EPSILON);
}

#[test]
fn a_launch_that_failed_says_nothing_about_the_retry() {
    let failed = |of| {
        let outcome = Outcome::failed(FailureCode::CloneFailed, "the remote is away");
        SessionEvent::LaunchFailed(Attempt(of), outcome)
    };
    let mut session = finished(Outcome::failed(FailureCode::Stalled, "silent"));
    session = session
        .after(&SessionEvent::RetryRequested, at(6))
        .expect("may be retried");
    assert!(session.after(&failed(1), at(7)).is_err());
    assert!(session.after(&failed(2), at(7)).is_ok());
}

#[test]
fn what_an_attempt_never_heard_is_told_to_the_retry() {
    let now = at(6);
    let resume = SessionEvent::Resumed(Resume {
        from: Attempt::FIRST,
        text: "mind the tests".into(),
    });
    let failed = SessionEvent::LaunchFailed(
        Attempt(2),
        Outcome::failed(FailureCode::LaunchFailed, "no room"),
    );
    let mut session = finished(Outcome::Completed);
    let saved = SessionEvent::Saved(Attempt(2));
    for event in [resume, failed, saved, SessionEvent::RetryRequested] {
        session = session.after(&event, now).expect("possible");
    }
    let waiting: Vec<_> = session.steering.messages.iter().collect();
    assert_eq!(session.steering.resume, None);
    assert_eq!(waiting[0].text, "mind the tests");
}

#[test]
fn a_blocked_session_waits_again_as_it_waited_before() {
    for (before, event) in [
        (SessionState::Created, SessionEvent::DependencyRetried),
        (SessionState::Queued, SessionEvent::DependencyRetried),
    ] {
        let lost = SessionEvent::DependencyLost(crate::testing::session_id("z"));
        let blocked = before.after(&lost, at(1)).expect("may be lost");
        assert_eq!(blocked.after(&event, at(2)), Ok(before));
    }
}

#[test]
fn a_message_that_came_too_late_is_told_by_going_on() {
    let running = crate::testing::session("a:running");
    let said = running
        .after(&SessionEvent::MessageSent("use tabs".into()), at(11))
        .and_then(|said| said.after(&SessionEvent::MessageSent("and tests".into()), at(12)))
        .and_then(|said| said.after(&SessionEvent::MessageTold(Attempt::FIRST, 1), at(13)))
        .expect("may be said");
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let concluded = SessionEvent::Concluded(Attempt::FIRST, Outcome::Completed);
    let on = said
        .after(&ended, at(14))
        .and_then(|said| said.after(&concluded, at(15)))
        .expect("may end");
    assert_eq!((&on.state, on.attempt), (&SessionState::Queued, Attempt(2)));
    let resume = on.steering.resume.expect("goes on");
    assert_eq!(
        (resume.from, resume.text.as_str()),
        (Attempt::FIRST, "and tests")
    );
    assert!(on.steering.messages.is_empty());
}

#[test]
fn a_pause_holds_no_slot_and_ends_by_going_on() {
    let ended = SessionEvent::AgentEnded(Attempt::FIRST, Box::default());
    let pause = Pause::UsageLimit { until: at(99) };
    let paused = crate::testing::session("a:running")
        .after(&ended, at(14))
        .and_then(|ended| ended.after(&SessionEvent::Paused(Attempt::FIRST, pause), at(15)))
        .expect("may pause");
    assert!(!paused.state.holds_slot() && !paused.state.is_over());
    let resume = Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    };
    let on = paused
        .after(&SessionEvent::Resumed(resume), at(99))
        .expect("may go on");
    assert_eq!((on.state, on.attempt), (SessionState::Queued, Attempt(2)));
}

/// A session of this kind, paused after its first attempt.
fn paused(kind: Kind) -> Session {
    let pause = Pause::Budget { spent_usd: 1.0 };
    let state = SessionState::Paused {
        attempt: Attempt::FIRST,
        started_at: Some(at(2)),
        pause,
        since: at(9),
    };
    Session {
        kind,
        state,
        ..crate::testing::session("a:running")
    }
}

#[track_caller]
fn check_end(session: &Session, event: &SessionEvent, expected: [&str; 2]) {
    let ended = session.after(event, at(20)).expect("may end");
    assert!(!ended.state.holds_slot());
    let saved = ended.after(&SessionEvent::Saved(ended.attempt), at(21));
    let saved = saved.map_or("", |saved| saved.state.name());
    assert_eq!([ended.state.name(), saved], expected);
}

#[test]
fn who_may_have_left_work_is_over_once_that_is_saved() {
    let cancelled = &SessionEvent::CancelRequested;
    let lost = |attempt| SessionEvent::SandboxLost(attempt, Loss::Removed);
    let one = paused(Kind::Implementation);
    check_end(&one, cancelled, ["saving", "cancelled"]);
    let resume = Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    };
    let on = one.after(&SessionEvent::Resumed(resume), at(10));
    let on = on.expect("may go on");
    check_end(&on, cancelled, ["saving", "cancelled"]);
    let launched = on.after(&SessionEvent::LaunchDecided(Attempt(2)), at(11));
    let launched = launched.expect("may be launched");
    check_end(&launched, &lost(Attempt(2)), ["saving", "failed"]);
    let running = crate::testing::session("a:running");
    check_end(&running, &lost(Attempt::FIRST), ["saving", "failed"]);

    check_end(&paused(Kind::Review), cancelled, ["cancelled", ""]);
    let queued = crate::testing::session("a:queued");
    check_end(&queued, cancelled, ["cancelled", ""]);
    let starting = crate::testing::session("a:starting");
    check_end(&starting, &lost(Attempt::FIRST), ["failed", ""]);
}

#[test]
fn while_work_is_saved_a_cancel_is_no_news_and_nothing_else_is_heard() {
    let saving = paused(Kind::Testing)
        .after(&SessionEvent::CancelRequested, at(20))
        .expect("may be cancelled");
    let again = saving.after(&SessionEvent::CancelRequested, at(21));
    assert_eq!(again.as_ref(), Ok(&saving));
    let said = SessionEvent::MessageSent("go on".into());
    assert!(saving.after(&said, at(21)).is_err());
    assert!(saving.after(&SessionEvent::RetryRequested, at(21)).is_err());
    assert!(
        saving
            .after(&SessionEvent::Saved(Attempt(2)), at(21))
            .is_err()
    );
}

#[test]
fn a_command_is_retried_but_not_talked_to() {
    let mut gate = finished(Outcome::failed(FailureCode::GateFailed, "red"));
    gate.command = Some("make test".into());
    let again = gate.after(&SessionEvent::RetryRequested, at(6));
    assert_eq!(again.map(|again| again.attempt), Ok(Attempt(2)));
    let said = SessionEvent::MessageSent("go on".into());
    assert!(gate.after(&said, at(6)).is_err());
    assert!(!gate.pushes());
}

#[test]
fn only_who_has_begun_can_go_on() {
    let never = crate::testing::session("a:queued")
        .after(&SessionEvent::CancelRequested, at(1))
        .expect("may be cancelled");
    let resume = SessionEvent::Resumed(Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    });
    assert!(never.after(&resume, at(2)).is_err());
}

#[test]
fn what_waits_to_be_told_fits_in_one_message() {
    let mut one = crate::testing::session("a:running");
    let half = SessionEvent::MessageSent("x".repeat(MESSAGES_WAITING_BYTES_MAX / 2));
    for _ in 0..2 {
        one = one.after(&half, at(11)).expect("there is room");
    }
    let more = SessionEvent::MessageSent("x".into());
    assert!(one.after(&more, at(12)).is_err());
    let told = SessionEvent::MessageTold(Attempt::FIRST, 1);
    let told = one.after(&told, at(13)).expect("it runs");
    assert!(told.after(&more, at(14)).is_ok());
}
