//! What one server carries: hollow nodes (`edgelet::node::hollow`) that join over TLS, each with ten pods. Time to
//! join and to start, cost at rest, one change of a large Service, a server restarted and one killed, and a fleet that
//! comes back at once.
//! Needs root; runs in a network namespace of its own. Prints a table; asserts nothing about time.
//! `EDGELET_SCALE_STAGES=1,30,300` nodes, `EDGELET_SCALE_IDLE_S=60`, `EDGELET_SCALE_CUT_S=120`,
//! `EDGELET_SCALE_SERVER=PROGRAM`: another build's server, to compare with.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measurement ends at the first surprise"
)]

#[path = "scale/hollow.rs"]
mod hollow;

use edgelet::api::object::{Object, ObjectExt};
use edgelet::client::kubeconfig::Access;
use edgelet::client::{DEPLOYMENTS, ENDPOINTSLICES, LEASES, NODES, PODS, PatchType, Remote, Resource, SERVICES};
use edgelet::network::resolve::Resolver;
use edgelet::registry::{DeleteOptions, ListOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "EDGELET_BENCH_INSIDE";
const PODS_PER_NODE: usize = 10;
const SETTLE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(200);

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return; // `cargo test --benches` asks; nothing is a test here.
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(directory) = std::env::var_os(hollow::DIRECTORY) {
        return runtime.block_on(hollow::run(directory.into()));
    }
    if std::env::var_os(INSIDE).is_none() {
        let program = std::env::current_exe().unwrap();
        let error = Command::new("unshare").args(["--net", "--"]).arg(program).env(INSIDE, "1").exec();
        panic!("unshare: {error} (the benchmark needs root)");
    }
    for arguments in [["link", "set", "lo", "up"].as_slice(), &["addr", "add", "192.0.2.1/32", "dev", "lo"]] {
        assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
    }
    runtime.block_on(run());
}

