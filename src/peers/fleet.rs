//! All peers: what is known of each, what is asked, which way was chosen. No kernel, no clock.

use super::fact::{self, Notice, Peer};
use super::paths::{Line, Paths};
use super::plan::{
    Abilities, Choice, Known, Mode, State, choose, clashes, is_sealed, mtu, needs_wireguard, on_link, tunnel,
};
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

    /// What tells whether packets pass by the way in use.
    fn current(&mut self, mode: Mode) -> Option<&mut Trial> {
        let is_on_link = on_link(mode, &self.peer, &self.reach).is_some();
        match self.choice.as_ref()?.way.as_ref()? {
            Way::Route { .. } => Some(&mut self.plain),
            Way::Vxlan { .. } => Some(&mut self.address),
            // The probe address is beside the tunnel then.
            Way::Wireguard if is_on_link => Some(&mut self.address),
            Way::Wireguard => Some(&mut self.plain),
            Way::Relay => Some(&mut self.relay),
        }
    }

    /// Packets of pods get no answer: the way in use is looked at, and if it was given up already, every way.
    fn doubt(&mut self, mode: Mode, now: Instant) {
        let Some(current) = self.current(mode) else { return };
        current.doubt(now);
        if !current.passes() {
            self.doubt_direct(now);
        }
    }

    /// While the way in use does not answer at once, the others are asked too: one of them is the next.
    fn compare(&mut self, mode: Mode, now: Instant) {
        if self.current(mode).is_some_and(|current| current.passes() && current.is_slow()) {
            self.doubt_direct(now);
        }
    }

    fn doubt_direct(&mut self, now: Instant) {
        self.plain.doubt(now);
        self.address.doubt(now);
    }

    fn is_relayed(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.way == Some(Way::Relay))
    }

    /// Until a way works, or where it is the relay, questions of the peer that came through the server are answered there:
    /// what the two try first differs, and a way that is being tried may lead nowhere.
    fn relays_own(&self, mode: Mode) -> bool {
        let is_settled = self.choice.as_ref().is_none_or(|choice| choice.state == State::Works);
        mode == Mode::Auto && !is_sealed(mode, &self.peer) && !is_settled && !self.is_relayed()
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
            relayed: self.is_relayed(),
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
    /// Whether there is an end of tunnels here.
    has_tunnels: bool,
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
            has_tunnels: false,
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
        self.has_tunnels = can.wireguard;
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
        let in_use = way == Some(Way::Wireguard);
        let tunnel = wireguard_port.and_then(|port| tunnel(&member.peer, &member.known(), port, in_use));
        (!clashes).then_some(peers::Peer {
            pods: member.peer.pods,
            relays_own: member.relays_own(self.mode),
            way,
            on_link,
            tunnel,
        })
    }

    /// This node's address as its peers know it; if the machine has lost that, what the kernel uses towards them.
    fn own_address(&self) -> Option<Ipv4Addr> {
        let used = || self.members.values().filter_map(Member::hop).find_map(|hop| hop.source);
        self.address.filter(|_| self.has_address).or_else(used)
    }

    /// When the next question is due.
    pub fn due(&self) -> Option<Instant> {
        let dues = self.members.values().flat_map(|member| {
            let plain = asks_plain(self.mode, self.has_tunnels, member).then_some(member.plain.due);
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
            let (plain, relayed) = (asks_plain(self.mode, self.has_tunnels, member), member.is_relayed());
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
            member.compare(self.mode, now);
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
            let by_address = member.peer.address == Some(from);
            let same = if by_address { &mut member.address } else { &mut member.plain };
            same.asked_back(now);
            // The peer may have left it, or be about to.
            member.current(self.mode).into_iter().for_each(|current| current.asked_back(now));
        }
        for member in self.members.values_mut().filter(|member| gateway(member.peer.pods) == from) {
            member.relay.hasten(now);
            member.relay.asked_back(now);
            if !member.is_relayed() {
                // The peer has left the way in use here: what is sent that way may be lost.
                member.doubt(self.mode, now);
            }
        }
    }

    /// A packet to this address got no answer, nor did the next: the way there is looked at again, soon.
    pub fn unanswered(&mut self, ip: Ipv4Addr, now: Instant) {
        // The questions of this room are such packets too.
        let is_of_pod = |pods: Cidr| pods.contains(ip) && ip != probe_address(pods) && ip != gateway(pods);
        for (name, member) in self.members.iter_mut().filter(|(_, member)| is_of_pod(member.peer.pods)) {
            tracing::debug!(node = name, %ip, "packets to a pod of a peer get no answer");
            member.doubt(self.mode, now);
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

/// Without a link or a tunnel the question would go where the peer's pods are reached now, by the relay say.
fn asks_plain(mode: Mode, has_tunnels: bool, member: &Member) -> bool {
    let has_tunnel = has_tunnels && member.peer.notice.key.is_some();
    on_link(mode, &member.peer, &member.reach).is_some() || has_tunnel
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::peers::Hop;
    use std::cell::Cell;
    use std::time::Duration;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 9, 5);
    const BOARD: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 9);

    /// One peer on this node's link, and what becomes of questions to it.
    struct Story {
        fleet: Fleet,
        now: Instant,
        nonces: Cell<u8>,
        asked: Vec<Ipv4Addr>,
    }

    impl Story {
        fn new() -> Self {
            let now = Instant::now();
            let mut fleet = Fleet::new("here", "10.42.3.0/24".parse().unwrap(), Mode::Auto);
            let pods = "10.42.9.0/24".parse().unwrap();
            let peer = Peer { pods, address: Some(BOARD), is_ready: true, notice: Notice::default() };
            let hop = Hop { link: 2, link_name: "eth0".into(), gateway: None, source: None, mtu: 1500 };
            let member = Member { reach: Reach::By(hop), ..Member::new(peer, now) };
            fleet.members.insert("there".into(), member);
            let mut story = Self { fleet, now, nonces: Cell::new(0), asked: Vec::new() };
            story.go_on(10, |_| true);
            assert_eq!((story.way(), story.take_asked().len()), ("route", 2));
            story.go_on(3600, |_| true);
            story
        }

        /// Lets time pass; whether a question to an address is answered.
        fn go_on(&mut self, for_s: u64, answers: impl Fn(Ipv4Addr) -> bool) {
            let end = self.now + Duration::from_secs(for_s);
            let can = Abilities { vxlan: true, wireguard: false, relay: true };
            while self.now < end {
                let nonce = || {
                    self.nonces.set(self.nonces.get().wrapping_add(1));
                    Some([self.nonces.get(); 16])
                };
                for (to, _, nonce) in self.fleet.questions(self.now, nonce) {
                    self.asked.push(to);
                    if answers(to) {
                        self.fleet.hear(nonce, true, self.now);
                    }
                }
                self.fleet.decide(can);
                self.now = self.fleet.due().unwrap().clamp(self.now + Duration::from_millis(1), end);
            }
        }

        fn way(&self) -> &'static str {
            name_of(self.fleet.members["there"].choice.as_ref().unwrap().way.as_ref().unwrap())
        }

        fn take_asked(&mut self) -> Vec<Ipv4Addr> {
            std::mem::take(&mut self.asked)
        }
    }

    const PROBE: Ipv4Addr = Ipv4Addr::new(10, 42, 9, 0);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 9, 1);

    #[tokio::test(start_paused = true)]
    async fn a_way_that_answers_is_asked_alone_and_stays() {
        let mut story = Story::new();
        story.fleet.unanswered(POD, story.now);
        story.go_on(5, |_| true);
        assert_eq!((story.way(), story.take_asked()), ("route", vec![PROBE]));
        for ip in [PROBE, GATEWAY, BOARD, Ipv4Addr::new(10, 42, 8, 5)] {
            story.go_on(3600, |_| true);
            story.fleet.unanswered(ip, story.now);
            story.go_on(5, |_| true);
            assert_eq!(story.take_asked(), [] as [Ipv4Addr; 0], "{ip} is no pod's of that node");
        }
        for _ in 0..60 {
            story.fleet.unanswered(POD, story.now);
            story.go_on(10, |_| true);
        }
        assert_eq!((story.way(), story.take_asked()), ("route", vec![PROBE; 10]), "in ten minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_is_silent_gives_place_to_the_next_that_answers() {
        for (answers, expected) in [(BOARD, "vxlan"), (GATEWAY, "relay")] {
            let mut story = Story::new();
            story.go_on(3600, |to| to == answers);
            assert_eq!((story.way(), story.take_asked()), ("route", vec![]), "nobody has noticed");
            story.fleet.unanswered(POD, story.now);
            story.go_on(8, |to| to == answers);
            assert_eq!(story.way(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_asked_looks_at_the_same_way_and_the_one_in_use() {
        // Who asks through the server has left the way in use here: that is not put aside when it comes too early.
        let cases: [(_, &[_], &[_]); 3] =
            [(BOARD, &[PROBE, BOARD], &[]), (PROBE, &[PROBE], &[]), (GATEWAY, &[PROBE], &[PROBE])];
        for (from, expected, soon) in cases {
            let mut story = Story::new();
            story.fleet.asked_by(from, story.now);
            story.go_on(5, |_| true);
            assert_eq!(story.take_asked(), expected, "{from}");
            story.fleet.asked_by(from, story.now);
            story.go_on(300, |_| true);
            assert_eq!(story.take_asked(), soon, "{from} again");
        }
    }

    /// A node's peers, and what its kernel can.
    struct End(Fleet, Abilities);

    impl End {
        /// One peer, that no route leads to.
        fn new(own: &str, other: &str, peers_key: Option<[u8; 32]>, gave_up: bool) -> Self {
            let now = Instant::now();
            let mut fleet = Fleet::new("here", own.parse().unwrap(), Mode::Auto);
            let notice = Notice { key: peers_key, ..Notice::default() };
            let peer = Peer { pods: other.parse().unwrap(), address: Some(BOARD), is_ready: true, notice };
            let mut member = Member::new(peer, now);
            for trial in [&mut member.plain, &mut member.address, &mut member.relay] {
                while gave_up && trial.verdict != Verdict::Lost {
                    trial.turn([0; 16], now);
                }
            }
            fleet.members.insert("there".into(), member);
            Self(fleet, Abilities { vxlan: true, wireguard: peers_key.is_some(), relay: true })
        }

        /// What it sends to the peer goes through the server.
        fn sends_by_relay(&self) -> bool {
            let peer = &self.0.wanted(1, Some(2), true).peers[0];
            peer.way == Some(Way::Relay) || peer.relays_own
        }

        /// Asks what is due; only the relay carries anything.
        fn ask(&mut self, other: &mut Self, now: Instant, nonces: &Cell<u64>) {
            self.0.decide(self.1);
            other.0.decide(other.1);
            let nonce = || {
                nonces.set(nonces.get() + 1);
                Some(u128::from(nonces.get()).to_le_bytes())
            };
            for (to, _, nonce) in self.0.questions(now, nonce) {
                if to == gateway(other.0.pods) && self.sends_by_relay() && other.sends_by_relay() {
                    other.0.asked_by(gateway(self.0.pods), now);
                    self.0.hear(nonce, true, now);
                }
            }
        }

        fn is_relayed(&self) -> bool {
            let paths = self.0.paths();
            (paths.peers[0].way.as_str(), paths.peers[0].state.as_str()) == ("relay", "works")
        }
    }

    /// Whether a board and its server, which has a key of the board and tries WireGuard first, find the relay.
    fn meet(board_gave_up: bool, server_gave_up: bool, for_s: u64) -> bool {
        let mut board = End::new("10.42.1.0/24", "10.42.0.0/24", None, board_gave_up);
        let mut server = End::new("10.42.0.0/24", "10.42.1.0/24", Some([1; 32]), server_gave_up);
        let (start, nonces) = (Instant::now(), Cell::new(0));
        (0..for_s * 20).map(|tick| start + Duration::from_millis(tick * 50)).any(|now| {
            board.ask(&mut server, now, &nonces);
            server.ask(&mut board, now, &nonces);
            board.is_relayed() && server.is_relayed()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_try_different_ways_first_meet_at_the_relay() {
        assert!(meet(false, false, 20), "while one still tries a tunnel, the other is answered");
        assert!(meet(true, true, 40), "both gave up, and ask again at the same time");
        assert!(meet(true, false, 60) && meet(false, true, 60), "one gave up before the other began");
    }

    /// It answered by the relay, and counted as an answer by a tunnel that was not there: packets were lost from then on.
    #[tokio::test(start_paused = true)]
    async fn a_peer_with_a_key_is_asked_through_a_tunnel_only_where_there_is_one() {
        for has_key in [false, true] {
            let mut server = End::new("10.42.0.0/24", "10.42.1.0/24", Some([1; 32]), false);
            server.1.wireguard = has_key;
            server.0.decide(server.1);
            assert_eq!(server.0.paths().peers[0].way, if has_key { "wireguard" } else { "relay" });
            let asked = server.0.questions(Instant::now(), || Some([1; 16]));
            let tunnel = asked.iter().any(|(to, _, _)| *to == Ipv4Addr::new(10, 42, 1, 0));
            assert_eq!(tunnel, has_key, "{asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_fallen_silent_is_asked_while_pods_want_it() {
        let mut story = Story::new();
        story.fleet.unanswered(POD, story.now);
        story.go_on(4 * 3600, |_| false);
        story.take_asked();
        story.fleet.unanswered(POD, story.now);
        story.go_on(70, |to| to == BOARD);
        assert_eq!(story.way(), "vxlan", "{:?}", story.asked);
    }
}
