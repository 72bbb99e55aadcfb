//! The server's board is lost; another one, restored from the backup, takes the fleet over. No node is touched.

use crate::bed::{Bed, IMAGE, SERVER_IP, can_run};
use serde_json::Value;

fn pod(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: a
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: "{IMAGE}", command: [sh, -c, "echo begun; exec sleep 10000"]}}
"#
    )
}

fn started(pod: &Value) -> (Value, Value, Value) {
    let container = &pod["status"]["containerStatuses"][0];
    (pod["metadata"]["uid"].clone(), container["containerID"].clone(), container["restartCount"].clone())
}

#[test]
fn a_board_restored_from_the_backup_takes_the_fleet_over_and_no_pod_is_started_again() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("takeover");
    bed.add("a", "192.0.2.2");
    let token = bed.must(&["token", "create", "--uses", "1"]);
    let server = format!("https://{SERVER_IP}:6443");
    bed.node("a").start(&["join", &server, "--token", token.trim(), "--foreground"]);
    bed.until("the node is Ready", |bed| bed.ready("a") == "True");
    bed.apply(&pod("old"));
    bed.until("the pod runs", |bed| bed.get(&["pod", "old"])["status"]["phase"] == "Running");
    let before = started(&bed.get(&["pod", "old"]));

    let (data, file) = (bed.server.data(), bed.server.directory.join("server.backup"));
    let [data_text, file_text] = [&data, &file].map(|path| path.to_str().unwrap().to_owned());
    bed.must(&["backup", &file_text, "--data-dir", &data_text]);
    bed.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: after-the-backup}}");
    bed.server.cut_power();
    std::fs::remove_dir_all(&data).unwrap();
    bed.must(&["restore", &file_text, "--data-dir", &data_text]);
    bed.start_server();

    let inside = |bed: &Bed, pod: &str| bed.edgelet(&["exec", pod, "--", "echo", "inside"]).stdout == b"inside\n";
    let waited = bed.until("exec reaches the node again", |bed| inside(bed, "old"));
    eprintln!("the node is back {waited:?} after the new server answers");
    bed.until("the node is Ready", |bed| bed.ready("a") == "True");
    bed.apply(&pod("new"));
    bed.until("the node takes orders", |bed| bed.get(&["pod", "new"])["status"]["phase"] == "Running");
    assert_eq!(started(&bed.get(&["pod", "old"])), before, "the same container\n{}", bed.scene());
    assert!(!bed.edgelet(&["get", "configmap", "after-the-backup"]).status.success());
}
