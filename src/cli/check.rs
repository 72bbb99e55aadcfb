//! `edgelet check`: what this machine lacks, each with the line that mends it.
//! The verdicts are a pure function of facts; gathering the facts reads files and nothing else.

use crate::kubelet::board;
use crate::sys::{feature, wireless};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const WRITES: usize = 20;
/// With slower ones a change of the API takes longer than people wait.
const SLOW_WRITE_US: u64 = 50_000;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only what fails or warns
    #[arg(short, long)]
    quiet: bool,
    /// Write a few kilobytes into this folder, to learn whether the card is fast enough for a server
    #[arg(long, value_name = "DIR")]
    write_test: Option<PathBuf>,
    /// Look at another system's files, a card's in a reader say
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
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
    /// Edgelet may make processes less likely to be killed when memory is short (`CAP_SYS_RESOURCE`).
    oom_protection: bool,
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
    /// The kernel's command line, and the file it comes from on this system.
    command_line_file: String,
    clock_synchronised: Option<bool>,
    has_rtc: bool,
    hostname: String,
    /// Wireless interfaces that save power.
    wifi_power_save: Vec<String>,
    /// The journal goes to a card.
    journal_on_card: bool,
    /// What the firmware has limited since the boot.
    throttled: Option<u32>,
    /// A durable write of one page, the slowest but one of twenty.
    write_us: Option<u64>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut facts = gather(&arguments.root);
    if let Some(folder) = &arguments.write_test {
        facts.write_us = Some(write_test(folder).with_context(|| format!("write into {}", folder.display()))?);
    }
    let verdicts = judge(&facts);
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
    let failed = judge(&gather(Path::new("/"))).into_iter().filter(|verdict| verdict.level == Level::Failure);
    failed.map(|verdict| format!("{}: {}", verdict.what, verdict.mend)).collect()
}

fn judge(facts: &Facts) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut say = |good: bool, bad: Level, what: String, mend: &str| {
        let (level, mend) = if good { (Level::Ok, "") } else { (bad, mend) };
        verdicts.push(Verdict { level, what, mend: mend.to_owned() });
    };
    judge_kernel(facts, &mut say);
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
    judge_board(facts, &mut say);
    say(
        !facts.swap,
        Level::Warning,
        "no swap on a disk".into(),
        "swap wears the SD card out: `dphys-swapfile swapoff && systemctl disable dphys-swapfile`, or use zram",
    );
    say(
        !facts.drop_policies,
        Level::Warning,
        "no firewall drops forwarded packets".into(),
        "old iptables rules are loaded: `iptables-legacy -P FORWARD ACCEPT`, or move to nftables with \
         `update-alternatives --set iptables /usr/sbin/iptables-nft` and reboot",
    );
    verdicts
}

/// What nothing runs without.
fn judge_kernel(facts: &Facts, say: &mut impl FnMut(bool, Level, String, &str)) {
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
    let firmware = format!(
        "add `cgroup_enable=memory cgroup_memory=1` to the end of the one line of {} and reboot",
        facts.command_line_file
    );
    let firmware = firmware.as_str();
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
    say(
        facts.oom_protection,
        Level::Warning,
        if facts.oom_protection {
            "pods and shims can be protected from the OOM killer"
        } else {
            "CAP_SYS_RESOURCE is missing: pods and shims are not protected from the OOM killer"
        }
        .into(),
        "give edgelet this capability: it is usually a container or a unit's CapabilityBoundingSet that takes it away",
    );
    let vxlan = "only needed between networks: apt install linux-modules-extra-raspi on Ubuntu for Raspberry Pi";
    say(has(facts, "vxlan"), Level::Warning, "kernel feature vxlan".into(), vxlan);
}

