//! ControllerRevisions: what a DaemonSet or StatefulSet was, so that it can be again. Pure.

use super::template_hash::template_hash;
use crate::api::view::meta::Meta;
use crate::api::view::workload::ControllerRevision;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// On revisions and on pods: which revision.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// The strategic patch that makes a set have this template again.
pub fn data(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

pub fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.get(HASH_LABEL).map(String::as_str).unwrap_or_default()
}

/// Those of the current template (the one to keep first) and all others, oldest first.
pub fn split<'a>(
    template: &Value,
    revisions: &'a [ControllerRevision],
) -> (Vec<&'a ControllerRevision>, Vec<&'a ControllerRevision>) {
    let wanted = data(template);
    let (mut current, mut old): (Vec<_>, Vec<_>) = revisions.iter().partition(|revision| revision.data == wanted);
    let age = |revision: &&ControllerRevision| (revision.revision, revision.metadata.name.clone());
    current.sort_by_key(age);
    current.reverse();
    old.sort_by_key(age);
    (current, old)
}

/// The number the current template gets.
pub fn next_number(old: &[&ControllerRevision]) -> i64 {
    old.last().map_or(0, |revision| revision.revision) + 1
}

/// The revision of the current template, to be created.
pub fn new_revision(owner: &Meta, reference: Value, template: &Value, collisions: i64, number: i64) -> Value {
    let hash = template_hash(template, collisions);
    let labels = template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let mut revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {"name": format!("{}-{hash}", owner.name), "namespace": owner.namespace, "labels": labels,
            "annotations": owner.annotations, "ownerReferences": [reference]},
        "data": data(template), "revision": number,
    });
    revision["metadata"]["labels"][HASH_LABEL] = hash.into();
    revision
}

/// Old revisions beyond the limit that no pod has any more, oldest first.
pub fn expired<'a>(old: &[&'a ControllerRevision], limit: i64, live: &BTreeSet<&str>) -> Vec<&'a ControllerRevision> {
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let unused = old.iter().copied().filter(|revision| !live.contains(hash_of(revision)));
    unused.take(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, number: i64, image: &str) -> ControllerRevision {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {HASH_LABEL: name}},
            "data": data(&json!({"image": image})), "revision": number}))
        .expect("revision")
    }

    #[test]
    fn the_current_template_finds_its_revision() {
        let revisions = [revision("c", 3, "1"), revision("a", 1, "2"), revision("b", 2, "1")];
        let (current, old) = split(&json!({"image": "1"}), &revisions);
        assert_eq!(current.iter().map(|one| hash_of(one)).collect::<Vec<_>>(), ["c", "b"]);
        assert_eq!((old.len(), next_number(&old)), (1, 2));
        assert_eq!(next_number(&[]), 1);
    }

    #[test]
    fn a_revision_is_a_patch_that_replaces_the_template() {
        let owner = Meta { name: "d".into(), namespace: "a".into(), ..Meta::default() };
        let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": {}});
        let made = new_revision(&owner, json!({"uid": "u"}), &template, 0, 4);
        let hash = made["metadata"]["labels"][HASH_LABEL].as_str().expect("hash");
        assert_eq!(made["metadata"]["name"], format!("d-{hash}"));
        assert_eq!(made["data"]["spec"]["template"]["$patch"], "replace");
        assert_eq!(made["revision"], 4);
        let again = new_revision(&owner, json!({"uid": "u"}), &template, 1, 4);
        assert_ne!(again["metadata"]["name"], made["metadata"]["name"]);
    }

    #[test]
    fn history_is_limited_to_what_no_pod_has() {
        let revisions = [revision("a", 1, "1"), revision("b", 2, "1"), revision("c", 3, "1")];
        let old: Vec<&ControllerRevision> = revisions.iter().collect();
        let names = |limit, live: &[&'static str]| -> Vec<&str> {
            let live = live.iter().copied().collect();
            expired(&old, limit, &live).into_iter().map(hash_of).collect()
        };
        assert_eq!(names(2, &[]), ["a"]);
        assert_eq!(names(0, &["a"]), ["b", "c"]);
        assert_eq!(names(10, &[]), [] as [&str; 0]);
    }
}
