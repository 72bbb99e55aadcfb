//! Ends pods when the node runs short of memory, disk or processes, before the kernel does it blindly.
//! Decisions are pure. The kernel's pressure file wakes it where there is one; every ten seconds it looks anyway.

use super::Kubelet;
use super::admission::is_critical;
use super::node_status::Machine;
use super::plan::Verdict;
use crate::api::quantity::Quantity;
use crate::api::resources::requests;
use crate::api::view::pod::Pod;
use crate::client::ObjectRef;
use crate::client::events::Type;
use crate::supervise::Shutdown;
use crate::sys::watch::watch;
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const LOOK: Duration = Duration::from_secs(10);
/// A pressure is shown this long after it was last seen, so that a node does not flap.
const TRANSITION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that is to go gets this long before the next one is chosen.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// Hard thresholds leave no time.
const GRACE_S: i64 = 1;
/// Some task was held up by memory for 150 ms within two seconds.
const STALLED: &[u8] = b"some 150000 2000000\0";
const MEMORY_PRESSURE: &str = "/proc/pressure/memory";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Signal {
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk | Self::Inodes => "DiskPressure",
            Self::Pids => "PIDPressure",
        }
    }

    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    fn show(self, amount: u64) -> String {
        match self {
            Self::Memory | Self::Disk => Quantity::from_bytes(amount).to_string(),
            Self::Inodes | Self::Pids => amount.to_string(),
        }
    }
}

/// A signal below its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub signal: Signal,
    pub available: u64,
    pub threshold: u64,
}

/// In the order in which they are relieved.
pub fn shortages(machine: &Machine) -> Vec<Shortage> {
    let all = [
        (Signal::Memory, machine.memory_available_bytes, machine.memory_low_bytes(), machine.memory_bytes),
        (Signal::Disk, machine.disk_available_bytes, machine.disk_low_bytes(), machine.disk_bytes),
        (Signal::Inodes, machine.inodes_available, machine.inodes / 20, machine.inodes),
        (Signal::Pids, machine.pids.saturating_sub(machine.pids_used), machine.pids / 10, machine.pids),
    ];
    let short = all.into_iter().filter(|(_, available, threshold, whole)| *whole > 0 && available < threshold);
    short.map(|(signal, available, threshold, _)| Shortage { signal, available, threshold }).collect()
}

/// When each pressure was last seen.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, Timestamp>);

impl Seen {
    /// The conditions that hold, those of a while ago included.
    fn update(&mut self, shortages: &[Shortage], now: Timestamp) -> Vec<&'static str> {
        for shortage in shortages {
            self.0.insert(shortage.signal.condition(), now);
        }
        self.0.retain(|_, at| now.duration_since(*at) < TRANSITION);
        self.0.keys().copied().collect()
    }
}

/// A pod and what it uses of what is short.
#[derive(Clone, Debug)]
struct Usage {
    pod: Pod,
    /// By container, where it is known.
    memory_bytes: BTreeMap<String, u64>,
}

impl Usage {
    fn memory(&self) -> i64 {
        i64::try_from(self.memory_bytes.values().sum::<u64>()).unwrap_or(i64::MAX)
    }

    fn requested(&self) -> i64 {
        requests(&self.pod.spec).memory_bytes
    }
}

/// The pod that goes first: beyond its request, then of lowest priority, then furthest beyond its request.
fn victim(signal: Signal, pods: &[Usage]) -> Option<&Usage> {
    let may_go = pods.iter().filter(|usage| !is_critical(&usage.pod) && !usage.pod.is_terminating());
    may_go.min_by_key(|usage| {
        let priority = usage.pod.spec.priority.unwrap_or(0);
        let excess = if signal == Signal::Memory { usage.memory() - usage.requested() } else { 0 };
        let started = usage.pod.status.start_time.clone();
        (signal == Signal::Memory && excess <= 0, priority, Reverse(excess), Reverse(started))
    })
}

