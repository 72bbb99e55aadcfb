//! DaemonSets with their history, and a drain that a budget holds up, as kubectl does them.

use crate::harness::{self, Board};
use std::path::Path;

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, annotations: {kubernetes.io/change-cause: first}}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: agent, image: localhost/busybox:v1, command: [sleep, "100000"]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: localhost/busybox:v1, command: [sleep, "100000"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
"#;

fn daemons(board: &Board, kubectl: &Path) {
    let run = |arguments: &[&str]| board.kubectl(kubectl, arguments);
    // A kubectl that knows of no policy/v1 finds the budget by discovery all the same.
    board.apply(kubectl, MANIFEST);
    run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    run(&["set", "image", "daemonset/agent", "agent=localhost/busybox:v2"]);
    run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let history = run(&["rollout", "history", "daemonset/agent"]);
    assert!(history.contains("first") && history.contains('2'), "{history}");
    let first = run(&["rollout", "history", "daemonset/agent", "--revision=1"]);
    assert!(first.contains("localhost/busybox:v1"), "{first}");
    run(&["rollout", "undo", "daemonset/agent"]);
    run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let image = run(&["get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
    assert_eq!(image, "localhost/busybox:v1");
    assert!(run(&["describe", "daemonset", "agent"]).contains("SuccessfulCreate"));
    assert!(run(&["get", "daemonsets"]).contains("agent"));
}

fn drain(board: &Board, kubectl: &Path) {
    let run = |arguments: &[&str]| board.kubectl(kubectl, arguments);
    let node = run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let drain = ["drain", &node, "--ignore-daemonsets", "--force", "--timeout=6s"];
    let held = board.kubectl_output(kubectl, &drain, "");
    let told = String::from_utf8_lossy(&held.stderr).into_owned();
    assert!(!held.status.success(), "the budget holds: {told}");
    assert!(told.contains("Cannot evict pod as it would violate the pod's disruption budget"), "{told}");
    assert!(run(&["get", "nodes"]).contains("SchedulingDisabled"));
    run(&["patch", "poddisruptionbudget", "web", "--type=merge", "-p", r#"{"spec":{"minAvailable":0}}"#]);
    run(&["drain", &node, "--ignore-daemonsets", "--force", "--timeout=60s"]);
    let waiting = || run(&["get", "pods", "-l", "app=web", "--no-headers"]).matches("Pending").count();
    board.until("the replacements wait", || waiting() == 2);
    let agents = run(&["get", "pods", "-l", "app=agent", "--no-headers"]);
    assert!(agents.contains("Running"), "daemons stay: {agents}");
    run(&["uncordon", &node]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

fn story(name: &str, tool: &str) {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool(tool) else { return };
    let board = crate::board(name);
    daemons(&board, &kubectl);
    drain(&board, &kubectl);
    board.kubectl(&kubectl, &["delete", "daemonset,deployment,pdb", "--all", "--timeout=60s"]);
    board.kubectl(&kubectl, &["delete", "pods", "--all", "--timeout=60s"]);
    board.until("every shim has ended", || board.shims().is_empty());
    board.end();
}

#[test]
fn kubectl_1_20_updates_daemons_and_drains() {
    story("drain-old", "kubectl-1.20");
}

#[test]
fn the_newest_kubectl_updates_daemons_and_drains() {
    story("drain-new", "kubectl-1.37");
}
