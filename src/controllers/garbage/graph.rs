//! Who owns whom, over all kinds, from metadata alone; and what becomes of an object by it. Pure.
//! Source of behaviour: upstream's garbage collector; the words are those of its documentation.

use crate::api::view::meta::{Meta, OwnerReference};
use crate::client::Propagation;
use crate::client::Resource;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// An object, as far as ownership is concerned.
#[derive(Clone, Debug)]
pub struct Node {
    pub resource: Resource,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub owners: Box<[OwnerReference]>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

impl Node {
    pub fn of(resource: Resource, meta: Meta) -> Self {
        let held = |finalizer: &str| meta.finalizers.iter().any(|one| one == finalizer);
        Self {
            resource,
            deleting: meta.is_deleting(),
            foreground: held(FOREGROUND),
            orphan: held(ORPHAN),
            namespace: meta.namespace.into(),
            name: meta.name.into(),
            owners: meta.owner_references.into(),
        }
    }

    /// It stays until its dependents are gone.
    fn waits(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// What to do about one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Keep,
    /// These owners are not in the graph: ask the API whether they exist.
    Probe(Vec<OwnerReference>),
    /// Remove the references to these owners.
    Disown(Vec<String>),
    /// `unblock`: first stop it from blocking its owners, or a circle would never end.
    Delete {
        propagation: Propagation,
        unblock: bool,
    },
    /// Remove these dependents' references, then the finalizer.
    Orphan(Vec<String>),
    /// The dependents it waits for.
    Wait(Vec<String>),
    /// Remove the finalizer: no dependent is left that blocks.
    Finish,
}

/// Objects by uid.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Arc<str>, Node>,
    uids: HashMap<Resource, HashMap<Arc<str>, Arc<str>>>,
    /// Dependents by the uid of an owner, whether that exists or not.
    dependents: HashMap<String, BTreeSet<Arc<str>>>,
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Keys of one resource.
    pub fn keys(&self, resource: Resource) -> Vec<Arc<str>> {
        self.uids.get(&resource).map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
    }

    /// An object as it is now; the uids to look at because of it.
    pub fn set(&mut self, key: Arc<str>, uid: &str, node: Node) -> Vec<String> {
        let uid: Arc<str> = uid.into();
        let mut concerned = Vec::new();
        let known = self.uids.get(&node.resource).and_then(|keys| keys.get(&key)).cloned();
        if let Some(old) = known.filter(|old| *old != uid) {
            // Deleted and made again between two looks.
            concerned.extend(self.drop_node(&old));
        }
        let before = self.nodes.get(&uid).map(|old| (old.waits(), old.owners.clone()));
        self.unlink(&uid);
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if node.deleting && (node.foreground || node.orphan) {
            concerned.push(uid.to_string());
        }
        if node.waits() && !before.as_ref().is_some_and(|(waited, _)| *waited) {
            concerned.extend(self.dependents_of(&uid));
        }
        if !node.owners.is_empty() {
            concerned.push(uid.to_string());
        }
        // Owners may have waited for a reference that is gone or blocks no longer.
        for owner in before.iter().flat_map(|(_, owners)| owners.iter()) {
            if self.nodes.get(owner.uid.as_str()).is_some_and(Node::waits) {
                concerned.push(owner.uid.clone());
            }
        }
        self.uids.entry(node.resource).or_default().insert(key, uid.clone());
        self.nodes.insert(uid, node);
        concerned
    }

    /// An object that is gone; the uids to look at because of it.
    pub fn remove(&mut self, resource: Resource, key: &str) -> Vec<String> {
        let Some(uid) = self.uids.get_mut(&resource).and_then(|keys| keys.remove(key)) else { return Vec::new() };
        self.drop_node(&uid)
    }

