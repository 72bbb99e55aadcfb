//! THE TABLE: one row per kind. Discovery, routes, printing, storage and validation derive from it.
//! Built-in rows are static, CRD rows are made at run time; handlers cannot tell them apart.

mod admissionregistration;
mod apiextensions;
mod apiregistration;
mod apps;
mod authentication;
mod authorization;
mod autoscaling;
mod batch;
mod certificates;
mod coordination;
mod core;
mod discovery;
mod events;
mod flowcontrol;
mod networking;
mod node;
mod pod;
mod policy;
mod print;
mod rbac;
mod resource;
mod row;
mod scheduling;
mod storage;

pub use core::needs_health_check;

use crate::api::object::Object;
use crate::api::status::FieldError;
use jiff::Timestamp;
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;

pub type Text = Cow<'static, str>;

/// A row.
pub struct Kind {
    /// Empty for the core group.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Cow<'static, [Text]>,
    pub categories: Cow<'static, [Text]>,
    pub namespaced: bool,
    /// As discovery lists them: `create delete deletecollection get list patch update watch`.
    pub verbs: Cow<'static, [Text]>,
    pub subresources: Cow<'static, [Subresource]>,
    /// The type in the scheme, `io.k8s.api.core.v1.Pod`.
    pub schema: Text,
    /// Key prefix in the store, `pods` or `deployments.apps`. Versions of one kind share it.
    pub storage_prefix: Text,
    /// The `apiVersion` objects of this prefix are stored in; `convert` maps from and to it.
    pub storage_version: Text,
    pub convert: Option<&'static dyn Convert>,
    pub name_rule: NameRule,
    /// False: objects of this kind are answered, never stored.
    pub stored: bool,
    /// On the disk its objects are sealed (encrypted); in memory they are as the others.
    pub sealed: bool,
    /// Lazy for Events; Leases decide per write in their strategy.
    pub durability: crate::api::kinds::DurabilityClass,
    /// Whether PUT on a missing name creates.
    pub create_on_update: bool,
    /// Whether an update without `resourceVersion` is allowed.
    pub unconditional_update: bool,
    pub columns: Cow<'static, [Column]>,
    /// The cells of one object, one per column. `now` gives ages.
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// `conditions` of an object's table row, such as a pod's `Completed`.
    pub row_conditions: fn(&Object) -> Option<Value>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`: label and value of an object.
    pub fields: Cow<'static, [SelectableField]>,
    pub strategy: &'static dyn Strategy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`, `exec`, `binding`, …
    pub name: Text,
    pub kind: Text,
    /// Empty: the group and version of the row.
    pub group: Text,
    pub version: Text,
    pub verbs: Cow<'static, [Text]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, 253.
    Subdomain,
    /// RFC 1123 label, 63.
    Label,
    /// RFC 1035 label, 63 (Services).
    Label1035,
    /// Anything that is one path segment (RBAC).
    PathSegment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DurabilityClass {
    #[default]
    Durable,
    /// Every write may wait (Events).
    Lazy,
    /// Updates that keep `spec.holderIdentity` may wait (Leases).
    LazyRenewal,
}

/// A printer column, as `Table.columnDefinitions` has it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: Text,
    pub r#type: Text,
    pub format: Text,
    pub description: Text,
    /// 0 always, 1 with `-o wide`.
    pub priority: i32,
}

pub struct SelectableField {
    pub label: Text,
    pub value: fn(&Object) -> String,
}

impl Clone for SelectableField {
    fn clone(&self) -> Self {
        Self { label: self.label.clone(), value: self.value }
    }
}

/// Between the version of a row and the stored version; both set `apiVersion`.
#[allow(clippy::wrong_self_convention, reason = "the converter is no object: it takes one from the store's form")]
pub trait Convert: Sync {
    fn to_storage(&self, object: &mut Object);
    fn from_storage(&self, object: &mut Object);
}

/// Facts a hook may use; no I/O.
pub struct HookContext<'a> {
    pub now: Timestamp,
    /// Name of the caller; some defaults carry it.
    pub user: &'a str,
    /// Empty for the main resource, else `status`, `scale`, …
    pub subresource: &'a str,
}

