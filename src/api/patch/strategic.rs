//! Strategic merge patch: lists merge by the key their type names, directives say what merging cannot.
//! The resulting order of merged lists is upstream's, item by item (k8s.io/apimachinery's strategicpatch).

use super::rejected;
use crate::api::scheme::{Field, Shape, TypeRef};
use crate::api::status::{Result, Status};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

pub fn apply(document: Value, patch: &Value, schema: TypeRef) -> Result<Value> {
    let Value::Object(members) = patch else {
        let what = if patch.is_array() { "array" } else { "value" };
        let into = "into Go value of type map[string]interface {}";
        return Err(Status::bad_request(format!("json: cannot unmarshal {what} {into}")));
    };
    let original = match document {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    merge_map(original, members.clone(), Place::Type(schema)).map(Value::Object)
}

/// Where in the types the walk is.
#[derive(Clone, Copy)]
enum Place {
    Type(TypeRef),
    /// A map whose values are of one type.
    Values(Option<TypeRef>),
    /// Free-form: plain merging.
    Free,
}

/// How the field under a key merges.
struct Rule {
    place: Place,
    merge: bool,
    replace: bool,
    merge_key: &'static str,
}

impl Place {
    fn rule(self, key: &str) -> Rule {
        let plain = |place| Rule { place, merge: false, replace: false, merge_key: "" };
        match self {
            Self::Type(schema) => schema.field(key).map_or_else(|| plain(Self::Free), Rule::of),
            Self::Values(inner) => plain(inner.map_or(Self::Free, Self::Type)),
            Self::Free => plain(Self::Free),
        }
    }
}

impl Rule {
    fn of(field: &Field) -> Self {
        let inner = field.shape.kind().type_ref();
        let place = match field.shape {
            Shape::Map(_) => Place::Values(inner),
            _ => inner.map_or(Place::Free, Place::Type),
        };
        let more = field.more();
        Self { place, merge: more.merge, replace: more.replace, merge_key: more.merge_key }
    }
}

type Object = Map<String, Value>;

fn merge_map(mut original: Object, mut patch: Object, place: Place) -> Result<Object> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) if word == "replace" => return Ok(stripped(patch)),
        Some(Value::String(word)) if word == "delete" => return Ok(Map::new()),
        Some(Value::String(word)) if word == "merge" => {}
        Some(_) => return Err(rejected()),
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, place)?;
    for (key, value) in patch {
        merge_member(&mut original, key, value, place)?;
    }
    Ok(original)
}

fn merge_member(original: &mut Object, key: String, value: Value, place: Place) -> Result<()> {
    if let Some(name) = key.strip_prefix(DELETE_PRIMITIVES) {
        if let (Some(Value::Array(items)), Value::Array(unwanted)) = (original.get_mut(name), &value) {
            items.retain(|item| !unwanted.contains(item));
        }
        return Ok(());
    }
    if value.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let rule = place.rule(&key);
    let merged = match (original.remove(&key), value) {
        (Some(Value::Object(there)), Value::Object(patch)) if !rule.replace => {
            Some(Value::Object(merge_map(there, patch, rule.place)?))
        }
        (Some(Value::Array(there)), Value::Array(patch)) if rule.merge => {
            Some(Value::Array(merge_list(there, patch, &rule)?))
        }
        (_, value) => strip(value),
    };
    if let Some(merged) = merged {
        original.insert(key, merged);
    }
    Ok(())
}

/// `$retainKeys` lists every member that may stay.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || Status::bad_request("invalid patch format of retainKeys");
    let Value::Array(keys) = keys else { return Err(bad()) };
    let kept = |name: &String| keys.iter().any(|key| key.as_str() == Some(name));
    let directive = |name: &str| name.starts_with(ELEMENT_ORDER) || name.starts_with(DELETE_PRIMITIVES);
    if patch.iter().any(|(name, value)| !value.is_null() && !directive(name) && !kept(name)) {
        return Err(bad());
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

/// `$setElementOrder/x` together with `x`.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, place: Place) -> Result<()> {
    let names: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(ELEMENT_ORDER)).map(str::to_owned).collect();
    for name in names {
        let order = patch.remove(&format!("{ELEMENT_ORDER}{name}"));
        let Some(Value::Array(order)) = order else {
            return Err(Status::bad_request("invalid patch format of setElementOrder list"));
        };
        let rule = place.rule(&name);
        let there = match original.get(&name) {
            Some(Value::Array(items)) => Some(items.clone()),
            _ => None,
        };
        let wanted = match patch.remove(&name) {
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) => {
                original.remove(&name);
                continue;
            }
            _ => None,
        };
        let merged = match (there.clone(), wanted) {
            (None, None) => continue,
            (Some(there), None) => there,
            (None, Some(wanted)) => {
                check_order(&wanted, &order, rule.merge_key)?;
                wanted.into_iter().filter_map(strip).collect()
            }
            (Some(there), Some(wanted)) => {
                check_order(&wanted, &order, rule.merge_key)?;
                if rule.merge { merge_list(there, wanted, &rule)? } else { wanted }
            }
        };
        let sorted = sort(merged, &order, &there.unwrap_or_default(), rule.merge_key);
        original.insert(name, Value::Array(sorted));
    }
    Ok(())
}

