//! Ends the node's pods in the order of their priority before the machine goes down. systemd's login manager is asked
//! to wait (an inhibitor lock of the kind "delay") and tells when a shutdown begins. Source: KEP-2000.

use super::Kubelet;
use super::admission::is_critical;
use super::plan::Verdict;
use crate::api::view::pod::Pod;
use crate::runtime::ContainerState;
use crate::supervise::Shutdown;
use crate::sys::dbus::{Bus, Method};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MANAGER: &str = "org.freedesktop.login1.Manager";
const RULE: &str = "type='signal',interface='org.freedesktop.login1.Manager',member='PrepareForShutdown',\
                    path='/org/freedesktop/login1'";
const RECONNECT_DELAY: Duration = Duration::from_secs(10);
/// The login manager has nothing to say when it has read its configuration again.
const RELOAD_DELAY: Duration = Duration::from_secs(2);
/// A system bus that does not answer keeps nobody from taking edgelet away.
const FORGET_LIMIT: Duration = Duration::from_secs(10);
/// What is left for the API to be told how the pods ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// How long a shutdown may wait for pods.
#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    /// For all pods together; 0 = the machine goes down without asking.
    pub grace_s: u64,
    /// The part of it that is kept for critical pods.
    pub critical_grace_s: u64,
    /// The system bus.
    pub bus: PathBuf,
    /// Where the login manager reads how long it may be made to wait.
    pub drop_in: PathBuf,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            grace_s: 30,
            critical_grace_s: 10,
            bus: "/run/dbus/system_bus_socket".into(),
            drop_in: "/etc/systemd/logind.conf.d/99-edgelet.conf".into(),
        }
    }
}

/// Takes away what made the login manager wait, and has it read its own configuration again. Says whether there was
/// something to take.
pub async fn forget() -> io::Result<bool> {
    let config = ShutdownConfig::default();
    match std::fs::remove_file(&config.drop_in) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    if let Some(folder) = config.drop_in.parent() {
        // Others' drop-ins keep it.
        let _ = std::fs::remove_dir(folder);
    }
    if config.bus.exists() {
        let told = async { reload(&mut Bus::connect(&config.bus).await?).await };
        tokio::time::timeout(FORGET_LIMIT, told).await.map_err(io::Error::from)??;
    }
    Ok(true)
}

/// Runs until the kubelet ends. Without a system bus there is nobody to ask.
pub async fn run(kubelet: Arc<Kubelet>, config: ShutdownConfig, shutdown: Shutdown) {
    if config.grace_s == 0 || !config.bus.exists() {
        tracing::debug!("a shutdown of the machine is not watched for");
        return shutdown.requested().await;
    }
    tokio::select! {
        () = shutdown.requested() => {}
        () = keep(&kubelet, &config) => {}
    }
}

async fn keep(kubelet: &Kubelet, config: &ShutdownConfig) {
    let mut told = false;
    loop {
        let Err(error) = watch(kubelet, config, &mut told).await;
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, "the login manager is not heard; a shutdown would find the pods unprepared");
        }
        kubelet.clock.sleep(RECONNECT_DELAY).await;
    }
}

/// One connection to the bus. Returns only when it breaks.
async fn watch(kubelet: &Kubelet, config: &ShutdownConfig, told: &mut bool) -> io::Result<std::convert::Infallible> {
    let mut bus = Bus::connect(&config.bus).await?;
    bus.add_match(RULE).await?;
    let allowed = allowed(kubelet, &mut bus, config).await?;
    let mut lock = Some(inhibit(&mut bus).await?);
    *told = false;
    loop {
        let signal = bus.signal().await?;
        if signal.interface != MANAGER || signal.member != "PrepareForShutdown" {
            continue;
        }
        let begins = signal.boolean() == Some(true);
        kubelet.set_shutting_down(begins);
        if !begins {
            // Somebody has changed their mind.
            lock = Some(inhibit(&mut bus).await?);
        } else if lock.is_some() {
            tracing::info!("the machine goes down: ending pods");
            let pods = kubelet.present_pods();
            let connected = kubelet.pods.is_connected();
            end_pods(kubelet, &stages(&pods, allowed, config), &returning(&pods, connected)).await;
            lock = None;
        }
    }
}

