//! Request bodies into objects, and objects into YAML: JSON, YAML and protobuf by the scheme's table.
//! Unknown fields are always pruned; `fieldValidation` says whether the client hears of them.

mod check;
pub mod protobuf;
mod tree;
mod yaml;

use crate::api::object::Object;
use crate::api::scheme::{self, TypeRef};
use crate::api::status::{FieldError, Result, Status, Subject};
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Parsed object and its warnings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub object: Object,
    pub warnings: Vec<String>,
}

/// Decodes a body that should hold an object of `api_version` and `kind`, which fill in for what it
/// leaves out. Without a schema (custom resources) the object is taken as it is.
pub fn decode(
    media: MediaType,
    body: &[u8],
    schema: Option<TypeRef>,
    api_version: &str,
    kind: &str,
    validation: FieldValidation,
) -> Result<Decoded> {
    let unrecognized = |why: String| unrecognized(kind, &why, body);
    let mut raw = read(media, body, schema).map_err(unrecognized)?;
    let Value::Object(map) = &mut raw.value else {
        let why = format!("couldn't get version/kind; json parse error: {}", not_an_object(&raw.value));
        return Err(unrecognized(why));
    };
    if schema.is_none() && !map.contains_key("kind") {
        let text = String::from_utf8_lossy(body);
        return Err(unrecognized(format!("Object 'Kind' is missing in '{text}'")));
    }
    name_kind(map, api_version, kind);
    let found = Found::of(map);
    found.expect(schema.is_some(), api_version, kind)?;
    let Some(schema) = schema else { return finish(raw.value, &raw.duplicates, &[], validation, &found, kind) };
    let unknown =
        check::check(schema, &mut raw.value, media == MediaType::Yaml).map_err(|why| found.unhandled(kind, &why))?;
    scheme::prune(schema, &mut raw.value);
    finish(raw.value, &raw.duplicates, &unknown, validation, &found, kind)
}

/// Decodes the body of a patch: any JSON or YAML value.
pub fn decode_patch(media: MediaType, body: &[u8]) -> Result<Decoded> {
    let tree = match media {
        MediaType::Yaml => tree::yaml(body).map_err(|error| format!("error converting YAML to JSON: yaml: {error}")),
        _ => tree::json(body).map_err(|error| go_syntax_error(&error, body)),
    };
    let tree = tree.map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
    let warnings = tree.duplicates.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
    Ok(Decoded { object: tree.value, warnings })
}

/// Checks and prunes an object that a patch made. The warnings to send, or the error of a wrong type.
pub fn check_patched(schema: TypeRef, object: &mut Object, validation: FieldValidation) -> Result<Vec<String>> {
    let invalid = |object: &Object, why: &str| {
        let subject = Subject { group: "", kind: "", name: "" };
        Status::invalid(subject, vec![FieldError::invalid("patch", object.to_string(), why)])
    };
    let before = object.clone();
    let unknown = check::check(schema, object, false).map_err(|why| invalid(&before, &why))?;
    scheme::prune(schema, object);
    let strict = strict_errors(&[], &unknown);
    match validation {
        FieldValidation::Strict if !strict.is_empty() => {
            Err(invalid(&before, &format!("strict decoding error: {}", strict.join(", "))))
        }
        FieldValidation::Warn => Ok(strict),
        _ => Ok(Vec::new()),
    }
}

/// As `application/yaml` answers are written.
pub fn to_yaml(object: &Value) -> String {
    yaml::write(object)
}

fn read(media: MediaType, body: &[u8], schema: Option<TypeRef>) -> Result<tree::Tree, String> {
    match media {
        MediaType::Json => read_json(body),
        MediaType::Yaml => tree::yaml(body).map_err(|error| {
            format!("couldn't get version/kind; json parse error: error converting YAML to JSON: yaml: {error}")
        }),
        MediaType::Protobuf => {
            let unknown = protobuf::envelope(body).map_err(|error| error.to_string())?;
            if unknown.content_type == "application/json" {
                return read_json(unknown.raw);
            }
            let schema = schema.ok_or("this resource is not served as protobuf")?;
            let mut value = protobuf::decode(schema, unknown.raw).map_err(|error| error.to_string())?;
            if let Value::Object(map) = &mut value {
                name_kind(map, &unknown.api_version, &unknown.kind);
            }
            Ok(tree::Tree { value, duplicates: Vec::new() })
        }
    }
}

