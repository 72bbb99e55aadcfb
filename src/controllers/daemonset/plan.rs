//! The next step of a DaemonSet as a function of what is observed: first one pod a node, then the newest template.

use super::placement::{GENERATION_ANNOTATION, GENERATION_LABEL, NodeFacts, fit, node_of};
use crate::api::view::pod::PodSpec;
use crate::api::view::workload::{DaemonSet, DaemonSetStatus};
use crate::client::events::Type;
use crate::controllers::history::HASH_LABEL;
use crate::controllers::pods::PodFacts;
use crate::controllers::portion::portion;
use crate::controllers::seconds_until;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A pod on each of these nodes.
    Create(Vec<String>),
    /// Pods by name.
    Delete(Vec<String>),
    Tell {
        kind: Type,
        reason: &'static str,
        message: String,
    },
    /// A failed pod of this node is being replaced: the next one of that node waits longer.
    BackOff(String),
}

pub struct Observed<'a> {
    pub set: &'a DaemonSet,
    /// The template's, with the tolerations every daemon has.
    pub spec: &'a PodSpec,
    pub nodes: &'a [NodeFacts],
    /// The set's own.
    pub pods: &'a [PodFacts],
    /// Of the current revision.
    pub hash: &'a str,
    /// Nodes whose failed pods are not to be replaced yet, and for how long.
    pub backoff: &'a BTreeMap<String, Duration>,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When something changes by the passing of time.
    pub again: Option<Duration>,
}

type ByNode<'a> = BTreeMap<&'a str, Vec<&'a PodFacts>>;

impl<'a> Observed<'a> {
    /// Pods that have ended and are being deleted count no more.
    fn by_node(&self) -> ByNode<'a> {
        let mut by_node = ByNode::new();
        for pod in self.pods.iter().filter(|pod| !(pod.has_ended() && pod.metadata.is_deleting())) {
            if let Some(node) = node_of(pod) {
                by_node.entry(node).or_default().push(pod);
            }
        }
        for pods in by_node.values_mut() {
            pods.sort_by_key(|pod| by_age(pod));
        }
        by_node
    }

    fn is_updated(&self, pod: &PodFacts) -> bool {
        let labels = &pod.metadata.labels;
        let generation = self.set.metadata.annotations.get(GENERATION_ANNOTATION);
        labels.get(HASH_LABEL).is_some_and(|hash| hash == self.hash)
            || (generation.is_some() && labels.get(GENERATION_LABEL) == generation)
    }

    fn is_available(&self, pod: &PodFacts) -> bool {
        pod.is_available(self.set.spec.min_ready_seconds, self.now)
    }

    /// How many pods may be more or fewer than nodes that want one.
    fn bound(&self, wanted: i64, surge: bool) -> i64 {
        let strategy = &self.set.spec.update_strategy;
        let rolling = strategy.rolling_update.as_ref().filter(|_| strategy.r#type == "RollingUpdate");
        rolling.map_or(0, |one| portion(if surge { &one.max_surge } else { &one.max_unavailable }, wanted, true))
    }

    fn may_surge(&self) -> bool {
        self.bound(100, true) > 0
    }
}

/// The oldest of a node first; those that are bound before those that wait.
fn by_age(pod: &PodFacts) -> (bool, String, String) {
    (pod.node().is_empty(), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone())
}

pub fn plan(observed: &Observed) -> Plan {
    let mut plan = manage(observed);
    let settled = !plan.actions.iter().any(|action| matches!(action, Action::Create(_) | Action::Delete(_)));
    if settled && observed.set.spec.update_strategy.r#type != "OnDelete" {
        plan.actions.extend(roll(observed));
    }
    let available = next_available(observed);
    plan.again = [plan.again, available].into_iter().flatten().min();
    plan
}

/// One pod on every node that should have one, none elsewhere.
fn manage(observed: &Observed) -> Plan {
    let by_node = observed.by_node();
    let (mut plan, mut create, mut delete) = (Plan::default(), Vec::new(), Vec::new());
    for node in observed.nodes {
        let name = node.metadata.name.as_str();
        let fit = fit(observed.spec, node);
        match by_node.get(name) {
            None if fit.runs => create.push(name.to_owned()),
            None => {}
            Some(pods) if fit.stays => delete.extend(keep_one(observed, name, pods, &mut plan)),
            Some(pods) => delete.extend(staying(pods).map(|pod| pod.metadata.name.clone())),
        }
    }
    delete.extend(lost(observed, &by_node));
    plan.actions.extend([(!delete.is_empty()).then_some(Action::Delete(delete))].into_iter().flatten());
    plan.actions.extend([(!create.is_empty()).then_some(Action::Create(create))].into_iter().flatten());
    plan
}

