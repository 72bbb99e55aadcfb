//! Pods of several nodes: each node is a network namespace, cabled to switches in another one, which routes
//! between their subnets. Nothing of the machine's is touched.

use crate::network::{PATIENCE, ask, serve};
use edgelet::api::kinds::Kinds;
use edgelet::client::{Client, ENDPOINTSLICES, Informers, Local, NAMESPACES, NODES, PatchType, SERVICES};
use edgelet::clock::Clock;
use edgelet::network::nftables::expression::{Expression, Verdict, is_ipv4_frame, leaves_by, source_in};
use edgelet::network::nftables::{Batch, Family, Hook, Socket};
use edgelet::network::{Attachment, Network, NetworkConfig};
use edgelet::peers::paths::{FILE, Line, read};
use edgelet::peers::{self, Mode, PeersConfig};
use edgelet::proxy::{self, ProxyConfig};
use edgelet::registry::{DeleteOptions, Registry, RegistryConfig};
use edgelet::store::MemoryStore;
use edgelet::supervise::Tree;
use edgelet::sys::netns;
use edgelet::telemetry::Trace;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde_json::json;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// A namespace and a thread in it, whose runtime does what it is told.
pub struct Place {
    pub netns: PathBuf,
    jobs: mpsc::Sender<Job>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Place {
    fn new(netns: &Path) -> Self {
        let (jobs, mut queue) = mpsc::channel::<Job>(16);
        let (pin, (ready, is_ready)) = (netns.to_owned(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            netns::unshare_and_pin(&pin).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(()).unwrap();
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    job().await;
                }
            });
        });
        is_ready.recv().unwrap();
        Self { netns: netns.to_owned(), jobs, thread: Some(thread) }
    }

    /// Runs `work` there and gives its result.
    pub async fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let _ = done.send(AssertUnwindSafe(work()).catch_unwind().await);
            })
        });
        assert!(self.jobs.send(job).await.is_ok(), "the place is there");
        match result.await.unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn netlink<T, F>(&self, work: impl FnOnce(rtnetlink::Handle) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.run(|| async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            let driver = tokio::spawn(connection);
            let value = work(handle).await;
            driver.abort();
            value
        })
        .await
    }

    /// Ends the thread and gives the namespace back.
    pub fn end(mut self) {
        let (nobody, _) = mpsc::channel(1);
        self.jobs = nobody;
        self.thread.take().unwrap().join().unwrap();
        netns::release(&self.netns).unwrap();
    }
}

async fn index(handle: &rtnetlink::Handle, name: &str) -> u32 {
    use futures_util::TryStreamExt;
    let mut links = Box::pin(handle.link().get().match_name(name.to_owned()).execute());
    links.try_next().await.unwrap().unwrap().header.index
}

async fn address(handle: &rtnetlink::Handle, link: &str, ip: Ipv4Addr, prefix: u8) {
    handle.address().add(index(handle, link).await, IpAddr::V4(ip), prefix).execute().await.unwrap();
}

/// One node with its cable, its network and its peers' loop.
pub struct Board {
    pub name: &'static str,
    pub place: Place,
    pub network: Network,
    run_directory: PathBuf,
    tree: Tree,
}

/// The cables, the boards and the API that they share.
pub struct Bed {
    directory: tempfile::TempDir,
    hub: Option<Place>,
    pub boards: Vec<Board>,
    pub client: Client,
}

