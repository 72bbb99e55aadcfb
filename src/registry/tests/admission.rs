//! What admission adds to objects and refuses.

use super::*;

#[tokio::test]
async fn a_pod_gets_account_token_priority_and_tolerations() {
    let cluster = Cluster::new().await;
    let made = cluster.create("v1", "Pod", "g1", pod("p")).await.unwrap();
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    let sources = spec["volumes"][0]["projected"]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 3);
    assert_eq!(sources[0], json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}));
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(mount["name"], spec["volumes"][0]["name"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_in_upstreams_words() {
    let cluster = Cluster::new().await;
    let mut unknown = pod("nopc");
    unknown["spec"]["priorityClassName"] = json!("nosuch");
    let error = cluster.create("v1", "Pod", "g1", unknown).await.unwrap_err();
    assert_eq!(error.message, "pods \"nopc\" is forbidden: no PriorityClass with name nosuch was found");
    let mut unknown = pod("nosa");
    unknown["spec"]["serviceAccountName"] = json!("ghost");
    let error = cluster.create("v1", "Pod", "g1", unknown).await.unwrap_err();
    let expected =
        "pods \"nosa\" is forbidden: error looking up service account g1/ghost: serviceaccount \"ghost\" not found";
    assert_eq!(error.message, expected);
    let error = cluster.create("v1", "ConfigMap", "nons", json!({"metadata": {"name": "x"}})).await.unwrap_err();
    assert_eq!((error.code, &*error.message), (404, "namespaces \"nons\" not found"));
    let error = cluster.delete("Namespace", "default", DeleteOptions::default()).await.err().unwrap();
    assert_eq!(error.message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

#[tokio::test]
async fn nothing_is_created_in_a_terminating_namespace() {
    let cluster = Cluster::new().await;
    let object = json!({"metadata": {"name": "g2"}, "spec": {"finalizers": ["kubernetes"]}});
    cluster.create("v1", "Namespace", "", object).await.unwrap();
    cluster.delete("Namespace", "g2", DeleteOptions::default()).await.unwrap();
    let error = cluster.create("v1", "ConfigMap", "g2", json!({"metadata": {"name": "t"}})).await.unwrap_err();
    let expected = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "configmaps \"t\" is forbidden: unable to create new content in namespace g2 because it is being terminated",
        "reason": "Forbidden",
        "details": {"name": "t", "kind": "configmaps", "causes": [{
            "reason": "NamespaceTerminating", "message": "namespace g2 is being terminated", "field": "metadata.namespace",
        }]},
        "code": 403,
    });
    assert_eq!(error.to_object(), expected);
}

#[tokio::test]
async fn a_pod_waits_for_the_account_of_its_new_namespace() {
    let cluster = Arc::new(Cluster::new().await);
    cluster.create("v1", "Namespace", "", json!({"metadata": {"name": "g3"}})).await.unwrap();
    let waiting = cluster.clone();
    let pod = tokio::spawn(async move { waiting.create("v1", "Pod", "g3", pod("p")).await });
    tokio::task::yield_now().await;
    cluster.create("v1", "ServiceAccount", "g3", json!({"metadata": {"name": "default"}})).await.unwrap();
    assert_eq!(pod.await.unwrap().unwrap()["spec"]["serviceAccountName"], "default");
}

#[tokio::test]
async fn a_new_node_is_tainted() {
    let cluster = Cluster::new().await;
    let node = cluster.create("v1", "Node", "", json!({"metadata": {"name": "n"}})).await.unwrap();
    assert_eq!(node["spec"]["taints"], json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
}

#[tokio::test]
async fn concurrent_services_never_share_an_address() {
    let cluster = Cluster::new().await;
    let service = |index: usize| {
        let object = json!({"metadata": {"name": format!("s{index}")}, "spec": {"ports": [{"port": 80}]}});
        cluster.create("v1", "Service", "g1", object)
    };
    let made = futures_util::future::try_join_all((0..100).map(service)).await.unwrap();
    let mut addresses: Vec<&str> = made.iter().filter_map(|one| one["spec"]["clusterIP"].as_str()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 100);
    let taken = json!({"metadata": {"name": "ipt"}, "spec": {"clusterIP": addresses[0], "ports": [{"port": 1}]}});
    let error = cluster.create("v1", "Service", "g1", taken).await.unwrap_err();
    let expected = format!(
        "Service \"ipt\" is invalid: spec.clusterIPs: Invalid value: [\"{0}\"]: failed to allocate IP {0}: provided IP is already allocated",
        addresses[0]
    );
    assert_eq!(error.message, expected);
}
