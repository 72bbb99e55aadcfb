//! The real runtime: a shim per pod, libcontainer in the shim's helpers, images, network, volumes.
//! What is running is in the shims and in records below the run directory; this holds the view of it,
//! found again exactly by a restarted edgelet.

mod binary;
mod connection;
mod container;
mod exec;
mod logs;
mod record;
mod sandbox;
mod stream;

use super::volume::Volumes;
use super::*;
use crate::clock::Clock;
use crate::image::pull::{Credentials, Puller};
use crate::image::{Image, ImageError, ImageStore};
use crate::network::Network;
use crate::network::resolve::Resolver;
use crate::sys::cgroup::Cgroups;
use crate::telemetry::Trace;
use connection::Connection;
use record::{ContainerRecord, PodPaths, SandboxRecord};
pub use record::{Users, images_in_use};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

/// Events that wait for the kubelet; more are lost, as they may be.
const EVENTS_LIMIT: usize = 1024;

/// Where the runtime keeps what.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Memory-backed: sockets, records, root mounts. `/run/edgelet`.
    pub run_directory: PathBuf,
    /// On the disk: writable layers, volumes, the shim's program. `/var/lib/edgelet`.
    pub state_directory: PathBuf,
    /// `/var/log/pods`.
    pub log_directory: PathBuf,
    /// The group that holds all of edgelet's own: `/` or `/edgelet`.
    pub cgroup_root: String,
    /// The program with the `shim` subcommand; `None` = this one.
    pub shim_binary: Option<PathBuf>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct LibcontainerRuntime(Arc<Inner>);

struct Inner {
    config: RuntimeConfig,
    images: ImageStore,
    puller: Puller,
    network: Network,
    /// Resolves the hosts of probes.
    names: Resolver,
    volumes: Volumes,
    cgroups: Cgroups,
    clock: Clock,
    trace: Arc<Trace>,
    /// The shim's program.
    binary: PathBuf,
    /// Files through which a shim leaves the service's cgroup.
    shim_cgroup: Vec<PathBuf>,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    events: Mutex<Option<mpsc::Sender<RuntimeEvent>>>,
    /// Compiled seccomp programs by what they were made from.
    seccomp: Mutex<HashMap<String, PathBuf>>,
    /// Makes exec names unique, across restarts too.
    exec_prefix: i128,
    exec_number: AtomicU64,
}

/// One pod as this process sees it.
struct Pod {
    uid: String,
    paths: PodPaths,
    /// Sandbox verbs take turns; container verbs do not wait for each other.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<PodState>,
    /// Counts changes, for those who wait for one.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct PodState {
    record: SandboxRecord,
    connection: Option<Connection>,
    containers: BTreeMap<String, Container>,
}

#[derive(Clone)]
struct Container {
    record: ContainerRecord,
    state: ContainerState,
    started_at: Option<Timestamp>,
}

