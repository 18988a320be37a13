//! How long Claude is waited for.

use std::time::Duration;

use baton_agent::protocol::Timers;
use baton_domain::ending::Cut;
use tokio::time::Instant;

/// What is known of Claude's progress, as far as time goes. Pure: the time is an argument.
///
/// Silence counts only while it is Claude's own: not while the server is away, since Claude then
/// waits for the model, and not while its output has to wait for room. While Claude waits for other
/// sessions no time counts at all: they may take hours, and each has limits of its own.
#[derive(Debug)]
pub struct Patience {
    timers: Timers,
    started: Instant,
    /// Whether it printed anything yet.
    heard: bool,
    /// Silence up to `silent_since`.
    silence: Duration,
    /// None while silence does not count.
    silent_since: Option<Instant>,
    pauses: u32,
    /// Time up to `excused_since` that does not count at all.
    excused: Duration,
    /// None while time counts.
    excused_since: Option<Instant>,
    result_at: Option<Instant>,
    /// Whether it was told something since its last result; it may have taken notice of that before
    /// the next one, or go on after it.
    told: bool,
    /// Whether that was so when the result came that `result_at` tells of.
    may_go_on: bool,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stop Claude.
    Cut(Cut),
    /// Ask again after this time at the latest.
    Wait(Duration),
}

impl Patience {
    /// Claude starts now.
    pub fn new(timers: Timers, now: Instant) -> Self {
        Self {
            timers,
            started: now,
            heard: false,
            silence: Duration::ZERO,
            silent_since: Some(now),
            pauses: 0,
            excused: Duration::ZERO,
            excused_since: None,
            result_at: None,
            told: false,
            may_go_on: false,
        }
    }

    /// Claude wrote something. After a result that means that it works on, so the grace begins
    /// anew; where it had been told something, it has begun to answer that, and may be as silent as
    /// before. Says whether it was the first time, after which another limit holds.
    pub fn hear(&mut self, now: Instant) -> bool {
        let is_first = !std::mem::replace(&mut self.heard, true);
        self.silence = Duration::ZERO;
        self.silent_since = self.silent_since.and(Some(now));
        self.result_at = match self.may_go_on {
            true => None,
            false => self.result_at.and(Some(now)),
        };
        self.may_go_on = false;
        is_first
    }

    /// Claude gave a result.
    pub fn result(&mut self, now: Instant) {
        self.result_at = Some(now);
        self.may_go_on = std::mem::take(&mut self.told);
    }

    /// Claude is told something; after a result it begins anew with that.
    pub fn told(&mut self, now: Instant) {
        self.told = self.result_at.take().is_none() || self.may_go_on;
        self.may_go_on = false;
        self.silence = Duration::ZERO;
        self.silent_since = self.silent_since.and(Some(now));
    }

    /// Silence does not count from now on. Pauses nest.
    pub fn pause(&mut self, now: Instant) {
        self.pauses += 1;
        if let Some(since) = self.silent_since.take() {
            self.silence += now.saturating_duration_since(since);
        }
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Instant) {
        self.pauses = self.pauses.saturating_sub(1);
        if self.pauses == 0 {
            self.silent_since.get_or_insert(now);
        }
    }

    /// Claude waits for other sessions from now on.
    pub fn excuse(&mut self, now: Instant) {
        self.pause(now);
        self.excused_since.get_or_insert(now);
    }

    /// It does not any more.
    pub fn demand(&mut self, now: Instant) {
        self.excused = self.excused_for(now);
        self.excused_since = None;
        self.resume(now);
    }

    fn excused_for(&self, now: Instant) -> Duration {
        let since = self.excused_since;
        self.excused + since.map_or(Duration::ZERO, |then| now.saturating_duration_since(then))
    }

    /// Whether the patience is over.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let mut wait = Duration::MAX;
        let mut check = |spent: Duration, limit_ms: u64, cut: Cut| {
            let left = Duration::from_millis(limit_ms).saturating_sub(spent);
            wait = wait.min(left);
            left.is_zero().then_some(Verdict::Cut(cut))
        };
        let since = |then: Instant| now.saturating_duration_since(then);
        let timers = &self.timers;

