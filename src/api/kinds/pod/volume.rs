//! Validation of volumes.

use super::container::{field_ref, resource_ref};
use crate::api::object::ObjectExt;
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::check::{self, Errors, in_range, list, present, required};
use crate::api::validation::{Path, invalid, name};
use serde_json::Value;

const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 7] =
    ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Names of sources, and the fields without which they lead nowhere.
const SOURCES: [(&str, &[&str]); 30] = [
    ("emptyDir", &[]),
    ("hostPath", &["path"]),
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &[]),
    ("quobyte", &["registry", "volume"]),
    ("downwardAPI", &[]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("configMap", &["name"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &[]),
    ("projected", &[]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
    ("ephemeral", &[]),
    ("image", &[]),
];

/// The names of the volumes, by which containers mount them.
pub(super) fn validate<'a>(volumes: &'a [Value], list_path: &Path, errors: &mut Errors) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (place, volume) in volumes.iter().enumerate() {
        let path = list_path.index(place);
        source(volume, &path, errors);
        let name = required(volume, "name", &path, errors);
        if !name.is_empty() {
            invalid(&path.child("name"), name, name::label(name), errors);
        }
        if names.contains(&name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        names.push(name);
    }
    names
}

fn source(volume: &Value, path: &Path, errors: &mut Errors) {
    let mut sources = 0;
    for (kind, fields) in SOURCES {
        let Some(source) = present(volume, kind) else { continue };
        let path = path.child(kind);
        sources += 1;
        if sources > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        for field in fields {
            required(source, field, &path, errors);
        }
        match kind {
            "emptyDir" => empty_dir(source, &path, errors),
            "hostPath" => {
                check::no_backsteps(source.str_at(&["path"]), &path.child("path"), errors);
                check::optional_one_of(source, "type", &HOST_PATH_TYPES, &path, errors);
            }
            "secret" | "configMap" => {
                mode(source, "defaultMode", &path, errors);
                key_paths(source, &path, errors);
            }
            "downwardAPI" => {
                mode(source, "defaultMode", &path, errors);
                downward_files(source, &path, errors);
            }
            "projected" => projected(source, &path, errors),
            _ => {}
        }
    }
    if sources == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn empty_dir(source: &Value, path: &Path, errors: &mut Errors) {
    let limit = present(source, "sizeLimit").and_then(|limit| Quantity::from_value(limit).ok());
    if limit.is_some_and(|limit| limit.is_negative()) {
        let why = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(path.child("sizeLimit"), why));
    }
}

fn mode(source: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = source.int_at(&[field])
        && !(0..=0o777).contains(&mode)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path.child(field), mode, why));
    }
}

fn key_paths(source: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("items");
    for (place, item) in list(source, "items").iter().enumerate() {
        let path = list_path.index(place);
        required(item, "key", &path, errors);
        file_path(item, &path, errors);
        mode(item, "mode", &path, errors);
    }
}

/// A file inside the volume. Names that start with `..` are those of the atomic update.
fn file_path(item: &Value, path: &Path, errors: &mut Errors) {
    let text = required(item, "path", path, errors);
    let path = path.child("path");
    check::descending_path(text, &path, errors);
    if text.starts_with("..") && !text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not start with '..'"));
    }
}

fn downward_files(source: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("items");
    for (place, item) in list(source, "items").iter().enumerate() {
        let path = list_path.index(place);
        file_path(item, &path, errors);
        match (present(item, "fieldRef"), present(item, "resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", why));
            }
            (Some(field), None) => field_ref(field, &FIELDS, &path.child("fieldRef"), errors),
            (None, Some(resource)) => resource_ref(resource, true, &path.child("resourceFieldRef"), errors),
            (None, None) => {
                errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
            }
        }
        mode(item, "mode", &path, errors);
    }
}

fn projected(source: &Value, path: &Path, errors: &mut Errors) {
    mode(source, "defaultMode", path, errors);
    let list_path = path.child("sources");
    for (place, projection) in list(source, "sources").iter().enumerate() {
        let path = list_path.index(place);
        let mut sources = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            let Some(source) = present(projection, kind) else { continue };
            let path = path.child(kind);
            sources += 1;
            if sources > 1 {
                errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source"));
                continue;
            }
            match kind {
                "secret" | "configMap" => {
                    required(source, "name", &path, errors);
                    key_paths(source, &path, errors);
                }
                "downwardAPI" => downward_files(source, &path, errors),
                "serviceAccountToken" => token(source, &path, errors),
                _ => {}
            }
        }
        if sources == 0 {
            errors.push(FieldError::required(path, "must specify a volume type"));
        }
    }
}

fn token(source: &Value, path: &Path, errors: &mut Errors) {
    let lifetime_s = source.int_at(&["expirationSeconds"]).unwrap_or(0);
    if lifetime_s < 600 {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid(path.child("expirationSeconds"), lifetime_s, why));
    }
    in_range(source, "expirationSeconds", (i64::MIN, 1 << 32), path, errors);
    file_path(source, path, errors);
}
