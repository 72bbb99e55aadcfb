use super::*;
use crate::api::kinds::Kinds;
use crate::api::status::{Status, Subject};
use serde_json::json;

/// The message of the `Status` that the errors make.
fn message(api_version: &str, kind: &str, object: &Object, update_of: Option<&Object>) -> String {
    let row = Kinds::default().kind(api_version, kind).expect("a built-in kind");
    let errors = match update_of {
        Some(old) => metadata_update(&row, object, old),
        None => metadata(&row, object),
    };
    Status::invalid(Subject { group: &row.group, kind, name: object.name() }, errors).message
}

#[test]
fn wrong_names_and_labels_are_answered_as_recorded() {
    let name = json!({"metadata": {"name": "Bad_Name", "namespace": "g1"}});
    assert_eq!(
        message("v1", "ConfigMap", &name, None),
        "ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    );
    let label =
        json!({"metadata": {"name": "lb", "namespace": "g4", "labels": {"a b": "c"}, "annotations": {"!": "x"}}});
    let shape = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    assert_eq!(
        message("v1", "ConfigMap", &label, None),
        format!(
            "ConfigMap \"lb\" is invalid: [metadata.labels: Invalid value: \"a b\": {shape}, metadata.annotations: Invalid value: \"!\": {shape}]"
        )
    );
}

#[test]
fn scope_and_prefix_are_checked() {
    let fields = |api_version, kind, object: Value| {
        let row = Kinds::default().kind(api_version, kind).expect("a built-in kind");
        metadata(&row, &object).into_iter().map(|error| error.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        fields("v1", "Pod", json!({"metadata": {"namespace": "a"}})),
        ["metadata.name: Required value: name or generateName is required"]
    );
    assert!(
        fields("v1", "Pod", json!({"metadata": {"name": "a-x", "generateName": "a-", "namespace": "a"}})).is_empty()
    );
    assert_eq!(
        fields("v1", "Node", json!({"metadata": {"name": "a", "namespace": "a"}})),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
    assert!(
        fields("rbac.authorization.k8s.io/v1", "ClusterRole", json!({"metadata": {"name": "system:a"}})).is_empty()
    );
}

#[test]
fn an_update_keeps_the_identity_and_adds_no_finalizer_while_deleting() {
    let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "1", "deletionTimestamp": "t"}});
    let mut new = old.clone();
    assert_eq!(message("v1", "ConfigMap", &new, Some(&old)), "ConfigMap \"a\" is invalid");
    new.set(&["metadata", "finalizers"], json!(["x.io/y"]));
    assert_eq!(
        message("v1", "ConfigMap", &new, Some(&old)),
        "ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x.io/y\"}"
    );
    let moved = json!({"metadata": {"name": "a", "namespace": "n", "uid": "2", "deletionTimestamp": "t"}});
    assert_eq!(
        message("v1", "ConfigMap", &moved, Some(&old)),
        "ConfigMap \"a\" is invalid: metadata.uid: Invalid value: \"2\": field is immutable"
    );
}

#[test]
fn selectors_are_checked_by_operator() {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
        {"key": "a", "operator": "In"}, {"key": "b", "operator": "Exists", "values": ["x"]},
        {"key": "c", "operator": "Equals", "values": ["x"]}, {"key": "d", "operator": "In", "values": ["x y"]},
    ]});
    let mut errors = Vec::new();
    label_selector(&selector, &Path::Root("spec.selector"), &mut errors);
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.selector.matchExpressions[0].values",
            "spec.selector.matchExpressions[1].values",
            "spec.selector.matchExpressions[2].operator",
            "spec.selector.matchExpressions[3].values[0]",
        ]
    );
}

#[test]
fn empty_and_absent_are_the_same() {
    assert!(same(Some(&json!({"a": [], "b": {"c": null}})), None));
    assert!(same(Some(&json!({"a": 1, "b": ""})), Some(&json!({"a": 1}))));
    assert!(!same(Some(&json!({"a": 0})), Some(&json!({}))));
}
