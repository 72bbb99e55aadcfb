//! What the kubelet answers on the streams that the server opens to it (see `tunnel`): logs, exec, attach,
//! port-forward, stats. Refusals are plain text with a status code.

mod local;

pub use local::listen;

use super::board::Health;
use super::{Kubelet, log, stats};
use crate::api::view::pod::{ContainerStatus as Shown, Pod};
use crate::runtime::{ContainerState, ContainerStatus, ExecRequest, ExecSession, Reason};
use crate::supervise::Shutdown;
use crate::sys::Stream;
use crate::tunnel::{Streams, frames};
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const STREAMS_LIMIT: usize = 256;
const ACCEPT_RETRY: std::time::Duration = std::time::Duration::from_secs(1);
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way to one client.
const QUEUE_LIMIT: usize = 4;

/// Answers every stream until shutdown.
pub async fn serve(kubelet: Arc<Kubelet>, mut streams: Streams, shutdown: Shutdown) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            Some(stream) = streams.recv(), if tasks.len() < STREAMS_LIMIT => {
                tasks.spawn(serve_stream(kubelet.clone(), stream).boxed());
            }
            Some(_) = tasks.join_next() => {}
            else => return,
        }
    }
}

/// One stream: HTTP/1.1 requests, the last of which may be upgraded.
pub async fn serve_stream(kubelet: Arc<Kubelet>, stream: impl Stream + 'static) {
    let service = hyper::service::service_fn(move |request| {
        let kubelet = kubelet.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(kubelet, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "stream from the server broke");
    }
}

/// A refusal: status code and text.
type Refusal = (StatusCode, String);

async fn answer(kubelet: Arc<Kubelet>, request: Request<Incoming>) -> Response<Body> {
    let path: Vec<String> = request.uri().path().trim_matches('/').split('/').map(decode).collect();
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let outcome = match (request.method(), words.as_slice()) {
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs(kubelet, request.uri().query(), namespace, pod, container).await
        }
        (&Method::POST, [verb @ ("exec" | "attach"), namespace, pod, container]) => {
            let (namespace, pod, container) = (namespace.to_string(), pod.to_string(), container.to_string());
            let attach = *verb == "attach";
            run(kubelet, request, attach, &namespace, &pod, &container).await
        }
        (&Method::POST, ["portForward", namespace, pod]) => {
            let (namespace, pod) = (namespace.to_string(), pod.to_string());
            port_forward(kubelet, request, &namespace, &pod).await
        }
        (&Method::GET, ["pods"]) => Ok(local::pods(&kubelet)),
        (&Method::GET, ["stats", "summary"]) => Ok(json_response(&stats::summary(&kubelet).await)),
        (&Method::GET, ["metrics", "resource"]) => Ok(text(StatusCode::OK, stats::resource_metrics(&kubelet).await)),
        (&Method::GET, ["metrics"]) => Ok(text(StatusCode::OK, Health::observe(Path::new("/")).metrics())),
        (&Method::GET, ["healthz"]) => Ok(text(StatusCode::OK, "ok".to_owned())),
        _ => Err((StatusCode::NOT_FOUND, "404 page not found".to_owned())),
    };
    outcome.unwrap_or_else(|(code, message)| text(code, message))
}

fn text(code: StatusCode, message: String) -> Response<Body> {
    let response = Response::builder().status(code).header(CONTENT_TYPE, "text/plain");
    response.body(Body::from(message)).expect("static headers are valid")
}

fn json_response(value: &Value) -> Response<Body> {
    let response = Response::builder().header(CONTENT_TYPE, "application/json");
    response.body(Body::from(value.to_string())).expect("static headers are valid")
}

/// `%41` → `A`.
fn decode(part: &str) -> String {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        let digits = [bytes.clone().next(), bytes.clone().nth(1)];
        let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        match (byte, hex(digits[0]), hex(digits[1])) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                bytes.nth(1);
            }
            (other, ..) => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// The pod as this node knows it.
fn find_pod(kubelet: &Kubelet, namespace: &str, name: &str) -> Result<Pod, Refusal> {
    let item = kubelet.pods.get(namespace, name);
    let pod = item.and_then(|item| item.view().ok());
    pod.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))
}

/// The instances of a container, newest first.
async fn records(kubelet: &Kubelet, pod: &Pod, container: &str) -> Result<Vec<ContainerStatus>, Refusal> {
    let mut records = match kubelet.runtime.status(&pod.metadata.uid).await {
        Ok(status) => status.containers,
        Err(error) if error.reason == Reason::NotFound => Vec::new(),
        Err(error) => return Err((StatusCode::INTERNAL_SERVER_ERROR, error.message)),
    };
    records.retain(|record| record.name == container);
    records.sort_by_key(|record| std::cmp::Reverse(record.attempt));
    Ok(records)
}

