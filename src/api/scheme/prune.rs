//! What a decode into Go's structs and back would leave: unknown fields and nulls are gone, zeros that
//! `omitempty` hides are gone, nulls inside maps and lists are the element's zero.

use super::{Field, Kind, Shape, TypeRef};
use serde_json::{Map, Value};

/// Values of a wrong type are left as they are: the codec refuses them beforehand.
pub fn prune(schema: TypeRef, value: &mut Value) {
    let Value::Object(map) = value else { return };
    map.retain(|name, child| match schema.field(name) {
        Some(field) => {
            descend(field, child);
            keeps(field, child)
        }
        None => false,
    });
}

fn keeps(field: &Field, child: &Value) -> bool {
    if child.is_null() {
        return field.shape == Shape::One(Kind::Json);
    }
    if field.always() || field.pointer() {
        return true;
    }
    match (field.shape, child) {
        (_, Value::Array(items)) => !items.is_empty(),
        (Shape::Map(_), Value::Object(items)) => !items.is_empty(),
        (_, Value::String(text)) => !text.is_empty(),
        (Shape::One(Kind::Int32 | Kind::Int64 | Kind::Double), Value::Number(number)) => number.as_f64() != Some(0.0),
        (Shape::One(Kind::Bool), Value::Bool(on)) => *on,
        _ => true,
    }
}

fn descend(field: &Field, child: &mut Value) {
    match (field.shape, child) {
        (Shape::One(kind), child) => prune_kind(kind, child),
        (Shape::List(kind), Value::Array(items)) => items.iter_mut().for_each(|item| element(kind, item)),
        (Shape::Map(kind), Value::Object(items)) => items.values_mut().for_each(|item| element(kind, item)),
        _ => {}
    }
}

fn element(kind: Kind, item: &mut Value) {
    if item.is_null() {
        *item = zero(kind);
    }
    prune_kind(kind, item);
}

fn prune_kind(kind: Kind, child: &mut Value) {
    let Some(schema) = kind.type_ref() else { return };
    match child {
        Value::Array(items) => items.iter_mut().for_each(|item| prune(schema, item)),
        child => prune(schema, child),
    }
}

fn zero(kind: Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => Value::from(""),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
        Kind::Bool => Value::from(false),
        Kind::Quantity => Value::from("0"),
        Kind::Ref(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;
    use serde_json::json;

    #[test]
    fn leaves_what_go_would() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "bogus": 1,
            "metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "annotations": {"x": null}},
            "spec": {
                "hostNetwork": false, "restartPolicy": "", "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false, "priority": null,
                "containers": [{"name": "c", "args": [], "nope": {}, "securityContext": {}}],
            },
        });
        prune(find("io.k8s.api.core.v1.Pod").expect("pods"), &mut pod);
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"x": ""}},
            "spec": {
                "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "containers": [{"name": "c", "securityContext": {}}],
            },
        });
        assert_eq!(pod, expected);
    }
}
