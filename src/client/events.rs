//! Records Events on objects without ever holding up a loop: a bounded queue, one writer, best effort.
//! Repeated Events are counted up, similar ones combined and floods cut, as client-go's correlator does.

use super::{Client, EVENTS};
use crate::api::object::Object;
use crate::api::status::Status;
use crate::api::view::meta::Meta;
use crate::api::view::pod::Pod;
use crate::clock::{Clock, rfc3339};
use crate::registry::PatchType;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::sync::mpsc;

const QUEUE_LIMIT: usize = 512;
/// Different Events and different objects remembered; the oldest are forgotten first.
const REMEMBERED_LIMIT: usize = 1024;
/// Events that differ only in their message are combined beyond so many in `SIMILAR_WINDOW_S`.
const SIMILAR_LIMIT: usize = 10;
const SIMILAR_WINDOW_S: i64 = 600;
/// Events per object: a burst, and then one every five minutes.
const BURST: f64 = 25.0;
const REFILL_PER_S: f64 = 1.0 / 300.0;
const ATTEMPTS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Normal,
    Warning,
}

/// What an Event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// `spec.containers{web}`; empty for the whole object.
    pub field_path: String,
}

impl ObjectRef {
    pub fn new(api_version: &str, kind: &str, meta: &Meta) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: String::new(),
        }
    }
    pub fn pod(pod: &Pod) -> Self {
        Self::new("v1", "Pod", &pod.metadata)
    }
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }
}

/// Cheap to clone; the writer's task ends when the last clone is gone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Report>,
}

/// One call of `event`.
#[derive(Clone, Debug)]
struct Report {
    about: ObjectRef,
    kind: Type,
    reason: String,
    message: String,
}

impl EventRecorder {
    /// `component` as upstream names it (`kubelet`, `default-scheduler`); `host` is the node's name or empty.
    pub fn new(client: Client, clock: Clock, component: &'static str, host: &str) -> Self {
        let (queue, reports) = mpsc::channel(QUEUE_LIMIT);
        crate::supervise::spawn(write_all(client, clock, Source { component, host: host.to_owned() }, reports));
        Self { queue }
    }

    /// Never waits; when the queue is full the Event is lost.
    pub fn event(&self, about: &ObjectRef, kind: Type, reason: &str, message: impl Into<String>) {
        let report = Report { about: about.clone(), kind, reason: reason.to_owned(), message: message.into() };
        if self.queue.try_send(report).is_err() {
            tracing::debug!(reason, name = about.name, "event lost: its queue is full");
        }
    }
}

struct Source {
    component: &'static str,
    host: String,
}

async fn write_all(client: Client, clock: Clock, source: Source, mut reports: mpsc::Receiver<Report>) {
    let mut correlator = Correlator::default();
    let mut last = Timestamp::MIN;
    while let Some(report) = reports.recv().await {
        if let Some(series) = correlator.observe(report, clock.now()) {
            let key = series.key;
            // An Event's name carries its time: no two may have the same, however coarse the clock is.
            last = clock.now().max(last.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MAX));
            match write(&client, &source, series, last).await {
                Ok(name) => correlator.written(key, name),
                Err(error) => tracing::debug!(%error, "event not written"),
            }
        }
    }
}

/// Writes a new Event or counts up the one there is; the name it has.
async fn write(client: &Client, source: &Source, series: Series, now: Timestamp) -> Result<String, Status> {
    let namespace = series.report.namespace().to_owned();
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
        }
        if let Some(name) = &series.name {
            let patch = series.patch();
            match client.patch(EVENTS, &namespace, name, "", PatchType::Merge, patch).await {
                Ok(_) => return Ok(name.clone()),
                // It has expired: begin a new one with the same count.
                Err(error) if error.is_not_found() => {}
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            }
        }
        let name = format!("{}.{:x}", series.report.about.name, now.as_nanosecond());
        match client.create(EVENTS, &namespace, series.object(source, &name)).await {
            Ok(_) => return Ok(name),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Status::timeout("event not written")))
}

/// The server understood and declined; trying again would change nothing.
fn is_final(error: &Status) -> bool {
    (400..500).contains(&error.code) && error.code != 429
}

impl Report {
    /// Events of cluster-scoped objects live in `default`.
    fn namespace(&self) -> &str {
        if self.about.namespace.is_empty() { "default" } else { &self.about.namespace }
    }

    /// Equal for Events that say the same, message aside.
    fn kinship(&self) -> u64 {
        fingerprint(&(identity(&self.about), &self.about.field_path, self.kind, &self.reason))
    }
}

fn identity(about: &ObjectRef) -> (&str, &str, &str, &str, &str) {
    (&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid)
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What is to be written: the report, its count and the name of the Event that stands for it already.
#[derive(Debug)]
struct Series {
    key: u64,
    report: Report,
    name: Option<String>,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

impl Series {
    fn patch(&self) -> Object {
        json!({"count": self.count, "lastTimestamp": rfc3339(self.last), "message": self.report.message})
    }

    fn object(&self, source: &Source, name: &str) -> Object {
        let about = &self.report.about;
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self.report.namespace()},
            "involvedObject": {
                "apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace,
                "name": about.name, "uid": about.uid, "resourceVersion": about.resource_version,
                "fieldPath": about.field_path,
            },
            "reason": self.report.reason,
            "message": self.report.message,
            "type": match self.report.kind { Type::Normal => "Normal", Type::Warning => "Warning" },
            "count": self.count,
            "firstTimestamp": rfc3339(self.first),
            "lastTimestamp": rfc3339(self.last),
            "source": {"component": source.component, "host": source.host},
            "reportingComponent": source.component,
            "reportingInstance": source.host,
        });
        for part in ["involvedObject", "source"] {
            if let Some(fields) = object[part].as_object_mut() {
                fields.retain(|_, value| value.as_str() != Some(""));
            }
        }
        object
    }
}

