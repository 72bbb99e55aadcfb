//! Checks a decoded tree against its type as Go's decoder would: the first value of a wrong type is an
//! error in Go's words, unknown fields are listed; quantities, times and base64 get their canonical form.

use crate::api::quantity::Quantity;
use crate::api::scheme::{Field, Kind, Shape, TypeRef};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use jiff::Timestamp;
use serde_json::Value;

/// The unknown fields named; more are pruned silently.
const UNKNOWN_LIMIT: usize = 100;

/// Go ignores bits after the last whole byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// The unknown fields, with their paths. YAML 1.1 words (`yes`, `0644`) are read where the type asks for
/// a boolean or a number.
pub fn check(schema: TypeRef, value: &mut Value, yaml: bool) -> Result<Vec<String>, String> {
    let mut checker = Checker { yaml, ..Checker::default() };
    checker.object(schema, value)?;
    Ok(checker.unknown)
}

#[derive(Default)]
struct Checker {
    yaml: bool,
    unknown: Vec<String>,
    /// `spec.containers[0]`
    path: String,
    /// `spec.containers`: what Go's errors carry, after the name of the innermost struct.
    fields: Vec<&'static str>,
    owner: &'static str,
}

impl Checker {
    fn object(&mut self, schema: TypeRef, value: &mut Value) -> Result<(), String> {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => return Ok(()),
            other => return Err(self.mismatch(other, schema.go_name())),
        };
        let outer = std::mem::replace(&mut self.owner, schema.short_name());
        for (name, child) in map {
            match schema.field(name) {
                Some(field) => {
                    self.fields.push(field.name);
                    self.within(field.name, |checker| checker.field(field, child))?;
                    self.fields.pop();
                }
                None if self.unknown.len() < UNKNOWN_LIMIT => {
                    let path = self.within(name, |checker| checker.path.clone());
                    self.unknown.push(path);
                }
                None => {}
            }
        }
        self.owner = outer;
        Ok(())
    }

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

    fn field(&mut self, field: &'static Field, value: &mut Value) -> Result<(), String> {
        match (field.shape, value) {
            (_, Value::Null) => Ok(()),
            (Shape::One(kind), value) => self.kind(kind, field, value),
            (Shape::List(kind), Value::Array(items)) => items
                .iter_mut()
                .enumerate()
                .try_for_each(|(at, item)| self.within(&format!("[{at}]"), |checker| checker.element(kind, item))),
            (Shape::Map(kind), Value::Object(items)) => {
                items.iter_mut().try_for_each(|(key, item)| self.within(key, |checker| checker.element(kind, item)))
            }
            (_, other) => Err(self.mismatch(other, &field.go_type())),
        }
    }

    fn element(&mut self, kind: Kind, value: &mut Value) -> Result<(), String> {
        if value.is_null() { Ok(()) } else { self.value(kind, kind.go_type(), value) }
    }

    fn kind(&mut self, kind: Kind, field: &'static Field, value: &mut Value) -> Result<(), String> {
        let named = field.more().go_type;
        self.value(kind, if named.is_empty() { kind.go_type() } else { named }, value)
    }

    fn value(&mut self, kind: Kind, go_type: &str, value: &mut Value) -> Result<(), String> {
        if self.yaml {
            read_yaml_word(kind, value);
        }
        match kind {
            Kind::String => self.expect(value.is_string(), value, go_type),
            Kind::Bool => self.expect(value.is_boolean(), value, go_type),
            Kind::Double => self.expect(value.is_number(), value, go_type),
            Kind::Int32 => self.integer(value, go_type, |number| i32::try_from(number).is_ok()),
            Kind::Int64 => self.integer(value, go_type, |_| true),
            Kind::Bytes => self.bytes(value, go_type),
            Kind::Time => time(value, |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            Kind::MicroTime => time(value, |time| time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()),
            Kind::Quantity => quantity(value),
            Kind::IntOrString => int_or_string(value),
            Kind::Strings => self.strings(value, go_type),
            Kind::Raw | Kind::FieldsV1 | Kind::Json => Ok(()),
            Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => self.union(kind, value),
            Kind::Ref(_) => {
                let schema = kind.type_ref().expect("a reference has a type");
                self.object(schema, value)
            }
        }
    }

    fn expect(&self, right: bool, value: &Value, go_type: &str) -> Result<(), String> {
        if right { Ok(()) } else { Err(self.mismatch(value, go_type)) }
    }

    fn integer(&self, value: &Value, go_type: &str, fits: impl Fn(i64) -> bool) -> Result<(), String> {
        match value {
            Value::Number(number) if number.as_i64().is_some_and(fits) => Ok(()),
            Value::Number(number) => Err(self.error(&format!("number {number}"), go_type)),
            other => Err(self.mismatch(other, go_type)),
        }
    }

    fn bytes(&self, value: &mut Value, go_type: &str) -> Result<(), String> {
        let Value::String(text) = value else { return Err(self.mismatch(value, go_type)) };
        let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        let bytes = BASE64.decode(&clean).map_err(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => clean.len(),
            };
            format!("illegal base64 data at input byte {at}")
        })?;
        *text = BASE64.encode(bytes);
        Ok(())
    }

    fn strings(&self, value: &Value, go_type: &str) -> Result<(), String> {
        let Value::Array(items) = value else { return Err(self.mismatch(value, go_type)) };
        let wrong = items.iter().find(|item| !item.is_string());
        wrong.map_or(Ok(()), |item| Err(self.mismatch(item, "string")))
    }

    /// The three unions of JSON schemas.
    fn union(&mut self, kind: Kind, value: &mut Value) -> Result<(), String> {
        let schema = kind.type_ref().expect("a union holds schemas");
        match (kind, value) {
            (_, value @ Value::Object(_)) => self.object(schema, value),
            (Kind::SchemaOrArray, Value::Array(items)) => {
                items.iter_mut().try_for_each(|item| self.object(schema, item))
            }
            (Kind::SchemaOrBool, Value::Bool(_)) => Ok(()),
            (Kind::SchemaOrBool, _) => Err("boolean or JSON schema expected".to_owned()),
            (Kind::SchemaOrStrings, value @ Value::Array(_)) => self.strings(value, "[]string"),
            (_, other) => Err(self.mismatch(other, kind.go_type())),
        }
    }

    fn mismatch(&self, value: &Value, go_type: &str) -> String {
        let what = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.error(what, go_type)
    }

    fn error(&self, what: &str, go_type: &str) -> String {
        if self.fields.is_empty() {
            return format!("json: cannot unmarshal {what} into Go value of type {go_type}");
        }
        let path = self.fields.join(".");
        format!("json: cannot unmarshal {what} into Go struct field {}.{path} of type {go_type}", self.owner)
    }
}