        let worked = since(self.started).saturating_sub(self.excused_for(now));
        let mut over = check(worked, timers.timeout_ms, Cut::TimedOut);
        if let Some(at) = self.result_at {
            over = over.or(check(
                since(at),
                timers.result_grace_ms,
                Cut::HungAfterResult,
            ));
        } else if let Some(silence) = self.silent_for(now) {
            over = over.or(if self.heard {
                check(silence, timers.silence_ms, Cut::Stalled)
            } else {
                check(silence, timers.first_byte_ms, Cut::NoFirstByte)
            });
        }
        over.unwrap_or(Verdict::Wait(wait))
    }

    /// None while silence does not count.
    fn silent_for(&self, now: Instant) -> Option<Duration> {
        let since = self.silent_since?;
        Some(self.silence + now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMERS: Timers = Timers {
        first_byte_ms: 60,
        silence_ms: 900,
        result_grace_ms: 30,
        term_grace_ms: 10,
        timeout_ms: 5_000,
    };

    /// Plays `script` of `(at_ms, what)` and asks at `ask_ms`.
    fn verdict(script: &[(u64, &str)], ask_ms: u64) -> Verdict {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let mut patience = Patience::new(TIMERS, zero);
        for &(ms, what) in script {
            match what {
                "hear" => {
                    patience.hear(at(ms));
                }
                "result" => patience.result(at(ms)),
                "told" => patience.told(at(ms)),
                "pause" => patience.pause(at(ms)),
                "resume" => patience.resume(at(ms)),
                "excuse" => patience.excuse(at(ms)),
                "demand" => patience.demand(at(ms)),
                other => panic!("no such step: {other}"),
            }
        }
        patience.verdict(at(ask_ms))
    }

    fn wait(ms: u64) -> Verdict {
        Verdict::Wait(Duration::from_millis(ms))
    }

    #[test]
    fn each_silence_has_its_limit() {
        assert_eq!(verdict(&[], 59), wait(1));
        assert_eq!(verdict(&[], 60), Verdict::Cut(Cut::NoFirstByte));
        assert_eq!(verdict(&[(50, "hear")], 949), wait(1));
        assert_eq!(verdict(&[(50, "hear")], 950), Verdict::Cut(Cut::Stalled));
    }

    #[test]
    fn silence_counts_only_while_it_is_claudes_own() {
        let away = [(50, "pause"), (500, "resume")];
        assert_eq!(verdict(&away, 509), wait(1));
        assert_eq!(verdict(&away, 510), Verdict::Cut(Cut::NoFirstByte));
        assert_eq!(
            verdict(&[(50, "pause")], 4_999),
            wait(1),
            "only the timeout is left"
        );
        let nested = [
            (10, "hear"),
            (20, "pause"),
            (30, "pause"),
            (40, "resume"),
            (1_000, "resume"),
        ];
        assert_eq!(verdict(&nested, 1_000), wait(890));
        assert_eq!(
            verdict(&[(10, "pause"), (20, "hear"), (30, "resume")], 30),
            wait(900)
        );
    }

    #[test]
    fn after_the_result_only_the_grace_counts() {
        assert_eq!(verdict(&[(1, "hear"), (1, "result")], 30), wait(1));
        let hung = Verdict::Cut(Cut::HungAfterResult);
        assert_eq!(verdict(&[(1, "hear"), (1, "result")], 31), hung);
        assert_eq!(verdict(&[(1, "result"), (20, "hear")], 31), wait(19));
    }

    #[test]
    fn who_was_told_more_may_be_silent_again() {
        let after_it = [(1, "hear"), (1, "result"), (2, "told")];
        assert_eq!(verdict(&after_it, 901), wait(1));
        assert_eq!(verdict(&after_it, 902), Verdict::Cut(Cut::Stalled));
        let before_it = [(1, "hear"), (2, "told"), (3, "hear"), (3, "result")];
        assert_eq!(verdict(&before_it, 32), wait(1));
        assert_eq!(verdict(&before_it, 33), Verdict::Cut(Cut::HungAfterResult));
        let and_on = [&before_it[..], &[(4, "hear")]].concat();
        assert_eq!(verdict(&and_on, 903), wait(1));
        let and_over = [&and_on[..], &[(500, "hear"), (500, "result")]].concat();
        assert_eq!(verdict(&and_over, 529), wait(1));
        assert_eq!(verdict(&and_over, 530), Verdict::Cut(Cut::HungAfterResult));
    }

    #[test]
    fn while_claude_waits_for_others_no_time_counts() {
        let waits = [(10, "hear"), (100, "excuse"), (90_100, "demand")];
        assert_eq!(verdict(&waits[..2], 80_000), wait(4_900));
        // Of its silence 90 ms are spent, of its time 100.
        assert_eq!(verdict(&waits, 90_100), wait(810));
        assert_eq!(verdict(&waits, 90_910), Verdict::Cut(Cut::Stalled));
        let and_on = [&waits[..], &[(94_990, "hear")]].concat();
        assert_eq!(verdict(&and_on, 94_999), wait(1));
        assert_eq!(verdict(&and_on, 95_000), Verdict::Cut(Cut::TimedOut));
    }

    #[test]
    fn the_timeout_is_never_paused() {
        let timed_out = Verdict::Cut(Cut::TimedOut);
        assert_eq!(
            verdict(&[(4_990, "hear"), (4_991, "pause")], 5_000),
            timed_out
        );
    }
}
