use super::*;
use crate::api::scheme;
use jiff::Timestamp;

fn context(subresource: &str) -> HookContext<'_> {
    HookContext { now: Timestamp::UNIX_EPOCH, user: "admin", subresource }
}

/// A valid pod with defaults.
fn pod() -> Object {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {
            "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "image": "busybox:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        },
    });
    default(&mut pod);
    pod
}

fn default(pod: &mut Object) {
    scheme::apply_defaults(scheme::find("io.k8s.api.core.v1.Pod").expect("pods"), pod);
    PodStrategy.default(pod);
}

/// The errors of a pod with `part` merged over the first container, or over the spec.
fn problems(place: &str, part: Value) -> Vec<String> {
    let mut pod = pod();
    let target = pod.pointer_mut(place).expect("a part of the pod");
    for (field, value) in part.as_object().expect("fields") {
        target.set(&[field], value.clone());
    }
    default(&mut pod);
    let mut errors = PodStrategy.validate(&context(""), &pod);
    errors.extend(PodStrategy.validate_create(&context(""), &pod));
    errors.iter().map(ToString::to_string).collect()
}

const CONTAINER: &str = "/spec/containers/0";

#[test]
fn a_plain_pod_is_valid() {
    assert_eq!(problems("/spec", json!({})), Vec::<String>::new());
}

#[test]
fn proc_is_unmasked_only_where_root_is_nobody_on_the_host() {
    let unmasked = json!({"securityContext": {"procMount": "Unmasked"}});
    let refusal = "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be \
        false to use `Unmasked`";
    assert_eq!(problems(CONTAINER, unmasked.clone()), [refusal]);
    let mut container = pod()["spec"]["containers"][0].clone();
    container.set(&["securityContext"], unmasked["securityContext"].clone());
    let spec = json!({"hostUsers": false, "containers": [container]});
    assert_eq!(problems("/spec", spec), Vec::<String>::new());
}

#[test]
fn containers_are_refused_in_upstreams_words() {
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let name = format!("spec.containers[0].name: Invalid value: \"A\": {label}");
    let cases = [
        (json!({"name": ""}), "spec.containers[0].name: Required value"),
        (json!({"name": "A"}), name.as_str()),
        (json!({"image": ""}), "spec.containers[0].image: Required value"),
        (
            json!({"image": " a"}),
            "spec.containers[0].image: Invalid value: \" a\": must not have leading or trailing whitespace",
        ),
        (
            json!({"imagePullPolicy": "Sometimes"}),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (json!({"ports": [{"containerPort": 0}]}), "spec.containers[0].ports[0].containerPort: Required value"),
        (
            json!({"ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"containerPort": 1, "protocol": "X"}]}),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"name": "a", "containerPort": 1}, {"name": "a", "containerPort": 2}]}),
            "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"containerPort": 1, "hostPort": 8}, {"containerPort": 2, "hostPort": 8}]}),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//8\"",
        ),
        (json!({"env": [{"name": ""}]}), "spec.containers[0].env[0].name: Required value"),
        (
            json!({"env": [{"name": "a=b"}]}),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ),
        (
            json!({"env": [{"name": "a", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.bogus"}}}]}),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.bogus\": error converting fieldPath: field label not supported: spec.bogus",
        ),
        (
            json!({"volumeMounts": [{"name": "w", "mountPath": "/w"}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]}),
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "../x"}]}),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"resources": {"limits": {"cpu": "-1"}}}),
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            json!({"resources": {"limits": {"bogus": "1"}}}),
            "spec.containers[0].resources.limits[bogus]: Invalid value: \"bogus\": must be a standard resource for containers",
        ),
        (json!({"livenessProbe": {}}), "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
        (
            json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}}),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"readinessProbe": {"tcpSocket": {"port": "http-"}}}),
            "spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: \"http-\": must not begin or end with a hyphen",
        ),
        (
            json!({"lifecycle": {"preStop": {"exec": {}, "sleep": {"seconds": 1}}}}),
            "spec.containers[0].lifecycle.preStop.exec.command: Required value",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ),
    ];
    for (part, expected) in cases {
        let found = problems(CONTAINER, part.clone());
        assert!(found.first().is_some_and(|first| first == expected), "{part}: {found:#?}");
    }
}

