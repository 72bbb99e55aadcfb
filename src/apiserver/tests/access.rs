//! Who may what, over HTTP: roles and bindings, reviews, impersonation.

use super::*;
use http::header::AUTHORIZATION;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn let_bob_read(cluster: &Cluster) {
    let rules = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}]);
    cluster.create(&format!("{RBAC}/namespaces/g1/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": subjects});
    cluster.create(&format!("{RBAC}/namespaces/g1/rolebindings"), binding).await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_counts_from_its_creation_to_its_deletion() {
    let cluster = Cluster::new().await;
    let target = "/api/v1/namespaces/g1/configmaps";
    let code = async || cluster.ask(user("bob"), "GET", target, &[], "").await.code;
    assert_eq!(code().await, 403);
    let_bob_read(&cluster).await;
    assert_eq!(code().await, 200);
    assert_eq!(cluster.ask(user("bob"), "GET", "/api/v1/namespaces/default/configmaps", &[], "").await.code, 403);
    let binding = format!("{RBAC}/namespaces/g1/rolebindings/b");
    assert_eq!(cluster.ask(user("admin"), "DELETE", &binding, &[], "").await.code, 200);
    assert_eq!(code().await, 403);
}

#[tokio::test(start_paused = true)]
async fn who_may_watch_one_object_watches_no_other_through_the_old_path() {
    let cluster = Cluster::new().await;
    let rules = json!([{"verbs": ["watch"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["own"]}]);
    cluster.create(&format!("{RBAC}/namespaces/g1/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": subjects});
    cluster.create(&format!("{RBAC}/namespaces/g1/rolebindings"), binding).await;
    for name in ["own", "other"] {
        cluster.create("/api/v1/namespaces/g1/secrets", json!({"metadata": {"name": name}})).await;
    }
    let path = "/api/v1/watch/namespaces/g1/secrets/own?timeoutSeconds=1";
    let watch = async |query: &str| cluster.ask(user("bob"), "GET", &format!("{path}{query}"), &[], "").await;
    for query in ["", "&fieldSelector=metadata.name%3Down,type%3DOpaque"] {
        let seen = watch(query).await.text();
        assert_eq!((seen.lines().count(), seen.contains("\"own\"")), (1, true), "{query}: {seen}");
    }
    for query in ["&fieldSelector=metadata.name!%3Dx", "&fieldSelector=type%3DOpaque"] {
        let refused = watch(query).await;
        assert_eq!(refused.code, 400, "{query}: {}", refused.text());
        assert_eq!(refused.json()["message"], "fieldSelector metadata.name doesn't match requested name");
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_is_changed_only_as_it_was_judged() {
    let store = Arc::new(crate::store::racing::RacingStore::default());
    let cluster = Cluster::on(store.clone(), Clock::simulated(NOW.parse().unwrap())).await;
    let roles = format!("{RBAC}/namespaces/g1/roles");
    let own = json!([
        {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]},
        {"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["patch", "update", "create"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"]},
    ]);
    cluster.create(&roles, json!({"metadata": {"name": "own"}, "rules": own})).await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "own"});
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": subjects});
    cluster.create(&format!("{RBAC}/namespaces/g1/rolebindings"), binding).await;
    let reads = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.create(&roles, json!({"metadata": {"name": "r"}, "rules": reads})).await;

    let json_patch = [("content-type", "application/json-patch+json")];
    let patch = r#"[{"op": "replace", "path": "/rules/0/resources/0", "value": "configmaps"}]"#;
    let change = async || cluster.ask(user("bob"), "PATCH", &format!("{roles}/r"), &json_patch, patch).await;
    // Reading ConfigMaps is bob's to give, deleting them is not.
    store.race("roles.rbac.authorization.k8s.io/g1/r", |role| role["rules"][0]["verbs"] = json!(["delete"]));
    assert_eq!(change().await.code, 409);
    assert_eq!(change().await.code, 403);
    let kept = cluster.get(&format!("{roles}/r")).await.json();
    assert_eq!((&kept["rules"][0]["verbs"], &kept["rules"][0]["resources"]), (&json!(["delete"]), &json!(["pods"])));

    let put = async |verb: &str| {
        let rules = json!([{"verbs": [verb], "apiGroups": [""], "resources": ["configmaps"]}]);
        let role = json!({"metadata": {"name": "new"}, "rules": rules}).to_string();
        cluster.ask(user("bob"), "PUT", &format!("{roles}/new"), &[], &role).await.code
    };
    assert_eq!([put("delete").await, put("get").await, put("get").await], [403, 201, 200]);
}

