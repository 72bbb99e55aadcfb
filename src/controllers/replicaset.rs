//! Keeps as many pods as a ReplicaSet asks for.

use super::owners::{self, Claim, claim};
use super::pods::{OwnerKind, PodControl, PodFacts, pod_from_template};
use super::runner::{Reconcile, Source};
use super::{CATCH_UP_LIMIT, Tools, seconds_until};
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Condition, LabelSelector, Meta};
use crate::api::view::workload::{ReplicaSet, ReplicaSetStatus};
use crate::client::PatchType;
use crate::client::{Informer, Item, PODS, REPLICASETS};
use crate::clock::rfc3339;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Pods made or deleted in one go.
const BURST_LIMIT: usize = 500;

/// A step towards what the ReplicaSet asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Adopt(String),
    Release(String),
    Create(usize),
    /// Names, the first to go first.
    Delete(Vec<String>),
}

#[derive(Debug, Default)]
struct Plan {
    actions: Vec<Action>,
    status: ReplicaSetStatus,
    /// When a pod becomes available by the passing of time.
    again: Option<Duration>,
}

/// `gone`: uids of pods whose deletion was asked for already.
fn plan(set: &ReplicaSet, pods: &[PodFacts], gone: &HashSet<String>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut mine: Vec<&PodFacts> = Vec::new();
    for pod in pods {
        match claim(&set.metadata, &set.spec.selector, &pod.metadata) {
            Claim::Own => mine.push(pod),
            Claim::Adopt if !pod.has_ended() => {
                plan.actions.push(Action::Adopt(pod.metadata.name.clone()));
                mine.push(pod);
            }
            Claim::Release => plan.actions.push(Action::Release(pod.metadata.name.clone())),
            _ => {}
        }
    }
    let leaving = mine.iter().filter(|pod| pod.metadata.is_deleting() && !pod.has_ended()).count();
    let active: Vec<&PodFacts> = mine.into_iter().filter(|pod| pod.is_active()).collect();
    let kept: Vec<&PodFacts> = active.iter().copied().filter(|pod| !gone.contains(&pod.metadata.uid)).collect();
    if !set.metadata.is_deleting() {
        plan.actions.extend(scale(set, &kept));
    }
    plan.status = status(set, &active, leaving, now);
    plan.again = next_available(set, &active, now);
    plan
}

fn scale(set: &ReplicaSet, active: &[&PodFacts]) -> Option<Action> {
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        return Some(Action::Create((wanted - active.len()).min(BURST_LIMIT)));
    }
    let surplus = (active.len() - wanted).min(BURST_LIMIT);
    (surplus > 0).then(|| Action::Delete(by_deletion_rank(active).into_iter().take(surplus).collect()))
}

/// The pods that lose least first, as upstream ranks them.
fn by_deletion_rank(pods: &[&PodFacts]) -> Vec<String> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *on_node.entry(pod.spec.node_name.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let mut ranked: Vec<&PodFacts> = pods.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let node = pod.spec.node_name.as_deref().unwrap_or_default();
        let phase = match pod.status.phase.as_str() {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let restarts = pod.status.container_statuses.iter().map(|one| one.restart_count).max().unwrap_or(0);
        (
            !node.is_empty(),
            phase,
            pod.ready().is_some(),
            deletion_cost(&pod.metadata),
            Reverse(on_node.get(node).copied().unwrap_or(0)),
            Reverse(pod.ready_since()),
            Reverse(restarts),
            Reverse(pod.metadata.creation_timestamp.clone()),
            pod.metadata.name.clone(),
        )
    });
    ranked.into_iter().map(|pod| pod.metadata.name.clone()).collect()
}

fn deletion_cost(pod: &Meta) -> i32 {
    let cost = pod.annotations.get("controller.kubernetes.io/pod-deletion-cost");
    cost.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn status(set: &ReplicaSet, active: &[&PodFacts], leaving: usize, now: Timestamp) -> ReplicaSetStatus {
    let labels: LabelSelector = LabelSelector {
        match_labels: set
            .spec
            .template
            .pointer("/metadata/labels")
            .and_then(|labels| serde_json::from_value(labels.clone()).ok())
            .unwrap_or_default(),
        ..LabelSelector::default()
    };
    let count = |test: &dyn Fn(&PodFacts) -> bool| to_int(active.iter().filter(|pod| test(pod)).count());
    ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        replicas: to_int(active.len()),
        fully_labeled_replicas: count(&|pod| labels.matches(&pod.metadata.labels)),
        ready_replicas: count(&|pod| pod.ready().is_some()),
        available_replicas: count(&|pod| pod.is_available(set.spec.min_ready_seconds, now)),
        terminating_replicas: Some(to_int(leaving)),
        conditions: set.status.conditions.clone(),
    }
}

