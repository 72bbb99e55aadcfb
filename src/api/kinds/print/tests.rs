use super::*;
use crate::api::kinds::Kinds;
use serde_json::json;

#[test]
fn durations_are_written_as_kubectl_does() {
    let (m, h, d) = (60, 3600, 86400);
    let cases = [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (2 * m, "2m"),
        (2 * m + 5, "2m5s"),
        (9 * m + 59, "9m59s"),
        (10 * m + 5, "10m"),
        (179 * m, "179m"),
        (3 * h, "3h"),
        (3 * h + 5 * m, "3h5m"),
        (8 * h + m, "8h"),
        (47 * h, "47h"),
        (48 * h, "2d"),
        (49 * h, "2d1h"),
        (8 * d, "8d"),
        (729 * d, "729d"),
        (730 * d, "2y"),
        (735 * d, "2y5d"),
        (2920 * d, "8y"),
    ];
    for (duration_s, text) in cases {
        assert_eq!(human_duration(duration_s), text, "{duration_s}");
    }
}

const NOW: &str = "2026-11-23T01:14:18Z";

/// The cells of an object that was made twelve seconds ago.
fn cells_of(api_version: &str, kind: &str, mut object: Value) -> Value {
    object.set(&["metadata", "creationTimestamp"], "2026-11-23T01:14:06Z".into());
    let row = Kinds::default().kind(api_version, kind).expect("a built-in kind");
    Value::from((row.cells)(&object, NOW.parse().expect("a time")))
}

#[test]
fn rows_equal_the_recorded_ones() {
    let template =
        json!({"spec": {"containers": [{"name": "c", "image": "busybox:1"}], "nodeSelector": {"none": "x"}}});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
    let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
    let cases = [
        (
            "apps/v1",
            "Deployment",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template}, "status": {}}),
            json!(["d", "0/0", 0, 0, "12s", "c", "busybox:1", "a=b"]),
        ),
        (
            "apps/v1",
            "DaemonSet",
            json!({"metadata": {"name": "ds"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
            json!(["ds", 0, 0, 0, 0, 0, "none=x", "12s", "c", "busybox:1", "a=b"]),
        ),
        (
            "v1",
            "Service",
            json!({"metadata": {"name": "s2"}, "spec": {"type": "NodePort", "clusterIPs": ["10.96.58.61"], "ports": [{"port": 80, "nodePort": 31106, "protocol": "TCP"}]}}),
            json!(["s2", "NodePort", "10.96.58.61", "<none>", "80:31106/TCP", "12s", "<none>"]),
        ),
        (
            "v1",
            "Service",
            json!({"metadata": {"name": "s3"}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.38.79"], "ports": [{"port": 80, "nodePort": 31955, "protocol": "TCP"}]}}),
            json!(["s3", "LoadBalancer", "10.96.38.79", "<pending>", "80:31955/TCP", "12s", "<none>"]),
        ),
        (
            "v1",
            "Service",
            json!({"metadata": {"name": "s5"}, "spec": {"type": "ExternalName", "externalName": "a.b"}}),
            json!(["s5", "ExternalName", "<none>", "a.b", "<none>", "12s", "<none>"]),
        ),
        (
            "v1",
            "PersistentVolume",
            json!({"metadata": {"name": "g4pv"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "g4", "name": "pvc"}, "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}}),
            json!(["g4pv", "1Gi", "RWO", "Retain", "Bound", "g4/pvc", "", "<unset>", "", "12s", "Filesystem"]),
        ),
        (
            "batch/v1",
            "Job",
            json!({"metadata": {"name": "j"}, "spec": {"completions": 1, "parallelism": 1, "template": {"spec": {"containers": [{"name": "c", "image": "busybox"}]}}, "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}}, "status": {"conditions": [{"type": "Suspended", "status": "True"}]}}),
            json!(["j", "Suspended", "0/1", "", "12s", "c", "busybox", "batch.kubernetes.io/controller-uid=u"]),
        ),
        (
            "batch/v1",
            "CronJob",
            json!({"metadata": {"name": "cj"}, "spec": {"schedule": "0 0 1 1 *", "suspend": false, "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox"}]}}}}}, "status": {}}),
            json!(["cj", "0 0 1 1 *", "<none>", "False", 0, "<none>", "12s", "c", "busybox", "<none>"]),
        ),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"metadata": {"name": "h2"}, "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3, "metrics": [cpu]}, "status": {"currentMetrics": null}}),
            json!(["h2", "Deployment/d", "cpu: <unknown>/80%", "1", 3, 0, "12s"]),
        ),
        (
            "autoscaling/v1",
            "HorizontalPodAutoscaler",
            json!({"metadata": {"name": "h1"}, "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            json!(["h1", "Deployment/d", "cpu: <unknown>/50%", "1", 3, 0, "12s"]),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"metadata": {"name": "es"}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.1.1"]}]}),
            json!(["es", "IPv4", "80", "10.1.1.1", "12s"]),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"metadata": {"name": "s1-q7wdn"}, "addressType": "IPv4", "ports": null, "endpoints": null}),
            json!(["s1-q7wdn", "IPv4", "<unset>", "<unset>", "12s"]),
        ),
        (
            "v1",
            "ResourceQuota",
            json!({"metadata": {"name": "rq"}, "status": {"hard": {"pods": "3", "configmaps": "5"}, "used": {"pods": "0", "configmaps": "5"}}}),
            json!(["rq", "configmaps: 5/5, pods: 0/3", "", "12s"]),
        ),
        (
            "v1",
            "Secret",
            json!({"metadata": {"name": "se"}, "type": "Opaque", "data": {"a": "Yg=="}}),
            json!(["se", "Opaque", 1, "12s"]),
        ),
        (
            "coordination.k8s.io/v1",
            "Lease",
            json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}}),
            json!(["l", "x", "12s"]),
        ),
        (
            "v1",
            "Node",
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.2"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
            json!([
                "n",
                "Ready,SchedulingDisabled",
                "control-plane",
                "12s",
                "v1.36.2",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        ),
        (
            "events.k8s.io/v1",
            "Event",
            json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "note": "m ", "reason": "R", "type": "Normal", "eventTime": "2026-11-23T01:13:18.000000Z", "reportingController": "kubelet", "reportingInstance": "n"}),
            json!(["60s", "Normal", "R", "pod/p", "", "kubelet, n", "m", "60s", 1, "e"]),
        ),
    ];
    for (api_version, kind, object, expected) in cases {
        assert_eq!(cells_of(api_version, kind, object), expected, "{kind}");
    }
}