async fn review(cluster: &Cluster, who: &str, resource: &str, kind: &str, spec: Value) -> Value {
    let group = if kind.contains("Access") || kind.contains("Rules") { "authorization" } else { "authentication" };
    let target = format!("/apis/{group}.k8s.io/v1/{resource}");
    let body = json!({"apiVersion": format!("{group}.k8s.io/v1"), "kind": kind, "spec": spec});
    let answer = cluster.ask(user(who), "POST", &target, &[], &body.to_string()).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    answer.json()["status"].clone()
}

#[tokio::test(start_paused = true)]
async fn reviews_answer_without_storing_anything() {
    let cluster = Cluster::new().await;
    let_bob_read(&cluster).await;
    let attributes = json!({"verb": "list", "resource": "nodes"});
    let spec = json!({"user": "bob", "resourceAttributes": attributes});
    let status = review(&cluster, "admin", "subjectaccessreviews", "SubjectAccessReview", spec).await;
    assert_eq!(status, json!({"allowed": false}));
    let spec = json!({"resourceAttributes": {"verb": "*", "resource": "*"}});
    let status = review(&cluster, "admin", "selfsubjectaccessreviews", "SelfSubjectAccessReview", spec).await;
    assert_eq!(status, json!({"allowed": true}));
    let status = review(&cluster, "admin", "tokenreviews", "TokenReview", json!({"token": "bad"})).await;
    assert_eq!(status, json!({"user": {}, "error": "invalid bearer token"}));
    let rules = review(&cluster, "admin", "selfsubjectreviews", "SelfSubjectReview", Value::Null).await;
    assert_eq!(rules["userInfo"]["username"], "admin");
}

#[tokio::test(start_paused = true)]
async fn everybody_may_discover_and_ask_about_themselves() {
    let cluster = Cluster::new().await;
    for target in ["/version", "/healthz", "/api", "/apis/apps/v1", "/openapi/v2"] {
        assert_ne!(cluster.ask(user("bob"), "GET", target, &[], "").await.code, 403, "{target}");
    }
    for (target, code) in [("/version", 200), ("/api", 403), ("/metrics", 403)] {
        assert_eq!(cluster.ask(user("none"), "GET", target, &[], "").await.code, code, "{target}");
    }
    let rules =
        review(&cluster, "bob", "selfsubjectrulesreviews", "SelfSubjectRulesReview", json!({"namespace": "g1"}));
    let rules = rules.await;
    let resources: Vec<&Value> =
        rules["resourceRules"].as_array().unwrap().iter().map(|rule| &rule["resources"]).collect();
    assert!(resources.contains(&&json!(["selfsubjectaccessreviews", "selfsubjectrulesreviews"])), "{rules}");
    assert!(resources.contains(&&json!(["selfsubjectreviews"])), "{rules}");
    assert_eq!(rules["incomplete"], false);
}

#[tokio::test(start_paused = true)]
async fn masters_may_act_as_others_who_then_may_less() {
    let cluster = Cluster::new().await;
    let headers = [("impersonate-user", "bob")];
    let answer = cluster.ask(user("admin"), "GET", "/api/v1/nodes", &headers, "").await;
    assert_eq!(answer.code, 403);
    assert!(answer.json()["message"].as_str().unwrap().contains("User \"bob\" cannot list"), "{}", answer.text());
}

