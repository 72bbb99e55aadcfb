//! A queue of keys: each at most once in it, each worked on by one worker at a time, with backoff.
//! Source of behaviour: client-go's rate limiting work queue.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_LIMIT: Duration = Duration::from_secs(300);

/// Cheap to clone. Bounded by the number of keys.
#[derive(Clone, Default)]
pub struct WorkQueue {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<str>>,
    queued: HashSet<Arc<str>>,
    /// Keys in a worker's hands; `true` when added again meanwhile.
    working: HashMap<Arc<str>, bool>,
    failures: HashMap<Arc<str>, u32>,
    delayed: BTreeMap<(Instant, u64), Arc<str>>,
    due: HashMap<Arc<str>, (Instant, u64)>,
    /// Keys that count as worked on until this time.
    resting: BTreeMap<(Instant, u64), Arc<str>>,
    sequence: u64,
}

impl State {
    fn add(&mut self, key: Arc<str>) {
        if let Some(again) = self.working.get_mut(&key) {
            *again = true;
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// An earlier deadline of the same key stands.
    fn delay(&mut self, key: Arc<str>, at: Instant) {
        if let Some(place) = self.due.get(&key).copied() {
            if place.0 <= at {
                return;
            }
            self.delayed.remove(&place);
        }
        self.sequence += 1;
        let place = (at, self.sequence);
        self.due.insert(key.clone(), place);
        self.delayed.insert(place, key);
    }

    fn release_due(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn end_rests(&mut self, now: Instant) {
        while let Some(entry) = self.resting.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.finish(&key);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let first = |places: &BTreeMap<(Instant, u64), Arc<str>>| places.first_key_value().map(|((at, _), _)| *at);
        [first(&self.delayed), first(&self.resting)].into_iter().flatten().min()
    }

    fn take(&mut self) -> Option<Arc<str>> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.working.insert(key.clone(), false);
        Some(key)
    }

    fn finish(&mut self, key: &str) {
        if let Some((key, true)) = self.working.remove_entry(key) {
            self.add(key);
        }
    }
}

impl WorkQueue {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key; while it is being worked on, it is handed out again afterwards.
    pub fn add(&self, key: &str) {
        self.lock().add(key.into());
        self.inner.wake.notify_one();
    }

    pub fn add_after(&self, key: &str, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().delay(key.into(), Instant::now() + delay);
        self.inner.wake.notify_one();
    }

    /// Waits for a key. Call `done` (or `retry`) with it afterwards. Cancel-safe.
    pub async fn next(&self) -> String {
        loop {
            let deadline = {
                let mut state = self.lock();
                let now = Instant::now();
                state.end_rests(now);
                state.release_due(now);
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        // One permit is kept at most: pass the wake-up on to the next worker.
                        self.inner.wake.notify_one();
                    }
                    return key.to_string();
                }
                state.next_deadline()
            };
            match deadline {
                None => self.inner.wake.notified().await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.inner.wake.notified()).await;
                }
            }
        }
    }

    /// Success: forgets the key's failures.
    pub fn done(&self, key: &str) {
        let mut state = self.lock();
        state.failures.remove(key);
        state.finish(key);
        drop(state);
        self.inner.wake.notify_one();
    }

    /// Success, and the key is handed out again no sooner than after a rest, however often it is added meanwhile.
    pub fn done_resting(&self, key: &str, rest: Duration) {
        if rest.is_zero() {
            return self.done(key);
        }
        let mut state = self.lock();
        state.failures.remove(key);
        state.sequence += 1;
        let place = (Instant::now() + rest, state.sequence);
        state.resting.insert(place, key.into());
        drop(state);
        self.inner.wake.notify_one();
    }

    /// Failure: hands the key out again after a backoff from 5 ms, doubling, to 5 min.
    pub fn retry(&self, key: &str) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.into()).or_default();
        let delay = backoff(*failures);
        *failures = failures.saturating_add(1);
        state.finish(key);
        state.delay(key.into(), Instant::now() + delay);
        drop(state);
        self.inner.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().expect("no panic while the queue is locked")
    }
}

/// The wait after so many earlier failures.
fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(BACKOFF_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let waits: Vec<u128> = [0, 1, 2, 15, 16, 40].map(|n| backoff(n).as_millis()).to_vec();
        assert_eq!(waits, [5, 10, 20, 163_840, 300_000, 300_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_handed_out_again_when_added_while_worked_on() {
        let queue = WorkQueue::new();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        // `a` is still in a worker's hands.
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
        queue.done("a");
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_at_their_time_and_the_earlier_deadline_stands() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(60));
        queue.add_after("late", Duration::from_secs(90));
        queue.add_after("soon", Duration::from_secs(10));
        assert_eq!(queue.next().await, "soon");
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(queue.next().await, "late");
        assert_eq!(start.elapsed().as_secs(), 60);
        queue.done("late");
        assert!(tokio::time::timeout(Duration::from_secs(3600), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_resting_key_waits_and_others_do_not() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add("large");
        let key = queue.next().await;
        queue.done_resting(&key, Duration::from_millis(300));
        queue.add("large");
        queue.add_after("large", Duration::from_millis(100));
        queue.add("small");
        assert_eq!(queue.next().await, "small");
        assert_eq!(queue.next().await, "large");
        assert_eq!(start.elapsed().as_millis(), 300);
        queue.done_resting("large", Duration::from_millis(300));
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err(), "nobody added it again");
        queue.add("large");
        assert_eq!(queue.next().await, "large");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_until_success() {
        let queue = WorkQueue::new();
        queue.add("x");
        let start = Instant::now();
        for _ in 0..3 {
            let key = queue.next().await;
            queue.retry(&key);
        }
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 5 + 10 + 20);
        queue.done("x");
        queue.add("x");
        queue.next().await;
        queue.retry("x");
        let again = Instant::now();
        queue.next().await;
        assert_eq!(again.elapsed().as_millis(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn several_workers_share_a_burst() {
        let queue = WorkQueue::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        let mut taken = Vec::new();
        for worker in workers {
            taken.push(worker.await.expect("worker"));
        }
        taken.sort();
        assert_eq!(taken, ["a", "b", "c"]);
    }
}
