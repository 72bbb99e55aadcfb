//! Makes the pods bound to this node run, one worker per pod: observe, plan (pure), apply.
//! Talks to the API through the client alone and to the machine through the runtime alone.

mod admission;
pub mod board;
mod condition;
mod container;
pub mod device;
mod difference;
mod dns;
mod downward;
mod endpoints;
mod env;
pub mod eviction;
mod fence;
mod hook;
mod image;
mod log;
mod memory;
pub mod node_status;
mod operation;
mod plan;
pub mod plugin;
mod probe;
mod references;
mod resources;
mod security;
pub mod server;
pub mod shutdown;
mod stats;
mod status;
mod volume;
mod worker;

use crate::api::fencing;
use crate::api::quantity::Quantity;
use crate::api::resources::Resources;
use crate::api::view::node::Node;
use crate::api::view::pod::Pod;
use crate::client::events::Type;
use crate::client::informer::{Change, Contact, Scope};
use crate::client::replica::{POD_STATUSES, Place};
use crate::client::{
    CONFIGMAPS, Client, ENDPOINTSLICES, EventRecorder, Informer, Informers, Item, NODES, ObjectRef, PODS, Replica,
    SECRETS, SERVICES,
};
use crate::clock::{Clock, monotonic};
use crate::runtime::{ContainerState, Reason, Runtime, SandboxStatus};
use crate::supervise::Shutdown;
use crate::telemetry::Trace;
use crate::tunnel::Assured;
use admission::Distress;
use arc_swap::ArcSwap;
use bytes::Bytes;
use dns::{ClusterDns, ResolvConf};
use fence::{Fence, Server};
use futures_util::FutureExt;
use jiff::Timestamp;
use plan::Verdict;
use references::{Key, References};
use serde_json::Value;
use status::Host;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use volume::token::{self, Tokens};

/// Opens every container id in a pod's status.
pub const CONTAINER_ID_SCHEME: &str = "edgelet://";

/// Images pulled at the same time: one layer at a time saturates a board's disk.
const PULLS_LIMIT: u32 = 2;
/// Containers made at the same time: more only wait for each other's forks.
const STARTS_LIMIT: usize = 4;
/// For a pod that is no more and did not say how long its end may take.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);
const ORPHAN_RETRY: Duration = Duration::from_secs(10);
const ORPHAN_RETRY_LIMIT: Duration = Duration::from_secs(300);
const WORKER_RESTART_DELAY: Duration = Duration::from_secs(10);
/// A tunnel opens within this when the server is there.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);
const LIST_RETRY: Duration = Duration::from_secs(1);

/// What the kubelet is told at start.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    pub node_name: String,
    /// The first is the node's `InternalIP` and the pods' `hostIP`; they may change.
    pub node_ips: watch::Receiver<Vec<IpAddr>>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// `/var/log/pods`.
    pub log_directory: PathBuf,
    /// The host's, for pods whose names are not the cluster's.
    pub resolv_conf: PathBuf,
    /// Node labels besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// What the node has and what pods may have of it.
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    pub heartbeat: Heartbeat,
    pub board: board::Board,
    /// What of the board's devices pods may have.
    pub devices: Vec<device::DeviceSpec>,
}

/// Who renews the node's Lease.
#[derive(Clone, Debug)]
pub enum Heartbeat {
    /// The kubelet, through its client.
    Lease,
    /// The server, from the life of the node's tunnel: it costs no request. The node knows when it was heard.
    Tunnel(Assured),
}

/// Pods that the node ends, on their way to the workers; more wait.
const SENTENCES_LIMIT: usize = 128;

/// What the workers of a node share.
pub struct Kubelet {
    config: KubeletConfig,
    client: Client,
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    trace: Arc<Trace>,
    events: EventRecorder,
    pods: Informer,
    services: Informer,
    slices: Informer,
    references: References,
    /// What the node must know without a server; `None` on the server's own board.
    replica: Option<Replica>,
    /// Since when the server has not answered.
    lost_at: Mutex<Option<Instant>>,
    /// This node's pods as endpoints, by uid.
    endpoints: Mutex<HashMap<String, endpoints::Local>>,
    endpoints_changed: Notify,
    /// Statuses that the server does not have yet, by uid.
    untold: Mutex<HashMap<String, Bytes>>,
    host: ArcSwap<Host>,
    dns: ClusterDns,
    resolv_conf: ResolvConf,
    pulls: Semaphore,
    starts: Semaphore,
    /// One container at a time chooses among the devices that are free.
    device_turn: tokio::sync::Mutex<()>,
    plugins: plugin::Plugins,
    started_at: Timestamp,
    node_written_at: Mutex<Option<Timestamp>>,
    /// The node's own object.
    node: Informer,
    /// What the node is short of or about to do.
    distress: Mutex<Distress>,
    /// Pods that the node ends, by uid.
    sentences: mpsc::Sender<(String, Verdict)>,
    sentenced: Mutex<Option<mpsc::Receiver<(String, Verdict)>>>,
    /// The node's images have changed.
    node_changed: Notify,
    /// Something has happened to a container; followers of logs look again.
    runtime_changed: Notify,
}

