//! What a pod's worker remembers between passes: work in flight, backoff, probe results.
//! All of it can be lost: the runtime's records and the pod's last status are the truth.

use super::plan::Verdict;
use crate::api::view::meta::Condition;
use crate::api::view::pod::{Container, Pod};
use crate::runtime::{ContainerStatus, ImageStatus, SandboxStatus};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

pub const BACKOFF_FIRST_S: i64 = 10;
pub const BACKOFF_LIMIT_S: i64 = 300;
/// After this long without a failure the backoff starts again at its first value.
const BACKOFF_RESET_S: i64 = 2 * BACKOFF_LIMIT_S;
/// How long after a failed preparation (volumes, sandbox, container) the next try comes.
pub const RETRY_S: i64 = 10;

/// A doubling delay, of upstream's `flowcontrol.Backoff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay_s: i64,
    pub updated_at: Timestamp,
}

impl Backoff {
    /// The delay after one more failure at `event_at`.
    pub fn next(previous: Option<Self>, event_at: Timestamp, now: Timestamp) -> Self {
        let delay_s = match previous {
            Some(last) if !last.has_expired(event_at) => (last.delay_s * 2).min(BACKOFF_LIMIT_S),
            _ => BACKOFF_FIRST_S,
        };
        Self { delay_s, updated_at: now }
    }

    /// When the delay that began with `event_at` is over; `None`: there is none.
    pub fn until(&self, event_at: Timestamp) -> Option<Timestamp> {
        if self.has_expired(event_at) { None } else { Some(after(event_at, self.delay_s)) }
    }

    fn has_expired(&self, event_at: Timestamp) -> bool {
        event_at.duration_since(self.updated_at).as_secs() > BACKOFF_RESET_S
    }
}

/// `at` + seconds, saturating.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Something that must be made before containers can start.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Preparation {
    #[default]
    Wanted,
    InFlight,
    Done,
    Failed {
        message: String,
        retry_at: Timestamp,
    },
}

/// The image of a container that is to start.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImageState {
    #[default]
    Unknown,
    InFlight,
    Present(ImageStatus),
    Failed {
        reason: String,
        message: String,
        failed_at: Timestamp,
        backoff: Backoff,
    },
}

impl ImageState {
    pub fn begin(&mut self) {
        *self = Self::InFlight;
    }
}

/// A verb that is running for a container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    Starting,
    Stopping { deadline: Timestamp },
}

/// Why the last start of a container failed.
#[derive(Clone, Debug, PartialEq)]
pub struct StartError {
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
}

/// What is remembered of one container, by its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerMemory {
    pub operation: Option<Operation>,
    pub backoff: Option<Backoff>,
    pub image: ImageState,
    pub image_backoff: Option<Backoff>,
    /// `name@sha256:…` (or the image's id) of the image it was last started from.
    pub image_reference: String,
    pub error: Option<StartError>,
    /// A stop failed; the next try comes then.
    pub stop_retry_at: Option<Timestamp>,
    /// Ids of the instance that passed its startup probe, that is ready, and that a probe or hook condemned.
    pub started: Option<String>,
    pub ready: Option<String>,
    pub condemned: Option<(String, Condemned)>,
}

/// Why a running container must be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condemned {
    Liveness,
    Startup,
    PostStart,
}

/// What is remembered of one pod.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub containers: BTreeMap<String, ContainerMemory>,
    pub volumes: Preparation,
    /// When published volumes are looked at again: a token is to be renewed, an object has changed.
    pub refresh_at: Option<Timestamp>,
    pub refreshing: bool,
    pub sandbox: Preparation,
    /// `stop_sandbox` or `remove_sandbox` is running.
    pub releasing: bool,
    /// A release failed; the next try comes then.
    pub release_retry_at: Option<Timestamp>,
    /// `stop_sandbox` has succeeded since the sandbox was last ready.
    pub stopped: bool,
    /// Nothing of the pod is left on the node.
    pub removed: bool,
    /// The pod asked not to run without the server, which is away.
    pub fenced: bool,
    /// The object is no longer in the API.
    pub gone: bool,
    pub start_time: Option<Timestamp>,
    /// The node ends it, or never took it.
    pub verdict: Option<Verdict>,
    /// When its containers were first asked to end for good.
    pub ending_since: Option<Timestamp>,
    /// As last written, for `lastTransitionTime`.
    pub conditions: Vec<Condition>,
    /// The last addresses, kept for pods whose sandbox is gone.
    pub ips: Vec<String>,
}

impl Memory {
    /// What a new worker knows: readiness survives a restart of edgelet, so that nothing flaps.
    pub fn recall(pod: &Pod) -> Self {
        let mut memory = Self {
            start_time: pod.status.start_time.as_deref().and_then(|text| text.parse().ok()),
            conditions: pod.status.conditions.clone(),
            ips: pod.status.pod_ips.iter().map(|ip| ip.ip.clone()).collect(),
            ..Self::default()
        };
        let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        for status in statuses {
            let id = status.container_id.trim_start_matches(super::CONTAINER_ID_SCHEME).to_owned();
            if !id.is_empty() {
                let container = memory.container_mut(&status.name);
                container.image_reference.clone_from(&status.image_id);
                container.started = status.started.unwrap_or(false).then(|| id.clone());
                container.ready = status.ready.then_some(id);
            }
        }
        memory
    }

    pub fn container(&self, name: &str) -> ContainerMemory {
        self.containers.get(name).cloned().unwrap_or_default()
    }

    pub fn container_mut(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }
}

/// All that plan and status look at.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub sandbox: Option<&'a SandboxStatus>,
    pub memory: &'a Memory,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Main,
    Ephemeral,
}

/// What has become of a container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Life<'a> {
    Absent,
    Created(&'a ContainerStatus),
    Running(&'a ContainerStatus),
    /// `record` is `None` when only the pod's last status knows of it.
    Exited {
        code: i32,
        finished_at: Option<Timestamp>,
        record: Option<&'a ContainerStatus>,
    },
}

pub fn init_role(container: &Container) -> Role {
    if container.restart_policy == "Always" { Role::Sidecar } else { Role::Init }
}

/// Every container of a pod with its role, in the order of the spec.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Role, &Container)> {
    let init = pod.spec.init_containers.iter().map(|container| (init_role(container), container));
    let main = pod.spec.containers.iter().map(|container| (Role::Main, container));
    init.chain(main).chain(pod.spec.ephemeral_containers.iter().map(|container| (Role::Ephemeral, container)))
}

pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(Role, &'a Container)> {
    containers(pod).find(|(_, container)| container.name == name)
}

/// What is hashed to find out whether a running container is still the one that is asked for.
pub fn spec_hash(container: &Container) -> u64 {
    // FNV-1a: equal on every machine and in every release.
    let bytes = container.name.bytes().chain([0]).chain(container.image.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
