//! Probes: one timer per probe of a running container; a result that changes wakes the pod's worker.

use super::{Kubelet, hook};
use crate::api::view::pod::{Container, Probe};
use crate::client::ObjectRef;
use crate::client::events::Type;
use crate::runtime::{NetworkProbe, ProbeOutcome};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const DEFAULT_PERIOD_S: u64 = 10;
const DEFAULT_TIMEOUT_S: u64 = 1;
const DEFAULT_FAILURES: u32 = 3;
/// Of a probe's output in an Event.
const MESSAGE_LIMIT: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Liveness,
    Readiness,
    Startup,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    fn word(self) -> &'static str {
        match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Startup => container.startup_probe.as_ref(),
        }
    }
}

/// A probe's verdict about one instance of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub container: String,
    pub id: String,
    pub kind: Kind,
    pub passed: bool,
}

/// One probe of one running container.
pub struct Watched {
    pub about: ObjectRef,
    pub container: Container,
    pub id: String,
    pub kind: Kind,
    pub pod_ip: String,
    pub started_at: Timestamp,
    /// The last verdict, if there is one from a former process.
    pub known: Option<bool>,
}

/// How an attempt went.
enum Attempt {
    Passed,
    Failed(String),
    Errored(String),
}

/// Results in a row against their thresholds. Pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    verdict: Option<bool>,
    last: Option<bool>,
    in_a_row: u32,
}

impl Tally {
    /// The new verdict when this result changes it.
    fn count(&mut self, passed: bool, probe: &Probe) -> Option<bool> {
        self.in_a_row = if self.last == Some(passed) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(passed);
        let threshold = if passed { probe.success_threshold.unwrap_or(1) } else { failures(probe) };
        if self.in_a_row < threshold.max(1) || self.verdict == Some(passed) {
            return None;
        }
        self.verdict = Some(passed);
        self.verdict
    }
}

fn failures(probe: &Probe) -> u32 {
    probe.failure_threshold.unwrap_or(DEFAULT_FAILURES)
}

/// Probes until the verdict is final (startup, a failed liveness) or the task is dropped.
pub async fn run(kubelet: Arc<Kubelet>, watched: Watched, reports: mpsc::Sender<Report>) {
    let Some(probe) = watched.kind.of(&watched.container).cloned() else { return };
    let period = Duration::from_secs(probe.period_seconds.unwrap_or(DEFAULT_PERIOD_S).max(1));
    kubelet.clock.sleep(first_delay(&kubelet, &watched, &probe, period)).await;
    let mut tally = Tally { verdict: watched.known, ..Tally::default() };
    loop {
        let passed = match attempt(&kubelet, &watched, &probe).await {
            Attempt::Passed => true,
            Attempt::Failed(message) => tell(&kubelet, &watched, "failed", &message),
            Attempt::Errored(message) => tell(&kubelet, &watched, "errored and resulted in unknown state", &message),
        };
        if let Some(passed) = tally.count(passed, &probe) {
            let Watched { container, id, kind, .. } = &watched;
            let report = Report { container: container.name.clone(), id: id.clone(), kind: *kind, passed };
            if reports.send(report).await.is_err() || is_final(watched.kind, passed) {
                return;
            }
        }
        kubelet.clock.sleep(period).await;
    }
}

fn is_final(kind: Kind, passed: bool) -> bool {
    match kind {
        Kind::Startup => true,
        Kind::Liveness => !passed,
        Kind::Readiness => false,
    }
}

/// What is left of the initial delay. After a restart of edgelet the probes of all pods are spread.
fn first_delay(kubelet: &Kubelet, watched: &Watched, probe: &Probe, period: Duration) -> Duration {
    let running = Duration::try_from(kubelet.clock.now().duration_since(watched.started_at)).unwrap_or_default();
    let left = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0)).saturating_sub(running);
    if watched.started_at < kubelet.started_at { left + period.mul_f64(fastrand::f64()) } else { left }
}

fn tell(kubelet: &Kubelet, watched: &Watched, how: &str, message: &str) -> bool {
    let end = (0..=MESSAGE_LIMIT.min(message.len())).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    let text = format!("{} probe {how}: {}", watched.kind.word(), &message[..end]);
    kubelet.events.event(&watched.about, Type::Warning, "Unhealthy", text);
    false
}