/// One worker as the kubelet holds it.
struct Handle {
    changes: watch::Sender<Option<Item>>,
    sentence: watch::Sender<Option<Verdict>>,
    wake: Arc<Notify>,
}

impl Kubelet {
    /// Call it inside the runtime: it starts its event recorder.
    pub fn new(
        config: KubeletConfig,
        client: Client,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        clock: Clock,
        trace: Arc<Trace>,
    ) -> Arc<Self> {
        let own = Scope { field_selector: format!("spec.nodeName={}", config.node_name), ..Scope::default() };
        let host = Host::of(&config.node_ips.borrow());
        let resolv_conf = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let named = Scope { field_selector: format!("metadata.name={}", config.node_name), ..Scope::default() };
        let (sentences, sentenced) = mpsc::channel(SENTENCES_LIMIT);
        Arc::new(Self {
            pods: informers.get(PODS, own),
            node: informers.get(NODES, named),
            distress: Mutex::default(),
            sentences,
            sentenced: Mutex::new(Some(sentenced)),
            services: informers.get(SERVICES, Scope::default()),
            events: EventRecorder::new(client.clone(), clock.clone(), "kubelet", &config.node_name),
            slices: informers.get(ENDPOINTSLICES, Scope::default()),
            references: References::new(client.clone(), informers.replica().cloned()),
            replica: informers.replica().cloned(),
            lost_at: Mutex::default(),
            endpoints: Mutex::default(),
            endpoints_changed: Notify::new(),
            untold: Mutex::default(),
            host: ArcSwap::from_pointee(host),
            dns: ClusterDns {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                domain: config.cluster_domain.clone(),
            },
            resolv_conf: ResolvConf::parse(&resolv_conf),
            pulls: Semaphore::new(PULLS_LIMIT as usize),
            starts: Semaphore::new(STARTS_LIMIT),
            device_turn: tokio::sync::Mutex::default(),
            plugins: plugin::Plugins::default(),
            started_at: clock.now(),
            node_written_at: Mutex::default(),
            node_changed: Notify::new(),
            runtime_changed: Notify::new(),
            config,
            client,
            runtime,
            clock,
            trace,
        })
    }

    fn admit(&self, pod: &Pod, others: &[Pod]) -> Result<(), Verdict> {
        let node: Option<Node> = self.node.get("", &self.config.node_name).and_then(|item| item.view().ok());
        let quantities =
            self.config.allocatable.iter().map(|(name, quantity)| (name, Value::from(quantity.to_string())));
        let quantities: Vec<(&String, Value)> = quantities.collect();
        let allocatable = Resources::parse(quantities.iter().map(|(name, value)| (*name, value)));
        let distress = self.distress.lock().expect("no panic while locked").clone();
        admission::admit(pod, others, node.as_ref(), &allocatable, &distress)
    }

    fn memory_bytes(&self) -> i64 {
        self.config.capacity.get("memory").map_or(0, Quantity::value)
    }

