//! Checked configuration of a server and a node: what was typed, then what it means.
//! Keys are k3s' where k3s has one, so that a config file can be carried over.

use crate::backup::CLUSTER_FACTS;
use crate::backup::schedule::{Schedule, parse_interval};
use crate::kubelet::device::DeviceSpec;
use crate::network::ipam::Cidr;
use crate::peers::Mode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

const DATA_DIRECTORY: &str = "/var/lib/edgelet";

/// What was typed, in `/etc/edgelet/config.yaml` or as flags. Nothing is checked yet.
#[derive(Clone, Debug, Default, Deserialize, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Typed {
    /// The server this board's node belongs to, https://HOST:PORT
    #[arg(skip)]
    pub server: Option<String>,
    /// What it joins with, once
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub token: Option<String>,
    /// Folder for everything that must survive a reboot [default: /var/lib/edgelet]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Folder for sockets and records of running pods, on tmpfs [default: /run/edgelet]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Folder for container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Address the API listens on [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port the API listens on; 0 takes a free one [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub https_listen_port: Option<u16>,
    /// Further names and addresses in the API's certificate
    #[arg(long, value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// This node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// This node's address [default: that of the default route]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Where this node is reached from outside its own network
    #[arg(long, value_name = "IP")]
    pub node_external_ip: Option<Ipv4Addr>,
    /// Labels the node registers with, KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    pub node_label: Vec<String>,
    /// Devices of the board that pods may ask for as resources
    #[arg(skip)]
    pub devices: Vec<DeviceSpec>,
    /// Addresses of this node's pods, on a board that is its cluster [default: what the server gives out]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Addresses of all pods [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// How pods of different nodes reach each other: auto, route, vxlan or wireguard [default: auto]
    #[arg(long, value_name = "MODE")]
    pub pod_network: Option<String>,
    /// Addresses of all Services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Address of the cluster's DNS [default: the tenth of the service CIDR]
    #[arg(long, value_name = "IP")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Name of the pod bridge [default: edge0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Cgroup under which pods live [default: edgelet]
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<String>,
    /// Registries that speak plain HTTP, HOST:PORT
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// Seconds that a shutdown of the machine waits for its pods to end; 0: none [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub shutdown_grace_period: Option<u64>,
    /// The part of them that is kept for critical pods [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub shutdown_grace_period_critical_pods: Option<u64>,
    /// Where the admin kubeconfig is written [default: DATA_DIR/kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Folder for backups that the server makes by itself, best on another disk; it must exist
    #[arg(long, value_name = "DIR")]
    pub backup_dir: Option<PathBuf>,
    /// How often, if something has changed: 30m, 24h, 7d [default: 24h]
    #[arg(long, value_name = "INTERVAL")]
    pub backup_interval: Option<String>,
    /// How many backups stay [default: 7]
    #[arg(long, value_name = "COUNT")]
    pub backup_keep: Option<usize>,
    /// File with the passphrase that backups are sealed with
    #[arg(long, value_name = "FILE")]
    pub backup_passphrase_file: Option<PathBuf>,
}

/// What it means: every value present and checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_directory: PathBuf,
    pub run_directory: PathBuf,
    pub log_directory: PathBuf,
    pub listen: SocketAddr,
    pub tls_san: Vec<String>,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// It was typed: it does not follow the network.
    pub node_ip_is_fixed: bool,
    pub node_external_ip: Option<Ipv4Addr>,
    pub node_labels: Vec<(String, String)>,
    pub devices: Vec<DeviceSpec>,
    pub cluster_cidr: Cidr,
    /// This node's part of the cluster CIDR; `None` = what the server gives out.
    pub pod_cidr: Option<String>,
    pub pod_network: Mode,
    pub service_cidr: Cidr,
    pub dns_ip: Ipv4Addr,
    pub cluster_domain: String,
    pub bridge: String,
    pub nftables_table: String,
    pub cgroup_root: String,
    pub insecure_registries: Vec<String>,
    /// `None`: the kubelet's own default.
    pub shutdown_grace_s: Option<u64>,
    pub shutdown_critical_grace_s: Option<u64>,
    pub kubeconfig: PathBuf,
    /// Backups that the server makes by itself.
    pub backup: Option<Schedule>,
}

impl Config {
    /// What cannot be changed once objects were made with it, as the config file would have it.
    pub fn cluster_facts(&self) -> String {
        Typed::default().in_cluster(ClusterFacts::of(self)).to_yaml()
    }
}

