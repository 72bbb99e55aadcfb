//! The channels of a WebSocket and the frames of the kubelet, one to one.

use super::super::frames;
use super::super::websocket::{self, Protocol, Socket};
use super::{Wanted, error_text, lost};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;

/// Until either side ends.
pub async fn join(socket: Socket, protocol: Protocol, wanted: Wanted, node: impl AsyncRead + AsyncWrite + Send) {
    let (mut to_client, mut from_client) = socket.split();
    let (from_node, to_node) = tokio::io::split(node);
    if to_client.send(protocol.encode(first_channel(wanted), b"")).await.is_err() {
        return;
    }
    tokio::select! {
        () = client_to_node(&mut from_client, protocol, to_node) => return,
        () = node_to_client(from_node, protocol, &mut to_client) => {}
    }
    websocket::close(to_client, from_client).await;
}

/// The channel that an empty message is sent on first, so that clients know they are through.
fn first_channel(wanted: Wanted) -> u8 {
    if wanted.stdout {
        frames::STDOUT
    } else if wanted.stderr {
        frames::STDERR
    } else {
        frames::ERROR
    }
}

/// Until the client has gone.
async fn client_to_node(client: &mut SplitStream<Socket>, protocol: Protocol, mut node: impl AsyncWrite + Unpin) {
    while let Some(Ok(message)) = client.next().await {
        if message.is_close() {
            return;
        }
        if !(message.is_binary() || message.is_text()) {
            continue;
        }
        let Some((channel, payload)) = protocol.decode(message) else { continue };
        let ours = matches!(channel, frames::STDIN | frames::RESIZE | frames::CLOSE);
        if ours {
            // A node that takes no more has ended: how, is read from it.
            let _ = frames::write(&mut node, channel, &payload).await;
        }
    }
}

/// The kubelet's last frame is a `Status`, on the error channel.
async fn node_to_client(mut node: impl AsyncRead + Unpin, protocol: Protocol, client: &mut SplitSink<Socket, Message>) {
    loop {
        let (channel, payload) = match frames::read(&mut node).await {
            Ok(Some(frame)) => (frame.channel, frame.payload),
            Ok(None) | Err(_) => (frames::ERROR, lost()),
        };
        let last = channel == frames::ERROR;
        let payload = if last { error_text(protocol.status, &payload) } else { payload };
        let silent = last && payload.is_empty();
        if !silent && client.send(protocol.encode(channel, &payload)).await.is_err() || last {
            return;
        }
    }
}
