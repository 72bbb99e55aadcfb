use super::*;
use crate::api::object::ObjectExt;

/// One line per resource and subresource, as `tests/data/discovery.txt` has them.
fn discovery_lines(row: &Kind) -> Vec<String> {
    let scope = if row.namespaced { "Namespaced" } else { "Cluster" };
    let join = |texts: &[Text]| texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(" ");
    let (verbs, short, categories) = (join(&row.verbs), join(&row.short_names), join(&row.categories));
    let mut lines = vec![format!("{}|{}|{}|{scope}|{verbs}|{short}|{categories}|", row.plural, row.singular, row.kind)];
    for sub in row.subresources.iter() {
        let version = format!("{}/{}", sub.group, sub.version);
        let version = version.trim_matches('/');
        lines.push(format!("{}/{}||{}|{scope}|{}|||{version}", row.plural, sub.name, sub.kind, join(&sub.verbs)));
    }
    lines
}

#[test]
fn discovery_equals_the_recorded_one() {
    let mut ours = Vec::new();
    for row in builtin() {
        let heading = format!("# {}", row.api_version());
        if !ours.contains(&heading) {
            ours.push(heading);
        }
        ours.extend(discovery_lines(row));
    }
    let recorded = include_str!("../../../tests/data/discovery.txt");
    let recorded: Vec<&str> = recorded.lines().filter(|line| !line.starts_with("##")).collect();
    for (ours, recorded) in ours.iter().zip(&recorded) {
        assert_eq!(ours, recorded);
    }
    assert_eq!(ours.len(), recorded.len());
}

#[test]
fn a_row_is_found_by_resource_and_by_kind() {
    let kinds = Kinds::default();
    for row in builtin() {
        let by_resource = kinds.resource(&row.group, &row.version, &row.plural).expect("served");
        let by_kind = kinds.kind(&row.api_version(), &row.kind).expect("served");
        assert_eq!((&by_resource.kind, &by_kind.plural), (&row.kind, &row.plural));
    }
    assert!(kinds.resource("", "v1", "deployments").is_none());
    assert!(kinds.kind("apps/v1", "Pod").is_none());
}

#[test]
fn versions_of_a_kind_share_a_store_prefix_only_when_one_converts() {
    for (place, row) in builtin().iter().enumerate() {
        let stores_itself = row.storage_version == row.api_version();
        assert_eq!(stores_itself, row.convert.is_none(), "{} {}", row.api_version(), row.kind);
        let mut others = builtin()[..place].iter().filter(|other| other.storage_prefix == row.storage_prefix);
        assert!(others.all(|other| row.storage_version == other.storage_version), "{}", row.storage_prefix);
    }
}

#[test]
fn columns_equal_the_recorded_ones() {
    let recorded = include_str!("../../../tests/data/columns.txt");
    for line in recorded.lines().filter(|line| !line.starts_with("##")) {
        let (resource, columns) = line.split_once(": ").expect("group/version/resource: columns");
        let parts: Vec<&str> = resource.split('/').collect();
        let group = if parts[0] == "core" { "" } else { parts[0] };
        let row = Kinds::default().resource(group, parts[1], parts[2]).expect("served");
        let shown = |column: &Column| {
            let wide = if column.priority == 1 { "(wide)" } else { "" };
            format!("{}{wide}", column.name.to_uppercase())
        };
        let ours: Vec<String> = row.columns.iter().map(shown).collect();
        assert_eq!(ours.join(" | "), columns, "{resource}");
    }
}

#[test]
fn every_printer_fills_its_columns() {
    let (empty, now) = (serde_json::json!({}), Timestamp::UNIX_EPOCH);
    for row in builtin() {
        assert_eq!((row.cells)(&empty, now).len(), row.columns.len(), "{} {}", row.api_version(), row.kind);
    }
}

