//! The pod network between this node and its peers: what is wanted, what the kernel has, and the way between.
//! Routes where a peer is on the same link; else devices that hold every peer: VXLAN, and WireGuard where it is asked
//! for or the way leads through others' networks; last, a device that this process carries to the server.

use super::ipam::Cidr;
use super::netlink::{self, Netlink, NetworkEvents};
use super::plan::Layout;
use super::wireguard::{Key, Tunnel, Wireguard};
use super::{Network, Result};
use crate::sys::netns;
use ring::rand::SecureRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::Ordering;

pub type Mac = [u8; 6];

/// Ethernet, IP, UDP and VXLAN headers around a pod's packet.
pub const VXLAN_OVERHEAD_BYTES: u32 = 50;
/// IPv6, UDP and WireGuard headers, and padding.
pub const WIREGUARD_OVERHEAD_BYTES: u32 = 80;
/// Pods never get more: a larger packet would pass some links only.
pub const POD_MTU_LIMIT: u32 = 1500;
/// What every IPv4 link carries, with room for the headers above.
const POD_MTU_MIN: u32 = 576;
const VNI: u32 = 1;

/// What the kernel would do with a packet to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is this node's.
    Own,
    Nowhere,
    By(Hop),
}

/// The first hop of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub link: u32,
    pub link_name: String,
    /// `None`: the address is on the link itself.
    pub gateway: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    /// Bytes of an IP packet.
    pub mtu: u32,
}

/// How packets to a peer's pods leave this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// As they are, to the peer, which is on this link.
    Route { to: Ipv4Addr, link: u32 },
    /// Inside UDP packets to the peer.
    Vxlan { to: Ipv4Addr },
    /// Sealed, by the device's peer whose pods they are for.
    Wireguard,
    /// Through the server, by this process.
    Relay,
}

/// A peer and the way to its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pods: Cidr,
    pub way: Option<Way>,
    /// The peer is on this link: packets with pods' addresses are tried there, whatever the way is now.
    pub on_link: Option<(Ipv4Addr, u32)>,
    /// The peer's end of the WireGuard device: kept whatever the way is, since the peer may choose it.
    pub tunnel: Option<Tunnel>,
    /// What the node itself sends to the peer goes by the relay, where there is one, whatever way its pods' packets
    /// take: the peer may ask that way.
    pub relays_own: bool,
}

/// What is wanted of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This node's address and the UDP port of VXLAN; the device exists as long as this is wanted, since
    /// a peer may use it when this node does not.
    pub vxlan: Option<(Ipv4Addr, u16)>,
    /// The UDP port of WireGuard.
    pub wireguard: Option<u16>,
    /// Bytes of an IP packet of a pod that every way can carry.
    pub mtu: u32,
    pub peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    pub vni: u32,
    pub local: Ipv4Addr,
    pub port: u16,
    pub mac: Mac,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Cidr,
    /// Index of the link; 0 = refused here.
    pub link: u32,
    pub via: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
}

impl Route {
    /// After everything else that leads there.
    pub const REFUSAL_PRIORITY: u32 = u32::MAX / 2;

    pub fn is_refusal(&self) -> bool {
        self.link == 0
    }
}

/// The address a node answers probes of plain routes at: the first of its pods' network, which no pod has.
pub fn probe_address(pods: Cidr) -> Ipv4Addr {
    pods.base()
}

/// The MAC of a node's VXLAN device follows from its pods' network, so that peers need not be told.
fn vtep(pods: Cidr) -> Mac {
    let [a, b, c, d] = pods.base().octets();
    [0x0e, 0x65, a, b, c, d]
}

/// The address of the node's own end of its pods' network.
pub fn gateway(pods: Cidr) -> Ipv4Addr {
    pods.nth(1)
}

/// Names of links have 15 bytes at most.
fn vxlan_name(layout: &Layout) -> String {
    format!("{}-vx", layout.bridge.chars().take(12).collect::<String>())
}

