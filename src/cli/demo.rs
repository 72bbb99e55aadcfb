//! `edgelet demo`: server and node in the foreground, a Deployment and a Service from an image made of
//! this very binary, each step of the workflow printed as it happens. Ctrl-C walks the steps back.

use super::{apply, block_on, image};
use crate::api::object::{Object, ObjectExt};
use crate::client::kubeconfig::Access;
use crate::client::{Client, DEPLOYMENTS, ENDPOINTSLICES, Informer, Informers, PODS, Remote, SERVICES};
use crate::clock::Clock;
use crate::config::{Config, Typed};
use crate::image::ImageStore;
use crate::image::manifest::Process;
use crate::registry::{DeleteOptions, Propagation};
use crate::server::ControlPlane;
use crate::supervise::Tree;
use crate::telemetry::Trace;
use crate::{node, server};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const IMAGE: &str = "localhost/edgelet-demo:v1";
const MANIFEST: &str = include_str!("demo.yaml");
/// One demo at a time: it has fixed names in the kernel, so that a crashed one is cleaned up by the next.
const RUN_DIRECTORY: &str = "/run/edgelet-demo";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
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
    let state = State::take(arguments.data_dir.as_deref())?;
    let config = config(&arguments, &state.directory)?;
    block_on(demo(config, arguments.once))
}

/// Runs the same command again through sudo.
fn ask_for_root() -> anyhow::Result<ExitCode> {
    println!("Containers, namespaces and nftables need root; asking sudo for it.");
    let program = std::env::current_exe().context("find this program")?;
    let error = std::process::Command::new("sudo").arg(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("run sudo (or start the demo as root)")
}

/// The folders of a demo, removed when it ends; the lock keeps a second demo out.
struct State {
    directory: PathBuf,
    _lock: std::fs::File,
}

impl State {
    fn take(directory: Option<&Path>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(RUN_DIRECTORY).with_context(|| format!("make {RUN_DIRECTORY}"))?;
        let lock = std::fs::File::create(Path::new(RUN_DIRECTORY).join("lock")).context("make the lock file")?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another demo is running on this machine");
        }
        let temporary = || std::env::temp_dir().join(format!("edgelet-demo-{}", std::process::id()));
        let directory = directory.map_or_else(temporary, Path::to_owned);
        if std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is not empty: the demo removes its folder at the end", directory.display());
        }
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory, _lock: lock })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for directory in [self.directory.as_path(), Path::new(RUN_DIRECTORY)] {
            if let Err(error) = std::fs::remove_dir_all(directory) {
                eprintln!("warning: remove {}: {error}", directory.display());
            }
        }
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

async fn demo(config: Config, once: bool) -> anyhow::Result<ExitCode> {
    let clock = Clock::real();
    let begun = crate::clock::monotonic();
    let say = move |what: &str| println!("{:>7.1} ms  {what}", begun.elapsed().as_secs_f64() * 1000.0);
    let mut interrupted = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let images = ImageStore::open(&config.data_directory.join("images"), clock)?;
    let program = std::env::current_exe().context("find this program")?;
    let process = Process { entrypoint: Some(vec!["/bin/edgelet".into()]), ..Process::default() };
    tokio::task::spawn_blocking(move || image::build_as(&images, &program, "edgelet", process, IMAGE)).await??;
    say(&format!("image {IMAGE} made from this binary"));

    let mut tree = Tree::default();
    let plane = server::start(&config, &mut tree).await?;
    say(&format!("API server answers at {}", plane.address));
    let node = match node::start(&config, plane.link(&config), &mut tree).await {
        Ok(node) => node,
        Err(error) => {
            tree.end(SHUTDOWN_GRACE).await;
            let taken_back = node::discard(&config).await;
            plane.close().await?;
            return taken_back.context(format!("{error:#}")).and(Err(error));
        }
    };
    say(&format!("node {} runs: bridge {}, rules, DNS {}", config.node_name, config.bridge, config.dns_ip));
    let pods = plane.informers.all(PODS);
    let (steps, shutdown) = (print_steps(plane.trace.clone(), pods.clone(), begun), tree.shutdown());
    tree.spawn("demo steps", async move {
        tokio::select! {
            () = steps => {}
            () = shutdown.requested() => {}
        }
    });

    let work = async {
        install(&config).await?;
        let url = answering(&plane, &config).await?;
        say("the Service answers");
        tell(&url, &config);
        anyhow::Ok(())
    };
    let mut outcome = tokio::select! {
        done = work => done,
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
        task = tree.lost() => Err(anyhow::anyhow!("task {task} has ended: see its error above")),
    };
    if outcome.is_ok() && !once {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
            task = tree.lost() => outcome = Err(anyhow::anyhow!("task {task} has ended: see its error above")),
        }
    }
    println!();
    say("walking the steps back");
    if let Err(error) = walk_back(&plane.client, &pods).await {
        outcome = outcome.and(Err(error));
    }
    say("pods are gone");
    tree.end(SHUTDOWN_GRACE).await;
    node.remove().await?;
    plane.close().await?;
    say("network, rules and cgroups are gone");
    outcome.map(|()| ExitCode::SUCCESS)
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
async fn answering(plane: &ControlPlane, config: &Config) -> anyhow::Result<String> {
    let service = plane.client.get(SERVICES, "default", "hello").await?.object()?;
    let port = service.at(&["spec", "ports"]).and_then(|ports| ports.get(0)?.get("nodePort")?.as_u64());
    let url = format!("http://{}:{}/", config.node_ip, port.context("the Service has no node port")?);
    tokio::time::timeout(READY_TIMEOUT, ready(&plane.informers))
        .await
        .context("the demo's pods did not become ready in time")??;
    let page = reqwest::get(&url).await.with_context(|| format!("ask {url}"))?.text().await?;
    print!("{:>11}{page}", "");
    Ok(url)
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

/// Prints what the components record of pods, as they record it.
async fn print_steps(trace: Arc<Trace>, pods: Informer, begun: tokio::time::Instant) {
    let mut steps = trace.subscribe();
    let mut names: HashMap<String, String> = HashMap::new();
    loop {
        let (uid, step) = match steps.recv().await {
            Ok(step) => step,
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
            Err(_) => return,
        };
        if !names.contains_key(&uid) {
            let objects = pods.list().into_iter().filter_map(|item| item.object().ok());
            names.extend(objects.map(|object| (object.uid().to_owned(), object.name().to_owned())));
        }
        let name = names.get(&uid).cloned().unwrap_or_else(|| "pod".into());
        println!("{:>7.1} ms  {name}: {}: {}", begun.elapsed().as_secs_f64() * 1000.0, step.room, step.what);
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
