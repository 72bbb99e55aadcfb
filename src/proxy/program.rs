//! The Services' table: its chains, sets and rules. Their elements are all that changes afterwards.

use super::rules::Reach;
use super::state::{
    AFFINITY, ALIVE, Elements, FEW, FEW_SLOTS, HUGE, HUGE_SLOTS, MANY, MANY_SLOTS, MASQUERADE, NO_ENDPOINTS, Plan,
    REMEMBERED, RESTRICTED, SOURCES, STICKY, STICKY_HUGE, affinity_chain,
};
use crate::network::nftables::expression::{
    Expression, R0, Verdict, destination_in, destination_is_local, destination_is_not, is_marked, is_new_connection,
    load_destination, load_destination_port, load_protocol, load_source, mark, masked, source_in,
};
use crate::network::nftables::{Batch, BatchError, Hook, REFUSE_CHAIN, SetType, Value, ValueType, kind};
use crate::network::plan::Layout;
use crate::network::tables::{PRIORITY_DESTINATION_NAT, PRIORITY_FILTER, PRIORITY_SOURCE_NAT};
use crate::network::{Network, SERVICES_SUFFIX};
use std::collections::BTreeSet;

/// The packet's source is to be hidden; the bit kube-proxy uses, so that others' exceptions for it hold.
const MASQUERADE_MARK: u32 = 0x4000;
/// Addresses a pod can have on this node beyond which hairpins are not prepared for.
const HAIRPINS_LIMIT: u32 = 4096;
const HAIRPIN: &str = "hairpin";
const FROM_PODS: &str = "from-pods";
const INSIDE: &str = "inside";
const ANYONE: &str = "anyone";
const UNREACHABLE: &str = "unreachable";
const ALLOWED: &str = "allowed";
/// Registers of a slot's key: reach, address, protocol, port, slot; then the backend's address and port.
const REACH: u32 = R0;
const ADDRESS: u32 = R0 + 1;
const SLOT: u32 = R0 + 4;
const BACKEND: u32 = R0 + 5;
/// Of sticky fronts: the key once more, which ends with the backend the client has.
const SECOND_REACH: u32 = R0 + 10;
const REMEMBERED_BACKEND: u32 = R0 + 14;
/// Clients of sticky fronts that are remembered at a time; others get a backend at random.
const CLIENTS_LIMIT: u32 = 65_536;

/// The kernel's side of the proxy. Cheap to clone.
#[derive(Clone)]
pub struct Programmer {
    network: Network,
    table: String,
}

impl Programmer {
    pub fn new(network: Network) -> Self {
        let table = format!("{}{SERVICES_SUFFIX}", network.table());
        Self { network, table }
    }

    /// Replaces the table by all that `state` has, in one transaction. Which client had which backend is forgotten.
    pub fn replace(&self, elements: &Elements, affinities: &BTreeSet<u32>) -> Result<(), BatchError> {
        self.network.tables().replace(&self.table, |batch| {
            skeleton(batch, &self.table, self.network.layout());
            affinities.iter().for_each(|timeout_s| affinity(batch, &self.table, *timeout_s));
            for (set, elements) in elements {
                batch.add_elements(&self.table, set, elements);
            }
        })
    }

    pub fn apply(&self, plan: &Plan) -> Result<(), BatchError> {
        let mut batch = Batch::default();
        for (set, elements) in &plan.remove {
            batch.delete_elements(&self.table, set, elements);
        }
        plan.affinities.iter().for_each(|timeout_s| affinity(&mut batch, &self.table, *timeout_s));
        for (set, elements) in &plan.add {
            batch.add_elements(&self.table, set, elements);
        }
        self.network.tables().commit(batch)
    }

    /// Whether the rules of the node and of Services are there: somebody may have flushed everything.
    pub fn is_intact(&self) -> std::io::Result<bool> {
        let tables = self.network.tables();
        Ok(tables.has(&self.table)? && tables.has(self.network.table())?)
    }
}

fn skeleton(batch: &mut Batch, table: &str, layout: &Layout) {
    batch.base_chain(table, "prerouting", "nat", Hook::Prerouting, PRIORITY_DESTINATION_NAT);
    batch.base_chain(table, "output", "nat", Hook::Output, PRIORITY_DESTINATION_NAT);
    batch.base_chain(table, "postrouting", "nat", Hook::Postrouting, PRIORITY_SOURCE_NAT);
    // After translation: what still has a Service's address has no backend.
    for (chain, hook) in
        [("filter-input", Hook::Input), ("filter-forward", Hook::Forward), ("filter-output", Hook::Output)]
    {
        batch.base_chain(table, chain, "filter", hook, PRIORITY_FILTER);
    }
    for chain in [FROM_PODS, INSIDE, ANYONE, UNREACHABLE, ALLOWED, REFUSE_CHAIN] {
        batch.chain(table, chain);
    }
    sets(batch, table, layout);
    translation(batch, table, layout);
    refusal(batch, table, layout);
    hiding(batch, table);
}

