//! Services and names on a real kernel: from pods, from the node and from outside.

use crate::network::{Node, PATIENCE, ask, on_a_node, serve};
use edgelet::api::kinds::Kinds;
use edgelet::client::{Client, ENDPOINTSLICES, Informers, Local, NAMESPACES, Resource, SERVICES};
use edgelet::clock::Clock;
use edgelet::dns::{self, DnsConfig};
use edgelet::network::nftables::{Batch, Events, Socket};
use edgelet::network::{Attachment, Network, NetworkConfig, conntrack};
use edgelet::proxy::program::Programmer;
use edgelet::proxy::rules::{self, Here, Slice};
use edgelet::proxy::state::State;
use edgelet::proxy::{self, ProxyConfig};
use edgelet::registry::{Registry, RegistryConfig};
use edgelet::store::MemoryStore;
use edgelet::supervise::Tree;
use edgelet::sys::netns;
use edgelet::telemetry::Trace;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

/// A proxy without the API: Services and endpoints are handed to it.
struct Services {
    state: State,
    programmer: Programmer,
}

impl Services {
    fn new(network: &Network) -> Self {
        let services = Self { state: State::new(network.layout().dns), programmer: Programmer::new(network.clone()) };
        services.programmer.replace(&services.state.everything(), services.state.affinities()).unwrap();
        services
    }

    /// One port, 80 to 8080, at each of these pods.
    fn set(&mut self, name: &str, mut spec: Value, protocol: &str, pods: &[(&Attachment, &str)]) {
        let port = json!({"name": "p", "protocol": protocol, "port": 80, "nodePort": spec["nodePort"]});
        spec["ports"] = json!([port]);
        let endpoints: Vec<Value> =
            pods.iter().map(|(pod, node)| json!({"addresses": [pod.ip], "nodeName": node})).collect();
        let slice: Slice = rules::slice(
            &serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "p", "protocol": protocol, "port": 8080}]}))
            .unwrap(),
            &Here::node("here"),
        )
        .unwrap();
        let status = json!({"loadBalancer": {"ingress": [{"ip": spec["loadBalancerIP"]}]}});
        let service = json!({"spec": spec, "status": status});
        self.state.set_service(name, Some(serde_json::from_value(service).unwrap()));
        self.state.set_slice(name, name, Some(slice));
        let start = edgelet::clock::monotonic();
        let plan = self.state.plan();
        self.programmer.apply(&plan).unwrap();
        println!("{name}: programmed in {:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    }
}

/// What `nft flush ruleset` does.
fn flush() {
    let mut batch = Batch::default();
    batch.flush_ruleset();
    Socket::open().unwrap().commit(batch).unwrap();
}