/// The items that a patch sets must stand in the order it asks for.
fn check_order(wanted: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    let mut next = 0;
    for item in wanted.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        match order[next..].iter().position(|one| same(one, item, merge_key)) {
            Some(at) => next += at,
            None => {
                let (wanted, order) = (Value::from(wanted.to_vec()), Value::from(order.to_vec()));
                return Err(Status::bad_request(format!(
                    "The order in patch list:\n{wanted}\n doesn't match $setElementOrder list:\n{order}\n"
                )));
            }
        }
    }
    Ok(())
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, rule: &Rule) -> Result<Vec<Value>> {
    let objects = original.iter().chain(&patch).any(Value::is_object);
    if !objects {
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(sort(merged, &patch, &original, ""));
    }
    if rule.merge_key.is_empty() {
        return Err(Status::new(500, "", "cannot merge lists without merge key"));
    }
    let (mut merged, patch) = match special_items(original, patch, rule.merge_key)? {
        (None, patch) => return Ok(patch.into_iter().filter_map(strip).collect()),
        (Some(original), patch) => (original, patch),
    };
    let server_order = merged.clone();
    for item in &patch {
        let Value::Object(item) = item else { return Err(rejected()) };
        let Some(key) = item.get(rule.merge_key) else { return Err(no_merge_key(item, rule.merge_key)) };
        let found = merged.iter_mut().find(|there| there.get(rule.merge_key) == Some(key));
        match found {
            Some(Value::Object(there)) => {
                let merged_item = merge_map(std::mem::take(there), item.clone(), rule.place)?;
                *there = merged_item;
            }
            _ => merged.extend(strip(Value::Object(item.clone()))),
        }
    }
    Ok(sort(merged, &patch, &server_order, rule.merge_key))
}

/// Carries out `$patch` items; what remains of both lists. No original: the patch replaces it.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Option<Vec<Value>>, Vec<Value>)> {
    let mut ordinary = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE).map(|word| word.as_str().unwrap_or_default()) {
            None => ordinary.push(item),
            Some("delete") => {
                let Some(key) = item.get(merge_key) else {
                    return Err(no_merge_key(item.as_object().unwrap_or(&Map::new()), merge_key));
                };
                original.retain(|there| there.get(merge_key) != Some(key));
            }
            Some("replace") => replace = true,
            Some(_) => return Err(rejected()),
        }
    }
    Ok(((!replace).then_some(original), ordinary))
}

fn no_merge_key(item: &Object, merge_key: &str) -> Status {
    let item = Value::Object(item.clone());
    Status::new(500, "", format!("map: {item} does not contain declared merge key: {merge_key}"))
}

/// Items of the patch in its order, the server's own in theirs; between the two the server's order
/// decides where it knows both, else the patch's items come first.
fn sort(merged: Vec<Value>, patch_order: &[Value], server_order: &[Value], merge_key: &str) -> Vec<Value> {
    let position = |order: &[Value], item: &Value| order.iter().position(|one| same(one, item, merge_key));
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(patch_order, item).is_some());
    ours.sort_by_key(|item| position(patch_order, item));
    theirs.sort_by_key(|item| position(server_order, item));
    let mut sorted = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let next = match (theirs.peek(), ours.peek()) {
            (Some(server), Some(patch)) => match (position(server_order, server), position(server_order, patch)) {
                (Some(server), Some(patch)) if server < patch => theirs.next(),
                _ => ours.next(),
            },
            (Some(_), None) => theirs.next(),
            _ => ours.next(),
        };
        match next {
            Some(item) => sorted.push(item),
            None => return sorted,
        }
    }
}

/// The same element: by merge key, or as a whole where there is none.
fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        return a == b;
    }
    a.get(merge_key).is_some_and(|key| b.get(merge_key) == Some(key))
}

/// A new value without nulls and directives; `None` when it says that it is to be deleted.
fn strip(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.get(DIRECTIVE).is_some_and(|word| word == "delete") => None,
        Value::Object(map) => Some(Value::Object(stripped(map))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(strip).collect())),
        other => Some(other),
    }
}

