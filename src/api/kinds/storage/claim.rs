//! Persistent volumes, their claims, and storage classes.

use crate::api::kinds::apps::replicas::{SPEC, reset_status};
use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, optional_one_of, required};
use crate::api::validation::{self, Path, same};
use serde_json::{Value, json};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(in crate::api::kinds) struct ClaimStrategy;

impl Strategy for ClaimStrategy {
    fn prepare_create(&self, _context: &HookContext, claim: &mut Object) {
        reset_status(claim, json!({"phase": "Pending"}));
    }
    fn validate(&self, _context: &HookContext, claim: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = claim.get("spec").unwrap_or(&none);
        access_modes(spec, "at least 1 access mode is required", &mut errors);
        let path = Path::Root("spec.resources");
        match spec.at(&["resources", "requests", "storage"]) {
            None => errors.push(FieldError::required(path.key("storage"), "")),
            Some(size) => positive_size(size, &path.child("requests").key("storage"), &mut errors),
        }
        optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], &SPEC, &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let is_unbound = old.str_at(&["spec", "volumeName"]).is_empty();
        let fixed = |claim: &Object| {
            let mut spec = claim.get("spec").cloned().unwrap_or_default();
            spec.unset(&["resources", "requests", "storage"]);
            spec.unset(&["volumeAttributesClassName"]);
            if is_unbound {
                spec.unset(&["volumeName"]);
                if old.at(&["spec", "storageClassName"]).is_none() {
                    spec.unset(&["storageClassName"]);
                }
            }
            spec
        };
        let mut errors = Errors::new();
        if !same(Some(&fixed(new)), Some(&fixed(old))) {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden("spec", why));
        }
        let size = |claim: &Object| Quantity::from_value(claim.at(&["spec", "resources", "requests", "storage"])?).ok();
        if size(new) < size(old) {
            let why = "field can not be less than status.capacity";
            errors.push(FieldError::forbidden("spec.resources.requests.storage", why));
        }
        errors
    }
}

pub(in crate::api::kinds) struct VolumeStrategy;

impl Strategy for VolumeStrategy {
    fn prepare_create(&self, context: &HookContext, volume: &mut Object) {
        let now = crate::clock::rfc3339(context.now);
        reset_status(volume, json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
    }
    fn prepare_update(&self, context: &HookContext, new: &mut Object, old: &Object) {
        let phase = ["status", "phase"];
        if context.subresource == "status" && new.str_at(&phase) != old.str_at(&phase) {
            let now = crate::clock::rfc3339(context.now);
            new.set(&["status", "lastPhaseTransitionTime"], now.into());
        }
    }
    fn validate(&self, _context: &HookContext, volume: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = volume.get("spec").unwrap_or(&none);
        access_modes(spec, "", &mut errors);
        match spec.at(&["capacity", "storage"]) {
            None => errors.push(FieldError::required("spec.capacity", "")),
            Some(size) => positive_size(size, &Path::Root("spec.capacity").key("storage"), &mut errors),
        }
        let policies = ["Delete", "Recycle", "Retain"];
        optional_one_of(spec, "persistentVolumeReclaimPolicy", &policies, &SPEC, &mut errors);
        optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], &SPEC, &mut errors);
        let about = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeAttributesClassName",
            "volumeMode",
        ];
        let sources =
            spec.as_object().map_or(0, |spec| spec.keys().filter(|key| !about.contains(&key.as_str())).count());
        if sources == 0 {
            errors.push(FieldError::required("spec", "must specify a volume type"));
        }
        if let Some(required) = spec.at(&["nodeAffinity", "required"]) {
            let path = Path::Root("spec.nodeAffinity.required");
            crate::api::kinds::pod::node_selector(required, &path, &mut errors);
        }
        errors
    }
}

fn access_modes(spec: &Value, why: &str, errors: &mut Errors) {
    let modes = list(spec, "accessModes");
    let path = SPEC.child("accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(path, why));
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|mode| !MODES.contains(mode)) {
        errors.push(FieldError::not_supported(path, mode, &MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(path, why));
    }
}

fn positive_size(size: &Value, path: &Path, errors: &mut Errors) {
    if let Ok(quantity) = Quantity::from_value(size)
        && (quantity.is_negative() || quantity.is_zero())
    {
        errors.push(FieldError::invalid(path, quantity.to_string(), "must be greater than zero"));
    }
}

pub(in crate::api::kinds) struct ClassStrategy;

impl Strategy for ClassStrategy {
    fn validate(&self, _context: &HookContext, class: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let root = Path::Root("");
        required(class, "provisioner", &root, &mut errors);
        optional_one_of(class, "reclaimPolicy", &["Delete", "Retain"], &root, &mut errors);
        optional_one_of(class, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &root, &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if !same(new.get("parameters"), old.get("parameters")) {
            errors.push(FieldError::forbidden("parameters", "updates to parameters are forbidden."));
        }
        if new.get("provisioner") != old.get("provisioner") {
            errors.push(FieldError::forbidden("provisioner", "updates to provisioner are forbidden."));
        }
        for field in ["reclaimPolicy", "volumeBindingMode"] {
            validation::immutable(&Path::Root(field), new.get(field), old.get(field), &mut errors);
        }
        errors
    }
}

pub(in crate::api::kinds) struct AttachmentStrategy;

impl Strategy for AttachmentStrategy {
    fn prepare_create(&self, _context: &HookContext, attachment: &mut Object) {
        reset_status(attachment, json!({"attached": false}));
    }
    fn validate(&self, _context: &HookContext, attachment: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = attachment.get("spec").unwrap_or(&none);
        required(spec, "attacher", &SPEC, &mut errors);
        required(spec, "nodeName", &SPEC, &mut errors);
        errors
    }
    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        validation::immutable(&SPEC, new.get("spec"), old.get("spec"), &mut errors);
        errors
    }
}
