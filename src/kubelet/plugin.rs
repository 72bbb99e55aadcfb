//! Device plugins: other people's programs that offer devices to pods, over upstream's unix sockets
//! (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1, KEP-3573). A plugin that has gone offers nothing until it returns;
//! who has which device is written down, because only plugins know what their ids mean.

mod grpc;
mod wire;

use super::Kubelet;
use crate::api::quantity::Quantity;
use crate::api::view::pod::Container;
use crate::runtime::{ContainerState, SandboxStatus};
use crate::supervise::Shutdown;
use grpc::Channel;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
pub use wire::Grant;
use wire::{Devices, Registration};

/// Where plugins look for the kubelet; it is written into them.
pub const DIRECTORY: &str = "/var/lib/kubelet/device-plugins";
const SOCKET: &str = "kubelet.sock";
const VERSION: &str = "v1beta1";
const REGISTER: &str = "v1beta1.Registration/Register";
const OPTIONS: &str = "v1beta1.DevicePlugin/GetDevicePluginOptions";
const LIST_AND_WATCH: &str = "v1beta1.DevicePlugin/ListAndWatch";
const ALLOCATE: &str = "v1beta1.DevicePlugin/Allocate";
const PRE_START: &str = "v1beta1.DevicePlugin/PreStartContainer";
/// Resources that plugins offer on one node.
const PLUGINS_LIMIT: usize = 64;
const CONNECTIONS_LIMIT: usize = 16;
/// Upstream waits as long for a plugin to make a container's devices ready.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(30);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// gRPC's codes.
const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;

/// What plugins offer, and who has it.
#[derive(Default)]
pub struct Plugins {
    known: Mutex<BTreeMap<String, Plugin>>,
    /// One container at a time is given devices.
    turn: tokio::sync::Mutex<()>,
    /// Where it is written who has what; unset as long as no plugin can register.
    record: OnceLock<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plugin {
    /// `None`: it has gone.
    socket: Option<PathBuf>,
    devices: Devices,
    /// Counts registrations: the end of an older one says nothing about this.
    registration: u64,
    pre_start: bool,
}

/// What is kept across restarts of edgelet: containers live on, and plugins register again a moment later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    resources: BTreeSet<String>,
    holdings: Vec<Holding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    pod_uid: String,
    container: String,
    resource: String,
    ids: Vec<String>,
}

/// Where this node's plugins are. Nodes beside each other on one machine, as tests have them, get a place of
/// their own.
pub fn directory(run_directory: &Path) -> PathBuf {
    if run_directory == Path::new("/run/edgelet") { DIRECTORY.into() } else { run_directory.join("device-plugins") }
}

/// Takes the folder away, and kubelet's above it; not while a plugin's own socket is there.
pub fn forget(run_directory: &Path) {
    let folder = directory(run_directory);
    let _ = std::fs::remove_file(folder.join(SOCKET));
    if std::fs::remove_dir(&folder).is_ok()
        && let Some(above) = Path::new(DIRECTORY).parent().filter(|above| folder.parent() == Some(above))
    {
        let _ = std::fs::remove_dir(above);
    }
}

/// Listens for plugins until shutdown. A node that cannot listen runs pods all the same.
pub async fn run(kubelet: Arc<Kubelet>, run_directory: PathBuf, shutdown: Shutdown) {
    let folder = directory(&run_directory);
    let _ = kubelet.plugins.record.set(run_directory.join("device-plugins.json"));
    let listener = match listen(&folder) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "device plugins cannot register");
            return shutdown.requested().await;
        }
    };
    let mut tasks = JoinSet::new();
    tokio::select! {
        () = shutdown.requested() => {}
        () = accept(&kubelet, &folder, &listener, &mut tasks) => {}
    }
    // Plugins that find the socket made anew register again.
    let _ = std::fs::remove_file(folder.join(SOCKET));
}

/// A socket in place of an older one: that it is new is how plugins learn that the kubelet has restarted.
fn listen(folder: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(folder)?;
    let socket = folder.join(SOCKET);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(&socket)
}

