//! Informers: a cache of one resource kept by list and watch, and coalesced changes for loops.
//! A lost event costs latency only: a broken watch lists again and reports the differences.

use super::{Client, Item, Resource};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

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
pub struct Changes {}

impl Changes {
    /// Waits for the next change. After `subscribe`, every existing object is reported once as new.
    pub async fn next(&mut self) -> Change {
        unimplemented!()
    }
}

impl Informer {
    pub fn resource(&self) -> Resource {
        self.inner.resource
    }
    pub fn get(&self, _namespace: &str, _name: &str) -> Option<Item> {
        unimplemented!()
    }
    /// In key order.
    pub fn list(&self) -> Vec<Item> {
        unimplemented!()
    }
    pub fn subscribe(&self) -> Changes {
        unimplemented!()
    }
    /// Waits until the first list is in.
    pub async fn synced(&self) {
        unimplemented!()
    }
}

/// The informers of one process, one per resource and scope, each run by one task.
#[derive(Clone)]
pub struct Informers {
    _client: Client,
    _shared: Arc<Mutex<HashMap<(Resource, Scope), Informer>>>,
}

impl Informers {
    pub fn new(client: Client) -> Self {
        Self { _client: client, _shared: Arc::default() }
    }
    /// The informer of a resource; the first caller starts its task, which ends with the process.
    pub fn get(&self, _resource: Resource, _scope: Scope) -> Informer {
        unimplemented!()
    }
}
