//! `edgelet port-forward`: local ports whose connections go to ports in a pod, one WebSocket each, so that a slow
//! one holds back no other.

use super::connect::Connection;
use super::pod;
use crate::api::object::{Object, ObjectExt};
use crate::client::Remote;
use crate::client::remote::WebSocket;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// With the close of a channel, which `v4` has not.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// Of one local port; more wait in the kernel's queue.
const CONNECTIONS_LIMIT: usize = 128;
const BUFFER_BYTES: usize = 16 << 10;

// Channels of the one port of a socket.
const DATA: u8 = 0;
const ERROR: u8 = 1;
const CLOSE: u8 = 255;

#[derive(clap::Args)]
pub struct Arguments {
    /// POD, or TYPE/NAME of what selects pods (service/web)
    target: String,
    /// [LOCAL:]PORT; PORT by number or name, LOCAL of the kernel's choice when empty or 0
    #[arg(required = true)]
    ports: Vec<String>,
    /// Addresses to listen on: `localhost` or IP addresses
    #[arg(long, default_value = "localhost", value_delimiter = ',')]
    address: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Which local port leads to which port, as typed.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    /// 0: the kernel chooses.
    local: u16,
    port: &'a str,
}

impl<'a> Wanted<'a> {
    fn parse(typed: &'a str) -> anyhow::Result<Self> {
        let number =
            |text: &str| text.parse::<u16>().with_context(|| format!("port {text:?} is no number up to 65535"));
        let (local, port) = match typed.split_once(':') {
            Some(("", port)) => (0, port),
            Some((local, port)) => (number(local)?, port),
            // A name has no number of its own.
            None => (typed.parse().unwrap_or(0), typed),
        };
        ensure!(!port.is_empty() && port != "0", "port {typed:?} names no port of the pod");
        Ok(Self { local, port })
    }
}

/// The number of a port in the pod; through a service, `port` is the service's.
fn pod_port(found: &pod::Found, port: &str) -> anyhow::Result<u16> {
    let service = found.through.as_ref().filter(|through| through.at(&["spec", "ports"]).is_some());
    let target = match service {
        Some(service) => service_target(service, port)?,
        None => port.to_owned(),
    };
    if let Ok(number) = target.parse() {
        return Ok(number);
    }
    let containers = list(&found.pod, &["spec", "containers"]).iter();
    let mut ports = containers.flat_map(|container| list(container, &["ports"]));
    let named = ports.find(|one| one.str_at(&["name"]) == target).and_then(|one| one.int_at(&["containerPort"]));
    let number = named.and_then(|number| u16::try_from(number).ok());
    number.with_context(|| format!("pod {} has no port {target:?}", found.pod.name()))
}

fn service_target(service: &Object, port: &str) -> anyhow::Result<String> {
    let is_meant = |one: &&Object| {
        one.str_at(&["name"]) == port || one.int_at(&["port"]).is_some_and(|number| number.to_string() == port)
    };
    let found = list(service, &["spec", "ports"]).iter().find(is_meant);
    let found = found.with_context(|| format!("service {} has no port {port:?}", service.name()))?;
    Ok(match found.at(&["targetPort"]) {
        Some(Object::String(name)) => name.clone(),
        Some(Object::Number(number)) if number.as_u64() != Some(0) => number.to_string(),
        _ => found.int_at(&["port"]).unwrap_or_default().to_string(),
    })
}

fn list<'a>(object: &'a Object, path: &[&str]) -> &'a [Object] {
    object.at(path).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let found = pod::find(&remote, &namespace, &arguments.target).await?;
    let phase = found.pod.str_at(&["status", "phase"]);
    ensure!(phase == "Running", "pod {} is not running but {phase}", found.pod.name());
    let forwarder = Arc::new(Forwarder { remote, path: pod::subresource(&found.pod, "portforward") });
    let mut accepting = JoinSet::new();
    for typed in &arguments.ports {
        let wanted = Wanted::parse(typed)?;
        let port = pod_port(&found, wanted.port)?;
        for listener in listen(&arguments.address, wanted.local).await? {
            println!("Forwarding from {} -> {port}", listener.local_addr()?);
            accepting.spawn(forwarder.clone().accept(listener, port));
        }
    }
    let ended = accepting.join_next().await.context("nothing to forward")?;
    ended.context("accept connections")??;
    Ok(ExitCode::SUCCESS)
}

/// The same port on every address. Of `localhost`'s two, one is enough.
async fn listen(addresses: &[String], port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in addresses {
        let ips: Vec<IpAddr> = match address.as_str() {
            "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            other => vec![other.parse().with_context(|| format!("address {other:?} is neither localhost nor an IP"))?],
        };
        let mut failure = None;
        let before = listeners.len();
        for ip in ips {
            // The kernel's first choice holds for the others.
            let port = match listeners.first() {
                Some(first) => first.local_addr()?.port(),
                None => port,
            };
            match TcpListener::bind((ip, port)).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => failure = Some(anyhow::Error::new(error).context(format!("listen on {ip} port {port}"))),
            }
        }
        if let Some(failure) = failure.filter(|_| listeners.len() == before) {
            return Err(failure);
        }
    }
    Ok(listeners)
}