    /// Runs until shutdown; the pods' containers live on.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.clone().serve_pods() => {}
            () = endpoints::run(self.clone()) => {}
        }
        if let Some(Err(error)) =
            futures_util::future::OptionFuture::from(self.replica.as_ref().map(Replica::flush)).await
        {
            tracing::warn!(%error, "write replica");
        }
    }

    /// Whether the server answers, as far as is known.
    fn is_connected(&self) -> bool {
        self.pods.is_connected()
    }

    fn tokens(&self) -> Tokens {
        Tokens::new(self.client.clone(), self.clock.clone(), self.replica.clone(), self.pods.contact())
    }

    fn fence(&self, pod: &Pod) -> Fence {
        fence::fence(pod, self.server())
    }

    /// A fenced pod that runs since before this process is left alone until the server can have been reached.
    fn patience(&self, item: &Item) -> Duration {
        let waits = self.server() == Server::Unheard && item.view().is_ok_and(|pod: Pod| fencing::is_asked(&pod));
        if waits { FENCE_PATIENCE } else { Duration::ZERO }
    }

    /// What is known of the server, for pods that must not outlive its knowledge of them.
    fn server(&self) -> Server {
        if let Heartbeat::Tunnel(assured) = &self.config.heartbeat {
            return assured.borrow().map_or(Server::Unheard, |heard| Server::Heard(heard.elapsed()));
        }
        let (contact, lost_at) =
            (*self.pods.contact().borrow(), *self.lost_at.lock().expect("no panic while it is locked"));
        match lost_at {
            _ if contact.connected => Server::Here,
            Some(lost_at) if contact.confirmed => Server::Heard(lost_at.elapsed()),
            _ => Server::Unheard,
        }
    }

    /// Waits until the server hears this node again after it may not have, for those that must not run meanwhile.
    async fn heard_again(&self) {
        let Heartbeat::Tunnel(assured) = &self.config.heartbeat else { return std::future::pending().await };
        let mut assured = assured.clone();
        let mut last = *assured.borrow_and_update();
        while assured.changed().await.is_ok() {
            let now = *assured.borrow_and_update();
            let pause = now.zip(last).map(|(now, last)| now.duration_since(last));
            if pause.is_none_or(|pause| pause.as_secs() >= fencing::LEAST_S.unsigned_abs()) {
                return;
            }
            last = now;
        }
        std::future::pending().await
    }

    /// Notes a status that is to be written, or that it has been.
    fn set_untold(&self, uid: &str, status: Option<&serde_json::Value>) {
        let mut untold = self.untold.lock().expect("no panic while the statuses are locked");
        match status {
            Some(status) => drop(untold.insert(uid.to_owned(), Bytes::from(status.to_string()))),
            None => drop(untold.remove(uid)),
        }
    }

    /// How a pod ended, if this node wrote that down.
    fn own_end(&self, uid: &str) -> Option<Bytes> {
        let status = self.replica.as_ref()?.noted(POD_STATUSES, uid)?;
        let phase = serde_json::from_slice::<PhaseOnly>(&status).ok()?.phase;
        matches!(phase.as_str(), "Succeeded" | "Failed").then_some(status)
    }

    /// Forgets what was kept for pods that are no more. `uids`: those that are.
    fn retain_replica(&self, uids: &[String]) {
        let Some(replica) = &self.replica else { return };
        let pods: Vec<Pod> = self.pods.list().iter().filter_map(|item| item.view().ok()).collect();
        let held: BTreeSet<Key> = pods.iter().flat_map(volume::references).collect();
        let is_held = |place: Place| held.iter().any(|key| place.is(key.resource, &key.namespace, &key.name));
        let may_be_held = |place: Place| {
            let path = |resource| matches!(place, Place::Single { resource: known, .. } if known == crate::client::replica::path(resource));
            path(SECRETS) || path(CONFIGMAPS)
        };
        replica.retain(|place| match place {
            Place::Note { kind: POD_STATUSES | token::NOTES, key } => {
                uids.iter().any(|uid| key.split('/').next() == Some(uid.as_str()))
            }
            place => !may_be_held(place) || is_held(place),
        });
    }

    async fn serve_pods(self: Arc<Self>) {
        let mut runtime_events = self.runtime.events();
        let mut sentenced = self.sentenced.lock().expect("no panic while locked").take().expect("served once");
        self.pods.synced().await;
        let mut fleet = Fleet::new(self.clone(), self.known_sandboxes().await);
        let mut contact = self.pods.contact();
        let mut changes = self.pods.subscribe();
        let mut settled = false;
        let mut heard_again = std::pin::pin!(self.heard_again());
        let now = *contact.borrow_and_update();
        fleet.contact(now, &mut settled).await;
        loop {
            tokio::select! {
                Ok(()) = contact.changed() => {
                    let now = *contact.borrow_and_update();
                    fleet.contact(now, &mut settled).await;
                }
                change = changes.next() => fleet.change(change),
                () = &mut heard_again => {
                    fleet.wake_all();
                    heard_again.set(self.heard_again());
                }
                Some(event) = runtime_events.recv() => {
                    if runtime_events.len() + 1 < runtime_events.max_capacity() {
                        fleet.wake(&event.pod_uid);
                    } else {
                        fleet.wake_all(); // a full queue has lost events
                    }
                    self.runtime_changed.notify_waiters();
                }
                Some((uid, verdict)) = sentenced.recv() => fleet.sentence(&uid, verdict),
                Some(ended) = fleet.tasks.join_next_with_id() => fleet.ended(ended),
            }
        }
    }

    /// What runs on the node before any pod is looked at, by uid.
    async fn known_sandboxes(&self) -> HashMap<String, SandboxStatus> {
        loop {
            match self.runtime.list().await {
                Ok(list) => return list.into_iter().map(|one| (one.pod.uid.clone(), one)).collect(),
                Err(error) => tracing::warn!(%error, "list sandboxes failed; retrying"),
            }
            self.clock.sleep(LIST_RETRY).await;
        }
    }

    /// Free devices for one container; the caller holds `device_turn` until the container has them.
    async fn choose_devices(&self, wanted: &BTreeMap<String, usize>) -> Result<BTreeMap<String, Vec<String>>, String> {
        let sandboxes = self.runtime.list().await.map_err(|error| format!("list containers: {error}"))?;
        let containers = sandboxes.into_iter().flat_map(|sandbox| sandbox.containers);
        let alive = containers.filter(|one| !matches!(one.state, ContainerState::Exited(_)));
        let in_use: Vec<Vec<String>> = alive.map(|one| one.devices).filter(|devices| !devices.is_empty()).collect();
        device::allocate(&device::supplies(Path::new("/"), &self.config.devices), wanted, &in_use)
    }

    /// Makes room on a full disk, as far as images that no pod here needs take it.
    async fn collect_images(&self) {
        let Ok(_turns) = self.pulls.try_acquire_many(PULLS_LIMIT) else { return };
        let pods: Vec<Pod> = self.pods.list().iter().filter_map(|item| item.view().ok()).collect();
        let wanted: Vec<String> =
            pods.iter().flat_map(|pod| memory::containers(pod).map(|(_, one)| one.image.clone())).collect();
        match self.runtime.collect_images(&wanted).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                tracing::info!(images = gone.len(), "removed unused images: the disk is short of space");
                self.node_changed.notify_one();
            }
            Err(error) => tracing::warn!(%error, "remove unused images"),
        }
    }

    async fn remove_orphan(self: Arc<Self>, sandbox: SandboxStatus) {
        let uid = &sandbox.pod.uid;
        tracing::info!(
            namespace = sandbox.pod.namespace,
            name = sandbox.pod.name,
            uid,
            "removing a pod that is no more"
        );
        let running = sandbox.containers.iter().filter(|one| matches!(one.state, ContainerState::Running { .. }));
        let grace = sandbox.termination_grace_s.map_or(ORPHAN_GRACE, Duration::from_secs);
        let stops = running.map(|one| self.runtime.stop_container(&one.id, grace));
        for error in futures_util::future::join_all(stops).await.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, uid, "stop container of an orphan");
        }
        let mut wait = ORPHAN_RETRY;
        while let Err(error) = self.runtime.remove_sandbox(uid, false).await {
            if error.reason == Reason::NotFound {
                return;
            }
            tracing::warn!(%error, uid, "remove sandbox of an orphan; retrying");
            self.clock.sleep(wait).await;
            wait = (wait * 2).min(ORPHAN_RETRY_LIMIT);
        }
    }
}

