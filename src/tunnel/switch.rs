//! The server's side of the relay: hands packets of one node's pods to the stream of the node they are for.
//! A node sends only from its own pods' addresses. Who has no stream open is knocked at, and its packets wait a little.

use super::Tunnels;
use super::relay::{Batch, Connect, Link, Packets, addresses, carry};
use crate::clock::monotonic;
use crate::network::ipam::Cidr;
use crate::sys::Stream;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Packets that wait for one node; more are lost.
const QUEUE_LIMIT: usize = 256;
/// Longer than nodes wait, so that they end an idle stream.
const IDLE: Duration = Duration::from_secs(90);
/// Between two knocks at a node that does not come; what waited for it is lost.
const KNOCK_PAUSE: Duration = Duration::from_secs(3);
/// How soon a node that was forgotten, or whose pods' network is another's now, loses its stream.
const CHECK_PAUSE: Duration = Duration::from_secs(10);
/// Bytes in flight to the server's own board.
const PIPE_BYTES: usize = 64 << 10;

/// Which node has which pods' network.
pub trait Directory: Send + Sync {
    /// `None` for a node that is not known, has no network yet, or one that another had before it.
    fn pods_of(&self, node: &str) -> Option<Cidr>;
    fn owner_of(&self, ip: Ipv4Addr) -> Option<(String, Cidr)>;
}

/// Joins all relay streams. Cheap to clone.
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    tunnels: Tunnels,
    directory: Box<dyn Directory>,
    /// Disjoint.
    ports: Mutex<BTreeMap<Cidr, Port>>,
    /// Nodes of this process, which need no tunnel to be knocked at.
    own: Mutex<HashMap<String, Arc<Notify>>>,
    sessions: AtomicU64,
}

/// A node's place on the switch.
struct Port {
    node: String,
    session: u64,
    packets: mpsc::Sender<Bytes>,
    /// Taken by the node's stream when it comes.
    waiting: Option<mpsc::Receiver<Bytes>>,
    knocked: Instant,
}

impl Switch {
    pub fn new(tunnels: Tunnels, directory: Box<dyn Directory>) -> Self {
        Self(Arc::new(Inner {
            tunnels,
            directory,
            ports: Mutex::default(),
            own: Mutex::default(),
            sessions: AtomicU64::new(0),
        }))
    }

    /// Serves a node's stream until it ends. `NotFound` for a node that has no pods' network.
    pub async fn serve(&self, stream: impl Stream, node: &str) -> io::Result<()> {
        let nothing = || io::Error::new(io::ErrorKind::NotFound, format!("node {node} has no pod network of its own"));
        let pods = self.0.directory.pods_of(node).ok_or_else(nothing)?;
        let (packets, session) = self.attach(node, pods);
        let mut place =
            Place { switch: self.clone(), node, pods, packets, session, checked: monotonic(), has_warned: false };
        carry(stream, &mut place, IDLE).await
    }

