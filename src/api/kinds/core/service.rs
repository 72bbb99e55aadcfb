//! Services. Addresses and node ports are given out by the registry's admission; here is what they
//! follow from (k8s.io/kubernetes/pkg/registry/core/service, validation of Services).

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{self, Errors, PORTS, in_range, list, one_of, present};
use crate::api::validation::{self, Path, invalid, name};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(in crate::api::kinds) struct ServiceStrategy;

const SPEC: Path<'static> = Path::Root("spec");

impl Strategy for ServiceStrategy {
    fn default(&self, service: &mut Object) {
        let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten() {
            let target = port.get("targetPort");
            if target.is_none_or(|target| validation::is_empty(target) || target == 0)
                && let Some(number) = port.get("port").cloned()
            {
                port.set(&["targetPort"], number);
            }
        }
        let by_its_addresses = spec.str_at(&["type"]) == "ClusterIP" && is_reached_from_outside(spec);
        if by_its_addresses && spec.str_at(&["externalTrafficPolicy"]).is_empty() {
            spec.set(&["externalTrafficPolicy"], "Cluster".into());
        }
    }

    fn prepare_create(&self, _context: &HookContext, service: &mut Object) {
        service.set(&["status"], json!({"loadBalancer": {}}));
        let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        mirror_cluster_ip(spec);
        default_families(spec);
    }

    fn prepare_update(&self, _context: &HookContext, new: &mut Object, old: &Object) {
        let (none, Some(spec)) = (Value::Null, new.get_mut("spec").filter(|spec| spec.is_object())) else { return };
        let old = old.get("spec").unwrap_or(&none);
        drop_what_the_type_has_not(spec, old);
        keep_allocated(spec, old);
        mirror_cluster_ip(spec);
        default_families(spec);
    }

    fn validate(&self, _context: &HookContext, service: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = service.get("spec").unwrap_or(&none);
        of_type(spec, &mut errors);
        ports(spec, &mut errors);
        validation::labels(spec.get("selector"), &SPEC.child("selector"), &mut errors);
        affinity(spec, &mut errors);
        addresses(spec, &mut errors);
        one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &SPEC, &mut errors);
        port_conflicts(spec, &mut errors);
        for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
            check::optional_one_of(spec, field, &["Cluster", "Local"], &SPEC, &mut errors);
        }
        of_the_outside(spec, &mut errors);
        let distribution = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        check::optional_one_of(spec, "trafficDistribution", &distribution, &SPEC, &mut errors);
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let (new, old) = (new.get("spec"), old.get("spec"));
        let kind = |spec: Option<&Value>| spec.map(|spec| spec.str_at(&["type"]).to_owned()).unwrap_or_default();
        if kind(new) == "ExternalName" || kind(old) == "ExternalName" {
            return Vec::new();
        }
        let first = |spec: Option<&Value>| spec.and_then(|spec| list(spec, "clusterIPs").first().cloned());
        let all = new.map(|spec| list(spec, "clusterIPs").to_vec()).unwrap_or_default();
        let why = match (first(new), first(old)) {
            (None, Some(_)) => "primary clusterIP can not be unset",
            (Some(new), Some(old)) if new != old => "primary clusterIP can not be changed",
            _ => return Vec::new(),
        };
        vec![FieldError::invalid("spec.clusterIPs[0]", all, why)]
    }
}

fn is_external_name(spec: &Value) -> bool {
    spec.str_at(&["type"]) == "ExternalName"
}

fn is_headless(spec: &Value) -> bool {
    spec.str_at(&["clusterIP"]) == "None" || list(spec, "clusterIPs").first().is_some_and(|ip| ip == "None")
}

