//! A fleet in one thread: an API server that speaks TLS and HTTP/2, and boards that really enrol, open their tunnels
//! and run kubelets over the fake runtime. Every board has its own clock, its own folder and its own line.

use super::line::{Exchange, Line};
use super::world::World;
use edgelet::api::kinds::Kinds;
use edgelet::api::object::ObjectExt;
use edgelet::api::quantity::Quantity;
use edgelet::apiserver::{ApiServer, ApiServerConfig};
use edgelet::client::kubeconfig::Access;
use edgelet::client::uplink::State;
use edgelet::client::{Client, Informers, Local, NODES, PODS, Remote, SECRETS};
use edgelet::clock::Clock;
use edgelet::config::{ClusterFacts, Config, Typed};
use edgelet::controllers::{self, ControllerConfig};
use edgelet::kubelet::board;
use edgelet::kubelet::{Kubelet, KubeletConfig};
use edgelet::node::joining::{Joining, Step};
use edgelet::node::{self, NodeLink, joined, time};
use edgelet::pki::bootstrap::{self, BootstrapToken};
use edgelet::pki::join_token::JoinToken;
use edgelet::pki::node_identity::NodeIdentity;
use edgelet::pki::{Pki, ServerNames};
use edgelet::registry::{Registry, RegistryConfig, ServerFacts};
use edgelet::runtime::fake::FakeRuntime;
use edgelet::scheduler;
use edgelet::store::MemoryStore;
use edgelet::supervise::Tree;
use edgelet::sys::tpm::Tpm;
use edgelet::tunnel::Tunnels;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

pub const START: &str = "2026-11-23T00:00:00Z";
pub const URL: &str = "https://10.99.0.1:6443";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// The server's side, and the administrator.
pub struct Fleet {
    world: World,
    pub pki: Pki,
    pub tunnels: Tunnels,
    /// The administrator, by TLS.
    pub remote: Remote,
    exchange: Exchange,
    boards: AtomicU8,
    _folder: tempfile::TempDir,
}