fn staying<'a>(pods: &[&'a PodFacts]) -> impl Iterator<Item = &'a PodFacts> {
    pods.iter().copied().filter(|pod| !pod.metadata.is_deleting())
}

/// Pods that wait for a node that is gone: nobody else would ever delete them.
fn lost(observed: &Observed, by_node: &ByNode) -> Vec<String> {
    let known = |name: &str| observed.nodes.iter().any(|node| node.metadata.name == name);
    let waiting = by_node.iter().filter(|(name, _)| !known(name)).flat_map(|(_, pods)| staying(pods));
    waiting.filter(|pod| pod.node().is_empty()).map(|pod| pod.metadata.name.clone()).collect()
}

/// The pods of a node that are too many.
fn keep_one(observed: &Observed, node: &str, pods: &[&PodFacts], plan: &mut Plan) -> Vec<String> {
    let (mut running, mut surplus) = (Vec::new(), Vec::new());
    for pod in staying(pods) {
        let name = &pod.metadata.name;
        let key = pod.metadata.key();
        match pod.status.phase.as_str() {
            "Failed" => {
                if let Some(wait) = observed.backoff.get(node) {
                    plan.again = Some(plan.again.map_or(*wait, |known| known.min(*wait)));
                    continue;
                }
                let message = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
                plan.actions.push(Action::BackOff(node.to_owned()));
                plan.actions.push(Action::Tell { kind: Type::Warning, reason: "FailedDaemonPod", message });
                surplus.push(name.clone());
            }
            "Succeeded" => {
                let message = format!("Found succeeded daemon pod {key} on node {node}, will try to delete it");
                plan.actions.push(Action::Tell { kind: Type::Normal, reason: "SucceededDaemonPod", message });
                surplus.push(name.clone());
            }
            _ => running.push(pod),
        }
    }
    let excess =
        if observed.may_surge() { beyond_two(observed, &running) } else { running.split_off(1.min(running.len())) };
    surplus.extend(excess.into_iter().map(|pod| pod.metadata.name.clone()));
    surplus
}

/// While surging, an old pod may stay beside the new one until that is available.
fn beyond_two<'a>(observed: &Observed, running: &[&'a PodFacts]) -> Vec<&'a PodFacts> {
    if running.len() <= 1 {
        return Vec::new();
    }
    let (new, old): (Vec<_>, Vec<_>) = running.iter().copied().partition(|pod| observed.is_updated(pod));
    let mut excess: Vec<&PodFacts> = new.iter().chain(&old).copied().collect();
    excess.retain(|pod| {
        let first = |list: &[&PodFacts]| list.first().is_some_and(|one| one.metadata.uid == pod.metadata.uid);
        !first(&new) && !first(&old)
    });
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (old.ready().is_none() || observed.is_available(new))
    {
        excess.push(old);
    }
    excess
}