/// What a kind does at each verb; upstream's strategy of the same name. All pure.
/// Plain-value defaults come from the scheme's data; hooks do what depends on other fields.
pub trait Strategy: Sync {
    /// After the scheme's defaults; for create, update and patch.
    fn default(&self, _object: &mut Object) {}
    /// Sets what the client may not (status reset, generation is set by the registry).
    fn prepare_create(&self, _context: &HookContext, _object: &mut Object) {}
    /// The registry has kept already what the subresource may not change: the status of the main
    /// resource, all but the status of `status`.
    fn prepare_update(&self, _context: &HookContext, _new: &mut Object, _old: &Object) {}
    /// Metadata has been validated already.
    fn validate(&self, _context: &HookContext, _object: &Object) -> Vec<FieldError> {
        Vec::new()
    }
    /// Called besides `validate` for a new object.
    fn validate_create(&self, _context: &HookContext, _object: &Object) -> Vec<FieldError> {
        Vec::new()
    }
    /// Called besides `validate` for a changed object.
    fn validate_update(&self, _context: &HookContext, _new: &Object, _old: &Object) -> Vec<FieldError> {
        Vec::new()
    }
    /// For `PUT/PATCH …/status`; `validate` is not called there.
    fn validate_status_update(&self, _context: &HookContext, _new: &Object, _old: &Object) -> Vec<FieldError> {
        Vec::new()
    }
    fn warnings(&self, _object: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }
    /// Seconds of graceful deletion when the client names none; `None`: deleted at once.
    /// Pods answer their `terminationGracePeriodSeconds` (0 when not scheduled or already ended).
    fn grace_s(&self, _object: &Object) -> Option<i64> {
        None
    }
    /// Whether `metadata.generation` counts changes of anything but metadata and status.
    fn has_generation(&self) -> bool {
        false
    }
    /// Finalizers upstream adds when orphaning or foreground deletion is the default policy.
    fn default_orphans(&self) -> bool {
        false
    }
}

/// A strategy with no hooks.
pub struct Plain;
impl Strategy for Plain {}

/// A row, wherever it came from.
#[derive(Clone)]
pub enum KindRef {
    Static(&'static Kind),
    Shared(Arc<Kind>),
}

impl Deref for KindRef {
    type Target = Kind;
    fn deref(&self) -> &Kind {
        match self {
            Self::Static(kind) => kind,
            Self::Shared(kind) => kind,
        }
    }
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The store key of an object of this kind.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}/{namespace}/{name}", self.storage_prefix)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

/// Every row that is served now. Cheap to clone; all clones see the same rows.
#[derive(Clone)]
pub struct Kinds {
    table: Arc<arc_swap::ArcSwap<Table>>,
}

/// The rows in discovery order, and their places in two sorted orders.
struct Table {
    rows: Arc<Vec<KindRef>>,
    by_resource: Vec<u16>,
    by_kind: Vec<u16>,
}

impl Default for Kinds {
    fn default() -> Self {
        let rows = builtin().iter().copied().map(KindRef::Static).collect();
        Self { table: Arc::new(arc_swap::ArcSwap::from_pointee(Table::new(rows))) }
    }
}

impl Kinds {
    pub fn all(&self) -> Arc<Vec<KindRef>> {
        self.table.load().rows.clone()
    }

    /// By group, version and plural resource name.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<KindRef> {
        let table = self.table.load();
        table.find(&table.by_resource, |row| resource_key(row).cmp(&(group, version, plural)))
    }

    /// By `apiVersion` and `kind`.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<KindRef> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let table = self.table.load();
        table.find(&table.by_kind, |row| kind_key(row).cmp(&(group, version, kind)))
    }

    /// Serves the built-in rows and these from now on.
    pub fn replace_custom(&self, custom: Vec<Arc<Kind>>) {
        let builtin = builtin().iter().copied().map(KindRef::Static);
        let rows = builtin.chain(custom.into_iter().map(KindRef::Shared)).collect();
        self.table.store(Arc::new(Table::new(rows)));
    }
}

