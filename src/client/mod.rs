//! REST verbs out. `Local` calls the registry in process, `Remote` speaks HTTPS; loops cannot tell.
//! Informers and work queues live here; a loop meets other loops only through objects.

#[cfg(any(test, feature = "fake"))]
pub mod cut;
pub mod enroll;
pub mod events;
pub mod informer;
pub mod kubeconfig;
pub mod local;
pub mod reach;
pub mod reflector;
pub mod remote;
pub mod replica;
pub mod uplink;
pub mod workqueue;

use crate::api::kinds::{Kind, Text};
use crate::api::object::Object;
use crate::api::status::Result;
/// What the verbs take; loops know them from here alone.
pub use crate::registry::{DeleteOptions, ListOptions, PatchType, Propagation};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Mutex;

pub use events::{EventRecorder, ObjectRef};
pub use informer::{Informer, Informers};
pub use local::Local;
pub use remote::Remote;
pub use replica::Replica;
pub use workqueue::WorkQueue;

/// A resource type by its REST name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
}

impl Resource {
    /// The resource of a row.
    pub fn of(kind: &Kind) -> Self {
        Self { group: kept(&kind.group), version: kept(&kind.version), plural: kept(&kind.plural) }
    }
}

/// Names of kinds made at run time are kept for the life of the process, each once: a `Resource` is `Copy`.
fn kept(text: &Text) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    match text {
        Cow::Borrowed(text) => text,
        Cow::Owned(text) => {
            let mut names = NAMES.lock().expect("no panic while the names are locked");
            if let Some(known) = names.get(text.as_str()) {
                return known;
            }
            let leaked: &'static str = text.clone().leak();
            names.insert(leaked);
            leaked
        }
    }
}

macro_rules! resources {
    ($($name:ident = $group:literal / $version:literal / $plural:literal;)*) => {
        $(pub const $name: Resource = Resource { group: $group, version: $version, plural: $plural };)*
    };
}

resources! {
    PODS = "" / "v1" / "pods";
    NODES = "" / "v1" / "nodes";
    NAMESPACES = "" / "v1" / "namespaces";
    SERVICES = "" / "v1" / "services";
    ENDPOINTS = "" / "v1" / "endpoints";
    CONFIGMAPS = "" / "v1" / "configmaps";
    SECRETS = "" / "v1" / "secrets";
    SERVICEACCOUNTS = "" / "v1" / "serviceaccounts";
    EVENTS = "" / "v1" / "events";
    ENDPOINTSLICES = "discovery.k8s.io" / "v1" / "endpointslices";
    DEPLOYMENTS = "apps" / "v1" / "deployments";
    REPLICASETS = "apps" / "v1" / "replicasets";
    DAEMONSETS = "apps" / "v1" / "daemonsets";
    STATEFULSETS = "apps" / "v1" / "statefulsets";
    CONTROLLERREVISIONS = "apps" / "v1" / "controllerrevisions";
    PODDISRUPTIONBUDGETS = "policy" / "v1" / "poddisruptionbudgets";
    JOBS = "batch" / "v1" / "jobs";
    CERTIFICATESIGNINGREQUESTS = "certificates.k8s.io" / "v1" / "certificatesigningrequests";
    LEASES = "coordination.k8s.io" / "v1" / "leases";
}

/// One object as bytes: compact JSON with `metadata.resourceVersion`.
#[derive(Clone, Debug)]
pub struct Item(pub Bytes);

impl Item {
    /// Decodes a view; fields the view does not name are skipped.
    pub fn view<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.0).map_err(crate::api::status::Status::internal)
    }
    pub fn object(&self) -> Result<Object> {
        self.view()
    }
    /// Decodes who the object is, borrowing from it.
    pub fn identity(&self) -> Result<Identity<'_>> {
        let tagged: Tagged = serde_json::from_slice(&self.0).map_err(crate::api::status::Status::internal)?;
        Ok(tagged.metadata)
    }
}

/// Who an object is, and at which revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Identity<'a> {
    #[serde(borrow)]
    pub namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    #[serde(borrow)]
    pub resource_version: Cow<'a, str>,
}

impl Identity<'_> {
    /// `namespace/name`; `/name` for cluster-scoped objects.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Deserialize)]
struct Tagged<'a> {
    #[serde(borrow)]
    metadata: Identity<'a>,
}

/// A list and the revision to watch from.
pub struct Items {
    pub items: Vec<Item>,
    pub resource_version: String,
    pub continue_token: String,
}

/// What a watch yields.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Item),
    Modified(Item),
    Deleted(Item),
    Bookmark { resource_version: String, initial_events_end: bool },
}

/// The seam between loops and the API. Cheap to clone.
#[derive(Clone)]
pub enum Client {
    Local(Local),
    Remote(Remote),
    #[cfg(any(test, feature = "fake"))]
    Cut(cut::Cut),
}

/// Calls the same method of whichever client it is.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Client::Local(client) => client.$method($($argument),*).await,
            Client::Remote(client) => client.$method($($argument),*).await,
            #[cfg(any(test, feature = "fake"))]
            Client::Cut(client) => Box::pin(client.open()?.$method($($argument),*)).await,
        }
    };
}

impl Client {
    /// Waits until the way to the server has been found again; for ever where there is none to lose.
    pub async fn reconnected(&self) {
        match self {
            Self::Local(_) => std::future::pending().await,
            Self::Remote(client) => client.reconnected().await,
            #[cfg(any(test, feature = "fake"))]
            Self::Cut(_) => std::future::pending().await,
        }
    }
    /// `namespace` is empty for cluster-scoped resources.
    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Item> {
        either!(self.get(resource, namespace, name))
    }
    /// An empty namespace lists all namespaces.
    pub async fn list(&self, resource: Resource, namespace: &str, options: &ListOptions) -> Result<Items> {
        either!(self.list(resource, namespace, options))
    }
    /// From `options.resource_version`; the stream's last item is an error when it ends early.
    pub async fn watch(
        &self,
        resource: Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Result<WatchEvent>>> {
        let events = either!(self.watch(resource, namespace, options))?;
        #[cfg(any(test, feature = "fake"))]
        if let Self::Cut(client) = self {
            return Ok(client.until_cut(events));
        }
        Ok(events)
    }
    pub async fn create(&self, resource: Resource, namespace: &str, object: Object) -> Result<Item> {
        either!(self.create(resource, namespace, object))
    }
    /// PUT; with `metadata.resourceVersion` in the object it is conditional.
    /// `subresource` is empty for the main resource, else `status`, `scale`, …
    pub async fn update(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        either!(self.update(resource, namespace, name, subresource, object))
    }
    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: Object,
    ) -> Result<Item> {
        either!(self.patch(resource, namespace, name, subresource, kind, patch))
    }
    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        either!(self.delete(resource, namespace, name, options))
    }
    /// POST to a subresource: `pods/binding`, `serviceaccounts/token`, …
    pub async fn create_subresource(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        either!(self.create_subresource(resource, namespace, name, subresource, object))
    }
}
