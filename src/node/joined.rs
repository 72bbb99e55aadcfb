//! A joined node's way to its cluster: a client with the node's certificate, the tunnel, the certificate's renewal.

use super::time::Timekeeper;
use super::{Heartbeat, NodeLink, renewal, time};
use crate::client::kubeconfig::Access;
use crate::client::reach::Reach;
use crate::client::replica::{KeySource, ReplicaError};
use crate::client::uplink::{self, Relaying, State};
use crate::client::{Client, Informers, Remote, Replica};
use crate::clock::Clock;
use crate::config::{ClusterFacts, Config};
use crate::network::changes;
use crate::network::resolve::Resolver;
use crate::pki::node_identity::{Joined, NodeIdentity};
use crate::pki::{PkiError, certificate, files};
use crate::supervise::{Shutdown, Tree};
use crate::sys::tpm::Tpm;
use crate::telemetry::Trace;
use crate::tunnel::node::Doors;
use crate::tunnel::relay::Link;
use crate::tunnel::rhythm::Idle;
use anyhow::Context;
use rustls_pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Streams that may wait for the kubelet to take them.
const STREAMS_LIMIT: usize = 16;
/// How long addresses and routes may go on changing before they are looked at.
const SETTLING: Duration = Duration::from_secs(1);
const FACTS: &str = "cluster.json";

/// The ways out of this machine.
pub struct Ways {
    pub reach: Arc<dyn Reach>,
    /// Counts changes of addresses and routes.
    pub changed: watch::Receiver<u64>,
    /// What keeps the replica's key, where there is one.
    pub tpm: Tpm,
}

impl Ways {
    /// TCP, and what the kernel tells of its network.
    pub fn of_machine() -> Self {
        Self { reach: Arc::new(Resolver::default()), changed: changes::follow(), tpm: Tpm::of_board() }
    }
}

/// What leads to the server.
pub struct Uplink {
    pub link: NodeLink,
    pub remote: Remote,
    pub state: watch::Receiver<State>,
}

/// The credentials a joined node shows.
pub fn access(joined: &Joined) -> Access {
    Access {
        server: joined.server.clone(),
        ca_pem: joined.ca_pem.clone().into_bytes(),
        client_certificate_pem: joined.credentials.certificate_pem.clone().into_bytes(),
        client_key_pem: joined.credentials.key_pem.clone().into_bytes(),
        ..Access::default()
    }
}

/// Opens the way to the server and keeps it open as part of the tree; returns before the server has answered.
pub async fn connect(
    config: &Config,
    identity: &NodeIdentity,
    joined: &Joined,
    ways: Ways,
    clock: Clock,
    tree: &mut Tree,
) -> anyhow::Result<Uplink> {
    let Ways { reach, changed, tpm } = ways;
    let remote = Remote::for_node(access(joined), reach, clock.clone()).context("use the node's keys")?;
    remote.keep_alive(Idle::default().limit())?;
    let (streams, kubelet) = mpsc::channel(STREAMS_LIMIT);
    let (state, states) = watch::channel(State::default());
    let (assured, heard) = watch::channel(None);
    let relay = Link { connect: Arc::new(Relaying(remote.clone())), knocks: Arc::default() };
    let doors = Doors { kubelet: streams, relay: relay.knocks.clone() };
    tree.spawn("uplink", uplink::run(remote.clone(), doors, changed.clone(), state, assured, tree.shutdown()));
    let (addresses, node_ips) = watch::channel(vec![config.node_ip]);
    if !config.node_ip_is_fixed {
        tree.spawn("addresses", follow_address(joined.server.clone(), changed, addresses, tree.shutdown()));
    }
    let keeping = Timekeeper::new(identity, remote.clone(), clock.clone());
    tree.spawn("time", keeping.run(states.clone(), tree.shutdown()));
    let renewing = renewal::Renewal {
        identity: identity.clone(),
        node_name: config.node_name.clone(),
        remote: remote.clone(),
        clock: clock.clone(),
        not_after: joined.credentials.not_after,
    };
    tree.spawn("certificate", renewing.run(states.clone(), tree.shutdown()));
    let client = Client::Remote(remote.clone());
    let link = NodeLink {
        informers: informers(client.clone(), identity, tpm).await,
        client,
        streams: kubelet,
        relay,
        heartbeat: Heartbeat::Tunnel(heard),
        node_ips,
        trace: Arc::new(Trace::default()),
        clock,
    };
    Ok(Uplink { link, remote, state: states })
}