    fn drop_node(&mut self, uid: &Arc<str>) -> Vec<String> {
        self.unlink(uid);
        let mut concerned = self.dependents_of(uid);
        if let Some(node) = self.nodes.remove(uid) {
            concerned.extend(node.owners.iter().map(|owner| owner.uid.clone()));
        }
        concerned
    }

    fn unlink(&mut self, uid: &Arc<str>) {
        let Some(node) = self.nodes.get(uid) else { return };
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// `absent` and `present`: owners the API was asked about.
    pub fn verdict(&self, uid: &str, absent: &HashSet<String>, present: &HashSet<String>) -> Verdict {
        let Some(node) = self.nodes.get(uid) else { return Verdict::Keep };
        if node.deleting && node.orphan {
            return Verdict::Orphan(self.dependents_of(uid));
        }
        if node.waits() {
            return self.waiting(uid);
        }
        if node.deleting || node.owners.is_empty() {
            return Verdict::Keep;
        }
        self.owned(uid, node, absent, present)
    }

    fn waiting(&self, uid: &str) -> Verdict {
        let blocks = |dependent: &String| {
            let owners = self.nodes.get(dependent.as_str()).map(|node| &node.owners);
            let mut references = owners.into_iter().flatten();
            references.any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        let blocking: Vec<String> = self.dependents_of(uid).into_iter().filter(blocks).collect();
        if blocking.is_empty() { Verdict::Finish } else { Verdict::Wait(blocking) }
    }

    fn owned(&self, uid: &str, node: &Node, absent: &HashSet<String>, present: &HashSet<String>) -> Verdict {
        let (mut solid, mut dangling, mut waiting, mut unknown) = (0, Vec::new(), Vec::new(), Vec::new());
        for owner in &node.owners {
            match self.nodes.get(owner.uid.as_str()) {
                Some(found) if found.waits() => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None if present.contains(&owner.uid) => solid += 1,
                None if absent.contains(&owner.uid) => dangling.push(owner.uid.clone()),
                None => unknown.push(owner.clone()),
            }
        }
        if !unknown.is_empty() {
            return Verdict::Probe(unknown);
        }
        if solid > 0 {
            dangling.extend(waiting);
            return if dangling.is_empty() { Verdict::Keep } else { Verdict::Disown(dangling) };
        }
        let dependents = self.dependents_of(uid);
        if !waiting.is_empty() && !dependents.is_empty() {
            let circular = dependents.iter().any(|one| self.nodes.get(one.as_str()).is_some_and(Node::waits));
            return Verdict::Delete { propagation: Propagation::Foreground, unblock: circular };
        }
        let propagation = match node {
            Node { orphan: true, .. } => Propagation::Orphan,
            Node { foreground: true, .. } => Propagation::Foreground,
            _ => Propagation::Background,
        };
        Verdict::Delete { propagation, unblock: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::PODS;
    use serde_json::{Value, json};

    fn meta(name: &str, owners: &[&str], extra: Value) -> Meta {
        let references: Vec<Value> = owners
            .iter()
            .map(|owner| json!({"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": owner, "blockOwnerDeletion": true}))
            .collect();
        let mut object = json!({"name": name, "namespace": "a", "uid": name, "ownerReferences": references});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("metadata")
    }

    fn put(graph: &mut Graph, name: &str, owners: &[&str], extra: Value) -> Vec<String> {
        graph.set(name.into(), name, Node::of(PODS, meta(name, owners, extra)))
    }

    fn verdict(graph: &Graph, uid: &str, absent: &[&str]) -> Verdict {
        let absent = absent.iter().map(|one| (*one).to_owned()).collect();
        graph.verdict(uid, &absent, &HashSet::new())
    }

    const BACKGROUND: Verdict = Verdict::Delete { propagation: Propagation::Background, unblock: false };

    #[test]
    fn dependents_of_a_gone_owner_are_deleted() {
        let mut graph = Graph::default();
        put(&mut graph, "owner", &[], json!({}));
        put(&mut graph, "child", &["owner"], json!({}));
        assert_eq!(verdict(&graph, "child", &[]), Verdict::Keep);
        assert_eq!(graph.remove(PODS, "owner"), ["child"]);
        assert!(matches!(verdict(&graph, "child", &[]), Verdict::Probe(_)));
        assert_eq!(verdict(&graph, "child", &["owner"]), BACKGROUND);
        assert_eq!(graph.verdict("child", &HashSet::new(), &HashSet::from(["owner".into()])), Verdict::Keep);
    }

    #[test]
    fn one_living_owner_is_enough() {
        let mut graph = Graph::default();
        put(&mut graph, "alive", &[], json!({}));
        put(&mut graph, "child", &["alive", "gone"], json!({}));
        assert_eq!(verdict(&graph, "child", &["gone"]), Verdict::Disown(vec!["gone".into()]));
        put(&mut graph, "leaving", &[], json!({"deletionTimestamp": "t", "finalizers": [FOREGROUND]}));
        put(&mut graph, "child", &["alive", "leaving"], json!({}));
        assert_eq!(verdict(&graph, "child", &[]), Verdict::Disown(vec!["leaving".into()]));
    }

    #[test]
    fn foreground_waits_for_what_blocks() {
        let mut graph = Graph::default();
        put(&mut graph, "owner", &[], json!({}));
        put(&mut graph, "child", &["owner"], json!({}));
        let concerned = put(&mut graph, "owner", &[], json!({"deletionTimestamp": "t", "finalizers": [FOREGROUND]}));
        assert_eq!(concerned, ["owner", "child"]);
        assert_eq!(verdict(&graph, "owner", &[]), Verdict::Wait(vec!["child".into()]));
        assert_eq!(verdict(&graph, "child", &[]), BACKGROUND);
        assert_eq!(graph.remove(PODS, "child"), ["owner"]);
        assert_eq!(verdict(&graph, "owner", &[]), Verdict::Finish);
    }

    #[test]
    fn a_chain_is_deleted_from_its_end() {
        let mut graph = Graph::default();
        put(&mut graph, "owner", &[], json!({"deletionTimestamp": "t", "finalizers": [FOREGROUND]}));
        put(&mut graph, "child", &["owner"], json!({}));
        put(&mut graph, "grandchild", &["child"], json!({}));
        let foreground = Verdict::Delete { propagation: Propagation::Foreground, unblock: false };
        assert_eq!(verdict(&graph, "child", &[]), foreground);
    }

    #[test]
    fn a_circle_is_cut_where_it_closes() {
        let mut graph = Graph::default();
        let waiting = json!({"deletionTimestamp": "t", "finalizers": [FOREGROUND]});
        put(&mut graph, "one", &["three"], waiting.clone());
        put(&mut graph, "two", &["one"], waiting);
        put(&mut graph, "three", &["two"], json!({}));
        let cut = Verdict::Delete { propagation: Propagation::Foreground, unblock: true };
        assert_eq!(verdict(&graph, "three", &[]), cut);
    }

    #[test]
    fn orphans_are_let_go() {
        let mut graph = Graph::default();
        put(&mut graph, "child", &["owner"], json!({}));
        put(&mut graph, "owner", &[], json!({"deletionTimestamp": "t", "finalizers": [ORPHAN]}));
        assert_eq!(verdict(&graph, "owner", &[]), Verdict::Orphan(vec!["child".into()]));
    }

    #[test]
    fn an_object_made_again_under_its_name_is_another() {
        let mut graph = Graph::default();
        put(&mut graph, "owner", &[], json!({}));
        put(&mut graph, "child", &["owner"], json!({}));
        let again = Node::of(PODS, meta("owner", &[], json!({"uid": "other"})));
        assert_eq!(graph.set("owner".into(), "other", again), ["child"]);
        assert_eq!(verdict(&graph, "child", &["owner"]), BACKGROUND);
        assert_eq!(graph.keys(PODS).len(), 2);
    }
}
