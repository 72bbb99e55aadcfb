//! What a worker tells others: the pod's status, Events about waiting; and what probes tell the worker.

use super::super::difference::differs;
use super::super::endpoints::Local;
use super::super::memory::{Condemned, Operation, Role, find_container};
use super::super::operation::about;
use super::super::plan::full_name;
use super::super::probe::{self, Watched};
use super::super::revision;
use super::*;
use crate::api::status::Status;
use crate::api::view::meta::Condition;
use crate::api::view::pod::Container;
use crate::client::events::Type;
use crate::runtime::ContainerStatus;
use bytes::Bytes;
use futures_util::FutureExt;
use jiff::SignedDuration;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A pod that only just begins is not written: most are ready before this.
const PENDING_HOLD_MS: i64 = 250;
/// A deleted pod is written when its sandbox is released, or after this.
const ENDING_HOLD_MS: i64 = 1000;
/// A status that cannot be written waits this long, then doubly; the server's return ends the wait.
const WRITE_RETRY_MS: i64 = 1000;
const WRITE_RETRY_LIMIT_MS: i64 = 60_000;
/// The same status is not written again sooner, whoever undoes it.
const REWRITE_AFTER_S: i64 = 60;

/// A status that is to be written.
pub(super) struct Pending {
    status: Value,
    hash: u64,
    pub(super) not_before: Timestamp,
}

/// A probe's task; ends with it.
pub(super) struct Probing {
    id: String,
    task: AbortHandle,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// Takes note of the status of this pass; it is written if it is news.
    pub(super) fn offer_status(
        &mut self,
        pod: &Pod,
        (status, conditions): (Value, Vec<Condition>),
        next: &Plan,
        now: Timestamp,
    ) {
        // After the removal there is nothing to see; an ended pod without a sandbox keeps its last words.
        if self.memory.gone || self.memory.removed || (pod.has_ended() && self.sandbox.is_none()) {
            return;
        }
        if self.memory.verdict.as_ref().is_some_and(|verdict| verdict.returns) {
            return;
        }
        if conditions.iter().any(|condition| condition.r#type == "Ready" && condition.status == "True") {
            self.mark("ready");
        }
        self.memory.conditions = conditions;
        self.keep_for_later(pod, &status);
        let hash = hash(&status);
        if self.pending.as_ref().is_some_and(|pending| pending.hash == hash) || !self.is_news(pod, &status, hash, now) {
            return;
        }
        let hold_ms = self.hold_ms(pod, &status, next);
        let fresh = now.saturating_add(SignedDuration::from_millis(hold_ms)).unwrap_or(now);
        let not_before = self.pending.as_ref().map_or(fresh, |older| older.not_before.min(fresh));
        self.kubelet.set_untold(&self.uid, Some(&status));
        self.pending = Some(Pending { status, hash, not_before });
    }

    /// What must be known of the pod when nobody can be asked.
    fn keep_for_later(&self, pod: &Pod, status: &Value) {
        let ready = self.memory.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True");
        let ips = self.pod_ips(pod);
        let local = Local { ready, terminating: pod.is_terminating(), ips };
        self.kubelet.set_local_endpoint(&self.uid, Some(local));
        if let Some(replica) = self.kubelet.replica.as_ref().filter(|_| !pod.is_terminating()) {
            replica.note_status(&self.uid, status);
        }
    }

    /// How the pod ended by what this node wrote down while nobody could be told: it is told now.
    pub(super) fn offer_end(&mut self, status: &Bytes, now: Timestamp) {
        if let Ok(status) = serde_json::from_slice::<Value>(status) {
            self.pending = Some(Pending { hash: hash(&status), status, not_before: now });
        }
    }

    fn is_news(&mut self, pod: &Pod, status: &Value, hash: u64, now: Timestamp) -> bool {
        if let Some((written, at)) = self.written {
            if written != hash {
                return true;
            }
            let settled = after(at, REWRITE_AFTER_S) <= now && !self.writing;
            if !settled || revision(&pod.metadata.resource_version) < self.written_revision {
                self.settle_status();
                return false;
            }
        }
        let held = self.item.object().map(|object| object.get("status").cloned().unwrap_or_default());
        held.map_or(true, |held| differs(status, &held))
    }