/// The traps of small boards, of a stock Raspberry Pi OS above all.
fn judge_board(facts: &Facts, say: &mut impl FnMut(bool, Level, String, &str)) {
    if let Some(synchronised) = facts.clock_synchronised {
        let what = match (synchronised, facts.has_rtc) {
            (true, _) => "the clock follows a time source",
            (false, true) => "the clock follows no time source",
            (false, false) => "the clock follows no time source, and this board has no clock battery",
        };
        say(
            synchronised,
            Level::Warning,
            what.into(),
            "apt install systemd-timesyncd (or chrony), and allow NTP (UDP port 123)",
        );
    }
    say(
        !["raspberrypi", "localhost", "debian", ""].contains(&facts.hostname.as_str()),
        Level::Warning,
        format!("the host name {:?} is this board's own", facts.hostname),
        "two boards of one name would be one node: `hostnamectl set-hostname NAME`, or `node-name:` in config.yaml",
    );
    for interface in &facts.wifi_power_save {
        say(
            false,
            Level::Warning,
            format!("{interface} saves power: the board is hard to reach at times"),
            "`iw dev INTERFACE set power_save off`; to stay: `nmcli connection modify NAME 802-11-wireless.powersave 2`",
        );
    }
    say(
        !facts.journal_on_card,
        Level::Warning,
        "the journal is not written to a card".into(),
        "Storage=volatile in /etc/systemd/journald.conf, then `systemctl restart systemd-journald`: logs wear the \
         card out",
    );
    if let Some(flags) = facts.throttled {
        say(
            flags & board::UNDER_VOLTAGE == 0,
            Level::Warning,
            "the supply voltage has held since the boot".into(),
            "use the board's official power supply and a short, thick cable: a weak one corrupts cards",
        );
        say(
            flags & board::THROTTLED == 0,
            Level::Warning,
            "the processor has run at full speed since the boot".into(),
            "cool the board, or mend its power supply",
        );
    }
    if let Some(write_us) = facts.write_us {
        say(
            write_us <= SLOW_WRITE_US,
            Level::Warning,
            format!("a durable write takes {}.{} ms", write_us / 1000, write_us % 1000 / 100),
            "the card is slow for a server: use one of class A1 or A2, or an SSD, and mount it at /var/lib/edgelet",
        );
    }
}

fn has(facts: &Facts, feature: &str) -> bool {
    facts.features.iter().any(|(name, have)| *name == feature && *have)
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= wanted
}

fn gather(root: &Path) -> Facts {
    let here = root == Path::new("/");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let line = |path: &str| read(path).trim().to_owned();
    let exists = |path: &str| root.join(path).exists();
    let filesystems =
        read("proc/filesystems").lines().filter_map(|line| line.split('\t').next_back()).map(str::to_owned).collect();
    let unified = exists("sys/fs/cgroup/cgroup.controllers");
    let controllers = if unified {
        read("sys/fs/cgroup/cgroup.controllers").split_whitespace().map(str::to_owned).collect()
    } else {
        v1_controllers(&read("proc/cgroups"))
    };
    let features = ["overlay", "bridge", "veth", "nf_tables", "nf_nat", "vxlan"];
    let old_boot = !exists("boot/firmware/cmdline.txt") && exists("boot/cmdline.txt");
    let health = board::Health::observe(root);
    Facts {
        root: rustix::process::geteuid().is_root(),
        // Not root: that is what is to be mended, and the rest with it.
        oom_protection: !here || !rustix::process::geteuid().is_root() || crate::sys::process::may_spare_from_oom(),
        features: features.map(|feature| (feature, feature::present(root, feature))).to_vec(),
        kernel: line("proc/sys/kernel/osrelease"),
        filesystems,
        controllers,
        unified,
        memory_disabled: memory_disabled(&read("proc/cmdline")),
        bridge_nf: line("proc/sys/net/bridge/bridge-nf-call-iptables") == "1",
        memory_bytes: meminfo_bytes(&read("proc/meminfo"), "MemTotal:"),
        swap: read("proc/swaps").lines().skip(1).any(|line| !line.starts_with("/dev/zram")),
        clock_plausible: crate::config::is_plausible(crate::clock::Clock::real().now()),
        drop_policies: read("proc/net/ip_tables_names").lines().any(|table| table == "filter"),
        command_line_file: if old_boot { "/boot/cmdline.txt" } else { "/boot/firmware/cmdline.txt" }.to_owned(),
        clock_synchronised: health.clock_synchronised.filter(|_| here),
        has_rtc: exists("sys/class/rtc/rtc0"),
        hostname: line("proc/sys/kernel/hostname"),
        wifi_power_save: wireless_interfaces(root)
            .into_iter()
            .filter(|name| here && wireless::saves_power(name))
            .collect(),
        journal_on_card: journal_on_card(root, &read("proc/self/mounts")),
        throttled: health.throttled,
        write_us: None,
    }
}

/// Raspberry Pi's firmware puts `cgroup_disable=memory` in front of what the owner wrote.
fn memory_disabled(command_line: &str) -> bool {
    command_line.split_whitespace().any(|option| option == "cgroup_disable=memory")
}