/// What the node sees is kept on its disk; without that it still works, but does not boot without the server.
async fn informers(client: Client, identity: &NodeIdentity, tpm: Tpm) -> Informers {
    let directory = identity.directory().to_owned();
    let open = move || {
        let key = KeySource::bind(&directory.join("node.key"), &tpm)?;
        let replica = Replica::open_or_new(&Replica::folder(&directory), &key)?;
        Ok::<_, ReplicaError>((replica, key.binding()))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    match opened.unwrap_or_else(|panic| Err(std::io::Error::other(panic).into())) {
        Ok((replica, binding)) => {
            tracing::info!(bound_to = %binding, "replica opened");
            Informers::with_replica(client, replica)
        }
        Err(error) => {
            tracing::error!(%error, "open replica; this board cannot boot without its server");
            Informers::new(client)
        }
    }
}

/// The folder a joined node keeps its keys in.
pub fn identity(data_directory: &Path) -> NodeIdentity {
    NodeIdentity::new(&data_directory.join("node"))
}

/// Forgets what this board has kept of another cluster than that of these authorities: the other's pods must not run
/// here, nor its Secrets lie here. The node's key stays. True when there was something. Blocks.
pub fn forget_former(identity: &NodeIdentity, authorities: &[CertificateDer<'_>]) -> Result<bool, PkiError> {
    let known = identity.authorities()?.map(|pem| certificate::bundle(pem.as_bytes())).transpose()?.unwrap_or_default();
    let keys = |all: &[CertificateDer<'_>]| all.iter().filter_map(certificate::key_hash).collect::<Vec<_>>();
    let (known, current) = (keys(&known), keys(authorities));
    let replica = Replica::folder(identity.directory());
    if known.iter().any(|key| current.contains(key)) || (known.is_empty() && !replica.exists()) {
        return Ok(false);
    }
    identity.leave(|| {
        files::remove_folder(&replica)?;
        files::remove(&identity.directory().join(FACTS))?;
        time::forget(identity)
    })?;
    Ok(true)
}

/// Asks the server what all nodes must know alike, and keeps it.
pub async fn learn_facts(remote: &Remote, identity: &NodeIdentity) -> anyhow::Result<ClusterFacts> {
    let answer = remote.raw(http::Method::GET, "/edgelet/v1/cluster", None).await?;
    let facts: ClusterFacts =
        serde_json::from_slice(&answer).context("understand what the server says of the cluster")?;
    files::write_private(&identity.directory().join(FACTS), &answer)?;
    Ok(facts)
}

/// What the server said when the node joined.
pub fn facts(identity: &NodeIdentity) -> anyhow::Result<Option<ClusterFacts>> {
    let path = identity.directory().join(FACTS);
    let text = files::read_text(&path)?;
    text.map(|text| serde_json::from_str(&text)).transpose().with_context(|| format!("understand {}", path.display()))
}

/// Follows this machine's address on the way to the server: boards move between networks.
async fn follow_address(
    server: String,
    mut changed: watch::Receiver<u64>,
    addresses: watch::Sender<Vec<IpAddr>>,
    shutdown: Shutdown,
) {
    let resolver = Resolver::default();
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            outcome = changed.changed() => if outcome.is_err() { return },
        }
        // A new address comes with a removed one, and a route after it.
        tokio::time::sleep(SETTLING).await;
        changed.mark_unchanged();
        if let Some(ip) = address_towards(&server, &resolver).await {
            addresses.send_if_modified(|known| {
                let new = known.first() != Some(&ip);
                if new {
                    *known = vec![ip];
                }
                new
            });
        }
    }
}

/// This machine's address on the way to the server: what other nodes find it at. Nothing is sent.
pub async fn address_towards(server: &str, resolver: &Resolver) -> Option<IpAddr> {
    let uri: http::Uri = server.parse().ok()?;
    let found = resolver.resolve(uri.host()?, uri.port_u16().unwrap_or(443)).await.ok()?;
    found.into_iter().find_map(source_address)
}

fn source_address(server: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(server).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::Authority;

    #[test]
    fn joining_another_cluster_forgets_the_former_one_and_joining_again_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let identity = identity(directory.path());
        let now = jiff::Timestamp::UNIX_EPOCH;
        let (former, other) = (Authority::generate(now).unwrap(), Authority::generate(now).unwrap());
        let roots = |authority: &Authority| vec![authority.der().clone()];
        assert!(!forget_former(&identity, &roots(&former)).unwrap(), "a board that was nobody's");

        let key = identity.key().unwrap();
        let files = ["node.crt", "ca.crt", "server", "cluster.json", "time-floor", "replica/log"];
        let fill = || {
            std::fs::create_dir_all(identity.directory().join("replica")).unwrap();
            files.iter().for_each(|file| std::fs::write(identity.directory().join(file), "x").unwrap());
            identity.store_authorities(former.pem()).unwrap();
        };
        fill();
        assert!(!forget_former(&identity, &roots(&former)).unwrap());
        assert!(files.iter().all(|file| identity.directory().join(file).exists()));
        assert!(forget_former(&identity, &roots(&other)).unwrap());
        assert!(!files.iter().any(|file| identity.directory().join(file).exists()));
        assert_eq!(identity.key().unwrap(), key);
        // Nobody can say any more whose it is.
        fill();
        std::fs::remove_file(identity.directory().join("ca.crt")).unwrap();
        assert!(forget_former(&identity, &roots(&former)).unwrap());
        assert!(!identity.directory().join("replica").exists());
    }
}
