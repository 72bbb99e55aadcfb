//! JSON and YAML into a `Value`, noting each key that a map repeats: the last one wins, as in Go.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// What a document says, and the paths of the keys it says twice.
pub struct Tree {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// The paths noted are bounded: a body full of repetitions tells its first ones.
const DUPLICATES_LIMIT: usize = 100;

pub fn json(body: &[u8]) -> Result<Tree, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut notes = Notes::default();
    let value = Node(&mut notes).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Tree { value, duplicates: notes.duplicates })
}

/// The first document of a YAML stream.
pub fn yaml(body: &[u8]) -> Result<Tree, serde_yaml::Error> {
    let mut notes = Notes::default();
    let value = match serde_yaml::Deserializer::from_slice(body).next() {
        Some(document) => Node(&mut notes).deserialize(document)?,
        None => Value::Null,
    };
    Ok(Tree { value, duplicates: notes.duplicates })
}

#[derive(Default)]
struct Notes {
    path: String,
    duplicates: Vec<String>,
}

impl Notes {
    /// Runs `inner` one step deeper in the path.
    fn within<T>(&mut self, step: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = inner(self);
        self.path.truncate(length);
        result
    }
}

struct Node<'a>(&'a mut Notes);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("json: unsupported value: NaN or infinity"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let step = format!("[{}]", items.len());
            match self.0.within(&step, |notes| access.next_element_seed(Node(notes)))? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let value = self.0.within(&key, |notes| access.next_value_seed(Node(notes)))?;
            if map.contains_key(&key) && self.0.duplicates.len() < DUPLICATES_LIMIT {
                let path = self.0.within(&key, |notes| notes.path.clone());
                if !self.0.duplicates.contains(&path) {
                    self.0.duplicates.push(path);
                }
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// YAML keys may be numbers and booleans; JSON's are strings.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a scalar as key")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_of_a_repeated_key_wins_and_is_noted() {
        let tree = json(br#"{"a":1,"l":[{"x":{"k":1,"k":2}}],"a":{"b":null}}"#).expect("valid JSON");
        assert_eq!(tree.value, json!({"a": {"b": null}, "l": [{"x": {"k": 2}}]}));
        assert_eq!(tree.duplicates, ["l[0].x.k", "a"]);
        assert!(json(b"{} x").is_err());
    }

    #[test]
    fn yaml_keys_become_strings_and_the_first_document_counts() {
        let tree = yaml(b"1: a\ntrue: [x, 2, 1.5, ~]\nd: 1\nd: 2\n---\nother: 1\n").expect("valid YAML");
        assert_eq!(tree.value, json!({"1": "a", "true": ["x", 2, 1.5, null], "d": 2}));
        assert_eq!(tree.duplicates, ["d"]);
    }
}
