//! What to do next for one pod: a pure function of spec, observed containers, memory and time.
//! Behaviour of the kubelet's `computePodActions` and pod worker; no I/O, clock or randomness.

use super::memory::{
    Backoff, Condemned, Facts, ImageState, Life, Operation, Preparation, Role, after, containers, init_role, spec_hash,
};
use crate::api::view::pod::{Container, Pod};
use crate::runtime::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Shortest grace a container gets, as upstream.
const GRACE_LIMIT_LOW_S: i64 = 1;
const DEFAULT_GRACE_S: i64 = 30;
/// Of a container whose end nobody saw.
pub const UNKNOWN_EXIT_CODE: i32 = 137;
/// How long a failed pull is shown as `ErrImagePull` before it is `ImagePullBackOff`.
const ERR_IMAGE_PULL_SHOWN_S: i64 = 1;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    PrepareVolumes,
    /// `replace`: a former sandbox has died and is stopped first.
    StartSandbox {
        replace: bool,
    },
    /// Checks the image and pulls it as the policy says.
    EnsureImage {
        container: String,
    },
    StartContainer {
        container: String,
        attempt: u32,
    },
    /// preStop hook, stop signal, SIGKILL when the grace is over.
    StopContainer {
        id: String,
        container: String,
        grace_s: i64,
        message: String,
    },
    RemoveContainer {
        id: String,
    },
    /// Releases the network; the containers' records stay.
    StopSandbox,
    /// Removes everything but the API object.
    RemoveSandbox,
}

/// Why a container waits, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub waiting: BTreeMap<String, Waiting>,
    /// When to look again though nothing has happened.
    pub wake_at: Option<Timestamp>,
    /// Containers are ended for good.
    pub ending: bool,
    /// Nothing is left to do: every container has ended and the sandbox is released (and removed, if deleted).
    pub finished: bool,
}

/// Why a pod ends before its containers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: Cow<'static, str>,
    pub message: Cow<'static, str>,
    /// It never ran here.
    pub rejected: bool,
    /// The node is the cause, not the pod: the condition DisruptionTarget says so.
    pub disruption: bool,
    /// It starts again when the machine does: nothing is written of its end.
    pub returns: bool,
    /// The longest grace that can be given.
    pub grace_limit_s: Option<i64>,
}

impl Verdict {
    /// The node does not take the pod.
    pub fn rejected(reason: String, message: &str) -> Self {
        let message = format!("Pod was rejected: {message}").into();
        Self { reason: reason.into(), message, rejected: true, disruption: false, returns: false, grace_limit_s: None }
    }

    /// The node ends the pod for its own sake.
    pub fn disrupted(reason: &'static str, message: impl Into<Cow<'static, str>>, grace_limit_s: i64) -> Self {
        let (reason, message) = (reason.into(), message.into());
        Self { reason, message, rejected: false, disruption: true, returns: false, grace_limit_s: Some(grace_limit_s) }
    }
}

pub fn plan(facts: &Facts) -> Plan {
    let mut planner = Planner { facts, plan: Plan::default() };
    if facts.is_ending() {
        planner.end();
    } else if facts.memory.fenced {
        planner.fence();
    } else {
        planner.run();
    }
    planner.retain_records();
    planner.plan
}

