//! The pod network in network namespaces of its own: nothing of the machine's is touched.

use edgelet::network::nftables::{Batch, Events, Socket};
use edgelet::network::{Attachment, Network, NetworkConfig, conntrack};
use edgelet::proxy::program::Programmer;
use edgelet::proxy::rules::{self, Slice};
use edgelet::proxy::state::State;
use edgelet::sys::netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const PATIENCE: Duration = Duration::from_secs(5);

/// A node in a namespace of its own, on a thread of its own.
struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn config(&self) -> NetworkConfig {
        NetworkConfig {
            pod_cidr: "10.42.7.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            dns_ip: "10.43.0.10".parse().unwrap(),
            bridge: "edgetest0".into(),
            table: "edgetest".into(),
            netns_directory: self.directory.path().join("netns"),
            state_directory: self.directory.path().join("state"),
        }
    }

    async fn network(&self) -> Network {
        let network = Network::new(self.config()).unwrap();
        network.setup().await.unwrap();
        network
    }
}

/// Runs a story on a node, then tears its network down and checks that nothing is left.
fn on_a_node<F: Future<Output = ()>>(story: impl FnOnce(&'static Node) -> F + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "node tests need root");
    let thread = std::thread::spawn(move || {
        netns::unshare_thread().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let node: &'static Node = Box::leak(Box::new(Node { directory: tempfile::tempdir().unwrap() }));
        runtime.block_on(async {
            story(node).await;
            node.network().await.teardown().await.unwrap();
        });
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let files = std::fs::read_dir(node.directory.path().join("state")).unwrap().count();
        let root = node.directory.path().to_owned();
        assert!(!root.join("netns").exists());
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(links.lines().count(), 3, "only lo is left: {links}");
        assert!(!mounts.contains(root.to_str().unwrap()), "no mount is left");
        assert_eq!(files, 0, "no file is left");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Answers every connection with its own name and the address the client has for it.
async fn serve(netns: &Path, port: u16, name: &'static str) {
    let listen = move || {
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener = netns::enter(netns, listen).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let _ = stream.write_all(format!("{name} {}", from.ip()).as_bytes()).await;
        }
    });
}

/// What the server at `to` says, asked from inside a namespace, or from the node.
async fn ask(from: Option<&Attachment>, to: SocketAddr) -> std::io::Result<String> {
    let socket = match from {
        Some(attachment) => netns::enter(&attachment.netns, TcpSocket::new_v4).await?,
        None => TcpSocket::new_v4()?,
    };
    let read = async {
        let mut stream: TcpStream = socket.connect(to).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn twenty_pods_attach_talk_and_leave() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let mut took_ms = Vec::new();
        let mut pods = Vec::new();
        for n in 0..20 {
            let start = edgelet::clock::monotonic();
            pods.push(network.attach(&format!("uid-{n}"), None).await.unwrap());
            took_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        took_ms.sort_by(f64::total_cmp);
        println!("attach: p50 {:.1} ms, worst {:.1} ms", took_ms[10], took_ms[19]);
        assert_eq!(network.attach("uid-3", None).await.unwrap(), pods[3], "again is the same");
        serve(&pods[0].netns, 80, "zero").await;
        let source = |pod: &Attachment| format!("zero {}", pod.ip);
        assert_eq!(ask(Some(&pods[19]), at(pods[0].ip, 80)).await.unwrap(), source(&pods[19]), "pod to pod, no NAT");
        assert_eq!(ask(None, at(pods[0].ip, 80)).await.unwrap(), "zero 10.42.7.1", "node to pod");
        let start = edgelet::clock::monotonic();
        for n in 0..20 {
            network.detach(&format!("uid-{n}")).await.unwrap();
        }
        println!("detach: {:.1} ms each", start.elapsed().as_secs_f64() * 1e3 / 20.0);
        network.detach("uid-3").await.unwrap();
        assert!(network.attachments().is_empty());
    });
}

#[test]
fn wanted_addresses_are_given_and_remembered_across_a_reboot() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let wanted: IpAddr = "10.42.7.77".parse().unwrap();
        assert_eq!(network.attach("a", Some(wanted)).await.unwrap().ip, wanted);
        let b = network.attach("b", Some(wanted)).await.unwrap();
        assert_ne!(b.ip, wanted);
        tokio::time::sleep(Duration::from_millis(700)).await;
        // A reboot: kernel state is gone, the file stays.
        let file = node.directory.path().join("state/addresses.json");
        let remembered = std::fs::read(&file).unwrap();
        network.teardown().await.unwrap();
        drop(network);
        std::fs::write(&file, remembered).unwrap();
        let network = node.network().await;
        assert!(network.attachments().is_empty());
        assert_eq!(network.attach("b", None).await.unwrap().ip, b.ip);
        assert_eq!(network.attach("a", None).await.unwrap().ip, wanted);
    });
}

#[test]
fn a_crash_leaves_pods_connected_and_remains_are_removed() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let a = network.attach("a", None).await.unwrap();
        let b = network.attach("b", None).await.unwrap();
        serve(&a.netns, 80, "a").await;
        drop(network);
        // Remains of an attach that a kill interrupted: a namespace without its link, and a plain file.
        let half: PathBuf = node.config().netns_directory.join("half");
        let pin = half.clone();
        netns::on_thread(move || netns::unshare_and_pin(&pin).unwrap()).await.unwrap();
        std::fs::write(node.config().netns_directory.join("less"), "").unwrap();
        assert!(ask(Some(&b), at(a.ip, 80)).await.is_ok(), "no process is needed for traffic");

        let network = node.network().await;
        let found = network.attachments();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b"], "found without the file: it was never written");
        assert_eq!(found["b"], b);
        assert!(!half.exists());
        assert_eq!(network.attach("a", None).await.unwrap(), a);
        let c = network.attach("c", Some(a.ip)).await.unwrap();
        assert!(c.ip != a.ip && c.ip != b.ip);
        assert!(ask(Some(&c), at(a.ip, 80)).await.is_ok());
    });
}

/// A proxy without the API: Services and endpoints are handed to it.
struct Services {
    state: State,
    programmer: Programmer,
}

impl Services {
    fn new(network: &Network) -> Self {
        let services = Self { state: State::new(network.layout().dns), programmer: Programmer::new(network.clone()) };
        services.programmer.replace(&services.state.everything()).unwrap();
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
            "here",
        )
        .unwrap();
        self.state.set_service(name, Some(serde_json::from_value(json!({"spec": spec})).unwrap()));
        self.state.set_slice(name, name, Some(slice));
        let start = edgelet::clock::monotonic();
        let plan = self.state.plan();
        self.programmer.apply(&plan).unwrap();
        println!("{name}: programmed in {:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    }
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
        let flush = || {
            let mut batch = Batch::default();
            batch.flush_ruleset();
            Socket::open().unwrap().commit(batch).unwrap();
        };
        flush();
        assert!(services.programmer.is_intact().unwrap(), "owned tables are spared");
        assert!(ask(Some(&client), web).await.is_ok());
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
        services.programmer.replace(&services.state.everything()).unwrap();
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
