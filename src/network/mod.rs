//! Links, addresses, routes and nftables of one node, by netlink. No `ip`, `nft` or `iptables` is called.
//! Idempotent: "already so" is success, and whatever a crash left behind is found and used or removed.

pub mod changes;
pub mod claim;
pub mod conntrack;
mod firewall;
pub mod ipam;
mod netlink;
pub mod nftables;
pub mod peers;
pub mod plan;
pub mod relay;
pub mod resolve;
pub mod tables;
pub mod unanswered;
pub mod wireguard;

use crate::sys::netns;
use ipam::{Ipam, Remembered};
use netlink::{LinkEvents, Netlink, Port};
use plan::Layout;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tables::Tables;

/// What a node's pod network is made of.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// This node's pods, `10.42.0.0/24`. The bridge has the first address.
    pub pod_cidr: String,
    /// All nodes' pods, `10.42.0.0/16`: not masqueraded.
    pub cluster_cidr: String,
    /// `10.43.0.0/16`.
    pub service_cidr: String,
    /// The cluster DNS address, bound on the bridge.
    pub dns_ip: IpAddr,
    /// Name of the bridge, `edge0`.
    pub bridge: String,
    /// Name of the nftables tables, `edgelet`.
    pub table: String,
    /// Where pods' network namespaces are pinned, `/run/edgelet/netns`.
    pub netns_directory: PathBuf,
    /// Where addresses given out are remembered across reboots.
    pub state_directory: PathBuf,
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub ip: IpAddr,
    /// The pinned network namespace, for the shim to join.
    pub netns: PathBuf,
}

