//! Other people's clients against the binary: kubectl, the oldest that is supported and the newest.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test ends at the first surprise"
)]

#[path = "compat/certificates.rs"]
mod certificates;
#[path = "compat/drain.rs"]
mod drain;
mod harness;
#[path = "compat/leftovers.rs"]
mod leftovers;
#[path = "compat/restore.rs"]
mod restore;
#[path = "compat/streaming.rs"]
mod streaming;
#[path = "compat/tty.rs"]
mod tty;

use harness::Board;
use std::path::Path;

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello-from-configmap}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: localhost/busybox:v1
        command: [sh, -c, 'cat /etc/tag > /www/index.html; echo "started with $GREETING"; exec httpd -f -p 8080 -h /www']
        env:
        - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        volumeMounts: [{name: keys, mountPath: /keys, readOnly: true}]
      volumes:
      - {name: keys, secret: {secretName: keys}}
"#;

fn board(name: &str) -> Board {
    let board = Board::start(name);
    board.busybox_image("localhost/busybox:v1");
    board.busybox_image("localhost/busybox:v2");
    board
}

/// The whole story that both versions tell the same way.
fn rollout(board: &Board, kubectl: &Path) {
    let run = |arguments: &[&str]| board.kubectl(kubectl, arguments);
    assert!(run(&["get", "nodes"]).contains("Ready"));
    let applied = board.apply(kubectl, MANIFEST);
    assert!(applied.contains("deployment.apps/web created"), "{applied}");
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = run(&["get", "pods", "-o", "wide", "-l", "app=web"]);
    assert_eq!(pods.matches("1/1     Running").count(), 3, "{pods}");

    let ip = run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let page = || board.curl(&format!("http://{ip}/"));
    board.until("the ClusterIP answers", || page() == "localhost/busybox:v1");

    assert!(board.apply(kubectl, MANIFEST).contains("deployment.apps/web unchanged"));
    run(&["scale", "deployment/web", "--replicas=2"]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    run(&["set", "image", "deployment/web", "web=localhost/busybox:v2"]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    board.until("the new version answers", || page() == "localhost/busybox:v2");
    run(&["rollout", "undo", "deployment/web"]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    board.until("the old version answers again", || page() == "localhost/busybox:v1");

    let count = || run(&["get", "pods", "-l", "app=web", "-o", "name"]).lines().count();
    board.until("old pods are gone", || count() == 2);
    let logs = run(&["logs", "-l", "app=web"]);
    assert!(logs.contains("started with hello-from-configmap"), "{logs}");
    let described = run(&["describe", "deployment", "web"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    assert!(run(&["describe", "pods", "-l", "app=web"]).contains("Started"));
    let explained = run(&["explain", "deployment.spec.strategy"]);
    assert!(explained.contains("rollingUpdate"), "{explained}");
    run(&["wait", "--for=condition=Available", "deployment/web", "--timeout=30s"]);
    let same = board.kubectl_output(kubectl, &["diff", "-f", "-"], &MANIFEST.replace("replicas: 3", "replicas: 2"));
    assert_eq!(
        same.status.code(),
        Some(0),
        "{}{}",
        String::from_utf8_lossy(&same.stdout),
        String::from_utf8_lossy(&same.stderr)
    );
    let changed = board.kubectl_output(kubectl, &["diff", "-f", "-"], MANIFEST);
    assert_eq!(changed.status.code(), Some(1), "{}", String::from_utf8_lossy(&changed.stderr));
    assert!(String::from_utf8_lossy(&changed.stdout).contains("+  replicas: 3"));
    assert!(run(&["api-resources"]).contains("endpointslices"));
}

fn delete(board: &Board, kubectl: &Path) {
    let output = board.kubectl_output(kubectl, &["delete", "--timeout=60s", "-f", "-"], MANIFEST);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    board.kubectl(kubectl, &["delete", "pods", "--all", "--timeout=60s"]);
    board.until("every shim has ended", || board.shims().is_empty());
}

#[test]
fn kubectl_1_20_rolls_a_deployment_out_and_back() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.20") else { return };
    let board = board("kubectl-old");
    rollout(&board, &kubectl);
    delete(&board, &kubectl);
    board.end();
}

#[test]
fn the_newest_kubectl_rolls_a_deployment_out_and_back_and_looks_inside() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let board = board("kubectl-new");
    rollout(&board, &kubectl);
    let run = |arguments: &[&str]| board.kubectl(&kubectl, arguments);
    let secret = run(&["exec", "deployment/web", "--", "cat", "/keys/token"]);
    assert_eq!(secret, "s3cret");
    let by_name = run(&["exec", "deployment/web", "--", "wget", "-qO-", "http://web/"]);
    assert_eq!(by_name, "localhost/busybox:v1");
    let full = run(&["exec", "deployment/web", "--", "wget", "-qO-", "http://web.default.svc.cluster.local/"]);
    assert_eq!(full, "localhost/busybox:v1");
    let failed = board.kubectl_output(&kubectl, &["exec", "deployment/web", "--", "sh", "-c", "exit 7"], "");
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    let echoed =
        board.kubectl_output(&kubectl, &["exec", "-i", "deployment/web", "--", "cat"], "through standard input");
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "through standard input");
    assert!(run(&["auth", "can-i", "create", "pods"]).contains("yes"));
    assert!(run(&["create", "token", "default"]).split('.').count() == 3);
    delete(&board, &kubectl);
    board.end();
}

/// `kill -9` of edgelet at random moments of rollouts: pods live on, nothing restarts, nothing leaks,
/// nothing acknowledged is lost. `EDGELET_KILLS` sets how often, `EDGELET_SEED` repeats a run.
#[test]
fn killed_at_random_moments_it_loses_nothing() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (kills, seed) = (number("EDGELET_KILLS", 3), number("EDGELET_SEED", u64::from(std::process::id())));
    eprintln!("EDGELET_SEED={seed} EDGELET_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut board = board("kill");
    board.apply(&kubectl, MANIFEST);
    board.kubectl(&kubectl, &["rollout", "status", "deployment/web", "--timeout=60s"]);
    for round in 0..kills {
        let image = if round % 2 == 0 { "web=localhost/busybox:v2" } else { "web=localhost/busybox:v1" };
        board.kubectl(&kubectl, &["set", "image", "deployment/web", image]);
        let acknowledged = format!("acknowledged-{round}");
        board.kubectl(&kubectl, &["create", "configmap", &acknowledged, "--from-literal=a=b"]);
        std::thread::sleep(std::time::Duration::from_millis(random.u64(0..1500)));
        let ready = board.kubectl(
            &kubectl,
            &[
                "get",
                "pods",
                "-o",
                "jsonpath={range .items[*]}{.metadata.uid}={.status.containerStatuses[0].ready} {end}",
            ],
        );
        let before = board.shims_by_pod();
        board.kill();
        board.boot();
        let after = board.shims_by_pod();
        // What was only starting may start again, and pods that the rollout gave up may end; whoever
        // was ready and is still wanted is the same process.
        let wanted = board.kubectl(
            &kubectl,
            &["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.uid}{.metadata.deletionTimestamp} {end}"],
        );
        for uid in wanted.split_whitespace() {
            let pid = before.get(uid).filter(|_| ready.contains(&format!("{uid}=true")));
            assert!(pid.is_none() || pid == after.get(uid), "round {round}: pod {uid} ended with the server");
        }
        board.kubectl(&kubectl, &["get", "configmap", &acknowledged]);
        board.kubectl(&kubectl, &["rollout", "status", "deployment/web", "--timeout=90s"]);
    }
    let restarts = board.kubectl(
        &kubectl,
        &["get", "pods", "-o", "jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount} {end}"],
    );
    assert!(restarts.split_whitespace().all(|count| count == "0"), "restarts: {restarts}");
    let want = 3;
    board.until("old pods are gone", || board.shims().len() == want);
    delete(&board, &kubectl);
    board.end();
}

/// SIGTERM and a new start: the same processes go on, and Services answer in between.
#[test]
fn pods_and_services_outlive_a_restart_of_the_server() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let mut board = board("restart");
    board.apply(&kubectl, MANIFEST);
    board.kubectl(&kubectl, &["rollout", "status", "deployment/web", "--timeout=60s"]);
    let ip = board.kubectl(&kubectl, &["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let page = format!("http://{ip}/");
    board.until("the ClusterIP answers", || board.curl(&page) == "localhost/busybox:v1");
    let before = board.shims();
    board.stop();
    assert_eq!(board.curl(&page), "localhost/busybox:v1", "the Service answers without the server");
    board.boot();
    board.kubectl(&kubectl, &["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(board.shims(), before, "the same pods go on");
    delete(&board, &kubectl);
    board.end();
}
