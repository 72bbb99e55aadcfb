//! Messages into JSON, field by field as the table has them.

use super::{DEPTH_LIMIT, ProtobufError, Reader, Result, Wire};
use crate::api::scheme::{Field, Kind, Shape, TypeRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

/// A message into the JSON that Go would make of it, before `omitempty` (`scheme::prune` does that).
pub fn decode(schema: TypeRef, message: &[u8]) -> Result<Value> {
    let mut map = Map::new();
    decode_into(schema, &[], message, &mut map, 0)?;
    Ok(Value::Object(map))
}

/// `prefix`: the tags of embedded structs on the way, whose fields JSON flattens.
fn decode_into(
    schema: TypeRef,
    prefix: &[u8],
    message: &[u8],
    map: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(ProtobufError::Depth);
    }
    let mut reader = Reader(message);
    while let Some((tag, wire)) = reader.next()? {
        let Some(tag) = u8::try_from(tag).ok().filter(|tag| *tag > 0) else { continue };
        let mut path = prefix.to_vec();
        path.push(tag);
        if path.len() > 3 {
            continue;
        }
        let mut exact = [0; 3];
        exact[..path.len()].copy_from_slice(&path);
        match schema.fields.iter().find(|field| field.tags == exact) {
            Some(field) => decode_field(field, wire, map, depth)?,
            None if schema.fields.iter().any(|field| field.tags.starts_with(&path)) => {
                decode_into(schema, &path, wire.bytes()?, map, depth + 1)?;
            }
            None => {}
        }
    }
    Ok(())
}

fn decode_field(field: &Field, wire: Wire, map: &mut Map<String, Value>, depth: usize) -> Result<()> {
    let name = field.name.to_owned();
    match field.shape {
        Shape::One(kind) => {
            let value = decode_value(kind, wire, depth)?;
            map.insert(name, value);
        }
        Shape::List(kind) => {
            let list = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = list else { return Ok(()) };
            match wire {
                Wire::Bytes(packed) if matches!(kind, Kind::Int32 | Kind::Int64 | Kind::Bool) => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        let number = reader.varint()?;
                        items.push(decode_value(kind, Wire::Varint(number), depth)?);
                    }
                }
                wire => items.push(decode_value(kind, wire, depth)?),
            }
        }
        Shape::Map(kind) => {
            let (key, value) = decode_entry(kind, wire.bytes()?, depth)?;
            let entries = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
        }
    }
    Ok(())
}

fn decode_entry(kind: Kind, entry: &[u8], depth: usize) -> Result<(String, Value)> {
    let mut reader = Reader(entry);
    let (mut key, mut value) = (String::new(), None);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => key = wire.text()?,
            2 => value = Some(decode_value(kind, wire, depth)?),
            _ => {}
        }
    }
    let empty = if matches!(kind, Kind::Int32 | Kind::Int64 | Kind::Bool) { Wire::Varint(0) } else { Wire::Bytes(&[]) };
    Ok((key, value.map_or_else(|| decode_value(kind, empty, depth), Ok)?))
}

#[allow(clippy::cast_possible_truncation, reason = "protobuf's varints are sign-extended on the wire")]
fn decode_value(kind: Kind, wire: Wire, depth: usize) -> Result<Value> {
    Ok(match kind {
        Kind::String => Value::from(wire.text()?),
        Kind::Bytes => Value::from(STANDARD.encode(wire.bytes()?)),
        Kind::Bool => Value::from(wire.varint()? != 0),
        Kind::Int32 => Value::from(wire.varint()?.cast_signed() as i32),
        Kind::Int64 => Value::from(wire.varint()?.cast_signed()),
        Kind::Double => Number::from_f64(wire.double()?).map_or(Value::Null, Value::Number),
        Kind::Time | Kind::MicroTime => decode_time(kind, wire.bytes()?)?,
        Kind::Quantity => decode_quantity(wire.bytes()?)?,
        Kind::IntOrString => decode_int_or_string(wire.bytes()?)?,
        Kind::Raw | Kind::FieldsV1 | Kind::Json => decode_raw(wire.bytes()?)?,
        Kind::Strings => {
            let mut reader = Reader(wire.bytes()?);
            let mut items = Vec::new();
            while let Some((_, wire)) = reader.next()? {
                items.push(Value::from(wire.text()?));
            }
            Value::Array(items)
        }
        Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => {
            decode_union(kind, wire.bytes()?, depth + 1)?
        }
        Kind::Ref(_) => {
            let mut map = Map::new();
            let schema = kind.type_ref().expect("a reference has a type");
            decode_into(schema, &[], wire.bytes()?, &mut map, depth + 1)?;
            Value::Object(map)
        }
    })
}

/// An empty message is Go's zero time, which JSON does not show.
#[allow(clippy::cast_possible_truncation, reason = "nanoseconds are below 10^9")]
fn decode_time(kind: Kind, message: &[u8]) -> Result<Value> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(message);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => seconds = wire.varint()?.cast_signed(),
            2 => nanos = wire.varint()?.cast_signed() as i32,
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Overflow)?;
    let format = if kind == Kind::Time { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%.6fZ" };
    Ok(Value::from(time.strftime(format).to_string()))
}

fn decode_quantity(message: &[u8]) -> Result<Value> {
    let mut reader = Reader(message);
    let mut text = String::new();
    while let Some((tag, wire)) = reader.next()? {
        if tag == 1 {
            text = wire.text()?;
        }
    }
    Ok(Value::from(if text.is_empty() { "0".to_owned() } else { text }))
}

#[allow(clippy::cast_possible_truncation, reason = "the field is an int32")]
fn decode_int_or_string(message: &[u8]) -> Result<Value> {
    let (mut is_string, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader(message);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => is_string = wire.varint()? == 1,
            2 => number = wire.varint()?.cast_signed() as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_string { Value::from(text) } else { Value::from(number) })
}

/// JSON in a bytes field.
fn decode_raw(message: &[u8]) -> Result<Value> {
    let mut reader = Reader(message);
    let mut raw: &[u8] = &[];
    while let Some((tag, wire)) = reader.next()? {
        if tag == 1 {
            raw = wire.bytes()?;
        }
    }
    Ok(serde_json::from_slice(raw).unwrap_or(Value::Null))
}

fn decode_union(kind: Kind, message: &[u8], depth: usize) -> Result<Value> {
    let mut reader = Reader(message);
    let (mut schema, mut other) = (None, None);
    while let Some((tag, wire)) = reader.next()? {
        let is_schema = (tag == 1) != (kind == Kind::SchemaOrBool);
        match kind {
            _ if is_schema => {
                let mut map = Map::new();
                let owner = kind.type_ref().expect("a union holds schemas");
                decode_into(owner, &[], wire.bytes()?, &mut map, depth)?;
                schema = Some(Value::Object(map));
            }
            Kind::SchemaOrBool => other = Some(Value::from(wire.varint()? != 0)),
            _ => {
                let mut map = Map::new();
                let item = if kind == Kind::SchemaOrStrings {
                    Value::from(wire.text()?)
                } else {
                    let owner = kind.type_ref().expect("a union holds schemas");
                    decode_into(owner, &[], wire.bytes()?, &mut map, depth)?;
                    Value::Object(map)
                };
                match &mut other {
                    Some(Value::Array(items)) => items.push(item),
                    _ => other = Some(Value::Array(vec![item])),
                }
            }
        }
    }
    Ok(schema.or(other).unwrap_or(Value::Null))
}
