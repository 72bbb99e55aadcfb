//! Lifecycle hooks: what runs after a container's start and before its stop.

use super::Kubelet;
use super::probe::port_number;
use crate::api::view::pod::{Container, LifecycleHandler};
use crate::runtime::{NetworkProbe, ProbeOutcome};
use std::time::Duration;

/// Runs one handler; the error says what went wrong, for the log.
pub async fn run(
    kubelet: &Kubelet,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: &str,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let output = kubelet.runtime.exec_sync(id, &exec.command, timeout).await.map_err(|error| error.message)?;
        if output.exit_code != 0 {
            let text = String::from_utf8_lossy(&output.output).into_owned();
            return Err(format!("command '{}' exited with {}: {text}", exec.command.join(" "), output.exit_code));
        }
    } else if let Some(get) = &handler.http_get {
        let probe = http(get, container, pod_ip)?;
        if let ProbeOutcome::Failure(message) = kubelet.runtime.probe(&probe, timeout).await {
            return Err(message);
        }
    } else if let Some(tcp) = &handler.tcp_socket {
        let host = if tcp.host.is_empty() { pod_ip } else { &tcp.host };
        let probe = NetworkProbe::Tcp { host: host.to_owned(), port: port_number(&tcp.port, container)? };
        if let ProbeOutcome::Failure(message) = kubelet.runtime.probe(&probe, timeout).await {
            return Err(message);
        }
    } else if let Some(sleep) = &handler.sleep {
        kubelet.clock.sleep(Duration::from_secs(sleep.seconds).min(timeout)).await;
    }
    Ok(())
}

/// An HTTP request to a container.
pub fn http(
    get: &crate::api::view::pod::HttpGetAction,
    container: &Container,
    pod_ip: &str,
) -> Result<NetworkProbe, String> {
    let host = if get.host.is_empty() { pod_ip } else { &get.host };
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    Ok(NetworkProbe::Http {
        host: host.to_owned(),
        port: port_number(&get.port, container)?,
        path,
        https: get.scheme.eq_ignore_ascii_case("HTTPS"),
        headers: get.http_headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}
