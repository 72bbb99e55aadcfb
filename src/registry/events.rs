//! Events live for an hour and never more than a number of them. No timer: a new one drives the oldest out.

use super::Registry;
use crate::clock;
use crate::store::{Durability, Entry, Expected, Write};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

pub(super) const PREFIX: &str = "events";
const LIFE: Duration = Duration::from_secs(3600);
const EVENTS_LIMIT: usize = 2_000;
/// Removed along with one new Event at most, so that no write waits long.
const EXPIRE_LIMIT: usize = 4;

/// Writes of Events in their order. An Event that was written again has a later place, too.
#[derive(Default)]
pub(super) struct Expiry(Mutex<VecDeque<Mark>>);

struct Mark {
    at: Instant,
    key: Box<str>,
    revision: u64,
}

impl Expiry {
    /// Remembers a write and gives out whose time may be over.
    fn note(&self, entry: &Entry, now: Instant) -> Vec<Mark> {
        let mut writes = self.0.lock().expect("no panic while the writes are locked");
        writes.push_back(Mark { at: now, key: entry.key.clone(), revision: entry.revision });
        let mut over = Vec::new();
        while over.len() < EXPIRE_LIMIT {
            let full = writes.len() > EVENTS_LIMIT;
            match writes.front() {
                Some(mark) if full || now.saturating_duration_since(mark.at) > LIFE => over.extend(writes.pop_front()),
                _ => break,
            }
        }
        over
    }
}

impl Registry {
    /// To be called with every Event that was written.
    pub(super) async fn expire_events(&self, written: &Entry) {
        for mark in self.events.note(written, clock::monotonic()) {
            let write = Write {
                key: mark.key,
                // One that was written again since then has a later place.
                expected: Expected::Revision(mark.revision),
                value: None,
                splice_at: 0,
                durability: Durability::Lazy,
            };
            // Written again or gone already: nothing to do.
            let _ = self.store.write(write).await;
        }
    }

    /// After a start: what is there counts from now.
    pub(super) async fn adopt_events(&self) {
        if let Ok(page) = self.store.list("events/", "", 0, None).await {
            let mut entries = page.entries;
            entries.sort_by_key(|entry| entry.revision);
            for entry in entries {
                self.expire_events(&entry).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64) -> Entry {
        let bytes = bytes::Bytes::new();
        Entry { key: "events/a/b".into(), create_revision: 1, revision, bytes, splice_at: 0 }
    }

    #[test]
    fn the_oldest_go_when_their_time_is_over_or_there_are_too_many() {
        let (expiry, start) = (Expiry::default(), clock::monotonic());
        for revision in 0..EVENTS_LIMIT as u64 {
            assert!(expiry.note(&entry(revision), start).is_empty());
        }
        assert_eq!(expiry.note(&entry(9_999), start)[0].revision, 0);
        let later = expiry.note(&entry(10_000), start + LIFE + Duration::from_secs(1));
        assert_eq!(later.iter().map(|entry| entry.revision).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}