    fn hold_ms(&self, pod: &Pod, status: &Value, next: &Plan) -> i64 {
        let ready = self.memory.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True");
        let begins = self.written.is_none() && next.waiting.is_empty() && !ready && status["phase"] != "Failed";
        let young = self.kubelet.clock.now().duration_since(self.seen_at).as_millis() < i128::from(PENDING_HOLD_MS);
        let ends = pod.is_terminating() && !self.memory.stopped && self.sandbox.is_some();
        match () {
            () if ends => ENDING_HOLD_MS,
            () if begins && young && !pod.has_ended() => PENDING_HOLD_MS,
            () => 0,
        }
    }

    /// One write at a time; the newest status follows.
    pub(super) fn write_status(&mut self, pod: &SharedPod, now: Timestamp) {
        let due = self.pending.as_ref().is_some_and(|pending| pending.not_before <= now);
        if self.writing || !due {
            return;
        }
        let job = self.job(pod);
        if let Some(pending) = &self.pending {
            self.writing = true;
            self.written = Some((pending.hash, now));
            self.tasks.spawn(job.write_status(pending.status.clone()).boxed());
        }
    }

    pub(super) fn status_written(&mut self, outcome: crate::api::status::Result<u64>) {
        self.writing = false;
        let sent = self.written.map(|(hash, _)| hash);
        match outcome {
            Ok(revision) => {
                self.written_revision = revision;
                self.write_retry_ms = 0;
            }
            Err(error) if is_final(&error) => {
                tracing::debug!(uid = self.uid, %error, "status not written: the pod is gone, or not as we think");
            }
            Err(error) => {
                if self.write_retry_ms == 0 {
                    tracing::warn!(uid = self.uid, %error, "write status failed; retrying");
                }
                self.write_retry_ms = (self.write_retry_ms * 2).clamp(WRITE_RETRY_MS, WRITE_RETRY_LIMIT_MS);
                let retry = SignedDuration::from_millis(self.write_retry_ms);
                let at = self.kubelet.clock.now().saturating_add(retry).unwrap_or(Timestamp::MAX);
                self.written = None;
                if let Some(pending) = &mut self.pending {
                    pending.not_before = at;
                }
                return;
            }
        }
        if self.pending.as_ref().map(|pending| pending.hash) == sent {
            self.settle_status();
        }
    }

    fn settle_status(&mut self) {
        self.pending = None;
        self.kubelet.set_untold(&self.uid, None);
    }

    /// What waited for the server to return goes now.
    pub(super) fn server_is_back(&mut self, now: Timestamp) {
        self.write_retry_ms = 0;
        if let Some(pending) = &mut self.pending {
            pending.not_before = pending.not_before.min(now);
        }
        self.retry_at = self.retry_at.map(|at| at.min(now));
        if self.tokens.wait_no_more() {
            self.memory.refresh_at = Some(now);
        }
    }

    /// The last step: the object goes when its final status is known to the API.
    pub(super) fn delete(&mut self, pod: &SharedPod, now: Timestamp) {
        let settled = self.pending.is_none() && !self.writing && self.retry_at.is_none_or(|at| at <= now);
        if pod.is_terminating() && settled && !self.deleting {
            self.deleting = true;
            let job = self.job(pod);
            self.tasks.spawn(job.delete().boxed());
        }
    }

