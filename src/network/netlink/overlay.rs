//! What leads to other nodes, by rtnetlink: routes of ours, VXLAN devices and who is behind them, and what the
//! kernel would do with a packet.

use super::{Netlink, code, failed, missing};
use crate::network::Result;
use crate::network::ipam::Cidr;
use crate::network::peers::{Hop, Mac, Reach, Route, VxlanDevice};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkUnspec, LinkVxlan, LinkWireguard, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Who made a route, in `rtm_protocol`: by it our routes are found again. Not used by anybody else.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x65);
const ENODEV: i32 = -libc::ENODEV;

/// Entries of neighbour and forwarding tables.
pub type Neighbours = Vec<(Mac, Ipv4Addr)>;

impl Netlink {
    /// What the kernel would do with a packet to `ip`.
    pub async fn reach(&self, ip: Ipv4Addr, links: &BTreeMap<u32, (String, u32)>) -> Result<Reach> {
        let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build();
        let mut answers = Box::pin(self.0.route().get(question).execute());
        match answers.try_next().await {
            Ok(Some(route)) => Ok(reach_of(&route, links)),
            Ok(None) => Ok(Reach::Nowhere),
            Err(error)
                if matches!(-code(&error), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES) =>
            {
                Ok(Reach::Nowhere)
            }
            Err(error) => Err(failed("look up route to", &ip.to_string(), error)),
        }
    }

