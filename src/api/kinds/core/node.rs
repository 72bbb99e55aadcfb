//! Nodes: taints, addresses of their pods, and the little an update may change.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, one_of, required};
use crate::api::validation::{NOT_NEGATIVE, Path, invalid, name, same};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct NodeStrategy;

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

impl Strategy for NodeStrategy {
    fn default(&self, node: &mut Object) {
        // `podCIDR` is the first of `podCIDRs`.
        let first = node.at(&["spec", "podCIDRs"]).and_then(|cidrs| cidrs.get(0)).cloned();
        match (node.str_at(&["spec", "podCIDR"]).to_owned(), first) {
            (cidr, None) if !cidr.is_empty() => node.set(&["spec", "podCIDRs"], json!([cidr])),
            (cidr, Some(first)) if cidr.is_empty() => node.set(&["spec", "podCIDR"], first),
            _ => {}
        }
        if let Some(capacity) = node.at(&["status", "capacity"]).cloned()
            && node.at(&["status", "allocatable"]).is_none()
        {
            node.set(&["status", "allocatable"], capacity);
        }
    }

    fn validate(&self, _context: &HookContext, node: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = node.get("spec").unwrap_or(&none);
        taints(list(spec, "taints"), &Path::Root("spec.taints"), &mut errors);
        let list_path = Path::Root("spec.podCIDRs");
        let cidrs = list(spec, "podCIDRs");
        for (place, cidr) in cidrs.iter().filter_map(Value::as_str).enumerate() {
            if !is_cidr(cidr) {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(list_path.index(place), cidr, why));
            }
        }
        if cidrs.first().is_some_and(|first| first != spec.str_at(&["podCIDR"])) {
            let why = "must match `podCIDR`";
            errors.push(FieldError::invalid(list_path.index(0), cidrs[0].clone(), why));
        }
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (field, what) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
            let (new, old) = (new.at(&["spec", field]), old.at(&["spec", field]));
            let was_set = old.is_some_and(|old| !crate::api::validation::is_empty(old));
            if was_set && !same(new, old) {
                let why = format!("node updates may not change {what} except from \"\" to valid");
                errors.push(FieldError::forbidden(Path::Root("spec").child(field), why));
            }
        }
        let fixed = |node: &Object| {
            let mut spec = node.get("spec").cloned().unwrap_or_default();
            for field in ["podCIDR", "podCIDRs", "providerID", "taints", "unschedulable", "configSource"] {
                spec.unset(&[field]);
            }
            spec
        };
        if !same(Some(&fixed(new)), Some(&fixed(old))) {
            let why = "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)";
            errors.push(FieldError::forbidden("spec", why));
        }
        errors
    }

    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for field in ["capacity", "allocatable"] {
            let amounts = new.at(&["status", field]).and_then(Value::as_object);
            for (resource, amount) in amounts.into_iter().flatten() {
                if Quantity::from_value(amount).is_ok_and(|amount| amount.is_negative()) {
                    let path = format!("status.{field}.{resource}");
                    errors.push(FieldError::invalid(path, amount.clone(), NOT_NEGATIVE));
                }
            }
        }
        let list_path = Path::Root("status.addresses");
        let none = Value::Null;
        let addresses = list(new.get("status").unwrap_or(&none), "addresses");
        for (place, address) in addresses.iter().enumerate() {
            if addresses[..place].contains(address) {
                errors.push(FieldError::duplicate(list_path.index(place), address.clone()));
            }
        }
        errors
    }
}

fn taints(taints: &[Value], list_path: &Path, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (place, taint) in taints.iter().enumerate() {
        let path = list_path.index(place);
        let key = required(taint, "key", &path, errors);
        if !key.is_empty() {
            invalid(&path.child("key"), key, name::qualified(key), errors);
        }
        let value = taint.str_at(&["value"]);
        let problems = name::label_value(value);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(path.child("value"), value, problems.join(";")));
        }
        one_of(taint, "effect", &EFFECTS, &path, errors);
        let pair = (key, taint.str_at(&["effect"]));
        if seen.contains(&pair) {
            // Upstream leaves the value out of what is unique and prints the whole.
            errors.push(FieldError::duplicate(path, taint.clone()));
        }
        seen.push(pair);
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let limit = if address.contains(':') { 128 } else { 32 };
    address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= limit)
}
