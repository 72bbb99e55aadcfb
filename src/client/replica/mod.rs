//! The node's part of the objects, kept on its own disk: what informers and references have seen, so that a board
//! that boots with no server runs its pods. Sealed, written only when something has changed, whole after any power cut.
//! It never decides what is true: as soon as the server answers, its lists replace what was loaded.

mod follow;
mod kept;
pub mod key;
mod log;
mod sealed;

pub use follow::follow;
pub use kept::with_status;
pub use key::KeySource;
pub use log::LogError as ReplicaError;

use super::informer::Scope;
use super::{ENDPOINTSLICES, Item, PODS, Resource};
use crate::clock::monotonic;
use bytes::Bytes;
use log::{Digest, Log, Record, digest};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::Notify;

const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// Changes that come within this time after a write are written together.
const GATHER: Duration = Duration::from_secs(1);
/// What changes with every pod of the cluster and is soon stale anyway is written with the next other change, or
/// after this.
const LAZY: Duration = Duration::from_secs(10);
/// After a failed write (a full disk) the next try comes then, or with the next change.
const WRITE_RETRY: Duration = Duration::from_secs(30);
/// The key under which a collection says that it was listed: it may be empty.
const LISTED: &str = "";
/// The kind of notes that are pods' last statuses, by uid.
pub const POD_STATUSES: &str = "edgelet.io/pod-status";

/// Cheap to clone.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    state: Mutex<State>,
    /// Held while the disk works: only from where blocking is allowed.
    log: Arc<Mutex<Log>>,
    wake: Arc<Wake>,
    started: AtomicBool,
    opened_at: tokio::time::Instant,
    /// The server has listed something in this process' life.
    answered: AtomicBool,
    written_bytes: AtomicU64,
}

/// What the writing task waits for.
#[derive(Default)]
struct Wake {
    now: Notify,
    lazily: Notify,
}

#[derive(Default)]
struct State {
    /// What is on disk or on its way there.
    stored: HashMap<Arc<str>, HashMap<Arc<str>, Digest>>,
    /// What a former process left, until the server has answered.
    loaded: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Bytes>>,
    /// What is to be written; bounded by the number of objects.
    pending: BTreeMap<(Arc<str>, Arc<str>), Record>,
}

/// A list from the replica: keys are `namespace/name`, as informers have them.
pub type Loaded = Vec<(Arc<str>, Item)>;

impl Replica {
    /// Opens the replica in a folder of its own, or makes it. Blocks. One that another key or a later program
    /// wrote is an error and stays as it is.
    pub fn open(directory: &Path, key: &KeySource) -> Result<Self, ReplicaError> {
        let (log, contents) = Log::open(directory, key)?;
        Ok(Self::new(directory, log, contents))
    }

    /// As `open`, but a replica that cannot be read is given up: the server will fill a new one.
    pub fn open_or_new(directory: &Path, key: &KeySource) -> Result<Self, ReplicaError> {
        match Self::open(directory, key) {
            Err(error @ (ReplicaError::Key(_) | ReplicaError::Version(_))) => {
                tracing::error!(%error, "the replica cannot be used; beginning a new one");
                Ok(Self::new(directory, Log::renew(directory, key)?, log::Contents::new()))
            }
            opened => opened,
        }
    }

    fn new(directory: &Path, log: Log, contents: log::Contents) -> Self {
        let mut state = State::default();
        for (collection, entries) in contents {
            let digests = entries.iter().map(|(key, (digest, _))| (key.clone(), *digest)).collect();
            state.stored.insert(collection.clone(), digests);
            state.loaded.insert(collection, entries.into_iter().map(|(key, (_, value))| (key, value)).collect());
        }
        Self(Arc::new(Inner {
            directory: directory.to_owned(),
            state: Mutex::new(state),
            log: Arc::new(Mutex::new(log)),
            wake: Arc::default(),
            started: AtomicBool::new(false),
            opened_at: monotonic(),
            answered: AtomicBool::new(false),
            written_bytes: AtomicU64::new(0),
        }))
    }

