//! RBAC: what roles and bindings in the store allow. The index is made at the first question and kept up by
//! reading what has changed since the last one, so no task runs and no answer is older than its question.

use crate::api::object::ObjectExt;
use crate::registry::{Permission, User};
use crate::store::{Entry, Event, Store, StoreError, Watch};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;

const PREFIXES: [&str; 4] = [
    "roles.rbac.authorization.k8s.io/",
    "clusterroles.rbac.authorization.k8s.io/",
    "rolebindings.rbac.authorization.k8s.io/",
    "clusterrolebindings.rbac.authorization.k8s.io/",
];

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub is_resource: bool,
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// When it is no resource.
    pub path: &'a str,
    /// Of a list or watch.
    pub field_selector: &'a str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub allowed: bool,
    /// Why, for SubjectAccessReviews and refusals.
    pub reason: String,
}

impl Access {
    pub fn allowed() -> Self {
        Self { allowed: true, reason: String::new() }
    }
}

type Names = Box<[Box<str>]>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Names,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub api_groups: Names,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub resources: Names,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub resource_names: Names,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "<[_]>::is_empty")]
    pub non_resource_urls: Names,
}

fn has(list: &[Box<str>], wanted: &str) -> bool {
    list.iter().any(|one| &**one == "*" || &**one == wanted)
}

impl Rule {
    pub fn everything() -> Self {
        let all = || -> Names { Box::new(["*".into()]) };
        Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() }
    }

    pub fn every_url() -> Self {
        let all = || -> Names { Box::new(["*".into()]) };
        Self { verbs: all(), non_resource_urls: all(), ..Self::default() }
    }

    /// As refusals show it.
    pub fn printed(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        let filled = parts.into_iter().filter(|(_, list)| !list.is_empty());
        let texts: Vec<String> = filled.map(|(name, list)| format!("{name}:{list:?}")).collect();
        format!("{{{}}}", texts.join(", "))
    }

    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if !attributes.is_resource {
            return self.non_resource_urls.iter().any(|url| url_matches(url, attributes.path));
        }
        has(&self.api_groups, attributes.group)
            && self.resources.iter().any(|one| resource_matches(one, attributes))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| &**name == attributes.name))
    }
}

