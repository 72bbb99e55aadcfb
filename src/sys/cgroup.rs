//! Control groups, v1 (and hybrid) and v2: detection, a pod's groups and limits, usage, OOM counts,
//! killing and removal. Paths are absolute inside the hierarchy: `/kubepods/burstable/podUID`.

use super::process;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts to kill or remove what is still busy, this far apart.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const V2_CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Controller to mount point; co-mounted controllers share one. `named` = systemd's and the
    /// unified hierarchy, which only say to which service a process belongs.
    V1 {
        controllers: BTreeMap<String, PathBuf>,
        named: Vec<PathBuf>,
    },
    V2 {
        root: PathBuf,
        controllers: Vec<String>,
    },
}

/// Limits in the kernel's units; 0 = unset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: u64,
    pub cpu_quota_us: i64,
    pub cpu_period_us: u64,
    pub memory_bytes: i64,
    pub pids: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    /// File pages that the kernel would drop first.
    pub inactive_file_bytes: u64,
}

impl Cgroups {
    pub fn detect() -> io::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let found = Self::parse(&mounts).ok_or_else(|| io::Error::other("no cgroup hierarchy is mounted"))?;
        Ok(match found {
            Self::V2 { root, .. } => {
                let text = std::fs::read_to_string(root.join("cgroup.controllers"))?;
                Self::V2 { root, controllers: text.split_whitespace().map(str::to_owned).collect() }
            }
            v1 @ Self::V1 { .. } => v1,
        })
    }

    /// From `/proc/self/mountinfo`: controllers mounted as v1 make a machine v1, whatever else is there.
    fn parse(mountinfo: &str) -> Option<Self> {
        let mut controllers = BTreeMap::new();
        let mut named = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let before: Vec<&str> = before.split(' ').collect();
            let after: Vec<&str> = after.split(' ').collect();
            let (Some("/"), Some(point), Some(kind)) = (before.get(3).copied(), before.get(4), after.first()) else {
                continue;
            };
            let options = after.get(2).copied().unwrap_or_default();
            match *kind {
                "cgroup2" => unified = unified.or(Some(PathBuf::from(point))),
                "cgroup" if options.split(',').any(|option| option.starts_with("name=")) => {
                    named.push(PathBuf::from(point));
                }
                "cgroup" => controllers.extend(
                    options
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children"))
                        .map(|option| (option.to_owned(), PathBuf::from(point))),
                ),
                _ => {}
            }
        }
        match (controllers.is_empty(), unified) {
            (false, unified) => {
                named.extend(unified);
                Some(Self::V1 { controllers, named })
            }
            (true, Some(root)) => Some(Self::V2 { root, controllers: Vec::new() }),
            (true, None) => None,
        }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Whether limits of this kind can be set: boards often boot without `memory`.
    pub fn has(&self, controller: &str) -> bool {
        match self {
            Self::V1 { controllers, .. } => controllers.contains_key(controller),
            Self::V2 { controllers, .. } => controllers.iter().any(|known| known == controller),
        }
    }

    /// Mount points that carry resource controllers, each once.
    fn mounts(&self) -> Vec<&Path> {
        match self {
            Self::V1 { controllers, .. } => {
                let mut mounts: Vec<&Path> = controllers.values().map(PathBuf::as_path).collect();
                mounts.sort_unstable();
                mounts.dedup();
                mounts
            }
            Self::V2 { root, .. } => vec![root],
        }
    }

    fn file(&self, controller: &str, path: &str, name: &str) -> Option<PathBuf> {
        let mount = match self {
            Self::V1 { controllers, .. } => controllers.get(controller)?,
            Self::V2 { root, .. } => root,
        };
        Some(join(mount, path).join(name))
    }

    /// Makes the group and its ancestors in every hierarchy and sets its limits. Made already is success.
    pub fn create(&self, path: &str, limits: &Limits) -> io::Result<()> {
        for mount in self.mounts() {
            let mut directory = mount.to_owned();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                self.enable_children(&directory);
                directory.push(part);
                make(&directory)?;
            }
        }
        self.limit(path, limits)
    }

    /// What children of `parent` need before they can be limited. Errors show when a limit is set.
    fn enable_children(&self, parent: &Path) {
        match self {
            Self::V2 { controllers, .. } => {
                for name in V2_CONTROLLERS.iter().filter(|name| controllers.iter().any(|known| known == *name)) {
                    let _ = std::fs::write(parent.join("cgroup.subtree_control"), format!("+{name}"));
                }
            }
            Self::V1 { .. } => {
                // A v1 cpuset starts empty, and nothing can join an empty one.
                for name in ["cpuset.cpus", "cpuset.mems"] {
                    let own = std::fs::read_to_string(parent.join(name)).unwrap_or_default();
                    if own.trim().is_empty()
                        && let Some(above) = parent.parent()
                        && let Ok(inherited) = std::fs::read_to_string(above.join(name))
                    {
                        let _ = std::fs::write(parent.join(name), inherited.trim());
                    }
                }
            }
        }
    }

    /// Sets the limits that are given; those the machine cannot set are left out.
    pub fn limit(&self, path: &str, limits: &Limits) -> io::Result<()> {
        let mut values: Vec<(&str, &str, String)> = Vec::new();
        let v2 = self.is_v2();
        if limits.cpu_shares > 0 {
            let (name, value) =
                if v2 { ("cpu.weight", weight(limits.cpu_shares)) } else { ("cpu.shares", limits.cpu_shares) };
            values.push(("cpu", name, value.to_string()));
        }
        if limits.cpu_quota_us > 0 && limits.cpu_period_us > 0 {
            if v2 {
                values.push(("cpu", "cpu.max", format!("{} {}", limits.cpu_quota_us, limits.cpu_period_us)));
            } else {
                values.push(("cpu", "cpu.cfs_period_us", limits.cpu_period_us.to_string()));
                values.push(("cpu", "cpu.cfs_quota_us", limits.cpu_quota_us.to_string()));
            }
        }
        if limits.memory_bytes > 0 {
            let name = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            values.push(("memory", name, limits.memory_bytes.to_string()));
        }
        if limits.pids > 0 {
            values.push(("pids", "pids.max", limits.pids.to_string()));
        }
        for (controller, name, value) in values {
            if !self.has(controller) {
                continue;
            }
            if let Some(file) = self.file(controller, path, name) {
                std::fs::write(&file, value).map_err(|error| at(&file, &error))?;
            }
        }
        Ok(())
    }

    /// Makes a leaf in every hierarchy, the named ones too, and lists the files through which a
    /// process joins it: out of its service's group, so that the service's end is not the process's.
    pub fn create_leaf(&self, path: &str) -> io::Result<Vec<PathBuf>> {
        self.create(path, &Limits::default())?;
        // Only where there is a group to leave: each join costs a grace period of RCU, 6 to 20 ms on a
        // busy machine, and every shim pays it.
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let mounts: Vec<&Path> = match self {
            Self::V2 { root, .. } if in_group(&own, str::is_empty) => vec![root],
            Self::V2 { .. } => Vec::new(),
            Self::V1 { controllers, named } => {
                let mut mounts = Vec::new();
                for name in ["memory", "pids"] {
                    if in_group(&own, |list| list.split(',').any(|one| one == name)) {
                        mounts.extend(controllers.get(name).map(PathBuf::as_path));
                    }
                }
                for mount in named {
                    let unified = mount.join("cgroup.controllers").exists();
                    if in_group(&own, |list| if unified { list.is_empty() } else { list.starts_with("name=") }) {
                        // Not every machine lets us in there; the leaf is then the controllers' only.
                        let _ = std::fs::create_dir_all(join(mount, path));
                        mounts.push(mount);
                    }
                }
                mounts
            }
        };
        let files = mounts.into_iter().map(|mount| join(mount, path).join("cgroup.procs"));
        Ok(files.filter(|file| file.exists()).collect())
    }

    /// The group's directory where devices are restricted by program; `None` on v1, which has a controller.
    pub fn device_directory(&self, path: &str) -> Option<PathBuf> {
        match self {
            Self::V1 { .. } => None,
            Self::V2 { root, .. } => Some(join(root, path)),
        }
    }

    /// Lists the group's processes, one a line.
    pub fn processes_file(&self, path: &str) -> PathBuf {
        let file = self.file("pids", path, "cgroup.procs").or_else(|| self.file("memory", path, "cgroup.procs"));
        file.unwrap_or_else(|| {
            self.mounts().first().map(|mount| join(mount, path)).unwrap_or_default().join("cgroup.procs")
        })
    }

    /// Holds an `oom_kill N` line; absent without the memory controller.
    pub fn oom_counter_file(&self, path: &str) -> PathBuf {
        let name = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        self.file("memory", path, name).unwrap_or_default()
    }

    /// Usage of the group and all below it; what cannot be read is 0.
    pub fn usage(&self, path: &str) -> Usage {
        let read = |controller: &str, name: &str| {
            self.file(controller, path, name).and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
        };
        match self {
            Self::V1 { .. } => Usage {
                cpu_ns: read("cpuacct", "cpuacct.usage").trim().parse().unwrap_or(0),
                memory_bytes: read("memory", "memory.usage_in_bytes").trim().parse().unwrap_or(0),
                inactive_file_bytes: keyed(&read("memory", "memory.stat"), "total_inactive_file"),
            },
            Self::V2 { .. } => Usage {
                cpu_ns: keyed(&read("cpu", "cpu.stat"), "usage_usec").saturating_mul(1000),
                memory_bytes: read("memory", "memory.current").trim().parse().unwrap_or(0),
                inactive_file_bytes: keyed(&read("memory", "memory.stat"), "inactive_file"),
            },
        }
    }

    /// Kills every process in the group and below, until none is left. Blocking, bounded.
    pub fn kill(&self, path: &str) -> io::Result<()> {
        for _ in 0..BUSY_TRIES {
            if let Self::V2 { root, .. } = self {
                // One write kills all, forks too; older kernels lack it.
                let _ = std::fs::write(join(root, path).join("cgroup.kill"), "1");
            }
            let mut pids = Vec::new();
            for mount in self.mounts() {
                collect(&join(mount, path), &mut pids);
            }
            if pids.is_empty() {
                return Ok(());
            }
            pids.sort_unstable();
            pids.dedup();
            for pid in pids {
                process::kill(pid, libc::SIGKILL)?;
            }
            std::thread::sleep(BUSY_PAUSE);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes in cgroup {path} do not end")))
    }

    /// Removes the group and all below it from every hierarchy. Goes on after errors, returns the first.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let mut result = Ok(());
        let named = match self {
            Self::V1 { named, .. } => named.iter().map(PathBuf::as_path).collect(),
            Self::V2 { .. } => Vec::new(),
        };
        for mount in self.mounts().into_iter().chain(named) {
            result = result.and(remove_tree(&join(mount, path)));
        }
        result
    }
}

