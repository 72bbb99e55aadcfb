//! Packets to other nodes' pods that are sent again since nobody answered: a rule logs the first to each node in a
//! while, and nfnetlink_log hands us its header. Where the kernel lacks either, nothing is heard.
//! Numbers are those of `linux/netfilter/nfnetlink_log.h`.

use super::nftables::attribute::{self, Writer};
use super::nftables::expression::{
    Expression, R0, destination_in, destination_not_in, is_unanswered_again, load_destination, masked,
};
use super::nftables::{self, Batch, Hook, SetType, ValueType, kind, write_message};
use super::plan::Layout;
use super::tables::PRIORITY_MANGLE;
use super::{Network, Result};
use netlink_sys::{AsyncSocket, TokioSocket, protocols::NETLINK_NETFILTER};
use std::future::poll_fn;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

/// Of the kernel's log groups. One listener has a group to itself: most programs use the first few.
const GROUP: u16 = 8473;
const SUBSYSTEM: u16 = 4;
const PACKET: u16 = SUBSYSTEM << 8;
const CONFIGURE: u16 = SUBSYSTEM << 8 | 1;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const FAMILY_IPV4: u8 = 2;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_QUEUE: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;
const IPV4_HEADER_BYTES: u8 = 20;
const NLMSG_ERROR: u16 = 2;

const CHAIN: &str = "unanswered";
/// Nodes that were told of lately.
const TOLD: &str = "told";
const TOLD_LIMIT: u32 = 1024;
/// Once in this time a node, whatever traffic does.
const TOLD_S: u32 = 30;

/// After translation, so of Services too; what the node itself sends as well.
pub(super) fn rules(batch: &mut Batch, table: &str, layout: &Layout) {
    batch.remembering_set(table, &SetType { name: TOLD, key: vec![kind::ADDRESS], value: ValueType::None }, TOLD_LIMIT);
    batch.base_chain(table, CHAIN, "filter", Hook::Postrouting, PRIORITY_MANGLE);
    let elsewhere = [destination_in(layout.cluster), destination_not_in(layout.pods)].concat();
    // Nodes have networks of one size.
    let first_in_a_while = [
        load_destination(R0),
        masked(R0, layout.pods.prefix()),
        Expression::NotInSet { set: TOLD, from: R0 },
        Expression::Remember { set: TOLD, key: R0, data: None, timeout_s: TOLD_S },
    ];
    batch.rule(
        table,
        CHAIN,
        &[&is_unanswered_again(), &elsewhere, &first_in_a_while, &[Expression::Log { group: GROUP }]],
    );
}

/// Where pods' packets got no answer, from now on.
pub struct Unanswered(TokioSocket);

impl Network {
    /// In the calling thread's namespace. Unsupported where the kernel cannot tell.
    pub fn unanswered(&self) -> Result<Unanswered> {
        let failed = |source| super::kernel("hear of", "packets without an answer", source);
        if !self.0.tells_unanswered.load(Ordering::Relaxed) {
            return Err(failed(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        }
        Unanswered::open().map_err(failed)
    }
}

impl Unanswered {
    fn open() -> io::Result<Self> {
        let mut socket: TokioSocket = AsyncSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().send(&bind(), 0)?;
        let mut code = 0;
        nftables::receive(socket.socket_ref(), |kind, _, body| {
            code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
            kind == NLMSG_ERROR
        })?;
        if code == 0 { Ok(Self(socket)) } else { Err(io::Error::from_raw_os_error(-code)) }
    }

    /// Waits for the next: where it was sent to. For ever when the socket is broken. Cancel-safe.
    pub async fn next(&mut self) -> Ipv4Addr {
        loop {
            match poll_fn(|context| self.0.poll_recv_from_full(context)).await {
                Ok((bytes, _)) => {
                    // Each comes alone, see `CONFIG_QUEUE`.
                    if let Some(ip) = nftables::messages(&bytes).find_map(|(kind, _, _, body)| destination(kind, body))
                    {
                        return ip;
                    }
                }
                // The same comes again if it matters.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot hear of packets without an answer any more");
                    std::future::pending().await
                }
            }
        }
    }
}

/// Binds the group; of each packet the header is wanted, at once.
fn bind() -> Vec<u8> {
    let mut writer = Writer::default();
    write_message(&mut writer, CONFIGURE, REQUEST | ACK, 1, FAMILY_IPV4, GROUP, |message| {
        message.bytes(CONFIG_COMMAND, &[COMMAND_BIND]);
        message.bytes(CONFIG_MODE, &[0, 0, 0, IPV4_HEADER_BYTES, COPY_PACKET, 0]);
        message.number(CONFIG_QUEUE, 1);
    });
    writer.0
}

fn destination(kind: u16, body: &[u8]) -> Option<Ipv4Addr> {
    let header = attribute::find(body.get(4..).filter(|_| kind == PACKET)?, PAYLOAD)?;
    let ip: [u8; 4] = header.get(16..20)?.try_into().ok()?;
    (header[0] >> 4 == 4).then(|| ip.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_read_and_other_messages_are_skipped() {
        let mut header = vec![0x45; 20];
        header[16..].copy_from_slice(&[10, 42, 9, 5]);
        let body = |payload: &[u8]| {
            let mut writer = Writer(vec![2, 0, 0x21, 0x19]);
            writer.number(2, 7).bytes(PAYLOAD, payload);
            writer.0
        };
        let cases = [
            (PACKET, body(&header), Some(Ipv4Addr::new(10, 42, 9, 5))),
            (PACKET, body(&header[..19]), None),
            (PACKET, body(&[0x65; 20]), None),
            (PACKET, vec![], None),
            (NLMSG_ERROR, body(&header), None),
        ];
        for (kind, body, expected) in cases {
            assert_eq!(destination(kind, &body), expected, "{kind} {body:?}");
        }
    }
}