#[tokio::test(start_paused = true)]
async fn the_proxy_of_a_service_leads_to_pods_of_its_namespace_alone() {
    let cluster = Cluster::new().await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    cluster.create("/api/v1/namespaces/g1/services", service).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.create("/api/v1/namespaces/g1/pods", pod).await;
    let endpoints = json!([
        {"addresses": ["192.0.2.1"]},
        {"addresses": ["192.0.2.2"], "targetRef": {"kind": "Pod", "name": "p", "namespace": "g1"}},
        {"addresses": ["192.0.2.3"], "targetRef": {"kind": "Pod", "name": "none", "namespace": "g1"}},
    ]);
    let slice = json!({"metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 80}], "endpoints": endpoints});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/g1/endpointslices", slice).await;
    let answer = cluster.get("/api/v1/namespaces/g1/services/s/proxy/").await;
    let why = "no endpoints available for service \"s\"";
    assert_eq!((answer.code, answer.json()["message"].as_str()), (503, Some(why)), "{}", answer.text());
}

#[tokio::test(start_paused = true)]
async fn bad_tokens_are_unauthorized() {
    let cluster = Cluster::new().await;
    let answer = cluster.ask(user("none"), "GET", "/version", &[(AUTHORIZATION.as_str(), "Bearer bad")], "").await;
    assert_eq!((answer.code, &answer.json()["reason"]), (401, &json!("Unauthorized")));
}

/// A pod's token and the pod.
async fn pod_token(cluster: &Cluster, lifetime_s: i64) -> (Value, Value) {
    cluster.create("/api/v1/namespaces/g1/serviceaccounts", json!({"metadata": {"name": "sa"}})).await;
    let spec = json!({"serviceAccountName": "sa", "containers": [{"name": "c", "image": "i"}]});
    let pod = cluster.create("/api/v1/namespaces/g1/pods", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]});
    let request = json!({"spec": {"expirationSeconds": lifetime_s, "boundObjectRef": bound}});
    (cluster.create("/api/v1/namespaces/g1/serviceaccounts/sa/token", request).await, pod)
}

