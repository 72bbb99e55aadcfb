//! Warnings about pod specs that are valid and yet unlikely to be meant.

use crate::api::object::ObjectExt;
use crate::api::validation::Path;
use crate::api::validation::check::list;
use serde_json::Value;

pub(super) fn of_spec(spec: &Value, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for field in ["initContainers", "containers"] {
        let list_path = path.child(field);
        for (place, container) in list(spec, field).iter().enumerate() {
            let path = list_path.index(place);
            duplicate_env(container, &path, &mut warnings);
            duplicate_ports(container, &path, &mut warnings);
        }
    }
    if !spec.str_at(&["serviceAccount"]).is_empty() && spec.str_at(&["serviceAccountName"]).is_empty() {
        warnings.push(format!("{path}.serviceAccount: deprecated, use serviceAccountName instead"));
    }
    unnamed_pull_secrets(spec, path, &mut warnings);
    warnings
}

fn duplicate_env(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let list_path = path.child("env");
    let variables = list(container, "env");
    for (place, variable) in variables.iter().enumerate() {
        let name = variable.str_at(&["name"]);
        let earlier = variables[..place].iter().any(|one| one.str_at(&["name"]) == name);
        if earlier {
            warnings.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                list_path.index(place)
            ));
        }
    }
}

fn duplicate_ports(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let list_path = path.child("ports");
    let ports = list(container, "ports");
    let key = |port: &Value| {
        (
            port.int_at(&["containerPort"]),
            port.str_at(&["protocol"]).to_owned(),
            port.int_at(&["hostPort"]),
            port.str_at(&["hostIP"]).to_owned(),
        )
    };
    for (place, port) in ports.iter().enumerate() {
        if let Some(earlier) = ports[..place].iter().position(|one| key(one) == key(port)) {
            warnings.push(format!(
                "{}: duplicate port definition with {}",
                list_path.index(place),
                list_path.index(earlier)
            ));
        }
    }
}

fn unnamed_pull_secrets(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    let list_path = path.child("imagePullSecrets");
    for (place, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if secret.str_at(&["name"]).is_empty() {
            warnings.push(format!("{}: invalid empty name {:?}", list_path.index(place), ""));
        }
    }
}
