//! Defaults from data: what upstream's hand-written `SetDefaults` functions set as plain values, and the
//! empty structs and zeros that Go prints because they are not pointers.

use super::{Default, Field, Kind, Shape, TypeRef};
use serde_json::{Map, Value};

/// Fills in what is absent, parents before children. Values that are there are never changed.
pub fn apply_defaults(schema: TypeRef, value: &mut Value) {
    let Value::Object(map) = value else { return };
    if !schema.filled {
        return;
    }
    for field in schema.fields.iter().filter(|field| field.fills()) {
        fill(map, field);
    }
    for default in schema.defaults {
        if !default.skipped(map) {
            set(schema, map, default);
        }
    }
    for (name, child) in map {
        if let Some(field) = schema.field(name) {
            descend(field, child);
        }
    }
}

fn fill(map: &mut Map<String, Value>, field: &Field) {
    if map.get(field.name).is_none_or(Value::is_null) {
        let zero = match field.shape.kind() {
            Kind::Ref(_) => Value::Object(Map::new()),
            Kind::String => Value::from(""),
            Kind::Bool => Value::from(false),
            _ => Value::from(0),
        };
        map.insert(field.name.to_owned(), zero);
    }
}

fn descend(field: &Field, child: &mut Value) {
    let Some(schema) = field.shape.kind().type_ref().filter(|schema| schema.filled) else { return };
    match (field.shape, child) {
        (Shape::One(_), child) => apply_defaults(schema, child),
        (Shape::List(_), Value::Array(items)) => items.iter_mut().for_each(|item| apply_defaults(schema, item)),
        (Shape::Map(_), Value::Object(items)) => items.values_mut().for_each(|item| apply_defaults(schema, item)),
        _ => {}
    }
}

/// Walks the default's path; an absent parent means that nothing is set.
fn set(schema: TypeRef, map: &mut Map<String, Value>, default: &Default) {
    let (last, parents) = default.path.split_last().expect("a default names a field");
    let mut place = map;
    let mut owner = Some(schema);
    for part in parents {
        owner = owner.and_then(|owner| owner.field(part)).and_then(|field| field.shape.kind().type_ref());
        match place.get_mut(*part) {
            Some(Value::Object(next)) => place = next,
            _ => return,
        }
    }
    let field = owner.and_then(|owner| owner.field(last));
    if place.get(*last).is_none_or(|there| unset(field, there)) {
        let value = serde_json::from_str(default.value).expect("defaults.txt holds JSON");
        place.insert((*last).to_owned(), value);
    }
}

/// Go cannot tell a zero from absence where the field is no pointer.
fn unset(field: Option<&Field>, there: &Value) -> bool {
    let pointer = field.is_some_and(Field::pointer);
    match there {
        Value::Null => true,
        Value::String(text) => text.is_empty() && !pointer,
        Value::Number(number) => number.as_i64() == Some(0) && !pointer,
        Value::Array(items) => items.is_empty() && !pointer,
        _ => false,
    }
}

impl Default {
    fn skipped(&self, map: &Map<String, Value>) -> bool {
        let present = |name: &str| map.get(name).is_some_and(|value| !value.is_null());
        if present(self.unless) {
            return true;
        }
        let Some((field, values)) = self.when else { return false };
        let there = map.get(field).and_then(Value::as_str).unwrap_or_default();
        !values.contains(&there)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{find, prune};
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Deserialize)]
    struct Recorded {
        recorded: String,
        r#type: String,
        sent: Value,
        answered: Value,
    }

    /// Answers of Kubernetes 1.36 to minimal objects, without what admission, strategies and hooks set.
    #[test]
    fn defaults_equal_the_recorded_answers() {
        let cases = include_str!("../../../tests/data/scheme/defaults.json");
        let cases: Vec<Recorded> = serde_json::from_str(cases).expect("test data");
        for mut case in cases {
            let schema = find(&case.r#type).expect("recorded types are in the table");
            prune(schema, &mut case.sent);
            super::apply_defaults(schema, &mut case.sent);
            assert_eq!(case.sent, case.answered, "{}", case.recorded);
        }
    }
}
