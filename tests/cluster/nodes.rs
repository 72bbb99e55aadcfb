//! Nodes that fall silent, and pods that find no node.

use crate::world::{World, renew};
use edgelet::api::object::ObjectExt;
use edgelet::client::{DEPLOYMENTS, ENDPOINTS, ENDPOINTSLICES, NODES, PODS, Resource, SERVICES};
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
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["two"]).await;
    let one = world.keep_alive(&["one"]).await;
    let patient = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 30}]);
    let spec = json!({"tolerations": patient, "nodeSelector": {"kubernetes.io/hostname": "one"}});
    world.create(PODS, "default", pod("patient", spec)).await;
    world.until("runs", PODS, |pods| pods.iter().any(|pod| condition(pod, "Ready") == "True")).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let node = world.get(NODES, "", "one").await.unwrap();
    assert_eq!(condition(&node, "Ready"), "True", "a node that renews its lease is alive");

    one.abort();
    world.cut("one");
    tokio::time::sleep(Duration::from_secs(42)).await;
    let node = world.get(NODES, "", "one").await.unwrap();
    assert_eq!(condition(&node, "Ready"), "Unknown");
    assert_eq!(effects(&node), ["NoSchedule", "NoExecute"]);
    let pod = world.get(PODS, "default", "patient").await.unwrap();
    assert_eq!(condition(&pod, "Ready"), "False");
    assert!(pod.deletion_timestamp().is_none(), "its toleration lasts");
    tokio::time::sleep(Duration::from_secs(31)).await;
    world.until("evicted", PODS, |pods| pods[0].deletion_timestamp().is_some()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let pod = world.get(PODS, "default", "patient").await.expect("nobody has confirmed that it ended");
    assert_eq!(pod.str_at(&["status", "reason"]), "NodeLost");
    assert_eq!(condition(&pod, "DisruptionTarget"), "True");

    world.mend("one").await;
    world.until("confirmed", PODS, <[Value]>::is_empty).await;
    renew(&world.client, &world.clock, "one").await;
    let ready = json!([{"type": "Ready", "status": "True"}]);
    world.patch(NODES, "", "one", "status", json!({"status": {"conditions": ready}})).await;
    world.until("untainted", NODES, |nodes| nodes.iter().all(|node| effects(node).is_empty())).await;
}

fn effects(node: &Value) -> Vec<&str> {
    let taints = node.pointer("/spec/taints").and_then(Value::as_array);
    taints.into_iter().flatten().map(|taint| taint.str_at(&["effect"])).collect()
}

#[tokio::test(start_paused = true)]
async fn when_every_node_is_silent_nobody_is_evicted() {
    let names = ["one", "two", "three", "four"];
    let world = World::new(&names).await;
    let alive = world.keep_alive(&names).await;
    for name in names {
        let spec = json!({"nodeSelector": {"kubernetes.io/hostname": name}, "tolerations": [{
            "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 5}]});
        world.create(PODS, "default", pod(name, spec)).await;
    }
    world.until("run", PODS, |pods| pods.iter().all(|pod| condition(pod, "Ready") == "True")).await;
    alive.abort();
    tokio::time::sleep(Duration::from_secs(900)).await;
    for node in world.list(NODES, "").await {
        assert_eq!((condition(&node, "Ready"), effects(&node)), ("Unknown", vec!["NoSchedule"]), "{}", node.name());
    }
    let pods = world.list(PODS, "").await;
    assert!(pods.iter().all(|pod| pod.deletion_timestamp().is_none() && condition(pod, "Ready") == "False"));

    // One comes back: the others get the grace again, and then too many are lost to give up any.
    world.keep_alive(&["one"]).await;
    let ready = json!([{"type": "Ready", "status": "True"}]);
    world.patch(NODES, "", "one", "status", json!({"status": {"conditions": ready}})).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.list(PODS, "").await.len(), 4, "three of four is a fault of the network");

    // A second: two lost nodes of four are lost nodes, given up one after the other.
    world.keep_alive(&["two"]).await;
    world.patch(NODES, "", "two", "status", json!({"status": {"conditions": ready}})).await;
    world.until("two evicted", PODS, |pods| pods.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_moves_on_from_a_lost_node_and_nothing_is_twice() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["two"]).await;
    let one = world.keep_alive(&["one"]).await;
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    world
        .create(
            DEPLOYMENTS,
            "default",
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
                "selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        )
        .await;
    let running = |pods: &[Value], count: usize| {
        pods.iter().filter(|pod| condition(pod, "Ready") == "True" && pod.deletion_timestamp().is_none()).count()
            == count
    };
    world.until("runs", PODS, |pods| running(pods, 2)).await;
    one.abort();
    world.cut("one");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pods = world.list(PODS, "").await;
    assert_eq!(pods.len(), 2, "the usual toleration is five minutes");
    tokio::time::sleep(Duration::from_secs(300)).await;
    let pods = world.until("moved", PODS, |pods| running(pods, 2)).await;
    assert_eq!(pods.len(), 3, "the lost one is Terminating still");

    // Somebody declares the node gone: what was on it is no more.
    let taint = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    let mut taints = world.get(NODES, "", "one").await.unwrap()["spec"]["taints"].as_array().unwrap().clone();
    taints.push(taint);
    world.patch(NODES, "", "one", "", json!({"spec": {"taints": taints}})).await;
    world.until("collected", PODS, |pods| pods.len() == 2 && running(pods, 2)).await;
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
