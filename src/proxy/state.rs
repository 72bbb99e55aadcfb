//! What is wanted and what is programmed, and the map elements between the two. Pure.
//! A front belongs to whoever claimed it first; the others wait until it is free.

use super::rules::{Endpoint, Entry, Front, Fronts, Health, Slice, Target, health, service_fronts};
use super::slots;
use crate::api::view::service::Service;
use crate::network::ipam::Cidr;
use crate::network::nftables::{Element, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Slots of a front in each map.
pub const FEW_SLOTS: u32 = 16;
pub const MANY_SLOTS: u32 = 128;
/// As many backends of one port can be used; Services with more use the first.
pub const HUGE_SLOTS: u32 = 2048;
/// More backends than this take the larger map: with few slots shares would differ too much.
const FEW_BACKENDS: usize = 8;
const MANY_BACKENDS: usize = 64;

pub const FEW: &str = "services";
pub const MANY: &str = "services-large";
pub const HUGE: &str = "services-huge";
pub const STICKY: &str = "services-sticky";
pub const STICKY_HUGE: &str = "services-sticky-huge";
pub const MASQUERADE: &str = "masquerade";
pub const NO_ENDPOINTS: &str = "no-endpoints";
/// Fronts that only clients of listed networks may use, and the networks.
pub const RESTRICTED: &str = "restricted";
pub const SOURCES: &str = "sources";

/// Sticky fronts, and the chains that know how long their clients are remembered.
pub const AFFINITY: &str = "affinity";
/// Which backend a client has.
pub const REMEMBERED: &str = "remembered";
/// The backends that a sticky front has still.
pub const ALIVE: &str = "alive";

/// Elements by set.
pub type Elements = BTreeMap<&'static str, Vec<Element>>;

/// Kernel changes that bring what is programmed to what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub remove: Elements,
    pub add: Elements,
    /// UDP fronts that changed and the backends they may use now: flows to others are to be forgotten.
    pub udp: BTreeMap<(Ipv4Addr, u16), BTreeSet<SocketAddrV4>>,
    /// How long, in seconds, clients of sticky fronts are remembered, as far as there was no chain for it before.
    pub affinities: BTreeSet<u32>,
    /// Pods whose endpoints are reachable for the first time.
    pub reachable: Vec<String>,
}

/// A Service and what stands behind it.
#[derive(Default)]
struct Known {
    service: Option<Service>,
    slices: BTreeMap<String, Slice>,
    reachable: BTreeSet<String>,
}

struct Programmed {
    owner: String,
    entry: Entry,
    /// Empty unless there are backends.
    slots: Vec<SocketAddrV4>,
}

pub struct State {
    /// Answered by this node itself, never by rules.
    dns: Ipv4Addr,
    services: HashMap<String, Known>,
    host_ports: HashMap<String, Fronts>,
    programmed: BTreeMap<Front, Programmed>,
    owned: HashMap<String, BTreeSet<Front>>,
    dirty: BTreeSet<String>,
    /// Owners that want a front which another has.
    waiting: BTreeSet<String>,
    /// Every timeout of sticky fronts there has been.
    affinities: BTreeSet<u32>,
}

impl State {
    pub fn new(dns: Ipv4Addr) -> Self {
        Self {
            dns,
            services: HashMap::new(),
            host_ports: HashMap::new(),
            programmed: BTreeMap::new(),
            owned: HashMap::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            affinities: BTreeSet::new(),
        }
    }

    /// `key` is `namespace/name`.
    pub fn set_service(&mut self, key: &str, service: Option<Service>) {
        let known = self.services.entry(key.to_owned()).or_default();
        known.service = service;
        self.touch_service(key);
    }

    /// `service` is the key of the Service the slice belongs to.
    pub fn set_slice(&mut self, service: &str, slice_key: &str, slice: Option<Slice>) {
        let known = self.services.entry(service.to_owned()).or_default();
        match slice {
            Some(slice) => known.slices.insert(slice_key.to_owned(), slice),
            None => known.slices.remove(slice_key),
        };
        self.touch_service(service);
    }

