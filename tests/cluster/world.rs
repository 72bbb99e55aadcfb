//! A cluster without machines.

use edgelet::api::kinds::Kinds;
use edgelet::api::object::ObjectExt;
use edgelet::client::{Client, EVENTS, Informers, LEASES, Local, NAMESPACES, NODES, PODS, Resource};
use edgelet::clock::Clock;
use edgelet::controllers::{self, ControllerConfig};
use edgelet::registry::{DeleteOptions, ListOptions, PatchType, Registry, RegistryConfig};
use edgelet::scheduler;
use edgelet::store::MemoryStore;
use edgelet::supervise::Tree;
use edgelet::telemetry::Trace;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

pub struct World {
    pub client: Client,
    pub clock: Clock,
    pub trace: Arc<Trace>,
    pub tree: Tree,
    cut: Cut,
}

/// Nodes whose kubelets hear and do nothing.
type Cut = Arc<Mutex<BTreeSet<String>>>;

impl World {
    /// The loops run, and pods of these nodes become ready as soon as they are bound.
    pub async fn new(nodes: &[&str]) -> Self {
        let clock = Clock::simulated("2026-11-23T00:00:00Z".parse().unwrap());
        let trace = Arc::new(Trace::default());
        let (store, kinds) = (Arc::new(MemoryStore::default()), Kinds::default());
        let config = RegistryConfig::default();
        let registry = Arc::new(Registry::new(config, store, kinds.clone(), clock.clone(), trace.clone()));
        let client = |component| Client::Local(Local::new(registry.clone(), component));
        let mut world = Self::over(client("test"), clock.clone(), trace.clone());
        world.create(NAMESPACES, "", json!({"metadata": {"name": "default"}})).await;
        for node in nodes {
            world.add_node(node).await;
        }
        let informers = Informers::new(client("loops"));
        let config = ControllerConfig::new(kinds, "CERTIFICATE".into());
        controllers::run_all(&config, client("controllers"), informers.clone(), clock.clone(), &mut world.tree);
        let shutdown = world.tree.shutdown();
        let scheduler = scheduler::run(client("scheduler"), informers.clone(), clock.clone(), trace, shutdown);
        world.tree.spawn("scheduler", scheduler);
        world.tree.spawn("kubelets", kubelets(client("kubelet"), informers, clock, world.cut.clone()));
        world
    }

    /// Nothing runs yet.
    pub fn over(client: Client, clock: Clock, trace: Arc<Trace>) -> Self {
        Self { client, clock, trace, tree: Tree::default(), cut: Cut::default() }
    }

