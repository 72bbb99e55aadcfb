//! `edgelet logs`: a container's log, as `kubectl logs`.

use super::connect::Connection;
use super::get::find_kind;
use super::local::Local;
use crate::client::PODS;
use crate::client::remote::{encoded, path};
use anyhow::Context;
use http_body_util::BodyExt;
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
    #[command(flatten)]
    local: Local,
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
    if arguments.local.local {
        return run_local(&arguments).await;
    }
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let pod = arguments.pod.rsplit('/').next().unwrap_or_default();
    let mut query = options(&arguments);
    if let Some(container) = &arguments.container {
        query.push(format!("container={}", encoded(container)));
    }
    let mut response = remote.stream(&format!("{}?{}", path(PODS, &namespace, pod, "log"), query.join("&"))).await?;
    while let Some(chunk) = response.chunk().await.context("read log")? {
        if !print(&chunk) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The same from this board's kubelet.
async fn run_local(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let namespace = arguments.connection.namespace.as_deref().unwrap_or("default");
    let pod = arguments.pod.rsplit('/').next().unwrap_or_default();
    let container = match &arguments.container {
        Some(container) => container.clone(),
        None => {
            let found = arguments.local.objects(&*find_kind("pods")?, namespace, pod, "").await?;
            let first = found[0].pointer("/spec/containers/0/name").and_then(serde_json::Value::as_str);
            first.context("the pod has no container")?.to_owned()
        }
    };
    let path = format!("/containerLogs/{namespace}/{pod}/{container}?{}", options(arguments).join("&"));
    let mut body = arguments.local.ask(&path).await?;
    while let Some(frame) = body.frame().await {
        if frame.context("read log")?.data_ref().is_some_and(|chunk| !print(chunk)) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &Arguments) -> Vec<String> {
    let mut query = vec![format!("follow={}", arguments.follow)];
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
    query
}

/// False when nobody reads any more: a closed pipe (`| head`) is an end like any other.
fn print(chunk: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(chunk).and_then(|()| out.flush()).is_ok()
}
