//! Services, node ports and host ports as kernel rules. Reads Services, EndpointSlices and the node's pods;
//! writes map elements. The rules work on while edgelet is away, and never touch the API.

mod health;
pub mod program;
pub mod rules;
mod slots;
pub mod state;

use crate::api::view::meta::Any;
use crate::api::view::pod::Pod;
use crate::api::view::service::{EndpointSlice, Service};
use crate::client::informer::{Change, Changes, Scope};
use crate::client::{ENDPOINTSLICES, Informer, Informers, Item, NODES, PODS, SERVICES};
use crate::clock::Clock;
use crate::network::nftables::Events;
use crate::network::{Network, conntrack};
use crate::supervise::Shutdown;
use crate::telemetry::Trace;
use health::HealthChecks;
use program::Programmer;
use rules::Here;
use serde::de::DeserializeOwned;
use state::{Plan, State};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// What others change comes in bursts: one look per burst.
const SETTLE: Duration = Duration::from_millis(100);
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct ProxyConfig {
    /// Set up before the proxy runs.
    pub network: Network,
    pub node_name: String,
}

/// Keeps the rules right until shutdown. What was programmed stays behind.
pub async fn run(config: ProxyConfig, informers: Informers, clock: Clock, trace: Arc<Trace>, shutdown: Shutdown) {
    let mut proxy = match Proxy::new(config, &informers) {
        Ok(proxy) => proxy,
        Err(error) => {
            tracing::error!(%error, "cannot watch nf_tables");
            return;
        }
    };
    let synced = [SERVICES, ENDPOINTSLICES].map(|resource| informers.get(resource, Scope::default()));
    for informer in synced {
        tokio::select! {
            // Until the first lists are in, the rules of the former process serve.
            () = informer.synced() => {}
            () = shutdown.requested() => return,
        }
    }
    let mut retry = RETRY_MIN;
    loop {
        proxy.take_all();
        match proxy.sync(&clock, &trace).await {
            Ok(()) => retry = RETRY_MIN,
            Err(error) => {
                if retry == RETRY_MIN {
                    tracing::warn!(%error, "cannot program services; retrying");
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
        let retry_after = proxy.stale.then_some(retry);
        tokio::select! {
            () = proxy.woken(retry_after) => {}
            () = shutdown.requested() => return,
        }
    }
}

struct Proxy {
    here: Here,
    health: HealthChecks,
    programmer: Programmer,
    network: Network,
    state: State,
    /// The kernel may have something else than `state` says: everything is to be programmed.
    stale: bool,
    events: Events,
    services: Changes,
    slices: Changes,
    pods: Changes,
    nodes: Changes,
    /// Every slice, for when this node's zone changes.
    all_slices: Informer,
}

impl Proxy {
    fn new(config: ProxyConfig, informers: &Informers) -> std::io::Result<Self> {
        let ProxyConfig { network, node_name } = config;
        let own_pods = Scope { field_selector: format!("spec.nodeName={node_name}"), ..Scope::default() };
        Ok(Self {
            programmer: Programmer::new(network.clone()),
            state: State::new(network.layout().dns),
            stale: true,
            events: Events::open()?,
            services: informers.get(SERVICES, Scope::default()).subscribe(),
            slices: informers.get(ENDPOINTSLICES, Scope::default()).subscribe(),
            pods: informers.get(PODS, own_pods).subscribe(),
            nodes: informers.all(NODES).subscribe(),
            all_slices: informers.get(ENDPOINTSLICES, Scope::default()),
            here: Here::node(&node_name),
            health: HealthChecks::default(),
            network,
        })
    }

    /// Takes in every change there is now.
    fn take_all(&mut self) {
        while let Some(change) = self.services.try_next() {
            self.take_service(&change);
        }
        // Before the slices, which are read for the zone this node is in.
        while let Some(change) = self.nodes.try_next() {
            self.take_node(&change);
        }
        while let Some(change) = self.slices.try_next() {
            self.take_slice(&change);
        }
        while let Some(change) = self.pods.try_next() {
            self.take_pod(&change);
        }
    }

    fn take_service(&mut self, change: &Change) {
        self.state.set_service(&change.key, decode::<Service>(change.new.as_ref()));
    }

    fn take_slice(&mut self, change: &Change) {
        let owner =
            |item: Option<&Item>| decode::<EndpointSlice>(item).and_then(|view| Some((service_of(&view)?, view)));
        let (old, new) = (owner(change.old.as_ref()), owner(change.new.as_ref()));
        if let Some((service, _)) = old.filter(|(service, _)| new.as_ref().is_none_or(|(now, _)| now != service)) {
            self.state.set_slice(&service, &change.key, None);
        }
        if let Some((service, view)) = new {
            self.state.set_slice(&service, &change.key, rules::slice(&view, &self.here));
        }
    }

    /// Only which zone this node is in matters.
    fn take_node(&mut self, change: &Change) {
        if change.key.trim_start_matches('/') != self.here.node {
            return;
        }
        let zone = decode::<Any>(change.new.as_ref()).and_then(|mut node| node.metadata.labels.remove(ZONE_LABEL));
        if zone == self.here.zone {
            return;
        }
        self.here.zone = zone;
        for item in self.all_slices.list() {
            let Some(view) = decode::<EndpointSlice>(Some(&item)) else { continue };
            if let Some(service) = service_of(&view) {
                self.state.set_slice(&service, &view.metadata.key(), rules::slice(&view, &self.here));
            }
        }
    }

    fn take_pod(&mut self, change: &Change) {
        let fronts = decode::<Pod>(change.new.as_ref()).map(|pod| rules::host_port_fronts(&pod));
        self.state.set_host_ports(&change.key, fronts.unwrap_or_default());
    }

    /// Brings the kernel to the state.
    async fn sync(&mut self, clock: &Clock, trace: &Trace) -> crate::network::Result<()> {
        let plan = self.state.plan();
        let udp = if self.stale {
            self.program_everything().await?;
            self.stale = false;
            self.state.udp()
        } else {
            if let Err(error) = self.programmer.apply(&plan) {
                self.stale = true;
                return Err(error.into());
            }
            plan.udp.clone()
        };
        self.health.set(self.state.health());
        mark(&plan, clock, trace);
        forget_flows(udp).await;
        Ok(())
    }

    /// Off the runtime thread: with a thousand Services the transaction takes a tenth of a second.
    async fn program_everything(&self) -> crate::network::Result<()> {
        let (programmer, network, elements) = (self.programmer.clone(), self.network.clone(), self.state.everything());
        let affinities = self.state.affinities().clone();
        let work = move || {
            if !programmer.is_intact().unwrap_or(false) {
                network.program()?;
            }
            Ok(programmer.replace(&elements, &affinities)?)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(crate::network::Error::Kernel { doing: "program", what: "services".to_owned(), source })
        })
    }

    /// Waits for the next change of objects, or of rules by others, or for the time to try again.
    async fn woken(&mut self, retry_after: Option<Duration>) {
        let retry = async {
            match retry_after {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = self.services.next() => self.take_service(&change),
            change = self.slices.next() => self.take_slice(&change),
            change = self.pods.next() => self.take_pod(&change),
            change = self.nodes.next() => self.take_node(&change),
            result = self.network.tables().changed_by_others(&mut self.events) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "lost sight of nf_tables");
                }
                tokio::time::sleep(SETTLE).await;
                self.network.mend_and_warn();
                // When the look itself fails, program anew.
                if !self.programmer.is_intact().unwrap_or(false) {
                    tracing::info!("rules were removed by another program; putting them back");
                    self.stale = true;
                }
            }
            () = retry => {}
        }
    }
}