/// READY, STATUS and RESTARTS of a pod with two containers, an init container and a sidecar.
fn pod_summary(status: Value, metadata: Value) -> (String, String, String) {
    let spec = json!({
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    });
    let cells = cells_of("v1", "Pod", json!({"metadata": metadata, "spec": spec, "status": status}));
    let text = |place: usize| cells[place].as_str().unwrap_or_default().to_owned();
    (text(1), text(2), text(3))
}

#[test]
fn a_pod_is_one_word() {
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let sidecar = json!({"name": "s", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}});
    let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
    let ended = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let looping = json!({"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-11-23T01:09:18Z"}}});
    let ready = json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]);
    let cases = [
        (json!({"phase": "Pending"}), "0/3", "Pending", "0"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/3",
            "SchedulingGated",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
            "0/3",
            "Init:0/2",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
            "0/3",
            "Init:ImagePullBackOff",
            "0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 3}}}]}),
            "0/3",
            "Init:ExitCode:3",
            "2",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [done, sidecar], "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
            "1/3",
            "ContainerCreating",
            "1",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": [done, sidecar], "containerStatuses": [running, looping], "conditions": ready}),
            "2/3",
            "CrashLoopBackOff",
            "4 (5m ago)",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running, ended], "conditions": ready}),
            "1/3",
            "Running",
            "0",
        ),
        (json!({"phase": "Running", "containerStatuses": [running, ended]}), "1/3", "NotReady", "0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/3", "Evicted", "0"),
        (
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            "0/3",
            "Signal:9",
            "0",
        ),
    ];
    for (status, ready, reason, restarts) in cases {
        let expected = (ready.to_owned(), reason.to_owned(), restarts.to_owned());
        assert_eq!(pod_summary(status.clone(), json!({"name": "p"})), expected, "{status}");
    }
    let deleted = json!({"name": "p", "deletionTimestamp": "2026-11-23T01:14:07Z"});
    assert_eq!(pod_summary(json!({"phase": "Running"}), deleted.clone()).1, "Terminating");
    assert_eq!(pod_summary(json!({"phase": "Succeeded"}), deleted.clone()).1, "Succeeded");
    assert_eq!(pod_summary(json!({"phase": "Running", "reason": "NodeLost"}), deleted).1, "Unknown");
}
