//! `pods/portforward`: connections of the client to ports in a pod. Over SPDY, bare or tunnelled in a WebSocket, a
//! pair of streams per connection; over the WebSocket channels two channels per port, fixed from the start.

mod channels;
mod streams;

use super::byte_stream::ByteStream;
use super::websocket::Protocol;
use super::{Target, go_on, open, percent_encode, pod, spdy, websocket};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;

const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED_SPDY: &str = "SPDY/3.1+portforward.k8s.io";
/// Best first. `v5`, which upstream has for exec alone, adds the client's half close.
const WEBSOCKET_PROTOCOLS: [&str; 5] =
    [TUNNELLED_SPDY, "v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

pub async fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let forwarder = Forwarder::to(server, &call).await?;
    if spdy::is_asked(&call) {
        let (response, client) = spdy::handshake(&mut call, &[SPDY_PROTOCOL])?.accept();
        go_on(&mut call, async move {
            let Ok(client) = client.await else { return };
            spdy::serve(client, |streams| streams::join(streams, forwarder)).await;
        });
        return Ok(response);
    }
    let handshake = websocket::handshake(&mut call, &WEBSOCKET_PROTOCOLS)?;
    let protocol = handshake.protocol;
    if protocol == TUNNELLED_SPDY {
        let (response, socket) = handshake.accept();
        go_on(&mut call, async move {
            let Ok(socket) = socket.await else { return };
            spdy::serve(ByteStream::new(socket), |streams| streams::join(streams, forwarder)).await;
        });
        return Ok(response);
    }
    let ports = channels::ports(&call.query)?;
    let mut opened = Vec::with_capacity(ports.len());
    for port in ports {
        opened.push((port, forwarder.open(port).await?));
    }
    let (response, socket) = handshake.accept();
    go_on(&mut call, async move {
        if let Ok(socket) = socket.await {
            channels::join(socket, Protocol::of(protocol), opened).await;
        }
    });
    Ok(response)
}

/// Opens connections to one pod.
struct Forwarder {
    server: ApiServer,
    pod: String,
    node: String,
    path: String,
}

impl Forwarder {
    async fn to(server: &ApiServer, call: &Call) -> Result<Self> {
        let (namespace, name) = (&call.info.namespace, &call.info.name);
        let node = pod(server, call).await?.spec.node_name;
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let path = format!("/portForward/{}/{}", percent_encode(namespace), percent_encode(name));
        Ok(Self { server: server.clone(), pod: name.clone(), node, path })
    }

    async fn open(&self, port: u16) -> Result<OnUpgrade> {
        let target = Target { node: self.node.clone(), path: format!("{}?port={port}", self.path) };
        open(&self.server, &target).await
    }
}