async fn inhibit(bus: &mut Bus) -> io::Result<OwnedFd> {
    let arguments = ["shutdown", "edgelet", "pods need time to end", "delay"];
    let mut answer = bus.call(manager("Inhibit"), &arguments).await?;
    answer.descriptors.pop().ok_or_else(|| io::Error::other("the login manager gave no lock"))
}

fn manager(member: &str) -> Method<'_> {
    Method { destination: "org.freedesktop.login1", path: "/org/freedesktop/login1", interface: MANAGER, member }
}

/// How long the login manager waits at most; it is asked to wait long enough, as far as it can be.
async fn allowed(kubelet: &Kubelet, bus: &mut Bus, config: &ShutdownConfig) -> io::Result<Duration> {
    let wanted = Duration::from_secs(config.grace_s);
    let limit = delay_limit(bus).await?;
    if limit >= wanted {
        return Ok(wanted);
    }
    match raise_limit(bus, config).await {
        Ok(()) => kubelet.clock.sleep(RELOAD_DELAY).await,
        Err(error) => tracing::debug!(%error, "ask the login manager to wait longer"),
    }
    let limit = delay_limit(bus).await?;
    if limit < wanted {
        let (limit_s, wanted_s) = (limit.as_secs(), config.grace_s);
        tracing::warn!(limit_s, wanted_s, "a shutdown waits for pods shorter than asked: see InhibitDelayMaxSec");
    }
    Ok(limit.min(wanted))
}

async fn delay_limit(bus: &mut Bus) -> io::Result<Duration> {
    let get = Method { interface: "org.freedesktop.DBus.Properties", ..manager("Get") };
    let answer = bus.call(get, &[MANAGER, "InhibitDelayMaxUSec"]).await?;
    let microseconds = answer.variant_u64().ok_or_else(|| io::Error::other("InhibitDelayMaxUSec is no number"))?;
    Ok(Duration::from_micros(microseconds))
}

/// Writes the drop-in, when it says something else, and has it read.
async fn raise_limit(bus: &mut Bus, config: &ShutdownConfig) -> io::Result<()> {
    let text =
        format!("# Written by edgelet: pods need time to end.\n[Login]\nInhibitDelayMaxSec={}\n", config.grace_s);
    write_if_changed(&config.drop_in, &text)?;
    reload(bus).await
}

/// Has the login manager read its configuration.
async fn reload(bus: &mut Bus) -> io::Result<()> {
    let reload = Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1/unit/systemd_2dlogind_2eservice",
        interface: "org.freedesktop.systemd1.Unit",
        member: "ReloadOrRestart",
    };
    bus.call(reload, &["replace"]).await.map(drop)
}

fn write_if_changed(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|held| held == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)
}

/// Pods that end together, and how long they may take.
#[derive(Debug, PartialEq, Eq)]
struct Stage {
    uids: BTreeSet<String>,
    grace_s: i64,
}

/// Ordinary pods first, critical ones last. A delay shorter than asked shortens both parts alike.
fn stages(pods: &[Pod], allowed: Duration, config: &ShutdownConfig) -> Vec<Stage> {
    let (asked, critical) = (config.grace_s.max(1), config.critical_grace_s.min(config.grace_s));
    let critical_s = allowed.as_secs() * critical / asked;
    let parts = [(false, allowed.as_secs() - critical_s), (true, critical_s)];
    let stage = |(critical, grace_s): (bool, u64)| {
        let these = pods.iter().filter(|pod| is_critical(pod) == critical);
        let uids = these.map(|pod| pod.metadata.uid.clone()).collect();
        Stage { uids, grace_s: i64::try_from(grace_s).unwrap_or(i64::MAX) }
    };
    parts.map(stage).into_iter().filter(|stage| !stage.uids.is_empty()).collect()
}

