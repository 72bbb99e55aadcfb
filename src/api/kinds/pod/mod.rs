//! The pod and the pod templates of other kinds: defaults that depend on siblings, validation, what an
//! update may change (k8s.io/kubernetes/pkg/apis/core/validation, pkg/registry/core/pod).

mod container;
mod defaults;
mod qos;
mod scheduling;
mod spec;
mod update;
mod volume;
mod warning;

pub(super) use defaults::default_spec;
pub(super) use scheduling::node_selector;

use super::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list};
use crate::api::validation::{self, Path};
use serde_json::{Value, json};

pub(super) struct PodStrategy;

const SPEC: Path<'static> = Path::Root("spec");

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Object) {
        defaults::default_pod(pod);
    }

    fn prepare_create(&self, context: &HookContext, pod: &mut Object) {
        let mut status = json!({"phase": "Pending", "qosClass": qos::class(pod)});
        if !pod.at(&["spec"]).map(|spec| list(spec, "schedulingGates")).unwrap_or_default().is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": crate::clock::rfc3339(context.now),
            }]);
        }
        pod.set(&["status"], status);
    }

    fn prepare_update(&self, context: &HookContext, new: &mut Object, old: &Object) {
        if context.subresource == "status" {
            update::keep_qos(new, old);
        }
    }

    fn validate(&self, _context: &HookContext, pod: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = pod.get("spec").unwrap_or(&none);
        spec::validate(spec, &SPEC, &mut errors);
        let gated = !list(spec, "schedulingGates").is_empty();
        if gated && !spec.str_at(&["nodeName"]).is_empty() {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.push(FieldError::forbidden("spec.nodeName", why));
        }
        errors
    }

    fn validate_create(&self, _context: &HookContext, pod: &Object) -> Vec<FieldError> {
        let ephemeral = pod.get("spec").map(|spec| list(spec, "ephemeralContainers")).unwrap_or_default();
        if ephemeral.is_empty() {
            return Errors::new();
        }
        vec![FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create")]
    }

    fn validate_update(&self, context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        match context.subresource {
            "ephemeralcontainers" => update::ephemeral(new, old),
            "resize" => update::resize(new, old),
            _ => update::main(new, old),
        }
    }

    fn validate_status_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        update::status(new, old)
    }

    fn warnings(&self, pod: &Object, _old: Option<&Object>) -> Vec<String> {
        pod.get("spec").map(|spec| warning::of_spec(spec, &SPEC)).unwrap_or_default()
    }

    fn grace_s(&self, pod: &Object) -> Option<i64> {
        let has_ended = matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed");
        if has_ended || pod.str_at(&["spec", "nodeName"]).is_empty() {
            return Some(0);
        }
        match pod.int_at(&["spec", "terminationGracePeriodSeconds"]) {
            // A negative grace, allowed once, now means the least there is.
            Some(..0) => Some(1),
            grace => Some(grace.unwrap_or(0)),
        }
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// A `PodTemplateSpec`.
pub(super) fn validate_template(template: &Value, path: &Path, errors: &mut Errors) {
    let metadata = path.child("metadata");
    validation::labels(template.at(&["metadata", "labels"]), &metadata.child("labels"), errors);
    validation::annotations(template.at(&["metadata", "annotations"]), &metadata.child("annotations"), errors);
    let none = Value::Null;
    let spec = template.get("spec").unwrap_or(&none);
    spec::validate(spec, &path.child("spec"), errors);
    if !list(spec, "ephemeralContainers").is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(path.child("spec.ephemeralContainers"), why));
    }
}

/// Warnings about the template of a workload.
pub(super) fn template_warnings(object: &Object, path: &[&str]) -> Vec<String> {
    let dotted = path.join(".");
    object.at(path).map(|spec| warning::of_spec(spec, &Path::Root(&dotted))).unwrap_or_default()
}

#[cfg(test)]
mod tests;
