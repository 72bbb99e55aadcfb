//! Roles and bindings.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, required};
use crate::api::validation::{self, Path, invalid, name, same};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(in crate::api::kinds) struct RoleStrategy {
    pub cluster: bool,
}

impl Strategy for RoleStrategy {
    fn validate(&self, _context: &HookContext, role: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let rules = Path::Root("rules");
        for (place, rule) in list(role, "rules").iter().enumerate() {
            policy_rule(rule, !self.cluster, &rules.index(place), &mut errors);
        }
        let selectors = role.get("aggregationRule").filter(|rule| !rule.is_null());
        if let (true, Some(rule)) = (self.cluster, selectors) {
            let list_path = Path::Root("aggregationRule.clusterRoleSelectors");
            let selectors = list(rule, "clusterRoleSelectors");
            if selectors.is_empty() {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(FieldError::required(list_path, why));
            }
            for (place, selector) in selectors.iter().enumerate() {
                validation::label_selector(selector, &list_path.index(place), &mut errors);
            }
        }
        errors
    }
}

fn policy_rule(rule: &Value, is_namespaced: bool, path: &Path, errors: &mut Errors) {
    if list(rule, "verbs").is_empty() {
        errors.push(FieldError::required(path.child("verbs"), "verbs must contain at least one value"));
    }
    let urls = list(rule, "nonResourceURLs");
    if !urls.is_empty() {
        let urls_path = path.child("nonResourceURLs");
        if is_namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            errors.push(FieldError::invalid(urls_path, urls.to_vec(), why));
        }
        let others = ["apiGroups", "resources", "resourceNames"];
        if others.into_iter().any(|field| !list(rule, field).is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(urls_path, urls.to_vec(), why));
        }
        return;
    }
    if list(rule, "apiGroups").is_empty() {
        let why = "resource rules must supply at least one api group";
        errors.push(FieldError::required(path.child("apiGroups"), why));
    }
    if list(rule, "resources").is_empty() {
        let why = "resource rules must supply at least one resource";
        errors.push(FieldError::required(path.child("resources"), why));
    }
}

pub(in crate::api::kinds) struct BindingStrategy {
    pub cluster: bool,
}

impl Strategy for BindingStrategy {
    fn validate(&self, _context: &HookContext, binding: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let path = Path::Root("roleRef");
        let none = Value::Null;
        let role = binding.get("roleRef").unwrap_or(&none);
        let group = role.str_at(&["apiGroup"]);
        if group != GROUP {
            errors.push(FieldError::not_supported(path.child("apiGroup"), group, &[GROUP]));
        }
        let kind = role.str_at(&["kind"]);
        let kinds: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if !kinds.contains(&kind) {
            errors.push(FieldError::not_supported(path.child("kind"), kind, kinds));
        }
        let name = required(role, "name", &path, &mut errors);
        invalid(&path.child("name"), name, name::path_segment(name), &mut errors);
        let subjects = Path::Root("subjects");
        for (place, one) in list(binding, "subjects").iter().enumerate() {
            subject(one, !self.cluster, &subjects.index(place), &mut errors);
        }
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        if same(new.get("roleRef"), old.get("roleRef")) {
            return Vec::new();
        }
        // Upstream prints its internal struct, whose fields have Go's names.
        let part = |field| new.str_at(&["roleRef", field]);
        let value = json!({"APIGroup": part("apiGroup"), "Kind": part("kind"), "Name": part("name")});
        vec![FieldError::invalid("roleRef", value, "cannot change roleRef")]
    }
}

fn subject(subject: &Value, is_namespaced: bool, path: &Path, errors: &mut Errors) {
    let name = required(subject, "name", path, errors);
    let (kind, group) = (subject.str_at(&["kind"]), subject.str_at(&["apiGroup"]));
    let expected = match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                invalid(&path.child("name"), name, name::subdomain(name), errors);
            }
            if !is_namespaced && subject.str_at(&["namespace"]).is_empty() {
                errors.push(FieldError::required(path.child("namespace"), ""));
            }
            ""
        }
        "User" | "Group" => GROUP,
        _ => {
            let kinds = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(path.child("kind"), kind, &kinds));
            return;
        }
    };
    if group != expected {
        errors.push(FieldError::not_supported(path.child("apiGroup"), group, &[expected]));
    }
}
