//! The engine on one disk: SQLite with one table of current objects, one writer thread, group commit.
//! An acknowledged durable write survives a power cut. Reads are answered from memory, also after the disk failed.

pub mod backup;
mod database;
mod queue;
mod writer;

use super::cache::Cache;
use super::seal::Sealer;
use super::watch::RING_LIMIT_BYTES;
use super::{Entry, Page, Store, StoreError, Subject, TagOf, Watch, Write};
use crate::clock;
use database::{Database, Opened};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use queue::Queue;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;
use writer::{Request, Writer};

pub struct SqliteStore {
    cache: Arc<Cache>,
    queue: Arc<Queue>,
}

/// Without `close` the writer still finishes what was asked of it, but nobody waits for it.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl SqliteStore {
    /// Opens or makes the database and loads it. Blocks: call it before serving, or from `spawn_blocking`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_ring_limit(path, RING_LIMIT_BYTES)
    }

    pub fn open_with_ring_limit(path: &Path, ring_limit_bytes: usize) -> Result<Self, StoreError> {
        Self::open_with(path, ring_limit_bytes, None)
    }

    /// The same; values that the sealer covers are sealed on the disk. Those of before are sealed now.
    pub fn open_sealed(path: &Path, sealer: Sealer) -> Result<Self, StoreError> {
        Self::open_with(path, RING_LIMIT_BYTES, Some(sealer))
    }

    fn open_with(path: &Path, ring_limit_bytes: usize, sealer: Option<Sealer>) -> Result<Self, StoreError> {
        let (database, Opened { entries, past }) = Database::open(path, sealer)?;
        let cache = Cache::new(entries, database.start_revision(), past, ring_limit_bytes);
        let queue = Arc::new(Queue::new());
        let writer = Writer::new(database, cache.clone(), queue.clone());
        let thread = std::thread::Builder::new().name("store".into());
        thread.spawn(move || writer.run()).map_err(StoreError::engine)?;
        Ok(Self { cache, queue })
    }

    async fn ask<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.queue.push(request).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Store for SqliteStore {
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
        let (answer, answered) = oneshot::channel();
        let request = Request::Write { write, at: clock::monotonic(), answer };
        self.ask(request, answered).boxed()
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
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Close { answer }, answered).boxed()
    }
}
