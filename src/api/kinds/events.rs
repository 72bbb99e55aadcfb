//! The row of events.k8s.io/v1: the core Event under newer names, kept in the same place.

use super::core;
use super::print;
use super::row::{Row, fields, names, texts};
use super::{Convert, DurabilityClass, Kind, SelectableField};
use crate::api::object::{Object, ObjectExt};
use serde_json::Value;

macro_rules! kind {
    ($($name:literal)*) => {
        names!("events.k8s.io" "v1" "io.k8s.api.events.v1", $($name)*)
    };
}

pub(super) static EVENT: Kind = Row {
    short_names: texts!["ev"],
    storage_prefix: "events",
    storage_version: "v1",
    durability: DurabilityClass::Lazy,
    create_on_update: true,
    convert: Some(&Conversion),
    fields: FIELDS,
    printer: print::EVENT_NEWER,
    strategy: &core::NewerEventStrategy,
    ..Row::namespaced(kind!("Event" "events" "event"))
}
.build();

/// The labels of this version; the objects the readers see are of this version, too.
const FIELDS: &[SelectableField] = fields![
    "regarding.kind" text ["regarding" "kind"];
    "regarding.namespace" text ["regarding" "namespace"];
    "regarding.name" text ["regarding" "name"];
    "regarding.uid" text ["regarding" "uid"];
    "regarding.apiVersion" text ["regarding" "apiVersion"];
    "regarding.resourceVersion" text ["regarding" "resourceVersion"];
    "regarding.fieldPath" text ["regarding" "fieldPath"];
    "reason" text ["reason"];
    "reportingController" text ["reportingController"];
    "type" text ["type"];
];

/// events.k8s.io/v1 and core/v1 differ in names only.
pub(super) struct Conversion;

/// Name in events.k8s.io/v1, name in core/v1.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

impl Convert for Conversion {
    fn to_storage(&self, object: &mut Object) {
        for (newer, core) in RENAMED {
            rename(object, newer, core);
        }
        object.set(&["apiVersion"], Value::from("v1"));
    }

    fn from_storage(&self, object: &mut Object) {
        for (newer, core) in RENAMED {
            rename(object, core, newer);
        }
        object.set(&["apiVersion"], Value::from("events.k8s.io/v1"));
    }
}

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.unset(&[from]) {
        object.set(&[to], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_survives_the_way_to_the_store_and_back() {
        let newer = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "n", "deprecatedCount": 2,
            "reportingController": "edgelet", "eventTime": "2026-01-01T00:00:00.000000Z",
        });
        let mut object = newer.clone();
        Conversion.to_storage(&mut object);
        assert_eq!(object["involvedObject"]["name"], "p");
        assert_eq!(
            (&object["apiVersion"], &object["message"], &object["count"]),
            (&json!("v1"), &json!("n"), &json!(2))
        );
        Conversion.from_storage(&mut object);
        assert_eq!(object, newer);
    }
}
