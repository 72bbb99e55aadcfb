//! Nobody grants what they do not have: writes of roles and bindings are held against the writer's own rules,
//! unless `escalate` (roles) or `bind` (bindings) is among them. Behaviour of upstream's policybased storages.

use super::rbac::{Attributes, Rule, RuleList};
use super::{Auth, MASTERS};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status, Subject};
use crate::registry::User;
use std::fmt::Write;

/// What of a role or binding gives rights.
const ROLE_PARTS: [&str; 2] = ["rules", "aggregationRule"];
const BINDING_PARTS: [&str; 2] = ["roleRef", "subjects"];

/// Whether writes of this kind are looked at.
pub fn guards(kind: &Kind, user: &User) -> bool {
    kind.group == "rbac.authorization.k8s.io" && !user.groups.iter().any(|group| group == MASTERS)
}

impl Auth {
    /// `new` is what would be stored, `old` what is.
    pub async fn check_grant(
        &self,
        user: &User,
        kind: &Kind,
        namespace: &str,
        new: &Object,
        old: Option<&Object>,
    ) -> Result<()> {
        let binding = matches!(&*kind.plural, "rolebindings" | "clusterrolebindings");
        let parts = if binding { BINDING_PARTS } else { ROLE_PARTS };
        if old.is_some_and(|old| parts.iter().all(|part| old.get(part) == new.get(part))) {
            return Ok(());
        }
        let (verb, resource, name) = match binding {
            true if new.str_at(&["roleRef", "kind"]) == "Role" => ("bind", "roles", new.str_at(&["roleRef", "name"])),
            true => ("bind", "clusterroles", new.str_at(&["roleRef", "name"])),
            false => ("escalate", &*kind.plural, new.name()),
        };
        let group = &*kind.group;
        let wanted = Attributes { is_resource: true, verb, group, resource, namespace, name, ..Attributes::default() };
        if self.access(user, &wanted).await.allowed {
            return Ok(());
        }
        let granted = if binding { self.rbac.rules_of_role(resource, namespace, name).await } else { rules_of(new) };
        if !granted.missing.is_empty() {
            return Err(Status::not_found(Subject { group, kind: resource, name }));
        }
        let own = self.rbac.rules_of(user, namespace).await;
        let subject = Subject { group, kind: &kind.plural, name: new.name() };
        refuse_uncovered(user, subject, &granted, &own)
    }
}

fn rules_of(role: &Object) -> RuleList {
    let listed = |field: &str| role.get(field).cloned().unwrap_or_default();
    let mut rules: Vec<Rule> = serde_json::from_value(listed("rules")).unwrap_or_default();
    // What it will gather is not known yet: only who has everything may set it up.
    if !listed("aggregationRule").is_null() {
        rules.push(Rule::everything());
        rules.push(Rule::every_url());
    }
    RuleList { rules, missing: Vec::new() }
}

fn refuse_uncovered(user: &User, subject: Subject, granted: &RuleList, own: &RuleList) -> Result<()> {
    let uncovered: Vec<Rule> = granted.rules.iter().flat_map(atoms).filter(|atom| !covered(atom, &own.rules)).collect();
    if uncovered.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:",
        user.name, user.groups
    );
    for rule in &uncovered {
        write!(why, "\n{}", rule.printed()).expect("a String takes every write");
    }
    Err(Status::forbidden(subject, &why))
}

/// One rule per verb and per group, resource and name, or URL.
fn atoms(rule: &Rule) -> Vec<Rule> {
    let one = |text: &str| -> Box<[Box<str>]> { Box::new([text.into()]) };
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            atoms.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom =
                    Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                if rule.resource_names.is_empty() {
                    atoms.push(atom);
                    continue;
                }
                let named = |name: &str| Rule { resource_names: one(name), ..atom.clone() };
                atoms.extend(rule.resource_names.iter().map(|name| named(name)));
            }
        }
    }
    atoms
}

/// `*` is covered by `*` alone: the words are compared as they are.
fn covered(atom: &Rule, own: &[Rule]) -> bool {
    own.iter().any(|rule| {
        let has = |list: &[Box<str>], wanted: &[Box<str>]| {
            wanted.iter().all(|one| list.iter().any(|known| &**known == "*" || known == one))
        };
        if !has(&rule.verbs, &atom.verbs) {
            return false;
        }
        if let Some(url) = atom.non_resource_urls.first() {
            let covers =
                |known: &str| known == &**url || known.strip_suffix('*').is_some_and(|head| url.starts_with(head));
            return rule.non_resource_urls.iter().any(|known| covers(known));
        }
        let names = rule.resource_names.is_empty()
            || (!atom.resource_names.is_empty() && has(&rule.resource_names, &atom.resource_names));
        names && has(&rule.api_groups, &atom.api_groups) && atom.resources.iter().all(|one| covers_resource(rule, one))
    })
}

fn covers_resource(rule: &Rule, wanted: &str) -> bool {
    rule.resources.iter().any(|known| {
        let any_parent =
            known.strip_prefix("*/").is_some_and(|sub| wanted.rsplit_once('/').is_some_and(|(_, own)| own == sub));
        &**known == "*" || &**known == wanted || any_parent
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: serde_json::Value) -> Rule {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_covered() {
        let own = [
            rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]})),
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]})),
            rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz*"]})),
        ];
        let cases = [
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), true),
            (json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}), false),
            (json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}), false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"]}), false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["rc/scale"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), false),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/x"]}), true),
            (json!({"verbs": ["*"], "nonResourceURLs": ["/healthz/x"]}), false),
        ];
        for (wanted, expected) in cases {
            let all = atoms(&rule(wanted.clone())).iter().all(|atom| covered(atom, &own));
            assert_eq!(all, expected, "{wanted}");
        }
    }
}
