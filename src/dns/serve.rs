//! Datagrams and streams in, answers out. Names of the cluster are answered in place; what must be asked
//! further is a task of its own, so nobody waits for somebody else's upstream.

use super::answer::{Answer, Networks, Reply, TTL_S, answer, negative};
use super::forward::Forwarder;
use super::upstream::PAYLOAD_BYTES;
use super::zone::Zone;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{RData, Record};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Questions being asked further at a time; more are answered with SERVFAIL.
const WAITING_LIMIT: usize = 512;
const STREAMS_LIMIT: usize = 64;
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// Without EDNS a datagram has at most this.
const PLAIN_PAYLOAD_BYTES: u16 = 512;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Server {
    pub zone: Mutex<Zone>,
    pub networks: Networks,
    pub forwarder: Arc<Forwarder>,
    /// Whether the zone is complete: before, "no such name" would be a lie.
    pub complete: AtomicBool,
}

/// A question, decoded, and what the zone says to it.
struct Asked {
    request: Message,
    answer: Answer,
}

impl Server {
    pub async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let waiting = Arc::new(Semaphore::new(WAITING_LIMIT));
        let mut buffer = [0; 4096];
        loop {
            // An error here is about an earlier answer (ICMP), not about the socket.
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let Some(asked) = self.ask(&buffer[..length], from.ip()) else { continue };
            let limit = datagram_limit(&asked.request);
            match (&asked.answer, waiting.clone().try_acquire_owned()) {
                (Answer::Local(reply), _) => {
                    let bytes = encode(&asked.request, reply.clone(), limit);
                    let _ = socket.send_to(&bytes, from).await;
                }
                (_, Ok(permit)) => {
                    let (server, socket) = (self.clone(), socket.clone());
                    crate::supervise::spawn(async move {
                        let reply = server.settle(&asked).await;
                        let _ = socket.send_to(&encode(&asked.request, reply, limit), from).await;
                        drop(permit);
                    });
                }
                (_, Err(_)) => {
                    let bytes = encode(&asked.request, Reply::failure(ResponseCode::ServFail), limit);
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
        }
    }

    pub async fn streams(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(STREAMS_LIMIT));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let server = self.clone();
            crate::supervise::spawn(async move {
                // The peer's end, its silence or its nonsense: the stream is over.
                let _ = server.stream(stream, from.ip()).await;
                drop(place);
            });
        }
    }

    async fn stream(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        loop {
            let question = async {
                let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut bytes).await.map(|_| bytes)
            };
            let idle = |_| io::Error::from(io::ErrorKind::TimedOut);
            let bytes = tokio::time::timeout(STREAM_IDLE, question).await.map_err(idle)??;
            let Some(asked) = self.ask(&bytes, from) else { return Ok(()) };
            let bytes = encode(&asked.request, self.settle(&asked).await, u16::MAX);
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let answer = [&length.to_be_bytes()[..], &bytes].concat();
            tokio::time::timeout(STREAM_IDLE, stream.write_all(&answer)).await.map_err(idle)??;
        }
    }

    /// `None`: no question at all.
    fn ask(&self, bytes: &[u8], from: IpAddr) -> Option<Asked> {
        let request = Message::from_vec(bytes).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let local = |code| Answer::Local(Reply::failure(code));
        let answer = match (request.metadata.op_code, request.queries.as_slice()) {
            (OpCode::Query, [query]) => self.look_up(query, from, request.metadata.id),
            (OpCode::Query, _) => local(ResponseCode::FormErr),
            _ => local(ResponseCode::NotImp),
        };
        Some(Asked { request, answer })
    }

    fn look_up(&self, query: &Query, from: IpAddr, rotate: u16) -> Answer {
        let zone = self.zone.lock().expect("no panic while the zone is locked");
        let found = answer(&zone, &self.networks, query, from, rotate.into());
        let denies = match &found {
            Answer::Local(reply) => reply.answers.is_empty(),
            Answer::Shortcut { .. } => true,
            Answer::Forward | Answer::Follow { .. } => false,
        };
        if denies && !self.complete.load(Ordering::Relaxed) {
            return Answer::Local(Reply::failure(ResponseCode::ServFail));
        }
        found
    }

    async fn settle(&self, asked: &Asked) -> Reply {
        let failure = || Reply::failure(ResponseCode::ServFail);
        let Some(query) = asked.request.queries.first() else { return failure() };
        match &asked.answer {
            Answer::Local(reply) => reply.clone(),
            Answer::Forward => self.forwarder.resolve(query).await.unwrap_or_else(failure),
            Answer::Follow { alias, target } => {
                let further = Query::query(target.clone(), query.query_type());
                let mut reply = self.forwarder.resolve(&further).await.unwrap_or_else(failure);
                // The alias is true whatever upstream says of its target.
                reply.code = if reply.code == ResponseCode::ServFail { reply.code } else { ResponseCode::NoError };
                reply.answers.insert(0, alias.clone());
                reply
            }
            Answer::Shortcut { target } => {
                let further = Query::query(target.clone(), query.query_type());
                match self.forwarder.resolve(&further).await {
                    Some(mut reply) if reply.code == ResponseCode::NoError => {
                        let alias = RData::CNAME(CNAME(target.clone()));
                        reply.answers.insert(0, Record::from_rdata(query.name().clone(), TTL_S, alias));
                        reply
                    }
                    // Never SERVFAIL: musl would stop its search here.
                    _ => {
                        negative(&self.zone.lock().expect("no panic while the zone is locked"), ResponseCode::NXDomain)
                    }
                }
            }
        }
    }
}