async fn accept(kubelet: &Arc<Kubelet>, folder: &Path, listener: &UnixListener, tasks: &mut JoinSet<()>) {
    let (registered, mut registrations) = tokio::sync::mpsc::channel::<Registration>(CONNECTIONS_LIMIT);
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if callers.len() < CONNECTIONS_LIMIT => {
                let Ok((stream, _)) = accepted else { continue };
                let registered = registered.clone();
                callers.spawn(async move {
                    let serving = grpc::serve(stream, REGISTER, |message| register(&message, &registered));
                    // A plugin calls once; who keeps the connection open is not waited for.
                    let _ = tokio::time::timeout(REGISTER_TIMEOUT, serving).await;
                });
            }
            Some(_) = callers.join_next() => {}
            Some(_) = tasks.join_next() => {}
            Some(one) = registrations.recv() => {
                let Some(number) = kubelet.plugins.enter(&one.resource, folder.join(&one.endpoint)) else {
                    tracing::warn!(resource = one.resource, "more device plugins than a node may have");
                    continue;
                };
                tracing::info!(resource = one.resource, endpoint = one.endpoint, "device plugin registered");
                let kubelet = kubelet.clone();
                tasks.spawn(async move { follow(&kubelet, &one.resource, number).await });
            }
        }
    }
}

fn register(message: &[u8], registered: &tokio::sync::mpsc::Sender<Registration>) -> Result<Vec<u8>, (u32, String)> {
    let registration = wire::registration(message).map_err(|error| (INVALID_ARGUMENT, error.to_string()))?;
    acceptable(&registration).map_err(|why| (INVALID_ARGUMENT, why))?;
    registered.try_send(registration).map_err(|_| (RESOURCE_EXHAUSTED, "too many registrations at once".to_owned()))?;
    Ok(Vec::new())
}

fn acceptable(registration: &Registration) -> Result<(), String> {
    if registration.version != VERSION {
        return Err(format!("requested API version {:?} is not supported by kubelet", registration.version));
    }
    if !is_extended(&registration.resource) {
        return Err(format!("the ResourceName {:?} is invalid", registration.resource));
    }
    let name = Path::new(&registration.endpoint);
    if name.file_name() != Some(name.as_os_str()) || registration.endpoint == SOCKET {
        return Err(format!("endpoint {:?} is not the name of a socket beside the kubelet's", registration.endpoint));
    }
    Ok(())
}

/// As upstream tells them from its own: `example.com/tpu`. What the node's config offers is not a plugin's.
fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, name)| {
        let is_own = domain.ends_with("kubernetes.io") || domain.starts_with("requests.");
        !domain.is_empty() && !name.is_empty() && !is_own && !resource.starts_with(super::device::PREFIX)
    })
}

/// Follows one plugin's devices to its end.
async fn follow(kubelet: &Kubelet, resource: &str, registration: u64) {
    let plugins = &kubelet.plugins;
    let outcome = async {
        let Some(socket) = plugins.socket(resource) else { return Ok(()) };
        let channel = Channel::connect(&socket).await?;
        let options = channel.call(OPTIONS, &[]).await?;
        let pre_start = wire::pre_start_required(&options).unwrap_or_default();
        let mut answers = channel.stream(LIST_AND_WATCH, &[]).await?;
        while let Some(message) = answers.next().await? {
            match wire::devices(&message) {
                Ok(devices) => {
                    if plugins.update(resource, registration, devices, pre_start) {
                        kubelet.node_changed.notify_one();
                    }
                }
                Err(error) => tracing::warn!(resource, %error, "what a device plugin says is not understood"),
            }
        }
        Ok::<(), grpc::Error>(())
    };
    let outcome = outcome.await;
    if plugins.leave(resource, registration) {
        let error = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        tracing::warn!(resource, error, "device plugin has gone; its devices are not given out until it returns");
        kubelet.node_changed.notify_one();
    }
}

