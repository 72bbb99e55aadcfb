//! Links, addresses and routes by rtnetlink, whose API changes often: only this file knows it.
//! Every verb is idempotent. The kernel holds a lock for tens of milliseconds while a link goes, and `send`
//! waits for it: all of this runs on throw-away threads, never on a runtime's.

mod overlay;

use super::ipam::Cidr;
use super::peers::Mac;
use super::{Error, Result};
use crate::sys::netns;
use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::{RouteHeader, RouteProtocol, RouteScope};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use tokio::sync::Semaphore;

/// Threads at a time: the kernel serialises most of what they do.
static PLACES: Semaphore = Semaphore::const_new(16);

/// A netlink socket in the namespace it was opened in.
#[derive(Clone)]
pub struct Netlink(Handle);

/// A port of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub index: u32,
    pub name: String,
    pub alias: String,
}

/// What happens to links from when it is opened on.
pub struct LinkEvents(Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin>);

impl LinkEvents {
    pub fn open() -> Result<Self> {
        let opened = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]);
        let (connection, _, messages) = opened.map_err(|source| super::kernel("watch", "links", source))?;
        crate::supervise::spawn(connection);
        Ok(Self(Box::new(messages.map(|(message, _)| message))))
    }

    /// Waits until the link is gone; false when the events end before.
    pub async fn deleted(&mut self, index: u32) -> bool {
        while let Some(message) = self.0.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = message.payload
                && link.header.index == index
            {
                return true;
            }
        }
        false
    }
}

/// Changes of addresses, links and routes that may change the way to other nodes.
pub struct NetworkEvents(Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin>);

impl NetworkEvents {
    pub fn open() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        let opened = rtnetlink::new_multicast_connection(&groups);
        let (connection, _, messages) = opened.map_err(|source| super::kernel("watch", "addresses", source))?;
        crate::supervise::spawn(connection);
        Ok(Self(Box::new(messages.map(|(message, _)| message))))
    }

    /// Waits for a change: true when a link went down, be it for a moment. For ever when the events have ended.
    /// Cancel-safe.
    pub async fn next(&mut self) -> bool {
        while let Some(message) = self.0.next().await {
            if let NetlinkPayload::InnerMessage(message) = message.payload
                && matters(&message)
            {
                return went_down(&message);
            }
        }
        std::future::pending().await
    }
}

/// A radio's news come often; a link that does not run is rare.
fn went_down(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(link) => !link.header.flags.contains(LinkFlags::Running),
        RouteNetlinkMessage::DelLink(_) => true,
        _ => false,
    }
}

/// Pods come and go without being a change; what this node itself adds is none either, what somebody takes away is.
fn matters(message: &RouteNetlinkMessage) -> bool {
    let is_ours = |protocol: RouteProtocol| protocol == overlay::PROTOCOL;
    match message {
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) => {
            route.header.table == RouteHeader::RT_TABLE_MAIN && !is_ours(route.header.protocol)
        }
        RouteNetlinkMessage::DelRoute(route) => route.header.table == RouteHeader::RT_TABLE_MAIN,
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            // A pod's link has left its bridge already when it goes.
            let pods = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::Controller(_) => true,
                LinkAttribute::IfName(name) => super::plan::is_host_link(name) || super::plan::is_relay_link(name),
                _ => false,
            };
            !link.attributes.iter().any(pods)
        }
        _ => false,
    }
}

