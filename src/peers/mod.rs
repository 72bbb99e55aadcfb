//! The pod network between nodes: follows Nodes and this node's own addresses, tries the ways to each peer with
//! real packets, and keeps the kernel on the best. Quiet when nothing changes; nobody polls.

pub mod fact;
mod fleet;
pub mod paths;
pub mod plan;
mod probe;
mod relay;
mod trial;

use crate::api::view::node::Node;
use crate::client::informer::Change;
use crate::client::{Client, Informers, NODES, PatchType};
use crate::network::unanswered::Unanswered;
use crate::network::wireguard::Key;
use crate::network::{Network, Result};
use crate::supervise::Shutdown;
use crate::tunnel::relay::Link;
use fact::Notice;
use fleet::Fleet;
use futures_util::FutureExt;
use plan::Abilities;
pub use plan::Mode;
use probe::{Packet, Prober};
use relay::{Event, Relay};
use ring::rand::{SecureRandom, SystemRandom};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// UDP port of VXLAN, as flannel has it.
pub const VXLAN_PORT: u16 = 8472;
/// UDP port of WireGuard.
pub const WIREGUARD_PORT: u16 = 51820;
/// UDP port of the probes between nodes.
pub const PROBE_PORT: u16 = 8473;
/// What others change comes in bursts: one look per burst.
const SETTLE: Duration = Duration::from_millis(100);
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What the peers' loop needs to know.
#[derive(Clone)]
pub struct PeersConfig {
    pub node_name: String,
    /// Set up before.
    pub network: Network,
    pub mode: Mode,
    pub vxlan_port: u16,
    pub probe_port: u16,
    pub wireguard_port: u16,
    /// Where this node is reached from outside its network, if somebody said so.
    pub external_ip: Option<Ipv4Addr>,
    /// Takes packets to nodes that are reached no other way.
    pub relay: Option<Link>,
    /// Where the ways are written for people to read.
    pub run_directory: PathBuf,
}

impl PeersConfig {
    pub fn new(node_name: &str, network: Network, run_directory: PathBuf) -> Self {
        Self {
            node_name: node_name.to_owned(),
            network,
            mode: Mode::Auto,
            vxlan_port: VXLAN_PORT,
            probe_port: PROBE_PORT,
            wireguard_port: WIREGUARD_PORT,
            external_ip: None,
            relay: None,
            run_directory,
        }
    }
}

/// Keeps the ways right until shutdown. Routes and devices stay behind: pods reach each other meanwhile.
pub async fn run(config: PeersConfig, client: Client, informers: Informers, shutdown: Shutdown) {
    let nodes = informers.all(NODES);
    let mut events = match config.network.events() {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(%error, "cannot watch this node's addresses");
            return;
        }
    };
    tokio::select! {
        // Until the first list is in, the routes of the former process serve.
        () = nodes.synced() => {}
        () = shutdown.requested() => return,
    }
    let mut changes = nodes.subscribe();
    let mut unanswered = config.network.unanswered().map_err(|error| {
        tracing::info!(%error, "ways to other nodes that fall silent are noticed after hours");
    });
    let link = config.relay.clone();
    let mut peers = Peers::new(config, client);
    loop {
        while let Some(change) = changes.try_next() {
            peers.take(&change);
        }
        peers.sync().await;
        let due = peers.due();
        tokio::select! {
            change = changes.next() => peers.take(&change),
            went_down = events.next() => {
                tokio::time::sleep(SETTLE).await;
                let more = std::iter::from_fn(|| events.next().now_or_never());
                // It may be up again, and lead elsewhere: looks alone would not tell.
                if more.fold(went_down, |any, went_down| any | went_down) {
                    peers.fleet.ask_again(crate::clock::monotonic());
                }
                peers.look = true;
            }
            (from, packet) = receive(peers.prober.as_ref()) => peers.hear(from, packet),
            to = next_unanswered(unanswered.as_mut().ok()) => peers.fleet.unanswered(to, crate::clock::monotonic()),
            event = relay_event(&mut peers.relay, link.as_ref()) => peers.take_relay(event),
            () = tokio::time::sleep_until(due) => peers.ask(),
            () = shutdown.requested() => return,
        }
    }
}

async fn receive(prober: Option<&Prober>) -> (SocketAddrV4, Packet) {
    match prober {
        Some(prober) => prober.receive().await,
        None => std::future::pending().await,
    }
}

