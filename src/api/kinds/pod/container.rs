//! Validation of containers: regular, init and ephemeral.

use super::spec::seccomp;
use crate::api::object::ObjectExt;
use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::validation::check::{
    self, Errors, PORTS, flag, in_range, list, non_negative, one_of, present, required,
};
use crate::api::validation::{NOT_NEGATIVE, Path, invalid, name};
use serde_json::Value;
use std::collections::BTreeSet;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const MORE_THAN_ONE: &str = "may not have more than one field specified at a time";

pub(super) fn validate_all(spec: &Value, volumes: &[&str], path: &Path, errors: &mut Errors) {
    let containers = list(spec, "containers");
    let list_path = path.child("containers");
    if containers.is_empty() {
        errors.push(FieldError::required(list_path, ""));
    }
    let mut seen = BTreeSet::new();
    for (place, container) in containers.iter().enumerate() {
        let path = list_path.index(place);
        common(container, volumes, &path, errors);
        unique_name(container, &mut seen, &path, errors);
        lifecycle(container, &path, errors);
        probes(container, &path, errors);
    }
    host_port_conflicts(containers, &list_path, errors);
    init_containers(spec, volumes, &mut seen, path, errors);
    ephemeral_containers(spec, volumes, &mut seen, path, errors);
    proc_mounts(spec, path, errors);
}

/// Unmasked, `/proc` would let root in a container write the host's kernel parameters, unless it is somebody else
/// on the host.
fn proc_mounts(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec.get("hostUsers") == Some(&Value::Bool(false)) {
        return;
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        let list_path = path.child(field);
        for (place, container) in list(spec, field).iter().enumerate() {
            if container.at(&["securityContext", "procMount"]) == Some(&Value::from("Unmasked")) {
                let path = list_path.index(place);
                let why = "`hostUsers` must be false to use `Unmasked`";
                errors.push(FieldError::invalid(path.child("securityContext.procMount"), "Unmasked", why));
            }
        }
    }
}

fn unique_name<'a>(container: &'a Value, seen: &mut BTreeSet<&'a str>, path: &Path, errors: &mut Errors) {
    let name = container.str_at(&["name"]);
    if !name.is_empty() && !seen.insert(name) {
        errors.push(FieldError::duplicate(path.child("name"), name));
    }
}

fn init_containers<'a>(
    spec: &'a Value,
    volumes: &[&str],
    seen: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let list_path = path.child("initContainers");
    for (place, container) in list(spec, "initContainers").iter().enumerate() {
        let path = list_path.index(place);
        common(container, volumes, &path, errors);
        unique_name(container, seen, &path, errors);
        check::optional_one_of(container, "restartPolicy", &["Always"], &path, errors);
        if container.str_at(&["restartPolicy"]) == "Always" {
            lifecycle(container, &path, errors);
            probes(container, &path, errors);
            continue;
        }
        for field in ["lifecycle"].into_iter().chain(PROBES) {
            if present(container, field).is_some() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(path.child(field), why));
            }
        }
        host_port_conflicts(std::slice::from_ref(container), &list_path, errors);
    }
}

fn ephemeral_containers<'a>(
    spec: &'a Value,
    volumes: &[&str],
    seen: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let targets = list(spec, "initContainers").iter().chain(list(spec, "containers"));
    let targets: Vec<&str> = targets.map(|one| one.str_at(&["name"])).collect();
    let list_path = path.child("ephemeralContainers");
    for (place, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = list_path.index(place);
        common(container, volumes, &path, errors);
        unique_name(container, seen, &path, errors);
        let target = container.str_at(&["targetContainerName"]);
        if !target.is_empty() && !targets.contains(&target) {
            errors.push(FieldError::not_found(path.child("targetContainerName"), target));
        }
        for field in ["ports", "lifecycle", "resources", "resizePolicy"].into_iter().chain(PROBES) {
            if container.get(field).is_some_and(|value| !crate::api::validation::is_empty(value)) {
                let why = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(path.child(field), why));
            }
        }
        let mounts = path.child("volumeMounts");
        for (place, mount) in list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.str_at(&[field]).is_empty() {
                    let why = "cannot be set for an Ephemeral Container";
                    errors.push(FieldError::forbidden(mounts.index(place).child(field), why));
                }
            }
        }
    }
}

