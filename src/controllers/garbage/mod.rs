//! Deletes what nobody owns any more: background, foreground and orphaning deletion over all kinds.
//! It follows every kind at the cost of its metadata, and asks the API before it takes an owner for gone.

mod graph;

use super::Tools;
use super::runner::Reconcile;
use crate::api::kinds::{KindRef, Kinds};
use crate::api::object::ObjectExt;
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Any, OwnerReference};
use crate::client::informer::Scope;
use crate::client::reflector::{Sink, reflect};
use crate::client::{Client, Item, Resource, WorkQueue};
use crate::client::{DeleteOptions, PatchType, Propagation};
use crate::supervise::Shutdown;
use futures_util::future::BoxFuture;
use graph::{FOREGROUND, Graph, Node, ORPHAN, Verdict};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Owners known not to exist; forgotten all at once when there are more.
const ABSENT_LIMIT: usize = 1000;
const WORKERS: usize = 4;

pub struct Controller {
    client: Client,
    kinds: Kinds,
    graph: Mutex<Graph>,
    absent: Mutex<HashSet<String>>,
    queue: WorkQueue,
    /// Kinds whose first list is in.
    synced: watch::Sender<usize>,
}

/// Kinds that can be listed, watched and deleted, each stored kind once. Events have owners nowhere.
fn followed(kinds: &Kinds) -> Vec<KindRef> {
    let mut seen = BTreeSet::from(["events".to_owned()]);
    let can = |kind: &KindRef, verb: &str| kind.verbs.iter().any(|one| one == verb);
    let all = kinds.all();
    let rows = all.iter().filter(|kind| ["list", "watch", "delete"].iter().all(|verb| can(kind, verb)));
    rows.filter(|kind| seen.insert(kind.storage_prefix.to_string())).cloned().collect()
}

/// Feeds the objects of one resource into the graph.
struct Feed {
    resource: Resource,
    controller: Arc<Controller>,
    listed: std::sync::atomic::AtomicBool,
}

impl Sink for Feed {
    fn replace(&self, listed: Vec<(Arc<str>, Item)>) {
        let present: HashSet<Arc<str>> = listed.iter().map(|(key, _)| key.clone()).collect();
        let known = self.controller.graph().keys(self.resource);
        for key in known.into_iter().filter(|key| !present.contains(key)) {
            self.set(key, None);
        }
        for (key, item) in listed {
            self.set(key, Some(item));
        }
        if !self.listed.swap(true, std::sync::atomic::Ordering::Relaxed) {
            self.controller.synced.send_modify(|count| *count += 1);
        }
    }

    fn set(&self, key: Arc<str>, new: Option<Item>) {
        let concerned = match new.map(|item| item.view::<Any>()) {
            None => self.controller.graph().remove(self.resource, &key),
            Some(Ok(any)) => {
                let uid = any.metadata.uid.clone();
                self.controller.graph().set(key, &uid, Node::of(self.resource, any.metadata))
            }
            Some(Err(error)) => {
                tracing::warn!(%key, %error, "object not readable");
                return;
            }
        };
        for uid in concerned {
            self.controller.queue.add(&uid);
        }
    }
}

/// Runs until shutdown.
pub async fn run(tools: Tools, kinds: Kinds, shutdown: Shutdown) {
    let controller = Arc::new(Controller {
        client: tools.client.clone(),
        kinds,
        graph: Mutex::default(),
        absent: Mutex::default(),
        queue: WorkQueue::new(),
        synced: watch::channel(0).0,
    });
    let rows = followed(&controller.kinds);
    let mut tasks = JoinSet::new();
    for kind in &rows {
        let resource = Resource::of(kind);
        let feed = Feed { resource, controller: controller.clone(), listed: false.into() };
        tasks.spawn(reflect(tools.client.clone(), resource, Scope::default(), feed));
    }
    let mut synced = controller.synced.subscribe();
    tokio::select! {
        () = shutdown.requested() => return,
        // Before every kind is known, a deletion might not wait for dependents. The sender lives in the controller.
        _ = synced.wait_for(|count| *count >= rows.len()) => {}
    }
    for _ in 0..WORKERS {
        tasks.spawn(super::runner::work("garbage collector", controller.clone(), controller.queue.clone()));
    }
    // The tasks are aborted when the set is dropped.
    shutdown.requested().await;
}

