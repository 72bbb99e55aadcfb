//! What a container becomes for libcontainer: pure functions from pod, container and image to the
//! OCI configuration (as JSON with the specification's own names) and to what the executor enforces.
//! Defaults are containerd's and the CRI's, which images are made for.

use super::{ContainerConfig, Mount, Propagation, Qos, Reason, Resources, RuntimeError, SandboxConfig, Security};
use crate::image::manifest::Process as ImageProcess;
use crate::sys::bpf::{self, DeviceRule};
use crate::sys::cgroup::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Below this the runtime's own set-up would not fit into the container's group.
const MEMORY_FLOOR_BYTES: i64 = 6 << 20;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capability names by bit.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A device with what the kernel says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    pub major: i64,
    pub minor: i64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `rwm`.
    pub access: String,
}

/// Everything a container's configuration depends on.
pub struct Input<'a> {
    pub sandbox: &'a SandboxConfig,
    pub container: &'a ContainerConfig,
    pub image: &'a ImageProcess,
    /// `/etc/passwd` and `/etc/group` of the image; empty when it has none.
    pub passwd: &'a str,
    pub group: &'a str,
    pub rootfs: &'a Path,
    /// Holds `hosts`, `resolv.conf` and `hostname`.
    pub files: &'a Path,
    /// The pod's `/dev/shm`.
    pub shm: &'a Path,
    /// The host's file that is mounted where the container writes its last words.
    pub termination_log: Option<&'a Path>,
    pub cgroup_path: &'a str,
    pub cgroup_v2: bool,
    pub memory_controller: bool,
    /// PID 1 of the shared process namespace.
    pub reaper: Option<i32>,
    /// Requested devices; every device of the host for a privileged container.
    pub devices: &'a [DeviceNode],
}

/// Who a process is, resolved to numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// What a process of the container runs with: its first one, and each exec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessContext {
    pub user: User,
    pub env: Vec<String>,
    pub cwd: String,
    pub no_new_privileges: bool,
    /// Bit set; all bits = everything the node has.
    pub capabilities: u64,
}

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `config.json`.
    pub config: Value,
    pub context: ProcessContext,
}

fn config_error(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(Reason::CreateContainerConfigError, message)
}

fn create_error(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(Reason::CreateContainerError, message)
}

/// The configuration of one container.
pub fn plan(input: &Input<'_>) -> Result<Plan, RuntimeError> {
    let Input { container, image, .. } = input;
    let security = &container.security;
    check_non_root(input)?;
    let account = resolve_user(security, &image.user, input.passwd, input.group)?;
    let arguments = arguments(container, image)?;
    let context = ProcessContext {
        env: environment(input, &account.home),
        cwd: working_directory(container, image),
        no_new_privileges: security.no_new_privileges,
        capabilities: capabilities(security)?,
        user: account.user,
    };
    let process = process(&context, &arguments, container.tty);
    let config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": input.rootfs, "readonly": security.read_only_root},
        "mounts": mounts(input),
        "linux": linux(input),
    });
    Ok(Plan { config, context })
}

/// One process in the container's context, as OCI writes it. Capabilities and seccomp are left out:
/// libcontainer would drop seccomp for exec, so our executor sets both.
pub fn process(context: &ProcessContext, arguments: &[String], terminal: bool) -> Value {
    let mut process = json!({
        "terminal": terminal,
        "user": {"uid": context.user.uid, "gid": context.user.gid, "additionalGids": context.user.groups},
        "args": arguments,
        "env": context.env,
        "cwd": context.cwd,
    });
    if context.no_new_privileges {
        // An explicit `false` means something else to libcontainer than its absence.
        process["noNewPrivileges"] = json!(true);
    }
    process
}