fn decode<T: DeserializeOwned>(item: Option<&Item>) -> Option<T> {
    let decoded = item?.view();
    decoded.inspect_err(|error| tracing::warn!(?error, "cannot read an object")).ok()
}

fn service_of(view: &EndpointSlice) -> Option<String> {
    let name = view.metadata.labels.get(rules::SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", view.metadata.namespace))
}

fn mark(plan: &Plan, clock: &Clock, trace: &Trace) {
    for uid in &plan.reachable {
        trace.mark(clock, uid, "proxy", "rules programmed");
    }
}

/// UDP clients that keep their source port would reach removed endpoints, or none, for ever.
async fn forget_flows(fronts: BTreeMap<(Ipv4Addr, u16), BTreeSet<SocketAddrV4>>) {
    if fronts.is_empty() {
        return;
    }
    let stale = move |flow: &conntrack::Flow| is_stale(&fronts, flow);
    match tokio::task::spawn_blocking(move || conntrack::forget_udp(stale)).await {
        Ok(Ok(count)) => tracing::debug!(count, "forgot udp flows"),
        Ok(Err(error)) => tracing::warn!(%error, "cannot forget udp flows"),
        Err(error) => tracing::warn!(%error, "cannot forget udp flows"),
    }
}

fn is_stale(fronts: &BTreeMap<(Ipv4Addr, u16), BTreeSet<SocketAddrV4>>, flow: &conntrack::Flow) -> bool {
    let port = flow.destination.port();
    let exact = fronts.get(&(*flow.destination.ip(), port));
    let backends = exact.or_else(|| fronts.get(&(Ipv4Addr::UNSPECIFIED, port)));
    backends.is_some_and(|backends| !backends.contains(&flow.answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_to_anything_but_a_backend_are_stale() {
        let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        let fronts = BTreeMap::from([
            ((Ipv4Addr::new(10, 43, 0, 9), 53), BTreeSet::from([at("10.42.0.3:5353")])),
            ((Ipv4Addr::UNSPECIFIED, 30053), BTreeSet::from([at("10.42.0.3:5353")])),
        ]);
        let cases = [
            ("10.43.0.9:53", "10.42.0.3:5353", false),
            ("10.43.0.9:53", "10.42.0.2:5353", true),
            ("10.43.0.9:53", "10.43.0.9:53", true),
            ("192.0.2.1:30053", "10.42.0.2:5353", true),
            ("192.0.2.1:30053", "10.42.0.3:5353", false),
            ("192.0.2.1:53", "192.0.2.1:53", false),
        ];
        for (destination, answers, stale) in cases {
            let flow = conntrack::Flow { destination: at(destination), answers: at(answers) };
            assert_eq!(is_stale(&fronts, &flow), stale, "{destination} answered by {answers}");
        }
    }
}