/// The workers of the node.
struct Fleet {
    kubelet: Arc<Kubelet>,
    handles: HashMap<String, Handle>,
    /// Pods by task, to find out whose worker ended.
    uids: HashMap<Id, String>,
    tasks: JoinSet<()>,
    /// What ran before this process, until a worker takes it over.
    known: HashMap<String, SandboxStatus>,
}

impl Fleet {
    fn new(kubelet: Arc<Kubelet>, known: HashMap<String, SandboxStatus>) -> Self {
        Self { kubelet, handles: HashMap::new(), uids: HashMap::new(), tasks: JoinSet::new(), known }
    }

    /// The server has come or gone. Only the server's own list says which pods are no more: what a replica does
    /// not know may be newer than it.
    async fn contact(&mut self, contact: Contact, settled: &mut bool) {
        {
            let mut lost_at = self.kubelet.lost_at.lock().expect("no panic while it is locked");
            *lost_at = if contact.connected { None } else { lost_at.or(Some(monotonic())) };
        }
        self.wake_all();
        if *settled || !contact.confirmed {
            return;
        }
        *settled = true;
        let listed: Vec<String> = self.kubelet.pods.list().iter().filter_map(uid_of).collect();
        self.remove_orphans(&listed);
        let wanted = [listed, self.handles.keys().cloned().collect()].concat();
        // No worker begins before this is done.
        if let Err(error) = self.kubelet.runtime.retain(&wanted).await {
            tracing::warn!(%error, "give up what former pods left");
        }
        self.kubelet.retain_replica(&wanted);
    }

    /// Sandboxes of pods that are not in the API any more.
    fn remove_orphans(&mut self, wanted: &[String]) {
        let orphans = self.known.extract_if(|uid, _| !wanted.contains(uid));
        for (_, sandbox) in orphans {
            self.tasks.spawn(self.kubelet.clone().remove_orphan(sandbox).boxed());
        }
    }

