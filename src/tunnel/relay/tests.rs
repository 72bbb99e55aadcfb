use super::*;
use crate::network::ipam::Cidr;
use crate::tunnel::Tunnels;
use crate::tunnel::switch::{Directory, Switch};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// Nodes `a`, `b`, `c` have 10.42.0.0/24, 10.42.1.0/24, 10.42.2.0/24.
struct Fleet;

impl Directory for Fleet {
    fn pods_of(&self, node: &str) -> Option<Cidr> {
        let index = ["a", "b", "c"].iter().position(|name| *name == node)?;
        Some(Cidr::new(Ipv4Addr::new(10, 42, u8::try_from(index).unwrap(), 0), 24))
    }

    fn owner_of(&self, ip: Ipv4Addr) -> Option<(String, Cidr)> {
        let name = ["a", "b", "c"].into_iter().find(|name| self.pods_of(name).is_some_and(|pods| pods.contains(ip)))?;
        Some((name.to_owned(), self.pods_of(name)?))
    }
}

fn switch() -> Switch {
    Switch::new(Tunnels::default(), Box::new(Fleet))
}

fn packet(from: [u8; 4], to: [u8; 4], length: usize) -> Vec<u8> {
    let mut packet = vec![7; length];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    packet
}

/// A node's end: what is sent here goes out, what comes in is heard.
struct Node {
    out: mpsc::Sender<Vec<u8>>,
    heard: mpsc::Receiver<Vec<u8>>,
    ended: tokio::task::JoinHandle<io::Result<()>>,
}

struct Ends {
    out: mpsc::Receiver<Vec<u8>>,
    heard: mpsc::Sender<Vec<u8>>,
}

impl Packets for Ends {
    async fn collect(&mut self, batch: &mut Batch) -> io::Result<()> {
        match self.out.recv().await {
            Some(packet) => batch.push(&packet),
            None => std::future::pending().await,
        };
        Ok(())
    }

    fn deliver(&mut self, packet: &[u8]) -> io::Result<()> {
        let _ = self.heard.try_send(packet.to_vec());
        Ok(())
    }
}

impl Node {
    fn on(stream: impl Stream + 'static, idle: Duration) -> Self {
        let ((out, outgoing), (hearing, heard)) = (mpsc::channel(1000), mpsc::channel(1000));
        let ended = tokio::spawn(async move { carry(stream, &mut Ends { out: outgoing, heard: hearing }, idle).await });
        Self { out, heard, ended }
    }

    async fn of(switch: &Switch, name: &str) -> Self {
        Self::on(switch.link(name).connect.connect().await.unwrap(), Duration::from_secs(60))
    }

    async fn hears(&mut self) -> Vec<u8> {
        tokio::time::timeout(Duration::from_secs(5), self.heard.recv()).await.expect("a packet").unwrap()
    }

    async fn hears_nothing(&mut self) {
        let heard = tokio::time::timeout(Duration::from_millis(500), self.heard.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}

const A: [u8; 4] = [10, 42, 0, 5];
const B: [u8; 4] = [10, 42, 1, 5];
const C: [u8; 4] = [10, 42, 2, 5];

#[tokio::test(start_paused = true)]
async fn packets_reach_the_node_they_are_for_and_no_other() {
    let switch = switch();
    let (mut a, mut b, mut c) =
        (Node::of(&switch, "a").await, Node::of(&switch, "b").await, Node::of(&switch, "c").await);
    tokio::time::sleep(Duration::from_millis(1)).await;
    for length in [20, 1500, 2048] {
        a.out.send(packet(A, B, length)).await.unwrap();
        assert_eq!(b.hears().await, packet(A, B, length));
    }
    b.out.send(packet(B, A, 100)).await.unwrap();
    assert_eq!(a.hears().await, packet(B, A, 100));
    c.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_speaks_for_its_own_pods_only() {
    let switch = switch();
    let (a, mut b) = (Node::of(&switch, "a").await, Node::of(&switch, "b").await);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut ipv6 = packet(A, B, 60);
    ipv6[0] = 0x65;
    for forged in [packet(C, B, 60), packet([192, 168, 1, 1], B, 60), packet(B, B, 60), ipv6, vec![0x45; 19]] {
        a.out.send(forged).await.unwrap();
    }
    b.hears_nothing().await;
    a.out.send(packet(A, B, 60)).await.unwrap();
    assert_eq!(b.hears().await, packet(A, B, 60));
}

#[tokio::test(start_paused = true)]
async fn who_has_no_stream_is_knocked_at_and_gets_what_waited() {
    let switch = switch();
    let link = switch.link("b");
    let mut a = Node::of(&switch, "a").await;
    a.out.send(packet(A, B, 60)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(1), link.knocks.notified()).await.expect("a knock");
    let mut b = Node::on(link.connect.connect().await.unwrap(), Duration::from_secs(60));
    assert_eq!(b.hears().await, packet(A, B, 60));

    // One that does not come is knocked at again, and gets nothing stale.
    let link = switch.link("c");
    for round in 0..2 {
        a.out.send(packet(A, C, 100 + round)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(1), link.knocks.notified()).await.expect("a knock");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    a.out.send(packet(A, C, 200)).await.unwrap();
    link.knocks.notified().await;
    let mut c = Node::on(link.connect.connect().await.unwrap(), Duration::from_secs(60));
    assert_eq!(c.hears().await, packet(A, C, 200));
    a.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn the_second_stream_of_a_node_ends_the_first() {
    let switch = switch();
    let first = Node::of(&switch, "b").await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut second = Node::of(&switch, "b").await;
    let a = Node::of(&switch, "a").await;
    tokio::time::timeout(Duration::from_secs(1), first.ended).await.expect("ended").unwrap().unwrap();
    a.out.send(packet(A, B, 60)).await.unwrap();
    assert_eq!(second.hears().await, packet(A, B, 60));
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_loses_packets_and_holds_nobody_up() {
    let switch = switch();
    let (near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 10);
    let serving = switch.clone();
    // Nobody reads the other end.
    tokio::spawn(async move { serving.serve(far, "b").await });
    let (a, mut c) = (Node::of(&switch, "a").await, Node::of(&switch, "c").await);
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..900 {
        a.out.send(packet(A, B, 1500)).await.unwrap();
    }
    a.out.send(packet(A, C, 60)).await.unwrap();
    assert_eq!(c.hears().await, packet(A, C, 60));
    drop(near);
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_rests_and_a_dead_one_is_given_up() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let idle = Duration::from_secs(60);
    let (node, other) = (Node::on(near, idle), Node::on(far, Duration::from_secs(90)));
    let begun = monotonic();
    // One direction only: the other side's answers to questions keep it.
    for _ in 0..30 {
        node.out.send(packet(A, B, 60)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(!node.ended.is_finished());
    node.ended.await.unwrap().unwrap();
    assert_eq!(begun.elapsed().as_secs(), 145 + 60);
    other.ended.await.unwrap().unwrap();

    let (near, _held) = tokio::io::duplex(1 << 16);
    let node = Node::on(near, idle);
    let begun = monotonic();
    node.out.send(packet(A, B, 60)).await.unwrap();
    let error = node.ended.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 20));
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_the_stream() {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let node = Node::on(near, Duration::from_secs(60));
    far.write_all(&[0x20, 0, 1, 2]).await.unwrap();
    let error = node.ended.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}
