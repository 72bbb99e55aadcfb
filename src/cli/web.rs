//! The demo's web server: what runs inside the demo's pods, from this same binary. Hidden from help.

use anyhow::Context;
use axum::Router;
use axum::extract::ConnectInfo;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub struct Arguments {
    /// Port to listen on
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", arguments.port)).await.context("listen")?;
    println!("listening on port {}", arguments.port);
    let page = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
        println!("request from {}", peer.ip());
        // Without the downward API a pod still knows its host name.
        let pod = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default();
        page(&pod, std::env::var("NODE_NAME").ok().as_deref())
    };
    let router = Router::new().fallback(page).into_make_service_with_connect_info::<SocketAddr>();
    // Process 1 of a container has no default action for SIGTERM: without this it would wait for SIGKILL.
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let stop = async move {
        terminated.recv().await;
    };
    axum::serve(listener, router).with_graceful_shutdown(stop).await.context("serve")?;
    Ok(ExitCode::SUCCESS)
}

fn page(pod: &str, node: Option<&str>) -> String {
    let place = node.map(|node| format!(" on node {node}")).unwrap_or_default();
    format!("Hello from pod {pod}{place}, served by edgelet.\n")
}
