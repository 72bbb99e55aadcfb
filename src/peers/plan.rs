//! Which way packets to a peer's pods take: the best that is not known to be lost. Pure.

use super::fact::Peer;
use super::trial::Verdict;
use crate::network::ipam::Cidr;
use crate::network::peers::{Hop, POD_MTU_LIMIT, Reach, VXLAN_OVERHEAD_BYTES, WIREGUARD_OVERHEAD_BYTES, Way};
use crate::network::wireguard::Tunnel;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

/// What an administrator asked for: `pod-network` of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The best for each peer.
    #[default]
    Auto,
    /// Plain routes, or nothing.
    Route,
    /// VXLAN to every peer.
    Vxlan,
    /// Nothing of a pod leaves the node in the clear.
    Wireguard,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "route" => Ok(Self::Route),
            "vxlan" => Ok(Self::Vxlan),
            "wireguard" => Ok(Self::Wireguard),
            _ => Err(format!("{text:?} is none of auto, route, vxlan, wireguard")),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Route => "route",
            Self::Vxlan => "vxlan",
            Self::Wireguard => "wireguard",
        })
    }
}

/// Seconds between packets that keep a NAT's memory of a tunnel alive.
const KEEPALIVE_S: u16 = 25;

/// What this node's kernel can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    pub vxlan: bool,
    /// And this node has a key: without one there is no device.
    pub wireguard: bool,
    /// Packets can be carried to the server.
    pub relay: bool,
}

/// What is known of a peer's surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub reach: Reach,
    /// Packets with pods' addresses: on the link where the peer is there, else through the tunnel.
    pub plain: Verdict,
    /// Packets between the nodes' own addresses.
    pub address: Verdict,
    /// Packets through the server; asked when nothing else passes.
    pub relay: Verdict,
    /// The peer said that its kernel takes VXLAN.
    pub takes_vxlan: bool,
    /// It answered at this address before: it is the peer, not a stranger's board with the same address.
    pub proven: bool,
    /// Packets of pods go through the server now.
    pub relayed: bool,
}

/// How sure the choice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Packets pass, both ways.
    Works,
    /// Being tried; used meanwhile.
    Trying,
    /// It answered once, and does not now: it is off, perhaps. Used all the same.
    Silent,
    /// There is no way, or nobody ever answered.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub way: Option<Way>,
    pub state: State,
    /// Why it is not the plain route; for people.
    pub reason: String,
}

fn none(reason: impl Into<String>) -> Choice {
    Choice { way: None, state: State::Unreachable, reason: reason.into() }
}

pub fn choose(mode: Mode, can: Abilities, peer: &Peer, known: &Known) -> Choice {
    let Some(address) = peer.address else { return none("the node has no IPv4 address yet") };
    let mut options = Vec::new();
    let mut reasons = Vec::new();
    let sealed = is_sealed(mode, peer);
    match &known.reach {
        Reach::Own => reasons.push(format!("its address {address} is this node's own")),
        Reach::Nowhere => reasons.push(format!("no route leads to {address}")),
        Reach::By(_) if sealed => reasons.push("pod-network is wireguard".to_owned()),
        Reach::By(hop) => in_the_clear(mode, can, address, hop, known, &mut options, &mut reasons),
    }
    if matches!(mode, Mode::Auto | Mode::Wireguard) {
        let verdict = if on_link(mode, peer, &known.reach).is_some() { known.address } else { known.plain };
        match (can.wireguard, peer.notice.key) {
            (true, Some(_)) => options.push((Way::Wireguard, verdict)),
            (true, None) if sealed => reasons.push("the node has published no key yet".to_owned()),
            (false, _) if sealed => reasons.push("this kernel has no wireguard".to_owned()),
            _ => {}
        }
    }
    if can.relay && mode == Mode::Auto && !sealed {
        options.push((Way::Relay, known.relay));
    }
    if known.relayed && known.relay != Verdict::Lost {
        // A tunnel's first packets may be lost. Until it has answered, packets stay where they pass.
        options.retain(|(way, verdict)| *way == Way::Relay || *verdict != Verdict::Unknown);
    }
    let trusted = known.proven || mode != Mode::Auto || sealed;
    pick(options, reasons, trusted)
}