/// Pods that nobody would replace, or not now: they are to run again when the machine does. Of the others it is
/// written that they ended, so that their controllers make new ones at once.
fn returning(pods: &[Pod], connected: bool) -> BTreeSet<String> {
    let alone = pods.iter().filter(|pod| !connected || pod.metadata.controller().is_none());
    alone.map(|pod| pod.metadata.uid.clone()).collect()
}

async fn end_pods(kubelet: &Kubelet, stages: &[Stage], returning: &BTreeSet<String>) {
    for stage in stages {
        for uid in &stage.uids {
            let returns = returning.contains(uid);
            let verdict = Verdict { returns, ..Verdict::disrupted("Terminated", MESSAGE, stage.grace_s) };
            // The queue ends only with the kubelet.
            let _ = kubelet.sentences.send((uid.clone(), verdict)).await;
        }
        let grace = Duration::from_secs(stage.grace_s.unsigned_abs());
        if tokio::time::timeout(grace, kubelet.all_ended(&stage.uids)).await.is_err() {
            tracing::warn!(grace_s = stage.grace_s, "pods have not ended in time");
        }
    }
    let all: BTreeSet<&String> =
        stages.iter().flat_map(|stage| &stage.uids).filter(|uid| !returning.contains(*uid)).collect();
    if tokio::time::timeout(LAST_WORDS, kubelet.all_told(&all)).await.is_err() {
        tracing::debug!("the API has not heard of the end of all pods");
    }
}

impl Kubelet {
    fn set_shutting_down(&self, begins: bool) {
        self.distress.lock().expect("no panic while locked").shutting_down = begins;
        self.node_changed.notify_one();
    }

    /// Pods of this node that have not ended.
    pub(super) fn present_pods(&self) -> Vec<Pod> {
        let pods = self.pods.list().into_iter().filter_map(|item| item.view::<Pod>().ok());
        pods.filter(|pod| !pod.has_ended()).collect()
    }

    /// Waits until no container of these pods runs.
    async fn all_ended(&self, uids: &BTreeSet<String>) {
        loop {
            // Taken before the look, so that nothing is missed between.
            let changed = self.runtime_changed.notified();
            let sandboxes = self.runtime.list().await.unwrap_or_default();
            let runs = sandboxes.iter().filter(|sandbox| uids.contains(&sandbox.pod.uid)).any(|sandbox| {
                sandbox.containers.iter().any(|one| matches!(one.state, ContainerState::Running { .. }))
            });
            if !runs {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the API shows that these pods have ended.
    async fn all_told(&self, uids: &BTreeSet<&String>) {
        let mut changes = self.pods.subscribe();
        while self.present_pods().iter().any(|pod| uids.contains(&pod.metadata.uid)) {
            changes.next().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, priority: i64) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"priority": priority}})).expect("pod")
    }

    #[test]
    fn critical_pods_end_last() {
        let pods = [pod("a", 0), pod("system", 2_000_001_000), pod("b", 1_000_000)];
        let shown = |allowed_s: u64| {
            let stages = stages(&pods, Duration::from_secs(allowed_s), &ShutdownConfig::default());
            let words = stages.iter().map(|stage| {
                let uids: Vec<&str> = stage.uids.iter().map(String::as_str).collect();
                format!("{} {}", uids.join("+"), stage.grace_s)
            });
            words.collect::<Vec<_>>()
        };
        assert_eq!(shown(30), ["a+b 20", "system 10"]);
        assert_eq!(shown(6), ["a+b 4", "system 2"], "a shorter delay is shared in proportion");
        let owned: Pod = serde_json::from_value(json!({"metadata": {"uid": "c", "ownerReferences": [
            {"uid": "o", "controller": true}]}}))
        .expect("pod");
        let both = [pods[0].clone(), owned];
        assert_eq!(returning(&both, true).into_iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!(returning(&both, false).len(), 2, "nobody hears of it");
        assert_eq!(stages(&pods[..1], Duration::from_secs(30), &ShutdownConfig::default()).len(), 1);
    }
}
