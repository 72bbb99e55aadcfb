//! `edgelet node`: runs the node of a board that has joined, until SIGTERM; pods live on after it. With `server`
//! and `token` in the config file it joins first. Its subcommands look after nodes.

use super::connect::Connection;
use super::join::{self, Plan};
use crate::client::{DeleteOptions, NODES, SECRETS};
use crate::clock::Clock;
use crate::config::{Config, Typed};
use crate::network::resolve::Resolver;
use crate::node::{self, joined, time};
use crate::peers::paths;
use crate::pki::node_identity::{Joined, NodeIdentity};
use crate::supervise::Tree;
use crate::supervise::notify::Notifier;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Time for requests in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// A board that boots with no name server is not to wait for one.
const ADDRESS_PATIENCE: Duration = Duration::from_millis(500);
pub const CONFIG_FILE: &str = "/etc/edgelet/config.yaml";

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Config file; flags win over it [default: /etc/edgelet/config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    typed: Typed,
}

#[derive(clap::Subcommand)]
enum Command {
    /// On the server: remove a node and the key its name belongs to, so that a re-flashed board can join under it
    Forget(ForgetArguments),
    /// Show by which ways this node reaches the pods of the others
    Paths(PathsArguments),
}

#[derive(clap::Args)]
struct ForgetArguments {
    /// The node
    name: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
struct PathsArguments {
    /// The node's run folder
    #[arg(long, value_name = "DIR", default_value = "/run/edgelet")]
    run_dir: PathBuf,
    /// As JSON, with reasons
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Some(Command::Forget(arguments)) => return super::block_on(forget(arguments)),
        Some(Command::Paths(arguments)) => return show_paths(&arguments),
        None => {}
    }
    crate::telemetry::init("info");
    let path = arguments.config.clone().unwrap_or_else(|| CONFIG_FILE.into());
    let file = Typed::read(&path, arguments.config.is_some())?;
    require_root("edgelet node")?;
    super::block_on(serve(arguments.typed.over(file)))
}

/// Containers, namespaces and nftables need it.
pub fn require_root(command: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{command} must run as root: containers, namespaces and nftables need it (try sudo)");
    }
    Ok(())
}

async fn serve(typed: Typed) -> anyhow::Result<ExitCode> {
    let clock = Clock::real();
    let identity = joined::identity(&data_directory(&typed));
    let joined = match identity.load()? {
        Some(joined) => {
            time::restore(&identity, &joined.ca_pem, &clock);
            joined
        }
        None => {
            let Some((server, token)) = typed.server.clone().zip(typed.token.clone()) else {
                bail!(
                    "this board has not joined a cluster: run `edgelet join https://SERVER:6443 --token …` (make a \
                     token with `edgelet token create` on the server)"
                );
            };
            let plan = Plan { server, token, typed: typed.clone(), clock: clock.clone() };
            plan.enroll(&identity).await?
        }
    };
    foreground(typed, identity, joined, clock, false).await
}

/// Runs the node until a signal ends it; `announce`: says so on standard output once it is Ready.
pub async fn foreground(
    typed: Typed,
    identity: NodeIdentity,
    joined: Joined,
    clock: Clock,
    announce: bool,
) -> anyhow::Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let config = config(typed, &identity, &joined).await?;
    let _claim = crate::server::claim(&config.data_directory)?;
    let mut tree = Tree::default();
    let connecting = joined::connect(&config, &identity, &joined, joined::Ways::of_machine(), clock, &mut tree);
    // A board's TPM may let itself be waited for.
    let uplink = tokio::select! {
        uplink = connecting => Some(uplink?),
        _ = interrupted.recv() => None,
        _ = terminated.recv() => None,
    };
    let Some(uplink) = uplink else {
        tree.end(SHUTDOWN_GRACE).await;
        return Ok(ExitCode::SUCCESS);
    };
    // A node does its work with its server away: that is no reason for a service manager to worry.
    tree.announce(Notifier::from_environment());
    let (remote, state) = (uplink.remote, uplink.state);
    let running = async {
        let node = node::start(&config, uplink.link, &mut tree).await?;
        tracing::info!(node = config.node_name, server = joined.server, "node runs");
        if announce {
            join::wait_until_ready(&remote, &config.node_name, &state).await?;
        }
        let lost = tree.lost().await;
        drop(node);
        anyhow::Ok(lost)
    };
    let outcome = tokio::select! {
        lost = running => lost.map(Some),
        _ = interrupted.recv() => Ok(None),
        _ = terminated.recv() => Ok(None),
    };
    tracing::info!("shutting down; pods go on running");
    tree.end(SHUTDOWN_GRACE).await;
    match outcome? {
        Some(task) => bail!("task {task} panicked"),
        None => Ok(ExitCode::SUCCESS),
    }
}

