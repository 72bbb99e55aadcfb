//! This node's end of the relay: packets of the relay's device to the server and back. A stream is opened when there
//! is a packet, or when the server knocks, and given up when none has passed for a while.

use crate::network::ipam::Cidr;
use crate::network::relay::RelayDevice;
use crate::network::{Network, Result};
use crate::tunnel::relay::{Batch, Link, Packets, addresses, carry};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Without a packet.
const IDLE: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often it is told that packets pass.
const USED_PAUSE: Duration = Duration::from_secs(1);
const EVENTS_LIMIT: usize = 4;

/// What the peers' loop is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A packet to this address went by the relay.
    Used(Ipv4Addr),
    /// No stream is open any more.
    Rests,
    /// The device is gone.
    Ended,
}

/// The device and who carries its packets; both end with it.
pub struct Relay {
    events: mpsc::Receiver<Event>,
    _carrier: JoinSet<()>,
}

impl Relay {
    /// `knocked`: the server has packets already.
    pub async fn open(network: &Network, link: &Link, knocked: bool) -> Result<Self> {
        let device = network.open_relay().await?;
        let (sender, events) = mpsc::channel(EVENTS_LIMIT);
        let layout = network.layout();
        let ends = Ends { device, pods: layout.pods, cluster: layout.cluster, events: sender, used: None };
        let mut carrier = JoinSet::new();
        carrier.spawn(run(ends, link.clone(), knocked));
        Ok(Self { events, _carrier: carrier })
    }

    /// Cancel-safe.
    pub async fn event(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Ended)
    }
}

/// Until the device is gone.
async fn run(mut ends: Ends, link: Link, mut knocked: bool) {
    let mut retry = RETRY_MIN;
    loop {
        if !knocked && wake(&ends.device, &link).await.is_err() {
            return;
        }
        knocked = false;
        let connecting = tokio::time::timeout(CONNECT_LIMIT, link.connect.connect());
        let outcome = match connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                tracing::debug!("relay stream open");
                let opened = crate::clock::monotonic();
                let carried = carry(stream, &mut ends, IDLE).await;
                if opened.elapsed() > RETRY_MAX {
                    retry = RETRY_MIN;
                }
                carried
            }
            failed => failed.map(drop),
        };
        let _ = ends.events.try_send(Event::Rests);
        let Err(error) = outcome else {
            retry = RETRY_MIN;
            continue;
        };
        if retry == RETRY_MIN {
            tracing::warn!(%error, "the relay through the server does not work; retrying");
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// Waits until there is something to carry.
async fn wake(device: &RelayDevice, link: &Link) -> io::Result<()> {
    tokio::select! {
        readable = device.readable() => readable,
        () = link.knocks.notified() => Ok(()),
    }
}

/// The device, and whose packets may pass.
struct Ends {
    device: RelayDevice,
    pods: Cidr,
    cluster: Cidr,
    events: mpsc::Sender<Event>,
    used: Option<Instant>,
}

impl Ends {
    fn is_for_a_peer(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        self.pods.contains(from) && self.cluster.contains(to) && !self.pods.contains(to)
    }
}

impl Packets for Ends {
    async fn collect(&mut self, batch: &mut Batch) -> io::Result<()> {
        let mut to_peer = None;
        let take = |packet: &[u8]| match addresses(packet) {
            Some((from, to)) if self.is_for_a_peer(from, to) => {
                to_peer = Some(to);
                batch.push(packet)
            }
            _ => batch.has_room(),
        };
        self.device.receive(take).await?;
        let now = crate::clock::monotonic();
        if let Some(to) = to_peer
            && self.used.is_none_or(|at| at + USED_PAUSE <= now)
        {
            self.used = Some(now);
            // When the loop is busy it hears of the next packet.
            let _ = self.events.try_send(Event::Used(to));
        }
        Ok(())
    }

    fn deliver(&mut self, packet: &[u8]) -> io::Result<()> {
        // The server checks that too; what enters the kernel is looked at once more.
        if let Some((from, to)) = addresses(packet)
            && self.is_for_a_peer(to, from)
        {
            self.device.send(packet);
        }
        Ok(())
    }
}