fn read_json(body: &[u8]) -> Result<tree::Tree, String> {
    let explain = |error| format!("couldn't get version/kind; json parse error: {}", go_syntax_error(&error, body));
    tree::json(body).map_err(explain)
}

/// Fills in `apiVersion` and `kind` where they are absent.
fn name_kind(map: &mut Map<String, Value>, api_version: &str, kind: &str) {
    for (name, value) in [("apiVersion", api_version), ("kind", kind)] {
        let there = map.get(name).is_some_and(|there| there.as_str().is_none_or(|text| !text.is_empty()));
        if !there && !value.is_empty() {
            map.insert(name.to_owned(), Value::from(value));
        }
    }
}

fn finish(
    object: Value,
    duplicates: &[String],
    unknown: &[String],
    validation: FieldValidation,
    found: &Found,
    kind: &str,
) -> Result<Decoded> {
    let strict = strict_errors(duplicates, unknown);
    match validation {
        FieldValidation::Strict if !strict.is_empty() => {
            Err(found.unhandled(kind, &format!("strict decoding error: {}", strict.join(", "))))
        }
        FieldValidation::Warn => Ok(Decoded { object, warnings: strict }),
        _ => Ok(Decoded { object, warnings: Vec::new() }),
    }
}

fn strict_errors(duplicates: &[String], unknown: &[String]) -> Vec<String> {
    let duplicates = duplicates.iter().map(|path| format!("duplicate field \"{path}\""));
    duplicates.chain(unknown.iter().map(|path| format!("unknown field \"{path}\""))).collect()
}

/// What the body says it is.
struct Found {
    api_version: String,
    kind: String,
}

impl Found {
    fn of(map: &Map<String, Value>) -> Self {
        let text = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { api_version: text("apiVersion"), kind: text("kind") }
    }

    fn version(&self) -> &str {
        self.api_version.rsplit('/').next().unwrap_or_default()
    }

    /// Upstream registers `DeleteOptions` in every group.
    fn expect(&self, built_in: bool, api_version: &str, kind: &str) -> Result<()> {
        let same_kind = self.kind == kind;
        if same_kind && (self.api_version == api_version || kind == "DeleteOptions") {
            return Ok(());
        }
        if same_kind && (!built_in || group(&self.api_version) == group(api_version)) {
            return Err(Status::bad_request(format!(
                "the API version in the data ({}) does not match the expected API version ({api_version})",
                self.api_version
            )));
        }
        let why = if scheme::find_kind(&self.api_version, &self.kind).is_some() {
            let package = match group(api_version).split('.').next() {
                None | Some("") => "core",
                Some(first) => first,
            };
            format!("converting ({}.{}) to ({package}.{kind}): unknown conversion", self.version(), self.kind)
        } else {
            format!(
                "no kind \"{}\" is registered for version \"{}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                self.kind, self.api_version
            )
        };
        Err(self.unhandled(kind, &why))
    }

    fn unhandled(&self, kind: &str, why: &str) -> Status {
        let version = self.version();
        Status::bad_request(format!("{} in version \"{version}\" cannot be handled as a {kind}: {why}", self.kind))
    }
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn unrecognized(kind: &str, why: &str, body: &[u8]) -> Status {
    let summary = summarize(body);
    Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({summary})"))
}

/// The head of a body: as text when it looks like JSON, else as hexadecimal.
fn summarize(body: &[u8]) -> String {
    const HEAD_BYTES: usize = 30;
    let head = &body[..body.len().min(HEAD_BYTES)];
    let text = match head.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if body.len() > HEAD_BYTES { format!("{text} ...") } else { text }
}

fn not_an_object(value: &Value) -> String {
    let what = match value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        _ => "bool",
    };
    format!(
        "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string \
         \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )
}

/// serde_json's error in the words of Go's scanner.
fn go_syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line = body.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let found = line.get(error.column().saturating_sub(1)).copied().map_or(' ', char::from);
    let place = match error.to_string() {
        text if text.starts_with("key must be a string") => "looking for beginning of object key string",
        text if text.starts_with("trailing characters") => "after top-level value",
        text if text.starts_with("expected `:`") => "after object key",
        text if text.starts_with("expected `,` or `}`") => "after object key:value pair",
        text if text.starts_with("expected `,` or `]`") => "after array element",
        text if text.starts_with("trailing comma") => "looking for beginning of object key string",
        _ => "looking for beginning of value",
    };
    format!("invalid character {found:?} {place}")
}

#[cfg(test)]
mod tests;
