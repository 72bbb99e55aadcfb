//! JSON merge patch, RFC 7386: null removes, objects merge, everything else replaces.

use crate::api::status::{Result, Status};
use serde_json::{Map, Value};

pub fn apply(mut document: Value, patch: &Value) -> Result<Value> {
    let Value::Object(members) = patch else {
        let what = if patch.is_array() { "array" } else { "value" };
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
        )));
    };
    merge(&mut document, members);
    Ok(document)
}

fn merge(document: &mut Value, patch: &Map<String, Value>) {
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(target) = document else { return };
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(inner) => merge(target.entry(name.as_str()).or_insert(Value::Null), inner),
            other => {
                target.insert(name.clone(), other.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn follows_the_rfc() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c", "x": 1}), json!({"a": "c", "x": 1})),
            (json!({"a": "b", "b": 1}), json!({"a": null, "z": null}), json!({"b": 1})),
            (json!({"a": {"b": "c", "d": 1}}), json!({"a": {"b": null}}), json!({"a": {"d": 1}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": 1}), json!({"a": {"b": {"c": null, "d": 2}}}), json!({"a": {"b": {"d": 2}}})),
        ];
        for (document, patch, expected) in cases {
            assert_eq!(apply(document, &patch), Ok(expected));
        }
        assert_eq!(apply(json!({}), &json!([])).expect_err("refused").code, 400);
    }
}