impl Bed {
    /// Subnet `n` is 192.168.n.0/24 with the router at .1; boards say which subnet they are in.
    pub async fn new(boards: &[(&'static str, u8)], mode: Mode) -> Self {
        assert!(rustix::process::geteuid().is_root(), "node tests need root");
        let directory = tempfile::tempdir().unwrap();
        let hub = Place::new(&directory.path().join("hub"));
        hub.run(|| async {
            netns::sysctl("ipv4/ip_forward", "1").unwrap();
            let _ = netns::sysctl("bridge/bridge-nf-call-iptables", "0");
        })
        .await;
        for subnet in boards.iter().map(|(_, subnet)| *subnet).collect::<std::collections::BTreeSet<_>>() {
            let switch = format!("sw{subnet}");
            hub.netlink(move |handle| async move {
                handle.link().add(LinkBridge::new(&switch).up().build()).execute().await.unwrap();
                address(&handle, &switch, Ipv4Addr::new(192, 168, subnet, 1), 24).await;
            })
            .await;
        }
        let (clock, trace) = (Clock::real(), Arc::new(Trace::default()));
        let store = Arc::new(MemoryStore::default());
        let config = RegistryConfig { service_cidr: ("10.43.0.0".parse().unwrap(), 16), ..RegistryConfig::default() };
        let registry = Registry::new(config, store, Kinds::default(), clock, trace);
        let client = Client::Local(Local::new(Arc::new(registry), "test"));
        let mut bed = Self { directory, hub: Some(hub), boards: Vec::new(), client };
        for (place, (name, subnet)) in (0u8..).zip(boards) {
            bed.add(name, place, *subnet, mode).await;
        }
        bed
    }

    fn hub(&self) -> &Place {
        self.hub.as_ref().unwrap()
    }

    async fn add(&mut self, name: &'static str, place: u8, subnet: u8, mode: Mode) {
        let root = self.directory.path().join(name);
        std::fs::create_dir(&root).unwrap();
        let board = Place::new(&root.join("namespace"));
        let ip = Ipv4Addr::new(192, 168, subnet, 10 + place);
        self.cable(name, &board, subnet).await;
        board
            .netlink(move |handle| async move {
                address(&handle, "eth0", ip, 24).await;
                let router = Ipv4Addr::new(192, 168, subnet, 1);
                let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(router).build();
                handle.route().add(route).execute().await.unwrap();
            })
            .await;
        let pod_cidr = format!("10.42.{place}.0/24");
        let node = json!({"metadata": {"name": name}, "spec": {"podCIDR": pod_cidr}});
        self.client.create(NODES, "", node).await.unwrap();
        self.move_node(name, ip).await;
        let config = NetworkConfig {
            pod_cidr,
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            dns_ip: "10.43.0.10".parse().unwrap(),
            bridge: "edge0".into(),
            table: "edgelet".into(),
            netns_directory: root.join("netns"),
            state_directory: root.join("state"),
        };
        let (client, run_directory) = (self.client.clone(), root.clone());
        let (network, tree) = board
            .run(move || async move {
                let network = Network::new(config).unwrap();
                network.setup().await.unwrap();
                let mut tree = Tree::default();
                let config = PeersConfig { mode, ..PeersConfig::new(name, network.clone(), run_directory) };
                let (api, informers, clock) = (client.clone(), Informers::new(client), Clock::real());
                tree.spawn("peers", peers::run(config, api, informers.clone(), tree.shutdown()));
                let config = ProxyConfig { network: network.clone(), node_name: name.to_owned() };
                let proxy = proxy::run(config, informers, clock, Arc::new(Trace::default()), tree.shutdown());
                tree.spawn("proxy", proxy);
                (network, tree)
            })
            .await;
        self.boards.push(Board { name, place: board, network, run_directory: root, tree });
    }

    /// From the board's `eth0` to a port of its subnet's switch.
    async fn cable(&self, name: &'static str, board: &Place, subnet: u8) {
        let namespace = std::fs::File::open(&board.netns).unwrap();
        self.hub()
            .netlink(move |handle| async move {
                let peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_fd(namespace.as_raw_fd());
                let data = netlink_packet_route::link::InfoVeth::Peer(peer.build());
                let data = netlink_packet_route::link::InfoData::Veth(data);
                let switch = index(&handle, &format!("sw{subnet}")).await;
                let message = LinkVeth::new(name, "eth0").set_info_data(data).controller(switch).up().build();
                handle.link().add(message).execute().await.unwrap();
            })
            .await;
        board
            .netlink(|handle| async move {
                for link in ["lo", "eth0"] {
                    handle.link().set(LinkUnspec::new_with_name(link).up().build()).execute().await.unwrap();
                }
            })
            .await;
    }

    /// Pulls the board's cable and plugs it into another switch.
    async fn plug(&self, name: &'static str, subnet: u8) {
        self.hub()
            .netlink(move |handle| async move {
                let switch = format!("sw{subnet}");
                handle.link().add(LinkBridge::new(&switch).up().build()).execute().await.unwrap();
                address(&handle, &switch, Ipv4Addr::new(192, 168, subnet, 1), 24).await;
                let switch = index(&handle, &switch).await;
                let port = LinkUnspec::new_with_name(name).controller(switch).build();
                handle.link().set(port).execute().await.unwrap();
            })
            .await;
    }

    /// What the kubelet writes when the board's address is another.
    pub async fn move_node(&self, name: &str, ip: Ipv4Addr) {
        let status = json!({"addresses": [{"type": "InternalIP", "address": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]});
        let patch = json!({"status": status});
        self.client.patch(NODES, "", name, "status", PatchType::Merge, patch).await.unwrap();
    }

    pub fn board(&self, name: &str) -> &Board {
        self.boards.iter().find(|board| board.name == name).unwrap()
    }

    /// Runs a story with the boards; then everything is taken down and nothing may be left.
    pub async fn end(mut self) {
        let hub = self.hub.take().unwrap();
        for board in self.boards {
            let Board { place, network, tree, .. } = board;
            let left = place
                .run(move || async move {
                    tree.end(Duration::from_secs(1)).await;
                    network.teardown().await.unwrap();
                    let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                    let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
                    // Headers, lo and eth0; no network of pods or Services.
                    let is_clean = links.lines().count() == 4 && !routes.contains("2A0A") && !routes.contains("2B0A");
                    is_clean.then_some(()).ok_or((links, routes))
                })
                .await;
            assert_eq!(left, Ok(()), "left behind");
            place.end();
        }
        hub.end();
        let root = self.directory.path().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(root.to_str().unwrap()), "no mount is left: {mounts}");
    }
}

impl Board {
    /// Destinations in the kernel's table that are pods' networks, by link.
    async fn pod_routes(&self) -> Vec<String> {
        let text = self.place.run(|| async { std::fs::read_to_string("/proc/thread-self/net/route").unwrap() }).await;
        let fields = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found: Vec<String> = fields
            .filter_map(|fields| {
                let [a, b, c, _] = u32::from_str_radix(fields[1], 16).unwrap().to_ne_bytes();
                let is_network = fields[7] == "00FFFFFF" && (a, b) == (10, 42);
                is_network.then(|| format!("{} 10.42.{c}.0/24", fields[0]))
            })
            .collect();
        found.sort();
        found
    }

    pub async fn pod(&self, uid: &'static str) -> Attachment {
        let network = self.network.clone();
        self.place.run(move || async move { network.attach(uid, None).await.unwrap() }).await
    }

    /// As a DHCP client does: the old address goes with its routes, the new one comes.
    async fn readdress(&self, old: Ipv4Addr, new: Ipv4Addr) {
        self.place
            .netlink(move |handle| async move {
                use futures_util::TryStreamExt;
                let eth0 = index(&handle, "eth0").await;
                let found = handle.address().get().set_link_index_filter(eth0).set_address_filter(old.into()).execute();
                let found: Vec<_> = found.try_collect().await.unwrap();
                handle.address().del(found[0].clone()).execute().await.unwrap();
                address(&handle, "eth0", new, 24).await;
                let [a, b, c, _] = new.octets();
                let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(Ipv4Addr::new(a, b, c, 1)).build();
                handle.route().add(route).execute().await.unwrap();
            })
            .await;
    }

    fn lines(&self) -> Vec<Line> {
        read(&self.run_directory.join(FILE)).map(|paths| paths.peers).unwrap_or_default()
    }

    /// Waits until the way to a peer is this and works.
    pub async fn has_way(&self, peer: &str, way: &str, state: &str) -> Line {
        let start = edgelet::clock::monotonic();
        loop {
            let lines = self.lines();
            let line = lines.iter().find(|line| line.node == peer);
            if let Some(line) = line.filter(|line| line.way == way && line.state == state) {
                println!("{} → {peer}: {way} after {:.0} ms", self.name, start.elapsed().as_secs_f64() * 1e3);
                return line.clone();
            }
            assert!(start.elapsed() < PATIENCE * 12, "{} → {peer}: {line:?}, not {way} {state}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn at(pod: &Attachment, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ip, port)
}

/// Both ways, with the pods' own addresses.
pub async fn assert_talk(a: &Attachment, b: &Attachment) {
    for (from, to) in [(a, b), (b, a)] {
        let answer = ask(Some(from), at(to, 80)).await;
        assert_eq!(answer.unwrap(), format!("pod {}", from.ip), "from {} to {}", from.ip, to.ip);
    }
}

/// A UDP datagram as large as the pod's link takes, and its echo. The kernel forbids others to cut it in pieces.
async fn echo_full_size(from: &Attachment, to: &Attachment, mtu: usize) -> std::io::Result<usize> {
    let open = |port: u16| {
        move || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket)
        }
    };
    let (client, server) = (netns::enter(&from.netns, open(0)).await?, netns::enter(&to.netns, open(7)).await?);
    let message = vec![7; mtu - 28];
    let exchange = async {
        client.send_to(&message, at(to, 7)).await?;
        let mut buffer = vec![0; 9000];
        let (length, back) = server.recv_from(&mut buffer).await?;
        server.send_to(&buffer[..length], back).await?;
        client.recv(&mut buffer).await
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

fn run<F: Future<Output = ()>>(story: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story);
}

async fn mtu_of(pod: &Attachment) -> String {
    let read = || {
        let ethernet = |line: &str| line.contains("eth0").then(|| line.to_owned());
        let links = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        assert!(links.lines().any(|line| ethernet(line).is_some()));
        // Sysfs shows the namespace it was mounted in; this asks the socket's own.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::IpMtu).unwrap().to_string())
    };
    netns::enter(&pod.netns, read).await.unwrap()
}

#[test]
fn on_one_subnet_pods_of_three_nodes_talk_by_plain_routes() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 1), ("c", 1)], Mode::Auto).await;
        let names = ["a", "b", "c"];
        let mut pods = Vec::new();
        for (name, uid) in [("a", "pod-a"), ("b", "pod-b"), ("c", "pod-c")] {
            let pod = bed.board(name).pod(uid).await;
            serve(&pod.netns, 80, "pod").await;
            pods.push(pod);
        }
        for from in names {
            for to in names.into_iter().filter(|to| *to != from) {
                let line = bed.board(from).has_way(to, "route", "works").await;
                assert_eq!((line.link.as_str(), line.mtu), ("eth0", Some(1500)));
            }
        }
        for (from, to) in [(0, 1), (1, 2), (0, 2)] {
            assert_talk(&pods[from], &pods[to]).await;
        }
        assert_eq!(echo_full_size(&pods[0], &pods[1], 1500).await.unwrap(), 1472, "nothing is cut in pieces");
        assert_eq!(bed.board("a").pod_routes().await, ["edge0 10.42.0.0/24", "eth0 10.42.1.0/24", "eth0 10.42.2.0/24"]);