fn setting(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

fn seconds(name: &str, usual: &str) -> Duration {
    Duration::from_secs(setting(name, usual).parse().unwrap())
}

async fn run() {
    let stages: Vec<usize> =
        setting("EDGELET_SCALE_STAGES", "1,30,300").split(',').map(|count| count.parse().unwrap()).collect();
    let mut bench = Bench::start().await;
    bench.idle("the server and its own board alone").await;
    for (stage, nodes) in stages.iter().enumerate() {
        bench.join(*nodes).await;
        if stage + 1 == stages.len() && stage > 0 {
            bench.delete_pods().await;
        }
        bench.deploy(nodes * PODS_PER_NODE).await;
        bench.idle(&format!("{nodes} nodes, {} pods", nodes * PODS_PER_NODE)).await;
    }
    bench.service().await;
    bench.restart("-TERM", "server restarted").await;
    bench.restart("-KILL", "server killed").await;
    bench.cut().await;
    bench.delete_pods().await;
    bench.end();
}

struct Bench {
    directory: PathBuf,
    run: PathBuf,
    program: PathBuf,
    server: Child,
    hollow: Hollow,
    remote: Remote,
    nodes: usize,
    pods: usize,
}

/// The process of all hollow nodes: a command is a line, and so is its answer.
struct Hollow {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Hollow {
    fn start(directory: &std::path::Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let log = std::fs::File::create(directory.join("hollow.log")).unwrap();
        let mut command = Command::new(program);
        command.env(hollow::DIRECTORY, directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the hollow nodes have ended: see hollow.log");
        answer.trim().to_owned()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

/// What the server has spent and been asked, so far.
#[derive(Clone, Copy)]
struct Spent {
    at: Instant,
    cpu_s: f64,
    requests: f64,
    handshakes: f64,
    wire_bytes: u64,
}

impl Bench {
    async fn start() -> Self {
        let id = std::process::id();
        let directory = std::env::temp_dir().join(format!("edgelet-scale-{id}"));
        let run = PathBuf::from(format!("/run/edgelet-scale-{id}"));
        std::fs::create_dir_all(&directory).unwrap();
        println!("state in {}", directory.display());
        let program = PathBuf::from(setting("EDGELET_SCALE_SERVER", env!("CARGO_BIN_EXE_edgelet")));
        let server = spawn_server(&program, &directory, &run);
        let remote = answering(&directory).await;
        let mut command = Command::new(&program);
        command.args(["token", "create"]).env("KUBECONFIG", directory.join("data/kubeconfig"));
        let token = token_of(&mut command);
        std::fs::write(directory.join("token"), token).unwrap();
        let hollow = Hollow::start(&directory);
        Self { directory, run, program, server, hollow, remote, nodes: 0, pods: 0 }
    }

    async fn spent(&self) -> Spent {
        let text = self.remote.raw(http::Method::GET, "/metrics", None).await.unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let (requests, handshakes) =
            (sum(&text, "apiserver_request_total"), sum(&text, "edgelet_tls_handshakes_total"));
        let cpu_s = cpu_s(self.server.id());
        Spent { at: Instant::now(), cpu_s, requests, handshakes, wire_bytes: wire_bytes() }
    }

    /// What has been spent since then, as a row.
    async fn row(&self, what: &str, before: Spent) -> Spent {
        let now = self.spent().await;
        let took_s = (now.at - before.at).as_secs_f64();
        self.print(what, took_s, now, before);
        now
    }

    fn print(&self, what: &str, took_s: f64, now: Spent, before: Spent) {
        println!(
            "{what:<58} {took_s:>7.2} s   server {:>6.2} s CPU, {:>6.0} requests, {:>5.0} handshakes, {:>8.2} MB on the wire, peak RSS {:>5.1} MB",
            now.cpu_s - before.cpu_s,
            now.requests - before.requests,
            now.handshakes - before.handshakes,
            (now.wire_bytes - before.wire_bytes) as f64 / 1e6,
            status_kb(self.server.id(), "VmHWM:") / 1e3,
        );
    }

    /// All at once.
    async fn join(&mut self, nodes: usize) {
        let before = self.spent().await;
        let answer = self.hollow.ask(&format!("join {} {nodes}", self.nodes));
        println!("  {} more nodes → Ready: {answer}", nodes - self.nodes);
        self.nodes = nodes;
        self.row(&format!("join of nodes up to {nodes}"), before).await;
    }

    async fn deploy(&mut self, pods: usize) {
        let before = self.spent().await;
        self.pods = pods;
        let container = json!({"name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}});
        // Lost nodes are given up soon: a test of those that are not.
        let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 30}]);
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container],
            "nodeSelector": {"hollow": "true"}, "tolerations": tolerations, "terminationGracePeriodSeconds": 1}});
        let spec = json!({"replicas": pods, "selector": {"matchLabels": {"app": "web"}}, "template": template});
        let made = self.remote.create(DEPLOYMENTS, "default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
        if made.is_err() {
            let patch = json!({"spec": {"replicas": pods}});
            self.remote.patch(DEPLOYMENTS, "default", "web", "", PatchType::Merge, patch).await.unwrap();
        }
        self.until_ready().await;
        let now = self.row(&format!("Deployment of {pods} pods → all Ready"), before).await;
        println!("  {:.0} pods/s", pods as f64 / (now.at - before.at).as_secs_f64());
    }

    async fn until_ready(&self) {
        let begun = Instant::now();
        loop {
            let web = self.remote.get(DEPLOYMENTS, "default", "web").await.unwrap().object().unwrap();
            let ready = web.int_at(&["status", "readyReplicas"]).unwrap_or(0);
            if ready == self.pods as i64 && web.int_at(&["status", "replicas"]) == Some(ready) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{ready} of {} pods are Ready", self.pods);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn delete_pods(&mut self) {
        let before = self.spent().await;
        let pods = self.pods;
        self.remote.delete(DEPLOYMENTS, "default", "web", &DeleteOptions::default()).await.unwrap();
        let one = ListOptions { limit: 1, ..ListOptions::default() };
        while !self.remote.list(PODS, "default", &one).await.unwrap().items.is_empty() {
            assert!(before.at.elapsed() < LIMIT, "pods stay");
            tokio::time::sleep(LOOK).await;
        }
        self.row(&format!("delete {pods} pods → all gone"), before).await;
    }

    async fn idle(&self, what: &str) {
        let length = seconds("EDGELET_SCALE_IDLE_S", "60");
        tokio::time::sleep(SETTLE.min(length)).await;
        let before = self.spent().await;
        let wire = wire_bytes();
        tokio::time::sleep(length).await;
        // Without what the question itself costs.
        let wire = wire_bytes() - wire;
        let (now, pid) = (self.spent().await, self.server.id());
        let took_s = (now.at - before.at).as_secs_f64();
        let per_node = wire as f64 / self.nodes.max(1) as f64 / took_s;
        println!(
            "{:<58} {:>7.2} % CPU, RSS {:>6.1} MB, PSS {:>6.1} MB, {:>6.0} requests, {:>6.2} MB/day on the wire per node",
            format!("at rest: {what}"),
            (now.cpu_s - before.cpu_s) / took_s * 100.0,
            status_kb(pid, "VmRSS:") / 1e3,
            pss_kb(pid) / 1e3,
            now.requests - before.requests,
            per_node * 86_400.0 / 1e6,
        );
    }

    async fn objects(&self, resource: Resource, namespace: &str) -> Vec<Object> {
        let listed = self.remote.list(resource, namespace, &ListOptions::default()).await.unwrap();
        listed.items.iter().map(|item| item.object().unwrap()).collect()
    }

    /// A Service of all pods, and then one of them is another.
    async fn service(&mut self) {
        let before = self.spent().await;
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
        self.remote.create(SERVICES, "default", json!({"metadata": {"name": "web"}, "spec": spec})).await.unwrap();
        loop {
            let slices = self.objects(ENDPOINTSLICES, "default").await;
            let all = slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some("web"));
            let found: usize = all.map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len)).sum();
            if found == self.pods {
                break;
            }
            assert!(before.at.elapsed() < LIMIT, "{found} endpoints");
            tokio::time::sleep(LOOK).await;
        }
        self.hollow.ask(&format!("endpoints {}", self.pods));
        let now = self.row(&format!("Service of {} pods → seen by all nodes", self.pods), before).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = Spent { at: now.at, ..self.spent().await };
        let pods = self.objects(PODS, "default").await;
        let begun = Instant::now();
        self.remote.delete(PODS, "default", pods[0].name(), &DeleteOptions::default()).await.unwrap();
        self.hollow.ask(&format!("gone {}", pods[0].name()));
        self.hollow.ask(&format!("endpoints {}", self.pods));
        let took_s = begun.elapsed().as_secs_f64();
        self.print("one of them deleted → its replacement seen by all nodes", took_s, self.spent().await, before);
        self.until_ready().await;
    }

    /// Pods by uid, with how often their containers have started again.
    async fn pods(&self) -> BTreeSet<(String, bool, i64)> {
        let fact = |pod: Object| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            let restarts =
                pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_i64).unwrap_or(-1);
            (pod.uid().to_owned(), ready, restarts)
        };
        self.objects(PODS, "default").await.into_iter().map(fact).collect()
    }

    /// All nodes are heard of again, and Ready, and all pods; whether those are the same ones.
    async fn until_all_are_back(&self, since: &str, before: &BTreeSet<(String, bool, i64)>) -> String {
        let begun = Instant::now();
        loop {
            let leases = self.objects(LEASES, "kube-node-lease").await;
            let renewed = leases.iter().filter(|lease| lease.str_at(&["spec", "renewTime"]) > since).count();
            let nodes = self.objects(NODES, "").await;
            let is_ready = |node: &&Object| {
                let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            let ready = nodes.iter().filter(is_ready).count();
            // The server's own board is one more.
            if renewed > self.nodes && ready > self.nodes {
                break;
            }
            assert!(begun.elapsed() < LIMIT, "{renewed} nodes heard of, {ready} Ready");
            tokio::time::sleep(LOOK * 2).await;
        }
        self.until_ready().await;
        let now = self.pods().await;
        let same = before.iter().filter(|pod| now.contains(*pod)).count();
        format!("{same} of {} pods as before", before.len())
    }

    /// How often the server was asked for lists of what.
    async fn lists(&self) -> String {
        let text = self.remote.raw(http::Method::GET, "/metrics", None).await.unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let label =
            |line: &str, name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split('"').next()?.to_owned());
        let lists = text.lines().filter(|line| line.starts_with("apiserver_request_total{verb=\"LIST\""));
        let counts =
            lists.filter_map(|line| Some(format!("{} {}", label(line, "resource")?, line.rsplit(' ').next()?)));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// Ends the server and starts it again: what its nodes ask it for then.
    async fn restart(&mut self, signal: &str, what: &str) {
        let before = self.pods().await;
        let sent = Command::new("kill").args([signal, &self.server.id().to_string()]).status();
        assert!(sent.unwrap().success());
        self.server.wait().unwrap();
        let at = Spent { at: Instant::now(), cpu_s: 0.0, requests: 0.0, handshakes: 0.0, wire_bytes: wire_bytes() };
        let since = jiff::Timestamp::now().to_string();
        self.server = spawn_server(&self.program, &self.directory, &self.run);
        self.remote = answering(&self.directory).await;
        println!("  {what}; answers again after {:.2} s", at.at.elapsed().as_secs_f64());
        let same = self.until_all_are_back(&since, &before).await;
        let now = self.row(&format!("{what} → all nodes heard of, all Ready"), at).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.row("the half minute after", now).await;
        println!("  {same}; {}; listed: {}", self.hollow.ask("connected"), self.lists().await);
    }

    async fn cut(&mut self) {
        let length = seconds("EDGELET_SCALE_CUT_S", "120");
        let before = self.pods().await;
        let spent = self.spent().await;
        self.hollow.signal("-STOP");
        tokio::time::sleep(length).await;
        let after = self.row("all nodes cut off", spent).await;
        let marked = self.pods().await.iter().filter(|(_, ready, _)| !ready).count();
        println!("  {marked} of {} pods shown as not ready", before.len());
        let since = jiff::Timestamp::now().to_string();
        self.hollow.signal("-CONT");
        let after = Spent { at: Instant::now(), ..after };
        let same = self.until_all_are_back(&since, &before).await;
        let now = self.row("they come back at once → all heard of, all Ready", after).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.row("the half minute after", now).await;
        println!("  {same}; {}", self.hollow.ask("connected"));
    }

    fn end(mut self) {
        let _ = self.hollow.child.kill();
        let _ = self.hollow.child.wait();
        let _ = Command::new("kill").args(["-TERM", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
        // The pods' cgroups of the server's own board; there were no pods.
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let root = hierarchy.path().join(format!("edgelet-scale-{}", std::process::id()));
            let _ = std::fs::remove_dir(root.join("shims"));
            let _ = std::fs::remove_dir(root);
        }
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/edgelet-scale-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

fn spawn_server(program: &std::path::Path, directory: &std::path::Path, run: &std::path::Path) -> Child {
    let id = std::process::id();
    let log = std::fs::File::options().create(true).append(true).open(directory.join("server.log")).unwrap();
    let _ = std::fs::remove_file(directory.join("data/kubeconfig"));
    Command::new(program)
        .args(["server", "--config", "/dev/null", "--node-name", "board", "--node-ip", "192.0.2.1"])
        .args(["--bridge", "edgescale0", "--cgroup-root", &format!("edgelet-scale-{id}")])
        // Room for more than the 256 nodes of the usual /16.
        .args(["--cluster-cidr", "10.128.0.0/14"])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("--run-dir")
        .arg(run)
        .arg("--log-dir")
        .arg(directory.join("logs"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

async fn answering(directory: &std::path::Path) -> Remote {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LIMIT, "the API does not answer; see {}", directory.display());
        if let Ok(access) = Access::load(&directory.join("data/kubeconfig"), None) {
            let remote = Remote::new(access, Resolver::default()).unwrap();
            if remote.raw(http::Method::GET, "/readyz", None).await.is_ok() {
                return remote;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn token_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// All series of a metric.
fn sum(text: &str, name: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Both ways: in this namespace there is nothing but the server and its nodes.
fn wire_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().nth(8).unwrap().parse().unwrap()
}

fn status_kb(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0.0)
}

fn pss_kb(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0.0)
}

fn cpu_s(pid: u32) -> f64 {
    // The whole process, threads that have ended too; in ticks of a hundredth.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
