//! `nodes/proxy`, `pods/proxy`, `services/proxy`: a request handed through to where the name points.
//! Pods and services are reached over the pod network of this machine.

use super::{ask_node, percent_encode, send};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call, body};
use crate::registry::ListOptions;
use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers that belong to one connection.
const HOP_BY_HOP: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, UPGRADE];

pub async fn answer(server: &ApiServer, call: &Call, kind: &Kind, body: Body) -> Result<Response> {
    let target = Target::parse(&call.info.name)?;
    let bytes = body::read(body).await?;
    let request = Request::builder().method(call.method.clone()).uri(path(call));
    let mut request = request.body(Full::new(bytes)).map_err(Status::internal)?;
    *request.headers_mut() = forwarded(&call.headers);
    let response = if kind.plural == "nodes" {
        request.headers_mut().insert(HOST, http::HeaderValue::from_static("kubelet"));
        ask_node(server, target.name, request).await?
    } else {
        let address = match &*kind.plural {
            "pods" => pod_address(server, call, kind, &target).await?,
            _ => service_address(server, call, &target).await?,
        };
        let host = address.to_string().parse().map_err(Status::internal)?;
        request.headers_mut().insert(HOST, host);
        let unreachable = |error: String| Status::unavailable(format!("error trying to reach service: {error}"));
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| unreachable(format!("dial tcp {address}: i/o timeout")))?;
        let stream = stream.map_err(|error| unreachable(format!("dial tcp {address}: {error}")))?;
        send(TokioIo::new(stream), request).await.map_err(|error| unreachable(error.to_string()))?
    };
    let (mut parts, body) = response.into_parts();
    HOP_BY_HOP.iter().for_each(|name| drop(parts.headers.remove(name)));
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// `[http:]NAME[:PORT]`.
struct Target<'a> {
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name] => Ok(Self { name, port: "" }),
            [name, port] => Ok(Self { name, port }),
            ["http" | "", name, port] => Ok(Self { name, port }),
            ["https", _, _] => Err(Status::bad_request("proxying to https targets is not served yet")),
            _ => Err(Status::bad_request(format!("invalid service request {text:?}"))),
        }
    }
}

fn path(call: &Call) -> String {
    let rest: Vec<String> = call.info.rest.iter().map(|part| percent_encode(part)).collect();
    let slash = if call.info.path.ends_with('/') && !rest.is_empty() { "/" } else { "" };
    let query = super::encode_query(call.query.pairs());
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/{}{slash}{mark}{query}", rest.join("/"))
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let kept = headers.iter().filter(|(name, _)| !HOP_BY_HOP.contains(name) && *name != HOST);
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn parse_address(ip: &str, port: u16) -> Result<SocketAddr> {
    let ip: IpAddr = ip.parse().map_err(|_| Status::internal(format!("{ip:?} is no address")))?;
    // What a pod's name points to is the pod network; nothing of this machine's own.
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
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
    let mut addresses = Vec::new();
    for entry in registry.list(&slices, namespace, &options).await?.entries {
        let slice: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
        addresses.extend(ready_addresses(&slice, &port_name));
    }
    let none = || Status::unavailable(format!("no endpoints available for service {:?}", target.name));
    let (ip, port) = fastrand::choice(addresses).ok_or_else(none)?;
    parse_address(&ip, port)
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

fn ready_addresses(slice: &Object, port_name: &str) -> Vec<(String, u16)> {
    let list = |name: &str| slice.get(name).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    let port = list("ports").iter().find(|port| port.str_at(&["name"]) == port_name);
    let Some(port) = port.and_then(|port| port.int_at(&["port"])).and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let ready = |endpoint: &&Object| endpoint.at(&["conditions", "ready"]) != Some(&Object::Bool(false));
    let first = |endpoint: &Object| endpoint.get("addresses")?.get(0)?.as_str().map(|ip| (ip.to_owned(), port));
    list("endpoints").iter().filter(ready).filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets() {
        for (text, name, port) in [("web", "web", ""), ("web:80", "web", "80"), ("http:web:http", "web", "http")] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.name, target.port), (name, port));
        }
        assert!(Target::parse("https:web:443").is_err());
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
                {"addresses": ["10.42.0.5"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.6"], "conditions": {"ready": false}},
            ],
        });
        assert_eq!(ready_addresses(&slice, "http"), [("10.42.0.5".to_owned(), 8080)]);
        assert!(parse_address("127.0.0.1", 80).is_err());
    }
}
