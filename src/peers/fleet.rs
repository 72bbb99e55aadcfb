//! All peers: what is known of each, what is asked, which way was chosen. No kernel, no clock.

use super::fact::{self, Notice, Peer};
use super::paths::{Line, Paths};
use super::plan::{Abilities, Choice, Known, Mode, State, choose, clashes, mtu, needs_wireguard, on_link, tunnel};
use super::trial::{Nonce, Trial, Verdict};
use crate::api::view::node::Node;
use crate::network::ipam::Cidr;
use crate::network::peers::{self, Hop, Reach, Wanted, Way, gateway, probe_address};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use tokio::time::Instant;

struct Member {
    peer: Peer,
    reach: Reach,
    /// Packets with pods' addresses; asked while the peer is on the link, or there is a tunnel to it.
    plain: Trial,
    /// Packets between the nodes' addresses.
    address: Trial,
    /// Packets through the server; asked while that is the way.
    relay: Trial,
    takes_vxlan: bool,
    proven: bool,
    choice: Option<Choice>,
}

impl Member {
    fn new(peer: Peer, now: Instant) -> Self {
        Self {
            peer,
            reach: Reach::Nowhere,
            plain: Trial::new(now),
            address: Trial::new(now),
            relay: Trial::new(now),
            takes_vxlan: true,
            proven: false,
            choice: None,
        }
    }

    fn hop(&self) -> Option<&Hop> {
        match &self.reach {
            Reach::By(hop) => Some(hop),
            _ => None,
        }
    }

    fn ask_again(&mut self, now: Instant) {
        self.plain.again(now);
        self.address.again(now);
        self.relay.again(now);
    }

    fn is_relayed(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.way == Some(Way::Relay))
    }

    /// The relay was given up, and it is time to try it again should nothing else pass.
    fn reopen_relay(&mut self, now: Instant) -> bool {
        let is_due = !self.is_relayed() && self.relay.verdict == Verdict::Lost && self.relay.due <= now;
        if is_due {
            self.relay.reopen();
        }
        is_due
    }

    fn known(&self) -> Known {
        Known {
            reach: self.reach.clone(),
            plain: self.plain.verdict,
            address: self.address.verdict,
            relay: self.relay.verdict,
            takes_vxlan: self.takes_vxlan,
            proven: self.proven,
        }
    }
}

pub struct Fleet {
    name: String,
    pods: Cidr,
    mode: Mode,
    /// What this node's own Node object says.
    address: Option<Ipv4Addr>,
    /// What its annotations say.
    pub notice: Notice,
    /// Whether that is an address of this machine still.
    has_address: bool,
    members: BTreeMap<String, Member>,
}

impl Fleet {
    pub fn new(name: &str, pods: Cidr, mode: Mode) -> Self {
        Self {
            name: name.to_owned(),
            pods,
            mode,
            address: None,
            notice: Notice::default(),
            has_address: false,
            members: BTreeMap::new(),
        }
    }

    /// Its own Node object was seen.
    pub fn knows_itself(&self) -> bool {
        self.address.is_some()
    }

    pub fn is_alone(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes a Node in; whether the kernel is to be asked for the way.
    pub fn set(&mut self, name: &str, node: Option<&Node>, now: Instant) -> bool {
        let facts = node.and_then(fact::peer);
        if name == self.name {
            let address = node.and_then(fact::address);
            self.notice = node.map(Notice::read).unwrap_or_default();
            return std::mem::replace(&mut self.address, address) != address;
        }
        let Some(peer) = facts else { return self.members.remove(name).is_some() };
        match self.members.get_mut(name) {
            None => {
                tracing::info!(node = name, pods = %peer.pods, "a peer");
                self.members.insert(name.to_owned(), Member::new(peer, now));
                true
            }
            Some(member) if member.peer == peer => false,
            Some(member) => {
                let moved = (member.peer.address, member.peer.pods) != (peer.address, peer.pods);
                let is_back = peer.is_ready && !member.peer.is_ready;
                if moved {
                    *member = Member::new(peer, now);
                } else {
                    let has_tunnel = member.peer.notice != peer.notice;
                    member.peer = peer;
                    if is_back || has_tunnel {
                        member.ask_again(now);
                    }
                }
                moved
            }
        }
    }

    /// Addresses that the kernel is to be asked about.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.members.values().filter_map(|member| member.peer.address).chain(self.address).collect()
    }