fn in_the_clear(
    mode: Mode,
    can: Abilities,
    address: Ipv4Addr,
    hop: &Hop,
    known: &Known,
    options: &mut Vec<(Way, Verdict)>,
    reasons: &mut Vec<String>,
) {
    if mode == Mode::Vxlan {
        reasons.push("pod-network is vxlan".to_owned());
    } else if let Some(gateway) = hop.gateway {
        reasons.push(format!("{address} is behind {gateway}"));
    } else {
        options.push((Way::Route { to: address, link: hop.link }, known.plain));
    }
    if mode == Mode::Route {
        return;
    }
    match is_private(address) || mode == Mode::Vxlan {
        false => reasons.push(format!("{address} is a public address, and VXLAN hides nothing")),
        true if !can.vxlan => reasons.push("this kernel has no vxlan".to_owned()),
        true if !known.takes_vxlan => reasons.push("the node's kernel has no vxlan".to_owned()),
        true => options.push((Way::Vxlan { to: address }, known.address)),
    }
}

/// Either end wants nothing in the clear.
pub fn is_sealed(mode: Mode, peer: &Peer) -> bool {
    mode == Mode::Wireguard || peer.notice.wants_wireguard
}

/// Whether this peer needs a WireGuard device here, or may come to need one.
pub fn needs_wireguard(mode: Mode, peer: &Peer, known: &Known) -> bool {
    let is_far = peer.address.is_some_and(|ip| !is_private(ip))
        || (peer.notice.external.is_some() && known.address == Verdict::Lost);
    // It is behind a router, and this node is far for it: it can open the tunnel, if this end has a key.
    let may_call = peer.notice.key.is_some() && known.reach == Reach::Nowhere;
    is_sealed(mode, peer) || (mode == Mode::Auto && (is_far || may_call))
}

/// The peer's end of the tunnel, once it has a key. One that no packets take is not kept alive.
pub fn tunnel(peer: &Peer, known: &Known, port: u16, in_use: bool) -> Option<Tunnel> {
    let key = peer.notice.key?;
    let external = peer.notice.external.filter(|_| known.address == Verdict::Lost || known.reach == Reach::Nowhere);
    let is_far = external.is_some() || peer.address.is_some_and(|ip| !is_private(ip));
    let endpoint = external.or(peer.address).map(|ip| SocketAddrV4::new(ip, port));
    let keepalive_s = if is_far && in_use { KEEPALIVE_S } else { 0 };
    Some(Tunnel { key, endpoint, keepalive_s, pods: peer.pods })
}

fn pick(options: Vec<(Way, Verdict)>, mut reasons: Vec<String>, trusted: bool) -> Choice {
    let usable = options.iter().position(|(_, verdict)| *verdict != Verdict::Lost);
    if usable.is_some_and(|place| place > 0) {
        reasons.push("packets of pods are dropped between the nodes".to_owned());
    }
    if usable.is_none() && !trusted && !options.is_empty() {
        return none("nothing answers probes: the node is off, or a firewall drops them");
    }
    // When a peer has fallen silent, the best way is as good as any.
    let Some((way, verdict)) = options.into_iter().nth(usable.unwrap_or(0)) else { return none(reasons.join("; ")) };
    let state = match verdict {
        Verdict::Passes { .. } => State::Works,
        Verdict::Unknown => State::Trying,
        Verdict::Lost => State::Silent,
    };
    Choice { way: Some(way), state, reason: reasons.join("; ") }
}

/// Where packets with pods' addresses are tried.
pub fn on_link(mode: Mode, peer: &Peer, reach: &Reach) -> Option<(Ipv4Addr, u32)> {
    match (mode, peer.address, reach) {
        _ if is_sealed(mode, peer) => None,
        (Mode::Auto | Mode::Route, Some(address), Reach::By(Hop { gateway: None, link, .. })) => Some((address, *link)),
        _ => None,
    }
}

/// Bytes of a pod's packet that this way carries.
pub fn mtu(way: &Way, hop: Option<&Hop>) -> u32 {
    let link = hop.map_or(POD_MTU_LIMIT, |hop| hop.mtu);
    match way {
        Way::Route { .. } => link,
        // On a stream of bytes packets are of any length.
        Way::Relay => POD_MTU_LIMIT,
        Way::Vxlan { .. } => link.saturating_sub(VXLAN_OVERHEAD_BYTES),
        Way::Wireguard => link.saturating_sub(WIREGUARD_OVERHEAD_BYTES),
    }
}

