//! `edgelet demo`: server and node in the foreground, a Deployment and a Service from an image made of
//! this very binary, each step of the workflow printed as it happens. Ctrl-C walks the steps back.

use super::{apply, block_on, image, uninstall};
use crate::api::object::{Object, ObjectExt};
use crate::client::kubeconfig::Access;
use crate::client::{Client, DEPLOYMENTS, ENDPOINTSLICES, Informer, Informers, PODS, Remote, SERVICES};
use crate::clock::Clock;
use crate::config::{Config, Typed};
use crate::image::ImageStore;
use crate::image::manifest::Process;
use crate::network::claim;
use crate::registry::{DeleteOptions, Propagation};
use crate::server::ControlPlane;
use crate::supervise::Tree;
use crate::telemetry::Trace;
use crate::{node, server};
use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

const IMAGE: &str = "localhost/edgelet-demo:v1";
/// Behind it the number of its process.
const FOLDER_PREFIX: &str = "edgelet-demo-";
const MANIFEST: &str = include_str!("demo.yaml");
/// One demo at a time: it has fixed names in the kernel, so that a crashed one is cleaned up by the next.
const RUN_DIRECTORY: &str = "/run/edgelet-demo";
const START_TIMEOUT: Duration = Duration::from_secs(30);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Steps that are told within this are put in order before they are printed.
const ORDERING: Duration = Duration::from_millis(30);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder for the state; removed at the end [default: a new one in the temporary folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the API; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// End by itself once the demo answers (for tests)
    #[arg(long)]
    once: bool,
}

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return ask_for_root();
    }
    crate::telemetry::init("warn");
    block_on(demo(arguments))
}

/// Runs the same command again through sudo.
fn ask_for_root() -> anyhow::Result<ExitCode> {
    println!("Containers, namespaces and nftables need root; asking sudo for it.");
    let program = std::env::current_exe().context("find this program")?;
    let error = std::process::Command::new("sudo").arg(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("run sudo (or start the demo as root)")
}

/// The folders of a demo, and those that killed ones left, removed when it ends; the lock keeps a second demo out.
struct State {
    directory: PathBuf,
    left: Vec<PathBuf>,
    _lock: std::fs::File,
}

impl State {
    fn take(directory: Option<&Path>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(RUN_DIRECTORY).with_context(|| format!("make {RUN_DIRECTORY}"))?;
        let lock = std::fs::File::create(Path::new(RUN_DIRECTORY).join("lock")).context("make the lock file")?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another demo is running on this machine");
        }
        let temporary = std::env::temp_dir();
        let left = left_by_others(&temporary, |process| Path::new("/proc").join(process).exists());
        let own = || temporary.join(format!("{FOLDER_PREFIX}{}", std::process::id()));
        let directory = directory.map_or_else(own, Path::to_owned);
        if std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is not empty: the demo removes its folder at the end", directory.display());
        }
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory, left, _lock: lock })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Without its records a pod that still runs, of a killed demo say, would be found by nobody.
        let pods = std::fs::read_dir(Path::new(RUN_DIRECTORY).join("pods"));
        if pods.is_ok_and(|mut pods| pods.next().is_some()) {
            eprintln!("warning: pods are left: the next demo takes them away");
            return;
        }
        for directory in &self.left {
            if let Err(error) = unmount_below(directory) {
                eprintln!("warning: unmount what is below {}: {error}", directory.display());
                return;
            }
        }
        let own = [self.directory.as_path(), Path::new(RUN_DIRECTORY)];
        for directory in self.left.iter().map(PathBuf::as_path).chain(own) {
            if let Err(error) = std::fs::remove_dir_all(directory) {
                eprintln!("warning: remove {}: {error}", directory.display());
            }
        }
    }
}

/// Folders of demos whose process is gone and that nobody has claimed.
fn left_by_others(temporary: &Path, is_alive: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(temporary).into_iter().flatten().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(FOLDER_PREFIX).filter(|process| process.parse::<u32>().is_ok());
        let own = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw());
        own && process.is_some_and(|process| !is_alive(process)) && server::claim(&entry.path()).is_ok()
    });
    left.map(|entry| entry.path()).collect()
}