impl Controller {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().expect("no panic while the graph is locked")
    }

    async fn sync(&self, uid: &str) -> Result<Option<Duration>> {
        let mut present = HashSet::new();
        loop {
            let (verdict, node) = {
                let absent = self.absent.lock().expect("no panic while locked");
                let graph = self.graph();
                let Some(node) = graph.node(uid).cloned() else { return Ok(None) };
                (graph.verdict(uid, &absent, &present), node)
            };
            match verdict {
                Verdict::Keep => {}
                Verdict::Probe(owners) => {
                    for owner in owners {
                        if self.exists(&node, &owner).await? {
                            present.insert(owner.uid);
                        } else {
                            self.remember_absent(owner.uid);
                        }
                    }
                    continue;
                }
                Verdict::Disown(owners) => self.disown(&node, uid, &owners).await?,
                Verdict::Delete { propagation, unblock } => {
                    if unblock {
                        self.unblock(&node, uid).await?;
                    }
                    self.delete(&node, uid, propagation).await?;
                }
                Verdict::Orphan(dependents) => {
                    for dependent in dependents {
                        let child = self.graph().node(&dependent).cloned();
                        if let Some(child) = child {
                            self.disown(&child, &dependent, &[uid.to_owned()]).await?;
                        }
                    }
                    self.unfinalize(&node, uid, ORPHAN).await?;
                }
                Verdict::Wait(dependents) => dependents.iter().for_each(|dependent| self.queue.add(dependent)),
                Verdict::Finish => self.unfinalize(&node, uid, FOREGROUND).await?,
            }
            return Ok(None);
        }
    }

    fn remember_absent(&self, uid: String) {
        let mut absent = self.absent.lock().expect("no panic while locked");
        if absent.len() >= ABSENT_LIMIT {
            absent.clear();
        }
        absent.insert(uid);
    }

    /// Asks the API. An owner of a kind we do not serve, or of another namespace, is left alone: so is its dependent.
    async fn exists(&self, node: &Node, owner: &OwnerReference) -> Result<bool> {
        let Some(kind) = self.kinds.kind(&owner.api_version, &owner.kind) else { return Ok(true) };
        if kind.namespaced && node.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = if kind.namespaced { &*node.namespace } else { "" };
        match self.client.get(Resource::of(&kind), namespace, &owner.name).await {
            Err(error) if error.is_not_found() => Ok(false),
            found => Ok(found?.identity()?.uid == owner.uid),
        }
    }

    async fn delete(&self, node: &Node, uid: &str, propagation: Propagation) -> Result<()> {
        let options =
            DeleteOptions { uid: Some(uid.to_owned()), propagation: Some(propagation), ..DeleteOptions::default() };
        match self.client.delete(node.resource, &node.namespace, &node.name, &options).await {
            // Gone, or another object by now.
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes references to these owners.
    async fn disown(&self, node: &Node, uid: &str, owners: &[String]) -> Result<()> {
        self.change(node, uid, |object| {
            let mut references = object.owner_references().to_vec();
            let before = references.len();
            references.retain(|one| !owners.iter().any(|owner| one.str_at(&["uid"]) == owner));
            (references.len() < before).then(|| json!({"ownerReferences": references}))
        })
        .await
    }

    async fn unblock(&self, node: &Node, uid: &str) -> Result<()> {
        self.change(node, uid, |object| {
            let mut references = object.owner_references().to_vec();
            for reference in &mut references {
                reference["blockOwnerDeletion"] = false.into();
            }
            Some(json!({"ownerReferences": references}))
        })
        .await
    }

    async fn unfinalize(&self, node: &Node, uid: &str, finalizer: &str) -> Result<()> {
        self.change(node, uid, |object| {
            let mut finalizers = object.finalizers();
            let before = finalizers.len();
            finalizers.retain(|one| *one != finalizer);
            (finalizers.len() < before).then(|| json!({"finalizers": finalizers}))
        })
        .await
    }

    /// Reads the object, changes its metadata and writes it if it is still the same.
    async fn change(&self, node: &Node, uid: &str, change: impl Fn(&Value) -> Option<Value>) -> Result<()> {
        let object = match self.client.get(node.resource, &node.namespace, &node.name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            found => found?.object()?,
        };
        if object.uid() != uid {
            return Ok(());
        }
        let Some(mut metadata) = change(&object) else { return Ok(()) };
        metadata["resourceVersion"] = object.resource_version().into();
        let patch = json!({"metadata": metadata});
        match self.client.patch(node.resource, &node.namespace, &node.name, "", PatchType::Merge, patch).await {
            Err(error) if !error.is_not_found() => Err::<(), Status>(error),
            _ => Ok(()),
        }
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
