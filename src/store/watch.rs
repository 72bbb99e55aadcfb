//! The event ring and the cursors that read it. A watcher holds a position, never a buffer.
//! A cursor that the ring has overtaken ends with `Compacted`; its owner lists again.

use super::cache::{Cache, resource_of};
use super::{Event, StoreError};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What the ring holds by default.
pub const RING_LIMIT_BYTES: usize = 2 * 1024 * 1024;
/// The book-keeping of one event: slot, entry header and key.
const EVENT_OVERHEAD_BYTES: usize = 256;
/// Older states than this are not read back, as after etcd's compaction: clients rely on tokens that expire.
const READ_BACK_LIMIT: Duration = Duration::from_secs(300);

struct Slot {
    event: Event,
    at: Instant,
}

/// Recent events in revision order, bounded in bytes.
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    held_bytes: usize,
    limit_bytes: usize,
    /// The revision the process started with.
    start: u64,
    /// The newest event dropped, per resource, so that traffic of one resource expires no other's watches.
    dropped: HashMap<Box<str>, u64>,
}

/// Only the states that nobody else holds count: the newest ones are the cache's.
fn held_bytes(event: &Event) -> usize {
    let states = [&event.previous, &event.deleted].into_iter().flatten();
    EVENT_OVERHEAD_BYTES + states.map(|entry| entry.bytes.len()).sum::<usize>()
}

impl Ring {
    pub fn new(start: u64, limit_bytes: usize) -> Self {
        Self { slots: VecDeque::new(), held_bytes: 0, limit_bytes, start, dropped: HashMap::new() }
    }

    pub fn push(&mut self, event: Event, at: Instant) {
        self.held_bytes += held_bytes(&event);
        self.slots.push_back(Slot { event, at });
        // The newest event always stays, or a single large one would end every watch.
        while self.held_bytes > self.limit_bytes && self.slots.len() > 1 {
            if let Some(slot) = self.slots.pop_front() {
                self.held_bytes -= held_bytes(&slot.event);
                let resource = resource_of(&slot.event.shown().key);
                match self.dropped.get_mut(resource) {
                    Some(revision) => *revision = slot.event.revision,
                    None => drop(self.dropped.insert(resource.into(), slot.event.revision)),
                }
            }
        }
    }

    /// The oldest revision from which every later event of a resource is known (of all resources: empty).
    pub fn floor(&self, resource: &str) -> u64 {
        let dropped = if resource.is_empty() {
            self.dropped.values().copied().max()
        } else {
            self.dropped.get(resource).copied()
        };
        dropped.unwrap_or(0).max(self.start)
    }

    /// The oldest revision that can be shown as it was.
    pub fn floor_of_reads(&self, resource: &str, now: Instant) -> u64 {
        let expired = self.slots.partition_point(|slot| now.saturating_duration_since(slot.at) > READ_BACK_LIMIT);
        let newest_expired = expired.checked_sub(1).map_or(0, |index| self.slots[index].event.revision);
        self.floor(resource).max(newest_expired)
    }

    /// The first event of a key under `prefix` after a revision.
    fn first_after(&self, prefix: &str, after: u64) -> Option<&Event> {
        let from = self.slots.partition_point(|slot| slot.event.revision <= after);
        let mut events = self.slots.range(from..).map(|slot| &slot.event);
        events.find(|event| event.shown().key.starts_with(prefix))
    }

    /// Events after a revision, newest first.
    pub fn newest_first(&self, after: u64) -> impl Iterator<Item = &Event> {
        let from = self.slots.partition_point(|slot| slot.event.revision <= after);
        self.slots.range(from..).rev().map(|slot| &slot.event)
    }
}

/// A cursor into the ring.
pub struct Watch {
    cache: Arc<Cache>,
    waker: Arc<Notify>,
    prefix: Box<str>,
    /// Everything up to here has been given out.
    after: u64,
}

impl Watch {
    pub(super) fn new(cache: Arc<Cache>, waker: Arc<Notify>, prefix: &str, after: u64) -> Self {
        Self { cache, waker, prefix: prefix.into(), after }
    }

    /// Waits for the next event. Cancel-safe. After an error the watch is over.
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            let waker = self.waker.clone();
            let mut woken = std::pin::pin!(waker.notified());
            // Registered before looking, so that a change in between is not missed.
            woken.as_mut().enable();
            if let Some(event) = self.ready()? {
                return Ok(event);
            }
            woken.await;
        }
    }

    /// The next event if there is one already.
    pub fn ready(&mut self) -> Result<Option<Event>, StoreError> {
        let state = self.cache.lock();
        let floor = state.ring.floor(resource_of(&self.prefix));
        if self.after < floor {
            return Err(StoreError::Compacted(self.after, floor));
        }
        let event = state.ring.first_after(&self.prefix, self.after).cloned();
        if event.is_none() && state.closed {
            return Err(StoreError::Closed);
        }
        self.after = event.as_ref().map_or(state.revision, |event| event.revision);
        Ok(event)
    }

    /// The revision up to which everything has been given out: what a bookmark says after `ready` gave `None`.
    pub fn revision(&self) -> u64 {
        self.after
    }
}