    fn touch_service(&mut self, key: &str) {
        if self.services.get(key).is_some_and(|known| known.service.is_none() && known.slices.is_empty()) {
            self.services.remove(key);
        }
        self.dirty.insert(format!("service {key}"));
    }

    /// Fronts of a pod's host ports; empty when it has none or is gone.
    pub fn set_host_ports(&mut self, pod_key: &str, fronts: Fronts) {
        if fronts.is_empty() && !self.host_ports.contains_key(pod_key) {
            return;
        }
        if fronts.is_empty() {
            self.host_ports.remove(pod_key);
        } else {
            self.host_ports.insert(pod_key.to_owned(), fronts);
        }
        self.dirty.insert(format!("pod {pod_key}"));
    }

    /// Timeouts that need chains.
    pub fn affinities(&self) -> &BTreeSet<u32> {
        &self.affinities
    }

    /// What to change now. It counts as programmed: after a failure, program `everything`.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        while let Some(owner) = self.dirty.pop_first() {
            self.plan_owner(&owner, &mut plan);
        }
        plan
    }

    /// All elements, for a table made anew.
    pub fn everything(&self) -> Elements {
        let mut elements = Elements::new();
        for (front, programmed) in &self.programmed {
            for ((set, key), value) in elements_of(front, Some(programmed)) {
                elements.entry(set).or_default().push((key, value));
            }
        }
        elements
    }

    /// The ports on which load balancers ask for Services' health. The first Service to have a port keeps it.
    pub fn health(&self) -> BTreeMap<u16, Health> {
        let known = self.services.values();
        let checks = known.filter_map(|known| health(known.service.as_ref()?, known.slices.values()));
        checks.collect()
    }

    /// Every UDP front with its backends.
    pub fn udp(&self) -> BTreeMap<(Ipv4Addr, u16), BTreeSet<SocketAddrV4>> {
        let fronts = self.programmed.keys().filter(|front| front.is_udp());
        fronts.map(|front| ((front.ip, front.port), self.udp_backends(front))).collect()
    }

    fn wanted(&self, owner: &str) -> Fronts {
        let fronts = match owner.split_once(' ') {
            Some(("service", key)) => self.services.get(key).and_then(|known| {
                let service = known.service.as_ref()?;
                Some(service_fronts(service, known.slices.values()))
            }),
            Some((_, key)) => self.host_ports.get(key).cloned(),
            None => None,
        };
        let mut fronts = fronts.unwrap_or_default();
        fronts.retain(|front, _| front.ip != self.dns);
        fronts
    }

    fn plan_owner(&mut self, owner: &str, plan: &mut Plan) {
        let wanted = self.wanted(owner);
        let had = self.owned.remove(owner).unwrap_or_default();
        self.waiting.remove(owner);
        for front in had.iter().filter(|front| !wanted.contains_key(front)) {
            self.change(*front, owner, None, plan);
            // Somebody may wait for this front.
            self.dirty.append(&mut self.waiting);
        }
        let mut owns = BTreeSet::new();
        for (front, entry) in wanted {
            if self.programmed.get(&front).is_some_and(|programmed| programmed.owner != owner) {
                self.waiting.insert(owner.to_owned());
                continue;
            }
            owns.insert(front);
            self.change(front, owner, Some(entry), plan);
        }
        if !owns.is_empty() {
            self.owned.insert(owner.to_owned(), owns);
            self.note_reachable(owner, plan);
        }
    }

    fn change(&mut self, front: Front, owner: &str, entry: Option<Entry>, plan: &mut Plan) {
        let old = self.programmed.remove(&front);
        if old.as_ref().map(|programmed| &programmed.entry) == entry.as_ref() {
            self.programmed.extend(old.map(|programmed| (front, programmed)));
            return;
        }
        if let Some(timeout_s) = entry.as_ref().and_then(|entry| entry.sticky_s)
            && self.affinities.insert(timeout_s)
        {
            plan.affinities.insert(timeout_s);
        }
        let new = entry.map(|entry| {
            let previous = old.as_ref().map(|programmed| programmed.slots.as_slice()).unwrap_or_default();
            let slots = match &entry.target {
                Target::Backends(backends) => slots::fill(previous, backends, map_of(&entry).1 as usize),
                Target::Refuse | Target::Drop => Vec::new(),
            };
            Programmed { owner: owner.to_owned(), entry, slots }
        });
        difference(elements_of(&front, old.as_ref()), elements_of(&front, new.as_ref()), plan);
        self.programmed.extend(new.map(|programmed| (front, programmed)));
        if front.is_udp() {
            plan.udp.insert((front.ip, front.port), self.udp_backends(&front));
        }
    }

    /// The backends of both reaches: a flow may have come either way.
    fn udp_backends(&self, front: &Front) -> BTreeSet<SocketAddrV4> {
        let same = |other: &&Front| (other.ip, other.protocol, other.port) == (front.ip, front.protocol, front.port);
        let entries = self.programmed.iter().filter(|(other, _)| same(other)).map(|(_, programmed)| programmed);
        entries.flat_map(|programmed| programmed.slots.iter().copied()).collect()
    }

    fn note_reachable(&mut self, owner: &str, plan: &mut Plan) {
        let Some(key) = owner.strip_prefix("service ") else { return };
        let Some(known) = self.services.get_mut(key) else { return };
        let ready = known.slices.values().flat_map(|slice| &slice.endpoints);
        let uid = |endpoint: &Endpoint| endpoint.ready.then(|| endpoint.pod_uid.clone()).filter(|uid| !uid.is_empty());
        let now: BTreeSet<String> = ready.filter_map(uid).collect();
        plan.reachable.extend(now.difference(&known.reachable).cloned());
        known.reachable = now;
    }
}

