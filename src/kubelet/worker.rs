//! One pod's loop: observe, plan, apply, write the status that changed; then wait for whatever comes first.
//! It never waits for a verb: long ones are tasks whose end wakes it.

mod apply;
mod report;

use super::fence::Fence;
use super::memory::{Facts, Memory, RETRY_S, after, containers};
use super::operation::{Done, Job};
use super::plan::{Plan, Verdict, plan};
use super::probe::{Kind, Report};
use super::references::{Key, Reference};
use super::volume::{self, token::Tokens};
use super::{Kubelet, SharedPod};
use crate::api::view::pod::Pod;
use crate::client::Item;
use crate::client::replica::with_status;
use crate::runtime::{ContainerState, Exit, Reason, SandboxStatus};
use bytes::Bytes;
use jiff::Timestamp;
use report::{Pending, Probing};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

const REPORTS_LIMIT: usize = 16;

/// What reaches a worker from outside.
pub struct Orders {
    /// The pod's object; `None`: it is no more.
    pub changes: watch::Receiver<Option<Item>>,
    /// The node ends the pod.
    pub sentence: watch::Receiver<Option<Verdict>>,
    /// The runtime has news.
    pub wake: Arc<Notify>,
}

/// Runs until nothing is left of the pod, in the API and on the node, or the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>, uid: String, orders: Orders, sandbox: Option<SandboxStatus>, delay: Duration) {
    if !delay.is_zero() {
        kubelet.clock.sleep(delay).await;
    }
    let Some(item) = orders.changes.borrow().clone() else { return };
    let end = kubelet.own_end(&uid);
    match item.view::<Pod>() {
        Ok(pod) => Worker::new(kubelet, uid, item, &pod, sandbox, end).run(orders).await,
        Err(error) => tracing::error!(uid, %error, "pod cannot be read"),
    }
}

struct Worker {
    kubelet: Arc<Kubelet>,
    uid: String,
    /// The object's bytes; decoded for each pass, so that an idle pod costs no more than them.
    item: Item,
    memory: Memory,
    sandbox: Option<SandboxStatus>,
    /// The sandbox is to be observed before the next pass.
    stale: bool,
    observe_failed: bool,
    retry_at: Option<Timestamp>,
    held: Arc<BTreeMap<Key, Reference>>,
    objects: Arc<Notify>,
    tokens: Tokens,
    volumes: BTreeMap<String, PathBuf>,
    tasks: JoinSet<Done>,
    stops: BTreeMap<String, AbortHandle>,
    removing: BTreeSet<String>,
    probes: BTreeMap<(String, Kind), Probing>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    seen_at: Timestamp,
    pending: Option<Pending>,
    /// Hash and time of the last status written, and the revision it made.
    written: Option<(u64, Timestamp)>,
    written_revision: u64,
    writing: bool,
    /// After a failed write; 0 = the last one went through.
    write_retry_ms: i64,
    deleting: bool,
    delete_retry_s: i64,
    was_connected: bool,
    /// The final status that this node wrote down before it was started.
    end: Option<Bytes>,
    /// The waiting reason of each container that an Event has told of.
    told: BTreeMap<String, String>,
    marked: BTreeSet<&'static str>,
}

impl Worker {
    fn new(
        kubelet: Arc<Kubelet>,
        uid: String,
        item: Item,
        pod: &Pod,
        sandbox: Option<SandboxStatus>,
        end: Option<Bytes>,
    ) -> Self {
        let seen_at = kubelet.clock.now();
        let mut memory = Memory::recall(pod);
        memory.start_time.get_or_insert(seen_at);
        let mut worker = Self {
            tokens: kubelet.tokens(),
            uid,
            item,
            memory,
            stale: sandbox.is_some(),
            observe_failed: false,
            retry_at: None,
            sandbox,
            held: Arc::default(),
            objects: Arc::new(Notify::new()),
            volumes: BTreeMap::new(),
            tasks: JoinSet::new(),
            stops: BTreeMap::new(),
            removing: BTreeSet::new(),
            probes: BTreeMap::new(),
            reports: mpsc::channel(REPORTS_LIMIT),
            seen_at,
            pending: None,
            written: None,
            written_revision: 0,
            writing: false,
            write_retry_ms: 0,
            deleting: false,
            delete_retry_s: 0,
            was_connected: kubelet.is_connected(),
            end,
            told: BTreeMap::new(),
            marked: BTreeSet::new(),
            kubelet,
        };
        worker.hold_references(pod);
        worker.outweigh(pod);
        worker.mark("seen");
        worker
    }

