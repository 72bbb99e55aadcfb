//! Keeps the accounts of PodDisruptionBudgets: how many pods are healthy, and how many may be evicted.
//! Evictions charge a budget themselves (`pods/eviction`); here it is seen what came of them.

mod budget;

use super::pods::PodFacts;
use super::runner::{Reconcile, Source};
use super::{CATCH_UP_LIMIT, Tools, timestamp};
use crate::api::object::ObjectExt;
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Any, Meta, OwnerReference};
use crate::api::view::workload::{PodDisruptionBudget, PodDisruptionBudgetStatus, ReplicaSet};
use crate::client::events::Type;
use crate::client::informer::Change;
use crate::client::{DEPLOYMENTS, EventRecorder, Informer, Item, ObjectRef, PODDISRUPTIONBUDGETS, PODS};
use crate::client::{PatchType, REPLICASETS, Resource, STATEFULSETS};
use crate::clock::rfc3339;
use budget::{DELETION_LIMIT, demand, failed, needs_scale, pending, status};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const REPLICATIONCONTROLLERS: Resource = Resource { group: "", version: "v1", plural: "replicationcontrollers" };
/// Opens keys that are pods with a condition that may be stale; keys of budgets have no such beginning.
const POD: &str = "pod ";

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    budgets: Informer,
    pods: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let (budgets, pods) = (tools.informers.all(PODDISRUPTIONBUDGETS), tools.informers.all(PODS));
        let of_pod = {
            let budgets = budgets.clone();
            move |change: &Change| keys_of_pod(change, &budgets)
        };
        let sources = vec![Source::own(&budgets), Source::new(&pods, of_pod)];
        let recorder = tools.recorder("controllermanager");
        (Arc::new(Self { tools: tools.clone(), recorder, budgets, pods }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        if let Some(pod) = key.strip_prefix(POD) {
            return self.clear_stale(pod).await;
        }
        let Some(item) = self.budgets.by_key(key) else { return Ok(None) };
        let budget: PodDisruptionBudget = item.view()?;
        let now = self.tools.clock.now();
        let pods = self.pods_of(&budget);
        if pods.is_empty() {
            self.tell(&budget, Type::Normal, "NoPods", "No matching pods found");
        }
        let scale = if needs_scale(&budget) { self.scale(&pods).await } else { Ok(0) };
        let scale = match scale {
            Ok(scale) => scale,
            Err(error) => {
                let why = format!("Failed to calculate the number of expected pods: {}", error.message);
                self.tell(&budget, Type::Warning, "CalculateExpectedPodCountFailed", &why);
                self.write(&item, &budget, failed(&budget, &error.message, now)).await?;
                return Err(error);
            }
        };
        let pending = pending(&budget, &pods, now);
        for name in &pending.forgotten {
            self.tell_forgotten(&budget, &pods, name);
        }
        let count = i64::try_from(pods.len()).unwrap_or(i64::MAX);
        let status = status(&budget, &pods, demand(&budget, count, scale), pending.disrupted, now);
        self.write(&item, &budget, status).await?;
        Ok(pending.again)
    }

    fn pods_of(&self, budget: &PodDisruptionBudget) -> Vec<PodFacts> {
        let Some(selector) = &budget.spec.selector else { return Vec::new() };
        let all = self.pods.list_namespace(&budget.metadata.namespace).into_iter();
        let facts = all.filter_map(|item| item.view::<PodFacts>().ok());
        facts.filter(|pod| selector.matches(&pod.metadata.labels)).collect()
    }

    /// How many pods the owners of these pods want together. A pod without an owner counts for nothing.
    async fn scale(&self, pods: &[PodFacts]) -> Result<i64> {
        let mut seen = std::collections::HashSet::new();
        let mut scales: BTreeMap<String, i64> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = pod.metadata.controller().filter(|owner| seen.insert(owner.uid.clone())) else {
                continue;
            };
            let (uid, scale) = self.scale_of(&pod.metadata, owner).await?;
            scales.insert(uid, scale);
        }
        Ok(scales.values().sum())
    }

    /// The uid of what decides about the number of pods, and the number.
    async fn scale_of(&self, pod: &Meta, owner: &OwnerReference) -> Result<(String, i64)> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let resource = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => REPLICASETS,
            ("apps", "StatefulSet") => STATEFULSETS,
            ("", "ReplicationController") => REPLICATIONCONTROLLERS,
            (group, kind) => {
                let why = format!("{}.{group} does not implement the scale subresource", kind.to_lowercase() + "s");
                return Err(Status::internal(why));
            }
        };
        let found = self.tools.client.get(resource, &pod.namespace, &owner.name).await;
        let lost = || Status::internal(format!("found no controllers for pod \"{}\"", pod.name));
        let set: ReplicaSet = found.map_err(|error| if error.is_not_found() { lost() } else { error })?.view()?;
        if set.metadata.uid != owner.uid {
            return Err(lost());
        }
        let above = set.metadata.controller().filter(|above| resource == REPLICASETS && above.kind == "Deployment");
        if let Some(above) = above
            && let Ok(item) = self.tools.client.get(DEPLOYMENTS, &pod.namespace, &above.name).await
        {
            let replicas = item.object()?.int_at(&["spec", "replicas"]).unwrap_or(1);
            return Ok((above.uid.clone(), replicas));
        }
        Ok((set.metadata.uid.clone(), set.spec.replicas.unwrap_or(1)))
    }

    /// On the very revision that was looked at: an eviction may have charged the budget meanwhile.
    async fn write(&self, item: &Item, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<()> {
        if status == budget.status {
            return Ok(());
        }
        let mut object = item.object()?;
        object.set(&["status"], status_value(&status));
        let (namespace, name) = (&budget.metadata.namespace, &budget.metadata.name);
        let written = self.tools.client.update(PODDISRUPTIONBUDGETS, namespace, name, "status", object).await?;
        self.budgets.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }

    /// A pod that was to be disrupted two minutes ago and still runs is not disrupted.
    async fn clear_stale(&self, key: &str) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.by_key(key).and_then(|item| item.view::<PodFacts>().ok()) else { return Ok(None) };
        let now = self.tools.clock.now();
        let Some(left) = stale_in(&pod, now) else { return Ok(None) };
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": "", "message": "",
            "lastTransitionTime": rfc3339(now)});
        let meta = &pod.metadata;
        let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "status": {"conditions": [condition]}});
        let client = &self.tools.client;
        client.patch(PODS, &meta.namespace, &meta.name, "status", PatchType::Strategic, patch).await?;
        Ok(None)
    }

    fn tell(&self, budget: &PodDisruptionBudget, kind: Type, reason: &str, message: &str) {
        let about = ObjectRef::new("policy/v1", "PodDisruptionBudget", &budget.metadata);
        self.recorder.event(&about, kind, reason, message);
    }

    fn tell_forgotten(&self, budget: &PodDisruptionBudget, pods: &[PodFacts], name: &str) {
        let Some(pod) = pods.iter().find(|pod| pod.metadata.name == name) else { return };
        let own = budget.metadata.key();
        let message = format!("Pod was expected by PDB {own} to be deleted but it wasn't");
        self.recorder.event(&ObjectRef::new("v1", "Pod", &pod.metadata), Type::Warning, "NotDeleted", message);
    }
}

