//! Devices of the board as resources of the node, so that a pod gets a serial port without being privileged:
//! what the node's config offers, what is plugged in, and (pure) which container gets which.
//! Who has what is asked of the runtime each time, never remembered: a restart changes nothing.

use crate::api::quantity::Quantity;
use crate::runtime::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Before the names of all resources that the config offers.
pub const PREFIX: &str = "edgelet.io/";
const NAME_LIMIT: usize = 63;
/// Interfaces and what is below them lie no deeper than this under a USB device.
const USB_DEPTH_LIMIT: usize = 6;

/// One entry of `devices:` in the node's config file. Exactly one of `class`, `usb` and `paths` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DeviceSpec {
    /// The resource is `edgelet.io/NAME`; by default the class.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// `VENDOR:PRODUCT` in hexadecimal digits, as `lsusb` shows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub usb: String,
    /// Below `/dev`; `*` stands for any part of a name. Each file is a device of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Containers that may have one device at the same time; 0 = one.
    pub shared: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Serial,
    Gpio,
    I2c,
    Spi,
    Camera,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Gpio => "gpio",
            Self::I2c => "i2c",
            Self::Spi => "spi",
            Self::Camera => "camera",
        }
    }

    fn patterns(self) -> &'static [&'static str] {
        match self {
            Self::Serial => &["/dev/ttyAMA*", "/dev/ttyS*", "/dev/ttyUSB*", "/dev/ttyACM*"],
            Self::Gpio => &["/dev/gpiochip*"],
            Self::I2c => &["/dev/i2c-*"],
            Self::Spi => &["/dev/spidev*"],
            Self::Camera => &["/dev/video*", "/dev/media*", "/dev/v4l-subdev*", "/dev/dma_heap/*", "/dev/vchiq"],
        }
    }
}

/// A resource of the node and the devices behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supply {
    pub resource: String,
    /// Each may consist of several nodes of `/dev`; sorted.
    pub devices: Vec<Vec<String>>,
    pub shared: usize,
}

impl DeviceSpec {
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let ways = [self.class.is_some(), !self.usb.is_empty(), !self.paths.is_empty()];
        if ways.iter().filter(|given| **given).count() != 1 {
            return Err(format!("device {:?} needs one of class, usb and paths", self.name()));
        }
        let name = self.name();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(allowed) || name.starts_with('-') {
            return Err(format!("device {name:?} needs a name of lower case letters, digits and '-'"));
        }
        if !self.usb.is_empty() && self.usb_ids().is_none() {
            return Err(format!("device {name:?}: usb {:?} must be VENDOR:PRODUCT, as lsusb shows it", self.usb));
        }
        let outside = |path: &&String| !path.starts_with("/dev/") || path.contains("/../");
        if let Some(path) = self.paths.iter().find(outside) {
            return Err(format!("device {name:?}: {path:?} is not below /dev"));
        }
        Ok(())
    }

    fn name(&self) -> &str {
        if self.name.is_empty() { self.class.map_or("", Class::name) } else { &self.name }
    }

    fn usb_ids(&self) -> Option<(u16, u16)> {
        let (vendor, product) = self.usb.split_once(':')?;
        let number = |digits: &str| u16::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 4);
        Some((number(vendor)?, number(product)?))
    }

    fn find(&self, root: &Path) -> Supply {
        let one_each = |paths: Vec<String>| paths.into_iter().map(|path| vec![path]).collect();
        let devices = match (self.class, self.usb_ids()) {
            // A camera is a graph of nodes: who drives it needs all of them.
            (Some(Class::Camera), _) => {
                let nodes = all_matching(root, Class::Camera.patterns());
                let any = nodes.iter().any(|node| node.starts_with("/dev/video"));
                if any { vec![nodes] } else { Vec::new() }
            }
            (Some(Class::Serial), _) => one_each(serial_ports(root)),
            (Some(class), _) => one_each(all_matching(root, class.patterns())),
            (None, Some((vendor, product))) => usb_devices(root, vendor, product),
            (None, None) => one_each(all_matching(root, &self.paths)),
        };
        Supply { resource: format!("{PREFIX}{}", self.name()), devices, shared: usize::from(self.shared.max(1)) }
    }
}

/// What is there now: reads `/dev` and `/sys`, which are memory.
pub fn supplies(root: &Path, specs: &[DeviceSpec]) -> Vec<Supply> {
    specs.iter().map(|spec| spec.find(root)).collect()
}

