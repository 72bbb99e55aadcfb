//! `nodes/proxy`, `pods/proxy`, `services/proxy`: a request handed through to where the name points, and what it is
//! upgraded to. Pods and services are reached over the pod network of this machine.

use super::{ask_node, go_on, percent_encode, rest::get_pod, send};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call, body};
use crate::registry::ListOptions;
use crate::runtime::probe;
use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, HOST, LOCATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers that belong to one connection.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    TRAILER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

pub async fn answer(server: &ApiServer, mut call: Call, kind: &Kind, body: Body) -> Result<Response> {
    let target = call.info.name.clone();
    let target = Target::parse(&target)?;
    let upgrade = upgrade_of(&call.headers);
    if upgrade.is_none() && is_bare(&call) {
        return Ok(moved(&call));
    }
    if kind.plural == "nodes" {
        // The kubelet's own streams are for exec, attach and port-forward, each with its permission.
        if upgrade.is_some() {
            return Err(Status::bad_request("the kubelet upgrades no proxied request"));
        }
        let mut request = request(&call, Full::new(body::read(body).await?))?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("kubelet"));
        return Ok(handed_back(ask_node(server, target.name, request).await?));
    }
    let address = match &*kind.plural {
        "pods" => pod_address(server, &call, kind, &target).await?,
        _ => service_address(server, &call, &target).await?,
    };
    let mut request = request(&call, body)?;
    request.headers_mut().insert(HOST, address.to_string().parse().map_err(Status::internal)?);
    if let Some(upgrade) = upgrade {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(UPGRADE, upgrade);
    }
    let mut response = ask(address, target.https, request).await.map_err(unreachable)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(handed_back(response));
    }
    let not_asked = || unreachable("it switched protocols without being asked".to_owned());
    let client = call.upgrade.take().ok_or_else(not_asked)?;
    go_on(&mut call, join(client, hyper::upgrade::on(&mut response)));
    Ok(switched(response.headers().clone()))
}

fn unreachable(error: String) -> Status {
    Status::unavailable(format!("error trying to reach service: {error}"))
}

/// What the client wants its connection upgraded to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(CONNECTION)?.to_str().ok()?.to_ascii_lowercase();
    let asked = connection.split(',').any(|word| word.trim() == "upgrade");
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// `…/proxy` without a slash: relative links of the page behind it would lead astray.
fn is_bare(call: &Call) -> bool {
    call.info.rest.is_empty() && !call.info.path.ends_with('/') && matches!(call.method, Method::GET | Method::HEAD)
}

fn moved(call: &Call) -> Response {
    let path: Vec<String> = call.info.path.split('/').map(percent_encode).collect();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let location = format!("{}/{}", path.join("/"), query(call));
    let location = location.parse().expect("what is percent-encoded fits in a header");
    response.headers_mut().insert(LOCATION, location);
    response
}

fn request<B>(call: &Call, body: B) -> Result<Request<B>> {
    let request = Request::builder().method(call.method.clone()).uri(path(call));
    let mut request = request.body(body).map_err(Status::internal)?;
    *request.headers_mut() = forwarded(&call.headers);
    Ok(request)
}

/// Sends a request to an address, over TLS without verification where asked, as upstream.
async fn ask(address: SocketAddr, https: bool, request: Request<Body>) -> Result<http::Response<Incoming>, String> {
    let late = |_| format!("dial tcp {address}: i/o timeout");
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(late)?;
    let stream = connected.map_err(|error| format!("dial tcp {address}: {error}"))?;
    if !https {
        return send(TokioIo::new(stream), request).await.map_err(|error| error.to_string());
    }
    let connector = TlsConnector::from(probe::trusting_tls().ok_or("no TLS provider")?);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(address.ip().into(), stream)).await;
    let stream = connected.map_err(late)?.map_err(|error| error.to_string())?;
    send(TokioIo::new(stream), request).await.map_err(|error| error.to_string())
}

/// Both connections, once they are upgraded, until both sides of them have ended.
async fn join(client: OnUpgrade, target: OnUpgrade) {
    let (Ok(client), Ok(target)) = tokio::join!(client, target) else { return };
    let (mut client, mut target) = (TokioIo::new(client), TokioIo::new(target));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut target).await {
        tracing::debug!(%error, "proxied stream ended");
    }
}

fn switched(headers: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

fn handed_back(response: http::Response<Incoming>) -> Response {
    let (mut parts, body) = response.into_parts();
    HOP_BY_HOP.iter().for_each(|name| drop(parts.headers.remove(name)));
    Response::from_parts(parts, Body::new(body))
}

/// `[http:|https:]NAME[:PORT]`.
struct Target<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name] => Ok(Self { https: false, name, port: "" }),
            [name, port] => Ok(Self { https: false, name, port }),
            [scheme @ ("http" | "https" | ""), name, port] => Ok(Self { https: *scheme == "https", name, port }),
            _ => Err(Status::bad_request(format!("invalid service request {text:?}"))),
        }
    }
}

