//! The objects that exist in every cluster; written at each start where they are missing.
//! Facts: rbac.txt beside this file. What an administrator changed stays changed.

mod rbac;

use super::{Context, Registry, User};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// What only the server knows about itself.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// Where the API answers, for the Service `default/kubernetes`.
    pub address: Ipv4Addr,
    pub port: u16,
    pub client_ca_pem: String,
}

/// An object and where it belongs.
struct Wanted {
    api_version: &'static str,
    kind: &'static str,
    namespace: String,
    object: Object,
}

impl Wanted {
    fn cluster(api_version: &'static str, kind: &'static str, object: Object) -> Self {
        Self { api_version, kind, namespace: String::new(), object }
    }

    fn namespaced(api_version: &'static str, kind: &'static str, namespace: &str, object: Object) -> Self {
        Self { api_version, kind, namespace: namespace.to_owned(), object }
    }
}

impl Registry {
    /// Makes what is missing. To be called before the API is served.
    pub async fn bootstrap(&self, facts: &ServerFacts) -> Result<()> {
        let context = Context { user: User::system("apiserver"), ..Context::default() };
        self.make_all(&context, namespaces()).await?;
        let mut others = rbac::objects();
        others.extend(priority_classes());
        others.push(service_cidr(self.config.service_cidr));
        others.push(kubernetes_service(self.service_range().first(), facts.port));
        self.make_all(&context, others).await?;
        self.keep_all(&context, vec![authentication(&facts.client_ca_pem)]).await?;
        self.keep_all(&context, kubernetes_endpoints(facts)).await?;
        self.adopt_events().await;
        Ok(())
    }

    /// All at once, so that they share a commit.
    async fn make_all(&self, context: &Context, wanted: Vec<Wanted>) -> Result<()> {
        try_join_all(wanted.into_iter().map(|one| self.make(context, one))).await.map(drop)
    }

    async fn make(&self, context: &Context, wanted: Wanted) -> Result<()> {
        let kind = self.kinds.kind(wanted.api_version, wanted.kind).ok_or_else(Status::page_not_found)?;
        if self.stored(&kind, &wanted.namespace, wanted.object.name()).await?.is_some() {
            return Ok(());
        }
        match self.create(context, &kind, &wanted.namespace, wanted.object.into()).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes them, or makes them what they should be.
    async fn keep_all(&self, context: &Context, wanted: Vec<Wanted>) -> Result<()> {
        for Wanted { api_version, kind, namespace, object } in wanted {
            let row = self.kinds.kind(api_version, kind).ok_or_else(Status::page_not_found)?;
            let name = object.name().to_owned();
            match self.stored(&row, &namespace, &name).await? {
                Some(_) => drop(self.update(context, &row, "", &namespace, &name, object.into()).await?),
                None => self.make(context, Wanted { api_version, kind, namespace, object }).await?,
            }
        }
        Ok(())
    }
}

fn namespaces() -> Vec<Wanted> {
    ["default", "kube-system", "kube-public", "kube-node-lease"]
        .into_iter()
        .map(|name| Wanted::cluster("v1", "Namespace", json!({"metadata": {"name": name}})))
        .collect()
}

fn priority_classes() -> Vec<Wanted> {
    let class = |name: &str, value: i64, description: &str| {
        let object = json!({
            "metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        });
        Wanted::cluster("scheduling.k8s.io/v1", "PriorityClass", object)
    };
    vec![
        class("system-cluster-critical", 2_000_000_000, "For pods the cluster cannot do without; any node will do."),
        class(
            "system-node-critical",
            2_000_001_000,
            "For pods their node cannot do without; they stay where they are.",
        ),
    ]
}

fn service_cidr((network, prefix): (Ipv4Addr, u8)) -> Wanted {
    let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [format!("{network}/{prefix}")]}});
    Wanted::cluster("networking.k8s.io/v1", "ServiceCIDR", object)
}

fn authentication(client_ca_pem: &str) -> Wanted {
    let object = json!({
        "metadata": {"name": "extension-apiserver-authentication"}, "data": {"client-ca-file": client_ca_pem},
    });
    Wanted::namespaced("v1", "ConfigMap", "kube-system", object)
}

fn kubernetes_service(address: Ipv4Addr, port: u16) -> Wanted {
    let object = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": address.to_string(), "type": "ClusterIP",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
        },
    });
    Wanted::namespaced("v1", "Service", "default", object)
}

fn kubernetes_endpoints(facts: &ServerFacts) -> Vec<Wanted> {
    let (address, port) = (facts.address.to_string(), facts.port);
    let port: Value = json!({"name": "https", "port": port, "protocol": "TCP"});
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [port]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address], "conditions": {"ready": true}}], "ports": [port],
    });
    vec![
        Wanted::namespaced("v1", "Endpoints", "default", endpoints),
        Wanted::namespaced("discovery.k8s.io/v1", "EndpointSlice", "default", slice),
    ]
}
