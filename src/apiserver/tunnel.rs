//! `/edgelet/v1/tunnel`: a node's connection turned round, and its Lease renewed from the life of it.
//! A node is heard whenever bytes come from it; an idle one pings. The second tunnel of a node ends the first.

use super::{ApiServer, Call, Peer};
use crate::api::kinds::{Kind, KindRef};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::clock::rfc3339_micro;
use crate::registry::{Context, FieldValidation, PatchType, User};
use crate::tunnel::server::{self, Tunnel};
use crate::tunnel::{PATH, PROTOCOL};
use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const NODE_USER: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// As kubelets write it: the node is given up after this long without a sign of life.
const LEASE_DURATION_S: i64 = 40;
/// However much a node says, its Lease is renewed no more often.
const RENEWAL_PAUSE: Duration = Duration::from_secs(8);
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Switches protocols for a node; everybody else is refused. The Lease is renewed first: a node whose tunnel opens
/// may rely on having been heard.
pub async fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let node = node_of(&call.user).ok_or_else(|| forbidden(&call.user))?.to_owned();
    let (upgraded, response) = switch_protocols(&mut call, PATH, PROTOCOL)?;
    let (server, guest) = (server.clone(), Guest { node, user: call.user, peer: call.peer });
    renew(&server, &guest).await?;
    crate::supervise::spawn(async move {
        let Some(io) = upgraded.await else { return };
        match server::open(io).await {
            Ok(tunnel) => serve(&server, tunnel, &guest).await,
            Err(error) => tracing::warn!(node = guest.node, %error, "a node's tunnel did not open"),
        }
    });
    Ok(response)
}

/// The connection once it speaks `protocol`, `None` when that did not come about, and the answer that says so.
pub(super) fn switch_protocols(
    call: &mut Call,
    path: &str,
    protocol: &'static str,
) -> Result<(impl Future<Output = Option<TokioIo<Upgraded>>> + Send + 'static, Response)> {
    if call.header(&UPGRADE) != protocol {
        return Err(Status::bad_request(format!("{path} answers only with `Upgrade: {protocol}`")));
    }
    let upgrade = call.upgrade.take();
    let upgrade = upgrade.ok_or_else(|| Status::bad_request("the connection cannot be upgraded: use HTTP/1.1"))?;
    let upgraded = async { Some(TokioIo::new(tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await.ok()?.ok()?)) };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, protocol);
    Ok((upgraded, response.body(Body::empty()).expect("static headers are valid")))
}

/// The node a user is, if it is one.
pub(super) fn node_of(user: &User) -> Option<&str> {
    let is_node = user.groups.iter().any(|group| group == NODES_GROUP);
    user.name.strip_prefix(NODE_USER).filter(|name| is_node && !name.is_empty())
}

pub(super) fn forbidden(user: &User) -> Status {
    Status::new(403, "Forbidden", format!("forbidden: User {:?} is no node: only nodes open tunnels", user.name))
}

/// Who has opened a tunnel, and with what.
struct Guest {
    node: String,
    user: User,
    peer: Peer,
}

impl Guest {
    /// Whether what it has shown still counts: tunnels live longer than certificates and authorities.
    async fn counts(&self, server: &ApiServer) -> bool {
        let now = server.auth().authenticate(&mut HeaderMap::new(), &self.peer).await;
        now.is_ok_and(|user| node_of(&user) == Some(&self.node))
    }
}

async fn serve(server: &ApiServer, tunnel: Tunnel, guest: &Guest) {
    let node = &guest.node;
    let mut attached = server.tunnels().attach(node, tunnel.dial);
    tracing::info!(node, "node connected");
    let mut authorities = server.pki().changes();
    let ending = async {
        match server.shutdown() {
            Some(shutdown) => shutdown.requested().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        error = tunnel.run => tracing::info!(node, reason = %error, "node disconnected"),
        () = attached.replaced() => tracing::info!(node, "the node has opened another tunnel"),
        () = ending => {}
        // It comes back at once and sees that its certificate is of yesterday's authority.
        _ = authorities.changed() => tracing::info!(node, "the authority has changed: the node is to connect again"),
        () = keep_lease(server, guest, tunnel.heard) => {}
    }
}

/// Renews the Lease whenever the node was heard, for as long as it is who it was.
async fn keep_lease(server: &ApiServer, guest: &Guest, mut heard: watch::Receiver<Instant>) {
    while guest.counts(server).await {
        if let Err(error) = renew(server, guest).await {
            // A node that is not noted must not take itself for heard.
            return tracing::warn!(node = guest.node, %error, "cannot renew the node's lease: its tunnel ends");
        }
        tokio::time::sleep(RENEWAL_PAUSE).await;
        if heard.changed().await.is_err() {
            // The connection ends with its sender; whoever runs it says why.
            std::future::pending::<()>().await;
        }
    }
    tracing::info!(node = guest.node, "the node's certificate counts no longer: its tunnel ends");
}

/// A renewal by the same holder stays in memory until something else is written.
async fn renew(server: &ApiServer, guest: &Guest) -> Result<()> {
    let (registry, node) = (server.registry(), guest.node.as_str());
    let context = &Context {
        user: guest.user.clone(),
        dry_run: false,
        field_manager: "kubelet".into(),
        field_validation: FieldValidation::Ignore,
    };
    let leases = kind(server, "coordination.k8s.io", "leases")?;
    let now = rfc3339_micro(server.clock().now());
    let renewal = json!({"spec": {"holderIdentity": node, "renewTime": now}});
    let patched = registry.patch(context, &leases, "", LEASE_NAMESPACE, node, PatchType::Merge, renewal.into()).await;
    match patched {
        Err(error) if error.is_not_found() => make(server, context, &leases, node, &now).await,
        other => other.map(drop),
    }
}

async fn make(server: &ApiServer, context: &Context, leases: &Kind, node: &str, now: &str) -> Result<()> {
    let registry = server.registry();
    let entry = match registry.get(&*kind(server, "", "nodes")?, "", node).await {
        // It opens its tunnel before it registers.
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    let owner: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": LEASE_NAMESPACE, "ownerReferences":
            [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.uid()}]},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": now},
    });
    registry.create(context, leases, LEASE_NAMESPACE, lease.into()).await.map(drop)
}

fn kind(server: &ApiServer, group: &str, plural: &str) -> Result<KindRef> {
    server.registry().kinds.resource(group, "v1", plural).ok_or_else(Status::page_not_found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_are_nodes() {
        let user = |name: &str, group: &str| User { name: name.into(), groups: vec![group.into()], ..User::default() };
        assert_eq!(node_of(&user("system:node:a", NODES_GROUP)), Some("a"));
        assert_eq!(node_of(&user("system:node:a", "system:authenticated")), None);
        assert_eq!(node_of(&user("system:node:", NODES_GROUP)), None);
        assert_eq!(node_of(&user("alice", NODES_GROUP)), None);
    }
}