/// Peers whose pods' network is this node's, or that of another which comes first by name, get nothing.
pub fn clashes(own: Cidr, pods: Cidr, before: impl Iterator<Item = Cidr>) -> bool {
    own.overlaps(pods) || before.into_iter().any(|other| other.overlaps(pods))
}

/// Addresses of networks that are somebody's own: RFC 1918, RFC 6598 and link-local.
fn is_private(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || ip.is_link_local() || (a == 100 && (64..128).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::fact::Notice;

    const PASSES: Verdict = Verdict::Passes { round_trip_us: 500 };

    fn by(gateway: Option<&str>) -> Reach {
        let gateway = gateway.map(|ip| ip.parse().unwrap());
        Reach::By(Hop { link: 2, link_name: "eth0".into(), gateway, source: None, mtu: 1500 })
    }

    fn peer(address: &str) -> Peer {
        let (pods, notice) = ("10.42.9.0/24".parse().unwrap(), Notice::default());
        Peer { pods, address: address.parse().ok(), is_ready: true, notice }
    }

    const CAN: Abilities = Abilities { vxlan: true, wireguard: true, relay: false };

    fn name(choice: &Choice) -> &'static str {
        match choice.way {
            Some(Way::Route { .. }) => "route",
            Some(Way::Vxlan { .. }) => "vxlan",
            Some(Way::Wireguard) => "wireguard",
            Some(Way::Relay) => "relay",
            None => "none",
        }
    }

    #[test]
    fn wireguard_is_used_when_asked_and_off_the_lan() {
        use Verdict::{Lost, Unknown};
        let (lan, public, behind) = ("192.168.1.9", "203.0.113.9", Some("192.168.1.1"));
        // Mode here, what the peer wants, its address, gateway, probes by pods' and nodes' addresses, ability.
        let cases = [
            (Mode::Wireguard, false, lan, None, PASSES, PASSES, true, "wireguard"),
            (Mode::Auto, true, lan, None, PASSES, PASSES, true, "wireguard"),
            (Mode::Wireguard, false, lan, None, Unknown, PASSES, false, "none"),
            (Mode::Auto, false, lan, None, PASSES, PASSES, true, "route"),
            (Mode::Auto, false, lan, behind, Unknown, PASSES, true, "vxlan"),
            (Mode::Auto, false, lan, behind, PASSES, Lost, true, "wireguard"),
            (Mode::Auto, false, public, behind, Unknown, PASSES, true, "wireguard"),
            (Mode::Auto, false, public, behind, Unknown, PASSES, false, "none"),
            (Mode::Vxlan, false, lan, behind, Unknown, PASSES, true, "vxlan"),
        ];
        for (mode, wants_wireguard, address, gateway, plain, between, wireguard, expected) in cases {
            let notice = Notice { key: Some([1; 32]), wants_wireguard, external: None };
            let peer = Peer { notice, ..peer(address) };
            let known = Known {
                reach: by(gateway),
                plain,
                address: between,
                relay: Verdict::Unknown,
                takes_vxlan: true,
                proven: false,
                relayed: false,
            };
            let choice = choose(mode, Abilities { wireguard, ..CAN }, &peer, &known);
            assert_eq!(name(&choice), expected, "{mode} {peer:?} {known:?}: {choice:?}");
        }
        let keyless = Peer { notice: Notice { wants_wireguard: true, ..Notice::default() }, ..peer(lan) };
        let known = Known {
            reach: by(None),
            plain: PASSES,
            address: PASSES,
            relay: Verdict::Unknown,
            takes_vxlan: true,
            proven: true,
            relayed: false,
        };
        assert_eq!(
            choose(Mode::Auto, CAN, &keyless, &known).reason,
            "pod-network is wireguard; the node has published no key yet"
        );
    }

    #[test]
    fn a_tunnel_ends_where_the_peer_is_reached() {
        let external = Some(Ipv4Addr::new(203, 0, 113, 9));
        let notice = Notice { key: Some([1; 32]), wants_wireguard: false, external };
        let peer = Peer { notice, ..peer("192.168.7.9") };
        let known = |address| Known {
            reach: by(Some("192.168.1.1")),
            plain: PASSES,
            address,
            relay: Verdict::Unknown,
            takes_vxlan: true,
            proven: true,
            relayed: false,
        };
        let end = |address, in_use| {
            tunnel(&peer, &known(address), 51820, in_use)
                .map(|tunnel| (tunnel.endpoint.unwrap().to_string(), tunnel.keepalive_s))
        };
        assert_eq!(end(PASSES, true), Some(("192.168.7.9:51820".to_owned(), 0)));
        assert_eq!(end(Verdict::Lost, true), Some(("203.0.113.9:51820".to_owned(), 25)));
        assert_eq!(end(Verdict::Lost, false), Some(("203.0.113.9:51820".to_owned(), 0)), "nobody sends that way");
        assert!(!needs_wireguard(Mode::Auto, &peer, &known(PASSES)));
        let unreachable = Known { reach: Reach::Nowhere, ..known(PASSES) };
        assert!(needs_wireguard(Mode::Auto, &peer, &unreachable), "a board behind a router calls its server");
        let keyless = Peer { notice: Notice::default(), ..peer.clone() };
        assert!(!needs_wireguard(Mode::Auto, &keyless, &unreachable));
        assert!(needs_wireguard(Mode::Auto, &peer, &known(Verdict::Lost)));
    }

    #[test]
    fn the_best_way_that_is_not_lost_is_taken() {
        use State::{Silent, Trying, Unreachable, Works};
        use Verdict::{Lost, Unknown};
        let (lan, public, behind) = ("192.168.1.9", "203.0.113.9", Some("192.168.1.1"));
        // Mode, address, reach, plain packets, addresses, the peer takes VXLAN → way, state, a word of the reason.
        type Case<'a> = (Mode, &'a str, Reach, Verdict, Verdict, bool, &'a str, State, &'a str);
        let cases: Vec<Case> = vec![
            (Mode::Auto, lan, by(None), PASSES, PASSES, true, "route", Works, ""),
            (Mode::Auto, lan, by(None), Unknown, Unknown, true, "route", Trying, ""),
            (Mode::Auto, lan, by(None), Lost, PASSES, true, "vxlan", Works, "dropped"),
            (Mode::Auto, lan, by(None), Lost, Lost, true, "none", Unreachable, "nothing answers"),
            (Mode::Route, lan, by(None), Lost, Lost, true, "route", Silent, ""),
            (Mode::Auto, lan, by(behind), Unknown, PASSES, true, "vxlan", Works, "behind 192.168.1.1"),
            (Mode::Auto, lan, by(behind), Unknown, PASSES, false, "none", Unreachable, "no vxlan"),
            (Mode::Auto, public, by(behind), Unknown, PASSES, true, "none", Unreachable, "public"),
            (Mode::Vxlan, public, by(behind), Unknown, PASSES, true, "vxlan", Works, "pod-network"),
            (Mode::Vxlan, lan, by(None), PASSES, PASSES, true, "vxlan", Works, "pod-network"),
            (Mode::Route, lan, by(None), Lost, PASSES, true, "route", Silent, ""),
            (Mode::Route, lan, by(behind), Unknown, PASSES, true, "none", Unreachable, "behind"),
            (Mode::Auto, lan, Reach::Own, Unknown, Unknown, true, "none", Unreachable, "own"),
            (Mode::Auto, lan, Reach::Nowhere, Unknown, Unknown, true, "none", Unreachable, "no route"),
            (Mode::Auto, "", by(None), Unknown, Unknown, true, "none", Unreachable, "no IPv4"),
        ];
        for (mode, address, reach, plain, between, takes_vxlan, way, state, reason) in cases {
            let known = Known {
                reach,
                plain,
                address: between,
                relay: Verdict::Unknown,
                takes_vxlan,
                proven: false,
                relayed: false,
            };
            let choice = choose(mode, CAN, &peer(address), &known);
            assert_eq!((name(&choice), choice.state), (way, state), "{mode} {address} {known:?}");
            assert!(choice.reason.contains(reason), "{} has no {reason:?}", choice.reason);
        }
    }

    #[test]
    fn what_nothing_else_reaches_goes_through_the_server() {
        use State::{Silent, Trying, Unreachable, Works};
        use Verdict::{Lost, Unknown};
        let (lan, public, behind) = ("192.168.1.9", "203.0.113.9", Some("192.168.1.1"));
        // Mode, address, reach, packets of pods, of nodes, through the server, answered before → way, state.
        type Case<'a> = (Mode, &'a str, Reach, Verdict, Verdict, Verdict, bool, &'a str, State);
        let cases: Vec<Case> = vec![
            (Mode::Auto, lan, by(None), PASSES, PASSES, PASSES, true, "route", Works),
            (Mode::Auto, lan, by(None), Lost, Unknown, PASSES, true, "vxlan", Trying),
            (Mode::Auto, lan, by(None), Lost, Lost, Unknown, false, "relay", Trying),
            (Mode::Auto, lan, by(behind), Unknown, Lost, PASSES, true, "relay", Works),
            (Mode::Auto, lan, by(behind), Unknown, Lost, Lost, true, "vxlan", Silent),
            (Mode::Auto, lan, by(behind), Unknown, Lost, Lost, false, "none", Unreachable),
            (Mode::Auto, public, by(behind), Unknown, Unknown, PASSES, false, "relay", Works),
            (Mode::Auto, lan, Reach::Nowhere, Unknown, Unknown, Unknown, false, "relay", Trying),
            (Mode::Auto, lan, Reach::Own, Unknown, Unknown, PASSES, false, "relay", Works),
            (Mode::Vxlan, lan, by(behind), Unknown, Lost, PASSES, false, "vxlan", Silent),
            (Mode::Route, lan, by(behind), Unknown, Lost, PASSES, false, "none", Unreachable),
            (Mode::Wireguard, lan, by(None), Unknown, Lost, PASSES, false, "none", Unreachable),
        ];
        let can = Abilities { relay: true, ..CAN };
        for (mode, address, reach, plain, between, relay, proven, way, state) in cases {
            let known = Known { reach, plain, address: between, relay, takes_vxlan: true, proven, relayed: false };
            let choice = choose(mode, can, &peer(address), &known);
            assert_eq!((name(&choice), choice.state), (way, state), "{mode} {address} {known:?}");
        }
        assert_eq!(mtu(&Way::Relay, None), 1500);
    }

    /// A tunnel was used as soon as its peer's key was known, and lost what pods sent until its handshake was through.
    #[test]
    fn packets_stay_on_the_relay_until_a_better_way_has_answered() {
        use State::{Trying, Works};
        use Verdict::{Lost, Unknown};
        let peer = Peer { notice: Notice { key: Some([1; 32]), ..Notice::default() }, ..peer("198.51.100.2") };
        for (relayed, plain, relay, way, state) in [
            (true, Unknown, PASSES, "relay", Works),
            (true, Unknown, Unknown, "relay", Trying),
            (true, PASSES, PASSES, "wireguard", Works),
            (true, Unknown, Lost, "wireguard", Trying),
            (false, Unknown, PASSES, "wireguard", Trying),
        ] {
            let (address, takes_vxlan, proven) = (Unknown, true, false);
            let known = Known { reach: Reach::Nowhere, plain, address, relay, takes_vxlan, proven, relayed };
            let choice = choose(Mode::Auto, Abilities { relay: true, ..CAN }, &peer, &known);
            assert_eq!((name(&choice), choice.state), (way, state), "{known:?}");
        }
    }

    #[test]
    fn a_peer_that_answered_once_keeps_its_way_while_it_is_silent() {
        let known = |proven| Known {
            reach: by(None),
            plain: Verdict::Lost,
            address: Verdict::Lost,
            relay: Verdict::Unknown,
            takes_vxlan: true,
            proven,
            relayed: false,
        };
        let choose = |proven| choose(Mode::Auto, CAN, &peer("192.168.1.9"), &known(proven));
        assert_eq!((choose(true).way.is_some(), choose(true).state), (true, State::Silent));
        assert_eq!((choose(false).way, choose(false).state), (None, State::Unreachable));
    }

    #[test]
    fn what_a_way_carries_is_what_its_link_carries_less_its_headers() {
        let Reach::By(hop) = by(None) else { unreachable!() };
        let to = Ipv4Addr::new(192, 168, 1, 9);
        assert_eq!(mtu(&Way::Route { to, link: 2 }, Some(&hop)), 1500);
        assert_eq!(mtu(&Way::Vxlan { to }, Some(&hop)), 1450);
        assert_eq!((mtu(&Way::Wireguard, Some(&hop)), mtu(&Way::Wireguard, None)), (1420, 1420));
    }

    #[test]
    fn private_networks_are_known() {
        for (ip, expected) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("100.64.0.1", true),
            ("169.254.1.1", true),
            ("100.128.0.1", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
