//! The Node object and its Lease: registers the node, keeps its status true, says that it lives.
//! The Lease is the heartbeat; the status is written only when it has changed, so that an idle node writes nothing.

use super::admission::Distress;
use super::board::{Condition, Health};
use super::device;
use super::difference::differs;
use super::eviction::shortages;
use super::memory::after;
use super::status::Host;
use super::{Heartbeat, Kubelet, KubeletConfig};
use crate::api::KUBERNETES;
use crate::api::object::ObjectExt;
use crate::api::quantity::Quantity;
use crate::api::status::Result;
use crate::client::PatchType;
use crate::client::informer::Scope;
use crate::client::{Client, Informer, Informers, LEASES, NODES};
use crate::clock::rfc3339_micro;
use crate::supervise::Shutdown;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_DURATION_S: i64 = 40;
/// Facts other than conditions (images, capacity) are written no more often.
const REWRITE_AFTER_S: i64 = 30;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often the disk is asked whether images must go.
const IMAGES_CHECK: Duration = Duration::from_secs(60);
/// The API server's first answers may take a moment.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_LIMIT: Duration = Duration::from_secs(30);
const PODS_LIMIT: i64 = 110;
const KUBELET_PORT: u16 = 10250;
const IMAGES_LIMIT: usize = 50;
/// Upstream's eviction signals.
const MEMORY_LOW_BYTES: u64 = 100 << 20;
const DISK_LOW_PERCENT: u64 = 10;
/// A tenth of a large disk is far more than pods need to go on.
const DISK_LOW_LIMIT_BYTES: u64 = 2 << 30;

/// What the kernel says about this machine now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    pub disk_bytes: u64,
    pub disk_available_bytes: u64,
    pub inodes: u64,
    pub inodes_available: u64,
    /// Processes and threads that may be, and that are.
    pub pids: u64,
    pub pids_used: u64,
}