/// The node's amounts; what is offered but not plugged in counts zero.
pub fn amounts(supplies: &[Supply]) -> BTreeMap<String, Quantity> {
    let amount = |supply: &Supply| i64::try_from(supply.devices.len() * supply.shared).unwrap_or(i64::MAX);
    supplies.iter().map(|supply| (supply.resource.clone(), Quantity::from_units(amount(supply)))).collect()
}

/// What a container asks for, of all that may be devices.
pub fn wanted<'a>(limits: impl IntoIterator<Item = (&'a String, &'a Value)>) -> BTreeMap<String, usize> {
    let count = |(name, amount): (&String, &Value)| {
        let count = usize::try_from(Quantity::from_value(amount).ok()?.value()).ok()?;
        (name.starts_with(PREFIX) && count > 0).then(|| (name.clone(), count))
    };
    limits.into_iter().filter_map(count).collect()
}

/// Devices for one container, by resource. `in_use`: the device nodes that each running container has.
/// An error is the message of a `CreateContainerConfigError`.
pub fn allocate(
    supplies: &[Supply],
    wanted: &BTreeMap<String, usize>,
    in_use: &[Vec<String>],
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut given = BTreeMap::new();
    for (resource, count) in wanted {
        let offered: Vec<&Supply> = supplies.iter().filter(|supply| supply.resource == *resource).collect();
        let users =
            |nodes: &[String]| in_use.iter().filter(|held| nodes.iter().any(|node| held.contains(node))).count();
        let mut free: Vec<(usize, &Vec<String>)> = offered
            .iter()
            .flat_map(|supply| supply.devices.iter().map(|nodes| (users(nodes), nodes, supply.shared)))
            .filter(|(users, _, shared)| users < shared)
            .map(|(users, nodes, _)| (users, nodes))
            .collect();
        // The least used first, then by name: the same choice every time.
        free.sort();
        if free.len() < *count {
            return Err(format!("{count} of {resource} wanted, but only {} free on this node", free.len()));
        }
        given.insert(resource.clone(), free.into_iter().take(*count).flat_map(|(_, nodes)| nodes.clone()).collect());
    }
    Ok(given)
}

/// As the runtime takes them: readable and writable, but no nodes are made.
pub fn devices(given: &BTreeMap<String, Vec<String>>) -> Vec<Device> {
    let device =
        |path: &String| Device { host_path: path.clone(), container_path: path.clone(), permissions: "rw".to_owned() };
    given.values().flatten().map(device).collect()
}

/// Tells the program what it was given: `EDGELET_DEVICE_SERIAL=/dev/ttyUSB0`, several with colons between them.
pub fn variables(given: &BTreeMap<String, Vec<String>>) -> Vec<(String, String)> {
    let variable = |(resource, nodes): (&String, &Vec<String>)| {
        let name = resource.trim_start_matches(PREFIX).to_ascii_uppercase().replace('-', "_");
        (format!("EDGELET_DEVICE_{name}"), nodes.join(":"))
    };
    given.iter().map(variable).collect()
}

/// Those that exist and are not the kernel's console. PCs have 32 names for serial ports of which few exist.
fn serial_ports(root: &Path) -> Vec<String> {
    let text = |path: String| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let consoles = text("sys/class/tty/console/active".to_owned());
    let real = |path: &String| {
        let name = path.trim_start_matches("/dev/");
        let kind = text(format!("sys/class/tty/{name}/type"));
        let exists = !name.starts_with("ttyS") || !["", "0"].contains(&kind.trim());
        exists && !consoles.split_whitespace().any(|console| console == name)
    };
    all_matching(root, Class::Serial.patterns()).into_iter().filter(real).collect()
}

fn all_matching(root: &Path, patterns: &[impl AsRef<str>]) -> Vec<String> {
    let mut found: Vec<String> = patterns.iter().flat_map(|pattern| matching(root, pattern.as_ref())).collect();
    found.sort();
    found.dedup();
    found
}

fn matching(root: &Path, pattern: &str) -> Vec<String> {
    let (folder, wanted) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let entries = std::fs::read_dir(root.join(folder.trim_start_matches('/'))).into_iter().flatten().flatten();
    let names = entries.filter(|entry| !entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| fits(wanted, name)).map(|name| format!("{folder}/{name}")).collect()
}

/// `*` stands for any characters, also none.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|tail| {
            (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| fits(rest, &tail[at..]))
        }),
    }
}

