//! A board whose power was cut boots while its server is gone: the same pods, addresses, Services and names.

use crate::bed::{Bed, IMAGE, Machine, bounded, can_run, ok};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub const PODS: usize = 20;

#[test]
fn a_board_boots_its_pods_services_and_names_with_no_server() {
    if can_run() {
        let took = boot_without_server();
        eprintln!("{PODS} pods Ready {:.2} s after the start of edgelet, with no server", took.as_secs_f64());
    }
}

/// The whole story; how long the pods took to be Ready.
pub fn boot_without_server() -> Duration {
    let mut bed = Bed::new("power");
    bed.add("a", "192.0.2.2");
    crate::fleet::join(&mut bed, "a", &crate::fleet::server_url());
    bed.until("the node is Ready", |bed| bed.ready("a") == "True");
    bed.apply(&manifest());
    bed.until("all run", |bed| ready(&bed.get(&["pods"])).len() == PODS);
    let before = ready(&bed.get(&["pods"]));
    let service = bed.get(&["service", "web"])["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let page = |machine: &Machine| {
        let mut command = machine.namespace.run("curl");
        let output = command.args(["--silent", "--max-time", "2", &format!("http://{service}/")]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    bed.until("the Service answers", |bed| page(&bed.nodes["a"]) == "page\n");
    // What has changed just before may be lost: endpoints are written within ten seconds, all else within one.
    std::thread::sleep(Duration::from_secs(12));

    bed.switch.ip("link set port-server down");
    bed.server.kill();
    let a = bed.node("a");
    a.cut_power();
    let begun = Instant::now();
    a.start(&["node"]);
    let running = |machine: &Machine| -> BTreeMap<String, String> {
        let output = machine.local(&["get", "pods", "-A", "-o", "json"]);
        serde_json::from_slice(&output.stdout).map(|list: Value| ready(&list)).unwrap_or_default()
    };
    let up = bounded(Duration::from_secs(60), || running(a).len() == PODS);
    let took = begun.elapsed();
    assert!(up, "pods: {:?}\n{}", running(a), a.log());
    assert_eq!(running(a), before, "the same addresses");
    assert!(bounded(Duration::from_secs(10), || page(a) == "page\n"), "the Service answers\n{}", a.log());
    let name = ok(a.namespace.run("busybox").args(["nslookup", "web.default.svc.cluster.local", "10.43.0.10"]));
    assert!(name.contains(&service), "{name}");
    let log = String::from_utf8_lossy(&a.local(&["logs", "p0"]).stdout).into_owned();
    assert_eq!(log, "begun\n");
    let services = String::from_utf8_lossy(&a.local(&["get", "services"]).stdout).into_owned();
    assert!(services.contains("web") && services.contains(&service), "{services}");

    bed.switch.ip("link set port-server up");
    bed.start_server();
    let told = |pods: &Value| {
        let told = |pod: &&Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        pods["items"].as_array().unwrap().iter().filter(told).count() == PODS
    };
    bed.until("the server knows", |bed| told(&bed.get(&["pods"])));
    std::thread::sleep(Duration::from_secs(5));
    let pods = bed.get(&["pods"]);
    assert!(told(&pods) && ready(&pods) == before, "nothing healthy was started again\n{pods:#}");
    took
}

/// Name and address of each pod that is ready.
fn ready(list: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    };
    let pods = list["items"].as_array().into_iter().flatten().filter(is_ready);
    pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect()
}

fn manifest() -> String {
    let pod = |number: usize| {
        format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{name: p{number}, labels: {{app: web}}}}
spec:
  nodeName: a
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "{IMAGE}"
    command: [sh, -c, "echo begun; mkdir -p /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"]
    envFrom: [{{configMapRef: {{name: settings}}}}]
    volumeMounts: [{{name: word, mountPath: /word}}]
  volumes: [{{name: word, secret: {{secretName: word}}}}]
"#
        )
    };
    let objects = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {KEY: value}
---
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: secret}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;
    format!("{objects}{}", (0..PODS).map(pod).collect::<String>())
}