impl Plugins {
    /// A plugin has registered; the number of its registration, unless there are too many.
    fn enter(&self, resource: &str, socket: PathBuf) -> Option<u64> {
        let mut known = self.known.lock().expect("no panic while it is locked");
        if !known.contains_key(resource) && known.len() >= PLUGINS_LIMIT {
            return None;
        }
        let plugin = known.entry(resource.to_owned()).or_default();
        plugin.socket = Some(socket);
        plugin.registration += 1;
        Some(plugin.registration)
    }

    fn socket(&self, resource: &str) -> Option<PathBuf> {
        self.known.lock().expect("no panic while it is locked").get(resource)?.socket.clone()
    }

    /// Whether that changed anything.
    fn update(&self, resource: &str, registration: u64, devices: Devices, pre_start: bool) -> bool {
        let mut known = self.known.lock().expect("no panic while it is locked");
        let Some(plugin) = known.get_mut(resource).filter(|plugin| plugin.registration == registration) else {
            return false;
        };
        plugin.pre_start = pre_start;
        let changed = plugin.devices != devices;
        plugin.devices = devices;
        changed
    }

    /// Whether this was the plugin's latest registration.
    fn leave(&self, resource: &str, registration: u64) -> bool {
        let mut known = self.known.lock().expect("no panic while it is locked");
        let Some(plugin) = known.get_mut(resource).filter(|plugin| plugin.registration == registration) else {
            return false;
        };
        plugin.socket = None;
        for healthy in plugin.devices.values_mut() {
            *healthy = false;
        }
        true
    }

    /// What the node has, and what pods may have of it.
    pub fn amounts(&self) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
        let known = self.known.lock().expect("no panic while it is locked");
        let amount = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX));
        let count = |(resource, plugin): (&String, &Plugin)| {
            let healthy = plugin.devices.values().filter(|healthy| **healthy).count();
            ((resource.clone(), amount(plugin.devices.len())), (resource.clone(), amount(healthy)))
        };
        known.iter().map(count).unzip()
    }

    /// Devices for one container, by its limits. `None`: it wants none of a plugin's. An error is the message of a
    /// `CreateContainerConfigError`, after which it is tried again.
    pub async fn allocate<'a>(
        &self,
        pod_uid: &str,
        container: &str,
        limits: impl IntoIterator<Item = (&'a String, &'a Value)>,
        alive: &[SandboxStatus],
        record: &Path,
    ) -> Result<Option<Grant>, String> {
        let _turn = self.turn.lock().await;
        let mut kept: Record =
            std::fs::read(record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let before = kept.clone();
        kept.resources.extend(self.known.lock().expect("no panic while it is locked").keys().cloned());
        let wanted = wanted(limits, &kept.resources);
        if wanted.is_empty() {
            return Ok(None);
        }
        kept.holdings
            .retain(|holding| lives(holding, alive) || (holding.pod_uid == pod_uid && holding.container == container));
        let mut grant = Grant::default();
        for (resource, count) in wanted {
            let plugin = self.known.lock().expect("no panic while it is locked").get(&resource).cloned();
            let Some((plugin, socket)) = plugin.and_then(|plugin| Some((plugin.clone(), plugin.socket?))) else {
                return Err(format!("the device plugin of {resource} does not run on this node"));
            };
            let ids = choose(&plugin.devices, &kept.holdings, (pod_uid, container, &resource), count)?;
            add(&mut grant, ask(&socket, &ids, plugin.pre_start).await.map_err(|why| format!("{resource}: {why}"))?);
            let holds =
                |one: &Holding| one.pod_uid == pod_uid && one.container == container && one.resource == resource;
            kept.holdings.retain(|one| !holds(one));
            kept.holdings.push(Holding {
                pod_uid: pod_uid.into(),
                container: container.into(),
                resource: resource.clone(),
                ids,
            });
        }
        if kept != before {
            write(record, &kept).map_err(|error| format!("write {}: {error}", record.display()))?;
        }
        Ok(Some(grant))
    }
}