/// The pod's group below the configured root, and its QoS class above it.
pub fn pod_cgroup(root: &str, uid: &str, qos: Qos) -> String {
    let class = match qos {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{}/kubepods{class}/pod{uid}", root.trim_end_matches('/'))
}

/// A pod's or container's limits as the kernel takes them.
pub fn limits(resources: &Resources) -> Limits {
    Limits {
        cpu_shares: resources.cpu_shares,
        cpu_quota_us: resources.cpu_quota_us,
        cpu_period_us: resources.cpu_period_us,
        memory_bytes: floor(resources.memory_limit_bytes),
        pids: resources.pids_limit,
    }
}

fn floor(memory_bytes: i64) -> i64 {
    if memory_bytes > 0 { memory_bytes.max(MEMORY_FLOOR_BYTES) } else { 0 }
}

/// The kubelet's own check, in its words.
fn check_non_root(input: &Input<'_>) -> Result<(), RuntimeError> {
    let security = &input.container.security;
    if !security.run_as_non_root {
        return Ok(());
    }
    let pod = &input.sandbox.pod;
    let place = format!("(pod: \"{}_{}({})\", container: {})", pod.name, pod.namespace, pod.uid, input.container.name);
    let image_user = input.image.user.split(':').next().unwrap_or_default();
    match security.run_as_user {
        Some(0) => Err(config_error(format!("container's runAsUser breaks non-root policy {place}"))),
        Some(_) => Ok(()),
        None if image_user.is_empty() || image_user.parse() == Ok(0u32) => {
            Err(config_error(format!("container has runAsNonRoot and image will run as root {place}")))
        }
        None if image_user.parse::<u32>().is_err() => Err(config_error(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root \
             {place}"
        ))),
        None => Ok(()),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Account {
    user: User,
    home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(passwd: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        Some(PasswdEntry { name, uid, gid, home: fields.get(5).copied().unwrap_or_default() })
    })
}

/// Name, number and members.
fn group_entries(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        Some((*fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3).copied().unwrap_or_default()))
    })
}

