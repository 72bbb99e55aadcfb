//! Admission: what the cluster, not the kind, has to say about a write. One ordered list, a file per plugin.
//! All plugins may change the object first; then all may refuse it.

mod certificates;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod service_account;
mod taint_nodes;

use super::{Context, Registry, subject};
use crate::api::kinds::Kind;
use crate::api::object::Object;
use crate::api::status::{Result, Status};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write on its way.
pub struct Request<'a> {
    pub context: &'a Context,
    pub kind: &'a Kind,
    /// Empty for the main resource.
    pub subresource: &'a str,
    pub operation: Operation,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The object as it is; `None` for a creation.
    pub old: Option<&'a Object>,
    pub now: Timestamp,
}

impl Request<'_> {
    /// Whether this is about a kind of the core group, by plural name.
    pub fn is_core(&self, plural: &str) -> bool {
        self.kind.group.is_empty() && self.kind.plural == plural
    }

    /// The refusal of this write, in upstream's form.
    pub fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(subject(self.kind, self.name), why)
    }

    /// Whether a main resource of the core group is being created.
    pub fn creates(&self, plural: &str) -> bool {
        self.operation == Operation::Create && self.subresource.is_empty() && self.is_core(plural)
    }
}

/// One concern. Reads the store through the registry; never writes.
pub trait Plugin: Sync {
    /// Asked first, so that writes it has nothing to do with cost nothing.
    fn handles(&self, request: &Request) -> bool;

    fn admit<'a>(
        &'a self,
        _registry: &'a Registry,
        _request: &'a Request<'a>,
        _object: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    /// `object` is what will be stored; for a deletion what is.
    fn validate<'a>(
        &'a self,
        _registry: &'a Registry,
        _request: &'a Request<'a>,
        _object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }
}

/// In upstream's order.
pub static PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::TaintNodesByCondition,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &certificates::CertificateRequester,
    &certificates::CertificateApproval,
    &certificates::CertificateSigning,
    &certificates::CertificateSubjectRestriction,
];

impl Registry {
    /// An object that a plugin needs to know, by its store key; or a view of it.
    async fn peek<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let found = self.store.get(key).await.map_err(Status::internal)?;
        found.map(|entry| serde_json::from_slice(&entry.bytes).map_err(Status::internal)).transpose()
    }
}

pub(super) async fn admit(registry: &Registry, request: &Request<'_>, object: &mut Object) -> Result<()> {
    for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(request)) {
        plugin.admit(registry, request, object).await?;
    }
    Ok(())
}

pub(super) async fn validate(registry: &Registry, request: &Request<'_>, object: &Object) -> Result<()> {
    for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(request)) {
        plugin.validate(registry, request, object).await?;
    }
    Ok(())
}
