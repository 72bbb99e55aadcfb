//! One object in flight: a `serde_json::Value` with helpers for the metadata every kind has.
//! Maps are sorted (serde_json's default), so equal objects encode to equal bytes.

use serde_json::{Map, Value};

/// An object of any kind while a request works on it. It never outlives the request.
pub type Object = Value;

/// Reads and writes the fields that every object has. Missing fields read as empty.
pub trait ObjectExt {
    /// `a.b.c` by parts; `None` when any part is missing.
    fn at(&self, path: &[&str]) -> Option<&Value>;
    /// A string by path; empty when missing or of another type.
    fn str_at(&self, path: &[&str]) -> &str;
    /// An integer by path.
    fn int_at(&self, path: &[&str]) -> Option<i64>;
    /// Sets a value by path and makes the objects on the way.
    fn set(&mut self, path: &[&str], value: Value);
    /// Removes a value by path and returns it.
    fn unset(&mut self, path: &[&str]) -> Option<Value>;
    /// The map at `metadata`, made when missing.
    fn metadata_mut(&mut self) -> &mut Map<String, Value>;

    fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"])
    }
    fn kind(&self) -> &str {
        self.str_at(&["kind"])
    }
    fn name(&self) -> &str {
        self.str_at(&["metadata", "name"])
    }
    fn namespace(&self) -> &str {
        self.str_at(&["metadata", "namespace"])
    }
    fn uid(&self) -> &str {
        self.str_at(&["metadata", "uid"])
    }
    fn resource_version(&self) -> &str {
        self.str_at(&["metadata", "resourceVersion"])
    }
    fn generation(&self) -> i64 {
        self.int_at(&["metadata", "generation"]).unwrap_or(0)
    }
    fn deletion_timestamp(&self) -> Option<&str> {
        self.at(&["metadata", "deletionTimestamp"]).and_then(Value::as_str)
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.at(&["metadata", "labels", key]).and_then(Value::as_str)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.at(&["metadata", "annotations", key]).and_then(Value::as_str)
    }
    fn finalizers(&self) -> Vec<&str> {
        let list = self.at(&["metadata", "finalizers"]).and_then(Value::as_array);
        list.map(|items| items.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }
    fn owner_references(&self) -> &[Value] {
        let list = self.at(&["metadata", "ownerReferences"]).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    }
    /// The owner reference with `controller: true`.
    fn controller_ref(&self) -> Option<&Value> {
        self.owner_references().iter().find(|owner| owner.at(&["controller"]) == Some(&Value::Bool(true)))
    }
}

impl ObjectExt for Value {
    fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |value, part| value.get(*part))
    }

    fn str_at(&self, path: &[&str]) -> &str {
        self.at(path).and_then(Value::as_str).unwrap_or_default()
    }

    fn int_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path).and_then(Value::as_i64)
    }

    fn set(&mut self, path: &[&str], value: Value) {
        let mut place = self;
        for part in path {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = place.as_object_mut().expect("made an object above").entry(*part).or_insert(Value::Null);
        }
        *place = value;
    }

    fn unset(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let parent = parents.iter().try_fold(self, |value, part| value.get_mut(*part))?;
        parent.as_object_mut()?.remove(*last)
    }

    fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        if !self.get("metadata").is_some_and(Value::is_object) {
            self.set(&["metadata"], Value::Object(Map::new()));
        }
        self.get_mut("metadata").and_then(Value::as_object_mut).expect("metadata is an object")
    }
}
