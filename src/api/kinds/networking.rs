//! Rows of networking.k8s.io/v1.

mod traffic;

use super::policy;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, names, subresources, texts};
use super::{Kind, NameRule};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("networking.k8s.io" "v1" "io.k8s.api.networking.v1", $($name)*)
    };
}

pub(super) static INGRESS_CLASS: Kind = Row {
    printer: print::INGRESS_CLASS,
    strategy: &policy::Counted,
    ..Row::cluster(kind!("IngressClass" "ingressclasses" "ingressclass"))
}
.build();

pub(super) static INGRESS: Kind = Row {
    short_names: texts!["ing"],
    subresources: subresources!["status" "Ingress" GET_PATCH_UPDATE;],
    printer: print::INGRESS,
    strategy: &traffic::IngressStrategy,
    ..Row::namespaced(kind!("Ingress" "ingresses" "ingress"))
}
.build();

pub(super) static IP_ADDRESS: Kind = Row {
    short_names: texts!["ip"],
    name_rule: NameRule::PathSegment,
    printer: print::IP_ADDRESS,
    ..Row::cluster(kind!("IPAddress" "ipaddresses" "ipaddress"))
}
.build();

pub(super) static NETWORK_POLICY: Kind = Row {
    short_names: texts!["netpol"],
    printer: print::NETWORK_POLICY,
    strategy: &traffic::NetworkPolicyStrategy,
    ..Row::namespaced(kind!("NetworkPolicy" "networkpolicies" "networkpolicy"))
}
.build();

pub(super) static SERVICE_CIDR: Kind = Row {
    subresources: subresources!["status" "ServiceCIDR" GET_PATCH_UPDATE;],
    printer: print::SERVICE_CIDR,
    strategy: &policy::StatusStrategy { generation: false },
    ..Row::cluster(kind!("ServiceCIDR" "servicecidrs" "servicecidr"))
}
.build();
