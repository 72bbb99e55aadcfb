//! Probes between nodes: a small UDP packet and its equal in size as the answer, so that nobody is amplified.
//! They carry no secret and decide nothing but the way; a stranger who cannot see them cannot answer them.

use super::trial::Nonce;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use tokio::net::UdpSocket;

const MAGIC: [u8; 8] = *b"edgepath";
const BYTES: usize = 32;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
/// Answers say what their node's kernel takes.
const TAKES_VXLAN: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Only the node whose pods have this network answers: two sites may both have a 192.168.1.9.
    Request {
        nonce: Nonce,
        pods: Ipv4Addr,
    },
    Answer {
        nonce: Nonce,
        takes_vxlan: bool,
    },
}

impl Packet {
    fn encode(self) -> [u8; BYTES] {
        let (kind, abilities, pods, nonce) = match self {
            Self::Request { nonce, pods } => (REQUEST, 0, pods, nonce),
            Self::Answer { nonce, takes_vxlan } => {
                (ANSWER, u8::from(takes_vxlan) * TAKES_VXLAN, Ipv4Addr::UNSPECIFIED, nonce)
            }
        };
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        (bytes[8], bytes[9]) = (kind, abilities);
        bytes[12..16].copy_from_slice(&pods.octets());
        bytes[16..].copy_from_slice(&nonce);
        bytes
    }

    /// `None` for anything else.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let nonce: Nonce = bytes[16..].try_into().ok()?;
        match (bytes[..8] == MAGIC, bytes[8]) {
            (true, REQUEST) => {
                Some(Self::Request { nonce, pods: Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]) })
            }
            (true, ANSWER) => Some(Self::Answer { nonce, takes_vxlan: bytes[9] & TAKES_VXLAN != 0 }),
            _ => None,
        }
    }
}

/// The node's socket for probes.
pub struct Prober {
    socket: UdpSocket,
    port: u16,
}

impl Prober {
    /// On every address: answers leave by the way the question came from.
    pub fn open(port: u16) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, port })
    }

    /// Best effort: a packet that cannot be sent is a packet that was lost.
    pub fn ask(&self, to: Ipv4Addr, pods: Ipv4Addr, nonce: Nonce) {
        self.send(SocketAddrV4::new(to, self.port), Packet::Request { nonce, pods });
    }

    pub fn answer(&self, to: SocketAddrV4, nonce: Nonce, takes_vxlan: bool) {
        self.send(to, Packet::Answer { nonce, takes_vxlan });
    }

    fn send(&self, to: SocketAddrV4, packet: Packet) {
        // Past tokio, which would hold the first packets back until it knows that the socket is ready.
        let flags = rustix::net::SendFlags::DONTWAIT;
        if let Err(error) = rustix::net::sendto(&self.socket, &packet.encode(), flags, &to) {
            tracing::debug!(%to, %error, "probe not sent");
        }
    }

    /// The next packet and its sender. Cancel-safe.
    pub async fn receive(&self) -> (SocketAddrV4, Packet) {
        let mut buffer = [0; BYTES + 1];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((length, SocketAddr::V4(from))) => {
                    if let Some(packet) = Packet::decode(&buffer[..length]) {
                        return (from, packet);
                    }
                }
                Ok(_) => {}
                // What earlier packets met on their way; they are tried again anyhow.
                Err(error) => tracing::trace!(%error, "probe refused"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_equally_long_and_read_back() {
        let nonce = [7; 16];
        for packet in [
            Packet::Request { nonce, pods: Ipv4Addr::new(10, 42, 3, 0) },
            Packet::Answer { nonce, takes_vxlan: true },
            Packet::Answer { nonce, takes_vxlan: false },
        ] {
            assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        }
        let mut wrong = Packet::Request { nonce, pods: Ipv4Addr::UNSPECIFIED }.encode();
        wrong[8] = 9;
        assert_eq!(Packet::decode(&wrong), None);
        for bytes in [&wrong[..31], &[], &[0; 33], &[0; 32]] {
            assert_eq!(Packet::decode(bytes), None);
        }
    }
}
