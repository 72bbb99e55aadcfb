//! What runs over a connection to a node or a pod: logs, exec, attach, port-forward, proxy.
//! Finds the target, then hands the bytes through; the kubelet's protocol is in `tunnel`.

mod byte_stream;
mod exec;
mod log;
mod portforward;
mod proxy;
mod spdy;
mod websocket;

use super::{ApiServer, Call, rest};
use crate::api::kinds::Kind;
use crate::api::status::{Result, Status};
use crate::apiserver::body;
use crate::apiserver::request_info::RequestInfo;
use crate::tunnel::frames;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::time::Duration;

/// How long a node may take to answer the head of a request.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a node's error.
const ERROR_LIMIT_BYTES: usize = 4 << 10;

pub async fn answer(server: &ApiServer, call: Call, kind: &Kind, body: Body) -> Result<Response> {
    // A WebSocket opens with GET, and still does what only a POST did before.
    if matches!(&*call.info.subresource, "exec" | "attach" | "portforward") && call.info.verb == "get" {
        let info = RequestInfo { verb: "create", ..call.info.clone() };
        server.auth().authorize(&call.user, &info).await?;
    }
    match &*call.info.subresource {
        "log" => log::answer(server, call).await,
        "exec" => exec::answer(server, call, exec::Verb::Exec).await,
        "attach" => exec::answer(server, call, exec::Verb::Attach).await,
        "portforward" => portforward::answer(server, call).await,
        _ => proxy::answer(server, call, kind, body).await,
    }
}

/// What these need to know of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pod {
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    containers: Vec<Named>,
    init_containers: Vec<Named>,
    ephemeral_containers: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: String,
    phase: String,
}

async fn pod(server: &ApiServer, call: &Call) -> Result<Pod> {
    let entry = rest::get_pod(server, &call.info.namespace, &call.info.name).await?;
    serde_json::from_slice(&entry.bytes).map_err(Status::internal)
}

/// The container meant: the one named, or the only one.
fn container(pod: &Pod, name: &str, asked: &str) -> Result<String> {
    let spec = &pod.spec;
    let all = [&spec.containers, &spec.init_containers, &spec.ephemeral_containers];
    if !asked.is_empty() {
        let known = all.iter().flat_map(|list| list.iter()).any(|one| one.name == asked);
        let invalid = || Status::bad_request(format!("container {asked} is not valid for pod {name}"));
        return known.then(|| asked.to_owned()).ok_or_else(invalid);
    }
    if let [only] = spec.containers.as_slice()
        && spec.init_containers.is_empty()
        && spec.ephemeral_containers.is_empty()
    {
        return Ok(only.name.clone());
    }
    let names = |list: &[Named]| list.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" ");
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", names(all[0]));
    for (list, what) in [(all[1], "init"), (all[2], "ephemeral")] {
        if !list.is_empty() {
            message = format!("{message} or one of the {what} containers: [{}]", names(list));
        }
    }
    Err(Status::bad_request(message))
}

/// Sends one HTTP/1.1 request over a new stream to a node's kubelet.
async fn ask_node(server: &ApiServer, node: &str, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
    let dialled = tokio::time::timeout(NODE_TIMEOUT, server.tunnels().dial(node)).await;
    let late = || Status::timeout(format!("node {node} does not answer"));
    let stream = dialled.map_err(|_| late())?.map_err(|error| Status::unavailable(error.to_string()))?;
    let answered = tokio::time::timeout(NODE_TIMEOUT, send(TokioIo::new(stream), request)).await;
    answered.map_err(|_| late())?.map_err(|error| Status::unavailable(format!("node {node}: {error}")))
}

/// Runs what goes on after a switch of protocols, which is open as a request until then.
fn go_on(call: &mut Call, streams: impl Future<Output = ()> + Send + 'static) {
    let open = call.open.take();
    crate::supervise::spawn(async move {
        streams.await;
        drop(open);
    });
}

/// A stream that the kubelet of a node is asked for.
struct Target {
    node: String,
    path: String,
}

/// Asks the kubelet for a stream; what it refuses is still a plain answer to the client.
async fn open(server: &ApiServer, target: &Target) -> Result<hyper::upgrade::OnUpgrade> {
    let request = node_request(Method::POST, &target.path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, frames::PROTOCOL)
        .body(Full::<Bytes>::default())
        .map_err(Status::internal)?;
    let response = ask_node(server, &target.node, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    Ok(hyper::upgrade::on(response))
}

/// One request over a connection of its own, which lives until the answer's body ends.
async fn send<I, B>(io: I, request: Request<B>) -> hyper::Result<http::Response<Incoming>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    crate::supervise::spawn(async move {
        // Its errors reach the reader of the body.
        let _ = connection.with_upgrades().await;
    });
    sender.send_request(request).await
}

/// A request to the kubelet.
fn node_request(method: Method, target: &str) -> http::request::Builder {
    Request::builder().method(method).uri(target).header(http::header::HOST, "kubelet")
}

/// What a kubelet's refusal means to the client: its text, as a bad request unless the node failed.
async fn refusal(response: http::Response<Incoming>) -> Status {
    let code = response.status();
    let bytes = body::read(Body::new(response.into_body())).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(ERROR_LIMIT_BYTES)]).trim().to_owned();
    match code {
        StatusCode::NOT_FOUND => Status::new(404, "NotFound", text),
        code if code.is_client_error() => Status::bad_request(text),
        _ => Status::internal(text),
    }
}

/// `name=value&…` for the kubelet.
fn encode_query<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> = pairs.map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
    pairs.join("&")
}

fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes every write");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_meant() {
        let pod = |spec| serde_json::from_value::<Pod>(json!({"spec": spec})).unwrap();
        let one = pod(json!({"containers": [{"name": "c"}]}));
        let two = pod(json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}));
        assert_eq!(container(&one, "p", "").unwrap(), "c");
        assert_eq!(container(&two, "p", "i").unwrap(), "i");
        let cases = [
            (
                container(&two, "p", ""),
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
            ),
            (container(&one, "p", "x"), "container x is not valid for pod p"),
        ];
        for (result, message) in cases {
            assert_eq!(result.unwrap_err().message, message);
        }
    }

    #[test]
    fn queries_are_encoded() {
        let pairs = [("command", "sh"), ("command", "a b&c")];
        assert_eq!(encode_query(pairs.into_iter()), "command=sh&command=a%20b%26c");
    }
}
