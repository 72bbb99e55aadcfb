//! The next step of a Deployment, as a function of what is observed. One step a pass; a change brings the next.

use super::bounds::Bounds;
use super::revision::{self, annotated, split};
use crate::api::view::workload::{Deployment, ReplicaSet};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create(Value),
    /// Annotations and fields of a ReplicaSet that changed.
    Patch {
        name: String,
        patch: Value,
    },
    Scale {
        name: String,
        from: i64,
        to: i64,
    },
    /// Notes the wanted sizes without scaling.
    Note {
        name: String,
    },
    Delete(String),
    /// Annotates the Deployment with its revision.
    Revision(String),
}

/// What a pass does, and which ReplicaSet it takes for the new one.
#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Whether the status shows the progress of a rollout (not when paused or only scaled).
    pub rollout: bool,
}

struct View<'a> {
    deployment: &'a Deployment,
    new: Option<&'a ReplicaSet>,
    /// Oldest first.
    old: Vec<&'a ReplicaSet>,
    bounds: Bounds,
}

pub fn replicas(set: &ReplicaSet) -> i64 {
    set.spec.replicas.unwrap_or(1)
}

fn sum(sets: &[&ReplicaSet], count: fn(&ReplicaSet) -> i64) -> i64 {
    sets.iter().map(|set| count(set)).sum()
}

/// `old_pods_run`: whether pods of old ReplicaSets are still there (for Recreate).
pub fn plan(deployment: &Deployment, sets: &[ReplicaSet], old_pods_run: bool) -> Plan {
    if deployment.metadata.is_deleting() {
        return Plan::default();
    }
    let (new, old) = split(deployment, sets);
    let view = View { deployment, new, old, bounds: Bounds::of(deployment) };
    if deployment.spec.paused || view.is_scaling() {
        return view.scale_only();
    }
    let actions = view.prepare_new().unwrap_or_else(|| match deployment.spec.strategy.r#type.as_str() {
        "Recreate" => view.recreate(old_pods_run),
        _ => view.roll(),
    });
    Plan { actions, rollout: true }
}