#[test]
fn specs_are_refused_in_upstreams_words() {
    let volume = |source: Value| json!({"volumes": [{"name": "v"}, source]});
    let cases = [
        (json!({"containers": []}), "spec.containers: Required value"),
        (
            json!({"restartPolicy": "Maybe"}),
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            json!({"dnsPolicy": "None"}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            json!({"initContainers": [{"name": "c", "image": "i"}]}),
            "spec.initContainers[0].name: Duplicate value: \"c\"",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ),
        (
            json!({"tolerations": [{"operator": "Equal"}]}),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ),
        (
            json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}]}),
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "k"}}]}}}),
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        ),
        (
            json!({"hostPID": true, "shareProcessNamespace": true}),
            "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            json!({"schedulingGates": [{"name": "a"}], "nodeName": "n"}),
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
        (volume(json!({"name": "v"})), "spec.volumes[1].name: Duplicate value: \"v\""),
        (
            volume(json!({"name": "w", "emptyDir": {}, "hostPath": {"path": "/x"}})),
            "spec.volumes[1].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (volume(json!({"name": "w", "secret": {}})), "spec.volumes[1].secret.secretName: Required value"),
        (
            volume(json!({"name": "w", "configMap": {"name": "c", "items": [{"key": "k", "path": "/a"}]}})),
            "spec.volumes[1].configMap.items[0].path: Invalid value: \"/a\": must be a relative path",
        ),
        (
            volume(json!({"name": "w", "hostPath": {"path": "/a/../b"}})),
            "spec.volumes[1].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
    ];
    for (part, expected) in cases {
        let found = problems("/spec", part.clone());
        assert!(found.first().is_some_and(|first| first == expected), "{part}: {found:#?}");
    }
}

#[test]
fn hosts_ports_follow_the_hosts_network() {
    let mut pod = pod();
    pod.set(&["spec", "hostNetwork"], true.into());
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]);
    default(&mut pod);
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    pod["spec"]["containers"][0]["ports"][0]["hostPort"] = 81.into();
    let errors = PodStrategy.validate(&context(""), &pod);
    assert_eq!(
        errors[0].to_string(),
        "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true"
    );
}

#[test]
fn quality_of_service_follows_requests_and_limits() {
    let both = json!({"cpu": "1", "memory": "1Gi"});
    let cases = [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "0"}}), "BestEffort"),
        (json!({"limits": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": both}), "Guaranteed"),
        (json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), "Guaranteed"),
        (json!({"limits": both, "requests": {"cpu": "500m"}}), "Burstable"),
    ];
    for (resources, class) in cases {
        let mut pod = pod();
        pod["spec"]["containers"][0]["resources"] = resources.clone();
        default(&mut pod);
        PodStrategy.prepare_create(&context(""), &mut pod);
        assert_eq!(pod["status"]["qosClass"], class, "{resources}");
    }
}

#[test]
fn an_update_changes_images_deadlines_and_tolerations_only() {
    let old = pod();
    let update = |change: fn(&mut Object)| {
        let mut new = old.clone();
        change(&mut new);
        let errors = PodStrategy.validate_update(&context(""), &new, &old);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(update(|pod| pod["spec"]["containers"][0]["image"] = "busybox:2".into()).is_empty());
    assert!(update(|pod| pod.set(&["spec", "activeDeadlineSeconds"], 5.into())).is_empty());
    assert!(update(|pod| pod.set(&["spec", "tolerations"], json!([{"operator": "Exists"}]))).is_empty());
    assert!(update(|pod| pod.set(&["metadata", "labels"], json!({"a": "b"}))).is_empty());
    assert_eq!(
        update(|pod| pod.set(&["spec", "hostNetwork"], true.into())),
        [
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        ]
    );
    let more = update(|pod| pod["spec"]["containers"].as_array_mut().expect("containers").push(json!({"name": "d"})));
    assert_eq!(more, ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
}

#[test]
fn ephemeral_containers_only_come() {
    let mut old = pod();
    old.set(&["spec", "ephemeralContainers"], json!([{"name": "e", "image": "i"}]));
    let context = context("ephemeralcontainers");
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"].as_array_mut().expect("a list").push(json!({"name": "f", "image": "i"}));
    assert!(PodStrategy.validate_update(&context, &new, &old).is_empty());
    new["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "j"}]);
    assert_eq!(PodStrategy.validate_update(&context, &new, &old)[0].field, "spec.ephemeralContainers");
}

#[test]
fn grace_ends_with_the_pod() {
    let grace = |spec: Value, phase: &str| PodStrategy.grace_s(&json!({"spec": spec, "status": {"phase": phase}}));
    let bound = json!({"nodeName": "n", "terminationGracePeriodSeconds": 30});
    assert_eq!(grace(bound.clone(), "Running"), Some(30));
    assert_eq!(grace(bound.clone(), "Succeeded"), Some(0));
    assert_eq!(grace(json!({"terminationGracePeriodSeconds": 30}), "Pending"), Some(0));
    assert_eq!(grace(json!({"nodeName": "n", "terminationGracePeriodSeconds": -1}), "Running"), Some(1));
}

#[test]
fn hidden_variables_are_warned_of() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["env"] = json!([{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]);
    assert_eq!(
        PodStrategy.warnings(&pod, None),
        ["spec.containers[0].env[1]: hides previous definition of \"a\", which may be dropped when using apply"]
    );
}
