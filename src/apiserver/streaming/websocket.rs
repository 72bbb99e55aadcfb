//! The server's side of a WebSocket, with the channel protocols of Kubernetes.

use crate::api::status::{Result, Status};
use crate::apiserver::Call;
use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

const MESSAGE_LIMIT_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 16 << 10;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How messages carry channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Text messages: a digit for the channel, then base64.
    base64: bool,
    /// The error channel carries a `Status`; in the oldest protocols its message alone.
    pub status: bool,
}

impl Protocol {
    /// Of its name: `v4.base64.channel.k8s.io` and the like, empty for clients that name none.
    pub fn of(name: &str) -> Self {
        let oldest = matches!(name, "" | "channel.k8s.io" | "base64.channel.k8s.io");
        Self { base64: name.contains("base64."), status: !oldest }
    }
}

/// A handshake that is understood and may be answered.
pub struct Handshake {
    /// The name agreed on.
    pub protocol: &'static str,
    accept: String,
    upgrade: OnUpgrade,
}

/// Reads the client's handshake and agrees on the first of `supported` that it offers, where empty stands for
/// clients that offer none; an error says what it should have sent.
pub fn handshake(call: &mut Call, supported: &[&'static str]) -> Result<Handshake> {
    if !is_asked(call) || call.header(&SEC_WEBSOCKET_VERSION) != "13" {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let key = call.headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let accept = derive_accept_key(key.as_bytes());
    let protocol = choose(call.header(&SEC_WEBSOCKET_PROTOCOL), supported)?;
    let upgrade = call.upgrade.take().ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    Ok(Handshake { protocol, accept, upgrade })
}

/// Whether the request asks for a WebSocket.
pub fn is_asked(call: &Call) -> bool {
    call.header(&UPGRADE).eq_ignore_ascii_case("websocket")
}

fn choose(offered: &str, supported: &[&'static str]) -> Result<&'static str> {
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let known = supported.iter().find(|name| offered.contains(name));
    known.copied().ok_or_else(|| Status::bad_request(format!("unable to upgrade: none of {offered:?} is spoken here")))
}

impl Handshake {
    /// The 101, and the socket that there will be once it is sent.
    pub fn accept(self) -> (Response, impl Future<Output = hyper::Result<Socket>>) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept.parse().expect("base64 fits in a header"));
        if !self.protocol.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.protocol));
        }
        let upgrade = self.upgrade;
        let socket = async move {
            let upgraded = TokioIo::new(upgrade.await?);
            let config = WebSocketConfig::default()
                .read_buffer_size(BUFFER_BYTES)
                .write_buffer_size(0)
                .max_write_buffer_size(MESSAGE_LIMIT_BYTES * 2)
                .max_message_size(Some(MESSAGE_LIMIT_BYTES))
                .max_frame_size(Some(MESSAGE_LIMIT_BYTES));
            Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
        };
        (response, socket)
    }
}

impl Protocol {
    pub fn encode(self, channel: u8, payload: &[u8]) -> Message {
        if self.base64 {
            let text = format!("{}{}", char::from(b'0' + channel), STANDARD.encode(payload));
            return Message::text(text);
        }
        Message::binary([&[channel], payload].concat())
    }

    /// Channel and payload; `None` for messages that carry none.
    pub fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let data = message.into_data();
        let channel = *data.first()?;
        let payload = data.slice(1..);
        if !self.base64 {
            return Some((channel, payload));
        }
        let decoded = STANDARD.decode(payload).ok()?;
        Some((channel.checked_sub(b'0')?, decoded.into()))
    }
}

/// Ends a WebSocket with a code, without which clients report 1005, an abnormal end. Reading on until the client
/// has answered lets it read what was sent before.
pub async fn close(mut to_client: SplitSink<Socket, Message>, mut from_client: SplitStream<Socket>) {
    let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
    let closing = async {
        if to_client.send(Message::Close(Some(normal))).await.is_ok() {
            while let Some(Ok(_)) = from_client.next().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_protocol_is_chosen_whatever_the_order() {
        let supported = ["v5.channel.k8s.io", "base64.channel.k8s.io", ""];
        let chosen = |offered| choose(offered, &supported).ok();
        assert_eq!(chosen("x.channel.k8s.io,base64.channel.k8s.io, v5.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(chosen(""), Some(""));
        assert_eq!(chosen("SPDY/3.1+portforward.k8s.io"), None);
    }

    #[test]
    fn messages_in_both_encodings() {
        for (name, base64, status) in [
            ("v5.channel.k8s.io", false, true),
            ("v4.base64.channel.k8s.io", true, true),
            ("base64.channel.k8s.io", true, false),
            ("", false, false),
        ] {
            let protocol = Protocol::of(name);
            let message = protocol.encode(1, b"hi");
            assert_eq!((message.is_text(), protocol.status), (base64, status), "{name}");
            assert_eq!(protocol.decode(message), Some((1, Bytes::from_static(b"hi"))));
        }
    }
}