/// What the registry does to a new object: defaults from data, hooks, validation.
fn created(mut object: Object) -> Result<Object, crate::api::status::Status> {
    use crate::api::status::{Status, Subject};
    use crate::api::{scheme, validation};

    let kind = Kinds::default().kind(object.api_version(), object.kind()).expect("a built-in kind");
    let schema = scheme::find(&kind.schema).expect("built-in kinds are in the scheme");
    scheme::prune(schema, &mut object);
    scheme::apply_defaults(schema, &mut object);
    kind.strategy.default(&mut object);
    if kind.namespaced && object.namespace().is_empty() {
        object.set(&["metadata", "namespace"], "g4".into());
    }
    object.set(&["metadata", "uid"], "UID".into());
    let now = "2026-11-23T01:14:06Z".parse().expect("a time");
    let context = HookContext { now, user: "admin", subresource: "" };
    kind.strategy.prepare_create(&context, &mut object);
    let mut errors = validation::metadata(&kind, &object);
    errors.extend(kind.strategy.validate(&context, &object));
    errors.extend(kind.strategy.validate_create(&context, &object));
    if errors.is_empty() {
        return Ok(object);
    }
    Err(Status::invalid(Subject { group: &kind.group, kind: &kind.kind, name: object.name() }, errors))
}

#[test]
fn created_objects_equal_the_recorded_ones() {
    #[derive(serde::Deserialize)]
    struct Recorded {
        recorded: String,
        /// Whether the answer had `metadata.generation`.
        generation: bool,
        sent: Object,
        answered: Object,
    }
    let cases: Vec<Recorded> =
        serde_json::from_str(include_str!("../../../tests/data/kinds/created.json")).expect("test data");
    let mut wrong = Vec::new();
    for case in cases {
        let kind = Kinds::default().kind(case.sent.api_version(), case.sent.kind()).expect("a built-in kind");
        if kind.strategy.has_generation() != case.generation {
            wrong.push(format!("{}: generation {}", case.recorded, case.generation));
        }
        let mut object = created(case.sent).unwrap_or_else(|status| panic!("{}: {status}", case.recorded));
        for field in ["uid", "namespace"] {
            object.unset(&["metadata", field]);
        }
        if object != case.answered {
            wrong.push(format!("{}:\n  ours     {object}\n  recorded {}", case.recorded, case.answered));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn invalid_objects_are_answered_as_recorded() {
    #[derive(serde::Deserialize)]
    struct Recorded {
        recorded: String,
        sent: Object,
        message: String,
        causes: Vec<crate::api::status::Cause>,
    }
    let cases: Vec<Recorded> =
        serde_json::from_str(include_str!("../../../tests/data/kinds/invalid.json")).expect("test data");
    for case in cases {
        let status = created(case.sent).expect_err(&case.recorded);
        assert_eq!(status.message, case.message, "{}", case.recorded);
        assert_eq!(status.details.map(|details| details.causes), Some(case.causes), "{}", case.recorded);
    }
}

/// What the registry does to a changed object; the first error.
fn updated(api_version: &str, kind: &str, mut new: Object, old: &Object) -> (Object, String) {
    let kind = Kinds::default().kind(api_version, kind).expect("a built-in kind");
    let context = HookContext { now: Timestamp::UNIX_EPOCH, user: "admin", subresource: "" };
    kind.strategy.default(&mut new);
    kind.strategy.prepare_update(&context, &mut new, old);
    let errors = kind.strategy.validate_update(&context, &new, old);
    let first = errors.first().map(ToString::to_string).unwrap_or_default();
    (new, first)
}

#[test]
fn updates_of_what_is_fixed_are_refused_as_recorded() {
    use serde_json::json;

    let labels = |value: &str| json!({"spec": {"selector": {"matchLabels": {"app": value}}}});
    let role = |name: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}});
    let config = |text: &str| json!({"immutable": true, "data": {"a": text}});
    let cases = [
        (
            "apps/v1",
            "Deployment",
            labels("z"),
            labels("x"),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"z\"}}: field is immutable",
        ),
        ("apps/v1", "ReplicaSet", labels("x"), labels("x"), ""),
        (
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            role("zz"),
            role("a"),
            "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"zz\"}: cannot change roleRef",
        ),
        ("v1", "ConfigMap", config("2"), config("1"), "data: Forbidden: field is immutable when `immutable` is set"),
        (
            "v1",
            "ConfigMap",
            json!({"data": {"a": "1"}}),
            config("1"),
            "immutable: Forbidden: field is immutable when `immutable` is set",
        ),
        ("v1", "Secret", json!({"type": "b"}), json!({"type": "a"}), "type: Invalid value: \"b\": field is immutable"),
        (
            "v1",
            "Node",
            json!({"spec": {"podCIDRs": ["10.0.1.0/24"]}}),
            json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            "v1",
            "Service",
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}}),
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}}),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: primary clusterIP can not be changed",
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv6"}),
            json!({"addressType": "IPv4"}),
            "addressType: Invalid value: \"IPv6\": field is immutable",
        ),
    ];
    for (api_version, kind, new, old, expected) in cases {
        assert_eq!(updated(api_version, kind, new, &old).1, expected, "{kind}");
    }
}

