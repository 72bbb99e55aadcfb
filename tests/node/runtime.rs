//! Pods on the real kernel: shim, libcontainer, overlay, cgroups, network. Each story has directories,
//! a cgroup root and a network namespace of its own, and leaves nothing.

use edgelet::clock::Clock;
use edgelet::image::ImageStore;
use edgelet::image::manifest::Process;
use edgelet::image::pull::Puller;
use edgelet::network::{Network, NetworkConfig};
use edgelet::runtime::libcontainer::{LibcontainerRuntime, RuntimeConfig};
use edgelet::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ExecRequest, Exit, NetworkProbe, PodRef, ProbeOutcome, Reason,
    Resources, Runtime, SandboxConfig, Seccomp, Security,
};
use edgelet::sys::netns;
use edgelet::telemetry::Trace;
use futures_util::FutureExt;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);
const APPLETS: [&str; 24] = [
    "sh", "cat", "echo", "sleep", "id", "grep", "touch", "tail", "stty", "true", "unshare", "mkdir", "ls", "env",
    "pwd", "hostname", "httpd", "kill", "ps", "wc", "tr", "head", "mount", "printf",
];

static STORIES: AtomicU32 = AtomicU32::new(0);

struct NoNames;

impl reqwest::dns::Resolve for NoNames {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move { Err(format!("no address for {}", name.as_str()).into()) })
    }
}

/// A node of its own.
struct Node {
    directory: tempfile::TempDir,
    run_directory: PathBuf,
    cgroup_root: String,
    network: tokio::sync::OnceCell<Network>,
}

