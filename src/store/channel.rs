//! What is watched: a channel per subject, with the revisions of its events that the ring holds. An event is looked for
//! once, when it is published, however many watch; who watches other things is not woken and reads nothing.

use super::Event;
use super::cache::resource_of;
use super::watch::{Ring, Slot};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// Channels of an entry's tag, before and after an event.
pub(super) type Tags = [Option<Arc<str>>; 2];

/// The channel of a tag of a resource's entries.
pub(super) fn tag_channel(resource: &str, tag: &str) -> String {
    format!("{resource}\0{tag}")
}

/// The channels that an event belongs to: everything, its resource, its key, its tags.
fn channels_of<'a>(event: &'a Event, tags: &'a Tags) -> impl Iterator<Item = &'a str> {
    let key = &*event.shown().key;
    let [before, after] = tags;
    let before = before.as_deref().filter(|before| Some(*before) != after.as_deref());
    ["", resource_of(key), key].into_iter().chain(before).chain(after.as_deref())
}

/// One subject that somebody watches.
pub(super) struct Channel {
    wake: Arc<Notify>,
    /// Of its events in the ring, those after `from`.
    revisions: VecDeque<u64>,
    from: u64,
    /// Its newest event that the ring has dropped since somebody watches.
    dropped: u64,
    watches: usize,
    /// The last publication that had events of it.
    publication: u64,
}

impl Channel {
    /// From which revision all of its events are there.
    pub fn floor(&self) -> u64 {
        self.dropped
    }

    /// Its events after a revision, in order.
    pub fn events<'a>(&'a self, ring: &'a Ring, after: u64) -> impl Iterator<Item = &'a Event> {
        let from = self.revisions.partition_point(|revision| *revision <= after);
        self.revisions.range(from..).filter_map(|revision| ring.event(*revision))
    }
}

/// Bounded by the number of watches.
#[derive(Default)]
pub(super) struct Channels {
    by_name: HashMap<Box<str>, Channel>,
    publications: u64,
}

impl Channels {
    pub fn get(&self, name: &str) -> Option<&Channel> {
        self.by_name.get(name)
    }

    /// Somebody watches from a revision on, of which the ring still knows everything later.
    pub fn join(&mut self, name: &str, after: u64, ring: &Ring) -> Arc<Notify> {
        let new = || Channel {
            wake: Arc::default(),
            revisions: VecDeque::new(),
            from: u64::MAX,
            dropped: 0,
            watches: 0,
            publication: 0,
        };
        let channel = self.by_name.entry(name.into()).or_insert_with(new);
        channel.watches += 1;
        if after < channel.from {
            let own =
                ring.slots_after(after).filter(|slot| channels_of(&slot.event, &slot.tags).any(|one| one == name));
            channel.revisions = own.map(|slot| slot.event.revision).collect();
            channel.from = after;
        }
        channel.wake.clone()
    }

    pub fn leave(&mut self, name: &str) {
        if let Some(channel) = self.by_name.get_mut(name) {
            channel.watches -= 1;
            if channel.watches == 0 {
                self.by_name.remove(name);
            }
        }
    }

    /// The events that are noted from now on are published together.
    pub fn begin(&mut self) {
        self.publications += 1;
    }

    /// An event has come into the ring; adds whom to wake, each once per publication.
    pub fn note(&mut self, event: &Event, tags: &Tags, wakes: &mut Vec<Arc<Notify>>) {
        for name in channels_of(event, tags) {
            let Some(channel) = self.by_name.get_mut(name) else { continue };
            channel.revisions.push_back(event.revision);
            if std::mem::replace(&mut channel.publication, self.publications) != self.publications {
                wakes.push(channel.wake.clone());
            }
        }
    }

    /// An event has left the ring.
    pub fn forget(&mut self, slot: &Slot) {
        for name in channels_of(&slot.event, &slot.tags) {
            let Some(channel) = self.by_name.get_mut(name) else { continue };
            channel.dropped = slot.event.revision;
            if channel.revisions.front() == Some(&slot.event.revision) {
                channel.revisions.pop_front();
            }
        }
    }

    /// Everybody who waits.
    pub fn all(&self) -> Vec<Arc<Notify>> {
        self.by_name.values().map(|channel| channel.wake.clone()).collect()
    }
}
