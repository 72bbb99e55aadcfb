//! Sockets, TLS and connections: bounded in number, in size and in how long they may dawdle.

use super::tls::{self, ClientVerifier};
use super::{ApiServer, Peer, auth};
use crate::api::status::Status;
use crate::pki::PkiError;
use crate::pki::certificate::validity;
use crate::supervise::Shutdown;
use crate::sys::Stream;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

/// Two of each of hundreds of nodes, and as many again that the network has swallowed and nobody has missed yet.
const CONNECTIONS_LIMIT: usize = 2_000;
/// Streams of one connection, and what may wait in each for a client that reads nothing: 16 MiB together.
const STREAMS_LIMIT: u32 = 250;
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// The same for nodes: a watch for every ConfigMap and Secret that their pods refer to, in the same 16 MiB.
const NODE_STREAMS_LIMIT: u32 = 1_000;
const NODE_SEND_BUFFER_BYTES: usize = 16 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the handshake to the end of the first request's headers.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an HTTP/1 connection may wait for its next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// How long connections may finish what they began once the end is asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Silent peers are asked by the kernel, not by us: after so long, then so often until they are given up.
const KEEPALIVE: Duration = Duration::from_secs(180);
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
const PROBES: u32 = 3;
const BUFFER_BYTES: usize = 16 << 10;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// After a failed `accept` (no file descriptors left) or renewal.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const RENEWAL_RETRY_DELAY: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("set up client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("issue the server certificate")]
    Pki(#[from] PkiError),
}

/// Where connections come from: sockets, or, where a whole cluster lives in one thread, pipes in memory.
pub trait Listen: Send + 'static {
    type Io: Stream + 'static;
    /// The next connection, and who calls. An error harms no later call.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;
    /// The connection is a node's: it ends when the node is gone.
    fn end_with_its_node(_: &Self::Io) {}
}

impl Listen for TcpListener {
    type Io = TcpStream;
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        tune(&stream);
        Ok((stream, from))
    }

    /// What was sent to a node that is gone does not keep its connection for the quarter of an hour that is usual. Not
    /// for everybody: the kernel counts a client that is slow to read, a paused `kubectl exec`, among the dead.
    fn end_with_its_node(stream: &TcpStream) {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_user_timeout(Some(KEEPALIVE + PROBE_INTERVAL * PROBES));
    }
}

impl ApiServer {
    /// Answers on these sockets until shutdown; long answers end then, short ones may finish.
    pub async fn serve(self, listeners: Vec<impl Listen>, shutdown: Shutdown) -> Result<(), ServeError> {
        *self.0.shutdown.lock().expect("no panic while the signal is locked") = Some(shutdown.clone());
        let (mut names, mut authorities) = (self.0.names.subscribe(), self.pki().changes());
        let mut renew_at = self.issue_certificate().await?;
        let clients = Arc::new(ClientVerifier::new(self.pki())?);
        let config = tls::server_config(clients.clone(), self.0.certificate.clone(), self.clock())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let slots = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let accept = accept_all(self.clone(), listener, acceptor.clone(), slots.clone(), shutdown.clone());
            accepting.spawn(accept);
        }
        loop {
            tokio::select! {
                () = shutdown.requested() => break,
                () = self.clock().sleep_until(renew_at) => {}
                () = self.clock().may_be_set() => {}
                // Neither sender goes before the server.
                _ = names.changed() => {}
                _ = authorities.changed() => clients.follow(&self.pki().trust())?,
            }
            renew_at = self.renew_certificate().await;
        }
        while accepting.join_next().await.is_some() {}
        Ok(())
    }

    /// Issues a certificate that fits the names and uses it from now on; when to come back.
    async fn issue_certificate(&self) -> Result<jiff::Timestamp, ServeError> {
        let (pki, names) = (self.pki().clone(), self.names());
        let issued = tokio::task::spawn_blocking(move || pki.server_credentials(&names)).await;
        let credentials = issued.expect("issuing does not panic")?;
        self.0.certificate.set(&credentials, &self.pki().trust())?;
        Ok(credentials.renew_at())
    }

    /// A new server certificate now, whatever is left of the old one.
    pub(super) async fn reissue(&self) -> Result<(), Status> {
        let pki = self.pki().clone();
        let forgotten = tokio::task::spawn_blocking(move || pki.forget_server_credentials()).await;
        forgotten.map_err(Status::internal)?.map_err(Status::internal)?;
        self.issue_certificate().await.map(drop).map_err(Status::internal)
    }

    /// When the certificate that connections are answered with ends.
    pub(super) fn server_certificate_ends(&self) -> Option<jiff::Timestamp> {
        self.0.certificate.leaf().and_then(|leaf| validity(&leaf)).map(|(_, to)| to)
    }

    async fn renew_certificate(&self) -> jiff::Timestamp {
        match self.issue_certificate().await {
            Ok(renew_at) => renew_at,
            Err(error) => {
                tracing::warn!(error = %error, "cannot renew the server certificate; trying again in an hour");
                self.clock().now() + RENEWAL_RETRY_DELAY
            }
        }
    }
}