/// As upstream words it.
fn message(shortage: &Shortage, usage: &Usage) -> String {
    let Shortage { signal, available, threshold } = *shortage;
    let resource = signal.resource();
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        signal.show(threshold),
        signal.show(available)
    );
    if signal != Signal::Memory {
        return text;
    }
    for container in &usage.pod.spec.containers {
        let used = usage.memory_bytes.get(&container.name).copied().unwrap_or(0);
        let request = container.resources.requests.get("memory").and_then(|value| Quantity::from_value(value).ok());
        let request = request.unwrap_or(Quantity::from_units(0));
        if i64::try_from(used).unwrap_or(i64::MAX) > request.value() {
            text += &format!(
                "Container {} was using {}, request is {request}, has larger consumption of {resource}. ",
                container.name,
                Quantity::from_bytes(used)
            );
        }
    }
    text
}

/// Runs until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>, shutdown: Shutdown) {
    let mut evictor = Evictor { kubelet, seen: Seen::default(), last: None };
    let stalls = stalls().inspect_err(|error| tracing::debug!(%error, "no word from the kernel on memory")).ok();
    let mut timer = tokio::time::interval(LOOK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            _ = timer.tick() => {}
            () = stalled(stalls.as_ref()) => {}
        }
        evictor.look().await;
    }
}

/// Asks the kernel to tell when tasks are held up for want of memory.
fn stalls() -> io::Result<AsyncFd<OwnedFd>> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(MEMORY_PRESSURE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, STALLED)?;
    watch(file)
}

