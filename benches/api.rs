//! Rates of the API over TLS with kept-alive connections: GET of one ConfigMap, and creation of small ones.
//! `cargo bench --bench api [-- SECONDS]`. Server, store (SQLite, durable) and clients share this machine.

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
    runtime().block_on(measure(address, tls, Duration::from_secs(seconds)));
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
    let facts = ServerFacts { address: Ipv4Addr::LOCALHOST, port: 6443, client_ca_pem: pki.ca_pem().to_owned() };
    registry.bootstrap(&facts).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ApiServerConfig { advertise: address.to_string(), names: ServerNames::default(), anonymous: false };
    let tls = client_tls(&pki);
    let server = ApiServer::new(config, registry, pki, Tunnels::default(), clock);
    let tree = Tree::default();
    ready.send((address, Arc::new(tls))).unwrap();
    server.serve(vec![listener], tree.shutdown()).await.unwrap();
}

fn client_tls(pki: &Pki) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca_der().clone()).unwrap();
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