#[tokio::test(start_paused = true)]
async fn a_token_is_its_account_while_its_pod_lives() {
    let cluster = Cluster::new().await;
    let (answer, _) = pod_token(&cluster, 3600).await;
    assert_eq!(answer["status"]["expirationTimestamp"], "2026-11-23T01:00:00Z");
    let bearer = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
    let target = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let ask = async || cluster.ask(user("none"), "POST", target, &[(AUTHORIZATION.as_str(), &bearer)], &body).await;
    let info = ask().await.json()["status"]["userInfo"].clone();
    assert_eq!(info["username"], "system:serviceaccount:g1:sa");
    assert_eq!(info["groups"], json!(["system:serviceaccounts", "system:serviceaccounts:g1", "system:authenticated"]));
    assert_eq!(info["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));

    let grace = "/api/v1/namespaces/g1/pods/p?gracePeriodSeconds=0";
    assert_eq!(cluster.ask(user("admin"), "DELETE", grace, &[], "").await.code, 200);
    assert_eq!(ask().await.code, 401);
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_and_a_projected_one_lives_on() {
    for (lifetime_s, later_s, code) in [(3600, 3601, 401), (3607, 3608, 403), (3607, 366 * 24 * 3600, 401)] {
        let cluster = Cluster::new().await;
        let (answer, _) = pod_token(&cluster, lifetime_s).await;
        let bearer = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
        tokio::time::advance(Duration::from_secs(later_s)).await;
        let headers = [(AUTHORIZATION.as_str(), bearer.as_str())];
        assert_eq!(cluster.ask(user("none"), "GET", "/api/v1/nodes", &headers, "").await.code, code, "{later_s}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_projected_token_for_others_ends_when_it_says() {
    let cluster = Cluster::new().await;
    let (_, pod) = pod_token(&cluster, 3600).await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]});
    let request = json!({"spec": {"expirationSeconds": 3607, "audiences": ["vault"], "boundObjectRef": bound}});
    let answer = cluster.create("/api/v1/namespaces/g1/serviceaccounts/sa/token", request).await;
    let spec = json!({"token": answer["status"]["token"], "audiences": ["vault"]});
    let status = review(&cluster, "admin", "tokenreviews", "TokenReview", spec.clone()).await;
    assert_eq!(status["authenticated"], true, "{status}");
    tokio::time::advance(Duration::from_secs(3608)).await;
    let status = review(&cluster, "admin", "tokenreviews", "TokenReview", spec).await;
    assert_eq!(status["error"], "invalid bearer token", "{status}");
}

#[tokio::test(start_paused = true)]
async fn tokens_that_may_not_be() {
    let cluster = Cluster::new().await;
    pod_token(&cluster, 3600).await;
    cluster.create("/api/v1/namespaces/g1/serviceaccounts", json!({"metadata": {"name": "other"}})).await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p"});
    let cases = [
        ("sa", json!({"expirationSeconds": 60}), 422),
        ("sa", json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "none"}}), 404),
        ("sa", json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "x"}}), 409),
        ("other", json!({"boundObjectRef": bound}), 400),
        ("none", json!({}), 404),
    ];
    for (account, spec, code) in cases {
        let target = format!("/api/v1/namespaces/g1/serviceaccounts/{account}/token");
        let answer = cluster.ask(user("admin"), "POST", &target, &[], &json!({"spec": spec}).to_string()).await;
        assert_eq!(answer.code, code, "{}", answer.text());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_grants_what_they_do_not_have() {
    let cluster = Cluster::new().await;
    let writes = ["create", "update", "patch", "get"];
    let rules = json!([
        {"verbs": writes, "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
    ]);
    cluster.create(&format!("{RBAC}/namespaces/g1/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await;
    let bind = |name: &str, kind: &str, role: &str| {
        let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role});
        let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
        json!({"metadata": {"name": name}, "roleRef": reference, "subjects": subjects})
    };
    let bindings = format!("{RBAC}/namespaces/g1/rolebindings");
    cluster.create(&bindings, bind("b", "Role", "r")).await;

    let role = |name: &str, verb: &str| json!({"metadata": {"name": name}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]});
    let roles = format!("{RBAC}/namespaces/g1/roles");
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"rules": role("mine", "delete")["rules"]});
    let cases = [
        ("POST", roles.clone(), role("mine", "get"), 201),
        ("POST", roles.clone(), role("more", "delete"), 403),
        ("PATCH", format!("{roles}/mine"), patch, 403),
        ("PATCH", format!("{roles}/mine"), json!({"metadata": {"labels": {"a": "b"}}}), 200),
        ("POST", bindings.clone(), bind("c", "ClusterRole", "cluster-admin"), 403),
        ("POST", bindings.clone(), bind("d", "Role", "mine"), 201),
        ("POST", bindings.clone(), bind("e", "Role", "none"), 404),
    ];
    for (method, target, body, code) in cases {
        let headers: &[(&str, &str)] = if method == "PATCH" { &merge } else { &[] };
        let answer = cluster.ask(user("bob"), method, &target, headers, &body.to_string()).await;
        assert_eq!(answer.code, code, "{method} {target} {}", answer.text());
        if code == 403 {
            assert!(
                answer.text().contains("is attempting to grant RBAC permissions not currently held"),
                "{}",
                answer.text()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reading_pods_is_not_enough_to_run_commands_in_them() {
    let cluster = Cluster::new().await;
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/exec"]}]);
    cluster.create(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": "r"}, "rules": rules})).await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"});
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": subjects});
    cluster.create(&format!("{RBAC}/clusterrolebindings"), binding).await;
    let target = "/api/v1/namespaces/g1/pods/p/exec?command=id&stdout=true";
    let refused = cluster.ask(user("bob"), "GET", target, &[], "").await;
    assert_eq!(refused.code, 403);
    assert!(refused.text().contains("cannot create resource \\\"pods/exec\\\""), "{}", refused.text());
}

#[tokio::test(start_paused = true)]
async fn putting_a_new_object_needs_the_right_to_create() {
    let cluster = Cluster::new().await;
    let bob_may = async |verbs: Value| {
        let rules = json!([{"verbs": verbs, "apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}]);
        let role = json!({"metadata": {"name": "r"}, "rules": rules});
        let target = format!("{RBAC}/namespaces/g1/roles");
        if cluster.ask(user("admin"), "PUT", &format!("{target}/r"), &[], &role.to_string()).await.code == 404 {
            cluster.create(&target, role).await;
        }
    };
    bob_may(json!(["update"])).await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": subjects});
    cluster.create(&format!("{RBAC}/namespaces/g1/rolebindings"), binding).await;
    let target = "/apis/coordination.k8s.io/v1/namespaces/g1/leases/l";
    let put = async || {
        let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "bob"}}).to_string();
        cluster.ask(user("bob"), "PUT", target, &[], &lease).await
    };
    let refused = put().await;
    assert_eq!(refused.code, 403);
    assert!(refused.text().contains("cannot create resource \\\"leases\\\""), "{}", refused.text());
    bob_may(json!(["update", "create"])).await;
    assert_eq!(put().await.code, 201);
}
