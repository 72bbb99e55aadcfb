//! The newest state of every key, shared by readers and the one writer; and the compare step of a write.
//! Reads never touch the disk. The lock is held for map operations only, never across I/O.

use super::channel::{Channels, Tags, tag_channel};
use super::watch::{Past, Ring};
use super::{Entry, Event, Expected, Page, StoreError, Subject, TagOf, Watch, Write, splice};
use crate::clock;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::time::Instant;

/// An entry ordered by its key, so that the map holds the key once.
struct ByKey(Arc<Entry>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}
impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}
impl Eq for ByKey {}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// What the lock protects.
pub(super) struct State {
    entries: BTreeSet<ByKey>,
    /// Entries that bear a tag, by its channel.
    tagged: HashMap<Arc<str>, BTreeSet<ByKey>>,
    pub(super) ring: Ring,
    pub(super) channels: Channels,
    pub(super) revision: u64,
    pub(super) closed: bool,
}

/// The cache of one store. Cheap to share; the writer publishes, everyone reads.
pub(super) struct Cache {
    state: Mutex<State>,
    tag_of: OnceLock<TagOf>,
}

/// The part of a key that names the resource: everything before the first `/`.
pub(super) fn resource_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(resource, _)| resource)
}

/// Compares a write with the object as it is, and says what becomes of it under `revision`.
pub(super) fn plan(current: Option<Arc<Entry>>, write: &Write, revision: u64) -> Result<Event, StoreError> {
    let previous = match (write.expected, current) {
        (Expected::Absent, Some(entry)) => return Err(StoreError::Exists(entry)),
        (Expected::Absent, None) if write.value.is_some() => None,
        (_, None) => return Err(StoreError::Absent),
        (Expected::Revision(expected), Some(entry)) if entry.revision != expected => {
            return Err(StoreError::Conflict(entry));
        }
        (_, Some(entry)) => Some(entry),
    };
    let create_revision = previous.as_ref().map_or(revision, |entry| entry.create_revision);
    let entry = |value: &[u8], splice_at| {
        let bytes = splice::insert(value, splice_at, revision);
        Some(Arc::new(Entry { key: write.key.clone(), create_revision, revision, bytes, splice_at }))
    };
    Ok(match (&write.value, previous) {
        (Some(value), previous) => Event { revision, previous, current: entry(value, write.splice_at), deleted: None },
        (None, Some(last)) => {
            let deleted = entry(&splice::remove(&last.bytes, last.splice_at), last.splice_at);
            Event { revision, previous: Some(last), current: None, deleted }
        }
        (None, None) => return Err(StoreError::Absent),
    })
}

impl Cache {
    pub fn new(entries: Vec<Arc<Entry>>, revision: u64, past: Past, ring_limit_bytes: usize) -> Arc<Self> {
        let entries = entries.into_iter().map(ByKey).collect();
        let (tagged, channels) = (HashMap::new(), Channels::default());
        let ring = Ring::new(past, ring_limit_bytes);
        let state = State { entries, tagged, ring, channels, revision, closed: false };
        Arc::new(Self { state: Mutex::new(state), tag_of: OnceLock::new() })
    }

    /// From now on entries can be listed and watched by their tag. The first function stays.
    pub fn tag_with(&self, tag_of: TagOf) {
        let mut state = self.lock();
        if self.tag_of.set(tag_of).is_ok() {
            let State { entries, tagged, .. } = &mut *state;
            for ByKey(entry) in entries.iter() {
                if let Some(channel) = self.tag_channel(Some(entry)) {
                    tagged.entry(channel).or_default().insert(ByKey(entry.clone()));
                }
            }
        }
    }

    fn tag_channel(&self, entry: Option<&Arc<Entry>>) -> Option<Arc<str>> {
        let (entry, tag_of) = entry.zip(self.tag_of.get())?;
        let resource = resource_of(&entry.key);
        Some(tag_channel(resource, &tag_of(resource, &entry.bytes)?).into())
    }

    fn tags(&self, event: &Event) -> Tags {
        [self.tag_channel(event.previous.as_ref()), self.tag_channel(event.current.as_ref())]
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the cache is locked")
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.lock().entry(key).cloned()
    }

    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    pub fn list(&self, prefix: &str, after: &str, limit: usize, at: Option<u64>) -> Result<Page, StoreError> {
        let state = self.lock();
        match at {
            Some(at) if at > state.revision => Err(StoreError::Future(at, state.revision)),
            Some(at) if at < state.revision => state.list_at(prefix, after, limit, at),
            _ => Ok(page(state.range(prefix, after), limit, state.revision)),
        }
    }

