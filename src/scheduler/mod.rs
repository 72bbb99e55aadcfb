//! Binds pods to nodes: woken by changes of pods and nodes, it decides purely and binds through the API.
//! A pod counts on its node from the decision on; if the bind fails it is forgotten and tried again.

mod decide;
mod filter;
mod preempt;
mod queue;
mod score;
mod snapshot;

use crate::api::status::Result;
use crate::api::view::meta::Any;
use crate::api::view::node::Node;
use crate::api::view::pod::Pod;
use crate::client::events::Type;
use crate::client::informer::{Change, Changes};
use crate::client::{Client, EventRecorder, Informers, Item, NAMESPACES, NODES, ObjectRef, PODS};
use crate::client::{DeleteOptions, PatchType};
use crate::clock::{Clock, monotonic, rfc3339};
use crate::supervise::Shutdown;
use crate::telemetry::Trace;
use decide::{Decision, Nominated, decide};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use queue::{Hint, Queue};
use serde_json::{Value, json};
use snapshot::{Pending, PodInfo, Snapshot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub const SCHEDULER_NAME: &str = "default-scheduler";
/// Writes to the API under way at once.
const WRITES_LIMIT: usize = 64;

/// Runs until shutdown.
pub async fn run(client: Client, informers: Informers, clock: Clock, trace: Arc<Trace>, shutdown: Shutdown) {
    let (nodes, pods, namespaces) = (informers.all(NODES), informers.all(PODS), informers.all(NAMESPACES));
    let mut sources = Sources { nodes: nodes.subscribe(), pods: pods.subscribe(), namespaces: namespaces.subscribe() };
    let recorder = EventRecorder::new(client.clone(), clock.clone(), SCHEDULER_NAME, "");
    let mut scheduler = Scheduler {
        client,
        recorder,
        clock,
        trace,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        nominated: Nominated::new(),
        writes: FuturesUnordered::new(),
    };
    tokio::select! {
        () = shutdown.requested() => return,
        () = async { nodes.synced().await; pods.synced().await; namespaces.synced().await } => {}
    }
    loop {
        scheduler.drain(&mut sources);
        scheduler.schedule();
        tokio::select! {
            () = shutdown.requested() => return,
            change = sources.nodes.next() => scheduler.node_changed(change),
            change = sources.pods.next() => scheduler.pod_changed(change),
            change = sources.namespaces.next() => scheduler.namespace_changed(change),
            Some(done) = scheduler.writes.next(), if !scheduler.writes.is_empty() => scheduler.written(done),
            () = until(scheduler.queue.next_due()) => {}
        }
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Sources {
    nodes: Changes,
    pods: Changes,
    namespaces: Changes,
}

/// The end of one write.
enum Done {
    Bound { pod: Box<Pending>, node: String, result: Result<Item> },
    Other,
}

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    clock: Clock,
    trace: Arc<Trace>,
    snapshot: Snapshot,
    queue: Queue,
    nominated: Nominated,
    writes: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Scheduler {
    /// Takes a burst of changes in one go: fifty new pods are seen before the first is decided.
    fn drain(&mut self, sources: &mut Sources) {
        while let Some(change) = sources.namespaces.try_next() {
            self.namespace_changed(change);
        }
        while let Some(change) = sources.nodes.try_next() {
            self.node_changed(change);
        }
        while let Some(change) = sources.pods.try_next() {
            self.pod_changed(change);
        }
    }

    fn node_changed(&mut self, change: Change) {
        let name = change.key.trim_start_matches('/');
        let node: Option<Node> = change.new.and_then(|item| readable(&item, &change.key));
        if self.snapshot.set_node(name, node) {
            self.queue.wake(Hint::Room, monotonic());
        }
    }

    fn namespace_changed(&mut self, change: Change) {
        let name = change.key.trim_start_matches('/').to_owned();
        match change.new.and_then(|item| readable::<Any>(&item, &name)) {
            Some(namespace) => drop(self.snapshot.namespaces.insert(name, namespace.metadata.labels)),
            None => drop(self.snapshot.namespaces.remove(&name)),
        }
    }

    fn pod_changed(&mut self, change: Change) {
        let pod: Option<Pod> = change.new.and_then(|item| readable(&item, &change.key));
        match pod {
            Some(pod) if !pod.spec.node_name.is_empty() && !pod.has_ended() => self.pod_placed(&change.key, &pod),
            Some(pod) if wants_node(&pod) => self.pod_waits(pod),
            // Gone, ended, gated or another scheduler's.
            _ => self.pod_left(&change.key),
        }
    }

    fn pod_placed(&mut self, key: &str, pod: &Pod) {
        self.queue.remove(key);
        self.nominated.remove(key);
        self.snapshot.set_pod(&pod.spec.node_name, PodInfo::of(pod));
        self.queue.wake(Hint::Neighbours, monotonic());
    }

    fn pod_waits(&mut self, pod: Pod) {
        let key = pod.metadata.key();
        // An assumed pod waits for its bind; should that fail, the next try sees the newest state.
        let uid = pod.metadata.uid.clone();
        if self.queue.set(Pending::of(pod)) && !self.snapshot.is_assumed(&key) {
            self.trace.mark(&self.clock, &uid, "scheduler", "queued");
        }
    }

    fn pod_left(&mut self, key: &str) {
        self.queue.remove(key);
        self.nominated.remove(key);
        if self.snapshot.remove_pod(key) {
            self.queue.wake(Hint::Room, monotonic());
        }
    }

    /// Decides about ready pods as long as writes may be started.
    fn schedule(&mut self) {
        while self.writes.len() < WRITES_LIMIT
            && let Some(pod) = self.queue.take(monotonic())
        {
            let decided = catch_unwind(AssertUnwindSafe(|| decide(&pod, &self.snapshot, &self.nominated)));
            match decided {
                Ok(Decision::Bind { node }) => self.bind(pod, node),
                Ok(Decision::Wait { message, evict, neighbours }) => self.wait(pod, &message, evict, neighbours),
                Err(_) => {
                    tracing::error!(pod = pod.key(), "scheduling panicked; trying again later");
                    self.queue.retry(&pod.key(), monotonic());
                }
            }
        }
    }

    fn bind(&mut self, pod: Pending, node: String) {
        self.trace.mark(&self.clock, &pod.metadata.uid, "scheduler", &format!("chosen {node}"));
        self.snapshot.assume(&node, pod.info.clone());
        let client = self.client.clone();
        self.writes.push(Box::pin(async move {
            let (namespace, name) = (pod.info.namespace.clone(), pod.info.name.clone());
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace, "uid": pod.metadata.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let result = client.create_subresource(PODS, &namespace, &name, "binding", binding).await;
            Done::Bound { pod: Box::new(pod), node, result }
        }));
    }

    fn written(&mut self, done: Done) {
        let Done::Bound { pod, node, result } = done else { return };
        let key = pod.key();
        let about = ObjectRef::new("v1", "Pod", &pod.metadata);
        match result {
            Ok(_) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder.event(&about, Type::Normal, "Scheduled", message);
            }
            Err(error) => {
                tracing::debug!(pod = key, node, %error, "bind failed");
                // The API may already show it bound, by us or by another.
                if self.snapshot.is_assumed(&key) {
                    self.snapshot.remove_pod(&key);
                    self.queue.retry(&key, monotonic());
                }
                if !error.is_not_found() {
                    self.recorder.event(&about, Type::Warning, "FailedScheduling", error.message);
                }
            }
        }
    }

    fn wait(&mut self, pod: Pending, message: &str, evict: Option<(String, Vec<Arc<PodInfo>>)>, neighbours: bool) {
        let key = pod.key();
        let about = ObjectRef::new("v1", "Pod", &pod.metadata);
        self.recorder.event(&about, Type::Warning, "FailedScheduling", message);
        self.queue.park(&key, monotonic(), neighbours);
        let nominated = evict.as_ref().map(|(node, _)| node.clone());
        if let Some((node, victims)) = evict {
            self.nominated.insert(key, (node.clone(), pod.info.clone()));
            for victim in victims.into_iter().filter(|victim| !victim.terminating) {
                self.evict(&pod, &node, &victim);
            }
        }
        self.write_condition(pod, message, nominated);
    }

    fn evict(&mut self, pod: &Pending, node: &str, victim: &Arc<PodInfo>) {
        let about = ObjectRef {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: victim.namespace.clone(),
            name: victim.name.clone(),
            uid: victim.uid.clone(),
            ..ObjectRef::default()
        };
        let message = format!("Preempted by pod {} on node {node}", pod.metadata.uid);
        self.recorder.event(&about, Type::Normal, "Preempted", message);
        let (client, victim, now) = (self.client.clone(), victim.clone(), rfc3339(self.clock.now()));
        self.writes.push(Box::pin(async move {
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
                "lastTransitionTime": now});
            let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
            let (namespace, name) = (&victim.namespace, &victim.name);
            let told = client.patch(PODS, namespace, name, "status", PatchType::Strategic, patch).await;
            let options = DeleteOptions { uid: Some(victim.uid.clone()), ..DeleteOptions::default() };
            let deleted = client.delete(PODS, namespace, name, &options).await;
            for error in [told.err(), deleted.err()].into_iter().flatten() {
                tracing::debug!(namespace, name, %error, "preemption incomplete");
            }
            Done::Other
        }));
    }

    /// PodScheduled=False, and the node that is being cleared for the pod.
    fn write_condition(&mut self, pod: Pending, message: &str, nominated: Option<String>) {
        let Some(status) = failed_status(&pod, message, nominated, &rfc3339(self.clock.now())) else { return };
        let client = self.client.clone();
        self.writes.push(Box::pin(async move {
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
            let (namespace, name) = (&pod.info.namespace, &pod.info.name);
            if let Err(error) = client.patch(PODS, namespace, name, "status", PatchType::Strategic, patch).await {
                tracing::debug!(namespace, name, %error, "condition not written");
            }
            Done::Other
        }));
    }
}