struct Forwarder {
    remote: Remote,
    path: String,
}

impl Forwarder {
    /// Until the pod is gone.
    async fn accept(self: Arc<Self>, listener: TcpListener, port: u16) -> anyhow::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_LIMIT => {
                    let (stream, _) = accepted.context("accept a connection")?;
                    let forwarder = self.clone();
                    connections.spawn(async move { forwarder.forward(stream, port).await });
                }
                Some(ended) = connections.join_next() => {
                    let Err(error) = ended.context("forward a connection")? else { continue };
                    let status = error.downcast_ref::<crate::api::status::Status>();
                    if status.is_some_and(|status| status.code == 404) {
                        return Err(error);
                    }
                    eprintln!("error: forward a connection to port {port}: {error:#}");
                }
            }
        }
    }

    async fn forward(&self, stream: TcpStream, port: u16) -> anyhow::Result<()> {
        let socket = self.remote.websocket(&format!("{}?ports={port}", self.path), PROTOCOL).await?;
        let (to_server, from_server) = socket.split();
        let (from_local, to_local) = stream.into_split();
        tokio::select! {
            ended = server_to_local(from_server, to_local) => ended,
            error = local_to_server(from_local, to_server) => Err(error),
        }
    }
}

/// Ends with an error only: the pod may have more to say when the local side has not.
async fn local_to_server(mut local: OwnedReadHalf, mut server: SplitSink<WebSocket, Message>) -> anyhow::Error {
    let mut buffer = vec![0; BUFFER_BYTES];
    buffer[0] = DATA;
    loop {
        let sent = match local.read(&mut buffer[1..]).await {
            Ok(0) => {
                let _ = server.send(Message::Binary(Bytes::from_static(&[CLOSE, DATA]))).await;
                return pending().await;
            }
            Ok(length) => server.send(Message::Binary(Bytes::copy_from_slice(&buffer[..=length]))).await,
            Err(error) => return anyhow::Error::new(error).context("read the local connection"),
        };
        if sent.is_err() {
            // What the server said last is still to be read.
            return pending().await;
        }
    }
}

async fn server_to_local(mut server: SplitStream<WebSocket>, mut local: OwnedWriteHalf) -> anyhow::Result<()> {
    // Each channel begins with the port's number.
    let mut begun = [false; 2];
    while let Some(message) = server.next().await {
        let frame = match message.context("read from the server")? {
            Message::Binary(frame) => frame,
            Message::Close(_) => break,
            _ => continue,
        };
        let Some((channel @ (&DATA | &ERROR), payload)) = frame.split_first() else { continue };
        if !std::mem::replace(&mut begun[usize::from(*channel)], true) {
            continue;
        }
        if *channel == ERROR {
            bail!("{}", String::from_utf8_lossy(payload));
        }
        local.write_all(payload).await.context("write to the local connection")?;
    }
    let _ = local.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_as_typed() {
        let cases = [
            ("80", (80, "80")),
            ("8080:80", (8080, "80")),
            (":80", (0, "80")),
            ("0:80", (0, "80")),
            ("http", (0, "http")),
            ("8080:http", (8080, "http")),
        ];
        for (typed, (local, port)) in cases {
            assert_eq!(Wanted::parse(typed).unwrap(), Wanted { local, port }, "{typed}");
        }
        for typed in ["", ":", "80:", "x:80", "70000:80", "0", "80:0"] {
            assert!(Wanted::parse(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn ports_of_pods_and_services() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{}, {"ports": [{"name": "http", "containerPort": 8080}]}]},
        });
        let service = json!({
            "metadata": {"name": "s"},
            "spec": {"ports": [
                {"name": "web", "port": 80, "targetPort": "http"},
                {"name": "same", "port": 81},
                {"name": "number", "port": 82, "targetPort": 9090},
                {"name": "lost", "port": 83, "targetPort": "none"},
            ]},
        });
        let direct = pod::Found { pod: pod.clone(), through: None };
        let through = pod::Found { pod, through: Some(service) };
        let of = |found: &pod::Found, port: &str| pod_port(found, port).ok();
        assert_eq!([of(&direct, "http"), of(&direct, "7000"), of(&direct, "none")], [Some(8080), Some(7000), None]);
        let ports = ["80", "web", "81", "82", "83", "7000"].map(|port| of(&through, port));
        assert_eq!(ports, [Some(8080), Some(8080), Some(81), Some(9090), None, None]);
    }
}
