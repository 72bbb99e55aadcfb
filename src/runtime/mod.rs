//! Verbs over pods' containers, in the shape of the CRI: sandboxes, containers, images, volumes, probes.
//! Real (`libcontainer` behind a shim per pod) or fake (scripted by pod annotations).
//! Knows nothing of the API server; the kubelet translates.

mod executor;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod libcontainer;
mod log;
pub mod probe;
mod seccomp;
pub mod shim;
mod spec;
pub mod sysctl;
pub mod volume;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The pod a sandbox belongs to. The uid is the identity; names are for people and logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What a pod's containers share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    pub pod: PodRef,
    pub hostname: String,
    /// Contents of `/etc/resolv.conf`; `None` = the host's.
    pub resolv_conf: Option<String>,
    /// Contents of `/etc/hosts` without the pod's own line, which the runtime adds once the IP is known.
    pub hosts_entries: Vec<(String, Vec<String>)>,
    /// Fully qualified name for the pod's own `/etc/hosts` line; empty = none.
    pub fqdn: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    pub host_ports: Vec<HostPort>,
    /// Pod-level cgroup: QoS class and the sum of the containers' resources.
    pub qos: Qos,
    pub resources: Resources,
    /// The address to ask for again after a reboot; the runtime takes it if it is free.
    pub wanted_ip: Option<IpAddr>,
    /// `/var/log/pods/NAMESPACE_NAME_UID`, relative to the log root.
    pub log_directory: String,
    /// The pod's `terminationGracePeriodSeconds`, for when its object is gone.
    pub termination_grace_s: Option<u64>,
    /// Pod annotations; only the fake runtime reads them.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    Guaranteed,
    Burstable,
    #[default]
    BestEffort,
}

/// Limits in the kernel's units; 0 = unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 shares; the runtime converts to v2 weight.
    pub cpu_shares: u64,
    pub cpu_quota_us: i64,
    pub cpu_period_us: u64,
    pub memory_limit_bytes: i64,
    pub memory_request_bytes: i64,
    pub pids_limit: i64,
    pub oom_score_adj: i32,
    /// `2Mi` → bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
}

/// One container of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    /// Counts restarts; the log file and the container id carry it.
    pub attempt: u32,
    /// Reference of an image that is present.
    pub image: String,
    /// Overrides the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Overrides the image's cmd when not empty (or dropped when only `command` is given).
    pub args: Vec<String>,
    pub working_dir: String,
    /// In order; later ones win. The image's own variables come first, by the runtime.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub resources: Resources,
    pub security: Security,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// `SIGTERM`, …; empty = the image's, else SIGTERM.
    pub stop_signal: String,
    /// Where the container writes its last words, relative to nothing: a path in the container.
    pub termination_message_path: String,
    /// The log's tail takes its place when a failed container wrote none (`FallbackToLogsOnError`).
    pub termination_message_from_log: bool,
    /// Hash of the container's spec, given back by `list`.
    pub spec_hash: u64,
    /// Pod annotations; only the fake runtime reads them.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub destination: String,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: String,
    pub container_path: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// The security context after pod and container level have been merged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// `None` = the image's user.
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<i64>,
    /// `Strict`: only `supplemental_groups`; else merged with the image's `/etc/group`.
    pub strict_supplemental_groups: bool,
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub seccomp: Seccomp,
    /// `Default` masks /proc paths, `Unmasked` does not.
    pub unmasked_proc: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    Localhost(String),
}

/// A pod as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub pod: PodRef,
    pub ready: bool,
    pub created_at: Option<Timestamp>,
    pub ips: Vec<IpAddr>,
    /// As its configuration had it.
    pub termination_grace_s: Option<u64>,
    pub containers: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Unique on the node: `POD-UID` + `NAME` + `ATTEMPT`, hashed to 64 hex digits.
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// `sha256:…` of the image's config.
    pub image_id: String,
    pub state: ContainerState,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub spec_hash: u64,
    /// Paths of the host's device nodes it was given.
    #[serde(default)]
    pub devices: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running { pid: i32 },
    Exited(Exit),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// 0 = none.
    pub signal: i32,
    pub finished_at: Option<Timestamp>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// From the termination message file or the log's tail, or why it could not start.
    pub message: String,
}

/// Something changed in a pod; the kubelet observes that pod again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub pod_uid: String,
}

/// Why a verb failed. `reason` ends up in `state.waiting.reason`, `message` beside it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    pub reason: Reason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NotFound,
    ErrImagePull,
    InvalidImageName,
    ErrImageNeverPull,
    RegistryUnavailable,
    CreateContainerConfigError,
    CreateContainerError,
    RunContainerError,
    CreatePodSandboxError,
    Timeout,
    Other,
}

impl RuntimeError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

pub type Result<T> = std::result::Result<T, RuntimeError>;
/// A verb in flight. Every verb is idempotent and bounded in time.
pub type Verb<'a, T> = BoxFuture<'a, Result<T>>;

/// A finished command.
#[derive(Clone, Debug, Default)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// Standard output and error together, at most 64 KiB.
    pub output: Bytes,
}

/// A running command with its streams; dropping it closes them and kills the command.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Columns and rows; only with a terminal.
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// The exit code, once the command has ended.
    pub exit: BoxFuture<'static, Result<i32>>,
}