        // A peer that is deleted is forgotten, and its pods' addresses are refused at once.
        bed.client.delete(NODES, "", "c", &DeleteOptions::default()).await.unwrap();
        let start = edgelet::clock::monotonic();
        while bed.board("a").pod_routes().await.len() != 2 {
            assert!(start.elapsed() < PATIENCE, "{:?}", bed.board("a").pod_routes().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let refused = ask(Some(&pods[0]), at(&pods[2], 80)).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EHOSTUNREACH as i32), "{refused}");
        bed.end().await;
    });
}

#[test]
fn behind_a_router_pods_talk_through_vxlan_and_running_pods_get_its_mtu() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 2)], Mode::Auto).await;
        // Attached before anything is known of the way.
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        let line = bed.board("a").has_way("b", "vxlan", "works").await;
        assert_eq!((line.mtu, line.reason.as_str()), (Some(1450), "192.168.2.11 is behind 192.168.1.1"));
        bed.board("b").has_way("a", "vxlan", "works").await;
        serve(&a.netns, 80, "pod").await;
        serve(&b.netns, 80, "pod").await;
        assert_talk(&a, &b).await;
        assert_eq!((mtu_of(&a).await, mtu_of(&b).await), ("1450".to_owned(), "1450".to_owned()));
        assert_eq!(echo_full_size(&a, &b, 1450).await.unwrap(), 1422);
        let late = bed.board("a").pod("late").await;
        assert_eq!(mtu_of(&late).await, "1450");
        // The node itself reaches pods elsewhere, as probes and the API server do.
        let to = at(&b, 80);
        let answer = bed.board("a").place.run(move || async move { ask(None, to).await.unwrap() }).await;
        assert_eq!(answer, "pod 10.42.0.1");
        bed.end().await;
    });
}

