//! The SPDY streams: per connection an error stream, which the client ends at once, and a data stream, joined by
//! the header `requestID`. Errors are told in upstream's words.

use super::super::frames;
use super::super::spdy::{Headers, Stream};
use super::Forwarder;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How long the second stream of a pair may take.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// What the headers of a stream say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Role {
    kind: Kind,
    port: u16,
    request: String,
}

impl Role {
    fn of(headers: &Headers, id: u32) -> Option<Self> {
        Self::parse(headers.get("streamtype"), headers.get("port"), headers.get("requestid"), id)
    }

    /// `None` for what is no stream of a forwarded connection.
    fn parse(kind: &str, port: &str, request: &str, id: u32) -> Option<Self> {
        let kind = match kind {
            "error" => Kind::Error,
            "data" => Kind::Data,
            _ => return None,
        };
        let port = port.parse().ok().filter(|port| *port > 0)?;
        // Clients that send no id open the pair in a row, the error stream first.
        let request = match (request, kind) {
            ("", Kind::Error) => id.to_string(),
            ("", Kind::Data) => id.saturating_sub(2).to_string(),
            (request, _) => request.to_owned(),
        };
        Some(Self { kind, port, request })
    }
}

struct Half {
    role: Role,
    stream: Stream,
}

/// Until the client has gone. The number of streams, and so of connections, is bounded by the session.
pub async fn join(mut incoming: mpsc::Receiver<Stream>, forwarder: Forwarder) {
    let forwarder = Arc::new(forwarder);
    let mut waiting: HashMap<String, oneshot::Sender<Half>> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = incoming.recv() => stream,
            Some(_) = connections.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        // Dropped is reset.
        let Some(role) = Role::of(&stream.headers, stream.id) else { continue };
        waiting.retain(|_, first| !first.is_closed());
        let half = Half { role, stream };
        match waiting.remove(&half.role.request) {
            Some(first) => drop(first.send(half)),
            None => {
                let (sender, second) = oneshot::channel();
                waiting.insert(half.role.request.clone(), sender);
                connections.spawn(connection(forwarder.clone(), half, second));
            }
        }
    }
}

async fn connection(forwarder: Arc<Forwarder>, first: Half, second: oneshot::Receiver<Half>) {
    let request = first.role.request.clone();
    let second = match tokio::time::timeout(CREATION_TIMEOUT, second).await {
        Ok(Ok(second)) => second,
        Ok(Err(_)) => return,
        Err(_) => return refuse(first, &format!("(request={request}) timed out waiting for streams")).await,
    };
    match (first.role.kind, second.role.kind) {
        (Kind::Error, Kind::Data) => forward(&forwarder, first.stream, second).await,
        (Kind::Data, Kind::Error) => forward(&forwarder, second.stream, first).await,
        (kind, _) => {
            let what = if kind == Kind::Error { "error" } else { "data" };
            let why = format!("error processing stream for request {request}: {what} stream already assigned");
            refuse(first, &why).await;
        }
    }
}

/// Tells why on the error stream, if that is the one there is.
async fn refuse(half: Half, why: &str) {
    tracing::debug!(why, "cannot forward a connection");
    let mut writer = half.stream.writer;
    if half.role.kind == Kind::Error {
        let _ = writer.send(why.as_bytes()).await;
    }
    writer.finish().await;
}

async fn forward(forwarder: &Forwarder, error: Stream, data: Half) {
    let port = data.role.port;
    let mut error = error.writer;
    let mut data = data.stream;
    let failure = match forwarder.open(port).await {
        Err(status) => {
            let pod = &forwarder.pod;
            Some(format!("error forwarding port {port} to pod {pod}, uid : {}", status.message))
        }
        Ok(node) => match node.await {
            Ok(node) => copy(&mut data, TokioIo::new(node)).await,
            Err(_) => Some(format!("the connection to node {} was lost", forwarder.node)),
        },
    };
    if let Some(why) = failure {
        let _ = error.send(why.as_bytes()).await;
    }
    data.writer.finish().await;
    error.finish().await;
}

/// Until the pod has ended its side or the client has reset the stream; what the kubelet says went wrong.
async fn copy(data: &mut Stream, node: TokioIo<Upgraded>) -> Option<String> {
    let (mut from_node, mut to_node) = tokio::io::split(node);
    let (reset, reader, writer) = (data.writer.reset(), &mut data.reader, &mut data.writer);
    let inward = async {
        while let Some(chunk) = reader.next().await {
            // A node that takes no more has ended: how, is read from it.
            let _ = frames::write(&mut to_node, frames::STDIN, &chunk).await;
        }
        let _ = frames::write(&mut to_node, frames::CLOSE, &[frames::STDIN]).await;
        pending().await
    };
    let outward = async {
        while let Ok(Some(frame)) = frames::read(&mut from_node).await {
            if frame.channel == frames::ERROR {
                return Some(String::from_utf8_lossy(&frame.payload).into_owned());
            }
            if writer.send(&frame.payload).await.is_err() {
                return None;
            }
        }
        None
    };
    tokio::select! {
        failure = outward => failure,
        () = inward => None,
        () = reset => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_of_a_stream_is_in_its_headers() {
        let role = |kind, port, request: &str| Some(Role { kind, port, request: request.to_owned() });
        let cases = [
            (("error", "80", "3", 1), role(Kind::Error, 80, "3")),
            (("data", "80", "3", 9), role(Kind::Data, 80, "3")),
            // Old clients: the error stream is 5, the data stream 7.
            (("error", "80", "", 5), role(Kind::Error, 80, "5")),
            (("data", "80", "", 7), role(Kind::Data, 80, "5")),
            (("stdin", "80", "1", 1), None),
            (("data", "0", "1", 1), None),
            (("data", "65536", "1", 1), None),
            (("data", "", "1", 1), None),
        ];
        for ((kind, port, request, id), expected) in cases {
            assert_eq!(Role::parse(kind, port, request, id), expected, "{kind} {port:?} {request:?} {id}");
        }
    }
}
