//! The status of a pod as upstream's kubelet writes it: a pure function of the facts and of what the plan waits for.

use super::condition;
use super::memory::{Facts, ImageState, Life, Operation, Role, containers, init_role};
use super::plan::{Plan, UNKNOWN_EXIT_CODE, Waiting};
use super::resources::qos_class;
use crate::api::view::meta::Condition;
use crate::api::view::pod::Container;
use crate::clock::rfc3339;
use crate::runtime::{ContainerState, ContainerStatus, Exit};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// What a pod's status says of its node.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The first is `hostIP`.
    pub ips: Vec<String>,
}

impl Host {
    pub fn of(ips: &[IpAddr]) -> Self {
        Self { ips: ips.iter().map(ToString::to_string).collect() }
    }
}

/// One container's status before it is written down.
pub struct Shown<'a> {
    pub role: Role,
    pub container: &'a Container,
    pub state: State,
    pub last: Option<Value>,
    pub restart_count: u32,
    pub started: bool,
    pub ready: bool,
    record: Option<&'a ContainerStatus>,
    /// Of the instance before, while there is none in the runtime.
    old_id: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Waiting(Waiting),
    Running { started_at: Timestamp },
    Terminated { code: i32, value: Value },
}

/// The value of `status`, and the conditions in it.
pub fn status(facts: &Facts, plan: &Plan, host: &Host) -> (Value, Vec<Condition>) {
    let shown: Vec<Shown> = containers(facts.pod).map(|(role, container)| show(facts, plan, role, container)).collect();
    let (phase, reason, message) = phase_and_reason(facts, plan, &shown);
    if facts.memory.verdict.as_ref().is_some_and(|verdict| verdict.rejected) {
        // Nothing is known of containers that the node never had.
        let generation = facts.pod.metadata.generation;
        let status = json!({"observedGeneration": generation, "phase": "Failed", "reason": reason, "message": message,
            "startTime": facts.memory.start_time.map(rfc3339), "qosClass": qos_class(facts.pod)});
        return (status, facts.memory.conditions.clone());
    }
    let conditions = condition::conditions(facts, phase, &shown);
    let ips = pod_ips(facts, host);
    let pod = facts.pod;
    let list = |wanted: fn(Role) -> bool| -> Value {
        shown.iter().filter(|one| wanted(one.role)).map(|one| one.to_value(facts)).collect()
    };
    let mut status = json!({
        "observedGeneration": pod.metadata.generation,
        "phase": phase,
        "reason": reason,
        "message": message,
        "conditions": conditions.iter().map(condition::to_value).collect::<Value>(),
        "hostIP": host.ips.first(),
        "hostIPs": host.ips.iter().map(|ip| json!({"ip": ip})).collect::<Value>(),
        "startTime": facts.memory.start_time.map(rfc3339),
        "containerStatuses": list(|role| role == Role::Main),
        "qosClass": qos_class(pod),
    });
    let fields = status.as_object_mut().expect("made as an object");
    if !ips.is_empty() {
        fields.insert("podIP".into(), json!(ips[0]));
        fields.insert("podIPs".into(), ips.iter().map(|ip| json!({"ip": ip})).collect());
    }
    if !pod.spec.init_containers.is_empty() {
        fields.insert("initContainerStatuses".into(), list(|role| matches!(role, Role::Init | Role::Sidecar)));
    }
    if !pod.spec.ephemeral_containers.is_empty() {
        fields.insert("ephemeralContainerStatuses".into(), list(|role| role == Role::Ephemeral));
    }
    (status, conditions)
}

/// The pod's addresses; kept when its sandbox is gone.
pub fn pod_ips(facts: &Facts, host: &Host) -> Vec<String> {
    if facts.pod.spec.host_network {
        return if facts.sandbox.is_some() || !facts.memory.ips.is_empty() { host.ips.clone() } else { Vec::new() };
    }
    let now: Vec<String> = facts.sandbox.map(|s| s.ips.iter().map(ToString::to_string).collect()).unwrap_or_default();
    if now.is_empty() { facts.memory.ips.clone() } else { now }
}

