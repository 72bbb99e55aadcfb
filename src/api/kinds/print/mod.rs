//! Printers: the columns and cells kubectl shows, as upstream's printers answer them
//! (k8s.io/kubernetes/pkg/printers/internalversion). A file per group of kinds.

macro_rules! cells {
    ($($cell:expr),* $(,)?) => { vec![$(serde_json::Value::from($cell)),*] };
}

mod cluster;
mod core;
mod network;
mod pod;
mod volume;
mod workload;

pub(super) use cluster::*;
pub(super) use core::*;
pub(super) use network::*;
pub(super) use pod::POD;
pub(super) use volume::*;
pub(super) use workload::*;

use super::Column;
use super::row::{NAME, columns, date};
use crate::api::object::{Object, ObjectExt};
use crate::api::quantity::Quantity;
use crate::api::selector::Selector;
use crate::api::view::meta;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// How a kind is shown in tables.
#[derive(Clone, Copy)]
pub(super) struct Printer {
    pub columns: &'static [Column],
    /// One per column.
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// Why a row may be dimmed or left out: `Completed`.
    pub conditions: fn(&Object) -> Option<Value>,
}

impl Printer {
    const fn new(columns: &'static [Column], cells: fn(&Object, Timestamp) -> Vec<Value>) -> Self {
        Self { columns, cells, conditions: no_conditions }
    }
}

/// For kinds that upstream has no printer for.
pub(super) const DEFAULT: Printer = Printer::new(
    columns![NAME, date("Created At", "When the object was created, by the server's clock.")],
    |object, _| cells![object.name(), object.str_at(&["metadata", "creationTimestamp"])],
);

pub(super) fn no_conditions(_object: &Object) -> Option<Value> {
    None
}

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// Time since creation.
fn age(object: &Object, now: Timestamp) -> String {
    since(object.str_at(&["metadata", "creationTimestamp"]), now)
}

/// Time since an RFC 3339 time; `<unknown>` when there is none.
fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(now.duration_since(time).as_secs()),
        Err(_) => UNKNOWN.to_owned(),
    }
}

/// Two units at most, as kubectl writes durations: `90s`, `5m3s`, `4h10m`, `3d`, `2y5d`.
pub(super) fn human_duration(duration_s: i64) -> String {
    let (minutes, hours, days) = (duration_s / 60, duration_s / 3600, duration_s / 86400);
    let pair = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match duration_s {
        // Clocks of two machines differ a little.
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{duration_s}s"),
        _ if minutes < 10 => pair(minutes, 'm', duration_s % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// The items of a list by path.
fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    object.at(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn number(object: &Value, path: &[&str]) -> i64 {
    object.int_at(path).unwrap_or(0)
}

fn flag(object: &Value, path: &[&str]) -> bool {
    object.at(path).and_then(Value::as_bool).unwrap_or(false)
}

/// The text by path, or what stands for nothing.
fn or<'a>(object: &'a Value, path: &[&str], nothing: &'a str) -> &'a str {
    match object.str_at(path) {
        "" => nothing,
        text => text,
    }
}

/// The strings of a list.
fn texts<'a>(object: &'a Value, path: &[&str]) -> Vec<&'a str> {
    list(object, path).iter().filter_map(Value::as_str).collect()
}

fn joined_or(parts: &[&str], separator: &str, nothing: &str) -> String {
    if parts.is_empty() { nothing.to_owned() } else { parts.join(separator) }
}

/// `a=b,c=d`
fn labels(map: Option<&Value>) -> String {
    let pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A `LabelSelector`: `a=b,c in (d)`.
fn label_selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector.filter(|value| value.is_object()) else {
        return NONE.to_owned();
    };
    let view = meta::LabelSelector::deserialize(selector).unwrap_or_default();
    match Selector::from_view(&view) {
        Ok(selector) if selector.is_empty() => NONE.to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// The first three, and how many more there are.
fn first_three(items: &[String], nothing: &str) -> String {
    match items {
        [] => nothing.to_owned(),
        [_, _, _, rest @ ..] if !rest.is_empty() => format!("{} + {} more...", items[..3].join(","), rest.len()),
        all => all.join(","),
    }
}

/// Names and images of a pod template's containers.
fn containers(object: &Value, pod_spec: &[&str]) -> (String, String) {
    let containers = object.at(pod_spec).map(|spec| list(spec, &["containers"])).unwrap_or_default();
    let join = |field| containers.iter().map(|one| one.str_at(&[field])).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

/// The status of a condition, empty when the object has none of that type.
fn condition<'a>(object: &'a Value, r#type: &str) -> &'a str {
    let conditions = list(object, &["status", "conditions"]);
    conditions.iter().find(|one| one.str_at(&["type"]) == r#type).map_or("", |one| one.str_at(&["status"]))
}

/// A quantity in its canonical form; as written when it is none; `0` when missing.
fn quantity(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "0".to_owned(),
        Some(value) => match Quantity::from_value(value) {
            Ok(quantity) => quantity.to_string(),
            Err(_) => value.as_str().unwrap_or_default().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
