//! How long a pod takes, and what edgelet costs at rest, beside podman and runc in the same run.
//! Needs root; runs in a network namespace of its own. Prints a table; asserts nothing about time.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test ends at the first surprise"
)]

use edgelet::api::object::{Object, ObjectExt};
use edgelet::client::kubeconfig::Access;
use edgelet::client::{DEPLOYMENTS, PODS, Remote, WatchEvent};
use edgelet::network::resolve::Resolver;
use edgelet::registry::{DeleteOptions, ListOptions};
use edgelet::telemetry::Step;
use futures_util::StreamExt;
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "EDGELET_BENCH_INSIDE";
const PODS_IN_A_ROW: usize = 20;
const REPLICAS: usize = 50;
const IMAGE: &str = "localhost/bench:v1";
/// Time to settle before, and length of, the measurement at rest.
const SETTLE_S: u64 = 30;
const IDLE_S: u64 = 60;
const LIMIT: Duration = Duration::from_secs(120);

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return; // `cargo test --benches` asks; nothing is a test here.
    }
    if std::env::var_os(INSIDE).is_none() {
        let program = std::env::current_exe().unwrap();
        let error = Command::new("unshare").args(["--net", "--"]).arg(program).env(INSIDE, "1").exec();
        panic!("unshare: {error} (the benchmark needs root)");
    }
    for arguments in [["link", "set", "lo", "up"].as_slice(), &["addr", "add", "192.0.2.1/32", "dev", "lo"]] {
        assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bench = Bench::start().await;
    row("process start → API answers", &[bench.answered_ms]);
    bench.pod("first").await;
    row("process start → first pod Running", &[bench.begun.elapsed().as_secs_f64() * 1e3]);

    let mut running = Vec::new();
    for number in 0..PODS_IN_A_ROW {
        running.push(bench.pod(&format!("row-{number}")).await);
    }
    row("create → Running, 20 pods in a row", &running);
    let answer: Object = serde_json::from_slice(
        &bench.remote.raw(http::Method::GET, "/edgelet/v1/trace/default/row-10", None).await.unwrap(),
    )
    .unwrap();
    let steps: Vec<Step> = serde_json::from_value(answer["steps"].clone()).unwrap();
    for step in &steps {
        let since = (step.at - steps[0].at).total(jiff::Unit::Microsecond).unwrap() / 1e3;
        println!("    {since:>7.1} ms  {}: {}", step.room, step.what);
    }

    let ready = bench.deployment().await;
    row("Deployment of 50 → all Ready", &[ready]);
    bench.idle("at rest with 71 pods").await;
    bench.remove_pods().await;
    bench.idle("at rest without pods").await;
    peers(&bench.directory);
    bench.end();
}

struct Bench {
    directory: PathBuf,
    run: PathBuf,
    server: Child,
    remote: Remote,
    begun: Instant,
    answered_ms: f64,
}

