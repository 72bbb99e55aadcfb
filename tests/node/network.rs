//! The pod network in network namespaces of its own: nothing of the machine's is touched.

use edgelet::network::nftables::{Batch, Socket};
use edgelet::network::{Attachment, Network, NetworkConfig};
use edgelet::sys::netns;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub const PATIENCE: Duration = Duration::from_secs(5);

/// A node in a namespace of its own, on a thread of its own.
pub struct Node {
    pub directory: tempfile::TempDir,
}

impl Node {
    pub fn config(&self) -> NetworkConfig {
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

    pub async fn network(&self) -> Network {
        let network = Network::new(self.config()).unwrap();
        network.setup().await.unwrap();
        network
    }
}

/// Runs a story on a node, then tears its network down and checks that nothing is left.
pub fn on_a_node<F: Future<Output = ()>>(story: impl FnOnce(&'static Node) -> F + Send + 'static) {
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
pub async fn serve(netns: &Path, port: u16, name: &'static str) {
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
pub async fn ask(from: Option<&Attachment>, to: SocketAddr) -> std::io::Result<String> {
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
        network.detach("uid-0").await.unwrap();
        println!("detach: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        let start = edgelet::clock::monotonic();
        let uids: Vec<String> = (1..20).map(|n| format!("uid-{n}")).collect();
        futures_util::future::try_join_all(uids.iter().map(|uid| network.detach(uid))).await.unwrap();
        println!("detach 19 at once: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        network.detach("uid-3").await.unwrap();
        assert!(network.attachments().is_empty());
    });
}

/// What a privileged pod could do: take another's address and send from it.
#[test]
fn a_pod_sends_from_its_own_address_only() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let server = network.attach("server", None).await.unwrap();
        let victim = network.attach("victim", None).await.unwrap();
        let thief = network.attach("thief", None).await.unwrap();
        serve(&server.netns, 80, "server").await;
        let own = format!("server {}", thief.ip);
        assert_eq!(ask(Some(&thief), at(server.ip, 80)).await.unwrap(), own);
        let stolen = victim.ip;
        let pod = thief.netns.clone();
        netns::on_thread(move || {
            netns::join(&pod).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                use futures_util::TryStreamExt;
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let mut links = Box::pin(handle.link().get().match_name("eth0".to_owned()).execute());
                let index = links.try_next().await.unwrap().unwrap().header.index;
                handle.address().add(index, stolen, 32).execute().await.unwrap();
            });
        })
        .await
        .unwrap();
        let send = move |from: IpAddr| {
            let pod = thief.netns.clone();
            async move {
                let bind = move || {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(SocketAddr::new(from, 0))?;
                    Ok(socket)
                };
                let socket = netns::enter(&pod, bind).await.unwrap();
                let connected = tokio::time::timeout(Duration::from_millis(700), socket.connect(at(server.ip, 80)));
                connected.await.is_ok_and(|connected| connected.is_ok())
            }
        };
        assert!(send(thief.ip).await, "from its own");
        assert!(!send(stolen).await, "from another's");
        // The victim's packets come to the victim still, whatever was announced.
        assert_eq!(ask(Some(&victim), at(server.ip, 80)).await.unwrap(), format!("server {stolen}"));
    });
}

/// As when a way to another node has fallen silent: packets leave, and nothing comes back.
#[test]
fn packets_without_an_answer_are_told_of_once_in_a_while_for_each_node() {
    on_a_node(|node| async move {
        let network = node.network().await;
        let pod = network.attach("a", None).await.unwrap();
        let mut unanswered = network.unanswered().unwrap();
        route_to_nobody("10.42.8.0".parse().unwrap(), 23, &node.config().bridge).await;
        let open = || std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        let sockets = [netns::enter(&pod.netns, open).await.unwrap(), open().unwrap()];
        let send = |from: usize, to: &str| sockets[from].send_to(b"anybody?", (to, 9)).unwrap();
        let silence = Duration::from_millis(200);
        for (from, to, again) in [(0, "10.42.9.5", "10.42.9.6"), (1, "10.42.8.7", "10.42.8.7")] {
            send(from, to);
            assert!(tokio::time::timeout(silence, unanswered.next()).await.is_err(), "{to}: the first may be answered");
            send(from, to);
            let told = tokio::time::timeout(PATIENCE, unanswered.next()).await.unwrap();
            assert_eq!(told, to.parse::<Ipv4Addr>().unwrap());
            (0..3).for_each(|_| _ = send(from, again));
            assert!(tokio::time::timeout(silence, unanswered.next()).await.is_err(), "{to}: its node was told of");
        }
        (0..3).for_each(|_| _ = send(0, "10.42.7.200"));
        assert!(tokio::time::timeout(silence, unanswered.next()).await.is_err(), "no other node's");

        assert!(network.unanswered().is_err(), "one listener at a time");
        drop(unanswered);
        let mut unanswered = network.unanswered().expect("the next process");
        let mut flush = Batch::default();
        flush.flush_ruleset();
        Socket::open().unwrap().commit(flush).unwrap();
        network.program().unwrap();
        send(0, "10.42.9.5");
        let told = tokio::time::timeout(PATIENCE, unanswered.next()).await.unwrap();
        assert_eq!(told, Ipv4Addr::new(10, 42, 9, 5), "the rules are back");
    });
}

async fn route_to_nobody(network: Ipv4Addr, prefix: u8, link: &str) {
    use futures_util::TryStreamExt;
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let driver = tokio::spawn(connection);
    let mut links = Box::pin(handle.link().get().match_name(link.to_owned()).execute());
    let index = links.try_next().await.unwrap().unwrap().header.index;
    let route = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, prefix);
    handle.route().add(route.output_interface(index).build()).execute().await.unwrap();
    driver.abort();
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
