//! Reads rbac.txt: the roles and bindings that upstream's components and groups have in every cluster.

use super::Wanted;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const FACTS: &str = include_str!("rbac.txt");
const API: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

#[derive(Default)]
struct Role<'a> {
    /// Empty: a ClusterRole.
    namespace: &'a str,
    name: &'a str,
    to: Vec<&'a str>,
    of: &'a str,
    rules: Vec<Value>,
}

pub(super) fn objects() -> Vec<Wanted> {
    let mut roles: Vec<Role> = Vec::new();
    let mut wanted = Vec::new();
    for line in FACTS.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["clusterrole", name, marks @ ..] => roles.push(cluster_role(name, marks)),
            ["role", namespace, name] => roles.push(Role { namespace, name, ..Role::default() }),
            ["bind", name, subjects @ ..] => wanted.push(binding("", name, name, subjects)),
            ["bindin", namespace, name, role, subjects @ ..] => wanted.push(binding(namespace, name, role, subjects)),
            _ => roles.last_mut().expect("rules stand below their role").rules.push(rule(line)),
        }
    }
    aggregate(&mut roles);
    wanted.extend(roles.iter().map(Role::object));
    wanted
}

fn cluster_role<'a>(name: &'a str, marks: &[&'a str]) -> Role<'a> {
    let marked = |key: &str| marks.iter().filter_map(|mark| mark.strip_prefix(key)).collect::<Vec<&'a str>>();
    Role { name, to: marked("to="), of: marked("of=").first().copied().unwrap_or(""), ..Role::default() }
}

/// `VERBS | API GROUPS | RESOURCES [| NAMES]` or `VERBS | urls PATHS`.
fn rule(line: &str) -> Value {
    let parts: Vec<Vec<&str>> = line.split('|').map(|part| part.split_whitespace().collect()).collect();
    let mut rule = Map::new();
    rule.insert("verbs".to_owned(), json!(parts[0]));
    if let Some(("urls", paths)) = parts[1].split_first().map(|(first, rest)| (*first, rest)) {
        rule.insert("nonResourceURLs".to_owned(), json!(paths));
        return Value::Object(rule);
    }
    let groups: Vec<&str> = parts[1].iter().map(|group| if *group == "core" { "" } else { group }).collect();
    rule.insert("apiGroups".to_owned(), json!(groups));
    rule.insert("resources".to_owned(), json!(parts[2]));
    if let Some(names) = parts.get(3) {
        rule.insert("resourceNames".to_owned(), json!(names));
    }
    Value::Object(rule)
}

/// Roles made of others: `edit` is made of `view`, `admin` of both, so each waits for what it is made of.
fn aggregate(roles: &mut [Role]) {
    let mut collected: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for label in ["view", "edit", "admin"] {
        let part = |role: &&Role| role.to.contains(&label);
        let rules = roles.iter().filter(part).flat_map(|role| match role.of {
            "" => role.rules.clone(),
            of => collected.get(of).cloned().unwrap_or_default(),
        });
        let rules = rules.collect();
        collected.insert(label, rules);
    }
    for role in roles.iter_mut().filter(|role| !role.of.is_empty()) {
        role.rules = collected.remove(role.of).unwrap_or_default();
    }
}

impl Role<'_> {
    fn object(&self) -> Wanted {
        let mut object = json!({"metadata": metadata(self.name), "rules": self.rules});
        for label in &self.to {
            object["metadata"]["labels"][format!("{AGGREGATE}{label}")] = json!("true");
        }
        if !self.of.is_empty() {
            let labels = json!({format!("{AGGREGATE}{}", self.of): "true"});
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        }
        match self.namespace {
            "" => Wanted::cluster(API, "ClusterRole", object),
            namespace => Wanted::namespaced(API, "Role", namespace, object),
        }
    }
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Wanted {
    let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
    let object = json!({
        "metadata": metadata(name),
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
        "subjects": subjects.iter().map(|subject| parse_subject(subject)).collect::<Vec<_>>(),
    });
    match namespace {
        "" => Wanted::cluster(API, "ClusterRoleBinding", object),
        namespace => Wanted::namespaced(API, "RoleBinding", namespace, object),
    }
}

/// `group:NAME`, `user:NAME` or `account:NAMESPACE/NAME`.
fn parse_subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').expect("a subject has a kind");
    match (kind, name.split_once('/')) {
        ("account", Some((namespace, name))) => {
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        ("group", _) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        _ => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::ObjectExt;

    #[test]
    fn the_facts_are_complete() {
        let objects = objects();
        let count = |kind: &str| objects.iter().filter(|one| one.kind == kind).count();
        assert_eq!(
            [count("ClusterRole"), count("ClusterRoleBinding"), count("Role"), count("RoleBinding")],
            [71, 52, 7, 7]
        );
    }

    #[test]
    fn admin_holds_what_edit_and_view_hold() {
        let objects = objects();
        let rules = |name: &str| {
            let role = objects.iter().find(|one| one.kind == "ClusterRole" && one.object.name() == name);
            role.and_then(|role| role.object["rules"].as_array().cloned()).unwrap()
        };
        let (admin, edit, view) = (rules("admin"), rules("edit"), rules("view"));
        assert!(view.iter().all(|rule| edit.contains(rule)));
        assert!(edit.iter().all(|rule| admin.contains(rule)));
        assert!(view.len() < edit.len() && edit.len() < admin.len());
    }

    #[test]
    fn a_rule_with_names_and_one_with_paths() {
        let named = rule("  get | core | configmaps | a b");
        let expected =
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"]});
        assert_eq!(named, expected);
        assert_eq!(rule("  get | urls /healthz"), json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}));
    }
}
