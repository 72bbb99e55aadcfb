//! Pods that wait for a node: the ready ones by priority and age, the others until something may help them.
//! Holds no clock: callers pass the time.

use super::snapshot::Pending;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// Upstream begins at a second; a board that boots has no second to lose between its node and its pods.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LIMIT: Duration = Duration::from_secs(10);

/// Highest priority first, then oldest.
type Order = (Reverse<i64>, String, String);

/// Which changes may help a pod that found no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nodes that were added or changed, pods that left.
    Room,
    /// Pods that arrived or changed labels.
    Neighbours,
}

#[derive(Debug)]
enum Place {
    Ready,
    /// In `delayed` at this time.
    Delayed(Instant),
    /// Until a hint; not before this time.
    Parked {
        not_before: Instant,
        neighbours: bool,
    },
    /// Being scheduled or bound.
    Taken,
}

struct Waiting {
    pod: Pending,
    place: Place,
    attempts: u32,
}

/// Bounded by the number of pods.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    ready: BTreeSet<Order>,
    delayed: BTreeMap<(Instant, String), ()>,
}

fn order(pod: &Pending) -> Order {
    (Reverse(pod.info.priority), pod.metadata.creation_timestamp.clone(), pod.key())
}

impl Queue {
    /// A pod that is new or was changed: it is tried at once. Whether it is new.
    pub fn set(&mut self, pod: Pending) -> bool {
        let key = pod.key();
        let same = |waiting: &Waiting| same_wishes(&waiting.pod, &pod);
        match self.pods.get_mut(&key) {
            Some(waiting) if matches!(waiting.place, Place::Taken) || same(waiting) => {
                waiting.pod = pod;
                false
            }
            known => {
                let (new, attempts) = (known.is_none(), known.map(|waiting| waiting.attempts).unwrap_or(0));
                self.unplace(&key);
                self.ready.insert(order(&pod));
                self.pods.insert(key, Waiting { pod, place: Place::Ready, attempts });
                new
            }
        }
    }

    /// The pod has a node, was deleted or is not ours.
    pub fn remove(&mut self, key: &str) {
        self.unplace(key);
        self.pods.remove(key);
    }

    /// The next pod to be given a node.
    pub fn take(&mut self, now: Instant) -> Option<Pending> {
        self.release(now);
        let (_, _, key) = self.ready.pop_first()?;
        let waiting = self.pods.get_mut(&key).expect("every ready key has its pod");
        waiting.place = Place::Taken;
        waiting.attempts = waiting.attempts.saturating_add(1);
        Some(waiting.pod.clone())
    }

    /// No node fits: it waits for a hint. `neighbours`: other pods stood in its way.
    pub fn park(&mut self, key: &str, now: Instant, neighbours: bool) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.place = Place::Parked { not_before: now + backoff(waiting.attempts), neighbours };
        }
    }

    /// Something failed on the way: again after a backoff.
    pub fn retry(&mut self, key: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(key) {
            let at = now + backoff(waiting.attempts);
            waiting.place = Place::Delayed(at);
            self.delayed.insert((at, key.to_owned()), ());
        }
    }

    /// Something changed: parked pods that it may help are tried again, each after its backoff.
    pub fn wake(&mut self, hint: Hint, now: Instant) {
        for (key, waiting) in &mut self.pods {
            let Place::Parked { not_before, neighbours } = waiting.place else { continue };
            if hint == Hint::Neighbours && !neighbours {
                continue;
            }
            let at = not_before.max(now);
            waiting.place = Place::Delayed(at);
            self.delayed.insert((at, key.clone()), ());
        }
    }

    /// When `take` may give a pod next, if none is ready now.
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((at, _), ())| *at)
    }

    fn release(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((_, key), ()) = entry.remove_entry();
            let waiting = self.pods.get_mut(&key).expect("every delayed key has its pod");
            waiting.place = Place::Ready;
            self.ready.insert(order(&waiting.pod));
        }
    }

    fn unplace(&mut self, key: &str) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.place {
            Place::Ready => drop(self.ready.remove(&order(&waiting.pod))),
            Place::Delayed(at) => drop(self.delayed.remove(&(at, key.to_owned()))),
            Place::Parked { .. } | Place::Taken => {}
        }
    }
}

/// Whether nothing changed that a filter or score reads; our own status writes change nothing of it.
fn same_wishes(old: &Pending, new: &Pending) -> bool {
    old.metadata.uid == new.metadata.uid
        && old.info.labels == new.info.labels
        && old.info.priority == new.info.priority
        && old.info.requests == new.info.requests
        && old.node_selector == new.node_selector
        && old.affinity == new.affinity
        && old.tolerations == new.tolerations
        && old.spread == new.spread
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).min(BACKOFF_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i64, created: &str) -> Pending {
        let pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "creationTimestamp": created},
            "spec": {"priority": priority}});
        Pending::of(serde_json::from_value(pod).expect("pod"))
    }

    fn taken(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.take(now)).map(|pod| pod.info.name.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn highest_priority_first_then_oldest() {
        let mut queue = Queue::default();
        for pod in [pod("young", 0, "2"), pod("old", 0, "1"), pod("urgent", 9, "3")] {
            assert!(queue.set(pod));
        }
        assert_eq!(taken(&mut queue, Instant::now()), ["urgent", "old", "young"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_pod_is_tried_again_after_a_hint_and_its_backoff() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.set(pod("x", 0, "1"));
        for wait_ms in [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let now = queue.next_due().unwrap_or(start);
            assert_eq!(taken(&mut queue, now), ["x"]);
            queue.park("a/x", now, false);
            assert_eq!(queue.next_due(), None);
            queue.wake(Hint::Neighbours, now);
            assert_eq!(queue.next_due(), None);
            queue.wake(Hint::Room, now);
            assert_eq!(queue.next_due(), Some(now + Duration::from_millis(wait_ms)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_a_pod_bring_it_back_only_if_they_matter() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.set(pod("x", 0, "1"));
        queue.take(now);
        queue.park("a/x", now, false);
        assert!(!queue.set(pod("x", 0, "1")));
        assert!(queue.take(now).is_none());
        let mut changed = pod("x", 0, "1");
        changed.node_selector.insert("disk".into(), "ssd".into());
        assert!(!queue.set(changed));
        assert!(queue.take(now).is_some());
        queue.retry("a/x", now);
        queue.remove("a/x");
        assert!(queue.take(now + BACKOFF_LIMIT).is_none());
    }
}
