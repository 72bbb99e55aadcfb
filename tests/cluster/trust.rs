//! How boards come in, stay in, come back and are kept out: tokens, certificates, expiry, rotation.

use axum::body::Body;
use edgelet::api::kinds::Kinds;
use edgelet::api::object::ObjectExt;
use edgelet::apiserver::{ApiServer, ApiServerConfig, Peer};
use edgelet::client::{Client, Informers, Local};
use edgelet::clock::Clock;
use edgelet::controllers::{self, ControllerConfig};
use edgelet::pki::bootstrap::BootstrapToken;
use edgelet::pki::join_token::JoinToken;
use edgelet::pki::{Pki, ServerNames, certificate, time};
use edgelet::registry::{Registry, RegistryConfig, ServerFacts, User};
use edgelet::store::MemoryStore;
use edgelet::supervise::Tree;
use edgelet::tunnel::Tunnels;
use http_body_util::BodyExt;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tower_service::Service;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A control plane with its controllers, asked in process.
pub struct Server {
    pub api: ApiServer,
    pub pki: Pki,
    pub clock: Clock,
    _tree: Tree,
    dir: tempfile::TempDir,
}

/// Who asks.
#[derive(Clone)]
pub enum As<'a> {
    Admin,
    Token(&'a JoinToken),
    Bearer(String),
    Certificate(&'a CertificateDer<'static>),
}

