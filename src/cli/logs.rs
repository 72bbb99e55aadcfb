//! `edgelet logs`: a container's log, as `kubectl logs`.

use super::connect::Connection;
use crate::client::PODS;
use crate::client::remote::{encoded, path};
use anyhow::Context;
use std::io::Write;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// POD or pod/POD
    pod: String,
    /// Container [default: the first]
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Of the container before its last restart
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long)]
    tail: Option<u64>,
    /// Only the last seconds
    #[arg(long)]
    since_s: Option<u64>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let pod = arguments.pod.rsplit('/').next().unwrap_or_default();
    let mut query = vec![format!("follow={}", arguments.follow)];
    if let Some(container) = &arguments.container {
        query.push(format!("container={}", encoded(container)));
    }
    if arguments.previous {
        query.push("previous=true".into());
    }
    if let Some(tail) = arguments.tail {
        query.push(format!("tailLines={tail}"));
    }
    if let Some(since_s) = arguments.since_s {
        query.push(format!("sinceSeconds={since_s}"));
    }
    if arguments.timestamps {
        query.push("timestamps=true".into());
    }
    let mut response = remote.stream(&format!("{}?{}", path(PODS, &namespace, pod, "log"), query.join("&"))).await?;
    let mut out = std::io::stdout().lock();
    while let Some(chunk) = response.chunk().await.context("read log")? {
        // A closed pipe (`| head`) is an end like any other.
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