fn resolve_user(security: &Security, image_user: &str, passwd: &str, group: &str) -> Result<Account, RuntimeError> {
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let wanted = match security.run_as_user {
        Some(uid) => uid.to_string(),
        None if image_name.is_empty() => "0".to_owned(),
        None => image_name.to_owned(),
    };
    let number: Option<u32> = wanted.parse().ok();
    let entry = passwd_entries(passwd).find(|entry| entry.name == wanted || Some(entry.uid) == number);
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(create_error(format!("unable to find user {wanted}: no matching entries in passwd file")));
        }
    };
    let gid = match security.run_as_group {
        Some(gid) => u32::try_from(gid).map_err(|_| create_error(format!("invalid group {gid}")))?,
        None if security.run_as_user.is_none() && !image_group.is_empty() => find_group(image_group, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let name = entry.as_ref().map_or("", |entry| entry.name);
    let home = entry.as_ref().map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    let groups = groups(security, gid, name, group);
    Ok(Account { user: User { uid, gid, groups }, home })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, RuntimeError> {
    let number = wanted.parse::<u32>().ok();
    let found = group_entries(group).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
    let missing = || create_error(format!("unable to find group {wanted}: no matching entries in group file"));
    number.or(found).ok_or_else(missing)
}

/// The primary group first: a process that drops it must not gain by that (CVE-2022-2995).
fn groups(security: &Security, gid: u32, name: &str, group: &str) -> Vec<u32> {
    let mut groups = vec![gid];
    if !security.strict_supplemental_groups && !name.is_empty() {
        let member = |members: &str| members.split(',').any(|member| member == name);
        groups.extend(group_entries(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    groups.extend(security.supplemental_groups.iter().filter_map(|gid| u32::try_from(*gid).ok()));
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    groups
}

fn arguments(container: &ContainerConfig, image: &ImageProcess) -> Result<Vec<String>, RuntimeError> {
    let own = !container.command.is_empty();
    let mut arguments = if own { container.command.clone() } else { image.entrypoint.clone().unwrap_or_default() };
    if !container.args.is_empty() {
        arguments.extend(container.args.iter().cloned());
    } else if !own {
        arguments.extend(image.cmd.iter().flatten().cloned());
    }
    if arguments.is_empty() { Err(create_error("no command specified")) } else { Ok(arguments) }
}

fn working_directory(container: &ContainerConfig, image: &ImageProcess) -> String {
    let own = [&container.working_dir, &image.working_dir].into_iter().find(|directory| !directory.is_empty());
    let directory = own.map_or("/", String::as_str);
    if directory.starts_with('/') { directory.to_owned() } else { format!("/{directory}") }
}

/// The image's variables, then the pod's host name, then the container's own; a later value takes the
/// earlier one's place.
fn environment(input: &Input<'_>, home: &str) -> Vec<String> {
    let mut env: Vec<String> = input.image.env.clone().unwrap_or_default();
    let mut set = |variable: String| {
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        let same = |known: &&mut String| known.split('=').next() == Some(name.as_str());
        match env.iter_mut().find(same) {
            Some(known) => *known = variable,
            None => env.push(variable),
        }
    };
    if input.container.tty {
        set("TERM=xterm".to_owned());
    }
    if !input.sandbox.hostname.is_empty() {
        set(format!("HOSTNAME={}", input.sandbox.hostname));
    }
    for (name, value) in &input.container.env {
        set(format!("{name}={value}"));
    }
    let has = |env: &[String], prefix: &str| env.iter().any(|variable| variable.starts_with(prefix));
    if !has(&env, "PATH=") {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={home}"));
    }
    env
}

fn capabilities(security: &Security) -> Result<u64, RuntimeError> {
    if security.privileged {
        return Ok(u64::MAX);
    }
    let bit = |name: &str| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let position = CAPABILITIES.iter().position(|known| *known == bare);
        position.map(|bit| 1u64 << bit).ok_or_else(|| create_error(format!("unknown capability {name:?}")))
    };
    let everything = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set = 0;
    for name in DEFAULT_CAPABILITIES {
        set |= bit(name)?;
    }
    if everything(&security.capabilities_add) {
        set = u64::MAX;
    }
    if everything(&security.capabilities_drop) {
        set = 0;
    }
    for name in security.capabilities_add.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set |= bit(name)?;
    }
    for name in security.capabilities_drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set &= !bit(name)?;
    }
    Ok(set)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn bind(destination: &str, source: &Path, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let security = &input.container.security;
    let access = if security.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
    ];
    // On v1 libcontainer mounts the controllers writable whatever is asked for, and root in the
    // container could lift its own limits: unprivileged containers get none there.
    if input.cgroup_v2 || security.privileged {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]));
    }
    mounts.extend(pod_files(input));
    let own: Vec<&Mount> = input.container.mounts.iter().collect();
    mounts.retain(|mount| !own.iter().any(|own| same_place(&own.destination, &mount["destination"])));
    let mut volumes: Vec<Value> = own.into_iter().map(volume).collect();
    // Parents before what is mounted below them.
    volumes.sort_by_key(|mount| {
        mount["destination"].as_str().unwrap_or_default().trim_end_matches('/').matches('/').count()
    });
    mounts.extend(volumes);
    mounts
}

fn same_place(own: &str, default: &Value) -> bool {
    default.as_str().is_some_and(|default| own.trim_end_matches('/') == default)
}

fn pod_files(input: &Input<'_>) -> Vec<Value> {
    let access = if input.container.security.read_only_root { "ro" } else { "rw" };
    let shm = if input.sandbox.host_ipc { Path::new("/dev/shm") } else { input.shm };
    let mut mounts = vec![bind("/dev/shm", shm, &["rbind", "rprivate", "nosuid", "noexec", "nodev"])];
    for (name, destination) in
        [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        mounts.push(bind(destination, &input.files.join(name), &["rbind", "rprivate", access]));
    }
    if let Some(log) = input.termination_log {
        mounts.push(bind(&input.container.termination_message_path, log, &["rbind", "rprivate", "rw"]));
    }
    mounts
}

fn volume(volume: &Mount) -> Value {
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (volume.read_only, volume.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    bind(&volume.destination, &volume.source, &["rbind", propagation, access])
}

fn linux(input: &Input<'_>) -> Value {
    let security = &input.container.security;
    // Network, IPC and UTS are the shim's: what is not listed is inherited from it.
    let mut namespaces = vec![json!({"type": "mount"})];
    match (input.sandbox.host_pid, input.reaper) {
        (true, _) => {}
        (false, Some(reaper)) => namespaces.push(json!({"type": "pid", "path": format!("/proc/{reaper}/ns/pid")})),
        (false, None) => namespaces.push(json!({"type": "pid"})),
    }
    if input.cgroup_v2 && !security.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": input.cgroup_path,
        "resources": resources(input),
        "devices": input.devices.iter().map(device).collect::<Vec<_>>(),
    });
    if !security.privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READONLY_PATHS);
    }
    if input.container.mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional) {
        linux["rootfsPropagation"] = json!("shared");
    }
    linux
}

