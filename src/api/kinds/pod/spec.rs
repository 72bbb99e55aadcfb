//! Validation of a `PodSpec` but for its containers, volumes and where it may run.

use super::{container, scheduling, volume};
use crate::api::object::ObjectExt;
use crate::api::status::FieldError;
use crate::api::validation::check::{self, Errors, flag, in_range, list, one_of, optional_one_of, present};
use crate::api::validation::{self, Path, invalid, name};
use serde_json::Value;

const INT32: i64 = i32::MAX as i64;

/// In upstream's order, which the client sees.
pub(super) fn validate(spec: &Value, path: &Path, errors: &mut Errors) {
    let volumes = volume::validate(list(spec, "volumes"), &path.child("volumes"), errors);
    container::validate_all(spec, &volumes, path, errors);
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    dns(spec, path, errors);
    validation::labels(spec.get("nodeSelector"), &path.child("nodeSelector"), errors);
    host_network(spec, path, errors);
    security_context(spec, path, errors);
    for (place, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        check::required(secret, "name", &path.child("imagePullSecrets").index(place), errors);
    }
    scheduling::affinity(spec, path, errors);
    scheduling::gates(spec, path, errors);
    scheduling::topology_spread(spec, path, errors);
    names(spec, path, errors);
    in_range(spec, "activeDeadlineSeconds", (1, INT32), path, errors);
    check::non_negative(spec, "terminationGracePeriodSeconds", path, errors);
    scheduling::tolerations(list(spec, "tolerations"), &path.child("tolerations"), errors);
    host_aliases(spec, path, errors);
    optional_one_of(spec, "preemptionPolicy", &["Never", "PreemptLowerPriority"], path, errors);
    container::resource_list(present(spec, "overhead"), &path.child("overhead"), errors);
    if let Some(os) = present(spec, "os") {
        one_of(os, "name", &["linux", "windows"], &path.child("os"), errors);
    }
}

fn dns(spec: &Value, path: &Path, errors: &mut Errors) {
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(spec, "dnsPolicy", &policies, path, errors);
    let path = path.child("dnsConfig");
    let Some(config) = present(spec, "dnsConfig") else {
        if spec.str_at(&["dnsPolicy"]) == "None" {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        return;
    };
    let servers = list(config, "nameservers");
    let list_path = path.child("nameservers");
    if spec.str_at(&["dnsPolicy"]) == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(list_path, why));
    }
    if servers.len() > 3 {
        errors.push(FieldError::invalid(list_path, servers.to_vec(), "must not have more than 3 nameservers"));
    }
    for (place, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        check::ip(server, &list_path.index(place), errors);
    }
    let searches = list(config, "searches");
    let list_path = path.child("searches");
    if searches.len() > 32 {
        errors.push(FieldError::invalid(list_path, searches.to_vec(), "must not have more than 32 search paths"));
    }
    for (place, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        let plain = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            invalid(&list_path.index(place), search, name::subdomain(plain), errors);
        }
    }
    let list_path = path.child("options");
    for (place, option) in list(config, "options").iter().enumerate() {
        if option.str_at(&["name"]).is_empty() {
            errors.push(FieldError::required(list_path.index(place), "must not be empty"));
        }
    }
}

/// On the host's network a container's port is the host's.
fn host_network(spec: &Value, path: &Path, errors: &mut Errors) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    let containers = path.child("containers");
    for (place, container) in list(spec, "containers").iter().enumerate() {
        let container_path = containers.index(place);
        let ports = container_path.child("ports");
        for (place, port) in list(container, "ports").iter().enumerate() {
            let number = port.int_at(&["containerPort"]).unwrap_or(0);
            if port.int_at(&["hostPort"]).unwrap_or(0) != number {
                let why = "must match `hostPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(ports.index(place).child("containerPort"), number, why));
            }
        }
    }
}

fn security_context(spec: &Value, path: &Path, errors: &mut Errors) {
    if flag(spec, "hostPID") && flag(spec, "shareProcessNamespace") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.child("shareProcessNamespace"), true, why));
    }
    let Some(context) = present(spec, "securityContext") else { return };
    let path = path.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        in_range(context, field, (0, INT32), &path, errors);
    }
    let groups = path.child("supplementalGroups");
    for (place, group) in list(context, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(-1);
        if !(0..=INT32).contains(&group) {
            let why = format!("must be between 0 and {INT32}, inclusive");
            errors.push(FieldError::invalid(groups.index(place), group, why));
        }
    }
    optional_one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], &path, errors);
    optional_one_of(context, "fsGroupChangePolicy", &["OnRootMismatch", "Always"], &path, errors);
    seccomp(context, &path, errors);
    sysctls(context, &path, errors);
}

pub(super) fn seccomp(context: &Value, path: &Path, errors: &mut Errors) {
    let Some(profile) = present(context, "seccompProfile") else { return };
    let path = path.child("seccompProfile");
    one_of(profile, "type", &["Localhost", "RuntimeDefault", "Unconfined"], &path, errors);
    let is_local = profile.str_at(&["type"]) == "Localhost";
    let file = path.child("localhostProfile");
    match profile.str_at(&["localhostProfile"]) {
        "" if is_local => errors.push(FieldError::required(file, "must be set when seccomp type is Localhost")),
        "" => {}
        name if is_local => check::descending_path(name, &file, errors),
        name => errors.push(FieldError::invalid(file, name, "can only be set when seccomp type is Localhost")),
    }
}

fn sysctls(context: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("sysctls");
    let mut seen = Vec::new();
    for (place, sysctl) in list(context, "sysctls").iter().enumerate() {
        let path = list_path.index(place);
        let name = check::required(sysctl, "name", &path, errors);
        let is_valid = name.len() <= 253 && name.split(['.', '/']).all(is_sysctl_part);
        if !name.is_empty() && !is_valid {
            let segment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let why = format!("must have at most 253 characters and match regex ^({segment}[\\./])*{segment}$");
            errors.push(FieldError::invalid(path.child("name"), name, why));
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        seen.push(name);
    }
}

fn is_sysctl_part(part: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let middle = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
    part.bytes().all(middle) && edge(part.bytes().next()) && edge(part.bytes().last())
}

fn names(spec: &Value, path: &Path, errors: &mut Errors) {
    let subdomains = ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"];
    let labels = ["hostname", "subdomain"];
    let checks = subdomains.map(|field| (field, name::subdomain as fn(&str) -> Vec<String>));
    for (field, problems) in checks.into_iter().chain(labels.map(|field| (field, name::label as fn(&str) -> _))) {
        let text = spec.str_at(&[field]);
        if !text.is_empty() {
            invalid(&path.child(field), text, problems(text), errors);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("hostAliases");
    for (place, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = list_path.index(place);
        check::ip(alias.str_at(&["ip"]), &path.child("ip"), errors);
        for hostname in list(alias, "hostnames").iter().filter_map(Value::as_str) {
            invalid(&path.child("hostnames"), hostname, name::subdomain(hostname), errors);
        }
    }
}
