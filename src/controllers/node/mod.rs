//! Watches over nodes: silence becomes Unknown conditions and taints, taints evict pods, pods of lost nodes go.

mod eviction;
mod fenced;
mod health;
mod zone;

use super::runner::{Reconcile, Source};
use super::{ControllerConfig, Tools};
use crate::api::status::Result;
use crate::api::view::node::{Lease, Node, Taint};
use crate::client::events::Type;
use crate::client::informer::{Change, Scope};
use crate::client::{DeleteOptions, PatchType};
use crate::client::{EventRecorder, Informer, Item, LEASES, NODES, ObjectRef, PODS};
use crate::clock::{monotonic, rfc3339};
use eviction::{PodFacts, stay};
use fenced::{Fate, fate};
use futures_util::future::BoxFuture;
use health::Giving;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zone::{Health, Pace};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a node must be gone before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);
/// After a sign of life that was not seen here yet.
const RECHECK: Duration = Duration::from_secs(1);
/// Stands for all lost nodes; no node has this key.
const LOST_NODES: &str = "*";
/// Keys on their way to the queue.
const ASKED_LIMIT: usize = 64;
/// Name of the index of pods by node.
pub const BY_NODE: &str = "node";

/// What was seen of a node and when, in monotonic time: clocks of boards differ, and jump when NTP finds them.
struct Seen {
    uid: String,
    sign_of_life: String,
    at: Instant,
    zone: String,
    /// What its condition Ready says, whatever we heard.
    ready: bool,
    /// Since when it has had NoExecute taints.
    tainted: Option<Timestamp>,
}

/// What a look at a node has found.
struct Observed {
    /// How long the node has given no sign of life.
    quiet: Duration,
    /// Since when it has had NoExecute taints.
    tainted: Option<Timestamp>,
    /// It has become ready or stopped being so.
    turned: bool,
}

/// What keeps many nodes from being given up at once.
#[derive(Default)]
struct Storm {
    /// Every node was lost when it was looked at last.
    total: bool,
    /// After that, nobody is given up before this time.
    resume: Option<Instant>,
    /// By zone, when its next node may be given up.
    next: HashMap<String, Instant>,
}

/// When the node itself last wrote its conditions.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Heartbeats {
    status: Reports,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reports {
    conditions: Vec<Report>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Report {
    last_heartbeat_time: Option<String>,
}

impl Heartbeats {
    fn latest(&self) -> &str {
        let times = self.status.conditions.iter().filter_map(|report| report.last_heartbeat_time.as_deref());
        times.max().unwrap_or_default()
    }
}

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    grace: Duration,
    /// The node on the server's own board, if there is one.
    own_node: String,
    nodes: Informer,
    leases: Informer,
    pods: Informer,
    seen: Mutex<HashMap<String, Seen>>,
    storm: Mutex<Storm>,
    /// When nodes that pods name were first missed.
    missing: Mutex<HashMap<String, Instant>>,
    /// Keys to look at.
    ask: mpsc::Sender<String>,
}

