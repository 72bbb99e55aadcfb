//! Deletes pods that nobody else would: too many that have ended, those that go without ever having had a node, and
//! those that go on a node which was declared out of service. Pods of deleted nodes: `node/`.

use super::Tools;
use super::node::{BY_NODE, node_of};
use super::pods::PodFacts;
use super::runner::{Reconcile, Source};
use crate::api::status::Result;
use crate::api::view::meta::Meta;
use crate::api::view::node::Node;
use crate::client::informer::Change;
use crate::client::{DeleteOptions, Informer, Item, NODES, PODS, PatchType};
use futures_util::future::BoxFuture;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Pods that have ended and are kept for people to look at.
const ENDED_LIMIT: usize = 1000;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The key of the work on ended pods; keys of pods have a slash.
const ENDED: &str = "ended";

pub struct Controller {
    tools: Tools,
    pods: Informer,
    nodes: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let (pods, nodes) = (tools.informers.all(PODS), tools.informers.all(NODES));
        pods.index(BY_NODE, node_of);
        let of_node = {
            let pods = pods.clone();
            move |change: &Change| pods_of_lost(change, &pods)
        };
        let sources = vec![Source::new(&pods, keys), Source::new(&nodes, of_node)];
        (Arc::new(Self { tools: tools.clone(), pods, nodes }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        if key == ENDED {
            return self.collect_ended().await.map(|()| None);
        }
        let Some(pod) = self.pods.by_key(key).and_then(|item| item.view::<PodFacts>().ok()) else { return Ok(None) };
        let node = self.nodes.get("", pod.node()).and_then(|item| item.view::<Node>().ok());
        if pod.metadata.is_deleting() && (pod.node().is_empty() || node.as_ref().is_some_and(is_out_of_service)) {
            if !pod.has_ended() && !pod.node().is_empty() {
                self.fail(&pod.metadata).await?;
            }
            self.delete(&pod.metadata).await?;
        }
        Ok(None)
    }

    async fn collect_ended(&self) -> Result<()> {
        let mut ended: Vec<PodFacts> = self.pods.list().iter().filter_map(|item| item.view().ok()).collect();
        ended.retain(PodFacts::has_ended);
        for pod in surplus(ended, ENDED_LIMIT) {
            self.delete(&pod.metadata).await?;
        }
        Ok(())
    }

    async fn fail(&self, pod: &Meta) -> Result<()> {
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"phase": "Failed"}});
        let client = &self.tools.client;
        match client.patch(PODS, &pod.namespace, &pod.name, "status", PatchType::Strategic, patch).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete(&self, pod: &Meta) -> Result<()> {
        let options = DeleteOptions { uid: Some(pod.uid.clone()), grace_s: Some(0), ..DeleteOptions::default() };
        match self.tools.client.delete(PODS, &pod.namespace, &pod.name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The oldest ones beyond the limit.
fn surplus(mut ended: Vec<PodFacts>, limit: usize) -> Vec<PodFacts> {
    ended.retain(|pod| !pod.metadata.is_deleting());
    let too_many = ended.len().saturating_sub(limit);
    ended.sort_by_cached_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    ended.truncate(too_many);
    ended
}

/// Somebody says that nothing runs there any more, and nothing speaks against it.
fn is_out_of_service(node: &Node) -> bool {
    let ready = node.condition("Ready").is_some_and(|ready| ready.status == "True");
    !ready && node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn keys(change: &Change) -> Vec<String> {
    let facts = |item: &Option<Item>| item.as_ref()?.view::<PodFacts>().ok();
    let Some(new) = facts(&change.new) else { return Vec::new() };
    let mut keys = Vec::new();
    if new.metadata.is_deleting() {
        keys.push(change.key.clone());
    }
    if new.has_ended() && !facts(&change.old).is_some_and(|old| old.has_ended()) {
        keys.push(ENDED.to_owned());
    }
    keys
}

fn pods_of_lost(change: &Change, pods: &Informer) -> Vec<String> {
    let Some(node) = change.new.as_ref().and_then(|item| item.view::<Node>().ok()) else { return Vec::new() };
    if !is_out_of_service(&node) {
        return Vec::new();
    }
    let there = pods.by_index(BY_NODE, &node.metadata.name).into_iter();
    there.filter_map(|item| item.identity().ok().map(|identity| identity.key())).collect()
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn the_oldest_ended_pods_go_first() {
        let pod = |name: &str, second: u8, deleting: bool| -> PodFacts {
            let mut pod =
                json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{second}Z")}});
            if deleting {
                pod["metadata"]["deletionTimestamp"] = "t".into();
            }
            from_value(pod).expect("pod")
        };
        let ended = vec![pod("c", 3, false), pod("a", 1, false), pod("gone", 0, true), pod("b", 2, false)];
        let names: Vec<String> = surplus(ended, 2).into_iter().map(|pod| pod.metadata.name).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn a_node_is_out_of_service_only_while_it_is_not_ready() {
        let node = |ready: &str, key: &str| -> Node {
            from_value::<Node>(json!({"spec": {"taints": [{"key": key, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("node")
        };
        assert!(is_out_of_service(&node("Unknown", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("True", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("Unknown", "other")));
    }
}