impl Kubelet {
    /// What plugins grant a container, if it asks for anything of theirs.
    pub(super) async fn plugged(&self, pod_uid: &str, container: &Container) -> Result<Option<Grant>, String> {
        let limits = &container.resources.limits;
        let Some(record) = self.plugins.record.get().filter(|_| limits.keys().any(|resource| is_extended(resource)))
        else {
            return Ok(None);
        };
        let alive = self.runtime.list().await.map_err(|error| format!("list containers: {error}"))?;
        self.plugins.allocate(pod_uid, &container.name, limits, &alive, record).await
    }
}

/// How many of each resource of a plugin; others are counted by the scheduler alone, as upstream has it.
fn wanted<'a>(
    limits: impl IntoIterator<Item = (&'a String, &'a Value)>,
    resources: &BTreeSet<String>,
) -> BTreeMap<String, usize> {
    let count = |(name, amount): (&String, &Value)| {
        let count = usize::try_from(Quantity::from_value(amount).ok()?.value()).ok()?;
        (resources.contains(name) && count > 0).then(|| (name.clone(), count))
    };
    limits.into_iter().filter_map(count).collect()
}

fn lives(holding: &Holding, sandboxes: &[SandboxStatus]) -> bool {
    let containers = sandboxes.iter().filter(|one| one.pod.uid == holding.pod_uid).flat_map(|one| &one.containers);
    let mut alive = containers.filter(|one| !matches!(one.state, ContainerState::Exited(_)));
    alive.any(|one| one.name == holding.container)
}

/// Those the container had before its restart, else the first that are healthy and free. Pure.
fn choose(
    devices: &Devices,
    holdings: &[Holding],
    (pod_uid, container, resource): (&str, &str, &str),
    count: usize,
) -> Result<Vec<String>, String> {
    let of_resource = || holdings.iter().filter(|one| one.resource == resource);
    let is_own = |one: &&Holding| one.pod_uid == pod_uid && one.container == container;
    let own = of_resource().find(is_own).map(|one| one.ids.as_slice()).unwrap_or_default();
    if own.len() == count && own.iter().all(|id| devices.get(id) == Some(&true)) {
        return Ok(own.to_vec());
    }
    let taken: BTreeSet<&String> = of_resource().filter(|one| !is_own(one)).flat_map(|one| &one.ids).collect();
    let free = devices.iter().filter(|(id, healthy)| **healthy && !taken.contains(id)).map(|(id, _)| id.clone());
    let chosen: Vec<String> = free.take(count).collect();
    if chosen.len() < count {
        return Err(format!("{count} of {resource} wanted, but only {} free on this node", chosen.len()));
    }
    Ok(chosen)
}

async fn ask(socket: &Path, ids: &[String], pre_start: bool) -> Result<Grant, String> {
    let asked = async {
        let channel = Channel::connect(socket).await.map_err(|error| error.to_string())?;
        let answer = channel.call(ALLOCATE, &wire::allocate_request(ids)).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((channel, wire::grant(&answer).map_err(|error| error.to_string())?))
    };
    let (channel, grant) =
        tokio::time::timeout(ALLOCATE_TIMEOUT, asked).await.map_err(|_| "the plugin is silent")??;
    if !grant.cdi_devices.is_empty() {
        return Err(format!("CDI devices are not supported: {}", grant.cdi_devices.join(", ")));
    }
    if pre_start {
        let request = wire::pre_start_request(ids);
        let called = tokio::time::timeout(PRE_START_TIMEOUT, channel.call(PRE_START, &request)).await;
        called.map_err(|_| "the plugin is silent")?.map_err(|error| error.to_string())?;
    }
    Ok(grant)
}

fn add(grant: &mut Grant, more: Grant) {
    grant.env.extend(more.env);
    grant.mounts.extend(more.mounts);
    grant.devices.extend(more.devices);
}

/// Whole or not at all.
fn write(file: &Path, record: &Record) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests;