fn sets(batch: &mut Batch, table: &str, layout: &Layout) {
    let front = [kind::ADDRESS, kind::PROTOCOL, kind::PORT];
    let slot = [&[kind::MARK][..], &front, &[kind::MARK]].concat();
    for name in [FEW, MANY, HUGE, STICKY, STICKY_HUGE] {
        let value = ValueType::Fields(vec![kind::ADDRESS, kind::PORT]);
        batch.set(table, &SetType { name, key: slot.clone(), value });
    }
    let reached = [&[kind::MARK][..], &front].concat();
    batch.set(table, &SetType { name: AFFINITY, key: reached.clone(), value: ValueType::Verdict });
    let backend = [&reached[..], &[kind::ADDRESS, kind::PORT]].concat();
    batch.set(table, &SetType { name: ALIVE, key: backend, value: ValueType::None });
    let client = [&reached[..], &[kind::ADDRESS]].concat();
    let value = ValueType::Fields(vec![kind::ADDRESS, kind::PORT]);
    batch.remembering_set(table, &SetType { name: REMEMBERED, key: client, value }, CLIENTS_LIMIT);
    batch.set(table, &SetType { name: MASQUERADE, key: front.to_vec(), value: ValueType::None });
    batch.set(table, &SetType { name: RESTRICTED, key: front.to_vec(), value: ValueType::None });
    let source = [&front[..], &[kind::MARK, kind::ADDRESS]].concat();
    batch.set(table, &SetType { name: SOURCES, key: source, value: ValueType::None });
    batch.set(table, &SetType { name: NO_ENDPOINTS, key: front.to_vec(), value: ValueType::Verdict });
    batch.set(table, &SetType { name: HAIRPIN, key: vec![kind::ADDRESS; 2], value: ValueType::None });
    // Rules cannot compare two addresses of a packet, but a set can hold all pairs of equal ones.
    let addresses = (1..layout.pods.size().min(HAIRPINS_LIMIT)).map(|index| layout.pods.nth(index).octets());
    let pairs: Vec<_> = addresses.map(|ip| ([ip, ip].concat(), Value::None)).collect();
    batch.add_elements(table, HAIRPIN, &pairs);
}

/// From a front to one of its backends.
fn translation(batch: &mut Batch, table: &str, layout: &Layout) {
    let jump = |chain| [Expression::Verdict(Verdict::Jump(chain))];
    let mark_it = mark(MASQUERADE_MARK, true);
    let restricted = [Expression::InSet { set: RESTRICTED, from: ADDRESS }];
    batch.rule(table, "prerouting", &[&load_front(), &restricted, &jump(ALLOWED)]);
    restriction(batch, table);
    batch.rule(table, "prerouting", &[&source_in(layout.cluster), &[Expression::Verdict(Verdict::Goto(FROM_PODS))]]);
    batch.rule(table, "prerouting", &[&destination_in(layout.services), &mark_it]);
    let listed = [Expression::InSet { set: MASQUERADE, from: ADDRESS }];
    batch.rule(table, "prerouting", &[&load_front(), &listed, &mark_it]);
    batch.rule(table, "prerouting", &[&destination_is_local(), &load_local_front(), &listed, &mark_it]);
    batch.rule(table, "prerouting", &[&jump(ANYONE)]);
    for chain in [FROM_PODS, "output"] {
        batch.rule(table, chain, &[&jump(INSIDE)]);
        batch.rule(table, chain, &[&jump(ANYONE)]);
    }
    for (chain, reach) in [(INSIDE, Reach::Inside), (ANYONE, Reach::Anyone)] {
        let reach = [load_reach(REACH, reach)];
        let local = destination_is_local();
        let sticky = [Expression::VerdictMap { set: AFFINITY, from: REACH }];
        batch.rule(table, chain, &[&reach, &load_front(), &sticky]);
        batch.rule(table, chain, &[&local, &reach, &load_local_front(), &sticky]);
        let maps = [(FEW, at_random(FEW_SLOTS)), (MANY, at_random(MANY_SLOTS)), (HUGE, at_random(HUGE_SLOTS))];
        for (map, choose) in maps {
            let go = lead(map);
            batch.rule(table, chain, &[&reach, &load_front(), &choose, &go]);
            batch.rule(table, chain, &[&local, &reach, &load_local_front(), &choose, &go]);
        }
    }
}

