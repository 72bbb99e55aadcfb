//! Printers of networking and discovery.

use super::core::load_balancer;
use super::{NONE, Printer, UNSET, age, first_three, label_selector, list, or, texts};
use crate::api::kinds::row::{AGE, NAME, columns, string};
use crate::api::object::{Object, ObjectExt};
use serde_json::Value;

pub(in crate::api::kinds) const ENDPOINT_SLICE: Printer = Printer::new(
    columns![
        NAME,
        string("AddressType", "Kind of the addresses."),
        string("Ports", "Ports of the endpoints."),
        string("Endpoints", "Addresses of the endpoints."),
        AGE,
    ],
    |slice, now| {
        let port = |port: &Value| match port.int_at(&["port"]) {
            Some(number) => number.to_string(),
            None => or(port, &["name"], "*").to_owned(),
        };
        let ports: Vec<String> = list(slice, &["ports"]).iter().map(port).collect();
        let endpoints = list(slice, &["endpoints"]);
        let addresses = endpoints.iter().flat_map(|one| texts(one, &["addresses"]));
        let addresses: Vec<String> = addresses.map(str::to_owned).collect();
        let kind = slice.str_at(&["addressType"]);
        cells![slice.name(), kind, first_three(&ports, UNSET), first_three(&addresses, UNSET), age(slice, now)]
    },
);

pub(in crate::api::kinds) const INGRESS: Printer = Printer::new(
    columns![
        NAME,
        string("Class", "Class that serves the ingress."),
        string("Hosts", "Hosts it answers for."),
        string("Address", "Addresses it is reached at."),
        string("Ports", "Ports it is reached at."),
        AGE,
    ],
    |ingress, now| {
        let ports = if list(ingress, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" };
        cells![
            ingress.name(),
            or(ingress, &["spec", "ingressClassName"], NONE),
            hosts(ingress),
            load_balancer(ingress).join(","),
            ports,
            age(ingress, now),
        ]
    },
);

fn hosts(ingress: &Object) -> String {
    let rules = list(ingress, &["spec", "rules"]);
    let hosts: Vec<&str> = rules.iter().map(|rule| rule.str_at(&["host"])).filter(|host| !host.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_owned(),
        1..=3 => hosts.join(","),
        _ => format!("{} + {} more...", hosts[..3].join(","), rules.len() - 3),
    }
}

pub(in crate::api::kinds) const INGRESS_CLASS: Printer = Printer::new(
    columns![
        NAME,
        string("Controller", "Controller that serves the class."),
        string("Parameters", "Object with further settings."),
        AGE,
    ],
    |class, now| {
        let parameters = class.at(&["spec", "parameters"]).filter(|value| value.is_object()).map(|parameters| {
            let group = match parameters.str_at(&["apiGroup"]) {
                "" => String::new(),
                group => format!(".{group}"),
            };
            format!("{}{group}/{}", parameters.str_at(&["kind"]), parameters.str_at(&["name"]))
        });
        let parameters = parameters.unwrap_or_else(|| NONE.to_owned());
        cells![class.name(), class.str_at(&["spec", "controller"]), parameters, age(class, now)]
    },
);

pub(in crate::api::kinds) const NETWORK_POLICY: Printer =
    Printer::new(columns![NAME, string("Pod-Selector", "Pods it applies to."), AGE], |policy, now| {
        cells![policy.name(), label_selector(policy.at(&["spec", "podSelector"])), age(policy, now)]
    });

pub(in crate::api::kinds) const IP_ADDRESS: Printer =
    Printer::new(columns![NAME, string("ParentRef", "What holds the address.")], |address, _| {
        let part = |field| address.str_at(&["spec", "parentRef", field]);
        let resource = match part("group") {
            "" => part("resource").to_owned(),
            group => format!("{}.{group}", part("resource")),
        };
        let place: Vec<&str> = [part("namespace"), part("name")].into_iter().filter(|one| !one.is_empty()).collect();
        cells![address.name(), format!("{}/{}", resource.to_lowercase(), place.join("/"))]
    });

pub(in crate::api::kinds) const SERVICE_CIDR: Printer =
    Printer::new(columns![NAME, string("CIDRs", "Ranges the addresses come from."), AGE], |object, now| {
        cells![object.name(), texts(object, &["spec", "cidrs"]).join(","), age(object, now)]
    });