impl<'a> View<'a> {
    fn all(&self) -> Vec<&'a ReplicaSet> {
        self.old.iter().copied().chain(self.new).collect()
    }

    fn active(&self) -> Vec<&'a ReplicaSet> {
        self.all().into_iter().filter(|set| replicas(set) > 0).collect()
    }

    /// Whether the Deployment was scaled since its ReplicaSets were sized last.
    fn is_scaling(&self) -> bool {
        let noted = |set: &&ReplicaSet| annotated(set, revision::DESIRED);
        self.active().iter().filter_map(noted).any(|desired| desired != self.bounds.replicas)
    }

    fn scale_only(&self) -> Plan {
        let mut actions = self.scale();
        if self.deployment.spec.paused && actions.is_empty() {
            actions = self.clean_up();
        }
        Plan { actions, rollout: false }
    }

    fn scale(&self) -> Vec<Action> {
        if let Some(only) = self.active_or_latest() {
            return self.resize(only, self.bounds.replicas).into_iter().collect();
        }
        if self.is_saturated() {
            return self.old.iter().filter_map(|set| self.resize(set, 0)).collect();
        }
        if self.deployment.spec.strategy.r#type == "Recreate" { Vec::new() } else { self.scale_in_proportion() }
    }

    /// The only one with pods; with none, the new one or the latest.
    fn active_or_latest(&self) -> Option<&'a ReplicaSet> {
        match self.active().as_slice() {
            [] => self.new.or(self.old.last().copied()),
            [only] => Some(only),
            _ => None,
        }
    }

    fn is_saturated(&self) -> bool {
        self.new.is_some_and(|set| {
            let wanted = self.bounds.replicas;
            replicas(set) == wanted
                && annotated(set, revision::DESIRED) == Some(wanted)
                && set.status.available_replicas == wanted
        })
    }

    /// In the middle of a rollout every ReplicaSet takes its share of the change; the largest takes what rounding leaves.
    fn scale_in_proportion(&self) -> Vec<Action> {
        let mut sets = self.active();
        let wanted = self.bounds.replicas;
        let allowed = if wanted > 0 { wanted + self.bounds.max_surge } else { 0 };
        let change = allowed - sum(&sets, replicas);
        let created = |set: &&ReplicaSet| set.metadata.creation_timestamp.clone();
        if change > 0 {
            sets.sort_by_key(|set| Reverse((replicas(set), created(set))));
        } else {
            sets.sort_by_key(|set| (Reverse(replicas(set)), created(set)));
        }
        let mut given = 0;
        let mut sizes: Vec<(&ReplicaSet, i64)> = Vec::new();
        for set in sets {
            let share = self.share(set, change, given);
            given += share;
            sizes.push((set, replicas(set) + share));
        }
        if let Some((_, size)) = sizes.first_mut().filter(|_| change != 0) {
            *size = (*size + change - given).max(0);
        }
        sizes.into_iter().filter_map(|(set, size)| self.resize(set, size)).collect()
    }

    fn share(&self, set: &ReplicaSet, change: i64, given: i64) -> i64 {
        let left = change - given;
        if replicas(set) == 0 || change == 0 || left == 0 {
            return 0;
        }
        let fraction = if self.bounds.replicas == 0 {
            -replicas(set)
        } else {
            let before = annotated(set, revision::MAX).unwrap_or(self.deployment.status.replicas).max(1);
            let size = replicas(set) * (self.bounds.replicas + self.bounds.max_surge);
            // Rounded to the nearest.
            (2 * size + before).div_euclid(2 * before) - replicas(set)
        };
        if change > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// Scales, or notes new wanted sizes; nothing if both are so already.
    fn resize(&self, set: &ReplicaSet, to: i64) -> Option<Action> {
        let name = set.metadata.name.clone();
        if replicas(set) != to {
            return Some(Action::Scale { name, from: replicas(set), to });
        }
        let noted =
            |(key, value): (String, Value)| set.metadata.annotations.get(&key).map(String::as_str) == value.as_str();
        let same = revision::size_annotations(self.deployment).into_iter().all(noted);
        (!same).then_some(Action::Note { name })
    }

    /// Makes the new ReplicaSet, or brings its annotations up to date; `None` when it is as it should be.
    fn prepare_new(&self) -> Option<Vec<Action>> {
        let next = revision::next_revision(&self.old);
        let Some(set) = self.new else {
            // Recreate makes the new one only when the old pods are gone.
            let create = self.deployment.spec.strategy.r#type != "Recreate";
            return create.then(|| vec![Action::Create(self.created(next))]);
        };
        let annotations = revision::new_annotations(self.deployment, Some(set), next);
        let min_ready = self.deployment.spec.min_ready_seconds;
        if !annotations.is_empty() || set.spec.min_ready_seconds != min_ready {
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": min_ready}});
            return Some(vec![Action::Patch { name: set.metadata.name.clone(), patch }]);
        }
        let own = self.deployment.metadata.annotations.get(revision::REVISION);
        let current = set.metadata.annotations.get(revision::REVISION);
        (own != current).then(|| vec![Action::Revision(current.cloned().unwrap_or_default())])
    }

    fn created(&self, revision: i64) -> Value {
        revision::new_set(self.deployment, self.new_size(), revision)
    }

    /// How many pods the new ReplicaSet may have now.
    fn new_size(&self) -> i64 {
        let (wanted, current) = (self.bounds.replicas, self.new.map_or(0, replicas));
        if self.deployment.spec.strategy.r#type == "Recreate" {
            return wanted;
        }
        let room = wanted + self.bounds.max_surge - sum(&self.all(), replicas);
        if room <= 0 { current } else { current + room.min(wanted - current) }
    }

    fn roll(&self) -> Vec<Action> {
        let Some(new) = self.new else { return Vec::new() };
        let size = if replicas(new) > self.bounds.replicas { self.bounds.replicas } else { self.new_size() };
        if let Some(action @ Action::Scale { .. }) = self.resize(new, size) {
            return vec![action];
        }
        let smaller = self.shrink_old(new);
        if smaller.is_empty() && self.is_complete() { self.clean_up() } else { smaller }
    }

    /// First the old pods that are not available anyway, then as many as availability allows.
    fn shrink_old(&self, new: &ReplicaSet) -> Vec<Action> {
        let mut sizes: Vec<i64> = self.old.iter().map(|set| replicas(set)).collect();
        let min_available = self.bounds.min_available();
        let new_unavailable = replicas(new) - new.status.available_replicas;
        let mut unhealthy = sum(&self.all(), replicas) - min_available - new_unavailable;
        if unhealthy <= 0 {
            return Vec::new();
        }
        for (set, size) in self.old.iter().zip(&mut sizes) {
            let less = unhealthy.min(*size - set.status.available_replicas).max(0);
            (*size, unhealthy) = (*size - less, unhealthy - less);
        }
        let mut spare = sum(&self.all(), |set| set.status.available_replicas) - min_available;
        for size in &mut sizes {
            let less = spare.min(*size).max(0);
            (*size, spare) = (*size - less, spare - less);
        }
        let changed = self.old.iter().zip(sizes).filter(|(set, size)| replicas(set) != *size);
        changed.filter_map(|(set, size)| self.resize(set, size)).collect()
    }

    fn recreate(&self, old_pods_run: bool) -> Vec<Action> {
        let shrink: Vec<Action> =
            self.old.iter().filter(|set| replicas(set) > 0).filter_map(|set| self.resize(set, 0)).collect();
        if !shrink.is_empty() || old_pods_run {
            return shrink;
        }
        match self.new {
            None => vec![Action::Create(self.created(revision::next_revision(&self.old)))],
            Some(new) => match self.resize(new, self.bounds.replicas) {
                Some(action) => vec![action],
                None if self.is_complete() => self.clean_up(),
                None => Vec::new(),
            },
        }
    }

    fn is_complete(&self) -> bool {
        super::status::is_complete(self.deployment, &self.deployment.status)
    }

    fn clean_up(&self) -> Vec<Action> {
        let expired = revision::expired(self.deployment, &self.old);
        expired.into_iter().map(|set| Action::Delete(set.metadata.name.clone())).collect()
    }
}