fn wireguard_name(layout: &Layout) -> String {
    format!("{}-wg", layout.bridge.chars().take(12).collect::<String>())
}

/// Indices of the devices that there are.
#[derive(Clone, Copy, Debug, Default)]
struct Devices {
    vxlan: Option<u32>,
    wireguard: Option<u32>,
    relay: Option<u32>,
}

/// Every route that is wanted. Pure.
fn routes(layout: &Layout, wanted: &Wanted, devices: Devices) -> BTreeSet<Route> {
    // What no node has must not leave by the default route.
    let mut routes = BTreeSet::from([Route { to: layout.cluster, link: 0, via: None, source: None }]);
    let source = Some(layout.gateway);
    for peer in &wanted.peers {
        let hop = match &peer.way {
            Some(Way::Route { to, link }) => Some((*link, Some(*to))),
            Some(Way::Vxlan { .. }) => devices.vxlan.map(|link| (link, Some(gateway(peer.pods)))),
            Some(Way::Wireguard) => devices.wireguard.map(|link| (link, None)),
            Some(Way::Relay) => devices.relay.map(|link| (link, None)),
            None => None,
        };
        routes.extend(hop.map(|(link, via)| Route { to: peer.pods, link, via, source }));
        // Tried on the link, where the peer is there; else through the tunnel.
        let tunnel = devices.wireguard.filter(|_| peer.tunnel.is_some()).map(|link| (link, None));
        let probe = peer.on_link.map(|(to, link)| (link, Some(to))).or(tunnel);
        let (to, probing) = (Cidr::new(probe_address(peer.pods), 32), Some(probe_address(layout.pods)));
        routes.extend(probe.map(|(link, via)| Route { to, link, via, source: probing }));
        let relay = devices.relay.filter(|_| peer.relays_own);
        routes.extend(relay.map(|link| Route { to: Cidr::new(gateway(peer.pods), 32), link, via: None, source }));
    }
    routes
}

impl Network {
    /// What the kernel would do with packets to these addresses.
    pub async fn reach(&self, ips: BTreeSet<Ipv4Addr>) -> Result<BTreeMap<Ipv4Addr, Reach>> {
        netlink::run(move || async move {
            let netlink = Netlink::open()?;
            let links = netlink.links().await?;
            let mut reaches = BTreeMap::new();
            for ip in ips {
                reaches.insert(ip, netlink.reach(ip, &links).await?);
            }
            Ok(reaches)
        })
        .await
    }

    /// Changes of the node's addresses, links and routes by others.
    pub fn events(&self) -> Result<NetworkEvents> {
        NetworkEvents::open()
    }

    /// Brings routes and devices to what is wanted. Goes on after errors and returns the first.
    pub async fn connect_peers(&self, wanted: &Wanted) -> Result<()> {
        let (layout, wanted) = (self.layout().clone(), wanted.clone());
        let mtu = wanted.mtu;
        let connected = netlink::run(move || async move { connect(&layout, &wanted).await }).await;
        connected.and(self.set_pod_mtu(mtu).await)
    }

    /// The public key of this node's WireGuard device; made, with its key, when it is not there.
    /// Unsupported where the kernel has no WireGuard.
    pub async fn wireguard_key(&self, port: u16) -> Result<Key> {
        let layout = self.layout().clone();
        netlink::run(move || async move {
            let netlink = Netlink::open()?;
            wireguard(&netlink, &layout, port, POD_MTU_LIMIT - WIREGUARD_OVERHEAD_BYTES).await.map(|(_, key)| key)
        })
        .await
    }

    /// Removes every route and device that leads to peers.
    pub async fn disconnect_peers(&self) -> Result<()> {
        let layout = self.layout().clone();
        netlink::run(move || async move { disconnect(&layout).await }).await
    }

