//! Objects into messages. What JSON leaves out is left out: Go reads it as zero.

use super::{DEPTH_LIMIT, MAGIC};
use crate::api::object::ObjectExt;
use crate::api::scheme::{Field, Kind, Shape, TypeRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// An object with its envelope. Values of a wrong type are left out.
pub fn encode(schema: TypeRef, object: &Value) -> Vec<u8> {
    let mut meta = Message::default();
    meta.bytes(1, object.api_version().as_bytes());
    meta.bytes(2, object.kind().as_bytes());
    let mut raw = Message::default();
    if let Value::Object(map) = object {
        raw.object(schema, map, 0);
    }
    let mut unknown = Message::default();
    unknown.bytes(1, &meta.0);
    unknown.bytes(2, &raw.0);
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    [MAGIC, &unknown.0].concat()
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn object(&mut self, schema: TypeRef, map: &Map<String, Value>, depth: usize) {
        if depth > DEPTH_LIMIT {
            return;
        }
        for (name, value) in map {
            if let Some(field) = schema.field(name).filter(|field| field.tags[0] > 0) {
                self.field(field, value, depth);
            }
        }
    }

    /// A field of an embedded struct is wrapped by itself; readers merge the messages of one tag.
    fn field(&mut self, field: &Field, value: &Value, depth: usize) {
        let tags = field.tags.split(|tag| *tag == 0).next().unwrap_or_default();
        let Some((tag, outer)) = tags.split_last() else { return };
        let mut inner = Self::default();
        match (field.shape, value) {
            (Shape::One(kind), value) => inner.value(*tag, kind, value, depth),
            (Shape::List(kind), Value::Array(items)) => {
                items.iter().for_each(|item| inner.value(*tag, kind, item, depth));
            }
            (Shape::Map(kind), Value::Object(items)) => {
                for (key, item) in items {
                    let mut entry = Self::default();
                    entry.bytes(1, key.as_bytes());
                    entry.value(2, kind, item, depth);
                    inner.bytes(*tag, &entry.0);
                }
            }
            _ => {}
        }
        for tag in outer.iter().rev() {
            let mut wrapped = Self::default();
            wrapped.bytes(*tag, &inner.0);
            inner = wrapped;
        }
        self.0.extend_from_slice(&inner.0);
    }

    fn value(&mut self, tag: u8, kind: Kind, value: &Value, depth: usize) {
        match (kind, value) {
            (_, Value::Null) => {}
            (Kind::String, Value::String(text)) => self.bytes(tag, text.as_bytes()),
            (Kind::Bool, Value::Bool(on)) => self.number(tag, i64::from(*on)),
            (Kind::Int32 | Kind::Int64, Value::Number(number)) => self.number(tag, number.as_i64().unwrap_or(0)),
            (Kind::Double, Value::Number(number)) => {
                self.varint(u64::from(tag) << 3 | 1);
                self.0.extend_from_slice(&number.as_f64().unwrap_or(0.0).to_le_bytes());
            }
            (Kind::Bytes, Value::String(text)) => self.bytes(tag, &STANDARD.decode(text).unwrap_or_default()),
            (Kind::Ref(_), Value::Object(map)) => {
                let schema = kind.type_ref().expect("a reference has a type");
                self.message(tag, |inner| inner.object(schema, map, depth + 1));
            }
            (kind, value) => self.message(tag, |inner| inner.special(kind, value, depth + 1)),
        }
    }

    /// Kinds that JSON writes as a scalar, or as anything, and protobuf as a message.
    fn special(&mut self, kind: Kind, value: &Value, depth: usize) {
        match (kind, value) {
            (Kind::Time | Kind::MicroTime, Value::String(text)) => {
                if let Ok(time) = text.parse::<Timestamp>() {
                    self.number(1, time.as_second());
                    self.number(2, i64::from(time.subsec_nanosecond()));
                }
            }
            (Kind::Quantity, Value::String(text)) => self.bytes(1, text.as_bytes()),
            (Kind::IntOrString, Value::String(text)) => {
                self.number(1, 1);
                self.bytes(3, text.as_bytes());
            }
            (Kind::IntOrString, Value::Number(number)) => self.number(2, number.as_i64().unwrap_or(0)),
            (Kind::Raw | Kind::FieldsV1 | Kind::Json, value) => self.bytes(1, value.to_string().as_bytes()),
            (Kind::Strings, Value::Array(items)) => self.texts(1, items),
            (Kind::SchemaOrStrings, Value::Array(items)) => self.texts(2, items),
            (Kind::SchemaOrBool, Value::Bool(on)) => self.number(1, i64::from(*on)),
            (Kind::SchemaOrBool, Value::Object(_)) => {
                self.number(1, 1);
                self.schema(2, kind, value, depth);
            }
            (Kind::SchemaOrArray | Kind::SchemaOrStrings, Value::Object(_)) => self.schema(1, kind, value, depth),
            (Kind::SchemaOrArray, Value::Array(items)) => {
                items.iter().for_each(|item| self.schema(2, kind, item, depth));
            }
            _ => {}
        }
    }

    fn schema(&mut self, tag: u8, kind: Kind, value: &Value, depth: usize) {
        if let (Some(schema), Value::Object(map)) = (kind.type_ref(), value) {
            self.message(tag, |inner| inner.object(schema, map, depth));
        }
    }

    fn texts(&mut self, tag: u8, items: &[Value]) {
        items.iter().filter_map(Value::as_str).for_each(|text| self.bytes(tag, text.as_bytes()));
    }

    fn message(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(tag, &inner.0);
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, tag: u8, number: i64) {
        self.varint(u64::from(tag) << 3);
        self.varint(number.cast_unsigned());
    }

    #[allow(clippy::cast_possible_truncation, reason = "seven bits fit a byte")]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}
