//! What the runtime is asked to make: a pod's sandbox, a container. Pure.

use super::dns::{self, ClusterDns, ResolvConf};
use super::env::expand;
use super::memory::spec_hash;
use super::resources::{container_resources, pod_resources, qos};
use super::security::security;
use crate::api::view::pod::{Container, Pod, Volume, VolumeMount};
use crate::runtime::{ContainerConfig, HostPort, ImageStatus, Mount, PodRef, Propagation, SandboxConfig};
use std::path::PathBuf;

const TERMINATION_LOG: &str = "/dev/termination-log";

pub fn pod_ref(pod: &Pod) -> PodRef {
    let meta = &pod.metadata;
    PodRef { uid: meta.uid.clone(), namespace: meta.namespace.clone(), name: meta.name.clone() }
}

/// Where a pod's logs are, below the log root.
pub fn log_directory(pod: &PodRef) -> String {
    format!("{}_{}_{}", pod.namespace, pod.name, pod.uid)
}

/// Facts of the node that sandboxes and containers are made with.
pub struct NodeFacts<'a> {
    pub dns: &'a ClusterDns,
    pub resolv_conf: &'a ResolvConf,
    pub memory_bytes: i64,
}

pub fn sandbox_config(pod: &Pod, node: &NodeFacts) -> SandboxConfig {
    let spec = &pod.spec;
    let (hostname, fqdn) = dns::hostname(pod, &node.dns.domain);
    let sysctls = spec.security_context.sysctls.iter();
    let reference = pod_ref(pod);
    SandboxConfig {
        hostname,
        resolv_conf: Some(dns::resolv_conf(pod, node.dns, node.resolv_conf)),
        hosts_entries: dns::host_aliases(pod),
        fqdn,
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        host_ipc: spec.host_ipc,
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        host_ports: if spec.host_network { Vec::new() } else { host_ports(pod) },
        qos: qos(pod),
        resources: pod_resources(pod, node.memory_bytes),
        wanted_ip: pod.status.pod_ips.first().and_then(|ip| ip.ip.parse().ok()).filter(|_| !spec.host_network),
        log_directory: log_directory(&reference),
        termination_grace_s: spec.termination_grace_period_seconds.and_then(|grace_s| grace_s.try_into().ok()),
        annotations: pod.metadata.annotations.clone(),
        pod: reference,
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let all = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let wanted = all.flat_map(|container| &container.ports).filter_map(|port| {
        let host_port = port.host_port.filter(|port| *port > 0)?;
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        Some(HostPort {
            host_ip: port.host_ip.parse().ok(),
            host_port,
            container_port: port.container_port,
            protocol: protocol.to_owned(),
        })
    });
    wanted.collect()
}

/// `env` and `mounts` are resolved; an error is the message of a `CreateContainerConfigError`.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: &ImageStatus,
    env: Vec<(String, String)>,
    mounts: Vec<Mount>,
    node_memory_bytes: i64,
) -> Result<ContainerConfig, String> {
    let value = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, value)).collect();
    let path = &container.termination_message_path;
    let lifecycle = container.lifecycle.as_ref();
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts,
        devices: Vec::new(),
        resources: container_resources(pod, container, node_memory_bytes),
        security: security(pod, container, &image.user)?,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        stop_signal: lifecycle.map(|lifecycle| lifecycle.stop_signal.clone()).unwrap_or_default(),
        termination_message_path: if path.is_empty() { TERMINATION_LOG.to_owned() } else { path.clone() },
        termination_message_from_log: container.termination_message_policy == "FallbackToLogsOnError",
        spec_hash: spec_hash(container),
        annotations: pod.metadata.annotations.clone(),
        env,
    })
}

/// One mount of a volume that is at `source` on the host. Nobody but the kubelet writes the files it keeps up to
/// date: what a container put among them would lead the next update astray.
pub fn mount(volume_mount: &VolumeMount, volume: Option<&Volume>, source: PathBuf) -> Mount {
    Mount {
        source,
        destination: volume_mount.mount_path.clone(),
        read_only: volume_mount.read_only || volume.is_some_and(holds_files),
        recursive_read_only: matches!(volume_mount.recursive_read_only.as_str(), "Enabled" | "IfPossible"),
        propagation: match volume_mount.mount_propagation.as_str() {
            "HostToContainer" => Propagation::HostToContainer,
            "Bidirectional" => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    }
}

fn holds_files(volume: &Volume) -> bool {
    let Volume { config_map, secret, downward_api, projected, .. } = volume;
    config_map.is_some() || secret.is_some() || downward_api.is_some() || projected.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_cannot_write_among_the_files_that_the_kubelet_updates() {
        let wanted: VolumeMount = serde_json::from_value(json!({"name": "v", "mountPath": "/v"})).expect("a mount");
        let cases = [
            (json!({"name": "v", "configMap": {"name": "c"}}), true),
            (json!({"name": "v", "secret": {"secretName": "s"}}), true),
            (json!({"name": "v", "downwardAPI": {"items": []}}), true),
            (json!({"name": "v", "projected": {"sources": []}}), true),
            (json!({"name": "v", "emptyDir": {}}), false),
            (json!({"name": "v", "hostPath": {"path": "/tmp"}}), false),
        ];
        for (volume, read_only) in cases {
            let volume: Volume = serde_json::from_value(volume).expect("a volume");
            assert_eq!(mount(&wanted, Some(&volume), PathBuf::new()).read_only, read_only, "{volume:?}");
        }
    }
}
