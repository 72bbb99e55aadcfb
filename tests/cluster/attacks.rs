//! Who tries to get in, over real TLS: nobody does, and the server's log says why.

use super::fleet::{Board, Fleet, URL, seconds};
use super::line::Line;
use edgelet::api::object::{Object, ObjectExt};
use edgelet::api::status::Status;
use edgelet::client::kubeconfig::Access;
use edgelet::client::{CERTIFICATESIGNINGREQUESTS, CONFIGMAPS, NODES, PODS, Remote, SECRETS};
use edgelet::node::joined;
use edgelet::pki::authority::Authority;
use edgelet::pki::certificate::{Credentials, Request};
use edgelet::pki::join_token::JoinToken;
use edgelet::registry::{DeleteOptions, PatchType};
use edgelet::tunnel;
use serde_json::json;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tracing::subscriber::DefaultGuard;

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

impl Log {
    fn capture() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// A line with all of these is there; the log begins anew after it.
    fn says(&self, words: &[&str]) {
        let text = String::from_utf8_lossy(&std::mem::take(&mut *self.lines.0.lock().unwrap())).into_owned();
        let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line with {words:?} in the log:\n{text}");
    }
}

fn with(fleet: &Fleet, line: &Line, change: impl FnOnce(&mut Access)) -> Remote {
    let mut access = Access { server: URL.into(), ca_pem: fleet.pki.ca_pem().into_bytes(), ..Access::default() };
    change(&mut access);
    Remote::with_clock(access, line.clone(), fleet.clock.clone()).unwrap()
}

fn with_credentials(fleet: &Fleet, line: &Line, credentials: &Credentials) -> Remote {
    with(fleet, line, |access| {
        access.client_certificate_pem = credentials.certificate_pem.clone().into_bytes();
        access.client_key_pem = credentials.key_pem.clone().into_bytes();
    })
}

fn as_node(board: &Board, fleet: &Fleet) -> Remote {
    let joined = board.identity().load().unwrap().unwrap();
    Remote::with_clock(joined::access(&joined), board.line.clone(), fleet.clock.clone()).unwrap()
}

fn refusal<T>(answer: Result<T, Status>) -> Status {
    answer.err().expect("refused")
}

