//! One question put to a peer, whether packets pass, with its tries and what is known of the answer. Pure.
//! After an answer it is quiet for hours; without one it is asked ever more rarely.

use std::time::Duration;
use tokio::time::Instant;

/// Tries of one round and how long each waits.
const WAITS_MS: [u64; 5] = [200, 400, 800, 1600, 3000];
/// Between two tries at least, whoever hastens them.
const SPACING: Duration = Duration::from_millis(100);
const RETRY_MIN: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// When somebody's switch begins to drop packets, only packets that get no answer tell. So rarely a way that works is
/// looked at again without them.
const LOOK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// While packets pass by a worse way.
const WANTED_RETRY: Duration = Duration::from_secs(10);
/// While there are doubts about a way, ours or the peer's.
const DOUBTED_RETRY: Duration = Duration::from_secs(60);

pub type Nonce = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Unknown,
    Passes { round_trip_us: u32 },
    Lost,
}

#[derive(Clone, Debug)]
pub struct Trial {
    pub verdict: Verdict,
    /// Tries of this round.
    tries: usize,
    /// Of the last tries; an answer to any of them counts.
    sent: Vec<(Nonce, Instant)>,
    pub due: Instant,
    retry: Duration,
    /// When the last round ended.
    ended: Instant,
    /// The peer gave a sign of life after the last try of this round.
    is_alive: bool,
}

impl Trial {
    pub fn new(now: Instant) -> Self {
        Self {
            verdict: Verdict::Unknown,
            tries: 0,
            sent: Vec::new(),
            due: now,
            retry: RETRY_MIN,
            ended: now,
            is_alive: false,
        }
    }

    /// Asks again at once, unless it is being asked. What was known stays until there is an answer.
    pub fn again(&mut self, now: Instant) {
        if self.tries == 0 {
            (self.due, self.retry) = (now, RETRY_MIN);
        }
    }

    /// The peer is alive: what waits for an answer is asked sooner, what was given up anew.
    pub fn hasten(&mut self, now: Instant) {
        match self.sent.last() {
            _ if self.passes() => {}
            Some((_, at)) if self.tries < WAITS_MS.len() => self.due = self.due.min((*at + SPACING).max(now)),
            Some(_) => self.is_alive = true,
            None => self.again(now),
        }
    }

    /// A worse way is in use meanwhile: what was given up is asked sooner.
    pub fn wanted(&mut self, now: Instant) {
        if self.tries == 0 && self.verdict == Verdict::Lost {
            self.due = self.due.min(self.ended + WANTED_RETRY).max(now);
        }
    }

    /// Packets of pods get no answer: it is looked at again soon, if not at once.
    pub fn doubt(&mut self, now: Instant) {
        if self.tries == 0 {
            self.due = self.due.min(self.ended + DOUBTED_RETRY).max(now);
        }
    }

    /// The peer asks. Perhaps it has doubts, and what it misses is what we send by this way. Now or not at all: two
    /// that ask each other later would never rest.
    pub fn asked_back(&mut self, now: Instant) {
        if self.passes() && self.ended + DOUBTED_RETRY <= now {
            self.again(now);
        }
    }

    pub fn passes(&self) -> bool {
        matches!(self.verdict, Verdict::Passes { .. })
    }

    /// The first try of this round was not answered at once.
    pub fn is_slow(&self) -> bool {
        self.tries > 1
    }

    /// What was given up counts as not known, until it is asked.
    pub fn reopen(&mut self) {
        if self.verdict == Verdict::Lost {
            self.verdict = Verdict::Unknown;
        }
    }

    /// When due: sends another try (true), or ends the round without an answer.
    pub fn turn(&mut self, nonce: Nonce, now: Instant) -> bool {
        if let Some(wait_ms) = WAITS_MS.get(self.tries) {
            self.tries += 1;
            self.sent.push((nonce, now));
            self.due = now + Duration::from_millis(*wait_ms);
            return true;
        }
        self.verdict = Verdict::Lost;
        if std::mem::take(&mut self.is_alive) {
            // It was not there yet when it was asked.
            self.end_round(now, now);
            return self.turn(nonce, now);
        }
        self.end_round(now, now + self.retry);
        self.retry = (self.retry * 2).min(RETRY_MAX);
        false
    }

    /// Whether it was an answer to this question.
    pub fn hear(&mut self, nonce: Nonce, now: Instant) -> bool {
        let Some((_, at)) = self.sent.iter().find(|(sent, _)| *sent == nonce) else { return false };
        let round_trip_us = u32::try_from((now - *at).as_micros()).unwrap_or(u32::MAX);
        self.verdict = Verdict::Passes { round_trip_us };
        self.is_alive = false;
        self.retry = RETRY_MIN;
        self.end_round(now, now + LOOK_AGAIN);
        true
    }

