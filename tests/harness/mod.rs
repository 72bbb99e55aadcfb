//! One board for a test: a network namespace, folders, a cgroup and a bridge of its own, the real binary.
//! What it leaves behind is looked for, named, removed, and fails the test.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No single command of a test takes longer; it is killed then.
const COMMAND_LIMIT_S: u32 = 120;
const NODE_IP: &str = "192.0.2.1";

static BOARDS: AtomicU32 = AtomicU32::new(0);

pub struct Board {
    pub directory: PathBuf,
    pub run: PathBuf,
    cgroup: String,
    bridge: String,
    holder: Child,
    server: Option<Child>,
}

/// A program in the background.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this machine can run boards; loud when not, and an error when every tier is asked for.
pub fn can_run() -> bool {
    let root = fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    if !root {
        let required = std::env::var_os("EDGELET_REQUIRE_ALL_TIERS").is_some();
        assert!(!required, "this tier needs root, and every tier is required");
        eprintln!("NOT RUN: this tier needs root (tests/run asks for it)");
    }
    root
}

/// A program that `tests/run` fetched; loud when it is missing.
pub fn tool(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("EDGELET_TEST_TOOLS").map_or_else(default_tools, PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var_os("EDGELET_REQUIRE_ALL_TIERS").is_some();
    assert!(!required, "{} is missing, and every tier is required", path.display());
    eprintln!("NOT RUN: {} is missing (tests/run fetches it)", path.display());
    None
}

fn default_tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools")
}

impl Board {
    /// Makes the place and starts `edgelet server` in it; the API answers when it returns.
    pub fn start(name: &str) -> Self {
        let mut board = Self::place(name);
        board.boot();
        board
    }

    /// The place without the server.
    pub fn place(name: &str) -> Self {
        let number = BOARDS.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(format!("edgelet-{name}-{unique}"));
        fs::create_dir_all(&directory).unwrap();
        eprintln!("{name}: state in {}", directory.display());
        // The holder keeps the network namespace; it ends with its standard input.
        let holder = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let board = Self {
            run: PathBuf::from(format!("/run/edgelet-test-{unique}")),
            cgroup: format!("edgelet-test-{unique}"),
            bridge: format!("et{}-{number}", std::process::id() % 100_000),
            directory,
            holder: holder.expect("unshare is part of util-linux"),
            server: None,
        };
        board.until("the namespace is made", || board.link() != fs::read_link("/proc/self/ns/net").unwrap());
        for arguments in [vec!["link", "set", "lo", "up"], vec!["addr", "add", "192.0.2.1/32", "dev", "lo"]] {
            board.ok(board.inside("ip").args(arguments));
        }
        board
    }

    fn link(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/ns/net", self.holder.id())).unwrap_or_default()
    }

    /// Starts (again) what was stopped or killed.
    pub fn boot(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let log = fs::File::options().create(true).append(true).open(self.directory.join("server.log")).unwrap();
        let _ = fs::remove_file(self.kubeconfig());
        let mut command = self.inside(env!("CARGO_BIN_EXE_edgelet"));
        command.arg("server").args(["--node-name", "board", "--node-ip", NODE_IP]);
        command.args(["--bind-address", "0.0.0.0", "--https-listen-port", "6443"]);
        command.args(["--bridge", &self.bridge, "--cgroup-root", &self.cgroup]);
        command.arg("--data-dir").arg(self.directory.join("data")).arg("--run-dir").arg(&self.run);
        command.arg("--log-dir").arg(self.directory.join("logs")).arg("--config").arg("/dev/null");
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        self.until("the API answers", || {
            self.kubeconfig().exists() && self.edgelet(&["get", "namespaces", "default"]).status.success()
        });
    }

