//! The pod as `kubectl get pods` shows it: one word for what its containers go through.

use super::{NONE, Printer, age, condition, flag, list, number, or, since};
use crate::api::kinds::row::{AGE, NAME, columns, string, wide};
use crate::api::object::{Object, ObjectExt};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(in crate::api::kinds) const POD: Printer = Printer {
    columns: columns![
        NAME,
        string("Ready", "Containers that are ready, of all that run for the whole life of the pod."),
        string("Status", "What the pod goes through now, summed up from its phase and its containers."),
        string("Restarts", "How often containers of the pod were started again, and when last."),
        AGE,
        wide("IP", "Address of the pod."),
        wide("Node", "Node the pod is bound to."),
        wide("Nominated Node", "Node on which the scheduler makes room for the pod."),
        wide("Readiness Gates", "Conditions that are true, of all that the pod waits for."),
    ],
    cells: |pod, now| {
        let summary = Summary::of(pod);
        cells![
            pod.name(),
            format!("{}/{}", summary.ready, summary.total),
            summary.reason.clone(),
            summary.restarts(now),
            age(pod, now),
            list(pod, &["status", "podIPs"]).first().map_or(NONE, |first| or(first, &["ip"], NONE)),
            or(pod, &["spec", "nodeName"], NONE),
            or(pod, &["status", "nominatedNodeName"], NONE),
            readiness_gates(pod),
        ]
    },
    conditions,
};

fn conditions(pod: &Object) -> Option<Value> {
    let (reason, message) = match pod.str_at(&["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// RFC 3339, which sorts as time does; empty when nothing was restarted.
    last_restart: String,
}

impl Summary {
    fn of(pod: &Object) -> Self {
        let mut summary = Self {
            reason: phase_reason(pod),
            ready: 0,
            total: list(pod, &["spec", "containers"]).len() + sidecars(pod).count(),
            restarts: 0,
            last_restart: String::new(),
        };
        let initializing = summary.add_init_containers(pod);
        if !initializing || condition(pod, "Initialized") == "True" {
            summary.add_containers(pod);
        }
        if pod.deletion_timestamp().is_some() {
            if pod.str_at(&["status", "reason"]) == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Whether the pod is still initializing; then restarts are those of init containers.
    fn add_init_containers(&mut self, pod: &Object) -> bool {
        let statuses = list(pod, &["status", "initContainerStatuses"]);
        let total = list(pod, &["spec", "initContainers"]).len();
        for (place, status) in statuses.iter().enumerate() {
            self.count_restarts(status);
            let terminated = status.at(&["state", "terminated"]).filter(|state| !state.is_null());
            let waiting = status.str_at(&["state", "waiting", "reason"]);
            match terminated {
                Some(state) if number(state, &["exitCode"]) == 0 => continue,
                _ if is_sidecar(pod, status) && flag(status, &["started"]) => {
                    self.ready += usize::from(flag(status, &["ready"]));
                    continue;
                }
                Some(state) => self.reason = format!("Init:{}", end_reason(state)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => self.reason = format!("Init:{waiting}"),
                None => self.reason = format!("Init:{place}/{total}"),
            }
            return true;
        }
        false
    }

    fn add_containers(&mut self, pod: &Object) {
        self.restarts = 0;
        self.last_restart.clear();
        for status in list(pod, &["status", "initContainerStatuses"]).iter().filter(|one| is_sidecar(pod, one)) {
            self.count_restarts(status);
        }
        let mut has_running = false;
        for status in list(pod, &["status", "containerStatuses"]).iter().rev() {
            self.count_restarts(status);
            let waiting = status.str_at(&["state", "waiting", "reason"]);
            let terminated = status.at(&["state", "terminated"]).filter(|state| !state.is_null());
            let is_running = status.at(&["state", "running"]).is_some_and(|state| !state.is_null());
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(state) = terminated {
                self.reason = end_reason(state);
            } else if flag(status, &["ready"]) && is_running {
                has_running = true;
                self.ready += 1;
            }
        }
        // One container has ended well and another runs on.
        if self.reason == "Completed" && has_running {
            self.reason = if condition(pod, "Ready") == "True" { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += number(status, &["restartCount"]);
        let finished = status.str_at(&["lastState", "terminated", "finishedAt"]);
        if finished > self.last_restart.as_str() {
            self.last_restart = finished.to_owned();
        }
    }

    fn restarts(&self, now: Timestamp) -> String {
        if self.restarts == 0 || self.last_restart.is_empty() {
            return self.restarts.to_string();
        }
        format!("{} ({} ago)", self.restarts, since(&self.last_restart, now))
    }
}

/// What is known of the pod besides its containers.
fn phase_reason(pod: &Object) -> String {
    let conditions = list(pod, &["status", "conditions"]);
    let is_gated =
        |one: &Value| one.str_at(&["type"]) == "PodScheduled" && one.str_at(&["reason"]) == "SchedulingGated";
    if conditions.iter().any(is_gated) {
        return "SchedulingGated".to_owned();
    }
    or(pod, &["status", "reason"], pod.str_at(&["status", "phase"])).to_owned()
}

/// The reason of an ended container, else its signal or exit code.
fn end_reason(terminated: &Value) -> String {
    match (terminated.str_at(&["reason"]), number(terminated, &["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(terminated, &["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Init containers that run as long as the pod.
fn sidecars(pod: &Object) -> impl Iterator<Item = &Value> {
    list(pod, &["spec", "initContainers"]).iter().filter(|one| one.str_at(&["restartPolicy"]) == "Always")
}

fn is_sidecar(pod: &Object, status: &Value) -> bool {
    sidecars(pod).any(|one| one.str_at(&["name"]) == status.str_at(&["name"]))
}

fn readiness_gates(pod: &Object) -> String {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| condition(pod, gate.str_at(&["conditionType"])) == "True").count();
    format!("{open}/{}", gates.len())
}