    fn change(&mut self, change: Change) {
        let new_uid = change.new.as_ref().and_then(uid_of);
        if let Some(old_uid) = change.old.as_ref().and_then(uid_of)
            && new_uid.as_ref() != Some(&old_uid)
            && let Some(handle) = self.handles.get(&old_uid)
        {
            handle.changes.send_replace(None);
        }
        let (Some(uid), Some(item)) = (new_uid, change.new) else { return };
        match self.handles.get(&uid) {
            Some(handle) => {
                handle.changes.send_replace(Some(item));
            }
            None => self.start(uid, item, Duration::ZERO),
        }
    }

    fn start(&mut self, uid: String, item: Item, delay: Duration) {
        let delay = delay.max(self.kubelet.patience(&item));
        let (changes, receiver) = watch::channel(Some(item));
        let wake = Arc::new(Notify::new());
        let sandbox = self.known.remove(&uid);
        let verdict = if sandbox.is_none() { self.rejection(&uid, changes.borrow().as_ref()) } else { None };
        let (sentence, sentenced) = watch::channel(verdict);
        let orders = worker::Orders { changes: receiver, sentence: sentenced, wake: wake.clone() };
        let worker = worker::run(self.kubelet.clone(), uid.clone(), orders, sandbox, delay);
        let task = self.tasks.spawn(worker.boxed());
        self.uids.insert(task.id(), uid.clone());
        self.handles.insert(uid, Handle { changes, sentence, wake });
    }

    /// Why the node does not take a pod that is new to it.
    fn rejection(&self, uid: &str, item: Option<&Item>) -> Option<Verdict> {
        let pod: Pod = item?.view().ok()?;
        // A start time is the kubelet's own mark: the pod was taken before a restart. So was whatever a replica holds.
        let heard = self.kubelet.pods.is_connected();
        if !heard || pod.status.start_time.is_some() || pod.has_ended() || pod.is_terminating() {
            return None;
        }
        let taken = |other: &Pod| {
            let handle = self.handles.get(&other.metadata.uid);
            let rejected = |handle: &Handle| handle.sentence.borrow().as_ref().is_some_and(|verdict| verdict.rejected);
            other.metadata.uid != uid && !other.has_ended() && handle.is_some_and(|handle| !rejected(handle))
        };
        let others = self.kubelet.pods.list().into_iter().filter_map(|item| item.view().ok()).filter(taken);
        let verdict = self.kubelet.admit(&pod, &others.collect::<Vec<_>>()).err()?;
        let (reason, about) = (verdict.reason.to_string(), ObjectRef::pod(&pod));
        tracing::info!(namespace = pod.metadata.namespace, name = pod.metadata.name, reason, "pod rejected");
        let message = verdict.message.trim_start_matches("Pod was rejected: ");
        self.kubelet.events.event(&about, Type::Warning, &reason, message);
        Some(verdict)
    }

    /// The node ends a pod; the first verdict stands.
    fn sentence(&self, uid: &str, verdict: Verdict) {
        if let Some(handle) = self.handles.get(uid) {
            handle.sentence.send_if_modified(|known| {
                let new = known.is_none();
                known.get_or_insert(verdict);
                new
            });
        }
    }

    fn wake(&self, uid: &str) {
        if let Some(handle) = self.handles.get(uid) {
            handle.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        self.handles.values().for_each(|handle| handle.wake.notify_one());
    }

    /// A worker that panicked is started again after a while; one poisoned pod harms no other.
    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(id, ())| *id);
        let Some(uid) = self.uids.remove(&id) else { return };
        let Some(handle) = self.handles.remove(&uid) else { return };
        if ended.is_ok() {
            self.kubelet.set_local_endpoint(&uid, None);
            self.kubelet.set_untold(&uid, None);
            let left: Vec<String> = self.handles.keys().cloned().collect();
            self.kubelet.retain_replica(&left);
        } else {
            tracing::error!(uid, "a pod's worker panicked; starting it again");
            let item = handle.changes.borrow().clone();
            if let Some(item) = item {
                self.start(uid, item, WORKER_RESTART_DELAY);
            }
        }
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct PhaseOnly {
    phase: String,
}

fn uid_of(item: &Item) -> Option<String> {
    item.identity().ok().map(|identity| identity.uid.into_owned())
}

/// Revisions of one object grow; 0 = not a number.
fn revision(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// A pod as verbs in flight share it.
type SharedPod = Arc<Pod>;

#[cfg(test)]
mod tests;