    /// What the kernel said; where the way changed, it is tried anew.
    pub fn see(&mut self, reaches: &BTreeMap<Ipv4Addr, Reach>, now: Instant) {
        let reach_of = |ip: Option<Ipv4Addr>| ip.and_then(|ip| reaches.get(&ip)).cloned().unwrap_or(Reach::Nowhere);
        self.has_address = reach_of(self.address) == Reach::Own;
        for member in self.members.values_mut() {
            let reach = reach_of(member.peer.address);
            if member.reach != reach {
                member.reach = reach;
                member.ask_again(now);
            }
        }
    }

    /// Tries every way anew.
    pub fn ask_again(&mut self, now: Instant) {
        self.members.values_mut().for_each(|member| member.ask_again(now));
    }

    /// Chooses a way to every peer.
    pub fn decide(&mut self, can: Abilities) {
        let mut before: Vec<Cidr> = Vec::new();
        for (name, member) in &mut self.members {
            let choice = if clashes(self.pods, member.peer.pods, before.iter().copied()) {
                let reason = format!("another node has addresses of {} too", member.peer.pods);
                Choice { way: None, state: State::Unreachable, reason }
            } else {
                before.push(member.peer.pods);
                choose(self.mode, can, &member.peer, &member.known())
            };
            let way = |choice: &Choice| choice.way.as_ref().map(name_of);
            if member.choice.as_ref().is_none_or(|old| way(old) != way(&choice)) {
                let (way, reason) = (way(&choice).unwrap_or("none"), &choice.reason);
                tracing::info!(node = name, way, reason, "way to a peer");
            }
            member.choice = Some(choice);
        }
    }

    /// What the kernel is to have.
    pub fn wanted(&self, vxlan_port: u16, wireguard_port: Option<u16>, has_vxlan: bool) -> Wanted {
        let wanted_of = |member| self.wanted_of(member, wireguard_port);
        let peers: Vec<peers::Peer> = self.members.values().filter_map(wanted_of).collect();
        let needs_vxlan = has_vxlan && matches!(self.mode, Mode::Auto | Mode::Vxlan) && !self.is_alone();
        let vxlan = self.own_address().filter(|_| needs_vxlan).map(|local| (local, vxlan_port));
        let mtus =
            self.members.values().filter_map(|member| Some(mtu(member.choice.as_ref()?.way.as_ref()?, member.hop())));
        let mtu = mtus.min().unwrap_or(peers::POD_MTU_LIMIT).min(peers::POD_MTU_LIMIT);
        Wanted { vxlan, wireguard: wireguard_port, mtu, peers }
    }

    /// Whether packets to some peer go through the server.
    pub fn needs_relay(&self) -> bool {
        self.members.values().any(Member::is_relayed)
    }

    /// Whether some peer needs a WireGuard device here.
    pub fn needs_wireguard(&self) -> bool {
        self.members.values().any(|member| needs_wireguard(self.mode, &member.peer, &member.known()))
    }

    fn wanted_of(&self, member: &Member, wireguard_port: Option<u16>) -> Option<peers::Peer> {
        let clashes = member.peer.pods.overlaps(self.pods);
        let way = member.choice.as_ref().and_then(|choice| choice.way.clone());
        let on_link = on_link(self.mode, &member.peer, &member.reach);
        let tunnel = wireguard_port.and_then(|port| tunnel(&member.peer, &member.known(), port));
        (!clashes).then_some(peers::Peer { pods: member.peer.pods, way, on_link, tunnel })
    }

    /// This node's address as its peers know it; if the machine has lost that, what the kernel uses towards them.
    fn own_address(&self) -> Option<Ipv4Addr> {
        let used = || self.members.values().filter_map(Member::hop).find_map(|hop| hop.source);
        self.address.filter(|_| self.has_address).or_else(used)
    }

    /// When the next question is due.
    pub fn due(&self) -> Option<Instant> {
        let dues = self.members.values().flat_map(|member| {
            let plain = asks_plain(self.mode, member).then_some(member.plain.due);
            let waits = member.is_relayed() || member.relay.verdict == Verdict::Lost;
            [plain, member.hop().map(|_| member.address.due), waits.then_some(member.relay.due)]
        });
        dues.flatten().min()
    }

