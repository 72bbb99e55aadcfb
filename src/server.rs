//! Wires a control plane: store, registry, API server, scheduler, controllers.
//! What it starts belongs to the caller's task tree; what it makes lives in the data folder.

mod pod_networks;
mod upkeep;

use crate::api::kinds::Kinds;
use crate::apiserver::{ApiServer, ApiServerConfig};
use crate::backup;
use crate::client::{Client, Informers, Local, NODES};
use crate::clock::Clock;
use crate::config::{ClusterFacts, Config};
use crate::controllers::{self, ControllerConfig};
use crate::kubelet::Heartbeat;
use crate::node::NodeLink;
use crate::pki::{self, Pki, ServerNames};
use crate::registry::{Registry, RegistryConfig, ServerFacts};
use crate::scheduler;
use crate::store::Store;
use crate::store::seal::Sealer;
use crate::store::sqlite::SqliteStore;
use crate::supervise::Tree;
use crate::telemetry::Trace;
use crate::tunnel::switch::Switch;
use crate::tunnel::{Pipe, Tunnels};
use anyhow::Context;
use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde_json::json;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Streams that may wait for the kubelet to take them.
const STREAMS_LIMIT: usize = 16;

/// A running control plane, and what a node on the same board shares with it.
pub struct ControlPlane {
    /// Where the API answers.
    pub address: SocketAddr,
    pub client: Client,
    pub informers: Informers,
    pub registry: Arc<Registry>,
    pub tunnels: Tunnels,
    relays: Switch,
    pub trace: Arc<Trace>,
    pub clock: Clock,
    store: Arc<dyn Store>,
    _claim: File,
}

/// Starts everything; the API answers when it returns.
pub async fn start(config: &Config, tree: &mut Tree) -> anyhow::Result<ControlPlane> {
    let clock = Clock::real();
    let trace = Arc::new(Trace::default());
    let data = &config.data_directory;
    let claimed = data.exists().then(|| claim(data)).transpose()?;
    // Before anything is made: where the port is taken, nothing is left behind.
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {} (is another API server running?)", config.listen))?;
    make_private(data)?;
    let claim = claimed.map_or_else(|| claim(data), Ok)?;
    let (store, pki) = open(config, clock.clone()).await?;
    if let Some(schedule) = config.backup.clone() {
        let backups = backup::schedule::run(schedule, config.data_directory.clone(), clock.clone(), tree.shutdown());
        tree.spawn("backups", backups);
    }

    let address = advertised(config, listener.local_addr()?);
    let registry_config = RegistryConfig {
        service_cidr: (config.service_cidr.base(), config.service_cidr.prefix()),
        cluster_domain: config.cluster_domain.clone(),
        cluster_dns: config.dns_ip,
    };
    let registry = Registry::new(registry_config, store.clone(), Kinds::default(), clock.clone(), trace.clone());
    let registry = Arc::new(registry);
    let facts = ServerFacts { address: ipv4(address.ip())?, port: address.port(), client_ca_pem: pki.ca_pem() };
    registry.bootstrap(&facts).await.context("write the objects every cluster has")?;

    let tunnels = Tunnels::default();
    let api_config = ApiServerConfig {
        advertise: address.to_string(),
        names: ServerNames { extra: upkeep::names_now(config), ..names(config) },
        anonymous: true,
        cluster: json!(ClusterFacts::of(config)),
    };
    let api = ApiServer::new(api_config, registry.clone(), pki.clone(), tunnels.clone(), clock.clone());
    let client = |component: &str| Client::Local(Local::new(registry.clone(), component));
    let informers = Informers::new(client("informers"));
    let pod_networks = pod_networks::PodNetworks::new(informers.all(NODES));
    let relays = Switch::new(tunnels.clone(), Box::new(pod_networks));
    api.relay_through(relays.clone());
    write_kubeconfig(&pki, config, address).await?;
    let keep = upkeep::keep(config.clone(), pki.clone(), api.clone(), address, tree.shutdown());
    tree.spawn("certificate upkeep", keep);
    let shutdown = tree.shutdown();
    tree.spawn_fallible("apiserver", async move { api.serve(vec![listener], shutdown).await });

    let scheduling =
        scheduler::run(client("kube-scheduler"), informers.clone(), clock.clone(), trace.clone(), tree.shutdown());
    tree.spawn("scheduler", scheduling);
    let controller_config = ControllerConfig {
        cluster_cidr: config.cluster_cidr,
        own_node: config.node_name.clone(),
        pki: Some(pki.clone()),
        ..ControllerConfig::new(registry.kinds.clone(), pki.ca_pem())
    };
    controllers::run_all(&controller_config, client("kube-controller-manager"), informers.clone(), clock.clone(), tree);
    Ok(ControlPlane {
        address,
        client: client("node"),
        informers,
        registry,
        tunnels,
        relays,
        trace,
        clock,
        store,
        _claim: claim,
    })
}

