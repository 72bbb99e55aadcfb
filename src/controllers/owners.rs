//! Who controls whom: owner references, adoption and release, and the index that finds children.

use crate::api::view::meta::{Any, LabelSelector, Meta, OwnerReference};
use crate::client::informer::Change;
use crate::client::{Informer, Item};
use serde_json::{Value, json};

/// Name of the index of objects by their controller.
pub const BY_CONTROLLER: &str = "controller";

/// Children by the uid of their controller, orphans by namespace.
pub fn controller_values(item: &Item) -> Vec<String> {
    let Ok(any) = item.view::<Any>() else { return Vec::new() };
    match any.metadata.controller() {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![orphans_of(&any.metadata.namespace)],
    }
}

fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// An informer with the index of controllers.
pub fn with_controllers(informer: Informer) -> Informer {
    informer.index(BY_CONTROLLER, controller_values);
    informer
}

/// The objects a controller has, and those in its namespace that nobody controls.
pub fn children(informer: &Informer, owner: &Meta) -> (Vec<Item>, Vec<Item>) {
    let orphans = informer.by_index(BY_CONTROLLER, &orphans_of(&owner.namespace));
    (informer.by_index(BY_CONTROLLER, &owner.uid), orphans)
}

pub fn reference(api_version: &str, kind: &str, owner: &Meta) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": owner.name, "uid": owner.uid,
        "controller": true, "blockOwnerDeletion": true})
}

/// The strategic patch by which an owner takes an orphan.
pub fn adoption(owner: Value, child: &Meta) -> Value {
    json!({"metadata": {"uid": child.uid, "ownerReferences": [owner]}})
}

/// The strategic patch by which an owner lets a child go.
pub fn release(owner: &Meta, child: &Meta) -> Value {
    json!({"metadata": {"uid": child.uid, "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}})
}

/// What to do about a possible child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Own,
    Adopt,
    Release,
    Ignore,
}

/// `selector` is the owner's; an empty one selects nothing here, as upstream's controllers have it.
pub fn claim(owner: &Meta, selector: &LabelSelector, child: &Meta) -> Claim {
    let matches = !selector.is_empty() && selector.matches(&child.labels);
    match child.controller() {
        Some(reference) if reference.uid != owner.uid => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if owner.is_deleting() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !owner.is_deleting() && !child.is_deleting() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The keys of the controllers of this kind that a change of a child concerns: by its references before and after,
/// and for an orphan every owner in its namespace whose selector matches.
pub fn owner_keys(change: &Change, kind: &str, owners: &Informer, selects: fn(&Item, &Meta) -> bool) -> Vec<String> {
    let mut keys = Vec::new();
    let metas = [&change.old, &change.new].map(|item| item.as_ref().and_then(|item| item.view::<Any>().ok()));
    for any in metas.iter().flatten() {
        if let Some(owner) = any.metadata.controller().filter(|owner| owner.kind == kind) {
            keys.push(owner_key(&any.metadata, owner));
        }
    }
    let orphan = metas[1].as_ref().filter(|any| any.metadata.controller().is_none() && !any.metadata.labels.is_empty());
    if let Some(any) = orphan {
        let candidates = owners.list_namespace(&any.metadata.namespace);
        let selecting = candidates.iter().filter(|owner| selects(owner, &any.metadata));
        keys.extend(selecting.filter_map(|owner| owner.identity().ok().map(|identity| identity.key())));
    }
    keys.dedup();
    keys
}

fn owner_key(child: &Meta, owner: &OwnerReference) -> String {
    format!("{}/{}", child.namespace, owner.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(value: Value) -> Meta {
        serde_json::from_value(value).expect("metadata")
    }

    #[test]
    fn owners_claim_what_they_select() {
        let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).expect("selector");
        let owner = meta(json!({"uid": "u"}));
        let leaving = meta(json!({"uid": "u", "deletionTimestamp": "t"}));
        let owned = |by: &str| json!([{"uid": by, "controller": true}]);
        for (owner, child, expected) in [
            (&owner, json!({"labels": {"app": "web"}, "ownerReferences": owned("u")}), Claim::Own),
            (&owner, json!({"labels": {"app": "db"}, "ownerReferences": owned("u")}), Claim::Release),
            (&owner, json!({"labels": {"app": "web"}, "ownerReferences": owned("v")}), Claim::Ignore),
            (&owner, json!({"labels": {"app": "web"}}), Claim::Adopt),
            (&owner, json!({"labels": {"app": "db"}}), Claim::Ignore),
            (&owner, json!({"labels": {"app": "web"}, "deletionTimestamp": "t"}), Claim::Ignore),
            (&leaving, json!({"labels": {"app": "web"}}), Claim::Ignore),
            (&leaving, json!({"labels": {"app": "db"}, "ownerReferences": owned("u")}), Claim::Ignore),
        ] {
            assert_eq!(claim(owner, &selector, &meta(child.clone())), expected, "{child}");
        }
    }
}
