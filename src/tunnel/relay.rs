//! Packets of pods on a byte stream between a node and its server, for nodes that reach each other no other way.
//! A frame is a length (u16, big endian) and an IP packet. Nothing waits for room: what finds none is lost.

use crate::clock::monotonic;
use crate::sys::Stream;
use bytes::{Buf, BytesMut};
use futures_util::future::BoxFuture;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

/// `GET` here with `Upgrade: edgelet-relay` and a node's client certificate opens a relay stream.
pub const PATH: &str = "/edgelet/v1/relay";
/// The stream's name in `Upgrade`.
pub const PROTOCOL: &str = "edgelet-relay";
/// A longer packet is none of a pod's; its frame means that the other side is broken.
const PACKET_LIMIT_BYTES: usize = 2048;
/// What is collected for one write.
const BATCH_BYTES: usize = 32 << 10;
const HEAD_BYTES: usize = 2;
/// Lengths that no packet has: a question whether the other side is there, and the answer.
const ASK: u16 = 0;
const ANSWER: u16 = u16::MAX;
/// How long packets may go out with nothing coming back, and a question without its answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// Opens relay streams to the server.
pub trait Connect: Send + Sync {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;
}

/// A node's way to the relay.
#[derive(Clone)]
pub struct Link {
    pub connect: Arc<dyn Connect>,
    /// The server has packets for this node, which is to open a stream.
    pub knocks: Arc<Notify>,
}

/// Where one end's packets come from and go to.
pub trait Packets: Send {
    /// Waits for packets, then puts as many as there are into the batch. Cancel-safe.
    fn collect(&mut self, batch: &mut Batch) -> impl Future<Output = io::Result<()>> + Send;
    /// An error ends the stream.
    fn deliver(&mut self, packet: &[u8]) -> io::Result<()>;
}

/// Frames on their way out.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    written: usize,
}

impl Batch {
    /// Whether there is room for another.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        if let Ok(length @ 1..) = u16::try_from(packet.len())
            && packet.len() <= PACKET_LIMIT_BYTES
        {
            self.bytes.extend_from_slice(&length.to_be_bytes());
            self.bytes.extend_from_slice(packet);
        }
        self.has_room()
    }

    pub fn has_room(&self) -> bool {
        self.bytes.len() < BATCH_BYTES
    }

    /// Questions and answers; whoever floods them gets none.
    fn mark(&mut self, mark: u16) {
        if self.has_room() {
            self.bytes.extend_from_slice(&mark.to_be_bytes());
        }
    }

    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
        if self.is_empty() {
            self.written = 0;
            self.bytes.clear();
        }
    }
}

/// Carries packets both ways until the stream breaks (an error), its other side ends it, or none passed for `idle`.
pub async fn carry(stream: impl Stream, packets: &mut impl Packets, idle: Duration) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut filling, mut leaving) = (Batch::default(), Batch::default());
    let mut input = BytesMut::with_capacity(BATCH_BYTES);
    let mut unflushed = false;
    let mut life = Life::new(monotonic(), idle);
    loop {
        tokio::select! {
            collected = packets.collect(&mut filling), if leaving.is_empty() => {
                collected?;
                std::mem::swap(&mut filling, &mut leaving);
                if !leaving.is_empty() {
                    life.sent(monotonic());
                }
            }
            written = write(&mut writer, &leaving), if unflushed || !leaving.is_empty() => {
                let written = written?;
                unflushed = written > 0;
                leaving.advance(written);
            }
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return Ok(());
                }
                life.heard();
                take(&mut input, packets, &mut leaving, &mut life)?;
            }
            () = tokio::time::sleep_until(life.due()) => match life.turn(monotonic()) {
                Turn::Wait => {}
                Turn::Ask => leaving.mark(ASK),
                Turn::Rest => return Ok(()),
                Turn::Dead => return Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}

/// Bytes written; none when everything was handed on.
async fn write(writer: &mut (impl AsyncWriteExt + Unpin), leaving: &Batch) -> io::Result<usize> {
    if leaving.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write(&leaving.bytes[leaving.written..]).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

/// The frames that are complete.
fn take(input: &mut BytesMut, packets: &mut impl Packets, leaving: &mut Batch, life: &mut Life) -> io::Result<()> {
    while let Some(head) = input.first_chunk::<HEAD_BYTES>() {
        let mark = u16::from_be_bytes(*head);
        let length = match mark {
            ASK | ANSWER => 0,
            length => usize::from(length),
        };
        if length > PACKET_LIMIT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "packet is too long"));
        }
        if input.len() < HEAD_BYTES + length {
            break;
        }
        input.advance(HEAD_BYTES);
        match mark {
            ASK => leaving.mark(ANSWER),
            ANSWER => {}
            _ => {
                life.passed(monotonic());
                packets.deliver(&input.split_to(length))?;
            }
        }
    }
    input.reserve(BATCH_BYTES);
    Ok(())
}

/// When an end gives a stream up: nobody uses it, or nobody is there. Pure.
struct Life {
    idle: Duration,
    /// The last packet, either way.
    packet: Instant,
    /// The first that went out since the other side was heard.
    unanswered: Option<Instant>,
    asked: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Wait,
    Ask,
    Rest,
    Dead,
}

impl Life {
    fn new(now: Instant, idle: Duration) -> Self {
        Self { idle, packet: now, unanswered: None, asked: None }
    }

    fn sent(&mut self, now: Instant) {
        self.passed(now);
        self.unanswered.get_or_insert(now);
    }

    fn passed(&mut self, now: Instant) {
        self.packet = now;
    }

    fn heard(&mut self) {
        (self.unanswered, self.asked) = (None, None);
    }

    fn due(&self) -> Instant {
        let silent = self.asked.or(self.unanswered).map(|since| since + SILENCE_LIMIT);
        silent.map_or(self.packet + self.idle, |at| at.min(self.packet + self.idle))
    }

    fn turn(&mut self, now: Instant) -> Turn {
        let is_over = |since: Option<Instant>| since.is_some_and(|since| since + SILENCE_LIMIT <= now);
        if is_over(self.asked) {
            return Turn::Dead;
        }
        if self.packet + self.idle <= now {
            return Turn::Rest;
        }
        if self.asked.is_none() && is_over(self.unanswered) {
            self.asked = Some(now);
            return Turn::Ask;
        }
        Turn::Wait
    }
}

/// Source and destination of an IPv4 packet; `None` for anything else.
pub fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let head = packet.first_chunk::<20>()?;
    let ip = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    (head[0] >> 4 == 4).then(|| (ip(12), ip(16)))
}

#[cfg(test)]
mod tests;