impl<'a> Facts<'a> {
    /// The records of a container, newest first.
    pub fn records(&self, name: &str) -> Vec<&'a ContainerStatus> {
        let all = self.sandbox.map(|sandbox| sandbox.containers.as_slice()).unwrap_or_default();
        let mut records: Vec<_> = all.iter().filter(|record| record.name == name).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.attempt));
        records
    }

    /// What has become of a container in the present sandbox.
    pub fn life(&self, role: Role, name: &str) -> Life<'a> {
        let Some(record) = self.records(name).first().copied() else {
            return self.remembered_life(role, name);
        };
        match &record.state {
            // A dead sandbox's containers are dead, whatever the record says.
            _ if self.is_of_former_sandbox(record) && role != Role::Main => Life::Absent,
            ContainerState::Created | ContainerState::Running { .. } if self.is_of_former_sandbox(record) => {
                Life::Exited { code: UNKNOWN_EXIT_CODE, finished_at: None, record: Some(record) }
            }
            ContainerState::Created => Life::Created(record),
            ContainerState::Running { .. } => Life::Running(record),
            ContainerState::Exited(exit) => {
                Life::Exited { code: exit.code, finished_at: exit.finished_at, record: Some(record) }
            }
        }
    }

    fn is_of_former_sandbox(&self, record: &ContainerStatus) -> bool {
        let born = self.sandbox.and_then(|sandbox| sandbox.created_at);
        born.is_some_and(|born| record.created_at < born)
    }

    /// A container which the runtime has no record of (the board was rebooted) has ended, if its status says
    /// that it ever ran. Init containers run again with the new sandbox.
    fn remembered_life(&self, role: Role, name: &str) -> Life<'a> {
        let status = self.pod.status.container_statuses.iter().find(|status| status.name == name);
        let Some(status) = status.filter(|status| role == Role::Main && !status.container_id.is_empty()) else {
            return Life::Absent;
        };
        let terminated = status.state.get("terminated").or_else(|| status.last_state.get("terminated"));
        let lost = |code| Life::Exited { code, finished_at: None, record: None };
        match terminated {
            _ if status.state.get("running").is_some() => lost(UNKNOWN_EXIT_CODE),
            Some(end) => {
                let code = end.get("exitCode").and_then(serde_json::Value::as_i64);
                lost(code.and_then(|code| i32::try_from(code).ok()).unwrap_or(UNKNOWN_EXIT_CODE))
            }
            None => Life::Absent,
        }
    }

    /// The number the next instance of a container carries.
    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(record) = self.records(name).first() {
            return if record.state == ContainerState::Created { record.attempt } else { record.attempt + 1 };
        }
        let status = &self.pod.status;
        let mut known = status.container_statuses.iter().chain(&status.init_container_statuses);
        let known = known.find(|status| status.name == name && !status.container_id.is_empty());
        known.map_or(0, |status| status.restart_count + 1)
    }

    /// Whether the running container has passed its startup probe (or has none).
    pub fn has_started(&self, container: &Container, record: &ContainerStatus) -> bool {
        let memory = self.memory.containers.get(&container.name);
        if memory.is_some_and(|memory| memory.operation == Some(Operation::Starting)) {
            return false;
        }
        container.startup_probe.is_none()
            || memory.is_some_and(|memory| memory.started.as_deref() == Some(record.id.as_str()))
    }

    /// Whether the containers are to end for good, for whatever reason.
    pub fn is_ending(&self) -> bool {
        self.memory.gone
            || self.memory.ending_since.is_some()
            || self.pod.is_terminating()
            || self.pod.has_ended()
            || self.verdict().is_some()
            || self.is_complete()
    }

    /// What the node has decided, or the active deadline.
    pub fn verdict(&self) -> Option<Verdict> {
        if let Some(verdict) = &self.memory.verdict {
            return Some(verdict.clone());
        }
        let deadline = self.active_deadline()?;
        (self.now >= deadline).then_some(Verdict {
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
            rejected: false,
            disruption: false,
            returns: false,
            grace_limit_s: None,
        })
    }

    fn active_deadline(&self) -> Option<Timestamp> {
        Some(after(self.memory.start_time?, self.pod.spec.active_deadline_seconds?))
    }

    /// Whether every main container has ended and none is started again, or an init container failed for good.
    pub fn is_complete(&self) -> bool {
        let pod = self.pod;
        let init_failed = pod.spec.init_containers.iter().any(|container| {
            let life = self.life(init_role(container), &container.name);
            matches!(life, Life::Exited { code, .. } if init_role(container) == Role::Init
                && code != 0 && restart_policy(pod, container) == "Never")
        });
        let done = |container: &Container| match self.life(Role::Main, &container.name) {
            Life::Exited { code, .. } => !restarts(pod, container, code),
            _ => false,
        };
        init_failed || (!pod.spec.containers.is_empty() && pod.spec.containers.iter().all(done))
    }

    /// When every container must have ended at the latest.
    fn end_deadline(&self) -> Timestamp {
        after(self.memory.ending_since.unwrap_or(self.now), self.end_grace_s())
    }

    fn end_grace_s(&self) -> i64 {
        let meta = &self.pod.metadata;
        let grace_s = match meta.deletion_grace_period_seconds.filter(|_| self.pod.is_terminating()) {
            _ if self.memory.gone => 0,
            Some(grace_s) => grace_s,
            None => self.pod.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S),
        };
        let limit_s = self.memory.verdict.as_ref().and_then(|verdict| verdict.grace_limit_s);
        grace_s.min(limit_s.unwrap_or(grace_s)).max(GRACE_LIMIT_LOW_S)
    }
}