/// Runs netlink verbs on a thread of their own, in the caller's network namespace to begin with.
pub async fn run<T, F, V>(verbs: V) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
    V: FnOnce() -> F + Send + 'static,
{
    let _place = PLACES.acquire().await.expect("never closed");
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtime.map_err(|source| super::kernel("start", "netlink", source))?.block_on(verbs())
    };
    netns::on_thread(work).await.map_err(|source| super::kernel("start", "netlink thread", source))?
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace. Inside `run` only.
    pub fn open() -> Result<Self> {
        let opened = rtnetlink::new_connection().map_err(|source| super::kernel("open", "netlink", source))?;
        let (connection, handle, _) = opened;
        // Ends when the last handle is dropped.
        crate::supervise::spawn(connection);
        Ok(Self(handle))
    }

    pub async fn index(&self, name: &str) -> Result<Option<u32>> {
        let mut links = Box::pin(self.0.link().get().match_name(name).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if code(&error) == -libc::ENODEV => Ok(None),
            Err(error) => Err(failed("find link", name, error)),
        }
    }

    /// The bridge, up; its index. Its MAC is fixed, else it would follow the ports' and change.
    pub async fn bridge(&self, name: &str, mac: Vec<u8>) -> Result<u32> {
        let message = LinkBridge::new(name).mcast_snooping(false).address(mac).up().build();
        match self.0.link().add(message).execute().await {
            Err(error) if code(&error) != -libc::EEXIST => return Err(failed("create bridge", name, error)),
            Err(_) => self.up(name).await?,
            Ok(()) => {}
        }
        self.index(name).await?.ok_or_else(|| missing("find bridge", name))
    }

    pub async fn up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.0.link().set(message).execute().await.map_err(|error| failed("set up link", name, error))
    }

    pub async fn address(&self, index: u32, ip: Ipv4Addr, prefix: u8) -> Result<()> {
        let held = self.0.address().get().set_link_index_filter(index).set_address_filter(ip.into());
        let held: Vec<_> = held.execute().try_collect().await.unwrap_or_default();
        // To replace an address by itself is an event all the same, and its followers would never rest.
        if held.iter().any(|address| address.header.prefix_len == prefix) {
            return Ok(());
        }
        let request = self.0.address().add(index, IpAddr::V4(ip), prefix).replace();
        request.execute().await.map_err(|error| failed("add address", &ip.to_string(), error))
    }

    /// A route to a network behind a device, with the source address the node uses for it.
    pub async fn route(&self, to: Cidr, index: u32, source: Ipv4Addr) -> Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.base(), to.prefix())
            .output_interface(index)
            .pref_source(source)
            .scope(RouteScope::Link)
            .build();
        let request = self.0.route().add(message).replace();
        request.execute().await.map_err(|error| failed("add route", &to.to_string(), error))
    }

    /// A veth pair: one end a port of the bridge here, the other `eth0` in the pod's namespace.
    pub async fn veth(&self, host: &str, bridge: u32, netns: BorrowedFd<'_>, mac: Vec<u8>, mtu: u32) -> Result<()> {
        // The peer is set up from inside later: before the ends are linked, opening it is ENOTCONN.
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_fd(netns.as_raw_fd());
        let peer = InfoData::Veth(InfoVeth::Peer(peer.address(mac).mtu(mtu).build()));
        let message = LinkVeth::new(host, "eth0").set_info_data(peer).controller(bridge).mtu(mtu).up().build();
        self.0.link().add(message).execute().await.map_err(|error| failed("create link", host, error))
    }

    /// Isolated: the port reaches the bridge itself only, so all pod traffic is routed by the node.
    /// Nothing is learnt from what it sends: behind it is one MAC.
    pub async fn port(&self, host: &str, mac: Mac, alias: &str) -> Result<()> {
        let index = self.index(host).await?.ok_or_else(|| missing("find link", host))?;
        let entry = self.0.neighbours().add_bridge(index, &mac).flags(NeighbourFlags::Controller);
        let entry = entry.state(NeighbourState::Noarp).replace();
        entry.execute().await.map_err(|error| failed("add forwarding to", host, error))?;
        let message = LinkBridgePort::new(index).isolated(true).learning(false).alias(alias).build();
        self.0.link().set_port(message).execute().await.map_err(|error| failed("isolate port", host, error))
    }

    /// Inside a pod: loopback, the address as a /32, and everything else by the gateway.
    pub async fn pod(&self, ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
        self.up("lo").await?;
        let index = self.index("eth0").await?.ok_or_else(|| missing("find link", "eth0"))?;
        self.address(index, ip, 32).await?;
        self.up("eth0").await?;
        // On-link: with a /32 no route leads to the gateway otherwise.
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).onlink().output_interface(index).build();
        let request = self.0.route().add(route).replace();
        request.execute().await.map_err(|error| failed("add default route", &gateway.to_string(), error))
    }

    pub async fn ports(&self, bridge: u32) -> Result<Vec<Port>> {
        let links = self.0.link().get().execute();
        let links: Vec<LinkMessage> = links.try_collect().await.map_err(|error| failed("list ports", "", error))?;
        Ok(links.iter().filter_map(|link| port_of(link, bridge)).collect())
    }

    /// Deletes a link with all that hangs on it. Already gone is success.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        match self.0.link().del(index).execute().await {
            Err(error) if code(&error) != -libc::ENODEV => Err(failed("delete link", name, error)),
            _ => Ok(()),
        }
    }
}

fn port_of(link: &LinkMessage, bridge: u32) -> Option<Port> {
    let mut port = Port { index: link.header.index, name: String::new(), alias: String::new() };
    let mut ours = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => port.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => port.alias.clone_from(alias),
            LinkAttribute::Controller(index) => ours = *index == bridge,
            _ => {}
        }
    }
    ours.then_some(port)
}

/// The kernel's errno, negative; 0 when the error is not the kernel's.
fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code(),
        _ => 0,
    }
}

fn failed(doing: &'static str, what: &str, error: rtnetlink::Error) -> Error {
    let source = match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    };
    Error::Kernel { doing, what: what.to_owned(), source }
}

fn missing(doing: &'static str, what: &str) -> Error {
    Error::Kernel { doing, what: what.to_owned(), source: io::Error::from_raw_os_error(libc::ENODEV) }
}
