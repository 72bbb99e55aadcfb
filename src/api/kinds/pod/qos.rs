//! The quality of service of a pod: how much of what it uses it has asked for.

use crate::api::object::{Object, ObjectExt};
use crate::api::quantity::Quantity;
use crate::api::validation::check::list;
use serde_json::Value;

const RESOURCES: [&str; 2] = ["cpu", "memory"];

pub(super) fn class(pod: &Object) -> &'static str {
    let Some(spec) = pod.get("spec") else { return "BestEffort" };
    // Resources of the pod as a whole stand for all its containers.
    let whole = spec.get("resources").filter(|resources| mentions(resources));
    let containers = list(spec, "initContainers").iter().chain(list(spec, "containers"));
    let holders: Vec<&Value> = match whole {
        Some(resources) => vec![resources],
        None => containers.map(|container| container.get("resources").unwrap_or(&Value::Null)).collect(),
    };
    if !holders.iter().any(|resources| mentions(resources)) {
        "BestEffort"
    } else if holders.iter().all(|resources| is_guaranteed(resources)) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn amount(resources: &Value, side: &str, resource: &str) -> Option<Quantity> {
    let quantity = Quantity::from_value(resources.at(&[side, resource])?).ok()?;
    (!quantity.is_zero()).then_some(quantity)
}

fn mentions(resources: &Value) -> bool {
    let mut sides = ["limits", "requests"].into_iter();
    sides.any(|side| RESOURCES.into_iter().any(|resource| amount(resources, side, resource).is_some()))
}

fn is_guaranteed(resources: &Value) -> bool {
    RESOURCES.into_iter().all(|resource| {
        let limit = amount(resources, "limits", resource);
        limit.is_some() && amount(resources, "requests", resource).is_none_or(|request| Some(request) == limit)
    })
}