fn datagram_limit(request: &Message) -> u16 {
    let offered = request.edns.as_ref().map_or(PLAIN_PAYLOAD_BYTES, Edns::max_payload);
    offered.clamp(PLAIN_PAYLOAD_BYTES, PAYLOAD_BYTES)
}

fn encode(request: &Message, reply: Reply, limit_bytes: u16) -> Vec<u8> {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.response_code = reply.code;
    message.metadata.authoritative = reply.authoritative;
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(request.queries.iter().cloned());
    message.add_answers(reply.answers).add_authorities(reply.authorities).add_additionals(reply.additionals);
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().unwrap_or_default();
    if !bytes.is_empty() && bytes.len() <= usize::from(limit_bytes) {
        return bytes;
    }
    // Too large: the client comes again by TCP.
    message.truncate().to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::upstream::Upstreams;
    use super::super::zone::tests::example;
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RecordType};
    use std::net::SocketAddr;
    use std::str::FromStr;
    use std::sync::atomic::AtomicUsize;

    fn server(upstreams: Vec<SocketAddr>) -> Server {
        let own = "10.43.0.10".parse().unwrap();
        Server {
            zone: Mutex::new(example()),
            networks: Networks(vec!["10.42.0.0/16".parse().unwrap()]),
            forwarder: Forwarder::new(Upstreams::Fixed(upstreams), own),
            complete: AtomicBool::new(true),
        }
    }

    /// Knows `www.example.com` and counts what it is asked; silent about `silent.example.com`.
    async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::Relaxed);
                let request = Message::from_vec(&buffer[..length]).unwrap();
                let name = request.queries[0].name().clone();
                let code = match name.to_ascii().as_str() {
                    "silent.example.com." => continue,
                    "www.example.com." => ResponseCode::NoError,
                    _ => ResponseCode::NXDomain,
                };
                let mut reply = Reply::failure(code);
                if code == ResponseCode::NoError {
                    reply.answers.push(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 80))));
                }
                socket.send_to(&encode(&request, reply, 512), from).await.unwrap();
            }
        });
        (address, asked)
    }

    fn question(name: &str) -> Vec<u8> {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
        request.to_vec().unwrap()
    }

    async fn ask(server: &Server, name: &str) -> Message {
        let asked = server.ask(&question(name), "10.42.0.50".parse().unwrap()).unwrap();
        let reply = server.settle(&asked).await;
        Message::from_vec(&encode(&asked.request, reply, 512)).unwrap()
    }

    #[tokio::test]
    async fn outside_names_are_forwarded_cached_followed_and_cut_short() {
        let (address, asked) = upstream().await;
        let server = server(vec![address]);
        let shown = |message: Message| {
            let answers: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
            format!("{:?} {}", message.metadata.response_code, answers.join(", "))
        };
        let cases = [
            ("www.example.com.", "NoError 192.0.2.80"),
            ("WWW.example.com.", "NoError 192.0.2.80"),
            ("ext.other.svc.cluster.local.", "NoError www.example.com., 192.0.2.80"),
            ("www.example.com.default.svc.cluster.local.", "NoError www.example.com., 192.0.2.80"),
        ];
        for (name, expected) in cases {
            assert_eq!(shown(ask(&server, name).await), expected, "{name}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1, "asked once");
        let missing = ask(&server, "no.example.com.default.svc.cluster.local.").await;
        assert_eq!(shown(missing), "NXDomain ");
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_upstream_only_outside_names_fail() {
        let server = server(Vec::new());
        let code = async |name| ask(&server, name).await.metadata.response_code;
        assert_eq!(code("www.example.com.").await, ResponseCode::ServFail);
        assert_eq!(code("www.example.com.default.svc.cluster.local.").await, ResponseCode::NXDomain, "never SERVFAIL");
        assert_eq!(code("web.default.svc.cluster.local.").await, ResponseCode::NoError);
    }

    #[tokio::test]
    async fn many_who_ask_the_same_are_one_question() {
        let (address, asked) = upstream().await;
        let server = server(vec![address]);
        let all = (0..20).map(|_| ask(&server, "www.example.com."));
        for message in futures_util::future::join_all(all).await {
            assert_eq!(message.answers.len(), 1);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn before_the_zone_is_complete_nothing_is_denied() {
        let server = server(Vec::new());
        server.complete.store(false, Ordering::Relaxed);
        let code = async |name| ask(&server, name).await.metadata.response_code;
        assert_eq!(code("no.default.svc.cluster.local.").await, ResponseCode::ServFail);
        assert_eq!(code("web.default.svc.cluster.local.").await, ResponseCode::NoError);
    }

    #[test]
    fn nonsense_is_ignored_and_large_answers_are_truncated() {
        let server = server(Vec::new());
        let from = "10.42.0.9".parse().unwrap();
        for bytes in [&[][..], &[0; 3], &[0xff; 40]] {
            assert!(server.ask(bytes, from).is_none());
        }
        let asked = server.ask(&question("web.default.svc.cluster.local."), from).unwrap();
        let record = |n: u8| Record::from_rdata(Name::root(), 5, RData::A(A::new(10, 0, 0, n)));
        let reply = Reply { answers: (0..100).map(record).collect(), ..Reply::failure(ResponseCode::NoError) };
        let message = Message::from_vec(&encode(&asked.request, reply.clone(), 512)).unwrap();
        assert!(message.metadata.truncation && message.answers.is_empty());
        let message = Message::from_vec(&encode(&asked.request, reply, u16::MAX)).unwrap();
        assert!(!message.metadata.truncation && message.answers.len() == 100);
    }
}
