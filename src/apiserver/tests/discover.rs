//! What a client asks before anything else.

use super::*;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

#[tokio::test(start_paused = true)]
async fn groups_versions_and_resources() {
    let cluster = Cluster::new().await;
    let core = cluster.get("/api").await.json();
    assert_eq!(core["serverAddressByClientCIDRs"][0]["serverAddress"], "10.99.0.1:6443");
    let groups = cluster.get("/apis").await.json();
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["apiregistration.k8s.io", "apps", "events.k8s.io"]);
    let apps = cluster.get("/apis/apps/v1").await.json();
    let scale = apps["resources"].as_array().unwrap().iter().find(|one| one["name"] == "deployments/scale").unwrap();
    assert_eq!(
        (&scale["group"], &scale["version"], &scale["kind"]),
        (&json!("autoscaling"), &json!("v1"), &json!("Scale"))
    );
    for missing in ["/apis/nope.io", "/apis/apps/v9", "/api/v2"] {
        let answer = cluster.get(missing).await;
        assert_eq!((answer.code, answer.text().trim()), (404, "404 page not found"), "{missing}");
    }
}

#[tokio::test(start_paused = true)]
async fn aggregated_discovery_is_not_sent_twice() {
    let cluster = Cluster::new().await;
    let first = cluster.get_as("/apis", AGGREGATED).await;
    assert_eq!(first.header("content-type"), "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let document = first.json();
    assert_eq!(document["apiVersion"], "apidiscovery.k8s.io/v2");
    let apps = document["items"].as_array().unwrap().iter().find(|one| one["metadata"]["name"] == "apps").unwrap();
    assert_eq!(apps["versions"][0]["resources"][1]["shortNames"], json!(["ds"]));
    let headers = [("accept", AGGREGATED), ("if-none-match", first.header("etag"))];
    let second = cluster.ask(user("admin"), "GET", "/apis", &headers, "").await;
    assert_eq!((second.code, second.body.len()), (304, 0));
    let beta = cluster.get_as("/api", &AGGREGATED.replace("v=v2;", "v=v2beta1;")).await;
    assert_eq!(beta.json()["apiVersion"], "apidiscovery.k8s.io/v2beta1");
}

#[tokio::test(start_paused = true)]
async fn health_version_and_metrics() {
    let cluster = Cluster::new().await;
    let cases = [
        ("/healthz", 200, "ok"),
        ("/livez/ping", 200, "ok"),
        ("/readyz/etcd", 404, "404 page not found\n"),
        ("/readyz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]store ok\n[+]shutdown ok\nreadyz check passed\n"),
        ("/livez?verbose&exclude=store", 200, "[+]ping ok\n[+]log ok\n[+]store excluded: ok\nlivez check passed\n"),
    ];
    for (target, code, text) in cases {
        let answer = cluster.get(target).await;
        assert_eq!((answer.code, answer.text().as_str()), (code, text), "{target}");
    }
    assert_eq!(cluster.get("/version").await.json()["minor"], "36");
    let metrics = cluster.get("/metrics").await.text();
    assert!(
        metrics.contains("apiserver_request_total{verb=\"CREATE\",group=\"\",resource=\"namespaces\""),
        "{metrics}"
    );
    let paths = cluster.get("/").await.json();
    assert!(paths["paths"].as_array().unwrap().contains(&json!("/apis/apps/v1")));
}

#[tokio::test(start_paused = true)]
async fn the_issuer_shows_its_keys() {
    let cluster = Cluster::new().await;
    let configuration = cluster.get("/.well-known/openid-configuration").await.json();
    assert_eq!(configuration["id_token_signing_alg_values_supported"], json!(["ES256"]));
    assert_eq!(cluster.get_as("/openid/v1/jwks", "application/json").await.code, 406);
    let keys = cluster.get_as("/openid/v1/jwks", "*/*").await;
    assert_eq!((keys.code, keys.header("content-type")), (200, "application/jwk-set+json"));
}

#[tokio::test(start_paused = true)]
async fn openapi_is_passed_through_compressed_and_kept_by_hash() {
    use std::io::Read;
    let cluster = Cluster::new().await;
    let index = cluster.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    let gzip = [("accept-encoding", "gzip"), ("accept", "application/json")];
    let compressed = cluster.ask(user("admin"), "GET", &url, &gzip, "").await;
    assert_eq!(compressed.header("content-encoding"), "gzip");
    assert!(compressed.header("cache-control").contains("immutable"));
    let plain = cluster.get(&url).await;
    let mut inflated = Vec::new();
    flate2::read::MultiGzDecoder::new(&compressed.body[..]).read_to_end(&mut inflated).unwrap();
    assert_eq!(inflated, plain.body);
    assert!(plain.json()["components"]["schemas"].as_object().unwrap().len() > 10);

    let headers = [("if-none-match", plain.header("etag")), ("accept-encoding", "gzip")];
    assert_eq!(cluster.ask(user("admin"), "GET", &url, &headers, "").await.code, 304);
    assert_eq!(cluster.get("/openapi/v3/apis/apps/v1?hash=old").await.code, 301);

    let v2 = cluster.get_as("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf").await;
    assert_eq!(v2.header("content-type"), "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    assert_eq!(cluster.get_as("/openapi/v2", "application/json").await.json()["swagger"], "2.0");
    assert_eq!(cluster.get_as("/openapi/v2", "text/html").await.code, 406);
}