    /// An Event when a container begins to back off.
    pub(super) fn tell_waiting(&mut self, pod: &Pod, next: &Plan) {
        self.told.retain(|name, _| next.waiting.contains_key(name));
        for (name, waiting) in &next.waiting {
            if self.told.get(name) == Some(&waiting.reason) {
                continue;
            }
            self.told.insert(name.clone(), waiting.reason.clone());
            if !["ContainerCreating", "PodInitializing"].contains(&waiting.reason.as_str()) {
                self.mark_again(&format!("container {name} waits: {}: {}", waiting.reason, waiting.message));
            }
            let events = &self.kubelet.events;
            match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    let text = format!("Back-off restarting failed container {name} in pod {}", full_name(pod));
                    events.event(&about(pod, name), Type::Warning, "BackOff", text);
                }
                "ImagePullBackOff" => {
                    let image = find_container(pod, name).map(|(_, container)| container.image.as_str());
                    let text = format!("Back-off pulling image \"{}\"", image.unwrap_or_default());
                    events.event(&about(pod, name), Type::Normal, "BackOff", text);
                    events.event(&about(pod, name), Type::Warning, "Failed", "Error: ImagePullBackOff");
                }
                _ => {}
            }
        }
    }

    /// Starts the probes that running containers are due, and ends the others.
    pub(super) fn sync_probes(&mut self, pod: &SharedPod, ending: bool) {
        let mut wanted: BTreeMap<(String, Kind), (Container, ContainerStatus)> = BTreeMap::new();
        for (role, container) in containers(pod).filter(|(role, _)| matches!(role, Role::Main | Role::Sidecar)) {
            if let Some(record) = self.running(pod, role, container) {
                for kind in due_probes(pod, &self.memory, container, &record, ending) {
                    wanted.insert((container.name.clone(), kind), (container.clone(), record.clone()));
                }
            }
        }
        self.probes.retain(|key, probing| wanted.get(key).is_some_and(|(_, record)| record.id == probing.id));
        for ((name, kind), (container, record)) in wanted {
            if !self.probes.contains_key(&(name.clone(), kind)) {
                let probing = self.start_probe(pod, container, &record, kind);
                self.probes.insert((name, kind), probing);
            }
        }
    }

    fn running(&self, pod: &Pod, role: Role, container: &Container) -> Option<ContainerStatus> {
        let facts = Facts { pod, sandbox: self.sandbox.as_ref(), memory: &self.memory, now: self.seen_at };
        let busy = self.memory.containers.get(&container.name).and_then(|memory| memory.operation);
        match facts.life(role, &container.name) {
            super::super::memory::Life::Running(record) if busy != Some(Operation::Starting) => Some(record.clone()),
            _ => None,
        }
    }

    fn start_probe(&self, pod: &SharedPod, container: Container, record: &ContainerStatus, kind: Kind) -> Probing {
        let ready = self.memory.containers.get(&container.name).and_then(|memory| memory.ready.as_ref());
        let known = (kind == Kind::Readiness && ready == Some(&record.id)).then_some(true);
        let watched = Watched {
            about: about(pod, &container.name),
            id: record.id.clone(),
            kind,
            pod_ip: self.pod_ips(pod).into_iter().next().unwrap_or_default(),
            started_at: record.started_at.unwrap_or(record.created_at),
            known,
            container,
        };
        let task = crate::supervise::spawn(probe::run(self.kubelet.clone(), watched, self.reports.0.clone()));
        Probing { id: record.id.clone(), task: task.abort_handle() }
    }

    pub(super) fn report(&mut self, report: Report) {
        let Report { container, id, kind, passed } = report;
        let memory = self.memory.container_mut(&container);
        match (kind, passed) {
            (Kind::Readiness, true) => memory.ready = Some(id),
            (Kind::Readiness, false) => memory.ready = None,
            (Kind::Startup, true) => memory.started = Some(id),
            (Kind::Startup, false) => memory.condemned = Some((id, Condemned::Startup)),
            (Kind::Liveness, true) => {}
            (Kind::Liveness, false) => memory.condemned = Some((id, Condemned::Liveness)),
        }
    }
}

/// The startup probe until it has passed, then the others. A pod that ends is only asked whether it is ready.
fn due_probes(pod: &Pod, memory: &Memory, container: &Container, record: &ContainerStatus, ending: bool) -> Vec<Kind> {
    let facts = Facts { pod, sandbox: None, memory, now: record.created_at };
    let started = facts.has_started(container, record);
    let stopping = memory.containers.get(&container.name).is_some_and(|memory| memory.operation.is_some());
    let due = |kind: &Kind| {
        let in_turn = match kind {
            Kind::Startup => !started && !ending && !stopping,
            Kind::Liveness => started && !ending && !stopping,
            Kind::Readiness => started,
        };
        in_turn && kind.of(container).is_some()
    };
    Kind::ALL.into_iter().filter(due).collect()
}

/// The server understood and declined; only another status may fare better. A conflict is a race with
/// another writer; were it our uid that is gone, the pod's deletion ends this worker.
fn is_final(error: &Status) -> bool {
    (400..500).contains(&error.code) && !matches!(error.code, 409 | 429)
}

fn hash(status: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    status.to_string().hash(&mut hasher);
    hasher.finish()
}