/// Why the network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name}: {message}")]
    Config { name: &'static str, message: String },
    #[error("{doing} {what}: {source}")]
    Kernel { doing: &'static str, what: String, source: io::Error },
    #[error("no address is free in {0}")]
    Exhausted(String),
    #[error(transparent)]
    Rules(#[from] nftables::BatchError),
}

impl Error {
    /// The kernel lacks what was asked for: a kind of link, a kind of rule.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP))
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Addresses are written this long after they change: many pods, one write. A write that is lost is
/// made good at the next start from the links that exist.
const SAVE_DELAY: Duration = Duration::from_millis(500);

/// The proxy's table is named after the node's, with this behind it.
pub const SERVICES_SUFFIX: &str = "-services";

/// The kernel reaps a namespace within some tens of milliseconds.
const REAP_PATIENCE: Duration = Duration::from_millis(200);

/// The pod network of this node. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    layout: Layout,
    tables: Tables,
    /// Prefix of the tables' names.
    table: String,
    /// Bytes of an IP packet of a pod; 0 until it is known.
    mtu: AtomicU32,
    /// Pods are held to their own addresses, as far as the kernel can.
    guarded: AtomicBool,
    /// The kernel tells of packets without an answer.
    tells_unanswered: AtomicBool,
    state: Mutex<State>,
}

struct State {
    ipam: Ipam,
    /// Complete attachments.
    attached: BTreeMap<String, Ipv4Addr>,
    /// One attach or detach per pod at a time.
    busy: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
    save_pending: bool,
    /// What stood in the way of pod traffic when last looked at.
    obstacles: Vec<String>,
}

impl Network {
    /// Checks the configuration and opens nf_tables in the calling thread's namespace. Changes nothing yet.
    pub fn new(config: NetworkConfig) -> Result<Self> {
        Self::with_tables(config, true)
    }

    /// `owned` tables are spared by `nft flush ruleset`; where the kernel cannot, they are plain anyway.
    pub fn with_tables(config: NetworkConfig, owned: bool) -> Result<Self> {
        let layout = Layout::new(&config)?;
        let tables = Tables::open(owned).map_err(|source| kernel("open", "nf_tables", source))?;
        let ipam = Ipam::new(layout.pods, load(&layout.addresses_file));
        let state = State {
            ipam,
            attached: BTreeMap::new(),
            busy: BTreeMap::new(),
            save_pending: false,
            obstacles: Vec::new(),
        };
        let table = config.table;
        let mtu = AtomicU32::new(0);
        let (guarded, tells_unanswered) = (AtomicBool::new(true), AtomicBool::new(false));
        let state = Mutex::new(state);
        Ok(Self(Arc::new(Inner { layout, tables, table, mtu, guarded, tells_unanswered, state })))
    }

    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Makes the node's side and takes over what a former process left. Call it first; again is fine.
    pub async fn setup(&self) -> Result<()> {
        let layout = &self.0.layout;
        for directory in [Some(layout.netns_directory.as_path()), layout.addresses_file.parent()].into_iter().flatten()
        {
            let failed = |source| kernel("create directory", &directory.display().to_string(), source);
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let node_side = layout.clone();
        let ports = netlink::run(move || async move { connect_node(&node_side).await }).await?;
        self.program_node()?;
        self.mend_and_warn();
        self.adopt(ports).await?;
        // Not before it is known which pods are there: they would be cut off meanwhile.
        self.guard();
        Ok(())
    }

    /// Puts the node's own rules in place, whatever is there. Services' rules are the proxy's.
    pub fn program(&self) -> Result<()> {
        self.guard();
        self.program_node()
    }

    /// Holds every pod to its own address. A kernel that cannot is one that edgelet works on all the same.
    fn guard(&self) {
        let Inner { tables, table, guarded, .. } = &*self.0;
        let pods: Vec<_> = self.state().attached.iter().map(|(uid, ip)| (plan::host_link(uid), *ip)).collect();
        let fill = |batch: &mut nftables::Batch| tables::source_rules(batch, table, &pods);
        let result = tables.replace_of(nftables::Family::Bridge, table, fill);
        if let Err(error) = &result {
            tracing::warn!(%error, "this kernel cannot hold pods to their own addresses");
        }
        guarded.store(result.is_ok(), Ordering::Relaxed);
    }

    /// Lets a pod send from its address, or forgets that it could.
    fn guard_pod(&self, uid: &str, ip: Ipv4Addr, is_there: bool) -> Result<()> {
        let Inner { tables, table, guarded, .. } = &*self.0;
        if !guarded.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut batch = nftables::Batch::of(nftables::Family::Bridge);
        let change = if is_there { tables::allow_sources } else { tables::forget_sources };
        change(&mut batch, table, &[(plan::host_link(uid), ip)]);
        Ok(tables.commit(batch)?)
    }

    fn program_node(&self) -> Result<()> {
        let Inner { layout, tables, table, tells_unanswered, .. } = &*self.0;
        let told = tables.replace(table, |batch| {
            tables::node_rules(batch, table, layout);
            unanswered::rules(batch, table, layout);
        });
        tells_unanswered.store(told.is_ok(), Ordering::Relaxed);
        if let Err(error) = told {
            tracing::debug!(%error, "without rules that tell of packets without an answer");
            tables.replace(table, |batch| tables::node_rules(batch, table, layout))?;
        }
        Ok(())
    }

    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The table of the node's own rules; other rooms add a suffix for theirs.
    pub fn table(&self) -> &str {
        &self.0.table
    }

    /// Opens other programs' firewalls to pod traffic; what on this machine still stands in its way, for the
    /// node's status. Again after every change that others made to the rules.
    pub fn mend(&self) -> Vec<String> {
        let mut warnings = self.0.tables.open_firewalls(&self.0.layout, &self.0.table);
        let bridged = std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if bridged.is_ok_and(|value| value.trim() != "0") {
            warnings.push("net.bridge.bridge-nf-call-iptables must be 0: set it, and find who sets it to 1".to_owned());
        }
        warnings
    }

    /// The same; an obstacle is logged when it appears, not each time it is still there.
    pub fn mend_and_warn(&self) {
        let found = self.mend();
        for warning in appeared(&mut self.state().obstacles, found) {
            tracing::warn!(warning, "pod traffic may be lost");
        }
    }

    /// Finds the complete attachments and removes the half-made ones.
    async fn adopt(&self, ports: Vec<Port>) -> Result<()> {
        let layout = &self.0.layout;
        let mut found = BTreeMap::new();
        let mut broken = Vec::new();
        for port in ports {
            match plan::parse_alias(&port.alias) {
                Some((uid, ip)) if netns::is_pinned(&layout.netns(&uid)) => {
                    found.insert(uid, ip);
                }
                _ => broken.push(port.name),
            }
        }
        netlink::run(move || async move { delete_links(&broken).await }).await?;
        for uid in files(&layout.netns_directory)? {
            if !found.contains_key(&uid) && !self.state().busy.contains_key(&uid) {
                release(&layout.netns(&uid))?;
            }
        }
        let mut state = self.state();
        for (uid, ip) in &found {
            state.ipam.observe(uid, *ip);
        }
        state.attached = found;
        Ok(())
    }

    /// Gives a pod its namespace and address; `wanted_ip` if it is free. Already attached: the same answer.
    pub async fn attach(&self, uid: &str, wanted_ip: Option<IpAddr>) -> Result<Attachment> {
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Err(Error::Config { name: "pod uid", message: format!("{uid:?} is no file name") });
        }
        let turn = self.turn(uid);
        let _turn = turn.lock().await;
        let netns = self.0.layout.netns(uid);
        let present = self.state().attached.get(uid).copied();
        if let Some(ip) = present
            && netns::is_pinned(&netns)
        {
            return Ok(Attachment { ip: ip.into(), netns });
        }
        let wanted = wanted_ip.and_then(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let ip = self.state().ipam.attach(uid, wanted);
        let ip = ip.ok_or_else(|| Error::Exhausted(self.0.layout.pods.to_string()))?;
        let (layout, pod) = (self.0.layout.clone(), uid.to_owned());
        let mtu = self.pod_mtu();
        netlink::run(move || async move { connect_pod(&layout, &pod, ip, mtu).await }).await?;
        self.guard_pod(uid, ip, true)?;
        self.state().attached.insert(uid.to_owned(), ip);
        if self.pod_mtu() != mtu {
            // It changed meanwhile, for the pods that were attached then.
            peers::set_mtu(uid, &netns, self.pod_mtu()).await?;
        }
        self.save_soon();
        Ok(Attachment { ip: ip.into(), netns })
    }

    fn pod_mtu(&self) -> u32 {
        match self.0.mtu.load(Ordering::Relaxed) {
            0 => peers::POD_MTU_LIMIT,
            mtu => mtu,
        }
    }

    /// Takes a pod off the network and frees its address. Already gone is success.
    pub async fn detach(&self, uid: &str) -> Result<()> {
        let turn = self.turn(uid);
        let result = {
            let _turn = turn.lock().await;
            self.disconnect(uid).await
        };
        let mut state = self.state();
        // Two: the map's and ours. More: somebody waits for the turn.
        if Arc::strong_count(&turn) == 2 {
            state.busy.remove(uid);
        }
        result
    }

    async fn disconnect(&self, uid: &str) -> Result<()> {
        let (path, link) = (self.0.layout.netns(uid), plan::host_link(uid));
        netlink::run(move || async move { disconnect_pod(&path, &link).await }).await?;
        let ip = {
            let mut state = self.state();
            state.ipam.release(uid);
            state.attached.remove(uid)
        };
        if let Some(ip) = ip
            && let Err(error) = self.guard_pod(uid, ip, false)
        {
            // Somebody flushed the rules: they are put back without it.
            tracing::debug!(%error, "address of a pod was not guarded");
        }
        self.save_soon();
        Ok(())
    }

    /// What is attached now, by uid.
    pub fn attachments(&self) -> BTreeMap<String, Attachment> {
        let state = self.state();
        let attachment = |uid: &String, ip: &Ipv4Addr| Attachment { ip: (*ip).into(), netns: self.0.layout.netns(uid) };
        state.attached.iter().map(|(uid, ip)| (uid.clone(), attachment(uid, ip))).collect()
    }

    /// Forgets the addresses of pods that are neither attached nor listed: those that went during a reboot.
    pub fn retain(&self, uids: &[String]) {
        if self.state().ipam.retain(uids) {
            self.save_soon();
        }
    }

    /// Removes everything that this network made on the node, pods' links and namespaces too.
    /// Goes on after errors and returns the first.
    pub async fn teardown(&self) -> Result<()> {
        let layout = self.0.layout.clone();
        let mut result = Ok(());
        let detached = files(&layout.netns_directory)?.into_iter().map(async |uid| self.detach(&uid).await);
        for one in futures_util::future::join_all(detached).await {
            result = result.and(one);
        }
        result = result.and(self.disconnect_peers().await);
        let bridge = layout.bridge.clone();
        result = result.and(netlink::run(move || async move { disconnect_node(&bridge).await }).await);
        result = result.and(self.0.tables.close_firewalls(&self.0.table).map_err(Error::from));
        let guard = self.0.tables.delete_of(nftables::Family::Bridge, &self.0.table);
        if self.0.guarded.load(Ordering::Relaxed) {
            result = result.and(guard.map_err(Error::from));
        }
        for suffix in ["", SERVICES_SUFFIX] {
            let deleted = self.0.tables.delete(&format!("{}{suffix}", self.0.table));
            result = result.and(deleted.map_err(Error::from));
        }
        self.state().save_pending = false;
        // Directories that others still use stay.
        let _ = std::fs::remove_file(&layout.addresses_file);
        let _ = std::fs::remove_file(layout.wireguard_key_file());
        let _ = std::fs::remove_dir(&layout.netns_directory);
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while the network is locked")
    }

    fn turn(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.state().busy.entry(uid.to_owned()).or_default().clone()
    }

    /// One write for all changes of the next moment.
    fn save_soon(&self) {
        if std::mem::replace(&mut self.state().save_pending, true) {
            return;
        }
        // Weak: a network that ends takes its claim on the tables with it at once.
        let network = Arc::downgrade(&self.0);
        crate::supervise::spawn(async move {
            tokio::time::sleep(SAVE_DELAY).await;
            let Some(network) = network.upgrade().map(Network) else { return };
            if !std::mem::replace(&mut network.state().save_pending, false) {
                return;
            }
            let remembered = network.state().ipam.remembered();
            if let Err(error) = save(&network.0.layout.addresses_file, &remembered) {
                tracing::warn!(%error, "cannot remember pod addresses");
            }
        });
    }
}

/// What is in `found` and was not in `known`, which becomes `found`.
fn appeared(known: &mut Vec<String>, found: Vec<String>) -> Vec<String> {
    let new = found.iter().filter(|one| !known.contains(one)).cloned().collect();
    *known = found;
    new
}

/// Loopback, the bridge with its addresses, sysctls and routes; what is attached to the bridge.
async fn connect_node(layout: &Layout) -> Result<Vec<Port>> {
    let netlink = Netlink::open()?;
    // Up already on a machine, not in a fresh namespace.
    netlink.up("lo").await?;
    let bridge = netlink.bridge(&layout.bridge, plan::mac(layout.gateway)).await?;
    netlink.address(bridge, layout.gateway, layout.pods.prefix()).await?;
    netlink.address(bridge, layout.dns, 32).await?;
    for (name, value, optional) in layout.sysctls() {
        match netns::sysctl(&name, value) {
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(|source| kernel("set sysctl", &name, source))?,
        }
    }
    // Without it a node that has no default route cannot reach Service addresses.
    netlink.route(layout.services, bridge, layout.gateway).await?;
    netlink.ports(bridge).await
}

async fn disconnect_node(bridge: &str) -> Result<()> {
    let netlink = Netlink::open()?;
    let Some(index) = netlink.index(bridge).await? else { return Ok(()) };
    for port in netlink.ports(index).await? {
        netlink.delete(&port.name).await?;
    }
    netlink.delete(bridge).await
}

/// Whatever an interrupted attempt left is removed first; an error leaves remains for the next attempt.
async fn connect_pod(layout: &Layout, uid: &str, ip: Ipv4Addr, mtu: u32) -> Result<()> {
    let node = Netlink::open()?;
    let (path, host) = (layout.netns(uid), plan::host_link(uid));
    if path.exists() {
        node.delete(&host).await?;
        release(&path)?;
    }
    let bridge = node.index(&layout.bridge).await?;
    let bridge = bridge.ok_or_else(|| kernel("find bridge", &layout.bridge, io::ErrorKind::NotFound.into()))?;
    let failed = |source| kernel("create network namespace", &path.display().to_string(), source);
    // Else another pod could claim its address, or its MAC, and get its packets.
    node.add_neighbour(bridge, mac_of(ip), ip).await?;
    // From here on this thread is in the pod; `node` stays where it was opened.
    let namespace = netns::unshare_and_pin(&path).map_err(failed)?;
    for (name, value) in plan::POD_SYSCTLS {
        netns::sysctl(name, value).map_err(|source| kernel("set sysctl", name, source))?;
    }
    let pod = Netlink::open()?;
    node.veth(&host, bridge, namespace.as_fd(), plan::mac(ip), mtu).await?;
    pod.pod(ip, layout.gateway).await?;
    node.port(&host, mac_of(ip), &plan::alias(uid, ip)).await
}

fn mac_of(ip: Ipv4Addr) -> peers::Mac {
    plan::mac(ip).try_into().expect("a MAC has six bytes")
}

/// The kernel takes the link with the namespace, many at a time, which holds its lock far shorter than
/// deleting each. A process that is still inside keeps the namespace: then the link is deleted.
async fn disconnect_pod(path: &Path, link: &str) -> Result<()> {
    let node = Netlink::open()?;
    let mut events = LinkEvents::open()?;
    let index = node.index(link).await?;
    release(path)?;
    let Some(index) = index else { return Ok(()) };
    match tokio::time::timeout(REAP_PATIENCE, events.deleted(index)).await {
        Ok(true) => Ok(()),
        _ => node.delete(link).await,
    }
}

async fn delete_links(names: &[String]) -> Result<()> {
    let netlink = Netlink::open()?;
    for name in names {
        netlink.delete(name).await?;
    }
    Ok(())
}

fn kernel(doing: &'static str, what: &str, source: io::Error) -> Error {
    Error::Kernel { doing, what: what.to_owned(), source }
}

fn release(path: &Path) -> Result<()> {
    netns::release(path).map_err(|source| kernel("release", &path.display().to_string(), source))
}

fn files(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| kernel("read", &directory.display().to_string(), source))?,
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Nothing or nonsense on the disk is an empty memory: the links that exist are found anyway.
fn load(path: &Path) -> Remembered {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// No fsync: a power cut costs a pod its former address at worst.
fn save(path: &Path, remembered: &Remembered) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(remembered)?)?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_firewall_is_warned_of_once_per_episode() {
        let found = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let mut known = Vec::new();
        let rounds: [(&[&str], &[&str]); 5] =
            [(&["a"], &["a"]), (&["a"], &[]), (&["a", "b"], &["b"]), (&[], &[]), (&["a"], &["a"])];
        for (now, new) in rounds {
            assert_eq!(appeared(&mut known, found(now)), found(new));
        }
    }
}
