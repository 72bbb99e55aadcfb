//! Informers: a cache of one resource kept by list and watch, and coalesced changes for loops.
//! A lost event costs latency only: a broken watch lists again and reports the differences.

use super::reflector::Sink;
use super::replica::{Replica, follow};
use super::{Client, Item, Resource};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// What an informer holds: a namespace and selectors narrow it; empty = everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

/// The cache of one resource. Cheap to clone; items share their bytes with the store.
#[derive(Clone)]
pub struct Informer {
    inner: Arc<Inner>,
}

struct Inner {
    resource: Resource,
    state: Mutex<State>,
    /// The revision the cache shows; `None` before the first list.
    progress: watch::Sender<Option<u64>>,
    contact: watch::Sender<Contact>,
}

/// What an informer knows of its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The server has listed, in this process' life: what the cache shows is not from a replica.
    pub confirmed: bool,
    /// The last that was heard of the server was an answer.
    pub connected: bool,
}

/// The values an object is found under in an index.
pub type Extract = fn(&Item) -> Vec<String>;

struct Index {
    extract: Extract,
    keys: HashMap<String, BTreeSet<Arc<str>>>,
}

impl Index {
    fn remove(&mut self, key: &Arc<str>, item: &Item) {
        for value in (self.extract)(item) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }

    fn insert(&mut self, key: &Arc<str>, item: &Item) {
        for value in (self.extract)(item) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }
}

#[derive(Default)]
struct State {
    items: BTreeMap<Arc<str>, Item>,
    indexes: HashMap<&'static str, Index>,
    subscribers: HashMap<u64, Subscriber>,
    sequence: u64,
    /// The server's state of objects that are shown otherwise while it is away.
    amended: BTreeMap<Arc<str>, Item>,
}

/// What one subscriber has not looked at yet.
#[derive(Default)]
struct Subscriber {
    /// By key: its place in the order, and the object as the subscriber saw it last.
    dirty: HashMap<Arc<str>, (u64, Option<Item>)>,
    order: BTreeMap<u64, Arc<str>>,
    sequence: u64,
    wake: Arc<Notify>,
}

/// One object's change since the subscriber last looked: several changes become one.
#[derive(Clone, Debug)]
pub struct Change {
    /// `namespace/name`; `/name` for cluster-scoped objects.
    pub key: String,
    /// As the subscriber saw it last.
    pub old: Option<Item>,
    /// As it is now; `None` = deleted.
    pub new: Option<Item>,
}

/// A subscriber's dirty set; bounded by the number of objects.
pub struct Changes {
    inner: Arc<Inner>,
    id: u64,
    wake: Arc<Notify>,
}

impl Changes {
    /// Waits for the next change. After `subscribe`, every existing object is reported once as new. Cancel-safe.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.try_next() {
                return change;
            }
            self.wake.notified().await;
        }
    }

    /// The next change if there is one now; lets a loop take a burst in one go.
    pub fn try_next(&mut self) -> Option<Change> {
        self.inner.lock().take(self.id)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.inner.lock().subscribers.remove(&self.id);
    }
}

impl Subscriber {
    /// `old` is the object before this change, `exists` whether it is there after it.
    fn mark(&mut self, key: &Arc<str>, old: Option<&Item>, exists: bool) {
        if let Some((place, seen)) = self.dirty.get(key) {
            if seen.is_none() && !exists {
                self.order.remove(place);
                self.dirty.remove(key);
            }
            return;
        }
        self.sequence += 1;
        self.dirty.insert(key.clone(), (self.sequence, old.cloned()));
        self.order.insert(self.sequence, key.clone());
        self.wake.notify_one();
    }
}

