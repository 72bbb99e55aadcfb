//! NodeRestriction: what a node may write of what it may write at all: itself, its own pods, its own lease.
//! Source: upstream's plugin/pkg/admission/noderestriction (behaviour and words).

mod pods;

use super::{Operation, Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::Result;
use crate::pki::node_key::{self, NODES_GROUP, NodeKey};
use crate::pki::request::SigningRequest;
use crate::registry::Registry;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Labels of Kubernetes' own that a node says about itself.
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";
const NODE_SIGNERS: [&str; 2] = ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];

pub struct NodeRestriction;

/// What the check of one write may ask for.
struct Check<'a> {
    registry: &'a Registry,
    request: &'a Request<'a>,
    node: &'a str,
    object: &'a Object,
}

/// The node that asks, when a node does.
fn node_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    let user = &request.context.user;
    let is_node = user.groups.iter().any(|group| group == NODES_GROUP);
    node_key::node_of_user(&user.name).filter(|_| is_node)
}

impl Plugin for NodeRestriction {
    fn handles(&self, request: &Request) -> bool {
        node_of(request).is_some()
    }

    /// A new node gets the labels of the token it joined with, which it could not give itself.
    fn admit<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let Some(node) = node_of(request).filter(|_| request.creates("nodes")) else { return Ok(()) };
            check_labels(request, node, object, None)?;
            let key = format!("secrets/{}/{}", node_key::NAMESPACE, node_key::secret_name(node));
            let record: Option<Object> = registry.peek(&key).await?;
            for (label, value) in record.map(|record| NodeKey::of(&record).labels).unwrap_or_default() {
                object.set(&["metadata", "labels", &label], value.into());
            }
            Ok(())
        }
        .boxed()
    }

    fn validate<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let Some(node) = node_of(request) else { return Ok(()) };
            let check = Check { registry, request, node, object };
            let outcome = check.run().await;
            if let Err(refusal) = &outcome {
                tracing::warn!(
                    node,
                    resource = &*request.kind.plural,
                    name = request.name,
                    why = refusal.message,
                    "refused"
                );
            }
            outcome
        }
        .boxed()
    }
}

impl Check<'_> {
    fn refuse(&self, why: impl AsRef<str>) -> Result<()> {
        Err(self.request.forbidden(why.as_ref()))
    }

    async fn run(&self) -> Result<()> {
        let request = self.request;
        match (&*request.kind.group, &*request.kind.plural, request.subresource) {
            ("", "pods", subresource) => self.check_pod(subresource).await,
            ("", "nodes", _) => self.check_node(),
            ("", "serviceaccounts", "token") => self.check_token().await,
            ("coordination.k8s.io", "leases", _) => self.check_lease(),
            ("storage.k8s.io", "csinodes", _) => {
                self.check_named("can only access CSINode with the same name as the requesting node")
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") if request.operation == Operation::Create => {
                self.check_certificate()
            }
            _ => Ok(()),
        }
    }

    fn check_node(&self) -> Result<()> {
        let (request, node, name) = (self.request, self.node, self.object.name());
        if name != node {
            return self.refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else { return Ok(()) };
        check_labels(request, node, self.object, Some(old))?;
        let changed = |path: &[&str]| !crate::api::validation::same(self.object.at(path), old.at(path));
        if changed(&["spec", "taints"]) {
            return self.refuse(format!("node {node:?} is not allowed to modify taints"));
        }
        if changed(&["metadata", "ownerReferences"]) {
            return self.refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
        Ok(())
    }

    fn check_lease(&self) -> Result<()> {
        if self.request.namespace != LEASE_NAMESPACE {
            return self.refuse(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
        }
        self.check_named("can only access node lease with the same name as the requesting node")
    }

    fn check_named(&self, why: &str) -> Result<()> {
        if self.object.name() == self.node { Ok(()) } else { self.refuse(why) }
    }

    /// A node asks for certificates of its own.
    fn check_certificate(&self) -> Result<()> {
        if !NODE_SIGNERS.contains(&self.object.str_at(&["spec", "signerName"])) {
            return Ok(());
        }
        let pem = STANDARD.decode(self.object.str_at(&["spec", "request"])).unwrap_or_default();
        let user = &self.request.context.user.name;
        match SigningRequest::parse_unchecked(&pem) {
            Ok(parsed) if parsed.common_name == *user => Ok(()),
            Ok(_) => self.refuse(format!("can only create a node CSR with CN={user}")),
            Err(error) => self.refuse(format!("unable to parse csr: {error}")),
        }
    }
}

fn labels(object: &Object) -> Map<String, Value> {
    object.at(&["metadata", "labels"]).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The labels that differ must be the node's to set.
fn check_labels(request: &Request, node: &str, new: &Object, old: Option<&Object>) -> Result<()> {
    let (new, before) = (labels(new), old.map(labels).unwrap_or_default());
    let keys: BTreeSet<&String> = new.keys().chain(before.keys()).collect();
    let forbidden: Vec<&str> = keys
        .into_iter()
        .filter(|key| new.get(*key) != before.get(*key) && !is_own_label(key))
        .map(String::as_str)
        .collect();
    if forbidden.is_empty() {
        return Ok(());
    }
    let list = forbidden.join(", ");
    Err(request.forbidden(&match old {
        None => format!("node {node:?} is not allowed to set the following labels: {list}"),
        Some(_) => format!("is not allowed to modify labels: {list}"),
    }))
}

fn is_own_label(key: &str) -> bool {
    let namespace = key.split_once('/').map(|(namespace, _)| namespace).unwrap_or_default();
    let is_under =
        |domain: &str| namespace == domain || namespace.strip_suffix(domain).is_some_and(|head| head.ends_with('.'));
    if is_under(RESTRICTED) {
        return false;
    }
    let of_kubernetes = is_under("kubernetes.io") || is_under("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&key) || OWN_NAMESPACES.into_iter().any(is_under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_node_may_set() {
        let cases = [
            ("zone", true),
            ("example.com/zone", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/anything", true),
            ("x.kubelet.kubernetes.io/anything", true),
            ("edgelet.io/board", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/x", false),
            ("x.node-restriction.kubernetes.io/x", false),
            ("x.k8s.io/y", false),
            ("notkubernetes.io/y", true),
        ];
        for (key, expected) in cases {
            assert_eq!(is_own_label(key), expected, "{key}");
        }
    }
}