    /// How the node of this process gets there.
    pub fn link(&self, node: &str) -> Link {
        let knocks = Arc::new(Notify::new());
        self.0.own.lock().expect("no panic while it is locked").insert(node.to_owned(), knocks.clone());
        Link { connect: Arc::new(Near { switch: self.clone(), node: node.to_owned() }), knocks }
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<Cidr, Port>> {
        self.0.ports.lock().expect("no panic while the ports are locked")
    }

    /// Takes the node's place; an older stream of it ends, and so does that of whoever had the network before.
    fn attach(&self, node: &str, pods: Cidr) -> (mpsc::Receiver<Bytes>, u64) {
        let mut ports = self.ports();
        let waiting = ports.get_mut(&pods).filter(|port| port.node == node && port.knocked + KNOCK_PAUSE > monotonic());
        let waiting = waiting.and_then(|port| Some((port.waiting.take()?, port.packets.clone())));
        let (receiver, packets) = waiting.unwrap_or_else(|| {
            let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
            (receiver, sender)
        });
        ports.retain(|other, _| !other.overlaps(pods));
        ports.insert(pods, self.port(node, packets, None));
        (receiver, self.0.sessions.load(Ordering::Relaxed))
    }

    fn port(&self, node: &str, packets: mpsc::Sender<Bytes>, waiting: Option<mpsc::Receiver<Bytes>>) -> Port {
        let session = self.0.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        Port { node: node.to_owned(), session, packets, waiting, knocked: monotonic() }
    }

    /// Whether the switch leads to this stream still.
    fn leads_to(&self, pods: Cidr, session: u64) -> bool {
        self.ports().get(&pods).is_some_and(|port| port.session == session)
    }

    /// Hands a packet on, or loses it.
    fn route(&self, to: Ipv4Addr, packet: &[u8]) {
        let mut ports = self.ports();
        let port = ports.range_mut(..=Cidr::new(to, 32)).next_back().filter(|(pods, _)| pods.contains(to));
        if let Some((_, port)) = port
            && (port.waiting.is_none() || port.knocked + KNOCK_PAUSE > monotonic())
        {
            // A full queue is a packet lost, as on any wire.
            let _ = port.packets.try_send(Bytes::copy_from_slice(packet));
            return;
        }
        let Some((node, pods)) = self.0.directory.owner_of(to) else { return };
        let (packets, waiting) = mpsc::channel(QUEUE_LIMIT);
        let _ = packets.try_send(Bytes::copy_from_slice(packet));
        ports.retain(|other, _| !other.overlaps(pods));
        ports.insert(pods, self.port(&node, packets, Some(waiting)));
        drop(ports);
        self.knock(node);
    }

    fn knock(&self, node: String) {
        if let Some(knocks) = self.0.own.lock().expect("no panic while it is locked").get(&node) {
            knocks.notify_one();
            return;
        }
        let tunnels = self.0.tunnels.clone();
        crate::supervise::spawn(async move {
            if let Err(error) = tunnels.knock(&node).await {
                tracing::debug!(node, %error, "a node that packets are for is not there");
            }
        });
    }
}

/// A node's stream at the switch.
struct Place<'a> {
    switch: Switch,
    node: &'a str,
    pods: Cidr,
    packets: mpsc::Receiver<Bytes>,
    session: u64,
    checked: Instant,
    has_warned: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.switch.leads_to(self.pods, self.session) {
            self.switch.ports().remove(&self.pods);
        }
    }
}

impl Place<'_> {
    fn check(&mut self) -> io::Result<()> {
        let now = monotonic();
        if self.checked + CHECK_PAUSE > now {
            return Ok(());
        }
        self.checked = now;
        match self.switch.0.directory.pods_of(self.node) == Some(self.pods) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the pod network is the node's no more")),
        }
    }
}

impl Packets for Place<'_> {
    async fn collect(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(packet) = self.packets.recv().await else { return Err(io::ErrorKind::ConnectionAborted.into()) };
        let mut has_room = batch.push(&packet);
        while has_room && let Ok(packet) = self.packets.try_recv() {
            has_room = batch.push(&packet);
        }
        Ok(())
    }

    fn deliver(&mut self, packet: &[u8]) -> io::Result<()> {
        self.check()?;
        if !self.switch.leads_to(self.pods, self.session) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "another stream has its place"));
        }
        match addresses(packet) {
            Some((from, to)) if self.pods.contains(from) && !self.pods.contains(to) => self.switch.route(to, packet),
            Some((from, _)) if !std::mem::replace(&mut self.has_warned, true) => {
                tracing::warn!(node = self.node, %from, "dropped a packet with an address that is not the node's");
            }
            _ => {}
        }
        Ok(())
    }
}

/// The server's own board: a pipe in memory.
struct Near {
    switch: Switch,
    node: String,
}

impl Connect for Near {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let (switch, node) = (self.switch.clone(), self.node.clone());
            crate::supervise::spawn(async move {
                if let Err(error) = switch.serve(theirs, &node).await {
                    tracing::debug!(%error, "the relay to this board ended");
                }
            });
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}
