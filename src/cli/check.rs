//! `edgelet check`: what this machine lacks, each with the line that mends it.
//! The verdicts are a pure function of facts; gathering the facts reads files and nothing else.

use std::path::Path;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only what fails or warns
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    Warning,
    Failure,
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    level: Level,
    what: String,
    mend: String,
}

/// What the machine says of itself.
#[derive(Debug, Default)]
struct Facts {
    root: bool,
    kernel: String,
    /// Names in `/proc/filesystems`.
    filesystems: Vec<String>,
    /// Controllers that can be used, v1 or v2.
    controllers: Vec<String>,
    unified: bool,
    /// `cgroup_disable=memory` is on the kernel's command line.
    memory_disabled: bool,
    /// Built in or loadable.
    features: Vec<(&'static str, bool)>,
    bridge_nf: bool,
    memory_bytes: u64,
    swap: bool,
    clock_plausible: bool,
    drop_policies: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let verdicts = judge(&gather());
    for verdict in verdicts.iter().filter(|verdict| !arguments.quiet || verdict.level != Level::Ok) {
        let mark = match verdict.level {
            Level::Ok => "ok  ",
            Level::Warning => "warn",
            Level::Failure => "FAIL",
        };
        println!("{mark}  {}", verdict.what);
        if !verdict.mend.is_empty() {
            println!("      {}", verdict.mend);
        }
    }
    let failed = verdicts.iter().any(|verdict| verdict.level == Level::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What stands in the way of running pods here; empty when nothing does.
pub fn obstacles() -> Vec<String> {
    let failed = judge(&gather()).into_iter().filter(|verdict| verdict.level == Level::Failure);
    failed.map(|verdict| format!("{}: {}", verdict.what, verdict.mend)).collect()
}

fn judge(facts: &Facts) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut say = |good: bool, bad: Level, what: String, mend: &str| {
        let (level, mend) = if good { (Level::Ok, "") } else { (bad, mend) };
        verdicts.push(Verdict { level, what, mend: mend.to_owned() });
    };
    say(
        facts.root,
        Level::Failure,
        "runs as root".into(),
        "run it with sudo: containers, namespaces and nftables need root",
    );
    say(
        at_least(&facts.kernel, (5, 4)),
        Level::Failure,
        format!("kernel {}", facts.kernel),
        "update the system: Linux 5.4 is the oldest that works",
    );
    let mode = if facts.unified { "v2" } else { "v1" };
    for controller in ["cpu", "cpuset", "pids"] {
        let have = facts.controllers.iter().any(|one| one == controller);
        say(
            have,
            Level::Failure,
            format!("cgroup {mode} controller {controller}"),
            "use a kernel with this cgroup controller",
        );
    }
    let memory = facts.controllers.iter().any(|one| one == "memory");
    let firmware =
        "add `cgroup_enable=memory cgroup_memory=1` to the one line of /boot/firmware/cmdline.txt and reboot";
    say(memory, Level::Failure, format!("cgroup {mode} controller memory"), firmware);
    if facts.memory_disabled && memory {
        say(
            false,
            Level::Warning,
            "the firmware disables the memory cgroup, a later option enables it again".into(),
            firmware,
        );
    }
    let overlay = facts.filesystems.iter().any(|one| one == "overlay") || has(facts, "overlay");
    say(overlay, Level::Failure, "overlay file system".into(), "modprobe overlay (kernel option CONFIG_OVERLAY_FS)");
    for (module, mend) in [
        ("bridge", "modprobe bridge (kernel option CONFIG_BRIDGE)"),
        ("veth", "modprobe veth (kernel option CONFIG_VETH)"),
        ("nf_tables", "modprobe nf_tables (kernel option CONFIG_NF_TABLES)"),
        ("nf_nat", "modprobe nf_nat (kernel option CONFIG_NF_NAT)"),
    ] {
        say(has(facts, module), Level::Failure, format!("kernel feature {module}"), mend);
    }
    let vxlan = "only needed between networks: apt install linux-modules-extra-raspi on Ubuntu for Raspberry Pi";
    say(has(facts, "vxlan"), Level::Warning, "kernel feature vxlan".into(), vxlan);
    let megabytes = facts.memory_bytes >> 20;
    say(megabytes >= 400, Level::Warning, format!("{megabytes} MB of memory"), "512 MB is the least that was tried");
    say(
        facts.clock_plausible,
        Level::Warning,
        "the clock is plausible".into(),
        "install an NTP client (apt install systemd-timesyncd): this board has no clock battery",
    );
    say(
        !facts.bridge_nf,
        Level::Warning,
        "bridge-nf-call-iptables is 0".into(),
        "edgelet sets it to 0 at start; another program (docker) may need 1",
    );
    say(
        !facts.swap,
        Level::Warning,
        "no swap on a disk".into(),
        "swap wears the SD card out: dphys-swapfile swapoff, or use zram",
    );
    say(
        !facts.drop_policies,
        Level::Warning,
        "no firewall drops forwarded packets".into(),
        "accept the pod network in your firewall, e.g. `ufw default allow routed`",
    );
    verdicts
}

fn has(facts: &Facts, feature: &str) -> bool {
    facts.features.iter().any(|(name, have)| *name == feature && *have)
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= wanted
}

fn gather() -> Facts {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let filesystems =
        read("/proc/filesystems").lines().filter_map(|line| line.split('\t').next_back()).map(str::to_owned).collect();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let controllers = if unified {
        read("/sys/fs/cgroup/cgroup.controllers").split_whitespace().map(str::to_owned).collect()
    } else {
        v1_controllers(&read("/proc/cgroups"))
    };
    let features = ["overlay", "bridge", "veth", "nf_tables", "nf_nat", "vxlan"];
    Facts {
        root: rustix::process::geteuid().is_root(),
        features: features.map(|feature| (feature, feature_present(feature, &kernel))).to_vec(),
        kernel,
        filesystems,
        controllers,
        unified,
        memory_disabled: read("/proc/cmdline").split_whitespace().any(|option| option == "cgroup_disable=memory"),
        bridge_nf: read("/proc/sys/net/bridge/bridge-nf-call-iptables").trim() == "1",
        memory_bytes: meminfo_bytes(&read("/proc/meminfo"), "MemTotal:"),
        swap: read("/proc/swaps").lines().skip(1).any(|line| !line.starts_with("/dev/zram")),
        clock_plausible: crate::config::is_plausible(crate::clock::Clock::real().now()),
        drop_policies: read("/proc/net/ip_tables_names").lines().any(|table| table == "filter"),
    }
}

/// Enabled controllers of `/proc/cgroups`: name, hierarchy, cgroups, enabled.
fn v1_controllers(table: &str) -> Vec<String> {
    let enabled = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.len() == 4 && columns[3] == "1" && !line.starts_with('#')).then(|| columns[0].to_owned())
    };
    table.lines().filter_map(enabled).collect()
}

