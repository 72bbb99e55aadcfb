//! Disruption budgets, priority classes, leases: small kinds with a rule or two.

use crate::api::kinds::apps::replicas::{SPEC, reset_status};
use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, int_or_percent, non_negative, optional_one_of, positive, present};
use crate::api::validation::{self, Path};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct BudgetStrategy;

impl Strategy for BudgetStrategy {
    fn prepare_create(&self, _context: &HookContext, budget: &mut Object) {
        let zeros = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        reset_status(budget, zeros.into_iter().map(|field| (field.to_owned(), json!(0))).collect());
    }
    fn validate(&self, _context: &HookContext, budget: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = budget.get("spec").unwrap_or(&none);
        let bounds = ["minAvailable", "maxUnavailable"].map(|field| present(spec, field));
        if bounds.iter().all(Option::is_some) {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid(SPEC, spec.clone(), why));
        }
        for (field, bound) in ["minAvailable", "maxUnavailable"].into_iter().zip(bounds) {
            int_or_percent(bound, &SPEC.child(field), &mut errors);
        }
        if let Some(selector) = present(spec, "selector") {
            validation::label_selector(selector, &SPEC.child("selector"), &mut errors);
        }
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        optional_one_of(spec, "unhealthyPodEvictionPolicy", &policies, &SPEC, &mut errors);
        errors
    }
    fn has_generation(&self) -> bool {
        true
    }
}

pub(in crate::api::kinds) struct PriorityClassStrategy;

/// Higher ones are the system's own.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

impl Strategy for PriorityClassStrategy {
    fn validate(&self, _context: &HookContext, class: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let value = class.int_at(&["value"]).unwrap_or(0);
        let is_system = ["system-node-critical", "system-cluster-critical"].contains(&class.name());
        if class.name().starts_with("system-") && !is_system {
            let why = "priority class names with 'system-' prefix are reserved for system use only";
            errors.push(FieldError::forbidden("metadata.name", why));
        }
        if value > HIGHEST_USER_PRIORITY && !is_system {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
            errors.push(FieldError::forbidden("value", why));
        }
        let policies = ["Never", "PreemptLowerPriority"];
        optional_one_of(class, "preemptionPolicy", &policies, &Path::Root(""), &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if new.int_at(&["value"]) != old.int_at(&["value"]) {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        let path = Path::Root("preemptionPolicy");
        validation::immutable(&path, new.get("preemptionPolicy"), old.get("preemptionPolicy"), &mut errors);
        errors
    }
    fn has_generation(&self) -> bool {
        true
    }
}

pub(in crate::api::kinds) struct LeaseStrategy;

impl Strategy for LeaseStrategy {
    fn validate(&self, _context: &HookContext, lease: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = lease.get("spec").unwrap_or(&none);
        positive(spec, "leaseDurationSeconds", &SPEC, &mut errors);
        non_negative(spec, "leaseTransitions", &SPEC, &mut errors);
        errors
    }
}

/// Kinds whose status only a controller writes, and that have nothing else special about them.
pub(in crate::api::kinds) struct StatusStrategy {
    pub generation: bool,
}

impl Strategy for StatusStrategy {
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, json!({}));
    }
    fn has_generation(&self) -> bool {
        self.generation
    }
}

/// Kinds that only count their generations.
pub(in crate::api::kinds) struct Counted;

impl Strategy for Counted {
    fn has_generation(&self) -> bool {
        true
    }
}
