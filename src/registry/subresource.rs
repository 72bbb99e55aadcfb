//! Subresources: which part of an object each may change, and the POSTs that are not plain updates.

use super::update::Target;
use super::{Context, Decoded, Registry, admission};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use serde_json::Value;

impl Registry {
    /// POST to a subresource that is not a plain update: `pods/binding`, `pods/eviction`.
    pub async fn create_subresource(
        &self,
        context: &Context,
        kind: &Kind,
        subresource: &str,
        namespace: &str,
        name: &str,
        object: Decoded,
    ) -> Result<Object> {
        let target = Target { context, kind, subresource, namespace, name };
        let request = admission::Request {
            context,
            kind,
            subresource,
            operation: admission::Operation::Create,
            namespace,
            name,
            old: None,
            now: self.clock.now(),
        };
        admission::validate(self, &request, &object.object).await?;
        match (&*kind.storage_prefix, subresource) {
            ("pods", "binding") => self.bind(target, object.object).await,
            ("pods", "eviction") => self.evict(target, object.object).await,
            ("serviceaccounts", "token") => self.issue_token(target, object.object).await,
            _ => Err(unsupported()),
        }
    }
}

fn unsupported() -> Status {
    Status::method_not_allowed("the server does not allow this method on the requested resource")
}

/// What of `new` counts when it is sent to a subresource; the rest stays as it is in `old`.
pub(super) fn merge(kind: &Kind, subresource: &str, mut new: Object, old: &Object) -> Result<Object> {
    match subresource {
        "" if kind.has_status() => {
            keep(&mut new, old, &["status"]);
            Ok(new)
        }
        "" | "binding" => Ok(new),
        "status" => Ok(with_status(new, old)),
        "finalize" => Ok(with(old, &new, &["spec", "finalizers"])),
        "approval" => Ok(with(old, &new, &["status", "conditions"])),
        "ephemeralcontainers" => Ok(with(old, &new, &["spec", "ephemeralContainers"])),
        "resize" => Ok(with_resources(&new, old)),
        _ => Err(unsupported()),
    }
}

/// Makes one field of `new` what it is in `old`.
fn keep(new: &mut Object, old: &Object, path: &[&str]) {
    match old.at(path) {
        Some(value) => new.set(path, value.clone()),
        None => drop(new.unset(path)),
    }
}

/// `old` with one field of `new`.
fn with(old: &Object, new: &Object, path: &[&str]) -> Object {
    let mut merged = old.clone();
    keep(&mut merged, new, path);
    merged
}

/// Labels, annotations and finalizers may change along with the status.
fn with_status(mut new: Object, old: &Object) -> Object {
    let (status, metadata) = (new.unset(&["status"]), new.unset(&["metadata"]));
    let mut merged = old.clone();
    if let Some(metadata) = metadata {
        merged.set(&["metadata"], metadata);
    }
    keep(&mut merged, old, &["metadata", "ownerReferences"]);
    match status {
        Some(status) => merged.set(&["status"], status),
        None => drop(merged.unset(&["status"])),
    }
    merged
}

/// Only the resources of containers, matched by name, and how a change of them is carried out.
fn with_resources(new: &Object, old: &Object) -> Object {
    let mut merged = old.clone();
    for list in ["containers", "initContainers"] {
        let wanted = new.at(&["spec", list]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let Some(containers) = merged.get_mut("spec").and_then(|spec| spec.get_mut(list)) else { continue };
        for container in containers.as_array_mut().into_iter().flatten() {
            if let Some(same) = wanted.iter().find(|one| one.str_at(&["name"]) == container.str_at(&["name"])) {
                keep(container, same, &["resources"]);
                keep(container, same, &["resizePolicy"]);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_takes_status_and_annotations_and_leaves_the_specification() {
        let old = json!({"metadata": {"name": "a", "ownerReferences": [1]}, "spec": {"a": 1}, "status": {"x": 1}});
        let new = json!({"metadata": {"name": "a", "annotations": {"k": "v"}}, "spec": {"a": 2}, "status": {"x": 2}});
        let merged = with_status(new, &old);
        let expected = json!({
            "metadata": {"name": "a", "annotations": {"k": "v"}, "ownerReferences": [1]},
            "spec": {"a": 1}, "status": {"x": 2},
        });
        assert_eq!(merged, expected);
    }

    #[test]
    fn resize_takes_resources_by_container_name() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "resources": 1}]}});
        let new = json!({"spec": {"containers": [{"name": "a", "image": "j", "resources": 2}], "x": 1}});
        let expected = json!({"spec": {"containers": [{"name": "a", "image": "i", "resources": 2}, {"name": "b", "resources": 1}]}});
        assert_eq!(with_resources(&new, &old), expected);
    }
}