fn stripped(map: Object) -> Object {
    let directive = |name: &str| {
        name == DIRECTIVE
            || name == RETAIN_KEYS
            || name.starts_with(ELEMENT_ORDER)
            || name.starts_with(DELETE_PRIMITIVES)
    };
    let members = map.into_iter().filter(|(name, value)| !value.is_null() && !directive(name));
    members.filter_map(|(name, value)| Some((name, strip(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::scheme::find;
    use serde_json::json;

    fn patched(document: Value, patch: Value) -> Result<Value> {
        apply(document, &patch, find("io.k8s.api.apps.v1.Deployment").expect("deployments"))
    }

    /// The pod spec of a Deployment after a patch to it.
    fn spec(document: Value, patch: Value) -> Result<Value> {
        let at = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        patched(at(document), at(patch)).map(|mut done| done["spec"]["template"]["spec"].take())
    }

    #[test]
    fn lists_merge_by_key_and_new_items_come_first() {
        let two = json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]});
        let cases = [
            (
                json!({"containers": [{"name": "b", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]}),
            ),
            (
                json!({"containers": [{"name": "c", "image": "3"}]}),
                json!({"containers": [
                    {"name": "c", "image": "3"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"},
                ]}),
            ),
            (
                json!({"containers": [{"name": "a", "args": ["y", "z"], "image": null}]}),
                json!({"containers": [{"name": "a", "args": ["y", "z"]}, {"name": "b", "image": "1"}]}),
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b", "image": "1"}]}),
            ),
            (json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}), json!({"containers": [{"name": "z"}]})),
            (
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                json!({"containers": [{"name": "b", "image": "1"}, {"name": "a", "image": "1", "args": ["x"]}]}),
            ),
            (
                json!({
                    "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
                    "containers": [{"name": "c", "image": "3"}],
                }),
                json!({"containers": [
                    {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}, {"name": "c", "image": "3"},
                ]}),
            ),
        ];
        for (patch, expected) in cases {
            assert_eq!(spec(two.clone(), patch.clone()), Ok(expected), "{patch}");
        }
    }

    /// What `kubectl apply` sends when another client has added a container meanwhile.
    #[test]
    fn the_servers_own_items_keep_their_place() {
        let document = json!({"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"name": "b", "image": "2"}],
        });
        let expected = json!({"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b", "image": "2"}]});
        assert_eq!(spec(document, patch), Ok(expected));
    }

    #[test]
    fn primitive_lists_merge_delete_and_order() {
        let document = json!({"metadata": {"finalizers": ["a", "b"]}});
        let cases = [
            (json!({"finalizers": ["c"]}), json!(["c", "a", "b"])),
            (json!({"finalizers": ["b"]}), json!(["a", "b"])),
            (json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"])),
            (
                json!({
                    "$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["c"],
                    "$setElementOrder/finalizers": ["a", "c"],
                }),
                json!(["a", "c"]),
            ),
            (json!({"finalizers": null}), Value::Null),
        ];
        for (patch, expected) in cases {
            let done = patched(document.clone(), json!({"metadata": patch})).expect("accepted");
            assert_eq!(done["metadata"]["finalizers"], expected, "{patch}");
        }
    }

    #[test]
    fn retain_keys_and_map_directives() {
        let rolling = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let recreate = json!({"spec": {"strategy": {"type": "Recreate"}}});
        assert_eq!(patched(rolling.clone(), patch), Ok(recreate.clone()));
        let patch = json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}});
        assert_eq!(patched(rolling.clone(), patch), Ok(recreate));
        let patch = json!({"spec": {"strategy": {"$patch": "delete"}}});
        assert_eq!(patched(rolling.clone(), patch), Ok(json!({"spec": {"strategy": {}}})));
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
        assert_eq!(patched(rolling, patch).expect_err("refused").message, "invalid patch format of retainKeys");
        let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let patch =
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]});
        assert_eq!(spec(volumes, patch), Ok(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})));
    }

    #[test]
    fn maps_merge_atomic_lists_replace_and_nulls_go() {
        let document = json!({
            "nodeSelector": {"a": "1", "b": "2"}, "tolerations": [{"key": "x"}],
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}],
        });
        let patch = json!({
            "nodeSelector": {"a": null, "c": "3"}, "tolerations": [{"key": "y"}],
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
            "affinity": {"nodeAffinity": null, "podAffinity": {}},
        });
        let expected = json!({
            "nodeSelector": {"b": "2", "c": "3"}, "tolerations": [{"key": "y"}], "affinity": {"podAffinity": {}},
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}]}],
        });
        assert_eq!(spec(document, patch), Ok(expected));
    }

    #[test]
    fn a_list_item_needs_its_merge_key() {
        let document = json!({"containers": [{"name": "a"}]});
        let status = spec(document.clone(), json!({"containers": [{"image": "x"}]})).expect_err("refused");
        assert_eq!(status.message, "map: {\"image\":\"x\"} does not contain declared merge key: name");
        let order = json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]});
        assert_eq!(spec(document, order).expect_err("refused").code, 400);
    }
}