impl Deref for Fleet {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl Fleet {
    pub async fn new() -> Self {
        // With RUST_LOG set, one test at a time says what happens.
        if std::env::var_os("RUST_LOG").is_some() {
            edgelet::telemetry::init("info");
        }
        let clock = Clock::simulated(START.parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let pki = Pki::open(folder.path(), issuer, clock.clone()).unwrap();
        let (store, kinds) = (Arc::new(MemoryStore::default()), Kinds::default());
        let trace = Arc::default();
        let registry =
            Registry::new(RegistryConfig::default(), store, kinds.clone(), clock.clone(), Arc::clone(&trace));
        let registry = Arc::new(registry);
        let facts = ServerFacts { address: ADDRESS, port: 6443, client_ca_pem: pki.ca_pem() };
        registry.bootstrap(&facts).await.unwrap();
        let client = |component| Client::Local(Local::new(registry.clone(), component));
        let mut world = World::over(client("test"), clock.clone(), Arc::clone(&trace));

        let tunnels = Tunnels::default();
        let names = ServerNames { extra: vec![ADDRESS.to_string()], ..ServerNames::default() };
        let facts = ClusterFacts::of(&Typed { node_name: Some("server".into()), ..Typed::default() }.check().unwrap());
        let config =
            ApiServerConfig { advertise: "10.99.0.1:6443".into(), names, anonymous: true, cluster: json!(facts) };
        let api = ApiServer::new(config, registry.clone(), pki.clone(), tunnels.clone(), clock.clone());
        let (exchange, door) = Exchange::new();
        let shutdown = world.tree.shutdown();
        world.tree.spawn_fallible("apiserver", async move { api.serve(vec![door], shutdown).await });

        let informers = Informers::new(client("informers"));
        let config = ControllerConfig { pki: Some(pki.clone()), ..ControllerConfig::new(kinds, pki.ca_pem()) };
        controllers::run_all(&config, client("controllers"), informers.clone(), clock.clone(), &mut world.tree);
        let shutdown = world.tree.shutdown();
        world.tree.spawn("scheduler", scheduler::run(client("scheduler"), informers, clock.clone(), trace, shutdown));

        let admin = pki.issue_client("admin", Some("system:masters")).unwrap();
        let access = Access {
            server: URL.into(),
            ca_pem: pki.ca_pem().into_bytes(),
            client_certificate_pem: admin.certificate_pem.into_bytes(),
            client_key_pem: admin.key_pem.into_bytes(),
            ..Access::default()
        };
        let line = exchange.line("192.0.2.254:1".parse().unwrap());
        let remote = Remote::with_clock(access, line, clock).unwrap();
        Self { world, pki, tunnels, remote, exchange, boards: AtomicU8::new(0), _folder: folder }
    }

    /// With these boards, joined and ready.
    pub async fn of(names: &[&str]) -> (Self, Vec<Board>) {
        let fleet = Self::new().await;
        let token = fleet.token(|_| {}).await;
        let mut boards = Vec::new();
        for name in names {
            let mut board = fleet.board(name);
            board.join(&token).await.unwrap();
            board.start().await;
            boards.push(board);
        }
        for name in names {
            fleet.ready(name).await;
        }
        (fleet, boards)
    }

    pub async fn token(&self, change: impl FnOnce(&mut BootstrapToken)) -> JoinToken {
        let token = JoinToken::generate(*self.pki.trust().current.key_hash()).unwrap();
        let mut record = BootstrapToken::for_nodes(&token.id, token.secret());
        record.expires = Some(self.clock.now() + SignedDuration::from_hours(24));
        change(&mut record);
        self.create(SECRETS, bootstrap::NAMESPACE, record.object()).await;
        token
    }

    /// A board fresh out of its box, whose clock is right.
    pub fn board(&self, name: &str) -> Board {
        self.board_with_clock(name, self.clock.now())
    }

    pub fn board_with_clock(&self, name: &str, machine: Timestamp) -> Board {
        let number = self.boards.fetch_add(1, Ordering::Relaxed) + 1;
        let ip = Ipv4Addr::new(192, 0, 2, number);
        let (clock, folder) = (Clock::simulated(machine), tempfile::tempdir().unwrap());
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        Board {
            name: name.to_owned(),
            runtime: None,
            line: self.exchange.line(SocketAddr::new(IpAddr::V4(ip), 40_000)),
            ip,
            clock,
            folder,
            steps: Mutex::default(),
            running: None,
        }
    }

    pub async fn ready(&self, name: &str) -> Value {
        let is = |node: &Value| node.name() == name && condition(node, "Ready") == "True";
        let nodes = self.until("node is ready", NODES, |nodes| nodes.iter().any(is)).await;
        nodes.into_iter().find(is).unwrap()
    }

    /// A pod of this name in `default`, once it is ready.
    pub async fn ready_pod(&self, name: &str) -> Value {
        let is = |pod: &Value| pod.name() == name && condition(pod, "Ready") == "True";
        self.until("pod is ready", PODS, |pods| pods.iter().any(is)).await.into_iter().find(is).unwrap()
    }

    /// Time passes for the server and these boards alike, and nobody does anything in it.
    pub fn pass(&self, boards: &[Board], by: SignedDuration) {
        self.clock.pass(by);
        boards.iter().for_each(|board| board.clock.pass(by));
    }

    pub fn days(&self, boards: &[Board], days: i64) {
        self.pass(boards, SignedDuration::from_hours(24 * days));
    }
}

pub async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// The status of a condition, empty when it is not there.
pub fn condition<'a>(object: &'a Value, name: &str) -> &'a str {
    let all = object.at(&["status", "conditions"]).and_then(Value::as_array);
    all.into_iter().flatten().find(|one| one["type"] == name).map_or("", |one| one.str_at(&["status"]))
}

/// One machine.
pub struct Board {
    pub name: String,
    pub clock: Clock,
    /// Pods live here; they outlive edgelet.
    pub runtime: Option<FakeRuntime>,
    pub line: Line,
    pub ip: Ipv4Addr,
    pub folder: tempfile::TempDir,
    /// What joining said.
    pub steps: Mutex<Vec<Step>>,
    pub running: Option<Running>,
}

/// edgelet on a board.
pub struct Running {
    pub state: watch::Receiver<State>,
    informers: Informers,
    tree: Tree,
    /// Nothing changes in the network.
    _changes: watch::Sender<u64>,
}

impl Board {
    pub fn identity(&self) -> NodeIdentity {
        joined::identity(self.folder.path())
    }

    /// `edgelet join`.
    pub async fn join(&self, token: &JoinToken) -> anyhow::Result<()> {
        let joining = Joining {
            server: URL.into(),
            token: token.clone(),
            node_name: self.name.clone(),
            reach: Arc::new(self.line.clone()),
            clock: self.clock.clone(),
        };
        let tell = |step| self.steps.lock().unwrap().push(step);
        joining.enroll(&self.identity(), &tell).await.map(drop)
    }

    fn config(&self) -> Config {
        let typed = Typed {
            data_dir: Some(self.folder.path().to_owned()),
            run_dir: Some(self.folder.path().join("run")),
            node_name: Some(self.name.clone()),
            node_ip: Some(IpAddr::V4(self.ip)),
            ..Typed::default()
        };
        let facts = joined::facts(&self.identity()).unwrap().expect("joined");
        typed.in_cluster(facts).check().unwrap()
    }