/// A container's own policy goes before the pod's.
pub fn restart_policy<'a>(pod: &'a Pod, container: &'a Container) -> &'a str {
    match (container.restart_policy.as_str(), pod.spec.restart_policy.as_str()) {
        ("", "") => "Always",
        ("", pod) => pod,
        (own, _) => own,
    }
}

/// Whether a main container which ended with `code` is started again.
pub fn restarts(pod: &Pod, container: &Container, code: i32) -> bool {
    match restart_policy(pod, container) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

struct Planner<'a> {
    facts: &'a Facts<'a>,
    plan: Plan,
}

impl Planner<'_> {
    fn act(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn wait(&mut self, container: &str, reason: &str, message: &str) {
        let waiting = Waiting { reason: reason.to_owned(), message: message.to_owned() };
        self.plan.waiting.insert(container.to_owned(), waiting);
    }

    /// Brings the pod up and keeps it so.
    fn run(&mut self) {
        if let Some(deadline) = self.facts.active_deadline() {
            self.wake(deadline);
        }
        self.prepare_volumes();
        let alive = self.facts.sandbox.is_some_and(|sandbox| sandbox.ready);
        if !alive {
            self.prepare_sandbox();
        }
        if self.facts.sandbox.is_some_and(|sandbox| !sandbox.ready && !sandbox.containers.is_empty()) {
            return; // its containers are dead or dying; the new sandbox shows them as they are
        }
        if self.init_containers() {
            self.main_containers();
        }
        for container in &self.facts.pod.spec.ephemeral_containers {
            if self.facts.life(Role::Ephemeral, &container.name) == Life::Absent {
                self.start(container);
            }
        }
    }

    fn prepare_volumes(&mut self) {
        match &self.facts.memory.volumes {
            Preparation::Wanted => self.act(Action::PrepareVolumes),
            Preparation::Failed { retry_at, .. } if *retry_at <= self.facts.now => self.act(Action::PrepareVolumes),
            Preparation::Failed { retry_at, .. } => self.wake(*retry_at),
            Preparation::InFlight => {}
            Preparation::Done => self.refresh_volumes(),
        }
    }

    fn refresh_volumes(&mut self) {
        match self.facts.memory.refresh_at.filter(|_| !self.facts.memory.refreshing) {
            Some(at) if at <= self.facts.now => self.act(Action::PrepareVolumes),
            Some(at) => self.wake(at),
            None => {}
        }
    }

    fn prepare_sandbox(&mut self) {
        let replace = self.facts.sandbox.is_some_and(|sandbox| !sandbox.containers.is_empty());
        match &self.facts.memory.sandbox {
            Preparation::InFlight => {}
            Preparation::Failed { retry_at, .. } if *retry_at > self.facts.now => self.wake(*retry_at),
            _ => self.act(Action::StartSandbox { replace }),
        }
    }

    /// Walks the init containers in order; true when the main containers may run.
    fn init_containers(&mut self) -> bool {
        let facts = self.facts;
        let pod = facts.pod;
        let initialized = pod.spec.containers.iter().any(|container| match facts.life(Role::Main, &container.name) {
            Life::Absent => false,
            Life::Exited { record, .. } => record.is_some_and(|record| !facts.is_of_former_sandbox(record)),
            Life::Created(record) | Life::Running(record) => !facts.is_of_former_sandbox(record),
        });
        for container in &pod.spec.init_containers {
            let role = init_role(container);
            let done = match (role, facts.life(role, &container.name)) {
                (Role::Init, _) if initialized => true,
                (Role::Init, Life::Exited { code: 0, .. }) => true,
                (_, Life::Running(record)) => {
                    self.keep(container, record);
                    role == Role::Sidecar && facts.has_started(container, record)
                }
                _ => {
                    self.start(container);
                    false
                }
            };
            if !done && !initialized {
                return false;
            }
        }
        true
    }

    fn main_containers(&mut self) {
        let facts = self.facts;
        for container in &facts.pod.spec.containers {
            match facts.life(Role::Main, &container.name) {
                Life::Running(record) => self.keep(container, record),
                Life::Exited { code, .. } if !restarts(facts.pod, container, code) => {}
                _ => self.start(container),
            }
        }
    }

    /// A running container stays unless a probe condemned it or its image has been changed.
    fn keep(&mut self, container: &Container, record: &ContainerStatus) {
        let pod = self.facts.pod;
        let memory = self.facts.memory.containers.get(&container.name);
        let condemned = memory.and_then(|memory| memory.condemned.as_ref());
        let condemned = condemned.filter(|(id, _)| *id == record.id).map(|(_, why)| *why);
        let name = &container.name;
        let why = match condemned {
            _ if record.spec_hash != 0 && record.spec_hash != spec_hash(container) => {
                format!("Container {name} definition changed")
            }
            Some(Condemned::Liveness) => format!("Container {name} failed liveness probe"),
            Some(Condemned::Startup) => format!("Container {name} failed startup probe"),
            Some(Condemned::PostStart) => "FailedPostStartHook".to_owned(),
            None => return,
        };
        let comes_back = restart_policy(pod, container) != "Never" && condemned != Some(Condemned::PostStart);
        let message = if comes_back { format!("{why}, will be restarted") } else { why };
        let probe = match condemned {
            Some(Condemned::Liveness) => container.liveness_probe.as_ref(),
            Some(Condemned::Startup) => container.startup_probe.as_ref(),
            _ => None,
        };
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let grace_s = own.or(pod.spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_S);
        self.stop(container, record, grace_s, message);
    }

    fn stop(&mut self, container: &Container, record: &ContainerStatus, grace_s: i64, message: String) {
        let deadline = after(self.facts.now, grace_s);
        let memory = self.facts.memory.containers.get(&container.name);
        match memory.and_then(|memory| memory.operation) {
            // A shorter grace replaces a longer one that is running.
            Some(Operation::Stopping { deadline: known }) if known <= after(deadline, 1) => return,
            _ => {}
        }
        if let Some(at) = memory.and_then(|memory| memory.stop_retry_at).filter(|at| *at > self.facts.now) {
            return self.wake(at);
        }
        self.act(Action::StopContainer { id: record.id.clone(), container: container.name.clone(), grace_s, message });
    }

    /// Starts a container once its image, sandbox and volumes are there and no backoff holds it.
    fn start(&mut self, container: &Container) {
        let memory = self.facts.memory.container(&container.name);
        if memory.operation.is_some() || self.is_backing_off(container, memory.backoff) {
            return;
        }
        if let Some(error) = memory.error.filter(|error| error.retry_at > self.facts.now) {
            self.wait(&container.name, &error.reason, &error.message);
            return self.wake(error.retry_at);
        }
        match memory.image {
            ImageState::Unknown => self.act(Action::EnsureImage { container: container.name.clone() }),
            ImageState::InFlight => {}
            ImageState::Failed { reason, message, failed_at, backoff } => {
                self.image_failed(container, &reason, &message, failed_at, backoff);
            }
            ImageState::Present(_) => self.start_with_image(container),
        }
    }

    fn is_backing_off(&mut self, container: &Container, backoff: Option<Backoff>) -> bool {
        let name = &container.name;
        let Some(record) = self.facts.records(name).first().copied() else { return false };
        let ContainerState::Exited(exit) = &record.state else { return false };
        let ended = exit.finished_at.unwrap_or(record.created_at);
        let until = backoff.and_then(|backoff| backoff.until(ended)).filter(|until| *until > self.facts.now);
        let (Some(until), Some(backoff)) = (until, backoff) else { return false };
        let delay = go_duration(backoff.delay_s);
        let pod = full_name(self.facts.pod);
        let message = format!("back-off {delay} restarting failed container={name} pod={pod}");
        self.wait(name, "CrashLoopBackOff", &message);
        self.wake(until);
        true
    }

    fn image_failed(&mut self, container: &Container, reason: &str, message: &str, at: Timestamp, backoff: Backoff) {
        let retry_at = after(at, backoff.delay_s);
        if retry_at <= self.facts.now {
            return self.act(Action::EnsureImage { container: container.name.clone() });
        }
        self.wake(retry_at);
        let backs_off = matches!(reason, "ErrImagePull" | "RegistryUnavailable");
        let shown_until = after(at, ERR_IMAGE_PULL_SHOWN_S);
        if !backs_off || self.facts.now < shown_until {
            self.wake(shown_until.max(self.facts.now));
            return self.wait(&container.name, reason, message);
        }
        let message = format!("Back-off pulling image \"{}\": {reason}: {message}", container.image);
        self.wait(&container.name, "ImagePullBackOff", &message);
    }

    /// One container at a time, in the order of the spec, as upstream.
    fn start_with_image(&mut self, container: &Container) {
        let memory = self.facts.memory;
        let prepared = memory.volumes == Preparation::Done && self.facts.sandbox.is_some_and(|sandbox| sandbox.ready);
        let busy = memory.containers.values().any(|other| other.operation == Some(Operation::Starting))
            || self.plan.actions.iter().any(|action| matches!(action, Action::StartContainer { .. }));
        if prepared && !busy {
            let attempt = self.facts.next_attempt(&container.name);
            self.act(Action::StartContainer { container: container.name.clone(), attempt });
        }
    }

    /// Takes the pod down: main containers together, then sidecars in reverse, then the sandbox.
    fn end(&mut self) {
        self.plan.ending = true;
        if self.stop_all() {
            self.release();
        }
    }

    /// Stops what runs and starts nothing; the pod may run again when the server answers.
    fn fence(&mut self) {
        self.stop_all();
        for (role, container) in containers(self.facts.pod) {
            if self.facts.running_record(role, &container.name).is_none() && role != Role::Ephemeral {
                self.wait(&container.name, "Fenced", "the pod does not run while the server cannot be reached");
            }
        }
    }

    /// True when nothing runs any more.
    fn stop_all(&mut self) -> bool {
        let facts = self.facts;
        let deadline = facts.end_deadline();
        let running = |role: Role, container: &Container| facts.running_record(role, &container.name);
        let mut others = 0;
        for (role, container) in containers(facts.pod).filter(|(role, _)| *role != Role::Sidecar) {
            if let Some(record) = running(role, container) {
                others += 1;
                self.stop_by(container, record, deadline);
            }
        }
        if others > 0 || self.is_busy() {
            return false;
        }
        let mut sidecars =
            facts.pod.spec.init_containers.iter().rev().filter(|container| {
                init_role(container) == Role::Sidecar && running(Role::Sidecar, container).is_some()
            });
        if let Some(container) = sidecars.next() {
            let record = running(Role::Sidecar, container).expect("the filter found it running");
            self.stop_by(container, record, deadline);
            return false;
        }
        true
    }

    fn stop_by(&mut self, container: &Container, record: &ContainerStatus, deadline: Timestamp) {
        let left_s = deadline.duration_since(self.facts.now).as_secs().max(GRACE_LIMIT_LOW_S);
        self.stop(container, record, left_s, format!("Stopping container {}", container.name));
    }

    /// A container or the sandbox is being started: its end is waited for before anything is released.
    fn is_busy(&self) -> bool {
        let memory = self.facts.memory;
        memory.sandbox == Preparation::InFlight
            || memory.volumes == Preparation::InFlight
            || memory.refreshing
            || memory.containers.values().any(|container| container.operation.is_some())
    }

    fn release(&mut self) {
        let memory = self.facts.memory;
        let deleted = memory.gone || self.facts.pod.is_terminating();
        if memory.releasing {
            return;
        }
        if let Some(at) = memory.release_retry_at.filter(|at| *at > self.facts.now) {
            return self.wake(at);
        }
        if self.facts.sandbox.is_some() && !memory.stopped && !memory.removed {
            return self.act(Action::StopSandbox);
        }
        if deleted && !memory.removed {
            return self.act(Action::RemoveSandbox);
        }
        self.plan.finished = true;
    }

    /// Of a container's ended instances only the newest is kept, for its last state and its log.
    fn retain_records(&mut self) {
        for (_, container) in containers(self.facts.pod) {
            let records = self.facts.records(&container.name);
            let ended = records.iter().filter(|record| matches!(record.state, ContainerState::Exited(_)));
            for record in ended.skip(1) {
                self.plan.actions.push(Action::RemoveContainer { id: record.id.clone() });
            }
        }
    }
}

impl<'a> Facts<'a> {
    fn running_record(&self, role: Role, name: &str) -> Option<&'a ContainerStatus> {
        match self.life(role, name) {
            Life::Running(record) => Some(record),
            _ => None,
        }
    }
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid)
}

/// Whole seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests;
