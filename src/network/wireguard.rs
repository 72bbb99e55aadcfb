//! WireGuard devices of the kernel, by generic netlink. Keys are made here and the private one never leaves:
//! the kernel itself says which public key belongs to it.

use super::ipam::Cidr;
use super::nftables::attribute::{self, Writer};
use super::nftables::{receive, write_message};
use netlink_sys::{Socket, protocols::NETLINK_GENERIC};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED_IPS: u16 = 9;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;
const REMOVE_PEER: u32 = 1;
const REPLACE_ALLOWED_IPS: u32 = 2;
const ADDRESS_FAMILY_IPV4: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Peers of one message, which holds 64 KiB.
const PEERS_PER_MESSAGE: usize = 200;

/// A Curve25519 key, public or private.
pub type Key = [u8; 32];

/// Another end of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub key: Key,
    /// `None`: the other end speaks first, from behind a NAT.
    pub endpoint: Option<SocketAddrV4>,
    /// Seconds between packets that keep a NAT's memory alive; 0 = none.
    pub keepalive_s: u16,
    pub pods: Cidr,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub public_key: Key,
    pub port: u16,
    pub peers: Vec<Tunnel>,
}

/// The kernel's side of it. Not for a runtime thread.
pub struct Wireguard {
    socket: Socket,
    family: u16,
}

