//! Refused credentials in the log: each says why, and a flood of them does not become a flood of lines.

use crate::clock::Clock;
use jiff::Timestamp;
use std::sync::Mutex;

/// Lines per minute; what is beyond is counted.
const LINES_LIMIT: u32 = 60;
const PERIOD_S: i64 = 60;

#[derive(Default)]
struct Period {
    number: i64,
    lines: u32,
    suppressed: u64,
}

/// Shared by all connections.
pub struct Refusals {
    clock: Clock,
    period: Mutex<Period>,
}

impl Refusals {
    pub fn new(clock: Clock) -> Self {
        Self { clock, period: Mutex::default() }
    }

    /// `who`: what was shown, never a secret; `why`: the reason.
    pub fn log(&self, what: &'static str, who: &str, why: &dyn std::fmt::Display) {
        let Some(suppressed) = self.take(self.clock.now()) else { return };
        if suppressed > 0 {
            tracing::warn!(suppressed, "further refusals in the last minute were not logged");
        }
        tracing::warn!(credential = what, who, why = %why, "refused");
    }

    /// Whether there is room for a line, and how many were left out before it.
    fn take(&self, now: Timestamp) -> Option<u64> {
        let mut period = self.period.lock().expect("no panic while refusals are counted");
        let number = now.as_second() / PERIOD_S;
        let mut suppressed = 0;
        if period.number != number {
            suppressed = period.suppressed;
            *period = Period { number, ..Period::default() };
        }
        if period.lines >= LINES_LIMIT {
            period.suppressed += 1;
            return None;
        }
        period.lines += 1;
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_not_written() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let refusals = Refusals::new(Clock::simulated(now));
        let written = (0..100).filter(|_| refusals.take(now).is_some()).count();
        assert_eq!(written, 60);
        let later = "2026-11-23T00:01:00Z".parse().unwrap();
        assert_eq!(refusals.take(later), Some(40));
        assert_eq!(refusals.take(later), Some(0));
    }
}
