//! A fleet on one machine: every board has a network namespace, folders, a cgroup and a bridge of its own, and hangs
//! by a veth on a switch in yet another namespace; one may hang behind a router that translates addresses.
//! What it leaves behind is removed, also after a failure.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No single command of a test takes longer; it is killed then.
const COMMAND_LIMIT_S: u32 = 120;
pub const SERVER_IP: &str = "192.0.2.1";
const DETOUR_IP: &str = "192.0.2.253";
const DETOUR: &str = r#"
import asyncio, os, sys
server, delay = sys.argv[1], 0.0
def obey():
    global delay
    for line in sys.stdin:
        delay = float(line)
async def pump(reader, writer):
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue(1000)
    async def out():
        while True:
            at, data = await queue.get()
            await asyncio.sleep(max(0, at - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()
    task = asyncio.create_task(out())
    data = b"x"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = b""
        await queue.put((loop.time() + delay, data))
    await task
async def accept(reader, writer):
    far_reader, far_writer = await asyncio.open_connection(server, 6443)
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
async def main():
    await asyncio.start_server(accept, "0.0.0.0", 6443)
    await asyncio.get_running_loop().run_in_executor(None, obey)
    os._exit(0)
asyncio.run(main())
"#;
const ROUTER_IP: &str = "192.0.2.254";
pub const IMAGE: &str = "localhost/busybox:v1";

static BEDS: AtomicU32 = AtomicU32::new(0);

/// Root, or loudly nothing.
pub fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let required = std::env::var_os("EDGELET_REQUIRE_ALL_TIERS").is_some();
        assert!(!required, "this tier needs root, and every tier is required");
        eprintln!("NOT RUN: this tier needs root (tests/run asks for it)");
    }
    root
}