    fn end_round(&mut self, now: Instant, due: Instant) {
        self.ended = now;
        self.tries = 0;
        self.sent.clear();
        self.due = due;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(n: u8) -> Nonce {
        [n; 16]
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_left_alone_for_hours() {
        let start = Instant::now();
        let mut trial = Trial::new(start);
        assert!(trial.turn(nonce(1), start) && trial.turn(nonce(2), start + Duration::from_millis(200)));
        let heard = start + Duration::from_millis(300);
        assert!(!trial.hear(nonce(9), heard), "a stranger's answer");
        assert!(trial.hear(nonce(1), heard), "a late answer counts");
        assert_eq!(trial.verdict, Verdict::Passes { round_trip_us: 300_000 });
        assert!(!trial.hear(nonce(1), heard), "once");
        assert_eq!(trial.due, heard + LOOK_AGAIN);
        trial.again(heard);
        assert_eq!((trial.due, trial.verdict), (heard, Verdict::Passes { round_trip_us: 300_000 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_costs_little() {
        let start = Instant::now();
        let mut trial = Trial::new(start);
        let (mut packets, mut first_verdict) = (0, None);
        while trial.due < start + Duration::from_secs(24 * 3600) {
            let now = trial.due;
            if trial.turn(nonce(0), now) {
                packets += 1;
            } else {
                first_verdict.get_or_insert(now - start);
            }
        }
        assert_eq!(trial.verdict, Verdict::Lost);
        assert_eq!(first_verdict, Some(Duration::from_secs(6)));
        // 74 bytes each on the wire.
        assert!(packets < 160, "{packets} in a day");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_hastens_what_waits() {
        let start = Instant::now();
        let mut trial = Trial::new(start);
        for n in 0..4 {
            trial.turn(nonce(n), trial.due);
        }
        let now = trial.due - Duration::from_secs(1);
        trial.hasten(now);
        assert_eq!(trial.due, now);
        trial.turn(nonce(4), now);
        let last = trial.due;
        trial.hasten(now);
        assert_eq!(trial.due, last, "the last answer is waited for, whoever knocks");
        assert!(trial.turn(nonce(5), last), "and then it is asked anew");
        for n in 6..10 {
            assert!(trial.turn(nonce(n), trial.due));
        }
        let last = trial.due;
        assert!(!trial.turn(nonce(10), last) && trial.verdict == Verdict::Lost);
        trial.hasten(last);
        assert_eq!(trial.due, last, "what was given up is asked at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_was_given_up_is_asked_sooner_while_it_is_wanted() {
        let mut trial = Trial::new(Instant::now());
        while trial.turn(nonce(1), trial.due) {}
        let given_up = trial.due - RETRY_MIN;
        trial.wanted(given_up + Duration::from_secs(1));
        assert_eq!(trial.due, given_up + WANTED_RETRY);
        assert!(trial.turn(nonce(2), trial.due));
        let due = trial.due;
        trial.wanted(due);
        assert_eq!(trial.due, due, "a round that runs is left alone");
        assert!(trial.hear(nonce(2), due));
        trial.wanted(due);
        assert_eq!(trial.due, due + LOOK_AGAIN, "so is what works");
    }

    /// Asks `trial` whenever it is due, and answers; how often in this time.
    fn answered(trial: &mut Trial, for_s: u64, mut each_second: impl FnMut(&mut Trial, Instant)) -> usize {
        let (start, mut rounds) = (Instant::now(), 0);
        for second in 0..for_s {
            let now = start + Duration::from_secs(second);
            each_second(trial, now);
            if trial.due <= now && trial.turn(nonce(1), now) {
                assert!(trial.hear(nonce(1), now));
                rounds += 1;
            }
        }
        rounds
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_is_doubted_is_looked_at_once_a_minute() {
        let mut trial = Trial::new(Instant::now());
        assert_eq!(answered(&mut trial, 3600, |_, _| {}), 1, "without doubts");
        let mut trial = Trial::new(Instant::now());
        assert_eq!(answered(&mut trial, 3600, Trial::doubt), 60);
        let mut trial = Trial::new(Instant::now());
        assert_eq!(answered(&mut trial, 3600, Trial::asked_back), 60);
        let once = |trial: &mut Trial, now| {
            if now == Instant::now() + Duration::from_secs(10) {
                trial.doubt(now)
            }
        };
        let mut trial = Trial::new(Instant::now());
        assert_eq!(answered(&mut trial, 3600, once), 2, "one that comes too early is not forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_is_doubted_serves_until_it_is_lost() {
        let start = Instant::now();
        let mut trial = Trial::new(start);
        assert!(trial.turn(nonce(1), start) && trial.hear(nonce(1), start));
        let later = start + Duration::from_secs(3600);
        trial.doubt(later);
        assert_eq!(trial.due, later);
        assert!(trial.turn(nonce(2), later) && !trial.is_slow());
        assert!(trial.turn(nonce(3), trial.due) && trial.is_slow());
        while trial.passes() {
            trial.doubt(trial.due);
            trial.turn(nonce(4), trial.due);
        }
        assert_eq!(trial.verdict, Verdict::Lost);
        let (ended, due) = (trial.ended, trial.due);
        trial.doubt(ended);
        assert_eq!(trial.due, due, "what was just given up is not asked sooner");
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_ask_each_other_come_to_rest() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        let [mut here, mut there] = [Trial::new(start), Trial::new(start)];
        for trial in [&mut here, &mut there] {
            assert!(trial.turn(nonce(1), start) && trial.hear(nonce(1), start));
        }
        here.doubt(later);
        assert!(here.turn(nonce(2), here.due));
        there.asked_back(later);
        assert!(here.hear(nonce(2), later) && there.turn(nonce(3), there.due));
        here.asked_back(later);
        assert!(there.hear(nonce(3), later));
        assert_eq!([here.due, there.due], [later + LOOK_AGAIN; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_runs_is_not_begun_anew() {
        let start = Instant::now();
        let mut trial = Trial::new(start);
        trial.turn(nonce(1), start);
        let due = trial.due;
        trial.again(start);
        assert_eq!(trial.due, due);
    }
}