async fn stalled(stalls: Option<&AsyncFd<OwnedFd>>) {
    match stalls {
        Some(stalls) => match stalls.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

struct Evictor {
    kubelet: Arc<Kubelet>,
    seen: Seen,
    /// The last pod that was told to go, and when.
    last: Option<(String, Timestamp)>,
}

impl Evictor {
    async fn look(&mut self) {
        let machine = Machine::observe(&self.kubelet.config.log_directory);
        let mut shortages = shortages(&machine);
        let disk = |shortage: &Shortage| shortage.signal.condition() == "DiskPressure";
        if shortages.iter().any(disk) {
            // Images that nobody needs go before pods do.
            self.kubelet.collect_images().await;
            let machine = Machine::observe(&self.kubelet.config.log_directory);
            shortages = self::shortages(&machine);
        }
        let now = self.kubelet.clock.now();
        self.show(self.seen.0.len(), &shortages, now);
        if let Some(shortage) = shortages.first() {
            self.relieve(shortage, now).await;
        }
    }

    /// Conditions of the node follow.
    fn show(&mut self, before: usize, shortages: &[Shortage], now: Timestamp) {
        let pressures = self.seen.update(shortages, now);
        if before == 0 && pressures.is_empty() {
            return;
        }
        let mut distress = self.kubelet.distress.lock().expect("no panic while locked");
        if distress.pressures != pressures {
            distress.pressures = pressures;
            self.kubelet.node_changed.notify_one();
        }
    }

    async fn relieve(&mut self, shortage: &Shortage, now: Timestamp) {
        let pods = self.usages().await;
        if let Some((uid, at)) = &self.last
            && now.duration_since(*at) < PATIENCE
            && pods.iter().any(|usage| usage.pod.metadata.uid == *uid)
        {
            return;
        }
        let resource = shortage.signal.resource();
        let about = self.kubelet.about_node();
        let events = &self.kubelet.events;
        events.event(&about, Type::Warning, "EvictionThresholdMet", format!("Attempting to reclaim {resource}"));
        let Some(usage) = victim(shortage.signal, &pods) else {
            tracing::warn!(resource, "the node is short and no pod may be evicted");
            return;
        };
        let meta = &usage.pod.metadata;
        let message = message(shortage, usage);
        tracing::warn!(namespace = meta.namespace, name = meta.name, resource, "evicting a pod");
        events.event(&ObjectRef::pod(&usage.pod), Type::Warning, "Evicted", message.clone());
        self.last = Some((meta.uid.clone(), now));
        let verdict = Verdict::disrupted("Evicted", message, GRACE_S);
        // The queue ends only with the kubelet.
        let _ = self.kubelet.sentences.send((meta.uid.clone(), verdict)).await;
    }

    /// The pods that run, with what they use.
    async fn usages(&self) -> Vec<Usage> {
        let mut usages = Vec::new();
        for pod in self.kubelet.present_pods() {
            if let Ok(stats) = self.kubelet.runtime.stats(&pod.metadata.uid).await {
                let memory = stats.into_iter().map(|(name, stats)| (name, stats.memory_working_set_bytes));
                usages.push(Usage { pod, memory_bytes: memory.collect() });
            }
        }
        usages
    }
}

impl Kubelet {
    fn about_node(&self) -> ObjectRef {
        let name = self.config.node_name.clone();
        // As upstream: the uid of a node in its kubelet's Events is its name.
        ObjectRef { api_version: "v1".into(), kind: "Node".into(), uid: name.clone(), name, ..ObjectRef::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn machine() -> Machine {
        Machine {
            memory_bytes: 1 << 30,
            memory_available_bytes: 1 << 29,
            disk_bytes: 10 << 30,
            disk_available_bytes: 5 << 30,
            inodes: 1000,
            inodes_available: 500,
            pids: 1000,
            pids_used: 100,
            ..Machine::default()
        }
    }

    #[test]
    fn thresholds_are_met_one_by_one() {
        assert_eq!(shortages(&machine()), []);
        assert_eq!(shortages(&Machine::default()), [], "what is not known is not short");
        let short = |change: fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            shortages(&machine).iter().map(|shortage| shortage.signal).collect::<Vec<_>>()
        };
        assert_eq!(short(|machine| machine.memory_available_bytes = 50 << 20), [Signal::Memory]);
        assert_eq!(short(|machine| machine.disk_available_bytes = 100 << 20), [Signal::Disk]);
        assert_eq!(short(|machine| machine.inodes_available = 49), [Signal::Inodes]);
        assert_eq!(short(|machine| machine.pids_used = 901), [Signal::Pids]);
    }

    #[test]
    fn a_pressure_outlasts_its_cause() {
        let mut seen = Seen::default();
        let at = |text: &str| -> Timestamp { text.parse().expect("time") };
        let shortage = Shortage { signal: Signal::Inodes, available: 1, threshold: 2 };
        assert_eq!(seen.update(&[shortage], at("2026-01-01T00:00:00Z")), ["DiskPressure"]);
        assert_eq!(seen.update(&[], at("2026-01-01T00:04:59Z")), ["DiskPressure"]);
        assert_eq!(seen.update(&[], at("2026-01-01T00:05:00Z")), [] as [&str; 0]);
    }

    fn usage(name: &str, priority: i64, request: &str, used_bytes: u64) -> Usage {
        let requests: Value = if request.is_empty() { json!({}) } else { json!({"memory": request}) };
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": requests}}]}});
        let pod = serde_json::from_value(pod).expect("pod");
        Usage { pod, memory_bytes: BTreeMap::from([("c".to_owned(), used_bytes)]) }
    }

    #[test]
    fn pods_go_in_upstreams_order() {
        let mega = 1 << 20;
        let first = |signal, pods: &[Usage]| victim(signal, pods).map(|usage| usage.pod.metadata.name.clone());
        let modest = usage("modest", 0, "200Mi", 100 * mega);
        let greedy = usage("greedy", 5, "100Mi", 150 * mega);
        let greedier = usage("greedier", 5, "", 120 * mega);
        let humble = usage("humble", -1, "", mega);
        let system = usage("system", 2_000_000_000, "", 900 * mega);
        let all = [modest.clone(), greedy.clone(), greedier.clone(), system.clone()];
        assert_eq!(first(Signal::Memory, &all).as_deref(), Some("greedier"));
        assert_eq!(first(Signal::Memory, &[greedy, humble, greedier]).as_deref(), Some("humble"));
        assert_eq!(first(Signal::Memory, &[modest, system.clone()]).as_deref(), Some("modest"));
        assert_eq!(first(Signal::Disk, &all).as_deref(), Some("modest"), "disk goes by priority");
        assert_eq!(first(Signal::Memory, &[system]), None);
    }

    #[test]
    fn the_reason_is_told_as_upstream_tells_it() {
        let shortage = Shortage { signal: Signal::Memory, available: 50 << 20, threshold: 100 << 20 };
        assert_eq!(
            message(&shortage, &usage("p", 0, "100Mi", 150 << 20)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using \
             150Mi, request is 100Mi, has larger consumption of memory. "
        );
    }
}
