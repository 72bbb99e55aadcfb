//! A DaemonSet from apply to rollback, over nodes that come, go and are tainted.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::client::{CONTROLLERREVISIONS, Client, DAEMONSETS, NODES, PODS};
use edgelet::registry::{DeleteOptions, PatchType};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const HASH: &str = "controller-revision-hash";

fn daemonset(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}},
    })
}

fn status(set: &Value, field: &str) -> i64 {
    set.int_at(&["status", field]).unwrap_or(0)
}

/// Every node that should has a pod of the newest template, and it is available.
fn done(sets: &[Value], nodes: i64) -> bool {
    let all = ["desiredNumberScheduled", "currentNumberScheduled", "numberAvailable", "updatedNumberScheduled"];
    sets.iter().any(|set| {
        all.iter().all(|field| status(set, field) == nodes) && status(set, "observedGeneration") == set.generation()
    })
}

fn nodes_of(pods: &[Value]) -> BTreeSet<&str> {
    pods.iter().map(|pod| pod.str_at(&["spec", "nodeName"])).collect()
}

async fn rollback(world: &World, revision: &Value) {
    let Client::Local(_) = &world.client else { panic!("a world is local") };
    let patch = revision["data"].clone();
    world.client.patch(DAEMONSETS, "default", "agent", "", PatchType::Strategic, patch).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_daemonset_follows_nodes_updates_and_rolls_back() {
    let world = World::new(&["one", "two", "three"]).await;
    world.keep_alive(&["one", "two", "three"]).await;
    world.create(DAEMONSETS, "default", daemonset("agent:1")).await;
    world.until("first rollout", DAEMONSETS, |sets| done(sets, 3)).await;
    world.settle().await;
    let pods = world.list(PODS, "default").await;
    assert_eq!((pods.len(), nodes_of(&pods).len()), (3, 3), "one a node");
    let own = world.get(DAEMONSETS, "default", "agent").await.unwrap();
    assert_eq!(own.annotation("deprecated.daemonset.template.generation"), Some("1"));
    let revisions = world.list(CONTROLLERREVISIONS, "default").await;
    assert_eq!(revisions.len(), 1);
    assert_eq!(revisions[0].label(HASH), pods[0].label(HASH));

    // A node more, a node less.
    world.add_node("four").await;
    world.until("a fourth", DAEMONSETS, |sets| done(sets, 4)).await;
    world.delete(NODES, "", "four", DeleteOptions::default()).await;
    world.until("three again", DAEMONSETS, |sets| done(sets, 3)).await;
    world.until("its pod is gone", PODS, |pods| pods.len() == 3).await;

    // The update replaces one after the other.
    world.patch(DAEMONSETS, "default", "agent", "", daemonset("agent:2")).await;
    let mut fewest = 3;
    for _ in 0..600 {
        let ready = |pod: &&Value| pod.pointer("/status/conditions/0/status") == Some(&json!("True"));
        fewest = fewest.min(world.list(PODS, "default").await.iter().filter(ready).count());
        if done(&world.list(DAEMONSETS, "default").await, 3) {
            break;
        }
        tokio::task::yield_now().await;
    }
    world.until("update", DAEMONSETS, |sets| done(sets, 3)).await;
    assert!(fewest >= 2, "at most one was missing: {fewest}");
    world.settle().await;
    let pods = world.list(PODS, "default").await;
    assert!(pods.iter().all(|pod| pod.pointer("/spec/containers/0/image") == Some(&json!("agent:2"))));
    let revisions = world.list(CONTROLLERREVISIONS, "default").await;
    assert_eq!(revisions.iter().filter_map(|one| one.int_at(&["revision"])).collect::<BTreeSet<_>>(), [1, 2].into());

    // As kubectl rollout undo does it: pods of the first revision come back, and its revision with them.
    let first = revisions.iter().find(|one| one.int_at(&["revision"]) == Some(1)).unwrap();
    rollback(&world, first).await;
    world.until("rollback", DAEMONSETS, |sets| done(sets, 3)).await;
    world.settle().await;
    let revisions = world.list(CONTROLLERREVISIONS, "default").await;
    assert_eq!(revisions.iter().filter_map(|one| one.int_at(&["revision"])).collect::<BTreeSet<_>>(), [2, 3].into());
    let hash = first.label(HASH);
    assert!(world.list(PODS, "default").await.iter().all(|pod| pod.label(HASH) == hash));

    world.delete(DAEMONSETS, "default", "agent", DeleteOptions::default()).await;
    world.until("pods go", PODS, <[Value]>::is_empty).await;
    world.until("revisions go", CONTROLLERREVISIONS, <[Value]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn daemons_stay_on_cordoned_and_lost_nodes_and_leave_for_taints_of_people() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["one"]).await;
    let two = world.keep_alive(&["two"]).await;
    world.create(DAEMONSETS, "default", daemonset("agent:1")).await;
    world.until("first rollout", DAEMONSETS, |sets| done(sets, 2)).await;
    world.patch(NODES, "", "two", "", json!({"spec": {"unschedulable": true}})).await;
    world.settle().await;
    assert!(done(&world.list(DAEMONSETS, "").await, 2), "cordoning sends no daemon away");

    // One node falls silent for long: its pod stays, for no other node could have it.
    two.abort();
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(world.list(PODS, "").await.len(), 2);
    let own = world.get(DAEMONSETS, "default", "agent").await.unwrap();
    assert_eq!((status(&own, "numberReady"), status(&own, "numberMisscheduled")), (1, 1));

    let taint = json!([{"key": "mine", "effect": "NoExecute"}]);
    world.patch(NODES, "", "one", "", json!({"spec": {"taints": taint}})).await;
    world
        .until("the other is left", PODS, |pods| pods.len() == 1 && pods[0].str_at(&["spec", "nodeName"]) == "two")
        .await;
    let wanted = |sets: &[Value]| status(&sets[0], "desiredNumberScheduled") == 0;
    world.until("none is wanted", DAEMONSETS, wanted).await;
}

#[tokio::test(start_paused = true)]
async fn failed_daemon_pods_are_replaced_and_more_slowly_each_time() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(DAEMONSETS, "default", daemonset("agent:1")).await;
    world.until("first rollout", DAEMONSETS, |sets| done(sets, 1)).await;
    let start = world.clock.now();
    for _ in 0..5 {
        let pods = world.list(PODS, "default").await;
        let (name, uid) = (pods[0].name().to_owned(), pods[0].uid().to_owned());
        world.patch(PODS, "default", &name, "status", json!({"status": {"phase": "Failed"}})).await;
        world
            .until("a new pod", PODS, |pods| {
                pods.len() == 1 && pods[0].uid() != uid && pods[0].str_at(&["status", "phase"]) == "Running"
            })
            .await;
    }
    let waited_s = world.clock.now().duration_since(start).as_secs();
    assert!((7..40).contains(&waited_s), "1, 2 and 4 seconds, not {waited_s}");
    let events = world.events("agent").await;
    assert!(events.iter().any(|event| event.starts_with("Found failed daemon pod default/agent-")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_surging_update_makes_the_new_pod_first_and_waits_for_it() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["one", "two"]).await;
    let with = |image: &str| {
        let mut set = daemonset(image);
        set["spec"]["minReadySeconds"] = 10.into();
        let rolling = json!({"maxSurge": 1, "maxUnavailable": 0});
        set["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
        set
    };
    world.create(DAEMONSETS, "default", with("agent:1")).await;
    world.until("first rollout", DAEMONSETS, |sets| done(sets, 2)).await;
    world.patch(DAEMONSETS, "default", "agent", "", with("agent:2")).await;
    world.settle().await;
    let pods = world.list(PODS, "default").await;
    assert_eq!(pods.len(), 3, "one more while the new one is not available");
    world.until("update", DAEMONSETS, |sets| done(sets, 2)).await;
    world.until("no pod too many", PODS, |pods| pods.len() == 2).await;
}
