//! The event ring and the cursors that read it. A watcher holds a position, never a buffer.
//! A cursor that the ring has overtaken ends with `Compacted`; its owner lists again.

use super::cache::{Cache, resource_of};
use super::channel::{Tags, tag_channel};
use super::{Event, StoreError, Subject};
use serde::{Deserialize, Serialize};
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

pub(super) struct Slot {
    pub event: Event,
    pub tags: Tags,
    at: Instant,
}

/// What a ring knows of the time before its first event, so that watches outlive a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    /// Of a resource not named in `newest`, everything up to here may have happened.
    pub start: u64,
    /// The newest event, per resource.
    pub newest: HashMap<Box<str>, u64>,
}

impl Past {
    /// Nothing is known of what happened up to this revision.
    pub fn unknown(start: u64) -> Self {
        Self { start, newest: HashMap::new() }
    }
}

/// Recent events in revision order, bounded in bytes.
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    held_bytes: usize,
    limit_bytes: usize,
    /// Of a resource without an entry in `dropped`, everything up to here may have happened.
    start: u64,
    /// The newest event dropped or never held, per resource, so that traffic of one resource expires no other's watches.
    dropped: HashMap<Box<str>, u64>,
    /// The newest event, per resource.
    newest: HashMap<Box<str>, u64>,
}

/// Only the states that nobody else holds count: the newest ones are the cache's.
fn held_bytes(event: &Event) -> usize {
    let states = [&event.previous, &event.deleted].into_iter().flatten();
    EVENT_OVERHEAD_BYTES + states.map(|entry| entry.bytes.len()).sum::<usize>()
}

fn set_newest(by_resource: &mut HashMap<Box<str>, u64>, event: &Event) {
    let resource = resource_of(&event.shown().key);
    match by_resource.get_mut(resource) {
        Some(revision) => *revision = event.revision,
        None => drop(by_resource.insert(resource.into(), event.revision)),
    }
}

impl Ring {
    pub fn new(past: Past, limit_bytes: usize) -> Self {
        let Past { start, newest } = past;
        Self { slots: VecDeque::new(), held_bytes: 0, limit_bytes, start, dropped: newest.clone(), newest }
    }

    /// What the ring of the next process is to know of this one's.
    pub fn past(&self) -> Past {
        Past { start: self.start, newest: self.newest.clone() }
    }

    pub fn push(&mut self, event: Event, tags: Tags, at: Instant) {
        self.held_bytes += held_bytes(&event);
        set_newest(&mut self.newest, &event);
        self.slots.push_back(Slot { event, tags, at });
    }

    /// Takes out what is too much; to be called after `push` until it gives nothing.
    pub fn overflow(&mut self) -> Option<Slot> {
        // The newest event always stays, or a single large one would end every watch.
        if self.held_bytes <= self.limit_bytes || self.slots.len() <= 1 {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.held_bytes -= held_bytes(&slot.event);
        set_newest(&mut self.dropped, &slot.event);
        Some(slot)
    }

    /// The oldest revision from which every later event of a resource is known (of all resources: empty).
    pub fn floor(&self, resource: &str) -> u64 {
        of_resource(&self.dropped, resource).max(self.start)
    }

    /// The newest event of a resource that is known of (of all resources: empty).
    pub fn newest(&self, resource: &str) -> u64 {
        of_resource(&self.newest, resource)
    }

    /// The oldest revision that can be shown as it was.
    pub fn floor_of_reads(&self, resource: &str, now: Instant) -> u64 {
        let expired = self.slots.partition_point(|slot| now.saturating_duration_since(slot.at) > READ_BACK_LIMIT);
        let newest_expired = expired.checked_sub(1).map_or(0, |index| self.slots[index].event.revision);
        self.floor(resource).max(newest_expired)
    }

    /// The event of a revision.
    pub fn event(&self, revision: u64) -> Option<&Event> {
        let place = self.slots.partition_point(|slot| slot.event.revision < revision);
        self.slots.get(place).map(|slot| &slot.event).filter(|event| event.revision == revision)
    }

    /// Everything after a revision, oldest first.
    pub fn slots_after(&self, after: u64) -> impl DoubleEndedIterator<Item = &Slot> {
        let from = self.slots.partition_point(|slot| slot.event.revision <= after);
        self.slots.range(from..)
    }

    /// Events after a revision, newest first.
    pub fn newest_first(&self, after: u64) -> impl Iterator<Item = &Event> {
        self.slots_after(after).rev().map(|slot| &slot.event)
    }
}

fn of_resource(by_resource: &HashMap<Box<str>, u64>, resource: &str) -> u64 {
    let found =
        if resource.is_empty() { by_resource.values().copied().max() } else { by_resource.get(resource).copied() };
    found.unwrap_or(0)
}

impl Subject {
    /// What all keys begin with.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Prefix(prefix) | Self::Tagged { prefix, .. } => prefix,
            Self::Key(key) => key,
        }
    }

    /// The channel that has all of its events, and perhaps more.
    pub(super) fn channel(&self) -> Box<str> {
        match self {
            Self::Prefix(prefix) => resource_of(prefix).into(),
            Self::Key(key) => key.clone(),
            Self::Tagged { prefix, tag } => tag_channel(resource_of(prefix), tag).into(),
        }
    }
}

/// A cursor into the ring.
pub struct Watch {
    cache: Arc<Cache>,
    waker: Arc<Notify>,
    subject: Subject,
    channel: Box<str>,
    /// Everything up to here has been given out.
    after: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cache.lock().channels.leave(&self.channel);
    }
}

impl Watch {
    pub(super) fn new(cache: Arc<Cache>, waker: Arc<Notify>, subject: Subject, after: u64) -> Self {
        let channel = subject.channel();
        Self { cache, waker, subject, channel, after }
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
        let channel = state.channels.get(&self.channel).expect("a watch has joined its channel");
        let floor = channel.floor();
        if self.after < floor {
            return Err(StoreError::Compacted(self.after, floor));
        }
        let mut events = channel.events(&state.ring, self.after);
        let event = events.find(|event| event.shown().key.starts_with(self.subject.prefix())).cloned();
        if event.is_none() && state.closed {
            return Err(StoreError::Closed);
        }
        self.after = event.as_ref().map_or(state.revision, |event| event.revision);
        Ok(event)
    }

    /// Moves to the newest revision if nothing waits to be given out. Whether it did.
    pub fn catch_up(&mut self) -> bool {
        let state = self.cache.lock();
        let Some(channel) = state.channels.get(&self.channel).filter(|channel| self.after >= channel.floor()) else {
            return false;
        };
        let mut events = channel.events(&state.ring, self.after);
        let idle = !events.any(|event| event.shown().key.starts_with(self.subject.prefix()));
        if idle {
            self.after = state.revision;
        }
        idle
    }

    /// The revision up to which everything has been given out: what a bookmark says after `catch_up`.
    pub fn revision(&self) -> u64 {
        self.after
    }

    /// The newest change of the whole resource, of which the watch may see only a part.
    pub fn resource_revision(&self) -> u64 {
        self.cache.lock().ring.newest(resource_of(self.subject.prefix()))
    }
}
