//! The Pod as the scheduler, the controllers and the kubelet read it (core/v1).

use super::meta::{Condition, LabelSelector, Meta};
use serde_json::Value;
use std::collections::BTreeMap;

views! {
    Pod { metadata: Meta, spec: PodSpec, status: PodStatus, }

    PodSpec {
        node_name: String,
        scheduler_name: String,
        restart_policy: String,
        service_account_name: String,
        automount_service_account_token: Option<bool>,
        termination_grace_period_seconds: Option<i64>,
        active_deadline_seconds: Option<i64>,
        priority: Option<i64>,
        priority_class_name: String,
        preemption_policy: String,
        hostname: String,
        subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        set_hostname_as_fqdn: Option<bool>,
        hostname_override: Option<String>,
        host_network: bool,
        #[serde(rename = "hostPID")]
        host_pid: bool,
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        host_users: Option<bool>,
        share_process_namespace: Option<bool>,
        enable_service_links: Option<bool>,
        dns_policy: String,
        dns_config: Option<DnsConfig>,
        host_aliases: Vec<HostAlias>,
        node_selector: BTreeMap<String, String>,
        affinity: Option<Affinity>,
        tolerations: Vec<Toleration>,
        topology_spread_constraints: Vec<TopologySpreadConstraint>,
        scheduling_gates: Vec<Value>,
        readiness_gates: Vec<ReadinessGate>,
        runtime_class_name: Option<String>,
        overhead: BTreeMap<String, String>,
        security_context: PodSecurityContext,
        image_pull_secrets: Vec<LocalObjectReference>,
        init_containers: Vec<Container>,
        containers: Vec<Container>,
        ephemeral_containers: Vec<Container>,
        volumes: Vec<Volume>,
        resources: Option<ResourceRequirements>,
    }

    ReadinessGate { condition_type: String, }
    LocalObjectReference { name: String, }
    HostAlias { ip: String, hostnames: Vec<String>, }
    DnsConfig { nameservers: Vec<String>, searches: Vec<String>, options: Vec<DnsOption>, }
    DnsOption { name: String, value: Option<String>, }

    Toleration { key: String, operator: String, value: String, effect: String, toleration_seconds: Option<i64>, }

    Affinity {
        node_affinity: Option<NodeAffinity>,
        pod_affinity: Option<PodAffinity>,
        pod_anti_affinity: Option<PodAffinity>,
    }
    NodeAffinity {
        required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
        preferred_during_scheduling_ignored_during_execution: Vec<PreferredNode>,
    }
    NodeSelector { node_selector_terms: Vec<NodeSelectorTerm>, }
    NodeSelectorTerm { match_expressions: Vec<super::meta::Requirement>, match_fields: Vec<super::meta::Requirement>, }
    PreferredNode { weight: i64, preference: NodeSelectorTerm, }
    PodAffinity {
        required_during_scheduling_ignored_during_execution: Vec<PodAffinityTerm>,
        preferred_during_scheduling_ignored_during_execution: Vec<WeightedPodAffinityTerm>,
    }
    WeightedPodAffinityTerm { weight: i64, pod_affinity_term: PodAffinityTerm, }
    PodAffinityTerm {
        label_selector: Option<LabelSelector>,
        namespaces: Vec<String>,
        namespace_selector: Option<LabelSelector>,
        topology_key: String,
    }
    TopologySpreadConstraint {
        max_skew: i64,
        topology_key: String,
        when_unsatisfiable: String,
        label_selector: Option<LabelSelector>,
        min_domains: Option<i64>,
    }

    PodSecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        fs_group: Option<i64>,
        fs_group_change_policy: String,
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: String,
        sysctls: Vec<Sysctl>,
        seccomp_profile: Option<SeccompProfile>,
    }
    Sysctl { name: String, value: String, }
    SeccompProfile { r#type: String, localhost_profile: String, }

    Container {
        name: String,
        image: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        ports: Vec<ContainerPort>,
        env_from: Vec<EnvFrom>,
        env: Vec<EnvVar>,
        resources: ResourceRequirements,
        restart_policy: String,
        volume_mounts: Vec<VolumeMount>,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
        termination_message_path: String,
        termination_message_policy: String,
        image_pull_policy: String,
        security_context: SecurityContext,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        target_container_name: String,
    }
    ContainerPort {
        name: String,
        host_port: Option<u16>,
        container_port: u16,
        protocol: String,
        #[serde(rename = "hostIP")]
        host_ip: String,
    }
    EnvFrom { prefix: String, config_map_ref: Option<OptionalRef>, secret_ref: Option<OptionalRef>, }
    OptionalRef { name: String, optional: Option<bool>, }
    EnvVar { name: String, value: String, value_from: Option<EnvVarSource>, }
    EnvVarSource {
        field_ref: Option<FieldRef>,
        resource_field_ref: Option<ResourceFieldRef>,
        config_map_key_ref: Option<KeyRef>,
        secret_key_ref: Option<KeyRef>,
    }
    FieldRef { api_version: String, field_path: String, }
    ResourceFieldRef { container_name: String, resource: String, divisor: Option<Value>, }
    KeyRef { name: String, key: String, optional: Option<bool>, }

    /// Quantities stay as written: strings, or numbers from careless clients.
    ResourceRequirements { limits: BTreeMap<String, Value>, requests: BTreeMap<String, Value>, }

    VolumeMount {
        name: String,
        mount_path: String,
        read_only: bool,
        recursive_read_only: String,
        sub_path: String,
        sub_path_expr: String,
        mount_propagation: String,
    }

    Probe {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        grpc: Option<GrpcAction>,
        initial_delay_seconds: Option<u64>,
        timeout_seconds: Option<u64>,
        period_seconds: Option<u64>,
        success_threshold: Option<u32>,
        failure_threshold: Option<u32>,
        termination_grace_period_seconds: Option<i64>,
    }
    ExecAction { command: Vec<String>, }
    HttpGetAction { path: String, port: Value, host: String, scheme: String, http_headers: Vec<HttpHeader>, }
    HttpHeader { name: String, value: String, }
    TcpSocketAction { port: Value, host: String, }
    GrpcAction { port: u16, service: String, }
    SleepAction { seconds: u64, }
    Lifecycle { post_start: Option<LifecycleHandler>, pre_stop: Option<LifecycleHandler>, stop_signal: String, }
    LifecycleHandler {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        sleep: Option<SleepAction>,
    }

    SecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        privileged: Option<bool>,
        read_only_root_filesystem: Option<bool>,
        allow_privilege_escalation: Option<bool>,
        capabilities: Option<Capabilities>,
        seccomp_profile: Option<SeccompProfile>,
        proc_mount: String,
    }
    Capabilities { add: Vec<String>, drop: Vec<String>, }

    Volume {
        name: String,
        empty_dir: Option<EmptyDir>,
        host_path: Option<HostPath>,
        config_map: Option<ConfigMapSource>,
        secret: Option<SecretSource>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardApi>,
        projected: Option<Projected>,
        persistent_volume_claim: Option<Value>,
        nfs: Option<Value>,
        csi: Option<Value>,
        ephemeral: Option<Value>,
        image: Option<Value>,
    }
    EmptyDir { medium: String, size_limit: Option<Value>, }
    HostPath { path: String, r#type: String, }
    KeyToPath { key: String, path: String, mode: Option<u32>, }
    ConfigMapSource { name: String, items: Vec<KeyToPath>, default_mode: Option<u32>, optional: Option<bool>, }
    SecretSource {
        /// In a volume `secretName`, in a projection `name`.
        secret_name: String,
        name: String,
        items: Vec<KeyToPath>,
        default_mode: Option<u32>,
        optional: Option<bool>,
    }
    DownwardApi { items: Vec<DownwardFile>, default_mode: Option<u32>, }
    DownwardFile {
        path: String,
        field_ref: Option<FieldRef>,
        resource_field_ref: Option<ResourceFieldRef>,
        mode: Option<u32>,
    }
    Projected { sources: Vec<Projection>, default_mode: Option<u32>, }
    Projection {
        config_map: Option<ConfigMapSource>,
        secret: Option<SecretSource>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardApi>,
        service_account_token: Option<TokenProjection>,
    }
    TokenProjection { audience: String, expiration_seconds: Option<i64>, path: String, }

    PodStatus {
        phase: String,
        reason: String,
        message: String,
        nominated_node_name: String,
        #[serde(rename = "hostIP")]
        host_ip: String,
        #[serde(rename = "podIP")]
        pod_ip: String,
        #[serde(rename = "podIPs")]
        pod_ips: Vec<PodIp>,
        start_time: Option<String>,
        qos_class: String,
        conditions: Vec<Condition>,
        init_container_statuses: Vec<ContainerStatus>,
        container_statuses: Vec<ContainerStatus>,
        ephemeral_container_statuses: Vec<ContainerStatus>,
    }
    PodIp { ip: String, }
    ContainerStatus {
        name: String,
        #[serde(rename = "containerID")]
        container_id: String,
        image: String,
        #[serde(rename = "imageID")]
        image_id: String,
        ready: bool,
        started: Option<bool>,
        restart_count: u32,
        state: Value,
        last_state: Value,
    }
}

