//! The server's side of a WebSocket with one of Kubernetes' channel protocols.

use crate::api::status::{Result, Status};
use crate::apiserver::Call;
use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

const MESSAGE_LIMIT_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 16 << 10;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// One of the channel protocols, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    /// Text messages: a digit for the channel, then base64.
    pub base64: bool,
    /// The error channel carries a `Status`; in the oldest protocol its message alone.
    pub status: bool,
}

const PROTOCOLS: [Protocol; 6] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, status: true },
    Protocol { name: "v4.channel.k8s.io", base64: false, status: true },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, status: true },
    Protocol { name: "base64.channel.k8s.io", base64: true, status: false },
    Protocol { name: "channel.k8s.io", base64: false, status: false },
    // Clients that name none speak the oldest one.
    Protocol { name: "", base64: false, status: false },
];

/// A handshake that is understood and may be answered.
pub struct Handshake {
    pub protocol: Protocol,
    accept: String,
    upgrade: OnUpgrade,
}

/// Reads the client's handshake; an error says what it should have sent.
pub fn handshake(call: &mut Call) -> Result<Handshake> {
    let upgrade = call.header(&UPGRADE).to_ascii_lowercase();
    if upgrade.starts_with("spdy/") {
        let why = "SPDY/3.1 streams are not served yet: use a client that speaks WebSocket (kubectl 1.31 and newer)";
        return Err(Status::bad_request(why));
    }
    if upgrade != "websocket" || call.header(&SEC_WEBSOCKET_VERSION) != "13" {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let key = call.headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let accept = derive_accept_key(key.as_bytes());
    let protocol = choose(call.header(&SEC_WEBSOCKET_PROTOCOL))?;
    let upgrade = call.upgrade.take().ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    Ok(Handshake { protocol, accept, upgrade })
}

fn choose(offered: &str) -> Result<Protocol> {
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let known = PROTOCOLS.into_iter().find(|protocol| offered.contains(&protocol.name));
    known.ok_or_else(|| Status::bad_request(format!("unable to upgrade: none of {offered:?} is spoken here")))
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
        if !self.protocol.name.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.protocol.name));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_protocol_is_chosen_whatever_the_order() {
        assert_eq!(choose("channel.k8s.io, v4.channel.k8s.io,v5.channel.k8s.io").unwrap().name, "v5.channel.k8s.io");
        assert_eq!(choose("base64.channel.k8s.io").unwrap().name, "base64.channel.k8s.io");
        assert_eq!(choose("").unwrap().name, "");
        assert!(choose("SPDY/3.1+portforward.k8s.io").is_err());
    }

    #[test]
    fn messages_in_both_encodings() {
        for name in ["v5.channel.k8s.io", "base64.channel.k8s.io"] {
            let protocol = choose(name).unwrap();
            let message = protocol.encode(1, b"hi");
            assert_eq!(message.is_text(), protocol.base64);
            assert_eq!(protocol.decode(message), Some((1, Bytes::from_static(b"hi"))));
        }
    }
}