#[test]
fn where_packets_of_pods_are_dropped_vxlan_carries_them() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 1)], Mode::Auto).await;
        bed.board("a").has_way("b", "route", "works").await;
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        serve(&a.netns, 80, "pod").await;
        serve(&b.netns, 80, "pod").await;
        assert_talk(&a, &b).await;
        // As a switch that lets known addresses pass only.
        for board in &bed.boards {
            board
                .place
                .run(|| async {
                    let mut batch = Batch::default();
                    batch.table("switch", 0).base_chain("switch", "out", "filter", Hook::Postrouting, 0);
                    let pods = source_in("10.42.0.0/16".parse().unwrap());
                    let drop = [Expression::Verdict(Verdict::Drop)];
                    batch.rule("switch", "out", &[&pods, &leaves_by("eth0"), &drop]);
                    Socket::open().unwrap().commit(batch).unwrap();
                })
                .await;
        }
        // The cable is pulled and put back: the way is tried anew.
        for board in &bed.boards {
            let down_and_up = |handle: rtnetlink::Handle| async move {
                handle.link().set(LinkUnspec::new_with_name("eth0").down().build()).execute().await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                handle.link().set(LinkUnspec::new_with_name("eth0").up().build()).execute().await.unwrap();
            };
            board.place.netlink(down_and_up).await;
        }
        let line = bed.board("a").has_way("b", "vxlan", "works").await;
        assert_eq!(line.reason, "packets of pods are dropped between the nodes");
        bed.board("b").has_way("a", "vxlan", "works").await;
        assert_talk(&a, &b).await;
        for board in &bed.boards {
            let delete = || async {
                let mut batch = Batch::default();
                batch.delete_table("switch");
                Socket::open().unwrap().commit(batch).unwrap();
            };
            board.place.run(delete).await;
        }
        bed.end().await;
    });
}