/// Whether `/proc/self/cgroup` names another group than the root in a hierarchy chosen by its controllers.
fn in_group(own: &str, hierarchy: impl Fn(&str) -> bool) -> bool {
    own.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        hierarchy(fields.next().unwrap_or_default()) && fields.next() != Some("/")
    })
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn make(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(directory, &error)),
        _ => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// v1 shares 2..262144 as v2 weight 1..10000.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

fn collect(directory: &Path, pids: &mut Vec<i32>) {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for child in children(directory) {
        collect(&child, pids);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for child in children(directory) {
        result = result.and(remove_tree(&child));
    }
    for attempt in 0..BUSY_TRIES {
        match std::fs::remove_dir(directory) {
            Ok(()) => return result,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return result,
            // The last process may still be on its way out.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt + 1 < BUSY_TRIES => {
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(error) => return result.and(Err(at(directory, &error))),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
35 30 0:30 /some/where /mnt/other rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_machines_are_v1() {
        let Some(Cgroups::V1 { controllers, named }) = Cgroups::parse(HYBRID) else { panic!("v1") };
        assert_eq!(controllers["cpuacct"], controllers["cpu"]);
        assert_eq!(controllers["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(named, [PathBuf::from("/sys/fs/cgroup/systemd"), PathBuf::from("/sys/fs/cgroup/unified")]);
        let cgroups = Cgroups::parse(HYBRID).expect("v1");
        assert_eq!(cgroups.mounts().len(), 2);
        assert_eq!(cgroups.oom_counter_file("/a/b"), Path::new("/sys/fs/cgroup/memory/a/b/memory.oom_control"));
    }

    #[test]
    fn unified_machines_are_v2() {
        let line = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(matches!(Cgroups::parse(line), Some(Cgroups::V2 { root, .. }) if root == Path::new("/sys/fs/cgroup")));
        assert_eq!(Cgroups::parse("1 2 0:1 / / rw - ext4 /dev/sda rw"), None);
    }

    #[test]
    fn only_groups_that_one_is_in_are_left() {
        let own = "3:cpu,cpuacct:/\n2:memory:/system.slice/edgelet.service\n1:name=systemd:/\n0::/\n";
        assert!(in_group(own, |list| list == "memory"));
        assert!(!in_group(own, |list| list.split(',').any(|one| one == "cpu")));
        assert!(!in_group(own, str::is_empty) && !in_group(own, |list| list.starts_with("name=")));
        assert!(in_group("0::/user.slice/a:b\n", str::is_empty));
    }

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(0, 1), (2, 1), (102, 4), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn keyed_values_match_whole_keys() {
        assert_eq!(keyed("inactive_file_x 1\ninactive_file 42\n", "inactive_file"), 42);
        assert_eq!(keyed("", "inactive_file"), 0);
    }
}
