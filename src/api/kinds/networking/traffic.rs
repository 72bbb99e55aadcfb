//! Ingresses and network policies.

use crate::api::kinds::apps::replicas::{SPEC, reset_status};
use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{self, Errors, list, one_of, optional_one_of, present, required};
use crate::api::validation::{self, Path, invalid, is_empty, name};
use serde_json::{Value, json};

pub(in crate::api::kinds) struct IngressStrategy;

impl Strategy for IngressStrategy {
    fn prepare_create(&self, _context: &HookContext, ingress: &mut Object) {
        reset_status(ingress, json!({"loadBalancer": {}}));
    }
    fn validate(&self, _context: &HookContext, ingress: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = ingress.get("spec").unwrap_or(&none);
        let rules = list(spec, "rules");
        match present(spec, "defaultBackend") {
            Some(backend) => ingress_backend(backend, &SPEC.child("defaultBackend"), &mut errors),
            None if rules.is_empty() => {
                let why = "either `defaultBackend` or `rules` must be specified";
                errors.push(FieldError::invalid(SPEC, Value::Null, why));
            }
            None => {}
        }
        let list_path = SPEC.child("rules");
        for (place, rule) in rules.iter().enumerate() {
            ingress_rule(rule, &list_path.index(place), &mut errors);
        }
        let list_path = SPEC.child("tls");
        for (place, tls) in list(spec, "tls").iter().enumerate() {
            let path = list_path.index(place);
            let hosts = path.child("hosts");
            for (place, host) in list(tls, "hosts").iter().filter_map(Value::as_str).enumerate() {
                ingress_host(host, &hosts.index(place), &mut errors);
            }
        }
        let class = spec.str_at(&["ingressClassName"]);
        if !class.is_empty() {
            invalid(&SPEC.child("ingressClassName"), class, name::subdomain(class), &mut errors);
        }
        errors
    }
    fn has_generation(&self) -> bool {
        true
    }
}

fn ingress_host(host: &str, path: &Path, errors: &mut Errors) {
    let problems = if host.contains('*') { name::wildcard_subdomain(host) } else { name::subdomain(host) };
    invalid(path, host, problems, errors);
}

fn ingress_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let host = rule.str_at(&["host"]);
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path.child("host"), host, "must be a DNS name, not an IP address"));
    } else if !host.is_empty() {
        ingress_host(host, &path.child("host"), errors);
    }
    let Some(http) = present(rule, "http") else { return };
    let paths = list(http, "paths");
    let list_path = path.child("http.paths");
    if paths.is_empty() {
        errors.push(FieldError::required(list_path, ""));
    }
    for (place, one) in paths.iter().enumerate() {
        let path = list_path.index(place);
        let text = one.str_at(&["path"]);
        match one.str_at(&["pathType"]) {
            "" => errors.push(FieldError::required(path.child("pathType"), "pathType must be specified")),
            "Exact" | "Prefix" if !text.starts_with('/') => {
                errors.push(FieldError::invalid(path.child("path"), text, "must be an absolute path"));
            }
            "Exact" | "Prefix" => {
                for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| text.contains(part)) {
                    let why = format!("must not contain '{part}'");
                    errors.push(FieldError::invalid(path.child("path"), text, why));
                }
            }
            _ => {
                let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
                optional_one_of(one, "pathType", &kinds, &path, errors);
                if !text.is_empty() && !text.starts_with('/') {
                    errors.push(FieldError::invalid(path.child("path"), text, "must be an absolute path"));
                }
            }
        }
        let none = Value::Null;
        ingress_backend(one.get("backend").unwrap_or(&none), &path.child("backend"), errors);
    }
}

fn ingress_backend(backend: &Value, path: &Path, errors: &mut Errors) {
    match (present(backend, "service"), present(backend, "resource")) {
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", why));
        }
        (None, Some(_)) => {}
        (None, None) => errors.push(FieldError::required(path, "resource or service backend is required")),
        (Some(service), None) => {
            let path = path.child("service");
            let name = required(service, "name", &path, errors);
            if !name.is_empty() {
                invalid(&path.child("name"), name, name::label_1035(name), errors);
            }
            ingress_port(service, &path.child("port"), errors);
        }
    }
}

fn ingress_port(service: &Value, path: &Path, errors: &mut Errors) {
    let port_name = service.str_at(&["port", "name"]);
    match (port_name.is_empty(), service.int_at(&["port", "number"]).unwrap_or(0)) {
        (true, 0) => errors.push(FieldError::required(path, "port name or number is required")),
        (false, 0) => invalid(&path.child("name"), port_name, name::port(port_name), errors),
        (true, number) => check::port(Some(&number.into()), &path.child("number"), errors),
        (false, _) => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
    }
}