#[test]
fn a_service_keeps_what_it_was_given() {
    use serde_json::json;

    let old = json!({"spec": {
        "type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "externalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    }});
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let (new, error) = updated("v1", "Service", json!({"spec": {"type": "NodePort", "ports": ports}}), &old);
    assert_eq!((error.as_str(), &new["spec"]["clusterIPs"]), ("", &json!(["10.0.0.1"])));
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
    let mut changed = old.clone();
    changed["spec"]["type"] = "ClusterIP".into();
    let (new, _) = updated("v1", "Service", changed.clone(), &old);
    assert_eq!((new["spec"]["ports"][0].get("nodePort"), new["spec"].get("externalTrafficPolicy")), (None, None));
    changed["spec"]["type"] = "ExternalName".into();
    let (new, error) = updated("v1", "Service", changed, &old);
    assert_eq!((error.as_str(), new["spec"].get("clusterIP"), new["spec"].get("clusterIPs")), ("", None, None));
}

#[test]
fn namespaces_carry_their_name_and_their_finalizer() {
    let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    let namespace = created(object).expect("valid");
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");
    assert_eq!(namespace["spec"]["finalizers"][0], "kubernetes");
    assert_eq!(namespace["status"]["phase"], "Active");
}

#[test]
fn more_objects_are_refused_in_upstreams_words() {
    use serde_json::json;

    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec});
    let secret = |kind: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": kind});
    let slice = |address: &str| json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": [address]}]});
    let cases = [
        (service(json!({"ports": [{"port": 1}, {"port": 2}]})), "spec.ports[0].name: Required value"),
        (
            service(json!({"ports": [{"port": 0}]})),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            service(json!({"ports": [{"port": 1, "nodePort": 30000}]})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            service(json!({"ports": [{"port": 1}], "externalTrafficPolicy": "Local"})),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            service(json!({"ports": [{"port": 1}], "healthCheckNodePort": 70000})),
            "spec.healthCheckNodePort: Invalid value: 70000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            service(
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 1}], "healthCheckNodePort": 70000}),
            ),
            "spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            service(json!({"ports": [{"port": 1}], "loadBalancerSourceRanges": ["10.0.0.0/8"]})),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (service(json!({"type": "ExternalName"})), "spec.externalName: Required value"),
        (
            service(json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]})),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            service(json!({"clusterIP": "x", "ports": [{"port": 1}]})),
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (secret("kubernetes.io/tls"), "data[tls.crt]: Required value"),
        (secret("kubernetes.io/dockerconfigjson"), "data[.dockerconfigjson]: Required value"),
        (
            slice("127.0.0.1"),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"namespace": "x"}}),
            "involvedObject.namespace: Invalid value: \"x\": does not match event.namespace",
        ),
        (
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "X"}]}}),
            "spec.taints[0].effect: Unsupported value: \"X\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
        ),
    ];
    for (object, expected) in cases {
        let status = created(object.clone()).expect_err("invalid");
        let first = status.details.and_then(|details| details.causes.into_iter().next()).expect("a cause");
        assert_eq!(format!("{}: {}", first.field, first.message), expected, "{object}");
    }
}