/// Each with its own node on the bus and what drivers have made of it: serial ports, video, hidraw.
fn usb_devices(root: &Path, vendor: u16, product: u16) -> Vec<Vec<String>> {
    let id = |folder: &Path, name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        u16::from_str_radix(text.trim(), 16).ok()
    };
    let folders = std::fs::read_dir(root.join("sys/bus/usb/devices")).into_iter().flatten().flatten();
    let wanted = folders
        .map(|entry| entry.path())
        .filter(|folder| id(folder, "idVendor") == Some(vendor) && id(folder, "idProduct") == Some(product));
    let mut found: Vec<Vec<String>> = wanted
        .map(|folder| {
            let mut nodes = Vec::new();
            device_nodes(&folder, 0, &mut nodes);
            nodes.sort();
            nodes
        })
        .filter(|nodes| !nodes.is_empty())
        .collect();
    found.sort();
    found
}

fn device_nodes(folder: &Path, depth: usize, nodes: &mut Vec<String>) {
    // Another device behind a hub is another's.
    if depth > USB_DEPTH_LIMIT || (depth > 0 && folder.join("idVendor").exists()) {
        return;
    }
    if folder.join("dev").exists() {
        let uevent = std::fs::read_to_string(folder.join("uevent")).unwrap_or_default();
        nodes.extend(uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}")));
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for folder in folders.map(|entry| entry.path()).collect::<Vec<PathBuf>>() {
        device_nodes(&folder, depth + 1, nodes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn specs(yaml: &str) -> Vec<DeviceSpec> {
        serde_yaml::from_str(yaml).unwrap()
    }

    /// A Pi 4 with a console on its own port, a Zigbee stick and a second one behind a hub.
    fn pi() -> tempfile::TempDir {
        tree(&[
            ("dev/ttyAMA0", ""),
            ("dev/ttyS0", ""),
            ("dev/ttyS1", ""),
            ("dev/ttyUSB0", ""),
            ("dev/ttyUSB1", ""),
            ("dev/gpiochip0", ""),
            ("dev/i2c-1", ""),
            ("dev/video0", ""),
            ("dev/media0", ""),
            ("dev/mmcblk0", ""),
            ("sys/class/tty/console/active", "tty1 ttyAMA0\n"),
            ("sys/class/tty/ttyS0/type", "4\n"),
            ("sys/class/tty/ttyS1/type", "0\n"),
            ("sys/bus/usb/devices/1-1/idVendor", "10c4\n"),
            ("sys/bus/usb/devices/1-1/idProduct", "ea60\n"),
            ("sys/bus/usb/devices/1-1/dev", "189:2\n"),
            ("sys/bus/usb/devices/1-1/uevent", "MAJOR=189\nDEVNAME=bus/usb/001/003\n"),
            ("sys/bus/usb/devices/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0/dev", "188:0\n"),
            ("sys/bus/usb/devices/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0/uevent", "DEVNAME=ttyUSB0\n"),
            ("sys/bus/usb/devices/1-2/idVendor", "05e3\n"),
            ("sys/bus/usb/devices/1-2/idProduct", "0608\n"),
            ("sys/bus/usb/devices/1-2/1-2.1/idVendor", "10c4\n"),
            ("sys/bus/usb/devices/1-2/1-2.1/dev", "189:4\n"),
        ])
    }

    #[test]
    fn a_board_offers_what_its_config_names_and_what_is_plugged_in() {
        let root = pi();
        let yaml = "[{class: serial}, {class: gpio, shared: 8}, {class: i2c}, {class: spi}, {class: camera}, {name: \
                    zigbee, usb: '10c4:ea60'}, {name: sticks, paths: [/dev/ttyUSB*]}]";
        let supplies = supplies(root.path(), &specs(yaml));
        let devices = |name: &str| {
            let supply = supplies.iter().find(|one| one.resource == format!("edgelet.io/{name}")).unwrap();
            supply.devices.iter().map(|nodes| nodes.join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(devices("serial"), ["/dev/ttyS0", "/dev/ttyUSB0", "/dev/ttyUSB1"], "no console, no phantom");
        assert_eq!(devices("gpio"), ["/dev/gpiochip0"]);
        assert_eq!(devices("camera"), ["/dev/media0 /dev/video0"]);
        assert_eq!(devices("zigbee"), ["/dev/bus/usb/001/003 /dev/ttyUSB0"]);
        assert_eq!(devices("sticks"), ["/dev/ttyUSB0", "/dev/ttyUSB1"]);
        let amounts: Vec<(String, String)> =
            amounts(&supplies).into_iter().map(|(name, amount)| (name, amount.to_string())).collect();
        let amount = |name: &str| amounts.iter().find(|(one, _)| one.ends_with(name)).unwrap().1.clone();
        assert_eq!((amount("gpio"), amount("spi"), amount("serial")), ("8".into(), "0".into(), "3".into()));
    }

    #[test]
    fn wrong_entries_are_refused_with_their_name() {
        let cases = [
            ("{name: a}", "device \"a\" needs one of class, usb and paths"),
            ("{class: gpio, usb: '1234:5678'}", "device \"gpio\" needs one of class, usb and paths"),
            ("{usb: '1234:5678'}", "device \"\" needs a name of lower case letters, digits and '-'"),
            ("{name: Zig, usb: '1234:5678'}", "device \"Zig\" needs a name of lower case letters, digits and '-'"),
            ("{name: zig, usb: '1234'}", "device \"zig\": usb \"1234\" must be VENDOR:PRODUCT, as lsusb shows it"),
            ("{name: all, paths: [/etc/shadow]}", "device \"all\": \"/etc/shadow\" is not below /dev"),
            ("{name: all, paths: [/dev/../etc/shadow]}", "device \"all\": \"/dev/../etc/shadow\" is not below /dev"),
        ];
        for (yaml, message) in cases {
            assert_eq!(specs(&format!("[{yaml}]"))[0].check(), Err(message.to_owned()), "{yaml}");
        }
        assert!(serde_yaml::from_str::<Vec<DeviceSpec>>("[{class: printer}]").is_err());
        assert!(serde_yaml::from_str::<Vec<DeviceSpec>>("[{clas: gpio}]").is_err());
        assert_eq!(specs("[{class: gpio}]")[0].check(), Ok(()));
    }

    #[test]
    fn containers_get_free_devices_and_shared_ones_as_often_as_allowed() {
        let supply = |name: &str, devices: &[&[&str]], shared| Supply {
            resource: format!("{PREFIX}{name}"),
            devices: devices.iter().map(|nodes| nodes.iter().map(|&node| node.to_owned()).collect()).collect(),
            shared,
        };
        let supplies = [
            supply("serial", &[&["/dev/ttyUSB0"], &["/dev/ttyUSB1"]], 1),
            supply("gpio", &[&["/dev/gpiochip0"]], 2),
            supply("zigbee", &[&["/dev/bus/usb/001/003", "/dev/ttyUSB0"]], 1),
        ];
        let ask = |name: &str, count: usize, in_use: &[&[&str]]| {
            let held: Vec<Vec<String>> =
                in_use.iter().map(|nodes| nodes.iter().map(|&node| node.to_owned()).collect()).collect();
            let given = allocate(&supplies, &BTreeMap::from([(format!("{PREFIX}{name}"), count)]), &held);
            given.map(|given| given.into_values().next().unwrap_or_default())
        };
        assert_eq!(ask("serial", 1, &[]).unwrap(), ["/dev/ttyUSB0"]);
        assert_eq!(ask("serial", 1, &[&["/dev/ttyUSB0"]]).unwrap(), ["/dev/ttyUSB1"]);
        assert_eq!(ask("serial", 2, &[]).unwrap(), ["/dev/ttyUSB0", "/dev/ttyUSB1"]);
        let refused = ask("serial", 2, &[&["/dev/ttyUSB0"]]).unwrap_err();
        assert_eq!(refused, "2 of edgelet.io/serial wanted, but only 1 free on this node");
        assert!(ask("gpio", 1, &[&["/dev/gpiochip0"]]).is_ok());
        assert!(ask("gpio", 1, &[&["/dev/gpiochip0"], &["/dev/gpiochip0"]]).is_err());
        // The same stick under another name is the same stick.
        assert!(ask("zigbee", 1, &[&["/dev/ttyUSB0"]]).is_err());
        assert!(ask("unknown", 1, &[]).is_err());
    }

    #[test]
    fn a_container_asks_by_its_limits_and_is_told_what_it_got() {
        let limits = json!({"cpu": "1", "edgelet.io/serial": "1", "edgelet.io/gpio": 2, "edgelet.io/spi": "0"});
        let wanted = wanted(limits.as_object().unwrap());
        assert_eq!(wanted, BTreeMap::from([("edgelet.io/gpio".into(), 2), ("edgelet.io/serial".into(), 1)]));
        let given = BTreeMap::from([("edgelet.io/my-stick".into(), vec!["/dev/a".into(), "/dev/b".into()])]);
        assert_eq!(variables(&given), [("EDGELET_DEVICE_MY_STICK".into(), "/dev/a:/dev/b".into())]);
        assert_eq!(devices(&given)[1].permissions, "rw");
    }

    #[test]
    fn patterns() {
        for (pattern, name, fit) in
            [("tty*", "ttyUSB0", true), ("tty*0", "ttyUSB0", true), ("tty*1", "ttyUSB0", false), ("a", "ab", false)]
        {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
