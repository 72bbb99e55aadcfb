//! Links, addresses, routes and nftables of one node, by netlink. No `ip`, `nft` or `iptables` is called.
//! Idempotent: "already so" is success, and whatever a crash left behind is found and used or removed.

use std::net::IpAddr;
use std::path::PathBuf;

/// What a node's pod network is made of.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// This node's pods, `10.42.0.0/24`. The bridge has the first address.
    pub pod_cidr: String,
    /// All nodes' pods, `10.42.0.0/16`: not masqueraded.
    pub cluster_cidr: String,
    /// `10.43.0.0/16`.
    pub service_cidr: String,
    /// The cluster DNS address, bound on the bridge.
    pub dns_ip: IpAddr,
    /// Name of the bridge, `edge0`.
    pub bridge: String,
    /// Name of the nftables tables, `edgelet`.
    pub table: String,
    /// Where pods' network namespaces are pinned, `/run/edgelet/netns`.
    pub netns_directory: PathBuf,
    /// Where addresses given out are remembered across reboots.
    pub state_directory: PathBuf,
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub ip: IpAddr,
    /// The pinned network namespace, for the shim to join.
    pub netns: PathBuf,
}
