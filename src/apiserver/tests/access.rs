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