/// The map a front with backends is in, and its number of slots.
fn map_of(entry: &Entry) -> (&'static str, u32) {
    let backends = if let Target::Backends(backends) = &entry.target { backends.len() } else { 0 };
    match (entry.sticky_s.is_some(), backends) {
        (true, 0..=MANY_BACKENDS) => (STICKY, MANY_SLOTS),
        (true, _) => (STICKY_HUGE, HUGE_SLOTS),
        (false, 0..=FEW_BACKENDS) => (FEW, FEW_SLOTS),
        (false, 0..=MANY_BACKENDS) => (MANY, MANY_SLOTS),
        (false, _) => (HUGE, HUGE_SLOTS),
    }
}

type Keyed = BTreeMap<(&'static str, Vec<u8>), Value>;

fn elements_of(front: &Front, programmed: Option<&Programmed>) -> Keyed {
    let mut elements = Keyed::new();
    let Some(Programmed { entry, slots, .. }) = programmed else { return elements };
    let (map, _) = map_of(entry);
    for (slot, backend) in (0u32..).zip(slots) {
        elements.insert((map, slot_key(front, slot)), Value::Bytes(backend_value(backend)));
    }
    if let (Some(timeout_s), Target::Backends(backends)) = (entry.sticky_s, &entry.target) {
        let chain = affinity_chain(timeout_s, front.reach, front.ip.is_unspecified());
        elements.insert((AFFINITY, reach_key(front)), Value::Goto(chain));
        let alive = |backend| [reach_key(front), backend_value(backend)].concat();
        elements.extend(backends.iter().map(|backend| ((ALIVE, alive(backend)), Value::None)));
    }
    if !entry.sources.is_empty() {
        elements.insert((RESTRICTED, front_key(front)), Value::None);
        elements.extend(entry.sources.iter().map(|source| ((SOURCES, source_key(front, *source)), Value::None)));
    }
    // The other sets do not know of reaches: what is inside has been led on before they are asked.
    match entry.target {
        _ if front.reach != super::rules::Reach::Anyone => {}
        Target::Backends(_) if entry.masquerade => {
            elements.insert((MASQUERADE, front_key(front)), Value::None);
        }
        Target::Backends(_) => {}
        Target::Refuse => {
            elements.insert((NO_ENDPOINTS, front_key(front)), Value::Refuse);
        }
        Target::Drop => {
            elements.insert((NO_ENDPOINTS, front_key(front)), Value::Drop);
        }
    }
    elements
}

fn difference(old: Keyed, mut new: Keyed, plan: &mut Plan) {
    for ((set, key), value) in old {
        let place = (set, key);
        if new.get(&place) == Some(&value) {
            new.remove(&place);
        } else {
            plan.remove.entry(set).or_default().push((place.1, value));
        }
    }
    for ((set, key), value) in new {
        plan.add.entry(set).or_default().push((key, value));
    }
}

/// Fields of keys are padded to four bytes; numbers of the kernel's own making are in host order.
fn front_key(front: &Front) -> Vec<u8> {
    let port = front.port.to_be_bytes();
    [&front.ip.octets()[..], &[front.protocol, 0, 0, 0], &port, &[0, 0]].concat()
}

fn reach_key(front: &Front) -> Vec<u8> {
    [&(front.reach as u32).to_ne_bytes()[..], &front_key(front)].concat()
}

fn slot_key(front: &Front, slot: u32) -> Vec<u8> {
    [&reach_key(front)[..], &slot.to_ne_bytes()].concat()
}

/// The chain for sticky fronts of a kind: `on_node` for those at whatever address of the node.
pub fn affinity_chain(timeout_s: u32, reach: super::rules::Reach, on_node: bool) -> String {
    let inside = if reach == super::rules::Reach::Inside { "-inside" } else { "" };
    format!("affinity-{timeout_s}{inside}{}", if on_node { "-node" } else { "" })
}

/// The prefix length goes before the address: rules ask for one length after the other.
fn source_key(front: &Front, source: Cidr) -> Vec<u8> {
    let prefix = u32::from(source.prefix()).to_ne_bytes();
    [&front_key(front)[..], &prefix, &source.base().octets()].concat()
}

fn backend_value(backend: &SocketAddrV4) -> Vec<u8> {
    [&backend.ip().octets()[..], &backend.port().to_be_bytes(), &[0, 0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::rules::{self, Reach, SlicePort};
    use serde_json::json;

    const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);

    fn service(ip: &str, protocol: &str, external: &[&str]) -> Service {
        serde_json::from_value(json!({"spec": {"clusterIP": ip, "externalIPs": external,
            "ports": [{"name": "p", "protocol": protocol, "port": 80}]}}))
        .unwrap()
    }

    fn slice(protocol: u8, hosts: &[u8]) -> Slice {
        let endpoint = |host: &u8| Endpoint {
            ip: Ipv4Addr::new(10, 42, 0, *host),
            ready: true,
            last_resort: false,
            local: true,
            pod_uid: format!("uid-{host}"),
            for_node: None,
            for_zone: None,
        };
        Slice {
            ports: vec![SlicePort { name: "p".into(), protocol, port: 8080 }],
            endpoints: hosts.iter().map(endpoint).collect(),
        }
    }

    /// The elements the kernel would have after these plans.
    #[derive(Default)]
    struct Kernel(BTreeMap<(&'static str, Vec<u8>), Value>);

    impl Kernel {
        fn apply(&mut self, plan: &Plan) -> usize {
            let mut changes = 0;
            for (set, elements) in &plan.remove {
                for (key, _) in elements {
                    assert!(self.0.remove(&(*set, key.clone())).is_some(), "removes what is there");
                    changes += 1;
                }
            }
            for (set, elements) in &plan.add {
                for (key, value) in elements {
                    assert!(self.0.insert((*set, key.clone()), value.clone()).is_none(), "adds what is not there");
                    changes += 1;
                }
            }
            changes
        }

        fn assert_equals(&self, state: &State) {
            let all = state.everything().into_iter();
            let all: BTreeMap<_, _> =
                all.flat_map(|(set, list)| list.into_iter().map(move |(key, value)| ((set, key), value))).collect();
            assert_eq!(all, self.0);
        }
    }

    #[test]
    fn plans_lead_from_any_state_to_the_wanted_one() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        let many: Vec<u8> = (2..30).collect();
        let steps: [&[u8]; 7] = [&[], &[2], &[2, 3, 4], &[2, 3, 9], &many, &[2, 3], &[]];
        state.set_service("default/web", Some(service("10.43.0.7", "TCP", &["192.0.2.1"])));
        for hosts in steps {
            state.set_slice("default/web", "default/web-1", Some(slice(6, hosts)));
            kernel.apply(&state.plan());
            kernel.assert_equals(&state);
        }
        state.set_slice("default/web", "default/web-1", None);
        state.set_service("default/web", None);
        kernel.apply(&state.plan());
        assert!(kernel.0.is_empty(), "nothing is left of a deleted Service");
        assert!(state.services.is_empty() && state.owned.is_empty());
    }

    #[test]
    fn a_thousand_backends_all_get_their_share() {
        let mut state = State::new(DNS);
        state.set_service("default/web", Some(service("10.43.0.7", "TCP", &[])));
        for page in 0..5u8 {
            let mut slice = slice(6, &(1..=200).collect::<Vec<_>>());
            for endpoint in &mut slice.endpoints {
                endpoint.ip = Ipv4Addr::new(10, 42, page, endpoint.ip.octets()[3]);
            }
            state.set_slice("default/web", &format!("s{page}"), Some(slice));
        }
        state.plan();
        let programmed = state.programmed.values().next().unwrap();
        let mut shares: BTreeMap<SocketAddrV4, usize> = BTreeMap::new();
        programmed.slots.iter().for_each(|backend| *shares.entry(*backend).or_default() += 1);
        assert_eq!((shares.len(), programmed.slots.len()), (1000, HUGE_SLOTS as usize));
        assert!(shares.values().all(|share| (2..=3).contains(share)));
    }

    #[test]
    fn a_restricted_front_comes_and_goes_with_its_networks() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        let mut restricted = service("10.43.0.7", "TCP", &[]);
        restricted.spec.r#type = "LoadBalancer".into();
        restricted.status.load_balancer.ingress = serde_json::from_value(json!([{"ip": "192.0.2.1"}])).unwrap();
        state.set_slice("default/web", "s", Some(slice(6, &[2])));
        for (ranges, expected) in [(vec!["10.0.0.0/8", "192.168.1.0/24"], 3), (vec!["10.0.0.0/8"], 2), (vec![], 0)] {
            restricted.spec.load_balancer_source_ranges = ranges.into_iter().map(str::to_owned).collect();
            state.set_service("default/web", Some(restricted.clone()));
            kernel.apply(&state.plan());
            kernel.assert_equals(&state);
            let sets = kernel.0.keys().filter(|(set, _)| [RESTRICTED, SOURCES].contains(set));
            assert_eq!(sets.count(), expected);
        }
    }

    #[test]
    fn one_endpoint_replaced_is_a_few_elements() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        state.set_service("default/web", Some(service("10.43.0.7", "TCP", &[])));
        state.set_slice("default/web", "s", Some(slice(6, &[2, 3, 4])));
        kernel.apply(&state.plan());
        state.set_slice("default/web", "s", Some(slice(6, &[2, 3, 5])));
        assert!(kernel.apply(&state.plan()) <= 12);
        assert_eq!(state.plan(), Plan::default(), "nothing more to do");
    }

    #[test]
    fn pods_are_reported_once_when_they_become_reachable() {
        let mut state = State::new(DNS);
        state.set_service("default/web", Some(service("10.43.0.7", "TCP", &[])));
        state.set_slice("default/web", "s", Some(slice(6, &[2, 3])));
        assert_eq!(state.plan().reachable, ["uid-2", "uid-3"]);
        state.set_slice("default/web", "s", Some(slice(6, &[3, 4])));
        assert_eq!(state.plan().reachable, ["uid-4"]);
    }

    #[test]
    fn a_front_belongs_to_the_first_and_goes_to_the_next() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        for (name, ip) in [("a", "10.43.0.7"), ("b", "10.43.0.8")] {
            state.set_service(name, Some(service(ip, "TCP", &["192.0.2.1"])));
        }
        state.set_slice("a", "a", Some(slice(6, &[2])));
        state.set_slice("b", "b", Some(slice(6, &[3])));
        kernel.apply(&state.plan());
        let shared = Front { reach: Reach::Anyone, ip: Ipv4Addr::new(192, 0, 2, 1), protocol: 6, port: 80 };
        assert_eq!(state.programmed[&shared].owner, "service a");
        state.set_service("a", None);
        kernel.apply(&state.plan());
        kernel.assert_equals(&state);
        assert_eq!(state.programmed[&shared].owner, "service b");
    }

    #[test]
    fn udp_changes_say_which_flows_may_stay() {
        let mut state = State::new(DNS);
        state.set_service("default/dns", Some(service("10.43.0.9", "UDP", &[])));
        state.set_slice("default/dns", "s", Some(slice(17, &[2, 3])));
        state.plan();
        state.set_slice("default/dns", "s", Some(slice(17, &[3])));
        let front = (Ipv4Addr::new(10, 43, 0, 9), 80);
        let left = BTreeSet::from([SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, 3), 8080)]);
        assert_eq!(state.plan().udp, BTreeMap::from([(front, left.clone())]));
        assert_eq!(state.udp(), BTreeMap::from([(front, left)]));
    }

    #[test]
    fn the_dns_address_is_never_a_front() {
        let mut state = State::new(DNS);
        state.set_service("kube-system/kube-dns", Some(service("10.43.0.10", "UDP", &[])));
        assert_eq!(state.plan(), Plan::default());
    }

    #[test]
    fn sticky_fronts_bring_their_chains_once() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        let mut sticky = service("10.43.0.7", "TCP", &[]);
        sticky.spec.session_affinity = "ClientIP".into();
        state.set_slice("default/web", "s", Some(slice(6, &[2, 3])));
        let mut timeouts = Vec::new();
        for timeout_s in [None, Some(10), Some(10), Some(20), Some(10)] {
            let config = timeout_s.map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
            sticky.spec.session_affinity_config = serde_json::from_value(json!(config)).unwrap();
            state.set_service("default/web", Some(sticky.clone()));
            let plan = state.plan();
            kernel.apply(&plan);
            kernel.assert_equals(&state);
            timeouts.push(plan.affinities.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(timeouts, [vec![10_800], vec![10], vec![], vec![20], vec![]]);
        let count = |set: &str| kernel.0.keys().filter(|(name, _)| *name == set).count();
        assert_eq!((count(AFFINITY), count(ALIVE), count(STICKY)), (1, 2, MANY_SLOTS as usize));
        let chain = kernel.0.iter().find(|((set, _), _)| *set == AFFINITY).unwrap().1;
        assert_eq!(*chain, Value::Goto("affinity-10".to_owned()));
    }

    #[test]
    fn host_ports_come_and_go() {
        let mut state = State::new(DNS);
        let mut kernel = Kernel::default();
        let pod = serde_json::from_value(
            json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}]}]},
            "status": {"podIP": "10.42.0.2"}}),
        )
        .unwrap();
        state.set_host_ports("default/p", rules::host_port_fronts(&pod));
        kernel.apply(&state.plan());
        assert_eq!(kernel.0.len(), FEW_SLOTS as usize);
        state.set_host_ports("default/p", Fronts::new());
        kernel.apply(&state.plan());
        assert!(kernel.0.is_empty());
    }
}
