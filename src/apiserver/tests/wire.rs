//! Over a real socket: TLS, certificates, the remote client, and streams to a kubelet at the other end of a pipe.

use super::*;
use crate::client::kubeconfig::Access;
use crate::client::remote::Remote;
use crate::client::{CONFIGMAPS, WatchEvent};
use crate::network::resolve::Resolver;
use crate::registry::ListOptions;
use crate::supervise::Tree;
use crate::tunnel::Pipe;
use crate::tunnel::frames;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{self, Message};

pub(super) struct Served {
    pub cluster: Cluster,
    pub remote: Remote,
    pub address: std::net::SocketAddr,
    pub tree: Tree,
}

pub(super) async fn serve() -> Served {
    let cluster = Cluster::with_clock(Clock::real()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tree = Tree::default();
    let (server, shutdown) = (cluster.server.clone(), tree.shutdown());
    tree.spawn("apiserver", async move { server.serve(vec![listener], shutdown).await.unwrap() });
    let config = cluster._dir.path().join("admin.kubeconfig");
    cluster.server.pki().write_admin_kubeconfig(&config, &format!("https://{address}")).unwrap();
    let remote = Remote::new(Access::load(&config, None).unwrap(), Resolver::default()).unwrap();
    Served { cluster, remote, address, tree }
}

#[tokio::test]
async fn the_remote_client_is_the_administrator_and_a_watch_ends_with_the_server() {
    let served = serve().await;
    let version = served.remote.raw(http::Method::GET, "/version", None).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&version).unwrap()["major"], "1");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    served.remote.create(CONFIGMAPS, "g1", object).await.unwrap();
    let list = served.remote.list(CONFIGMAPS, "g1", &ListOptions::default()).await.unwrap();
    assert_eq!(list.items.len(), 1);

    let mut watch = served.remote.watch(CONFIGMAPS, "g1", &ListOptions::default()).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Added(_)))));
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}});
    served.remote.create(CONFIGMAPS, "g1", object).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Added(_)))));
    served.tree.end(Duration::from_secs(5)).await;
    while let Some(Ok(_)) = watch.next().await {}
}

#[tokio::test]
async fn strangers_are_anonymous() {
    let served = serve().await;
    let access = Access { server: format!("https://{}", served.address), ..Access::default() };
    let ca_pem = served.cluster.server.pki().ca_pem().into_bytes();
    let stranger = Remote::new(Access { ca_pem, ..access }, Resolver::default()).unwrap();
    assert!(stranger.raw(http::Method::GET, "/version", None).await.is_ok());
    let refused = stranger.list(CONFIGMAPS, "g1", &ListOptions::default()).await.err().unwrap();
    assert_eq!(refused.code, 403);
    assert!(refused.message.contains("system:anonymous"), "{}", refused.message);
}

/// What a kubelet answers here: two lines of log; `exec` echoes standard input, then exits with 7;
/// `portForward` echoes.
async fn kubelet(mut streams: crate::tunnel::Streams) {
    while let Some(stream) = streams.recv().await {
        let service = hyper::service::service_fn(|request| async { Ok::<_, hyper::Error>(answer(request)) });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection.with_upgrades());
    }
}

fn answer(mut request: http::Request<Incoming>) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/containerLogs/") {
        let follow = request.uri().query().unwrap_or_default().contains("follow=true");
        return http::Response::new(Body::from(format!("one\ntwo {path} {follow}\n")));
    }
    assert_eq!(request.headers()["upgrade"], frames::PROTOCOL);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut input, mut output) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        while let Some(frame) = frames::read(&mut input).await.unwrap() {
            if frame.channel == frames::CLOSE {
                break;
            }
            frames::write(&mut output, frames::STDOUT, &frame.payload).await.unwrap();
        }
        let cause = json!({"reason": "ExitCode", "message": "7"});
        let status = json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [cause]}});
        frames::write(&mut output, frames::ERROR, status.to_string().as_bytes()).await.unwrap();
    });
    let response =
        http::Response::builder().status(101).header("connection", "Upgrade").header("upgrade", frames::PROTOCOL);
    response.body(Body::empty()).unwrap()
}