/// The updated and the outdated pod of a node; nothing if there are several of one sort.
fn sorts<'a>(observed: &Observed, pods: &[&'a PodFacts]) -> Option<(Option<&'a PodFacts>, Option<&'a PodFacts>)> {
    let (new, old): (Vec<_>, Vec<_>) = staying(pods).partition(|pod| observed.is_updated(pod));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

/// One step of a rolling update.
fn roll(observed: &Observed) -> Option<Action> {
    let mut by_node = observed.by_node();
    let mut wanted = 0;
    for node in observed.nodes.iter().filter(|node| fit(observed.spec, node).runs) {
        wanted += 1;
        by_node.entry(&node.metadata.name).or_default();
    }
    let surge = observed.bound(wanted, true);
    let mut unavailable = observed.bound(wanted, false);
    if wanted > 0 && surge == 0 && unavailable == 0 {
        // Otherwise nothing could ever move.
        unavailable = 1;
    }
    if surge == 0 { replace_in_place(observed, &by_node, unavailable) } else { surge_over(observed, &by_node, surge) }
}

/// Deletes old pods: those that are unavailable anyway, and others as far as the bound allows.
fn replace_in_place(observed: &Observed, by_node: &ByNode, max_unavailable: i64) -> Option<Action> {
    let (mut unavailable, mut doomed, mut candidates) = (0, Vec::new(), Vec::new());
    for pods in by_node.values() {
        match sorts(observed, pods) {
            Some((None, Some(old))) if !observed.is_available(old) => doomed.push(old.metadata.name.clone()),
            Some((None, Some(old))) => candidates.push(old.metadata.name.clone()),
            Some((Some(new), None)) if observed.is_available(new) => {}
            _ => unavailable += 1,
        }
    }
    let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
    doomed.extend(candidates.into_iter().take(room));
    (!doomed.is_empty()).then_some(Action::Delete(doomed))
}

/// Makes new pods beside old ones, and deletes the old where the new is available.
fn surge_over(observed: &Observed, by_node: &ByNode, max_surge: i64) -> Option<Action> {
    let (mut surging, mut doomed, mut allowed, mut candidates) = (0, Vec::new(), Vec::new(), Vec::new());
    for (node, pods) in by_node {
        match sorts(observed, pods) {
            None => surging += 1,
            Some((_, None)) => {}
            Some((None, Some(old))) if !observed.is_available(old) => allowed.push((*node).to_owned()),
            Some((None, Some(_))) => candidates.push((*node).to_owned()),
            Some((Some(new), Some(old))) if observed.is_available(new) => doomed.push(old.metadata.name.clone()),
            Some((Some(_), Some(_))) => surging += 1,
        }
    }
    if !doomed.is_empty() {
        return Some(Action::Delete(doomed));
    }
    let room = usize::try_from(max_surge - surging).unwrap_or(0);
    allowed.extend(candidates.into_iter().take(room));
    (!allowed.is_empty()).then_some(Action::Create(allowed))
}

fn next_available(observed: &Observed) -> Option<Duration> {
    let wait = Duration::from_secs(u64::try_from(observed.set.spec.min_ready_seconds).unwrap_or(0));
    let waiting = observed.pods.iter().filter(|pod| pod.is_active() && !observed.is_available(pod));
    waiting.filter_map(|pod| Some(seconds_until(pod.ready_since()?, wait, observed.now))).min()
}

/// What the pods are like now. `collision_count` stays.
pub fn status(observed: &Observed) -> DaemonSetStatus {
    let by_node = observed.by_node();
    let mut status = DaemonSetStatus {
        observed_generation: observed.set.metadata.generation,
        collision_count: observed.set.status.collision_count,
        ..DaemonSetStatus::default()
    };
    for node in observed.nodes {
        let oldest = by_node.get(node.metadata.name.as_str()).and_then(|pods| pods.first());
        match (fit(observed.spec, node).runs, oldest) {
            (false, None) => {}
            (false, Some(_)) => status.number_misscheduled += 1,
            (true, None) => status.desired_number_scheduled += 1,
            (true, Some(pod)) => {
                status.desired_number_scheduled += 1;
                status.current_number_scheduled += 1;
                status.number_ready += i64::from(pod.ready().is_some());
                status.number_available += i64::from(observed.is_available(pod));
                status.updated_number_scheduled += i64::from(observed.is_updated(pod));
            }
        }
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(strategy: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "a", "generation": 2},
            "spec": {"updateStrategy": strategy, "template": {"spec": {}}}}))
        .expect("set")
    }

    fn rolling(unavailable: Value, surge: Value) -> DaemonSet {
        set(json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}))
    }

    /// `name@node/hash`, with a sign behind it: `!` not ready, `-` deleting, `x` failed, `?` not bound.
    fn pod(text: &str) -> PodFacts {
        let (name, rest) = text.split_once('@').expect("node");
        let (node, sign) = rest.split_once('/').expect("hash");
        let hash = sign.trim_end_matches(['!', '-', 'x', '?']);
        let has = |what: char| sign.contains(what);
        let status = if has('!') { "False" } else { "True" };
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {HASH_LABEL: hash},
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": if has('x') { "Failed" } else { "Running" }, "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        if has('-') {
            pod["metadata"]["deletionTimestamp"] = "t".into();
        }
        if has('?') {
            let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            pod["spec"] = json!({"affinity": {"nodeAffinity": required}});
        } else {
            pod["spec"] = json!({"nodeName": node});
        }
        serde_json::from_value(pod).expect("pod")
    }

    fn observe<T>(set: &DaemonSet, nodes: &[&str], pods: &[&str], look: impl FnOnce(&Observed) -> T) -> T {
        let nodes: Vec<NodeFacts> = nodes
            .iter()
            .map(|name| {
                let (name, taint) = name.split_once(':').unwrap_or((name, ""));
                let taints = if taint.is_empty() { json!([]) } else { json!([{"key": "k", "effect": taint}]) };
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}})).expect("node")
            })
            .collect();
        let pods: Vec<PodFacts> = pods.iter().map(|text| pod(text)).collect();
        let spec = super::super::placement::pod_spec(set).expect("spec");
        let backoff = BTreeMap::from([("slow".to_owned(), Duration::from_secs(3))]);
        let now = "2026-01-01T01:00:00Z".parse().expect("time");
        look(&Observed { set, spec: &spec, nodes: &nodes, pods: &pods, hash: "new", backoff: &backoff, now })
    }

    /// `+node -pod`, in this order of actions.
    fn steps(set: &DaemonSet, nodes: &[&str], pods: &[&str]) -> String {
        let plan = observe(set, nodes, pods, plan);
        let words = plan.actions.iter().flat_map(|action| match action {
            Action::Create(nodes) => nodes.iter().map(|node| format!("+{node}")).collect(),
            Action::Delete(pods) => pods.iter().map(|pod| format!("-{pod}")).collect(),
            Action::Tell { .. } => Vec::new(),
            Action::BackOff(node) => vec![format!("slow:{node}")],
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_node_has_one_pod() {
        let set = rolling(json!(1), json!(0));
        for (nodes, pods, expected) in [
            (vec!["a", "b"], vec![], "+a +b"),
            (vec!["a", "b"], vec!["x@a/new"], "+b"),
            (vec!["a"], vec!["x@a/new", "y@a/new"], "-y"),
            (vec!["a"], vec!["x@a/new?", "y@a/new"], "-x"),
            (vec!["a"], vec!["x@a/new-"], ""),
            (vec!["a"], vec!["x@a/newx"], "slow:a -x"),
            (vec!["a"], vec!["x@a/newx-"], "+a"),
            (vec!["slow"], vec!["x@slow/newx"], ""),
            (vec!["a:NoSchedule"], vec![], ""),
            (vec!["a:NoSchedule"], vec!["x@a/new"], ""),
            (vec!["a:NoExecute"], vec!["x@a/new"], "-x"),
            (vec![], vec!["x@gone/new"], ""),
            (vec![], vec!["x@gone/new?"], "-x"),
        ] {
            assert_eq!(steps(&set, &nodes, &pods), expected, "{nodes:?} {pods:?}");
        }
        let again = observe(&set, &["slow"], &["x@slow/newx"], plan).again;
        assert_eq!(again, Some(Duration::from_secs(3)));
    }

    #[test]
    fn an_update_keeps_to_its_bounds() {
        let three = ["a", "b", "c"];
        let old = ["x@a/old", "y@b/old", "z@c/old"];
        let one = rolling(json!(1), json!(0));
        assert_eq!(steps(&one, &three, &old), "-x");
        assert_eq!(steps(&rolling(json!("50%"), json!(0)), &three, &old), "-x -y");
        assert_eq!(steps(&rolling(json!(0), json!(0)), &three, &old), "-x", "something must move");
        assert_eq!(steps(&set(json!({"type": "OnDelete"})), &three, &old), "");
        assert_eq!(steps(&one, &three, &["n@a/new!", "y@b/old", "z@c/old"]), "", "the new one must be ready first");
        assert_eq!(steps(&one, &three, &["n@a/new", "y@b/old", "z@c/old"]), "-y");
        assert_eq!(steps(&one, &three, &["x@a/old-", "y@b/old", "z@c/old"]), "");
        assert_eq!(steps(&one, &three, &["n@a/new!", "y@b/old!", "z@c/old"]), "-y", "nothing is lost with it");
        assert_eq!(steps(&one, &["a", "b:NoSchedule"], &["n@a/new", "y@b/old"]), "-y");
    }

    #[test]
    fn a_surge_makes_the_new_pod_first() {
        let nodes = ["a", "b"];
        let set = rolling(json!(0), json!(1));
        assert_eq!(steps(&set, &nodes, &["x@a/old", "y@b/old"]), "+a");
        assert_eq!(steps(&set, &nodes, &["x@a/old", "n@a/new!", "y@b/old"]), "");
        assert_eq!(steps(&set, &nodes, &["x@a/old", "n@a/new", "y@b/old"]), "-x");
        assert_eq!(steps(&set, &nodes, &["x@a/old-", "n@a/new", "y@b/old"]), "+b");
        assert_eq!(steps(&set, &nodes, &["x@a/old!", "n@a/new!", "y@b/old!"]), "-x", "two unready are one too many");
    }

    #[test]
    fn the_status_counts_nodes() {
        let set = rolling(json!(1), json!(0));
        let nodes = ["a", "b", "c", "d:NoSchedule"];
        let status = observe(&set, &nodes, &["x@a/new", "y@b/old!", "m@d/old"], status);
        let expected = DaemonSetStatus {
            observed_generation: 2,
            desired_number_scheduled: 3,
            current_number_scheduled: 2,
            number_misscheduled: 1,
            number_ready: 1,
            number_available: 1,
            number_unavailable: 2,
            updated_number_scheduled: 1,
            collision_count: None,
        };
        assert_eq!(status, expected);
    }
}
