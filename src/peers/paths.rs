//! The ways to all peers as people see them: `edgelet node paths` prints what the node wrote into its run folder.

use serde::{Deserialize, Serialize};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

/// Name of the file in the run folder.
pub const FILE: &str = "paths.json";

/// This node's ways to all others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Paths {
    pub node: String,
    pub address: Option<Ipv4Addr>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub pod_network: String,
    /// Bytes of an IP packet of a pod.
    pub mtu: u32,
    pub peers: Vec<Line>,
}

/// The way to one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Line {
    pub node: String,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub address: Option<Ipv4Addr>,
    /// `route`, `vxlan`, `wireguard`, `relay`; `none`.
    pub way: String,
    pub link: String,
    /// `works`, `trying`, `silent`, `unreachable`.
    pub state: String,
    pub round_trip_us: Option<u32>,
    pub mtu: Option<u32>,
    pub reason: String,
}

/// Writes them; the folder is in memory.
pub fn write(file: &Path, paths: &Paths) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(paths)?)?;
    std::fs::rename(temporary, file)
}

pub fn read(file: &Path) -> io::Result<Paths> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}