fn wireless_interfaces(root: &Path) -> Vec<String> {
    let interfaces = std::fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    let wireless = interfaces.filter(|one| ["wireless", "phy80211"].iter().any(|mark| one.path().join(mark).exists()));
    let mut names: Vec<String> = wireless.filter_map(|one| one.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Persistent, on a file system whose device is a card.
fn journal_on_card(root: &Path, mounts: &str) -> bool {
    let on_card = |place: &str| {
        let points = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        });
        let holding = points.filter(|(_, point)| Path::new(place).starts_with(point));
        holding.max_by_key(|(_, point)| point.len()).is_some_and(|(device, _)| device.starts_with("/dev/mmcblk"))
    };
    root.join("var/log/journal").exists() && on_card("/var/log/journal")
}

/// Twenty durable writes of a page: what the store does for each acknowledged change.
fn write_test(folder: &Path) -> std::io::Result<u64> {
    use std::io::{Seek, Write};
    let path = folder.join(format!(".edgelet-write-test-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    let mut times = Vec::with_capacity(WRITES);
    let outcome = (0..WRITES).try_for_each(|_| {
        let begun = crate::clock::monotonic();
        file.rewind()?;
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        Ok(())
    });
    std::fs::remove_file(&path).and(outcome)?;
    times.sort_unstable();
    Ok(times[WRITES - 2])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let features = ["overlay", "bridge", "veth", "nf_tables", "nf_nat", "vxlan"];
        Facts {
            root: true,
            oom_protection: true,
            kernel: "6.12.1-v8".into(),
            controllers: ["cpu", "cpuset", "pids", "memory"].map(str::to_owned).to_vec(),
            unified: true,
            features: features.map(|feature| (feature, true)).to_vec(),
            memory_bytes: 1 << 30,
            clock_plausible: true,
            hostname: "kitchen".into(),
            command_line_file: "/boot/firmware/cmdline.txt".into(),
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

    /// Recorded on Raspberry Pi OS Bookworm as it comes, on a Pi 3 with a weak supply.
    #[test]
    fn a_stock_raspberry_pi_os_is_told_every_trap() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/sys/kernel/osrelease", "6.6.51+rpt-rpi-v8\n");
        put("proc/sys/kernel/hostname", "raspberrypi\n");
        put("proc/cmdline", "coherent_pool=1M cgroup_disable=memory root=PARTUUID=1-02 rootwait\n");
        put("proc/meminfo", "MemTotal:         931000 kB\n");
        put("proc/filesystems", "nodev\tproc\nnodev\toverlay\n");
        put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524272 0 -2\n");
        put("proc/net/ip_tables_names", "filter\n");
        put("proc/self/mounts", "/dev/mmcblk0p2 / ext4 rw,noatime 0 0\ntmpfs /run tmpfs rw 0 0\n");
        put("var/log/journal/x", "");
        put("boot/firmware/cmdline.txt", "root=PARTUUID=1-02 rootwait\n");
        put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
        put("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n");
        put("lib/modules/6.6.51+rpt-rpi-v8/modules.builtin", "");
        let modules = ["fs/overlay", "net/bridge", "net/veth", "net/nf_tables", "net/nf_nat"];
        put(
            "lib/modules/6.6.51+rpt-rpi-v8/modules.dep",
            &modules.map(|module| format!("kernel/{module}.ko.xz:\n")).concat(),
        );
        let verdicts = judge(&Facts { root: true, clock_synchronised: Some(false), ..gather(root.path()) });
        let told: Vec<String> = verdicts
            .iter()
            .filter(|verdict| verdict.level != Level::Ok)
            .map(|verdict| format!("{:?} {} | {}", verdict.level, verdict.what, verdict.mend))
            .collect();
        let wanted = [
            "Failure cgroup v2 controller memory | add `cgroup_enable=memory cgroup_memory=1` to the end of the one \
             line of /boot/firmware/cmdline.txt",
            "Warning kernel feature vxlan",
            "Warning the clock follows no time source, and this board has no clock battery | apt install",
            "Warning the host name \"raspberrypi\" is this board's own | two boards",
            "Warning the journal is not written to a card | Storage=volatile",
            "Warning the supply voltage",
            "Warning the processor has run at full speed",
            "Warning no swap on a disk | swap wears the SD card out: `dphys-swapfile swapoff",
            "Warning no firewall drops forwarded packets | old iptables rules",
        ];
        assert_eq!(told.len(), wanted.len(), "{told:#?}");
        for (told, wanted) in told.iter().zip(wanted) {
            assert!(told.starts_with(wanted), "{told}\nis not\n{wanted}");
        }
    }

    #[test]
    fn a_slow_card_is_told_and_the_write_test_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        write_test(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let slow = bad(&Facts { write_us: Some(120_000), ..good() });
        assert!(slow[0].contains("class A1"), "{slow:?}");
        assert_eq!(bad(&Facts { write_us: Some(4_000), ..good() }), Vec::<String>::new());
    }
}
