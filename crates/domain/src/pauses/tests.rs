//! Who waits until when, by examples and for any number of limited sessions.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::budget::Spending;
use crate::ending::{ClaudeResult, Cut, Usage};
use crate::testing::{at, letter, session, session_id};

/// A session from `a:queued`; with `@100` the last attempt was told of a limit until second
/// 100; `a:limited@100` pauses for it, `a:resumed@100` has gone on and is queued.
fn limited(entry: &str) -> Session {
    let (entry, until) = match entry.split_once('@') {
        Some((entry, until)) => (entry, Some(at(until.parse().expect("a second")))),
        None => (entry, None),
    };
    let mut one = session(
        &entry
            .replace(":limited", ":created")
            .replace(":resumed", ":queued"),
    );
    one.steering.limited_until = until;
    if entry.ends_with(":resumed") {
        one.steering.resume = Some(Resume {
            from: Attempt::FIRST,
            text: "go on".into(),
        });
    }
    if entry.ends_with(":limited") {
        one.state = SessionState::Paused {
            attempt: Attempt::FIRST,
            started_at: Some(at(10)),
            pause: Pause::UsageLimit {
                until: until.expect("limited until"),
            },
            since: at(20),
        };
    }
    one
}

fn sessions(entries: &str) -> Vec<Arc<Session>> {
    let entries = entries.split_whitespace();
    entries.map(|entry| Arc::new(limited(entry))).collect()
}

#[track_caller]
fn check(entries: &str, now: i64, expected: Expect) {
    let (sessions, now) = (sessions(entries), at(now));
    let limit = account_limit(&sessions, now);
    let second = |at: Option<Timestamp>| at.map_or("-".into(), |at| at.as_second().to_string());
    let resumed: String = resumptions(&sessions, &HashMap::new(), now)
        .iter()
        .map(|(one, _)| letter(one.id))
        .collect();
    let launched: String = sessions
        .iter()
        .filter(|one| one.state == SessionState::Queued && may_launch(one, limit, now))
        .map(|one| letter(one.id))
        .collect();
    expected.assert_eq(&format!(
        "limit {}, resumes [{resumed}], may launch [{launched}], next {}",
        second(limit),
        second(next_change(&sessions, now))
    ));
}

#[test]
fn while_one_is_limited_nothing_is_launched() {
    check(
        "a:limited@100 b:queued",
        50,
        expect!["limit 100, resumes [], may launch [], next 100"],
    );
    check(
        "a:queued",
        50,
        expect!["limit -, resumes [], may launch [a], next -"],
    );
}

#[test]
fn the_latest_limit_counts() {
    check(
        "a:limited@100 b:limited@900 c:queued",
        500,
        expect!["limit 900, resumes [], may launch [], next 900"],
    );
}

#[test]
fn a_limit_holds_before_its_session_has_paused_and_after_it_was_told_to_go_on() {
    check(
        "a:concluding@100 b:queued",
        50,
        expect!["limit 100, resumes [], may launch [], next 100"],
    );
    check(
        "a:resumed@100 b:queued",
        50,
        expect!["limit 100, resumes [], may launch [], next 100"],
    );
    check(
        "a:running@100 b:queued",
        50,
        expect!["limit -, resumes [], may launch [b], next -"],
    );
}

#[test]
fn limited_sessions_go_on_one_after_the_other_and_then_the_others() {
    check(
        "a:limited@100 b:limited@100 c:queued",
        100,
        expect!["limit 100, resumes [a], may launch [], next 101"],
    );
    check(
        "a:resumed@100 b:limited@100 c:queued",
        101,
        expect!["limit 100, resumes [], may launch [a], next 105"],
    );
    check(
        "a:running@100 b:limited@100 c:queued",
        105,
        expect!["limit 100, resumes [b], may launch [], next 106"],
    );
    check(
        "a:running@100 b:resumed@100 c:queued",
        106,
        expect!["limit -, resumes [], may launch [bc], next -"],
    );
}

#[test]
fn a_command_calls_no_model_and_starts_in_spite_of_a_limit() {
    let mut gate = session("b:queued");
    assert!(!may_launch(&gate, Some(at(100)), at(50)));
    gate.command = Some("make test".into());
    assert!(may_launch(&gate, Some(at(100)), at(50)));
}