    /// Sets the MTU of all pods, those that run too.
    async fn set_pod_mtu(&self, mtu: u32) -> Result<()> {
        let mtu = mtu.clamp(POD_MTU_MIN, POD_MTU_LIMIT);
        if self.0.mtu.swap(mtu, Ordering::Relaxed) == mtu {
            return Ok(());
        }
        tracing::info!(mtu, "pods have another mtu");
        let mut result = Ok(());
        for (uid, attachment) in self.attachments() {
            result = result.and(set_mtu(&uid, &attachment.netns, mtu).await);
        }
        let bridge = self.layout().bridge.clone();
        result.and(netlink::run(move || async move { Netlink::open()?.mtu(&bridge, mtu).await }).await)
    }
}

/// Both ends of a pod's link. A pod that went meanwhile needs none.
pub(super) async fn set_mtu(uid: &str, netns: &Path, mtu: u32) -> Result<()> {
    let (host, netns) = (super::plan::host_link(uid), netns.to_owned());
    netlink::run(move || async move {
        Netlink::open()?.mtu(&host, mtu).await?;
        if netns::join(&netns).is_err() {
            return Ok(());
        }
        Netlink::open()?.mtu("eth0", mtu).await
    })
    .await
}

async fn connect(layout: &Layout, wanted: &Wanted) -> Result<()> {
    let netlink = Netlink::open()?;
    // Plain routes are set up even where the kernel has no VXLAN.
    let vxlan = vxlan(&netlink, layout, wanted).await;
    let tunnels = tunnels(&netlink, layout, wanted).await;
    let found = |device: &Result<Option<u32>>| device.as_ref().ok().copied().flatten();
    let relay = netlink.index(&layout.relay_link()).await?;
    let devices = Devices { vxlan: found(&vxlan), wireguard: found(&tunnels), relay };
    let mut result = vxlan.and(tunnels).map(|_| ());
    if let Some(index) = devices.vxlan {
        result = result.and(fill(&netlink, index, wanted).await);
    }
    if let Some(bridge) = netlink.index(&layout.bridge).await? {
        result = result.and(netlink.address(bridge, probe_address(layout.pods), 32).await);
    }
    let have: BTreeSet<Route> = own_routes(&netlink, layout).await?.into_iter().collect();
    let want = routes(layout, wanted, devices);
    for route in want.difference(&have) {
        result = result.and(netlink.add_route(route).await);
    }
    // One that was replaced is gone already.
    let kept = |old: &&Route| !want.iter().any(|new| new.to == old.to);
    for route in have.iter().filter(kept) {
        result = result.and(netlink.delete_route(route).await);
    }
    result
}

/// The device and its public key.
async fn wireguard(netlink: &Netlink, layout: &Layout, port: u16, mtu: u32) -> Result<(u32, Key)> {
    let name = wireguard_name(layout);
    let private_key = private_key(&layout.wireguard_key_file())
        .map_err(|source| super::kernel("make key", &layout.wireguard_key_file().display().to_string(), source))?;
    let index = netlink.add_wireguard(&name, mtu).await?;
    netlink.address(index, layout.gateway, 32).await?;
    let _ = netns::sysctl(&format!("ipv4/conf/{name}/rp_filter"), "2");
    let configured = || {
        let kernel = Wireguard::open()?;
        if kernel.device(&name)?.port != port {
            kernel.configure(&name, &private_key, port)?;
        }
        Ok(kernel.device(&name)?.public_key)
    };
    let key = configured().map_err(|source| super::kernel("configure link", &name, source))?;
    Ok((index, key))
}

/// The WireGuard device with all its peers, or its absence.
async fn tunnels(netlink: &Netlink, layout: &Layout, wanted: &Wanted) -> Result<Option<u32>> {
    let name = wireguard_name(layout);
    let Some(port) = wanted.wireguard else { return netlink.delete(&name).await.map(|()| None) };
    let (index, _) = wireguard(netlink, layout, port, wanted.mtu).await?;
    let peers: Vec<Tunnel> = wanted.peers.iter().filter_map(|peer| peer.tunnel.clone()).collect();
    let set = || {
        let kernel = Wireguard::open()?;
        kernel.set_peers(&name, &kernel.device(&name)?.peers, &peers)
    };
    set().map_err(|source| super::kernel("set peers of link", &name, source))?;
    Ok(Some(index))
}

