//! This node's nf_tables tables. They outlive the process and are taken over by the next one.
//! Where the kernel can (6.9), they are owned and survive `nft flush ruleset`; else they are put back after it.

use super::firewall;
use super::nftables::expression::{
    Expression, R0, Verdict, clamp_segment_size, destination_in, destination_is, destination_not_in, equal,
    is_ipv4_frame, leaves_not_by, link_name, load_destination_port, load_input_link, load_protocol, load_source,
    load_source_port, source_in,
};
use super::nftables::{
    Batch, BatchError, Element, Events, Family, Hook, OWNED_AND_PERSISTENT, SetType, Socket, Value, ValueType, kind,
};
use super::plan::Layout;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard};

const PRIORITY_RAW: i32 = -300;
pub const PRIORITY_MANGLE: i32 = -150;
pub const PRIORITY_DESTINATION_NAT: i32 = -100;
pub const PRIORITY_FILTER: i32 = 0;
pub const PRIORITY_SOURCE_NAT: i32 = 100;
const PROTOCOLS_WITH_PORTS: [u8; 2] = [6, 17];
const DNS_PORT: u16 = 53;

/// The socket that owns the tables. One per process: a second one could not change them.
pub struct Tables {
    socket: Mutex<Socket>,
    owned: bool,
}

impl Tables {
    /// `owned` is given up silently where the kernel lacks it.
    pub fn open(owned: bool) -> io::Result<Self> {
        Ok(Self { socket: Mutex::new(Socket::open()?), owned })
    }

    /// Replaces a table with what `fill` adds, in one transaction: packets meet the old rules or the new.
    pub fn replace(&self, table: &str, fill: impl FnOnce(&mut Batch)) -> Result<(), BatchError> {
        self.replace_of(Family::Ipv4, table, fill)
    }

    pub fn replace_of(&self, family: Family, table: &str, fill: impl FnOnce(&mut Batch)) -> Result<(), BatchError> {
        let socket = self.socket();
        let flags = self.adopt(&socket, family, table)?;
        let mut batch = Batch::of(family);
        batch.delete_table(table).table(table, flags);
        fill(&mut batch);
        socket.commit(batch)
    }

    /// Makes the table ours, whoever left it, and says which flags it has.
    fn adopt(&self, socket: &Socket, family: Family, table: &str) -> Result<u32, BatchError> {
        let with = |flags| {
            let mut batch = Batch::of(family);
            batch.table(table, flags);
            batch
        };
        if self.owned {
            match socket.commit(with(OWNED_AND_PERSISTENT)) {
                Ok(()) => return Ok(OWNED_AND_PERSISTENT),
                // Another living process owns it.
                Err(error) if error.code() == libc::EPERM => return Err(error),
                // An older kernel, or a plain table of a former process: try without the old one.
                Err(_) => {
                    let mut batch = Batch::of(family);
                    batch.table(table, 0).delete_table(table).table(table, OWNED_AND_PERSISTENT);
                    if socket.commit(batch).is_ok() {
                        return Ok(OWNED_AND_PERSISTENT);
                    }
                }
            }
        }
        socket.commit(with(0)).map(|()| 0)
    }

    pub fn commit(&self, batch: Batch) -> Result<(), BatchError> {
        if batch.is_empty() { Ok(()) } else { self.socket().commit(batch) }
    }

    /// Already gone is success.
    pub fn delete(&self, table: &str) -> Result<(), BatchError> {
        self.delete_of(Family::Ipv4, table)
    }

    pub fn delete_of(&self, family: Family, table: &str) -> Result<(), BatchError> {
        let socket = self.socket();
        if !socket.has_table_of(family, table)? {
            return Ok(());
        }
        self.adopt(&socket, family, table)?;
        let mut batch = Batch::of(family);
        batch.delete_table(table);
        socket.commit(batch)
    }

    /// Lets traffic of the pods pass chains of others that would drop it. What could not be done, in words.
    pub fn open_firewalls(&self, layout: &Layout, own_prefix: &str) -> Vec<String> {
        let socket = self.socket();
        let chains = match socket.base_chains() {
            Ok(chains) => chains,
            Err(error) => return vec![format!("cannot list firewall rules: {error}")],
        };
        let drops = firewall::foreign_drops(&chains, own_prefix);
        drops.filter_map(|chain| firewall::open(&socket, chain, layout, own_prefix).err()).collect()
    }