    async fn run(mut self, Orders { mut changes, mut sentence, wake }: Orders) {
        self.memory.verdict.clone_from(&sentence.borrow_and_update());
        loop {
            if self.stale {
                self.observe().await;
            }
            let Some(sleep) = self.pass() else { return };
            tokio::select! {
                biased;
                changed = changes.changed() => match changed {
                    Ok(()) => self.take(changes.borrow_and_update().clone()),
                    Err(_) => return, // the kubelet ends
                },
                Ok(()) = sentence.changed() => self.memory.verdict.clone_from(&sentence.borrow_and_update()),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {} // a stop that a shorter one has replaced
                },
                Some(report) = self.reports.1.recv() => self.report(report),
                () = wake.notified() => self.woken(),
                () = self.objects.notified() => self.objects_changed(),
                () = sleep_for(sleep) => self.stale |= self.observe_failed,
            }
        }
    }

    /// The pod's object has changed, or is no more.
    fn take(&mut self, item: Option<Item>) {
        let Some(item) = item else {
            self.memory.gone = true;
            return;
        };
        match item.view::<Pod>() {
            Ok(pod) => {
                self.hold_references(&pod);
                self.item = item;
                self.outweigh(&pod);
            }
            Err(error) => tracing::error!(uid = self.uid, %error, "pod cannot be read"),
        }
    }

    /// A pod that ended here while nobody could be told has ended, whatever the server still thinks.
    fn outweigh(&mut self, pod: &Pod) {
        if let Some(end) = self.end.clone().filter(|_| !pod.has_ended()) {
            self.item = Item(with_status(&self.item.0, &end));
            self.offer_end(&end, self.kubelet.clock.now());
        }
    }

    /// The runtime has news of the pod, or the server has come or gone.
    fn woken(&mut self) {
        self.stale = true;
        let connected = self.kubelet.is_connected();
        if connected && !self.was_connected {
            self.server_is_back(self.kubelet.clock.now());
        }
        self.was_connected = connected;
    }

    fn hold_references(&mut self, pod: &Pod) {
        let wanted = volume::references(pod);
        if !wanted.iter().eq(self.held.keys()) {
            let hold = |key: Key| (key.clone(), self.kubelet.references.hold(key, &self.objects));
            self.held = Arc::new(wanted.into_iter().map(hold).collect());
        }
    }

    async fn observe(&mut self) {
        self.stale = false;
        self.observe_failed = false;
        match self.kubelet.runtime.status(&self.uid).await {
            Ok(status) => self.set_sandbox(status),
            Err(error) if error.reason == Reason::NotFound => self.sandbox = None,
            Err(error) => {
                tracing::warn!(uid = self.uid, %error, "observe sandbox failed; retrying");
                self.observe_failed = true;
                self.retry_in(1);
            }
        }
    }

    fn set_sandbox(&mut self, status: SandboxStatus) {
        if status.ready {
            self.memory.stopped = false;
        }
        if !status.ips.is_empty() {
            self.memory.ips = status.ips.iter().map(ToString::to_string).collect();
        }
        self.mark_failures(&status);
        self.removing.retain(|id| status.containers.iter().any(|record| record.id == *id));
        self.sandbox = Some(status);
    }

    /// One round; how long to wait for something to happen. `None`: nothing is left of the pod.
    fn pass(&mut self) -> Option<Option<Duration>> {
        let pod: SharedPod = match self.item.view::<Pod>() {
            Ok(pod) => Arc::new(pod),
            Err(_) => return Some(None), // `take` refuses such an object
        };
        let now = self.kubelet.clock.now();
        let fence = self.kubelet.fence(&pod);
        self.memory.fenced = fence == Fence::Shut;
        let (mut next, shown) = {
            let facts = Facts { pod: &pod, sandbox: self.sandbox.as_ref(), memory: &self.memory, now };
            let next = plan(&facts);
            let shown = super::status::status(&facts, &next, &self.kubelet.host.load());
            (next, shown)
        };
        if let Fence::For(left) = fence {
            let at = now.saturating_add(left).unwrap_or(Timestamp::MAX);
            next.wake_at = Some(next.wake_at.map_or(at, |earlier| earlier.min(at)));
        }
        if next.ending {
            self.memory.ending_since.get_or_insert(now);
            self.mark_stopped(&pod);
        }
        self.tell_waiting(&pod, &next);
        self.offer_status(&pod, shown, &next, now);
        for action in &next.actions {
            self.apply(&pod, action, now);
        }
        self.sync_probes(&pod, next.ending);
        self.write_status(&pod, now);
        if next.finished {
            if self.memory.gone {
                return None;
            }
            self.delete(&pod, now);
        }
        Some(self.wait(&next, now))
    }

    fn wait(&mut self, next: &Plan, now: Timestamp) -> Option<Duration> {
        self.retry_at = self.retry_at.filter(|at| *at > now);
        let write_at = self.pending.as_ref().filter(|_| !self.writing).map(|pending| pending.not_before);
        let wake_at = [next.wake_at, write_at, self.retry_at].into_iter().flatten().min()?;
        // A millisecond more, so that the time has come when the timer fires.
        let wait = Duration::try_from(wake_at.duration_since(now)).unwrap_or_default();
        Some(wait + Duration::from_millis(1))
    }

    fn retry_in(&mut self, seconds: i64) {
        let at = after(self.kubelet.clock.now(), seconds);
        self.retry_at = Some(self.retry_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn job(&self, pod: &SharedPod) -> Job {
        let (kubelet, host) = (self.kubelet.clone(), self.kubelet.host.load_full());
        Job { kubelet, host, pod: pod.clone(), held: self.held.clone(), tokens: self.tokens.clone() }
    }

    /// Records a step of the pod's way, once.
    fn mark(&mut self, what: &'static str) {
        if self.marked.insert(what) {
            self.kubelet.trace.mark(&self.kubelet.clock, &self.uid, "kubelet", what);
        }
    }

    /// A step that may come again.
    fn mark_again(&self, what: &str) {
        self.kubelet.trace.mark(&self.kubelet.clock, &self.uid, "kubelet", what);
    }

    /// The ends of containers that the worker did not know of, but for good ones.
    fn mark_failures(&self, found: &SandboxStatus) {
        let known = self.sandbox.iter().flat_map(|sandbox| &sandbox.containers);
        let ended: BTreeSet<&str> =
            known.filter(|one| matches!(one.state, ContainerState::Exited(_))).map(|one| one.id.as_str()).collect();
        for container in found.containers.iter().filter(|one| !ended.contains(one.id.as_str())) {
            if let ContainerState::Exited(exit) = &container.state
                && exit.code != 0
                && self.memory.ending_since.is_none()
            {
                self.mark_again(&failure(&container.name, exit));
            }
        }
    }

    fn mark_stopped(&mut self, pod: &Pod) {
        let records = self.sandbox.iter().flat_map(|sandbox| &sandbox.containers);
        let running = records.filter(|record| matches!(record.state, ContainerState::Running { .. })).count();
        if running == 0 && containers(pod).count() > 0 {
            self.mark("stopped");
        }
    }
}

/// How a container ended badly, in one line.
fn failure(name: &str, exit: &Exit) -> String {
    let Exit { code, reason, message, .. } = exit;
    // The others are the program's own words: those are in its log.
    let why = if reason == "StartError" { format!(": {message}") } else { String::new() };
    format!("container {name} failed: {reason}, exit code {code}{why}")
}

async fn sleep_for(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
