//! Addresses of one node's pods. Pure: no clock, no disk, no kernel.
//! The pointer rotates, so that a freed address is used again last: stale ARP, conntrack and DNS die first.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network, `10.42.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl Cidr {
    /// Host bits are dropped; `prefix` is 1 to 32.
    pub fn new(ip: Ipv4Addr, prefix: u8) -> Self {
        Self { base: u32::from(ip) & mask(prefix), prefix }
    }

    pub fn base(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The network has that many addresses, at most 2³¹.
    pub fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix)).min(31)
    }

    pub fn nth(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + index)
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & mask(self.prefix) == self.base
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base()) || other.contains(self.base())
    }

    /// The networks of this prefix length inside, lowest first; itself when it is no larger.
    pub fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let prefix = prefix.clamp(self.prefix, 32);
        let count = 1u64 << (prefix - self.prefix);
        let part =
            move |index: u64| Self { base: self.base + u32::try_from(index << (32 - prefix)).expect("inside"), prefix };
        (0..count).map(part)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no IPv4 network");
        let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if prefix == 0 || prefix > 32 {
            return Err(invalid());
        }
        Ok(Self::new(ip, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

/// What is written to disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Where the search for a free address starts.
    pub next: u32,
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

/// Who has which address of the node's network. The first address is the bridge's.
#[derive(Clone, Debug)]
pub struct Ipam {
    cidr: Cidr,
    next: u32,
    by_uid: BTreeMap<String, Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    /// Pods that have their address now; the others keep theirs for after a reboot.
    attached: BTreeSet<String>,
}

impl Ipam {
    /// From what was remembered; addresses of another network, and duplicates, are forgotten.
    pub fn new(cidr: Cidr, remembered: Remembered) -> Self {
        let mut ipam = Self {
            cidr,
            next: remembered.next,
            by_uid: BTreeMap::new(),
            used: BTreeSet::new(),
            attached: BTreeSet::new(),
        };
        for (uid, ip) in remembered.addresses {
            if ipam.is_free(ip) {
                ipam.take(&uid, ip);
            }
        }
        ipam
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.cidr.nth(1)
    }

    /// The address of a pod: what it has, else what it wants, else the next free one, else one that a
    /// pod not here now had. `None`: every address is attached.
    pub fn attach(&mut self, uid: &str, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let ip = self.by_uid.get(uid).copied();
        let ip = ip.or_else(|| wanted.filter(|ip| self.is_free(*ip))).or_else(|| self.next_free());
        let ip = ip.or_else(|| self.reclaim())?;
        self.take(uid, ip);
        self.attached.insert(uid.to_owned());
        Some(ip)
    }

    /// A pod that was found to have this address; whoever else was remembered with it loses it.
    pub fn observe(&mut self, uid: &str, ip: Ipv4Addr) {
        let others: Vec<String> = self
            .by_uid
            .iter()
            .filter(|(other, at)| **at == ip && *other != uid)
            .map(|(other, _)| other.clone())
            .collect();
        for other in others {
            self.release(&other);
        }
        self.take(uid, ip);
        self.attached.insert(uid.to_owned());
    }

    /// Frees a pod's address. Unknown is success.
    pub fn release(&mut self, uid: &str) {
        self.attached.remove(uid);
        if let Some(ip) = self.by_uid.remove(uid) {
            self.used.remove(&ip);
        }
    }

    /// Forgets remembered pods that are neither attached nor listed. True when something changed.
    pub fn retain(&mut self, uids: &[String]) -> bool {
        let gone: Vec<String> =
            self.by_uid.keys().filter(|uid| !self.attached.contains(*uid) && !uids.contains(uid)).cloned().collect();
        for uid in &gone {
            self.release(uid);
        }
        !gone.is_empty()
    }

    pub fn remembered(&self) -> Remembered {
        Remembered { next: self.next, addresses: self.by_uid.clone() }
    }

    fn is_free(&self, ip: Ipv4Addr) -> bool {
        let index = u32::from(ip).wrapping_sub(u32::from(self.cidr.base()));
        self.cidr.contains(ip) && (2..self.end()).contains(&index) && !self.used.contains(&ip)
    }

    /// One past the last address for pods: the last of the network is its broadcast address.
    fn end(&self) -> u32 {
        self.cidr.size() - 1
    }

    fn next_free(&mut self) -> Option<Ipv4Addr> {
        let count = self.end().saturating_sub(2);
        let candidates = (0..count).map(|step| 2 + (self.next % count + step) % count);
        let index = candidates.into_iter().find(|index| !self.used.contains(&self.cidr.nth(*index)))?;
        self.next = (index - 1) % count;
        Some(self.cidr.nth(index))
    }

    fn reclaim(&mut self) -> Option<Ipv4Addr> {
        let absent = self.by_uid.keys().find(|uid| !self.attached.contains(*uid)).cloned()?;
        let ip = self.by_uid.get(&absent).copied();
        self.release(&absent);
        ip
    }

    fn take(&mut self, uid: &str, ip: Ipv4Addr) {
        if let Some(old) = self.by_uid.insert(uid.to_owned(), ip) {
            self.used.remove(&old);
        }
        self.used.insert(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(cidr: &str) -> Ipam {
        Ipam::new(cidr.parse().unwrap(), Remembered::default())
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_parsed_and_masked() {
        let cidr: Cidr = "10.42.7.9/24".parse().unwrap();
        assert_eq!((cidr.to_string().as_str(), cidr.size(), cidr.mask()), ("10.42.7.0/24", 256, ip("255.255.255.0")));
        assert!(cidr.contains(ip("10.42.7.255")) && !cidr.contains(ip("10.42.8.0")));
        for bad in ["10.42.0.0", "10.42.0.0/33", "10.42.0.0/0", "fd00::/64", "x/24"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_freed_address_is_used_again_last() {
        let mut ipam = ipam("10.42.0.0/29");
        assert_eq!(ipam.attach("a", None), Some(ip("10.42.0.2")));
        ipam.release("a");
        let rest: Vec<_> = (0..5).filter_map(|n| ipam.attach(&format!("p{n}"), None)).collect();
        assert_eq!(rest, ["10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.6", "10.42.0.2"].map(ip));
        assert_eq!(ipam.attach("one too many", None), None);
    }

    #[test]
    fn a_pod_keeps_its_address_and_gets_the_one_it_wants() {
        let mut ipam = ipam("10.42.0.0/24");
        assert_eq!(ipam.attach("a", Some(ip("10.42.0.77"))), Some(ip("10.42.0.77")));
        assert_eq!(ipam.attach("a", Some(ip("10.42.0.78"))), Some(ip("10.42.0.77")));
        for taken_or_wrong in ["10.42.0.77", "10.42.0.0", "10.42.0.1", "10.42.0.255", "10.43.0.9"] {
            let got = ipam.attach(taken_or_wrong, Some(ip(taken_or_wrong))).unwrap();
            assert_ne!(got, ip(taken_or_wrong));
        }
    }

    #[test]
    fn a_reboot_gives_the_same_addresses_until_they_are_let_go() {
        let mut before = ipam("10.42.0.0/29");
        let a = before.attach("a", None);
        let b = before.attach("b", None);
        let mut after = Ipam::new("10.42.0.0/29".parse().unwrap(), before.remembered());
        assert_eq!(after.attach("b", None), b);
        assert!(after.retain(&["b".to_owned()]), "a is forgotten");
        assert!(!after.retain(&[]), "b is attached and stays");
        assert_eq!(after.attach("c", a), a);
    }

    #[test]
    fn what_exists_outweighs_what_was_remembered() {
        let mut ipam = ipam("10.42.0.0/29");
        ipam.attach("a", None);
        ipam.observe("b", ip("10.42.0.2"));
        assert_eq!(ipam.attach("b", None), Some(ip("10.42.0.2")));
        assert_ne!(ipam.attach("a", None), Some(ip("10.42.0.2")));
    }

    #[test]
    fn a_full_network_takes_addresses_of_pods_that_are_not_here() {
        let remembered = Remembered {
            next: 0,
            addresses: (2..7).map(|n| (format!("old{n}"), Ipv4Addr::new(10, 42, 0, n))).collect(),
        };
        let mut ipam = Ipam::new("10.42.0.0/29".parse().unwrap(), remembered);
        assert_eq!(ipam.attach("new", None), Some(ip("10.42.0.2")));
        assert_eq!(ipam.attach("old3", None), Some(ip("10.42.0.3")));
    }
}