impl State {
    /// Stores one object's new state; equal bytes are no change.
    fn set(&mut self, key: Arc<str>, new: Option<Item>) {
        let exists = new.is_some();
        let old = match new {
            Some(item) if self.items.get(&key).is_some_and(|held| held.0 == item.0) => return,
            Some(item) => self.items.insert(key.clone(), item),
            None => self.items.remove(&key),
        };
        if old.is_none() && !exists {
            return;
        }
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            if let Some(new) = self.items.get(&key) {
                index.insert(&key, new);
            }
        }
        for subscriber in self.subscribers.values_mut() {
            subscriber.mark(&key, old.as_ref(), exists);
        }
    }

    /// Takes a whole list: what is not in it is gone.
    fn replace(&mut self, listed: Vec<(Arc<str>, Item)>) {
        let listed: BTreeMap<Arc<str>, Item> = listed.into_iter().collect();
        let gone: Vec<Arc<str>> = self.items.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
        for key in gone {
            self.set(key, None);
        }
        for (key, item) in listed {
            self.set(key, Some(item));
        }
    }

    fn add_index(&mut self, name: &'static str, extract: Extract) {
        if self.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { extract, keys: HashMap::new() };
        for (key, item) in &self.items {
            index.insert(key, item);
        }
        self.indexes.insert(name, index);
    }

    fn indexed(&self, name: &str, value: &str) -> Vec<Item> {
        let keys = self.indexes.get(name).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.items.get(key).cloned()).collect()
    }

    fn subscribe(&mut self) -> (u64, Arc<Notify>) {
        let mut subscriber = Subscriber::default();
        for key in self.items.keys() {
            subscriber.mark(key, None, true);
        }
        self.sequence += 1;
        let wake = subscriber.wake.clone();
        self.subscribers.insert(self.sequence, subscriber);
        (self.sequence, wake)
    }

    fn take(&mut self, id: u64) -> Option<Change> {
        let subscriber = self.subscribers.get_mut(&id)?;
        let (_, key) = subscriber.order.pop_first()?;
        let (_, old) = subscriber.dirty.remove(&key)?;
        Some(Change { old, new: self.items.get(&key).cloned(), key: key.to_string() })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the informer is locked")
    }
}

impl Inner {
    fn set_contact(&self, contact: Contact) {
        self.contact.send_if_modified(|known| std::mem::replace(known, contact) != contact);
    }
}

impl Sink for Arc<Inner> {
    fn replace(&self, listed: Vec<(Arc<str>, Item)>) {
        let mut state = self.lock();
        state.amended.clear();
        state.replace(listed);
    }
    fn set(&self, key: Arc<str>, new: Option<Item>) {
        let mut state = self.lock();
        state.amended.remove(&key);
        state.set(key, new);
    }
    fn reached(&self, revision: &str) {
        let revision = revision.parse().unwrap_or(0);
        self.progress.send_modify(|progress| *progress = (*progress).max(Some(revision)));
    }
    fn answered(&self) {
        let mut state = self.lock();
        for (key, item) in std::mem::take(&mut state.amended) {
            state.set(key, Some(item));
        }
        drop(state);
        self.set_contact(Contact { confirmed: true, connected: true });
    }
    fn lost(&self) {
        let confirmed = self.contact.borrow().confirmed;
        self.set_contact(Contact { confirmed, connected: false });
    }
}

impl Informer {
    fn new(resource: Resource) -> Self {
        let (progress, contact) = (watch::Sender::new(None), watch::Sender::default());
        Self { inner: Arc::new(Inner { resource, state: Mutex::default(), progress, contact }) }
    }

    pub fn resource(&self) -> Resource {
        self.inner.resource
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Item> {
        self.by_key(&format!("{namespace}/{name}"))
    }

    /// By `namespace/name`, as `Change::key` has it.
    pub fn by_key(&self, key: &str) -> Option<Item> {
        self.inner.lock().items.get(key).cloned()
    }

    /// In key order.
    pub fn list(&self) -> Vec<Item> {
        self.inner.lock().items.values().cloned().collect()
    }

    /// The objects of one namespace, in key order.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Item> {
        let prefix = format!("{namespace}/");
        let state = self.inner.lock();
        let from = state.items.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        from.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, item)| item.clone()).collect()
    }

    pub fn subscribe(&self) -> Changes {
        let (id, wake) = self.inner.lock().subscribe();
        Changes { inner: self.inner.clone(), id, wake }
    }

    /// Keeps an index from now on; `name` stands for one `extract` in the whole process.
    pub fn index(&self, name: &'static str, extract: Extract) {
        self.inner.lock().add_index(name, extract);
    }

    /// The objects found under a value of an index, in key order.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Item> {
        self.inner.lock().indexed(name, value)
    }

    /// Whether the server answers, as it changes.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.inner.contact.subscribe()
    }

    /// Whether the server answers, as far as is known now.
    pub fn is_connected(&self) -> bool {
        self.inner.contact.borrow().connected
    }

    /// Shows another state of an object than the server's, while the server is away: its next answer undoes it.
    /// Nothing happens when the server answers or the object is not there.
    pub fn amend(&self, key: &str, item: Item) {
        let mut state = self.inner.lock();
        let Some((key, held)) = state.items.get_key_value(key).map(|(key, held)| (key.clone(), held.clone())) else {
            return;
        };
        if !self.is_connected() {
            state.amended.entry(key.clone()).or_insert(held);
            state.set(key, Some(item));
        }
    }

    /// Waits until the first list is in, from the server or from a replica.
    pub async fn synced(&self) {
        self.wait(|progress| progress.is_some()).await;
    }

    /// Waits until the cache shows what a write answered, so that a loop sees its own writes.
    /// Only for informers without selectors; false when it takes longer than the limit.
    pub async fn caught_up(&self, written: &Item, limit: Duration) -> bool {
        let Ok(revision) = written.identity().map(|identity| identity.resource_version.parse::<u64>().unwrap_or(0))
        else {
            return false;
        };
        tokio::time::timeout(limit, self.wait(|progress| *progress >= Some(revision))).await.is_ok()
    }

    async fn wait(&self, condition: impl FnMut(&Option<u64>) -> bool) {
        let mut receiver = self.inner.progress.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = receiver.wait_for(condition).await;
    }
}