impl Machine {
    /// Reads `/proc` and the file system that `state` is on.
    pub fn observe(state: &Path) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let disk = rustix::fs::statvfs(state).or_else(|_| rustix::fs::statvfs("/")).ok();
        let bytes =
            |blocks: fn(&rustix::fs::StatVfs) -> u64| disk.as_ref().map_or(0, |disk| blocks(disk) * disk.f_frsize);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            cpus: i64::try_from(cpus).unwrap_or(1),
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
            disk_bytes: bytes(|disk| disk.f_blocks),
            disk_available_bytes: bytes(|disk| disk.f_bavail),
            inodes: disk.as_ref().map_or(0, |disk| disk.f_files),
            inodes_available: disk.as_ref().map_or(0, |disk| disk.f_favail),
            pids: number_in("/proc/sys/kernel/pid_max").min(number_in("/proc/sys/kernel/threads-max")),
            pids_used: tasks(),
        }
    }

    /// `status.capacity`.
    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity::from_units(self.cpus)),
            ("memory".to_owned(), Quantity::from_bytes(self.memory_bytes)),
            ("ephemeral-storage".to_owned(), Quantity::from_bytes(self.disk_bytes)),
            ("pods".to_owned(), Quantity::from_units(PODS_LIMIT)),
        ])
    }

    /// `status.allocatable`: what is left when the eviction thresholds are kept free.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let mut left = self.capacity();
        let memory = self.memory_bytes.saturating_sub(self.memory_low_bytes());
        let disk = self.disk_bytes - self.disk_low_bytes();
        left.insert("memory".to_owned(), Quantity::from_bytes(memory));
        left.insert("ephemeral-storage".to_owned(), Quantity::from_bytes(disk));
        left
    }

    /// Free space below which no more pods are taken and pods are evicted.
    pub fn disk_low_bytes(&self) -> u64 {
        (self.disk_bytes / 100 * DISK_LOW_PERCENT).min(DISK_LOW_LIMIT_BYTES)
    }

    /// Upstream's 100 MiB; on small boards a tenth, which is less.
    pub fn memory_low_bytes(&self) -> u64 {
        MEMORY_LOW_BYTES.min(self.memory_bytes / 10)
    }

    /// What holds now; what held a while ago is in `distress`.
    fn conditions(&self, distress: &Distress) -> [Condition; 4] {
        let held = |condition: &str| distress.pressures.contains(&condition);
        let now = |condition: &str| shortages(self).iter().any(|one| one.signal.condition() == condition);
        let [memory, disk, pids] =
            ["MemoryPressure", "DiskPressure", "PIDPressure"].map(|condition| held(condition) || now(condition));
        [
            if memory {
                ("MemoryPressure", true, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            } else {
                ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            },
            if disk {
                ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure")
            } else {
                ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
            },
            if pids {
                ("PIDPressure", true, "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
            } else {
                ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available")
            },
            if distress.shutting_down {
                ("Ready", false, "KubeletNotReady", "node is shutting down")
            } else {
                ("Ready", true, "KubeletReady", "kubelet is posting ready status")
            },
        ]
        .map(|(r#type, holds, reason, message)| Condition { r#type, holds, reason, message: message.into() })
    }
}

fn number_in(path: &str) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The second number of `running/all` in the load averages.
fn tasks() -> u64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split([' ', '/']).nth(4).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn meminfo_bytes(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}

/// Makes the Node, without a status yet, so that it is given its pods' addresses; retries until it is there.
pub async fn introduce(config: &KubeletConfig, client: &Client) {
    let mut retry = RETRY;
    loop {
        match client.create(NODES, "", node_object(config)).await {
            Err(error) if !error.is_already_exists() => {
                tracing::debug!(%error, "introduce node failed; retrying");
            }
            _ => return,
        }
        wait_for_server(client, &mut retry).await;
    }
}

/// Until the server is back, or for a while that doubles.
async fn wait_for_server(client: &Client, retry: &mut Duration) {
    tokio::select! {
        () = tokio::time::sleep(*retry) => *retry = (*retry * 2).min(RETRY_LIMIT),
        () = client.reconnected() => *retry = RETRY,
    }
}

fn node_object(config: &KubeletConfig) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.node_name, "labels": labels(config), "annotations":
            {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
        "spec": {},
    })
}

/// Registers the node and keeps it until shutdown.
pub async fn run(kubelet: Arc<Kubelet>, informers: Informers, shutdown: Shutdown) {
    tokio::select! {
        () = shutdown.requested() => {}
        () = keep(kubelet.clone(), informers) => {}
        () = collect_images(&kubelet) => {}
    }
}

/// Beside the heartbeats, which must not wait for a slow disk. A file system tells nobody that it fills up.
async fn collect_images(kubelet: &Kubelet) {
    loop {
        kubelet.clock.sleep(IMAGES_CHECK).await;
        kubelet.collect_images().await;
    }
}

async fn keep(kubelet: Arc<Kubelet>, informers: Informers) {
    let mut retry = RETRY;
    while let Err(error) = register(&kubelet).await {
        tracing::debug!(%error, "register node failed; retrying");
        wait_for_server(&kubelet.client, &mut retry).await;
    }
    let mut node_ips = kubelet.config.node_ips.clone();
    let name = &kubelet.config.node_name;
    let own = Scope { field_selector: format!("metadata.name={name}"), ..Scope::default() };
    let informer = informers.get(NODES, own);
    let mut changes = informer.subscribe();
    let mut failing = false;
    retry = RETRY;
    let mut timer = tokio::time::interval(HEARTBEAT);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let outcome = tokio::select! {
            _ = timer.tick() => match beat(&kubelet).await {
                Ok(()) => sync(&kubelet, held(&kubelet, &informer).await).await,
                failed => failed,
            },
            // A board that has moved is found by nobody until it has said so: that does not wait for a heartbeat.
            () = wait_for_server(&kubelet.client, &mut retry), if failing => {
                sync(&kubelet, held(&kubelet, &informer).await).await
            }
            () = kubelet.node_changed.notified() => sync(&kubelet, held(&kubelet, &informer).await).await,
            Ok(()) = node_ips.changed() => {
                let host = Host::of(&node_ips.borrow_and_update());
                tracing::info!(addresses = ?host.ips, "the node has other addresses");
                kubelet.host.store(Arc::new(host));
                *kubelet.node_written_at.lock().expect("no panic while it is locked") = None;
                sync(&kubelet, held(&kubelet, &informer).await).await
            }
            change = changes.next() => match change.new {
                Some(node) => sync(&kubelet, node.object()).await,
                None => register(&kubelet).await,
            },
        };
        match outcome {
            Err(error) if !failing => {
                tracing::warn!(node = name, %error, "keep node failed; retrying");
                failing = true;
            }
            Err(_) => {}
            Ok(()) => (failing, retry) = (false, RETRY),
        }
    }
}

