//! autoscaling/v1 HorizontalPodAutoscaler from and to v2: the CPU target is a field of v1, all other
//! metrics, the behaviour and the conditions travel in annotations, as upstream does it.

use crate::api::kinds::Convert;
use crate::api::object::{Object, ObjectExt};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct Conversion;

const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

impl Convert for Conversion {
    fn to_storage(&self, object: &mut Object) {
        let mut metrics = take_annotation(object, METRICS).and_then(into_list).unwrap_or_default();
        if let Some(percent) = object.unset(&["spec", "targetCPUUtilizationPercentage"]) {
            metrics.insert(0, cpu_metric(&percent));
        }
        if !metrics.is_empty() {
            object.set(&["spec", "metrics"], metrics.into());
        }
        let mut current = take_annotation(object, CURRENT_METRICS).and_then(into_list).unwrap_or_default();
        if let Some(percent) = object.unset(&["status", "currentCPUUtilizationPercentage"]) {
            current.insert(0, current_cpu_metric(&percent));
        }
        if !current.is_empty() {
            object.set(&["status", "currentMetrics"], current.into());
        }
        for (annotation, path) in [(BEHAVIOR, ["spec", "behavior"]), (CONDITIONS, ["status", "conditions"])] {
            if let Some(value) = take_annotation(object, annotation) {
                object.set(&path, value);
            }
        }
        object.set(&["apiVersion"], "autoscaling/v2".into());
    }

    fn from_storage(&self, object: &mut Object) {
        let mut metrics = object.unset(&["spec", "metrics"]).and_then(into_list).unwrap_or_default();
        if let Some(percent) = remove_cpu(&mut metrics, &["resource", "target", "averageUtilization"]) {
            object.set(&["spec", "targetCPUUtilizationPercentage"], percent);
        }
        put_annotation(object, METRICS, metrics);
        let mut current = object.unset(&["status", "currentMetrics"]).and_then(into_list).unwrap_or_default();
        if let Some(percent) = remove_cpu(&mut current, &["resource", "current", "averageUtilization"]) {
            object.set(&["status", "currentCPUUtilizationPercentage"], percent);
        }
        put_annotation(object, CURRENT_METRICS, current);
        let conditions = object.unset(&["status", "conditions"]).and_then(into_list).unwrap_or_default();
        put_annotation(object, CONDITIONS, conditions);
        if let Some(behavior) = object.unset(&["spec", "behavior"]).filter(|value| !value.is_null()) {
            set_annotation(object, BEHAVIOR, &behavior);
        }
        if object.at(&["status", "currentReplicas"]).is_none() && object.get("status").is_some() {
            object.set(&["status", "currentReplicas"], 0.into());
        }
        object.set(&["apiVersion"], "autoscaling/v1".into());
    }
}

fn cpu_metric(percent: &Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn current_cpu_metric(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}})
}

/// Takes the CPU utilization out of the metrics, for it has a field of its own in v1.
fn remove_cpu(metrics: &mut Vec<Value>, path: &[&str]) -> Option<Value> {
    let is_cpu = |metric: &Value| metric.str_at(&["resource", "name"]) == "cpu" && metric.at(path).is_some();
    let place = metrics.iter().position(is_cpu)?;
    metrics.remove(place).at(path).cloned()
}

fn into_list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn take_annotation(object: &mut Object, name: &str) -> Option<Value> {
    let text = object.unset(&["metadata", "annotations", name])?;
    if object.at(&["metadata", "annotations"]).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
        object.unset(&["metadata", "annotations"]);
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn put_annotation(object: &mut Object, name: &str, items: Vec<Value>) {
    if !items.is_empty() {
        set_annotation(object, name, &Value::Array(items));
    }
}

fn set_annotation(object: &mut Object, name: &str, value: &Value) {
    object.set(&["metadata", "annotations", name], value.to_string().into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_target_is_a_field_and_the_rest_travels_in_annotations() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            ], "behavior": {"scaleDown": {"selectPolicy": "Min"}}},
            "status": {"currentReplicas": 1, "desiredReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let mut object = stored.clone();
        Conversion.from_storage(&mut object);
        assert_eq!(object["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(object["status"], json!({"currentReplicas": 1, "desiredReplicas": 1}));
        Conversion.to_storage(&mut object);
        assert_eq!(object, stored);
    }
}