/// What every node of a cluster must know alike; a joining node is told by the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFacts {
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
}

impl ClusterFacts {
    pub fn of(config: &Config) -> Self {
        Self {
            cluster_cidr: config.cluster_cidr.to_string(),
            service_cidr: config.service_cidr.to_string(),
            cluster_dns: config.dns_ip,
            cluster_domain: config.cluster_domain.clone(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read config file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config file {path}: {source}")]
    Parse { path: PathBuf, source: serde_yaml::Error },
    #[error("{key}: {why}")]
    Value { key: &'static str, why: String },
}

fn value(key: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, why: why.into() }
}

/// Parses an IPv4 network for pods or Services; spelt with host bits it is refused, not rounded.
fn cidr(key: &'static str, text: &str) -> Result<Cidr, ConfigError> {
    let parsed: Cidr = text.parse().map_err(|why: String| value(key, why))?;
    if parsed.to_string() != text {
        return Err(value(key, format!("{text:?} has host bits set; did you mean {parsed}?")));
    }
    if parsed.prefix() > 28 {
        return Err(value(key, format!("{text:?} is too small; /28 is the least")));
    }
    Ok(parsed)
}

impl Typed {
    /// Reads a config file; a missing default file is an empty one.
    pub fn read(path: &Path, required: bool) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    /// Flags win over the file; lists add up.
    pub fn over(self, file: Self) -> Self {
        let both = |mut flags: Vec<String>, file: Vec<String>| {
            flags.extend(file);
            flags
        };
        Self {
            server: self.server.or(file.server),
            token: self.token.or(file.token),
            data_dir: self.data_dir.or(file.data_dir),
            run_dir: self.run_dir.or(file.run_dir),
            log_dir: self.log_dir.or(file.log_dir),
            bind_address: self.bind_address.or(file.bind_address),
            https_listen_port: self.https_listen_port.or(file.https_listen_port),
            tls_san: both(self.tls_san, file.tls_san),
            node_name: self.node_name.or(file.node_name),
            node_ip: self.node_ip.or(file.node_ip),
            node_external_ip: self.node_external_ip.or(file.node_external_ip),
            node_label: both(self.node_label, file.node_label),
            devices: [self.devices, file.devices].concat(),
            pod_cidr: self.pod_cidr.or(file.pod_cidr),
            cluster_cidr: self.cluster_cidr.or(file.cluster_cidr),
            pod_network: self.pod_network.or(file.pod_network),
            service_cidr: self.service_cidr.or(file.service_cidr),
            cluster_dns: self.cluster_dns.or(file.cluster_dns),
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            bridge: self.bridge.or(file.bridge),
            cgroup_root: self.cgroup_root.or(file.cgroup_root),
            insecure_registry: both(self.insecure_registry, file.insecure_registry),
            shutdown_grace_period: self.shutdown_grace_period.or(file.shutdown_grace_period),
            shutdown_grace_period_critical_pods: self
                .shutdown_grace_period_critical_pods
                .or(file.shutdown_grace_period_critical_pods),
            write_kubeconfig: self.write_kubeconfig.or(file.write_kubeconfig),
            backup_dir: self.backup_dir.or(file.backup_dir),
            backup_interval: self.backup_interval.or(file.backup_interval),
            backup_keep: self.backup_keep.or(file.backup_keep),
            backup_passphrase_file: self.backup_passphrase_file.or(file.backup_passphrase_file),
        }
    }

    /// What the server says of the cluster, over whatever was typed.
    pub fn in_cluster(self, facts: ClusterFacts) -> Self {
        Self {
            cluster_cidr: Some(facts.cluster_cidr),
            service_cidr: Some(facts.service_cidr),
            cluster_dns: Some(IpAddr::V4(facts.cluster_dns)),
            cluster_domain: Some(facts.cluster_domain),
            ..self
        }
    }

    /// What was given, as a config file; never the token, which is good for one board and one time.
    pub fn to_yaml(&self) -> String {
        let mut all = serde_json::to_value(self).expect("texts, numbers and lists encode");
        if let Some(keys) = all.as_object_mut() {
            keys.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        }
        serde_yaml::to_string(&all).expect("texts, numbers and lists encode")
    }

    /// Where the state is, before anything else is known.
    pub fn data_directory(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| DATA_DIRECTORY.into())
    }

    /// Takes from an existing (or restored) cluster what was not typed.
    pub fn over_cluster(self) -> Result<Self, ConfigError> {
        let facts = Self::read(&self.data_directory().join(CLUSTER_FACTS), false)?;
        Ok(self.over(facts))
    }

    /// Checks everything and fills in the defaults.
    pub fn check(self) -> Result<Config, ConfigError> {
        let data_directory = self.data_directory();
        let interval = self.backup_interval.as_deref().unwrap_or("24h");
        let interval = parse_interval(interval).map_err(|why| value("backup-interval", why))?;
        let keep = self.backup_keep.unwrap_or(7);
        if keep == 0 {
            return Err(value("backup-keep", "0 would keep no backup"));
        }
        let passphrase_file = self.backup_passphrase_file;
        let backup = self.backup_dir.map(|directory| Schedule { directory, interval, keep, passphrase_file });
        let cluster_cidr = cidr("cluster-cidr", self.cluster_cidr.as_deref().unwrap_or("10.42.0.0/16"))?;
        let service_cidr = cidr("service-cidr", self.service_cidr.as_deref().unwrap_or("10.43.0.0/16"))?;
        if cluster_cidr.contains(service_cidr.base()) || service_cidr.contains(cluster_cidr.base()) {
            return Err(value("service-cidr", format!("{service_cidr} overlaps cluster-cidr {cluster_cidr}")));
        }
        let dns_ip = match self.cluster_dns {
            None => service_cidr.nth(10),
            Some(IpAddr::V4(ip)) if service_cidr.contains(ip) => ip,
            Some(ip) => return Err(value("cluster-dns", format!("{ip} is not in service-cidr {service_cidr}"))),
        };
        let bridge = self.bridge.unwrap_or_else(|| "edge0".into());
        // The kernel's IFNAMSIZ is 16 with the terminating zero.
        if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ']) {
            return Err(value("bridge", format!("{bridge:?} is no name for a network device")));
        }
        let port = self.https_listen_port.unwrap_or(6443);
        let listen = SocketAddr::new(self.bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        Ok(Config {
            run_directory: self.run_dir.unwrap_or_else(|| "/run/edgelet".into()),
            log_directory: self.log_dir.unwrap_or_else(|| "/var/log/pods".into()),
            listen,
            tls_san: self.tls_san,
            node_name: node_name(self.node_name)?,
            node_ip_is_fixed: self.node_ip.is_some(),
            node_ip: self.node_ip.unwrap_or_else(|| default_ip(cluster_cidr.nth(1))),
            node_external_ip: self.node_external_ip,
            node_labels: labels(&self.node_label)?,
            devices: devices(self.devices)?,
            pod_cidr: pod_cidr(self.pod_cidr, &cluster_cidr)?,
            cluster_cidr,
            pod_network: pod_network(self.pod_network)?,
            service_cidr,
            dns_ip,
            cluster_domain: self.cluster_domain.unwrap_or_else(|| "cluster.local".into()),
            nftables_table: if bridge == "edge0" { "edgelet".into() } else { format!("edgelet-{bridge}") },
            bridge,
            cgroup_root: self.cgroup_root.unwrap_or_else(|| "edgelet".into()).trim_matches('/').to_owned(),
            insecure_registries: self.insecure_registry,
            shutdown_grace_s: self.shutdown_grace_period,
            shutdown_critical_grace_s: self.shutdown_grace_period_critical_pods,
            kubeconfig: self.write_kubeconfig.unwrap_or_else(|| data_directory.join("kubeconfig")),
            data_directory,
            backup,
        })
    }
}

fn pod_network(typed: Option<String>) -> Result<Mode, ConfigError> {
    typed.map_or(Ok(Mode::Auto), |text| text.parse().map_err(|why: String| value("pod-network", why)))
}

/// Part of the cluster CIDR.
fn pod_cidr(typed: Option<String>, cluster: &Cidr) -> Result<Option<String>, ConfigError> {
    let Some(text) = typed else { return Ok(None) };
    let parsed = cidr("pod-cidr", &text)?;
    if !cluster.contains(parsed.base()) || parsed.prefix() < cluster.prefix() {
        return Err(value("pod-cidr", format!("{parsed} is not in cluster-cidr {cluster}")));
    }
    Ok(Some(text))
}

/// A node's name is a DNS subdomain; the host's name is made one.
fn node_name(typed: Option<String>) -> Result<String, ConfigError> {
    let host = || rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase().replace('_', "-");
    let name = typed.unwrap_or_else(host);
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if name.len() > 253 || !name.split('.').all(part) {
        return Err(value("node-name", format!("{name:?} must be lower case letters, digits, '-' and '.'")));
    }
    Ok(name)
}

fn labels(typed: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    let split = |label: &String| {
        let pair = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| value("node-label", format!("{label:?} must be KEY=VALUE")))
    };
    typed.iter().map(split).collect()
}

fn devices(typed: Vec<DeviceSpec>) -> Result<Vec<DeviceSpec>, ConfigError> {
    typed.iter().try_for_each(DeviceSpec::check).map_err(|why| value("devices", why))?;
    Ok(typed)
}

/// This machine's address: the one the kernel would use towards the outside (nothing is sent), else any
/// that is not loopback; without a network at all, the bridge's own, so that the board still serves.
fn default_ip(bridge_ip: Ipv4Addr) -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let interface = || {
        let addresses =
            nix::ifaddrs::getifaddrs().ok()?.filter_map(|one| one.address?.as_sockaddr_in().map(|one| one.ip()));
        addresses.into_iter().find(|ip| !ip.is_loopback() && !ip.is_link_local()).map(IpAddr::V4)
    };
    probe().filter(|ip| !ip.is_loopback()).or_else(interface).unwrap_or(IpAddr::V4(bridge_ip))
}