async fn logs(
    kubelet: Arc<Kubelet>,
    query: Option<&str>,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let query: HashMap<String, String> = pairs(query).into_iter().collect();
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let options = log::Options::parse(&query, kubelet.clock.now()).map_err(bad)?;
    let pod = find_pod(&kubelet, namespace, name)?;
    let records = records(&kubelet, &pod, container).await?;
    let ended = |record: &&ContainerStatus| matches!(record.state, ContainerState::Exited(_));
    let chosen = if options.previous {
        let older = match records.first() {
            Some(newest) if ended(&newest) && is_waiting(&pod, container) => Some(newest),
            _ => records.iter().skip(1).find(ended),
        };
        older
            .ok_or_else(|| bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")))?
    } else {
        let started = records.iter().find(|record| record.state != ContainerState::Created);
        started.ok_or_else(|| bad(waiting_text(&pod, name, container)))?
    };
    let path = kubelet.runtime.log_path(&super::container::pod_ref(&pod), container, chosen.attempt);
    let owner = (pod.metadata.uid.clone(), chosen.id.clone());
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE_LIMIT);
    crate::supervise::spawn(async move {
        if let Err(error) = log::send(kubelet, path, options, owner, sender).await {
            tracing::debug!(%error, "log stream ended early");
        }
    });
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
    });
    let response = Response::builder().header(CONTENT_TYPE, "text/plain");
    Ok(response.body(Body::from_stream(body)).expect("static headers are valid"))
}

fn shown<'a>(pod: &'a Pod, container: &str) -> Option<&'a Shown> {
    let status = &pod.status;
    let mut all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses);
    all.find(|one| one.name == container)
}

fn is_waiting(pod: &Pod, container: &str) -> bool {
    shown(pod, container).is_some_and(|one| one.state.get("waiting").is_some())
}

fn waiting_text(pod: &Pod, name: &str, container: &str) -> String {
    let reason = shown(pod, container).and_then(|one| one.state["waiting"]["reason"].as_str());
    let why = match reason.unwrap_or("ContainerCreating") {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}")
}

async fn run(
    kubelet: Arc<Kubelet>,
    mut request: Request<Incoming>,
    attach: bool,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let wanted = exec_request(request.uri().query());
    let pod = find_pod(&kubelet, namespace, name)?;
    let records = records(&kubelet, &pod, container).await?;
    let running = records.iter().find(|record| matches!(record.state, ContainerState::Running { .. }));
    let missing = || (StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"));
    let id = running.ok_or_else(missing)?.id.clone();
    let session =
        if attach { kubelet.runtime.attach(&id, wanted).await } else { kubelet.runtime.exec(&id, wanted).await };
    let upgrade = hyper::upgrade::on(&mut request);
    crate::supervise::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        match session {
            Ok(session) => session_frames(session, attach, TokioIo::new(stream)).await,
            // The end of a command that could not begin; upstream has switched protocols by then too.
            Err(error) => last_frame(TokioIo::new(stream), &exit_status(attach, Err(error.message))).await,
        }
    });
    Ok(switching())
}

async fn last_frame(mut stream: impl AsyncWrite + Unpin, status: &Value) {
    if frames::write(&mut stream, frames::ERROR, status.to_string().as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

fn switching() -> Response<Body> {
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, frames::PROTOCOL);
    response.body(Body::empty()).expect("static headers are valid")
}

fn exec_request(query: Option<&str>) -> ExecRequest {
    let pairs = pairs(query);
    let flag = |name: &str| pairs.iter().any(|(key, value)| key == name && matches!(value.as_str(), "true" | "1"));
    let tty = flag("tty");
    ExecRequest {
        command: pairs.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone()).collect(),
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        stderr: flag("stderr") && !tty,
        tty,
    }
}

/// Pumps a command's streams until it has ended and all of its output is sent; the last frame is its `Status`.
async fn session_frames(
    session: ExecSession,
    attach: bool,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) {
    let (input, mut output) = tokio::io::split(stream);
    let (sender, mut queue) = mpsc::channel::<(u8, Bytes)>(QUEUE_LIMIT);
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let read = read_frames(input, stdin, resize);
    let pumps = async {
        let (one, other) = (sender.clone(), sender.clone());
        tokio::join!(pump(frames::STDOUT, stdout, one), pump(frames::STDERR, stderr, other));
        let status = exit_status(attach, exit.await.map_err(|error| error.message));
        let _ = sender.send((frames::ERROR, Bytes::from(status.to_string()))).await;
        drop(sender);
    };
    let write = async {
        while let Some((channel, payload)) = queue.recv().await {
            if frames::write(&mut output, channel, &payload).await.is_err() {
                return;
            }
            if channel == frames::ERROR {
                break;
            }
        }
        let _ = output.shutdown().await;
    };
    tokio::select! {
        // The client has gone: the session is dropped, and the command with it.
        () = read => {}
        () = async { tokio::join!(pumps, write); } => {}
    }
}

