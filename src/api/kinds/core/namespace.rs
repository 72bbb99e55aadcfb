//! Namespaces: the finalizer that keeps them until their content is gone.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list};
use crate::api::validation::{Path, invalid, kube_finalizer, name};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct NamespaceStrategy;

impl Strategy for NamespaceStrategy {
    fn default(&self, namespace: &mut Object) {
        let name = namespace.name().to_owned();
        if !name.is_empty() {
            namespace.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name.into());
        }
    }

    fn prepare_create(&self, _context: &HookContext, namespace: &mut Object) {
        namespace.set(&["status"], json!({"phase": "Active"}));
        let mut finalizers = namespace.get("spec").map(|spec| list(spec, "finalizers").to_vec()).unwrap_or_default();
        if !finalizers.iter().any(|one| one == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        namespace.set(&["spec", "finalizers"], finalizers.into());
    }

    fn prepare_update(&self, context: &HookContext, new: &mut Object, old: &Object) {
        if context.subresource != "finalize" {
            match old.at(&["spec", "finalizers"]) {
                Some(finalizers) => new.set(&["spec", "finalizers"], finalizers.clone()),
                None => drop(new.unset(&["spec", "finalizers"])),
            }
        }
    }

    fn validate(&self, _context: &HookContext, namespace: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let list_path = Path::Root("spec.finalizers");
        let none = Value::Null;
        let finalizers = list(namespace.get("spec").unwrap_or(&none), "finalizers");
        for (place, finalizer) in finalizers.iter().filter_map(Value::as_str).enumerate() {
            let path = list_path.index(place);
            invalid(&path, finalizer, name::qualified(finalizer), &mut errors);
            kube_finalizer(&path, finalizer, &mut errors);
        }
        errors
    }

    fn validate_status_update(&self, _context: &HookContext, new: &Object, _old: &Object) -> Vec<FieldError> {
        let phase = new.str_at(&["status", "phase"]);
        let why = match (new.deletion_timestamp(), phase) {
            (None, "Active") | (Some(_), "Terminating") => return Vec::new(),
            (None, _) => "may only be 'Active' if `deletionTimestamp` is empty",
            (Some(_), _) => "may only be 'Terminating' if `deletionTimestamp` is not empty",
        };
        vec![FieldError::invalid("status.phase", phase, why)]
    }
}
