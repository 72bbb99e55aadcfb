//! A server and its boards: joining, what runs where, and what a bad network does to it.

use crate::bed::{Bed, IMAGE, Machine, SERVER_IP, can_run};
use edgelet::clock::Clock;
use edgelet::pki::Pki;
use edgelet::pki::node_identity::NodeIdentity;
use std::process::Stdio;
use std::time::Duration;

/// Makes a board a node without asking it to join: its certificate is handed to it.
pub fn hand_over_identity(bed: &Bed, machine: &Machine) {
    let pki = Pki::open(&bed.server.data().join("pki"), "https://kubernetes.default.svc.cluster.local", Clock::real());
    let pki = pki.unwrap();
    let credentials = pki.issue_client(&format!("system:node:{}", machine.name), Some("system:nodes")).unwrap();
    let identity = NodeIdentity::new(&machine.data().join("node"));
    identity.store_authorities(&pki.ca_pem()).unwrap();
    std::fs::write(identity.directory().join("node.key"), &credentials.key_pem).unwrap();
    identity.store_certificate(&credentials.certificate_pem).unwrap();
    identity.store_server(&format!("https://{SERVER_IP}:6443")).unwrap();
}

fn pod(name: &str, node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: "{IMAGE}", command: [sh, -c, "echo hello from {node}; exec sleep 10000"]}}
"#
    )
}

pub const NODES_MAY_DO_ALL: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-nodes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]
"#;

#[test]
fn boards_on_the_lan_and_behind_a_router_run_pods_that_logs_and_exec_reach() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("fleet");
    bed.apply(NODES_MAY_DO_ALL);
    bed.add("a", "192.0.2.2");
    bed.add_behind_router("n");
    for name in ["a", "n"] {
        hand_over_identity(&bed, &bed.nodes[name]);
        bed.node(name).start(&["node"]);
    }
    for name in ["a", "n"] {
        let waited = bed.until(&format!("{name} is Ready"), |bed| bed.ready(name) == "True");
        eprintln!("{name} Ready after {waited:?}");
        bed.apply(&pod(&format!("on-{name}"), name));
    }
    for name in ["a", "n"] {
        let pod = format!("on-{name}");
        bed.until("the pod runs", |bed| bed.get(&["pod", &pod])["status"]["phase"] == "Running");
        bed.until("its log is there", |bed| !bed.must(&["logs", &pod]).is_empty());
        assert_eq!(bed.must(&["logs", &pod]), format!("hello from {name}\n"));
        assert_eq!(bed.must(&["exec", &pod, "--", "echo", "inside"]), "inside\n");
        let output = bed.edgelet(&["exec", &pod, "--", "sh", "-c", "exit 7"]);
        assert_eq!(output.status.code(), Some(7));
    }
    let _ = Stdio::null();
    let _ = Duration::ZERO;
}
