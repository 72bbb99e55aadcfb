//! Strategies of Deployments, ReplicaSets, StatefulSets, DaemonSets and replication controllers.

use super::replicas::{SPEC, default_template, immutable, no_status, reset_status, selector, template};
use crate::api::kinds::{HookContext, Strategy, pod};
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::Selector;
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, int_or_percent, non_negative, optional_one_of, present};
use crate::api::validation::{self, Path, same};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const TEMPLATE_SPEC: &[&str] = &["spec", "template", "spec"];

fn spec_of(object: &Object) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

pub(in crate::api::kinds) struct DeploymentStrategy;

impl Strategy for DeploymentStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, TEMPLATE_SPEC);
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, no_status());
    }

    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = spec_of(object);
        non_negative(spec, "replicas", &SPEC, &mut errors);
        let selector = selector(spec, "deployment", &mut errors);
        template(spec, selector.as_ref(), "ReplicaSet", &mut errors);
        deployment_strategy(spec, &mut errors);
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            non_negative(spec, field, &SPEC, &mut errors);
        }
        let deadline_s = spec.int_at(&["progressDeadlineSeconds"]);
        if let Some(deadline_s) = deadline_s
            && deadline_s <= spec.int_at(&["minReadySeconds"]).unwrap_or(0)
        {
            let path = SPEC.child("progressDeadlineSeconds");
            errors.push(FieldError::invalid(path, deadline_s, "must be greater than minReadySeconds"));
        }
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable("selector", new, old, &mut errors);
        errors
    }
    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        counts(new, &["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"])
    }
    fn warnings(&self, object: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(object, TEMPLATE_SPEC)
    }
    fn has_generation(&self) -> bool {
        true
    }
}

fn deployment_strategy(spec: &Value, errors: &mut Errors) {
    let Some(strategy) = present(spec, "strategy") else { return };
    let path = SPEC.child("strategy");
    let rolling = present(strategy, "rollingUpdate");
    let rolling_path = path.child("rollingUpdate");
    match (strategy.str_at(&["type"]), rolling) {
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(rolling_path, why));
        }
        ("RollingUpdate", None) => {
            errors.push(FieldError::required(rolling_path, "this should be defaulted and never be nil"));
        }
        ("RollingUpdate", Some(rolling)) => rolling_update(rolling, &rolling_path, errors),
        _ => optional_one_of(strategy, "type", &["Recreate", "RollingUpdate"], &path, errors),
    }
}

fn rolling_update(rolling: &Value, path: &Path, errors: &mut Errors) {
    let unavailable = int_or_percent(rolling.get("maxUnavailable"), &path.child("maxUnavailable"), errors);
    let surge = int_or_percent(rolling.get("maxSurge"), &path.child("maxSurge"), errors);
    if (unavailable, surge) == (Some(0), Some(0)) {
        let value = rolling.get("maxUnavailable").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(path.child("maxUnavailable"), value, "may not be 0 when `maxSurge` is 0"));
    }
    let percent = rolling.get("maxUnavailable").filter(|value| value.is_string());
    if let (Some(value), Some(101..)) = (percent, unavailable) {
        let why = "must not be greater than 100%";
        errors.push(FieldError::invalid(path.child("maxUnavailable"), value.clone(), why));
    }
}

/// Counts of a status are not negative.
fn counts(object: &Object, fields: &[&str]) -> Errors {
    let mut errors = Errors::new();
    let status = object.get("status").unwrap_or(&Value::Null);
    for field in fields {
        non_negative(status, field, &Path::Root("status"), &mut errors);
    }
    errors
}

pub(in crate::api::kinds) struct ReplicaSetStrategy;

impl Strategy for ReplicaSetStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, TEMPLATE_SPEC);
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({"replicas": 0}));
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = spec_of(object);
        non_negative(spec, "replicas", &SPEC, &mut errors);
        non_negative(spec, "minReadySeconds", &SPEC, &mut errors);
        // Upstream's own word for it.
        let selector = selector(spec, "deployment", &mut errors);
        template(spec, selector.as_ref(), "ReplicaSet", &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable("selector", new, old, &mut errors);
        errors
    }
    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        counts(new, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"])
    }
    fn warnings(&self, object: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(object, TEMPLATE_SPEC)
    }
    fn has_generation(&self) -> bool {
        true
    }
}