/// The informers of one process, one per resource and scope, each run by one task.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    replica: Option<Replica>,
    shared: Arc<Mutex<HashMap<(Resource, Scope), Followed>>>,
}

struct Followed {
    informer: Informer,
    task: AbortHandle,
}

impl Informers {
    pub fn new(client: Client) -> Self {
        Self { client, replica: None, shared: Arc::default() }
    }

    /// Informers that keep what they see on disk, and show it when the server does not answer at their start.
    /// Call it inside the runtime.
    pub fn with_replica(client: Client, replica: Replica) -> Self {
        replica.start();
        Self { client, replica: Some(replica), shared: Arc::default() }
    }

    /// Where the node keeps what it must know without a server; `None` on the server's own board.
    pub fn replica(&self) -> Option<&Replica> {
        self.replica.as_ref()
    }

    /// The informer of a resource; the first caller starts its task, which runs until `end`.
    pub fn get(&self, resource: Resource, scope: Scope) -> Informer {
        let mut shared = self.shared.lock().expect("no panic while the informers are locked");
        let make = || {
            let informer = Informer::new(resource);
            let (client, sink) = (self.client.clone(), informer.inner.clone());
            let task = crate::supervise::spawn(follow(client, resource, scope.clone(), sink, self.replica.clone()));
            Followed { informer, task: task.abort_handle() }
        };
        shared.entry((resource, scope.clone())).or_insert_with(make).informer.clone()
    }

    /// Follows nothing any more: before the server behind the client ends.
    pub fn end(&self) {
        for followed in self.shared.lock().expect("no panic while the informers are locked").values() {
            followed.task.abort();
        }
    }

