//! The Node authorizer: a node reads what the pods bound to it need, and writes what is its own. Who needs what is a
//! graph of the pods in the store, read at the first question of a node and kept up at each later one.
//! Source: upstream's plugin/pkg/auth/authorizer/node (behaviour).

mod graph;

use super::rbac::{Access, Attributes, Rbac, Rule};
use crate::api::object::{Object, ObjectExt};
use crate::api::validation::check::list;
use crate::pki::node_key::{self, NODES_GROUP};
use crate::registry::User;
use crate::store::{Store, StoreError, Watch};
use futures_util::FutureExt;
use graph::{Graph, Need};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Mutex;

const PODS: &str = "pods/";
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The rules that hold for every node, as the administrator sees them.
const ROLE: &str = "system:node";
/// A node with this label serves Ingresses, and reads them and their TLS Secrets. No node can give it to itself.
const INGRESS_LABEL: &str = "node-restriction.kubernetes.io/edgelet-ingress";

/// The name of the node that a user is.
pub fn node_of(user: &User) -> Option<&str> {
    let is_in_group = user.groups.iter().any(|group| group == NODES_GROUP);
    node_key::node_of_user(&user.name).filter(|_| is_in_group)
}

/// What the rules alone say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// As `ROLE` and `own_rules` say.
    Rules,
    /// If the node is the one that pods with this need are bound to.
    Needs(Need),
    Refused(&'static str),
}

pub struct NodeAuthorizer {
    store: Arc<dyn Store>,
    rules: Vec<Rule>,
    state: Mutex<Option<State>>,
}

struct State {
    graph: Graph,
    watch: Watch,
}

impl NodeAuthorizer {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, rules: own_rules(), state: Mutex::default() }
    }

    pub async fn access(&self, node: &str, attributes: &Attributes<'_>, roles: &Rbac) -> Access {
        let refused = |reason: String| Access { allowed: false, reason };
        match judge(node, attributes) {
            Verdict::Refused(reason) => refused(reason.to_owned()),
            Verdict::Rules if self.rules.iter().any(|rule| rule.allows(attributes)) => Access::allowed(),
            Verdict::Rules if roles.role_allows(ROLE, attributes).await => Access::allowed(),
            Verdict::Rules if self.serves_ingress(node, attributes).await => Access::allowed(),
            Verdict::Rules => refused(String::new()),
            Verdict::Needs(need) => match self.with_graph(|graph| graph.has(node, &need)).await {
                Ok(true) => Access::allowed(),
                Ok(false) if self.serves_ingress(node, attributes).await => Access::allowed(),
                Ok(false) => refused(format!("no relationship found between node '{node}' and this object")),
                Err(error) => refused(format!("node authorizer: {error}")),
            },
        }
    }

    async fn with_graph<T>(&self, ask: impl FnOnce(&Graph) -> T) -> Result<T, StoreError> {
        let mut state = self.state.lock().await;
        if !state.as_mut().is_some_and(State::catch_up) {
            *state = Some(State::load(&*self.store).await?);
        }
        Ok(ask(&state.as_ref().expect("loaded just now").graph))
    }

    async fn object(&self, key: &str) -> Option<Object> {
        let entry = self.store.get(key).await.ok()??;
        serde_json::from_slice(&entry.bytes).ok()
    }

    /// Reads of Ingresses, their classes and the Secrets they name, by a node that serves them.
    async fn serves_ingress(&self, node: &str, attributes: &Attributes<'_>) -> bool {
        let Attributes { verb, group, resource, subresource, namespace, name, .. } = *attributes;
        let is_read = matches!(verb, "get" | "list" | "watch") && subresource.is_empty();
        let is_ingress = group == "networking.k8s.io" && matches!(resource, "ingresses" | "ingressclasses");
        let is_secret = group.is_empty() && resource == "secrets" && !name.is_empty();
        if !is_read || !(is_ingress || is_secret) {
            return false;
        }
        let labelled = self.object(&format!("nodes//{node}")).await;
        if labelled.is_none_or(|node| node.label(INGRESS_LABEL) != Some("true")) {
            return false;
        }
        is_ingress || self.is_named_by_ingress(namespace, name).await
    }

    async fn is_named_by_ingress(&self, namespace: &str, name: &str) -> bool {
        let prefix = format!("ingresses.networking.k8s.io/{namespace}/");
        let Ok(page) = self.store.list(&prefix, "", 0, None).await else { return false };
        let ingresses = page.entries.iter().filter_map(|entry| serde_json::from_slice::<Object>(&entry.bytes).ok());
        let names_it = |ingress: Object| {
            let spec = ingress.get("spec").cloned().unwrap_or_default();
            list(&spec, "tls").iter().any(|tls| tls.str_at(&["secretName"]) == name)
        };
        ingresses.into_iter().any(names_it)
    }
}