pub(in crate::api::kinds) struct ReplicationControllerStrategy;

impl Strategy for ReplicationControllerStrategy {
    /// The selector and the labels may be left to the template.
    fn default(&self, object: &mut Object) {
        default_template(object, TEMPLATE_SPEC);
        let Some(labels) = object.at(&["spec", "template", "metadata", "labels"]).cloned() else { return };
        for path in [["spec", "selector"], ["metadata", "labels"]] {
            if object.at(&path).is_none_or(validation::is_empty) {
                object.set(&path, labels.clone());
            }
        }
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({"replicas": 0}));
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = spec_of(object);
        non_negative(spec, "minReadySeconds", &SPEC, &mut errors);
        let labels: BTreeMap<String, String> =
            spec.get("selector").and_then(|map| serde_json::from_value(map.clone()).ok()).unwrap_or_default();
        if labels.is_empty() {
            errors.push(FieldError::required("spec.selector", ""));
        }
        non_negative(spec, "replicas", &SPEC, &mut errors);
        let selector = Selector::from_labels(&labels);
        template(spec, Some(&selector), "ReplicationController", &mut errors);
        errors
    }
    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        counts(new, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"])
    }
    fn has_generation(&self) -> bool {
        true
    }
    fn default_orphans(&self) -> bool {
        true
    }
}

pub(in crate::api::kinds) struct DaemonSetStrategy;

/// Counts changes of the template; older than revisions, and still shown.
const TEMPLATE_GENERATION: [&str; 3] = ["metadata", "annotations", "deprecated.daemonset.template.generation"];

fn template_generation(set: &Object) -> i64 {
    set.str_at(&TEMPLATE_GENERATION).parse().unwrap_or(0)
}

impl Strategy for DaemonSetStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, TEMPLATE_SPEC);
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        let zeros = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
        reset_status(object, zeros.into_iter().map(|field| (field.to_owned(), Value::from(0))).collect());
        let generation = template_generation(object).max(1);
        object.set(&TEMPLATE_GENERATION, generation.to_string().into());
    }
    fn prepare_update(&self, _context: &HookContext, new: &mut Object, old: &Object) {
        let changed = !same(new.at(&["spec", "template"]), old.at(&["spec", "template"]));
        let generation = template_generation(old) + i64::from(changed);
        if generation > 0 {
            new.set(&TEMPLATE_GENERATION, generation.to_string().into());
        }
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = spec_of(object);
        let selector = selector(spec, "daemonset", &mut errors);
        template(spec, selector.as_ref(), "DaemonSet", &mut errors);
        non_negative(spec, "minReadySeconds", &SPEC, &mut errors);
        daemon_strategy(spec, &mut errors);
        non_negative(spec, "revisionHistoryLimit", &SPEC, &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable("selector", new, old, &mut errors);
        errors
    }
    fn validate_status_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = counts(
            new,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
        );
        let collisions = |object: &Object| object.int_at(&["status", "collisionCount"]);
        if let Some(before) = collisions(old)
            && collisions(new).is_none_or(|count| count < before)
        {
            let value = new.at(&["status", "collisionCount"]).cloned().unwrap_or_default();
            errors.push(FieldError::invalid("status.collisionCount", value, "cannot be decremented"));
        }
        errors
    }
    fn warnings(&self, object: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(object, TEMPLATE_SPEC)
    }
    fn has_generation(&self) -> bool {
        true
    }
}