/// Makes the Node, or takes over the one that is there: its labels and its status.
async fn register(kubelet: &Kubelet) -> Result<()> {
    let name = &kubelet.config.node_name;
    let labels = labels(&kubelet.config);
    match kubelet.client.get(NODES, "", name).await {
        Ok(item) => {
            let node = item.object()?;
            if labels.iter().any(|(key, value)| node.label(key) != value.as_str()) {
                let patch = json!({"metadata": {"labels": labels}});
                kubelet.client.patch(NODES, "", name, "", PatchType::Merge, patch).await?;
            }
        }
        Err(error) if error.is_not_found() => {
            let mut node = node_object(&kubelet.config);
            node["status"] = status(kubelet, &Value::Null).await;
            match kubelet.client.create(NODES, "", node).await {
                Err(error) if error.is_already_exists() => {}
                other => drop(other?),
            }
        }
        Err(error) => return Err(error),
    }
    sync(kubelet, read(kubelet).await).await?;
    beat(kubelet).await
}

/// The node as the API has it.
async fn read(kubelet: &Kubelet) -> Result<Value> {
    kubelet.client.get(NODES, "", &kubelet.config.node_name).await?.object()
}

/// The node as the informer has it: an idle node asks nobody.
async fn held(kubelet: &Kubelet, informer: &Informer) -> Result<Value> {
    match informer.get("", &kubelet.config.node_name) {
        Some(item) => item.object(),
        None => read(kubelet).await,
    }
}

fn labels(config: &KubeletConfig) -> Map<String, Value> {
    let name = config.node_name.as_str();
    let known = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    let known = known.into_iter().map(|(key, value)| (key.to_owned(), json!(value)));
    let board = config.board.labels().into_iter().map(|(key, value)| (key, json!(value)));
    known.chain(board).chain(config.labels.iter().map(|(key, value)| (key.clone(), json!(value)))).collect()
}

/// As container images name architectures.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Writes the status if the API holds another one. Where only facts differ that were written just now (the API
/// may keep them otherwise), it waits; a condition that somebody else has changed is mended at once.
async fn sync(kubelet: &Kubelet, node: Result<Value>) -> Result<()> {
    let name = &kubelet.config.node_name;
    let held = node?.get("status").cloned().unwrap_or_default();
    let wanted = status(kubelet, &held).await;
    if !differs(&wanted, &held) || !kubelet.may_write_node(conditions_differ(&wanted, &held)) {
        return Ok(());
    }
    let patch = json!({"status": wanted});
    let written = kubelet.client.patch(NODES, "", name, "status", PatchType::Strategic, patch).await;
    if written.is_err() {
        // What the API has not taken is due still.
        *kubelet.node_written_at.lock().expect("no panic while it is locked") = None;
    }
    written.map(drop)
}

fn conditions_differ(wanted: &Value, held: &Value) -> bool {
    differs(&json!({"conditions": wanted["conditions"]}), held)
}

impl Kubelet {
    fn may_write_node(&self, urgent: bool) -> bool {
        let now = self.clock.now();
        let mut last = self.node_written_at.lock().expect("no panic while it is locked");
        let due = last.is_none_or(|at| after(at, REWRITE_AFTER_S) <= now);
        if urgent || due {
            *last = Some(now);
        }
        urgent || due
    }
}

/// `held` gives the times of conditions that stay as they are.
async fn status(kubelet: &Kubelet, held: &Value) -> Value {
    let config = &kubelet.config;
    let machine = Machine::observe(&config.log_directory);
    let distress = kubelet.distress.lock().expect("no panic while locked").clone();
    let node_ips = config.node_ips.borrow().clone();
    let addresses = node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}));
    let hostname = json!({"type": "Hostname", "address": config.node_name});
    let devices = device::amounts(&device::supplies(Path::new("/"), &config.devices));
    let (plugged, healthy) = kubelet.plugins.amounts();
    let quantities = |map: &BTreeMap<String, Quantity>, more: &BTreeMap<String, Quantity>| -> Map<String, Value> {
        map.iter()
            .chain(&devices)
            .chain(more)
            .map(|(name, quantity)| (name.clone(), json!(quantity.to_string())))
            .collect()
    };
    let health = Health::observe(Path::new("/"));
    let holds = |r#type: &str| condition_holds(held, r#type);
    let mut conditions = health.conditions(&config.board, holds);
    // Ready last, where scripts look for it.
    conditions.extend(machine.conditions(&distress));
    json!({
        "addresses": addresses.chain([hostname]).collect::<Value>(),
        "capacity": quantities(&config.capacity, &plugged),
        "allocatable": quantities(&config.allocatable, &healthy),
        "conditions": as_objects(conditions, held, &kubelet.clock.now_rfc3339()),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "images": images(kubelet).await,
        "nodeInfo": node_info(&kubelet.runtime.version()),
    })
}