#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A probe or a hook that is not a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkProbe {
    Http { host: String, port: u16, path: String, https: bool, headers: Vec<(String, String)> },
    Tcp { host: String, port: u16 },
    Grpc { host: String, port: u16, service: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    Success(String),
    /// `Liveness probe failed: ` goes before it.
    Failure(String),
}

/// What a volume holds, resolved by the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeContent {
    EmptyDir {
        memory: bool,
        size_limit_bytes: u64,
        fs_group: Option<i64>,
    },
    /// Written so that readers see either all old or all new files (`..data` symlink, as upstream).
    Files {
        files: BTreeMap<String, VolumeFile>,
        fs_group: Option<i64>,
    },
    /// `kind` as in `hostPath.type`; checked or made.
    HostPath {
        path: PathBuf,
        kind: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    pub bytes: Bytes,
    pub mode: u32,
}

/// How to reach a registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `sha256:…` of the config.
    pub id: String,
    /// References it is known by, tags first, then `name@sha256:…`.
    pub names: Vec<String>,
    pub size_bytes: u64,
    /// The user of its config: a number or a name.
    pub user: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub cpu_usage_ns: u64,
    /// Usage less inactive file pages.
    pub memory_working_set_bytes: u64,
    pub memory_usage_bytes: u64,
}

/// 64 hex digits, the same for the same attempt of the same container.
fn container_id(pod_uid: &str, name: &str, attempt: u32) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    let digest = Sha256::digest(format!("{pod_uid}/{name}/{attempt}"));
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The seam. One value per node, shared by the workers.
pub trait Runtime: Send + Sync {
    /// Every sandbox on the node, those of a former process too.
    fn list(&self) -> Verb<'_, Vec<SandboxStatus>>;
    /// One sandbox; `NotFound` when there is none.
    fn status<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, SandboxStatus>;
    /// Namespaces, cgroup, network. Already running is success.
    fn run_sandbox(&self, config: SandboxConfig) -> Verb<'_, SandboxStatus>;
    /// Kills what runs and releases the network; the records stay until `remove_sandbox`.
    fn stop_sandbox<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, ()>;
    /// Removes containers, volumes, cgroup, directories. Nothing of the pod is left but its logs
    /// (`keep_logs`) after it.
    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str, keep_logs: bool) -> Verb<'a, ()>;

    /// Gives up what is kept for pods that are neither here nor listed: addresses, volumes and logs.
    fn retain<'a>(&'a self, pod_uids: &'a [String]) -> Verb<'a, ()>;

    /// The container's id. It does not run yet.
    fn create_container<'a>(&'a self, pod_uid: &'a str, config: ContainerConfig) -> Verb<'a, String>;
    fn start_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()>;
    /// The stop signal, then SIGKILL after `grace`; returns once it has ended.
    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Verb<'a, ()>;
    /// Removes an ended container and, unless it is one of the last two attempts, its log.
    fn remove_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()>;

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Verb<'a, ExecOutput>;
    fn exec<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession>;
    fn attach<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession>;
    /// A stream to a port inside the pod's network namespace.
    fn port_forward<'a>(&'a self, pod_uid: &'a str, port: u16) -> Verb<'a, Box<dyn crate::sys::Stream>>;
    fn probe<'a>(&'a self, probe: &'a NetworkProbe, timeout: Duration) -> BoxFuture<'a, ProbeOutcome>;
    /// Where a container's log file of this attempt is (CRI format).
    fn log_path(&self, pod: &PodRef, container: &str, attempt: u32) -> PathBuf;
    fn stats<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, BTreeMap<String, Stats>>;

    /// Makes or updates a volume and returns the host path to mount. Same content = no write.
    /// Works before the sandbox runs: the kubelet prepares both at the same time.
    fn publish_volume<'a>(&'a self, pod_uid: &'a str, name: &'a str, content: VolumeContent) -> Verb<'a, PathBuf>;
    /// A file or directory inside a volume for `subPath`, safe against symlinks.
    fn sub_path<'a>(
        &'a self,
        pod_uid: &'a str,
        volume: &'a str,
        container: &'a str,
        sub_path: &'a str,
    ) -> Verb<'a, PathBuf>;

    /// `None` when it is not present.
    fn image<'a>(&'a self, reference: &'a str) -> Verb<'a, Option<ImageStatus>>;
    fn pull_image<'a>(&'a self, reference: &'a str, auth: &'a [RegistryAuth]) -> Verb<'a, ImageStatus>;
    /// Returns once the registry of this reference has answered, whatever it says.
    fn reach_registry<'a>(&'a self, reference: &'a str) -> Verb<'a, ()>;
    fn images(&self) -> Verb<'_, Vec<ImageStatus>>;
    /// Removes images where the disk is short: never those that containers run from, nor the wanted references.
    /// The ids of those that went. Not while an image is being pulled: it may count on a layer that goes.
    fn collect_images<'a>(&'a self, wanted: &'a [String]) -> Verb<'a, Vec<String>>;

    /// Wakes the kubelet. One subscriber; a lost event costs latency only.
    fn events(&self) -> tokio::sync::mpsc::Receiver<RuntimeEvent>;
    /// `edgelet://VERSION` and the kernel's view, for `Node.status.nodeInfo`.
    fn version(&self) -> String;
}