/// The merge patch that scales a ReplicaSet, or with no size only notes what is wanted.
pub fn scale_patch(deployment: &Deployment, to: Option<i64>) -> Value {
    let annotations: Map<String, Value> = revision::size_annotations(deployment);
    match to {
        Some(to) => json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}}),
        None => json!({"metadata": {"annotations": annotations}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::deployment::revision::{DESIRED, MAX, REVISION};

    fn deployment(replicas: i64, image: &str, extra: Value) -> Deployment {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "u", "annotations": {REVISION: "2"}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "x"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "image": image}},
        });
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("deployment")
    }

    /// A ReplicaSet named after its image, sized for a Deployment of `desired` (surge 25 %).
    fn set(image: &str, revision: i64, replicas: i64, available: i64, desired: i64) -> ReplicaSet {
        let max = desired + (desired + 3) / 4;
        serde_json::from_value(json!({
            "metadata": {"name": image, "creationTimestamp": revision.to_string(), "annotations": {
                REVISION: revision.to_string(), DESIRED: desired.to_string(), MAX: max.to_string()}},
            "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": "x"}}, "image": image}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
        }))
        .expect("set")
    }

    fn steps(deployment: &Deployment, sets: &[ReplicaSet], old_pods_run: bool) -> Vec<String> {
        let word = |action: Action| match action {
            Action::Create(object) => format!("create {}", object["spec"]["replicas"]),
            Action::Patch { name, .. } => format!("patch {name}"),
            Action::Scale { name, from, to } => format!("{name} {from}→{to}"),
            Action::Note { name } => format!("note {name}"),
            Action::Delete(name) => format!("delete {name}"),
            Action::Revision(revision) => format!("revision {revision}"),
        };
        plan(deployment, sets, old_pods_run).actions.into_iter().map(word).collect()
    }

    #[test]
    fn a_rolling_update_goes_step_by_step_within_its_bounds() {
        let own = deployment(4, "2", json!({}));
        let cases: Vec<(Vec<ReplicaSet>, Vec<&str>)> = vec![
            (vec![], vec!["create 4"]),
            (vec![set("1", 1, 4, 4, 4)], vec!["create 1"]),
            (vec![set("1", 1, 4, 4, 4), set("2", 2, 1, 0, 4)], vec!["1 4→3"]),
            (vec![set("1", 1, 3, 3, 4), set("2", 2, 1, 0, 4)], vec!["2 1→2"]),
            (vec![set("1", 1, 3, 3, 4), set("2", 2, 2, 0, 4)], vec![]),
            (vec![set("1", 1, 3, 3, 4), set("2", 2, 2, 2, 4)], vec!["1 3→1"]),
            (vec![set("1", 1, 1, 1, 4), set("2", 2, 4, 4, 4)], vec!["1 1→0"]),
            (vec![set("1", 1, 0, 0, 4), set("2", 2, 4, 4, 4)], vec![]),
        ];
        for (sets, expected) in cases {
            assert_eq!(steps(&own, &sets, false), expected, "{sets:?}");
        }
    }

    #[test]
    fn pods_that_never_came_up_go_first() {
        let own = deployment(4, "3", json!({"metadata": {"annotations": {REVISION: "3"}}}));
        let sets = [set("1", 1, 3, 3, 4), set("2", 2, 2, 0, 4), set("3", 3, 0, 0, 4)];
        assert_eq!(steps(&own, &sets, false), ["2 2→0"]);
    }

    #[test]
    fn a_rollback_takes_the_old_set_and_gives_it_a_new_revision() {
        let own = deployment(4, "1", json!({}));
        let sets = [set("1", 1, 0, 0, 4), set("2", 2, 4, 4, 4)];
        assert_eq!(steps(&own, &sets, false), ["patch 1"]);
        let renewed = [set("1", 3, 0, 0, 4), set("2", 2, 4, 4, 4)];
        assert_eq!(steps(&own, &renewed, false), ["revision 3"]);
    }

    #[test]
    fn recreate_waits_for_the_old_pods_to_end() {
        let own = deployment(3, "2", json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}));
        let mut old = set("1", 1, 3, 3, 3);
        assert_eq!(steps(&own, &[old.clone()], true), ["1 3→0"]);
        old.spec.replicas = Some(0);
        assert_eq!(steps(&own, &[old.clone()], true), [] as [&str; 0]);
        assert_eq!(steps(&own, &[old.clone()], false), ["create 3"]);
    }

    #[test]
    fn scaling_resizes_the_only_set() {
        assert_eq!(steps(&deployment(6, "2", json!({})), &[set("2", 2, 4, 4, 4)], false), ["2 4→6"]);
        assert_eq!(steps(&deployment(0, "2", json!({})), &[set("2", 2, 4, 4, 4)], false), ["2 4→0"]);
        assert_eq!(
            steps(&deployment(4, "2", json!({"spec": {"paused": true}})), &[set("1", 1, 2, 2, 2)], false),
            ["1 2→4"]
        );
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_shared_in_proportion() {
        // As the conformance test has it: 10 with surge 3 and 2 unavailable, 8 old and 5 new, then 30.
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}});
        let own = deployment(30, "2", strategy);
        let mut sets = [set("1", 1, 8, 8, 10), set("2", 2, 5, 0, 10)];
        for set in &mut sets {
            set.metadata.annotations.insert(MAX.into(), "13".into());
        }
        assert_eq!(steps(&own, &sets, false), ["1 8→20", "2 5→13"]);
    }

    #[test]
    fn a_paused_deployment_rolls_nothing_out() {
        let paused = deployment(4, "2", json!({"spec": {"paused": true}}));
        assert_eq!(steps(&paused, &[set("1", 1, 4, 4, 4)], false), [] as [&str; 0]);
        assert!(!plan(&paused, &[], false).rollout);
        assert_eq!(steps(&paused, &[], false), [] as [&str; 0]);
    }

    #[test]
    fn history_is_cleaned_when_the_rollout_is_complete() {
        let complete = json!({"spec": {"revisionHistoryLimit": 0}, "status": {"replicas": 4, "updatedReplicas": 4,
            "availableReplicas": 4}});
        let own = deployment(4, "2", complete);
        assert_eq!(steps(&own, &[set("1", 1, 0, 0, 4), set("2", 2, 4, 4, 4)], false), ["delete 1"]);
    }
}