/// What all three sorts have in common, in upstream's order.
fn common(container: &Value, volumes: &[&str], path: &Path, errors: &mut Errors) {
    let name = required(container, "name", path, errors);
    if !name.is_empty() {
        invalid(&path.child("name"), name, name::label(name), errors);
    }
    let image = required(container, "image", path, errors);
    if image != image.trim() {
        errors.push(FieldError::invalid(path.child("image"), image, "must not have leading or trailing whitespace"));
    }
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors);
    ports(container, &path.child("ports"), errors);
    env(container, &path.child("env"), errors);
    env_from(container, &path.child("envFrom"), errors);
    volume_mounts(container, volumes, &path.child("volumeMounts"), errors);
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    if let Some(resources) = present(container, "resources") {
        resource_requirements(resources, &path.child("resources"), errors);
    }
    if let Some(context) = present(container, "securityContext") {
        security_context(context, &path.child("securityContext"), errors);
    }
}

fn ports(container: &Value, list_path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (place, port) in list(container, "ports").iter().enumerate() {
        let path = list_path.index(place);
        let name = port.str_at(&["name"]);
        if !name.is_empty() {
            let problems = name::port(name);
            if problems.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
            invalid(&path.child("name"), name, problems, errors);
        }
        match port.int_at(&["containerPort"]).unwrap_or(0) {
            0 => errors.push(FieldError::required(path.child("containerPort"), "")),
            _ => in_range(port, "containerPort", PORTS, &path, errors),
        }
        if port.int_at(&["hostPort"]).unwrap_or(0) != 0 {
            in_range(port, "hostPort", PORTS, &path, errors);
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        if !port.str_at(&["hostIP"]).is_empty() {
            check::ip(port.str_at(&["hostIP"]), &path.child("hostIP"), errors);
        }
    }
}

fn host_port_conflicts(containers: &[Value], list_path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (place, container) in containers.iter().enumerate() {
        let path = list_path.index(place);
        let ports = path.child("ports");
        for (place, port) in list(container, "ports").iter().enumerate() {
            let number = port.int_at(&["hostPort"]).unwrap_or(0);
            let key = format!("{}/{}/{number}", port.str_at(&["protocol"]), port.str_at(&["hostIP"]));
            if number != 0 && !seen.insert(key.clone()) {
                errors.push(FieldError::duplicate(ports.index(place).child("hostPort"), key));
            }
        }
    }
}

fn env(container: &Value, list_path: &Path, errors: &mut Errors) {
    for (place, variable) in list(container, "env").iter().enumerate() {
        let path = list_path.index(place);
        let name = required(variable, "name", &path, errors);
        if !name.is_empty() {
            invalid(&path.child("name"), name, name::env_var(name), errors);
        }
        if let Some(source) = present(variable, "valueFrom") {
            let has_value = !variable.str_at(&["value"]).is_empty();
            value_from(source, has_value, &path.child("valueFrom"), errors);
        }
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(source: &Value, has_value: bool, path: &Path, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(field) = present(source, "fieldRef") {
        sources += 1;
        field_ref(field, &ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = present(source, "resourceFieldRef") {
        sources += 1;
        resource_ref(resource, false, &path.child("resourceFieldRef"), errors);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = present(source, kind) {
            sources += 1;
            let path = path.child(kind);
            required(reference, "name", &path, errors);
            let key = required(reference, "key", &path, errors);
            if !key.is_empty() {
                invalid(&path.child("key"), key, name::config_key(key), errors);
            }
        }
    }
    sources += usize::from(present(source, "fileKeyRef").is_some());
    let why = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return,
        _ => MORE_THAN_ONE,
    };
    errors.push(FieldError::invalid(path, "", why));
}

/// A field of the pod: one of those listed, or one label or annotation.
pub(super) fn field_ref(field: &Value, supported: &[&str], path: &Path, errors: &mut Errors) {
    required(field, "apiVersion", path, errors);
    let text = required(field, "fieldPath", path, errors);
    if text.is_empty() {
        return;
    }
    let path = path.child("fieldPath");
    if let Some((map, key)) = text.strip_suffix("']").and_then(|text| text.split_once("['")) {
        match map {
            "metadata.annotations" => invalid(&path, key, name::qualified(&key.to_lowercase()), errors),
            "metadata.labels" => invalid(&path, key, name::qualified(key), errors),
            _ => errors.push(FieldError::invalid(path, map, "does not support subscript")),
        }
        return;
    }
    let known = ["metadata.labels", "metadata.annotations"];
    if !known.contains(&text) && !ENV_FIELDS.contains(&text) {
        let why = format!("error converting fieldPath: field label not supported: {text}");
        errors.push(FieldError::invalid(path, text, why));
    } else if !supported.contains(&text) {
        errors.push(FieldError::not_supported(path, text, supported));
    }
}

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn resource_ref(resource: &Value, is_volume: bool, path: &Path, errors: &mut Errors) {
    if is_volume {
        required(resource, "containerName", path, errors);
    }
    let text = required(resource, "resource", path, errors);
    let is_huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| text.starts_with(prefix));
    if !text.is_empty() && !is_huge && !RESOURCE_FIELDS.contains(&text) {
        errors.push(FieldError::not_supported(path.child("resource"), text, &RESOURCE_FIELDS));
    }
}

fn env_from(container: &Value, list_path: &Path, errors: &mut Errors) {
    for (place, source) in list(container, "envFrom").iter().enumerate() {
        let path = list_path.index(place);
        let prefix = source.str_at(&["prefix"]);
        if !prefix.is_empty() {
            invalid(&path.child("prefix"), prefix, name::env_var(prefix), errors);
        }
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            if let Some(reference) = present(source, kind) {
                sources += 1;
                required(reference, "name", &path.child(kind), errors);
            }
        }
        match sources {
            0 => errors.push(FieldError::invalid(list_path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(FieldError::invalid(list_path, "", MORE_THAN_ONE)),
        }
    }
}

fn volume_mounts(container: &Value, volumes: &[&str], list_path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (place, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = list_path.index(place);
        let name = required(mount, "name", &path, errors);
        if !volumes.contains(&name) {
            errors.push(FieldError::not_found(path.child("name"), name));
        }
        let target = required(mount, "mountPath", &path, errors);
        if !seen.insert(target) {
            errors.push(FieldError::invalid(path.child("mountPath"), target, "must be unique"));
        }
        let (plain, expression) = (mount.str_at(&["subPath"]), mount.str_at(&["subPathExpr"]));
        if !plain.is_empty() && !expression.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(path.child("subPathExpr"), expression, why));
        }
        check::descending_path(plain, &path.child("subPath"), errors);
        check::descending_path(expression, &path.child("subPathExpr"), errors);
        mount_propagation(mount, container, &path, errors);
    }
}

fn mount_propagation(mount: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let modes = ["Bidirectional", "HostToContainer", "None"];
    check::optional_one_of(mount, "mountPropagation", &modes, path, errors);
    let privileged = container.at(&["securityContext", "privileged"]) == Some(&Value::Bool(true));
    if mount.str_at(&["mountPropagation"]) == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(path.child("mountPropagation"), why));
    }
    let recursive = mount.str_at(&["recursiveReadOnly"]);
    check::optional_one_of(mount, "recursiveReadOnly", &["Disabled", "Enabled", "IfPossible"], path, errors);
    if matches!(recursive, "Enabled" | "IfPossible") && !flag(mount, "readOnly") {
        let why = "may only be specified when readOnly is true";
        errors.push(FieldError::forbidden(path.child("recursiveReadOnly"), why));
    }
}

