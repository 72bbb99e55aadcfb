//! Horizontal pod autoscalers. v1 is judged as the v2 object it is stored as.

use crate::api::kinds::apps::replicas::{SPEC, reset_status};
use crate::api::kinds::{Convert, HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, one_of, required};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct AutoscalerStrategy;

impl Strategy for AutoscalerStrategy {
    fn default(&self, object: &mut Object) {
        if object.get("spec").is_some_and(|spec| list(spec, "metrics").is_empty()) {
            object.set(
                &["spec", "metrics"],
                json!([{"type": "Resource", "resource": {
                    "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
                }}]),
            );
        }
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({"desiredReplicas": 0, "currentMetrics": null}));
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        autoscaler(object)
    }
}

pub(in crate::api::kinds) struct AutoscalerV1Strategy;

impl Strategy for AutoscalerV1Strategy {
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({"currentReplicas": 0, "desiredReplicas": 0}));
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut newer = object.clone();
        super::v1::Conversion.to_storage(&mut newer);
        autoscaler(&newer)
    }
}

fn autoscaler(object: &Object) -> Errors {
    let mut errors = Errors::new();
    let none = Value::Null;
    let spec = object.get("spec").unwrap_or(&none);
    if let Some(least @ ..1) = spec.int_at(&["minReplicas"]) {
        errors.push(FieldError::invalid("spec.minReplicas", least, "must be greater than or equal to 1"));
    }
    let greatest = spec.int_at(&["maxReplicas"]).unwrap_or(0);
    if greatest < 1 {
        errors.push(FieldError::required("spec.maxReplicas", "must be set and greater than 0"));
    }
    if spec.int_at(&["minReplicas"]).is_some_and(|least| greatest < least) {
        let why = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", greatest, why));
    }
    let target = spec.get("scaleTargetRef").unwrap_or(&none);
    let path = SPEC.child("scaleTargetRef");
    required(target, "kind", &path, &mut errors);
    required(target, "name", &path, &mut errors);
    let version = target.str_at(&["apiVersion"]);
    if !version.contains('/') && version != "v1" {
        errors.push(FieldError::invalid(path.child("apiVersion"), version, "apiVersion must specify API group"));
    }
    let list_path = SPEC.child("metrics");
    for (place, metric) in list(spec, "metrics").iter().enumerate() {
        let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        one_of(metric, "type", &kinds, &list_path.index(place), &mut errors);
    }
    errors
}
