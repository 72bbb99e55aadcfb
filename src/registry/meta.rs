//! The rules of `ObjectMeta` that hold for every kind: what the server sets, what a client may not change.

use super::{kind_subject, subject};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status};
use crate::clock;
use crate::store::Entry;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What only the server says about an object's life.
const KEPT: [&str; 4] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
const NAME_LIMIT_BYTES: usize = 63;
const SUFFIX_LENGTH: usize = 5;
/// No vowels and nothing that looks like another: no words, no mistakes.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Makes the object's namespace that of the request; a different one is refused.
pub(super) fn set_namespace(kind: &Kind, namespace: &str, object: &mut Object) -> Result<()> {
    if !kind.namespaced {
        object.metadata_mut().remove("namespace");
        return Ok(());
    }
    let given = object.namespace();
    if !given.is_empty() && given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.metadata_mut().insert("namespace".to_owned(), Value::from(namespace));
    Ok(())
}

/// Makes the object's name that of the request; a different one is refused.
pub(super) fn set_name(name: &str, object: &mut Object) -> Result<()> {
    let given = object.name();
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    object.metadata_mut().insert("name".to_owned(), Value::from(name));
    Ok(())
}

/// A name from `metadata.generateName`.
pub(super) fn generated_name(prefix: &str) -> String {
    let mut end = prefix.len().min(NAME_LIMIT_BYTES - SUFFIX_LENGTH);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    name.extend((0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX_LETTERS[fastrand::usize(..SUFFIX_LETTERS.len())])));
    name
}

/// A new object's own marks.
pub(super) fn begin(kind: &Kind, object: &mut Object, now: Timestamp) {
    let metadata = object.metadata_mut();
    forget_foreign(metadata);
    metadata.remove("deletionTimestamp");
    metadata.remove("deletionGracePeriodSeconds");
    metadata.insert("uid".to_owned(), Value::from(new_uid()));
    metadata.insert("creationTimestamp".to_owned(), Value::from(clock::rfc3339(now)));
    if kind.strategy.has_generation() {
        metadata.insert("generation".to_owned(), Value::from(1));
    } else {
        metadata.remove("generation");
    }
}

/// Field managers are not tracked yet; what clients send of them is not kept.
fn forget_foreign(metadata: &mut Map<String, Value>) {
    metadata.remove("managedFields");
    metadata.remove("selfLink");
}

/// An RFC 4122 version 4 identifier.
pub(super) fn new_uid() -> String {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{random:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Carries over what an update cannot change and often does not send.
pub(super) fn carry_over(new: &mut Object, old: &Object) {
    let metadata = new.metadata_mut();
    forget_foreign(metadata);
    for field in KEPT {
        let absent = metadata.get(field).is_none_or(|value| value.is_null() || value == "");
        if let Some(value) = old.at(&["metadata", field]).filter(|_| absent) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    for field in ["generateName", "generation"] {
        match old.at(&["metadata", field]) {
            Some(value) => drop(metadata.insert(field.to_owned(), value.clone())),
            None => drop(metadata.remove(field)),
        }
    }
}

/// Whether the update is about the object it means: its uid and, if it names one, its revision.
pub(super) fn check_preconditions(kind: &Kind, existing: &Entry, new: &Object, old: &Object) -> Result<()> {
    let (name, uid) = (old.name(), new.uid());
    if !uid.is_empty() && uid != old.uid() {
        let key = match kind.namespaced {
            true => existing.key.to_string(),
            false => existing.key.replacen("//", "/", 1),
        };
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{key}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            old.uid()
        );
        return Err(Status::conflict(subject(kind, name), &why));
    }
    match new.resource_version() {
        "" | "0" if kind.unconditional_update => Ok(()),
        "" | "0" => {
            let missing = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            Err(Status::invalid(subject(kind, name), vec![missing]))
        }
        given if given == old.resource_version() => Ok(()),
        _ => Err(Status::modified(subject(kind, name))),
    }
}

/// Whether everything but metadata and status is the same.
pub(super) fn same_specification(new: &Object, old: &Object) -> bool {
    specification(new).eq(specification(old))
}

fn specification(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
    let members = object.as_object().into_iter().flatten();
    members.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
}

/// Whether a terminating object has nothing left that holds it.
pub(super) fn is_finished(kind: &Kind, object: &Object) -> bool {
    object.deletion_timestamp().is_some()
        && object.finalizers().is_empty()
        && object.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && (kind.storage_prefix != "namespaces" || namespace_is_released(object))
}

/// A Namespace is held by `spec.finalizers` until its contents are gone.
pub(super) fn namespace_is_released(object: &Object) -> bool {
    object.at(&["spec", "finalizers"]).and_then(Value::as_array).is_none_or(Vec::is_empty)
}

pub(super) fn refuse_invalid(kind: &Kind, name: &str, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(kind_subject(kind, name), errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generated_names_fit_a_label() {
        let name = generated_name("gen-");
        assert!(name.starts_with("gen-") && name.len() == 9);
        assert!(name.bytes().skip(4).all(|letter| SUFFIX_LETTERS.contains(&letter)));
        assert_eq!(generated_name(&"x".repeat(80)).len(), NAME_LIMIT_BYTES);
    }

    #[test]
    fn uids_are_version_4() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]));
        assert_ne!(uid, new_uid());
    }

    #[test]
    fn only_the_specification_counts() {
        let old = json!({"kind": "X", "metadata": {"a": 1}, "spec": {"a": 1}, "status": 1});
        assert!(same_specification(&json!({"metadata": {}, "spec": {"a": 1}}), &old));
        assert!(!same_specification(&json!({"metadata": {"a": 1}, "spec": {"a": 2}, "status": 1}), &old));
        assert!(!same_specification(&json!({"metadata": {"a": 1}, "data": 1, "spec": {"a": 1}}), &old));
    }
}