/// Quantities by resource name, as of limits.
pub(super) fn resource_list(resources: Option<&Value>, path: &Path, errors: &mut Errors) {
    for (resource, amount) in resources.and_then(Value::as_object).into_iter().flatten() {
        let path = path.key(resource);
        resource_name(resource, &path, errors);
        let Ok(quantity) = Quantity::from_value(amount) else { continue };
        if quantity.is_negative() {
            errors.push(FieldError::invalid(path, quantity.to_string(), NOT_NEGATIVE));
        }
        if resource.contains('/') && !quantity.is_whole() {
            errors.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
        }
    }
}

fn resource_name(resource: &str, path: &Path, errors: &mut Errors) {
    invalid(path, resource, name::qualified(resource), errors);
    let is_standard = ["cpu", "memory", "ephemeral-storage"].contains(&resource) || resource.starts_with("hugepages-");
    if !resource.contains('/') && !is_standard {
        errors.push(FieldError::invalid(path, resource, "must be a standard resource for containers"));
    }
}

fn resource_requirements(resources: &Value, path: &Path, errors: &mut Errors) {
    resource_list(resources.get("limits"), &path.child("limits"), errors);
    resource_list(resources.get("requests"), &path.child("requests"), errors);
    for (resource, amount) in resources.get("requests").and_then(Value::as_object).into_iter().flatten() {
        let overcommits = !resource.contains('/') && !resource.starts_with("hugepages-");
        let Ok(request) = Quantity::from_value(amount) else { continue };
        let Some(limit) = resources.at(&["limits", resource]) else {
            if !overcommits {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(path.child("limits"), why));
            }
            continue;
        };
        let Ok(limit) = Quantity::from_value(limit) else { continue };
        let relation = if overcommits { "less than or equal to" } else { "equal to" };
        if request > limit || (!overcommits && request != limit) {
            let why = format!("must be {relation} {resource} limit of {limit}");
            errors.push(FieldError::invalid(path.child("requests"), request.to_string(), why));
        }
    }
}