    pub async fn add_node(&self, name: &str) {
        let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}]});
        let metadata = json!({"name": name, "labels": {"kubernetes.io/hostname": name}});
        self.create(NODES, "", json!({"metadata": metadata, "status": status})).await;
        self.patch(NODES, "", name, "status", json!({"status": status})).await;
    }

    /// The kubelet of a node is cut off: it neither runs nor ends pods.
    pub fn cut(&self, node: &str) {
        self.cut.lock().unwrap().insert(node.to_owned());
    }

    /// It is back, and looks at its pods again.
    pub async fn mend(&self, node: &str) {
        self.cut.lock().unwrap().remove(node);
        for pod in self.list(PODS, "").await {
            if pod.str_at(&["spec", "nodeName"]) == node {
                let patch = json!({"metadata": {"annotations": {"test/seen": self.clock.now_rfc3339()}}});
                self.patch(PODS, pod.namespace(), pod.name(), "", patch).await;
            }
        }
    }

    /// These nodes give signs of life from now on, until the handle is aborted.
    pub async fn keep_alive(&self, nodes: &[&str]) -> AbortHandle {
        if self.get(NAMESPACES, "", "kube-node-lease").await.is_none() {
            self.create(NAMESPACES, "", json!({"metadata": {"name": "kube-node-lease"}})).await;
        }
        let nodes: Vec<String> = nodes.iter().map(|name| (*name).to_owned()).collect();
        let (client, clock) = (self.client.clone(), self.clock.clone());
        let renewals = tokio::spawn(async move {
            loop {
                for node in &nodes {
                    renew(&client, &clock, node).await;
                }
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        });
        renewals.abort_handle()
    }

    pub async fn create(&self, resource: Resource, namespace: &str, object: Value) -> Value {
        let created = self.client.create(resource, namespace, object).await;
        created.unwrap_or_else(|error| panic!("create {}: {error}", resource.plural)).object().unwrap()
    }

    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Value,
    ) -> Value {
        let patched = self.client.patch(resource, namespace, name, subresource, PatchType::Merge, patch).await;
        patched.unwrap_or_else(|error| panic!("patch {name}: {error}")).object().unwrap()
    }

    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.client.get(resource, namespace, name).await.ok().map(|item| item.object().unwrap())
    }

    pub async fn list(&self, resource: Resource, namespace: &str) -> Vec<Value> {
        let listed = self.client.list(resource, namespace, &ListOptions::default()).await.unwrap();
        listed.items.iter().map(|item| item.object().unwrap()).collect()
    }

    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str, options: DeleteOptions) {
        self.client.delete(resource, namespace, name, &options).await.unwrap();
    }

    /// Messages of the Events about an object, in the order they were written.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let mut events = self.list(EVENTS, "default").await;
        events.retain(|event| event.str_at(&["involvedObject", "name"]) == name);
        events.iter().map(|event| event.str_at(&["message"]).to_owned()).collect()
    }

    /// Waits, in simulated time, until a condition of the objects holds.
    pub async fn until(&self, what: &str, resource: Resource, condition: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        for _ in 0..600 {
            let objects = self.list(resource, "").await;
            if condition(&objects) {
                return objects;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let objects = self.list(resource, "").await;
        panic!("{what}: not within a minute; {} are {}", resource.plural, json!(objects));
    }

    /// Lets everything settle: no write for a while.
    pub async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// One sign of life of a node.
pub async fn renew(client: &Client, clock: &Clock, node: &str) {
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40,
        "renewTime": edgelet::clock::rfc3339_micro(clock.now())});
    let namespace = "kube-node-lease";
    let patch = json!({"spec": spec});
    if client.patch(LEASES, namespace, node, "", PatchType::Merge, patch.clone()).await.is_err() {
        let lease = json!({"metadata": {"name": node}, "spec": spec});
        client.create(LEASES, namespace, lease).await.unwrap();
    }
}

/// Every node's kubelet: what is bound runs, what is terminating ends. A pod annotated `test/never-ready` stays unready.
async fn kubelets(client: Client, informers: Informers, clock: Clock, cut: Cut) {
    let mut pods = informers.all(PODS).subscribe();
    let mut address = 0;
    loop {
        let change = pods.next().await;
        let Some(pod) = change.new.as_ref().and_then(|item| item.object().ok()) else { continue };
        let (namespace, name) = (pod.namespace().to_owned(), pod.name().to_owned());
        let node = pod.str_at(&["spec", "nodeName"]);
        if node.is_empty() || cut.lock().unwrap().contains(node) {
            continue;
        }
        if pod.deletion_timestamp().is_some() {
            let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
            let _ = client.delete(PODS, &namespace, &name, &options).await;
        } else if matches!(pod.str_at(&["status", "phase"]), "" | "Pending") {
            address += 1;
            let ready = if pod.annotation("test/never-ready").is_some() { "False" } else { "True" };
            let now = clock.now_rfc3339();
            let status = json!({"phase": "Running", "startTime": now, "podIP": format!("10.42.0.{address}"),
                "podIPs": [{"ip": format!("10.42.0.{address}")}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}]});
            let _ = client.patch(PODS, &namespace, &name, "status", PatchType::Merge, json!({"status": status})).await;
        }
    }
}