/// `*`, `pods`, `pods/log`, `*/scale`.
fn resource_matches(rule: &str, attributes: &Attributes) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        Some((resource, sub)) => {
            (resource == "*" || resource == attributes.resource)
                && sub == attributes.subresource
                && !attributes.subresource.is_empty()
        }
        None => rule == attributes.resource && attributes.subresource.is_empty(),
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Role {
    metadata: RoleMeta,
    rules: Box<[Rule]>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RoleMeta {
    labels: BTreeMap<Box<str>, Box<str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Aggregation {
    cluster_role_selectors: Vec<serde_json::Value>,
}

impl Aggregation {
    /// `matchLabels` only; selectors by expression wait for the controller that writes the rules out.
    fn selects(&self, labels: &BTreeMap<Box<str>, Box<str>>) -> bool {
        self.cluster_role_selectors.iter().any(|selector| {
            let wanted = selector.at(&["matchLabels"]).and_then(|labels| labels.as_object());
            wanted.is_some_and(|wanted| {
                !wanted.is_empty()
                    && wanted.iter().all(|(key, value)| labels.get(key.as_str()).is_some_and(|has| **has == *value))
            })
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    role_ref: RoleRef,
    subjects: Box<[SubjectRef]>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: Box<str>,
    name: Box<str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SubjectRef {
    kind: Box<str>,
    name: Box<str>,
    namespace: Box<str>,
}

impl Binding {
    /// Why it holds for this user, when it does.
    fn subject_of(&self, user: &User) -> Option<&SubjectRef> {
        self.subjects.iter().find(|subject| subject.is(user))
    }
}

impl SubjectRef {
    fn is(&self, user: &User) -> bool {
        match &*self.kind {
            "User" => user.name == *self.name,
            "Group" => user.groups.iter().any(|group| **group == *self.name),
            "ServiceAccount" => {
                let parts = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                parts == Some((&self.namespace, &self.name))
            }
            _ => false,
        }
    }
}

/// Roles and bindings by `namespace/name`, as the keys in the store have it.
#[derive(Default)]
struct Index {
    roles: HashMap<Box<str>, Role>,
    cluster_roles: HashMap<Box<str>, Role>,
    bindings: BTreeMap<Box<str>, Binding>,
    cluster_bindings: BTreeMap<Box<str>, Binding>,
}

/// The rules that hold for somebody, and what could not be found.
#[derive(Default)]
pub struct RuleList {
    pub rules: Vec<Rule>,
    pub missing: Vec<String>,
}

impl RuleList {
    fn add(&mut self, visited: Visited) {
        match visited {
            Visited::Rules { rules, .. } => self.rules.extend(rules.iter().cloned()),
            Visited::Missing(binding) => self.missing.push(not_found(binding)),
        }
    }
}

impl Index {
    fn put(&mut self, entry: &Entry) {
        let Some((prefix, name)) = split(&entry.key) else { return };
        // What does not decode allows nothing.
        let role = || serde_json::from_slice(&entry.bytes).unwrap_or_default();
        let binding = || serde_json::from_slice(&entry.bytes).unwrap_or_default();
        match prefix {
            0 => drop(self.roles.insert(name, role())),
            1 => drop(self.cluster_roles.insert(name, role())),
            2 => drop(self.bindings.insert(name, binding())),
            _ => drop(self.cluster_bindings.insert(name, binding())),
        }
    }

    fn remove(&mut self, key: &str) {
        let Some((prefix, name)) = split(key) else { return };
        match prefix {
            0 => drop(self.roles.remove(&name)),
            1 => drop(self.cluster_roles.remove(&name)),
            2 => drop(self.bindings.remove(&name)),
            _ => drop(self.cluster_bindings.remove(&name)),
        }
    }

    /// Calls `visit` with every rule that holds for the user until it says stop.
    fn visit(&self, user: &User, namespace: &str, visit: &mut dyn FnMut(Visited) -> bool) {
        for (name, binding) in &self.cluster_bindings {
            if binding.subject_of(user).is_some() && !self.visit_role(binding, name, "", visit) {
                return;
            }
        }
        if namespace.is_empty() {
            return;
        }
        let first: Box<str> = format!("{namespace}/").into();
        let local = self.bindings.range(first.clone()..).take_while(|(name, _)| name.starts_with(&*first));
        for (name, binding) in local {
            if binding.subject_of(user).is_some() && !self.visit_role(binding, name, namespace, visit) {
                return;
            }
        }
    }

    fn visit_role(
        &self,
        binding: &Binding,
        name: &str,
        namespace: &str,
        visit: &mut dyn FnMut(Visited) -> bool,
    ) -> bool {
        let cluster = &*binding.role_ref.kind == "ClusterRole";
        let key = format!("{}/{}", if cluster { "" } else { namespace }, binding.role_ref.name);
        let role = if cluster { self.cluster_roles.get(&*key) } else { self.roles.get(&*key) };
        let Some(role) = role else {
            return visit(Visited::Missing(binding));
        };
        let from = || Visited::Rules { rules: &role.rules, binding, name, namespace };
        if !visit(from()) {
            return false;
        }
        let Some(aggregation) = &role.aggregation_rule else { return true };
        let selected = self.cluster_roles.values().filter(|other| aggregation.selects(&other.metadata.labels));
        for other in selected {
            if !visit(Visited::Rules { rules: &other.rules, binding, name, namespace }) {
                return false;
            }
        }
        true
    }

    fn access(&self, user: &User, attributes: &Attributes) -> Access {
        let mut access = Access::default();
        let mut missing = Vec::new();
        self.visit(user, attributes.namespace, &mut |visited| {
            match visited {
                Visited::Missing(binding) => missing.push(not_found(binding)),
                Visited::Rules { rules, binding, name, namespace } => {
                    if rules.iter().any(|rule| rule.allows(attributes)) {
                        access = Access { allowed: true, reason: granted(user, binding, name, namespace) };
                    }
                }
            }
            !access.allowed
        });
        if !access.allowed && !missing.is_empty() {
            access.reason = format!("RBAC: {}", listed(&missing));
        }
        access
    }
}

enum Visited<'a> {
    Rules { rules: &'a [Rule], binding: &'a Binding, name: &'a str, namespace: &'a str },
    Missing(&'a Binding),
}

fn not_found(binding: &Binding) -> String {
    let kind = binding.role_ref.kind.to_lowercase();
    format!("{kind}.rbac.authorization.k8s.io {:?} not found", binding.role_ref.name)
}

/// As Go prints an aggregate of errors.
fn listed(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn granted(user: &User, binding: &Binding, name: &str, namespace: &str) -> String {
    let Some(subject) = binding.subject_of(user) else { return String::new() };
    let name = name.rsplit('/').next().unwrap_or_default();
    let which = if namespace.is_empty() {
        format!("ClusterRoleBinding {name:?}")
    } else {
        format!("RoleBinding \"{name}/{namespace}\"")
    };
    let to = match &*subject.kind {
        "ServiceAccount" => format!("ServiceAccount \"{}/{}\"", subject.name, subject.namespace),
        kind => format!("{kind} {:?}", subject.name),
    };
    format!("RBAC: allowed by {which} of {} {:?} to {to}", binding.role_ref.kind, binding.role_ref.name)
}

/// Which of `PREFIXES` a key has, and the rest of it.
fn split(key: &str) -> Option<(usize, Box<str>)> {
    PREFIXES.iter().enumerate().find_map(|(at, prefix)| key.strip_prefix(prefix).map(|rest| (at, rest.into())))
}

/// The index and the cursors that keep it up.
pub struct Rbac {
    store: Arc<dyn Store>,
    state: Mutex<Option<State>>,
}

struct State {
    index: Index,
    watches: Vec<Watch>,
}

impl Rbac {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, state: Mutex::default() }
    }

    pub async fn access(&self, user: &User, attributes: &Attributes<'_>) -> Access {
        let answer = self.with_index(|index| index.access(user, attributes)).await;
        answer.unwrap_or_else(|error| Access { allowed: false, reason: format!("RBAC: {error}") })
    }

    pub async fn rules_of(&self, user: &User, namespace: &str) -> RuleList {
        let mut list = RuleList::default();
        let visited = self.with_index(|index| {
            index.visit(user, namespace, &mut |visited| {
                list.add(visited);
                true
            });
        });
        if let Err(error) = visited.await {
            list.missing.push(error.to_string());
        }
        list
    }

    /// The rules of one role: `resource` is `roles` or `clusterroles`.
    pub async fn rules_of_role(&self, resource: &str, namespace: &str, name: &str) -> RuleList {
        let kind = if resource == "roles" { "Role" } else { "ClusterRole" };
        let role_ref = RoleRef { kind: kind.into(), name: name.into() };
        let binding = Binding { role_ref, subjects: Box::default() };
        let mut list = RuleList::default();
        let visited = self.with_index(|index| {
            index.visit_role(&binding, "", namespace, &mut |visited| {
                list.add(visited);
                true
            })
        });
        if let Err(error) = visited.await {
            list.missing.push(error.to_string());
        }
        list
    }

    /// Whether a ClusterRole allows this, whoever it is bound to.
    pub async fn role_allows(&self, name: &str, attributes: &Attributes<'_>) -> bool {
        let role_ref = RoleRef { kind: "ClusterRole".into(), name: name.into() };
        let binding = Binding { role_ref, subjects: Box::default() };
        let asked = self.with_index(|index| {
            let mut allowed = false;
            index.visit_role(&binding, "", "", &mut |visited| {
                if let Visited::Rules { rules, .. } = visited {
                    allowed |= rules.iter().any(|rule| rule.allows(attributes));
                }
                !allowed
            });
            allowed
        });
        asked.await.unwrap_or(false)
    }

    async fn with_index<T>(&self, ask: impl FnOnce(&Index) -> T) -> Result<T, StoreError> {
        let mut state = self.state.lock().await;
        let current = state.as_mut().is_some_and(State::catch_up);
        if !current {
            *state = Some(State::load(&*self.store).await?);
        }
        Ok(ask(&state.as_ref().expect("loaded just now").index))
    }
}

impl crate::registry::Authorizer for Rbac {
    fn may<'a>(&'a self, user: &'a User, permission: &'a Permission<'a>) -> BoxFuture<'a, bool> {
        let Permission { verb, group, resource, name } = *permission;
        let attributes = Attributes { is_resource: true, verb, group, resource, name, ..Attributes::default() };
        async move { self.access(user, &attributes).await.allowed }.boxed()
    }
}

impl State {
    async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut index = Index::default();
        let mut watches = Vec::with_capacity(PREFIXES.len());
        for prefix in PREFIXES {
            let page = store.list(prefix, "", 0, None).await?;
            page.entries.iter().for_each(|entry| index.put(entry));
            watches.push(store.watch(prefix, page.revision)?);
        }
        Ok(Self { index, watches })
    }

    /// Reads what has happened since; false when too much has, and all must be read again.
    fn catch_up(&mut self) -> bool {
        for watch in &mut self.watches {
            while let Some(event) = watch.next().now_or_never() {
                match event {
                    Ok(event) => apply(&mut self.index, &event),
                    Err(_) => return false,
                }
            }
        }
        true
    }
}

fn apply(index: &mut Index, event: &Event) {
    match (&event.current, &event.previous) {
        (Some(entry), _) => index.put(entry),
        (None, Some(entry)) => index.remove(&entry.key),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(key: &str, value: &serde_json::Value) -> Entry {
        Entry { key: key.into(), create_revision: 1, revision: 1, bytes: value.to_string().into(), splice_at: 0 }
    }

    fn rule(value: serde_json::Value) -> Rule {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn rules_match_resources_names_and_urls() {
        let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"]}));
        let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]}));
        let urls = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        let get = Attributes { is_resource: true, verb: "get", resource: "pods", ..Attributes::default() };
        let path = Attributes { verb: "get", path: "/apis/apps", ..Attributes::default() };
        let cases = [
            (&pods, get, true),
            (&pods, Attributes { verb: "list", ..get }, false),
            (&pods, Attributes { group: "apps", ..get }, false),
            (&pods, Attributes { subresource: "log", ..get }, false),
            (&pods, Attributes { resource: "deployments", subresource: "scale", ..get }, true),
            (&named, get, false),
            (&named, Attributes { name: "a", ..get }, true),
            (&named, path, false),
            (&urls, path, true),
            (&urls, Attributes { path: "/healthz/x", ..path }, false),
        ];
        for (rule, attributes, expected) in cases {
            assert_eq!(rule.allows(&attributes), expected, "{attributes:?}");
        }
    }

    #[test]
    fn bindings_reach_users_groups_accounts_and_aggregated_roles() {
        let mut index = Index::default();
        let get_pods = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let label = json!({"labels": {"to-view": "true"}});
        index.put(&entry(
            "clusterroles.rbac.authorization.k8s.io//part",
            &json!({"metadata": label, "rules": get_pods}),
        ));
        let selector = json!([{"matchLabels": {"to-view": "true"}}]);
        let view = json!({"aggregationRule": {"clusterRoleSelectors": selector}, "rules": null});
        index.put(&entry(
            "clusterroles.rbac.authorization.k8s.io//view",
            &json!({"aggregationRule": view["aggregationRule"]}),
        ));
        let subjects = json!([
            {"kind": "Group", "name": "dev"}, {"kind": "ServiceAccount", "name": "sa", "namespace": "g4"},
        ]);
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": subjects});
        index.put(&entry("rolebindings.rbac.authorization.k8s.io/g1/b", &binding));

        let get =
            Attributes { is_resource: true, verb: "get", resource: "pods", namespace: "g1", ..Attributes::default() };
        let in_dev = User { name: "bob".into(), groups: vec!["dev".into()], ..User::default() };
        let account = User { name: "system:serviceaccount:g4:sa".into(), ..User::default() };
        let nobody = User { name: "eve".into(), ..User::default() };
        assert!(index.access(&in_dev, &get).allowed);
        assert_eq!(
            index.access(&account, &get).reason,
            r#"RBAC: allowed by RoleBinding "b/g1" of ClusterRole "view" to ServiceAccount "sa/g4""#
        );
        assert!(!index.access(&nobody, &get).allowed);
        assert!(!index.access(&in_dev, &Attributes { namespace: "g10", ..get }).allowed);
        assert!(!index.access(&in_dev, &Attributes { namespace: "", ..get }).allowed);

        index.remove("clusterroles.rbac.authorization.k8s.io//view");
        let refused = index.access(&in_dev, &get);
        assert_eq!(refused.reason, r#"RBAC: clusterrole.rbac.authorization.k8s.io "view" not found"#);
    }
}
