//! Forgets tracked UDP flows: a client that keeps its source port would reach a removed endpoint for ever.
//! TCP needs none of it: its connections end by themselves.

use super::nftables::attribute::{self, Writer};
use super::nftables::{self, write_message};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_UDP: u8 = 17;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const FAMILY_IPV4: u8 = 2;

/// A UDP flow: where its client sends to, and who answers. They differ when it was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub destination: SocketAddrV4,
    pub answers: SocketAddrV4,
}

/// Forgets the UDP flows that `matches`; how many they were. Dumps the whole table: not for a runtime thread.
pub fn forget_udp(matches: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    send(&socket, GET, REQUEST | DUMP, &[])?;
    let mut found: Vec<Vec<u8>> = Vec::new();
    nftables::receive(&socket, |kind, _, body| {
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            return true;
        }
        let attributes = body.get(4..).unwrap_or_default();
        if parse(attributes).is_some_and(|flow| matches(&flow)) {
            found.extend(attribute::find(attributes, TUPLE_ORIGINAL).map(<[u8]>::to_vec));
        }
        false
    })?;
    for tuple in &found {
        // A flow that ended meanwhile is fine, so no answer is asked for.
        send(&socket, DELETE, REQUEST, tuple)?;
    }
    Ok(found.len())
}

fn send(socket: &Socket, kind: u16, flags: u16, original: &[u8]) -> io::Result<()> {
    let mut writer = Writer::default();
    write_message(&mut writer, SUBSYSTEM << 8 | kind, flags, 1, FAMILY_IPV4, 0, |message| {
        if !original.is_empty() {
            message.bytes(TUPLE_ORIGINAL | NESTED, original);
        }
    });
    socket.send(&writer.0, 0).map(|_| ())
}

fn parse(attributes: &[u8]) -> Option<Flow> {
    let original = attribute::find(attributes, TUPLE_ORIGINAL)?;
    let reply = attribute::find(attributes, TUPLE_REPLY)?;
    let protocol = attribute::find(attribute::find(original, TUPLE_PROTOCOL)?, 1)?;
    if protocol != [PROTOCOL_UDP] {
        return None;
    }
    // Destination of the original direction; source of the reply.
    Some(Flow { destination: endpoint(original, 2, 3)?, answers: endpoint(reply, 1, 2)? })
}

fn endpoint(tuple: &[u8], address: u16, port: u16) -> Option<SocketAddrV4> {
    let ip: [u8; 4] = attribute::find(attribute::find(tuple, TUPLE_IP)?, address)?.try_into().ok()?;
    let port: [u8; 2] = attribute::find(attribute::find(tuple, TUPLE_PROTOCOL)?, port)?.try_into().ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(writer: &mut Writer, kind: u16, protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
        writer.nest(kind, |tuple| {
            tuple.nest(TUPLE_IP, |ip| {
                ip.bytes(1, &from.0.octets()).bytes(2, &to.0.octets());
            });
            tuple.nest(TUPLE_PROTOCOL, |part| {
                part.bytes(1, &[protocol]).bytes(2, &from.1.to_be_bytes()).bytes(3, &to.1.to_be_bytes());
            });
        });
    }

    #[test]
    fn flows_are_read_and_others_skipped() {
        let (client, vip, pod) =
            (Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(10, 43, 0, 9), Ipv4Addr::new(10, 42, 0, 3));
        for (protocol, udp) in [(PROTOCOL_UDP, true), (6, false)] {
            let mut writer = Writer::default();
            tuple(&mut writer, TUPLE_ORIGINAL, protocol, (client, 4000), (vip, 53));
            tuple(&mut writer, TUPLE_REPLY, protocol, (pod, 5353), (client, 4000));
            let flow = Flow { destination: SocketAddrV4::new(vip, 53), answers: SocketAddrV4::new(pod, 5353) };
            assert_eq!(parse(&writer.0), udp.then_some(flow));
        }
        assert_eq!(parse(&[]), None);
    }
}