#[tokio::test(start_paused = true)]
async fn tokens_that_do_not_count_are_refused_and_the_log_says_why() {
    let log = Log::capture();
    let fleet = Fleet::new().await;
    let error = async |board: Board, token: &JoinToken| format!("{:#}", board.join(token).await.unwrap_err());

    let used = fleet.token(|token| token.uses = Some(1)).await;
    fleet.board("one").join(&used).await.unwrap();
    assert!(error(fleet.board("two"), &used).await.contains("the join token has no uses left"));
    log.says(&["refused", "joining board", &used.id, "the join token has no uses left"]);

    let revoked = fleet.token(|_| {}).await;
    fleet.delete(SECRETS, "kube-system", &format!("bootstrap-token-{}", revoked.id), DeleteOptions::default()).await;
    assert!(error(fleet.board("two"), &revoked).await.contains("Unauthorized"));
    log.says(&["refused", "bearer token", &revoked.id, "no such token"]);

    let foreign = JoinToken::generate(*fleet.pki.trust().current.key_hash()).unwrap();
    assert!(error(fleet.board("two"), &foreign).await.contains("Unauthorized"));
    log.says(&["refused", "bearer token", &foreign.id, "no such token"]);

    let good = fleet.token(|_| {}).await;
    let forged = JoinToken::parse(&good.text().replace(good.secret(), foreign.secret())).unwrap();
    assert!(error(fleet.board("two"), &forged).await.contains("Unauthorized"));
    log.says(&["refused", "bearer token", &good.id, "the token's secret is wrong"]);

    let text = good.text();
    let truncated = JoinToken::parse(&text[..text.len() - 1]).err().unwrap().to_string();
    assert!(truncated.contains("cut off"), "{truncated}");
    let line = fleet.board("x").line;
    let cut = with(&fleet, &line, |access| access.token = good.bearer()[..good.bearer().len() - 1].to_owned());
    assert_eq!(refusal(cut.list(NODES, "", &Default::default()).await).code, 401);
    log.says(&["refused", "bearer token"]);

    fleet.days(&[], 2);
    assert!(error(fleet.board("two"), &good).await.contains("Unauthorized"));
    log.says(&["refused", "bearer token", &good.id, "the token has expired"]);
    assert!(fleet.list(NODES, "").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn another_authority_counts_for_nobody() {
    let log = Log::capture();
    let (fleet, boards) = Fleet::of(&["one"]).await;
    let now = fleet.clock.now();
    // A certificate of a stranger's authority in the name of a node, and of the administrator.
    let stranger = Authority::generate(now).unwrap();
    for (user, group) in [("system:node:one", "system:nodes"), ("edgelet-admin", "system:masters")] {
        let forged = stranger.issue(&Request::client(user, Some(group)), now).unwrap();
        let remote = with_credentials(&fleet, &boards[0].line, &forged);
        assert!(remote.list(NODES, "", &Default::default()).await.is_err());
        log.says(&["refused", "client certificate", "192.0.2.", "UnknownIssuer"]);
    }
    // Of our authority, in the name of a node, with a key that is not the node's.
    let made = fleet.pki.issue_client("system:node:one", Some("system:nodes")).unwrap();
    let remote = with_credentials(&fleet, &boards[0].line, &made);
    assert_eq!(refusal(remote.get(NODES, "", "one").await).code, 401);
    log.says(&["refused", "client certificate", "system:node:one", "not the key on record"]);

    // A server that is not the token's.
    let other = Fleet::new().await;
    let token = other.token(|_| {}).await;
    let error = format!("{:#}", fleet.board("two").join(&token).await.unwrap_err());
    assert!(error.contains("the server proves to be another than the token's"), "{error}");
    // A board that has joined does not speak to it.
    let joined = boards[0].identity().load().unwrap().unwrap();
    let line = other.board("one").line;
    let remote = Remote::with_clock(joined::access(&joined), line, fleet.clock.clone()).unwrap();
    let error = refusal(remote.get(NODES, "", "one").await).message;
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_nodes_certificate_does_not_open_what_is_others() {
    let log = Log::capture();
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    for name in ["one", "two"] {
        let volumes = json!([{"name": "v", "secret": {"secretName": format!("of-{name}")}}]);
        let spec = json!({"nodeName": name, "volumes": volumes, "containers": [{"name": "c", "image": "app:1"}]});
        fleet.create(SECRETS, "default", json!({"metadata": {"name": format!("of-{name}")}})).await;
        fleet.create(PODS, "default", json!({"metadata": {"name": format!("on-{name}")}, "spec": spec})).await;
        fleet.ready_pod(&format!("on-{name}")).await;
    }
    let one = as_node(&boards[0], &fleet);
    assert!(one.get(SECRETS, "default", "of-one").await.is_ok());
    assert_eq!(refusal(one.get(SECRETS, "default", "of-two").await).code, 403);
    log.says(&["refused", "node", "one", "secrets default/of-two", "no relationship found"]);
    assert_eq!(refusal(one.list(SECRETS, "", &Default::default()).await).code, 403);
    log.says(&["refused", "node", "one", "list secrets"]);
    let status = json!({"status": {"phase": "Failed"}});
    let patched = one.patch(PODS, "default", "on-two", "status", PatchType::Merge, status.clone()).await;
    assert_eq!(refusal(patched).code, 403);
    log.says(&["refused", "node", "one", "on-two"]);
    let patched = one.patch(NODES, "", "two", "status", PatchType::Merge, status).await;
    assert_eq!(refusal(patched).code, 403);
    log.says(&["refused", "node", "one", "two"]);
    assert_eq!(refusal(one.delete(PODS, "default", "on-two", &DeleteOptions::default()).await).code, 403);
    log.says(&["refused", "node", "one", "on-two"]);
}

#[tokio::test(start_paused = true)]
async fn a_signing_request_that_somebody_has_heard_is_no_use_to_them() {
    let log = Log::capture();
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    let requests = fleet.list(CERTIFICATESIGNINGREQUESTS, "").await;
    let of_one = requests.iter().find(|one| one.name().starts_with("one-")).unwrap();
    let replay = |request: &Object| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "replay-"}, "spec": {"signerName": request["spec"]["signerName"],
            "request": request["spec"]["request"], "usages": request["spec"]["usages"]}})
    };
    let two = as_node(&boards[1], &fleet);
    let error = refusal(two.create(CERTIFICATESIGNINGREQUESTS, "", replay(of_one)).await);
    assert_eq!((error.code, error.message.contains("CN=system:node:two")), (403, true), "{error}");
    log.says(&["refused", "node", "two", "certificatesigningrequests"]);

    // With a token it is signed again, for the key that only board one has.
    let token = fleet.token(|_| {}).await;
    let thief = with(&fleet, &boards[1].line, |access| access.token = token.bearer());
    let made = thief.create(CERTIFICATESIGNINGREQUESTS, "", replay(of_one)).await.unwrap().object().unwrap();
    seconds(1).await;
    let signed = fleet.get(CERTIFICATESIGNINGREQUESTS, "", made.name()).await.unwrap();
    let pem = signed.str_at(&["status", "certificate"]);
    let pem = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, pem).unwrap();
    let own = boards[1].identity().load().unwrap().unwrap().credentials.key_pem;
    let access = Access {
        server: URL.into(),
        ca_pem: fleet.pki.ca_pem().into_bytes(),
        client_certificate_pem: pem,
        client_key_pem: own.into_bytes(),
        ..Access::default()
    };
    match Remote::with_clock(access, boards[1].line.clone(), fleet.clock.clone()) {
        Err(_) => {}
        Ok(remote) => assert!(remote.get(NODES, "", "one").await.is_err()),
    }
    assert_eq!(fleet.list(NODES, "").await.len(), 2);
}