fn kernel_has_persistent_tables() -> bool {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// Who answers, over many connections.
async fn askers(from: Option<&Attachment>, to: &str) -> BTreeSet<String> {
    let mut answers = BTreeSet::new();
    for _ in 0..40 {
        answers.insert(ask(from, to.parse().unwrap()).await.unwrap());
    }
    answers
}

fn set(items: &[String]) -> BTreeSet<String> {
    items.iter().cloned().collect()
}

#[test]
fn services_lead_to_pods_from_everywhere() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let a = network.attach("a", None).await.unwrap();
        let b = network.attach("b", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        serve(&a.netns, 8080, "a").await;
        serve(&b.netns, 8080, "b").await;
        let mut services = Services::new(&network);
        services.set(
            "web",
            json!({"clusterIP": "10.43.0.50", "nodePort": 30080}),
            "TCP",
            &[(&a, "here"), (&b, "here")],
        );
        services.set(
            "local",
            json!({"clusterIP": "10.43.0.51", "nodePort": 30081, "externalTrafficPolicy": "Local"}),
            "TCP",
            &[(&a, "here"), (&b, "there")],
        );
        services.set(
            "sticky",
            json!({"clusterIP": "10.43.0.52", "sessionAffinity": "ClientIP"}),
            "TCP",
            &[(&a, "here"), (&b, "here")],
        );
        services.set("empty", json!({"clusterIP": "10.43.0.53", "nodePort": 30083}), "TCP", &[]);

        let says = |name: &str, ip: &dyn ToString| format!("{name} {}", ip.to_string());
        let both = |ip: &dyn ToString| set(&[says("a", ip), says("b", ip)]);
        assert_eq!(askers(Some(&client), "10.43.0.50:80").await, both(&client.ip), "a pod keeps its address");
        assert_eq!(askers(None, "10.43.0.50:80").await, both(&"10.42.7.1"), "the node itself");
        let hairpin = set(&[says("a", &"10.42.7.1"), says("b", &a.ip)]);
        assert_eq!(askers(Some(&a), "10.43.0.50:80").await, hairpin, "a pod reaches itself as the gateway");
        assert_eq!(askers(Some(&client), "10.43.0.52:80").await.len(), 1, "one client, one backend");
        assert_eq!(askers(None, "10.42.7.1:30080").await, both(&"10.42.7.1"), "node port from the node");
        assert_eq!(
            askers(Some(&client), "10.42.7.1:30081").await,
            both(&client.ip),
            "inside, local policy does not bind"
        );

        for refused in ["10.43.0.53:80", "10.43.0.50:81", "10.43.0.99:80", "10.42.7.1:30083"] {
            for from in [Some(&client), None] {
                let start = edgelet::clock::monotonic();
                let error = ask(from, refused.parse().unwrap()).await.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
                assert!(start.elapsed() < Duration::from_millis(500), "{refused} at once");
            }
        }

        // Somebody outside, behind another bridge of this machine.
        let outside = Network::new(NetworkConfig {
            pod_cidr: "192.168.77.0/24".into(),
            cluster_cidr: "10.0.0.0/8".into(),
            service_cidr: "10.99.0.0/16".into(),
            dns_ip: "10.99.0.10".parse().unwrap(),
            bridge: "edgetest1".into(),
            table: "edgetestout".into(),
            netns_directory: node.directory.path().join("outside"),
            state_directory: node.directory.path().join("state/outside"),
        })
        .unwrap();
        outside.setup().await.unwrap();
        let stranger = outside.attach("stranger", None).await.unwrap();
        assert_eq!(askers(Some(&stranger), "192.168.77.1:30080").await, both(&"10.42.7.1"), "hidden behind the node");
        let kept = set(&[says("a", &stranger.ip)]);
        assert_eq!(
            askers(Some(&stranger), "192.168.77.1:30081").await,
            kept,
            "local policy keeps the client's address"
        );
        assert_eq!(askers(Some(&stranger), "10.43.0.50:80").await, both(&"10.42.7.1"), "a Service, from outside");
        outside.teardown().await.unwrap();
        std::fs::remove_dir_all(node.directory.path().join("state/outside")).unwrap();

        services.set("web", json!({"clusterIP": "10.43.0.50"}), "TCP", &[(&b, "here")]);
        assert_eq!(askers(Some(&client), "10.43.0.50:80").await, set(&[says("b", &client.ip)]), "an endpoint left");
    });
}

#[test]
fn a_client_keeps_its_backend_until_it_has_been_away_too_long() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let pods = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut backends = Vec::new();
        for name in pods {
            let pod = network.attach(name, None).await.unwrap();
            serve(&pod.netns, 8080, name).await;
            backends.push(pod);
        }
        let client = network.attach("client", None).await.unwrap();
        let mut services = Services::new(&network);
        let spec = json!({"clusterIP": "10.43.0.52", "nodePort": 30082, "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 2}}});
        let all: Vec<(&Attachment, &str)> = backends.iter().map(|pod| (pod, "here")).collect();
        services.set("sticky", spec.clone(), "TCP", &all);
        let answer = async |to: &str| ask(Some(&client), to.parse().unwrap()).await.unwrap();
        // The time runs from the last connection, not from the first.
        let first = answer("10.43.0.52:80").await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert_eq!(answer("10.43.0.52:80").await, first, "it comes back in time");
        }
        assert_eq!(askers(Some(&client), "10.42.7.1:30082").await.len(), 1, "by the node port too");
        let mut seen = BTreeSet::new();
        for _ in 0..8 {
            seen.insert(answer("10.43.0.52:80").await);
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
        assert!(seen.len() > 1, "after a while one of eight at random, eight times: {seen:?}");

        // Its backend goes: another one, and that is kept; others stay where they are.
        let had = answer("10.43.0.52:80").await;
        let left: Vec<_> =
            pods.iter().zip(&all).filter(|(name, _)| !had.starts_with(*name)).map(|(_, one)| *one).collect();
        assert_eq!(left.len(), 7);
        services.set("sticky", spec.clone(), "TCP", &left);
        let next = answer("10.43.0.52:80").await;
        assert_ne!(next, had);
        services.set("sticky", spec, "TCP", &all);
        for _ in 0..10 {
            assert_eq!(answer("10.43.0.52:80").await, next, "it is kept when the old one comes back");
        }
    });
}