/// What to change in the status of a pod that found no node; nothing if it says so already.
fn failed_status(pod: &Pending, message: &str, nominated: Option<String>, now: &str) -> Option<Value> {
    let before = pod.scheduled.as_ref().filter(|condition| condition.status == "False");
    let known = before.is_some_and(|condition| condition.message == message && condition.reason == "Unschedulable");
    if known && nominated.as_ref().is_none_or(|node| *node == pod.nominated_node) {
        return None;
    }
    let since = before.and_then(|condition| condition.last_transition_time.as_deref()).unwrap_or(now);
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": since, "observedGeneration": pod.metadata.generation});
    let mut status = json!({"conditions": [condition]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = node.into();
    }
    Some(status)
}

fn wants_node(pod: &Pod) -> bool {
    pod.spec.node_name.is_empty()
        && !pod.has_ended()
        && !pod.is_terminating()
        && pod.spec.scheduling_gates.is_empty()
        && matches!(pod.spec.scheduler_name.as_str(), "" | SCHEDULER_NAME)
}

/// A view, or nothing if the object cannot be read.
fn readable<T: serde::de::DeserializeOwned>(item: &Item, key: &str) -> Option<T> {
    item.view().inspect_err(|error| tracing::warn!(key, %error, "object not readable")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_is_known_is_not_written_again() {
        let mut pod = Pending::default();
        let first = failed_status(&pod, "no", None, "t1").expect("status");
        let condition = &first["conditions"][0];
        assert_eq!((&condition["status"], &condition["lastTransitionTime"]), (&json!("False"), &json!("t1")));
        pod.scheduled = Some(serde_json::from_value(condition.clone()).expect("condition"));
        assert_eq!(failed_status(&pod, "no", None, "t2"), None);
        let other = failed_status(&pod, "still no", Some("n".into()), "t2").expect("status");
        assert_eq!(other["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(other["nominatedNodeName"], "n");
    }
}
