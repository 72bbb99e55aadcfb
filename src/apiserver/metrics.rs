//! Counters of requests by what they did, in Prometheus' text format. Bounded; no label comes from a client
//! unless it names a kind that is served.

use super::request_info::RequestInfo;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Upper bounds of the latency buckets.
const BUCKETS_MS: [u64; 10] = [1, 2, 5, 10, 25, 50, 100, 500, 2_000, 10_000];
/// Series beyond this are counted together.
const SERIES_LIMIT: usize = 1_000;

#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: String,
    resource: String,
    subresource: String,
}

#[derive(Clone, Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS_MS.len()],
    count: u64,
    sum_s: f64,
}

#[derive(Default)]
pub struct Metrics {
    series: Mutex<BTreeMap<Labels, Series>>,
    long_running: Arc<AtomicI64>,
    handshakes: AtomicU64,
}

/// One open watch or stream; whoever answers it holds it, however the answer ends.
pub struct LongRunning(Arc<AtomicI64>);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn open(&self) -> LongRunning {
        self.long_running.fetch_add(1, Ordering::Relaxed);
        LongRunning(self.long_running.clone())
    }

    /// A client has connected; what a storm of returning nodes costs most.
    pub fn handshake(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// `known`: whether the resource is one that is served.
    pub fn observe(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        let labels = match known {
            true => Labels {
                verb: info.verb,
                group: info.group.clone(),
                resource: info.resource.clone(),
                subresource: info.subresource.clone(),
            },
            false => Labels { verb: info.verb, ..Labels::default() },
        };
        let mut all = self.series.lock().expect("no panic while the metrics are locked");
        let labels = if all.len() >= SERIES_LIMIT && !all.contains_key(&labels) { Labels::default() } else { labels };
        let series = all.entry(labels).or_default();
        *series.codes.entry(code).or_default() += 1;
        // A watch's length says nothing about the server.
        if !info.is_long_running() {
            series.add(took);
        }
    }

    /// The text; `extra` are the gauges of other rooms.
    pub fn render(&self, extra: &[(&str, &str, f64)]) -> String {
        let all = self.series.lock().expect("no panic while the metrics are locked").clone();
        let mut text = String::new();
        let long_running = self.long_running.load(Ordering::Relaxed);
        let gauges = extra.iter().copied();
        #[allow(clippy::cast_precision_loss, reason = "a count of open requests")]
        let own = ("apiserver_longrunning_requests", "Open watches and streams.", long_running as f64);
        for (name, help, value) in gauges.chain([own]) {
            let written = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
            written.expect("a String takes every write");
        }
        let (name, handshakes) = ("edgelet_tls_handshakes_total", self.handshakes.load(Ordering::Relaxed));
        let written = writeln!(text, "# HELP {name} Connections accepted.\n# TYPE {name} counter\n{name} {handshakes}");
        written.expect("a String takes every write");
        render_requests(&all, &mut text).expect("a String takes every write");
        render_durations(&all, &mut text).expect("a String takes every write");
        text
    }
}

impl Series {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum_s += took.as_secs_f64();
        for (bucket, bound_ms) in self.buckets.iter_mut().zip(BUCKETS_MS) {
            if took <= Duration::from_millis(bound_ms) {
                *bucket += 1;
            }
        }
    }
}

impl Labels {
    fn render(&self) -> String {
        let Self { verb, group, resource, subresource } = self;
        let verb = verb.to_ascii_uppercase();
        format!("verb=\"{verb}\",group=\"{group}\",resource=\"{resource}\",subresource=\"{subresource}\"")
    }
}

fn render_requests(all: &BTreeMap<Labels, Series>, text: &mut String) -> std::fmt::Result {
    let name = "apiserver_request_total";
    writeln!(text, "# HELP {name} Requests by verb, resource and code.\n# TYPE {name} counter")?;
    for (labels, series) in all {
        let labels = labels.render();
        for (code, count) in &series.codes {
            writeln!(text, "{name}{{{labels},code=\"{code}\"}} {count}")?;
        }
    }
    Ok(())
}

fn render_durations(all: &BTreeMap<Labels, Series>, text: &mut String) -> std::fmt::Result {
    let name = "apiserver_request_duration_seconds";
    writeln!(text, "# HELP {name} Latency without watches and streams.\n# TYPE {name} histogram")?;
    for (labels, series) in all.iter().filter(|(_, series)| series.count > 0) {
        let labels = labels.render();
        for (count, bound_ms) in series.buckets.iter().zip(BUCKETS_MS) {
            let bound_s = Duration::from_millis(bound_ms).as_secs_f64();
            writeln!(text, "{name}_bucket{{{labels},le=\"{bound_s}\"}} {count}")?;
        }
        let (count, sum_s) = (series.count, series.sum_s);
        writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
        writeln!(text, "{name}_sum{{{labels}}} {sum_s}\n{name}_count{{{labels}}} {count}")?;
    }
    Ok(())
}

/// Resident memory of this process, from the kernel's accounts.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_and_timed() {
        let metrics = Metrics::default();
        let info = RequestInfo { verb: "list", resource: "pods".into(), is_resource: true, ..RequestInfo::default() };
        metrics.observe(&info, true, 200, Duration::from_millis(3));
        metrics.observe(&info, true, 200, Duration::from_millis(30));
        metrics.handshake();
        let text = metrics.render(&[("edgelet_store_revision", "Newest revision.", 7.0)]);
        let labels = r#"verb="LIST",group="",resource="pods",subresource="""#;
        for line in [
            format!("apiserver_request_total{{{labels},code=\"200\"}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
            format!("apiserver_request_duration_seconds_count{{{labels}}} 2"),
            "edgelet_store_revision 7".to_owned(),
            "edgelet_tls_handshakes_total 1".to_owned(),
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\n{text}");
        }
        assert!(resident_bytes() > 1 << 20);
    }
}
