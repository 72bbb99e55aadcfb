//! `/edgelet/v1/relay`: a node's stream of packets to and from pods of nodes that it reaches no other way.
//! Who asks is a node by its certificate; what it may send follows from its Node object (`tunnel::switch`).

use super::tunnel::{forbidden, node_of};
use super::{ApiServer, Call};
use crate::api::status::{Result, Status};
use crate::tunnel::relay::{PATH, PROTOCOL};
use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONNECTION, UPGRADE};
use hyper_util::rt::TokioIo;
use std::time::Duration;

const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Switches protocols for a node; everybody else is refused.
pub fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let node = node_of(&call.user).ok_or_else(|| forbidden(&call.user))?.to_owned();
    let switch = server.0.relays.get().ok_or_else(Status::page_not_found)?.clone();
    if call.header(&UPGRADE) != PROTOCOL {
        return Err(Status::bad_request(format!("{PATH} answers only with `Upgrade: {PROTOCOL}`")));
    }
    let upgrade = call.upgrade.take();
    let upgrade = upgrade.ok_or_else(|| Status::bad_request("the connection cannot be upgraded: use HTTP/1.1"))?;
    let (shutdown, mut authorities) = (server.shutdown(), server.pki().changes());
    tokio::spawn(async move {
        let Ok(Ok(io)) = tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await else { return };
        tracing::debug!(node, "a node sends packets through this server");
        let ending = async {
            match shutdown {
                Some(shutdown) => shutdown.requested().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = switch.serve(TokioIo::new(io), &node) => match ended {
                Ok(()) => tracing::debug!(node, "a node's relay stream rests"),
                Err(error) => tracing::info!(node, %error, "a node's relay stream ended"),
            },
            () = ending => {}
            // It comes back with a certificate of today's authority.
            _ = authorities.changed() => {}
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, PROTOCOL);
    Ok(response.body(Body::empty()).expect("static headers are valid"))
}
