//! What one edgelet at a time may use of a machine's network: its bridge and its cluster's DNS address.
//! A claim is an abstract socket: it belongs to the network namespace, as what it stands for does, and the kernel
//! gives it back when the process ends, however it ends.

use super::ipam::Cidr;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Held, not read.
pub struct Claim(#[allow(dead_code, reason = "held, not read")] UnixListener);

/// Another edgelet has what this one needs.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("another edgelet ({process}) uses {what} on this machine: end it first, two take each other's network")]
    Taken { process: String, what: String },
    #[error("claim {what}: {source}")]
    Kernel { what: String, source: io::Error },
}

/// Claims a bridge by its name. Must be called in a tokio runtime, like `dns`.
pub fn bridge(name: &str) -> Result<Claim, ClaimError> {
    claim(format!("bridge {name}"))
}

/// Claims the address of a cluster's DNS.
pub fn dns(ip: Ipv4Addr) -> Result<Claim, ClaimError> {
    claim(format!("the DNS address {ip}"))
}

fn claim(what: String) -> Result<Claim, ClaimError> {
    let failed = |source| ClaimError::Kernel { what: what.clone(), source };
    let address = SocketAddr::from_abstract_name(format!("edgelet: {what}")).map_err(failed)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Claim(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(ClaimError::Taken { process: holder(&address), what })
        }
        Err(source) => Err(failed(source)),
    }
}

/// The process that listens there, by what the kernel says of it.
fn holder(address: &SocketAddr) -> String {
    let asked = || -> io::Result<Option<i32>> {
        let peer = UnixStream::connect_addr(address)?;
        peer.set_nonblocking(true)?;
        Ok(tokio::net::UnixStream::from_std(peer)?.peer_cred()?.pid())
    };
    // 0: it is in another process namespace.
    let process = asked().ok().flatten().filter(|process| *process > 0);
    process.map_or_else(|| "in a container".into(), |process| format!("process {process}"))
}

/// A route of another device than `own_bridge` into one of the networks, from the text of `/proc/net/route`: the
/// device and the route.
pub fn foreign_route(routes: &str, networks: &[Cidr], own_bridge: &str) -> Option<(String, Cidr)> {
    let mut parsed = routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (device, destination, mask) = (columns.first()?, columns.get(1)?, columns.get(7)?);
        // The kernel prints the bytes as this machine's number.
        let number = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes);
        let prefix =
            u8::try_from(u32::from_be_bytes(number(mask)?).leading_ones()).ok().filter(|prefix| *prefix > 0)?;
        Some(((*device).to_owned(), Cidr::new(Ipv4Addr::from(number(destination)?), prefix)))
    });
    // A wider one, of a VPN say, yields to the pods' own.
    let within = |route: Cidr| networks.iter().any(|one| one.contains(route.base()) && one.prefix() <= route.prefix());
    parsed.find(|(device, route)| device != own_bridge && within(*route))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_has_a_bridge_and_the_next_is_told_who() {
        let name = format!("test{}", std::process::id());
        let first = bridge(&name).unwrap();
        let refused = bridge(&name).err().unwrap().to_string();
        let told = format!("another edgelet (process {}) uses bridge {name} on this machine: ", std::process::id());
        assert!(refused.starts_with(&told), "{refused}");
        drop(first);
        bridge(&name).unwrap();
    }

    #[test]
    fn a_route_of_another_device_into_the_pods_network_is_found() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let line = |device: &str, ip: [u8; 4], mask: [u8; 4]| {
            let number = u32::from_ne_bytes;
            format!("{device}\t{:08X}\t00000000\t0001\t0\t0\t0\t{:08X}\t0\t0\t0\n", number(ip), number(mask))
        };
        let usual = line("eth0", [0; 4], [0; 4]) + &line("eth0", [192, 168, 1, 0], [255, 255, 255, 0]);
        let networks: [Cidr; 2] = ["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()];
        let found = |more: &str| foreign_route(&format!("{head}{usual}{more}"), &networks, "edgedemo0");
        assert_eq!(found(""), None);
        let pods = |device| line(device, [10, 42, 0, 0], [255, 255, 255, 0]);
        assert_eq!(found(&pods("edgedemo0")), None, "what a crashed demo left is the next one's");
        assert_eq!(found(&pods("edge0")), Some(("edge0".into(), "10.42.0.0/24".parse().unwrap())));
        assert_eq!(found(&line("tun0", [10, 0, 0, 0], [255, 0, 0, 0])), None);
    }
}