async fn next_unanswered(unanswered: Option<&mut Unanswered>) -> Ipv4Addr {
    match unanswered {
        Some(unanswered) => unanswered.next().await,
        None => std::future::pending().await,
    }
}

/// What the relay says; while there is none, that the server knocks (`None`).
async fn relay_event(relay: &mut Option<Relay>, link: Option<&Link>) -> Option<Event> {
    match (relay, link) {
        (Some(relay), _) => Some(relay.event().await),
        (None, Some(link)) => {
            link.knocks.notified().await;
            None
        }
        (None, None) => std::future::pending().await,
    }
}

struct Peers {
    config: PeersConfig,
    client: Client,
    fleet: Fleet,
    /// Open while there are peers.
    prober: Option<Prober>,
    /// Open while packets go through the server, or come from there.
    relay: Option<Relay>,
    knocked: bool,
    random: SystemRandom,
    /// The kernel's routes may have changed.
    look: bool,
    /// What is programmed; `None` = unknown.
    programmed: Option<crate::network::peers::Wanted>,
    /// What this kernel has, as far as is known.
    can: Abilities,
    /// The public key of this node's WireGuard device, once there is one.
    key: Option<Key>,
    shown: Option<paths::Paths>,
    retry: Duration,
    retry_at: Option<Instant>,
}

impl Peers {
    fn new(config: PeersConfig, client: Client) -> Self {
        let fleet = Fleet::new(&config.node_name, config.network.layout().pods, config.mode);
        let can = Abilities { vxlan: true, wireguard: true, relay: config.relay.is_some() };
        Self {
            config,
            client,
            fleet,
            prober: None,
            relay: None,
            knocked: false,
            random: SystemRandom::new(),
            look: true,
            programmed: None,
            can,
            key: None,
            shown: None,
            retry: RETRY_MIN,
            retry_at: None,
        }
    }

    fn take(&mut self, change: &Change) {
        let name = change.key.trim_start_matches('/');
        let node = change.new.as_ref().and_then(|item| item.view::<Node>().ok());
        self.look |= self.fleet.set(name, node.as_ref(), crate::clock::monotonic());
    }

