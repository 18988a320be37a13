//! How long Claude is waited for.

use std::time::Duration;

use baton_agent::protocol::Timers;
use baton_domain::ending::Cut;
use tokio::time::Instant;

/// What is known of Claude's progress, as far as time goes. Pure: the time is an argument.
///
/// Silence counts only while it is Claude's own: not while the server is away, since Claude then
/// waits for the model, and not while its output has to wait for room.
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
    result_at: Option<Instant>,
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
            result_at: None,
        }
    }

    /// Claude wrote something. After a result that means that it works on, so the grace begins
    /// anew. Says whether it was the first time, after which another limit holds.
    pub fn hear(&mut self, now: Instant) -> bool {
        let is_first = !std::mem::replace(&mut self.heard, true);
        self.silence = Duration::ZERO;
        self.silent_since = self.silent_since.and(Some(now));
        self.result_at = self.result_at.and(Some(now));
        is_first
    }

    /// Claude gave its result.
    pub fn result(&mut self, now: Instant) {
        self.result_at = Some(now);
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

        let mut over = check(since(self.started), timers.timeout_ms, Cut::TimedOut);
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
                "pause" => patience.pause(at(ms)),
                "resume" => patience.resume(at(ms)),
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
    fn the_timeout_is_never_paused() {
        let timed_out = Verdict::Cut(Cut::TimedOut);
        assert_eq!(
            verdict(&[(4_990, "hear"), (4_991, "pause")], 5_000),
            timed_out
        );
    }
}
