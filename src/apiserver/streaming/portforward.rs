//! `pods/portforward` over the WebSocket channels: two per port, data and error, each opened by the port.

use super::exec::{Target, upgrade};
use super::websocket::{self, Protocol, Socket};
use super::{frames, percent_encode, pod};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// Channels are one byte: two per port.
const PORTS_LIMIT: usize = 100;
/// Messages on their way to the client, and to each port.
const QUEUE_LIMIT: usize = 8;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let ports = ports(&call)?;
    let pod = pod(server, &call).await?;
    let name = call.info.name.clone();
    if pod.spec.node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let handshake = websocket::handshake(&mut call)?;
    let mut streams = Vec::with_capacity(ports.len());
    for port in &ports {
        let path = [&call.info.namespace, &name].map(|part| percent_encode(part)).join("/");
        let target = Target { node: pod.spec.node_name.clone(), path: format!("/portForward/{path}?port={port}") };
        streams.push((*port, upgrade(server, &target).await?));
    }
    let protocol = handshake.protocol;
    let (response, socket) = handshake.accept();
    let open = call.open.take();
    tokio::spawn(async move {
        let _open = open;
        if let Ok(socket) = socket.await {
            bridge(socket, protocol, streams).await;
        }
    });
    Ok(response)
}

fn ports(call: &Call) -> Result<Vec<u16>> {
    let listed = call.query.all("ports").flat_map(|list| list.split(','));
    let parse = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Status::bad_request(format!("port {text:?} must be between 1 and 65535"))),
    };
    let ports = listed.map(parse).collect::<Result<Vec<u16>>>()?;
    if ports.is_empty() || ports.len() > PORTS_LIMIT {
        return Err(Status::bad_request(format!("query parameter \"ports\" must name 1 to {PORTS_LIMIT} ports")));
    }
    Ok(ports)
}

async fn bridge(socket: Socket, protocol: Protocol, streams: Vec<(u16, OnUpgrade)>) {
    let (mut to_client, from_client) = socket.split();
    let (sender, mut messages) = mpsc::channel::<Message>(QUEUE_LIMIT);
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::with_capacity(streams.len());
    for (at, (port, stream)) in streams.into_iter().enumerate() {
        let data = u8::try_from(2 * at).expect("fewer ports than channels");
        let (input, payloads) = mpsc::channel::<Bytes>(QUEUE_LIMIT);
        inputs.push(input);
        let sender = sender.clone();
        tasks.spawn(one_port(stream, protocol, port, data, payloads, sender));
    }
    drop(sender);
    tokio::select! {
        () = read_client(from_client, protocol, inputs) => {}
        () = async {
            while let Some(message) = messages.recv().await {
                if to_client.send(message).await.is_err() {
                    return;
                }
            }
        } => {}
    }
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, to_client.close()).await;
}

async fn read_client(mut client: SplitStream<Socket>, protocol: Protocol, inputs: Vec<mpsc::Sender<Bytes>>) {
    while let Some(Ok(message)) = client.next().await {
        if message.is_close() {
            return;
        }
        if !(message.is_binary() || message.is_text()) {
            continue;
        }
        let Some((channel, payload)) = protocol.decode(message) else { continue };
        let Some(input) = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) else { continue };
        // A port that has ended takes no more; the others go on.
        let _ = input.send(payload).await;
    }
}

/// One port: both of its channels are opened by its number, as clients expect.
async fn one_port(
    stream: OnUpgrade,
    protocol: Protocol,
    port: u16,
    data: u8,
    mut payloads: mpsc::Receiver<Bytes>,
    client: mpsc::Sender<Message>,
) {
    for channel in [data, data + 1] {
        if client.send(protocol.encode(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let Ok(stream) = stream.await else { return };
    let (mut from_node, mut to_node) = tokio::io::split(TokioIo::new(stream));
    let inward = async {
        while let Some(payload) = payloads.recv().await {
            if frames::write(&mut to_node, frames::STDIN, &payload).await.is_err() {
                return;
            }
        }
    };
    let outward = async {
        while let Ok(Some(frame)) = frames::read(&mut from_node).await {
            let channel = if frame.channel == frames::ERROR { data + 1 } else { data };
            if client.send(protocol.encode(channel, &frame.payload)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = inward => {}, () = outward => {} }
}
