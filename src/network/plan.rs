//! What a node's pod network consists of, derived from its configuration. Pure.

use super::ipam::Cidr;
use super::{Error, NetworkConfig, Result};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Layout {
    pub bridge: String,
    pub pods: Cidr,
    pub cluster: Cidr,
    pub services: Cidr,
    pub gateway: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub netns_directory: PathBuf,
    /// uid → address, for after a reboot.
    pub addresses_file: PathBuf,
}

impl Layout {
    pub fn new(config: &NetworkConfig) -> Result<Self> {
        let cidr = |name, text: &str| text.parse::<Cidr>().map_err(|message| Error::Config { name, message });
        let invalid = |name, message: &str| Error::Config { name, message: message.to_owned() };
        let IpAddr::V4(dns) = config.dns_ip else {
            return Err(invalid("dns address", "only IPv4 is supported"));
        };
        let pods = cidr("pod network", &config.pod_cidr)?;
        if !(16..=29).contains(&pods.prefix()) {
            return Err(invalid("pod network", "a node needs a network of /16 to /29"));
        }
        // IFNAMSIZ with its final zero.
        if config.bridge.is_empty() || config.bridge.len() > 15 {
            return Err(invalid("bridge", "a name has 1 to 15 bytes"));
        }
        Ok(Self {
            bridge: config.bridge.clone(),
            pods,
            cluster: cidr("cluster network", &config.cluster_cidr)?,
            services: cidr("service network", &config.service_cidr)?,
            gateway: pods.nth(1),
            dns,
            netns_directory: config.netns_directory.clone(),
            addresses_file: config.state_directory.join("addresses.json"),
        })
    }

    pub fn netns(&self, uid: &str) -> PathBuf {
        self.netns_directory.join(uid)
    }

    /// The private key of the node's WireGuard device.
    pub fn wireguard_key_file(&self) -> PathBuf {
        self.addresses_file.with_file_name("wireguard.key")
    }

    /// The link to nodes that only the server reaches.
    pub fn relay_link(&self) -> String {
        format!("{}{RELAY_SUFFIX}", self.bridge.chars().take(12).collect::<String>())
    }

    /// Sysctls below `/proc/sys/net` of the node, and whether the network works without each.
    pub fn sysctls(&self) -> Vec<(String, &'static str, bool)> {
        let bridge = &self.bridge;
        vec![
            ("ipv4/ip_forward".to_owned(), "1", false),
            (format!("ipv4/conf/{bridge}/forwarding"), "1", false),
            // Pods reach each other over the port they came from: the kernel would send ICMP redirects.
            ("ipv4/conf/all/send_redirects".to_owned(), "0", false),
            (format!("ipv4/conf/{bridge}/send_redirects"), "0", false),
            // With br_netfilter, DNATed frames would be bridged, which isolated ports drop. Absent = fine.
            ("bridge/bridge-nf-call-iptables".to_owned(), "0", true),
            ("bridge/bridge-nf-call-ip6tables".to_owned(), "0", true),
            ("bridge/bridge-nf-call-arptables".to_owned(), "0", true),
        ]
    }
}

/// Sysctls of a pod's namespace: any user may bind ports below 1024 and ping, as with containerd.
pub const POD_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_unprivileged_port_start", "0"), ("ipv4/ping_group_range", "0 2147483647")];

const RELAY_SUFFIX: &str = "-rl";

/// Whether a link has the name of one that leads through the server: it comes and goes with the traffic.
pub fn is_relay_link(name: &str) -> bool {
    name.ends_with(RELAY_SUFFIX)
}

/// The node's end of a pod's veth pair: found again from the uid alone.
pub fn host_link(uid: &str) -> String {
    let digest = Sha256::digest(uid.as_bytes());
    digest.iter().take(6).fold("ve".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// Whether a link has such a name.
pub fn is_host_link(name: &str) -> bool {
    name.len() == 14 && name.strip_prefix("ve").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The same address always has the same MAC, so ARP caches stay right.
pub fn mac(ip: Ipv4Addr) -> Vec<u8> {
    [&[0x0a, 0x58], &ip.octets()[..]].concat()
}

/// Kept on the node's end of the pair once the pod's end is configured: what exists is read back from it.
pub fn alias(uid: &str, ip: Ipv4Addr) -> String {
    format!("{ip} {uid}")
}

pub fn parse_alias(alias: &str) -> Option<(String, Ipv4Addr)> {
    let (ip, uid) = alias.split_once(' ')?;
    Some((uid.to_owned(), ip.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            pod_cidr: "10.42.3.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            dns_ip: "10.43.0.10".parse().unwrap(),
            bridge: "edge0".into(),
            table: "edgelet".into(),
            netns_directory: "/run/edgelet/netns".into(),
            state_directory: "/var/lib/edgelet/network".into(),
        }
    }

    #[test]
    fn the_bridge_has_the_first_address() {
        assert_eq!(Layout::new(&config()).unwrap().gateway, Ipv4Addr::new(10, 42, 3, 1));
    }

    #[test]
    fn wrong_configurations_are_named() {
        type Spoil = fn(&mut NetworkConfig);
        let cases: [(Spoil, &str); 5] = [
            (|c| c.pod_cidr = "10.42.0.0/30".into(), "pod network"),
            (|c| c.cluster_cidr = "fd00::/8".into(), "cluster network"),
            (|c| c.service_cidr = "ten".into(), "service network"),
            (|c| c.dns_ip = "::1".parse().unwrap(), "dns address"),
            (|c| c.bridge = "a-name-much-too-long".into(), "bridge"),
        ];
        for (spoil, name) in cases {
            let mut wrong = config();
            spoil(&mut wrong);
            let error = Layout::new(&wrong).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn links_are_named_after_the_uid_and_read_back() {
        let name = host_link("0b6dbd2e-6d0a-4c1c-9b44-3f8d2b0a1c11");
        assert!(name.len() <= 15 && name != host_link("another"));
        assert!(is_host_link(&name) && !is_host_link("eth0") && !is_host_link("vetha1b2c3d4e5"));
        let ip = Ipv4Addr::new(10, 42, 3, 9);
        assert_eq!(parse_alias(&alias("uid-1", ip)), Some(("uid-1".to_owned(), ip)));
        assert_eq!(parse_alias("somebody else's"), None);
        assert_eq!(mac(ip), [0x0a, 0x58, 10, 42, 3, 9]);
    }
}
