//! How often a node pings its server, and how long its other connection may be silent: as seldom and as long as
//! the way between them allows. Pure.

use std::time::Duration;

/// The first interval, short enough for any NAT.
const FIRST: Duration = Duration::from_secs(10);
const LEAST: Duration = Duration::from_secs(5);
/// Two pings must fit into a Lease (40 s), so that the loss of one costs nothing.
const MOST: Duration = Duration::from_secs(18);
/// Answers in a row after which a longer interval is tried.
const STEADY: u32 = 6;

/// Routers and carriers' gateways forget idle connections after minutes, as a rule; a few sooner.
const IDLE_MOST: Duration = Duration::from_secs(45);

/// One node's pings; outlives its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rhythm {
    interval: Duration,
    /// Longer ones have broken the connection.
    limit: Duration,
    answers: u32,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { interval: FIRST, limit: MOST, answers: 0 }
    }
}

impl Rhythm {
    /// The wait before the next ping: nine tenths to all of the interval, so that many nodes do not keep step.
    pub fn wait(&self, random: f64) -> Duration {
        self.interval.mul_f64(0.9 + random / 10.0)
    }

    /// A ping after a whole interval was answered.
    pub fn answered(&mut self) {
        self.answers += 1;
        if self.answers >= STEADY {
            self.answers = 0;
            self.interval = self.interval.mul_f64(1.25).min(self.limit);
        }
    }

    /// A connection that was fine before the interval was dead after it: something in between forgets sooner.
    pub fn lost(&mut self) {
        self.limit = self.interval.mul_f64(0.75).max(LEAST);
        self.interval = self.limit;
        self.answers = 0;
    }
}

/// How long the connection that carries no pings may be silent before the kernel asks its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle(Duration);

impl Default for Idle {
    fn default() -> Self {
        Self(IDLE_MOST)
    }
}

impl Idle {
    pub fn limit(&self) -> Duration {
        self.0
    }

    /// It died while the tunnel lived: something in between forgets it sooner.
    pub fn lost(&mut self) {
        self.0 = (self.0 / 2).max(FIRST);
    }

    /// What the tunnel has learned of the way holds for every connection.
    pub fn follow(&mut self, rhythm: &Rhythm) {
        if rhythm.limit < MOST {
            self.0 = self.0.min(rhythm.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_asked_sooner_once_it_was_forgotten() {
        let mut idle = Idle::default();
        idle.follow(&Rhythm::default());
        assert_eq!(idle.limit(), IDLE_MOST);
        idle.lost();
        assert_eq!(idle.limit(), IDLE_MOST / 2);
        (0..5).for_each(|_| idle.lost());
        assert_eq!(idle.limit(), FIRST);
        let mut rhythm = Rhythm::default();
        rhythm.lost();
        idle.follow(&rhythm);
        assert_eq!(idle.limit(), FIRST.mul_f64(0.75));
    }

    #[test]
    fn the_interval_grows_while_pings_are_answered_and_not_beyond_what_broke() {
        let mut rhythm = Rhythm::default();
        let seconds = |rhythm: &Rhythm| rhythm.wait(1.0).as_secs_f64();
        assert!((seconds(&rhythm) - 10.0).abs() < 0.01);
        for _ in 0..STEADY {
            rhythm.answered();
        }
        assert!((seconds(&rhythm) - 12.5).abs() < 0.01);
        for _ in 0..100 {
            rhythm.answered();
        }
        assert!((seconds(&rhythm) - 18.0).abs() < 0.01);
        rhythm.lost();
        assert!((seconds(&rhythm) - 13.5).abs() < 0.01);
        for _ in 0..100 {
            rhythm.answered();
        }
        assert!((seconds(&rhythm) - 13.5).abs() < 0.01);
        for _ in 0..20 {
            rhythm.lost();
        }
        assert!((seconds(&rhythm) - 5.0).abs() < 0.01);
        assert!(rhythm.wait(0.0) >= rhythm.wait(1.0).mul_f64(0.89));
    }
}