/// The chains of sticky fronts whose clients are remembered so long: a client gets the backend it had if that lives,
/// else one at random, and keeps it as long as it comes back in time.
fn affinity(batch: &mut Batch, table: &str, timeout_s: u32) {
    for reach in [Reach::Inside, Reach::Anyone] {
        for on_node in [false, true] {
            let chain = affinity_chain(timeout_s, reach, on_node);
            batch.chain(table, &chain);
            let front = |to| if on_node { load_local_front_to(to) } else { load_front_to(to) };
            let known = [load_reach(REACH, reach), load_source(SLOT)];
            let same = [Expression::Map { set: REMEMBERED, from: REACH, to: REMEMBERED_BACKEND }];
            let alive = [Expression::InSet { set: ALIVE, from: SECOND_REACH }];
            let remember =
                Expression::Remember { set: REMEMBERED, key: REACH, data: Some(REMEMBERED_BACKEND), timeout_s };
            let go = Expression::Dnat { address: REMEMBERED_BACKEND, port: REMEMBERED_BACKEND + 1 };
            let go = [remember, go];
            let second = [load_reach(SECOND_REACH, reach)];
            let (first, again) = (front(ADDRESS), front(SECOND_REACH + 1));
            batch.rule(table, &chain, &[&known, &first, &same, &second, &again, &alive, &go]);
            for (map, slots) in [(STICKY, MANY_SLOTS), (STICKY_HUGE, HUGE_SLOTS)] {
                let slot = at_random(slots);
                let lookup = [Expression::Map { set: map, from: REACH, to: REMEMBERED_BACKEND }];
                // What is remembered of a backend that is gone would else live on.
                let client =
                    [load_source(SLOT), Expression::Forget { set: REMEMBERED, key: REACH, data: REMEMBERED_BACKEND }];
                batch.rule(table, &chain, &[&known, &first, &slot, &lookup, &client, &go]);
            }
        }
    }
}

/// Clients of a restricted front go on if one of its networks holds them; one rule per prefix length, since a
/// plain set knows no networks. Only connections to such fronts come here.
fn restriction(batch: &mut Batch, table: &str) {
    for prefix in 1..=32 {
        let length = Expression::Value { to: ADDRESS + 3, value: u32::from(prefix).to_ne_bytes().to_vec() };
        let client = [length, load_source(ADDRESS + 4), masked(ADDRESS + 4, prefix)];
        let listed = [Expression::InSet { set: SOURCES, from: ADDRESS }, Expression::Verdict(Verdict::Return)];
        batch.rule(table, ALLOWED, &[&load_front(), &client, &listed]);
    }
    batch.rule(table, ALLOWED, &[&[Expression::Verdict(Verdict::Drop)]]);
}

/// Connections that lead nowhere fail at once instead of hanging.
fn refusal(batch: &mut Batch, table: &str, layout: &Layout) {
    let new = is_new_connection();
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        batch.rule(table, chain, &[&new, &[Expression::Verdict(Verdict::Jump(UNREACHABLE))]]);
    }
    let verdict = [Expression::VerdictMap { set: NO_ENDPOINTS, from: ADDRESS }];
    batch.rule(table, UNREACHABLE, &[&load_front(), &verdict]);
    batch.rule(table, UNREACHABLE, &[&destination_is_local(), &load_local_front(), &verdict]);
    // No Service has this address and port. The DNS address is the node's own.
    let refuse = [Expression::Verdict(Verdict::Goto(REFUSE_CHAIN))];
    let services = destination_in(layout.services);
    batch.rule(table, UNREACHABLE, &[&destination_is_not(layout.dns), &services, &refuse]);
    batch.rule(table, REFUSE_CHAIN, &[&[Expression::Reject]]);
}

fn hiding(batch: &mut Batch, table: &str) {
    // The mark goes: a tunnel would copy it to the outer packet.
    let unmark = mark(MASQUERADE_MARK, false);
    batch.rule(table, "postrouting", &[&is_marked(MASQUERADE_MARK), &unmark, &[Expression::Masquerade]]);
    // A pod that reached itself through a Service would otherwise see its own address and answer past us.
    let pair = [load_source(R0), load_destination(R0 + 1), Expression::InSet { set: HAIRPIN, from: R0 }];
    batch.rule(table, "postrouting", &[&pair, &[Expression::Masquerade]]);
}

fn load_reach(to: u32, reach: Reach) -> Expression {
    Expression::Value { to, value: (reach as u32).to_ne_bytes().to_vec() }
}

fn load_front() -> Vec<Expression> {
    load_front_to(ADDRESS)
}

fn load_front_to(to: u32) -> Vec<Expression> {
    vec![load_destination(to), load_protocol(to + 1), load_destination_port(to + 2)]
}

/// The front of whatever own address the packet was sent to.
fn load_local_front() -> Vec<Expression> {
    load_local_front_to(ADDRESS)
}

fn load_local_front_to(to: u32) -> Vec<Expression> {
    let any = Expression::Value { to, value: vec![0; 4] };
    vec![any, load_protocol(to + 1), load_destination_port(to + 2)]
}

fn at_random(slots: u32) -> Vec<Expression> {
    vec![Expression::Random { to: SLOT, modulus: slots }]
}

fn lead(map: &'static str) -> Vec<Expression> {
    let lookup = Expression::Map { set: map, from: REACH, to: BACKEND };
    vec![lookup, Expression::Dnat { address: BACKEND, port: BACKEND + 1 }]
}
