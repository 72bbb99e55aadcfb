//! A Deployment from apply to rollback.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::client::{DEPLOYMENTS, PODS, REPLICASETS};
use serde_json::{Value, json};

fn deployment(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}},
    })
}

fn available(objects: &[Value], count: i64) -> bool {
    objects.iter().any(|one| {
        one.int_at(&["status", "availableReplicas"]) == Some(count)
            && one.int_at(&["status", "updatedReplicas"]) == Some(count)
            && one.int_at(&["status", "replicas"]) == Some(count)
            && one.int_at(&["status", "observedGeneration"]) == Some(one.generation())
    })
}

fn images(pods: &[Value]) -> Vec<&str> {
    let mut images: Vec<&str> =
        pods.iter().filter_map(|pod| pod.pointer("/spec/containers/0/image").and_then(Value::as_str)).collect();
    images.sort_unstable();
    images
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_updates_scales_and_rolls_back() {
    let world = World::new(&["one", "two"]).await;
    world.create(DEPLOYMENTS, "default", deployment(3, "web:1")).await;
    world.until("first rollout", DEPLOYMENTS, |all| available(all, 3)).await;
    world.settle().await;
    let pods = world.list(PODS, "default").await;
    assert_eq!(pods.len(), 3, "never a pod too many");
    let nodes: std::collections::BTreeSet<&str> = pods.iter().map(|pod| pod.str_at(&["spec", "nodeName"])).collect();
    assert_eq!(nodes.len(), 2, "spread over both nodes");
    let sets = world.list(REPLICASETS, "default").await;
    assert!(sets[0].name().starts_with("web-") && sets[0].name().len() == "web-".len() + 10);
    assert_eq!(sets[0].annotation("deployment.kubernetes.io/revision"), Some("1"));

    let steps: Vec<String> = world.trace.steps(pods[0].uid()).into_iter().map(|step| step.what).collect();
    assert!(steps.contains(&"queued".to_owned()), "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("chosen ")), "{steps:?}");
    let scheduled =
        format!("Successfully assigned default/{} to {}", pods[0].name(), pods[0].str_at(&["spec", "nodeName"]));
    assert_eq!(world.events(pods[0].name()).await, [scheduled]);

    world.patch(DEPLOYMENTS, "default", "web", "", deployment(3, "web:2")).await;
    world.until("update", DEPLOYMENTS, |all| available(all, 3)).await;
    world.settle().await;
    assert_eq!(images(&world.list(PODS, "default").await), ["web:2"; 3]);
    let own = world.get(DEPLOYMENTS, "default", "web").await.unwrap();
    assert_eq!(own.annotation("deployment.kubernetes.io/revision"), Some("2"));

    world.patch(DEPLOYMENTS, "default", "web", "scale", json!({"spec": {"replicas": 5}})).await;
    world.until("scale", DEPLOYMENTS, |all| available(all, 5)).await;

    world.patch(DEPLOYMENTS, "default", "web", "", deployment(5, "web:1")).await;
    world.until("rollback", DEPLOYMENTS, |all| available(all, 5)).await;
    world.settle().await;
    assert_eq!(images(&world.list(PODS, "default").await), ["web:1"; 5]);
    let sets = world.list(REPLICASETS, "default").await;
    assert_eq!(sets.len(), 2, "the first set came back");
    let own = world.get(DEPLOYMENTS, "default", "web").await.unwrap();
    assert_eq!(own.annotation("deployment.kubernetes.io/revision"), Some("3"));
    let conditions: Vec<&str> = own
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .unwrap()
        .iter()
        .map(|condition| condition.str_at(&["reason"]))
        .collect();
    assert_eq!(conditions, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
    let events = world.events("web").await;
    assert!(events[0].ends_with("from 0 to 3"), "{events:?}");
}