/// What is remembered of one kind of Event, forgotten oldest first.
struct Memory<T> {
    facts: HashMap<u64, T>,
    order: VecDeque<u64>,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { facts: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Memory<T> {
    fn entry(&mut self, key: u64, make: impl FnOnce() -> T) -> &mut T {
        if !self.facts.contains_key(&key) {
            if self.order.len() >= REMEMBERED_LIMIT
                && let Some(oldest) = self.order.pop_front()
            {
                self.facts.remove(&oldest);
            }
            self.order.push_back(key);
        }
        self.facts.entry(key).or_insert_with(make)
    }
}

struct Counted {
    name: Option<String>,
    count: u32,
    first: Timestamp,
}

struct Similar {
    messages: HashSet<u64>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

/// Decides what becomes of a report. Pure but for its memory.
#[derive(Default)]
struct Correlator {
    counted: Memory<Counted>,
    similar: Memory<Similar>,
    buckets: Memory<Bucket>,
}

impl Correlator {
    /// What to write, or nothing when the object floods.
    fn observe(&mut self, mut report: Report, now: Timestamp) -> Option<Series> {
        let combined = self.combine(&report, now);
        let key = if combined {
            report.message = format!("(combined from similar events): {}", report.message);
            report.kinship()
        } else {
            fingerprint(&(report.kinship(), &report.message))
        };
        let allowed = self.take_token(&report.about, now);
        let counted = self.counted.entry(key, || Counted { name: None, count: 0, first: now });
        counted.count += 1;
        let (name, count, first) = (counted.name.clone(), counted.count, counted.first);
        allowed.then_some(Series { key, report, name, count, first, last: now })
    }

    fn written(&mut self, key: u64, name: String) {
        if let Some(counted) = self.counted.facts.get_mut(&key) {
            counted.name = Some(name);
        }
    }

    fn combine(&mut self, report: &Report, now: Timestamp) -> bool {
        let similar = self.similar.entry(report.kinship(), || Similar { messages: HashSet::new(), last: now });
        if seconds_between(similar.last, now) > SIMILAR_WINDOW_S as f64 {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR_LIMIT {
            similar.messages.insert(fingerprint(&report.message));
        }
        similar.messages.len() >= SIMILAR_LIMIT
    }

    fn take_token(&mut self, about: &ObjectRef, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(fingerprint(&identity(about)), || Bucket { tokens: BURST, last: now });
        bucket.tokens = (bucket.tokens + seconds_between(bucket.last, now) * REFILL_PER_S).min(BURST);
        bucket.last = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, message: &str) -> Report {
        let about = ObjectRef { kind: "Pod".into(), name: name.into(), ..ObjectRef::default() };
        Report { about, kind: Type::Warning, reason: "BackOff".into(), message: message.into() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("time")
    }

    #[test]
    fn identical_events_are_counted_up_on_the_event_there_is() {
        let mut correlator = Correlator::default();
        let first = correlator.observe(report("web", "no"), at(0)).expect("written");
        assert_eq!((first.count, &first.name), (1, &None));
        correlator.written(first.key, "web.1".into());
        let second = correlator.observe(report("web", "no"), at(30)).expect("written");
        assert_eq!((second.count, second.name.as_deref(), second.first), (2, Some("web.1"), at(0)));
        let other = correlator.observe(report("db", "no"), at(31)).expect("written");
        assert_eq!((other.count, other.name), (1, None));
    }

    #[test]
    fn similar_events_are_combined_after_ten() {
        let mut correlator = Correlator::default();
        let messages: Vec<String> = (0..12)
            .map(|n| correlator.observe(report("web", &format!("try {n}")), at(n)).expect("written").report.message)
            .collect();
        assert_eq!(messages[8], "try 8");
        assert_eq!(messages[9], "(combined from similar events): try 9");
        let later = correlator.observe(report("web", "try 13"), at(12 + SIMILAR_WINDOW_S)).expect("written");
        assert_eq!(later.report.message, "try 13");
    }

    #[test]
    fn a_flood_on_one_object_is_cut_and_trickles_on() {
        let mut correlator = Correlator::default();
        let written = (0..40).filter(|_| correlator.observe(report("web", "no"), at(0)).is_some()).count();
        assert_eq!(written, 25);
        assert!(correlator.observe(report("db", "no"), at(0)).is_some());
        let next = correlator.observe(report("web", "no"), at(301)).expect("refilled");
        assert_eq!(next.count, 41);
    }

    #[test]
    fn an_event_names_its_object_and_its_source() {
        let about = report("web", "no").about.field("spec.containers{c}");
        let report = Report { about, ..report("web", "no") };
        let series = Correlator::default().observe(report, at(0)).expect("written");
        let object = series.object(&Source { component: "kubelet", host: "n1".into() }, "web.1");
        assert_eq!(
            object,
            json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": "web.1", "namespace": "default"},
                "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{c}"},
                "reason": "BackOff", "message": "no", "type": "Warning", "count": 1,
                "firstTimestamp": "2027-01-15T08:00:00Z", "lastTimestamp": "2027-01-15T08:00:00Z",
                "source": {"component": "kubelet", "host": "n1"},
                "reportingComponent": "kubelet", "reportingInstance": "n1",
            })
        );
    }
}