impl Controller {
    pub fn new(tools: &Tools, config: &ControllerConfig) -> (Arc<Self>, Vec<Source>) {
        let nodes = tools.informers.all(NODES);
        let scope = Scope { namespace: LEASE_NAMESPACE.to_owned(), ..Scope::default() };
        let (leases, pods) = (tools.informers.get(LEASES, scope), tools.informers.all(PODS));
        pods.index(BY_NODE, node_of);
        let of_lease = |change: &Change| {
            let name = change.key.rsplit('/').next().unwrap_or_default();
            vec![format!("/{name}")]
        };
        let (ask, asked) = mpsc::channel(ASKED_LIMIT);
        let sources = vec![
            Source::own(&nodes),
            Source::Asked(asked),
            Source::new(&leases, of_lease),
            Source::new(&pods, node_of_placed),
        ];
        let controller = Self {
            tools: tools.clone(),
            recorder: tools.recorder("node-controller"),
            grace: Duration::from_secs(config.node_grace_s),
            own_node: config.own_node.clone(),
            nodes,
            leases,
            pods,
            seen: Mutex::default(),
            storm: Mutex::default(),
            missing: Mutex::default(),
            ask,
        };
        (Arc::new(controller), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        if key == LOST_NODES {
            self.ask_lost().await;
            return Ok(None);
        }
        let name = key.trim_start_matches('/');
        let Some(item) = self.nodes.by_key(key) else {
            let seen = self.seen.lock().expect("no panic while locked").remove(name);
            if seen.is_some() {
                self.ask(LOST_NODES).await;
            }
            return self.clear_missing(name).await;
        };
        self.missing.lock().expect("no panic while locked").remove(name);
        let node: Node = item.view()?;
        let now = self.tools.clock.now();
        let Observed { quiet, tainted, turned } = self.observe(&node, &item, now)?;
        if turned {
            self.ask(LOST_NODES).await;
        }
        let silent = quiet >= self.grace;
        let left = self.grace.saturating_sub(quiet);
        let (giving, wait) = self.giving(&node, silent);
        let taints = health::taints(&node, silent, giving, now);
        if let Some(taints) = &taints {
            // The revision guards taints that people set meanwhile.
            let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": health::taints_value(taints)}});
            self.tools.client.patch(NODES, "", name, "", PatchType::Merge, patch).await?;
        }
        if silent {
            self.doubt(&node, now).await?;
        }
        let taints = taints.as_ref().unwrap_or(&node.spec.taints);
        let next = self.evict(name, taints, silent.then_some(quiet), tainted.unwrap_or(now), now).await?;
        Ok([(!silent).then_some(left), wait, next].into_iter().flatten().min())
    }

    /// Others are now given up sooner or later than before. Hundreds turn in the same second: one key stands for all.
    async fn ask_lost(&self) {
        let lost: Vec<String> = {
            let seen = self.seen.lock().expect("no panic while locked");
            seen.iter().filter(|(_, one)| !one.ready).map(|(name, _)| format!("/{name}")).collect()
        };
        for key in lost {
            self.ask(&key).await;
        }
    }

    async fn ask(&self, key: &str) {
        // An error is the end of the runner.
        let _ = self.ask.send(key.to_owned()).await;
    }

    /// Whether the node may be given up now, and if not, when to ask again.
    fn giving(&self, node: &Node, silent: bool) -> (Giving, Option<Duration>) {
        if !health::is_lost(node, silent) {
            return (Giving::Up, None);
        }
        let seen = self.seen.lock().expect("no panic while locked");
        let mut storm = self.storm.lock().expect("no panic while locked");
        let (zone, now) = (zone::zone_of(&node.metadata.labels), monotonic());
        let pace = zone::pace(&self.zones(&seen), &zone);
        if std::mem::replace(&mut storm.total, pace == Pace::Never) && !storm.total {
            // We were cut off, not they: everybody gets the full grace again.
            storm.resume = Some(now + self.grace);
        }
        let resume = storm.resume.filter(|resume| *resume > now);
        match pace {
            Pace::Never => (Giving::Back, None),
            Pace::Stopped => (Giving::No, Some(self.grace / 4)),
            Pace::Every(_) if resume.is_some() => (Giving::No, resume.map(|resume| resume - now)),
            Pace::Every(_) if health::is_given_up(node) => (Giving::Up, None),
            Pace::Every(interval) => {
                if let Some(next) = storm.next.get(&zone).filter(|next| **next > now) {
                    return (Giving::No, Some(*next - now));
                }
                storm.next.insert(zone, now + interval);
                (Giving::Up, None)
            }
        }
    }

    fn zones(&self, seen: &HashMap<String, Seen>) -> BTreeMap<String, Health> {
        let mut zones: BTreeMap<String, Health> = BTreeMap::new();
        for (name, one) in seen {
            let (zone, quiet) = (zones.entry(one.zone.clone()).or_default(), one.at.elapsed());
            if one.ready && quiet < self.grace {
                zone.ready += 1;
                zone.at_home += usize::from(*name == self.own_node);
                zone.sure += usize::from(quiet < self.grace / 2);
            } else {
                zone.lost += 1;
            }
        }
        zones
    }

    fn observe(&self, node: &Node, item: &Item, now: Timestamp) -> Result<Observed> {
        let name = &node.metadata.name;
        let lease: Option<Lease> = self.leases.get(LEASE_NAMESPACE, name).map(|item| item.view()).transpose()?;
        let renewed = lease.and_then(|lease| lease.spec.renew_time).unwrap_or_default();
        let renewed = format!("{renewed} {}", item.view::<Heartbeats>()?.latest());
        let mut all = self.seen.lock().expect("no panic while locked");
        let new = all.get(name).is_none_or(|seen| seen.uid != node.metadata.uid);
        if new {
            let uid = node.metadata.uid.clone();
            let fresh = Seen {
                uid,
                sign_of_life: renewed.clone(),
                at: monotonic(),
                zone: String::new(),
                ready: true,
                tainted: None,
            };
            all.insert(name.clone(), fresh);
            let about = ObjectRef::new("v1", "Node", &node.metadata);
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.event(&about, Type::Normal, "RegisteredNode", message);
        }
        let seen = all.get_mut(name).expect("inserted above");
        if seen.sign_of_life != renewed {
            (seen.sign_of_life, seen.at) = (renewed, monotonic());
        }
        seen.zone = zone::zone_of(&node.metadata.labels);
        let was_ready = std::mem::replace(&mut seen.ready, !health::is_lost(node, false));
        let turned = new || was_ready != seen.ready;
        let evicts = node.spec.taints.iter().any(|taint| taint.effect == "NoExecute");
        seen.tainted = evicts.then(|| seen.tainted.unwrap_or(now));
        Ok(Observed { quiet: seen.at.elapsed(), tainted: seen.tainted, turned })
    }

    /// Writes Unknown conditions, and that the node's pods are not ready.
    async fn doubt(&self, node: &Node, now: Timestamp) -> Result<()> {
        let name = &node.metadata.name;
        let conditions = health::unknown_conditions(node, now);
        if !conditions.is_empty() {
            let patch = json!({"status": {"conditions": conditions}});
            self.tools.client.patch(NODES, "", name, "status", PatchType::Strategic, patch).await?;
            let about = ObjectRef::new("v1", "Node", &node.metadata);
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(&about, Type::Normal, "NodeNotReady", message);
        }
        for pod in self.pods_on(name).into_iter().filter(PodFacts::is_ready) {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(now)});
            self.patch_pod_status(&pod, json!({"conditions": [condition]})).await?;
            let about = ObjectRef::new("v1", "Pod", &pod.metadata);
            self.recorder.event(&about, Type::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// Evicts what may not stay; when the next pod's time is up.
    async fn evict(
        &self,
        name: &str,
        taints: &[Taint],
        silence: Option<Duration>,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Duration>> {
        if !taints.iter().any(|taint| taint.effect == "NoExecute") {
            return Ok(None);
        }
        let mut waits = Vec::new();
        for pod in self.pods_on(name).iter().filter(|pod| !pod.has_ended()) {
            match fate(pod, stay(pod, taints, since), now, silence) {
                Fate::Stays => {}
                Fate::Waits(wait) => waits.push(wait),
                Fate::Evicted(wait) => {
                    self.evict_pod(pod, silence.is_some(), now).await?;
                    waits.extend(wait);
                }
                Fate::Over if self.is_heard_again(name).await? => waits.push(RECHECK),
                Fate::Over => self.free(pod, now).await?,
            }
        }
        Ok(waits.into_iter().min())
    }

    async fn evict_pod(&self, pod: &PodFacts, silent: bool, now: Timestamp) -> Result<()> {
        let about = ObjectRef::new("v1", "Pod", &pod.metadata);
        let message = format!("Marking for deletion Pod {}", pod.metadata.key());
        self.recorder.event(&about, Type::Normal, "TaintManagerEviction", message);
        let why = disruption("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now);
        let mut status = json!({"conditions": [why]});
        if silent {
            let (pod, node) = (&pod.metadata.name, &pod.spec.node_name);
            status["reason"] = "NodeLost".into();
            status["message"] = format!("Node {node} which was running pod {pod} is unresponsive").into();
        }
        self.patch_pod_status(pod, status).await?;
        self.delete_pod(pod, None).await
    }

    /// Whether the Lease says more than was seen of it here: what depends on silence asks again.
    async fn is_heard_again(&self, name: &str) -> Result<bool> {
        let lease = match self.tools.client.get(LEASES, LEASE_NAMESPACE, name).await {
            Err(error) if error.is_not_found() => return Ok(false),
            lease => lease?.view::<Lease>()?,
        };
        let renewed = lease.spec.renew_time.unwrap_or_default();
        let seen = self.seen.lock().expect("no panic while locked");
        Ok(seen.get(name).is_none_or(|seen| !seen.sign_of_life.starts_with(&renewed)))
    }

    /// The pod has ended on a node that cannot say so: its name is free.
    async fn free(&self, pod: &PodFacts, now: Timestamp) -> Result<()> {
        let about = ObjectRef::new("v1", "Pod", &pod.metadata);
        let message = format!("Node {} is silent, and the fenced pod has ended there in time", pod.spec.node_name);
        tracing::info!(pod = pod.metadata.key(), node = pod.spec.node_name, "a fenced pod of a silent node is over");
        self.recorder.event(&about, Type::Normal, "Fenced", message);
        let why = disruption("DeletionByFencing", "Node controller: the fenced pod has ended on its silent node", now);
        self.patch_pod_status(pod, json!({"phase": "Failed", "reason": "NodeLost", "conditions": [why]})).await?;
        self.delete_pod(pod, Some(0)).await
    }

    /// Pods of a node that has been gone for a while, for certain, are deleted without a node to end them.
    async fn clear_missing(&self, name: &str) -> Result<Option<Duration>> {
        let pods = self.pods_on(name);
        let now = self.tools.clock.now();
        if name.is_empty() || pods.is_empty() {
            self.missing.lock().expect("no panic while locked").remove(name);
            return Ok(None);
        }
        let left = self.missing_for(name);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        match self.tools.client.get(NODES, "", name).await {
            Err(error) if error.is_not_found() => {}
            found => return found.map(|_| None),
        }
        for pod in &pods {
            if !pod.has_ended() {
                let why = disruption("DeletionByPodGC", "PodGC: node no longer exists", now);
                self.patch_pod_status(pod, json!({"phase": "Failed", "conditions": [why]})).await?;
            }
            self.delete_pod(pod, Some(0)).await?;
        }
        Ok(None)
    }

    /// How much of the quarantine is left for a node that is missed.
    fn missing_for(&self, name: &str) -> Duration {
        let mut missing = self.missing.lock().expect("no panic while locked");
        QUARANTINE.saturating_sub(missing.entry(name.to_owned()).or_insert_with(monotonic).elapsed())
    }

    fn pods_on(&self, node: &str) -> Vec<PodFacts> {
        self.pods.by_index(BY_NODE, node).into_iter().filter_map(|item| item.view().ok()).collect()
    }

    async fn patch_pod_status(&self, pod: &PodFacts, status: Value) -> Result<()> {
        let (meta, client) = (&pod.metadata, &self.tools.client);
        let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
        match client.patch(PODS, &meta.namespace, &meta.name, "status", PatchType::Strategic, patch).await {
            // Gone, or another pod by now.
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete_pod(&self, pod: &PodFacts, grace_s: Option<i64>) -> Result<()> {
        let meta = &pod.metadata;
        let options = DeleteOptions { uid: Some(meta.uid.clone()), grace_s, ..DeleteOptions::default() };
        match self.tools.client.delete(PODS, &meta.namespace, &meta.name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

fn disruption(reason: &str, message: &str, now: Timestamp) -> Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": rfc3339(now)})
}

/// What the index `BY_NODE` finds a pod under.
pub fn node_of(item: &Item) -> Vec<String> {
    let node = item.view::<PodFacts>().map(|pod| pod.spec.node_name).unwrap_or_default();
    (!node.is_empty()).then_some(node).into_iter().collect()
}

/// The node of a pod that was placed or is to go, or whose tolerations changed; other changes of pods mean nothing here.
fn node_of_placed(change: &Change) -> Vec<String> {
    let facts = |item: &Option<Item>| {
        let pod = item.as_ref()?.view::<PodFacts>().ok()?;
        Some((pod.metadata.is_deleting(), pod.spec))
    };
    match facts(&change.new) {
        Some(new) if !new.1.node_name.is_empty() && facts(&change.old).as_ref() != Some(&new) => {
            vec![format!("/{}", new.1.node_name)]
        }
        _ => Vec::new(),
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