/// A pod on a node whose kubelet is the one above.
async fn serve_with_pod() -> Served {
    let served = serve().await;
    let (sender, streams) = tokio::sync::mpsc::channel(4);
    served.cluster.server.tunnels().register("n", Arc::new(Pipe(sender)));
    tokio::spawn(kubelet(streams));
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    served.cluster.create("/api/v1/namespaces/g1/pods", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    served
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let served = serve_with_pod().await;
    let target = "/api/v1/namespaces/g1/pods/p/log?follow=true&tailLines=2";
    let text = served.remote.stream(target).await.unwrap().bytes().await.unwrap();
    assert_eq!(&text[..], b"one\ntwo /containerLogs/g1/p/c true\n");
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

async fn websocket(served: &Served, target: &str, protocol: &str) -> Result<Socket, tungstenite::Error> {
    use tungstenite::client::IntoClientRequest;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let mut config = (*served.remote.tls()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls_pki_types::ServerName::from(served.address.ip());
    let stream = connector.connect(name, stream).await.unwrap();
    let mut request = format!("wss://{}{target}", served.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol.split(',').next().unwrap().trim());
    Ok(socket)
}

async fn next(socket: &mut Socket) -> Vec<u8> {
    socket.next().await.unwrap().unwrap().into_data().to_vec()
}

#[tokio::test]
async fn exec_translates_channels_to_frames_and_ends_with_the_exit_code() {
    let served = serve_with_pod().await;
    let target = "/api/v1/namespaces/g1/pods/p/exec?command=cat&stdin=true&stdout=true";
    let mut socket = websocket(&served, target, "v5.channel.k8s.io, v4.channel.k8s.io").await.unwrap();
    assert_eq!(next(&mut socket).await, [frames::STDOUT]);
    socket.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    assert_eq!(next(&mut socket).await, b"\x01hello");
    socket.send(Message::binary(vec![frames::CLOSE, frames::STDIN])).await.unwrap();
    let last = next(&mut socket).await;
    assert_eq!(last[0], frames::ERROR);
    let status: Value = serde_json::from_slice(&last[1..]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert!(socket.next().await.unwrap().unwrap().is_close());
}

#[tokio::test]
async fn a_port_is_forwarded_over_its_channel() {
    let served = serve_with_pod().await;
    let target = "/api/v1/namespaces/g1/pods/p/portforward?ports=80&ports=81";
    let mut socket = websocket(&served, target, "v4.channel.k8s.io").await.unwrap();
    let mut opened = Vec::new();
    for _ in 0..4 {
        opened.push(next(&mut socket).await);
    }
    opened.sort();
    assert_eq!(opened, [[0, 80, 0], [1, 80, 0], [2, 81, 0], [3, 81, 0]]);
    socket.send(Message::binary(b"\x02ping".to_vec())).await.unwrap();
    assert_eq!(next(&mut socket).await, b"\x02ping");
}

#[tokio::test]
async fn what_cannot_be_streamed_is_a_plain_error() {
    let served = serve_with_pod().await;
    let cases = [
        ("/api/v1/namespaces/g1/pods/p/exec?stdout=true", 400),
        ("/api/v1/namespaces/g1/pods/none/exec?command=a&stdout=true", 404),
        ("/api/v1/namespaces/g1/pods/p/portforward?ports=0", 400),
    ];
    for (target, code) in cases {
        match websocket(&served, target, "v5.channel.k8s.io").await {
            Err(tungstenite::Error::Http(response)) => assert_eq!(response.status().as_u16(), code, "{target}"),
            other => panic!("{target}: {:?}", other.err()),
        }
    }
}