/// Until the client has gone. The end of its input only closes the command's.
async fn read_frames(
    mut input: impl AsyncRead + Unpin,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) {
    while let Ok(Some(frame)) = frames::read(&mut input).await {
        match frame.channel {
            frames::STDIN => {
                if let Some(writer) = &mut stdin
                    && (writer.write_all(&frame.payload).await.is_err() || writer.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            frames::CLOSE if frame.payload.first() == Some(&frames::STDIN) => stdin = None,
            frames::RESIZE => {
                let size: Value = serde_json::from_slice(&frame.payload).unwrap_or_default();
                let side = |name: &str| size[name].as_u64().and_then(|side| u16::try_from(side).ok());
                if let (Some(resize), Some(width), Some(height)) = (&resize, side("Width"), side("Height")) {
                    let _ = resize.send((width, height)).await;
                }
            }
            _ => {}
        }
    }
}

async fn pump(channel: u8, source: Option<Box<dyn AsyncRead + Send + Unpin>>, out: mpsc::Sender<(u8, Bytes)>) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    // A terminal ends with an error once its last writer is gone.
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        if out.send((channel, Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
            return;
        }
    }
}

/// How a command ended, as clients read it. What became of a container that was attached to is in its status.
fn exit_status(attach: bool, exit: Result<i32, String>) -> Value {
    match exit {
        Ok(code) if code == 0 || attach => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(message) => {
            let what = if attach { "error attaching to container" } else { "error executing command in container" };
            let cause = format!("{what}: {message}");
            json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {cause}"),
                "details": {"causes": [{"message": cause}]},
            })
        }
    }
}

async fn port_forward(
    kubelet: Arc<Kubelet>,
    mut request: Request<Incoming>,
    namespace: &str,
    name: &str,
) -> Result<Response<Body>, Refusal> {
    let port = pairs(request.uri().query()).into_iter().find(|(key, _)| key == "port");
    let port = port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| (StatusCode::BAD_REQUEST, "query parameter \"port\" is required".to_owned()))?;
    let pod = find_pod(&kubelet, namespace, name)?;
    let upgrade = hyper::upgrade::on(&mut request);
    crate::supervise::spawn(async move {
        if let Ok(stream) = upgrade.await {
            forward(&kubelet, &pod, port, TokioIo::new(stream)).await;
        }
    });
    Ok(switching())
}

/// Channel 0 goes to the port, channel 1 comes from it; an error is text on channel 3.
async fn forward(kubelet: &Kubelet, pod: &Pod, port: u16, stream: impl AsyncRead + AsyncWrite + Send + Unpin) {
    let (mut input, mut output) = tokio::io::split(stream);
    let inside = match kubelet.runtime.port_forward(&pod.metadata.uid, port).await {
        Ok(inside) => inside,
        Err(error) => {
            let text = format!("error forwarding port {port} to pod {}, uid : {error}", pod.metadata.name);
            let _ = frames::write(&mut output, frames::ERROR, text.as_bytes()).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(inside);
    let inward = async {
        while let Ok(Some(frame)) = frames::read(&mut input).await {
            let closes = frame.channel == frames::CLOSE;
            if closes && to_pod.shutdown().await.is_err() {
                return;
            }
            if frame.channel == frames::STDIN && to_pod.write_all(&frame.payload).await.is_err() {
                return;
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from_pod.read(&mut buffer).await {
            if frames::write(&mut output, frames::STDOUT, &buffer[..read]).await.is_err() {
                return;
            }
        }
        let _ = output.shutdown().await;
    };
    tokio::select! { () = inward => {}, () = outward => {} }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let request =
            exec_request(Some("command=sh&command=-c&command=echo%20a%26b&stdin=true&stdout=true&tty=1&stderr=true"));
        assert_eq!(request.command, ["sh", "-c", "echo a&b"]);
        assert_eq!((request.stdin, request.stdout, request.stderr, request.tty), (true, true, false, true));
        assert_eq!(decode("100%"), "100%");
    }

    #[test]
    fn exits_are_told_as_clients_read_them() {
        assert_eq!(exit_status(false, Ok(0))["status"], "Success");
        assert_eq!(exit_status(false, Ok(7))["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(exit_status(true, Ok(7))["status"], "Success");
        let failed = exit_status(false, Err("no such file".to_owned()));
        let message = "Internal error occurred: error executing command in container: no such file";
        assert_eq!(failed["message"], message);
    }
}