fn meminfo_bytes(table: &str, key: &str) -> u64 {
    let line = table.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Loaded, built in, loadable, or (where the kernel ships no lists) at work already.
fn feature_present(feature: &str, kernel: &str) -> bool {
    if Path::new("/sys/module").join(feature).exists() {
        return true;
    }
    let listed = ["modules.builtin", "modules.dep"].iter().any(|list| {
        let list = std::fs::read_to_string(format!("/lib/modules/{kernel}/{list}")).unwrap_or_default();
        list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{feature}.ko"))))
    });
    listed || !Path::new(&format!("/lib/modules/{kernel}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let features = ["overlay", "bridge", "veth", "nf_tables", "nf_nat", "vxlan"];
        Facts {
            root: true,
            kernel: "6.12.1-v8".into(),
            controllers: ["cpu", "cpuset", "pids", "memory"].map(str::to_owned).to_vec(),
            unified: true,
            features: features.map(|feature| (feature, true)).to_vec(),
            memory_bytes: 1 << 30,
            clock_plausible: true,
            ..Facts::default()
        }
    }

    fn bad(facts: &Facts) -> Vec<String> {
        judge(facts).into_iter().filter(|verdict| verdict.level != Level::Ok).map(|verdict| verdict.mend).collect()
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        assert_eq!(bad(&good()), Vec::<String>::new());
    }

    #[test]
    fn raspberry_pi_os_is_told_how_to_enable_the_memory_cgroup() {
        let mut facts = good();
        facts.controllers.retain(|one| one != "memory");
        facts.memory_disabled = true;
        let mends = bad(&facts);
        assert_eq!(mends.len(), 1);
        assert!(mends[0].contains("/boot/firmware/cmdline.txt"), "{}", mends[0]);
    }

    #[test]
    fn old_kernels_are_refused() {
        assert!(at_least("5.4.0-rpi", (5, 4)));
        assert!(!at_least("4.19.97", (5, 4)));
    }

    #[test]
    fn v1_controllers_are_those_enabled() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t0\t1\t0\n";
        assert_eq!(v1_controllers(table), ["cpu"]);
    }
}
