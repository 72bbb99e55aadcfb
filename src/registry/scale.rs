//! The `scale` subresource: `autoscaling/v1` Scale, a window on the replicas of four kinds.

use super::update::{ATTEMPTS, Target};
use super::{Decoded, Outcome, Registry, encode, meta, subject};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::Selector;
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::api::validation::NOT_NEGATIVE;
use crate::api::view::meta::LabelSelector;
use crate::store::Entry;
use serde_json::{Map, Value, json};

impl Registry {
    pub async fn get_scale(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Object> {
        let existing = self.stored(kind, namespace, name).await?;
        let existing = existing.ok_or_else(|| Status::not_found(subject(kind, name)))?;
        scale_of(kind, &encode::decode(kind, &existing)?)
    }

    /// The entry of the outcome holds the Scale, not the scaled object.
    pub(super) async fn update_scale(&self, target: Target<'_>, scale: Decoded) -> Outcome {
        let Decoded { object: mut scale, warnings } = scale;
        meta::set_name(target.name, &mut scale)?;
        meta::set_namespace(target.kind, target.namespace, &mut scale)?;
        let conditional = !matches!(scale.resource_version(), "" | "0");
        for _ in 0..ATTEMPTS {
            let existing = self.stored(target.kind, target.namespace, target.name).await?;
            let existing = existing.ok_or_else(|| target.not_found())?;
            let old = encode::decode(target.kind, &existing)?;
            meta::check_preconditions(target.kind, &existing, &scale, &old)?;
            let new = scaled(target, &old, &scale)?;
            // To its own strategy the change is one of the object itself.
            let whole = Target { subresource: "", ..target };
            if let Some(mut written) = self.replace(whole, &existing, &old, new).await? {
                written.entry = entry_of_scale(target.kind, &written.entry)?;
                written.warnings.splice(0..0, warnings);
                return Ok(written);
            }
            if conditional {
                break;
            }
        }
        Err(target.modified())
    }
}

fn entry_of_scale(kind: &Kind, entry: &Entry) -> Result<std::sync::Arc<Entry>> {
    let scale = scale_of(kind, &encode::decode(kind, entry)?)?;
    Ok(encode::encode_as_is(scale)?.unsaved(&entry.key, entry.revision))
}

fn scaled(target: Target, old: &Object, scale: &Object) -> Result<Object> {
    let replicas = scale.int_at(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let subject = Subject { group: "autoscaling", kind: "Scale", name: target.name };
        return Err(Status::invalid(subject, vec![FieldError::invalid("spec.replicas", replicas, NOT_NEGATIVE)]));
    }
    let mut new = old.clone();
    new.set(&["spec", "replicas"], Value::from(replicas));
    Ok(new)
}

/// The Scale of an object.
pub(super) fn scale_of(kind: &Kind, object: &Object) -> Result<Object> {
    if kind.subresource("scale").is_none() {
        return Err(Status::page_not_found());
    }
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at(&["metadata", field]) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut spec = Map::new();
    if let Some(replicas) = object.int_at(&["spec", "replicas"]).filter(|replicas| *replicas != 0) {
        spec.insert("replicas".to_owned(), Value::from(replicas));
    }
    let mut status = json!({"replicas": object.int_at(&["status", "replicas"]).unwrap_or(0)});
    let selector = selector_text(object.at(&["spec", "selector"]).unwrap_or(&Value::Null));
    if !selector.is_empty() {
        status.set(&["selector"], Value::from(selector));
    }
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status,
    }))
}

/// A `LabelSelector`, or plain labels, in the form of list requests.
fn selector_text(selector: &Value) -> String {
    let plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let parsed = if plain {
        serde_json::from_value(selector.clone()).ok().map(|labels| Selector::from_labels(&labels))
    } else {
        let view: Option<LabelSelector> = serde_json::from_value(selector.clone()).ok();
        view.and_then(|view| Selector::from_view(&view).ok())
    };
    parsed.map(|selector| selector.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_list_requests_have_them() {
        assert_eq!(selector_text(&json!({"matchLabels": {"b": "2", "a": "1"}})), "a=1,b=2");
        assert_eq!(selector_text(&json!({"app": "x"})), "app=x");
        assert_eq!(selector_text(&Value::Null), "");
    }
}