impl Bench {
    async fn start() -> Self {
        let id = std::process::id();
        let directory = std::env::temp_dir().join(format!("edgelet-bench-{id}"));
        let run = PathBuf::from(format!("/run/edgelet-bench-{id}"));
        std::fs::create_dir_all(&directory).unwrap();
        let data = directory.join("data");
        let root = directory.join("image");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("install busybox-static");
        std::os::unix::fs::symlink("busybox", root.join("bin/sleep")).unwrap();
        let program = env!("CARGO_BIN_EXE_edgelet");
        let built = Command::new(program)
            .args(["image", "build", root.to_str().unwrap(), "--tag", IMAGE, "--data-dir", data.to_str().unwrap()])
            .args(["--", "/bin/sleep", "100000"])
            .status();
        assert!(built.unwrap().success());
        let log = std::fs::File::create(directory.join("server.log")).unwrap();
        let begun = Instant::now();
        let server = Command::new(program)
            .args(["server", "--config", "/dev/null", "--node-name", "bench", "--node-ip", "192.0.2.1"])
            .args(["--bridge", "edgebench0", "--cgroup-root", &format!("edgelet-bench-{id}")])
            .arg("--data-dir")
            .arg(&data)
            .arg("--run-dir")
            .arg(&run)
            .arg("--log-dir")
            .arg(directory.join("logs"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let kubeconfig = data.join("kubeconfig");
        let remote = loop {
            assert!(begun.elapsed() < LIMIT, "the API does not answer; see {}", directory.display());
            if let Ok(access) = Access::load(&kubeconfig, None) {
                let remote = Remote::new(access, Resolver::default()).unwrap();
                if remote.raw(http::Method::GET, "/readyz", None).await.is_ok() {
                    break remote;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let answered_ms = begun.elapsed().as_secs_f64() * 1e3;
        Self { directory, run, server, remote, begun, answered_ms }
    }

    /// Creates a pod and waits for `Running` by a watch; milliseconds.
    async fn pod(&self, name: &str) -> f64 {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": IMAGE}]}});
        let begun = Instant::now();
        self.remote.create(PODS, "default", pod).await.unwrap();
        let fields = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
        let mut watch = self.remote.watch(PODS, "default", &fields).await.unwrap();
        let wait = async {
            while let Some(event) = watch.next().await {
                if let WatchEvent::Added(item) | WatchEvent::Modified(item) = event.unwrap()
                    && item.object().unwrap().str_at(&["status", "phase"]) == "Running"
                {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the pod runs in time");
        begun.elapsed().as_secs_f64() * 1e3
    }

    async fn deployment(&self) -> f64 {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "fifty"}, "spec": {
            "replicas": REPLICAS, "selector": {"matchLabels": {"app": "fifty"}},
            "template": {"metadata": {"labels": {"app": "fifty"}}, "spec": {
                "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": IMAGE}]}}}});
        let begun = Instant::now();
        self.remote.create(DEPLOYMENTS, "default", deployment).await.unwrap();
        let mut watch = self.remote.watch(DEPLOYMENTS, "default", &ListOptions::default()).await.unwrap();
        let wait = async {
            while let Some(event) = watch.next().await {
                if let WatchEvent::Added(item) | WatchEvent::Modified(item) = event.unwrap()
                    && item.object().unwrap().int_at(&["status", "readyReplicas"]) == Some(REPLICAS as i64)
                {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("all replicas are ready in time");
        begun.elapsed().as_secs_f64() * 1e3
    }

    async fn remove_pods(&self) {
        let options = DeleteOptions::default();
        let _ = self.remote.delete(DEPLOYMENTS, "default", "fifty", &options).await;
        let all = "/api/v1/namespaces/default/pods";
        self.remote.raw(http::Method::DELETE, all, None).await.unwrap();
        let begun = Instant::now();
        while !self.shims().is_empty() {
            if begun.elapsed() > LIMIT {
                println!("    pods are still there after {} s", LIMIT.as_secs());
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        row("delete 71 pods", &[begun.elapsed().as_secs_f64() * 1e3]);
    }

    fn shims(&self) -> Vec<u32> {
        let cgroup = format!("edgelet-bench-{}", std::process::id());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if cmdline.contains(" shim ") && cmdline.contains(&format!("/{cgroup}/")) {
                found.push(pid);
            }
        }
        found
    }

    /// Memory, processor time and bytes written while nothing happens.
    async fn idle(&self, what: &str) {
        tokio::time::sleep(Duration::from_secs(SETTLE_S)).await;
        let pid = self.server.id();
        let (cpu, written) = (cpu_s(pid), written_bytes(pid));
        tokio::time::sleep(Duration::from_secs(IDLE_S)).await;
        let cpu_percent = (cpu_s(pid) - cpu) / IDLE_S as f64 * 100.0;
        let written = (written_bytes(pid) - written) * 60 / IDLE_S;
        println!(
            "{what}: PSS {:.1} MB, CPU {cpu_percent:.2} % of a core, {written} B written per minute",
            pss_kb(pid) / 1024.0
        );
        let shims: Vec<f64> = self.shims().into_iter().map(pss_kb).collect();
        if !shims.is_empty() {
            println!(
                "    {} shims, PSS {:.0} KB each on average",
                shims.len(),
                shims.iter().sum::<f64>() / shims.len() as f64
            );
        }
    }

    fn end(mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

fn pss_kb(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0.0)
}

fn cpu_s(pid: u32) -> f64 {
    let mut ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        ns += stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
    }
    ns / 1e9
}

fn written_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find(|line| line.starts_with("write_bytes:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// The same container by others, where they are installed.
fn peers(directory: &Path) {
    let timed = |commands: &mut dyn FnMut(usize) -> bool| {
        let mut times = Vec::new();
        for number in 0..10 {
            let begun = Instant::now();
            if !commands(number) {
                return Vec::new();
            }
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        times
    };
    let quiet = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let bundle = directory.join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    std::fs::copy("/bin/busybox", bundle.join("rootfs/bin/true")).unwrap();
    if quiet(Command::new("runc").arg("spec").arg("--bundle").arg(&bundle)) {
        let path = bundle.join("config.json");
        let mut spec: Object = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        spec.set(&["process", "args"], json!(["/bin/true"]));
        spec.set(&["process", "terminal"], json!(false));
        std::fs::write(&path, spec.to_string()).unwrap();
        let times = timed(&mut |number| {
            quiet(Command::new("runc").args(["run", "--bundle"]).arg(&bundle).arg(format!("bench-{number}")))
        });
        row("runc run and delete of one container", &times);
    }
    let tar = directory.join("podman.tar");
    let program = env!("CARGO_BIN_EXE_edgelet");
    let data = directory.join("data");
    let exported =
        quiet(Command::new(program).args(["image", "export"]).arg(&tar).arg(IMAGE).arg("--data-dir").arg(&data));
    let root = ["--runtime", "runc", "--root", &directory.join("podman").display().to_string()].map(str::to_owned);
    // Its own limits are above what a machine without CAP_SYS_RESOURCE may set.
    let settings = directory.join("containers.conf");
    std::fs::write(&settings, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n").unwrap();
    let podman = || {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", &settings).args(&root);
        command
    };
    if exported && quiet(podman().arg("load").arg("--input").arg(&tar)) {
        let manifest = directory.join("pod.yaml");
        let play = |number: usize| {
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: bench-{number}}}\nspec:\n  containers:\n  - {{name: c, image: '{IMAGE}', command: [/bin/sleep, '100000']}}\n"
            );
            std::fs::write(&manifest, pod).unwrap();
            quiet(podman().args(["kube", "play", "--network", "none"]).arg(&manifest))
                || quiet(podman().args(["play", "kube", "--network", "none"]).arg(&manifest))
        };
        row("podman play kube of one pod", &timed(&mut |number| play(number)));
        quiet(podman().args(["pod", "rm", "--force", "--time", "0", "--all"]));
    }
}

/// One line: the median and, of enough values, the 99th percentile.
fn row(what: &str, times_ms: &[f64]) {
    let mut sorted = times_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => println!("{what}: not measured"),
        [one] => println!("{what}: {one:.1} ms"),
        many => println!(
            "{what}: p50 {:.1} ms, p99 {:.1} ms, least {:.1} ms ({} times)",
            many[many.len() / 2],
            many[(many.len() * 99).div_ceil(100) - 1],
            many[0],
            many.len()
        ),
    }
}
