//! `/edgelet/v1/relay`: a node's stream of packets to and from pods of nodes that it reaches no other way.
//! Who asks is a node by its certificate; what it may send follows from its Node object (`tunnel::switch`).

use super::tunnel::{forbidden, node_of, switch_protocols};
use super::{ApiServer, Call};
use crate::api::status::{Result, Status};
use crate::tunnel::relay::{PATH, PROTOCOL};
use axum::response::Response;

/// Switches protocols for a node; everybody else is refused.
pub fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let node = node_of(&call.user).ok_or_else(|| forbidden(&call.user))?.to_owned();
    let switch = server.0.relays.get().ok_or_else(Status::page_not_found)?.clone();
    let (upgraded, response) = switch_protocols(&mut call, PATH, PROTOCOL)?;
    let (shutdown, mut authorities) = (server.shutdown(), server.pki().changes());
    crate::supervise::spawn(async move {
        let Some(io) = upgraded.await else { return };
        tracing::debug!(node, "a node sends packets through this server");
        let ending = async {
            match shutdown {
                Some(shutdown) => shutdown.requested().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = switch.serve(io, &node) => match ended {
                Ok(()) => tracing::debug!(node, "a node's relay stream rests"),
                Err(error) => tracing::info!(node, %error, "a node's relay stream ended"),
            },
            () = ending => {}
            // It comes back with a certificate of today's authority.
            _ = authorities.changed() => {}
        }
    });
    Ok(response)
}
