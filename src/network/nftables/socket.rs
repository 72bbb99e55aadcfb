//! The nfnetlink socket: commits batches, lists, and hears of changes that others make.
//! A socket stays in the namespace it was opened in. The kernel answers before `send` returns, so nothing waits.

use super::attribute::{self, Writer};
use super::{
    ACK, Batch, DUMP, Family, GET_CHAIN, GET_GENERATION, GET_RULE, GET_TABLE, REQUEST, SUBSYSTEM, write_message,
};
use netlink_sys::{AsyncSocket, Socket as Netlink, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use std::future::poll_fn;
use std::io;

/// A whole transaction is one message of the socket; memory is used only while one is sent.
const SEND_BUFFER_BYTES: usize = 64 << 20;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The sequence number of the message after a batch; batches count from 1.
const LAST_SEQUENCE: u32 = u32::MAX;
const GROUP_NFTABLES: u32 = 7;
const HOOK_FORWARD: u32 = 2;

/// The kernel refused a message, and so the whole batch.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct BatchError {
    pub doing: String,
    pub source: io::Error,
}

impl BatchError {
    /// The kernel's errno; 0 when the error is not the kernel's.
    pub fn code(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

impl From<io::Error> for BatchError {
    fn from(source: io::Error) -> Self {
        Self { doing: "talk to nf_tables".to_owned(), source }
    }
}

/// A base chain of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub family: u8,
    pub table: String,
    pub name: String,
    pub at_forward: bool,
    pub drops: bool,
}

/// A rule, as far as it tells whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub handle: u64,
    pub has_comment: bool,
}

pub struct Socket {
    netlink: Netlink,
    port: u32,
}

