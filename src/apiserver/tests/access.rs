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
