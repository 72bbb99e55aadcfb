//! Checks of single values that many kinds share.

use super::{Path, invalid, name};
use crate::api::object::ObjectExt;
use crate::api::status::FieldError;
use serde_json::Value;
use std::net::IpAddr;

pub type Errors = Vec<FieldError>;

/// The items of a list field; none when it is missing.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A field that is there and not `null`.
pub fn present<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    value.get(field).filter(|value| !value.is_null())
}

pub fn flag(value: &Value, field: &str) -> bool {
    value.get(field) == Some(&Value::Bool(true))
}

/// A text that must be there.
pub fn required<'a>(value: &'a Value, field: &str, path: &Path, errors: &mut Errors) -> &'a str {
    let text = value.str_at(&[field]);
    if text.is_empty() {
        errors.push(FieldError::required(path.child(field), ""));
    }
    text
}

/// One of an enumeration; required, too.
pub fn one_of(value: &Value, field: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    match value.str_at(&[field]) {
        "" => errors.push(FieldError::required(path.child(field), "")),
        _ => optional_one_of(value, field, supported, path, errors),
    }
}

pub fn optional_one_of(value: &Value, field: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    let text = value.str_at(&[field]);
    if !text.is_empty() && !supported.contains(&text) {
        errors.push(FieldError::not_supported(path.child(field), text, supported));
    }
}

pub fn non_negative(value: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(number @ ..0) = value.int_at(&[field]) {
        errors.push(FieldError::invalid(path.child(field), number, super::NOT_NEGATIVE));
    }
}

pub fn positive(value: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(number @ ..=0) = value.int_at(&[field]) {
        errors.push(FieldError::invalid(path.child(field), number, "must be greater than 0"));
    }
}

pub fn in_range(value: &Value, field: &str, bounds: (i64, i64), path: &Path, errors: &mut Errors) {
    let (least, greatest) = bounds;
    if let Some(number) = value.int_at(&[field])
        && !(least..=greatest).contains(&number)
    {
        let why = format!("must be between {least} and {greatest}, inclusive");
        errors.push(FieldError::invalid(path.child(field), number, why));
    }
}

pub const PORTS: (i64, i64) = (1, 65535);

/// A port by number or by name.
pub fn port(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    match value {
        Some(Value::String(port)) => invalid(path, port, name::port(port), errors),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or(0);
            if !(PORTS.0..=PORTS.1).contains(&number) {
                errors.push(FieldError::invalid(path, number, "must be between 1 and 65535, inclusive"));
            }
        }
    }
}

/// An address; the parsed one, if it is one.
pub fn ip(text: &str, path: &Path, errors: &mut Errors) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.push(FieldError::invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
    parsed
}

/// An address a service may lead to.
pub fn endpoint_ip(text: &str, path: &Path, errors: &mut Errors) {
    let Some(address) = ip(text, path, errors) else { return };
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] == 0xff02),
    };
    let why = if address.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, text, why));
}

/// A path inside something: relative, without `..`.
pub fn descending_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    no_backsteps(text, path, errors);
}

pub fn no_backsteps(text: &str, path: &Path, errors: &mut Errors) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

/// A count, or a percentage of a whole: its value, if it is either.
pub fn int_or_percent(value: Option<&Value>, path: &Path, errors: &mut Errors) -> Option<i64> {
    match value? {
        Value::String(text) => match text.strip_suffix('%').map(str::parse::<u32>) {
            Some(Ok(percent)) => Some(i64::from(percent)),
            _ => {
                let words = "a valid percent string must be a numeric string followed by an ending '%'";
                errors.push(FieldError::invalid(path, text.clone(), name::unmatched(words, "[0-9]+%", &["1%", "93%"])));
                None
            }
        },
        other => {
            let number = other.as_i64()?;
            if number < 0 {
                errors.push(FieldError::invalid(path, number, super::NOT_NEGATIVE));
            }
            Some(number)
        }
    }
}
