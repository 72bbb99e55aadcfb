//! Real or simulated time. The only file that asks the operating system what time it is.
//! Simulated time follows tokio's paused clock, so a test that advances one advances the other.

use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Wall-clock time for objects (`creationTimestamp`, conditions, leases) and elapsed time for loops.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    Real,
    Simulated { start: Timestamp, origin: tokio::time::Instant },
}

impl Clock {
    /// The machine's own clock.
    pub fn real() -> Self {
        Self(Arc::new(Source::Real))
    }

    /// A clock that reads `start` now and advances with tokio's (paused) time.
    pub fn simulated(start: Timestamp) -> Self {
        Self(Arc::new(Source::Simulated { start, origin: tokio::time::Instant::now() }))
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            #[allow(clippy::disallowed_methods, reason = "the one place that asks")]
            Source::Real => Timestamp::now(),
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