    /// What another process' replica holds now of a resource in any scope, each object once. Blocks.
    pub fn read(directory: &Path, key: &KeySource, resource: Resource) -> Result<Loaded, ReplicaError> {
        let mut contents = Log::read(directory, key)?;
        let statuses = contents.remove(POD_STATUSES).unwrap_or_default();
        let prefix = format!("{}?", path(resource));
        let mut found = BTreeMap::new();
        for (_, entries) in contents.into_iter().filter(|(collection, _)| collection.starts_with(&prefix)) {
            for (key, (_, value)) in entries.into_iter().filter(|(key, _)| &**key != LISTED) {
                let status = |uid: &str| statuses.get(uid).map(|(_, status)| status.clone());
                found.insert(key, complete(resource, value, status));
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Where a node that keeps its keys in `node` has its replica.
    pub fn folder(node: &Path) -> PathBuf {
        node.join("replica")
    }

    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// What a former process left of this list; `None`: it never was listed, or the server has answered since.
    pub fn load(&self, resource: Resource, scope: &Scope) -> Option<Loaded> {
        let state = self.0.lock();
        let entries = state.loaded.get(collection(resource, scope).as_str())?;
        entries.get(LISTED)?;
        let statuses = state.loaded.get(POD_STATUSES);
        let status = |uid: &str| statuses.and_then(|all| all.get(uid)).cloned();
        let objects = entries.iter().filter(|(key, _)| &***key != LISTED);
        Some(objects.map(|(key, value)| (key.clone(), complete(resource, value.clone(), status))).collect())
    }

    /// How long a list that begins now waits for a server that does not even refuse. All that a boot needs wait
    /// together, not one after the other.
    fn patience(&self) -> Duration {
        if self.0.answered.load(Ordering::Relaxed) {
            ANSWER_PATIENCE
        } else {
            ANSWER_PATIENCE.saturating_sub(self.0.opened_at.elapsed())
        }
    }

    /// The server has listed: what is not in the list is forgotten.
    pub fn replace(&self, resource: Resource, scope: &Scope, listed: &[(Arc<str>, Item)]) {
        let collection: Arc<str> = collection(resource, scope).into();
        let values = listed.iter().map(|(key, item)| (key.clone(), kept::kept(resource, &item.0)));
        let mut values: BTreeMap<Arc<str>, Bytes> = values.collect();
        values.insert(LISTED.into(), Bytes::new());
        self.0.answered.store(true, Ordering::Relaxed);
        let mut state = self.0.lock();
        state.loaded.remove(&collection);
        let known = state.stored.get(&collection).into_iter().flat_map(HashMap::keys);
        let gone: Vec<Arc<str>> = known.filter(|key| !values.contains_key(*key)).cloned().collect();
        let mut news = false;
        for key in gone {
            news |= state.put(&collection, &key, None, Digest::default());
        }
        for (key, value) in values {
            let digest = digest(&[&value]);
            news |= state.put(&collection, &key, Some(value), digest);
        }
        drop(state);
        self.tell(news, resource == ENDPOINTSLICES);
    }

    /// One object has changed on the server; `None` = deleted.
    pub fn set(&self, resource: Resource, scope: &Scope, key: &Arc<str>, item: Option<&Item>) {
        let value = item.map(|item| kept::kept(resource, &item.0));
        let digest = value.as_ref().map_or_else(Digest::default, |value| digest(&[value]));
        let news = self.0.lock().put(&collection(resource, scope).into(), key, value, digest);
        self.tell(news, resource == ENDPOINTSLICES);
    }

    /// Keeps something of the node's own, as the tokens that were given to a pod. `news` is what of it is worth a
    /// write: while it is equal, the value on disk may stay behind.
    pub fn note(&self, kind: &str, key: &str, value: Option<Bytes>, news: &[u8]) {
        let digest = value.as_ref().map_or_else(Digest::default, |_| digest(&[news]));
        let written = self.0.lock().put(&kind.into(), &key.into(), value, digest);
        self.tell(written, false);
    }

    /// What a former process noted.
    pub fn noted(&self, kind: &str, key: &str) -> Option<Bytes> {
        self.0.lock().loaded.get(kind)?.get(key).cloned()
    }

    /// Keeps a pod's own status, for a boot without the server.
    pub fn note_status(&self, uid: &str, status: &serde_json::Value) {
        let news = kept::status_news(status);
        if self.0.lock().holds(POD_STATUSES, uid, digest(&[&news])) {
            return;
        }
        self.note(POD_STATUSES, uid, Some(Bytes::from(status.to_string())), &news);
    }

    /// Forgets notes and single objects (`is_wanted`: kind or list, key) of pods that are no more, and what a
    /// former process left of them. Call it when the server has listed the pods.
    pub fn retain(&self, mut is_wanted: impl FnMut(Place<'_>) -> bool) {
        let mut state = self.0.lock();
        let mut gone = Vec::new();
        for (collection, entries) in &state.stored {
            for key in entries.keys() {
                if !is_wanted(Place::new(collection, key)) {
                    gone.push((collection.clone(), key.clone()));
                }
            }
        }
        let mut news = false;
        for (collection, key) in gone {
            news |= state.put(&collection, &key, None, Digest::default());
            if let Some(entries) = state.loaded.get_mut(&collection) {
                entries.remove(&key);
            }
        }
        drop(state);
        self.tell(news, false);
    }

    fn tell(&self, news: bool, lazily: bool) {
        if news {
            let wake = if lazily { &self.0.wake.lazily } else { &self.0.wake.now };
            wake.notify_one();
        }
    }

    /// Bytes handed to the disk since this process began.
    pub fn written_bytes(&self) -> u64 {
        self.0.written_bytes.load(Ordering::Relaxed)
    }

    /// Starts the task that writes, once; it ends with the last clone. Call it inside the runtime.
    pub fn start(&self) {
        if !self.0.started.swap(true, Ordering::Relaxed) {
            crate::supervise::spawn(write_all(Arc::downgrade(&self.0), self.0.wake.clone()));
        }
    }

    /// Writes what waits. For a clean end.
    pub async fn flush(&self) -> std::io::Result<()> {
        self.0.write().await
    }
}

/// Where something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A note under this kind and key.
    Note { kind: &'a str, key: &'a str },
    /// A list that follows one object by its name: `/v1/secrets`, its namespace and name.
    Single { resource: &'a str, namespace: &'a str, name: &'a str },
    /// Any other list.
    List,
}

impl<'a> Place<'a> {
    fn new(collection: &'a str, key: &'a str) -> Self {
        let Some((resource, scope)) = collection.split_once('?') else {
            return Self::Note { kind: collection, key };
        };
        let mut parts = scope.split('&');
        let (namespace, labels, fields) = (parts.next(), parts.next(), parts.next());
        match (namespace, labels, fields.and_then(|fields| fields.strip_prefix("metadata.name="))) {
            (Some(namespace), Some(""), Some(name)) if !namespace.is_empty() => {
                Self::Single { resource, namespace, name }
            }
            _ => Self::List,
        }
    }

    /// Whether it follows this one object.
    pub fn is(&self, wanted: Resource, of: &str, named: &str) -> bool {
        matches!(self, Self::Single { resource, namespace, name }
            if *resource == path(wanted) && *namespace == of && *name == named)
    }
}

/// How a resource is named in a place.
pub fn path(resource: Resource) -> String {
    format!("{}/{}/{}", resource.group, resource.version, resource.plural)
}

fn collection(resource: Resource, scope: &Scope) -> String {
    format!("{}?{}&{}&{}", path(resource), scope.namespace, scope.label_selector, scope.field_selector)
}

/// An object as loops expect it: a pod has the status that its kubelet noted.
fn complete(resource: Resource, value: Bytes, status: impl Fn(&str) -> Option<Bytes>) -> Item {
    let item = Item(value);
    if resource != PODS {
        return item;
    }
    let noted = item.identity().ok().and_then(|identity| status(&identity.uid));
    noted.map_or_else(|| item.clone(), |status| Item(kept::with_status(&item.0, &status)))
}

impl State {
    fn holds(&self, collection: &str, key: &str, digest: Digest) -> bool {
        self.stored.get(collection).and_then(|entries| entries.get(key)) == Some(&digest)
    }

    /// Takes note of a change that is to be written; false when it is none.
    fn put(&mut self, collection: &Arc<str>, key: &Arc<str>, value: Option<Bytes>, digest: Digest) -> bool {
        match value {
            Some(_) if self.holds(collection, key, digest) => return false,
            Some(_) => drop(self.stored.entry(collection.clone()).or_default().insert(key.clone(), digest)),
            None => {
                let entries = self.stored.get_mut(collection);
                if entries.and_then(|entries| entries.remove(key)).is_none() {
                    return false;
                }
            }
        }
        let record = Record { collection: collection.clone(), key: key.clone(), digest, value };
        self.pending.insert((collection.clone(), key.clone()), record);
        true
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the replica is locked")
    }

    /// Writes all that waits in one frame; what could not be written waits on.
    async fn write(&self) -> std::io::Result<()> {
        let records: Vec<Record> = std::mem::take(&mut self.lock().pending).into_values().collect();
        if records.is_empty() {
            return Ok(());
        }
        let log = self.log.clone();
        let write = move || {
            let mut log = log.lock().expect("no panic while the replica's file is locked");
            let outcome = log.append(&records);
            let outcome = outcome.and_then(|bytes| Ok(bytes + if log.is_full() { log.compact()? } else { 0 }));
            (outcome, records)
        };
        let (outcome, records) = tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?;
        match outcome {
            Ok(bytes) => {
                self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let mut state = self.lock();
                for record in records {
                    state.pending.entry((record.collection.clone(), record.key.clone())).or_insert(record);
                }
                Err(error)
            }
        }
    }
}

impl Wake {
    async fn any(&self) {
        tokio::select! {
            () = self.now.notified() => {}
            () = self.lazily.notified() => {
                let _ = tokio::time::timeout(LAZY, self.now.notified()).await;
            }
        }
    }
}

/// Woken by changes; ends with the last clone of the replica.
async fn write_all(replica: Weak<Inner>, wake: Arc<Wake>) {
    let mut failing = false;
    loop {
        if failing {
            let _ = tokio::time::timeout(WRITE_RETRY, wake.now.notified()).await;
        } else {
            wake.any().await;
        }
        let Some(inner) = replica.upgrade() else { return };
        if let Err(error) = inner.write().await {
            if !failing {
                tracing::warn!(%error, "write replica failed; retrying");
            }
            failing = true;
        } else {
            failing = false;
        }
        drop(inner);
        tokio::time::sleep(GATHER).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wake.now.notify_one();
    }
}

#[cfg(test)]
mod tests;