    /// The process id of the running server.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("the server runs").id()
    }

    /// Ends the server the rude way; pods go on.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Ends the server with SIGTERM; pods go on.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        self.ok(Command::new("kill").args(["-TERM", &server.id().to_string()]));
        let ended = bounded(Duration::from_secs(30), || server.try_wait().unwrap().is_some());
        if !ended {
            server.kill().unwrap();
            server.wait().unwrap();
            panic!("the server did not end within 30 s of SIGTERM\n{}", self.log());
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("data/kubeconfig")
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    /// A command inside the board's network namespace, bounded in time.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command.arg("--").arg(program);
        command
    }

    /// Moves the calling thread into the board's network namespace: what it connects to is there.
    pub fn enter(&self) {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// A program that goes on, with pipes, until it is dropped; it is killed then.
    pub fn running(&self, program: &Path, arguments: &[&str]) -> Running {
        let mut command = self.inside(program);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    fn bounded_inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.inside("timeout");
        command.arg(COMMAND_LIMIT_S.to_string()).arg(program);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.directory);
        command
    }

    /// Our own command line; whatever it says.
    pub fn edgelet(&self, arguments: &[&str]) -> Output {
        self.bounded_inside(env!("CARGO_BIN_EXE_edgelet")).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// kubectl of one version; its output. Fails the test when kubectl fails.
    pub fn kubectl(&self, kubectl: &Path, arguments: &[&str]) -> String {
        let output = self.kubectl_output(kubectl, arguments, "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}\n{text}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.scene()
        );
        text
    }

    /// The same with standard input, and without a verdict.
    pub fn kubectl_output(&self, kubectl: &Path, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut command = self.bounded_inside(kubectl);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn apply(&self, kubectl: &Path, manifest: &str) -> String {
        let output = self.kubectl_output(kubectl, &["apply", "-f", "-"], manifest);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "apply: {}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        text
    }

    /// A page by HTTP from the board itself; empty when nothing answers.
    pub fn curl(&self, url: &str) -> String {
        let output = self.inside("curl").args(["--silent", "--max-time", "5", url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The busybox image: Debian's static binary and links to its applets.
    pub fn busybox_image(&self, tag: &str) {
        let root = self.directory.join(format!("image-{}", tag.replace([':', '/'], "-")));
        fs::create_dir_all(root.join("bin")).unwrap();
        for folder in ["etc", "tmp", "www", "root"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed by tests/run");
        for applet in "sh cat echo ls sleep httpd wget nslookup id env mount stat grep touch true false kill hostname ps sed head tail date dd test stty nc df tar sha256sum".split(' ') {
            let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
        fs::write(root.join("etc/tag"), tag).unwrap();
        let data = self.directory.join("data");
        let output = self.edgelet(&[
            "image",
            "build",
            root.to_str().unwrap(),
            "--tag",
            tag,
            "--env",
            "PATH=/bin",
            "--data-dir",
            data.to_str().unwrap(),
            "--",
            "sh",
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn ok(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits for a condition of the world outside; fails the test after a minute.
    pub fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(bounded(Duration::from_secs(60), condition), "timed out: {what}\n{}", self.scene());
    }

    /// What there is to see when something went wrong.
    fn scene(&self) -> String {
        let mut text = String::new();
        if self.server.is_some() {
            let output = self.edgelet(&["get", "pods", "-A", "-o", "wide"]);
            text.push_str(&String::from_utf8_lossy(&output.stdout));
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        for pid in self.shims() {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let cmdline: String = String::from_utf8_lossy(&cmdline).replace('\0', " ").chars().take(140).collect();
            text.push_str(&format!("shim {pid}: {cmdline}\n"));
        }
        format!("{text}--- server ---\n{}", self.log())
    }

    /// Everything that runs for this board: shims, the server, programs from its folders.
    fn processes(&self) -> Vec<u32> {
        let (directory, run) = (self.directory.display().to_string(), self.run.display().to_string());
        processes_naming(&[&directory, &run, &self.cgroup], None)
    }

    /// Pids of the shims of this board.
    pub fn shims(&self) -> Vec<u32> {
        processes_naming(&[&self.cgroup], Some("shim"))
    }

    /// The shim of each pod, by the pod's uid.
    pub fn shims_by_pod(&self) -> BTreeMap<String, u32> {
        let uid = |pid: &u32| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<String> =
                cmdline.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let at = words.iter().position(|word| word == "--pod")?;
            Some((words.get(at + 1)?.clone(), *pid))
        };
        self.shims().iter().filter_map(uid).collect()
    }

    /// Ends the board and asserts that nothing of it is left: no mount, process, cgroup, folder.
    /// Pods must have been deleted before.
    pub fn end(mut self) {
        self.stop();
        let left = self.left_behind();
        let log = self.log();
        assert!(left.is_empty(), "left behind: {left:#?}\n--- server ---\n{log}");
    }

    fn left_behind(&self) -> Vec<String> {
        let ours = [self.directory.display().to_string(), self.run.display().to_string()];
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut left: Vec<String> = mounts
            .lines()
            .filter(|line| ours.iter().any(|folder| line.contains(folder.as_str())))
            .map(|line| format!("mount {line}"))
            .collect();
        left.extend(self.processes().iter().map(|pid| format!("process {pid}")));
        left.extend(self.pod_cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        for folder in ["pods", "netns"] {
            let entries = fs::read_dir(self.run.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        let links = self.ok(self.inside("ip").args(["-o", "link"]));
        left.extend(
            links
                .lines()
                .filter(|line| line.contains(&format!("master {}", self.bridge)))
                .map(|line| format!("link {line}")),
        );
        left
    }

    fn pod_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open: Vec<PathBuf> = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup)];
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        open.extend(hierarchies.map(|entry| entry.path().join(&self.cgroup)));
        while let Some(path) = open.pop() {
            for entry in fs::read_dir(&path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("pod") {
                    found.push(entry.path());
                }
                open.push(entry.path());
            }
        }
        found
    }
}

impl Drop for Board {
    /// Removes what a failed test left, so that the next one starts clean.
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        self.kill_cgroups();
        unmount_below(&[&self.directory, &self.run]);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        self.remove_cgroups();
        let _ = fs::remove_dir_all(&self.run);
        if std::thread::panicking() {
            eprintln!("state kept in {}", self.directory.display());
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Board {
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup)];
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        found.extend(hierarchies.map(|entry| entry.path().join(&self.cgroup)));
        let mut at = 0;
        while at < found.len() {
            let entries = fs::read_dir(&found[at]).into_iter().flatten().flatten();
            let below: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
            found.extend(below);
            at += 1;
        }
        found.retain(|path| path.exists());
        found
    }

    fn kill_cgroups(&self) {
        for path in self.cgroups() {
            for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        }
    }

    fn remove_cgroups(&self) {
        bounded(Duration::from_secs(5), || {
            for path in self.cgroups().iter().rev() {
                let _ = fs::remove_dir(path);
            }
            self.cgroups().is_empty()
        });
    }
}

/// Looks until the condition holds: the outside world sends this process no events.
pub fn bounded(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    condition()
}

/// Processes whose command line or program names one of these.
fn processes_naming(names: &[&str], also: Option<&str>) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default().display().to_string();
        let named = names.iter().any(|name| cmdline.contains(name) || exe.contains(name));
        if named && also.is_none_or(|word| cmdline.contains(word)) && pid != std::process::id() {
            found.push(pid);
        }
    }
    found
}

fn unmount_below(folders: &[&Path]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for target in
        targets.iter().rev().filter(|target| folders.iter().any(|folder| Path::new(target).starts_with(folder)))
    {
        let _ = Command::new("umount").args(["--lazy", target]).status();
    }
}