#[test]
fn rules_outlive_the_process_and_a_flush() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let a = network.attach("a", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        serve(&a.netns, 8080, "a").await;
        let spec = || json!({"clusterIP": "10.43.0.50"});
        let web: SocketAddr = "10.43.0.50:80".parse().unwrap();
        let mut services = Services::new(&network);
        services.set("web", spec(), "TCP", &[(&a, "here")]);
        drop(services);
        drop(network);
        assert!(ask(Some(&client), web).await.is_ok(), "nobody is there, the rules are");

        let network = node.network().await;
        assert!(ask(Some(&client), web).await.is_ok(), "the next process has not touched them yet");
        let mut services = Services::new(&network);
        services.set("web", spec(), "TCP", &[(&a, "here")]);
        flush();
        if kernel_has_persistent_tables() {
            assert!(services.programmer.is_intact().unwrap(), "owned tables are spared");
            assert!(ask(Some(&client), web).await.is_ok());
        } else {
            println!("skipped: tables that are spared, which Linux has since 6.9");
            assert!(!services.programmer.is_intact().unwrap());
        }
        network.teardown().await.unwrap();
        drop((services, network));

        // A kernel that has no owned tables.
        let network = Network::with_tables(node.config(), false).unwrap();
        network.setup().await.unwrap();
        let a = network.attach("a", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        serve(&a.netns, 8080, "a").await;
        let mut events = Events::open().unwrap();
        let mut services = Services::new(&network);
        services.set("web", spec(), "TCP", &[(&a, "here")]);
        let quiet = tokio::time::timeout(Duration::from_millis(100), network.tables().changed_by_others(&mut events));
        assert!(quiet.await.is_err(), "own changes wake nobody");
        flush();
        tokio::time::timeout(PATIENCE, network.tables().changed_by_others(&mut events)).await.unwrap().unwrap();
        assert!(!services.programmer.is_intact().unwrap());
        network.program().unwrap();
        services.programmer.replace(&services.state.everything(), services.state.affinities()).unwrap();
        assert!(ask(Some(&client), web).await.is_ok(), "back again");
        network.teardown().await.unwrap();
        // The next run takes a plain table over and owns it.
        network.program().unwrap();
    });
}

#[test]
fn udp_clients_follow_when_an_endpoint_leaves() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let a = network.attach("a", None).await.unwrap();
        let b = network.attach("b", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        for (pod, name) in [(&a, "a"), (&b, "b")] {
            let bind = || std::net::UdpSocket::bind("0.0.0.0:8080").and_then(|s| s.set_nonblocking(true).map(|()| s));
            let socket = netns::enter(&pod.netns, move || tokio::net::UdpSocket::from_std(bind()?)).await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(name.as_bytes(), from).await;
                }
            });
        }
        let mut services = Services::new(&network);
        let spec = || json!({"clusterIP": "10.43.0.50"});
        services.set("dns", spec(), "UDP", &[(&a, "here")]);
        let bind = || std::net::UdpSocket::bind("0.0.0.0:4000").and_then(|s| s.set_nonblocking(true).map(|()| s));
        let socket = netns::enter(&client.netns, move || tokio::net::UdpSocket::from_std(bind()?)).await.unwrap();
        let query = || async {
            socket.send_to(b"?", "10.43.0.50:80").await.unwrap();
            let mut buffer = [0; 64];
            let (length, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(query().await, "a");
        services.set("dns", spec(), "UDP", &[(&b, "here")]);
        assert_eq!(query().await, "a", "the flow is tracked");
        let vip: Ipv4Addr = "10.43.0.50".parse().unwrap();
        let forgotten =
            conntrack::forget_udp(|flow| *flow.destination.ip() == vip && IpAddr::V4(*flow.answers.ip()) == a.ip);
        assert_eq!(forgotten.unwrap(), 1);
        assert_eq!(query().await, "b");
    });
}

