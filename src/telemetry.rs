//! Logs, counters and the bounded record of each pod's way through the workflow.
//! Never holds object contents, so no Secret can leak through it.

use crate::clock::Clock;
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

/// Pods whose steps are remembered; the oldest is forgotten first.
const TRACED_PODS_LIMIT: usize = 512;
/// Steps a live reader may be behind.
const LIVE_LIMIT: usize = 256;
/// Steps remembered per pod.
const STEPS_LIMIT: usize = 64;

/// One step of a pod's way: what happened, which room did it, when.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, PartialEq, Eq)]
pub struct Step {
    pub at: Timestamp,
    pub room: String,
    pub what: String,
}

#[derive(Default)]
struct Record {
    order: VecDeque<String>,
    steps: HashMap<String, Vec<Step>>,
}

/// The steps of recent pods by uid. One per process, shared by every room that handles pods.
pub struct Trace {
    record: Mutex<Record>,
    live: tokio::sync::broadcast::Sender<(String, Step)>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { record: Mutex::default(), live: tokio::sync::broadcast::channel(LIVE_LIMIT).0 }
    }
}

impl Trace {
    /// Steps as they are recorded; a slow reader loses the oldest.
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<(String, Step)> {
        self.live.subscribe()
    }

    /// Records that `room` did `what` for the pod with this uid, now.
    pub fn mark(&self, clock: &Clock, uid: &str, room: &'static str, what: &str) {
        let step = Step { at: clock.now(), room: room.to_owned(), what: what.to_owned() };
        // Without a reader the step is only remembered.
        let _ = self.live.send((uid.to_owned(), step.clone()));
        let mut record = self.record.lock().expect("no panic while the trace is locked");
        if !record.steps.contains_key(uid) {
            if record.order.len() >= TRACED_PODS_LIMIT
                && let Some(oldest) = record.order.pop_front()
            {
                record.steps.remove(&oldest);
            }
            record.order.push_back(uid.to_owned());
        }
        let steps = record.steps.entry(uid.to_owned()).or_default();
        if steps.len() < STEPS_LIMIT {
            steps.push(step);
        }
    }

    /// The steps of one pod in the order they happened; empty when it is unknown.
    pub fn steps(&self, uid: &str) -> Vec<Step> {
        let record = self.record.lock().expect("no panic while the trace is locked");
        let mut steps = record.steps.get(uid).cloned().unwrap_or_default();
        steps.sort_by_key(|step| step.at);
        steps
    }
}

/// Starts logging to standard error; `RUST_LOG` selects, `info` is the default.
pub fn init(default_filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_filter));
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