fn condition_holds(held: &Value, r#type: &str) -> bool {
    let mut conditions = held["conditions"].as_array().into_iter().flatten();
    conditions.any(|one| one["type"] == r#type && one["status"] == "True")
}

fn as_objects(conditions: impl IntoIterator<Item = Condition>, held: &Value, now: &str) -> Value {
    let held = held["conditions"].as_array().cloned().unwrap_or_default();
    let one = |Condition { r#type, holds, reason, message }| {
        let status = if holds { "True" } else { "False" };
        let same = held.iter().find(|old| old["type"] == r#type && old["status"] == status);
        let since = same.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({"type": r#type, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since})
    };
    conditions.into_iter().map(one).collect()
}

async fn images(kubelet: &Kubelet) -> Value {
    let mut images = kubelet.runtime.images().await.unwrap_or_default();
    images.sort_by(|one, other| other.size_bytes.cmp(&one.size_bytes).then_with(|| one.id.cmp(&other.id)));
    let shown = images.iter().take(IMAGES_LIMIT).filter(|image| !image.names.is_empty());
    shown.map(|image| json!({"names": image.names, "sizeBytes": image.size_bytes})).collect()
}

fn node_info(runtime_version: &str) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let machine_id = read("/etc/machine-id");
    let product = read("/sys/class/dmi/id/product_uuid");
    json!({
        "machineID": machine_id,
        "systemUUID": if product.is_empty() { machine_id.clone() } else { product },
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "osImage": pretty.trim_matches('"'),
        "containerRuntimeVersion": runtime_version,
        "kubeletVersion": format!("v{KUBERNETES}+edgelet-{}", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture(),
    })
}

async fn beat(kubelet: &Kubelet) -> Result<()> {
    match &kubelet.config.heartbeat {
        Heartbeat::Lease => renew_lease(kubelet).await,
        Heartbeat::Tunnel(_) => Ok(()),
    }
}

async fn renew_lease(kubelet: &Kubelet) -> Result<()> {
    let name = &kubelet.config.node_name;
    let now = rfc3339_micro(kubelet.clock.now());
    let renewal = json!({"spec": {"holderIdentity": name, "renewTime": now}});
    match kubelet.client.patch(LEASES, LEASE_NAMESPACE, name, "", PatchType::Merge, renewal).await {
        Err(error) if error.is_not_found() => {}
        other => return other.map(drop),
    }
    let node = kubelet.client.get(NODES, "", name).await?.object()?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences":
            [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.uid()}]},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": now},
    });
    kubelet.client.create(LEASES, LEASE_NAMESPACE, lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n";
        assert_eq!((meminfo_bytes(text, "MemTotal"), meminfo_bytes(text, "MemAvailable")), (2 << 20, 1 << 20));
        assert_eq!(meminfo_bytes(text, "Mem"), 0);
    }

    #[test]
    fn pressure_and_transition_times() {
        let disk_bytes = 100 << 30;
        let mut machine = Machine {
            cpus: 4,
            memory_bytes: 1 << 30,
            memory_available_bytes: 1 << 29,
            disk_bytes,
            disk_available_bytes: disk_bytes,
            ..Machine::default()
        };
        let calm = Distress::default();
        let first = json!({"conditions": as_objects(machine.conditions(&calm), &Value::Null, "then")});
        let later = json!({"conditions": as_objects(machine.conditions(&calm), &first, "now")});
        assert!(!differs(&later, &first));
        assert_eq!(later["conditions"][3]["lastTransitionTime"], "then");
        assert_eq!(later["conditions"][3]["lastHeartbeatTime"], "now");
        machine.memory_available_bytes = 50 << 20;
        let low = json!({"conditions": as_objects(machine.conditions(&calm), &first, "now")});
        assert!(differs(&low, &first));
        assert_eq!(low["conditions"][0]["reason"], "KubeletHasInsufficientMemory");
        assert_eq!(low["conditions"][0]["lastTransitionTime"], "now");
        assert_eq!(machine.allocatable()["memory"], Quantity::from_bytes((1 << 30) - MEMORY_LOW_BYTES));
        let leaving = Distress { shutting_down: true, pressures: vec!["DiskPressure"] };
        let told = as_objects(machine.conditions(&leaving), &first, "now");
        assert_eq!((&told[1]["status"], &told[3]["status"]), (&json!("True"), &json!("False")));
        assert_eq!(told[3]["message"], "node is shutting down");
    }
}