fn to_int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn next_available(set: &ReplicaSet, active: &[&PodFacts], now: Timestamp) -> Option<Duration> {
    let wait = Duration::from_secs(u64::try_from(set.spec.min_ready_seconds).unwrap_or(0));
    let waiting = active.iter().filter(|pod| !pod.is_available(set.spec.min_ready_seconds, now));
    waiting.filter_map(|pod| Some(seconds_until(pod.ready_since()?, wait, now))).min()
}

/// Sets or removes ReplicaFailure.
fn with_failure(mut status: ReplicaSetStatus, failure: Option<(&str, &str)>, now: Timestamp) -> ReplicaSetStatus {
    let known = status.conditions.iter().position(|one| one.r#type == "ReplicaFailure");
    match (failure, known) {
        (None, Some(place)) => drop(status.conditions.remove(place)),
        (Some((reason, message)), None) => status.conditions.push(Condition {
            r#type: "ReplicaFailure".into(),
            status: "True".into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Some(rfc3339(now)),
            ..Condition::default()
        }),
        _ => {}
    }
    status
}

/// A merge patch of the status; zeros are absent, as upstream leaves them out.
fn status_patch(status: &ReplicaSetStatus) -> Value {
    let count = |number: i64| if number == 0 { Value::Null } else { number.into() };
    let conditions = if status.conditions.is_empty() { Value::Null } else { super::conditions(&status.conditions) };
    json!({"status": {
        "observedGeneration": status.observed_generation,
        "replicas": status.replicas,
        "fullyLabeledReplicas": count(status.fully_labeled_replicas),
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": count(status.available_replicas),
        "terminatingReplicas": status.terminating_replicas,
        "conditions": conditions,
    }})
}

const OWNER: OwnerKind = OwnerKind { api_version: "apps/v1", kind: "ReplicaSet", resource: REPLICASETS };

pub struct Controller {
    tools: Tools,
    sets: Informer,
    pods: Informer,
    control: PodControl,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let sets = owners::with_controllers(tools.informers.all(REPLICASETS));
        let pods = owners::with_controllers(tools.informers.all(PODS));
        let of_pod = {
            let sets = sets.clone();
            move |change: &_| owners::owner_keys(change, "ReplicaSet", &sets, selects)
        };
        let sources = vec![Source::own(&sets), Source::new(&pods, of_pod)];
        let control = PodControl::new(tools, &tools.recorder("replicaset-controller"), &pods, OWNER);
        (Arc::new(Self { tools: tools.clone(), sets, pods, control }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.sets.by_key(key) else {
            self.control.forget(key);
            return Ok(None);
        };
        let set: ReplicaSet = item.view()?;
        let (owned, orphans) = owners::children(&self.pods, &set.metadata);
        let pods: Vec<PodFacts> = owned.iter().chain(&orphans).map(Item::view).collect::<Result<_>>()?;
        let now = self.tools.clock.now();
        let plan = plan(&set, &pods, &self.control.still_staying(key, &pods), now);
        let mut failure = None;
        for action in &plan.actions {
            if let Err((reason, error)) = self.apply(key, &set, &pods, action).await {
                failure = failure.or(Some((reason, error)));
            }
        }
        let told = failure.as_ref().map(|(reason, error)| (*reason, error.message.as_str()));
        let status = with_failure(plan.status, told, now);
        if status != set.status {
            let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
            let patch = status_patch(&status);
            let written =
                self.tools.client.patch(REPLICASETS, namespace, name, "status", PatchType::Merge, patch).await?;
            self.sets.caught_up(&written, CATCH_UP_LIMIT).await;
        }
        failure.map_or(Ok(plan.again), |(_, error)| Err(error))
    }

    async fn apply(
        &self,
        key: &str,
        set: &ReplicaSet,
        pods: &[PodFacts],
        action: &Action,
    ) -> Result<(), (&'static str, Status)> {
        let find = |name: &str| pods.iter().find(|pod| pod.metadata.name == name).map(|pod| &pod.metadata);
        let owner = &set.metadata;
        match action {
            Action::Create(count) => {
                let pod = pod_from_template(&set.spec.template, owner, OWNER.reference(owner));
                let pods = std::iter::repeat_n(pod, *count);
                self.control.create(owner, pods).await.map_err(|error| ("FailedCreate", error))
            }
            Action::Delete(names) => {
                let doomed = names.iter().filter_map(|name| find(name)).collect();
                self.control.delete(key, owner, doomed).await.map_err(|error| ("FailedDelete", error))
            }
            Action::Adopt(name) => {
                let Some(pod) = find(name) else { return Ok(()) };
                self.control.adopt(owner, pod).await.map_err(|error| ("FailedCreate", error))
            }
            Action::Release(name) => {
                let Some(pod) = find(name) else { return Ok(()) };
                self.control.release(owner, pod).await.map_err(|error| ("FailedDelete", error))
            }
        }
    }
}

/// Whether a ReplicaSet selects an object with this metadata.
fn selects(set: &Item, child: &Meta) -> bool {
    set.view::<ReplicaSet>().is_ok_and(|set| !set.spec.selector.is_empty() && set.spec.selector.matches(&child.labels))
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("time")
    }

    fn set(replicas: i64) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "u", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}}},
        }))
        .expect("set")
    }

    fn pod(name: &str, extra: Value) -> PodFacts {
        let mut object = json!({"metadata": {"name": name, "uid": name, "labels": {"app": "web"},
            "ownerReferences": [{"uid": "u", "controller": true}], "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("pod")
    }

    fn actions(set: &ReplicaSet, pods: &[PodFacts]) -> Vec<Action> {
        plan(set, pods, &HashSet::new(), now()).actions
    }

    #[test]
    fn pods_are_made_and_deleted_to_match() {
        let two = [pod("a", json!({})), pod("b", json!({}))];
        assert_eq!(actions(&set(2), &two), []);
        assert_eq!(actions(&set(5), &two), [Action::Create(3)]);
        assert_eq!(actions(&set(1), &two), [Action::Delete(vec!["a".into()])]);
        let ended = [pod("a", json!({"status": {"phase": "Failed"}})), pod("b", json!({}))];
        assert_eq!(actions(&set(2), &ended), [Action::Create(1)]);
        let leaving = [pod("a", json!({"metadata": {"deletionTimestamp": "t"}})), pod("b", json!({}))];
        assert_eq!(actions(&set(2), &leaving), [Action::Create(1)]);
        assert_eq!(actions(&set(100_000), &[]), [Action::Create(BURST_LIMIT)]);
    }

    #[test]
    fn a_deletion_under_way_is_not_made_up_for_by_another() {
        let pods = [pod("a", json!({})), pod("b", json!({})), pod("c", json!({}))];
        let gone = HashSet::from(["b".to_owned()]);
        assert_eq!(plan(&set(2), &pods, &gone, now()).actions, []);
        assert_eq!(plan(&set(3), &pods, &gone, now()).actions, [Action::Create(1)]);
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let orphan = pod("o", json!({"metadata": {"ownerReferences": null}}));
        let stranger = pod("s", json!({"metadata": {"labels": {"app": "db"}}}));
        let actions = actions(&set(1), &[orphan, stranger]);
        assert_eq!(actions, [Action::Adopt("o".into()), Action::Release("s".into())]);
    }

    #[test]
    fn deletion_ranks_as_upstream() {
        let unready = json!({"status": {"conditions": null}});
        let cases: Vec<(&str, PodFacts, PodFacts)> = vec![
            ("unassigned first", pod("z", json!({"spec": {"nodeName": null}})), pod("a", json!({}))),
            ("pending first", pod("z", json!({"status": {"phase": "Pending"}})), pod("a", json!({}))),
            ("unready first", pod("z", unready), pod("a", json!({}))),
            (
                "cheaper first",
                pod("z", json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}})),
                pod("a", json!({})),
            ),
            (
                "later ready first",
                pod(
                    "z",
                    json!({"status": {"conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:30:00Z"}]}}),
                ),
                pod("a", json!({})),
            ),
            (
                "more restarts first",
                pod("z", json!({"status": {"containerStatuses": [{"restartCount": 3}]}})),
                pod("a", json!({})),
            ),
            (
                "younger first",
                pod("z", json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:05Z"}})),
                pod("a", json!({})),
            ),
        ];
        for (why, first, second) in cases {
            assert_eq!(by_deletion_rank(&[&second, &first]), ["z", "a"], "{why}");
        }
        let crowded = [pod("a", json!({"spec": {"nodeName": "m"}})), pod("b", json!({})), pod("c", json!({}))];
        let ranked = by_deletion_rank(&crowded.iter().collect::<Vec<_>>());
        assert_eq!(ranked, ["b", "c", "a"], "crowded nodes first");
    }

    #[test]
    fn status_counts_and_waits_for_availability() {
        let mut set = set(3);
        set.spec.min_ready_seconds = 3595;
        let pods = [
            pod("a", json!({"metadata": {"labels": {"tier": "front"}}})),
            pod("b", json!({"status": {"conditions": null}})),
            pod("c", json!({"metadata": {"deletionTimestamp": "t"}})),
        ];
        let plan = plan(&set, &pods, &HashSet::new(), now());
        let status = &plan.status;
        assert_eq!((status.replicas, status.fully_labeled_replicas, status.observed_generation), (2, 1, 3));
        assert_eq!((status.ready_replicas, status.available_replicas), (1, 0));
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(plan.again, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_failure_becomes_a_condition_and_goes_with_success() {
        let failed = with_failure(ReplicaSetStatus::default(), Some(("FailedCreate", "quota")), now());
        assert_eq!(failed.conditions[0].reason, "FailedCreate");
        assert!(with_failure(failed, None, now()).conditions.is_empty());
    }
}
