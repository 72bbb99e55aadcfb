//! Deletion: preconditions, finalizers, grace, namespaces.

use super::*;
use crate::api::object::ObjectExt;
use std::time::Duration;

fn pending(deleted: Deleted) -> Value {
    match deleted {
        Deleted::Pending(entry) => decoded(&entry),
        Deleted::Gone(entry) => panic!("{} is gone", entry.key),
    }
}

#[tokio::test]
async fn preconditions_are_checked_in_upstreams_words() {
    let cluster = Cluster::new().await;
    let made = cluster.config_map("a").await;
    let wrong = DeleteOptions { uid: Some("1".into()), ..DeleteOptions::default() };
    let error = cluster.delete("ConfigMap", "a", wrong).await.err().unwrap();
    let expected = format!(
        "Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (1) does not match the UID in \
         record ({}). The object might have been deleted and then recreated",
        made.uid()
    );
    assert_eq!(error.message, expected);
    let wrong = DeleteOptions { resource_version: Some("1".into()), ..DeleteOptions::default() };
    let error = cluster.delete("ConfigMap", "a", wrong).await.err().unwrap();
    let expected = format!(
        "Operation cannot be fulfilled on ConfigMap \"a\": the ResourceVersion in the precondition (1) does not match \
         the ResourceVersion in record ({}). The object might have been modified",
        made.resource_version()
    );
    assert_eq!(error.message, expected);
    let error = cluster.delete("ConfigMap", "y", DeleteOptions::default()).await.err().unwrap();
    assert_eq!(error.message, "configmaps \"y\" not found");
    assert!(matches!(cluster.delete("ConfigMap", "a", DeleteOptions::default()).await, Ok(Deleted::Gone(_))));
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let cluster = Cluster::new().await;
    let object = json!({"metadata": {"name": "fin", "finalizers": ["example.com/f"]}});
    cluster.create("v1", "ConfigMap", "g1", object).await.unwrap();
    let marked = pending(cluster.delete("ConfigMap", "fin", DeleteOptions::default()).await.unwrap());
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    let again = pending(cluster.delete("ConfigMap", "fin", DeleteOptions::default()).await.unwrap());
    assert_eq!(again, marked);
    let added = json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}});
    assert_eq!(cluster.merge("ConfigMap", "", "fin", added).await.unwrap_err().code, 422);
    let last = cluster.merge("ConfigMap", "", "fin", json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(last["metadata"]["resourceVersion"], marked["metadata"]["resourceVersion"]);
    assert!(cluster.get("ConfigMap", "fin").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let cluster = Cluster::new().await;
    for (name, propagation, finalizer) in
        [("f", Propagation::Foreground, "foregroundDeletion"), ("o", Propagation::Orphan, "orphan")]
    {
        cluster.create("apps/v1", "Deployment", "g1", deployment(name)).await.unwrap();
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        let marked = pending(cluster.delete("Deployment", name, options).await.unwrap());
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        assert_eq!(marked["metadata"]["generation"], 2);
        let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert!(matches!(cluster.delete("Deployment", name, background).await, Ok(Deleted::Gone(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_pod_gets_its_grace_and_it_only_shrinks() {
    let cluster = Cluster::new().await;
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = json!("n");
    let made = cluster.create("v1", "Pod", "g1", bound).await.unwrap();
    let marked = pending(cluster.delete("Pod", "p", DeleteOptions::default()).await.unwrap());
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-11-23T00:00:30Z");
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    tokio::time::advance(Duration::from_secs(5)).await;
    let same = pending(cluster.delete("Pod", "p", DeleteOptions::default()).await.unwrap());
    assert_eq!(same, marked);
    let longer = DeleteOptions { grace_s: Some(60), ..DeleteOptions::default() };
    assert_eq!(pending(cluster.delete("Pod", "p", longer).await.unwrap()), marked);
    let shorter = DeleteOptions { grace_s: Some(10), ..DeleteOptions::default() };
    let marked = pending(cluster.delete("Pod", "p", shorter).await.unwrap());
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-11-23T00:00:10Z");
    let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    assert!(matches!(cluster.delete("Pod", "p", now).await, Ok(Deleted::Gone(_))));
    let steps: Vec<String> = cluster.registry.trace.steps(made.uid()).into_iter().map(|step| step.what).collect();
    assert_eq!(steps, ["created", "deletion requested", "deleted"]);
}

#[tokio::test]
async fn a_pod_without_a_node_goes_at_once() {
    let cluster = Cluster::new().await;
    cluster.create("v1", "Pod", "g1", pod("p")).await.unwrap();
    assert!(matches!(cluster.delete("Pod", "p", DeleteOptions::default()).await, Ok(Deleted::Gone(_))));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let cluster = Cluster::new().await;
    cluster.config_map("kept").await;
    for name in ["x", "y"] {
        let object = json!({"metadata": {"name": name, "labels": {"pg": "1"}}});
        cluster.create("v1", "ConfigMap", "g1", object).await.unwrap();
    }
    let selected = ListOptions { label_selector: "pg=1".into(), ..ListOptions::default() };
    let kind = cluster.kind("v1", "ConfigMap");
    let gone = cluster
        .registry
        .delete_collection(&cluster.context, &kind, "g1", &selected, &DeleteOptions::default())
        .await
        .unwrap();
    assert_eq!(gone.entries.len(), 2);
    let left = cluster.registry.list(&kind, "g1", &ListOptions::default()).await.unwrap();
    assert_eq!(left.entries.len(), 1);
}

#[tokio::test]
async fn a_namespace_terminates_until_it_is_released() {
    let cluster = Cluster::new().await;
    let marked = pending(cluster.delete("Namespace", "g1", DeleteOptions::default()).await.unwrap());
    assert_eq!(marked["status"]["phase"], "Terminating");
    assert!(marked["metadata"]["deletionGracePeriodSeconds"].is_null());
    let kind = cluster.kind("v1", "Namespace");
    let released = json!({"metadata": {"name": "g1"}, "spec": {"finalizers": []}});
    cluster.registry.update(&cluster.context, &kind, "finalize", "", "g1", released.into()).await.unwrap();
    assert!(cluster.get("Namespace", "g1").await.unwrap_err().is_not_found());
}