impl Socket {
    pub fn open() -> io::Result<Self> {
        let mut netlink = Netlink::new(NETLINK_NETFILTER)?;
        let port = netlink.bind_auto()?.port_number();
        setsockopt(&netlink, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
        setsockopt(&netlink, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
        // Errors without the message they are about, which may have 64 KiB.
        netlink.set_cap_ack(true)?;
        Ok(Self { netlink, port })
    }

    /// The socket's netlink address: changes made by it carry it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Applies a batch, whole or not at all.
    pub fn commit(&self, batch: Batch) -> Result<(), BatchError> {
        let (bytes, labels) = batch.finish();
        self.netlink.send(&bytes, 0)?;
        // A batch that succeeds is not acknowledged before Linux 6.10: this answer comes after all errors.
        self.send(GET_GENERATION, ACK, LAST_SEQUENCE, 0, |_| {})?;
        let mut first_error = None;
        self.receive(|kind, sequence, body| {
            if kind != NLMSG_ERROR {
                return false;
            }
            if sequence == LAST_SEQUENCE {
                return true;
            }
            let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
            if code != 0 && first_error.is_none() {
                let label = labels.get((sequence as usize).wrapping_sub(1));
                let doing = label.filter(|label| !label.is_empty()).cloned();
                let doing = doing.unwrap_or_else(|| "commit rules".to_owned());
                first_error = Some(BatchError { doing, source: io::Error::from_raw_os_error(-code) });
            }
            false
        })?;
        first_error.map_or(Ok(()), Err)
    }

    pub fn has_table(&self, table: &str) -> io::Result<bool> {
        self.has_table_of(Family::Ipv4, table)
    }

    pub fn has_table_of(&self, family: Family, table: &str) -> io::Result<bool> {
        self.send(GET_TABLE, ACK, LAST_SEQUENCE, family as u8, |message| {
            message.text(1, table);
        })?;
        let mut code = 0;
        self.receive(|kind, _, body| {
            let answer = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
            code = if kind == NLMSG_ERROR { answer } else { code };
            kind == NLMSG_ERROR
        })?;
        match -code {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Base chains of every family and table.
    pub fn base_chains(&self) -> io::Result<Vec<Chain>> {
        self.send(GET_CHAIN, DUMP, LAST_SEQUENCE, 0, |_| {})?;
        let mut chains = Vec::new();
        self.receive(|kind, _, body| {
            if kind == SUBSYSTEM << 8 | super::NEW_CHAIN {
                chains.extend(parse_chain(body));
            }
            kind == NLMSG_DONE || kind == NLMSG_ERROR
        })?;
        Ok(chains)
    }

    /// The rules of a chain, and whether each has exactly this comment.
    pub fn rules(&self, chain: &Chain, comment: &str) -> io::Result<Vec<Rule>> {
        self.send(GET_RULE, DUMP, LAST_SEQUENCE, chain.family, |message| {
            message.text(1, &chain.table).text(2, &chain.name);
        })?;
        let mut rules = Vec::new();
        self.receive(|kind, _, body| {
            if kind == SUBSYSTEM << 8 | super::NEW_RULE {
                rules.extend(parse_rule(body, comment));
            }
            kind == NLMSG_DONE || kind == NLMSG_ERROR
        })?;
        Ok(rules)
    }

    fn send(
        &self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        write: impl FnOnce(&mut Writer),
    ) -> io::Result<()> {
        let mut writer = Writer::default();
        write_message(&mut writer, SUBSYSTEM << 8 | kind, REQUEST | flags, sequence, family, 0, write);
        self.netlink.send(&writer.0, 0).map(|_| ())
    }

    /// Hands every message (type, sequence, body) to `take` until it says that it was the last.
    fn receive(&self, take: impl FnMut(u16, u32, &[u8]) -> bool) -> io::Result<()> {
        receive(&self.netlink, take)
    }
}

fn parse_chain(body: &[u8]) -> Option<Chain> {
    let family = *body.first()?;
    let attributes = body.get(4..)?;
    let hook = attribute::find(attributes, 4)?;
    Some(Chain {
        family,
        table: attribute::text(attributes, 1).to_owned(),
        name: attribute::text(attributes, 3).to_owned(),
        at_forward: attribute::number(hook, 1) == Some(HOOK_FORWARD),
        drops: attribute::number(attributes, 5) == Some(0),
    })
}

fn parse_rule(body: &[u8], comment: &str) -> Option<Rule> {
    let attributes = body.get(4..)?;
    let handle = u64::from_be_bytes(attribute::find(attributes, 3)?.try_into().ok()?);
    let data = attribute::find(attributes, 7).unwrap_or_default();
    Some(Rule { handle, has_comment: data == super::comment_data(comment) })
}

/// Reads until `last`; used for conntrack too, whose messages look the same.
pub(in crate::network) fn receive(netlink: &Netlink, mut last: impl FnMut(u16, u32, &[u8]) -> bool) -> io::Result<()> {
    loop {
        let (bytes, _) = netlink.recv_from_full()?;
        for (kind, sequence, _, body) in messages(&bytes) {
            if last(kind, sequence, body) {
                return Ok(());
            }
        }
    }
}

/// Type, sequence, sender's port and body of each message.
pub(in crate::network) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u32, u32, &[u8])> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let length = word(0)? as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let (sequence, port) = (word(8)?, word(12)?);
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, port, body))
    })
}

/// Changes of the rules by anybody.
pub struct Events(TokioSocket);

impl Events {
    /// In the calling thread's namespace. Needs a tokio runtime at hand.
    pub fn open() -> io::Result<Self> {
        let mut socket: TokioSocket = AsyncSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_ref().add_membership(GROUP_NFTABLES)?;
        Ok(Self(socket))
    }

    /// Waits until somebody other than the socket `own` changed rules, or until events were lost.
    pub async fn foreign(&mut self, own: u32) -> io::Result<()> {
        loop {
            match poll_fn(|context| self.0.poll_recv_from_full(context)).await {
                Ok((bytes, _)) if messages(&bytes).all(|(_, _, port, _)| port == own) => {}
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_and_malformed_ones_end_the_list() {
        let mut writer = Writer::default();
        write_message(&mut writer, 7, 0, 3, 2, 0, |message| {
            message.text(1, "abc");
        });
        write_message(&mut writer, 8, 0, 4, 2, 0, |_| {});
        let all: Vec<_> = messages(&writer.0).map(|(kind, sequence, _, body)| (kind, sequence, body.len())).collect();
        assert_eq!(all, [(7, 3, 12), (8, 4, 4)]);
        assert_eq!(writer.0.len() - 20, 28);
        writer.0.truncate(30);
        assert_eq!(messages(&writer.0).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
    }
}
