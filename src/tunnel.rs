//! The connection a node opens and the server calls back through: HTTP/2 with the roles reversed.
//! On the server's own board it is a pipe in memory. Over each dialled stream runs HTTP/1.1.
//! What runs on a stream is in `frames`. Packets of pods that find no other way take streams of their own: `relay`.

pub mod frames;
pub mod node;
pub mod relay;
pub mod rhythm;
pub mod server;
mod stream;
pub mod switch;

use crate::sys::Stream;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// `GET` here with `Upgrade: edgelet-tunnel` and a node's client certificate opens a tunnel.
pub const PATH: &str = "/edgelet/v1/tunnel";
/// The tunnel's name in `Upgrade`.
pub const PROTOCOL: &str = "edgelet-tunnel";
/// Bytes in flight per direction of an in-memory stream.
pub const PIPE_BYTES: usize = 16 << 10;

/// What streams to the kubelet ask for, inside a tunnel.
const KUBELET_PATH: &str = "/kubelet";
/// Asks a node to open a relay stream: there are packets for it.
const RELAY_PATH: &str = "/relay";
/// Streams of one tunnel at a time.
const STREAMS_LIMIT: u32 = 128;
const HEADERS_LIMIT_BYTES: u32 = 4 << 10;
/// Bytes in flight per stream; enough for 10 Mbit/s at a tenth of a second.
const WINDOW_BYTES: u32 = 128 << 10;
/// Bytes in flight per tunnel: every stream has its window, so that streams nobody reads stall no other. It is what
/// a tunnel holds at most, 16 MiB, when nobody reads any of its streams; memory is taken by bytes that came.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_LIMIT * WINDOW_BYTES;

/// Opens streams to one node.
pub trait Dial: Send + Sync {
    fn dial(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>>;

    /// Asks the node to open a relay stream.
    fn knock(&self) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }
}

/// The nodes that can be reached now, by node name.
#[derive(Clone, Default)]
pub struct Tunnels(Arc<Mutex<HashMap<String, Open>>>);

struct Open {
    dial: Arc<dyn Dial>,
    /// Dropped when another takes its place.
    _replaced: oneshot::Sender<()>,
}

/// A tunnel's place among the others; gives it up when dropped.
pub struct Attached {
    tunnels: Tunnels,
    node: String,
    dial: Arc<dyn Dial>,
    replaced: oneshot::Receiver<()>,
}

impl Attached {
    /// Waits until another tunnel of the same node has taken the place.
    pub async fn replaced(&mut self) {
        let _ = (&mut self.replaced).await;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut open = self.tunnels.lock();
        if open.get(&self.node).is_some_and(|current| Arc::ptr_eq(&current.dial, &self.dial)) {
            open.remove(&self.node);
        }
    }
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.0.lock().expect("no panic while the tunnels are locked")
    }

    /// For as long as the process lives: the server's own board.
    pub fn register(&self, node: &str, dial: Arc<dyn Dial>) {
        self.lock().insert(node.to_owned(), Open { dial, _replaced: oneshot::channel().0 });
    }

    /// For as long as the answer is held, or until the node attaches another.
    pub fn attach(&self, node: &str, dial: Arc<dyn Dial>) -> Attached {
        let (sender, replaced) = oneshot::channel();
        self.lock().insert(node.to_owned(), Open { dial: dial.clone(), _replaced: sender });
        Attached { tunnels: self.clone(), node: node.to_owned(), dial, replaced }
    }

    pub fn forget(&self, node: &str) {
        self.lock().remove(node);
    }

    pub fn is_connected(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    /// A new stream to the kubelet of `node`.
    pub async fn dial(&self, node: &str) -> std::io::Result<Box<dyn Stream>> {
        self.of(node)?.dial().await
    }

    /// Asks `node` to open a relay stream.
    pub async fn knock(&self, node: &str) -> std::io::Result<()> {
        self.of(node)?.knock().await
    }

    fn of(&self, node: &str) -> std::io::Result<Arc<dyn Dial>> {
        let dial = self.lock().get(node).map(|open| open.dial.clone());
        dial.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotConnected, format!("node {node} is not connected"))
        })
    }
}

/// At this time or later the server has heard this node last: when the last answered ping was sent.
pub type Assured = tokio::sync::watch::Receiver<Option<tokio::time::Instant>>;

/// Streams that the server opened, on their way to the kubelet.
pub type Streams = tokio::sync::mpsc::Receiver<Box<dyn Stream>>;

/// The pipe on the server's own board: every dial hands one end to the kubelet.
pub struct Pipe(pub tokio::sync::mpsc::Sender<Box<dyn Stream>>);

impl Dial for Pipe {
    fn dial(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let gone = |_| std::io::Error::new(std::io::ErrorKind::NotConnected, "the kubelet has ended");
            self.0.send(Box::new(theirs)).await.map_err(gone)?;
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

#[cfg(test)]
mod tests;