    /// Questions to send now: to which address, of the node with which pods.
    pub fn questions(&mut self, now: Instant, nonce: impl Fn() -> Option<Nonce>) -> Vec<(Ipv4Addr, Cidr, Nonce)> {
        let mut questions = Vec::new();
        for member in self.members.values_mut() {
            member.reopen_relay(now);
            let (plain, relayed) = (asks_plain(self.mode, member), member.is_relayed());
            let address = member.hop().and(member.peer.address);
            let plain = plain.then(|| (probe_address(member.peer.pods), &mut member.plain));
            let address = address.map(|ip| (ip, &mut member.address));
            let relay = relayed.then(|| (gateway(member.peer.pods), &mut member.relay));
            for (to, trial) in [plain, address, relay].into_iter().flatten().filter(|(_, trial)| trial.due <= now) {
                let Some(nonce) = nonce() else { continue };
                if trial.turn(nonce, now) {
                    questions.push((to, member.peer.pods, nonce));
                }
            }
        }
        questions
    }

    /// An answer to one of them.
    pub fn hear(&mut self, nonce: Nonce, takes_vxlan: bool, now: Instant) {
        for member in self.members.values_mut() {
            let by_relay = member.relay.hear(nonce, now);
            if by_relay {
                member.proven = true;
                return;
            }
            if member.plain.hear(nonce, now) || member.address.hear(nonce, now) {
                member.takes_vxlan = takes_vxlan;
                member.proven = true;
                return;
            }
        }
    }

    /// A peer that asks is alive: where it was given up, it is asked too.
    pub fn asked_by(&mut self, from: Ipv4Addr, now: Instant) {
        let is_from =
            |member: &&mut Member| member.peer.address == Some(from) || probe_address(member.peer.pods) == from;
        for member in self.members.values_mut().filter(is_from) {
            member.plain.hasten(now);
            member.address.hasten(now);
        }
        for member in self.members.values_mut().filter(|member| gateway(member.peer.pods) == from) {
            member.relay.hasten(now);
        }
    }

    /// Packets to this address go through the server: better ways are looked for more often.
    pub fn relayed_to(&mut self, ip: Ipv4Addr, now: Instant) {
        for member in self.members.values_mut().filter(|member| member.peer.pods.contains(ip)) {
            member.plain.wanted(now);
            member.address.wanted(now);
        }
    }

    /// The ways as people see them.
    pub fn paths(&self) -> Paths {
        Paths {
            node: self.name.clone(),
            address: self.own_address().or(self.address),
            pod_cidr: self.pods.to_string(),
            pod_network: self.mode.to_string(),
            mtu: self.wanted(0, None, false).mtu,
            peers: self.members.iter().map(|(name, member)| line(name, member)).collect(),
        }
    }
}

fn asks_plain(mode: Mode, member: &Member) -> bool {
    on_link(mode, &member.peer, &member.reach).is_some() || member.peer.notice.key.is_some()
}

fn line(name: &str, member: &Member) -> Line {
    let choice = member.choice.as_ref();
    let way = choice.and_then(|choice| choice.way.as_ref());
    let trial = match way {
        Some(Way::Route { .. } | Way::Wireguard) => Some(&member.plain),
        Some(Way::Vxlan { .. }) => Some(&member.address),
        Some(Way::Relay) => Some(&member.relay),
        None => None,
    };
    let round_trip_us = trial.and_then(|trial| match trial.verdict {
        Verdict::Passes { round_trip_us } => Some(round_trip_us),
        _ => None,
    });
    let hop = member.hop();
    Line {
        node: name.to_owned(),
        pod_cidr: member.peer.pods.to_string(),
        address: member.peer.address,
        way: way.map_or("none", name_of).to_owned(),
        link: hop.filter(|_| way != Some(&Way::Relay)).map(|hop| hop.link_name.clone()).unwrap_or_default(),
        state: choice.map_or("trying", |choice| state_name(choice.state)).to_owned(),
        round_trip_us,
        mtu: way.map(|way| mtu(way, hop)),
        reason: choice.map(|choice| choice.reason.clone()).unwrap_or_default(),
    }
}

fn name_of(way: &Way) -> &'static str {
    match way {
        Way::Route { .. } => "route",
        Way::Vxlan { .. } => "vxlan",
        Way::Wireguard => "wireguard",
        Way::Relay => "relay",
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Works => "works",
        State::Trying => "trying",
        State::Silent => "silent",
        State::Unreachable => "unreachable",
    }
}