impl Node {
    fn new() -> Self {
        let name = format!("edgelet-test-{}-{}", std::process::id(), STORIES.fetch_add(1, Ordering::Relaxed));
        Self {
            directory: tempfile::tempdir().unwrap(),
            run_directory: Path::new("/run").join(&name),
            cgroup_root: format!("/{name}"),
            network: tokio::sync::OnceCell::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn images(&self) -> ImageStore {
        let store = ImageStore::open(&self.path("images"), Clock::real()).unwrap();
        let root = self.path("busybox");
        if root.exists() {
            return store;
        }
        for directory in ["bin", "etc", "tmp", "proc", "www"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("bin/foreign"), b"\x7fELF\x02\x01\x01\x00 of another machine").unwrap();
        std::fs::set_permissions(root.join("bin/foreign"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(root.join("www/index.html"), "hello from the pod\n").unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nguest:x:1000:1000::/home/guest:/bin/sh\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n").unwrap();
        let process = Process { cmd: Some(vec!["sleep".into(), "1000".into()]), ..Process::default() };
        store.build(&root, process, "busybox:test").unwrap();
        store
    }

    async fn network(&self) -> Network {
        self.network.get_or_init(|| self.make_network()).await.clone()
    }

    async fn make_network(&self) -> Network {
        let network = Network::new(NetworkConfig {
            pod_cidr: "10.42.9.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            dns_ip: "10.43.0.10".parse().unwrap(),
            bridge: "edgetest9".into(),
            table: "edgetest9".into(),
            netns_directory: self.run_directory.join("netns"),
            state_directory: self.path("network"),
        })
        .unwrap();
        network.setup().await.unwrap();
        network
    }

    /// As after a start of edgelet: whatever runs is found.
    async fn runtime(&self) -> LibcontainerRuntime {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = RuntimeConfig {
            run_directory: self.run_directory.clone(),
            state_directory: self.path("state"),
            log_directory: self.path("logs"),
            cgroup_root: self.cgroup_root.clone(),
            shim_binary: Some(env!("CARGO_BIN_EXE_edgelet").into()),
        };
        let puller = Puller::new(Arc::new(NoNames), Vec::new()).unwrap();
        let (network, trace) = (self.network().await, Arc::new(Trace::default()));
        LibcontainerRuntime::new(config, self.images(), puller, network, Clock::real(), trace).await.unwrap()
    }

    /// Removes everything and looks for what is left.
    async fn end(&self) {
        self.runtime().await.remove_all().await.unwrap();
        self.network().await.teardown().await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        for place in [self.run_directory.to_str().unwrap(), self.directory.path().to_str().unwrap()] {
            let left: Vec<&str> = mounts.lines().filter(|line| line.contains(place)).collect();
            assert!(left.is_empty(), "mounts are left: {left:?}");
        }
        assert_eq!(names(&self.run_directory.join("pods")), [""; 0], "pods are left");
        assert_eq!(names(&self.path("state/containers")), [""; 0], "layers are left");
        assert_eq!(names(&self.path("logs")), [""; 0], "logs are left");
        let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let groups: Vec<PathBuf> =
            groups.map(|mount| mount.path().join(&self.cgroup_root[1..])).filter(|path| path.exists()).collect();
        assert!(groups.is_empty(), "cgroups are left: {groups:?}");
        assert_eq!(self.shims(), [0; 0], "shims are left");
        std::fs::remove_dir_all(&self.run_directory).unwrap();
    }

    /// The processes whose program is this node's copy.
    fn shims(&self) -> Vec<i32> {
        let binaries = self.path("state/bin");
        let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let program = std::fs::read_link(entry.path().join("exe")).ok()?;
            program.starts_with(&binaries).then(|| entry.file_name().to_str()?.parse().ok())?
        });
        pids.collect()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Tells a story on a node of its own, in a network namespace of its own, and cleans up after it.
fn story<F: Future<Output = ()>>(tell: impl FnOnce(&'static Node) -> F + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "node tests need root");
    let thread = std::thread::spawn(move || {
        netns::unshare_thread().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let node: &'static Node = Box::leak(Box::new(Node::new()));
        runtime.block_on(async {
            let told = std::panic::AssertUnwindSafe(async { tell(node).await }).catch_unwind();
            let told = tokio::time::timeout(Duration::from_secs(120), told).await;
            node.end().await;
            if let Err(panic) = told.expect("the story ends") {
                std::panic::resume_unwind(panic);
            }
        });
        std::fs::remove_dir_all(node.directory.path()).unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sandbox(uid: &str) -> SandboxConfig {
    SandboxConfig {
        pod: PodRef { uid: uid.into(), namespace: "default".into(), name: format!("pod-{uid}") },
        hostname: format!("pod-{uid}"),
        ..SandboxConfig::default()
    }
}

fn container(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image: "busybox:test".into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        termination_message_path: "/dev/termination-log".into(),
        security: Security { seccomp: Seccomp::RuntimeDefault, ..Security::default() },
        ..ContainerConfig::default()
    }
}

/// Runs the pod with one container and gives its id.
async fn run(runtime: &LibcontainerRuntime, uid: &str, config: ContainerConfig) -> String {
    runtime.run_sandbox(sandbox(uid)).await.unwrap();
    let id = runtime.create_container(uid, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

async fn status(runtime: &LibcontainerRuntime, uid: &str) -> ContainerStatus {
    runtime.status(uid).await.unwrap().containers.remove(0)
}

async fn exited(runtime: &LibcontainerRuntime, uid: &str) -> Exit {
    let wait = async {
        loop {
            if let ContainerState::Exited(exit) = status(runtime, uid).await.state {
                return exit;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the container ends")
}

fn log(runtime: &LibcontainerRuntime, uid: &str) -> Vec<String> {
    let path = runtime.log_path(&sandbox(uid).pod, "main", 0);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

async fn exec(runtime: &LibcontainerRuntime, id: &str, script: &str) -> (i32, String) {
    let command = ["sh", "-c", script].map(str::to_owned);
    let output = runtime.exec_sync(id, &command, PATIENCE).await.unwrap();
    (output.exit_code, String::from_utf8(output.output.to_vec()).unwrap())
}

#[test]
fn a_container_runs_writes_its_log_and_ends() {
    story(|node| async {
        let runtime = node.runtime().await;
        let script = "hostname; echo out; echo err >&2; printf 'last words' > /dev/termination-log; exit 3";
        run(&runtime, "one", container(script)).await;
        let exit = exited(&runtime, "one").await;
        assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (3, 0, "Error"));
        assert_eq!(exit.message, "last words");
        let mut lines = log(&runtime, "one");
        lines.sort();
        assert_eq!(lines, ["stderr F err", "stdout F out", "stdout F pod-one"]);
        let status = status(&runtime, "one").await;
        assert!(status.started_at.unwrap() <= exit.finished_at.unwrap());
        // The same again is the same.
        assert!(runtime.run_sandbox(sandbox("one")).await.unwrap().ready);
        assert_eq!(runtime.create_container("one", container("")).await.unwrap(), status.id);
        runtime.remove_container(&status.id).await.unwrap();
        assert!(runtime.status("one").await.unwrap().containers.is_empty());
    });
}

#[test]
fn programs_that_cannot_start_say_why() {
    story(|node| async {
        let runtime = node.runtime().await;
        runtime.run_sandbox(sandbox("bad")).await.unwrap();
        let cases = [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/bin/foreign", "exec /bin/foreign: exec format error"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ];
        for (attempt, (program, expected)) in (0..).zip(cases) {
            let config = ContainerConfig { command: vec![program.into()], attempt, ..container("") };
            let id = runtime.create_container("bad", config).await.unwrap();
            let error = runtime.start_container(&id).await.unwrap_err();
            assert_eq!((error.reason, error.message.as_str()), (Reason::RunContainerError, expected));
            let exit = exited(&runtime, "bad").await;
            assert_eq!((exit.code, exit.reason.as_str(), exit.message.as_str()), (128, "StartError", expected));
            runtime.remove_container(&id).await.unwrap();
        }
    });
}

#[test]
fn limits_hold_and_are_counted() {
    story(|node| async {
        let runtime = node.runtime().await;
        let limited = |script: &str| ContainerConfig {
            resources: Resources {
                memory_limit_bytes: 24 << 20,
                cpu_shares: 512,
                cpu_quota_us: 50_000,
                cpu_period_us: 100_000,
                pids_limit: 20,
                ..Resources::default()
            },
            ..container(script)
        };
        let id = run(&runtime, "fit", limited("sleep 1000")).await;
        let stats = runtime.stats("fit").await.unwrap();
        assert!(stats["main"].memory_usage_bytes > 0 && stats["main"].cpu_usage_ns > 0, "{stats:?}");
        let read = |controller: &str, name: &str| {
            let group = format!("{}/kubepods/besteffort/podfit/{id}/{name}", &node.cgroup_root[1..]);
            let v1 = Path::new("/sys/fs/cgroup").join(controller).join(&group);
            let v2 = Path::new("/sys/fs/cgroup").join(&group);
            std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2)).unwrap_or_default().trim().to_owned()
        };
        assert_eq!(read("pids", "pids.max"), "20");
        let memory = [read("memory", "memory.limit_in_bytes"), read("memory", "memory.max")].concat();
        assert_eq!(memory, (24 << 20).to_string());
        let quota = [read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.max")].concat();
        assert!(quota == "50000" || quota == "50000 100000", "{quota}");
        let forks = "i=0; while [ $i -lt 30 ]; do sleep 9 & i=$((i+1)); done";
        let (_, output) = exec(&runtime, &id, forks).await;
        assert!(output.contains("can't fork"), "the pids limit holds: {output}");
        run(&runtime, "fat", limited("tail /dev/zero")).await;
        let exit = exited(&runtime, "fat").await;
        assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
        // Its first process is innocent. Only cgroup v2 kills it together with the other one.
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            run(&runtime, "group", limited("tail /dev/zero & wait; sleep 1000")).await;
            let exit = exited(&runtime, "group").await;
            assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
        } else {
            println!("skipped: a container is killed as one, which cgroup v1 cannot");
        }
    });
}

#[test]
fn commands_run_in_the_containers_confinement() {
    story(|node| async {
        let runtime = node.runtime().await;
        let id = run(&runtime, "cmd", container("sleep 1000")).await;
        assert_eq!(exec(&runtime, &id, "echo one; echo two >&2; exit 42").await, (42, "one\ntwo\n".into()));
        let confined = "grep -E '^(Seccomp|CapEff|CapBnd|SigIgn|SigBlk):' /proc/self/status | tr -s '\\t\\n' '  '";
        let expected = "SigBlk: 0000000000000000 SigIgn: 0000000000000000 CapEff: 00000000a80425fb \
                        CapBnd: 00000000a80425fb Seccomp: 2 ";
        assert_eq!(exec(&runtime, &id, confined).await, (0, expected.into()));
        let (code, output) = exec(&runtime, &id, "unshare -m true").await;
        assert!(code != 0 && output.contains("Operation not permitted"), "{code} {output}");
        let error = runtime.exec_sync(&id, &["nosuch".into()], PATIENCE).await.unwrap_err();
        assert_eq!(error.message, "exec: \"nosuch\": executable file not found in $PATH");
        let slow = ["sleep", "100"].map(str::to_owned);
        let error = runtime.exec_sync(&id, &slow, Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.reason, Reason::Timeout);
        let gone = async { while exec(&runtime, &id, "ps | grep -c '[s]leep 100$'").await.1 != "0\n" {} };
        tokio::time::timeout(PATIENCE, gone).await.expect("a command is killed with its session");
        for _ in 0..20 {
            assert_eq!(exec(&runtime, &id, "true").await.0, 0);
        }
        let left = names(&node.run_directory.join("pods/cmd/state").join(&id));
        assert!(!left.iter().any(|name| name.starts_with("tenant-")), "execs leave files: {left:?}");
    });
}

#[test]
fn sessions_stream_and_have_terminals() {
    story(|node| async {
        let runtime = node.runtime().await;
        let id = run(&runtime, "tty", container("sleep 1000")).await;
        let request = |command: &[&str], tty| ExecRequest {
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty,
        };
        let mut session = runtime.exec(&id, request(&["cat"], false)).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"there and back").await.unwrap();
        stdin.shutdown().await.unwrap();
        let mut text = String::new();
        session.stdout.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), session.exit.await.unwrap()), ("there and back", 0));

        let mut session = runtime.exec(&id, request(&["sh"], true)).await.unwrap();
        assert!(session.stderr.is_none());
        session.resize.as_ref().unwrap().send((111, 33)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"stty size; echo term=$TERM; exit 7\n").await.unwrap();
        let mut text = String::new();
        session.stdout.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
        assert!(text.contains("33 111") && text.contains("term=xterm"), "{text}");
        assert_eq!(session.exit.await.unwrap(), 7);
    });
}

#[test]
fn a_containers_own_terminal_is_attached_to() {
    story(|node| async {
        let runtime = node.runtime().await;
        let config = ContainerConfig { tty: true, stdin: true, ..container("while read x; do echo got $x; done") };
        let id = run(&runtime, "att", config).await;
        let request = ExecRequest { stdin: true, stdout: true, tty: true, ..ExecRequest::default() };
        let mut session = runtime.attach(&id, request).await.unwrap();
        session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        let mut text = String::new();
        while !text.contains("got hello") {
            let mut buffer = [0; 256];
            let read = session.stdout.as_mut().unwrap().read(&mut buffer);
            let length = tokio::time::timeout(PATIENCE, read).await.expect("output").unwrap();
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        // The terminal's own end of input.
        session.stdin.as_mut().unwrap().write_all(&[4]).await.unwrap();
        assert_eq!(session.exit.await.unwrap(), 0);
        assert!(log(&runtime, "att").iter().any(|line| line.contains("got hello")));
    });
}

#[test]
fn users_capabilities_and_roots_are_as_asked() {
    story(|node| async {
        let runtime = node.runtime().await;
        let config = ContainerConfig {
            working_dir: "/data/here".into(),
            env: vec![("A".into(), "1".into()), ("B".into(), "$A".into())],
            security: Security {
                run_as_user: Some(1000),
                read_only_root: true,
                no_new_privileges: true,
                capabilities_drop: vec!["ALL".into()],
                seccomp: Seccomp::RuntimeDefault,
                ..Security::default()
            },
            ..container(
                "id; pwd; echo $A $B $HOME; touch /file || echo read-only; \
                 grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '; echo; \
                 cat /etc/hostname",
            )
        };
        run(&runtime, "who", config).await;
        assert_eq!(exited(&runtime, "who").await.code, 0);
        let lines = log(&runtime, "who");
        let expected = [
            "stdout F uid=1000(guest) gid=1000(guest) groups=1000(guest),2000(extra)",
            "stdout F /data/here",
            "stdout F 1 $A /home/guest",
            "stdout F read-only",
            "stdout F CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ",
            "stdout F pod-who",
        ];
        let out: Vec<&String> = lines.iter().filter(|line| line.starts_with("stdout")).collect();
        assert_eq!(out, expected);
    });
}

#[test]
fn stopping_asks_then_kills() {
    story(|node| async {
        let runtime = node.runtime().await;
        let polite = run(&runtime, "polite", container("trap 'exit 5' TERM; while true; do sleep 0.05; done")).await;
        let deaf = run(&runtime, "deaf", container("trap '' TERM; while true; do sleep 0.05; done")).await;
        exec(&runtime, &polite, "sleep 0.2").await;
        runtime.stop_container(&polite, PATIENCE).await.unwrap();
        assert_eq!(exited(&runtime, "polite").await.code, 5);
        runtime.stop_container(&deaf, Duration::from_millis(200)).await.unwrap();
        let exit = exited(&runtime, "deaf").await;
        assert_eq!((exit.code, exit.signal), (137, 9));
        let created = ContainerConfig { attempt: 1, ..container("true") };
        let created = runtime.create_container("deaf", created).await.unwrap();
        runtime.stop_container(&created, PATIENCE).await.unwrap();
        runtime.stop_sandbox("deaf").await.unwrap();
        assert!(!runtime.status("deaf").await.unwrap().ready);
        runtime.stop_sandbox("deaf").await.unwrap();
        runtime.remove_sandbox("deaf", false).await.unwrap();
        assert_eq!(runtime.status("deaf").await.unwrap_err().reason, Reason::NotFound);
    });
}

#[test]
fn a_restarted_runtime_finds_everything() {
    story(|node| async {
        let runtime = node.runtime().await;
        let id = run(&runtime, "live", container("trap 'exit 9' TERM; while true; do sleep 0.05; done")).await;
        run(&runtime, "short", container("sleep 0.5; exit 4")).await;
        runtime.run_sandbox(sandbox("stopped")).await.unwrap();
        runtime.stop_sandbox("stopped").await.unwrap();
        let before = runtime.list().await.unwrap();
        drop(runtime);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let runtime = node.runtime().await;
        let after = runtime.list().await.unwrap();
        assert_eq!(before.iter().find(|pod| pod.pod.uid == "live"), after.iter().find(|pod| pod.pod.uid == "live"));
        assert!(!after.iter().find(|pod| pod.pod.uid == "stopped").unwrap().ready);
        assert_eq!(exited(&runtime, "short").await.code, 4, "an end nobody was there for");
        assert_eq!(exec(&runtime, &id, "echo still here").await.1, "still here\n");
        let again = ContainerConfig { attempt: 1, ..container("exit 0") };
        runtime.create_container("live", again).await.unwrap();
        runtime.stop_container(&id, PATIENCE).await.unwrap();
        assert_eq!(exited(&runtime, "live").await.code, 9);
    });
}

#[test]
fn a_killed_shim_costs_its_pod_and_nothing_else() {
    story(|node| async {
        let runtime = node.runtime().await;
        run(&runtime, "lost", container("sleep 1000")).await;
        let shims = node.shims();
        assert_eq!(shims.len(), 1);
        let other = run(&runtime, "other", container("sleep 1000")).await;
        let mut events = runtime.events();
        edgelet::sys::process::kill(shims[0], 9).unwrap();
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(event.pod_uid, "lost");
        let pod = runtime.status("lost").await.unwrap();
        assert!(!pod.ready);
        assert!(matches!(&pod.containers[0].state, ContainerState::Exited(exit) if exit.code == 137), "{pod:?}");
        assert_eq!(exec(&runtime, &other, "echo fine").await.1, "fine\n");
        let id = {
            runtime.run_sandbox(sandbox("lost")).await.unwrap();
            let again = ContainerConfig { attempt: 1, ..container("sleep 1000") };
            runtime.create_container("lost", again).await.unwrap()
        };
        runtime.start_container(&id).await.unwrap();
        assert_eq!(exec(&runtime, &id, "echo again").await.1, "again\n");
        let last = node.shims();
        runtime.remove_sandbox("other", false).await.unwrap();
        drop(runtime);
        for shim in last {
            edgelet::sys::process::kill(shim, 9).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Killed while nobody looked.
        let runtime = node.runtime().await;
        assert!(!runtime.status("lost").await.unwrap().ready);
    });
}

#[test]
fn pods_answer_on_their_address() {
    story(|node| async {
        let runtime = node.runtime().await;
        run(&runtime, "web", container("httpd -f -p 8080 -h /www")).await;
        let ip = runtime.status("web").await.unwrap().ips[0].to_string();
        let probe =
            |port| NetworkProbe::Http { host: ip.clone(), port, path: "/".into(), https: false, headers: vec![] };
        let answers = async {
            loop {
                if let ProbeOutcome::Success(body) = runtime.probe(&probe(8080), Duration::from_secs(1)).await {
                    return body;
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, answers).await.unwrap(), "hello from the pod\n");
        let refused = format!("Get \"http://{ip}:81/\": dial tcp {ip}:81: connect: connection refused");
        assert_eq!(runtime.probe(&probe(81), Duration::from_secs(1)).await, ProbeOutcome::Failure(refused));
        let mut stream = runtime.port_forward("web", 8080).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("hello from the pod\n"), "{text}");
        assert!(runtime.port_forward("web", 9).await.is_err());
    });
}

#[test]
fn pods_share_what_they_are_told_to() {
    story(|node| async {
        let runtime = node.runtime().await;
        let config = SandboxConfig { share_process_namespace: true, ..sandbox("shared") };
        runtime.run_sandbox(config).await.unwrap();
        let first =
            runtime.create_container("shared", container("echo shared > /dev/shm/file; sleep 1000")).await.unwrap();
        runtime.start_container(&first).await.unwrap();
        let second = ContainerConfig { name: "second".into(), ..container("sleep 1000") };
        let second = runtime.create_container("shared", second).await.unwrap();
        runtime.start_container(&second).await.unwrap();
        let (_, processes) = exec(&runtime, &second, "ps").await;
        assert!(processes.matches("sleep 1000").count() >= 2, "{processes}");
        assert_eq!(exec(&runtime, &second, "cat /dev/shm/file; hostname").await.1, "shared\npod-shared\n");
        runtime.stop_container(&first, Duration::ZERO).await.unwrap();
        assert_eq!(exec(&runtime, &second, "echo lives").await.1, "lives\n");
    });
}

/// What the files below a directory take, those of images left out.
fn taken_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().flatten().filter(|entry| entry.file_name() != "rootfs");
    let taken = entries.map(|entry| match entry.metadata().unwrap() {
        metadata if metadata.is_dir() => taken_bytes(&entry.path()),
        metadata => metadata.blocks() * 512,
    });
    taken.sum()
}

#[test]
fn a_container_cannot_fill_the_hosts_run_directory() {
    story(|node| async {
        let runtime = node.runtime().await;
        runtime.run_sandbox(sandbox("full")).await.unwrap();
        let directory = node.run_directory.join("pods/full");
        let before = taken_bytes(&directory);
        let script = "for file in /etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log; do \
                      head -c 8000000 /dev/zero | cat > $file || echo full; done; sleep 1000";
        let id = run(&runtime, "full", container(script)).await;
        let filled = async {
            while log(&runtime, "full").iter().filter(|line| *line == "stdout F full").count() < 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, filled).await.expect("every file has an end");
        let grown = taken_bytes(&directory) - before;
        assert!((512 << 10..(1 << 20) + (64 << 10)).contains(&grown), "{grown} bytes");
        run(&runtime, "next", container("sleep 1000")).await;
        drop(runtime);
        let runtime = node.runtime().await;
        // The pod itself is not lost either.
        runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        runtime.stop_sandbox("full").await.unwrap();
        let again = ContainerConfig { attempt: 1, ..container("sleep 1000") };
        let id = run(&runtime, "full", again).await;
        let (_, hosts) = exec(&runtime, &id, "cat /etc/hosts /etc/hostname").await;
        assert!(hosts.starts_with("# Kubernetes-managed hosts file.") && hosts.ends_with("pod-full\n"), "{hosts}");
        runtime.remove_sandbox("full", false).await.unwrap();
        assert!(!directory.exists());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(directory.to_str().unwrap()), "{mounts}");
    });
}

#[test]
fn an_idle_shim_is_small() {
    story(|node| async {
        let runtime = node.runtime().await;
        let mut took = Vec::new();
        for number in 0..5 {
            let before = edgelet::clock::monotonic();
            run(&runtime, &format!("small{number}"), container("sleep 1000")).await;
            took.push(before.elapsed());
        }
        assert!(took.iter().all(|time| *time < Duration::from_secs(5)), "{took:?}");
        let dirty = |pid: &i32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let shims = node.shims();
        assert_eq!(shims.len(), 5);
        let kilobytes: Vec<u64> = shims.iter().map(dirty).collect();
        eprintln!("create to running: {took:?}; private memory of shims: {kilobytes:?} kB");
        assert!(kilobytes.iter().all(|memory| *memory < 1024), "{kilobytes:?}");
    });
}

#[test]
fn devices_are_denied_by_program() {
    assert!(rustix::process::geteuid().is_root(), "node tests need root");
    use edgelet::sys::bpf::{DeviceRule, MKNOD, READ, WRITE, restrict_devices};
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
    let unified = unified.into_iter().find(|path| path.join("cgroup.procs").exists()).expect("cgroup v2 is mounted");
    let group = unified.join(format!("edgelet-test-devices-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let null = DeviceRule { block: false, major: Some(1), minor: Some(3), access: MKNOD | READ | WRITE };
    let restricted = restrict_devices(&group, &[null]);
    let script = format!("echo 0 > {}/cgroup.procs; echo > /dev/null && cat < /dev/zero", group.display());
    let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
    std::fs::remove_dir(&group).unwrap();
    restricted.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/dev/zero") && text.contains("Operation not permitted"), "{text}");
}

/// A pod of a former process whose shim takes connections and never says a word.
fn deaf_shim(node: &Node, uid: &str) -> std::os::fd::OwnedFd {
    let directory = node.run_directory.join("pods").join(uid);
    std::fs::create_dir_all(&directory).unwrap();
    let record = serde_json::json!({"config": sandbox(uid), "created_at": "2026-11-23T00:00:00Z",
        "cgroup": format!("{}/kubepods/besteffort/pod{uid}", node.cgroup_root), "binary": "", "shim_pid": 1,
        "ip": null, "netns": null, "reaper": null, "ready": true});
    std::fs::write(directory.join("sandbox.json"), record.to_string()).unwrap();
    edgelet::sys::seqpacket::listen(&directory.join("shim.sock")).unwrap()
}

#[test]
fn shims_that_do_not_answer_are_waited_for_together_and_not_one_after_the_other() {
    story(|node| async move {
        node.images();
        node.network().await;
        let deaf: Vec<_> = (0..3).map(|number| deaf_shim(node, &format!("deaf-{number}"))).collect();
        // Nothing but the shims' silence is waited for, so that time passes as it is needed.
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let runtime = node.runtime().await;
        let waited = begun.elapsed();
        tokio::time::resume();
        assert!(waited < Duration::from_secs(100), "each has 75 s: {waited:?}");
        let found = runtime.list().await.unwrap();
        assert!(found.len() == 3 && found.iter().all(|pod| !pod.ready), "{found:?}");
        drop(deaf);
    });
}