impl State {
    async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut graph = Graph::default();
        let page = store.list(PODS, "", 0, None).await?;
        page.entries.iter().for_each(|entry| graph.put(&entry.key, &entry.bytes));
        Ok(Self { graph, watch: store.watch(PODS, page.revision)? })
    }

    /// Reads what has happened since; false when too much has, and all must be read again.
    fn catch_up(&mut self) -> bool {
        while let Some(event) = self.watch.next().now_or_never() {
            let Ok(event) = event else { return false };
            match (&event.current, &event.previous) {
                (Some(entry), _) => self.graph.put(&entry.key, &entry.bytes),
                (None, Some(entry)) => self.graph.remove(&entry.key),
                (None, None) => {}
            }
        }
        true
    }
}

/// What edgelet's nodes read besides: Services are rules and names on every node, and so will policies be.
fn own_rules() -> Vec<Rule> {
    let reads = |group: &str, resources: &[&str]| -> Value {
        json!({"verbs": ["get", "list", "watch"], "apiGroups": [group], "resources": resources})
    };
    let rules = [
        reads("", &["services", "endpoints", "namespaces", "nodes"]),
        reads("discovery.k8s.io", &["endpointslices"]),
        reads("networking.k8s.io", &["networkpolicies"]),
    ];
    rules.into_iter().map(|rule| serde_json::from_value(rule).expect("a constant")).collect()
}

fn judge(node: &str, attributes: &Attributes) -> Verdict {
    let Attributes { is_resource, group, resource, .. } = *attributes;
    match (group, resource) {
        _ if !is_resource => Verdict::Rules,
        ("", "secrets" | "configmaps") => judge_read(attributes),
        ("", "persistentvolumeclaims") if attributes.subresource == "status" => judge_claim_status(attributes),
        ("", "persistentvolumeclaims") => judge_get(attributes),
        ("", "serviceaccounts") => judge_account(attributes),
        ("", "pods") => judge_pod(node, attributes),
        ("", "nodes") => judge_node(node, attributes),
        ("coordination.k8s.io", "leases") => judge_lease(node, attributes),
        ("storage.k8s.io", "csinodes") => judge_own(node, attributes),
        // Nothing here makes them: devices are not handed out yet.
        ("resource.k8s.io", _) => Verdict::Refused("nodes have no devices to hand out here"),
        _ => Verdict::Rules,
    }
}

fn need(attributes: &Attributes) -> Verdict {
    if attributes.name.is_empty() {
        return Verdict::Refused("No Object name found");
    }
    match Need::of(attributes.resource, attributes.namespace, attributes.name) {
        Some(need) => Verdict::Needs(need),
        None => Verdict::Refused("can only read namespaced object of this type"),
    }
}

/// One object at a time, by name or by a selector of its name.
fn judge_read(attributes: &Attributes) -> Verdict {
    match attributes.verb {
        _ if !attributes.subresource.is_empty() => Verdict::Refused("cannot read subresource"),
        "get" | "list" | "watch" => need(attributes),
        _ => Verdict::Refused("can only read resources of this type"),
    }
}

fn judge_get(attributes: &Attributes) -> Verdict {
    match attributes.verb {
        _ if !attributes.subresource.is_empty() => Verdict::Refused("cannot get subresource"),
        "get" => need(attributes),
        _ => Verdict::Refused("can only get individual resources of this type"),
    }
}

fn judge_claim_status(attributes: &Attributes) -> Verdict {
    match attributes.verb {
        "update" | "patch" | "get" => need(attributes),
        _ => Verdict::Refused("can only get/update/patch this type"),
    }
}

fn judge_account(attributes: &Attributes) -> Verdict {
    match (attributes.subresource, attributes.verb) {
        ("token", "create") => need(attributes),
        ("token", _) => Verdict::Refused("can only create tokens for individual service accounts"),
        _ => judge_get(attributes),
    }
}

fn judge_pod(node: &str, attributes: &Attributes) -> Verdict {
    match (attributes.verb, attributes.subresource) {
        ("get", "") => need(attributes),
        ("list" | "watch", "") if selects_node(attributes.field_selector, node) => Verdict::Rules,
        ("list" | "watch", "") if !attributes.name.is_empty() && !attributes.namespace.is_empty() => need(attributes),
        ("list" | "watch", _) => Verdict::Refused("can only list/watch pods with spec.nodeName field selector"),
        // Whose pods these are is for admission, which sees the object.
        _ => Verdict::Rules,
    }
}