async fn attempt(kubelet: &Kubelet, watched: &Watched, probe: &Probe) -> Attempt {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_S).max(1));
    if let Some(exec) = &probe.exec {
        return exec_attempt(kubelet, &watched.id, &exec.command, timeout).await;
    }
    let target = match target(probe, &watched.container, &watched.pod_ip) {
        Ok(target) => target,
        Err(message) => return Attempt::Errored(message),
    };
    match kubelet.runtime.probe(&target, timeout).await {
        ProbeOutcome::Success(_) => Attempt::Passed,
        ProbeOutcome::Failure(message) => Attempt::Failed(message),
    }
}

async fn exec_attempt(kubelet: &Kubelet, id: &str, command: &[String], timeout: Duration) -> Attempt {
    use crate::runtime::Reason;
    let verb = kubelet.runtime.exec_sync(id, command, timeout);
    match verb.await {
        Ok(output) if output.exit_code == 0 => Attempt::Passed,
        Ok(output) => Attempt::Failed(String::from_utf8_lossy(&output.output).into_owned()),
        Err(error) if error.reason == Reason::Timeout => Attempt::Failed(format!(
            "command timed out: \"{}\" timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(error) => Attempt::Errored(error.message),
    }
}

fn target(probe: &Probe, container: &Container, pod_ip: &str) -> Result<NetworkProbe, String> {
    if let Some(get) = &probe.http_get {
        hook::http(get, container, pod_ip)
    } else if let Some(tcp) = &probe.tcp_socket {
        let host = if tcp.host.is_empty() { pod_ip } else { &tcp.host };
        Ok(NetworkProbe::Tcp { host: host.to_owned(), port: port_number(&tcp.port, container)? })
    } else if let Some(grpc) = &probe.grpc {
        Ok(NetworkProbe::Grpc { host: pod_ip.to_owned(), port: grpc.port, service: grpc.service.clone() })
    } else {
        Err("missing probe handler".to_owned())
    }
}

/// A number, or the name of one of the container's ports.
pub fn port_number(port: &Value, container: &Container) -> Result<u16, String> {
    let valid = |number: u64| u16::try_from(number).ok().filter(|number| *number > 0);
    let found = match port {
        Value::Number(number) => number.as_u64().and_then(valid),
        Value::String(name) => {
            let named = container.ports.iter().find(|port| port.name == *name).map(|port| port.container_port);
            named.or_else(|| name.parse().ok().and_then(valid))
        }
        _ => None,
    };
    found.ok_or_else(|| format!("couldn't find port: {port} in container {}", container.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut tally = Tally::default();
        let verdicts: Vec<Option<bool>> = [true, true, true, false, false, true, false, false, false, false]
            .map(|passed| tally.count(passed, &probe))
            .to_vec();
        let want = [None, Some(true), None, None, None, None, None, None, Some(false), None];
        assert_eq!(verdicts, want);
    }

    #[test]
    fn ports_by_number_and_name() {
        let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        let container: Container = serde_json::from_value(container).expect("a container");
        for (port, want) in [
            (json!(80), Some(80)),
            (json!("web"), Some(8080)),
            (json!("81"), Some(81)),
            (json!("no"), None),
            (json!(0), None),
            (json!(70000), None),
        ] {
            assert_eq!(port_number(&port, &container).ok(), want, "{port}");
        }
    }

    #[test]
    fn targets() {
        let container = Container::default();
        let probe = json!({"httpGet": {"path": "healthz", "port": 8080, "scheme": "HTTPS",
            "httpHeaders": [{"name": "A", "value": "b"}]}});
        let probe: Probe = serde_json::from_value(probe).expect("a probe");
        let want = NetworkProbe::Http {
            host: "10.42.0.5".into(),
            port: 8080,
            path: "/healthz".into(),
            https: true,
            headers: vec![("A".into(), "b".into())],
        };
        assert_eq!(target(&probe, &container, "10.42.0.5"), Ok(want));
    }
}