fn daemon_strategy(spec: &Value, errors: &mut Errors) {
    let Some(strategy) = present(spec, "updateStrategy") else { return };
    let path = SPEC.child("updateStrategy");
    match (strategy.str_at(&["type"]), present(strategy, "rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", Some(rolling)) => daemon_rolling_update(rolling, &path.child("rollingUpdate"), errors),
        ("RollingUpdate", None) => errors.push(FieldError::required(path.child("rollingUpdate"), "")),
        _ => {
            let supported = ["OnDelete", "RollingUpdate"];
            errors.push(FieldError::not_supported(path, strategy.clone(), &supported));
        }
    }
}

/// Exactly one of the two bounds is not 0.
fn daemon_rolling_update(rolling: &Value, path: &Path, errors: &mut Errors) {
    let mut bounds = [0, 0];
    for (field, bound) in ["maxUnavailable", "maxSurge"].into_iter().zip(&mut bounds) {
        *bound = int_or_percent(rolling.get(field), &path.child(field), errors).unwrap_or(0);
        let percent = rolling.get(field).filter(|value| value.is_string() && *bound > 100);
        if let Some(value) = percent {
            errors.push(FieldError::invalid(path.child(field), value.clone(), "must not be greater than 100%"));
        }
    }
    match bounds {
        [0, 0] => errors.push(FieldError::required(path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0")),
        [_, surge] if surge > 0 && bounds[0] > 0 => {
            let value = rolling.get("maxSurge").cloned().unwrap_or_default();
            let why = "may not be set when maxUnavailable is non-zero";
            errors.push(FieldError::invalid(path.child("maxSurge"), value, why));
        }
        _ => {}
    }
}

pub(in crate::api::kinds) struct StatefulSetStrategy;

impl Strategy for StatefulSetStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, TEMPLATE_SPEC);
        let claims = object.get_mut("spec").and_then(|spec| spec.get_mut("volumeClaimTemplates"));
        for claim in claims.and_then(Value::as_array_mut).into_iter().flatten() {
            claim.set(&["apiVersion"], "v1".into());
            claim.set(&["kind"], "PersistentVolumeClaim".into());
        }
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({"replicas": 0, "availableReplicas": 0}));
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let spec = spec_of(object);
        optional_one_of(spec, "podManagementPolicy", &["OrderedReady", "Parallel"], &SPEC, &mut errors);
        if let Some(strategy) = present(spec, "updateStrategy") {
            let path = SPEC.child("updateStrategy");
            optional_one_of(strategy, "type", &["OnDelete", "RollingUpdate"], &path, &mut errors);
            if let Some(rolling) = present(strategy, "rollingUpdate") {
                non_negative(rolling, "partition", &path.child("rollingUpdate"), &mut errors);
            }
        }
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            non_negative(spec, field, &SPEC, &mut errors);
        }
        let selector = selector(spec, "statefulset", &mut errors);
        template(spec, selector.as_ref(), "StatefulSet", &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let fixed = |object: &Object| {
            let mut spec = spec_of(object).clone();
            for field in [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
            ] {
                spec.unset(&[field]);
            }
            spec
        };
        if same(Some(&fixed(new)), Some(&fixed(old))) {
            return Errors::new();
        }
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        vec![FieldError::forbidden("spec", why)]
    }
    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        counts(new, &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"])
    }
    fn warnings(&self, object: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(object, TEMPLATE_SPEC)
    }
    fn has_generation(&self) -> bool {
        true
    }
}

pub(in crate::api::kinds) struct ControllerRevisionStrategy;

impl Strategy for ControllerRevisionStrategy {
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if present(object, "data").is_none() {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        if let Some(number @ ..0) = object.int_at(&["revision"]) {
            errors.push(FieldError::invalid("revision", number, validation::NOT_NEGATIVE));
        }
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::immutable(&Path::Root("data"), new.get("data"), old.get("data"), &mut errors);
        errors
    }
}

pub(in crate::api::kinds) struct PodTemplateStrategy;

impl Strategy for PodTemplateStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, &["template", "spec"]);
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        pod::validate_template(object.get("template").unwrap_or(&none), &Path::Root("template"), &mut errors);
        errors
    }
    fn has_generation(&self) -> bool {
        true
    }
}
