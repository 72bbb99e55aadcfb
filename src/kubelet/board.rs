//! What this board is and how it fares, as the kernel's files tell it below a root (tests have recorded trees):
//! labels for what stays, conditions and metrics for what changes. Only /proc and /sys are read periodically:
//! no card is touched.

use crate::sys::{adjtimex, feature};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What pods need of the kernel.
const MODULES: [&str; 5] = ["overlay", "bridge", "veth", "nf_tables", "nf_nat"];
const LABEL_LIMIT: usize = 63;
const HASH_DIGITS: usize = 16;

/// The firmware throttles a Raspberry Pi at 80 °C; the condition ends when it is well below.
const HOT_MILLICELSIUS: i64 = 80_000;
const COOL_MILLICELSIUS: i64 = 75_000;
/// JEDEC's steps: 9 = 80 to 90 % of the life time is used.
const WORN_STEP: u8 = 9;
/// JEDEC's pre-end-of-life state: 2 = 80 % of the reserved blocks are used.
const RESERVE_LOW: u8 = 2;

/// Bits of the firmware's answer; the higher half remembers since the boot.
pub const UNDER_VOLTAGE: u32 = 1 | 1 << 16;
pub const THROTTLED: u32 = 0b1110 | 0b1110 << 16;

/// What does not change while the kernel runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    pub model: Option<String>,
    pub soc: Option<String>,
    pub revision: Option<String>,
    pub serial: Option<String>,
    pub missing_modules: Vec<&'static str>,
}

/// What is asked for at every status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub temperature_millicelsius: Option<i64>,
    /// The firmware's flags.
    pub throttled: Option<u32>,
    pub wear: Option<Wear>,
    pub clock_synchronised: Option<bool>,
    pub memory_cgroup: bool,
    pub root_read_only: bool,
}

/// What an eMMC says of itself; SD cards say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wear {
    /// In steps of 10 %, 1 = up to 10 % used, 11 = more than was promised.
    pub life_time: u8,
    pub pre_eol: u8,
}

/// One condition of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub r#type: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: Cow<'static, str>,
}

/// A file's text without what surrounds it; device trees end texts with a zero.
fn read(root: &Path, path: &str) -> Option<String> {
    let bytes = std::fs::read(root.join(path)).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim_matches(['\0', '\n', ' ']).to_owned();
    (!text.is_empty()).then_some(text)
}

impl Board {
    /// Reads lists of modules: once per start, not periodically.
    pub fn observe(root: &Path) -> Self {
        let cpuinfo = read(root, "proc/cpuinfo").unwrap_or_default();
        let tree = |name: &str| read(root, &format!("proc/device-tree/{name}"));
        let revision = std::fs::read(root.join("proc/device-tree/system/linux,revision")).ok();
        let revision = revision.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        Self {
            model: tree("model").or_else(|| read(root, "sys/class/dmi/id/product_name")),
            soc: tree("compatible").and_then(|list| soc(&list)),
            revision: revision.map(|code| format!("{code:x}")).or_else(|| field(&cpuinfo, "Revision")),
            serial: tree("serial-number").or_else(|| field(&cpuinfo, "Serial")),
            missing_modules: MODULES.into_iter().filter(|module| !feature::present(root, module)).collect(),
        }
    }

    /// The serial number itself is nobody's business: its hash tells two boards apart as well.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let hash = |serial: &String| {
            let digest = Sha256::digest(format!("edgelet board serial\0{serial}"));
            let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            digits[..HASH_DIGITS].to_owned()
        };
        let known = [
            ("edgelet.io/board-model", self.model.as_deref().and_then(label_value)),
            ("edgelet.io/board-revision", self.revision.as_deref().and_then(label_value)),
            ("edgelet.io/soc", self.soc.as_deref().and_then(label_value)),
            ("edgelet.io/serial-hash", self.serial.as_ref().map(hash)),
        ];
        known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// The last of `raspberrypi,4-model-b`, `brcm,bcm2711` is what the board is built around.
fn soc(compatible: &str) -> Option<String> {
    let last = compatible.split('\0').rfind(|one| !one.is_empty())?;
    Some(last.split_once(',').map_or(last, |(_, name)| name).to_owned())
}

fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    cpuinfo.lines().find_map(value).filter(|value| !value.is_empty())
}

/// Blanks and brackets are not allowed in a label.
fn label_value(text: &str) -> Option<String> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let text: String = text.chars().map(allowed).take(LABEL_LIMIT).collect();
    let text = text.trim_matches(['-', '_', '.']);
    (!text.is_empty()).then(|| text.to_owned())
}

impl Health {
    /// Reads a dozen small files of /proc and /sys, which are memory.
    pub fn observe(root: &Path) -> Self {
        let throttled = [
            "sys/devices/platform/soc/soc:firmware/get_throttled",
            "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
        ];
        let flags = throttled.into_iter().find_map(|path| read(root, path));
        Self {
            temperature_millicelsius: temperature(root),
            throttled: flags.and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()),
            wear: wear(root),
            clock_synchronised: adjtimex::clock_synchronised().ok(),
            memory_cgroup: memory_cgroup(root),
            root_read_only: root_read_only(&read(root, "proc/self/mounts").unwrap_or_default()),
        }
    }

    /// `was`: whether the condition of this type holds already.
    pub fn conditions(&self, board: &Board, was: impl Fn(&str) -> bool) -> Vec<Condition> {
        let mut conditions = vec![
            condition(
                "MemoryCgroupMissing",
                !self.memory_cgroup,
                (
                    "NoMemoryController",
                    "pods' memory limits are not enforced: add `cgroup_enable=memory cgroup_memory=1` to the one line of /boot/firmware/cmdline.txt and reboot",
                ),
                ("MemoryController", "the kernel enforces pods' memory limits"),
            ),
            condition(
                "ReadonlyFilesystem",
                self.root_read_only,
                (
                    "RootIsReadOnly",
                    "the kernel made the root file system read-only, as it does after errors: check the card with `fsck` and replace it",
                ),
                ("RootIsWritable", "the root file system is as it was mounted"),
            ),
            modules(&board.missing_modules),
        ];
        conditions.extend(self.clock_synchronised.map(|synchronised| {
            condition(
                "ClockUnsynchronized",
                !synchronised,
                ("NoTimeSource", "nothing keeps the clock right: apt install systemd-timesyncd (or chrony), and allow NTP (UDP port 123)"),
                ("ClockSynchronized", "the clock follows a time source"),
            )
        }));
        conditions.extend(self.temperature_millicelsius.map(|now| {
            let limit = if was("HighTemperature") { COOL_MILLICELSIUS } else { HOT_MILLICELSIUS };
            condition(
                "HighTemperature",
                now >= limit,
                ("BoardIsHot", "the board is close to its limit of temperature and slows down: give it a heat sink, a fan or a place in the shade"),
                ("BoardIsCool", "the board's temperature is below its limit"),
            )
        }));
        conditions.extend(self.throttled.map(power));
        conditions.extend(self.throttled.map(throttling));
        conditions.extend(self.wear.map(|wear| {
            condition(
                "StorageWornOut",
                wear.life_time >= WORN_STEP || wear.pre_eol >= RESERVE_LOW,
                ("EndOfLifeIsNear", "the eMMC has used up most of its life: back the board up and replace the storage"),
                ("StorageIsGood", "the eMMC is within its life time"),
            )
        }));
        conditions
    }

    /// In Prometheus' text format; what the board cannot tell is left out.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, values: &[(String, String)]| {
            if values.is_empty() {
                return;
            }
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (labels, value) in values {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let one = |value: Option<String>| value.map(|value| (String::new(), value)).into_iter().collect::<Vec<_>>();
        let celsius = self.temperature_millicelsius.map(|milli| format!("{}.{:03}", milli / 1000, milli.abs() % 1000));
        gauge("edgelet_board_temperature_celsius", "Temperature of the processor.", &one(celsius));
        let flags = [("under_voltage", 0), ("frequency_capped", 1), ("throttled", 2), ("soft_temperature_limit", 3)];
        let flags = |bits: u32, shift: u32| {
            flags.map(|(flag, bit)| (format!("{{flag=\"{flag}\"}}"), (bits >> (bit + shift) & 1).to_string()))
        };
        let now = self.throttled.map_or_else(Vec::new, |bits| flags(bits, 0).to_vec());
        gauge("edgelet_board_throttled", "What the firmware limits now.", &now);
        let since_boot = self.throttled.map_or_else(Vec::new, |bits| flags(bits, 16).to_vec());
        gauge("edgelet_board_throttled_since_boot", "What the firmware has limited since the boot.", &since_boot);
        let used = self.wear.map(|wear| format!("{}.{}", wear.life_time / 10, wear.life_time % 10));
        gauge("edgelet_board_storage_life_used_ratio", "Part of the eMMC's life that is used, in tenths.", &one(used));
        let synchronised = self.clock_synchronised.map(|synchronised| u8::from(synchronised).to_string());
        gauge("edgelet_clock_synchronized", "1 when the clock follows a time source.", &one(synchronised));
        text
    }
}

