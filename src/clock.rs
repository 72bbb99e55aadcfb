//! Real or simulated time. The only file that asks the operating system what time it is.
//! Simulated time follows tokio's paused clock, so a test that advances one advances the other.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Wall-clock time for objects (`creationTimestamp`, conditions, leases) and elapsed time for loops.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    machine: Machine,
    known: Mutex<Option<Known>>,
    /// Counts the times that somebody has set the clock, as far as we know of them.
    jumps: watch::Sender<u64>,
}

/// The clock of the board, right or wrong.
#[derive(Debug)]
enum Machine {
    Real,
    Simulated { start: Timestamp, origin: tokio::time::Instant, jumped: Mutex<SignedDuration> },
}

/// Nobody tells when the machine's clock is set: who waits for a date looks at it this often, and at nothing else.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

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
        Self::of(Machine::Real)
    }

    fn of(machine: Machine) -> Self {
        Self(Arc::new(Inner { machine, known: Mutex::default(), jumps: watch::Sender::new(0) }))
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
        *self.0.known.lock().expect("no panic while the clock is locked") = Some(what);
        self.0.jumps.send_modify(|count| *count += 1);
    }

    /// A clock that reads `start` now and advances with tokio's (paused) time.
    pub fn simulated(start: Timestamp) -> Self {
        let jumped = Mutex::new(SignedDuration::ZERO);
        Self::of(Machine::Simulated { start, origin: tokio::time::Instant::now(), jumped })
    }

    /// Sets a simulated clock: it is `by` later at once, and elapsed time knows nothing of it.
    pub fn jump(&self, by: SignedDuration) {
        if let Machine::Simulated { jumped, .. } = &self.0.machine {
            *jumped.lock().expect("no panic while the clock is locked") += by;
            self.0.jumps.send_modify(|count| *count += 1);
        }
    }

    /// Lets time pass for a simulated clock, and for what is known of it, without anybody living through it.
    pub fn pass(&self, by: SignedDuration) {
        if let Some(known) = &mut *self.0.known.lock().expect("no panic while the clock is locked") {
            let (Known::Floor { at, .. } | Known::Exact { at, .. }) = known;
            *at = at.saturating_add(by).unwrap_or(Timestamp::MAX);
        }
        self.jump(by);
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        let machine = self.machine();
        let known = *self.0.known.lock().expect("no panic while the clock is locked");
        known.map_or(machine, |known| known.correct(machine))
    }

    fn machine(&self) -> Timestamp {
        match &self.0.machine {
            #[allow(clippy::disallowed_methods, reason = "the one place that asks")]
            Machine::Real => Timestamp::now(),
            Machine::Simulated { start, origin, jumped } => {
                let elapsed = SignedDuration::try_from(origin.elapsed()).unwrap_or(SignedDuration::MAX);
                let jumped = *jumped.lock().expect("no panic while the clock is locked");
                start.saturating_add(elapsed.saturating_add(jumped)).unwrap_or(Timestamp::MAX)
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

    /// Waits for a date. A clock that is set meanwhile brings it nearer or moves it away.
    pub async fn sleep_until(&self, at: Timestamp) {
        let mut jumps = self.0.jumps.subscribe();
        loop {
            let left = Duration::try_from(at.duration_since(self.now())).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                // The sender is this clock's own.
                _ = jumps.changed() => {}
            }
        }
    }

    /// Waits until somebody may have set the clock, which may make a date come that never would: at once where that
    /// is known, else within an hour.
    pub async fn may_be_set(&self) {
        let mut jumps = self.0.jumps.subscribe();
        // Either way it is time to look.
        let _ = tokio::time::timeout(LOOK_AGAIN, jumps.changed()).await;
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
    async fn a_date_comes_when_the_clock_says_so() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let clock = Clock::simulated(at("2026-11-23T00:00:00Z"));
        let began = monotonic();
        clock.sleep_until(at("2026-11-24T00:00:00Z")).await;
        assert_eq!(began.elapsed().as_secs(), 24 * 3600);
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(at("2036-11-24T00:00:00Z")).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        clock.jump(SignedDuration::from_hours(24 * 366 * 10));
        waiting.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 24 * 3600 + 1, "at once");
    }

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
