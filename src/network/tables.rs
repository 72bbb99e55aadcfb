//! This node's nf_tables tables. They outlive the process and are taken over by the next one.
//! Where the kernel can (6.9), they are owned and survive `nft flush ruleset`; else they are put back after it.

use super::firewall;
use super::nftables::expression::{
    Expression, R0, destination_is, destination_not_in, equal, leaves_not_by, load_destination_port, load_protocol,
    load_source, load_source_port, source_in,
};
use super::nftables::{Batch, BatchError, Events, Hook, OWNED_AND_PERSISTENT, Socket};
use super::plan::Layout;
use std::io;
use std::sync::{Mutex, MutexGuard};

const PRIORITY_RAW: i32 = -300;
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
        let socket = self.socket();
        let flags = self.adopt(&socket, table)?;
        let mut batch = Batch::default();
        batch.delete_table(table).table(table, flags);
        fill(&mut batch);
        socket.commit(batch)
    }

    /// Makes the table ours, whoever left it, and says which flags it has.
    fn adopt(&self, socket: &Socket, table: &str) -> Result<u32, BatchError> {
        let with = |flags| {
            let mut batch = Batch::default();
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
                    let mut batch = Batch::default();
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
        let socket = self.socket();
        if !socket.has_table(table)? {
            return Ok(());
        }
        self.adopt(&socket, table)?;
        let mut batch = Batch::default();
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