fn has_node_ports(spec: &Value) -> bool {
    match spec.str_at(&["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn is_reached_from_outside(spec: &Value) -> bool {
    match spec.str_at(&["type"]) {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether load balancers ask on each node if it has endpoints.
pub fn needs_health_check(spec: &Value) -> bool {
    spec.str_at(&["type"]) == "LoadBalancer" && spec.str_at(&["externalTrafficPolicy"]) == "Local"
}

/// `clusterIP` is the first of `clusterIPs`.
fn mirror_cluster_ip(spec: &mut Value) {
    let (one, many) = (spec.str_at(&["clusterIP"]).to_owned(), list(spec, "clusterIPs").first().cloned());
    match (one.as_str(), many) {
        ("", None) => {}
        ("", Some(first)) => spec.set(&["clusterIP"], first),
        (one, None) => spec.set(&["clusterIPs"], json!([one])),
        _ => {}
    }
}

/// One family, as the cluster has one; a headless service that selects nothing may mean both.
fn default_families(spec: &mut Value) {
    if is_external_name(spec) {
        return;
    }
    let selects_nothing = is_headless(spec) && spec.get("selector").is_none_or(validation::is_empty);
    let (policy, families) =
        if selects_nothing { ("RequireDualStack", json!(["IPv4", "IPv6"])) } else { ("SingleStack", json!(["IPv4"])) };
    if spec.str_at(&["ipFamilyPolicy"]).is_empty() {
        let several = list(spec, "clusterIPs").len() > 1 || list(spec, "ipFamilies").len() > 1;
        let policy = if several { "RequireDualStack" } else { policy };
        spec.set(&["ipFamilyPolicy"], policy.into());
    }
    if list(spec, "ipFamilies").is_empty() {
        let given = list(spec, "clusterIPs").iter().filter_map(Value::as_str).filter(|ip| *ip != "None");
        let given: Vec<&str> = given.map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
        let single = spec.str_at(&["ipFamilyPolicy"]) == "SingleStack";
        let families = match (given.is_empty(), single) {
            (false, _) => json!(given),
            (true, true) => json!(["IPv4"]),
            (true, false) => families,
        };
        spec.set(&["ipFamilies"], families);
    }
}

/// Fields that belong to the old type and that the client left as they were.
fn drop_what_the_type_has_not(spec: &mut Value, old: &Value) {
    if is_external_name(spec) && !is_external_name(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(field) == old.get(field) {
                spec.unset(&[field]);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(spec) {
        let old_ports = list(old, "ports").to_vec();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten() {
            if old_ports.iter().any(|old| old.get("nodePort") == port.get("nodePort")) {
                port.unset(&["nodePort"]);
            }
        }
    }
    let kind = spec.str_at(&["type"]).to_owned();
    let had = old.str_at(&["type"]);
    let same_policy = spec.get("externalTrafficPolicy") == old.get("externalTrafficPolicy");
    if !is_reached_from_outside(spec) && same_policy {
        spec.unset(&["externalTrafficPolicy"]);
    }
    let same_number = spec.get("healthCheckNodePort") == old.get("healthCheckNodePort");
    if needs_health_check(old) && !needs_health_check(spec) && same_number {
        spec.unset(&["healthCheckNodePort"]);
    }
    if had == "LoadBalancer" && kind != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.get(field) == old.get(field) {
                spec.unset(&[field]);
            }
        }
    }
}

/// What was given out stays when the client does not name it.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if !is_external_name(spec) && !is_external_name(old) {
        if spec.str_at(&["clusterIP"]).is_empty() && list(spec, "clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                copy(spec, old, field);
            }
        }
        let same_first = spec.get("clusterIP") == old.get("clusterIP");
        if list(spec, "clusterIPs").is_empty() && same_first {
            copy(spec, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if spec.get(field).is_none_or(validation::is_empty) {
                copy(spec, old, field);
            }
        }
    }
    if has_node_ports(spec) && has_node_ports(old) {
        let old_ports = list(old, "ports").to_vec();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter(|port| port.int_at(&["nodePort"]).unwrap_or(0) == 0) {
            let same = |one: &&Value| ["protocol", "port"].iter().all(|field| one.get(field) == port.get(field));
            if let Some(number) = old_ports.iter().find(same).and_then(|one| one.get("nodePort")) {
                port.set(&["nodePort"], number.clone());
            }
        }
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    if let Some(value) = from.get(field) {
        to.set(&[field], value.clone());
    }
}

fn of_type(spec: &Value, errors: &mut Errors) {
    if list(spec, "ports").is_empty() && !is_headless(spec) && !is_external_name(spec) {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match spec.str_at(&["type"]) {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", why));
        }
        "ExternalName" => {
            if !list(spec, "clusterIPs").is_empty() {
                let why = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden("spec.clusterIPs", why));
            }
            match spec.str_at(&["externalName"]) {
                "" => errors.push(FieldError::required("spec.externalName", "")),
                name => {
                    let plain = name.strip_suffix('.').unwrap_or(name);
                    invalid(&SPEC.child("externalName"), plain, name::subdomain(plain), errors);
                }
            }
        }
        _ => {}
    }
}

fn ports(spec: &Value, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let list_path = SPEC.child("ports");
    let mut seen = BTreeSet::new();
    for (place, port) in ports.iter().enumerate() {
        let path = list_path.index(place);
        let name = port.str_at(&["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(path.child("name"), ""));
            }
        } else {
            invalid(&path.child("name"), name, name::label(name), errors);
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        check::port(port.get("port").or(Some(&Value::Null)), &path.child("port"), errors);
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        check::port(port.get("targetPort"), &path.child("targetPort"), errors);
        if port.int_at(&["nodePort"]).unwrap_or(0) != 0 {
            in_range(port, "nodePort", PORTS, &path, errors);
        }
        if !port.str_at(&["appProtocol"]).is_empty() {
            let protocol = port.str_at(&["appProtocol"]);
            invalid(&path.child("appProtocol"), protocol, name::qualified(protocol), errors);
        }
    }
}

fn port_conflicts(spec: &Value, errors: &mut Errors) {
    let list_path = SPEC.child("ports");
    let cluster_only = spec.str_at(&["type"]) == "ClusterIP";
    let (mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
    for (place, port) in list(spec, "ports").iter().enumerate() {
        let path = list_path.index(place);
        let (protocol, number) = (port.str_at(&["protocol"]), port.int_at(&["port"]).unwrap_or(0));
        let node_port = port.int_at(&["nodePort"]).unwrap_or(0);
        if node_port != 0 && cluster_only {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(path.child("nodePort"), why));
        }
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(path.child("nodePort"), node_port));
        }
        if !numbers.insert((protocol, number)) {
            let value = json!({"protocol": protocol, "port": number});
            errors.push(FieldError::duplicate(path, value));
        }
    }
}

/// What only Services have that are reached from outside.
fn of_the_outside(spec: &Value, errors: &mut Errors) {
    let policy = spec.str_at(&["externalTrafficPolicy"]);
    if !policy.is_empty() && !is_reached_from_outside(spec) {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, why));
    }
    if spec.str_at(&["type"]) != "LoadBalancer" {
        // Upstream spells the first one so.
        let paths = ["LoadBalancerSourceRanges", "allocateLoadBalancerNodePorts", "loadBalancerClass"];
        for (field, shown) in ["loadBalancerSourceRanges", paths[1], paths[2]].into_iter().zip(paths) {
            if present(spec, field).is_some() {
                errors.push(FieldError::forbidden(SPEC.child(shown), "may only be used when `type` is 'LoadBalancer'"));
            }
        }
    }
    let number = spec.int_at(&["healthCheckNodePort"]).unwrap_or(0);
    if number == 0 {
        return;
    }
    if needs_health_check(spec) {
        in_range(spec, "healthCheckNodePort", PORTS, &SPEC, errors);
    } else {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", number, why));
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &SPEC, errors);
    let path = SPEC.child("sessionAffinityConfig");
    let config = present(spec, "sessionAffinityConfig");
    match (spec.str_at(&["sessionAffinity"]), config) {
        ("ClientIP", Some(config)) => {
            let timeout_s = config.int_at(&["clientIP", "timeoutSeconds"]).unwrap_or(0);
            if !(1..=86400).contains(&timeout_s) {
                let why = "must be greater than 0 and less than 86400";
                errors.push(FieldError::invalid(path.child("clientIP.timeoutSeconds"), timeout_s, why));
            }
        }
        ("None", Some(_)) => {
            errors.push(FieldError::forbidden(path, "must not be set when session affinity is None"));
        }
        _ => {}
    }
}

