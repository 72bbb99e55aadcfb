//! For tests: a store in which another writer is faster, once.

use super::{Entry, Expected, MemoryStore, Page, Store, StoreError, Subject, TagOf, Watch, Write, splice};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::{Arc, Mutex};

type Change = Box<dyn FnOnce(&mut Value) + Send>;

/// What the other writer changes, and where.
#[derive(Default)]
pub struct RacingStore {
    inner: MemoryStore,
    race: Mutex<Option<(String, Change)>>,
}

impl RacingStore {
    /// Right before the next write of this key somebody else changes the object.
    pub fn race(&self, key: &str, change: impl FnOnce(&mut Value) + Send + 'static) {
        *self.race.lock().unwrap() = Some((key.to_owned(), Box::new(change)));
    }

    async fn overtake(&self, key: &str) {
        let Some((_, change)) = self.race.lock().unwrap().take_if(|(raced, _)| raced == key) else { return };
        let entry = self.inner.get(key).await.unwrap().expect("the raced object is there");
        let mut object: Value = serde_json::from_slice(&splice::remove(&entry.bytes, entry.splice_at)).unwrap();
        change(&mut object);
        let value = Bytes::from(object.to_string());
        let splice_at = splice::metadata_offset(&value).expect("it has metadata");
        let (key, expected) = (entry.key.clone(), Expected::Revision(entry.revision));
        let durability = super::Durability::Durable;
        self.inner.write(Write { key, expected, value: Some(value), splice_at, durability }).await.unwrap();
    }
}

impl Store for RacingStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
        at: Option<u64>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.inner.list(prefix, after, limit, at)
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        async move {
            self.overtake(&write.key).await;
            self.inner.write(write).await
        }
        .boxed()
    }

    fn tag_with(&self, tag_of: TagOf) {
        self.inner.tag_with(tag_of);
    }

    fn list_tagged(&self, prefix: &str, tag: &str) -> Page {
        self.inner.list_tagged(prefix, tag)
    }

    fn follow(&self, subject: Subject, after: u64) -> Result<Watch, StoreError> {
        self.inner.follow(subject, after)
    }

    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}
