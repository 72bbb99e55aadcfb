//! `metav1.Status`: every error the API answers, in Kubernetes' own reasons, field paths and words.
//! Source: k8s.io/apimachinery/pkg/api/errors and .../util/validation/field (behaviour, not text).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An API error. Everything above the store returns this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// `metadata.continue`: with `Expired`, where an inconsistent list would go on.
    #[serde(skip)]
    pub continue_token: Option<Box<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

pub type Result<T, E = Status> = std::result::Result<T, E>;

/// What an error is about: the group and either the plural resource or the kind, as upstream words it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub group: &'a str,
    /// `pods` for most errors, `Pod` for `Invalid` and preconditions.
    pub kind: &'a str,
    pub name: &'a str,
}

impl Subject<'_> {
    /// `deployments.apps`, or `pods` in the core group.
    fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    fn details(&self) -> Details {
        Details {
            name: self.name.to_owned(),
            group: self.group.to_owned(),
            kind: self.kind.to_owned(),
            ..Details::default()
        }
    }
}

impl Status {
    /// An error without details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None, continue_token: None }
    }

    fn about(code: u16, reason: &str, subject: Subject, message: String) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message,
            details: Some(Box::new(subject.details())),
            continue_token: None,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// `subject.kind` is the plural resource; `why` is the part after the colon.
    pub fn forbidden(subject: Subject, why: &str) -> Self {
        let what = subject.qualified();
        let message = if subject.name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} \"{}\" is forbidden: {why}", subject.name)
        };
        Self::about(403, "Forbidden", subject, message)
    }

    pub fn not_found(subject: Subject) -> Self {
        let message = format!("{} \"{}\" not found", subject.qualified(), subject.name);
        Self::about(404, "NotFound", subject, message)
    }

    /// The path or resource type is not served at all.
    pub fn page_not_found() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(405, "MethodNotAllowed", message)
    }

    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    pub fn already_exists(subject: Subject) -> Self {
        let message = format!("{} \"{}\" already exists", subject.qualified(), subject.name);
        Self::about(409, "AlreadyExists", subject, message)
    }

    /// The general conflict: `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(subject: Subject, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{}\": {why}", subject.qualified(), subject.name);
        Self::about(409, "Conflict", subject, message)
    }

    /// The conflict of a write against an old `resourceVersion`.
    pub fn modified(subject: Subject) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// A `resourceVersion` that the server no longer has; the client lists again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// `subject.kind` is the kind (`Pod`).
    pub fn invalid(subject: Subject, errors: Vec<FieldError>) -> Self {
        let causes: Vec<Cause> = errors.iter().map(FieldError::cause).collect();
        let texts: Vec<String> = dedup(errors.iter().map(FieldError::to_string));
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut message = format!("{} \"{}\" is invalid", subject.qualified(), subject.name);
        if !texts.is_empty() {
            message = format!("{message}: {list}");
        }
        let mut status = Self::about(422, "Invalid", subject, message);
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details = Some(Box::new(Details { retry_after_seconds: Some(retry_after_s), ..Details::default() }));
        status
    }

    pub fn internal(cause: impl std::fmt::Display) -> Self {
        let cause = cause.to_string();
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {cause}"));
        let causes = vec![Cause { message: cause, ..Cause::default() }];
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }
    pub fn is_expired(&self) -> bool {
        self.reason == "Expired" || self.reason == "Gone"
    }

    /// The body the API answers with.
    pub fn to_object(&self) -> Value {
        let mut object = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            object["reason"] = self.reason.as_str().into();
        }
        if let Some(token) = &self.continue_token {
            object["metadata"]["continue"] = Value::from(&**token);
        }
        if let Some(details) = &self.details {
            object["details"] = serde_json::to_value(details).unwrap_or(Value::Null);
        }
        object
    }

    /// The `Success` body of a delete. `subject.kind` is the plural resource.
    pub fn success(subject: Subject, uid: &str) -> Value {
        let details = Details { uid: uid.to_owned(), ..subject.details() };
        serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        })
    }
}

fn dedup(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for text in texts {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

/// One error of validation, at a field path like `spec.containers[0].name`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    pub field: String,
    /// The offending value, as JSON; how it is printed depends on its type.
    pub value: Value,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl FieldErrorKind {
    /// The machine-readable cause reason and the words that open the message.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::NotFound => ("FieldValueNotFound", "Not found"),
            Self::Required => ("FieldValueRequired", "Required value"),
            Self::Duplicate => ("FieldValueDuplicate", "Duplicate value"),
            Self::Invalid => ("FieldValueInvalid", "Invalid value"),
            Self::NotSupported => ("FieldValueNotSupported", "Unsupported value"),
            Self::Forbidden => ("FieldValueForbidden", "Forbidden"),
            Self::TooLong => ("FieldValueTooLong", "Too long"),
            Self::TooMany => ("FieldValueTooMany", "Too many"),
            Self::Internal => ("InternalError", "Internal error"),
            Self::TypeInvalid => ("FieldValueTypeInvalid", "Invalid value"),
        }
    }
}

impl FieldError {
    fn new(kind: FieldErrorKind, field: impl Into<String>, value: Value, detail: impl Into<String>) -> Self {
        Self { kind, field: field.into(), value, detail: detail.into() }
    }
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, Value::Null, detail)
    }
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value.into(), detail)
    }
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, value.into(), "")
    }
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, value.into(), "")
    }
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, Value::Null, detail)
    }
    /// `supported` in the order upstream prints them (it sorts).
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut sorted = supported.to_vec();
        sorted.sort_unstable();
        let quoted: Vec<String> = sorted.iter().map(|one| format!("\"{one}\"")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        Self::new(FieldErrorKind::NotSupported, field, value.into(), detail)
    }
    pub fn too_long(field: impl Into<String>, limit_bytes: usize) -> Self {
        let detail = format!("may not be more than {limit_bytes} bytes");
        Self::new(FieldErrorKind::TooLong, field, Value::Null, detail)
    }
    pub fn too_many(field: impl Into<String>, actual: usize, limit: usize) -> Self {
        let detail = format!("must have at most {limit} items");
        Self::new(FieldErrorKind::TooMany, field, Value::from(actual), detail)
    }

    fn cause(&self) -> Cause {
        Cause { reason: self.kind.words().0.to_owned(), message: self.body(), field: self.field.clone() }
    }

    /// The message without the field path.
    fn body(&self) -> String {
        let words = self.kind.words().1;
        let head = match self.kind {
            FieldErrorKind::Required
            | FieldErrorKind::Forbidden
            | FieldErrorKind::TooLong
            | FieldErrorKind::Internal => words.to_owned(),
            _ => format!("{words}: {}", printed(&self.value)),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Upstream prints strings quoted, numbers bare, anything else as JSON.
fn printed(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_causes_as_upstream_words_them() {
        let subject = Subject { group: "", kind: "Pod", name: "x" };
        let status = Status::invalid(subject, vec![FieldError::required("spec.containers", "")]);
        assert_eq!(status.message, "Pod \"x\" is invalid: spec.containers: Required value");
        let cause = &status.details.as_ref().map(|d| d.causes[0].clone());
        let expected = Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: "spec.containers".into(),
        };
        assert_eq!(cause.as_ref(), Some(&expected));
    }

    #[test]
    fn not_found_names_the_group_outside_core() {
        let subject = Subject { group: "apps", kind: "deployments", name: "web" };
        assert_eq!(Status::not_found(subject).message, "deployments.apps \"web\" not found");
    }
}