/// The head of a TLS connection with these credentials, HTTP/1.1.
async fn raw(line: &Line, remote: &Remote) -> impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {
    let mut tls = (*remote.tls()).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = rustls_pki_types::ServerName::try_from("10.99.0.1").unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, line.call().await.unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn oversized_and_slow_requests_are_ended() {
    let log = Log::capture();
    let (fleet, boards) = Fleet::of(&["one"]).await;
    let line = &boards[0].line;
    let big = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(4 << 20)}});
    assert_eq!(refusal(fleet.remote.create(CONFIGMAPS, "default", big).await).code, 413);
    log.says(&["refused", "request", "admin", "Request entity too large"]);

    // Greets, and then says nothing.
    let admin = with_credentials(&fleet, line, &fleet.pki.issue_client("admin", Some("system:masters")).unwrap());
    let mut mute = raw(line, &admin).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(mute.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert!(begun.elapsed().as_secs() <= 61);
    log.says(&["refused", "connection", "192.0.2.1", "no request within 60 s"]);
    // Says nothing at all, not even a greeting.
    let begun = tokio::time::Instant::now();
    let mut silent = line.call().await.unwrap();
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert!(begun.elapsed().as_secs() <= 11);
    log.says(&["refused", "connection", "192.0.2.1", "no handshake within 10 s"]);

    // Headers without an end, and headers too large.
    let node = as_node(&boards[0], &fleet);
    let begun = tokio::time::Instant::now();
    let mut slow = raw(line, &node).await;
    slow.write_all(b"GET /api HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(begun.elapsed().as_secs() <= 100, "{:?}", begun.elapsed());
    log.says(&["refused", "connection", "192.0.2.1", "no request within 60 s"]);
    let mut large = raw(line, &node).await;
    let _ =
        large.write_all(format!("GET /api HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes()).await;
    rest.clear();
    let _ = large.read_to_end(&mut rest).await;
    assert!(rest.starts_with(b"HTTP/1.1 431") || rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    log.says(&["refused", "connection", "192.0.2.1"]);

    // A body without an end.
    let admin = &fleet.remote;
    let mut endless = raw(line, admin).await;
    let head = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{";
    endless.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let begun = tokio::time::Instant::now();
    let read = endless.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(text.starts_with("HTTP/1.1 504") || text.starts_with("HTTP/1.1 408"), "{text}");
    assert!(begun.elapsed().as_secs() <= 61);
    log.says(&["refused", "request", "admin"]);

    // What is no TLS.
    let mut plain = line.call().await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    rest.clear();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/"));
    fleet.ready("one").await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_a_nodes_own_and_carries_only_what_the_server_opens() {
    let log = Log::capture();
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    let line = &boards[1].line;
    let strangers = [
        ("admin", with_credentials(&fleet, line, &fleet.pki.issue_client("admin", Some("system:masters")).unwrap())),
        ("alice", with_credentials(&fleet, line, &fleet.pki.issue_client("alice", None).unwrap())),
        ("system:node:one", with_credentials(&fleet, line, &fleet.pki.issue_client("system:node:one", None).unwrap())),
        ("system:anonymous", with(&fleet, line, |_| {})),
    ];
    for (who, stranger) in strangers {
        let error = refusal(stranger.upgrade(tunnel::PATH, tunnel::PROTOCOL).await.map(drop));
        assert_eq!(error.code, 403, "{who}: {error}");
        log.says(&["refused", "tunnel", who]);
    }
    assert!(fleet.tunnels.is_connected("one"));

    // A second tunnel ends the first, and only one leads to the node.
    let node = as_node(&boards[1], &fleet);
    let calls = line.calls();
    let second = node.upgrade(tunnel::PATH, tunnel::PROTOCOL).await.unwrap();
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(second).await.unwrap();
        while connection.accept().await.is_some() {}
    });
    seconds(2).await;
    log.says(&["two", "the node has opened another tunnel"]);
    boards[1].connected().await;
    seconds(60).await;
    assert!(fleet.tunnels.is_connected("two") && line.calls() < calls + 60, "{} calls", line.calls() - calls);
    assert!(fleet.tunnels.is_connected("one"), "another's tunnel is not its matter");

    // A node that opens streams itself, as if it were the client.
    let wrong = node.upgrade(tunnel::PATH, tunnel::PROTOCOL).await.unwrap();
    let client = h2::client::handshake(wrong).await;
    if let Ok((requests, connection)) = client {
        tokio::spawn(async move { drop(connection.await) });
        let asked = async {
            let mut requests = requests.ready().await?;
            let request = http::Request::get("https://server/api/v1/secrets").body(()).unwrap();
            requests.send_request(request, true)?.0.await
        };
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), asked).await;
        assert!(!matches!(answer, Ok(Ok(_))), "nothing answers inside a tunnel: {answer:?}");
    }
    seconds(30).await;
    log.says(&["two", "node disconnected"]);

    // The node itself comes back.
    boards[1].line.tear();
    boards[1].connected().await;
    seconds(30).await;
    fleet.ready("two").await;
    assert!(fleet.tunnels.is_connected("two"));
    assert_eq!(fleet.list(NODES, "").await.len(), 2);
}
