//! The WebSocket channels: two per port, data and error, each opened by the port's number.

use super::super::frames;
use super::super::websocket::{self, Protocol, Socket};
use crate::api::status::{Result, Status};
use crate::apiserver::query::Query;
use bytes::Bytes;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// Channels are one byte: two per port.
const PORTS_LIMIT: usize = 100;
/// Messages on their way to the client, and to each port.
const QUEUE_LIMIT: usize = 8;

/// The ports of the query, each a connection.
pub fn ports(query: &Query) -> Result<Vec<u16>> {
    let listed = query.all("ports").flat_map(|list| list.split(','));
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

/// Until the client or all of the ports have ended.
pub async fn join(socket: Socket, protocol: Protocol, streams: Vec<(u16, OnUpgrade)>) {
    let (mut to_client, mut from_client) = socket.split();
    let (sender, mut messages) = mpsc::channel::<Message>(QUEUE_LIMIT);
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::with_capacity(streams.len());
    for (at, (port, stream)) in streams.into_iter().enumerate() {
        let data = u8::try_from(2 * at).expect("fewer ports than channels");
        let (input, inputs_of_port) = mpsc::channel::<Input>(QUEUE_LIMIT);
        inputs.push(input);
        tasks.spawn(one_port(stream, protocol, port, data, inputs_of_port, sender.clone()));
    }
    drop(sender);
    let write = async {
        while let Some(message) = messages.recv().await {
            if to_client.send(message).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read_client(&mut from_client, protocol, inputs) => return,
        () = write => {}
    }
    websocket::close(to_client, from_client).await;
}

/// What a port gets from the client.
enum Input {
    Data(Bytes),
    End,
}

/// Until the client has gone.
async fn read_client(client: &mut SplitStream<Socket>, protocol: Protocol, inputs: Vec<mpsc::Sender<Input>>) {
    while let Some(Ok(message)) = client.next().await {
        if message.is_close() {
            return;
        }
        if !(message.is_binary() || message.is_text()) {
            continue;
        }
        let Some((channel, payload)) = protocol.decode(message) else { continue };
        let (channel, input) = match (channel, payload.first()) {
            (frames::CLOSE, Some(closed)) => (*closed, Input::End),
            _ => (channel, Input::Data(payload)),
        };
        let Some(port) = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) else { continue };
        // A port that has ended takes no more; the others go on.
        let _ = port.send(input).await;
    }
}

/// One port: both of its channels are opened by its number, as clients expect.
async fn one_port(
    stream: OnUpgrade,
    protocol: Protocol,
    port: u16,
    data: u8,
    mut inputs: mpsc::Receiver<Input>,
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
        while let Some(input) = inputs.recv().await {
            // A node that takes no more has ended: how, is read from it.
            let _ = match input {
                Input::Data(payload) => frames::write(&mut to_node, frames::STDIN, &payload).await,
                Input::End => frames::write(&mut to_node, frames::CLOSE, &[frames::STDIN]).await,
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_listed_or_repeated() {
        let of = |text: &str| ports(&Query::parse(text)).map_err(|status| status.code);
        assert_eq!(of("ports=80,443&ports=8080"), Ok(vec![80, 443, 8080]));
        for text in ["", "ports=", "ports=0", "ports=65536", "ports=http"] {
            assert_eq!(of(text), Err(400), "{text}");
        }
        assert_eq!(of(&format!("ports={}80", "1,".repeat(100))), Err(400));
    }
}