impl Pod {
    /// The value of a condition, `True`, `False`, `Unknown` or empty.
    pub fn condition(&self, r#type: &str) -> &str {
        let found = self.status.conditions.iter().find(|condition| condition.r#type == r#type);
        found.map(|condition| condition.status.as_str()).unwrap_or_default()
    }
    pub fn is_ready(&self) -> bool {
        self.condition("Ready") == "True"
    }
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
    /// `Succeeded` or `Failed`: its containers never run again.
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl NodeSelectorTerm {
    /// An empty term matches nothing; the only field of a node is its name.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.match_expressions.is_empty() && self.match_fields.is_empty() {
            return false;
        }
        let fields = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
        self.match_expressions.iter().all(|label| label.matches(labels))
            && self.match_fields.iter().all(|field| field.matches(&fields))
    }
}

impl NodeSelector {
    /// Terms are alternatives; none at all selects nothing.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(name, labels))
    }
}

impl Affinity {
    /// The nodes the pod must be on.
    pub fn required_nodes(&self) -> Option<&NodeSelector> {
        self.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    }
}

impl PodSpec {
    /// Whether `nodeSelector` and the required node affinity allow a node.
    pub fn allows_node(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let required = self.affinity.as_ref().and_then(Affinity::required_nodes);
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && required.is_none_or(|selector| selector.matches(name, labels))
    }

    pub fn tolerates(&self, taint: &super::node::Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }
}

impl Toleration {
    /// Whether it lets the pod stay with this taint.
    pub fn tolerates(&self, taint: &super::node::Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() || self.key == taint.key;
        let value = match self.operator.as_str() {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            _ => false,
        };
        effect && key && value
    }
}
