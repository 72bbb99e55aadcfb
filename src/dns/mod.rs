//! The cluster's DNS, on every node at the cluster DNS address. Knows Services, EndpointSlices, Namespaces and
//! the node's pods; asks the host's resolvers for the rest. Never talks to the server when it answers.

mod answer;
mod cache;
mod forward;
pub mod serve;
pub mod upstream;
pub mod zone;

use crate::api::view::pod::Pod;
use crate::api::view::service::{EndpointSlice, Service};
use crate::client::informer::{Change, Changes, Scope};
use crate::client::{ENDPOINTSLICES, Informers, Item, NAMESPACES, PODS, SERVICES};
use crate::network::ipam::Cidr;
use crate::supervise::Shutdown;
use answer::Networks;
use forward::Forwarder;
use serde::de::DeserializeOwned;
use serve::Server;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use upstream::Upstreams;
use zone::Zone;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Questions wait in the socket for the first lists, which take milliseconds; then names outside are served.
const SYNC_PATIENCE: Duration = Duration::from_secs(2);
const BIND_RETRY_MIN: Duration = Duration::from_millis(100);
const BIND_RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The cluster DNS address, which the network has bound on the bridge, and port 53.
    pub listen: SocketAddr,
    /// `cluster.local`.
    pub domain: String,
    pub node_name: String,
    /// Pod and Service networks of the cluster.
    pub networks: Vec<Cidr>,
    /// `Upstreams::host()`.
    pub upstreams: Upstreams,
}

impl DnsConfig {
    /// For the network of a node, on port 53, with the host's resolvers behind it.
    pub fn for_network(network: &crate::network::Network, node_name: &str) -> Self {
        let layout = network.layout();
        Self {
            listen: SocketAddr::new(layout.dns.into(), 53),
            domain: "cluster.local".to_owned(),
            node_name: node_name.to_owned(),
            networks: vec![layout.cluster, layout.services],
            upstreams: Upstreams::host(),
        }
    }
}

/// Answers until shutdown.
pub async fn run(config: DnsConfig, informers: Informers, shutdown: Shutdown) {
    let own = config.listen.ip();
    let server = Arc::new(Server {
        zone: Mutex::new(Zone::new(&config.domain, own)),
        networks: Networks(config.networks),
        forwarder: Forwarder::new(config.upstreams, own),
        complete: AtomicBool::new(false),
    });
    let answering = async {
        let (datagrams, streams) = bind(config.listen).await;
        let _ = tokio::time::timeout(SYNC_PATIENCE, synced(&informers)).await;
        tokio::join!(server.clone().datagrams(Arc::new(datagrams)), server.clone().streams(streams));
    };
    let mut sources = Sources::new(&informers, &config.node_name);
    tokio::select! {
        () = answering => {}
        () = sources.follow(&server, &informers) => {}
        () = shutdown.requested() => {}
    }
}

/// Tries until the address is there and free.
async fn bind(listen: SocketAddr) -> (UdpSocket, TcpListener) {
    let mut retry = BIND_RETRY_MIN;
    let mut reported = false;
    loop {
        let sockets = async { io::Result::Ok((UdpSocket::bind(listen).await?, TcpListener::bind(listen).await?)) };
        match sockets.await {
            Ok(sockets) => return sockets,
            Err(error) if !std::mem::replace(&mut reported, true) => {
                tracing::warn!(%listen, %error, "cannot listen for names; retrying");
            }
            Err(_) => {}
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(BIND_RETRY_MAX);
    }
}

async fn synced(informers: &Informers) {
    for resource in [NAMESPACES, SERVICES, ENDPOINTSLICES] {
        informers.get(resource, Scope::default()).synced().await;
    }
}

struct Sources {
    namespaces: Changes,
    services: Changes,
    slices: Changes,
    pods: Changes,
}

impl Sources {
    fn new(informers: &Informers, node_name: &str) -> Self {
        let own_pods = Scope { field_selector: format!("spec.nodeName={node_name}"), ..Scope::default() };
        let all = |resource| informers.get(resource, Scope::default()).subscribe();
        Self {
            namespaces: all(NAMESPACES),
            services: all(SERVICES),
            slices: all(ENDPOINTSLICES),
            pods: informers.get(PODS, own_pods).subscribe(),
        }
    }

    /// Keeps the zone as the objects are.
    async fn follow(&mut self, server: &Server, informers: &Informers) {
        let first = synced(informers);
        tokio::pin!(first);
        loop {
            let complete = server.complete.load(Ordering::Relaxed);
            tokio::select! {
                // Changes first: the zone is complete once all that was listed is in it.
                biased;
                change = self.namespaces.next() => take_namespace(server, &change),
                change = self.services.next() => take_service(server, &change),
                change = self.slices.next() => take_slice(server, &change),
                change = self.pods.next() => take_pod(server, &change),
                () = &mut first, if !complete => server.complete.store(true, Ordering::Relaxed),
            }
        }
    }
}

fn with_zone(server: &Server, change: impl FnOnce(&mut Zone)) {
    change(&mut server.zone.lock().expect("no panic while the zone is locked"));
}

fn take_namespace(server: &Server, change: &Change) {
    with_zone(server, |zone| zone.set_namespace(change.key.trim_start_matches('/'), change.new.is_some()));
}

fn take_service(server: &Server, change: &Change) {
    let service: Option<Service> = decode(change.new.as_ref());
    with_zone(server, |zone| zone.set_service(&change.key, service.as_ref()));
}

fn take_slice(server: &Server, change: &Change) {
    let slice = |item: Option<&Item>| decode::<EndpointSlice>(item).and_then(|view| Some((service_of(&view)?, view)));
    let (old, new) = (slice(change.old.as_ref()), slice(change.new.as_ref()));
    with_zone(server, |zone| {
        if let Some((service, _)) = old.filter(|(service, _)| new.as_ref().is_none_or(|(now, _)| now != service)) {
            zone.set_slice(&service, &change.key, None);
        }
        if let Some((service, view)) = &new {
            zone.set_slice(service, &change.key, Some(view));
        }
    });
}

fn take_pod(server: &Server, change: &Change) {
    let pod: Option<Pod> = decode(change.new.as_ref());
    let pod = pod.filter(|pod| !pod.spec.host_network && !pod.has_ended());
    let addresses: Vec<IpAddr> = pod.iter().filter_map(|pod| pod.status.pod_ip.parse().ok()).collect();
    with_zone(server, |zone| zone.set_pod(&change.key, addresses));
}

fn service_of(view: &EndpointSlice) -> Option<String> {
    let name = view.metadata.labels.get(SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", view.metadata.namespace))
}

fn decode<T: DeserializeOwned>(item: Option<&Item>) -> Option<T> {
    let decoded = item?.view();
    decoded.inspect_err(|error| tracing::warn!(?error, "cannot read an object")).ok()
}