/// A node whose proxy and DNS follow a real API.
struct Api {
    client: Client,
    trace: Arc<Trace>,
    tree: Tree,
}

impl Api {
    async fn new(network: &Network) -> Self {
        let (clock, trace, kinds) = (Clock::real(), Arc::new(Trace::default()), Kinds::default());
        let store = Arc::new(MemoryStore::default());
        let config = RegistryConfig { service_cidr: ("10.43.0.0".parse().unwrap(), 16), ..RegistryConfig::default() };
        let registry = Registry::new(config, store, kinds, clock.clone(), trace.clone());
        let client = Client::Local(Local::new(Arc::new(registry), "test"));
        let informers = Informers::new(client.clone());
        let mut tree = Tree::default();
        let config = ProxyConfig { network: network.clone(), node_name: "here".into() };
        tree.spawn("proxy", proxy::run(config, informers.clone(), clock, trace.clone(), tree.shutdown()));
        tree.spawn("dns", dns::run(DnsConfig::for_network(network, "here"), informers, tree.shutdown()));
        let api = Self { client, trace, tree };
        api.create(NAMESPACES, "", json!({"metadata": {"name": "default"}})).await;
        api
    }

    async fn create(&self, resource: Resource, namespace: &str, object: Value) {
        self.client.create(resource, namespace, object).await.unwrap();
    }