fn unmount_below(directory: &Path) -> std::io::Result<()> {
    loop {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let Some(point) = uninstall::mount_below(&mounts, directory) else { return Ok(()) };
        crate::sys::mount::unmount(&point)?;
    }
}

fn config(arguments: &Arguments, directory: &Path) -> anyhow::Result<Config> {
    let typed = Typed {
        data_dir: Some(directory.to_owned()),
        run_dir: Some(RUN_DIRECTORY.into()),
        log_dir: Some(directory.join("logs")),
        bind_address: Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        https_listen_port: Some(arguments.port),
        bridge: Some("edgedemo0".into()),
        cgroup_root: Some("edgelet-demo".into()),
        ..Typed::default()
    };
    Ok(typed.check()?)
}

async fn demo(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let begun = crate::clock::monotonic();
    // Before anything is made: a signal walks back from wherever it arrives.
    let asked = end_asked()?;
    refuse_neighbours(&config(&arguments, Path::new("/"))?)?;
    let state = State::take(arguments.data_dir.as_deref())?;
    let config = config(&arguments, &state.directory)?;
    play(&config, arguments.once, asked, begun).await.map(|()| ExitCode::SUCCESS)
}

/// True from the first SIGINT or SIGTERM on.
fn end_asked() -> anyhow::Result<watch::Receiver<bool>> {
    let mut interrupted = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let (tell, asked) = watch::channel(false);
    crate::supervise::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
            let again = tell.send_replace(true);
            println!("\n{}", if again { "Still walking the steps back." } else { "The demo is to end." });
        }
    });
    Ok(asked)
}

/// The demo's addresses are a cluster's usual ones: beside another's pods it would never answer.
fn refuse_neighbours(config: &Config) -> anyhow::Result<()> {
    claim::dns(config.dns_ip)?;
    let routes = std::fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
    let networks = [config.cluster_cidr, config.service_cidr];
    match claim::foreign_route(&routes, &networks, &config.bridge) {
        None => Ok(()),
        Some((device, route)) => bail!(
            "the demo needs {} and {}, and device {device} has {route} on this machine: if that is the bridge of an \
             edgelet server that has ended, its pods still run, and `edgelet uninstall` takes them away; or use that \
             server instead of a demo",
            config.cluster_cidr,
            config.service_cidr
        ),
    }
}

fn say(begun: tokio::time::Instant, what: &str) {
    println!("{:>7.1} ms  {what}", begun.elapsed().as_secs_f64() * 1000.0);
}