fn phase_and_reason<'a>(facts: &'a Facts, plan: &Plan, shown: &[Shown]) -> (&'a str, Value, Value) {
    let old = &facts.pod.status;
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    if facts.pod.has_ended() {
        return (old.phase.as_str(), text(&old.reason), text(&old.message));
    }
    // A terminal phase is shown when nothing runs any more.
    if let Some(verdict) = facts.verdict().filter(|_| is_over(facts, plan)) {
        return ("Failed", json!(verdict.reason), json!(verdict.message));
    }
    (phase(facts, plan, shown), Value::Null, Value::Null)
}

/// Upstream's `getPhase`. A terminal phase is only shown once every container has ended.
fn phase(facts: &Facts, plan: &Plan, shown: &[Shown]) -> &'static str {
    let main: Vec<&Shown> = shown.iter().filter(|one| one.role == Role::Main).collect();
    let count = |test: fn(&Shown) -> bool| main.iter().filter(|one| test(one)).count();
    let stopped = count(|one| one.exit_code().is_some());
    if is_over(facts, plan) {
        let init_failed = shown.iter().any(|one| one.role == Role::Init && !one.ready);
        let succeeded = !init_failed && count(|one| one.exit_code() == Some(0)) == main.len();
        return if succeeded { "Succeeded" } else { "Failed" };
    }
    let running = count(|one| matches!(one.state, State::Running { .. }));
    let waiting = count(|one| matches!(one.state, State::Waiting(_)) && one.last.is_none());
    let mut init = shown.iter().filter(|one| matches!(one.role, Role::Init | Role::Sidecar));
    let uninitialized = running + stopped == 0 && init.any(|one| !is_initialized(one));
    match () {
        () if uninitialized || waiting > 0 => "Pending",
        () if running + stopped > 0 => "Running",
        () => "Pending",
    }
}

/// Whether the pod's containers have ended and none will run again.
fn is_over(facts: &Facts, plan: &Plan) -> bool {
    plan.ending
        && facts.memory.containers.values().all(|memory| memory.operation.is_none())
        && containers(facts.pod).all(|(role, container)| !matches!(facts.life(role, &container.name), Life::Running(_)))
}

fn show<'a>(facts: &Facts<'a>, plan: &Plan, role: Role, container: &'a Container) -> Shown<'a> {
    let records = facts.records(&container.name);
    let newest = records.first().copied();
    let old = old_status(facts, &container.name);
    let state = state(facts, plan, role, container, old);
    let waits = matches!(state, State::Waiting(_));
    let ended = |record: &&&ContainerStatus| matches!(record.state, ContainerState::Exited(_));
    // A container that waits to be started again shows its newest end as the last state.
    let last = records.iter().filter(|record| waits || Some(record.attempt) != newest.map(|newest| newest.attempt));
    let last = last.filter(ended).map(|record| terminated(record)).next().or_else(|| lost_state(&records, &state, old));
    let running = newest.filter(|_| matches!(state, State::Running { .. }));
    let started = running.is_some_and(|record| facts.has_started(container, record));
    let memory = facts.memory.containers.get(&container.name);
    let probed = |record: &ContainerStatus| {
        let known = memory.is_some_and(|memory| memory.ready.as_deref() == Some(record.id.as_str()));
        if container.readiness_probe.is_some() { known } else { started }
    };
    let ready = match role {
        Role::Init => matches!(&state, State::Terminated { code: 0, .. }),
        _ => running.is_some_and(probed),
    };
    let restart_count = newest.map_or_else(|| old.map_or(0, |old| old.restart_count), |record| record.attempt);
    let old_id = old.map(|old| old.container_id.clone()).unwrap_or_default();
    Shown { role, container, state, last, restart_count, started, ready, record: newest, old_id }
}