impl Server {
    pub async fn new() -> Self {
        let clock = Clock::simulated("2026-11-23T00:00:00Z".parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let pki = Pki::open(dir.path(), issuer, clock.clone()).unwrap();
        let (store, kinds) = (Arc::new(MemoryStore::default()), Kinds::default());
        let registry = Registry::new(RegistryConfig::default(), store, kinds.clone(), clock.clone(), Arc::default());
        let registry = Arc::new(registry);
        let address = std::net::Ipv4Addr::new(10, 99, 0, 1);
        let facts = ServerFacts { address, port: 6443, client_ca_pem: pki.ca_pem() };
        registry.bootstrap(&facts).await.unwrap();
        let config = ApiServerConfig {
            advertise: "10.99.0.1:6443".into(),
            names: ServerNames::default(),
            anonymous: true,
            cluster: Value::Null,
        };
        let api = ApiServer::new(config, registry.clone(), pki.clone(), Tunnels::default(), clock.clone());
        let client = |component| Client::Local(Local::new(registry.clone(), component));
        let config = ControllerConfig { pki: Some(pki.clone()), ..ControllerConfig::new(kinds, pki.ca_pem()) };
        let mut tree = Tree::default();
        let informers = Informers::new(client("informers"));
        controllers::run_all(&config, client("controllers"), informers, clock.clone(), &mut tree);
        Self { api, pki, clock, _tree: tree, dir }
    }

    pub async fn ask(&self, who: As<'_>, method: &str, target: &str, body: Value) -> (u16, Value) {
        let mut request = http::Request::builder().method(method).uri(target);
        let mut peer = Peer::default();
        match who {
            As::Admin => {
                peer = Peer::of(User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() })
            }
            As::Token(token) => request = request.header("authorization", format!("Bearer {}", token.bearer())),
            As::Bearer(text) => request = request.header("authorization", format!("Bearer {text}")),
            As::Certificate(certificate) => {
                peer = Peer::from_certificates(Some(std::slice::from_ref(certificate)), &self.pki.trust());
            }
        }
        if method == "PATCH" {
            request = request.header("content-type", "application/merge-patch+json");
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(peer);
        let response = self.api.router().call(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    pub async fn token(&self, change: impl FnOnce(&mut BootstrapToken)) -> JoinToken {
        let token = JoinToken::generate(*self.pki.trust().current.key_hash()).unwrap();
        let mut record = BootstrapToken::for_nodes(&token.id, token.secret());
        record.expires = Some(self.clock.now() + jiff::SignedDuration::from_hours(24));
        change(&mut record);
        let (code, answer) = self.ask(As::Admin, "POST", SECRETS, record.object()).await;
        assert_eq!(code, 201, "{answer}");
        token
    }

    /// Asks for a certificate for `node` and waits for the answer: the certificate, or why not.
    pub async fn certificate(&self, who: As<'_>, node: &str, key: &KeyPair) -> Result<CertificateDer<'static>, String> {
        let object = csr(node, key);
        let (code, answer) = self.ask(who.clone(), "POST", CSRS, object).await;
        if code != 201 {
            return Err(format!("{code}: {}", answer.str_at(&["message"])));
        }
        let target = format!("{CSRS}/{}", answer.name());
        for _ in 0..100 {
            let (code, answer) = self.ask(who.clone(), "GET", &target, Value::Null).await;
            assert_eq!(code, 200, "who has asked may look: {answer}");
            let conditions =
                answer.at(&["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(refusal) = conditions.iter().find(|one| ["Denied", "Failed"].contains(&one.str_at(&["type"]))) {
                return Err(refusal.str_at(&["message"]).to_owned());
            }
            let pem = base64_decode(answer.str_at(&["status", "certificate"]));
            if !pem.is_empty() {
                return Ok(certificate::bundle(&pem).unwrap().remove(0));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no answer to {target}");
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap()
}

/// The request of a node that has this key.
fn csr(node: &str, key: &KeyPair) -> Value {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let pem = params.serialize_request(key).unwrap().pem().unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-"}, "spec": {"request": encoded,
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth", "digital signature"]}})
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn whoami(server: &Server, who: As<'_>) -> String {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (code, answer) = server.ask(who, "POST", WHOAMI, body).await;
    if code == 201 { answer.str_at(&["status", "userInfo", "username"]).to_owned() } else { code.to_string() }
}

#[tokio::test(start_paused = true)]
async fn a_board_gets_its_certificate_with_a_token_and_renews_it_with_its_key() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let key = key();
    let first = server.certificate(As::Token(&token), "one", &key).await.unwrap();
    assert_eq!(whoami(&server, As::Certificate(&first)).await, "system:node:one");
    let second = server.certificate(As::Certificate(&first), "one", &key).await.unwrap();
    assert_ne!(first, second);
    let refused = server.certificate(As::Certificate(&first), "two", &key).await.unwrap_err();
    assert!(refused.contains("can only create a node CSR with CN=system:node:one"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_token_opens_nothing_else() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let other = server.token(|_| {}).await;
    let (_, foreign) = server.ask(As::Token(&other), "POST", CSRS, csr("other", &key())).await;
    let foreign = format!("{CSRS}/{}", foreign.name());
    let targets = [
        ("GET", "/api/v1/nodes"),
        ("GET", SECRETS),
        ("GET", CSRS),
        ("GET", foreign.as_str()),
        ("DELETE", foreign.as_str()),
        ("PUT", &format!("{foreign}/approval")),
        ("GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"),
        ("GET", "/edgelet/v1/authorities"),
        ("POST", "/edgelet/v1/authorities/rotate"),
    ];
    for (method, target) in targets {
        let (code, answer) = server.ask(As::Token(&token), method, target, Value::Null).await;
        assert_eq!(code, 403, "{method} {target}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_board_with_a_token_asks_for_a_nodes_certificate_alone() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let mut request = csr("one", &key());
    request["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client".into();
    let (code, answer) = server.ask(As::Token(&token), "POST", CSRS, request).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer.str_at(&["message"]).contains("may only use signer"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn expired_used_revoked_truncated_and_foreign_tokens_are_refused() {
    let server = Server::new().await;
    let single = server.token(|token| token.uses = Some(1)).await;
    let first = server.certificate(As::Token(&single), "one", &key()).await;
    assert!(first.is_ok(), "{first:?}");
    let refused = server.certificate(As::Token(&single), "two", &key()).await.unwrap_err();
    assert!(refused.contains("the join token has no uses left"), "{refused}");

    let named = server.token(|token| token.node_name = "three".into()).await;
    let refused = server.certificate(As::Token(&named), "four", &key()).await.unwrap_err();
    assert_eq!(refused, "the token is for node \"three\" alone");

    let revoked = server.token(|_| {}).await;
    let secret = format!("{SECRETS}/bootstrap-token-{}", revoked.id);
    assert_eq!(server.ask(As::Admin, "DELETE", &secret, Value::Null).await.0, 200);
    let foreign = JoinToken::generate([0; 32]).unwrap();
    let good = server.token(|_| {}).await;
    let forged = format!("{}.{}", good.id, foreign.secret());
    let truncated = good.bearer()[..good.bearer().len() - 1].to_owned();
    for bearer in [revoked.bearer(), foreign.bearer(), forged, truncated] {
        let (code, _) = server.ask(As::Bearer(bearer), "POST", CSRS, csr("five", &key())).await;
        assert_eq!(code, 401);
    }
    tokio::time::sleep(DAY + Duration::from_secs(1)).await;
    let (code, _) = server.ask(As::Token(&good), "POST", CSRS, csr("five", &key())).await;
    assert_eq!(code, 401, "expired");
    let (code, _) = server.ask(As::Admin, "GET", &format!("{SECRETS}/bootstrap-token-{}", good.id), Value::Null).await;
    assert_eq!(code, 404, "expired tokens are deleted");
}

#[tokio::test(start_paused = true)]
async fn two_boards_race_for_the_last_use() {
    let server = Server::new().await;
    let token = server.token(|token| token.uses = Some(1)).await;
    let (one, two) = (key(), key());
    let (first, second) = tokio::join!(
        server.certificate(As::Token(&token), "one", &one),
        server.certificate(As::Token(&token), "two", &two),
    );
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{first:?} {second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_is_its_keys_until_it_is_forgotten() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let own = key();
    let certificate = server.certificate(As::Token(&token), "one", &own).await.unwrap();
    let refused = server.certificate(As::Token(&token), "one", &key()).await.unwrap_err();
    assert!(refused.contains("edgelet node forget one"), "{refused}");
    let (code, _) = server.ask(As::Admin, "POST", "/api/v1/nodes", json!({"metadata": {"name": "server"}})).await;
    assert_eq!(code, 201);
    let refused = server.certificate(As::Token(&token), "server", &key()).await.unwrap_err();
    assert!(refused.contains("is taken by a node without a key on record"), "{refused}");

    let record = format!("{SECRETS}/one.node-key");
    assert_eq!(server.ask(As::Admin, "DELETE", &record, Value::Null).await.0, 200);
    assert_eq!(whoami(&server, As::Certificate(&certificate)).await, "401", "the old certificate is useless");
    let fresh = key();
    let again = server.certificate(As::Token(&token), "one", &fresh).await.unwrap();
    assert_eq!(whoami(&server, As::Certificate(&again)).await, "system:node:one");
    assert_eq!(whoami(&server, As::Certificate(&certificate)).await, "401");
}

#[tokio::test(start_paused = true)]
async fn anothers_request_bytes_are_no_use() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let own = key();
    server.certificate(As::Token(&token), "one", &own).await.unwrap();
    // The same bytes again give a certificate for the same key: the thief has not got it.
    let replayed = server.certificate(As::Token(&token), "one", &own).await.unwrap();
    let expected: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        rcgen::PublicKeyData::subject_public_key_info(&own),
    ))
    .into();
    assert_eq!(certificate::key_hash(&replayed), Some(expected));
    let mut changed = csr("one", &own);
    let mut pem = base64_decode(changed["spec"]["request"].as_str().unwrap());
    let at = pem.len() / 2;
    pem[at] = if pem[at] == b'A' { b'B' } else { b'A' };
    changed["spec"]["request"] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem).into();
    let (code, answer) = server.ask(As::Token(&token), "POST", CSRS, changed).await;
    assert_eq!(code, 422, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn after_five_years_away_a_board_comes_back_with_its_key() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let own = key();
    let old = server.certificate(As::Token(&token), "one", &own).await.unwrap();
    tokio::time::advance(DAY * 365 * 5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(whoami(&server, As::Certificate(&old)).await, "403", "no more than asking for a certificate");
    let (code, _) = server.ask(As::Certificate(&old), "GET", "/api/v1/nodes/one", Value::Null).await;
    assert_eq!(code, 403);
    let refused = server.certificate(As::Certificate(&old), "one", &key()).await.unwrap_err();
    assert!(refused.contains("another key"), "{refused}");
    let new = server.certificate(As::Certificate(&old), "one", &own).await.unwrap();
    assert_eq!(whoami(&server, As::Certificate(&new)).await, "system:node:one");
}

#[tokio::test(start_paused = true)]
async fn an_expired_administrator_is_nobody() {
    let server = Server::new().await;
    let admin = server.pki.issue_client("alice", Some("dev")).unwrap().der().unwrap().0;
    assert_eq!(whoami(&server, As::Certificate(&admin)).await, "alice");
    tokio::time::advance(DAY * 366).await;
    assert_eq!(whoami(&server, As::Certificate(&admin)).await, "401");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_followed_and_its_end_leaves_nodes_a_way_back() {
    let server = Server::new().await;
    let token = server.token(|_| {}).await;
    let own = key();
    let before = server.certificate(As::Token(&token), "one", &own).await.unwrap();
    let known = vec![server.pki.trust().current.der().clone()];
    let from = edgelet::pki::hex(server.pki.trust().current.key_hash());
    let rotate = format!("/edgelet/v1/authorities/rotate?from={from}");
    let (code, answer) = server.ask(As::Admin, "POST", &rotate, Value::Null).await;
    assert_eq!((code, answer["former"][0]["trusted"].as_bool()), (200, Some(true)), "{answer}");
    assert_eq!(server.ask(As::Admin, "POST", &rotate, Value::Null).await.0, 409, "once");
    assert_eq!(whoami(&server, As::Certificate(&before)).await, "system:node:one");
    let target = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (_, map) = server.ask(As::Admin, "GET", target, Value::Null).await;
    assert_eq!(map["data"]["ca.crt"], server.pki.ca_pem(), "pods trust both");

    let during = server.certificate(As::Certificate(&before), "one", &own).await.unwrap();
    assert_eq!(server.ask(As::Admin, "POST", "/edgelet/v1/authorities/finish", Value::Null).await.0, 200);
    assert_eq!(whoami(&server, As::Certificate(&during)).await, "system:node:one");
    assert_eq!(whoami(&server, As::Certificate(&before)).await, "403", "the old authority counts no longer");
    let back = server.certificate(As::Certificate(&before), "one", &own).await.unwrap();
    assert_eq!(whoami(&server, As::Certificate(&back)).await, "system:node:one");

    // Who only knows the old authority: its token, and its question for the time.
    let (_, offered) = server.ask(As::Bearer(String::new()), "GET", "/cacerts", Value::Null).await;
    let trusted = token.trusted(offered.as_str().unwrap().as_bytes()).unwrap();
    assert!(trusted.contains(server.pki.trust().current.der()));
    let nonce = "00112233445566778899aabbccddeeff";
    let (_, statement) = server.ask(As::Admin, "GET", &format!("/edgelet/v1/time?nonce={nonce}"), Value::Null).await;
    assert_eq!(time::verify(statement.to_string().as_bytes(), nonce, &known), Ok(server.clock.now()));
    assert!(server.dir.path().join("authorities.json").exists());
}

#[tokio::test(start_paused = true)]
async fn requests_are_deleted_in_time() {
    let server = Server::new().await;
    let token = server.token(|token| token.expires = None).await;
    server.certificate(As::Token(&token), "one", &key()).await.unwrap();
    let foreign = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "pending"}, "spec": {"request": csr("x", &key())["spec"]["request"],
        "signerName": "example.com/own", "usages": ["client auth"]}});
    assert_eq!(server.ask(As::Admin, "POST", CSRS, foreign).await.0, 201);
    let count = async || server.ask(As::Admin, "GET", CSRS, Value::Null).await.1["items"].as_array().unwrap().len();
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert_eq!(count().await, 2);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(count().await, 1, "an hour after the answer");
    tokio::time::sleep(DAY).await;
    assert_eq!(count().await, 0, "a day without one");
}

#[tokio::test(start_paused = true)]
async fn users_get_certificates_when_somebody_approves() {
    let server = Server::new().await;
    let key = key();
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "bob");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let encode = |params: &CertificateParams| {
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem)
    };
    let object = |request: String| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "bob"}, "spec": {"request": request, "username": "mallory",
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}})
    };
    let (code, answer) = server.ask(As::Admin, "POST", CSRS, object(encode(&params))).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer.str_at(&["message"]).contains("signer with system:masters group is not allowed"), "{answer}");
    params.distinguished_name.push(DnType::OrganizationName, "dev");
    let (code, mut answer) = server.ask(As::Admin, "POST", CSRS, object(encode(&params))).await;
    assert_eq!((code, answer.str_at(&["spec", "username"])), (201, "admin"));
    answer.set(&["status", "conditions"], json!([{"type": "Approved", "status": "True", "reason": "KubectlApprove"}]));
    let (code, answer) = server.ask(As::Admin, "PUT", &format!("{CSRS}/bob/approval"), answer).await;
    assert_eq!(code, 200, "{answer}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, answer) = server.ask(As::Admin, "GET", &format!("{CSRS}/bob"), Value::Null).await;
    let pem = base64_decode(answer.str_at(&["status", "certificate"]));
    let certificate = certificate::bundle(&pem).unwrap().remove(0);
    assert_eq!(whoami(&server, As::Certificate(&certificate)).await, "bob");
}

const TEN_YEARS: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 3652);

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_ten_years_locks_no_board_out() {
    let server = Server::new().await;
    let token = server.token(|token| token.expires = None).await;
    let own = key();
    let mut held = server.certificate(As::Token(&token), "one", &own).await.unwrap();
    for by in [TEN_YEARS, -TEN_YEARS, -TEN_YEARS, TEN_YEARS] {
        server.clock.jump(by);
        let standing = whoami(&server, As::Certificate(&held)).await;
        assert!(["403", "system:node:one"].contains(&standing.as_str()), "{standing} at {}", server.clock.now());
        held = server.certificate(As::Certificate(&held), "one", &own).await.unwrap();
        assert_eq!(whoami(&server, As::Certificate(&held)).await, "system:node:one", "{}", server.clock.now());
    }
}

/// Two nodes that have joined, and their certificates.
async fn fleet(server: &Server) -> [CertificateDer<'static>; 2] {
    let token = server
        .token(|token| token.node_labels = [("node-role.kubernetes.io/edge".to_owned(), String::new())].into())
        .await;
    for (kind, object) in [("namespaces", json!({"metadata": {"name": "g1"}}))] {
        assert_eq!(server.ask(As::Admin, "POST", &format!("/api/v1/{kind}"), object).await.0, 201);
    }
    let mut certificates = Vec::new();
    for node in ["one", "two"] {
        let certificate = server.certificate(As::Token(&token), node, &key()).await.unwrap();
        let object = json!({"metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}}});
        let (code, answer) = server.ask(As::Certificate(&certificate), "POST", "/api/v1/nodes", object).await;
        assert_eq!(code, 201, "{answer}");
        assert_eq!(answer.label("node-role.kubernetes.io/edge"), Some(""), "the token's labels: {answer}");
        let volumes = json!([{"name": "s", "secret": {"secretName": format!("of-{node}")}}]);
        let spec = json!({"nodeName": node, "volumes": volumes, "containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": format!("on-{node}")}, "spec": spec});
        let (code, answer) = server.ask(As::Admin, "POST", "/api/v1/namespaces/g1/pods", pod).await;
        assert_eq!(code, 201, "{answer}");
        for secret in [format!("of-{node}"), format!("other-{node}")] {
            let object = json!({"metadata": {"name": secret}});
            assert_eq!(server.ask(As::Admin, "POST", "/api/v1/namespaces/g1/secrets", object).await.0, 201);
        }
        certificates.push(certificate);
    }
    certificates.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_nodes_certificate_opens_what_its_pods_need_and_no_more() {
    let server = Server::new().await;
    let [one, _] = fleet(&server).await;
    let g1 = "/api/v1/namespaces/g1";
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let mirror = |node: &str, volumes: Value| {
        json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": node, "volumes": volumes, "containers": [{"name": "c", "image": "i"}]}})
    };
    let secret = json!([{"name": "s", "secret": {"secretName": "of-two"}}]);
    let cases = [
        ("GET", format!("{g1}/secrets/of-one"), Value::Null, 200, ""),
        ("GET", format!("{g1}/secrets?fieldSelector=metadata.name%3Dof-one"), Value::Null, 200, ""),
        (
            "GET",
            format!("{g1}/secrets/of-two"),
            Value::Null,
            403,
            "no relationship found between node 'one' and this object",
        ),
        ("GET", format!("{g1}/secrets/other-one"), Value::Null, 403, "no relationship found"),
        ("GET", format!("{g1}/secrets"), Value::Null, 403, "No Object name found"),
        ("GET", SECRETS.to_owned(), Value::Null, 403, "No Object name found"),
        ("GET", format!("{SECRETS}/one.node-key"), Value::Null, 403, "no relationship found"),
        ("DELETE", format!("{g1}/secrets/of-one"), Value::Null, 403, "can only read resources of this type"),
        ("GET", format!("{g1}/pods/on-one"), Value::Null, 200, ""),
        ("GET", format!("{g1}/pods/on-two"), Value::Null, 403, "no relationship found"),
        ("GET", "/api/v1/pods".into(), Value::Null, 403, "can only list/watch pods with spec.nodeName field selector"),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Done".into(), Value::Null, 200, ""),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dtwo".into(), Value::Null, 403, "can only list/watch pods"),
        ("PATCH", format!("{g1}/pods/on-one/status"), json!({"status": {"phase": "Running"}}), 200, ""),
        (
            "PATCH",
            format!("{g1}/pods/on-two/status"),
            json!({"status": {"phase": "Running"}}),
            403,
            "can only update pod status for pods with spec.nodeName set to itself",
        ),
        (
            "PATCH",
            format!("{g1}/pods/on-one/status"),
            json!({"metadata": {"labels": {"a": "b"}}}),
            403,
            "cannot update labels through pod status",
        ),
        (
            "DELETE",
            format!("{g1}/pods/on-two"),
            Value::Null,
            403,
            "can only delete pods with spec.nodeName set to itself",
        ),
        (
            "POST",
            format!("{g1}/pods/on-two/eviction"),
            json!({"metadata": {"name": "on-two"}}),
            403,
            "can only create evictions for pods",
        ),
        (
            "POST",
            format!("{g1}/pods"),
            json!({"metadata": {"name": "x"}, "spec": {"nodeName": "one", "containers": [{"name": "c", "image": "i"}]}}),
            403,
            "can only create mirror pods",
        ),
        (
            "POST",
            format!("{g1}/pods"),
            mirror("two", Value::Null),
            403,
            "can only create pods with spec.nodeName set to itself",
        ),
        ("POST", format!("{g1}/pods"), mirror("one", secret), 403, "can not create pods that reference secrets"),
        ("PATCH", "/api/v1/nodes/one/status".into(), json!({"status": {"capacity": {"cpu": "4"}}}), 200, ""),
        (
            "PATCH",
            "/api/v1/nodes/two/status".into(),
            json!({"status": {"capacity": {"cpu": "4"}}}),
            403,
            "can only access the node of the requesting node",
        ),
        (
            "PATCH",
            "/api/v1/nodes/one".into(),
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/edgelet-ingress": "true"}}}),
            403,
            "is not allowed to modify labels",
        ),
        (
            "PATCH",
            "/api/v1/nodes/one".into(),
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            403,
            "is not allowed to modify taints",
        ),
        (
            "POST",
            "/api/v1/nodes".into(),
            json!({"metadata": {"name": "three"}}),
            403,
            "node \"one\" is not allowed to modify node \"three\"",
        ),
        ("DELETE", "/api/v1/nodes/one".into(), Value::Null, 403, "nodes cannot access this resource"),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".into(), lease("one"), 201, ""),
        (
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".into(),
            lease("two"),
            403,
            "can only access node lease with the same name",
        ),
        ("GET", "/apis/networking.k8s.io/v1/ingresses".into(), Value::Null, 403, "cannot list resource"),
        ("GET", "/api/v1/services".into(), Value::Null, 200, ""),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices".into(), Value::Null, 200, ""),
        ("GET", "/apis/apps/v1/deployments".into(), Value::Null, 403, "cannot list resource"),
        ("POST", "/edgelet/v1/authorities/rotate".into(), Value::Null, 403, "cannot post path"),
    ];
    for (method, target, body, code, message) in cases {
        let (got, answer) = server.ask(As::Certificate(&one), method, &target, body).await;
        assert_eq!(got, code, "{method} {target}: {answer}");
        assert!(code < 300 || answer.str_at(&["message"]).contains(message), "{method} {target}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_tokens_for_its_own_pods_and_they_end_with_them() {
    let server = Server::new().await;
    let [one, two] = fleet(&server).await;
    let (_, pod) = server.ask(As::Admin, "GET", "/api/v1/namespaces/g1/pods/on-one", Value::Null).await;
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "on-one", "uid": pod.uid()});
    let target = "/api/v1/namespaces/g1/serviceaccounts/default/token";
    let request = |bound: &Value, audience: Option<&str>| json!({"spec": {"boundObjectRef": bound, "audiences": audience.into_iter().collect::<Vec<_>>()}});
    let cases = [
        (&two, request(&bound, None), 403, "node requested token bound to a pod scheduled on a different node"),
        (&one, request(&Value::Null, None), 403, "node requested token not bound to a pod"),
        (&one, request(&json!({"apiVersion": "v1", "kind": "Pod", "name": "on-one"}), None), 403, "without a uid"),
        (&one, request(&bound, Some("vault")), 403, "audience \"vault\" not found in pod spec volume"),
        (&one, request(&bound, None), 201, ""),
    ];
    let mut token = String::new();
    for (node, body, code, message) in cases {
        let (got, answer) = server.ask(As::Certificate(node), "POST", target, body).await;
        assert_eq!(got, code, "{answer}");
        assert!(code < 300 || answer.str_at(&["message"]).contains(message), "{answer}");
        answer.str_at(&["status", "token"]).clone_into(&mut token);
    }
    assert_eq!(whoami(&server, As::Bearer(token.clone())).await, "system:serviceaccount:g1:default");
    let pod = "/api/v1/namespaces/g1/pods/on-one?gracePeriodSeconds=0";
    assert_eq!(server.ask(As::Certificate(&one), "DELETE", pod, Value::Null).await.0, 200);
    assert_eq!(whoami(&server, As::Bearer(token)).await, "401");
    let (code, _) = server.ask(As::Certificate(&one), "GET", "/api/v1/namespaces/g1/secrets/of-one", Value::Null).await;
    assert_eq!(code, 403, "no pod needs it any more");
}