    /// A Service on 80 and its one endpoint on 8080.
    async fn expose(&self, name: &str, ip: &str, pod: &Attachment) {
        let port = json!({"name": "http", "protocol": "TCP", "port": 80});
        let spec = json!({"clusterIP": ip, "ports": [port]});
        self.create(SERVICES, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
        let labels = json!({"kubernetes.io/service-name": name});
        let target = json!({"kind": "Pod", "namespace": "default", "name": name, "uid": format!("uid-{name}")});
        let endpoint =
            json!({"addresses": [pod.ip], "nodeName": "here", "conditions": {"ready": true}, "targetRef": target});
        let slice = json!({"metadata": {"name": format!("{name}-1"), "labels": labels}, "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": [endpoint]});
        self.create(ENDPOINTSLICES, "default", slice).await;
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn shown(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    let answers: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    format!("{:?} {}", message.metadata.response_code, answers.join(", "))
}

/// What DNS says by UDP, asked from a pod or from the node.
async fn name(from: Option<&Attachment>, name: &str) -> String {
    let open = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    };
    let socket = match from {
        Some(attachment) => netns::enter(&attachment.netns, open).await.unwrap(),
        None => open().unwrap(),
    };
    let mut buffer = [0; 512];
    let exchange = async {
        socket.send_to(&question(name), "10.43.0.10:53").await?;
        socket.recv_from(&mut buffer).await
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok((length, _))) => shown(&buffer[..length]),
        other => format!("{other:?}"),
    }
}

async fn name_by_tcp(from: &Attachment, name: &str) -> String {
    let socket = netns::enter(&from.netns, TcpSocket::new_v4).await.unwrap();
    let mut stream = socket.connect("10.43.0.10:53".parse().unwrap()).await.unwrap();
    let question = question(name);
    stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    shown(&answer)
}

/// Tries until it is as expected; loops are woken by events, so it is soon.
async fn eventually<F: Future<Output = String>>(what: &str, expected: &str, attempt: impl Fn() -> F) {
    let start = edgelet::clock::monotonic();
    loop {
        let got = attempt().await;
        if got == expected {
            println!("{what}: after {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {got}, not {expected}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_balancers_address_is_for_the_networks_it_lists() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let a = network.attach("a", None).await.unwrap();
        let near = network.attach("near", None).await.unwrap();
        let far = network.attach("far", Some("10.42.7.200".parse().unwrap())).await.unwrap();
        serve(&a.netns, 8080, "a").await;
        let mut services = Services::new(&network);
        let spec = |ranges: Value| {
            json!({"type": "LoadBalancer", "clusterIP": "10.43.0.50", "loadBalancerIP": "192.0.2.50",
                "loadBalancerSourceRanges": ranges})
        };
        let to: SocketAddr = "192.0.2.50:80".parse().unwrap();
        let reaches = async |pod: &Attachment| {
            let asked = tokio::time::timeout(Duration::from_millis(700), ask(Some(pod), to)).await;
            asked.is_ok_and(|answer| answer.is_ok_and(|text| text.starts_with("a ")))
        };
        for (ranges, expected) in [
            (json!([]), (true, true)),
            (json!(["10.42.7.0/28"]), (true, false)),
            (json!(["172.16.0.0/12", "10.42.7.128/25"]), (false, true)),
            (json!(["0.0.0.0/0"]), (true, true)),
            (json!(["172.16.0.0/12"]), (false, false)),
        ] {
            services.set("web", spec(ranges.clone()), "TCP", &[(&a, "here")]);
            assert_eq!((reaches(&near).await, reaches(&far).await), expected, "{ranges}");
            assert!(ask(Some(&far), "10.43.0.50:80".parse().unwrap()).await.is_ok(), "the cluster address is for all");
        }
    });
}

#[test]
fn names_and_rules_follow_the_api() {
    on_a_node(|node: &'static Node| async move {
        let network = Network::with_tables(node.config(), false).unwrap();
        network.setup().await.unwrap();
        let pod = network.attach("pod", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        serve(&pod.netns, 8080, "pod").await;
        let api = Api::new(&network).await;
        let web = "web.default.svc.cluster.local.";
        eventually("no name yet", "NXDomain ", || name(Some(&client), web)).await;

        api.expose("web", "10.43.0.60", &pod).await;
        eventually("the name", "NoError 10.43.0.60", || name(Some(&client), web)).await;
        assert_eq!(name(None, web).await, "NoError 10.43.0.60", "from the node");
        assert_eq!(name_by_tcp(&client, web).await, "NoError 10.43.0.60");
        let reach =
            || async { ask(Some(&client), "10.43.0.60:80".parse().unwrap()).await.unwrap_or_else(|e| e.to_string()) };
        let answer = format!("pod {}", client.ip);
        eventually("the service", &answer, reach).await;
        let steps: Vec<String> = api.trace.steps("uid-web").into_iter().map(|step| step.what).collect();
        assert_eq!(steps, ["rules programmed"]);

        flush();
        eventually("after a flush", &answer, reach).await;
        let restored = || async { Socket::open().unwrap().has_table("edgetest").unwrap().to_string() };
        eventually("the node's own rules", "true", restored).await;

        let options = edgelet::registry::DeleteOptions::default();
        api.client.delete(ENDPOINTSLICES, "default", "web-1", &options).await.unwrap();
        eventually("without endpoints", "Connection refused (os error 111)", reach).await;
        api.client.delete(SERVICES, "default", "web", &options).await.unwrap();
        eventually("the name is gone", "NXDomain ", || name(Some(&client), web)).await;
        api.tree.end(Duration::from_secs(1)).await;
    });
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_opened_and_closed_again() {
    on_a_node(|node: &'static Node| async move {
        // As docker leaves it.
        let foreign =
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
        let run = |command: &str| std::process::Command::new("nft").args(command.split(' ')).output();
        if run(foreign).is_err() {
            println!("skipped: no nft here to play the other firewall with");
            return;
        }
        let listed = || String::from_utf8(run("list chain ip filter FORWARD").unwrap().stdout).unwrap();
        let network = node.network().await;
        network.setup().await.unwrap();
        assert_eq!(listed().matches("10.42.0.0/16 accept").count(), 2, "once, however often: {}", listed());
        let a = network.attach("a", None).await.unwrap();
        let client = network.attach("client", None).await.unwrap();
        serve(&a.netns, 8080, "a").await;
        assert!(ask(Some(&client), SocketAddr::new(a.ip, 8080)).await.is_ok());
        assert_eq!(network.mend(), [""; 0]);
        network.teardown().await.unwrap();
        assert_eq!(listed().matches("accept").count(), 0, "{}", listed());
        run("delete table ip filter").unwrap();
    });
}