fn old_status<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a crate::api::view::pod::ContainerStatus> {
    let status = &facts.pod.status;
    let mut all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses);
    all.find(|old| old.name == name)
}

fn state(
    facts: &Facts,
    plan: &Plan,
    role: Role,
    container: &Container,
    old: Option<&crate::api::view::pod::ContainerStatus>,
) -> State {
    let name = &container.name;
    if let Some(waiting) = plan.waiting.get(name) {
        return State::Waiting(waiting.clone());
    }
    match facts.life(role, name) {
        Life::Running(record) if !is_starting(facts, name) => {
            State::Running { started_at: record.started_at.unwrap_or(record.created_at) }
        }
        Life::Exited { code, record: Some(record), .. } => State::Terminated { code, value: terminated(record) },
        Life::Exited { code, record: None, .. } if plan.ending => State::Terminated { code, value: unknown_end(code) },
        Life::Absent | Life::Created(_) if role == Role::Main && is_over(facts, plan) => {
            State::Terminated { code: UNKNOWN_EXIT_CODE, value: unknown_end(UNKNOWN_EXIT_CODE) }
        }
        // A finished init container stays finished, whatever the runtime remembers.
        Life::Absent
            if role == Role::Init
                && old.is_some_and(|old| old.state.get("terminated").is_some())
                && keeps_old_init(facts) =>
        {
            let value = old.map(|old| old.state["terminated"].clone()).unwrap_or_default();
            let code = value["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
            State::Terminated { code, value }
        }
        _ => State::Waiting(default_waiting(facts)),
    }
}

/// Old init results count while no new sandbox makes them run again.
fn keeps_old_init(facts: &Facts) -> bool {
    facts.is_ending() || facts.sandbox.is_some_and(|sandbox| sandbox.ready)
}

fn is_starting(facts: &Facts, name: &str) -> bool {
    facts.memory.containers.get(name).is_some_and(|memory| memory.operation == Some(Operation::Starting))
}

fn default_waiting(facts: &Facts) -> Waiting {
    let init = !facts.pod.spec.init_containers.is_empty();
    let reason = if init { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason: reason.to_owned(), message: String::new() }
}

fn terminated(record: &ContainerStatus) -> Value {
    let ContainerState::Exited(exit) = &record.state else { return Value::Null };
    let Exit { code, signal, finished_at, reason, message } = exit;
    let finished_at = finished_at.unwrap_or(record.created_at);
    let mut value = json!({
        "exitCode": code,
        "reason": end_reason(reason, *code),
        "startedAt": record.started_at.map(rfc3339),
        "finishedAt": rfc3339(finished_at),
        "containerID": format!("{}{}", super::CONTAINER_ID_SCHEME, record.id),
    });
    if *signal != 0 {
        value["signal"] = json!(signal);
    }
    if !message.is_empty() {
        value["message"] = json!(message);
    }
    value
}

fn end_reason(reason: &str, code: i32) -> &str {
    match reason {
        "" if code == 0 => "Completed",
        "" => "Error",
        given => given,
    }
}

/// A container that ran by its last status and of which nothing is left.
fn unknown_end(code: i32) -> Value {
    json!({
        "exitCode": code,
        "reason": "ContainerStatusUnknown",
        "message": "The container could not be located when the pod was terminated",
        "startedAt": null,
        "finishedAt": null,
    })
}

/// The last state of a container whose former instance the runtime has forgotten.
fn lost_state(
    records: &[&ContainerStatus],
    state: &State,
    old: Option<&crate::api::view::pod::ContainerStatus>,
) -> Option<Value> {
    let old = old.filter(|old| !old.container_id.is_empty())?;
    let same = match records.first() {
        Some(newest) => old.container_id.ends_with(&newest.id),
        None => !matches!(state, State::Waiting(_)),
    };
    let last = old.last_state.get("terminated").cloned();
    match (same, old.state.get("running"), old.state.get("terminated")) {
        (true, _, _) => last,
        (false, Some(_), _) => Some(unknown_end(UNKNOWN_EXIT_CODE)),
        (false, None, ended) => ended.cloned().or(last),
    }
}

impl Shown<'_> {
    /// Of the state, or of the last one while the container waits.
    pub fn exit_code(&self) -> Option<i32> {
        match (&self.state, &self.last) {
            (State::Terminated { code, .. }, _) => Some(*code),
            (State::Waiting(_), Some(last)) => last["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()),
            _ => None,
        }
    }

    fn to_value(&self, facts: &Facts) -> Value {
        let mut value = json!({
            "name": self.container.name,
            "image": self.record.map_or(self.container.image.as_str(), |record| record.image.as_str()),
            "imageID": self.image_id(facts),
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restart_count,
            "state": self.state.to_value(),
            "lastState": self.last.as_ref().map_or_else(|| json!({}), |last| json!({"terminated": last})),
        });
        let fields = value.as_object_mut().expect("made as an object");
        if self.record.is_none() && !self.old_id.is_empty() {
            fields.insert("containerID".into(), json!(self.old_id));
        }
        if let Some(record) = self.record {
            fields.insert("containerID".into(), json!(format!("{}{}", super::CONTAINER_ID_SCHEME, record.id)));
            self.add_spec_facts(fields);
        }
        value
    }

    fn image_id(&self, facts: &Facts) -> String {
        let Some(record) = self.record else { return String::new() };
        let memory = facts.memory.containers.get(&self.container.name);
        match memory {
            Some(memory) if !memory.image_reference.is_empty() => memory.image_reference.clone(),
            Some(super::memory::ContainerMemory { image: ImageState::Present(image), .. }) => image.id.clone(),
            _ => record.image_id.clone(),
        }
    }

    fn add_spec_facts(&self, fields: &mut Map<String, Value>) {
        let resources = &self.container.resources;
        if self.role != Role::Ephemeral {
            if !resources.requests.is_empty() {
                fields.insert("allocatedResources".into(), json!(resources.requests));
            }
            fields.insert("resources".into(), resources_value(resources));
        }
        let mounts = &self.container.volume_mounts;
        if !mounts.is_empty() {
            fields.insert("volumeMounts".into(), mounts.iter().map(mount_value).collect());
        }
    }
}

fn resources_value(resources: &crate::api::view::pod::ResourceRequirements) -> Value {
    let mut value = json!({});
    for (key, map) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        if !map.is_empty() {
            value[key] = json!(map);
        }
    }
    value
}