/// A network namespace, kept by a process that ends with its standard input.
pub struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let namespace = Self(holder.expect("unshare is part of util-linux"));
        let outer = fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", namespace.0.id());
        let entered = || fs::read_link(&path).is_ok_and(|link| link != outer);
        assert!(bounded(Duration::from_secs(10), entered), "a network namespace");
        namespace.ip("link set lo up");
        namespace
    }

    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg("--").arg(program);
        command
    }

    /// `ip …`; fails the test when it fails.
    pub fn ip(&self, arguments: &str) -> String {
        ok(self.run("ip").args(arguments.split(' ')))
    }

    /// `nft …`.
    pub fn nft(&self, arguments: &str) {
        ok(self.run("nft").arg(arguments));
    }

    /// Writes below `/proc/sys`.
    pub fn sysctl(&self, path: &str, value: &str) {
        ok(self.run("sh").args(["-c", &format!("echo {value} > /proc/sys/{path}")]));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs to its end, which must be a good one; its output.
pub fn ok(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One machine.
pub struct Machine {
    pub name: String,
    pub namespace: Namespace,
    pub directory: PathBuf,
    run_directory: PathBuf,
    cgroup: String,
    bridge: String,
    process: Option<Child>,
}

impl Machine {
    fn flags(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        [
            ("--node-name", self.name.clone()),
            ("--bridge", self.bridge.clone()),
            ("--cgroup-root", self.cgroup.clone()),
            ("--data-dir", path(&self.data())),
            ("--run-dir", path(&self.run_directory)),
            ("--log-dir", path(&self.directory.join("logs"))),
            ("--config", "/dev/null".to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts `edgelet` with these words and the machine's own flags.
    pub fn start(&mut self, words: &[&str]) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = fs::File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut command = self.namespace.run(env!("CARGO_BIN_EXE_edgelet"));
        command.args(words).args(self.flags());
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    #[allow(dead_code, reason = "the benchmark asks")]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// As a power cut of edgelet alone: pods go on.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Power is cut: no process, mount, link or rule is left, and what was in memory is lost.
    pub fn cut_power(&mut self) {
        self.clean();
        let _ = self.namespace.run("ip").args(["link", "delete", &self.bridge]).status();
        let _ = self.namespace.run("nft").args(["flush", "ruleset"]).status();
    }

    /// Our own command line on this machine, which asks nobody else.
    pub fn local(&self, arguments: &[&str]) -> Output {
        let mut command = self.namespace.run(env!("CARGO_BIN_EXE_edgelet"));
        command.args(arguments).arg("--local").arg("--data-dir").arg(self.data());
        command.arg("--run-dir").arg(&self.run_directory).stdin(Stdio::null()).output().unwrap()
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The ways to the other nodes, as `edgelet node paths` prints them on this machine.
    pub fn paths(&self) -> String {
        let mut command = self.namespace.run(env!("CARGO_BIN_EXE_edgelet"));
        command.args(["node", "paths", "--run-dir"]).arg(&self.run_directory);
        String::from_utf8_lossy(&command.stdin(Stdio::null()).output().unwrap().stdout).into_owned()
    }

    /// The way to a node and whether it works: two columns of those.
    pub fn way(&self, to: &str) -> (String, String) {
        let paths = self.paths();
        let line = paths.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|line| line[0] == to);
        line.map(|line| (line[3].to_owned(), line[5].to_owned())).unwrap_or_default()
    }

    /// Bytes on the machine's own wire so far, both ways.
    #[allow(dead_code, reason = "read by benches/fleet.rs")]
    pub fn wire_bytes(&self) -> u64 {
        let text = self.namespace.ip("-s -j link show dev eth0");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bytes = |way: &str| value[0]["stats64"][way]["bytes"].as_u64();
        bytes("rx").unwrap() + bytes("tx").unwrap()
    }

    /// The busybox image: Debian's static binary and links to its applets.
    pub fn build_image(&self) {
        let root = self.directory.join("image");
        for folder in ["bin", "etc", "tmp", "www"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed by tests/run");
        for applet in "sh cat echo ls sleep httpd wget nslookup hostname ps nc ping mkdir chmod dd wc".split(' ') {
            let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
        }
        let mut command = self.namespace.run(env!("CARGO_BIN_EXE_edgelet"));
        command.args(["image", "build"]).arg(&root).args(["--tag", IMAGE, "--env", "PATH=/bin"]);
        ok(command.arg("--data-dir").arg(self.data()).args(["--", "sh"]));
    }

    fn processes(&self) -> Vec<u32> {
        let names = [self.directory.display().to_string(), self.cgroup.clone()];
        processes_naming(&names)
    }

    fn clean(&mut self) {
        self.kill();
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        for path in cgroups(&self.cgroup) {
            for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        }
        unmount_below(&[&self.directory, &self.run_directory]);
        bounded(Duration::from_secs(5), || {
            for path in cgroups(&self.cgroup).iter().rev() {
                let _ = fs::remove_dir(path);
            }
            cgroups(&self.cgroup).is_empty()
        });
        let _ = fs::remove_dir_all(&self.run_directory);
    }
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    pub frames: u64,
    pub bytes: u64,
}

/// Of a frame, not seen by the rules that count.
const ETHERNET_BYTES: u64 = 14;
/// What is on a board's wire beside its connections to the server.
const CAUSES: [(&str, &str); 6] = [
    ("address resolution (ARP)", "ether type arp"),
    ("IPv6 neighbours and routers", "meta l4proto icmpv6"),
    ("probes between nodes", "udp dport 8473"),
    ("answers to probes", "udp sport 8473"),
    ("VXLAN", "udp dport 8472"),
    ("DNS", "udp dport 53"),
];

/// Switch, router, server and nodes.
pub struct Bed {
    pub switch: Namespace,
    pub router: Namespace,
    pub server: Machine,
    pub nodes: BTreeMap<String, Machine>,
    directory: PathBuf,
    unique: String,
    /// More routers, each with a network of its own behind it.
    routers: BTreeMap<u8, Namespace>,
    detour: Option<(Namespace, Child)>,
}

impl Bed {
    /// Starts the server; the API answers when it returns.
    pub fn new(name: &str) -> Self {
        let unique = format!("{}-{}", std::process::id(), BEDS.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(format!("edgelet-{name}-{unique}"));
        fs::create_dir_all(&directory).unwrap();
        eprintln!("{name}: state in {}", directory.display());
        let (switch, router) = (Namespace::new(), Namespace::new());
        switch.ip("link add lan type bridge");
        switch.ip("link set lan up");
        switch.nft("add table bridge trouble");
        switch.nft("add chain bridge trouble frames { type filter hook forward priority 0 ; }");
        plug(&switch, &router, "router", ROUTER_IP, 24);
        router.sysctl("net/ipv4/ip_forward", "1");
        router.nft("add table ip nat");
        router.nft("add chain ip nat out { type nat hook postrouting priority 100 ; }");
        router.nft("add rule ip nat out oifname eth0 masquerade");
        let server = machine(&directory, &unique, "server");
        plug(&switch, &server.namespace, "server", SERVER_IP, 24);
        let mut bed = Self {
            switch,
            router,
            server,
            nodes: BTreeMap::new(),
            directory,
            unique,
            routers: BTreeMap::new(),
            detour: None,
        };
        bed.server.build_image();
        bed.start_server();
        bed
    }

    /// From now on counts what passes between the switch and a board, by cause.
    pub fn count(&self, name: &str) {
        let table = format!("count-{name}");
        let nft = |words: &str| self.switch.nft(&words.replace("TABLE", &format!("bridge {table}")));
        nft("add table TABLE");
        nft("add chain TABLE causes");
        for way in ["sport", "dport"] {
            nft(&format!("add set TABLE by-{way} {{ type inet_service ; size 1024 ; flags dynamic ; counter ; }}"));
        }
        nft("add rule TABLE causes tcp dport 6443 update @by-sport { tcp sport } accept");
        nft("add rule TABLE causes tcp sport 6443 update @by-dport { tcp dport } accept");
        for (cause, rule) in CAUSES {
            nft(&format!("add rule TABLE causes {rule} counter accept comment \"{cause}\""));
        }
        nft("add rule TABLE causes counter comment \"other\"");
        nft("add chain TABLE frames { type filter hook forward priority 1 ; }");
        for way in ["iifname", "oifname"] {
            nft(&format!("add rule TABLE frames {way} port-{name} jump causes"));
        }
    }

    /// What was counted so far, by cause; bytes as on an Ethernet wire. Of a board's connections to the server, the
    /// one whose idle timer the kernel keeps is the API client's.
    pub fn counted(&self, name: &str) -> BTreeMap<String, Counted> {
        let sockets = ok(self.nodes[name].namespace.run("ss").args(["-tnoH"]));
        let purpose = |port: u64| {
            let own = sockets.lines().find(|line| line.contains(&format!(":{port} ")));
            match own {
                Some(line) if line.contains("timer:(keepalive") => "API connection",
                Some(_) => "tunnel",
                None => "connections that have ended",
            }
        };
        let listed = ok(self.switch.run("nft").args(["-j", "list", "table", "bridge", &format!("count-{name}")]));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let mut found: BTreeMap<String, Counted> = BTreeMap::new();
        let mut add = |cause: &str, counter: &serde_json::Value| {
            let (frames, bytes) = (counter["packets"].as_u64().unwrap(), counter["bytes"].as_u64().unwrap());
            let counted = found.entry(cause.to_owned()).or_default();
            counted.frames += frames;
            counted.bytes += bytes + frames * ETHERNET_BYTES;
        };
        for object in listed["nftables"].as_array().unwrap() {
            for element in object["set"]["elem"].as_array().into_iter().flatten() {
                add(purpose(element["elem"]["val"].as_u64().unwrap()), &element["elem"]["counter"]);
            }
            let statements = object["rule"]["expr"].as_array().into_iter().flatten();
            for counter in statements.filter_map(|statement| statement.get("counter")) {
                add(object["rule"]["comment"].as_str().unwrap(), counter);
            }
        }
        found
    }

    /// Drops what a board sends to the switch, or gets from it.
    pub fn cut(&self, name: &str, sent: bool, received: bool) {
        self.rule(&format!("iifname port-{name} drop"), sent);
        self.rule(&format!("oifname port-{name} drop"), received);
    }

    /// Loses this part of a board's frames, each way.
    pub fn lose(&self, name: &str, percent: u32) {
        for way in ["iifname", "oifname"] {
            self.rule(&format!("{way} port-{name} numgen random mod 100 lt {percent} drop"), true);
        }
    }

    /// Drops the IP packets that one board sends another; addresses are still resolved, and the server is reached.
    pub fn part(&self, from: &str, to: &str) {
        self.rule(&format!("iifname port-{from} oifname port-{to} ether type ip drop"), true);
    }

    fn rule(&self, rule: &str, wanted: bool) {
        if wanted {
            self.switch.nft(&format!("add rule bridge trouble frames {rule}"));
        }
    }

    /// The network is whole again.
    pub fn heal(&self) {
        self.switch.nft("flush chain bridge trouble frames");
    }

    /// A detour to the server, at an address of its own. The kernel's own delays (tc netem) are missing from many
    /// kernels, so it is a program; it ends with its standard input.
    pub fn detour(&mut self) -> String {
        let namespace = Namespace::new();
        plug(&self.switch, &namespace, "detour", DETOUR_IP, 24);
        let mut command = namespace.run("python3");
        command.args(["-c", DETOUR, SERVER_IP]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("tests/run installs python3");
        let listens = || ok(namespace.run("ss").args(["-ltn"])).contains(":6443");
        assert!(bounded(Duration::from_secs(20), listens), "the detour listens");
        self.detour = Some((namespace, child));
        format!("https://{DETOUR_IP}:6443")
    }

    /// Delays every byte that takes the detour from now on by this much, each way.
    pub fn delay(&mut self, delay_s: f64) {
        use std::io::Write;
        let (_, child) = self.detour.as_mut().expect("a detour");
        let input = child.stdin.as_mut().expect("it listens to us");
        writeln!(input, "{delay_s}").and_then(|()| input.flush()).expect("it runs");
    }

    pub fn start_server(&mut self) {
        let _ = fs::remove_file(self.kubeconfig());
        let port = ["--bind-address", "0.0.0.0", "--https-listen-port", "6443", "--tls-san", DETOUR_IP];
        self.server.start(&[&["server", "--node-ip", SERVER_IP][..], &port].concat());
        self.until("the API answers", |bed| {
            bed.kubeconfig().exists() && bed.edgelet(&["get", "namespaces", "default"]).status.success()
        });
    }

    fn kubeconfig(&self) -> PathBuf {
        self.server.data().join("kubeconfig")
    }

    /// A board on the switch, with its image and nothing else.
    pub fn add(&mut self, name: &str, address: &str) {
        let machine = machine(&self.directory, &self.unique, name);
        plug(&self.switch, &machine.namespace, name, address, 24);
        machine.build_image();
        self.nodes.insert(name.to_owned(), machine);
    }

    /// A board behind the router: it reaches the switch's network, nothing reaches it.
    pub fn add_behind_router(&mut self, name: &str) {
        let machine = machine(&self.directory, &self.unique, name);
        let (inner, outer) = (pid(&machine.namespace), pid(&self.router));
        self.router.ip(&format!("link add name inside type veth peer name eth0 netns {inner}"));
        let _ = outer;
        self.router.ip("addr add 198.51.100.1/24 dev inside");
        self.router.ip("link set inside up");
        machine.namespace.ip("addr add 198.51.100.2/24 dev eth0");
        machine.namespace.ip("link set eth0 up");
        machine.namespace.ip("route add default via 198.51.100.1");
        machine.build_image();
        self.nodes.insert(name.to_owned(), machine);
    }

    /// A board alone behind a router of its own, in 10.66.N.0/24. The routers know the way to each other's networks,
    /// and translate addresses for all else.
    pub fn add_behind(&mut self, name: &str, number: u8) {
        let machine = machine(&self.directory, &self.unique, name);
        let router = Namespace::new();
        plug(&self.switch, &router, &format!("router{number}"), &format!("192.0.2.{}", 200 + number), 24);
        router.sysctl("net/ipv4/ip_forward", "1");
        router.nft("add table ip nat");
        router.nft("add chain ip nat out { type nat hook postrouting priority 100 ; }");
        router.nft("add rule ip nat out oifname eth0 ip daddr != 10.66.0.0/16 masquerade");
        router.nft("add chain ip nat through { type filter hook forward priority 0 ; }");
        router.ip(&format!("link add name inside type veth peer name eth0 netns {}", pid(&machine.namespace)));
        router.ip(&format!("addr add 10.66.{number}.1/24 dev inside"));
        router.ip("link set inside up");
        machine.namespace.ip(&format!("addr add 10.66.{number}.2/24 dev eth0"));
        machine.namespace.ip("link set eth0 up");
        machine.namespace.ip(&format!("route add default via 10.66.{number}.1"));
        for (other, their) in &self.routers {
            router.ip(&format!("route add 10.66.{other}.0/24 via 192.0.2.{}", 200 + other));
            their.ip(&format!("route add 10.66.{number}.0/24 via 192.0.2.{}", 200 + number));
        }
        machine.build_image();
        self.routers.insert(number, router);
        self.nodes.insert(name.to_owned(), machine);
    }

    /// Whether the routers let UDP through.
    pub fn let_udp_through(&self, wanted: bool) {
        for router in self.routers.values() {
            router.nft("flush chain ip nat through");
            if !wanted {
                router.nft("add rule ip nat through meta l4proto udp drop");
            }
        }
    }

    pub fn node(&mut self, name: &str) -> &mut Machine {
        self.nodes.get_mut(name).expect("a node of this bed")
    }

    /// Our own command line, on the server's board as its administrator.
    pub fn edgelet(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.server.namespace.run("timeout");
        command.arg(COMMAND_LIMIT_S.to_string()).arg(env!("CARGO_BIN_EXE_edgelet")).args(arguments);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.directory);
        command
    }

    /// The same; its output. Fails the test when it fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.edgelet(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "edgelet {arguments:?}: {text}{errors}\n{}", self.scene());
        text
    }

    pub fn apply(&self, manifest: &str) {
        use std::io::Write;
        let mut child =
            self.command(&["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "apply\n{}", self.scene());
    }

    pub fn get(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.must(&[&["get"][..], arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// `True`, `False` or `Unknown`; empty when there is no such node.
    pub fn ready(&self, node: &str) -> String {
        let nodes = self.get(&["nodes"]);
        let node = nodes["items"].as_array().unwrap().iter().find(|one| one["metadata"]["name"] == node).cloned();
        let conditions = node.and_then(|node| node["status"]["conditions"].as_array().cloned()).unwrap_or_default();
        let ready = conditions.into_iter().find(|one| one["type"] == "Ready");
        ready.map(|one| one["status"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    }

    /// Waits for a condition of the world outside; fails the test after two minutes.
    pub fn until(&self, what: &str, condition: impl FnMut(&Self) -> bool) -> Duration {
        self.until_within(120, what, condition)
    }

    pub fn until_within(&self, limit_s: u64, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        assert!(bounded(Duration::from_secs(limit_s), || condition(self)), "timed out: {what}\n{}", self.scene());
        begun.elapsed()
    }

    /// What there is to see when something went wrong.
    pub fn scene(&self) -> String {
        let mut text = String::new();
        for what in [&["get", "nodes"][..], &["get", "pods", "-A", "-o", "wide"]] {
            let output = self.edgelet(what);
            text.push_str(&String::from_utf8_lossy(&output.stdout));
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        for machine in std::iter::once(&self.server).chain(self.nodes.values()) {
            text.push_str(&format!("--- {} ---\n{}\n{}\n", machine.name, machine.paths(), machine.log()));
        }
        text
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.detour {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.server.clean();
        self.nodes.values_mut().for_each(Machine::clean);
        if std::thread::panicking() {
            eprintln!("state kept in {}", self.directory.display());
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A pod on one node that says so and sleeps.
pub fn pod(name: &str, node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, fleet: storm}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: "{IMAGE}", command: [sh, -c, "echo hello from {node}; exec sleep 10000"]}}
"#
    )
}

fn machine(directory: &Path, unique: &str, name: &str) -> Machine {
    let place = directory.join(name);
    fs::create_dir_all(&place).unwrap();
    Machine {
        name: name.to_owned(),
        namespace: Namespace::new(),
        directory: place,
        run_directory: PathBuf::from(format!("/run/edgelet-fleet-{unique}-{name}")),
        cgroup: format!("edgelet-fleet-{unique}-{name}"),
        bridge: "edge0".to_owned(),
        process: None,
    }
}

fn pid(namespace: &Namespace) -> u32 {
    namespace.0.id()
}

/// A veth from the switch to a namespace, where it is `eth0`; on the switch it is named after the machine.
fn plug(switch: &Namespace, inside: &Namespace, port: &str, address: &str, prefix: u8) {
    switch.ip(&format!("link add name port-{port} type veth peer name eth0 netns {}", pid(inside)));
    switch.ip(&format!("link set port-{port} master lan up"));
    inside.ip(&format!("addr add {address}/{prefix} dev eth0"));
    inside.ip("link set eth0 up");
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

fn processes_naming(names: &[String]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if names.iter().any(|name| cmdline.contains(name)) && pid != std::process::id() {
            found.push(pid);
        }
    }
    found
}

fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = vec![Path::new("/sys/fs/cgroup").join(name)];
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    found.extend(hierarchies.map(|entry| entry.path().join(name)));
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

fn unmount_below(folders: &[&Path]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for target in
        targets.iter().rev().filter(|target| folders.iter().any(|folder| Path::new(target).starts_with(folder)))
    {
        let _ = Command::new("umount").args(["--lazy", target]).status();
    }
}
