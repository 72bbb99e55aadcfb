//! The `Table` form of objects that kubectl prints, and `PartialObjectMetadata`.
//! Only forms values: which form a client asked for, the API server reads from its Accept header.

use super::kinds::Kind;
use super::object::{Object, ObjectExt};
use super::status::{Result, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What a row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The query parameter `includeObject`; empty when there is none.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    let column = |column: &super::kinds::Column| {
        json!({
            "name": column.name, "type": column.r#type, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    kind.columns.iter().map(column).collect()
}

/// One row. `version` is that of meta.k8s.io the client asked for: `v1` or `v1beta1`.
pub fn row(kind: &Kind, object: Object, include: IncludeObject, version: &str, now: Timestamp) -> Value {
    let mut row = json!({"cells": (kind.cells)(&object, now)});
    if let Some(conditions) = (kind.row_conditions)(&object) {
        row["conditions"] = conditions;
    }
    row["object"] = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object, version),
        IncludeObject::Object => object,
    };
    row
}

/// A table. In a watch only the first carries the columns; the others carry `null`.
pub fn table(columns: Value, rows: Vec<Value>, list_metadata: Value, version: &str) -> Value {
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": list_metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// `PartialObjectMetadata`: nothing but the metadata.
pub fn partial(mut object: Object, version: &str) -> Value {
    let metadata = object.unset(&["metadata"]).unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
}

/// A list of them; the items are results of `partial`.
pub fn partial_list(items: Vec<Value>, list_metadata: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata, "items": items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Kinds;

    #[test]
    fn a_config_map_is_tabled_as_recorded() {
        let kind = Kinds::default().kind("v1", "ConfigMap").expect("a built-in kind");
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "g1", "creationTimestamp": "2026-11-23T00:49:58Z"},
            "data": {"j": "1", "m": "2", "s": "3", "z": "4"},
        });
        let now = "2026-11-23T00:50:14Z".parse().expect("a time");
        let row = |include| row(&kind, object.clone(), include, "v1", now);
        assert_eq!(row(IncludeObject::None), json!({"cells": ["a", 4, "16s"], "object": null}));
        let partial =
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
        assert_eq!(row(IncludeObject::Metadata)["object"], partial);
        assert_eq!(row(IncludeObject::Object)["object"], object);
        let names: Vec<Value> =
            columns(&kind).as_array().into_iter().flatten().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["Name", "Data", "Age"]);
    }

    #[test]
    fn an_ended_pod_is_marked_completed() {
        let kind = Kinds::default().kind("v1", "Pod").expect("a built-in kind");
        let mut pod = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        let row = |pod: &Value| row(&kind, pod.clone(), IncludeObject::None, "v1", Timestamp::UNIX_EPOCH);
        assert_eq!(row(&pod).get("conditions"), None);
        pod["status"]["phase"] = "Succeeded".into();
        assert_eq!(row(&pod)["conditions"][0]["reason"], "Succeeded");
    }
}