/// Makes everything, and takes it away again: at the end, after an error, or once that is asked for.
async fn play(
    config: &Config,
    once: bool,
    mut asked: watch::Receiver<bool>,
    begun: tokio::time::Instant,
) -> anyhow::Result<()> {
    make_image(config).await?;
    say(begun, &format!("image {IMAGE} made from this binary"));
    if *asked.borrow() {
        return Ok(());
    }
    let mut tree = Tree::default();
    let plane = server::start(config, &mut tree).await?;
    say(begun, &format!("API server answers at {}", plane.address));
    let starting = tokio::time::timeout(START_TIMEOUT, node::start(config, plane.link(config), &mut tree)).await;
    let node = match starting.unwrap_or_else(|_| Err(anyhow!("the node does not start"))) {
        Ok(node) => node,
        Err(error) => {
            tree.end(SHUTDOWN_GRACE).await;
            let taken_back = node::discard(config).await;
            plane.close().await?;
            return taken_back.context(format!("{error:#}")).and(Err(error));
        }
    };
    say(begun, &format!("node {} runs: bridge {}, rules, DNS {}", config.node_name, config.bridge, config.dns_ip));
    let pods = plane.informers.all(PODS);
    let (steps, shutdown) = (print_steps(plane.trace.clone(), pods.clone(), begun), tree.shutdown());
    tree.spawn("demo steps", async move {
        tokio::select! {
            () = steps => {}
            () = shutdown.requested() => {}
        }
    });

    let work = async {
        install(config).await?;
        let url = answering(&plane, &pods, config).await?;
        say(begun, "the Service answers");
        tell(&url, config);
        if !once {
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    };
    let outcome = tokio::select! {
        done = work => done,
        _ = asked.wait_for(|asked| *asked) => Ok(()),
        task = tree.lost() => Err(anyhow!("task {task} has ended: see its error above")),
    };
    say(begun, "walking the steps back: first the pods, which have 5 s to end");
    let gone = walk_back(&plane.client, &pods).await;
    say(begun, if gone.is_ok() { "pods are gone; now network, rules and cgroups" } else { "pods are killed" });
    tree.end(SHUTDOWN_GRACE).await;
    node.remove().await?;
    plane.close().await?;
    say(begun, "network, rules and cgroups are gone");
    outcome.and(gone)
}

async fn make_image(config: &Config) -> anyhow::Result<()> {
    let images = ImageStore::open(&config.data_directory.join("images"), Clock::real())?;
    let program = std::env::current_exe().context("find this program")?;
    let process = Process { entrypoint: Some(vec!["/bin/edgelet".into()]), ..Process::default() };
    tokio::task::spawn_blocking(move || image::build_as(&images, &program, "edgelet", process, IMAGE)).await??;
    Ok(())
}

/// Applies the demo's manifest as any client would: by HTTPS.
async fn install(config: &Config) -> anyhow::Result<()> {
    let access = Access::load(&config.kubeconfig, None)?;
    let resolver = crate::network::resolve::Resolver::default();
    let remote = Remote::new(access, resolver)?;
    for document in serde_yaml::Deserializer::from_str(MANIFEST) {
        apply::apply(&remote, Object::deserialize(document)?, "default").await?;
    }
    Ok(())
}

/// Waits, by the slices' informer, for every endpoint to be ready, then asks the Service for its page.
async fn answering(plane: &ControlPlane, pods: &Informer, config: &Config) -> anyhow::Result<String> {
    let service = plane.client.get(SERVICES, "default", "hello").await?.object()?;
    let port = service.at(&["spec", "ports"]).and_then(|ports| ports.get(0)?.get("nodePort")?.as_u64());
    let url = format!("http://{}:{}/", config.node_ip, port.context("the Service has no node port")?);
    let late = |_| format!("the demo's pods are not ready after {} s:{}", READY_TIMEOUT.as_secs(), why_not(pods));
    tokio::time::timeout(READY_TIMEOUT, ready(&plane.informers)).await.map_err(|error| anyhow!(late(error)))??;
    let page = page(&url).await?;
    print!("{:>11}{page}", "");
    Ok(url)
}

/// The rules are there some milliseconds after the endpoints are ready; what keeps them from working is none of ours.
async fn page(url: &str) -> anyhow::Result<String> {
    // Without TLS: a machine without root certificates shows the demo too.
    let client = reqwest::Client::builder().tls_certs_only([]).timeout(Duration::from_secs(2)).no_proxy().build()?;
    let deadline = crate::clock::monotonic() + ANSWER_TIMEOUT;
    loop {
        let answer = async { client.get(url).send().await?.error_for_status()?.text().await };
        match answer.await {
            Ok(page) => return Ok(page),
            Err(error) if crate::clock::monotonic() >= deadline => {
                let limit_s = ANSWER_TIMEOUT.as_secs();
                let what = format!(
                    "the pods are ready, but {url} has not answered for {limit_s} s: another program's firewall, \
                     rules or network on this machine may be in the way (`edgelet check`, `nft list ruleset`)"
                );
                return Err(anyhow::Error::new(error).context(what));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What each pod that is not ready waits for.
fn why_not(pods: &Informer) -> String {
    let objects = pods.list().into_iter().filter_map(|item| item.object().ok());
    let told = objects.map(|pod| {
        let statuses = pod.at(&["status", "containerStatuses"]).and_then(Object::as_array);
        let waiting = statuses.into_iter().flatten().filter_map(|one| one.at(&["state", "waiting"]));
        let reasons = waiting.map(|one| format!(" {}: {}", one.str_at(&["reason"]), one.str_at(&["message"])));
        format!(" {} is {}{};", pod.name(), pod.str_at(&["status", "phase"]), reasons.collect::<String>())
    });
    let told: String = told.collect();
    if told.is_empty() { " there are none".into() } else { told.trim_end_matches(';').to_owned() }
}

async fn ready(informers: &Informers) -> anyhow::Result<()> {
    let slices = informers
        .get(ENDPOINTSLICES, crate::client::informer::Scope { namespace: "default".into(), ..Default::default() });
    let mut changes = slices.subscribe();
    loop {
        let change = changes.next().await;
        let Some(slice) = change.new.map(|item| item.object()).transpose()? else { continue };
        let endpoints = slice.at(&["endpoints"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
        let ready = endpoints.iter().filter(|one| one.at(&["conditions", "ready"]) == Some(&Object::Bool(true)));
        if slice.label("kubernetes.io/service-name") == Some("hello") && ready.count() == 2 {
            return Ok(());
        }
    }
}

fn tell(url: &str, config: &Config) {
    println!();
    println!("  {url} answers. Try it:  curl {url}");
    println!("  Use the cluster:        export KUBECONFIG={}", config.kubeconfig.display());
    println!("                          kubectl get pods -o wide");
    println!("  A pod's way:            edgelet trace pod/NAME");
    println!("  Ctrl-C ends the demo and removes everything.");
}

/// Prints what the components record of pods, as they record it; a cause may be recorded after its effect.
async fn print_steps(trace: Arc<Trace>, pods: Informer, begun: tokio::time::Instant) {
    let mut steps = trace.subscribe();
    let mut names: HashMap<String, String> = HashMap::new();
    loop {
        let mut told = match steps.recv().await {
            Ok(step) => vec![step],
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        tokio::time::sleep(ORDERING).await;
        let (now, since) = (Clock::real().now(), begun.elapsed());
        told.extend(std::iter::from_fn(|| steps.try_recv().ok()));
        told.sort_by_key(|(_, step)| step.order());
        let objects = pods.list().into_iter().filter_map(|item| item.object().ok());
        names.extend(objects.map(|object| (object.uid().to_owned(), object.name().to_owned())));
        for (uid, step) in told {
            let name = names.get(&uid).map_or("pod", String::as_str);
            let ago = Duration::try_from(now.duration_since(step.at)).unwrap_or_default();
            let at = since.saturating_sub(ago).as_secs_f64() * 1000.0;
            println!("{at:>7.1} ms  {name}: {}: {}", step.room, step.what);
        }
    }
}

/// Deletes what the demo made and waits until its pods are gone.
async fn walk_back(client: &Client, pods: &Informer) -> anyhow::Result<()> {
    let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    for resource in [SERVICES, DEPLOYMENTS] {
        match client.delete(resource, "default", "hello", &options).await {
            Err(status) if !status.is_not_found() => return Err(status.into()),
            _ => {}
        }
    }
    let mut changes = pods.subscribe();
    let gone = async {
        while !pods.list().is_empty() {
            changes.next().await;
        }
    };
    tokio::time::timeout(READY_TIMEOUT, gone).await.context("pods still run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_demos_that_are_gone_are_taken_away() {
        let temporary = tempfile::tempdir().unwrap();
        for name in ["edgelet-demo-11", "edgelet-demo-12", "edgelet-demo-13", "edgelet-demo-notes", "other"] {
            std::fs::create_dir(temporary.path().join(name)).unwrap();
        }
        std::fs::write(temporary.path().join("edgelet-demo-14"), "").unwrap();
        let claimed = server::claim(&temporary.path().join("edgelet-demo-13")).unwrap();
        let left = left_by_others(temporary.path(), |process| process == "12");
        assert_eq!(left, [temporary.path().join("edgelet-demo-11")]);
        drop(claimed);
    }
}
