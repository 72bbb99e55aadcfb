//! Rates of the API over TLS with kept-alive connections: GET of one ConfigMap, and creation of small ones.
//! `cargo bench --bench api [-- SECONDS]`. Server, store (SQLite, durable) and clients share this machine.
//! Beside it, where Debian's `etcd-server` is installed: puts of values as large into a bare etcd, by gRPC.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "a measurement stops at the first surprise"
)]

use bytes::Bytes;
use edgelet::api::kinds::Kinds;
use edgelet::apiserver::{ApiServer, ApiServerConfig};
use edgelet::clock::{self, Clock};
use edgelet::pki::{Pki, ServerNames};
use edgelet::registry::{Registry, RegistryConfig, ServerFacts};
use edgelet::store::SqliteStore;
use edgelet::supervise::Tree;
use edgelet::tunnel::Tunnels;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CLIENTS: [usize; 3] = [1, 8, 32];

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return; // `cargo test --benches` asks; nothing is a test here.
    }
    let seconds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(3);
    let (sender, receiver) = std::sync::mpsc::channel();
    // As in the product: the server has one thread, and the store its own.
    std::thread::spawn(move || runtime().block_on(serve(&sender)));
    let (address, tls) = receiver.recv().unwrap();
    let duration = Duration::from_secs(seconds);
    runtime().block_on(async {
        measure(address, tls, duration).await;
        match etcd::start().await {
            Some(etcd) => etcd.measure(duration).await,
            None => println!("etcd     not installed: no row to compare with"),
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

type Ready = std::sync::mpsc::Sender<(SocketAddr, Arc<rustls::ClientConfig>)>;

async fn serve(ready: &Ready) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let clock = Clock::real();
    let store = Arc::new(SqliteStore::open(&dir.path().join("state.db")).unwrap());
    let kinds = Kinds::default();
    let registry = Arc::new(Registry::new(RegistryConfig::default(), store, kinds, clock.clone(), Arc::default()));
    let pki = Pki::open(dir.path(), "https://kubernetes.default.svc", clock.clone()).unwrap();
    let facts = ServerFacts { address: Ipv4Addr::new(192, 0, 2, 1), port: 6443, client_ca_pem: pki.ca_pem() };
    registry.bootstrap(&facts).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ApiServerConfig {
        advertise: address.to_string(),
        names: ServerNames::default(),
        anonymous: false,
        cluster: serde_json::Value::Null,
    };
    let tls = client_tls(&pki);
    let server = ApiServer::new(config, registry, pki, Tunnels::default(), clock);
    let tree = Tree::default();
    ready.send((address, Arc::new(tls))).unwrap();
    server.serve(vec![listener], tree.shutdown()).await.unwrap();
}

fn client_tls(pki: &Pki) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let (certificate, key) = pki.issue_client("bench", Some("system:masters")).unwrap().der().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap()
}

type Client = SendRequest<Full<Bytes>>;

async fn connect(address: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> Client {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = rustls_pki_types::ServerName::from(address.ip());
    let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, stream).await.unwrap();
    let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn send(client: &mut Client, method: &str, target: &str, body: String) -> u16 {
    let request = http::Request::builder().method(method).uri(target).header("host", "edgelet");
    let request = request.body(Full::from(body)).unwrap();
    let response = client.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    code
}

fn config_map(name: &str) -> String {
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}},\"data\":{{\"a\":\"1\"}}}}"
    )
}

async fn measure(address: SocketAddr, tls: Arc<rustls::ClientConfig>, duration: Duration) {
    let mut first = connect(address, &tls).await;
    assert_eq!(send(&mut first, "POST", MAPS, config_map("one")).await, 201);
    println!("{:<8} {:>8} {:>10} {:>9} {:>9}", "request", "clients", "per s", "p50 ms", "p99 ms");
    let names = Arc::new(AtomicU64::new(0));
    for clients in CLIENTS {
        let get = run(address, &tls, clients, duration, |_| ("GET", format!("{MAPS}/one"), String::new(), 200));
        report("get", clients, duration, get.await);
    }
    for clients in CLIENTS {
        let names = names.clone();
        let create = run(address, &tls, clients, duration, move |_| {
            let name = format!("m{}", names.fetch_add(1, Ordering::Relaxed));
            ("POST", MAPS.to_owned(), config_map(&name), 201)
        });
        report("create", clients, duration, create.await);
    }
}

