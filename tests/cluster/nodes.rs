//! Nodes that fall silent, and pods that find no node.

use crate::world::{World, renew};
use edgelet::api::object::ObjectExt;
use edgelet::client::{ENDPOINTS, ENDPOINTSLICES, NAMESPACES, NODES, PODS, Resource, SERVICES};
use edgelet::registry::DeleteOptions;
use serde_json::{Value, json};
use std::time::Duration;

const PRIORITYCLASSES: Resource = Resource { group: "scheduling.k8s.io", version: "v1", plural: "priorityclasses" };

fn pod(name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}]}]}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object.at(&["status", "conditions"]).and_then(Value::as_array);
    let found = conditions.and_then(|all| all.iter().find(|one| one["type"] == kind));
    found.map(|one| one.str_at(&["status"])).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_tainted_and_its_pods_move_on() {
    let world = World::new(&["one"]).await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "kube-node-lease"}})).await;
    let patient = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 30}]);
    world.create(PODS, "default", pod("patient", json!({"tolerations": patient}))).await;
    world.until("runs", PODS, |pods| pods.iter().any(|pod| condition(pod, "Ready") == "True")).await;
    for _ in 0..10 {
        renew(&world.client, &world.clock, "one").await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let node = world.get(NODES, "", "one").await.unwrap();
    assert_eq!(condition(&node, "Ready"), "True", "a node that renews its lease is alive");

    tokio::time::sleep(Duration::from_secs(32)).await;
    let node = world.get(NODES, "", "one").await.unwrap();
    assert_eq!(condition(&node, "Ready"), "Unknown");
    let taints: Vec<&str> = node
        .pointer("/spec/taints")
        .and_then(Value::as_array)
        .unwrap()
        .iter()
        .map(|taint| taint.str_at(&["effect"]))
        .collect();
    assert_eq!(taints, ["NoSchedule", "NoExecute"]);
    let pod = world.get(PODS, "default", "patient").await.unwrap();
    assert_eq!(condition(&pod, "Ready"), "False");
    assert!(pod.deletion_timestamp().is_none(), "its toleration lasts");
    tokio::time::sleep(Duration::from_secs(31)).await;
    world.until("evicted", PODS, <[Value]>::is_empty).await;

    renew(&world.client, &world.clock, "one").await;
    let ready = json!([{"type": "Ready", "status": "True"}]);
    world.patch(NODES, "", "one", "status", json!({"status": {"conditions": ready}})).await;
    world
        .until("untainted", NODES, |nodes| {
            nodes[0].pointer("/spec/taints").and_then(Value::as_array).is_none_or(Vec::is_empty)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_is_gone_are_deleted() {
    let world = World::new(&["one"]).await;
    world.create(PODS, "default", pod("web", json!({}))).await;
    world.until("runs", PODS, |pods| pods.iter().any(|pod| condition(pod, "Ready") == "True")).await;
    world.delete(NODES, "", "one", DeleteOptions::default()).await;
    world.settle().await;
    assert_eq!(world.list(PODS, "").await.len(), 1, "not at once");
    world.until("deleted", PODS, <[Value]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_room_and_says_why() {
    let world = World::new(&["one"]).await;
    let large = json!({"containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "6"}}}]});
    world.create(PODS, "default", pod("large", large)).await;
    world.until("unschedulable", PODS, |pods| condition(&pods[0], "PodScheduled") == "False").await;
    world.settle().await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is \
                    not helpful for scheduling.";
    assert_eq!(world.events("large").await, [expected]);
    let allocatable = json!({"cpu": "8", "memory": "4Gi", "pods": "110"});
    world.patch(NODES, "", "one", "status", json!({"status": {"allocatable": allocatable}})).await;
    world.until("bound", PODS, |pods| pods[0].str_at(&["spec", "nodeName"]) == "one").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_higher_priority_makes_room_for_itself() {
    let world = World::new(&["one"]).await;
    for (name, value) in [("low", 1), ("high", 1000)] {
        world.create(PRIORITYCLASSES, "", json!({"metadata": {"name": name}, "value": value})).await;
    }
    let spec = |class: &str| {
        json!({"priorityClassName": class,
            "containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "3"}}}]})
    };
    world.create(PODS, "default", pod("low", spec("low"))).await;
    world.until("runs", PODS, |pods| pods.iter().any(|pod| condition(pod, "Ready") == "True")).await;
    world.create(PODS, "default", pod("high", spec("high"))).await;
    world
        .until("the high one runs alone", PODS, |pods| {
            pods.len() == 1 && pods[0].name() == "high" && condition(&pods[0], "Ready") == "True"
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_follow_pods() {
    let world = World::new(&["one"]).await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    world.create(SERVICES, "default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    world.until("an empty slice", ENDPOINTSLICES, |slices| slices.len() == 1).await;
    world.create(PODS, "default", pod("a", json!({}))).await;
    let ready = |slices: &[Value]| {
        slices.iter().any(|slice| slice.pointer("/endpoints/0/conditions/ready") == Some(&Value::Bool(true)))
    };
    let slices = world.until("an endpoint", ENDPOINTSLICES, ready).await;
    assert_eq!(slices[0].pointer("/ports/0/port"), Some(&json!(80)));
    assert_eq!(slices[0].pointer("/endpoints/0/nodeName"), Some(&json!("one")));
    let legacy = |all: &[Value]| all.iter().any(|one| one.pointer("/subsets/0/addresses/0/ip").is_some());
    world.until("the older object", ENDPOINTS, legacy).await;
    world.delete(PODS, "default", "a", DeleteOptions::default()).await;
    let empty = |slices: &[Value]| {
        slices.iter().all(|slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty)) && slices.len() == 1
    };
    world.until("empty again", ENDPOINTSLICES, empty).await;
    world.delete(SERVICES, "default", "web", DeleteOptions::default()).await;
    world.until("slices go with their Service", ENDPOINTSLICES, <[Value]>::is_empty).await;
    world.until("so does the older object", ENDPOINTS, <[Value]>::is_empty).await;
}