pub(in crate::api::kinds) struct NetworkPolicyStrategy;

impl Strategy for NetworkPolicyStrategy {
    /// Without a word about it a policy is about ingress, and about egress when it has such rules.
    fn default(&self, policy: &mut Object) {
        let Some(spec) = policy.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        if list(spec, "policyTypes").is_empty() {
            let has_egress = !list(spec, "egress").is_empty();
            let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            spec.set(&["policyTypes"], types);
        }
    }
    fn validate(&self, _context: &HookContext, policy: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = policy.get("spec").unwrap_or(&none);
        if let Some(selector) = present(spec, "podSelector") {
            validation::label_selector(selector, &SPEC.child("podSelector"), &mut errors);
        }
        for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
            let list_path = SPEC.child(rules);
            for (place, rule) in list(spec, rules).iter().enumerate() {
                let path = list_path.index(place);
                policy_ports(rule, &path, &mut errors);
                let peers_path = path.child(peers);
                for (place, peer) in list(rule, peers).iter().enumerate() {
                    policy_peer(peer, &peers_path.index(place), &mut errors);
                }
            }
        }
        let list_path = SPEC.child("policyTypes");
        for (place, kind) in list(spec, "policyTypes").iter().filter_map(Value::as_str).enumerate() {
            if !["Ingress", "Egress"].contains(&kind) {
                errors.push(FieldError::not_supported(list_path.index(place), kind, &["Egress", "Ingress"]));
            }
        }
        errors
    }
    fn has_generation(&self) -> bool {
        true
    }
}

fn policy_ports(rule: &Value, path: &Path, errors: &mut Errors) {
    let list_path = path.child("ports");
    for (place, port) in list(rule, "ports").iter().enumerate() {
        let path = list_path.index(place);
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        let number = present(port, "port");
        if number.is_some() {
            check::port(number, &path.child("port"), errors);
        }
        if let Some(end) = port.int_at(&["endPort"]) {
            match number.map(Value::as_i64) {
                Some(Some(start)) if end < start => {
                    let why = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(path.child("endPort"), end, why));
                }
                Some(Some(_)) => check::in_range(port, "endPort", check::PORTS, &path, errors),
                Some(None) => {
                    let why = "may not be specified when `port` is non-numeric";
                    errors.push(FieldError::invalid(path.child("endPort"), end, why));
                }
                None => {
                    let why = "may not be specified when `port` is not specified";
                    errors.push(FieldError::invalid(path.child("endPort"), end, why));
                }
            }
        }
    }
}

fn policy_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let selectors =
        ["podSelector", "namespaceSelector"].into_iter().filter_map(|field| Some((field, present(peer, field)?)));
    let selectors: Vec<_> = selectors.collect();
    for (field, selector) in &selectors {
        validation::label_selector(selector, &path.child(field), errors);
    }
    match (present(peer, "ipBlock"), selectors.is_empty()) {
        (Some(block), true) => ip_block(block, &path.child("ipBlock"), errors),
        (Some(_), false) => {
            let why = "may not specify both ipBlock and another peer";
            errors.push(FieldError::forbidden(path, why));
        }
        (None, true) => errors.push(FieldError::required(path, "must specify a peer")),
        (None, false) => {}
    }
}

fn ip_block(block: &Value, path: &Path, errors: &mut Errors) {
    if is_empty(block.get("cidr").unwrap_or(&Value::Null)) {
        errors.push(FieldError::required(path.child("cidr"), ""));
        return;
    }
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let is_cidr = |text: &str| {
        let parts = text.split_once('/').map(|(ip, bits)| (ip.parse::<std::net::IpAddr>(), bits.parse::<u8>()));
        matches!(parts, Some((Ok(ip), Ok(bits))) if bits <= if ip.is_ipv4() { 32 } else { 128 })
    };
    let cidr = block.str_at(&["cidr"]);
    if !is_cidr(cidr) {
        errors.push(FieldError::invalid(path.child("cidr"), cidr, why));
    }
    let list_path = path.child("except");
    for (place, except) in list(block, "except").iter().filter_map(Value::as_str).enumerate() {
        if !is_cidr(except) {
            errors.push(FieldError::invalid(list_path.index(place), except, why));
        }
    }
}
