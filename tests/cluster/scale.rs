//! Many nodes over real connections, small: what `benches/scale.rs` measures with hundreds keeps working with ten.

use edgelet::api::object::{Object, ObjectExt};
use edgelet::client::uplink::State;
use edgelet::client::{Client, DEPLOYMENTS, ENDPOINTSLICES, Local, NODES, PODS, SECRETS, SERVICES};
use edgelet::config::Typed;
use edgelet::node::hollow::{HollowConfig, HollowNode};
use edgelet::pki::bootstrap::BootstrapToken;
use edgelet::pki::certificate;
use edgelet::pki::join_token::JoinToken;
use edgelet::registry::ListOptions;
use edgelet::server::{self, ControlPlane};
use edgelet::supervise::Tree;
use futures_util::future::join_all;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

const NODES_COUNT: usize = 10;
const PODS_COUNT: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);
const END_GRACE: Duration = Duration::from_secs(5);

async fn start(directory: &Path, tree: &mut Tree) -> ControlPlane {
    let typed = Typed {
        data_dir: Some(directory.join("server")),
        bind_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        https_listen_port: Some(0),
        node_name: Some("board".into()),
        node_ip: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
        ..Typed::default()
    };
    server::start(&typed.check().unwrap(), tree).await.unwrap()
}

/// A token that any number of nodes may use, as `edgelet token create` makes it.
async fn token(client: &Client, directory: &Path) -> String {
    let pem = std::fs::read(directory.join("server/pki/ca.crt")).unwrap();
    let authority = certificate::bundle(&pem).unwrap().remove(0);
    let token = JoinToken::generate(certificate::key_hash(&authority).unwrap()).unwrap();
    let record = BootstrapToken { uses: None, ..BootstrapToken::for_nodes(&token.id, token.secret()) };
    client.create(SECRETS, "kube-system", record.object()).await.unwrap();
    token.text()
}

async fn until(client: &Client, what: &str, resource: edgelet::client::Resource, holds: impl Fn(&[Object]) -> bool) {
    let looks = async {
        loop {
            let listed = client.list(resource, "", &ListOptions::default()).await.unwrap();
            let objects: Vec<Object> = listed.items.iter().map(|item| item.object().unwrap()).collect();
            if holds(&objects) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, looks).await.is_ok(), "{what}: not in time");
}

fn is_ready(object: &Object) -> bool {
    let conditions = object.at(&["status", "conditions"]).and_then(Object::as_array);
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

#[tokio::test]
async fn hollow_nodes_join_over_tls_and_run_what_they_are_given() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::default();
    let plane = start(directory.path(), &mut tree).await;
    let client = Client::Local(Local::new(plane.registry.clone(), "test"));
    let token = token(&client, directory.path()).await;
    let joining = (0..NODES_COUNT).map(|number| {
        let hollow = HollowConfig {
            server: format!("https://127.0.0.1:{}", plane.address.port()),
            name: format!("hollow-{number}"),
            ip: Ipv4Addr::new(198, 18, 0, u8::try_from(number).unwrap()),
            labels: vec!["hollow=true".into()],
        };
        let (token, folder) = (token.clone(), directory.path().join(&hollow.name));
        async move { HollowNode::join(&hollow, &token, &folder).await.unwrap() }
    });
    let nodes = join_all(joining).await;
    until(&client, "all nodes are Ready", NODES, |nodes| nodes.len() == NODES_COUNT && nodes.iter().all(is_ready))
        .await;

    let container = json!({"name": "c", "image": "i:1", "ports": [{"containerPort": 80}]});
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}});
    let spec = json!({"replicas": PODS_COUNT, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    client.create(DEPLOYMENTS, "default", json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
    let service = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    client.create(SERVICES, "default", json!({"metadata": {"name": "web"}, "spec": service})).await.unwrap();
    until(&client, "all pods are Ready", PODS, |pods| pods.len() == PODS_COUNT && pods.iter().all(is_ready)).await;
    let pods = client.list(PODS, "", &ListOptions::default()).await.unwrap();
    let mut on_node: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods.items.iter().map(|item| item.object().unwrap()) {
        *on_node.entry(pod.str_at(&["spec", "nodeName"]).to_owned()).or_default() += 1;
    }
    assert!(on_node.len() == NODES_COUNT && on_node.values().all(|count| *count <= 15), "{on_node:?}");

    // Every node sees its own pods and no others, and all endpoints.
    until(&client, "all pods are endpoints", ENDPOINTSLICES, |slices| endpoints(slices) == PODS_COUNT).await;
    let seen = nodes.iter().map(|node| async {
        let slices = node.informers.all(ENDPOINTSLICES);
        let mut changes = slices.subscribe();
        while endpoints(&slices.list().iter().map(|item| item.object().unwrap()).collect::<Vec<_>>()) != PODS_COUNT {
            changes.next().await;
        }
        assert!(matches!(*node.state.borrow(), State::Connected));
    });
    tokio::time::timeout(LIMIT, join_all(seen)).await.expect("every node sees every endpoint");

    let scale = json!({"spec": {"replicas": 0}});
    client.patch(DEPLOYMENTS, "default", "web", "", edgelet::client::PatchType::Merge, scale).await.unwrap();
    until(&client, "all pods are gone", PODS, <[Object]>::is_empty).await;
    join_all(nodes.into_iter().map(|node| node.end(END_GRACE))).await;
    tree.end(END_GRACE).await;
    plane.close().await.unwrap();
}

fn endpoints(slices: &[Object]) -> usize {
    let of_service = slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some("web"));
    let all = of_service.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    all.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
}
