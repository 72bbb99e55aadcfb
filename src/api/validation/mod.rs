//! Validation that all kinds share: metadata, names, labels, selectors, in upstream's words and
//! field paths (k8s.io/apimachinery/pkg/api/validation). What a kind adds is in its strategy.

pub mod check;
pub mod name;
mod path;

pub use path::Path;

use super::kinds::{Kind, NameRule};
use super::object::{Object, ObjectExt};
use super::status::FieldError;
use serde_json::Value;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const ANNOTATIONS_LIMIT_BYTES: usize = 256 << 10;
const METADATA: Path<'static> = Path::Root("metadata");

/// The metadata of an object to be created.
pub fn metadata(kind: &Kind, object: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, prefix) = (object.name(), object.str_at(&["metadata", "generateName"]));
    if !prefix.is_empty() {
        // The server adds five characters to it, so a trailing dash does no harm.
        let problems = name_problems(kind.name_rule, &mask_trailing_dash(prefix));
        invalid(&METADATA.child("generateName"), prefix, problems, &mut errors);
    }
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        invalid(&METADATA.child("name"), name, name_problems(kind.name_rule, name), &mut errors);
    }
    let namespace = object.namespace();
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required("metadata.namespace", "")),
        (true, false) => invalid(&METADATA.child("namespace"), namespace, name::label(namespace), &mut errors),
        (false, false) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
        (false, true) => {}
    }
    common_metadata(object, &mut errors);
    errors
}

/// The metadata of an object to be replaced. Whether `resourceVersion` is needed, the registry knows.
pub fn metadata_update(_kind: &Kind, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.deletion_timestamp().is_some() {
        let before = old.finalizers();
        let added: Vec<String> =
            new.finalizers().into_iter().filter(|one| !before.contains(one)).map(|one| format!("{one:?}")).collect();
        if !added.is_empty() {
            let found = added.join(", ");
            errors.push(FieldError::forbidden("metadata.finalizers", format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{found}}}"
            )));
        }
    }
    if new.generation() < old.generation() {
        errors.push(FieldError::invalid("metadata.generation", new.generation(), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        immutable(&METADATA.child(field), new.at(&["metadata", field]), old.at(&["metadata", field]), &mut errors);
    }
    common_metadata(new, &mut errors);
    errors
}

fn common_metadata(object: &Object, errors: &mut Vec<FieldError>) {
    if object.generation() < 0 {
        errors.push(FieldError::invalid("metadata.generation", object.generation(), NOT_NEGATIVE));
    }
    labels(object.at(&["metadata", "labels"]), &METADATA.child("labels"), errors);
    annotations(object.at(&["metadata", "annotations"]), &METADATA.child("annotations"), errors);
    owner_references(object.owner_references(), errors);
    finalizers(&object.finalizers(), errors);
}

/// What is wrong with a name under a rule.
pub fn name_problems(rule: NameRule, value: &str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => name::subdomain(value),
        NameRule::Label => name::label(value),
        NameRule::Label1035 => name::label_1035(value),
        NameRule::PathSegment => name::path_segment(value),
    }
}

fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

/// One `Invalid` per problem.
pub fn invalid(path: &Path, value: &str, problems: Vec<String>, errors: &mut Vec<FieldError>) {
    errors.extend(problems.into_iter().map(|problem| FieldError::invalid(path, value, problem)));
}

/// A field that may not change. `null`, absent and empty are the same.
pub fn immutable(path: &Path, new: Option<&Value>, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !same(new, old) {
        errors.push(FieldError::invalid(path, new.cloned().unwrap_or_default(), IMMUTABLE));
    }
}

/// Equality where `null`, absent, `""`, `[]` and `{}` are the same, at any depth.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.filter(|value| !is_empty(value)), b.filter(|value| !is_empty(value))) {
        (None, None) => true,
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter().all(|(key, value)| same(Some(value), b.get(key)))
                && b.iter().all(|(key, value)| a.contains_key(key) || is_empty(value))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b,
    }
}

/// `null`, `""`, `[]`, `{}` and what holds nothing else.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

pub fn labels(labels: Option<&Value>, path: &Path, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        invalid(path, key, name::qualified(key), errors);
        let value = value.as_str().unwrap_or_default();
        invalid(path, value, name::label_value(value), errors);
    }
}

pub fn annotations(annotations: Option<&Value>, path: &Path, errors: &mut Vec<FieldError>) {
    let mut size_bytes = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Upstream has ever allowed upper case in the prefix here.
        invalid(path, key, name::qualified(&key.to_lowercase()), errors);
        size_bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if size_bytes > ANNOTATIONS_LIMIT_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_LIMIT_BYTES));
    }
}

fn owner_references(references: &[Value], errors: &mut Vec<FieldError>) {
    let list = METADATA.child("ownerReferences");
    let mut controller = "";
    for (place, reference) in references.iter().enumerate() {
        let path = list.index(place);
        let api_version = reference.str_at(&["apiVersion"]);
        if api_version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(FieldError::invalid(path.child("apiVersion"), api_version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if reference.str_at(&[field]).is_empty() {
                errors.push(FieldError::invalid(path.child(field), "", "must not be empty"));
            }
        }
        if api_version == "v1" && reference.str_at(&["kind"]) == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, reference.clone(), why));
        }
        if reference.at(&["controller"]) == Some(&Value::Bool(true)) {
            let name = reference.str_at(&["name"]);
            if !controller.is_empty() {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                );
                errors.push(FieldError::invalid(list, references.to_vec(), why));
            }
            controller = name;
        }
    }
}

fn finalizers(names: &[&str], errors: &mut Vec<FieldError>) {
    let list = METADATA.child("finalizers");
    for finalizer in names {
        invalid(&list, finalizer, name::qualified(finalizer), errors);
    }
    for (place, finalizer) in names.iter().enumerate() {
        kube_finalizer(&list.index(place), finalizer, errors);
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(list, names.to_vec(), why));
    }
}

/// A finalizer without a prefix must be one that Kubernetes knows.
pub fn kube_finalizer(path: &Path, finalizer: &str, errors: &mut Vec<FieldError>) {
    if !finalizer.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(FieldError::invalid(path, finalizer, why));
    }
}

/// `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    labels(selector.get("matchLabels"), &path.child("matchLabels"), errors);
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    let list = path.child("matchExpressions");
    for (place, requirement) in expressions.into_iter().flatten().enumerate() {
        label_requirement(requirement, &list.index(place), errors);
    }
}

fn label_requirement(requirement: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let values = requirement.get("values").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (operator, key) = (requirement.str_at(&["operator"]), requirement.str_at(&["key"]));
    match operator {
        "In" | "NotIn" if values.is_empty() => errors
            .push(FieldError::required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.push(FieldError::invalid(path.child("operator"), operator, "not a valid selector operator")),
    }
    invalid(&path.child("key"), key, name::qualified(key), errors);
    let list = path.child("values");
    for (place, value) in values.iter().filter_map(Value::as_str).enumerate() {
        invalid(&list.index(place), value, name::label_value(value), errors);
    }
}

#[cfg(test)]
mod tests;