type Work = (&'static str, String, String, u16);

/// Every client sends one request after the other until the time is over; the latencies of all.
async fn run(
    address: SocketAddr,
    tls: &Arc<rustls::ClientConfig>,
    clients: usize,
    duration: Duration,
    work: impl Fn(usize) -> Work + Clone + Send + 'static,
) -> Vec<Duration> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let mut client = connect(address, tls).await;
        let work = work.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let end = clock::monotonic() + duration;
            loop {
                let started = clock::monotonic();
                if started >= end {
                    return latencies;
                }
                let (method, target, body, code) = work(number);
                assert_eq!(send(&mut client, method, &target, body).await, code);
                latencies.push(started.elapsed());
            }
        });
    }
    tasks.join_all().await.concat()
}

fn report(what: &str, clients: usize, duration: Duration, mut latencies: Vec<Duration>) {
    latencies.sort();
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let rate = latencies.len() as f64 / duration.as_secs_f64();
    println!("{what:<8} {clients:>8} {rate:>10.0} {:>9.2} {:>9.2}", at(50), at(99));
}

/// The peer: one etcd member as a stock control plane runs it, without the API server in front of it.
mod etcd {
    use super::{CLIENTS, report};
    use bytes::{BufMut, Bytes, BytesMut};
    use edgelet::clock;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http2::SendRequest;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;
    use tokio::net::TcpStream;

    /// About what a small ConfigMap is as a stored object.
    const VALUE_BYTES: usize = 430;
    const START_LIMIT: Duration = Duration::from_secs(20);

    pub struct Etcd {
        process: Child,
        address: String,
        _folder: tempfile::TempDir,
    }

    impl Drop for Etcd {
        fn drop(&mut self) {
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }

    pub async fn start() -> Option<Etcd> {
        let folder = tempfile::tempdir_in(".").unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (client, peer) = (free(), free());
        let url = |address: std::net::SocketAddr| format!("http://{address}");
        let started = Command::new("etcd")
            .args(["--data-dir", folder.path().to_str().unwrap(), "--log-level", "error"])
            .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &format!("default={}", url(peer))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let etcd = Etcd { process: started.ok()?, address: client.to_string(), _folder: folder };
        let deadline = clock::monotonic() + START_LIMIT;
        while !etcd.answers().await {
            assert!(clock::monotonic() < deadline, "etcd did not answer in {START_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some(etcd)
    }

    impl Etcd {
        async fn answers(&self) -> bool {
            if TcpStream::connect(&self.address).await.is_err() {
                return false;
            }
            put(&mut self.connect().await, 0).await
        }

        async fn connect(&self) -> SendRequest<Full<Bytes>> {
            let stream = TcpStream::connect(&self.address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let io = TokioIo::new(stream);
            let (client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            client
        }

        pub async fn measure(&self, duration: Duration) {
            for clients in CLIENTS {
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..clients {
                    let mut client = self.connect().await;
                    tasks.spawn(async move {
                        let mut latencies = Vec::new();
                        let end = clock::monotonic() + duration;
                        loop {
                            let started = clock::monotonic();
                            if started >= end {
                                return latencies;
                            }
                            assert!(put(&mut client, number * 1_000_000 + latencies.len()).await);
                            latencies.push(started.elapsed());
                        }
                    });
                }
                report("etcd put", clients, duration, tasks.join_all().await.concat());
            }
        }
    }

    /// `etcdserverpb.PutRequest`: key = 1, value = 2, behind gRPC's five bytes.
    async fn put(client: &mut SendRequest<Full<Bytes>>, number: usize) -> bool {
        let key = format!("/registry/configmaps/default/m{number:09}");
        let mut message = BytesMut::new();
        for (tag, field) in [(0x0a, key.as_bytes()), (0x12, &[b'x'; VALUE_BYTES][..])] {
            message.put_u8(tag);
            let length = u16::try_from(field.len()).unwrap();
            if length > 0x7f {
                message.put_u8(u8::try_from(length & 0x7f).unwrap() | 0x80);
                message.put_u8(u8::try_from(length >> 7).unwrap());
            } else {
                message.put_u8(u8::try_from(length).unwrap());
            }
            message.extend_from_slice(field);
        }
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap());
        body.extend_from_slice(&message);
        let request = http::Request::post("http://etcd/etcdserverpb.KV/Put");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let Ok(response) = client.send_request(request.body(Full::from(body.freeze())).unwrap()).await else {
            return false;
        };
        let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
        trailers.and_then(|fields| fields.get("grpc-status").cloned()).is_some_and(|status| status == "0")
    }
}
