//! The whole service without sockets: requests in, answers out, on a store in memory.
//! `errors.json` holds recorded requests and what a real API server answered.

mod access;
mod discover;
mod objects;
mod trust;
mod tunnel;
mod wire;

use super::*;
use crate::api::kinds::Kinds;
use crate::registry::{RegistryConfig, ServerFacts};
use crate::store::MemoryStore;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower_service::Service;

const NOW: &str = "2026-11-23T00:00:00Z";

/// A server and the means to ask it.
struct Cluster {
    server: ApiServer,
    _dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

fn user(name: &str) -> Peer {
    let groups = match name {
        "none" => return Peer::default(),
        "admin" => vec![auth::MASTERS.to_owned(), auth::AUTHENTICATED.to_owned()],
        _ => vec![auth::AUTHENTICATED.to_owned()],
    };
    Peer::of(User { name: name.to_owned(), groups, ..User::default() })
}

impl Cluster {
    async fn new() -> Self {
        Self::with_clock(Clock::simulated(NOW.parse().unwrap())).await
    }

    async fn with_clock(clock: Clock) -> Self {
        Self::on(Arc::new(MemoryStore::default()), clock).await
    }

    async fn on(store: Arc<dyn crate::store::Store>, clock: Clock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kinds = Kinds::default();
        let registry = Registry::new(RegistryConfig::default(), store, kinds, clock.clone(), Arc::default());
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let pki = Pki::open(dir.path(), issuer, clock.clone()).unwrap();
        let config = ApiServerConfig {
            advertise: "10.99.0.1:6443".into(),
            names: ServerNames::default(),
            anonymous: true,
            cluster: serde_json::Value::Null,
        };
        let server = ApiServer::new(config, Arc::new(registry), pki, Tunnels::default(), clock);
        let (address, port) = (std::net::Ipv4Addr::new(10, 99, 0, 1), 6443);
        let facts = ServerFacts { address, port, client_ca_pem: server.pki().ca_pem() };
        server.registry().bootstrap(&facts).await.unwrap();
        let cluster = Self { server, _dir: dir };
        cluster.create("/api/v1/namespaces", json!({"metadata": {"name": "g1"}})).await;
        cluster.create("/api/v1/namespaces/g1/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        cluster
    }

    async fn send(&self, peer: Peer, request: http::Request<Body>) -> Answer {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(peer);
        let response = self.server.router().call(Request::from_parts(parts, body)).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn ask(&self, peer: Peer, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(peer, request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask(user("admin"), "GET", target, &[], "").await
    }

    async fn get_as(&self, target: &str, accept: &str) -> Answer {
        self.ask(user("admin"), "GET", target, &[("accept", accept)], "").await
    }

    async fn create(&self, target: &str, object: Value) -> Value {
        let answer = self.ask(user("admin"), "POST", target, &[], &object.to_string()).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
        answer.json()
    }
}

/// A recorded request and its answer.
#[derive(serde::Deserialize)]
struct Recorded {
    recorded: String,
    user: String,
    method: String,
    target: String,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    code: u16,
    status: Option<Value>,
    text: Option<String>,
}

#[tokio::test(start_paused = true)]
async fn errors_are_answered_as_recorded() {
    let cluster = Cluster::new().await;
    cluster.create("/api/v1/namespaces/g1/configmaps", json!({"metadata": {"name": "a"}, "data": {"s": "1"}})).await;
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("../../tests/data/apiserver/errors.json")).unwrap();
    let mut wrong = Vec::new();
    for case in recorded {
        let headers: Vec<(&str, &str)> = case.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let answer = cluster.ask(user(&case.user), &case.method, &case.target, &headers, &case.body).await;
        let mut got = answer.json();
        let expected = case.status.map(|status| with_code(status, case.code));
        if let Some(parts) = got.as_object_mut() {
            parts.retain(|key, _| ["message", "reason", "details", "code"].contains(&key.as_str()));
        }
        let same = match (&expected, &case.text) {
            (Some(status), _) => answer.code == case.code && forget_revisions(&got) == forget_revisions(status),
            (None, Some(text)) => answer.code == case.code && answer.text().trim() == text,
            (None, None) => answer.code == case.code,
        };
        if !same {
            wrong.push(format!(
                "{}\n  expected {} {expected:?}\n  answered {} {got}",
                case.recorded, case.code, answer.code
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn with_code(mut status: Value, code: u16) -> Value {
    status["code"] = code.into();
    status
}

/// Revisions differ at each run.
fn forget_revisions(status: &Value) -> String {
    let text = status.to_string();
    match text.split_once("in record (") {
        Some((head, rest)) => format!("{head}{}", rest.split_once(')').map_or("", |(_, tail)| tail)),
        None => text,
    }
}