    /// Name and MTU of every link, by index.
    pub async fn links(&self) -> Result<BTreeMap<u32, (String, u32)>> {
        let links = self.0.link().get().execute();
        let links: Vec<LinkMessage> = links.try_collect().await.map_err(|error| failed("list links", "", error))?;
        let read = |link: &LinkMessage| {
            let mut found = (String::new(), 0);
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => found.0.clone_from(name),
                    LinkAttribute::Mtu(mtu) => found.1 = *mtu,
                    _ => {}
                }
            }
            (link.header.index, found)
        };
        Ok(links.iter().map(read).collect())
    }

    /// Sets a link's MTU. A link that is gone is success.
    pub async fn mtu(&self, name: &str, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).mtu(mtu).build();
        match self.0.link().set(message).execute().await {
            Err(error) if code(&error) != ENODEV => Err(failed("set mtu of link", name, error)),
            _ => Ok(()),
        }
    }

    /// The VXLAN device of this name and its index.
    pub async fn vxlan(&self, name: &str) -> Result<Option<(u32, VxlanDevice)>> {
        let mut links = Box::pin(self.0.link().get().match_name(name.to_owned()).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| (link.header.index, vxlan_of(&link)))),
            Err(error) if code(&error) == ENODEV => Ok(None),
            Err(error) => Err(failed("find link", name, error)),
        }
    }

    /// Nothing is learnt and nothing flooded: who is behind the device is written into its tables.
    pub async fn add_vxlan(&self, name: &str, device: &VxlanDevice) -> Result<u32> {
        let message = LinkVxlan::new(name, device.vni).port(device.port).learning(false).local(device.local);
        // Without: the checksum of a packet that was translated twice would be wrong on some network cards.
        let message = message.udp_csum(false).address(device.mac.to_vec()).mtu(device.mtu).up().build();
        self.0.link().add(message).execute().await.map_err(|error| failed("create link", name, error))?;
        self.index(name).await?.ok_or_else(|| missing("find link", name))
    }

    /// Without peers and keys: those are not rtnetlink's.
    pub async fn add_wireguard(&self, name: &str, mtu: u32) -> Result<u32> {
        if let Some(index) = self.index(name).await? {
            self.mtu(name, mtu).await?;
            self.up(name).await?;
            return Ok(index);
        }
        let message = LinkWireguard::new(name).mtu(mtu).up().build();
        self.0.link().add(message).execute().await.map_err(|error| failed("create link", name, error))?;
        self.index(name).await?.ok_or_else(|| missing("find link", name))
    }

    /// MAC addresses behind a VXLAN device and the node each is on.
    pub async fn forwarding(&self, index: u32) -> Result<Neighbours> {
        self.neighbours_of(AddressFamily::Bridge, index).await
    }

    pub async fn neighbours(&self, index: u32) -> Result<Neighbours> {
        self.neighbours_of(AddressFamily::Inet, index).await
    }

    async fn neighbours_of(&self, family: AddressFamily, index: u32) -> Result<Neighbours> {
        let all = self.0.neighbours().get().set_address_family(family).execute();
        let all: Vec<NeighbourMessage> =
            all.try_collect().await.map_err(|error| failed("list neighbours", "", error))?;
        let ours = all.iter().filter(|entry| entry.header.ifindex == index);
        Ok(ours.filter_map(neighbour_of).collect())
    }

    pub async fn add_forwarding(&self, index: u32, mac: Mac, to: Ipv4Addr) -> Result<()> {
        let request = self.0.neighbours().add_bridge(index, &mac).destination(to.into()).flags(NeighbourFlags::Own);
        request.replace().execute().await.map_err(|error| failed("add forwarding to", &to.to_string(), error))
    }

    pub async fn add_neighbour(&self, index: u32, mac: Mac, ip: Ipv4Addr) -> Result<()> {
        let request = self.0.neighbours().add(index, ip.into()).link_layer_address(&mac);
        let request = request.state(NeighbourState::Permanent).replace();
        request.execute().await.map_err(|error| failed("add neighbour", &ip.to_string(), error))
    }

    pub async fn delete_forwarding(&self, index: u32, mac: Mac, to: Ipv4Addr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)),
        ];
        self.delete_neighbour_message(index, message, to).await
    }

    pub async fn delete_neighbour(&self, index: u32, ip: Ipv4Addr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))];
        self.delete_neighbour_message(index, message, ip).await
    }

    async fn delete_neighbour_message(&self, index: u32, mut message: NeighbourMessage, ip: Ipv4Addr) -> Result<()> {
        message.header.ifindex = index;
        match self.0.neighbours().del(message).execute().await {
            Err(error) if !matches!(-code(&error), libc::ENOENT | libc::ENODEV) => {
                Err(failed("delete neighbour", &ip.to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// Routes of ours that use `source`, or that refuse what no node has.
    pub async fn own_routes(&self, source: Ipv4Addr, probe: Ipv4Addr) -> Result<Vec<Route>> {
        let all = self.0.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let all: Vec<RouteMessage> = all.try_collect().await.map_err(|error| failed("list routes", "", error))?;
        let ours = all.iter().filter(|route| route.header.protocol == PROTOCOL).filter_map(route_of);
        Ok(ours.filter(|route| route.source.is_none_or(|ip| ip == source || ip == probe)).collect())
    }

    pub async fn add_route(&self, route: &Route) -> Result<()> {
        let request = self.0.route().add(message_of(route)).replace();
        request.execute().await.map_err(|error| failed("add route to", &route.to.to_string(), error))
    }

    /// Already gone is success.
    pub async fn delete_route(&self, route: &Route) -> Result<()> {
        match self.0.route().del(message_of(route)).execute().await {
            Err(error) if !matches!(-code(&error), libc::ESRCH | libc::ENODEV) => {
                Err(failed("delete route to", &route.to.to_string(), error))
            }
            _ => Ok(()),
        }
    }
}

fn reach_of(route: &RouteMessage, links: &BTreeMap<u32, (String, u32)>) -> Reach {
    if route.header.kind == RouteType::Local {
        return Reach::Own;
    }
    if route.header.kind != RouteType::Unicast {
        return Reach::Nowhere;
    }
    let (mut link, mut gateway, mut source, mut path_mtu) = (0, None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
            RouteAttribute::Metrics(metrics) => {
                path_mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let Some((name, mtu)) = links.get(&link) else { return Reach::Nowhere };
    let mtu = path_mtu.map_or(*mtu, |path| path.min(*mtu));
    Reach::By(Hop { link, link_name: name.clone(), gateway, source, mtu })
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let mut route = Route { to: "0.0.0.0/1".parse().ok()?, link: 0, via: None, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                route.to = Cidr::new(*ip, message.header.destination_prefix_length);
            }
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.via = Some(*ip),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some(*ip),
            _ => {}
        }
    }
    Some(route)
}

fn message_of(route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(route.to.base(), route.to.prefix());
    builder = builder.protocol(PROTOCOL);
    if route.is_refusal() {
        return builder.kind(RouteType::Unreachable).priority(Route::REFUSAL_PRIORITY).build();
    }
    builder = builder.output_interface(route.link);
    builder = match route.via {
        // On-link: the kernel need not know another way to the gateway.
        Some(ip) => builder.gateway(ip).onlink(),
        None => builder.scope(RouteScope::Link),
    };
    if let Some(ip) = route.source {
        builder = builder.pref_source(ip);
    }
    builder.build()
}

fn neighbour_of(message: &NeighbourMessage) -> Option<(Mac, Ipv4Addr)> {
    let (mut mac, mut ip) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(*address),
            // The forwarding table's destinations are not of its family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    Some((mac?, ip?))
}

fn vxlan_of(link: &LinkMessage) -> VxlanDevice {
    let mut device = VxlanDevice { vni: 0, local: Ipv4Addr::UNSPECIFIED, port: 0, mac: [0; 6], mtu: 0 };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(bytes) => device.mac = bytes.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                        data.iter().for_each(|one| vxlan_field(&mut device, one));
                    }
                }
            }
            _ => {}
        }
    }
    device
}

fn vxlan_field(device: &mut VxlanDevice, field: &InfoVxlan) {
    match field {
        InfoVxlan::Id(vni) => device.vni = *vni,
        InfoVxlan::Local(ip) => device.local = *ip,
        InfoVxlan::Port(port) => device.port = *port,
        _ => {}
    }
}
