//! Validation of where a pod may run: affinity, tolerations, spread, gates.

use crate::api::object::ObjectExt;
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, in_range, list, one_of, optional_one_of, present};
use crate::api::validation::{self, Path, invalid, name};
use serde_json::Value;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(affinity) = present(spec, "affinity") else { return };
    let path = path.child("affinity");
    if let Some(node) = present(affinity, "nodeAffinity") {
        node_affinity(node, &path.child("nodeAffinity"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if let Some(pods) = present(affinity, kind) {
            pod_affinity(pods, &path.child(kind), errors);
        }
    }
}

fn node_affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    if let Some(required) = present(affinity, REQUIRED) {
        node_selector(required, &path.child(REQUIRED), errors);
    }
    let list_path = path.child(PREFERRED);
    for (place, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = list_path.index(place);
        weight(term, &path, errors);
        if let Some(preference) = present(term, "preference") {
            node_term(preference, &path.child("preference"), errors);
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = term.int_at(&["weight"]).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(path.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// `core/v1.NodeSelector`, also of persistent volumes.
pub(in crate::api::kinds) fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(list_path, "must have at least one node selector term"));
    }
    for (place, term) in terms.iter().enumerate() {
        node_term(term, &list_path.index(place), errors);
    }
}

fn node_term(term: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("matchExpressions");
    for (place, requirement) in list(term, "matchExpressions").iter().enumerate() {
        node_requirement(requirement, &list_path.index(place), errors);
    }
    let list_path = path.child("matchFields");
    for (place, requirement) in list(term, "matchFields").iter().enumerate() {
        let path = list_path.index(place);
        if list(requirement, "values").len() != 1 {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(path.child("values"), why));
        }
        if requirement.str_at(&["key"]) != "metadata.name" {
            let why = "not a valid field selector key";
            errors.push(FieldError::invalid(path.child("key"), requirement.str_at(&["key"]), why));
        }
    }
}

fn node_requirement(requirement: &Value, path: &Path, errors: &mut Errors) {
    let values = list(requirement, "values");
    let operator = requirement.str_at(&["operator"]);
    match operator {
        "In" | "NotIn" if values.is_empty() => errors
            .push(FieldError::required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "Gt" | "Lt" if values.len() != 1 => errors.push(FieldError::required(
            path.child("values"),
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => errors.push(FieldError::invalid(path.child("operator"), operator, "not a valid selector operator")),
    }
    let key = requirement.str_at(&["key"]);
    invalid(&path.child("key"), key, name::qualified(key), errors);
}

fn pod_affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child(REQUIRED);
    for (place, term) in list(affinity, REQUIRED).iter().enumerate() {
        pod_term(term, &list_path.index(place), errors);
    }
    let list_path = path.child(PREFERRED);
    for (place, weighted) in list(affinity, PREFERRED).iter().enumerate() {
        let path = list_path.index(place);
        weight(weighted, &path, errors);
        if let Some(term) = present(weighted, "podAffinityTerm") {
            pod_term(term, &path.child("podAffinityTerm"), errors);
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = present(term, field) {
            validation::label_selector(selector, &path.child(field), errors);
        }
    }
    for namespace in list(term, "namespaces").iter().filter_map(Value::as_str) {
        invalid(&path.child("namespace"), namespace, name::label(namespace), errors);
    }
    topology_key(term, path, errors);
}

fn topology_key(holder: &Value, path: &Path, errors: &mut Errors) {
    match holder.str_at(&["topologyKey"]) {
        "" => errors.push(FieldError::required(path.child("topologyKey"), "can not be empty")),
        key => invalid(&path.child("topologyKey"), key, name::qualified(key), errors),
    }
}

pub(super) fn gates(spec: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("schedulingGates");
    let mut seen = Vec::new();
    for (place, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let (path, name) = (list_path.index(place), gate.str_at(&["name"]));
        invalid(&path, name, name::qualified(name), errors);
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, name));
        }
        seen.push(name);
    }
    let list_path = path.child("readinessGates");
    for (place, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = gate.str_at(&["conditionType"]);
        invalid(&list_path.index(place).child("conditionType"), kind, name::qualified(kind), errors);
    }
}

pub(super) fn topology_spread(spec: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("topologySpreadConstraints");
    let mut seen = Vec::new();
    for (place, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = list_path.index(place);
        let skew = constraint.int_at(&["maxSkew"]).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(path.child("maxSkew"), skew, "must be greater than zero"));
        }
        topology_key(constraint, &path, errors);
        one_of(constraint, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], &path, errors);
        let pair = (constraint.str_at(&["topologyKey"]), constraint.str_at(&["whenUnsatisfiable"]));
        if seen.contains(&pair) {
            let why = format!("{{{}, {}}}", pair.0, pair.1);
            errors.push(FieldError::duplicate(path.child("{topologyKey, whenUnsatisfiable}"), why));
        }
        seen.push(pair);
        if constraint.int_at(&["minDomains"]).is_some() {
            in_range(constraint, "minDomains", (1, i64::from(i32::MAX)), &path, errors);
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            optional_one_of(constraint, field, &["Honor", "Ignore"], &path, errors);
        }
        if let Some(selector) = present(constraint, "labelSelector") {
            validation::label_selector(selector, &path.child("labelSelector"), errors);
        }
    }
}

pub(super) fn tolerations(tolerations: &[Value], list_path: &Path, errors: &mut Errors) {
    for (place, toleration) in tolerations.iter().enumerate() {
        let path = list_path.index(place);
        let text = |field| toleration.str_at(&[field]);
        let (key, operator, value) = (text("key"), text("operator"), text("value"));
        if !key.is_empty() {
            invalid(&path.child("key"), key, name::qualified(key), errors);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(path.child("operator"), operator, why));
        }
        if present(toleration, "tolerationSeconds").is_some() && text("effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(path.child("effect"), text("effect"), why));
        }
        match operator {
            "" | "Equal" => {
                let problems = name::label_value(value);
                if !problems.is_empty() {
                    errors.push(FieldError::invalid(path.child("operator"), value, problems.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(path.child("operator"), toleration.clone(), why));
            }
            "Exists" => {}
            _ => errors.push(FieldError::not_supported(path.child("operator"), operator, &["Equal", "Exists"])),
        }
        optional_one_of(toleration, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"], &path, errors);
    }
}
