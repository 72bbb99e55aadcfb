//! The controllers: each observes through informers, plans purely and applies through the client.
//! `run_all` is their list. They meet only through objects.

mod certificates;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod garbage;
mod history;
mod job;
mod namespace;
mod node;
mod node_ipam;
mod owners;
mod pod_gc;
mod pods;
mod portion;
mod replicaset;
mod runner;
mod service_account;
mod template_hash;

use crate::api::kinds::Kinds;
use crate::api::view::meta::Condition;
use crate::client::{Client, EventRecorder, Informers};
use crate::clock::Clock;
use crate::network::ipam::Cidr;
use crate::pki::Pki;
use crate::supervise::Tree;
use jiff::Timestamp;
use runner::{Reconcile, Source};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What the controllers need to know of the cluster.
#[derive(Clone)]
pub struct ControllerConfig {
    /// Every kind that is served, CRDs included.
    pub kinds: Kinds,
    /// Certificates of the cluster's authority, PEM, for `kube-root-ca.crt`.
    pub ca_pem: String,
    /// How long a node may be silent before it counts as lost.
    pub node_grace_s: u64,
    /// The node on the server's own board: that it is heard of says nothing of the network. Empty: none.
    pub own_node: String,
    /// Addresses of all pods; every node gets a part.
    pub cluster_cidr: Cidr,
    /// Prefix length of a node's part.
    pub node_cidr_mask: u8,
    /// What certificates are signed with; without it no certificate can be asked for.
    pub pki: Option<Pki>,
}

impl ControllerConfig {
    pub fn new(kinds: Kinds, ca_pem: String) -> Self {
        let cluster_cidr = "10.42.0.0/16".parse().expect("a constant");
        let own_node = String::new();
        Self { kinds, ca_pem, node_grace_s: 40, own_node, cluster_cidr, node_cidr_mask: 24, pki: None }
    }
}

/// The authorities that pods are to trust, as they are now.
#[derive(Clone)]
enum Authorities {
    Fixed(String),
    Followed(Pki),
}

impl Authorities {
    fn pem(&self) -> String {
        match self {
            Self::Fixed(pem) => pem.clone(),
            Self::Followed(pki) => pki.ca_pem(),
        }
    }

    /// Marked when they change.
    fn changes(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        match self {
            Self::Fixed(_) => None,
            Self::Followed(pki) => Some(pki.changes()),
        }
    }
}

impl ControllerConfig {
    fn authorities(&self) -> Authorities {
        match &self.pki {
            Some(pki) => Authorities::Followed(pki.clone()),
            None => Authorities::Fixed(self.ca_pem.clone()),
        }
    }
}

/// What every controller works with.
#[derive(Clone)]
struct Tools {
    client: Client,
    informers: Informers,
    clock: Clock,
}

impl Tools {
    fn recorder(&self, component: &'static str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), self.clock.clone(), component, "")
    }
}

/// How long a loop waits for the cache to show its own writes.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
/// Keys of one controller worked on at once.
const WORKERS: usize = 4;

/// Starts every controller in the tree.
pub fn run_all(config: &ControllerConfig, client: Client, informers: Informers, clock: Clock, tree: &mut Tree) {
    let tools = Tools { client, informers, clock };
    start(tree, "namespace", namespace::Controller::new(&tools, &config.kinds));
    start(tree, "service account", service_account::Controller::new(&tools, config.authorities()));
    start(tree, "deployment", deployment::Controller::new(&tools));
    start(tree, "daemonset", daemonset::Controller::new(&tools));
    start(tree, "disruption", disruption::Controller::new(&tools));
    start(tree, "pod garbage", pod_gc::Controller::new(&tools));
    start(tree, "job", job::Controller::new(&tools));
    start(tree, "replicaset", replicaset::Controller::new(&tools));
    start(tree, "endpoint slices", endpoints::slices::Controller::new(&tools));
    start(tree, "endpoints", endpoints::legacy::Controller::new(&tools));
    start(tree, "node lifecycle", node::Controller::new(&tools, config));
    start(tree, "node ipam", node_ipam::Controller::new(&tools, config.cluster_cidr, config.node_cidr_mask));
    start(tree, "token cleaner", certificates::tokens::Controller::new(&tools));
    if let Some(pki) = &config.pki {
        start(tree, "certificate requests", certificates::Controller::new(&tools, pki));
    }
    let garbage = garbage::run(tools.clone(), config.kinds.clone(), tree.shutdown());
    tree.spawn("garbage collector", garbage);
}

fn start<C: Reconcile>(tree: &mut Tree, name: &'static str, (controller, sources): (Arc<C>, Vec<Source>)) {
    let shutdown = tree.shutdown();
    tree.spawn(name, runner::run(name, controller, sources, WORKERS, shutdown));
}

fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// How long until `wait` has passed since `since`; at least a millisecond, so that waiting ends beyond it.
fn seconds_until(since: Timestamp, wait: Duration, now: Timestamp) -> Duration {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    wait.saturating_sub(passed).max(Duration::from_millis(1))
}

/// Conditions as the API has them: absent fields left out.
fn conditions(list: &[Condition]) -> Value {
    let mut value = serde_json::to_value(list).expect("conditions are plain data");
    for condition in value.as_array_mut().into_iter().flatten() {
        if let Some(fields) = condition.as_object_mut() {
            fields.retain(|_, field| !field.is_null());
        }
    }
    value
}