fn security_context(context: &Value, path: &Path, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup"] {
        in_range(context, field, (0, i64::from(i32::MAX)), path, errors);
    }
    check::optional_one_of(context, "procMount", &["Default", "Unmasked"], path, errors);
    seccomp(context, path, errors);
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        let added = context.get("capabilities").map(|one| list(one, "add")).unwrap_or_default();
        if flag(context, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), why));
        }
        if added.iter().any(|one| one == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), why));
        }
    }
}

fn lifecycle(container: &Value, path: &Path, errors: &mut Errors) {
    let Some(lifecycle) = present(container, "lifecycle") else { return };
    let path = path.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if let Some(action) = present(lifecycle, hook) {
            handler(action, &path.child(hook), errors);
        }
    }
}

fn probes(container: &Value, path: &Path, errors: &mut Errors) {
    for kind in PROBES {
        let Some(probe) = present(container, kind) else { continue };
        let path = path.child(kind);
        handler(probe, &path, errors);
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            non_negative(probe, field, &path, errors);
        }
        let once = probe.int_at(&["successThreshold"]).unwrap_or(1);
        match kind {
            "readinessProbe" if present(probe, "terminationGracePeriodSeconds").is_some() => {
                let value = probe["terminationGracePeriodSeconds"].clone();
                let why = "must not be set for readinessProbes";
                errors.push(FieldError::invalid(path.child("terminationGracePeriodSeconds"), value, why));
            }
            "readinessProbe" => {}
            _ if once != 1 => errors.push(FieldError::invalid(path.child("successThreshold"), once, "must be 1")),
            _ => check::positive(probe, "terminationGracePeriodSeconds", &path, errors),
        }
    }
}

/// The one action of a probe or hook.
fn handler(action: &Value, path: &Path, errors: &mut Errors) {
    let mut actions = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = present(action, kind) else { continue };
        let path = path.child(kind);
        actions += 1;
        if actions > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if list(action, "command").is_empty() => {
                errors.push(FieldError::required(path.child("command"), ""));
            }
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" => check::port(action.get("port"), &path.child("port"), errors),
            "grpc" => check::port(action.get("port"), &path.child("port"), errors),
            _ => {}
        }
    }
    if actions == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(action: &Value, path: &Path, errors: &mut Errors) {
    required(action, "path", path, errors);
    check::port(action.get("port"), &path.child("port"), errors);
    one_of(action, "scheme", &["HTTP", "HTTPS"], path, errors);
    for header in list(action, "httpHeaders") {
        let name = header.str_at(&["name"]);
        let is_token = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        if name.is_empty() || !name.bytes().all(is_token) {
            let words = "a valid HTTP header must consist of alphanumeric characters or '-'";
            let why = name::unmatched(words, "[-A-Za-z0-9]+", &["X-Header-Name"]);
            errors.push(FieldError::invalid(path.child("httpHeaders"), name, why));
        }
    }
}