/// What the data folder holds.
async fn open(config: &Config, clock: Clock) -> anyhow::Result<(Arc<dyn Store>, Pki)> {
    let (directory, facts) = (config.data_directory.clone(), config.cluster_facts());
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    tokio::task::spawn_blocking(move || {
        keep_cluster_facts(&directory, &facts)?;
        let store = open_store(&directory)?;
        let pki = Pki::open(&directory.join("pki"), &issuer, clock).context("open keys and certificates")?;
        anyhow::Ok((store, pki))
    })
    .await?
}

impl ControlPlane {
    /// What the node on the server's own board works with: everything in process.
    pub fn link(&self, config: &Config) -> NodeLink {
        let (dials, streams) = tokio::sync::mpsc::channel(STREAMS_LIMIT);
        self.tunnels.register(&config.node_name, Arc::new(Pipe(dials)));
        NodeLink {
            client: self.client.clone(),
            informers: self.informers.clone(),
            streams,
            heartbeat: Heartbeat::Lease,
            relay: self.relays.link(&config.node_name),
            node_ips: tokio::sync::watch::channel(vec![config.node_ip]).1,
            trace: self.trace.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Writes what still waits in memory and closes the database. Call it when the tree has ended.
    pub async fn close(&self) -> anyhow::Result<()> {
        // Those who follow the store would take its end for a failure and try again.
        self.informers.end();
        self.store.close().await.context("close the database")
    }
}

/// The database, its sealed kinds opened with the key that lies beside the authority's. Blocks.
fn open_store(directory: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let key = pki::at_rest::key(&directory.join("pki")).context("open the key of sealed objects")?;
    let kinds = Kinds::default();
    let sealed =
        kinds.all().iter().filter(|kind| kind.sealed).map(|kind| kind.storage_prefix.as_ref().into()).collect();
    let database = directory.join("state.db");
    let store = SqliteStore::open_sealed(&database, Sealer::new(&key, sealed));
    let store = store.with_context(|| format!("open database {}", database.display()))?;
    Ok(Arc::new(store))
}

/// Addresses and names are in objects that exist: a server started with others would break what runs. Blocks.
fn keep_cluster_facts(directory: &Path, facts: &str) -> anyhow::Result<()> {
    let path = directory.join(backup::CLUSTER_FACTS);
    match pki::files::read_text(&path)? {
        Some(known) if known == facts => Ok(()),
        Some(known) => {
            let differing: Vec<&str> = known.lines().filter(|line| !facts.lines().any(|one| one == *line)).collect();
            anyhow::bail!("this cluster was made with {}: it cannot be changed", differing.join(", "))
        }
        None => Ok(pki::files::write_private(&path, facts.as_bytes())?),
    }
}

/// The folder holds keys: nobody but root may look into it.
pub(crate) fn make_private(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("make folder {}", directory.display()))
}

/// A folder has one owner at a time: two servers on one database, or two nodes on one set of pods, would destroy
/// each other's work. The kernel gives the claim back when the process ends, however it ends.
pub(crate) fn claim(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("edgelet.lock");
    let file = File::create(&path).with_context(|| format!("make lock file {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            anyhow::bail!("another edgelet uses the folder {}: end it first", directory.display())
        }
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// The address others find the API at: the node's, unless the API listens on one of its own.
fn advertised(config: &Config, bound: SocketAddr) -> SocketAddr {
    let ip = if is_own(bound.ip()) { bound.ip() } else { config.node_ip };
    SocketAddr::new(ip, bound.port())
}

/// Whether others could find this machine there.
fn is_own(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback()
}

/// Pods reach the API through a Service, and Services are IPv4 here.
fn ipv4(ip: IpAddr) -> anyhow::Result<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => anyhow::bail!("the API's address {ip} must be an IPv4 address: set node-ip"),
    }
}

fn names(config: &Config) -> ServerNames {
    let mut extra = vec![config.node_name.clone(), config.node_ip.to_string()];
    extra.extend(["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()]);
    extra.extend(config.tls_san.iter().cloned());
    ServerNames {
        cluster_domain: config.cluster_domain.clone(),
        service_ip: Some(IpAddr::V4(config.service_cidr.nth(1))),
        extra,
    }
}

/// When to write the next one.
async fn write_kubeconfig(pki: &Pki, config: &Config, address: SocketAddr) -> anyhow::Result<Timestamp> {
    // An admin on this machine reaches it by loopback, whatever happens to its addresses.
    let ip = if is_own(config.listen.ip()) { address.ip() } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let url = format!("https://{}", SocketAddr::new(ip, address.port()));
    let (pki, path) = (pki.clone(), config.kubeconfig.clone());
    let written = tokio::task::spawn_blocking(move || pki.write_admin_kubeconfig(&path, &url)).await?;
    written.with_context(|| format!("write kubeconfig {}", config.kubeconfig.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().expect("directory");
        let first = claim(directory.path()).expect("free");
        let refused = claim(directory.path()).expect_err("taken").to_string();
        assert_eq!(refused, format!("another edgelet uses the folder {}: end it first", directory.path().display()));
        drop(first);
        claim(directory.path()).expect("free again");
    }
}