type Words = (&'static str, &'static str);

fn condition(r#type: &'static str, holds: bool, bad: Words, good: Words) -> Condition {
    let (reason, message) = if holds { bad } else { good };
    Condition { r#type, holds, reason, message: Cow::Borrowed(message) }
}

/// Sticky until the next boot, as the firmware remembers it: a weak supply dips many times a minute.
fn power(flags: u32) -> Condition {
    condition(
        "UnderVoltage",
        flags & UNDER_VOLTAGE != 0,
        (
            "PowerSupplyIsWeak",
            "the supply voltage has dropped below 4.63 V since the boot, which corrupts cards: use the board's official power supply and a short, thick cable",
        ),
        ("PowerSupplyIsGood", "the supply voltage has not dropped since the boot"),
    )
}

fn throttling(flags: u32) -> Condition {
    condition(
        "Throttled",
        flags & THROTTLED != 0,
        (
            "FirmwareThrottles",
            "the firmware has slowed the processor down since the boot: mend the power supply, or cool the board",
        ),
        ("NotThrottled", "the processor has run at full speed since the boot"),
    )
}

fn modules(missing: &[&'static str]) -> Condition {
    if missing.is_empty() {
        let good = ("AllModules", "the kernel has every feature that pods need");
        return condition("KernelModulesMissing", false, good, good);
    }
    let list = missing.join(" ");
    Condition {
        r#type: "KernelModulesMissing",
        holds: true,
        reason: "ModulesMissing",
        message: format!(
            "the kernel lacks {list}: `modprobe -a {list}`; if that fails, install the modules of the running kernel \
             (apt install linux-modules-extra-raspi on Ubuntu) or reboot into the kernel that was installed last"
        )
        .into(),
    }
}

/// Of the processor where a zone says that it is the processor's, else of the first zone.
fn temperature(root: &Path) -> Option<i64> {
    let mut zones: Vec<PathBuf> = children(&root.join("sys/class/thermal"), "thermal_zone");
    zones.sort();
    let kind = |zone: &PathBuf| read(zone, "type").unwrap_or_default().to_ascii_lowercase();
    let processor = zones.iter().find(|zone| ["cpu", "soc", "x86_pkg"].iter().any(|part| kind(zone).contains(part)));
    read(processor.or(zones.first())?, "temp")?.parse().ok()
}

fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect()
}

/// The worst of the board's eMMCs; of the two kinds of memory in one, the more worn.
fn wear(root: &Path) -> Option<Wear> {
    let cards = children(&root.join("sys/block"), "mmcblk");
    let number = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let one = |card: &PathBuf| {
        let life_time = read(card, "device/life_time")?.split_whitespace().filter_map(number).max()?;
        let pre_eol = read(card, "device/pre_eol_info").and_then(|text| number(&text)).unwrap_or(0);
        // Zero: this card does not say.
        (life_time > 0).then_some(Wear { life_time, pre_eol })
    };
    cards.iter().filter_map(one).max_by_key(|wear| (wear.life_time, wear.pre_eol))
}

fn memory_cgroup(root: &Path) -> bool {
    if let Some(controllers) = read(root, "sys/fs/cgroup/cgroup.controllers")
        && controllers.split_whitespace().any(|one| one == "memory")
    {
        return true;
    }
    // Hybrid: v1 has it.
    let enabled = |line: &str| line.starts_with("memory\t") && line.ends_with("\t1");
    root.join("sys/fs/cgroup/memory").exists()
        && read(root, "proc/cgroups").is_some_and(|table| table.lines().any(enabled))
}

/// Mounted to be written, but read-only by now. A root that is read-only by intent (squashfs, an image with a data
/// partition) does not say `errors=remount-ro`.
fn root_read_only(mounts: &str) -> bool {
    let last = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some("/"));
    let options = last.and_then(|line| line.split(' ').nth(3)).unwrap_or_default();
    let has = |option: &str| options.split(',').any(|one| one == option);
    has("ro") && (has("errors=remount-ro") || has("emergency_ro") || has("shutdown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            files.iter().for_each(|(path, contents)| tree.put(path, contents));
            tree
        }

        fn put(&self, path: &str, contents: &[u8]) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }

        fn root(&self) -> &Path {
            self.0.path()
        }
    }

    const GOOD_CGROUPS: (&str, &[u8]) = ("sys/fs/cgroup/cgroup.controllers", b"cpuset cpu io memory pids\n");

    /// Recorded on a Raspberry Pi 4 Model B with 4 GB, Raspberry Pi OS.
    fn pi4() -> Tree {
        Tree::new(&[
            ("proc/device-tree/model", b"Raspberry Pi 4 Model B Rev 1.4\0"),
            ("proc/device-tree/compatible", b"raspberrypi,4-model-b\0brcm,bcm2711\0"),
            ("proc/device-tree/serial-number", b"10000000abcdef01\0"),
            ("proc/device-tree/system/linux,revision", &[0x00, 0xc0, 0x31, 0x14]),
            ("sys/class/thermal/thermal_zone0/type", b"cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", b"48686\n"),
            ("sys/devices/platform/soc/soc:firmware/get_throttled", b"50005\n"),
            ("sys/block/mmcblk0/device/type", b"SD\n"),
            ("proc/self/mounts", b"/dev/mmcblk0p2 / ext4 rw,noatime 0 0\n"),
            GOOD_CGROUPS,
        ])
    }

    fn holding(health: &Health, board: &Board) -> Vec<&'static str> {
        health.conditions(board, |_| false).into_iter().filter(|one| one.holds).map(|one| one.r#type).collect()
    }

    #[test]
    fn a_raspberry_pi_says_what_it_is() {
        let board = Board::observe(pi4().root());
        let labels = board.labels();
        let label = |key: &str| labels[&format!("edgelet.io/{key}")].as_str();
        assert_eq!(label("board-model"), "Raspberry-Pi-4-Model-B-Rev-1.4");
        assert_eq!((label("soc"), label("board-revision")), ("bcm2711", "c03114"));
        assert_eq!(label("serial-hash").len(), HASH_DIGITS);
        assert!(!labels.values().any(|value| value.contains("abcdef01")), "the serial number is not told");
        let other = Board { serial: Some("10000000abcdef02".into()), ..board };
        assert_ne!(other.labels()["edgelet.io/serial-hash"], label("serial-hash"));
    }

    #[test]
    fn an_older_kernel_says_it_in_cpuinfo_and_a_pc_in_its_firmware() {
        let cpuinfo = b"processor\t: 0\nRevision\t: a02082\nSerial\t\t: 00000000deadbeef\n";
        let board = Board::observe(Tree::new(&[("proc/cpuinfo", cpuinfo)]).root());
        assert_eq!((board.revision.as_deref(), board.serial.as_deref()), (Some("a02082"), Some("00000000deadbeef")));
        let pc = Board::observe(Tree::new(&[("sys/class/dmi/id/product_name", b"NUC (7th)\n")]).root());
        assert_eq!(pc.labels(), BTreeMap::from([("edgelet.io/board-model".into(), "NUC--7th".into())]));
    }

    #[test]
    fn a_weak_supply_shows_until_the_next_boot() {
        let tree = pi4();
        let board = Board::observe(tree.root());
        let health = Health { clock_synchronised: Some(true), ..Health::observe(tree.root()) };
        assert_eq!((health.throttled, health.temperature_millicelsius), (Some(0x50005), Some(48_686)));
        assert_eq!(holding(&health, &board), ["UnderVoltage", "Throttled"]);
        let over = Health { throttled: Some(0x50000), ..health.clone() };
        assert_eq!(over.conditions(&board, |_| false), health.conditions(&board, |_| false), "nothing to write");
        let booted = Health { throttled: Some(0), ..health };
        assert_eq!(holding(&booted, &board), Vec::<&str>::new());
    }

    #[test]
    fn a_temperature_about_the_limit_does_not_flap() {
        let at = |celsius: i64, was: bool| {
            let health = Health { temperature_millicelsius: Some(celsius * 1000), ..Health::default() };
            let all = health.conditions(&Board::default(), |_| was);
            all.into_iter().find(|one| one.r#type == "HighTemperature").unwrap().holds
        };
        assert_eq!([at(79, false), at(80, false), at(76, true), at(74, true)], [false, true, true, false]);
    }

    #[test]
    fn raspberry_pi_os_as_it_comes_lacks_the_memory_cgroup() {
        let tree = pi4();
        assert!(Health::observe(tree.root()).memory_cgroup);
        tree.put("sys/fs/cgroup/cgroup.controllers", b"cpuset cpu io pids\n");
        let health = Health::observe(tree.root());
        assert!(!health.memory_cgroup);
        let all = health.conditions(&Board::default(), |_| false);
        assert!(all[0].message.contains("cgroup_enable=memory"), "{}", all[0].message);
        // A hybrid machine has it in v1.
        tree.put("proc/cgroups", b"#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t90\t1\n");
        tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", b"1");
        assert!(Health::observe(tree.root()).memory_cgroup);
    }

    #[test]
    fn an_emmc_tells_its_wear_and_an_sd_card_none() {
        assert_eq!(Health::observe(pi4().root()).wear, None);
        let tree = Tree::new(&[
            ("sys/block/mmcblk0/device/life_time", b"0x01 0x0a\n"),
            ("sys/block/mmcblk0/device/pre_eol_info", b"0x01\n"),
            GOOD_CGROUPS,
        ]);
        let health = Health { clock_synchronised: None, ..Health::observe(tree.root()) };
        assert_eq!(health.wear, Some(Wear { life_time: 10, pre_eol: 1 }));
        assert_eq!(holding(&health, &Board::default()), ["StorageWornOut"]);
        assert!(health.metrics().contains("edgelet_board_storage_life_used_ratio 1.0\n"));
    }

    #[test]
    fn a_root_that_errors_made_read_only_is_told_from_one_that_is_meant_so() {
        let cases = [
            ("/dev/mmcblk0p2 / ext4 rw,relatime,errors=remount-ro 0 0", false),
            ("/dev/mmcblk0p2 / ext4 ro,relatime,errors=remount-ro 0 0", true),
            ("/dev/mmcblk0p2 / ext4 ro,relatime,emergency_ro 0 0", true),
            ("/dev/mmcblk0p2 / ext4 ro,relatime 0 0", false),
            ("rootfs / rootfs ro,errors=remount-ro 0 0\noverlay / overlay rw 0 0", false),
        ];
        for (mounts, read_only) in cases {
            assert_eq!(root_read_only(mounts), read_only, "{mounts}");
        }
    }

    #[test]
    fn missing_modules_are_named_with_the_line_that_loads_them() {
        let board = Board { missing_modules: vec!["overlay", "nf_nat"], ..Board::default() };
        let all = Health { memory_cgroup: true, ..Health::default() }.conditions(&board, |_| false);
        let one = all.iter().find(|one| one.holds).unwrap();
        assert!(one.message.contains("`modprobe -a overlay nf_nat`"), "{}", one.message);
    }

    #[test]
    fn metrics_are_what_the_board_can_tell() {
        let health = Health {
            temperature_millicelsius: Some(48_006),
            throttled: Some(0x5_0001),
            clock_synchronised: Some(false),
            ..Health::default()
        };
        let text = health.metrics();
        for line in [
            "edgelet_board_temperature_celsius 48.006",
            "edgelet_board_throttled{flag=\"under_voltage\"} 1",
            "edgelet_board_throttled{flag=\"throttled\"} 0",
            "edgelet_board_throttled_since_boot{flag=\"throttled\"} 1",
            "edgelet_clock_synchronized 0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("life_used"));
        assert_eq!(Health::default().metrics(), "");
    }
}