pub fn data_directory(typed: &Typed) -> PathBuf {
    typed.data_dir.clone().unwrap_or_else(|| Path::new("/var/lib/edgelet").to_owned())
}

/// What was typed, completed by what the server said of the cluster and by the way to it.
async fn config(mut typed: Typed, identity: &NodeIdentity, joined: &Joined) -> anyhow::Result<Config> {
    if let Some(facts) = joined::facts(identity)? {
        typed = typed.in_cluster(facts);
    }
    // The name the certificate was given for; another one would be somebody else.
    typed.node_name = Some(joined.node_name().context("the node's certificate names no node: join again")?);
    let mut config = typed.check()?;
    if !config.node_ip_is_fixed {
        let (resolver, server) = (Resolver::default(), &joined.server);
        let address = tokio::time::timeout(ADDRESS_PATIENCE, joined::address_towards(server, &resolver));
        // With no name server and no replica of its answers the default route's address has to do.
        config.node_ip = address.await.ok().flatten().unwrap_or(config.node_ip);
    }
    Ok(config)
}

fn show_paths(arguments: &PathsArguments) -> anyhow::Result<ExitCode> {
    let file = arguments.run_dir.join(paths::FILE);
    let paths = paths::read(&file).with_context(|| format!("read {} (does a node run here?)", file.display()))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&paths)?);
        return Ok(ExitCode::SUCCESS);
    }
    let address = paths.address.map_or_else(|| "none".to_owned(), |ip| ip.to_string());
    println!(
        "{}: {address}, pods {}, mtu {}, pod-network {}",
        paths.node, paths.pod_cidr, paths.mtu, paths.pod_network
    );
    print!("{}", super::get::aligned(&path_lines(&paths)));
    Ok(ExitCode::SUCCESS)
}

fn path_lines(paths: &paths::Paths) -> Vec<Vec<String>> {
    let head = ["NODE", "PODS", "ADDRESS", "WAY", "LINK", "STATE", "RTT", "MTU", "REASON"];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let line = |line: &paths::Line| {
        let round_trip = line.round_trip_us.map(|us| format!("{}.{:03}ms", us / 1000, us % 1000));
        vec![
            line.node.clone(),
            line.pod_cidr.clone(),
            or_none(line.address.map(|ip| ip.to_string())),
            line.way.clone(),
            or_none(Some(line.link.clone()).filter(|link| !link.is_empty())),
            line.state.clone(),
            or_none(round_trip),
            or_none(line.mtu.map(|mtu| mtu.to_string())),
            line.reason.clone(),
        ]
    };
    [head.map(str::to_owned).to_vec()].into_iter().chain(paths.peers.iter().map(line)).collect()
}

async fn forget(arguments: ForgetArguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let name = &arguments.name;
    let options = DeleteOptions::default();
    let key = remote.delete(SECRETS, "kube-system", &format!("{name}.node-key"), &options).await;
    let node = remote.delete(NODES, "", name, &options).await;
    let mut known = false;
    for outcome in [key, node] {
        match outcome {
            Ok(()) => known = true,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !known {
        bail!("no node named {name:?} is known");
    }
    println!("node {name} is forgotten: a board can join under this name with any key");
    Ok(ExitCode::SUCCESS)
}
