//! Create, update, patch.

use super::*;

#[tokio::test]
async fn create_stamps_and_update_counts() {
    let cluster = Cluster::new().await;
    let made = cluster.create("apps/v1", "Deployment", "g1", deployment("d")).await.unwrap();
    assert_eq!(made["metadata"]["creationTimestamp"], "2026-11-23T00:00:00Z");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["kind"], "Deployment");
    assert_eq!(made["metadata"]["namespace"], "g1");
    let scaled = cluster.merge("Deployment", "", "d", json!({"spec": {"replicas": 3}})).await.unwrap();
    assert_eq!(scaled["metadata"]["generation"], 2);
    let labelled = cluster.merge("Deployment", "", "d", json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(labelled["metadata"]["generation"], 2);
    let status = json!({"spec": {"replicas": 9}, "status": {"replicas": 2}});
    let reported = cluster.merge("Deployment", "status", "d", status).await.unwrap();
    assert_eq!((&reported["spec"]["replicas"], &reported["status"]["replicas"]), (&json!(3), &json!(2)));
    let ignored = cluster.merge("Deployment", "", "d", json!({"status": {"replicas": 7}})).await.unwrap();
    assert_eq!(ignored["status"]["replicas"], 2);
}

#[tokio::test]
async fn an_update_without_change_keeps_its_revision() {
    let cluster = Cluster::new().await;
    let made = cluster.config_map("a").await;
    let again = cluster.update("ConfigMap", "", "a", made.clone()).await.unwrap();
    assert_eq!(made, again);
    let mut changed = made.clone();
    changed["data"]["a"] = json!("2");
    let newer = cluster.update("ConfigMap", "", "a", changed.clone()).await.unwrap();
    assert_ne!(newer["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(newer["metadata"]["uid"], made["metadata"]["uid"]);
    changed["data"]["a"] = json!("3");
    let conflict = cluster.update("ConfigMap", "", "a", changed.clone()).await.unwrap_err();
    assert_eq!(
        conflict.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    changed["metadata"] = json!({"name": "a"});
    assert!(cluster.update("ConfigMap", "", "a", changed).await.is_ok(), "unconditional");
}

#[tokio::test]
async fn errors_of_writes_are_upstreams() {
    let cluster = Cluster::new().await;
    let made = cluster.config_map("a").await;
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let with_revision = json!({"metadata": {"name": "q", "resourceVersion": "5"}});
    let error = cluster.create("v1", "ConfigMap", "g1", with_revision).await.unwrap_err();
    assert_eq!((error.code, &*error.reason), (500, ""));
    assert_eq!(error.message, "resourceVersion should not be set on objects to be created");
    let error = cluster.create("v1", "ConfigMap", "g1", json!({"metadata": {"name": "a"}})).await.unwrap_err();
    assert_eq!(error.message, "configmaps \"a\" already exists");
    let error = cluster.create("v1", "ConfigMap", "g1", json!({"metadata": {"name": "Bad_Name"}})).await.unwrap_err();
    assert!(
        error.message.starts_with("ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\":")
    );
    let foreign = json!({"metadata": {"name": "a", "uid": "11111111-2222-3333-4444-555555555555"}});
    let error = cluster.update("ConfigMap", "", "a", foreign).await.unwrap_err();
    let expected = format!(
        "Operation cannot be fulfilled on configmaps \"a\": StorageError: invalid object, Code: 4, Key: \
         /registry/configmaps/g1/a, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: \
         11111111-2222-3333-4444-555555555555, UID in object meta: {uid}"
    );
    assert_eq!(error.message, expected);
    let error = cluster.update("ConfigMap", "", "zzz", json!({"metadata": {"name": "zzz"}})).await.unwrap_err();
    assert_eq!((error.code, &*error.message), (404, "configmaps \"zzz\" not found"));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "1"}});
    assert!(cluster.merge("ConfigMap", "", "a", stale).await.unwrap_err().is_conflict());
    let error = cluster.merge("ConfigMap", "", "none", json!({})).await.unwrap_err();
    assert_eq!(error.message, "configmaps \"none\" not found");
    let scale = cluster.create("apps/v1", "Deployment", "g1", deployment("d1")).await;
    assert!(scale.is_ok());
    let error = cluster.merge("Deployment", "scale", "d1", json!({"spec": {"replicas": -1}})).await.unwrap_err();
    assert_eq!(
        error.message,
        "Scale.autoscaling \"d1\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() {
    let mut cluster = Cluster::new().await;
    let made = cluster.create("v1", "ConfigMap", "g1", json!({"metadata": {"generateName": "gen-"}})).await.unwrap();
    assert_eq!(made["metadata"]["name"].as_str().map(str::len), Some(9));
    cluster.context.dry_run = true;
    let dry = cluster.create("v1", "ConfigMap", "g1", json!({"metadata": {"name": "dry"}})).await.unwrap();
    assert!(dry["metadata"]["uid"].is_string() && dry["metadata"]["resourceVersion"].is_null());
    assert!(cluster.get("ConfigMap", "dry").await.unwrap_err().is_not_found());
    let name = made["metadata"]["name"].as_str().unwrap();
    let patched = cluster.merge("ConfigMap", "", name, json!({"data": {"a": "1"}})).await.unwrap();
    assert_eq!(patched["data"]["a"], "1");
    assert_eq!(cluster.get("ConfigMap", name).await.unwrap(), made);
}

#[tokio::test]
async fn scale_shows_and_sets_replicas() {
    let cluster = Cluster::new().await;
    cluster.create("apps/v1", "Deployment", "g1", deployment("d1")).await.unwrap();
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d1", "namespace": "g1"}, "spec": {"replicas": 2}});
    let scaled = cluster.update("Deployment", "scale", "d1", scale).await.unwrap();
    assert_eq!(scaled["spec"], json!({"replicas": 2}));
    assert_eq!(scaled["status"], json!({"replicas": 0, "selector": "app=x"}));
    let deployment = cluster.get("Deployment", "d1").await.unwrap();
    assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(2), &json!(2)));
    assert_eq!(scaled["metadata"]["resourceVersion"], deployment["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn a_patch_of_a_scale_does_not_conflict_with_a_status_written_meanwhile() {
    let store = Arc::new(crate::store::racing::RacingStore::default());
    let cluster = Cluster::on(store.clone()).await;
    cluster.create("apps/v1", "Deployment", "g1", deployment("d1")).await.unwrap();
    let status = |deployment: &mut Value| deployment["status"] = json!({"replicas": 1});
    store.race("deployments.apps/g1/d1", status);
    let scaled = cluster.merge("Deployment", "scale", "d1", json!({"spec": {"replicas": 4}})).await.unwrap();
    assert_eq!((&scaled["spec"]["replicas"], &scaled["status"]["replicas"]), (&json!(4), &json!(1)));
    let revision = scaled["metadata"]["resourceVersion"].clone();
    store.race("deployments.apps/g1/d1", |deployment| deployment["status"] = json!({"replicas": 2}));
    let insists = json!({"metadata": {"resourceVersion": revision}, "spec": {"replicas": 5}});
    assert!(cluster.merge("Deployment", "scale", "d1", insists).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::new().await;
    let made = cluster.create("v1", "Pod", "g1", pod("p")).await.unwrap();
    let kind = cluster.kind("v1", "Pod");
    let binding = json!({"target": {"kind": "Node", "name": "n"}});
    let bind =
        || cluster.registry.create_subresource(&cluster.context, &kind, "binding", "g1", "p", binding.clone().into());
    let answer = bind().await.unwrap();
    assert_eq!((&answer["status"], &answer["code"]), (&json!("Success"), &json!(201)));
    let bound = cluster.get("Pod", "p").await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["generation"], made["metadata"]["generation"]);
    let again = bind().await.unwrap_err();
    assert_eq!(
        again.message,
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
    );
    let steps: Vec<String> = cluster
        .registry
        .trace
        .steps(made["metadata"]["uid"].as_str().unwrap())
        .into_iter()
        .map(|step| step.what)
        .collect();
    assert_eq!(steps, ["created", "bound"]);
}

#[tokio::test]
async fn an_event_is_one_object_in_two_groups() {
    let cluster = Cluster::new().await;
    let event = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "g1"}, "note": "n",
        "eventTime": "2026-11-23T00:00:00.000000Z", "reportingController": "example.com/c", "reportingInstance": "i",
        "action": "Testing", "reason": "Tested", "type": "Normal",
    });
    cluster.create("events.k8s.io/v1", "Event", "g1", event).await.unwrap();
    let core = cluster.get("Event", "e").await.unwrap();
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("n")));
    let newer = cluster.registry.get(&cluster.kind("events.k8s.io/v1", "Event"), "g1", "e").await.unwrap();
    let newer = decoded(&newer);
    assert_eq!((&newer["apiVersion"], &newer["note"]), (&json!("events.k8s.io/v1"), &json!("n")));
    assert_eq!(newer["metadata"]["resourceVersion"], core["metadata"]["resourceVersion"]);
}