async fn accept_all<L: Listen>(
    server: ApiServer,
    mut listener: L,
    acceptor: TlsAcceptor,
    slots: Arc<Semaphore>,
    shutdown: Shutdown,
) {
    let mut connections = JoinSet::new();
    loop {
        // A full house waits here, and with it the kernel's queue.
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let connection = connection::<L>(server.clone(), stream, from, acceptor.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

async fn connection<L: Listen>(
    server: ApiServer,
    stream: L::Io,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    shutdown: Shutdown,
) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refused(&server, from, &error),
        Err(_) => {
            let why = format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs());
            return server.auth().refusals().log("connection", &from.to_string(), &why);
        }
    };
    server.0.metrics.handshake();
    let peer = auth::Peer::from_certificates(stream.get_ref().1.peer_certificates(), &server.pki().trust());
    if peer.is_node() {
        L::end_with_its_node(stream.get_ref().0);
    }
    let builder = builder(&peer);
    let router = server.router();
    let (asked, first) = watch::channel(false);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        asked.send_if_modified(|asked| !std::mem::replace(asked, true));
        request.extensions_mut().insert::<Peer>(peer.clone());
        router.clone().call(request.map(Body::new))
    });
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silence(first) => {
            let why = format!("no request within {} s", FIRST_REQUEST_TIMEOUT.as_secs());
            return server.auth().refusals().log("connection", &from.to_string(), &why);
        }
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match ended {
        // Headers that are too large, and what is no HTTP.
        Err(error) if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) => {
            server.auth().refusals().log("connection", &from.to_string(), &error);
        }
        Err(error) => tracing::debug!(error, "connection ended"),
        Ok(()) => {}
    }
}

/// Completes when nothing was asked for too long since the handshake.
async fn silence(mut first: watch::Receiver<bool>) {
    if tokio::time::timeout(FIRST_REQUEST_TIMEOUT, first.wait_for(|asked| *asked)).await.is_ok() {
        std::future::pending().await
    }
}

/// Scanners and clients that do not trust us end here too; it is their log that should say so.
fn refused(server: &ApiServer, from: SocketAddr, error: &io::Error) {
    match tls::certificate_fault(error) {
        Some(fault) => server.auth().refusals().log("client certificate", &from.to_string(), &fault),
        None => tracing::debug!(%from, %error, "handshake failed"),
    }
}

fn builder(peer: &Peer) -> auto::Builder<TokioExecutor> {
    let (streams, send_buffer_bytes) = match peer.is_node() {
        true => (NODE_STREAMS_LIMIT, NODE_SEND_BUFFER_BYTES),
        false => (STREAMS_LIMIT, SEND_BUFFER_BYTES),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES * 4);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(send_buffer_bytes);
    builder
}

fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    // Neither is worth refusing a client for.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}
