//! Deletion through owners and namespaces.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::client::{CONFIGMAPS, DEPLOYMENTS, NAMESPACES, PODS, REPLICASETS, SERVICEACCOUNTS};
use edgelet::registry::{DeleteOptions, Propagation};
use serde_json::{Value, json};

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

async fn running(world: &World, name: &str, replicas: usize) {
    world.create(DEPLOYMENTS, "default", deployment(name, i64::try_from(replicas).unwrap())).await;
    let ready = |pods: &[Value]| pods.iter().filter(|pod| pod.str_at(&["status", "phase"]) == "Running").count();
    world.until("pods run", PODS, |pods| ready(pods) == replicas).await;
    world.settle().await;
}

fn policy(propagation: Propagation) -> DeleteOptions {
    DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn background_deletion_takes_everything_below() {
    let world = World::new(&["one"]).await;
    running(&world, "web", 2).await;
    world.delete(DEPLOYMENTS, "default", "web", policy(Propagation::Background)).await;
    world.until("sets go", REPLICASETS, <[Value]>::is_empty).await;
    world.until("pods go", PODS, <[Value]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn foreground_deletion_takes_the_owner_last() {
    let world = World::new(&["one"]).await;
    running(&world, "web", 2).await;
    world.delete(DEPLOYMENTS, "default", "web", policy(Propagation::Foreground)).await;
    let own = world.get(DEPLOYMENTS, "default", "web").await.unwrap();
    assert_eq!(own.finalizers(), ["foregroundDeletion"]);
    world.until("the owner goes", DEPLOYMENTS, <[Value]>::is_empty).await;
    assert!(world.list(PODS, "").await.is_empty() && world.list(REPLICASETS, "").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn orphaned_children_stay() {
    let world = World::new(&["one"]).await;
    running(&world, "web", 2).await;
    world.delete(DEPLOYMENTS, "default", "web", policy(Propagation::Orphan)).await;
    world.until("the owner goes", DEPLOYMENTS, <[Value]>::is_empty).await;
    world.settle().await;
    let sets = world.list(REPLICASETS, "").await;
    assert!(sets.len() == 1 && sets[0].owner_references().is_empty());
    assert_eq!(world.list(PODS, "").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dependent_of_an_owner_that_never_was_is_deleted() {
    let world = World::new(&[]).await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "none"});
    world.create(CONFIGMAPS, "default", json!({"metadata": {"name": "child", "ownerReferences": [owner]}})).await;
    let gone = |all: &[Value]| !all.iter().any(|one| one.name() == "child");
    world.until("the child goes", CONFIGMAPS, gone).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_furnished_and_emptied() {
    let world = World::new(&["one"]).await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "team"}})).await;
    let named = |all: &[Value], name: &str| all.iter().any(|one| one.namespace() == "team" && one.name() == name);
    world.until("account", SERVICEACCOUNTS, |all| named(all, "default")).await;
    world.until("certificate", CONFIGMAPS, |all| named(all, "kube-root-ca.crt")).await;
    world.delete(CONFIGMAPS, "team", "kube-root-ca.crt", DeleteOptions::default()).await;
    world.until("certificate again", CONFIGMAPS, |all| named(all, "kube-root-ca.crt")).await;
    world.create(DEPLOYMENTS, "team", deployment("web", 2)).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    world.create(CONFIGMAPS, "team", held).await;
    world.until("pods run", PODS, |pods| pods.iter().filter(|pod| pod.namespace() == "team").count() == 2).await;
    world.settle().await;

    world.delete(NAMESPACES, "", "team", DeleteOptions::default()).await;
    world.until("pods go", PODS, <[Value]>::is_empty).await;
    world.settle().await;
    let namespace = world.get(NAMESPACES, "", "team").await.expect("held by a finalizer");
    let conditions = namespace.at(&["status", "conditions"]).and_then(Value::as_array).expect("conditions");
    let remaining = conditions.iter().find(|one| one["type"] == "NamespaceFinalizersRemaining").expect("condition");
    assert_eq!(
        remaining["message"],
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    );
    world.patch(CONFIGMAPS, "team", "held", "", json!({"metadata": {"finalizers": null}})).await;
    world.until("the namespace goes", NAMESPACES, |all| !all.iter().any(|one| one.name() == "team")).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_held_by_a_finalizer_is_not_looked_at_every_other_second() {
    let world = World::new(&[]).await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "team"}})).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    world.create(CONFIGMAPS, "team", held).await;
    world.settle().await;
    world.delete(NAMESPACES, "", "team", DeleteOptions::default()).await;
    world.settle().await;
    assert!(world.get(NAMESPACES, "", "team").await.is_some(), "held by a finalizer");

    let begun = tokio::time::Instant::now();
    world.patch(CONFIGMAPS, "team", "held", "", json!({"metadata": {"finalizers": null}})).await;
    while world.get(NAMESPACES, "", "team").await.is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert!(begun.elapsed().as_millis() < 100, "its end is an event, no matter of waiting");
    }
}
