//! JSON Patch, RFC 6902, as upstream's library reads it: negative indices count from the end, and what
//! `copy` multiplies is bounded.

use super::rejected;
use crate::api::status::{Result, Status};
use serde_json::Value;

const OPERATIONS_LIMIT: usize = 10_000;
/// Upstream's limit for all copies of one patch.
const COPIED_LIMIT_BYTES: usize = 3 << 20;
/// What is nested deeper could be written but not read again.
const DEPTH_LIMIT: usize = 100;

pub fn apply(mut document: Value, patch: &Value) -> Result<Value> {
    let operations = operations(patch)?;
    let mut copied_bytes = 0;
    for operation in operations {
        if operation.op == "copy" {
            let source = find(&document, &parse(operation.from)?).ok_or_else(rejected)?;
            copied_bytes += source.to_string().len();
            if copied_bytes > COPIED_LIMIT_BYTES {
                return Err(rejected());
            }
        }
        operate(&mut document, &operation)?;
    }
    if depth(&document) > DEPTH_LIMIT { Err(rejected()) } else { Ok(document) }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

struct Operation<'a> {
    op: &'a str,
    path: &'a str,
    from: &'a str,
    value: Option<&'a Value>,
}

fn operations(patch: &Value) -> Result<Vec<Operation<'_>>> {
    let decoding = |why: &str| Status::bad_request(format!("error decoding patch: json: cannot unmarshal {why}"));
    let Value::Array(items) = patch else {
        let what = if patch.is_object() { "object" } else { "value" };
        return Err(decoding(&format!("{what} into Go value of type []handlers.jsonPatchOp")));
    };
    if items.len() > OPERATIONS_LIMIT {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {}",
            items.len()
        )));
    }
    let mut operations = Vec::with_capacity(items.len());
    for item in items {
        if !item.is_object() {
            return Err(decoding("value into Go value of type handlers.jsonPatchOp"));
        }
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        operations.push(Operation { op: text("op"), path: text("path"), from: text("from"), value: item.get("value") });
    }
    Ok(operations)
}

fn operate(document: &mut Value, operation: &Operation) -> Result<()> {
    let path = parse(operation.path)?;
    let value = || operation.value.cloned().ok_or_else(rejected);
    match operation.op {
        "add" => add(document, &path, value()?),
        "remove" => remove(document, &path).map(|_| ()),
        "replace" => {
            *find_mut(document, &path).ok_or_else(rejected)? = value()?;
            Ok(())
        }
        "move" => {
            let taken = remove(document, &parse(operation.from)?)?;
            add(document, &path, taken)
        }
        "copy" => {
            let copy = find(document, &parse(operation.from)?).ok_or_else(rejected)?.clone();
            add(document, &path, copy)
        }
        "test" => {
            let there = find(document, &path).unwrap_or(&Value::Null);
            let wanted = operation.value.unwrap_or(&Value::Null);
            if there == wanted { Ok(()) } else { Err(rejected()) }
        }
        _ => Err(rejected()),
    }
}

/// A JSON pointer's parts, unescaped.
fn parse(pointer: &str) -> Result<Vec<String>> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let parts = pointer.strip_prefix('/').ok_or_else(rejected)?;
    Ok(parts.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
}

/// `-1` is the last of `length` items.
fn index(part: &str, length: usize) -> Option<usize> {
    match part.strip_prefix('-') {
        Some(back) => length.checked_sub(back.parse().ok()?),
        None => part.parse().ok(),
    }
}

fn find<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |place, part| match place {
        Value::Object(map) => map.get(part),
        Value::Array(items) => items.get(index(part, items.len())?),
        _ => None,
    })
}

fn find_mut<'a>(document: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |place, part| match place {
        Value::Object(map) => map.get_mut(part),
        Value::Array(items) => {
            let at = index(part, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    })
}

fn add(document: &mut Value, path: &[String], value: Value) -> Result<()> {
    let Some((last, parents)) = path.split_last() else {
        *document = value;
        return Ok(());
    };
    match find_mut(document, parents) {
        Some(Value::Object(map)) => {
            map.insert(last.clone(), value);
            Ok(())
        }
        Some(Value::Array(items)) => {
            // A negative index counts from behind the new last item.
            let at = if last == "-" { Some(items.len()) } else { index(last, items.len() + 1) };
            let at = at.filter(|at| *at <= items.len()).ok_or_else(rejected)?;
            items.insert(at, value);
            Ok(())
        }
        _ => Err(rejected()),
    }
}

fn remove(document: &mut Value, path: &[String]) -> Result<Value> {
    let (last, parents) = path.split_last().ok_or_else(rejected)?;
    match find_mut(document, parents) {
        Some(Value::Object(map)) => map.remove(last).ok_or_else(rejected),
        Some(Value::Array(items)) => {
            let at = index(last, items.len()).filter(|at| *at < items.len()).ok_or_else(rejected)?;
            Ok(items.remove(at))
        }
        _ => Err(rejected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_apply_in_order() {
        let document = json!({"data": {"a": "1", "x/y": "2"}, "list": [1, 2, 3]});
        let patch = json!([
            {"op": "test", "path": "/data/a", "value": "1"},
            {"op": "test", "path": "/data/absent", "value": null},
            {"op": "replace", "path": "/data/x~1y", "value": "3"},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "add", "path": "/list/0", "value": 0},
            {"op": "remove", "path": "/list/-1"},
            {"op": "move", "from": "/data/a", "path": "/data/b"},
            {"op": "copy", "from": "/data/b", "path": "/c"},
        ]);
        let expected = json!({"data": {"b": "1", "x/y": "3"}, "list": [0, 1, 2, 3], "c": "1"});
        assert_eq!(apply(document, &patch), Ok(expected));
    }

    #[test]
    fn errors_are_upstreams() {
        let document = json!({"data": {"s": "1"}});
        let cases = [
            json!([{"op": "test", "path": "/data/s", "value": "9"}]),
            json!([{"op": "remove", "path": "/data/absent"}]),
            json!([{"op": "replace", "path": "/absent", "value": 1}]),
            json!([{"op": "add", "path": "/absent/x", "value": 1}]),
            json!([{"op": "add", "path": "/data/x"}]),
            json!([{"op": "bogus", "path": "/data/s"}]),
        ];
        for patch in cases {
            let status = apply(document.clone(), &patch).expect_err("refused");
            assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{patch}");
            assert_eq!(status.message, "the server rejected our request due to an error in our request");
            assert_eq!(status.to_object()["details"], json!({}));
        }
        let status = apply(document.clone(), &json!({"a": 1})).expect_err("refused");
        assert_eq!(
            status.message,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
        let many = vec![json!({"op": "test", "path": "/data/s", "value": "1"}); OPERATIONS_LIMIT + 1];
        assert_eq!(apply(document, &Value::Array(many)).expect_err("refused").code, 413);
    }

    #[test]
    fn copies_are_bounded() {
        let twice = vec![json!({"op": "copy", "from": "", "path": "/l/-"}); 40];
        assert_eq!(apply(json!({"l": ["x"]}), &Value::Array(twice)).expect_err("refused").code, 422);
        let deeper = vec![json!({"op": "copy", "from": "", "path": "/a"}); 200];
        assert_eq!(apply(json!({}), &Value::Array(deeper)).expect_err("refused").code, 422);
    }
}
