//! Sockets, TLS and connections: bounded in number, in size and in how long they may dawdle.

use super::{ApiServer, Peer, auth};
use crate::clock::Clock;
use crate::pki::PkiError;
use crate::pki::certificate::Credentials;
use crate::supervise::Shutdown;
use arc_swap::ArcSwapOption;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::UnixTime;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

const CONNECTIONS_LIMIT: usize = 1_000;
const STREAMS_PER_CONNECTION_LIMIT: u32 = 250;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1 connection may wait for its next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// How long connections may finish what they began once the end is asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Silent peers are asked this often by the kernel, not by us.
const KEEPALIVE: Duration = Duration::from_secs(180);
const BUFFER_BYTES: usize = 16 << 10;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// After a failed `accept` (no file descriptors left) or renewal.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const RENEWAL_RETRY_DELAY: Duration = Duration::from_secs(3600);

/// The certificate that new connections are answered with.
#[derive(Clone, Debug, Default)]
pub(super) struct CurrentCertificate(Arc<ArcSwapOption<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// rustls asks our clock, so that simulated time holds for certificates too.
#[derive(Debug)]
struct ClockTime(Clock);

impl rustls::time_provider::TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("set up client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("issue the server certificate")]
    Pki(#[from] PkiError),
}

impl ApiServer {
    /// Answers on these sockets until shutdown; long answers end then, short ones may finish.
    pub async fn serve(self, listeners: Vec<TcpListener>, shutdown: Shutdown) -> Result<(), ServeError> {
        *self.0.shutdown.lock().expect("no panic while the signal is locked") = Some(shutdown.clone());
        let mut renew_at = self.issue_certificate().await?;
        let acceptor = TlsAcceptor::from(Arc::new(self.tls_config()?));
        let slots = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let accept = accept_all(self.clone(), listener, acceptor.clone(), slots.clone(), shutdown.clone());
            accepting.spawn(accept);
        }
        loop {
            let wait = Duration::try_from(renew_at - self.clock().now()).unwrap_or(RETRY_DELAY);
            tokio::select! {
                () = shutdown.requested() => break,
                () = self.clock().sleep(wait) => renew_at = self.renew_certificate().await,
            }
        }
        while accepting.join_next().await.is_some() {}
        Ok(())
    }

    /// Issues a certificate that fits the names and uses it from now on; when to come back.
    async fn issue_certificate(&self) -> Result<jiff::Timestamp, ServeError> {
        let (pki, names) = (self.pki().clone(), self.0.config.names.clone());
        let issued = tokio::task::spawn_blocking(move || pki.server_credentials(&names)).await;
        let credentials = issued.expect("issuing does not panic")?;
        self.0.certificate.0.store(Some(Arc::new(certified(&credentials)?)));
        Ok(credentials.renew_at())
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

    fn tls_config(&self) -> Result<rustls::ServerConfig, ServeError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.pki().trust().current.der().clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config =
            rustls::ServerConfig::builder_with_details(provider, Arc::new(ClockTime(self.clock().clone())))
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(Arc::new(self.0.certificate.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // kubectl resumes no session; kept ones would only cost memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn certified(credentials: &Credentials) -> Result<CertifiedKey, ServeError> {
    let (certificate, key) = credentials.der()?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(vec![certificate], key))
}

async fn accept_all(
    server: ApiServer,
    listener: TcpListener,
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
            Ok((stream, _)) => {
                let connection = connection(server.clone(), stream, acceptor.clone(), shutdown.clone());
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

async fn connection(server: ApiServer, stream: TcpStream, acceptor: TlsAcceptor, shutdown: Shutdown) {
    tune(&stream);
    // Scanners and clients that do not trust us end here; it is their log that should say so.
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
    let peer = auth::Peer::from_certificates(stream.get_ref().1.peer_certificates());
    let router = server.router();
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert::<Peer>(peer.clone());
        router.clone().call(request.map(Body::new))
    });
    let builder = builder();
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES * 4);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_LIMIT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES * 4);
    builder
}

fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 6);
    // Neither is worth refusing a client for.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}
