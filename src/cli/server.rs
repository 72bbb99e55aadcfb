//! `edgelet server`: the control plane and this machine's node, until SIGTERM. Pods live on after it.

use super::node as node_command;
use crate::config::{Config, Typed};
use crate::supervise::Tree;
use crate::supervise::notify::Notifier;
use crate::{node, server};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Time for requests in flight and the last write to disk.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Arguments {
    /// Config file; flags win over it [default: /etc/edgelet/config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    typed: Typed,
}

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    crate::telemetry::init("info");
    // Before anything is read: much of it is root's alone.
    node_command::require_root("edgelet server")?;
    let default = PathBuf::from("/etc/edgelet/config.yaml");
    let file = Typed::read(arguments.config.as_ref().unwrap_or(&default), arguments.config.is_some())?;
    let config = arguments.typed.over(file).over_cluster()?.check()?;
    super::block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut tree = Tree::default();
    let plane = server::start(&config, &mut tree).await?;
    let _node = node::start(&config, plane.link(&config), &mut tree).await?;
    tracing::info!(address = %plane.address, kubeconfig = %config.kubeconfig.display(), "serving");
    tree.announce(Notifier::from_environment());
    let lost = tokio::select! {
        _ = interrupted.recv() => None,
        _ = terminated.recv() => None,
        task = tree.lost() => Some(task),
    };
    tracing::info!("shutting down; pods go on running");
    tree.end(SHUTDOWN_GRACE).await;
    plane.close().await?;
    match lost {
        Some(task) => bail!("task {task} has ended: see its error above"),
        None => Ok(ExitCode::SUCCESS),
    }
}
