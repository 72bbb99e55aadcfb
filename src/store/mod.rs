//! Revisions and watches over opaque bytes. Knows keys, not kinds.
//! One writer, group commit; the event ring is in memory and bounded in bytes; no history on disk.

pub mod cache;
mod channel;
pub mod memory;
#[cfg(test)]
pub mod racing;
pub mod seal;
pub mod splice;
pub mod sqlite;
#[cfg(test)]
mod tests;
pub mod watch;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use watch::Watch;

/// One stored object at one revision. Shared by readers, lists, watches and informers.
#[derive(Debug)]
pub struct Entry {
    /// `resource[.group]/namespace/name`, or `resource[.group]//name` for cluster-scoped kinds.
    pub key: Box<str>,
    pub create_revision: u64,
    pub revision: u64,
    /// Compact JSON with `metadata.resourceVersion` spliced in: what clients see.
    pub bytes: Bytes,
    /// Where in `bytes` the spliced member begins.
    pub splice_at: usize,
}

impl Entry {
    /// `namespace` and `name`, read from the key.
    pub fn namespaced_name(&self) -> (&str, &str) {
        let rest = self.key.split_once('/').map_or("", |(_, rest)| rest);
        rest.split_once('/').unwrap_or(("", rest))
    }
}

/// A change, in revision order.
#[derive(Clone, Debug)]
pub struct Event {
    /// For a deletion, the revision of the deletion.
    pub revision: u64,
    /// The object before; `None` for a creation.
    pub previous: Option<Arc<Entry>>,
    /// The object after; `None` for a deletion.
    pub current: Option<Arc<Entry>>,
    /// For a deletion: the last state under the revision of the deletion.
    pub deleted: Option<Arc<Entry>>,
}

impl Event {
    /// The state a client is shown: the new one, or the last one of a deleted object.
    pub fn shown(&self) -> &Arc<Entry> {
        self.current.as_ref().or(self.deleted.as_ref()).expect("an event has a current or a deleted state")
    }
}

/// How soon a write must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// On disk before the write is acknowledged.
    #[default]
    Durable,
    /// Readable at once; on disk with the next durable write, at shutdown or at a byte limit.
    /// Lost at most by a power cut; revisions are never reused.
    Lazy,
}

/// What must be true of the object for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It must not exist.
    Absent,
    /// It must exist at this revision.
    Revision(u64),
    /// It must exist; any revision.
    Present,
}

/// Stored value: canonical JSON *without* `metadata.resourceVersion`, and where to splice it in.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Box<str>,
    pub expected: Expected,
    /// `None` deletes. The bytes end up with `"resourceVersion":"N"` as the first member of `metadata`.
    pub value: Option<Bytes>,
    /// The offset just after `"metadata":{` in `value` (see `splice::metadata_offset`).
    pub splice_at: usize,
    pub durability: Durability,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("key exists")]
    Exists(Arc<Entry>),
    #[error("key is absent")]
    Absent,
    #[error("revision differs")]
    Conflict(Arc<Entry>),
    /// The revision is older than the ring, or of before a restart since which the resource may have changed.
    #[error("revision {0} is compacted; oldest is {1}")]
    Compacted(u64, u64),
    #[error("revision {0} is in the future; newest is {1}")]
    Future(u64, u64),
    #[error("store is closed")]
    Closed,
    #[error("store failed")]
    Engine(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    pub(crate) fn engine(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Engine(Arc::from(cause.into()))
    }
}

/// A page of a list, in key order.
#[derive(Debug)]
pub struct Page {
    pub entries: Vec<Arc<Entry>>,
    /// The revision the page shows.
    pub revision: u64,
    /// Entries after the last one of this page.
    pub remaining: u64,
}

/// What a watch follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Every key with this beginning.
    Prefix(Box<str>),
    /// One key.
    Key(Box<str>),
    /// Keys with this beginning, which names the resource, whose entries bear the tag before or after the event.
    Tagged { prefix: Box<str>, tag: Box<str> },
}

/// The tag of an entry of a resource, by its bytes: one word that it can be found by, as a pod by its node.
pub type TagOf = fn(resource: &str, bytes: &[u8]) -> Option<Box<str>>;

/// The engine: SQLite, memory (tests) or, later, etcd.
/// Reads see every acknowledged write. All methods are cancel-safe; a cancelled write may still happen.
pub trait Store: Send + Sync {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>, StoreError>>;

    /// Entries whose key starts with `prefix` and is greater than `after`, at most `limit` (0 = all).
    /// `at`: the revision to show (walks the ring backwards); `None` = newest.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
        at: Option<u64>,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// One compare-and-write; the new entry, or for a deletion the last one with the revision of the deletion.
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>>;

    /// From now on entries can be found by their tag; the first function given stays.
    fn tag_with(&self, tag_of: TagOf);

    /// The newest state of all entries under `prefix`, which names the resource, that bear a tag. No page: they are few.
    fn list_tagged(&self, prefix: &str, tag: &str) -> Page;

    /// Events of a subject with a revision greater than `after`.
    fn follow(&self, subject: Subject, after: u64) -> Result<Watch, StoreError>;

    /// Events of keys under `prefix` with a revision greater than `after`.
    fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        self.follow(Subject::Prefix(prefix.into()), after)
    }

    /// The newest revision that has been published.
    fn revision(&self) -> u64;

    /// Writes lazy values, checkpoints and closes.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
