//! Budgets, evictions and a drain.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::api::status::Status;
use edgelet::client::{DAEMONSETS, DEPLOYMENTS, NODES, PODDISRUPTIONBUDGETS, PODS};
use serde_json::{Value, json};

fn workload(kind: &str, name: &str, replicas: i64) -> Value {
    let mut object = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    if kind == "Deployment" {
        object["spec"]["replicas"] = replicas.into();
    }
    object
}

fn budget(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn counts(budget: &Value) -> [i64; 4] {
    ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
        .map(|field| budget.int_at(&["status", field]).unwrap_or(-1))
}

async fn evict(world: &World, pod: &str, options: Value) -> Result<(), Status> {
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"},
        "deleteOptions": options});
    world.client.create_subresource(PODS, "default", pod, "eviction", body).await.map(drop)
}

fn running(pods: &[Value], app: &str) -> Vec<String> {
    let of_app = pods.iter().filter(|pod| pod.label("app") == Some(app) && pod.deletion_timestamp().is_none());
    of_app.filter(|pod| pod.str_at(&["status", "phase"]) == "Running").map(|pod| pod.name().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_eviction_waits_until_its_budget_allows_it() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["one", "two"]).await;
    world.create(DEPLOYMENTS, "default", workload("Deployment", "web", 3)).await;
    world.until("runs", PODS, |pods| running(pods, "web").len() == 3).await;
    world.create(PODDISRUPTIONBUDGETS, "default", budget(json!({"maxUnavailable": "40%"}))).await;
    world.until("counted", PODDISRUPTIONBUDGETS, |all| counts(&all[0]) == [2, 3, 1, 3]).await;
    world.patch(PODDISRUPTIONBUDGETS, "default", "web", "", json!({"spec": {"maxUnavailable": 0}})).await;
    world.until("counted again", PODDISRUPTIONBUDGETS, |all| counts(&all[0]) == [0, 3, 3, 3]).await;

    let pods = running(&world.list(PODS, "").await, "web");
    let error = evict(&world, &pods[0], json!(null)).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(error.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let cause = &error.details.as_ref().unwrap().causes[0];
    assert_eq!(cause.reason, "DisruptionBudget");
    assert_eq!(cause.message, "The disruption budget web needs 3 healthy pods and has 3 currently");

    world.patch(PODDISRUPTIONBUDGETS, "default", "web", "", json!({"spec": {"maxUnavailable": 1}})).await;
    world.until("one may go", PODDISRUPTIONBUDGETS, |all| counts(&all[0])[0] == 1).await;
    evict(&world, &pods[0], json!({"dryRun": ["All"]})).await.unwrap();
    let unchanged = world.get(PODDISRUPTIONBUDGETS, "default", "web").await.unwrap();
    assert_eq!(counts(&unchanged)[0], 1, "a dry run charges nothing");
    let wrong = evict(&world, &pods[0], json!({"preconditions": {"uid": "another"}})).await.unwrap_err();
    assert_eq!(wrong.code, 409);

    // Two at once: the second is refused before any controller has seen the first.
    world.until("one may go", PODDISRUPTIONBUDGETS, |all| counts(&all[0])[0] == 1).await;
    let pods = running(&world.list(PODS, "").await, "web");
    evict(&world, &pods[0], json!(null)).await.unwrap();
    assert_eq!(evict(&world, &pods[1], json!(null)).await.unwrap_err().code, 429);
    world.until("made up for", PODDISRUPTIONBUDGETS, |all| counts(&all[0]) == [1, 3, 2, 3]).await;
    assert!(world.list(PODDISRUPTIONBUDGETS, "").await[0].pointer("/status/disruptedPods").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_budget_over_pods_without_a_scale_allows_nothing() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(DAEMONSETS, "default", workload("DaemonSet", "web", 1)).await;
    world.until("runs", PODS, |pods| running(pods, "web").len() == 1).await;
    world.create(PODDISRUPTIONBUDGETS, "default", budget(json!({"maxUnavailable": 1}))).await;
    let failed = |all: &[Value]| all[0].pointer("/status/conditions/0/reason") == Some(&json!("SyncFailed"));
    world.until("said so", PODDISRUPTIONBUDGETS, failed).await;
    let pods = running(&world.list(PODS, "").await, "web");
    let error = evict(&world, &pods[0], json!(null)).await.unwrap_err();
    let told = &error.details.unwrap().causes[0].message;
    assert!(told.ends_with("daemonsets.apps does not implement the scale subresource"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_that_does_not_go_stops_counting_as_disrupted() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(DEPLOYMENTS, "default", workload("Deployment", "web", 2)).await;
    world.until("runs", PODS, |pods| running(pods, "web").len() == 2).await;
    world.create(PODDISRUPTIONBUDGETS, "default", budget(json!({"minAvailable": 1}))).await;
    world.until("one may go", PODDISRUPTIONBUDGETS, |all| counts(&all[0])[0] == 1).await;
    // As if the server had ended between charging the budget and deleting the pod.
    let pods = running(&world.list(PODS, "").await, "web");
    let now = world.clock.now_rfc3339();
    let charged = json!({"disruptionsAllowed": 0, "disruptedPods": {&pods[0]: now}});
    world.patch(PODDISRUPTIONBUDGETS, "default", "web", "status", json!({"status": charged})).await;
    let target = json!([{"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "True",
        "reason": "EvictionByEvictionAPI", "lastTransitionTime": now}]);
    world.patch(PODS, "default", &pods[0], "status", json!({"status": {"conditions": target}})).await;
    world.settle().await;
    assert_eq!(counts(&world.list(PODDISRUPTIONBUDGETS, "").await[0])[..2], [0, 1]);
    tokio::time::sleep(std::time::Duration::from_secs(125)).await;
    assert_eq!(counts(&world.list(PODDISRUPTIONBUDGETS, "").await[0])[..2], [1, 2]);
    let pod = world.get(PODS, "default", &pods[0]).await.unwrap();
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["type"] == "DisruptionTarget" && one["status"] == "False"));
}

/// What `kubectl drain` does: cordon, evict all but daemons, and try again what is refused.
#[tokio::test(start_paused = true)]
async fn a_node_is_drained_without_falling_below_the_budget() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["one", "two"]).await;
    world.create(DEPLOYMENTS, "default", workload("Deployment", "web", 4)).await;
    world.create(DAEMONSETS, "default", workload("DaemonSet", "agent", 0)).await;
    world.create(PODDISRUPTIONBUDGETS, "default", budget(json!({"minAvailable": 3}))).await;
    world.until("runs", PODS, |pods| running(pods, "web").len() == 4 && running(pods, "agent").len() == 2).await;
    world.patch(NODES, "", "one", "", json!({"spec": {"unschedulable": true}})).await;
    for _ in 0..200 {
        let pods = world.list(PODS, "default").await;
        assert!(running(&pods, "web").len() >= 3, "the budget holds");
        let here =
            pods.iter().filter(|pod| pod.str_at(&["spec", "nodeName"]) == "one" && pod.label("app") == Some("web"));
        let names: Vec<String> = here.map(|pod| pod.name().to_owned()).collect();
        if names.is_empty() {
            break;
        }
        for name in names {
            match evict(&world, &name, json!(null)).await {
                Err(error) if error.code != 429 && !error.is_not_found() => panic!("{error}"),
                _ => {}
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    world.until("all moved", PODS, |pods| running(pods, "web").len() == 4).await;
    let pods = world.list(PODS, "default").await;
    let there: Vec<&str> = pods
        .iter()
        .filter(|pod| pod.str_at(&["spec", "nodeName"]) == "one")
        .filter_map(|pod| pod.label("app"))
        .collect();
    assert_eq!(there, ["agent"], "the daemon stays");
}