    /// The informer of a resource in all namespaces.
    pub fn all(&self, resource: Resource) -> Informer {
        self.get(resource, Scope::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::PODS;

    fn item(text: &'static str) -> Item {
        Item(bytes::Bytes::from_static(text.as_bytes()))
    }

    fn informer(objects: &[(&str, &'static str)]) -> Informer {
        let informer = Informer::new(PODS);
        let listed = objects.iter().map(|(key, text)| (Arc::from(*key), item(text))).collect();
        Sink::replace(&informer.inner, listed);
        informer
    }

    /// `key old→new`, all that is pending.
    fn drain(changes: &mut Changes) -> Vec<String> {
        let text = |item: Option<Item>| item.map(|i| String::from_utf8_lossy(&i.0).into_owned()).unwrap_or_default();
        std::iter::from_fn(|| changes.try_next())
            .map(|change| format!("{} {}→{}", change.key, text(change.old), text(change.new)))
            .collect()
    }

    #[test]
    fn a_subscriber_sees_what_exists_once_and_then_coalesced_changes() {
        let informer = informer(&[("a/x", "1"), ("a/y", "1")]);
        let mut changes = informer.subscribe();
        assert_eq!(drain(&mut changes), ["a/x →1", "a/y →1"]);
        assert_eq!(drain(&mut changes), [] as [String; 0]);

        informer.inner.set("a/y".into(), Some(item("2")));
        informer.inner.set("a/x".into(), None);
        informer.inner.set("a/y".into(), Some(item("3")));
        informer.inner.set("a/z".into(), Some(item("1")));
        assert_eq!(drain(&mut changes), ["a/y 1→3", "a/x 1→", "a/z →1"]);
    }

    #[test]
    fn an_object_made_and_deleted_between_looks_is_not_reported() {
        let informer = informer(&[]);
        let mut changes = informer.subscribe();
        informer.inner.set("a/x".into(), Some(item("1")));
        informer.inner.set("a/x".into(), None);
        assert_eq!(drain(&mut changes), [] as [String; 0]);
        // Deleted and made again is one change of the object.
        informer.inner.set("a/x".into(), Some(item("1")));
        assert_eq!(drain(&mut changes), ["a/x →1"]);
        informer.inner.set("a/x".into(), None);
        informer.inner.set("a/x".into(), Some(item("2")));
        assert_eq!(drain(&mut changes), ["a/x 1→2"]);
    }

    #[test]
    fn a_relist_reports_only_the_differences() {
        let informer = informer(&[("a/same", "1"), ("a/changed", "1"), ("a/gone", "1")]);
        let mut changes = informer.subscribe();
        drain(&mut changes);
        let listed = [("a/same", "1"), ("a/changed", "2"), ("a/new", "1")];
        Sink::replace(&informer.inner, listed.iter().map(|(key, text)| (Arc::from(*key), item(text))).collect());
        assert_eq!(drain(&mut changes), ["a/gone 1→", "a/changed 1→2", "a/new →1"]);
        assert_eq!(informer.list().len(), 3);
    }

    #[test]
    fn lists_of_a_namespace_do_not_run_into_its_neighbours() {
        let informer = informer(&[("a/x", "1"), ("ab/x", "2"), ("b/x", "3")]);
        let of = |namespace| informer.list_namespace(namespace).len();
        assert_eq!((of("a"), of("ab"), of("b"), of("c")), (1, 1, 1, 0));
    }

    #[tokio::test]
    async fn next_wakes_on_a_change_and_a_dropped_subscriber_is_forgotten() {
        let informer = informer(&[]);
        let mut changes = informer.subscribe();
        let waiting = tokio::spawn(async move { changes.next().await.key });
        tokio::task::yield_now().await;
        informer.inner.set("a/x".into(), Some(item("1")));
        assert_eq!(waiting.await.expect("subscriber"), "a/x");
        assert!(informer.inner.lock().subscribers.is_empty());
    }

    #[test]
    fn an_index_follows_its_objects() {
        let first = |item: &Item| vec![String::from_utf8_lossy(&item.0[..1]).into_owned()];
        let informer = informer(&[("a/x", "1"), ("a/y", "12")]);
        informer.index("first", first);
        let keys = |value: &str| informer.by_index("first", value).len();
        assert_eq!((keys("1"), keys("2")), (2, 0));
        informer.inner.set("a/y".into(), Some(item("2")));
        assert_eq!((keys("1"), keys("2")), (1, 1));
        informer.inner.set("a/x".into(), None);
        assert_eq!((keys("1"), keys("2")), (0, 1));
    }

    #[test]
    fn an_amended_object_is_the_server_s_again_when_it_answers() {
        let informer = informer(&[("a/x", "1"), ("a/y", "1")]);
        let shown = || informer.list().iter().map(|item| item.0.clone()).collect::<Vec<_>>();
        informer.inner.answered();
        informer.amend("a/x", item("mine"));
        assert_eq!(shown(), ["1", "1"], "the server answers");
        informer.inner.lost();
        informer.amend("a/x", item("mine"));
        informer.amend("a/x", item("mine again"));
        informer.amend("a/y", item("mine"));
        informer.amend("a/unknown", item("mine"));
        assert_eq!(shown(), ["mine again", "mine"]);
        Sink::set(&informer.inner, "a/y".into(), Some(item("2")));
        informer.inner.answered();
        assert_eq!(shown(), ["1", "2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_can_wait_for_its_own_writes() {
        let informer = informer(&[]);
        let written = item(r#"{"metadata":{"name":"x","resourceVersion":"7"}}"#);
        let limit = Duration::from_secs(1);
        informer.inner.reached("6");
        assert!(!informer.caught_up(&written, limit).await);
        let waiting = tokio::spawn({
            let (informer, written) = (informer.clone(), written.clone());
            async move { informer.caught_up(&written, limit).await }
        });
        informer.inner.reached("8");
        assert!(waiting.await.expect("waiter"));
    }
}