#[test]
fn a_limit_that_is_told_again_is_news_once_the_known_one_is_over() {
    let running = session("a:running");
    let hit = |one: &Session, until, now| {
        let event = SessionEvent::LimitHit(Attempt::FIRST, at(until));
        one.after(&event, at(now)).expect("it runs")
    };
    let limited = hit(&running, 100, 50);
    assert_eq!(hit(&limited, 150, 51).steering.limited_until, Some(at(100)));
    assert_eq!(hit(&limited, 161, 51).steering.limited_until, Some(at(161)));
    assert_eq!(hit(&limited, 60, 51).steering.limited_until, Some(at(100)));
    // It went on at second 100, and is refused at once for half a minute more.
    assert_eq!(
        hit(&limited, 130, 105).steering.limited_until,
        Some(at(130))
    );
}

#[test]
fn what_a_command_prints_of_limits_is_no_limit() {
    let mut gate = session("a:concluding");
    gate.steering.limited_until = Some(at(100));
    gate.command = Some("make test".into());
    assert_eq!(
        pause_after(&gate, &ended(true, "success"), 1.0, false),
        None
    );
    assert_eq!(pause_after(&gate, &Ending::default(), 1.0, false), None);
}

#[test]
fn a_lost_launch_is_tried_again_later_each_time_and_not_for_ever() {
    let mut one = session("a:starting");
    let mut waits = Vec::new();
    while let Some(lost) = launch_lost(&one, one.attempt) {
        one = one.after(&lost, at(50)).expect("is starting");
        let again = one.steering.launch_after.expect("a pause");
        assert!(!may_launch(&one, None, at(50)) && may_launch(&one, None, again));
        assert_eq!(next_change(&[Arc::new(one.clone())], at(50)), Some(again));
        waits.push(again.as_second() - 50);
        let decided = SessionEvent::LaunchDecided(one.attempt);
        one = one.after(&decided, again).expect("is queued");
    }
    assert_eq!(waits, [1, 2, 4, 8, 16]);
    assert_eq!(one.attempt, Attempt(6));
    // What was lost before says nothing about the next time.
    let started = SessionEvent::ClaudeStarted(one.attempt);
    let cancel = one.after(&started, at(99)).expect("is starting");
    assert_eq!(launch_lost(&cancel, one.attempt), None);
}

fn ended(is_error: bool, subtype: &str) -> Ending {
    Ending {
        result: Some(ClaudeResult {
            subtype: subtype.into(),
            is_error,
            text: "API Error".into(),
            usage: Usage::default(),
        }),
        ..Ending::default()
    }
}

#[track_caller]
fn check_end(entry: &str, ending: &Ending, spent_usd: f64, expected: &str) {
    let mut one = limited(entry);
    one.steering.max_cost_usd = Some(2.0);
    let pause = match pause_after(&one, ending, spent_usd, false) {
        None => "none".to_owned(),
        Some(Pause::UsageLimit { until }) => format!("limit {}", until.as_second()),
        Some(Pause::Budget { spent_usd }) => format!("budget {spent_usd}"),
        Some(Pause::OrchestrationBudget) => "shared budget".to_owned(),
    };
    assert_eq!(pause, expected, "{entry} {ending:?}");
}

#[test]
fn an_error_is_a_pause_where_a_limit_or_the_budget_explains_it() {
    let error = ended(true, "success");
    check_end("a:concluding@100", &error, 1.0, "limit 100");
    check_end("a:concluding", &error, 1.0, "none");
    // Told to an earlier attempt: this one was started at second 10.
    check_end("a:concluding@9", &error, 1.0, "none");
    check_end("a:concluding", &error, 2.0, "budget 2");
    let budget = ended(true, "error_max_budget_usd");
    check_end("a:concluding", &budget, 2.5, "budget 2.5");
    check_end("a:concluding@100", &budget, 2.5, "budget 2.5");
}

#[test]
fn what_completed_or_was_stopped_is_no_pause() {
    let done = ended(false, "success");
    check_end("a:concluding@100", &done, 9.0, "none");
    let cancelled = Ending {
        cut: Some(Cut::Cancelled),
        ..ended(true, "success")
    };
    check_end("a:concluding@100", &cancelled, 9.0, "none");
    let unsaved = Ending {
        salvage_failure: Some("no room".into()),
        ..ended(true, "success")
    };
    check_end("a:concluding@100", &unsaved, 9.0, "none");
}

