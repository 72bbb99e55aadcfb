//! Certificates over a real socket: of ours, of others, of yesterday; and the server's own, which follows its names.

use super::*;
use crate::client::kubeconfig::Access;
use crate::client::remote::Remote;
use crate::client::{CONFIGMAPS, NODES};
use crate::network::resolve::Resolver;
use crate::pki::authority::Authority;
use crate::pki::node_key::NodeKey;
use crate::pki::request::SigningRequest;
use crate::registry::ListOptions;
use crate::supervise::Tree;
use http::Method;
use jiff::SignedDuration;
use rcgen::{CertificateParams, DnType, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Served {
    cluster: Cluster,
    address: std::net::SocketAddr,
    _tree: Tree,
}

impl Served {
    async fn new() -> Self {
        let cluster = Cluster::with_clock(Clock::real()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tree = Tree::default();
        let (server, shutdown) = (cluster.server.clone(), tree.shutdown());
        tree.spawn("apiserver", async move { server.serve(vec![listener], shutdown).await.unwrap() });
        Self { cluster, address, _tree: tree }
    }

    fn remote(&self, certificate: &str, key: &str) -> Remote {
        let access = Access {
            server: format!("https://{}", self.address),
            ca_pem: self.cluster.server.pki().ca_pem().into_bytes(),
            client_certificate_pem: certificate.as_bytes().to_vec(),
            client_key_pem: key.as_bytes().to_vec(),
            ..Access::default()
        };
        Remote::new(access, Resolver::default()).unwrap()
    }

    /// The names in the certificate that a new connection is answered with, once they are as expected. Who trusts
    /// the current authority alone is answered by it, sooner or later.
    async fn names(&self, expected: impl Fn(&[String]) -> bool) -> Vec<String> {
        for _ in 0..1000 {
            match self.try_names().await {
                Ok(names) if expected(&names) => return names,
                // Keys are made on another thread, which real time alone lets run.
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("still the old certificate");
    }

    async fn try_names(&self) -> std::io::Result<Vec<String>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cluster.server.pki().trust().current.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        Ok(names.value.general_names.iter().map(ToString::to_string).collect())
    }
}

fn node_request(key: &KeyPair) -> SigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "system:node:one");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    SigningRequest::parse(params.serialize_request(key).unwrap().pem().unwrap().as_bytes()).unwrap()
}

const USAGES: [&str; 2] = ["client auth", "digital signature"];

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_get_through_the_handshake() {
    let served = Served::new().await;
    let now = served.cluster.server.clock().now();
    let foreign = Authority::generate(now).unwrap();
    let request = crate::pki::certificate::Request::client("edgelet-admin", Some("system:masters"));
    let forged = foreign.issue(&request, now).unwrap();
    let remote = served.remote(&forged.certificate_pem, &forged.key_pem);
    let refused = remote.list(CONFIGMAPS, "g1", &ListOptions::default()).await.err().unwrap();
    assert_eq!(refused.code, 503, "{refused}");
}

#[tokio::test]
async fn a_server_certificate_is_no_client_certificate() {
    let served = Served::new().await;
    let pki = served.cluster.server.pki();
    let own = pki.server_credentials(&served.cluster.server.names()).unwrap();
    let remote = served.remote(&own.certificate_pem, &own.key_pem);
    let refused = remote.list(CONFIGMAPS, "g1", &ListOptions::default()).await.err().unwrap();
    assert_eq!(refused.code, 503, "{refused}");
}

#[tokio::test]
async fn yesterdays_certificate_of_a_node_is_good_for_asking_for_another() {
    let served = Served::new().await;
    let pki = served.cluster.server.pki().clone();
    let (key, clock) = (KeyPair::generate().unwrap(), served.cluster.server.clock().clone());
    let request = node_request(&key);
    let authority = pki.trust().current.clone();
    let (hour, day) = (SignedDuration::from_hours(1), SignedDuration::from_hours(24));
    let today = authority.sign(&request, &USAGES, hour, clock.now()).unwrap();
    let yesterdays = authority.sign(&request, &USAGES, hour, clock.now() - day).unwrap();
    let unknown = served.remote(&today, &key.serialize_pem());
    assert_eq!(unknown.raw(Method::GET, "/version", None).await.err().unwrap().code, 401, "not on record");

    let record = NodeKey::new(&request.key_hash, Default::default()).object("one");
    served.cluster.create("/api/v1/namespaces/kube-system/secrets", record).await;
    let remote = served.remote(&today, &key.serialize_pem());
    assert!(remote.list(NODES, "", &ListOptions::default()).await.is_ok());
    let remote = served.remote(&yesterdays, &key.serialize_pem());
    let refused = remote.list(NODES, "", &ListOptions::default()).await.err().unwrap();
    assert_eq!(refused.code, 403);
    assert!(refused.message.contains("system:edgelet:expired-node:one"), "{refused}");
}

#[tokio::test]
async fn the_servers_certificate_follows_its_names_without_a_restart() {
    let served = Served::new().await;
    let has = |names: &[String]| names.iter().any(|name| name.contains("board.example"));
    served.names(|names| !has(names)).await;
    let mut issued = served.cluster.server.names();
    issued.extra.push("board.example".into());
    served.cluster.server.set_names(issued.extra);
    served.names(has).await;
}

#[tokio::test]
async fn a_rotated_authority_signs_the_server_and_old_clients_follow_by_the_cross_signature() {
    let served = Served::new().await;
    let pki = served.cluster.server.pki().clone();
    let admin = pki.issue_client("alice", Some("system:masters")).unwrap();
    let old = served.remote(&admin.certificate_pem, &admin.key_pem);
    assert!(old.list(CONFIGMAPS, "g1", &ListOptions::default()).await.is_ok());
    pki.rotate(&crate::pki::hex(pki.trust().current.key_hash())).unwrap();
    served.names(|_| true).await;
    let former = pki.trust().former[0].authority.clone();
    let access = Access {
        server: format!("https://{}", served.address),
        ca_pem: former.pem().as_bytes().to_vec(),
        client_certificate_pem: admin.certificate_pem.into_bytes(),
        client_key_pem: admin.key_pem.into_bytes(),
        ..Access::default()
    };
    let away = Remote::new(access, Resolver::default()).unwrap();
    assert!(away.list(CONFIGMAPS, "g1", &ListOptions::default()).await.is_ok(), "who knows the old authority only");
}

#[tokio::test(start_paused = true)]
async fn oversized_requests_are_refused() {
    let cluster = Cluster::new().await;
    let body = format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(4 << 20));
    let answer = cluster.ask(user("admin"), "POST", "/api/v1/namespaces/g1/configmaps", &[], &body).await;
    assert_eq!((answer.code, &answer.json()["reason"]), (413, &json!("RequestEntityTooLarge")));
    let long = format!("Bearer {}", "x".repeat(20_000));
    let answer = cluster.ask(user("none"), "GET", "/version", &[("authorization", &long)], "").await;
    assert_eq!(answer.code, 401);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let cluster = Cluster::new().await;
    let endless = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
    });
    let request = http::Request::builder().method("POST").uri("/api/v1/namespaces/g1/configmaps");
    let answer = cluster.send(user("admin"), request.body(Body::from_stream(endless)).unwrap()).await;
    assert_eq!(answer.code, 504);
}

#[tokio::test]
async fn what_is_no_tls_is_closed() {
    let served = Served::new().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or nothing, and then the end.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"));
}