    /// `edgelet node`; returns once it knows its pods' addresses.
    pub async fn start(&mut self) {
        let (config, identity) = (self.config(), self.identity());
        let joined = identity.load().unwrap().expect("joined");
        time::restore(&identity, &joined.ca_pem, &self.clock);
        let (mut tree, changes) = (Tree::default(), watch::Sender::new(0));
        let ways = joined::Ways {
            reach: Arc::new(self.line.clone()),
            changed: changes.subscribe(),
            tpm: Tpm::at(&self.folder.path().join("no-tpm")),
        };
        let uplink = joined::connect(&config, &identity, &joined, ways, self.clock.clone(), &mut tree).await.unwrap();
        let NodeLink { client, informers, streams, relay: _, heartbeat, node_ips, trace, clock } = uplink.link;
        let kubelet_config = KubeletConfig {
            node_name: config.node_name.clone(),
            node_ips,
            cluster_dns: vec![IpAddr::V4(config.dns_ip)],
            cluster_domain: config.cluster_domain,
            log_directory: self.folder.path().join("logs"),
            resolv_conf: "/nonexistent".into(),
            labels: BTreeMap::new(),
            capacity: allocatable(),
            allocatable: allocatable(),
            heartbeat,
            board: board::Board::default(),
            devices: Vec::new(),
        };
        let pod_cidr = node::given_pod_cidr(&kubelet_config, &client, &informers).await;
        let network: Ipv4Addr = pod_cidr.split('/').next().unwrap().parse().unwrap();
        let logs = self.folder.path().join("logs");
        let runtime = self.runtime.get_or_insert_with(|| FakeRuntime::with_logs(clock.clone(), network, logs)).clone();
        let kubelet = Kubelet::new(kubelet_config, client, &informers, Arc::new(runtime), clock, trace);
        node::run_kubelet(&kubelet, informers.clone(), streams, &mut tree);
        self.running = Some(Running { state: uplink.state, informers, tree, _changes: changes });
    }

    /// edgelet ends as systemd ends it; pods live on.
    pub async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.tree.end(Duration::from_secs(5)).await;
        running.informers.end();
        drop(running.state);
        // What was aborted lets go of the replica's lock, as the kernel does for a process that has ended.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Power is cut: nothing of it runs, and its clock stands.
    pub async fn power_off(&mut self) {
        self.line.tear();
        self.stop().await;
        if let Some(runtime) = &self.runtime {
            runtime.reboot();
        }
    }

    /// Power is back; the machine's clock says so.
    pub async fn power_on(&mut self, machine: Timestamp) {
        self.clock = Clock::simulated(machine);
        self.runtime = None;
        self.start().await;
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("running")
    }

    /// How often the container `c` of a pod was started here.
    pub fn starts(&self, pod: &Value) -> u32 {
        self.runtime.as_ref().map_or(0, |runtime| runtime.starts(pod.uid(), "c"))
    }

    /// Pods with a running container, by uid.
    pub async fn pods(&self) -> Vec<String> {
        use edgelet::runtime::{ContainerState, Runtime};
        let Some(runtime) = &self.runtime else { return Vec::new() };
        let mut all = runtime.list().await.unwrap();
        all.retain(|pod| pod.containers.iter().any(|one| matches!(one.state, ContainerState::Running { .. })));
        all.into_iter().map(|pod| pod.pod.uid).collect()
    }

    pub fn is_connected(&self) -> bool {
        matches!(&*self.running().state.borrow(), State::Connected)
    }

    /// Waits until the tunnel is open.
    pub async fn connected(&self) {
        let mut state = self.running().state.clone();
        let open = state.wait_for(|state| matches!(state, State::Connected));
        let open = tokio::time::timeout(Duration::from_secs(7200), open).await;
        assert!(open.is_ok(), "{}: no tunnel within two hours: {:?}", self.name, self.running().state.borrow());
    }
}

fn allocatable() -> BTreeMap<String, Quantity> {
    let pairs = [
        ("cpu", Quantity::from_units(4)),
        ("memory", Quantity::from_bytes(4 << 30)),
        ("pods", Quantity::from_units(110)),
    ];
    pairs.into_iter().map(|(name, quantity)| (name.to_owned(), quantity)).collect()
}

/// A Deployment of `replicas` pods.
pub fn deployment(name: &str, replicas: u32) -> Value {
    let labels = json!({"app": name});
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "app:1"}]}}}})
}