    /// As `list` of the newest state, of those entries that bear a tag.
    pub fn list_tagged(&self, prefix: &str, tag: &str) -> Page {
        let state = self.lock();
        let found = state.tagged.get(&*tag_channel(resource_of(prefix), tag));
        let entries = found.into_iter().flatten().map(|entry| &entry.0);
        page(entries.filter(|entry| entry.key.starts_with(prefix)), 0, state.revision)
    }

    pub fn follow(self: &Arc<Self>, subject: Subject, after: u64) -> Result<Watch, StoreError> {
        let mut state = self.lock();
        let floor = state.ring.floor(resource_of(subject.prefix()));
        if after < floor {
            return Err(StoreError::Compacted(after, floor));
        }
        if after > state.revision {
            return Err(StoreError::Future(after, state.revision));
        }
        let State { ring, channels, .. } = &mut *state;
        let waker = channels.join(&subject.channel(), after, ring);
        drop(state);
        Ok(Watch::new(self.clone(), waker, subject, after))
    }

    /// Makes changes readable, in revision order, and wakes who watches them.
    pub fn publish(&self, events: Vec<Event>, at: Instant) {
        let tags: Vec<Tags> = events.iter().map(|event| self.tags(event)).collect();
        let mut wakes = Vec::new();
        let mut state = self.lock();
        state.channels.begin();
        for (event, tags) in events.into_iter().zip(tags) {
            state.channels.note(&event, &tags, &mut wakes);
            state.apply(event, tags, at);
        }
        drop(state);
        wakes.iter().for_each(|waker| waker.notify_waiters());
    }

    /// Ends every watch; what the next process is to know of what has happened.
    pub fn close(&self) -> Past {
        let mut state = self.lock();
        state.closed = true;
        let (wakes, past) = (state.channels.all(), state.ring.past());
        drop(state);
        wakes.iter().for_each(|waker| waker.notify_waiters());
        past
    }
}

impl State {
    pub fn entry(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key).map(|entry| &entry.0)
    }

    fn apply(&mut self, event: Event, tags: Tags, at: Instant) {
        self.revision = event.revision;
        self.retag(&event, &tags);
        match &event.current {
            Some(entry) => {
                self.entries.replace(ByKey(entry.clone()));
            }
            None => {
                self.entries.remove(&*event.shown().key);
            }
        }
        self.ring.push(event, tags, at);
        while let Some(slot) = self.ring.overflow() {
            self.channels.forget(&slot);
        }
    }

    fn retag(&mut self, event: &Event, [before, after]: &Tags) {
        if let Some(before) = before.as_ref().filter(|before| Some(*before) != after.as_ref())
            && let Some(entries) = self.tagged.get_mut(before)
        {
            entries.remove(&*event.shown().key);
            if entries.is_empty() {
                self.tagged.remove(before);
            }
        }
        if let (Some(after), Some(entry)) = (after, &event.current) {
            self.tagged.entry(after.clone()).or_default().replace(ByKey(entry.clone()));
        }
    }

    /// Entries under `prefix` with a key greater than `after`, in key order.
    fn range<'a>(&'a self, prefix: &'a str, after: &'a str) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let range = self.entries.range::<str, _>((from, Bound::Unbounded));
        range.map(|entry| &entry.0).take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// The page as it was at an older revision: what changed since is undone from the ring.
    fn list_at(&self, prefix: &str, after: &str, limit: usize, at: u64) -> Result<Page, StoreError> {
        let floor = self.ring.floor_of_reads(resource_of(prefix), clock::monotonic());
        if at < floor {
            return Err(StoreError::Compacted(at, floor));
        }
        let mut entries: BTreeMap<&str, &Arc<Entry>> =
            self.range(prefix, after).map(|entry| (&*entry.key, entry)).collect();
        for event in self.ring.newest_first(at) {
            let key = &*event.shown().key;
            if !key.starts_with(prefix) || key <= after {
                continue;
            }
            match &event.previous {
                Some(entry) => entries.insert(key, entry),
                None => entries.remove(key),
            };
        }
        Ok(page(entries.into_values(), limit, at))
    }
}

fn page<'a>(mut entries: impl Iterator<Item = &'a Arc<Entry>>, limit: usize, revision: u64) -> Page {
    if limit == 0 {
        return Page { entries: entries.cloned().collect(), revision, remaining: 0 };
    }
    let taken = entries.by_ref().take(limit).cloned().collect();
    Page { entries: taken, revision, remaining: entries.count() as u64 }
}