/// Made once; nobody but root may read it.
fn private_key(file: &Path) -> io::Result<Key> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(key) = std::fs::read(file).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(key);
    }
    let mut key = Key::default();
    ring::rand::SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
    let temporary = file.with_extension("tmp");
    let _ = std::fs::remove_file(&temporary);
    let mut writer = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writer.write_all(&key)?;
    writer.sync_all()?;
    std::fs::rename(temporary, file)?;
    Ok(key)
}

async fn own_routes(netlink: &Netlink, layout: &Layout) -> Result<Vec<Route>> {
    let mut routes = netlink.own_routes(layout.gateway, probe_address(layout.pods)).await?;
    routes.retain(|route| !route.is_refusal() || route.to == layout.cluster);
    Ok(routes)
}

/// The device as it is wanted, made anew if it differs; its index.
async fn vxlan(netlink: &Netlink, layout: &Layout, wanted: &Wanted) -> Result<Option<u32>> {
    let name = vxlan_name(layout);
    let Some((local, port)) = wanted.vxlan else { return netlink.delete(&name).await.map(|()| None) };
    let device = VxlanDevice { vni: VNI, local, port, mac: vtep(layout.pods), mtu: wanted.mtu };
    let index = match netlink.vxlan(&name).await? {
        Some((index, found)) if VxlanDevice { mtu: device.mtu, ..found.clone() } == device => {
            if found.mtu != device.mtu {
                netlink.mtu(&name, device.mtu).await?;
            }
            netlink.up(&name).await?;
            index
        }
        found => {
            if found.is_some() {
                netlink.delete(&name).await?;
            }
            netlink.add_vxlan(&name, &device).await?
        }
    };
    // What the node itself sends comes from an address that peers know the way back to.
    netlink.address(index, layout.gateway, 32).await?;
    // A peer may answer by another way: strict filters would drop that.
    let _ = netns::sysctl(&format!("ipv4/conf/{name}/rp_filter"), "2");
    Ok(Some(index))
}

/// Writes who is behind the device into its tables.
async fn fill(netlink: &Netlink, index: u32, wanted: &Wanted) -> Result<()> {
    let mut result = Ok(());
    let (mut forwarding, mut neighbours) = (BTreeSet::new(), BTreeSet::new());
    for peer in &wanted.peers {
        if let Some(Way::Vxlan { to }) = peer.way {
            forwarding.insert((vtep(peer.pods), to));
            neighbours.insert((vtep(peer.pods), gateway(peer.pods)));
        }
    }
    let have: BTreeSet<_> = netlink.forwarding(index).await?.into_iter().collect();
    for (mac, to) in have.difference(&forwarding).filter(|(mac, _)| !forwarding.iter().any(|(new, _)| new == mac)) {
        result = result.and(netlink.delete_forwarding(index, *mac, *to).await);
    }
    for (mac, to) in forwarding.difference(&have) {
        result = result.and(netlink.add_forwarding(index, *mac, *to).await);
    }
    let have: BTreeSet<_> = netlink.neighbours(index).await?.into_iter().collect();
    for (_, ip) in have.difference(&neighbours).filter(|(_, ip)| !neighbours.iter().any(|(_, new)| new == ip)) {
        result = result.and(netlink.delete_neighbour(index, *ip).await);
    }
    for (mac, ip) in neighbours.difference(&have) {
        result = result.and(netlink.add_neighbour(index, *mac, *ip).await);
    }
    result
}

