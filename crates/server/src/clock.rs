//! Where the time comes from.

use jiff::Timestamp;

/// Tells the time of day. Durations are measured by the runtime's monotonic clock instead.
pub trait Clock: Send + Sync {
    /// Now, to the millisecond: what is stored is what was told.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }
}