impl Pod {
    fn state(&self) -> MutexGuard<'_, PodState> {
        self.state.lock().expect("no panic while a pod is locked")
    }

    fn status(&self) -> SandboxStatus {
        let state = self.state();
        let containers = state.containers.values().map(|container| ContainerStatus {
            id: container.record.id.clone(),
            name: container.record.name.clone(),
            attempt: container.record.attempt,
            image: container.record.image.clone(),
            image_id: container.record.image_id.clone(),
            state: container.state.clone(),
            created_at: container.record.created_at,
            started_at: container.started_at,
            spec_hash: container.record.spec_hash,
            devices: container.record.devices.clone(),
        });
        SandboxStatus {
            pod: state.record.config.pod.clone(),
            ready: state.record.ready,
            created_at: Some(state.record.created_at),
            ips: state.record.ip.into_iter().collect(),
            termination_grace_s: state.record.config.termination_grace_s,
            containers: containers.collect(),
        }
    }

    /// Waits until `check` says so; `false` when `limit` has passed before.
    async fn wait(&self, limit: Duration, check: impl Fn(&PodState) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !check(&self.state()) {
                // The sender is this pod's own.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }
}

impl LibcontainerRuntime {
    /// Finds all that a former process left: running pods are taken over, half-made ones shown as
    /// not ready, layers of pods that are gone removed.
    pub async fn new(
        config: RuntimeConfig,
        images: ImageStore,
        puller: Puller,
        network: Network,
        clock: Clock,
        trace: Arc<Trace>,
    ) -> io::Result<Self> {
        let cgroups = Cgroups::detect()?;
        for directory in [pods_directory(&config), layers_directory(&config), config.log_directory.clone()] {
            std::fs::create_dir_all(directory)?;
        }
        let source = config.shim_binary.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let binary = binary::install(&config.state_directory.join("bin"), &source)?;
        let leaf = format!("{}/shims", config.cgroup_root.trim_end_matches('/'));
        let shim_cgroup = cgroups.create_leaf(&leaf)?;
        warn_about(&cgroups);
        let volumes =
            Volumes::new(config.state_directory.join("volumes"), config.run_directory.join("volumes"), clock.clone());
        let exec_prefix = clock.now().as_nanosecond();
        let runtime = Self(Arc::new(Inner {
            config,
            images,
            puller,
            network,
            names: Resolver::default(),
            volumes,
            cgroups,
            clock,
            trace,
            binary,
            shim_cgroup,
            pods: Mutex::default(),
            events: Mutex::default(),
            seccomp: Mutex::default(),
            exec_prefix,
            exec_number: AtomicU64::new(0),
        }));
        runtime.recover().await?;
        Ok(runtime)
    }

    /// Stops and removes every pod, and the cgroups above them: for a node that ends for good.
    pub async fn remove_all(&self) -> Result<()> {
        let mut result = Ok(());
        let uids: Vec<String> = self.pods().keys().cloned().collect();
        for uid in uids {
            result = result.and(self.remove_sandbox(&uid, false).await);
        }
        let this = self.clone();
        let removed = blocking(move || {
            let root = this.0.config.cgroup_root.trim_end_matches('/').to_owned();
            let shims = this.0.cgroups.remove(&format!("{root}/shims"));
            let pods = this.0.cgroups.remove(&format!("{root}/kubepods"));
            let own = if root.is_empty() { Ok(()) } else { this.0.cgroups.remove(&root) };
            shims.and(pods).and(own)
        });
        result.and(removed.await.map_err(|error| other(format!("remove cgroups: {error}"))))
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.0.pods.lock().expect("no panic while the pods are locked")
    }

    fn pod(&self, uid: &str) -> Result<Arc<Pod>> {
        self.pods().get(uid).cloned().ok_or_else(|| not_found(format!("pod sandbox {uid} not found")))
    }

    fn paths(&self, uid: &str) -> PodPaths {
        PodPaths {
            directory: pods_directory(&self.0.config).join(uid),
            layers: layers_directory(&self.0.config).join(uid),
        }
    }

    /// The pod that has this container, and the container as it is now.
    fn find(&self, id: &str) -> Result<(Arc<Pod>, Container)> {
        let found = self.pods().values().find_map(|pod| {
            let container = pod.state().containers.get(id).cloned()?;
            Some((pod.clone(), container))
        });
        found.ok_or_else(|| not_found(format!("container {id} not found")))
    }

    fn mark(&self, uid: &str, what: &str) {
        self.0.trace.mark(&self.0.clock, uid, "runtime", what);
    }

    /// Tells whoever waits for this pod that it has changed.
    fn wake(&self, pod: &Pod) {
        pod.changed.send_modify(|count| *count += 1);
        let events = self.0.events.lock().expect("no panic while the subscriber is locked");
        if let Some(events) = events.as_ref() {
            // Full: the kubelet will see that it was, and look at every pod.
            let _ = events.try_send(RuntimeEvent { pod_uid: pod.uid.clone() });
        }
    }

    /// `/var/log/pods/NAMESPACE_NAME_UID`.
    fn pod_logs(&self, pod: &PodRef) -> PathBuf {
        self.0.config.log_directory.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }
}

fn pods_directory(config: &RuntimeConfig) -> PathBuf {
    config.run_directory.join("pods")
}

fn layers_directory(config: &RuntimeConfig) -> PathBuf {
    config.state_directory.join("containers")
}

/// Once per start: what this machine cannot do.
fn warn_about(cgroups: &Cgroups) {
    if !cgroups.has("memory") {
        tracing::warn!(
            "memory cgroup is missing, memory limits are not enforced: add `cgroup_memory=1 cgroup_enable=memory` to \
             the kernel command line and reboot"
        );
    }
    if !crate::sys::process::may_spare_from_oom() {
        tracing::warn!("CAP_SYS_RESOURCE is missing, pods and shims are not protected from the OOM killer");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("blocking work is never aborted"),
        },
    }
}