/// What YAML 1.1 reads as booleans and octal numbers, and our YAML 1.2 parser as strings.
fn read_yaml_word(kind: Kind, value: &mut Value) {
    let Value::String(text) = value else { return };
    let read = match (kind, text.as_str()) {
        (Kind::Bool, "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y") => Some(Value::from(true)),
        (Kind::Bool, "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N") => Some(Value::from(false)),
        (Kind::Int32 | Kind::Int64 | Kind::IntOrString, octal) if octal.len() > 1 && octal.starts_with('0') => {
            i64::from_str_radix(octal.trim_start_matches("0o"), 8).ok().map(Value::from)
        }
        _ => None,
    };
    if let Some(read) = read {
        *value = read;
    }
}

fn time(value: &mut Value, print: impl Fn(Timestamp) -> String) -> Result<(), String> {
    let Value::String(text) = value else { return Err(plain_mismatch(value, "string")) };
    let strict = text.len() >= 20 && text.as_bytes()[10] == b'T';
    match text.parse::<Timestamp>() {
        Ok(time) if strict => {
            *text = print(time);
            Ok(())
        }
        _ => Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")),
    }
}

fn quantity(value: &mut Value) -> Result<(), String> {
    let parsed = Quantity::from_value(value).map_err(|error| error.to_string())?;
    *value = Value::from(parsed.to_string());
    Ok(())
}

fn int_or_string(value: &Value) -> Result<(), String> {
    match value {
        Value::String(_) => Ok(()),
        Value::Number(number) if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => Ok(()),
        Value::Number(number) => Err(format!("json: cannot unmarshal number {number} into Go value of type int32")),
        other => Err(plain_mismatch(other, "int32")),
    }
}

/// Types with a decoder of their own report no field.
fn plain_mismatch(value: &Value, go_type: &str) -> String {
    Checker::default().mismatch(value, go_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::scheme::find;
    use serde_json::json;

    fn pod(mut value: Value) -> Result<(Vec<String>, Value), String> {
        let unknown = check(find("io.k8s.api.core.v1.Pod").expect("pods"), &mut value, false)?;
        Ok((unknown, value))
    }

    #[test]
    fn wrong_types_are_worded_as_go_does() {
        let quantities = "quantities must match the regular expression \
                          '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        let container = |field: &str, value: Value| json!({"spec": {"containers": [{field: value}]}});
        let cases = [
            (json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
            (json!({"spec": []}), "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
            (
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                container("image", json!(1)),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                container("env", json!([{"name": "A", "value": true}])),
                "json: cannot unmarshal bool into Go struct field EnvVar.spec.containers.env.value of type string",
            ),
            (
                json!({"spec": {"restartPolicy": 1}}),
                "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                json!({"spec": {"priority": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"spec": {"priority": 3_000_000_000_i64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (container("resources", json!({"limits": {"cpu": "abc"}})), quantities),
            (
                container("ports", json!([{"containerPort": "80"}])),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort \
                 of type int32",
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(pod(value.clone()).err().as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn unknown_fields_have_their_paths() {
        let value = json!({"bogus": 1, "spec": {"containers": [{"name": "a"}, {"nmae": "b"}], "x": {}}});
        let (unknown, _) = pod(value).expect("types are right");
        assert_eq!(unknown, ["bogus", "spec.containers[1].nmae", "spec.x"]);
    }

    #[test]
    fn quantities_and_times_become_canonical() {
        let value = json!({
            "metadata": {"creationTimestamp": "2026-01-01T02:00:00.5+02:00"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi", "x": 1}}}]},
        });
        let (_, value) = pod(value).expect("types are right");
        assert_eq!(value["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
        let limits = json!({"cpu": "500m", "memory": "1Gi", "x": "1"});
        assert_eq!(value["spec"]["containers"][0]["resources"]["limits"], limits);
    }

    #[test]
    fn yaml_words_follow_the_type() {
        let mut value = json!({"spec": {"hostNetwork": "yes", "nodeName": "yes",
            "volumes": [{"secret": {"defaultMode": "0644"}}]}});
        check(find("io.k8s.api.core.v1.Pod").expect("pods"), &mut value, true).expect("types are right");
        assert_eq!(
            value,
            json!({"spec": {"hostNetwork": true, "nodeName": "yes",
            "volumes": [{"secret": {"defaultMode": 420}}]}})
        );
    }
}
