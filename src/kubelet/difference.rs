//! Whether an object in the API lacks something of what this node says of it. Pure.

use serde_json::{Map, Value};

/// Conditions of others and fields that are not ours do not count; null, empty and absent are the same.
pub fn differs(wanted: &Value, held: &Value) -> bool {
    match (wanted, held) {
        (Value::Object(wanted), Value::Object(held)) => wanted.iter().any(|(key, value)| match key.as_str() {
            "conditions" => conditions_differ(value, held),
            "lastHeartbeatTime" => false,
            _ => differs(value, held.get(key).unwrap_or(&Value::Null)),
        }),
        (Value::Array(wanted), Value::Array(held)) => {
            wanted.len() != held.len() || wanted.iter().zip(held).any(|(wanted, held)| differs(wanted, held))
        }
        (Value::Object(wanted), Value::Null) => wanted.values().any(|value| differs(value, &Value::Null)),
        (Value::Array(wanted), Value::Null) => !wanted.is_empty(),
        (Value::String(wanted), Value::Null) => !wanted.is_empty(),
        (wanted, held) => wanted != held,
    }
}

fn conditions_differ(wanted: &Value, held: &Map<String, Value>) -> bool {
    let held = held.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let wanted = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
    wanted.iter().any(|one| {
        let same = held.iter().find(|held| held["type"] == one["type"]);
        same.is_none_or(|held| differs(one, held))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_ours_is_compared() {
        let held = json!({"phase": "Running", "conditions": [
            {"type": "x/y", "status": "True"}, {"type": "Ready", "status": "True", "reason": ""}],
            "containerStatuses": [{"name": "a", "lastState": {}}]});
        for (wanted, want) in [
            (json!({"phase": "Running", "reason": null}), false),
            (json!({"phase": "Failed"}), true),
            (json!({"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "now"}]}), false),
            (json!({"conditions": [{"type": "Ready", "status": "False"}]}), true),
            (json!({"conditions": [{"type": "New", "status": "False"}]}), true),
            (json!({"containerStatuses": [{"name": "a", "lastState": {}}]}), false),
            (json!({"containerStatuses": []}), true),
            (json!({"initContainerStatuses": [], "version": ""}), false),
        ] {
            assert_eq!(differs(&wanted, &held), want, "{wanted}");
        }
    }
}