fn other(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(Reason::Other, message)
}

fn not_found(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(Reason::NotFound, message)
}

fn image_error(error: &ImageError) -> RuntimeError {
    let reason = match error {
        ImageError::Reference(_) => Reason::InvalidImageName,
        ImageError::Pull { transient: true, .. } => Reason::RegistryUnavailable,
        _ => Reason::ErrImagePull,
    };
    RuntimeError::new(reason, error.to_string())
}

fn image_status(image: &Image) -> ImageStatus {
    ImageStatus {
        id: image.id.clone(),
        names: image.names.clone(),
        size_bytes: image.size_bytes,
        user: image.config.config.user.clone(),
    }
}

impl LibcontainerRuntime {
    async fn find_image(&self, reference: &str) -> Result<Option<Image>> {
        let (images, name) = (self.0.images.clone(), reference.to_owned());
        blocking(move || images.get(&name)).await.map_err(|error| image_error(&error))
    }
}

impl Runtime for LibcontainerRuntime {
    fn list(&self) -> Verb<'_, Vec<SandboxStatus>> {
        Box::pin(async {
            let pods: Vec<Arc<Pod>> = self.pods().values().cloned().collect();
            Ok(pods.iter().map(|pod| pod.status()).collect())
        })
    }

    fn status<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, SandboxStatus> {
        Box::pin(async move { Ok(self.pod(pod_uid)?.status()) })
    }

    fn run_sandbox(&self, config: SandboxConfig) -> Verb<'_, SandboxStatus> {
        Box::pin(self.run(config))
    }

    fn stop_sandbox<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, ()> {
        Box::pin(self.stop_pod(pod_uid))
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str, keep_logs: bool) -> Verb<'a, ()> {
        Box::pin(self.remove_pod(pod_uid, keep_logs))
    }

    fn retain<'a>(&'a self, pod_uids: &'a [String]) -> Verb<'a, ()> {
        Box::pin(async move {
            let here: Vec<String> = self.pods().keys().cloned().collect();
            let kept = [here.as_slice(), pod_uids].concat();
            self.0.network.retain(&kept);
            let this = self.clone();
            blocking(move || {
                let volumes = this.0.volumes.retain(&kept);
                let logs = logs::retain(&this.0.config.log_directory, &this.0.config.run_directory, &kept);
                volumes.and(logs.map_err(|error| other(format!("remove logs: {error}"))))
            })
            .await
        })
    }

    fn create_container<'a>(&'a self, pod_uid: &'a str, config: ContainerConfig) -> Verb<'a, String> {
        Box::pin(self.create(pod_uid, config))
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()> {
        Box::pin(self.start(id))
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Verb<'a, ()> {
        Box::pin(self.stop(id, grace))
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()> {
        Box::pin(self.remove(id))
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Verb<'a, ExecOutput> {
        Box::pin(self.run_command(id, command, timeout))
    }

    fn exec<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession> {
        Box::pin(self.open_session(id, request))
    }

    fn attach<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession> {
        Box::pin(self.attach_session(id, request))
    }

    fn port_forward<'a>(&'a self, pod_uid: &'a str, port: u16) -> Verb<'a, Box<dyn crate::sys::Stream>> {
        Box::pin(self.forward(pod_uid, port))
    }

    fn probe<'a>(&'a self, probe: &'a NetworkProbe, timeout: Duration) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(super::probe::run(probe, &self.0.names, timeout))
    }

    fn log_path(&self, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(pod).join(container).join(format!("{attempt}.log"))
    }

    fn stats<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, BTreeMap<String, Stats>> {
        Box::pin(async move {
            let pod = self.pod(pod_uid)?;
            let groups: Vec<(String, String)> = {
                let state = pod.state();
                let running = |one: &&Container| matches!(one.state, ContainerState::Running { .. });
                let groups = state.containers.values().filter(running);
                groups.map(|one| (one.record.name.clone(), one.record.cgroup.clone())).collect()
            };
            let cgroups = self.0.cgroups.clone();
            Ok(blocking(move || groups.into_iter().map(|(name, group)| (name, stats(&cgroups, &group))).collect())
                .await)
        })
    }

    fn publish_volume<'a>(&'a self, pod_uid: &'a str, name: &'a str, content: VolumeContent) -> Verb<'a, PathBuf> {
        Box::pin(async move {
            let (volumes, uid, name) = (self.0.volumes.clone(), pod_uid.to_owned(), name.to_owned());
            blocking(move || volumes.publish(&uid, &name, &content)).await
        })
    }

    fn sub_path<'a>(
        &'a self,
        pod_uid: &'a str,
        volume: &'a str,
        container: &'a str,
        sub_path: &'a str,
    ) -> Verb<'a, PathBuf> {
        Box::pin(async move {
            let volumes = self.0.volumes.clone();
            let [uid, volume, container, sub_path] = [pod_uid, volume, container, sub_path].map(str::to_owned);
            blocking(move || volumes.sub_path(&uid, &volume, &container, &sub_path)).await
        })
    }

    fn image<'a>(&'a self, reference: &'a str) -> Verb<'a, Option<ImageStatus>> {
        Box::pin(async move { Ok(self.find_image(reference).await?.as_ref().map(image_status)) })
    }

    fn pull_image<'a>(&'a self, reference: &'a str, auth: &'a [RegistryAuth]) -> Verb<'a, ImageStatus> {
        Box::pin(async move {
            let credentials = |auth: &RegistryAuth| Credentials {
                username: auth.username.clone(),
                password: auth.password.clone(),
                token: auth.token.clone(),
            };
            let credentials: Vec<Credentials> = auth.iter().map(credentials).collect();
            let pulled = self.0.images.pull(&self.0.puller, reference, &credentials).await;
            let id = pulled.map_err(|error| image_error(&error))?;
            let image = self.find_image(&id).await?;
            image.as_ref().map(image_status).ok_or_else(|| not_found(format!("image {reference} not found")))
        })
    }

    fn reach_registry<'a>(&'a self, reference: &'a str) -> Verb<'a, ()> {
        Box::pin(async move { self.0.puller.reach(reference).await.map_err(|error| image_error(&error)) })
    }

    fn images(&self) -> Verb<'_, Vec<ImageStatus>> {
        Box::pin(async {
            let images = self.0.images.clone();
            let listed = blocking(move || images.list()).await.map_err(|error| image_error(&error))?;
            Ok(listed.iter().map(image_status).collect())
        })
    }

    fn collect_images<'a>(&'a self, wanted: &'a [String]) -> Verb<'a, Vec<String>> {
        Box::pin(async move {
            let images = self.0.images.clone();
            if !images.is_short_of_space().map_err(|error| image_error(&error))? {
                return Ok(Vec::new());
            }
            let pods: Vec<Arc<Pod>> = self.pods().values().cloned().collect();
            let ids = |pod: &Arc<Pod>| -> Vec<String> {
                pod.state().containers.values().map(|one| one.record.image_id.clone()).collect()
            };
            let mut in_use: BTreeSet<String> = pods.iter().flat_map(ids).collect();
            let wanted = wanted.to_vec();
            let collected = blocking(move || {
                for name in wanted {
                    in_use.extend(images.get(&name).ok().flatten().map(|image| image.id));
                }
                images.collect(&in_use, false)
            });
            collected.await.map_err(|error| image_error(&error))
        })
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_LIMIT);
        *self.0.events.lock().expect("no panic while the subscriber is locked") = Some(sender);
        receiver
    }

    fn version(&self) -> String {
        format!("edgelet://{}", env!("CARGO_PKG_VERSION"))
    }
}

fn stats(cgroups: &Cgroups, group: &str) -> Stats {
    let usage = cgroups.usage(group);
    Stats {
        cpu_usage_ns: usage.cpu_ns,
        memory_working_set_bytes: usage.memory_bytes.saturating_sub(usage.inactive_file_bytes),
        memory_usage_bytes: usage.memory_bytes,
    }
}