fn path(call: &Call) -> String {
    let rest: Vec<String> = call.info.rest.iter().map(|part| percent_encode(part)).collect();
    let slash = if call.info.path.ends_with('/') && !rest.is_empty() { "/" } else { "" };
    format!("/{}{slash}{}", rest.join("/"), query(call))
}

/// With its mark; empty when there is none.
fn query(call: &Call) -> String {
    let query = super::encode_query(call.query.pairs());
    if query.is_empty() { query } else { format!("?{query}") }
}

/// Who the client is and whom it plays is no business of the target's.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let private = |name: &HeaderName| *name == HOST || name.as_str().starts_with("impersonate-");
    let kept = headers.iter().filter(|(name, _)| !HOP_BY_HOP.contains(name) && !private(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn parse_address(ip: &str, port: u16) -> Result<SocketAddr> {
    let ip: IpAddr = ip.parse().map_err(|_| Status::internal(format!("{ip:?} is no address")))?;
    // What a pod's name points to is the pod network; nothing of this machine's own.
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(SocketAddr::new(ip, port))
}

async fn pod_address(server: &ApiServer, call: &Call, kind: &Kind, target: &Target<'_>) -> Result<SocketAddr> {
    let entry = server.registry().get(kind, &call.info.namespace, target.name).await?;
    let pod: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
    let ip = pod.str_at(&["status", "podIP"]);
    if ip.is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    let port = match target.port {
        "" => first_port(&pod).unwrap_or(80),
        text => text
            .parse()
            .ok()
            .or_else(|| named_port(&pod, text))
            .ok_or_else(|| Status::bad_request(format!("invalid port {text:?} for pod {}", target.name)))?,
    };
    parse_address(ip, port)
}

fn ports(pod: &Object) -> impl Iterator<Item = &Object> {
    let containers = pod.at(&["spec", "containers"]).and_then(Object::as_array).into_iter().flatten();
    containers.flat_map(|container| container.get("ports").and_then(Object::as_array).into_iter().flatten())
}

fn number(port: &Object) -> Option<u16> {
    port.int_at(&["containerPort"]).and_then(|number| u16::try_from(number).ok())
}

fn first_port(pod: &Object) -> Option<u16> {
    ports(pod).find_map(number)
}

fn named_port(pod: &Object, name: &str) -> Option<u16> {
    ports(pod).find(|port| port.str_at(&["name"]) == name).and_then(number)
}

/// One ready endpoint of the service's port, drawn by lot.
async fn service_address(server: &ApiServer, call: &Call, target: &Target<'_>) -> Result<SocketAddr> {
    let registry = server.registry();
    let namespace = &call.info.namespace;
    let missing = || Status::page_not_found();
    let services = registry.kinds.resource("", "v1", "services").ok_or_else(missing)?;
    let slices = registry.kinds.resource("discovery.k8s.io", "v1", "endpointslices").ok_or_else(missing)?;
    let service = registry.get(&services, namespace, target.name).await?;
    let service: Object = serde_json::from_slice(&service.bytes).map_err(Status::internal)?;
    let no_port =
        || Status::unavailable(format!("no service port {:?} found for service {:?}", target.port, target.name));
    let port_name = service_port(&service, target.port).ok_or_else(no_port)?;
    let options =
        ListOptions { label_selector: format!("kubernetes.io/service-name={}", target.name), ..ListOptions::default() };
    let mut endpoints = Vec::new();
    for entry in registry.list(&slices, namespace, &options).await?.entries {
        let slice: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
        endpoints.extend(ready_endpoints(&slice, &port_name));
    }
    fastrand::shuffle(&mut endpoints);
    for endpoint in endpoints {
        if is_pod(server, namespace, &endpoint).await {
            return parse_address(&endpoint.ip, endpoint.port);
        }
    }
    Err(Status::unavailable(format!("no endpoints available for service {:?}", target.name)))
}

/// Whether a pod of the namespace has the address: who may write slices is not to reach all that the server reaches.
async fn is_pod(server: &ApiServer, namespace: &str, endpoint: &Endpoint) -> bool {
    let Ok(entry) = get_pod(server, namespace, &endpoint.pod).await else { return false };
    let Ok(pod) = serde_json::from_slice::<Object>(&entry.bytes) else { return false };
    let all = pod.at(&["status", "podIPs"]).and_then(Object::as_array).into_iter().flatten();
    pod.str_at(&["status", "podIP"]) == endpoint.ip || all.into_iter().any(|one| one.str_at(&["ip"]) == endpoint.ip)
}

/// What a slice says of one endpoint.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    ip: String,
    port: u16,
    /// Empty when it is none.
    pod: String,
}

/// The name of the port meant: by name, by number, or the only one.
fn service_port(service: &Object, wanted: &str) -> Option<String> {
    let ports = service.at(&["spec", "ports"]).and_then(Object::as_array)?;
    let is_wanted = |port: &&Object| {
        port.str_at(&["name"]) == wanted || port.int_at(&["port"]).is_some_and(|number| number.to_string() == wanted)
    };
    let found = match (wanted, ports.as_slice()) {
        ("", [only]) => Some(only),
        _ => ports.iter().find(is_wanted),
    };
    found.map(|port| port.str_at(&["name"]).to_owned())
}

fn ready_endpoints(slice: &Object, port_name: &str) -> Vec<Endpoint> {
    let list = |name: &str| slice.get(name).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    let port = list("ports").iter().find(|port| port.str_at(&["name"]) == port_name);
    let Some(port) = port.and_then(|port| port.int_at(&["port"])).and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let ready = |endpoint: &&Object| endpoint.at(&["conditions", "ready"]) != Some(&Object::Bool(false));
    let shown = |endpoint: &Object| {
        let ip = endpoint.get("addresses")?.get(0)?.as_str()?.to_owned();
        let target = endpoint.get("targetRef").filter(|target| target.str_at(&["kind"]) == "Pod");
        let pod = target.map(|target| target.str_at(&["name"]).to_owned()).unwrap_or_default();
        Some(Endpoint { ip, port, pod })
    };
    list("endpoints").iter().filter(ready).filter_map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets() {
        let cases = [
            ("web", (false, "web", "")),
            ("web:80", (false, "web", "80")),
            ("http:web:http", (false, "web", "http")),
            ("https:web:", (true, "web", "")),
        ];
        for (text, expected) in cases {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.https, target.name, target.port), expected, "{text}");
        }
        assert!(Target::parse("ftp:web:21").is_err());
    }

    #[test]
    fn ports_and_endpoints_of_a_service() {
        let service = json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "m", "port": 9090}]}});
        assert_eq!(service_port(&service, "80").as_deref(), Some("http"));
        assert_eq!(service_port(&service, "m").as_deref(), Some("m"));
        assert_eq!(service_port(&service, ""), None);
        let slice = json!({
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.42.0.5"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "a"}},
                {"addresses": ["10.42.0.6"], "conditions": {"ready": false}},
                {"addresses": ["10.42.0.7"], "targetRef": {"kind": "Node", "name": "n"}},
            ],
        });
        let endpoint = |ip: &str, pod: &str| Endpoint { ip: ip.to_owned(), port: 8080, pod: pod.to_owned() };
        assert_eq!(ready_endpoints(&slice, "http"), [endpoint("10.42.0.5", "a"), endpoint("10.42.0.7", "")]);
        for ip in ["127.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"] {
            assert!(parse_address(ip, 80).is_err(), "{ip}");
        }
    }

    #[test]
    fn headers_of_the_connection_and_of_the_user_stay_here() {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let sent: HeaderMap = [
            header("connection", "keep-alive, Upgrade"),
            header("upgrade", "websocket"),
            header("host", "server"),
            header("impersonate-user", "alice"),
            header("sec-websocket-key", "k"),
        ]
        .into_iter()
        .collect();
        assert_eq!(forwarded(&sent), [header("sec-websocket-key", "k")].into_iter().collect());
        assert_eq!(upgrade_of(&sent), Some(HeaderValue::from_static("websocket")));
        assert_eq!(upgrade_of(&[header("upgrade", "h2c")].into_iter().collect()), None);
    }

    /// A client and a target that both are asked to switch, and the proxy's two halves between them.
    #[tokio::test]
    async fn an_upgraded_connection_is_handed_through() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = target.local_addr().unwrap();
        let target = tokio::spawn(async move {
            let (mut stream, _) = target.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
            stream.write_all(switch).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        let (mut client, ours) = tokio::io::duplex(1 << 10);
        let service = hyper::service::service_fn(move |mut asked: Request<Incoming>| async move {
            let client = hyper::upgrade::on(&mut asked);
            let request = Request::get("/chat").header(CONNECTION, "Upgrade").header(UPGRADE, "echo");
            let mut response = ask(address, false, request.body(Body::empty()).unwrap()).await.unwrap();
            tokio::spawn(join(client, hyper::upgrade::on(&mut response)));
            Ok::<_, std::convert::Infallible>(switched(response.headers().clone()))
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(ours), service);
        tokio::spawn(connection.with_upgrades());
        client.write_all(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhello") {
            answer.push(client.read_u8().await.unwrap());
        }
        drop(client);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("upgrade: echo\r\n"), "{answer}");
        assert!(target.await.unwrap().starts_with("GET /chat HTTP/1.1\r\n"));
    }
}