#[test]
fn a_budget_pause_ends_when_the_budget_is_raised() {
    let mut one = limited("a:limited@100");
    one.steering.limited_until = None;
    let SessionState::Paused { pause, .. } = &mut one.state else {
        panic!("{one:?}");
    };
    *pause = Pause::Budget { spent_usd: 2.0 };
    one.steering.max_cost_usd = Some(2.0);
    assert!(resumptions(&[Arc::new(one.clone())], &HashMap::new(), at(50)).is_empty());
    one = one
        .after(&SessionEvent::BudgetSet(5.0), at(51))
        .expect("is paused");
    let resumed = resumptions(&[Arc::new(one.clone())], &HashMap::new(), at(52));
    let on = one.after(&resumed[0].1, at(52)).expect("is paused");
    assert_eq!(on.steering.max_cost_usd, Some(5.0));
}

#[test]
fn who_was_stopped_by_the_budget_of_all_waits_for_that_one() {
    let pause = |subtype: &str, refused: bool, own_usd: Option<f64>, shares: bool| {
        let mut one = limited("a:concluding");
        one.steering.max_cost_usd = own_usd;
        one.steering.budget_spent = refused;
        pause_after(&one, &ended(true, subtype), 2.0, shares)
    };
    let own = Some(Pause::Budget { spent_usd: 2.0 });
    let shared = Some(Pause::OrchestrationBudget);
    assert_eq!(pause("error_max_budget_usd", false, None, true), shared);
    assert_eq!(pause("success", true, None, true), shared);
    assert_eq!(pause("success", true, Some(5.0), true), shared);
    assert_eq!(pause("success", true, Some(2.0), true), own);
    assert_eq!(pause("success", true, Some(2.5), false), own);
    // An error of its own, while the others spend.
    assert_eq!(pause("success", false, None, true), None);
}

#[test]
fn a_larger_budget_of_all_lets_all_go_on_that_wait_for_it() {
    let id = OrchestrationId(uuid::Uuid::nil());
    let mut one = limited("a:limited@100");
    one.steering.limited_until = None;
    one.orchestration_id = Some(id);
    let SessionState::Paused { pause, .. } = &mut one.state else {
        panic!("{one:?}");
    };
    *pause = Pause::OrchestrationBudget;
    let one = Arc::new(one);
    let resumed = |max_usd: f64| {
        let spending = Spending {
            reported_usd: 6.0,
            reported_by: 2,
            running_usd: 4.0,
        };
        let bounds = Bounds {
            parallel_max: None,
            budget: Some(Budget { max_usd, spending }),
        };
        resumptions(&[Arc::clone(&one)], &HashMap::from([(id, bounds)]), at(50)).len()
    };
    assert_eq!(resumed(10.0), 0);
    assert_eq!(resumed(10.05), 0);
    assert_eq!(resumed(12.0), 1);
}

#[test]
fn a_limit_that_cannot_be_is_not_believed() {
    let until = |resets_at: Option<i64>, retry_after: Option<i64>| {
        let limit = UsageLimit {
            resets_at: resets_at.map(at),
            retry_after: retry_after.map(SignedDuration::from_secs),
        };
        limit.until(at(50), LIMIT_PRINTED_MAX).as_second()
    };
    let six_hours = 6 * 3_600;
    assert_eq!(until(Some(3), None), 60);
    assert_eq!(until(Some(500), Some(7)), 500);
    assert_eq!(until(Some(100 * six_hours), None), 50 + six_hours);
    assert_eq!(until(None, Some(70)), 120);
    assert_eq!(until(None, Some(i64::MAX)), 50 + six_hours);
    assert_eq!(until(None, None), 350);
}

proptest! {
    #[test]
    fn every_limited_session_goes_on_and_nobody_before_the_limit_is_lifted(
        untils in proptest::collection::vec(100i64..200, 1..20),
    ) {
        let mut all: Vec<Arc<Session>> = untils.iter().enumerate().map(|(index, until)| {
            let mut one = limited(&format!("a:limited@{until}"));
            one.id = session_id("a");
            one.id.0 = uuid::Uuid::from_u128(index as u128);
            Arc::new(one)
        }).collect();
        let lifted = at(*untils.iter().max().expect("one"));
        let mut now = at(50);
        let mut steps = 0;
        while let Some(next) = next_change(&all, now) {
            now = next;
            for (one, event) in resumptions(&all, &HashMap::new(), now) {
                prop_assert!(now >= lifted);
                let place = all.iter().position(|of| of.id == one.id).expect("one of them");
                let on = one.after(&event, now);
                all[place] = Arc::new(on.expect("is paused"));
            }
            steps += 1;
            prop_assert!(steps <= 100);
        }
        prop_assert!(all.iter().all(|one| one.state == SessionState::Queued));
        prop_assert!(now <= lifted + RESUME_STAGGER * 20);
    }
}
