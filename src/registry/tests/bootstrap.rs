//! The objects of every cluster.

use super::*;

#[tokio::test]
async fn a_second_start_changes_nothing_but_the_address() {
    let cluster = Cluster::new().await;
    let mut facts =
        ServerFacts { address: Ipv4Addr::new(192, 168, 1, 2), port: 6443, client_ca_pem: "certificate".to_owned() };
    cluster.registry.bootstrap(&facts).await.unwrap();
    let first = cluster.registry.store.revision();
    let service = cluster.registry.get(&cluster.kind("v1", "Service"), "default", "kubernetes").await.unwrap();
    assert_eq!(decoded(&service)["spec"]["clusterIP"], "10.96.0.1");
    cluster.registry.bootstrap(&facts).await.unwrap();
    assert_eq!(cluster.registry.store.revision(), first);
    facts.address = Ipv4Addr::new(192, 168, 1, 3);
    cluster.registry.bootstrap(&facts).await.unwrap();
    let kind = cluster.kind("discovery.k8s.io/v1", "EndpointSlice");
    let slice = cluster.registry.get(&kind, "default", "kubernetes").await.unwrap();
    assert_eq!(decoded(&slice)["endpoints"][0]["addresses"], json!(["192.168.1.3"]));
    assert_eq!(cluster.registry.store.revision(), first + 2);
}
