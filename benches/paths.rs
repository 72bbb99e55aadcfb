//! Throughput between pods of two nodes beside that of the nodes themselves, over the same cables, in turns.
//! `cargo bench --features fake --bench paths`, as root.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a measurement ends at the first surprise, and shares the tests' bed"
)]

#[path = "../tests/node/network.rs"]
#[allow(unused_imports, reason = "the tests of these files use more of it")]
mod network;
#[path = "../tests/node/peers.rs"]
#[allow(unused_imports, reason = "the tests of these files use more of it")]
mod peers;

use edgelet::peers::Mode;
use edgelet::sys::netns;
use peers::Bed;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
const PORT: u16 = 5201;
const BUFFER_BYTES: usize = 128 << 10;

/// Gigabits per second of one TCP connection.
fn throughput(from: &Path, to: &Path, ip: IpAddr) -> f64 {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (to, from) = (to.to_owned(), from.to_owned());
    let receiver = std::thread::spawn(move || {
        netns::join(&to).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
        let start = edgelet::clock::monotonic();
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9,
                count => bytes += count,
            }
        }
    });
    is_ready.recv().unwrap();
    let sender = std::thread::spawn(move || {
        netns::join(&from).unwrap();
        let mut stream = TcpStream::connect(SocketAddr::new(ip, PORT)).unwrap();
        let buffer = vec![7; BUFFER_BYTES];
        let start = edgelet::clock::monotonic();
        while start.elapsed() < ROUND {
            stream.write_all(&buffer).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap()
}

/// Two boards, their pods, and the way between.
async fn measure(boards: &[(&'static str, u8)], mode: Mode, way: &str) {
    let bed = Bed::new(boards, mode).await;
    let (a, b) = (bed.board("a").pod("pod-a").await, bed.board("b").pod("pod-b").await);
    let line = bed.board("a").has_way("b", way, "works").await;
    bed.board("b").has_way("a", way, "works").await;
    let nodes: Vec<PathBuf> = bed.boards.iter().map(|board| board.place.netns.clone()).collect();
    let (mut plain, mut pods) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(throughput(&nodes[0], &nodes[1], line.address.unwrap().into()));
        pods.push(throughput(&a.netns, &b.netns, b.ip));
    }
    let best = |list: &[f64]| list.iter().copied().fold(0.0, f64::max);
    let (plain, pods) = (best(&plain), best(&pods));
    println!("{way}: nodes {plain:.2} Gbit/s, pods {pods:.2} Gbit/s, {:.0} %", pods / plain * 100.0);
    bed.end().await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        measure(&[("a", 1), ("b", 1)], Mode::Auto, "route").await;
        measure(&[("a", 1), ("b", 1)], Mode::Vxlan, "vxlan").await;
    });
}