/// When the clock is plainly wrong (a board without a battery), certificates must not be dated by it.
pub fn is_plausible(now: Timestamp) -> bool {
    const BUILT_AFTER_S: i64 = 1_767_225_600; // 2026-01-01
    now.as_second() >= BUILT_AFTER_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, ConfigError> {
        serde_yaml::from_str::<Typed>(text).unwrap().check()
    }

    #[test]
    fn defaults_are_complete_and_flags_win() {
        let file: Typed = serde_yaml::from_str("node-name: from-file\ntls-san: [a]\n").unwrap();
        let flags = Typed { node_name: Some("flag".into()), tls_san: vec!["b".into()], ..Typed::default() };
        let config = flags.over(file).check().unwrap();
        assert_eq!((config.node_name.as_str(), config.tls_san.len()), ("flag", 2));
        assert_eq!(config.dns_ip, Ipv4Addr::new(10, 43, 0, 10));
        assert_eq!(config.pod_cidr, None);
        assert_eq!(config.kubeconfig, Path::new("/var/lib/edgelet/kubeconfig"));
    }

    #[test]
    fn what_a_cluster_was_made_with_counts_unless_something_else_is_typed() {
        let folder = tempfile::tempdir().unwrap();
        let typed = || Typed { data_dir: Some(folder.path().to_owned()), ..Typed::default() };
        let made = check("{cluster-cidr: 10.50.0.0/16, cluster-domain: fleet.example}").unwrap();
        std::fs::write(folder.path().join(CLUSTER_FACTS), made.cluster_facts()).unwrap();
        let restored = typed().over_cluster().unwrap().check().unwrap();
        assert_eq!(restored.cluster_facts(), made.cluster_facts());
        let other = Typed { cluster_domain: Some("other".into()), ..typed() }.over_cluster().unwrap().check().unwrap();
        assert_eq!((other.cluster_domain.as_str(), other.cluster_cidr), ("other", made.cluster_cidr));
    }

    #[test]
    fn bad_values_name_their_key() {
        let cases = [
            (
                "cluster-cidr: 10.42.0.1/16",
                "cluster-cidr: \"10.42.0.1/16\" has host bits set; did you mean 10.42.0.0/16?",
            ),
            ("service-cidr: 10.42.1.0/24", "service-cidr: 10.42.1.0/24 overlaps cluster-cidr 10.42.0.0/16"),
            ("backup-interval: soon", "backup-interval: \"soon\" is no interval: write 30m, 24h or 7d"),
            ("cluster-dns: 10.44.0.10", "cluster-dns: 10.44.0.10 is not in service-cidr 10.43.0.0/16"),
            ("pod-cidr: 10.44.0.0/24", "pod-cidr: 10.44.0.0/24 is not in cluster-cidr 10.42.0.0/16"),
            ("node-name: Not_ok", "node-name: \"Not_ok\" must be lower case letters, digits, '-' and '.'"),
            ("node-label: [x]", "node-label: \"x\" must be KEY=VALUE"),
            ("devices: [{name: a}]", "devices: device \"a\" needs one of class, usb and paths"),
            ("bridge: a-very-long-bridge", "bridge: \"a-very-long-bridge\" is no name for a network device"),
        ];
        for (text, message) in cases {
            assert_eq!(check(text).unwrap_err().to_string(), message);
        }
        assert!(serde_yaml::from_str::<Typed>("no-such-key: 1").is_err());
    }
}
