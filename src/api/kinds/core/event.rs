//! Events, of both groups. Kept short: an event that cannot be written is a riddle for its reader.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::Path;
use crate::api::validation::check::{Errors, required};
use serde_json::Value;

/// core/v1
pub(in crate::api::kinds) struct EventStrategy;

impl Strategy for EventStrategy {
    /// Times that are not there are written as `null`, not left out.
    fn default(&self, event: &mut Object) {
        for field in ["eventTime", "firstTimestamp", "lastTimestamp"] {
            if event.get(field).is_none() {
                event.set(&[field], Value::Null);
            }
        }
    }

    fn validate(&self, _context: &HookContext, event: &Object) -> Vec<FieldError> {
        in_namespace(event, "involvedObject")
    }
}

/// events.k8s.io/v1, which asks for more.
pub(in crate::api::kinds) struct NewerEventStrategy;

impl Strategy for NewerEventStrategy {
    fn validate(&self, _context: &HookContext, event: &Object) -> Vec<FieldError> {
        let mut errors = in_namespace(event, "regarding");
        let root = Path::Root("");
        // An event in the store may be an older one, which had no such fields.
        let is_new = event.str_at(&["deprecatedFirstTimestamp"]).is_empty();
        if is_new {
            for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
                required(event, field, &root, &mut errors);
            }
        }
        errors
    }
}

/// An event is in the namespace of what it is about; in `default` when that has none.
fn in_namespace(event: &Object, about: &str) -> Errors {
    let namespace = event.str_at(&[about, "namespace"]);
    let expected = if namespace.is_empty() { "default" } else { namespace };
    if event.namespace() == expected {
        return Errors::new();
    }
    let path = format!("{about}.namespace");
    vec![FieldError::invalid(path, namespace, "does not match event.namespace")]
}