impl Wireguard {
    /// In the calling thread's namespace. The family is there once a device was made.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        let mut opened = Self { socket, family: CONTROLLER };
        let mut family = None;
        opened.exchange(
            GET_FAMILY,
            ACK,
            |message| {
                message.text(FAMILY_NAME, "wireguard");
            },
            |attributes| {
                let id = attribute::find(attributes, FAMILY_ID).and_then(|bytes| bytes.try_into().ok());
                family = family.or(id.map(u16::from_ne_bytes));
            },
        )?;
        opened.family = family.ok_or(io::ErrorKind::NotFound)?;
        Ok(opened)
    }

    pub fn device(&self, name: &str) -> io::Result<Device> {
        let mut device = Device::default();
        let ask = |message: &mut Writer| {
            message.text(DEVICE_NAME, name);
        };
        self.exchange(GET_DEVICE, DUMP, ask, |attributes| read_device(attributes, &mut device))?;
        Ok(device)
    }

    /// Gives the device its key and its port.
    pub fn configure(&self, name: &str, private_key: &Key, port: u16) -> io::Result<()> {
        let write = |message: &mut Writer| {
            message.text(DEVICE_NAME, name).bytes(DEVICE_PRIVATE_KEY, private_key);
            message.bytes(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
        };
        self.exchange(SET_DEVICE, ACK, write, |_| {})
    }

    /// Brings the device's peers to `wanted`; those that stay keep their sessions.
    pub fn set_peers(&self, name: &str, have: &[Tunnel], wanted: &[Tunnel]) -> io::Result<()> {
        let changes = changes(have, wanted);
        for chunk in changes.chunks(PEERS_PER_MESSAGE) {
            let write = |message: &mut Writer| {
                message.text(DEVICE_NAME, name).nest(DEVICE_PEERS, |list| {
                    for change in chunk {
                        list.nest(0, |peer| write_change(peer, change));
                    }
                });
            };
            self.exchange(SET_DEVICE, ACK, write, |_| {})?;
        }
        Ok(())
    }

    /// One request; `take` sees the attributes of every answer.
    fn exchange(
        &self,
        command: u8,
        flags: u16,
        write: impl FnOnce(&mut Writer),
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut writer = Writer::default();
        // A generic message's head (command, version, nothing) is as long as nfnetlink's.
        write_message(&mut writer, self.family, REQUEST | flags, 1, command, 0, write);
        self.socket.send(&writer.0, 0)?;
        let mut code = 0;
        receive(&self.socket, |kind, _, body| match kind {
            NLMSG_ERROR => {
                code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                true
            }
            NLMSG_DONE => true,
            _ => {
                take(body.get(4..).unwrap_or_default());
                false
            }
        })?;
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(Tunnel),
    Remove(Key),
}

/// Pure.
fn changes(have: &[Tunnel], wanted: &[Tunnel]) -> Vec<Change> {
    let known: BTreeMap<Key, &Tunnel> = have.iter().map(|tunnel| (tunnel.key, tunnel)).collect();
    let keys: BTreeSet<Key> = wanted.iter().map(|tunnel| tunnel.key).collect();
    let gone = known.keys().filter(|key| !keys.contains(*key)).map(|key| Change::Remove(*key));
    let is_so = |tunnel: &Tunnel| {
        known.get(&tunnel.key).is_some_and(|old| {
            // Where nothing is wanted, what the other end was heard from stays.
            let endpoint = tunnel.endpoint.or(old.endpoint);
            Tunnel { endpoint, ..tunnel.clone() } == **old
        })
    };
    gone.chain(wanted.iter().filter(|tunnel| !is_so(tunnel)).cloned().map(Change::Set)).collect()
}

fn write_change(peer: &mut Writer, change: &Change) {
    let tunnel = match change {
        Change::Remove(key) => {
            peer.bytes(PEER_PUBLIC_KEY, key).bytes(PEER_FLAGS, &REMOVE_PEER.to_ne_bytes());
            return;
        }
        Change::Set(tunnel) => tunnel,
    };
    peer.bytes(PEER_PUBLIC_KEY, &tunnel.key).bytes(PEER_FLAGS, &REPLACE_ALLOWED_IPS.to_ne_bytes());
    if let Some(endpoint) = tunnel.endpoint {
        // A `sockaddr_in`.
        let address = [&ADDRESS_FAMILY_IPV4.to_ne_bytes()[..], &endpoint.port().to_be_bytes(), &endpoint.ip().octets()];
        peer.bytes(PEER_ENDPOINT, &[address.concat(), vec![0; 8]].concat());
    }
    peer.bytes(PEER_KEEPALIVE, &tunnel.keepalive_s.to_ne_bytes());
    peer.nest(PEER_ALLOWED_IPS, |list| {
        list.nest(0, |allowed| {
            allowed.bytes(ALLOWED_FAMILY, &ADDRESS_FAMILY_IPV4.to_ne_bytes());
            allowed.bytes(ALLOWED_ADDRESS, &tunnel.pods.base().octets()).bytes(ALLOWED_PREFIX, &[tunnel.pods.prefix()]);
        });
    });
}

/// A dump of many peers comes in several messages.
fn read_device(attributes: &[u8], device: &mut Device) {
    let number =
        |kind| attribute::find(attributes, kind).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if let Some(key) = attribute::find(attributes, DEVICE_PUBLIC_KEY).and_then(|bytes| bytes.try_into().ok()) {
        device.public_key = key;
    }
    device.port = number(DEVICE_LISTEN_PORT).unwrap_or(device.port);
    let peers = attribute::find(attributes, DEVICE_PEERS).unwrap_or_default();
    device.peers.extend(attribute::read(peers).filter_map(|(_, peer)| read_peer(peer)));
}

fn read_peer(attributes: &[u8]) -> Option<Tunnel> {
    let key: Key = attribute::find(attributes, PEER_PUBLIC_KEY)?.try_into().ok()?;
    let endpoint = attribute::find(attributes, PEER_ENDPOINT).and_then(|address| {
        let port: [u8; 2] = address.get(2..4)?.try_into().ok()?;
        let ip: [u8; 4] = address.get(4..8)?.try_into().ok()?;
        (address.len() == 16).then(|| SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_be_bytes(port)))
    });
    let keepalive = attribute::find(attributes, PEER_KEEPALIVE).and_then(|bytes| bytes.try_into().ok());
    let allowed = attribute::read(attribute::find(attributes, PEER_ALLOWED_IPS).unwrap_or_default());
    let cidr = |allowed: &[u8]| {
        let ip: [u8; 4] = attribute::find(allowed, ALLOWED_ADDRESS)?.try_into().ok()?;
        Some(Cidr::new(Ipv4Addr::from(ip), *attribute::find(allowed, ALLOWED_PREFIX)?.first()?))
    };
    let pods = allowed.filter_map(|(_, one)| cidr(one)).next();
    // One without addresses of pods is none of ours: any, so that it is written anew.
    let pods = pods.unwrap_or(Cidr::new(Ipv4Addr::BROADCAST, 32));
    Some(Tunnel { key, endpoint, keepalive_s: keepalive.map_or(0, u16::from_ne_bytes), pods })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(key: u8, endpoint: Option<&str>, pods: &str) -> Tunnel {
        let endpoint = endpoint.map(|text| text.parse().unwrap());
        Tunnel { key: [key; 32], endpoint, keepalive_s: 25, pods: pods.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_what_the_kernel_would_say() {
        for endpoint in [None, Some("192.0.2.1:51820")] {
            let wanted = tunnel(7, endpoint, "10.42.1.0/24");
            let mut writer = Writer::default();
            writer.bytes(DEVICE_PUBLIC_KEY, &[9; 32]).bytes(DEVICE_LISTEN_PORT, &51820u16.to_ne_bytes());
            writer.nest(DEVICE_PEERS, |list| {
                list.nest(0, |peer| write_change(peer, &Change::Set(wanted.clone())));
            });
            let mut device = Device::default();
            read_device(&writer.0, &mut device);
            assert_eq!(device, Device { public_key: [9; 32], port: 51820, peers: vec![wanted] });
        }
    }

    #[test]
    fn peers_that_stay_as_they_are_are_left_alone() {
        let a = tunnel(1, Some("192.0.2.1:51820"), "10.42.1.0/24");
        let b = tunnel(2, Some("192.0.2.2:51820"), "10.42.2.0/24");
        let moved = tunnel(1, Some("192.0.2.9:51820"), "10.42.1.0/24");
        let behind_nat = tunnel(1, None, "10.42.1.0/24");
        let both = [a.clone(), b.clone()];
        assert_eq!(changes(&both, &both), []);
        assert_eq!(changes(&both, std::slice::from_ref(&a)), [Change::Remove([2; 32])]);
        assert_eq!(changes(std::slice::from_ref(&a), &both), [Change::Set(b)]);
        assert_eq!(changes(std::slice::from_ref(&a), std::slice::from_ref(&moved)), [Change::Set(moved)]);
        assert_eq!(changes(&[a], &[behind_nat]), [], "where it was heard from stays");
    }
}