/// When the pod's DisruptionTarget becomes stale; zero when it is.
fn stale_in(pod: &PodFacts, now: Timestamp) -> Option<Duration> {
    let target = pod.status.conditions.iter().find(|one| one.r#type == "DisruptionTarget" && one.status == "True")?;
    if !pod.is_active() {
        return None;
    }
    let since = target.last_transition_time.as_deref().and_then(timestamp)?;
    Some(Duration::try_from(DELETION_LIMIT - now.duration_since(since)).unwrap_or_default())
}

fn status_value(status: &PodDisruptionBudgetStatus) -> Value {
    let mut value = json!({
        "observedGeneration": status.observed_generation,
        "disruptionsAllowed": status.disruptions_allowed,
        "currentHealthy": status.current_healthy,
        "desiredHealthy": status.desired_healthy,
        "expectedPods": status.expected_pods,
        "conditions": super::conditions(&status.conditions),
    });
    if !status.disrupted_pods.is_empty() {
        value["disruptedPods"] = json!(status.disrupted_pods);
    }
    value
}

/// Budgets that select the pod as it was or as it is, and the pod itself when it may be stale.
fn keys_of_pod(change: &Change, budgets: &Informer) -> Vec<String> {
    let mut keys = Vec::new();
    let metas: Vec<Any> =
        [&change.old, &change.new].into_iter().flatten().filter_map(|item| item.view().ok()).collect();
    let Some(namespace) = metas.first().map(|any| any.metadata.namespace.clone()) else { return keys };
    for item in budgets.list_namespace(&namespace) {
        let Ok(budget) = item.view::<PodDisruptionBudget>() else { continue };
        let selector = budget.spec.selector.as_ref();
        if selector.is_some_and(|selector| metas.iter().any(|any| selector.matches(&any.metadata.labels))) {
            keys.push(budget.metadata.key());
        }
    }
    let new = change.new.as_ref().and_then(|item| item.view::<PodFacts>().ok());
    if new.is_some_and(|pod| stale_in(&pod, Timestamp::MIN).is_some()) {
        keys.push(format!("{POD}{}", change.key));
    }
    keys
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
