//! Deployments, ReplicaSets and DaemonSets as their controllers read them (apps/v1).

use super::meta::{Condition, LabelSelector, Meta};
use serde_json::Value;
use std::collections::BTreeMap;

views! {
    Deployment { metadata: Meta, spec: DeploymentSpec, status: DeploymentStatus, }
    DeploymentSpec {
        replicas: Option<i64>,
        selector: LabelSelector,
        /// Copied whole into ReplicaSets.
        template: Value,
        strategy: DeploymentStrategy,
        min_ready_seconds: i64,
        revision_history_limit: Option<i64>,
        paused: bool,
        progress_deadline_seconds: Option<i64>,
    }
    DeploymentStrategy { r#type: String, rolling_update: Option<RollingUpdate>, }
    /// Numbers or percentages, as written.
    RollingUpdate { max_surge: Value, max_unavailable: Value, }
    DeploymentStatus {
        observed_generation: i64,
        replicas: i64,
        updated_replicas: i64,
        ready_replicas: i64,
        available_replicas: i64,
        unavailable_replicas: i64,
        terminating_replicas: Option<i64>,
        collision_count: Option<i64>,
        conditions: Vec<Condition>,
    }

    ReplicaSet { metadata: Meta, spec: ReplicaSetSpec, status: ReplicaSetStatus, }
    ReplicaSetSpec { replicas: Option<i64>, selector: LabelSelector, template: Value, min_ready_seconds: i64, }
    ReplicaSetStatus {
        observed_generation: i64,
        replicas: i64,
        fully_labeled_replicas: i64,
        ready_replicas: i64,
        available_replicas: i64,
        terminating_replicas: Option<i64>,
        conditions: Vec<Condition>,
    }

    DaemonSet { metadata: Meta, spec: DaemonSetSpec, status: DaemonSetStatus, }
    DaemonSetSpec {
        selector: LabelSelector,
        /// Copied whole into revisions and pods.
        template: Value,
        update_strategy: DeploymentStrategy,
        min_ready_seconds: i64,
        revision_history_limit: Option<i64>,
    }
    DaemonSetStatus {
        observed_generation: i64,
        desired_number_scheduled: i64,
        current_number_scheduled: i64,
        number_misscheduled: i64,
        number_ready: i64,
        number_available: i64,
        number_unavailable: i64,
        updated_number_scheduled: i64,
        collision_count: Option<i64>,
    }

    /// What a DaemonSet or StatefulSet was at one time.
    ControllerRevision { metadata: Meta, data: Value, revision: i64, }

    PodDisruptionBudget { metadata: Meta, spec: PodDisruptionBudgetSpec, status: PodDisruptionBudgetStatus, }
    /// `minAvailable` and `maxUnavailable`: numbers or percentages, as written; null when not given.
    PodDisruptionBudgetSpec { selector: Option<LabelSelector>, min_available: Value, max_unavailable: Value, }
    PodDisruptionBudgetStatus {
        observed_generation: i64,
        disruptions_allowed: i64,
        current_healthy: i64,
        desired_healthy: i64,
        expected_pods: i64,
        /// When the eviction of a pod was granted, by the pod's name.
        disrupted_pods: BTreeMap<String, String>,
        conditions: Vec<Condition>,
    }

    Job { metadata: Meta, spec: JobSpec, status: JobStatus, }
    JobSpec {
        parallelism: Option<i64>,
        completions: Option<i64>,
        completion_mode: String,
        backoff_limit: Option<i64>,
        active_deadline_seconds: Option<i64>,
        ttl_seconds_after_finished: Option<i64>,
        suspend: bool,
        selector: LabelSelector,
        template: Value,
        pod_replacement_policy: String,
        managed_by: String,
    }
    JobStatus {
        active: i64,
        ready: i64,
        terminating: i64,
        succeeded: i64,
        failed: i64,
        start_time: Option<String>,
        completion_time: Option<String>,
        completed_indexes: String,
        uncounted_terminated_pods: UncountedPods,
        conditions: Vec<Condition>,
    }
    /// Uids of pods that have ended and whose end is not in the counts yet.
    UncountedPods { succeeded: Vec<String>, failed: Vec<String>, }
}
