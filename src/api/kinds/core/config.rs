//! ConfigMaps, Secrets and service accounts.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, flag};
use crate::api::validation::{self, Path, invalid, name, same};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

const SIZE_LIMIT_BYTES: usize = 1 << 20;
const LOCKED: &str = "field is immutable when `immutable` is set";

pub(in crate::api::kinds) struct ConfigMapStrategy;

impl Strategy for ConfigMapStrategy {
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut size_bytes = keys(object, "data", &mut errors);
        size_bytes += keys(object, "binaryData", &mut errors);
        let path = Path::Root("data");
        for (key, _) in entries(object, "binaryData").filter(|(key, _)| object.at(&["data", key]).is_some()) {
            errors.push(FieldError::invalid(path.key(key), key.as_str(), "duplicate of key present in binaryData"));
        }
        if size_bytes > SIZE_LIMIT_BYTES {
            errors.push(FieldError::too_long("", SIZE_LIMIT_BYTES));
        }
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        locked(new, old, &["data", "binaryData"])
    }
}

fn entries<'a>(object: &'a Object, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.get(field).and_then(Value::as_object).into_iter().flatten()
}

/// Checks the keys; the size of the values, as stored.
fn keys(object: &Object, field: &str, errors: &mut Errors) -> usize {
    let path = Path::Root(field);
    for (key, _) in entries(object, field) {
        invalid(&path.key(key), key, name::config_key(key), errors);
    }
    let size = |value: &Value| value.as_str().map_or(0, str::len);
    let encoded: usize = entries(object, field).map(|(_, value)| size(value)).sum();
    if field == "binaryData" { encoded / 4 * 3 } else { encoded }
}

/// What may not change once `immutable` is set, that included.
fn locked(new: &Object, old: &Object, fields: &[&str]) -> Errors {
    let mut errors = Errors::new();
    if !flag(old, "immutable") {
        return errors;
    }
    if !flag(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", LOCKED));
    }
    for field in fields {
        if !same(new.get(field), old.get(field)) {
            errors.push(FieldError::forbidden(*field, LOCKED));
        }
    }
    errors
}

pub(in crate::api::kinds) struct SecretStrategy;

impl Strategy for SecretStrategy {
    /// `stringData` is written, never read.
    fn default(&self, secret: &mut Object) {
        let Some(Value::Object(texts)) = secret.unset(&["stringData"]) else { return };
        for (key, text) in texts {
            let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
            secret.set(&["data", &key], encoded.into());
        }
    }

    fn prepare_update(&self, _context: &HookContext, new: &mut Object, old: &Object) {
        // A client that knows nothing of types means the one there is.
        if new.str_at(&["type"]).is_empty() {
            new.set(&["type"], old.get("type").cloned().unwrap_or_default());
        }
    }

    fn validate(&self, _context: &HookContext, secret: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let data = Path::Root("data");
        let mut size_bytes = 0;
        for (key, value) in entries(secret, "data") {
            invalid(&data.key(key), key, name::config_key(key), &mut errors);
            size_bytes += value.as_str().map_or(0, |text| text.len() / 4 * 3);
        }
        if size_bytes > SIZE_LIMIT_BYTES {
            errors.push(FieldError::too_long("data", SIZE_LIMIT_BYTES));
        }
        typed(secret, &mut errors);
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::immutable(&Path::Root("type"), new.get("type"), old.get("type"), &mut errors);
        errors.extend(locked(new, old, &["data"]));
        errors
    }
}

/// Keys that a type asks for.
fn typed(secret: &Object, errors: &mut Errors) {
    let data = Path::Root("data");
    let has = |key: &str| secret.at(&["data", key]).is_some();
    let required = |keys: &[&str], errors: &mut Errors| {
        for key in keys.iter().filter(|key| !has(key)) {
            errors.push(FieldError::required(data.key(key), ""));
        }
    };
    match secret.str_at(&["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if secret.annotation(annotation).unwrap_or_default().is_empty() {
                errors.push(FieldError::required(Path::Root("metadata.annotations").key(annotation), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker_config(secret, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker_config(secret, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            required(&["username", "password"], errors);
        }
        "kubernetes.io/ssh-auth" => required(&["ssh-privatekey"], errors),
        "kubernetes.io/tls" => required(&["tls.crt", "tls.key"], errors),
        _ => {}
    }
}

fn docker_config(secret: &Object, key: &str, errors: &mut Errors) {
    let data = Path::Root("data");
    let path = data.key(key);
    let Some(value) = secret.at(&["data", key]) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let decoded = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    let why = match serde_json::from_slice::<Value>(&decoded) {
        Ok(Value::Object(_)) => return,
        Ok(_) => "json: cannot unmarshal into Go value of type map[string]interface {}".to_owned(),
        Err(_) if decoded.is_empty() => "unexpected end of JSON input".to_owned(),
        Err(error) => error.to_string(),
    };
    errors.push(FieldError::invalid(path, "<secret contents redacted>", why));
}
