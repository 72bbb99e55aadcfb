//! Verbs over any kind: decode → default → admit → validate → patch → encode once → store.
//! Never knows HTTP. The order of admission is one list (`admission::PLUGINS`).

pub mod admission;
mod bootstrap;
mod cluster_ip;
mod create;
mod delete;
mod encode;
mod events;
mod eviction;
mod list;
mod meta;
mod patch;
mod pod;
mod scale;
mod schema;
mod selection;
mod subresource;
#[cfg(test)]
mod tests;
mod token;
mod token_request;
mod trace;
mod update;
mod watch;

pub use crate::api::codec::{Decoded, FieldValidation};
use crate::api::kinds::{Kind, Kinds};
use crate::api::object::Object;
use crate::api::status::{Cause, Details, Result, Status, Subject};
use crate::clock::Clock;
use crate::pki::Pki;
use crate::store::{Entry, Store, StoreError};
use crate::telemetry::Trace;
use futures_util::future::BoxFuture;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

pub use bootstrap::ServerFacts;
pub use delete::returns_deleted_object;

/// Who asks, as authentication found them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// edgelet's own loops.
    pub fn system(component: &str) -> Self {
        Self { name: format!("system:{component}"), groups: vec!["system:masters".into()], ..Self::default() }
    }
}

/// A right that admission asks for besides that to write the object.
#[derive(Clone, Copy, Debug)]
pub struct Permission<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub name: &'a str,
}

/// Says who may what; the API server's.
pub trait Authorizer: Send + Sync {
    fn may<'a>(&'a self, user: &'a User, permission: &'a Permission<'a>) -> BoxFuture<'a, bool>;
}

/// The circumstances of one request.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub user: User,
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
}

/// What a write did.
pub struct Written {
    pub entry: Arc<Entry>,
    /// Whether the object was made by this request.
    pub created: bool,
    /// For `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// `metav1.ListOptions` for get, list and watch, parsed.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    /// Empty, `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_s: Option<u64>,
}

/// One page.
pub struct List {
    pub entries: Vec<Arc<Entry>>,
    pub revision: u64,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`, parsed from the body or the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_s: Option<i64>,
    pub propagation: Option<Propagation>,
    /// The deprecated way to say `Orphan` (true) or `Background` (false).
    pub orphan_dependents: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What a delete did.
pub enum Deleted {
    /// Gone now; the last state.
    Gone(Arc<Entry>),
    /// Marked; it goes when its grace has passed and its finalizers are removed.
    Pending(Arc<Entry>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply.
    Apply {
        force: bool,
    },
}

/// One change a watcher sees. `previous` serves selector transitions and is not shown.
#[derive(Clone, Debug)]
pub enum Change {
    Added(Arc<Entry>),
    Modified(Arc<Entry>),
    /// The last state, its `resourceVersion` being that of the deletion.
    Deleted(Arc<Entry>),
    Bookmark {
        revision: u64,
        initial_events_end: bool,
    },
    /// The watch ends after this one.
    Error(crate::api::status::Status),
}

impl From<Object> for Decoded {
    fn from(object: Object) -> Self {
        Self { object, warnings: Vec::new() }
    }
}

pub type Outcome = Result<Written>;

/// What the registry must know of the cluster.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Service addresses come from here: network and prefix length.
    pub service_cidr: (Ipv4Addr, u8),
    /// Where nodes answer names; never given to a Service.
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            service_cidr: (Ipv4Addr::new(10, 96, 0, 0), 16),
            cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

/// The verbs. One per process; shared by the API server and the local clients.
pub struct Registry {
    pub config: RegistryConfig,
    pub kinds: Kinds,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub trace: Arc<Trace>,
    /// Held from choosing a Service's addresses until the Service is stored, so that none is given twice.
    services: tokio::sync::Mutex<()>,
    events: events::Expiry,
    /// Set once; without it no tokens can be asked for.
    token_issuer: OnceLock<Pki>,
    /// Set once; without it only masters have rights.
    authorizer: OnceLock<Arc<dyn Authorizer>>,
}

impl Registry {
    pub fn new(config: RegistryConfig, store: Arc<dyn Store>, kinds: Kinds, clock: Clock, trace: Arc<Trace>) -> Self {
        store.tag_with(selection::tag_of);
        Self {
            config,
            kinds,
            store,
            clock,
            trace,
            services: tokio::sync::Mutex::default(),
            events: events::Expiry::default(),
            token_issuer: OnceLock::new(),
            authorizer: OnceLock::new(),
        }
    }

    /// Admission can ask for rights once it is known who gives them.
    pub fn authorize_with(&self, authorizer: Arc<dyn Authorizer>) {
        // The first one stays: one process has one cluster.
        let _ = self.authorizer.set(authorizer);
    }

    async fn may(&self, user: &User, permission: &Permission<'_>) -> bool {
        if user.groups.iter().any(|group| group == "system:masters") {
            return true;
        }
        match self.authorizer.get() {
            Some(authorizer) => authorizer.may(user, permission).await,
            None => false,
        }
    }

    /// The object in the version of `kind`. `status` reads are the same.
    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Entry>> {
        let found = self.stored(kind, namespace, name).await?;
        encode::shown(kind, &found.ok_or_else(|| Status::not_found(subject(kind, name)))?)
    }

    /// The object as it is stored, if it is.
    async fn stored(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Arc<Entry>>> {
        self.store.get(&kind.key(namespace, name)).await.map_err(|error| store_error(kind, name, error))
    }
}

/// The object as most errors name it: by its plural resource.
fn subject<'a>(kind: &'a Kind, name: &'a str) -> Subject<'a> {
    Subject { group: &kind.group, kind: &kind.plural, name }
}

/// The object as `Invalid` and preconditions name it: by its kind.
fn kind_subject<'a>(kind: &'a Kind, name: &'a str) -> Subject<'a> {
    Subject { group: &kind.group, kind: &kind.kind, name }
}

fn store_error(kind: &Kind, name: &str, error: StoreError) -> Status {
    match error {
        StoreError::Exists(_) => Status::already_exists(subject(kind, name)),
        StoreError::Absent => Status::not_found(subject(kind, name)),
        StoreError::Conflict(_) => Status::modified(subject(kind, name)),
        StoreError::Compacted(asked, oldest) => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        StoreError::Future(asked, newest) => too_large_revision(asked, newest),
        StoreError::Closed => Status::unavailable("the store is closed"),
        StoreError::Engine(cause) => {
            tracing::error!(error = %cause, "store failed");
            Status::internal(format!("store failed: {cause}"))
        }
    }
}

fn too_large_revision(asked: u64, newest: u64) -> Status {
    let mut status = Status::timeout(format!("Timeout: Too large resource version: {asked}, current: {newest}"));
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    status.details =
        Some(Box::new(Details { causes: vec![cause], retry_after_seconds: Some(1), ..Details::default() }));
    status
}