    /// Looks at the kernel if that is due, and brings it to what is wanted now.
    async fn sync(&mut self) {
        let synced = match self.try_sync().await {
            Ok(()) => self.publish().await,
            failed => failed.map_err(|error| error.to_string()),
        };
        if let Err(error) = synced {
            if self.retry == RETRY_MIN {
                tracing::warn!(%error, "cannot program the ways to other nodes; retrying");
            }
            self.retry_at = Some(crate::clock::monotonic() + self.retry);
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
        self.show();
    }

    /// Tells the peers what they must know of this node.
    async fn publish(&mut self) -> std::result::Result<(), String> {
        let wants_wireguard = self.config.mode == Mode::Wireguard;
        let notice = Notice { key: self.key, wants_wireguard, external: self.config.external_ip };
        if self.fleet.notice == notice || !self.fleet.knows_itself() {
            return Ok(());
        }
        let name = &self.config.node_name;
        let patched = self.client.patch(NODES, "", name, "", PatchType::Merge, notice.patch()).await;
        patched.map_err(|error| error.to_string())?;
        // The watch will say so too.
        self.fleet.notice = notice;
        Ok(())
    }

    /// The node's key, once a peer needs one; where the kernel has no WireGuard that is an ability less.
    async fn make_key(&mut self) -> Result<()> {
        if self.key.is_some() || !self.can.wireguard || !self.fleet.needs_wireguard() {
            return Ok(());
        }
        match self.config.network.wireguard_key(self.config.wireguard_port).await {
            Ok(key) => self.key = Some(key),
            Err(error) if error.is_unsupported() => {
                tracing::warn!(%error, "this kernel has no wireguard");
                self.can.wireguard = false;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What can be used now.
    fn abilities(&self) -> Abilities {
        Abilities { wireguard: self.can.wireguard && self.key.is_some(), ..self.can }
    }

    async fn try_sync(&mut self) -> Result<()> {
        self.open_prober();
        if std::mem::take(&mut self.look) {
            // When the look fails it is due again.
            self.programmed = None;
            let reaches = self.config.network.reach(self.fleet.addresses()).await?;
            self.fleet.see(&reaches, crate::clock::monotonic());
        }
        self.make_key().await?;
        self.fleet.decide(self.abilities());
        // Whatever is wrong with it, the other ways go on.
        let relayed = self.keep_relay().await;
        let wireguard = self.key.map(|_| self.config.wireguard_port);
        let wanted = self.fleet.wanted(self.config.vxlan_port, wireguard, self.can.vxlan);
        if self.programmed.as_ref() == Some(&wanted) {
            return relayed;
        }
        if let Err(error) = self.config.network.connect_peers(&wanted).await {
            if error.is_unsupported() && self.can.vxlan {
                tracing::warn!(%error, "this kernel has no vxlan: nodes behind a router are out of reach");
                self.can.vxlan = false;
                self.look = true;
            }
            return Err(error);
        }
        self.programmed = Some(wanted);
        relayed?;
        (self.retry, self.retry_at) = (RETRY_MIN, None);
        Ok(())
    }

    /// The relay's device is there as long as it is needed.
    async fn keep_relay(&mut self) -> Result<()> {
        let is_needed = self.can.relay && (self.knocked || self.fleet.needs_relay());
        let Some(link) = self.config.relay.as_ref().filter(|_| is_needed) else {
            self.relay = None;
            return Ok(());
        };
        if self.relay.is_some() {
            return Ok(());
        }
        match Relay::open(&self.config.network, link, self.knocked).await {
            Ok(relay) => (self.relay, self.programmed) = (Some(relay), None),
            Err(error) if error.is_unsupported() => {
                tracing::warn!(%error, "this kernel has no tun: nodes that only the server reaches are out of reach");
                self.can.relay = false;
                self.fleet.decide(self.abilities());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_relay(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Used(to)) => self.fleet.relayed_to(to, crate::clock::monotonic()),
            Some(Event::Rests) => self.knocked = false,
            Some(Event::Ended) => self.relay = None,
            None => self.knocked = true,
        }
    }

    fn open_prober(&mut self) {
        if self.fleet.is_alone() {
            self.prober = None;
        } else if self.prober.is_none() {
            let port = self.config.probe_port;
            match Prober::open(port) {
                Ok(prober) => self.prober = Some(prober),
                Err(error) => tracing::debug!(port, %error, "cannot probe the ways to other nodes"),
            }
        }
    }

    /// When to look or to ask next.
    fn due(&self) -> Instant {
        let probe = self.prober.as_ref().and_then(|_| self.fleet.due());
        let far = crate::clock::monotonic() + Duration::from_secs(24 * 3600);
        [probe, self.retry_at].into_iter().flatten().min().unwrap_or(far)
    }

    fn ask(&mut self) {
        let now = crate::clock::monotonic();
        if self.retry_at.is_some_and(|at| at <= now) {
            (self.retry_at, self.look) = (None, true);
        }
        let Some(prober) = &self.prober else { return };
        let random = &self.random;
        let nonce = || {
            let mut nonce = [0; 16];
            random.fill(&mut nonce).ok().map(|()| nonce)
        };
        for (to, pods, nonce) in self.fleet.questions(now, nonce) {
            prober.ask(to, pods.base(), nonce);
        }
    }

    fn hear(&mut self, from: SocketAddrV4, packet: Packet) {
        let now = crate::clock::monotonic();
        match packet {
            Packet::Request { nonce, pods } => {
                // Somebody with this address may look for another node.
                if pods == self.config.network.layout().pods.base() {
                    if let Some(prober) = &self.prober {
                        let takes_vxlan = self.can.vxlan && matches!(self.config.mode, Mode::Auto | Mode::Vxlan);
                        prober.answer(from, nonce, takes_vxlan);
                    }
                    self.fleet.asked_by(*from.ip(), now);
                }
            }
            Packet::Answer { nonce, takes_vxlan } => self.fleet.hear(nonce, takes_vxlan, now),
        }
    }

    fn show(&mut self) {
        let paths = self.fleet.paths();
        if self.shown.as_ref() == Some(&paths) {
            return;
        }
        let file = self.config.run_directory.join(paths::FILE);
        if let Err(error) = paths::write(&file, &paths) {
            tracing::debug!(%error, "cannot write the ways to other nodes");
        }
        self.shown = Some(paths);
    }
}