async fn disconnect(layout: &Layout) -> Result<()> {
    let netlink = Netlink::open()?;
    let mut result = netlink.delete(&vxlan_name(layout)).await;
    result = result.and(netlink.delete(&wireguard_name(layout)).await);
    result = result.and(netlink.delete(&layout.relay_link()).await);
    for route in own_routes(&netlink, layout).await? {
        result = result.and(netlink.delete_route(&route).await);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NetworkConfig;

    fn layout() -> Layout {
        Layout::new(&NetworkConfig {
            pod_cidr: "10.42.3.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            dns_ip: "10.43.0.10".parse().unwrap(),
            bridge: "edge0".into(),
            table: "edgelet".into(),
            netns_directory: "/run/edgelet/netns".into(),
            state_directory: "/var/lib/edgelet/network".into(),
        })
        .unwrap()
    }

    fn shown(routes: &BTreeSet<Route>) -> Vec<String> {
        let ip = |ip: Option<Ipv4Addr>| ip.map_or("-".to_owned(), |ip| ip.to_string());
        routes.iter().map(|one| format!("{} {} {} {}", one.to, one.link, ip(one.via), ip(one.source))).collect()
    }

    #[test]
    fn routes_follow_the_ways() {
        let to = Ipv4Addr::new(192, 168, 1, 9);
        let pods: Cidr = "10.42.9.0/24".parse().unwrap();
        let peer = |way, on_link| Peer { pods, way, on_link, tunnel: None, relays_own: false };
        let tunnel = Tunnel { key: [1; 32], endpoint: None, keepalive_s: 0, pods };
        let plain = Some((to, 7));
        let refusal = "10.42.0.0/16 0 - -";
        let cases: Vec<(Vec<Peer>, Option<u32>, Vec<&str>)> = vec![
            (vec![], None, vec![refusal]),
            (vec![peer(None, None)], None, vec![refusal]),
            (
                vec![peer(Some(Way::Route { to, link: 7 }), plain)],
                Some(5),
                vec![refusal, "10.42.9.0/24 7 192.168.1.9 10.42.3.1", "10.42.9.0/32 7 192.168.1.9 10.42.3.0"],
            ),
            // Packets of pods did not pass: they are tried all the same.
            (
                vec![peer(Some(Way::Vxlan { to }), plain)],
                Some(5),
                vec![refusal, "10.42.9.0/24 5 10.42.9.1 10.42.3.1", "10.42.9.0/32 7 192.168.1.9 10.42.3.0"],
            ),
            (
                vec![Peer { tunnel: Some(tunnel), ..peer(Some(Way::Wireguard), None) }],
                Some(5),
                vec![refusal, "10.42.9.0/24 6 - 10.42.3.1", "10.42.9.0/32 6 - 10.42.3.0"],
            ),
            (vec![peer(Some(Way::Relay), None)], None, vec![refusal, "10.42.9.0/24 8 - 10.42.3.1"]),
            // No device, no route: the refusal answers.
            (vec![peer(Some(Way::Vxlan { to }), None)], None, vec![refusal]),
            // A peer that has given up every other way asks through the server, and is answered.
            (vec![Peer { relays_own: true, ..peer(None, None) }], None, vec![refusal, "10.42.9.1/32 8 - 10.42.3.1"]),
        ];
        for (peers, vxlan, expected) in cases {
            let wanted = Wanted { mtu: 1450, peers, ..Wanted::default() };
            let devices = Devices { vxlan, wireguard: Some(6), relay: Some(8) };
            assert_eq!(shown(&routes(&layout(), &wanted, devices)), expected, "{wanted:?}");
        }
    }

    #[test]
    fn devices_are_told_apart_by_their_pods() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        assert_eq!(vtep(cidr("10.42.3.0/24")), [0x0e, 0x65, 10, 42, 3, 0]);
        assert_ne!(vtep(cidr("10.42.3.0/24")), vtep(cidr("10.42.4.0/24")));
        assert_eq!(vxlan_name(&layout()), "edge0-vx");
    }
}
