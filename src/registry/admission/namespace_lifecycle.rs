//! Nothing is created in a Namespace that does not exist or is going; some Namespaces never go.

use super::{Operation, Plugin, Request};
use crate::api::object::Object;
use crate::api::status::{Cause, Result, Status, Subject};
use crate::api::view::meta::Any;
use crate::registry::Registry;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn handles(&self, request: &Request) -> bool {
        match request.operation {
            Operation::Create => request.kind.namespaced && request.subresource.is_empty(),
            Operation::Delete => request.is_core("namespaces"),
            Operation::Update => false,
        }
    }

    fn admit<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        _object: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = request.namespace;
            let namespace: Option<Any> = registry.peek(&format!("namespaces//{name}")).await?;
            let namespace =
                namespace.ok_or_else(|| Status::not_found(Subject { group: "", kind: "namespaces", name }))?;
            if namespace.metadata.deletion_timestamp.is_none() {
                return Ok(());
            }
            let why = format!("unable to create new content in namespace {name} because it is being terminated");
            let mut refusal = request.forbidden(&why);
            if let Some(details) = &mut refusal.details {
                details.causes.push(Cause {
                    reason: "NamespaceTerminating".to_owned(),
                    message: format!("namespace {name} is being terminated"),
                    field: "metadata.namespace".to_owned(),
                });
            }
            Err(refusal)
        }
        .boxed()
    }

    fn validate<'a>(
        &'a self,
        _registry: &'a Registry,
        request: &'a Request<'a>,
        _object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            match request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
                true => Err(request.forbidden("this namespace may not be deleted")),
                false => Ok(()),
            }
        }
        .boxed()
    }
}