/// Whether `spec.nodeName=NODE` is one of the terms.
fn selects_node(selector: &str, node: &str) -> bool {
    let terms = selector.split(',').filter_map(|term| term.split_once('='));
    terms.into_iter().any(|(field, value)| field.trim() == "spec.nodeName" && value.trim_start_matches('=') == node)
}

fn judge_node(node: &str, attributes: &Attributes) -> Verdict {
    match (attributes.verb, attributes.subresource) {
        ("get" | "list" | "watch" | "create", "") => Verdict::Rules,
        ("update" | "patch", "" | "status") if attributes.name == node => Verdict::Rules,
        ("update" | "patch", "" | "status") => Verdict::Refused("can only access the node of the requesting node"),
        _ => Verdict::Refused("nodes cannot access this resource"),
    }
}

fn judge_lease(node: &str, attributes: &Attributes) -> Verdict {
    if attributes.namespace != LEASE_NAMESPACE {
        return Verdict::Refused("can only access leases in the \"kube-node-lease\" system namespace");
    }
    judge_own(node, attributes)
}

/// The object of the node's own name; at creation admission looks at the name.
fn judge_own(node: &str, attributes: &Attributes) -> Verdict {
    match attributes.verb {
        _ if !attributes.subresource.is_empty() => Verdict::Refused("cannot access subresource"),
        "get" | "update" | "patch" | "delete" if attributes.name == node => Verdict::Rules,
        "create" if attributes.name.is_empty() || attributes.name == node => Verdict::Rules,
        "get" | "update" | "patch" | "delete" | "create" => {
            Verdict::Refused("can only access an object with the same name as the requesting node")
        }
        _ => Verdict::Refused("can only get, create, update, patch, or delete an object of this type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rules_alone_say() {
        let core = |verb, resource, name| Attributes {
            is_resource: true,
            verb,
            resource,
            namespace: "g1",
            name,
            ..Attributes::default()
        };
        let pods = core("list", "pods", "");
        let node = |verb, name| Attributes { namespace: "", ..core(verb, "nodes", name) };
        let lease =
            Attributes { group: "coordination.k8s.io", namespace: LEASE_NAMESPACE, ..core("get", "leases", "one") };
        let token = Attributes { subresource: "token", ..core("create", "serviceaccounts", "sa") };
        let cases = [
            (core("get", "secrets", "a"), "needs"),
            (core("watch", "secrets", "a"), "needs"),
            (core("list", "secrets", ""), "No Object name found"),
            (core("update", "secrets", "a"), "can only read resources of this type"),
            (core("get", "pods", "a"), "needs"),
            (pods, "can only list/watch pods with spec.nodeName field selector"),
            (Attributes { field_selector: "spec.nodeName=one", ..pods }, "rules"),
            (Attributes { field_selector: "spec.nodeName=two", ..pods }, "can only list/watch"),
            (Attributes { field_selector: "spec.nodeName!=one", ..pods }, "can only list/watch"),
            (token, "needs"),
            (Attributes { verb: "list", ..node("list", "") }, "rules"),
            (node("patch", "one"), "rules"),
            (node("patch", "two"), "can only access the node"),
            (node("delete", "one"), "nodes cannot access this resource"),
            (lease, "rules"),
            (Attributes { name: "two", ..lease }, "can only access an object with the same name"),
            (Attributes { namespace: "g1", ..lease }, "can only access leases in the"),
            (core("get", "persistentvolumeclaims", "a"), "needs"),
            (core("list", "persistentvolumeclaims", ""), "can only get individual resources"),
        ];
        for (attributes, expected) in cases {
            let got = match judge("one", &attributes) {
                Verdict::Rules => "rules",
                Verdict::Needs(_) => "needs",
                Verdict::Refused(reason) => reason,
            };
            assert!(got.starts_with(expected), "{attributes:?}: {got}");
        }
    }

    #[test]
    fn only_users_in_the_group_are_nodes() {
        let user = |name: &str, group: &str| User { name: name.into(), groups: vec![group.into()], ..User::default() };
        assert_eq!(node_of(&user("system:node:one", "system:nodes")), Some("one"));
        assert_eq!(node_of(&user("system:node:one", "dev")), None);
        assert_eq!(node_of(&user("bob", "system:nodes")), None);
    }
}