impl Table {
    fn new(rows: Vec<KindRef>) -> Self {
        let mut by_resource: Vec<u16> = (0..u16::try_from(rows.len()).expect("fewer than 65,536 kinds")).collect();
        let mut by_kind = by_resource.clone();
        let row = |place: u16| &*rows[usize::from(place)];
        by_resource.sort_by(|a, b| resource_key(row(*a)).cmp(&resource_key(row(*b))));
        by_kind.sort_by(|a, b| kind_key(row(*a)).cmp(&kind_key(row(*b))));
        Self { rows: Arc::new(rows), by_resource, by_kind }
    }

    fn find(&self, order: &[u16], compare: impl Fn(&Kind) -> Ordering) -> Option<KindRef> {
        let place = order.binary_search_by(|row| compare(&self.rows[usize::from(*row)])).ok()?;
        Some(self.rows[usize::from(order[place])].clone())
    }
}

fn resource_key(row: &Kind) -> (&str, &str, &str) {
    (&row.group, &row.version, &row.plural)
}

fn kind_key(row: &Kind) -> (&str, &str, &str) {
    (&row.group, &row.version, &row.kind)
}

/// The built-in rows, in discovery order: a group's preferred version first.
pub fn builtin() -> &'static [&'static Kind] {
    ROWS
}

static ROWS: &[&Kind] = &[
    &core::BINDING,
    &core::COMPONENT_STATUS,
    &core::CONFIG_MAP,
    &core::ENDPOINTS,
    &core::EVENT,
    &core::LIMIT_RANGE,
    &core::NAMESPACE,
    &core::NODE,
    &core::PERSISTENT_VOLUME_CLAIM,
    &core::PERSISTENT_VOLUME,
    &core::POD,
    &core::POD_TEMPLATE,
    &core::REPLICATION_CONTROLLER,
    &core::RESOURCE_QUOTA,
    &core::SECRET,
    &core::SERVICE_ACCOUNT,
    &core::SERVICE,
    &apiregistration::API_SERVICE,
    &apps::CONTROLLER_REVISION,
    &apps::DAEMON_SET,
    &apps::DEPLOYMENT,
    &apps::REPLICA_SET,
    &apps::STATEFUL_SET,
    &events::EVENT,
    &authentication::SELF_SUBJECT_REVIEW,
    &authentication::TOKEN_REVIEW,
    &authorization::LOCAL_SUBJECT_ACCESS_REVIEW,
    &authorization::SELF_SUBJECT_ACCESS_REVIEW,
    &authorization::SELF_SUBJECT_RULES_REVIEW,
    &authorization::SUBJECT_ACCESS_REVIEW,
    &autoscaling::HORIZONTAL_POD_AUTOSCALER,
    &autoscaling::HORIZONTAL_POD_AUTOSCALER_V1,
    &batch::CRON_JOB,
    &batch::JOB,
    &certificates::CERTIFICATE_SIGNING_REQUEST,
    &networking::INGRESS_CLASS,
    &networking::INGRESS,
    &networking::IP_ADDRESS,
    &networking::NETWORK_POLICY,
    &networking::SERVICE_CIDR,
    &policy::POD_DISRUPTION_BUDGET,
    &rbac::CLUSTER_ROLE_BINDING,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::ROLE,
    &storage::CSI_DRIVER,
    &storage::CSI_NODE,
    &storage::CSI_STORAGE_CAPACITY,
    &storage::STORAGE_CLASS,
    &storage::VOLUME_ATTACHMENT,
    &storage::VOLUME_ATTRIBUTES_CLASS,
    &admissionregistration::MUTATING_ADMISSION_POLICY,
    &admissionregistration::MUTATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::MUTATING_WEBHOOK_CONFIGURATION,
    &admissionregistration::VALIDATING_ADMISSION_POLICY,
    &admissionregistration::VALIDATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::VALIDATING_WEBHOOK_CONFIGURATION,
    &apiextensions::CUSTOM_RESOURCE_DEFINITION,
    &scheduling::PRIORITY_CLASS,
    &coordination::LEASE,
    &node::RUNTIME_CLASS,
    &discovery::ENDPOINT_SLICE,
    &resource::DEVICE_CLASS,
    &resource::RESOURCE_CLAIM,
    &resource::RESOURCE_CLAIM_TEMPLATE,
    &resource::RESOURCE_SLICE,
    &flowcontrol::FLOW_SCHEMA,
    &flowcontrol::PRIORITY_LEVEL_CONFIGURATION,
];

#[cfg(test)]
mod tests;
