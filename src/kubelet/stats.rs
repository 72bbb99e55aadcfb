//! What pods use, as `/stats/summary` and `/metrics/resource` tell it.

use super::Kubelet;
use super::node_status::Machine;
use crate::runtime::{SandboxStatus, Stats};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The node and its pods now, with what each container uses.
async fn pods(kubelet: &Kubelet) -> Vec<(SandboxStatus, BTreeMap<String, Stats>)> {
    let mut all = Vec::new();
    for sandbox in kubelet.runtime.list().await.unwrap_or_default().into_iter().filter(|sandbox| sandbox.ready) {
        let stats = kubelet.runtime.stats(&sandbox.pod.uid).await.unwrap_or_default();
        all.push((sandbox, stats));
    }
    all
}

pub async fn summary(kubelet: &Kubelet) -> Value {
    let now = kubelet.clock.now_rfc3339();
    let machine = Machine::observe(&kubelet.config.log_directory);
    let used = machine.memory_bytes.saturating_sub(machine.memory_available_bytes);
    let usage = |stats: &Stats| {
        json!({
            "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_usage_ns},
            "memory": {"time": now, "usageBytes": stats.memory_usage_bytes,
                "workingSetBytes": stats.memory_working_set_bytes},
        })
    };
    let pod = |(sandbox, stats): &(SandboxStatus, BTreeMap<String, Stats>)| {
        let containers = stats.iter().map(|(name, stats)| {
            let mut one = usage(stats);
            one["name"] = json!(name);
            one
        });
        let mut whole = usage(&sum(stats));
        whole["podRef"] = json!({"name": sandbox.pod.name, "namespace": sandbox.pod.namespace, "uid": sandbox.pod.uid});
        whole["startTime"] = json!(sandbox.created_at.map(crate::clock::rfc3339));
        whole["containers"] = containers.collect();
        whole
    };
    json!({
        "node": {
            "nodeName": kubelet.config.node_name,
            "memory": {"time": now, "availableBytes": machine.memory_available_bytes, "workingSetBytes": used},
            "fs": {"time": now, "availableBytes": machine.disk_available_bytes, "capacityBytes": machine.disk_bytes},
        },
        "pods": pods(kubelet).await.iter().map(pod).collect::<Value>(),
    })
}

fn sum(stats: &BTreeMap<String, Stats>) -> Stats {
    stats.values().fold(Stats::default(), |total, one| Stats {
        cpu_usage_ns: total.cpu_usage_ns + one.cpu_usage_ns,
        memory_working_set_bytes: total.memory_working_set_bytes + one.memory_working_set_bytes,
        memory_usage_bytes: total.memory_usage_bytes + one.memory_usage_bytes,
    })
}

/// The Prometheus text of upstream's resource endpoint.
pub async fn resource_metrics(kubelet: &Kubelet) -> String {
    let mut cpu = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let mut memory = String::from("# TYPE container_memory_working_set_bytes gauge\n");
    for (sandbox, stats) in pods(kubelet).await {
        for (name, one) in stats {
            let (namespace, pod) = (&sandbox.pod.namespace, &sandbox.pod.name);
            let labels = format!("{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
            let (whole, rest) = (one.cpu_usage_ns / 1_000_000_000, one.cpu_usage_ns % 1_000_000_000);
            // Writing to a string cannot fail.
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{labels} {whole}.{rest:09}");
            let _ = writeln!(memory, "container_memory_working_set_bytes{labels} {}", one.memory_working_set_bytes);
        }
    }
    cpu + &memory
}