fn addresses(spec: &Value, errors: &mut Errors) {
    let cluster_ips = list(spec, "clusterIPs");
    let list_path = SPEC.child("clusterIPs");
    if cluster_ips.first().is_some_and(|first| first != spec.str_at(&["clusterIP"])) {
        errors.push(FieldError::invalid(list_path, cluster_ips.to_vec(), "first value must match `clusterIP`"));
    }
    if cluster_ips.len() > 2 {
        errors.push(FieldError::invalid(list_path, cluster_ips.to_vec(), "may only hold up to 2 values"));
    }
    for (place, ip) in cluster_ips.iter().filter_map(Value::as_str).enumerate() {
        if ip == "None" && place > 0 {
            let why = "'None' must be the first and only value";
            errors.push(FieldError::invalid(list_path.index(place), ip, why));
        } else if ip != "None" {
            check::ip(ip, &list_path.index(place), errors);
        }
    }
    let list_path = SPEC.child("ipFamilies");
    for (place, family) in list(spec, "ipFamilies").iter().filter_map(Value::as_str).enumerate() {
        if !["IPv4", "IPv6"].contains(&family) {
            errors.push(FieldError::not_supported(list_path.index(place), family, &["IPv4", "IPv6"]));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    check::optional_one_of(spec, "ipFamilyPolicy", &policies, &SPEC, errors);
    let list_path = SPEC.child("externalIPs");
    for (place, ip) in list(spec, "externalIPs").iter().filter_map(Value::as_str).enumerate() {
        check::endpoint_ip(ip, &list_path.index(place), errors);
    }
}
