//! SPDY/3.1 as kubectl before 1.31 speaks it, and newer ones inside a WebSocket: the handshake, frames, header
//! blocks, and sessions of streams that the client opens. Only the server's side.

mod frame;
mod headers;
mod session;

pub use headers::Headers;
pub use session::{Reader, Stream, Writer, serve};

use crate::api::status::{Result, Status};
use crate::apiserver::Call;
use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

const NAME: &str = "SPDY/3.1";
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A handshake that is understood and may be answered.
pub struct Handshake {
    /// What the streams carry, as agreed.
    pub protocol: &'static str,
    upgrade: OnUpgrade,
}

/// Whether the request asks for SPDY, in whatever version.
pub fn is_asked(call: &Call) -> bool {
    call.header(&UPGRADE).to_ascii_lowercase().starts_with("spdy/")
}

/// Reads the client's handshake and agrees on one of `supported`, in the order the client likes them.
pub fn handshake(call: &mut Call, supported: &[&'static str]) -> Result<Handshake> {
    let connection = call.header(&CONNECTION).to_ascii_lowercase();
    if !connection.contains("upgrade") || !call.header(&UPGRADE).eq_ignore_ascii_case(NAME) {
        return Err(Status::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    let values = call.headers.get_all(&PROTOCOL_VERSION).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let protocol = choose(&offered, supported)?;
    let upgrade = call.upgrade.take().ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    Ok(Handshake { protocol, upgrade })
}

fn choose(offered: &[&str], supported: &[&'static str]) -> Result<&'static str> {
    if offered.is_empty() {
        return Err(Status::bad_request("unable to upgrade: X-Stream-Protocol-Version is required"));
    }
    let common = offered.iter().find_map(|name| supported.iter().find(|known| *known == name));
    common.copied().ok_or_else(|| {
        let why = "unable to upgrade: unable to negotiate protocol: client supports";
        let list = |names: &[&str]| names.join(" ");
        let message = format!("{why} [{}], server accepts [{}]", list(offered), list(supported));
        Status::new(403, "Forbidden", message)
    })
}

impl Handshake {
    /// The 101, and the connection that there will be once it is sent.
    pub fn accept(self) -> (Response, impl Future<Output = hyper::Result<TokioIo<Upgraded>>>) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(NAME));
        headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(self.protocol));
        let upgrade = self.upgrade;
        (response, async move { Ok(TokioIo::new(upgrade.await?)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_s_order_decides() {
        let supported = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
        let chosen = |offered: &[&str]| choose(offered, &supported).map_err(|status| status.code);
        assert_eq!(chosen(&["v5.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"]), Ok("v3.channel.k8s.io"));
        assert_eq!(chosen(&["v5.channel.k8s.io"]), Err(403));
        assert_eq!(chosen(&[]), Err(400));
    }
}
