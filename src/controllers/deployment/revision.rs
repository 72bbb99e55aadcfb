//! Revisions: which ReplicaSet stands for which template, their hash, their annotations and their order.

use super::bounds::Bounds;
use crate::api::view::workload::{Deployment, ReplicaSet};
use crate::controllers::template_hash::template_hash;
use serde_json::{Map, Value, json};

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of the Deployment that its ReplicaSets do not take over.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// Whether a ReplicaSet was made from this template.
fn is_of(set: &ReplicaSet, template: &Value) -> bool {
    without_hash(&set.spec.template) == without_hash(template)
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// The ReplicaSet of the current template (the oldest if there are several) and all others, oldest first.
pub fn split<'a>(deployment: &Deployment, sets: &'a [ReplicaSet]) -> (Option<&'a ReplicaSet>, Vec<&'a ReplicaSet>) {
    let mut sorted: Vec<&ReplicaSet> = sets.iter().collect();
    sorted.sort_by_key(|set| (&set.metadata.creation_timestamp, &set.metadata.name));
    let new = sorted.iter().position(|set| is_of(set, &deployment.spec.template)).map(|place| sorted.remove(place));
    (new, sorted)
}

pub fn revision_of(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The revision that the current template gets.
pub fn next_revision(old: &[&ReplicaSet]) -> i64 {
    old.iter().map(|set| revision_of(set)).max().unwrap_or(0) + 1
}

/// How many pods the annotations of a ReplicaSet say the Deployment had when it was scaled last.
pub fn annotated(set: &ReplicaSet, key: &str) -> Option<i64> {
    set.metadata.annotations.get(key)?.parse().ok()
}

/// The annotations that change on a ReplicaSet of the current template. A revision that comes back goes to the history.
pub fn new_annotations(deployment: &Deployment, set: Option<&ReplicaSet>, revision: i64) -> Map<String, Value> {
    let own = &deployment.metadata.annotations;
    let mut wanted: Map<String, Value> = own
        .iter()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let before = set.map_or(0, revision_of);
    if before < revision {
        wanted.insert(REVISION.into(), revision.to_string().into());
        if before > 0 {
            let history = set.and_then(|set| set.metadata.annotations.get(HISTORY));
            let history = history.map_or(before.to_string(), |history| format!("{history},{before}"));
            wanted.insert(HISTORY.into(), history.into());
        }
    }
    if let Some(set) = set {
        wanted.retain(|key, value| set.metadata.annotations.get(key).map(String::as_str) != value.as_str());
    }
    wanted
}

/// What the Deployment wants now, noted on a ReplicaSet for proportional scaling later.
pub fn size_annotations(deployment: &Deployment) -> Map<String, Value> {
    let bounds = Bounds::of(deployment);
    let mut annotations = Map::new();
    annotations.insert(DESIRED.into(), bounds.replicas.to_string().into());
    annotations.insert(MAX.into(), (bounds.replicas + bounds.max_surge).to_string().into());
    annotations
}

/// The ReplicaSet of the current template, to be created.
pub fn new_set(deployment: &Deployment, replicas: i64, revision: i64) -> Value {
    let hash = template_hash(&deployment.spec.template, deployment.status.collision_count.unwrap_or(0));
    let meta = &deployment.metadata;
    let mut template = deployment.spec.template.clone();
    template["metadata"]["labels"][HASH_LABEL] = hash.clone().into();
    let mut selector = serde_json::to_value(&deployment.spec.selector).expect("a selector is plain data");
    selector["matchLabels"][HASH_LABEL] = hash.clone().into();
    if deployment.spec.selector.match_expressions.is_empty()
        && let Some(fields) = selector.as_object_mut()
    {
        fields.remove("matchExpressions");
    }
    let mut annotations = new_annotations(deployment, None, revision);
    annotations.extend(size_annotations(deployment));
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", meta.name), "namespace": meta.namespace,
            "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": [crate::controllers::owners::reference("apps/v1", "Deployment", meta)],
        },
        "spec": {"replicas": replicas, "minReadySeconds": deployment.spec.min_ready_seconds,
            "selector": selector, "template": template},
    })
}

/// Old ReplicaSets beyond the history limit that run nothing, oldest revision first.
pub fn expired<'a>(deployment: &Deployment, old: &[&'a ReplicaSet]) -> Vec<&'a ReplicaSet> {
    let mut alive: Vec<&ReplicaSet> = old.iter().copied().filter(|set| !set.metadata.is_deleting()).collect();
    let limit = usize::try_from(deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let surplus = alive.len().saturating_sub(limit);
    alive.sort_by_key(|set| (revision_of(set), set.metadata.creation_timestamp.clone()));
    let idle = |set: &&ReplicaSet| {
        set.status.replicas == 0
            && set.spec.replicas.unwrap_or(1) == 0
            && set.metadata.generation <= set.status.observed_generation
    };
    alive.into_iter().take(surplus).filter(idle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, revision: &str, image: &str) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": revision, "annotations": {REVISION: revision}},
            "spec": {"replicas": 0, "template": {"metadata": {"labels": {"app": "x", HASH_LABEL: name}}, "image": image}},
        }))
        .expect("set")
    }

    fn deployment(extra: Value) -> Deployment {
        let mut object = json!({"metadata": {"name": "web", "namespace": "a", "uid": "u"},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "image": "2"}}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("deployment")
    }

    #[test]
    fn the_current_template_finds_its_set() {
        let sets = [set("b", "2", "2"), set("a", "1", "1")];
        let (new, old) = split(&deployment(json!({})), &sets);
        assert_eq!(new.map(|set| set.metadata.name.as_str()), Some("b"));
        assert_eq!(old.len(), 1);
        assert_eq!(next_revision(&old), 2);
    }

    #[test]
    fn a_revision_that_comes_back_keeps_its_history() {
        let own = deployment(json!({"metadata": {"annotations": {"note": "x", REVISION: "3"}}}));
        let changed = new_annotations(&own, Some(&set("a", "1", "2")), 4);
        let expected = json!({"note": "x", REVISION: "4", HISTORY: "1"});
        assert_eq!(Value::Object(changed), expected);
        assert!(new_annotations(&deployment(json!({})), Some(&set("a", "1", "2")), 1).is_empty());
    }

    #[test]
    fn a_new_set_selects_its_own_pods() {
        let own =
            deployment(json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}}}));
        let set = new_set(&own, 2, 1);
        let hash = set["metadata"]["labels"][HASH_LABEL].as_str().expect("hash");
        assert_eq!(set["metadata"]["name"], format!("web-{hash}"));
        assert_eq!(set["spec"]["selector"], json!({"matchLabels": {"app": "x", HASH_LABEL: hash}}));
        assert_eq!(set["spec"]["template"]["metadata"]["labels"][HASH_LABEL], hash);
        assert_eq!(set["metadata"]["annotations"], json!({REVISION: "1", DESIRED: "4", MAX: "5"}));
    }

    #[test]
    fn history_is_limited_to_what_runs_nothing() {
        let sets = [set("a", "1", "1"), set("b", "2", "1"), set("c", "3", "1")];
        let old: Vec<&ReplicaSet> = sets.iter().collect();
        let names = |limit: i64| -> Vec<&str> {
            let own = deployment(json!({"spec": {"revisionHistoryLimit": limit}}));
            expired(&own, &old).iter().map(|set| set.metadata.name.as_str()).collect()
        };
        assert_eq!(names(2), ["a"]);
        assert_eq!(names(0), ["a", "b", "c"]);
        assert_eq!(names(5), [] as [&str; 0]);
    }
}
