//! How a client gets to its server: by TCP, or, where a whole cluster lives in one thread, by a pipe in memory.
//! TLS and HTTP above it are the same.

use crate::network::resolve::Resolver;
use crate::sys::Stream;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For the way to the server and the handshake together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections that are to be kept alive: their other end is asked so often once they are silent for too long,
/// and given up when it has not answered for so long, which survives the loss of a third of the packets.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 6;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const HTTP_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// A connection before TLS.
pub type Wire = Box<dyn Stream>;
/// A connection to the server that has been checked.
pub type Secured = TlsStream<Wire>;

/// Opens connections to servers.
pub trait Reach: Send + Sync {
    /// `host`: a name or an address, without brackets. `idle`: how long the connection may be silent before its other
    /// end is asked whether it lives; `None` = for ever.
    fn reach<'a>(&'a self, host: &'a str, port: u16, idle: Option<Duration>) -> BoxFuture<'a, io::Result<Wire>>;
}

impl<T: Reach + ?Sized> Reach for Arc<T> {
    fn reach<'a>(&'a self, host: &'a str, port: u16, idle: Option<Duration>) -> BoxFuture<'a, io::Result<Wire>> {
        (**self).reach(host, port, idle)
    }
}

/// TCP. Each of a host's addresses gets its share of the time.
impl Reach for Resolver {
    fn reach<'a>(&'a self, host: &'a str, port: u16, idle: Option<Duration>) -> BoxFuture<'a, io::Result<Wire>> {
        Box::pin(async move {
            let addresses = self.resolve(host, port).await?;
            let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("resolve {host}: no address"));
            for address in addresses {
                match tokio::time::timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => {
                        tune(&stream, idle)?;
                        return Ok(Box::new(stream) as Wire);
                    }
                    Ok(Err(error)) => last = error,
                    Err(_) => last = late(host, port),
                }
            }
            Err(last)
        })
    }
}

fn tune(stream: &TcpStream, idle: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    if let Some(idle) = idle {
        let probes = socket2::TcpKeepalive::new().with_time(idle).with_interval(PROBE_INTERVAL).with_retries(PROBES);
        socket.set_tcp_keepalive(&probes)?;
    }
    // Holds for probes, too, and must not end a connection that is idle for so long.
    socket.set_tcp_user_timeout(Some(idle.unwrap_or_default() + PROBE_INTERVAL * PROBES))
}

fn late(host: &str, port: u16) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{host}:{port} does not answer"))
}

/// What the server is known to speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Http {
    Any,
    /// Then requests that begin together share their connection from the first on: with `Any` each of them opens one,
    /// before the first can say that it was enough.
    Two,
}

/// Opens checked connections to the server of a URL.
#[derive(Clone)]
pub(super) struct Connector {
    pub reach: Arc<dyn Reach>,
    pub tls: Arc<rustls::ClientConfig>,
    pub idle: Option<Duration>,
}

impl Connector {
    /// A client that keeps its connections for the next request, and one of them with HTTP/2 for all of them. None is
    /// too old: a handshake costs a board more bytes than all else it says in an hour.
    pub fn http(&self, http: Http) -> Client<Self, Full<Bytes>> {
        let protocols: &[&[u8]] = match http {
            Http::Any => &[HTTP_2, HTTP_1],
            Http::Two => &[HTTP_2],
        };
        Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(None)
            .http2_only(http == Http::Two)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .build(self.speaking(protocols))
    }

    /// A connection of its own that speaks HTTP/1.1.
    pub async fn http_1(&self, uri: &Uri) -> io::Result<Secured> {
        self.speaking(&[HTTP_1]).connect(uri).await
    }

    fn speaking(&self, protocols: &[&[u8]]) -> Self {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { tls: Arc::new(tls), ..self.clone() }
    }

    async fn connect(&self, uri: &Uri) -> io::Result<Secured> {
        if uri.scheme_str() != Some("https") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} is no https address")));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connected = async {
            let wire = self.reach.reach(host, port, self.idle).await?;
            TlsConnector::from(self.tls.clone()).connect(name, wire).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connected).await.unwrap_or_else(|_| Err(late(host, port)))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Pooled;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Pooled>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { Ok(Pooled(TokioIo::new(connector.connect(&uri).await?))) })
    }
}

/// A connection that tells its pool which HTTP was agreed on.
pub(super) struct Pooled(TokioIo<Secured>);

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        let agreed = self.0.inner().get_ref().1.alpn_protocol();
        if agreed == Some(HTTP_2) { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Pooled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }
}