fn device(device: &DeviceNode) -> Value {
    json!({"path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
        "fileMode": device.mode & 0o7777, "uid": device.uid, "gid": device.gid})
}

fn resources(input: &Input<'_>) -> Value {
    let wanted = &input.container.resources;
    let mut cpu = json!({});
    if wanted.cpu_shares > 0 {
        cpu["shares"] = json!(wanted.cpu_shares);
    }
    if wanted.cpu_quota_us > 0 {
        cpu["quota"] = json!(wanted.cpu_quota_us);
        cpu["period"] = json!(if wanted.cpu_period_us > 0 { wanted.cpu_period_us } else { 100_000 });
    }
    let mut resources = json!({"cpu": cpu, "devices": device_rules(input)});
    if wanted.memory_limit_bytes > 0 && input.memory_controller {
        resources["memory"] = json!({"limit": floor(wanted.memory_limit_bytes)});
    }
    if input.cgroup_v2 && input.memory_controller {
        // As the kubelet does: no container goes on without those of its processes the kernel chose to kill.
        resources["unified"] = json!({"memory.oom.group": "1"});
    }
    if wanted.pids_limit > 0 {
        resources["pids"] = json!({"limit": wanted.pids_limit});
    }
    if !wanted.hugepage_limits.is_empty() {
        let limit = |(size, limit): (&String, &u64)| {
            // Kubernetes writes `2Mi`, the kernel `2MB`.
            json!({"pageSize": size.replace("Ki", "KB").replace("Mi", "MB").replace("Gi", "GB"), "limit": limit})
        };
        resources["hugepageLimits"] = wanted.hugepage_limits.iter().map(limit).collect();
    }
    resources
}

/// Denied unless allowed; libcontainer adds `/dev/null` and its like by itself.
fn device_rules(input: &Input<'_>) -> Vec<Value> {
    if input.container.security.privileged {
        return vec![json!({"allow": true, "access": "rwm"})];
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(input.devices.iter().map(|device| {
        json!({"allow": true, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
            "access": device.access})
    }));
    rules
}

/// The same for cgroup v2, where a program decides; `None` = everything is allowed.
pub fn device_access(container: &ContainerConfig, devices: &[DeviceNode]) -> Option<Vec<DeviceRule>> {
    if container.security.privileged {
        return None;
    }
    let rule = |block, major, minor, access| DeviceRule { block, major, minor, access };
    let all = bpf::MKNOD | bpf::READ | bpf::WRITE;
    // Nodes may be made, but only the harmless ones opened: null, zero, full, random, tty, console, ptmx, pts.
    let mut rules = vec![rule(false, None, None, bpf::MKNOD), rule(true, None, None, bpf::MKNOD)];
    let harmless = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(harmless.map(|(major, minor)| rule(false, Some(major), Some(minor), all)));
    rules.push(rule(false, Some(136), None, all));
    rules.extend(devices.iter().map(|device| {
        let bit = |letter, bit| if device.access.contains(letter) { bit } else { 0 };
        let access = bit('m', bpf::MKNOD) | bit('r', bpf::READ) | bit('w', bpf::WRITE);
        let number = |number: i64| u32::try_from(number).ok();
        rule(device.kind == 'b', number(device.major), number(device.minor), access)
    }));
    Some(rules)
}

/// `/etc/hosts` as the kubelet writes it.
pub fn hosts_file(config: &SandboxConfig, ip: Option<std::net::IpAddr>) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
                    ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\t\
                    ip6-allrouters\n"
        .to_owned();
    if let Some(ip) = ip {
        let names: Vec<&str> =
            [config.fqdn.as_str(), config.hostname.as_str()].into_iter().filter(|name| !name.is_empty()).collect();
        text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
    if !config.hosts_entries.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for (ip, names) in &config.hosts_entries {
            text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
        }
    }
    text
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