/// Nothing changes that either board could see: a pod that asks finds out, and both ends leave the way.
#[test]
fn where_packets_of_pods_begin_to_be_dropped_vxlan_carries_them_once_a_pod_asks() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 1)], Mode::Auto).await;
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        serve(&a.netns, 80, "pod").await;
        serve(&b.netns, 80, "pod").await;
        for (from, to) in [("a", "b"), ("b", "a")] {
            bed.board(from).has_way(to, "route", "works").await;
        }
        assert_talk(&a, &b).await;
        let filter = || async {
            let mut batch = Batch::of(Family::Bridge);
            batch.table("switch", 0).base_chain("switch", "frames", "filter", Hook::Forward, 0);
            let pods = source_in("10.42.0.0/16".parse().unwrap());
            batch.rule("switch", "frames", &[&is_ipv4_frame(), &pods, &[Expression::Verdict(Verdict::Drop)]]);
            Socket::open().unwrap().commit(batch).unwrap();
        };
        bed.hub().run(filter).await;
        let start = edgelet::clock::monotonic();
        while ask(Some(&a), at(&b, 80)).await.is_err() {
            assert!(start.elapsed() < PATIENCE * 36, "{:?} {:?}", bed.board("a").lines(), bed.board("b").lines());
        }
        println!("answered {:?} after the way fell silent", start.elapsed());
        for (from, to) in [("a", "b"), ("b", "a")] {
            let line = bed.board(from).has_way(to, "vxlan", "works").await;
            assert_eq!(line.reason, "packets of pods are dropped between the nodes");
        }
        assert_talk(&a, &b).await;
        bed.end().await;
    });
}

#[test]
fn a_board_that_moves_is_followed() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 1)], Mode::Auto).await;
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        serve(&a.netns, 80, "pod").await;
        serve(&b.netns, 80, "pod").await;
        bed.board("a").has_way("b", "route", "works").await;
        assert_talk(&a, &b).await;

        // Another lease of the same subnet.
        let moved = Ipv4Addr::new(192, 168, 1, 77);
        bed.board("b").readdress(Ipv4Addr::new(192, 168, 1, 11), moved).await;
        bed.move_node("b", moved).await;
        let start = edgelet::clock::monotonic();
        while bed.board("a").has_way("b", "route", "works").await.address != Some(moved) {
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bed.board("b").has_way("a", "route", "works").await;
        assert_talk(&a, &b).await;

        // A new subnet behind the router: plugged into another switch.
        let other = Ipv4Addr::new(192, 168, 2, 5);
        bed.plug("b", 2).await;
        bed.board("b").readdress(moved, other).await;
        bed.move_node("b", other).await;
        bed.board("a").has_way("b", "vxlan", "works").await;
        bed.board("b").has_way("a", "vxlan", "works").await;
        assert_talk(&a, &b).await;
        bed.end().await;
    });
}

