//! What an update of a pod may change: next to nothing once it is made.

use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, required};
use crate::api::validation::{Path, same};
use serde_json::Value;

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// The class of service is decided once.
pub(super) fn keep_qos(new: &mut Object, old: &Object) {
    if let Some(class) = old.at(&["status", "qosClass"]) {
        new.set(&["status", "qosClass"], class.clone());
    }
}

pub(super) fn main(new: &Object, old: &Object) -> Errors {
    let mut errors = Errors::new();
    let none = Value::Null;
    let (new, old) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
    for field in ["containers", "initContainers"] {
        if list(new, field).len() != list(old, field).len() {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(Path::Root("spec").child(field), why));
            return errors;
        }
    }
    deadline(new, old, &mut errors);
    gates(new, old, &mut errors);
    added_tolerations(new, old, &mut errors);
    if !same(Some(&without_changeable(new, old)), Some(old)) {
        // Upstream appends a diff of its Go structs, which nothing but eyes can read; we leave it out.
        errors.push(FieldError::forbidden("spec", CHANGEABLE));
    }
    errors
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    let path = "spec.activeDeadlineSeconds";
    match (new.int_at(&["activeDeadlineSeconds"]), old.int_at(&["activeDeadlineSeconds"])) {
        (Some(new), Some(old)) if old < new => {
            errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Value::Null, why));
        }
        _ => {}
    }
}

fn gates(new: &Value, old: &Value, errors: &mut Errors) {
    let list_path = Path::Root("spec.schedulingGates");
    let before = list(old, "schedulingGates");
    for (place, gate) in list(new, "schedulingGates").iter().enumerate() {
        if !before.contains(gate) {
            let name = gate.str_at(&["name"]);
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(list_path.index(place), why));
        }
    }
}

fn added_tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let identity =
        |toleration: &Value| ["key", "operator", "value", "effect"].map(|field| toleration.str_at(&[field]).to_owned());
    let kept: Vec<_> = list(new, "tolerations").iter().map(identity).collect();
    if !list(old, "tolerations").iter().all(|one| kept.contains(&identity(one))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
}

/// The new spec with what may change set back to what it was.
fn without_changeable(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for field in ["containers", "initContainers"] {
        let containers = munged.get_mut(field).and_then(Value::as_array_mut);
        for (container, old) in containers.into_iter().flatten().zip(list(old, field)) {
            copy(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut munged, old, field);
    }
    let grace = |spec: &Value| spec.int_at(&["terminationGracePeriodSeconds"]);
    if grace(old).is_some_and(|grace| grace < 0) && grace(new) == Some(1) {
        copy(&mut munged, old, "terminationGracePeriodSeconds");
    }
    // A pod that waits at a gate may still be told where to go.
    if !list(old, "schedulingGates").is_empty() && !list(new, "schedulingGates").is_empty() {
        copy(&mut munged, old, "nodeSelector");
        copy(&mut munged, old, "affinity");
    }
    munged
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => to.set(&[field], value.clone()),
        None => drop(to.unset(&[field])),
    }
}

pub(super) fn ephemeral(new: &Object, old: &Object) -> Errors {
    let mut errors = Errors::new();
    let containers = |pod: &Object| pod.get("spec").map(|spec| list(spec, "ephemeralContainers").to_vec());
    let after = containers(new).unwrap_or_default();
    for before in containers(old).unwrap_or_default() {
        let name = before.str_at(&["name"]);
        let why = match after.iter().find(|one| one.str_at(&["name"]) == name) {
            None => format!("existing ephemeral containers {name:?} may not be removed\n"),
            Some(after) if !same(Some(after), Some(&before)) => {
                format!("existing ephemeral containers {name:?} may not be changed\n")
            }
            Some(_) => continue,
        };
        errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
    errors
}

pub(super) fn resize(new: &Object, old: &Object) -> Errors {
    let mut errors = Errors::new();
    if super::qos::class(new) != old.str_at(&["status", "qosClass"]) {
        let class = super::qos::class(new);
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("metadata", class, why));
    }
    errors
}

pub(super) fn status(new: &Object, old: &Object) -> Errors {
    let mut errors = Errors::new();
    let none = Value::Null;
    let list_path = Path::Root("status.conditions");
    for (place, condition) in list(new.get("status").unwrap_or(&none), "conditions").iter().enumerate() {
        required(condition, "type", &list_path.index(place), &mut errors);
    }
    if new.str_at(&["spec", "nodeName"]) != old.str_at(&["spec", "nodeName"]) {
        errors.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
    }
    errors
}
