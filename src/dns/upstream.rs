//! The resolvers of the host, and one exchange with them.

use hickory_proto::op::{Edns, Message, MessageType, Query};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// What fits any path without fragments.
pub const PAYLOAD_BYTES: u16 = 1232;
/// As glibc: more are not asked.
const SERVERS_LIMIT: usize = 3;
const DNS_PORT: u16 = 53;

/// Whom to ask about names outside the cluster.
#[derive(Clone, Debug)]
pub enum Upstreams {
    Fixed(Vec<SocketAddr>),
    /// The first of these files that names a server that is neither a stub on loopback nor this one.
    Files(Vec<PathBuf>),
}

impl Upstreams {
    /// The host's; behind systemd-resolved's stub, what it asks itself.
    pub fn host() -> Self {
        Self::Files(vec!["/etc/resolv.conf".into(), "/run/systemd/resolve/resolv.conf".into()])
    }

    /// Read each time: DHCP may have brought another network.
    pub fn servers(&self, own: IpAddr) -> Vec<SocketAddr> {
        match self {
            Self::Fixed(servers) => servers.clone(),
            Self::Files(files) => {
                let read = |file| std::fs::read_to_string(file).map(|text| servers(&text, own)).unwrap_or_default();
                files.iter().map(read).find(|servers| !servers.is_empty()).unwrap_or_default()
            }
        }
    }
}

fn servers(resolv_conf: &str, own: IpAddr) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let ip: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        (!ip.is_loopback() && !ip.is_unspecified() && ip != own).then(|| SocketAddr::new(ip, DNS_PORT))
    };
    resolv_conf.lines().filter_map(server).take(SERVERS_LIMIT).collect()
}

/// Asks one server; by TCP when the answer does not fit a datagram.
pub async fn exchange(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    request.set_edns(edns);
    let bytes = request.to_vec().map_err(io::Error::other)?;
    let answer = within(by_udp(server, &bytes, &request)).await?;
    if answer.metadata.truncation { within(by_tcp(server, &bytes, &request)).await } else { Ok(answer) }
}

async fn within<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A socket of its own each time: a fresh random port makes forged answers hard.
async fn by_udp(server: SocketAddr, bytes: &[u8], request: &Message) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not belong here is ignored: the right answer may still come.
        if let Some(answer) = belonging(&buffer[..length], request) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, bytes: &[u8], request: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    belonging(&buffer, request).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn belonging(bytes: &[u8], request: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == request.metadata.id
        && answer.queries == request.queries;
    same.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_and_this_server_are_no_upstreams() {
        let own: IpAddr = "10.43.0.10".parse().unwrap();
        let cases = [
            ("nameserver 127.0.0.53\noptions edns0", vec![]),
            (
                "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch x\n nameserver\t2001:db8::1 ",
                vec!["192.0.2.1:53", "[2001:db8::1]:53"],
            ),
            ("nameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver junk", vec!["192.0.2.1:53"]),
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4",
                vec!["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"],
            ),
            ("", vec![]),
        ];
        for (text, expected) in cases {
            let expected: Vec<SocketAddr> = expected.iter().map(|server| server.parse().unwrap()).collect();
            assert_eq!(servers(text, own), expected, "{text}");
        }
    }

    #[test]
    fn the_stub_of_systemd_is_looked_behind() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            directory.path().join(name)
        };
        let files = vec![file("stub", "nameserver 127.0.0.53"), file("real", "nameserver 192.0.2.1")];
        let own = "10.43.0.10".parse().unwrap();
        assert_eq!(Upstreams::Files(files).servers(own), ["192.0.2.1:53".parse().unwrap()]);
    }
}
