//! Endpoints and EndpointSlices.

use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{self, Errors, list, one_of, optional_one_of, present};
use crate::api::validation::{self, Path, invalid, name};
use serde_json::Value;
use std::collections::BTreeSet;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(in crate::api::kinds) struct EndpointsStrategy;

impl Strategy for EndpointsStrategy {
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let subsets = Path::Root("subsets");
        for (place, subset) in list(object, "subsets").iter().enumerate() {
            let path = subsets.index(place);
            let (ready, not_ready) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
            if ready.is_empty() && not_ready.is_empty() {
                errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
            }
            for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                let list_path = path.child(field);
                for (place, address) in addresses.iter().enumerate() {
                    endpoint_address(address, &list_path.index(place), &mut errors);
                }
            }
            let ports = list(subset, "ports");
            let list_path = path.child("ports");
            for (place, port) in ports.iter().enumerate() {
                endpoint_port(port, ports.len() > 1, &list_path.index(place), &mut errors);
            }
        }
        errors
    }
}

fn endpoint_address(address: &Value, path: &Path, errors: &mut Errors) {
    check::endpoint_ip(address.str_at(&["ip"]), &path.child("ip"), errors);
    let hostname = address.str_at(&["hostname"]);
    if !hostname.is_empty() {
        invalid(&path.child("hostname"), hostname, name::label(hostname), errors);
    }
}

fn endpoint_port(port: &Value, needs_name: bool, path: &Path, errors: &mut Errors) {
    match port.str_at(&["name"]) {
        "" if needs_name => errors.push(FieldError::required(path.child("name"), "")),
        "" => {}
        name => invalid(&path.child("name"), name, name::label(name), errors),
    }
    check::port(port.get("port"), &path.child("port"), errors);
    one_of(port, "protocol", &PROTOCOLS, path, errors);
}

pub(in crate::api::kinds) struct EndpointSliceStrategy;

impl Strategy for EndpointSliceStrategy {
    fn validate(&self, _context: &HookContext, slice: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        one_of(slice, "addressType", &["FQDN", "IPv4", "IPv6"], &Path::Root(""), &mut errors);
        let endpoints = list(slice, "endpoints");
        let list_path = Path::Root("endpoints");
        if endpoints.len() > 1000 {
            errors.push(FieldError::too_many(list_path, endpoints.len(), 1000));
        }
        for (place, endpoint) in endpoints.iter().enumerate() {
            slice_endpoint(endpoint, slice.str_at(&["addressType"]), &list_path.index(place), &mut errors);
        }
        slice_ports(slice, &mut errors);
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let path = Path::Root("addressType");
        validation::immutable(&path, new.get("addressType"), old.get("addressType"), &mut errors);
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn slice_endpoint(endpoint: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let addresses = list(endpoint, "addresses");
    let list_path = path.child("addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(list_path, "must contain at least 1 address"));
    }
    if addresses.len() > 100 {
        errors.push(FieldError::too_many(list_path, addresses.len(), 100));
    }
    for (place, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let path = list_path.index(place);
        match kind {
            "IPv4" | "IPv6" => {
                check::endpoint_ip(address, &path, errors);
                let is_v6 = address.contains(':');
                if address.parse::<std::net::IpAddr>().is_ok() && is_v6 != (kind == "IPv6") {
                    let why = format!("must be an {kind} address");
                    errors.push(FieldError::invalid(path, address, why));
                }
            }
            "FQDN" => invalid(&path, address, name::subdomain(address.strip_suffix('.').unwrap_or(address)), errors),
            _ => {}
        }
    }
    let hostname = endpoint.str_at(&["hostname"]);
    if !hostname.is_empty() {
        invalid(&path.child("hostname"), hostname, name::label(hostname), errors);
    }
    let node = endpoint.str_at(&["nodeName"]);
    if !node.is_empty() {
        invalid(&path.child("nodeName"), node, name::subdomain(node), errors);
    }
}

fn slice_ports(slice: &Object, errors: &mut Errors) {
    let list_path = Path::Root("ports");
    let mut seen = BTreeSet::new();
    for (place, port) in list(slice, "ports").iter().enumerate() {
        let path = list_path.index(place);
        let name = port.str_at(&["name"]);
        if !name.is_empty() {
            invalid(&path.child("name"), name, name::label(name), errors);
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        optional_one_of(port, "protocol", &PROTOCOLS, &path, errors);
        if present(port, "port").is_some() {
            check::port(port.get("port"), &path.child("port"), errors);
        }
    }
}
