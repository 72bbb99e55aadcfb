//! What all kinds with a pod template have in common: status, selector, template.

use crate::api::kinds::pod;
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::Selector;
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, present};
use crate::api::validation::{self, Path, is_empty};
use crate::api::view::meta;
use serde::Deserialize;
use serde_json::{Value, json};

pub(in crate::api::kinds) const SPEC: Path<'static> = Path::Root("spec");

/// Defaults of the pods to be.
pub(in crate::api::kinds) fn default_template(object: &mut Object, path: &[&str]) {
    let place = path.iter().try_fold(object, |value, part| value.get_mut(*part));
    if let Some(spec) = place.filter(|spec| spec.is_object()) {
        pod::default_spec(spec);
    }
}

/// A new object has the status that its controller has not written yet.
pub(in crate::api::kinds) fn reset_status(object: &mut Object, status: Value) {
    object.set(&["status"], status);
}

/// `spec.selector`: there, valid, and not empty.
pub(in crate::api::kinds) fn selector(spec: &Value, kind: &str, errors: &mut Errors) -> Option<Selector> {
    let path = SPEC.child("selector");
    let Some(value) = present(spec, "selector") else {
        errors.push(FieldError::required(path, ""));
        return None;
    };
    validation::label_selector(value, &path, errors);
    if is_empty(value) {
        let why = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid(path, value.clone(), why));
    }
    let parsed = meta::LabelSelector::deserialize(value).ok().and_then(|view| Selector::from_view(&view).ok());
    if parsed.is_none() {
        errors.push(FieldError::invalid(path, value.clone(), "invalid label selector"));
    }
    parsed
}

/// `spec.template` of pods that run for ever. An absent selector matches nothing.
pub(in crate::api::kinds) fn template(spec: &Value, selector: Option<&Selector>, what: &str, errors: &mut Errors) {
    let none = Value::Null;
    let template = spec.get("template").unwrap_or(&none);
    let path = SPEC.child("template");
    let matches = selector.is_some_and(|selector| selector.matches_object(template));
    if !matches {
        let labels = template.at(&["metadata", "labels"]).cloned().unwrap_or_default();
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(path.child("metadata.labels"), labels, why));
    }
    pod::validate_template(template, &path, errors);
    let policy = template.str_at(&["spec", "restartPolicy"]);
    if !policy.is_empty() && policy != "Always" {
        errors.push(FieldError::not_supported(path.child("spec.restartPolicy"), policy, &["Always"]));
    }
    if template.at(&["spec", "activeDeadlineSeconds"]).is_some_and(|value| !value.is_null()) {
        let why = format!("activeDeadlineSeconds in {what} is not Supported");
        errors.push(FieldError::forbidden(path.child("spec.activeDeadlineSeconds"), why));
    }
}

/// A field of the spec that may not change.
pub(in crate::api::kinds) fn immutable(field: &str, new: &Object, old: &Object, errors: &mut Errors) {
    let (new, old) = (new.at(&["spec", field]), old.at(&["spec", field]));
    validation::immutable(&SPEC.child(field), new, old, errors);
}

pub(in crate::api::kinds) fn no_status() -> Value {
    json!({})
}
