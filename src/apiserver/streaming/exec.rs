//! `pods/exec` and `pods/attach`: the channels of a WebSocket to the frames of the kubelet, one to one.

use super::websocket::{self, Protocol, Socket};
use super::{ask_node, container, encode_query, frames, node_request, percent_encode, pod, refusal};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, UPGRADE};
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Exec,
    Attach,
}

const STREAMS: [&str; 4] = ["stdin", "stdout", "stderr", "tty"];

pub async fn answer(server: &ApiServer, mut call: Call, verb: Verb) -> Result<Response> {
    let target = target(server, &call, verb).await?;
    let handshake = websocket::handshake(&mut call)?;
    let node = upgrade(server, &target).await?;
    let (first, open) = (first_channel(&call), call.open.take());
    let protocol = handshake.protocol;
    let (response, socket) = handshake.accept();
    tokio::spawn(async move {
        let (Ok(socket), Ok(node)) = (socket.await, node.await) else { return };
        bridge(socket, protocol, first, TokioIo::new(node)).await;
        drop(open);
    });
    Ok(response)
}

pub struct Target {
    pub node: String,
    pub path: String,
}

/// Where the kubelet is asked, after all that can be checked here.
async fn target(server: &ApiServer, call: &Call, verb: Verb) -> Result<Target> {
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let pod = pod(server, call).await?;
    let container = container(&pod, name, call.query.get("container").unwrap_or_default())?;
    if pod.spec.node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let phase = &*pod.status.phase;
    if verb == Verb::Exec && matches!(phase, "Succeeded" | "Failed") {
        let why = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(Status::bad_request(why));
    }
    let commands = call.query.all("command").map(|part| ("command", part));
    if verb == Verb::Exec && call.query.get("command").is_none() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let streams = STREAMS.into_iter().filter(|name| call.query.flag(name)).map(|name| (name, "true"));
    let word = if verb == Verb::Exec { "exec" } else { "attach" };
    let path = [namespace, name, &container].map(|part| percent_encode(part)).join("/");
    Ok(Target { node: pod.spec.node_name, path: format!("/{word}/{path}?{}", encode_query(commands.chain(streams))) })
}

/// Asks the kubelet for a stream; what it refuses is still a plain answer to the client.
pub async fn upgrade(server: &ApiServer, target: &Target) -> Result<hyper::upgrade::OnUpgrade> {
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

/// The channel that an empty message is sent on first, so that clients know they are through.
fn first_channel(call: &Call) -> u8 {
    if call.query.flag("stdout") {
        frames::STDOUT
    } else if call.query.flag("stderr") {
        frames::STDERR
    } else {
        frames::ERROR
    }
}

/// Until either side ends.
async fn bridge(socket: Socket, protocol: Protocol, first: u8, node: impl AsyncRead + AsyncWrite + Send) {
    let (mut to_client, from_client) = socket.split();
    let (from_node, to_node) = tokio::io::split(node);
    if to_client.send(protocol.encode(first, b"")).await.is_err() {
        return;
    }
    tokio::select! {
        () = client_to_node(from_client, protocol, to_node) => {}
        () = node_to_client(from_node, protocol, &mut to_client) => {
            // Without a code clients report 1005, an abnormal end.
            let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            let _ = to_client.send(Message::Close(Some(normal))).await;
            let _ = to_client.close().await;
        }
    }
}

async fn client_to_node(mut client: SplitStream<Socket>, protocol: Protocol, mut node: impl AsyncWrite + Unpin) {
    while let Some(Ok(message)) = client.next().await {
        if message.is_close() {
            return;
        }
        if !(message.is_binary() || message.is_text()) {
            continue;
        }
        let Some((channel, payload)) = protocol.decode(message) else { continue };
        let ours = matches!(channel, frames::STDIN | frames::RESIZE | frames::CLOSE);
        if ours && frames::write(&mut node, channel, &payload).await.is_err() {
            return;
        }
    }
}

/// The kubelet's last frame is a `Status`, on the error channel.
async fn node_to_client(mut node: impl AsyncRead + Unpin, protocol: Protocol, client: &mut SplitSink<Socket, Message>) {
    loop {
        let frame = match frames::read(&mut node).await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(_) => {
                let lost = Status::internal("the connection to the node was lost").to_object().to_string();
                let _ = client.send(protocol.encode(frames::ERROR, &error_text(protocol, lost.as_bytes()))).await;
                return;
            }
        };
        let last = frame.channel == frames::ERROR;
        let payload = if last { error_text(protocol, &frame.payload) } else { frame.payload };
        let silent = last && payload.is_empty();
        if !silent && client.send(protocol.encode(frame.channel, &payload)).await.is_err() || last {
            return;
        }
    }
}

/// The end of a command as this protocol tells it: a `Status`, or only the message of a failure.
fn error_text(protocol: Protocol, status: &[u8]) -> Bytes {
    if protocol.status {
        return Bytes::copy_from_slice(status);
    }
    let value: serde_json::Value = serde_json::from_slice(status).unwrap_or_else(|_| json!({}));
    if value["status"] == "Success" {
        return Bytes::new();
    }
    value["message"].as_str().unwrap_or_default().to_owned().into()
}
