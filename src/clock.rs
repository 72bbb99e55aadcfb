//! Real or simulated time. The only file that asks the operating system what time it is.
//! Simulated time follows tokio's paused clock, so a test that advances one advances the other.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Wall-clock time for objects (`creationTimestamp`, conditions, leases) and elapsed time for loops.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    Real { known: Mutex<Option<Known>> },
    Simulated { start: Timestamp, origin: tokio::time::Instant },
}

/// What somebody who is trusted has said of the time.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// It was at least this late.
    Floor { at: Timestamp, since: tokio::time::Instant },
    /// It was this late.
    Exact { at: Timestamp, since: tokio::time::Instant },
}

/// The machine's clock is believed again when it comes this near to what is known: NTP has found it.
const AGREES: SignedDuration = SignedDuration::from_mins(5);

impl Known {
    fn correct(self, machine: Timestamp) -> Timestamp {
        let later = |at: Timestamp, since: tokio::time::Instant| {
            let elapsed = SignedDuration::try_from(since.elapsed()).unwrap_or(SignedDuration::MAX);
            at.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
        };
        match self {
            Self::Floor { at, since } => machine.max(later(at, since)),
            Self::Exact { at, since } => {
                let known = later(at, since);
                if machine.duration_since(known).abs() <= AGREES { machine } else { known }
            }
        }
    }
}

impl Clock {
    /// The machine's own clock.
    pub fn real() -> Self {
        Self(Arc::new(Source::Real { known: Mutex::default() }))
    }

    /// The time is at least `at`: the last signed time a board without a clock has kept.
    pub fn set_floor(&self, at: Timestamp) {
        self.learn(Known::Floor { at, since: monotonic() });
    }

    /// The time is `at` now, whatever the machine says, until its own clock agrees (5 min).
    pub fn set_exact(&self, at: Timestamp) {
        self.learn(Known::Exact { at, since: monotonic() });
    }

    fn learn(&self, what: Known) {
        if let Source::Real { known } = &*self.0 {
            *known.lock().expect("no panic while the clock is locked") = Some(what);
        }
    }

    /// A clock that reads `start` now and advances with tokio's (paused) time.
    pub fn simulated(start: Timestamp) -> Self {
        Self(Arc::new(Source::Simulated { start, origin: tokio::time::Instant::now() }))
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::Real { known } => {
                #[allow(clippy::disallowed_methods, reason = "the one place that asks")]
                let machine = Timestamp::now();
                let known = *known.lock().expect("no panic while the clock is locked");
                known.map_or(machine, |known| known.correct(machine))
            }
            Source::Simulated { start, origin } => {
                let elapsed = SignedDuration::try_from(origin.elapsed()).unwrap_or(SignedDuration::MAX);
                start.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// The wall-clock time as Kubernetes' `metav1.Time` writes it: RFC 3339, whole seconds, `Z`.
    pub fn now_rfc3339(&self) -> String {
        rfc3339(self.now())
    }

    /// Waits; bounded waits and backoff only, never a poll.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// `metav1.Time`: whole seconds.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: six digits of fraction.
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Monotonic time since the process started, for measuring steps. Follows tokio's clock.
pub fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_known_corrects_a_machine_without_a_clock() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let (floor, boot) = (at("2026-11-23T00:00:00Z"), at("1970-01-01T00:00:10Z"));
        let kept = Known::Floor { at: floor, since: monotonic() };
        let said = Known::Exact { at: floor, since: monotonic() };
        tokio::time::sleep(Duration::from_secs(60)).await;
        let minute_later = at("2026-11-23T00:01:00Z");
        assert_eq!(kept.correct(boot), minute_later);
        assert_eq!(kept.correct(at("2031-01-01T00:00:00Z")), at("2031-01-01T00:00:00Z"), "a floor is no ceiling");
        assert_eq!(said.correct(boot), minute_later);
        assert_eq!(said.correct(at("2036-11-23T00:00:00Z")), minute_later, "ten years ahead is as wrong");
        assert_eq!(said.correct(at("2026-11-23T00:02:00Z")), at("2026-11-23T00:02:00Z"), "NTP has found it");
    }
}