/// A kernel without WireGuard lets nothing pass rather than something in the clear.
#[test]
fn when_asked_for_everything_is_sealed_by_wireguard() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 1)], Mode::Wireguard).await;
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        serve(&a.netns, 80, "pod").await;
        serve(&b.netns, 80, "pod").await;
        let has_wireguard = bed.hub().netlink(|handle| async move {
            let made = handle.link().add(rtnetlink::LinkWireguard::new("try").build()).execute().await;
            made.is_ok()
        });
        if has_wireguard.await {
            let line = bed.board("a").has_way("b", "wireguard", "works").await;
            assert_eq!(line.mtu, Some(1420));
            bed.board("b").has_way("a", "wireguard", "works").await;
            assert_talk(&a, &b).await;
            assert_eq!(echo_full_size(&a, &b, 1420).await.unwrap(), 1392);
        } else {
            println!("this kernel has no wireguard: only its absence is tested");
            let line = bed.board("a").has_way("b", "none", "unreachable").await;
            assert!(line.reason.ends_with("this kernel has no wireguard"), "{}", line.reason);
            assert!(ask(Some(&a), at(&b, 80)).await.is_err());
        }
        bed.end().await;
    });
}

#[test]
fn services_reach_pods_of_other_nodes() {
    run(async {
        let bed = Bed::new(&[("a", 1), ("b", 2)], Mode::Auto).await;
        let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
        serve(&b.netns, 8080, "pod").await;
        bed.board("a").has_way("b", "vxlan", "works").await;
        bed.board("b").has_way("a", "vxlan", "works").await;
        bed.client.create(NAMESPACES, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        for (name, ip, node_port, policy) in
            [("web", "10.43.0.60", 30060, "Cluster"), ("near", "10.43.0.61", 30061, "Local")]
        {
            let ports = json!([{"name": "http", "port": 80, "targetPort": 8080, "nodePort": node_port}]);
            let spec = json!({"type": "NodePort", "clusterIP": ip, "ports": ports, "externalTrafficPolicy": policy});
            let service = json!({"metadata": {"name": name}, "spec": spec});
            bed.client.create(SERVICES, "default", service).await.unwrap();
            let slice = json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                "endpoints": [{"addresses": [b.ip], "nodeName": "b", "conditions": {"ready": true}}]});
            bed.client.create(ENDPOINTSLICES, "default", slice).await.unwrap();
        }
        let pods = format!("pod {}", a.ip);
        let ask_service = || async { ask(Some(&a), "10.43.0.60:80".parse().unwrap()).await };
        let start = edgelet::clock::monotonic();
        while ask_service().await.ok().as_ref() != Some(&pods) {
            assert!(start.elapsed() < PATIENCE, "{:?}", ask_service().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // From outside, by either node's port; the client is seen where the policy says so.
        let outside = |to: &'static str| bed.hub().run(move || async move { ask(None, to.parse().unwrap()).await });
        for (to, expected, why) in [
            ("192.168.1.10:30060", "pod 10.42.0.1", "by the node without the pod"),
            ("192.168.2.11:30061", "pod 192.168.2.1", "the client's own address"),
        ] {
            // The other board's rules may be a moment later.
            let start = edgelet::clock::monotonic();
            loop {
                let answer = tokio::time::timeout(Duration::from_secs(1), outside(to)).await.ok().and_then(Result::ok);
                if answer.as_deref() == Some(expected) {
                    break;
                }
                assert!(start.elapsed() < PATIENCE, "{to}: {why}: {answer:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let dropped = tokio::time::timeout(Duration::from_millis(500), outside("192.168.1.10:30061")).await;
        assert!(dropped.is_err(), "a balancer tries another node: {dropped:?}");
        bed.end().await;
    });
}
