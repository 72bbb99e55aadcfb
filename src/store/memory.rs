//! The engine without a disk: for tests and for clusters that may forget.

use super::cache::{Cache, plan};
use super::watch::{Past, RING_LIMIT_BYTES};
use super::{Entry, Page, Store, StoreError, Subject, TagOf, Watch, Write};
use crate::clock;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::{Arc, Mutex};

pub struct MemoryStore {
    cache: Arc<Cache>,
    /// Held from compare to publish: one writer at a time.
    writer: Mutex<()>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_ring_limit(RING_LIMIT_BYTES)
    }
}

impl MemoryStore {
    pub fn with_ring_limit(ring_limit_bytes: usize) -> Self {
        Self { cache: Cache::new(Vec::new(), 1, Past::unknown(1), ring_limit_bytes), writer: Mutex::default() }
    }

    fn write_now(&self, write: &Write) -> Result<Arc<Entry>, StoreError> {
        let _writer = self.writer.lock().expect("no panic while a write is applied");
        let (current, revision) = {
            let state = self.cache.lock();
            if state.closed {
                return Err(StoreError::Closed);
            }
            (state.entry(&write.key).cloned(), state.revision + 1)
        };
        let event = plan(current, write, revision)?;
        let entry = event.shown().clone();
        self.cache.publish(vec![event], clock::monotonic());
        Ok(entry)
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>, StoreError>> {
        async { Ok(self.cache.get(key)) }.boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
        at: Option<u64>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move { self.cache.list(prefix, after, limit, at) }.boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        async move { self.write_now(&write) }.boxed()
    }

    fn tag_with(&self, tag_of: TagOf) {
        self.cache.tag_with(tag_of);
    }

    fn list_tagged(&self, prefix: &str, tag: &str) -> Page {
        self.cache.list_tagged(prefix, tag)
    }

    fn follow(&self, subject: Subject, after: u64) -> Result<Watch, StoreError> {
        self.cache.follow(subject, after)
    }

    fn revision(&self) -> u64 {
        self.cache.revision()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            self.cache.close();
            Ok(())
        }
        .boxed()
    }
}
