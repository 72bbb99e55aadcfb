//! Objects over HTTP: forms, lists, watches, warnings, headers.

use super::*;

const MAPS: &str = "/api/v1/namespaces/g1/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::test(start_paused = true)]
async fn an_object_lives_and_dies() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));

    let got = cluster.get(&format!("{MAPS}/a")).await;
    assert_eq!((got.code, got.json()), (200, made.clone()));
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("cache-control"), "no-cache, private");
    assert_eq!(got.header("audit-id").len(), 36);

    let merge = [("content-type", "application/merge-patch+json")];
    let patched = cluster.ask(user("admin"), "PATCH", &format!("{MAPS}/a"), &merge, r#"{"data":{"k":"w"}}"#).await;
    assert_eq!((patched.code, &patched.json()["data"]["k"]), (200, &json!("w")));

    let deleted = cluster.ask(user("admin"), "DELETE", &format!("{MAPS}/a"), &[], "").await;
    let details = json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]});
    assert_eq!((deleted.code, &deleted.json()["details"]), (200, &details));
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_are_warned_of() {
    let cluster = Cluster::new().await;
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"u"},"bogus":1}"#;
    let answer = cluster.ask(user("admin"), "POST", MAPS, &[], body).await;
    assert_eq!((answer.code, answer.header("warning")), (201, r#"299 - "unknown field \"bogus\"""#));
}

#[tokio::test(start_paused = true)]
async fn yaml_goes_in_and_out() {
    let cluster = Cluster::new().await;
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  a: \"1\"\n";
    let answer = cluster.ask(user("admin"), "POST", MAPS, &headers, body).await;
    assert_eq!((answer.code, answer.header("content-type")), (201, "application/yaml"));
    assert!(answer.text().starts_with("apiVersion: v1\ndata:\n  a: \"1\"\nkind: ConfigMap\n"), "{}", answer.text());
    let missing = cluster.get_as(&format!("{MAPS}/none"), "application/yaml").await;
    assert_eq!((missing.code, missing.header("content-type")), (404, "application/yaml"));
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_and_tables() {
    let cluster = Cluster::new().await;
    for name in ["a", "b", "c"] {
        cluster.create(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let page = cluster.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["metadata"]["remainingItemCount"]), (2, &json!(1)));
    let token = page["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
    assert_eq!(rest["items"][0]["metadata"]["name"], "c");
    assert_eq!(rest["kind"], "ConfigMapList");

    let table = cluster.get_as(MAPS, TABLE).await.json();
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["rows"][1]["cells"], json!(["b", 0, "0s"]));
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let one = cluster.get_as(&format!("{MAPS}/a"), TABLE).await.json();
    assert_eq!(one["rows"][0]["cells"], json!(["a", 0, "0s"]));
}

#[tokio::test(start_paused = true)]
async fn protobuf_is_for_those_who_take_nothing_else() {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let cluster = Cluster::new().await;
    cluster.create(MAPS, json!({"metadata": {"name": "a"}})).await;
    let both = cluster.get_as(&format!("{MAPS}/a"), &format!("{PROTOBUF},application/json")).await;
    assert_eq!(both.header("content-type"), "application/json");
    for target in [format!("{MAPS}/a"), MAPS.to_owned()] {
        let only = cluster.get_as(&target, PROTOBUF).await;
        assert_eq!((only.code, only.header("content-type")), (200, PROTOBUF), "{target}");
        assert_eq!(&only.body[..4], b"k8s\0", "{target}");
    }
    assert_eq!(cluster.get_as(&format!("{MAPS}?watch=1"), PROTOBUF).await.code, 406);
}

/// The lines of a watch that ends by itself.
async fn watch(cluster: &Cluster, query: &str, accept: &str) -> Vec<Value> {
    let answer = cluster.get_as(&format!("{MAPS}?watch=true&timeoutSeconds=1&{query}"), accept).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn watches_tell_what_happened_line_by_line() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, json!({"metadata": {"name": "a"}})).await;
    let before = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let merge = [("content-type", "application/merge-patch+json")];
    cluster.ask(user("admin"), "PATCH", &format!("{MAPS}/a"), &merge, r#"{"data":{"k":"w"}}"#).await;
    cluster.ask(user("admin"), "DELETE", &format!("{MAPS}/a"), &[], "").await;

    let events = watch(&cluster, &format!("resourceVersion={before}"), "application/json").await;
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["MODIFIED", "DELETED"]);
    assert_eq!(events[1]["object"]["metadata"]["name"], "a");

    let tables = watch(&cluster, &format!("resourceVersion={before}"), TABLE).await;
    assert_eq!(tables[0]["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(tables[1]["object"]["columnDefinitions"], Value::Null);
    assert_eq!(tables[1]["object"]["rows"][0]["cells"][0], "a");
}

#[tokio::test(start_paused = true)]
async fn a_watch_can_begin_with_what_there_is() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, json!({"metadata": {"name": "a"}})).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = watch(&cluster, query, "application/json").await;
    assert_eq!(events[0]["type"], "ADDED");
    let end = events.iter().find(|event| event["type"] == "BOOKMARK").unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!((&end["object"]["kind"], &end["object"]["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let legacy = cluster.get("/api/v1/watch/namespaces/g1/configmaps/a?timeoutSeconds=1").await;
    assert_eq!(legacy.text().lines().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_scale_is_read_and_written() {
    let cluster = Cluster::new().await;
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template});
    let deployments = "/apis/apps/v1/namespaces/g1/deployments";
    cluster.create(deployments, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let scale = cluster.get(&format!("{deployments}/d/scale")).await.json();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    let merge = [("content-type", "application/merge-patch+json")];
    let target = format!("{deployments}/d/scale");
    let scaled = cluster.ask(user("admin"), "PATCH", &target, &merge, r#"{"spec":{"replicas":5}}"#).await;
    assert_eq!((scaled.code, &scaled.json()["spec"]["replicas"]), (200, &json!(5)), "{}", scaled.text());
    assert_eq!(cluster.get(&format!("{deployments}/d")).await.json()["spec"]["replicas"], 5);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_stores_nothing() {
    let cluster = Cluster::new().await;
    let body = json!({"metadata": {"name": "dry"}}).to_string();
    let answer = cluster.ask(user("admin"), "POST", &format!("{MAPS}?dryRun=All"), &[], &body).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert_eq!(cluster.get(&format!("{MAPS}/dry")).await.code, 404);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_three_megabytes_is_refused() {
    let cluster = Cluster::new().await;
    let answer = cluster.ask(user("admin"), "POST", MAPS, &[], &"x".repeat(3 << 20 | 1)).await;
    assert_eq!((answer.code, &answer.json()["reason"]), (413, &json!("RequestEntityTooLarge")));
}

#[tokio::test(start_paused = true)]
async fn logs_of_a_pod_without_a_node_are_empty_and_options_are_checked() {
    let cluster = Cluster::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let pods = "/api/v1/namespaces/g1/pods";
    cluster.create(pods, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    assert_eq!(cluster.get(&format!("{pods}/p/log")).await.code, 204);
    assert_eq!(cluster.get(&format!("{pods}/p/log?container=x")).await.code, 400);
    assert_eq!(cluster.get(&format!("{pods}/p/log?tailLines=-1")).await.code, 422);
    assert_eq!(cluster.get(&format!("{pods}/none/log")).await.code, 404);
}

#[tokio::test(start_paused = true)]
async fn open_watches_are_counted_until_their_answer_ends_or_is_given_up() {
    let cluster = Cluster::new().await;
    let open = || {
        let text = cluster.server.0.metrics.render(&[]);
        let line = text.lines().find_map(|line| line.strip_prefix("apiserver_longrunning_requests "));
        line.unwrap().to_owned()
    };
    let request = || {
        let uri = format!("{MAPS}?watch=true&timeoutSeconds=5");
        http::Request::get(uri).extension(user("admin")).body(Body::empty()).unwrap()
    };
    let given_up = cluster.server.router().call(request()).await.unwrap();
    let read = cluster.server.router().call(request()).await.unwrap();
    assert_eq!(open(), "2");
    drop(given_up);
    assert_eq!(open(), "1");
    read.into_body().collect().await.unwrap();
    assert_eq!(open(), "0");
}
