//! Verbs over any kind: decode → default → admit → validate → patch → encode once → store.
//! Never knows HTTP. The order of admission is one list (`admission::PLUGINS`).

pub mod admission;

pub use crate::api::codec::{Decoded, FieldValidation};
use crate::api::kinds::{KindRef, Kinds};
use crate::api::object::Object;
use crate::api::status::Result;
use crate::clock::Clock;
use crate::store::{Entry, Store};
use crate::telemetry::Trace;
use futures_util::stream::BoxStream;
use std::sync::Arc;

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

pub type Outcome = Result<Written>;

/// The verbs. One per process; shared by the API server and the local clients.
pub struct Registry {
    pub kinds: Kinds,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub trace: Arc<Trace>,
}

impl Registry {
    pub async fn get(&self, _kind: &KindRef, _namespace: &str, _name: &str) -> Result<Arc<Entry>> {
        unimplemented!()
    }
    pub async fn list(&self, _kind: &KindRef, _namespace: &str, _options: &ListOptions) -> Result<List> {
        unimplemented!()
    }
    pub async fn watch(
        &self,
        _kind: &KindRef,
        _namespace: &str,
        _options: &ListOptions,
    ) -> Result<BoxStream<'static, Change>> {
        unimplemented!()
    }
    pub async fn create(&self, _context: &Context, _kind: &KindRef, _namespace: &str, _object: Decoded) -> Outcome {
        unimplemented!()
    }
    /// `subresource`: empty, `status`, `scale`, `ephemeralcontainers`, `resize`, `finalize`, …
    pub async fn update(
        &self,
        _context: &Context,
        _kind: &KindRef,
        _subresource: &str,
        _namespace: &str,
        _name: &str,
        _object: Decoded,
    ) -> Outcome {
        unimplemented!()
    }
    /// `patch` as sent, parsed: an array for JSON Patch, an object otherwise.
    #[allow(clippy::too_many_arguments, reason = "the parts of one request line")]
    pub async fn patch(
        &self,
        _context: &Context,
        _kind: &KindRef,
        _subresource: &str,
        _namespace: &str,
        _name: &str,
        _type: PatchType,
        _patch: Decoded,
    ) -> Outcome {
        unimplemented!()
    }
    /// POST to a subresource that is not a plain update: `pods/binding`, `pods/eviction`.
    pub async fn create_subresource(
        &self,
        _context: &Context,
        _kind: &KindRef,
        _subresource: &str,
        _namespace: &str,
        _name: &str,
        _object: Decoded,
    ) -> Result<Object> {
        unimplemented!()
    }
    pub async fn delete(
        &self,
        _context: &Context,
        _kind: &KindRef,
        _namespace: &str,
        _name: &str,
        _options: &DeleteOptions,
    ) -> Result<Deleted> {
        unimplemented!()
    }
    pub async fn delete_collection(
        &self,
        _context: &Context,
        _kind: &KindRef,
        _namespace: &str,
        _list: &ListOptions,
        _options: &DeleteOptions,
    ) -> Result<List> {
        unimplemented!()
    }
}