fn mount_value(mount: &crate::api::view::pod::VolumeMount) -> Value {
    let mut value = json!({"name": mount.name, "mountPath": mount.mount_path});
    if mount.read_only {
        value["readOnly"] = json!(true);
        let recursive = matches!(mount.recursive_read_only.as_str(), "Enabled" | "IfPossible");
        value["recursiveReadOnly"] = json!(if recursive { "Enabled" } else { "Disabled" });
    }
    value
}

impl State {
    fn to_value(&self) -> Value {
        match self {
            Self::Waiting(waiting) if waiting.message.is_empty() => json!({"waiting": {"reason": waiting.reason}}),
            Self::Waiting(waiting) => json!({"waiting": {"reason": waiting.reason, "message": waiting.message}}),
            Self::Running { started_at } => json!({"running": {"startedAt": rfc3339(*started_at)}}),
            Self::Terminated { value, .. } => json!({"terminated": value}),
        }
    }
}

/// Whether a role's readiness counts for the pod's.
pub fn counts_for_readiness(role: Role) -> bool {
    matches!(role, Role::Main | Role::Sidecar)
}

/// Whether an init container has done what the main containers wait for.
pub fn is_initialized(one: &Shown) -> bool {
    match init_role(one.container) {
        Role::Sidecar => one.started,
        _ => one.ready,
    }
}