    /// Takes back what `open_firewalls` added.
    pub fn close_firewalls(&self, own_prefix: &str) -> Result<(), BatchError> {
        let socket = self.socket();
        for chain in firewall::foreign_drops(&socket.base_chains()?, own_prefix) {
            firewall::close(&socket, chain, own_prefix)?;
        }
        Ok(())
    }

    pub fn has(&self, table: &str) -> io::Result<bool> {
        self.socket().has_table(table)
    }

    /// Waits until somebody else changed rules.
    pub async fn changed_by_others(&self, events: &mut Events) -> io::Result<()> {
        let own = self.socket().port();
        events.foreign(own).await
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().expect("no panic while the socket is locked")
    }
}

/// Egress by the node's own address, and DNS past connection tracking.
pub fn node_rules(batch: &mut Batch, table: &str, layout: &Layout) {
    batch.base_chain(table, "postrouting", "nat", Hook::Postrouting, PRIORITY_SOURCE_NAT);
    let leaves = leaves_not_by(&layout.bridge);
    let outside = destination_not_in(layout.cluster);
    batch.rule(table, "postrouting", &[&source_in(layout.pods), &outside, &leaves, &[Expression::Masquerade]]);
    // Ways to other nodes carry less than a pod's link may believe.
    batch.base_chain(table, "segment-size", "filter", Hook::Forward, PRIORITY_MANGLE);
    for pods in [source_in(layout.cluster), destination_in(layout.cluster)] {
        batch.rule(table, "segment-size", &[&pods, &clamp_segment_size()]);
    }
    // Two queries from one port (A and AAAA) race for a conntrack entry, and one is lost for five seconds.
    let queries = [&destination_is(layout.dns)[..], &[load_destination_port(R0), equal(R0, &DNS_PORT.to_be_bytes())]];
    let from_dns = [load_source(R0), equal(R0, &layout.dns.octets())];
    let answers = [&from_dns[..], &[load_source_port(R0), equal(R0, &DNS_PORT.to_be_bytes())]];
    for (chain, hook) in [("raw-prerouting", Hook::Prerouting), ("raw-output", Hook::Output)] {
        batch.base_chain(table, chain, "filter", hook, PRIORITY_RAW);
        for protocol in PROTOCOLS_WITH_PORTS {
            let protocol = [load_protocol(R0), equal(R0, &[protocol])];
            for direction in [&queries, &answers] {
                batch.rule(table, chain, &[&protocol, direction[0], direction[1], &[Expression::NoTrack]]);
            }
        }
    }
}

/// Ports of the bridge that belong to pods, and which address each pod may send from.
const PORTS: &str = "ports";
const SOURCES: &str = "sources";
const PRIORITY_BRIDGE_RAW: i32 = -300;

/// Frames of a pod that claim another address than its own are dropped at its port.
pub fn source_rules(batch: &mut Batch, table: &str, pods: &[(String, Ipv4Addr)]) {
    batch.base_chain(table, "prerouting", "filter", Hook::Prerouting, PRIORITY_BRIDGE_RAW);
    batch.set(table, &SetType { name: PORTS, key: vec![kind::LINK], value: ValueType::None });
    batch.set(table, &SetType { name: SOURCES, key: vec![kind::LINK, kind::ADDRESS], value: ValueType::None });
    allow_sources(batch, table, pods);
    let of_pod = [load_input_link(R0), Expression::InSet { set: PORTS, from: R0 }];
    let foreign = [load_input_link(R0), load_source(R0 + 4), Expression::NotInSet { set: SOURCES, from: R0 }];
    batch.rule(table, "prerouting", &[&is_ipv4_frame(), &of_pod, &foreign, &[Expression::Verdict(Verdict::Drop)]]);
}

/// Pods by the node's end of their link.
pub fn allow_sources(batch: &mut Batch, table: &str, pods: &[(String, Ipv4Addr)]) {
    for (set, elements) in source_elements(pods) {
        batch.add_elements(table, set, &elements);
    }
}

pub fn forget_sources(batch: &mut Batch, table: &str, pods: &[(String, Ipv4Addr)]) {
    for (set, elements) in source_elements(pods) {
        batch.delete_elements(table, set, &elements);
    }
}

fn source_elements(pods: &[(String, Ipv4Addr)]) -> [(&'static str, Vec<Element>); 2] {
    let ports = pods.iter().map(|(link, _)| (link_name(link), Value::None));
    let sources = pods.iter().map(|(link, ip)| ([link_name(link), ip.octets().to_vec()].concat(), Value::None));
    [(PORTS, ports.collect()), (SOURCES, sources.collect())]
}
