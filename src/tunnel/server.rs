//! The server's end of a tunnel: opens streams to the node, and hears whether it lives.

use super::stream::TunnelStream;
use super::{
    CONNECTION_WINDOW_BYTES, Dial, HEADERS_LIMIT_BYTES, KUBELET_PATH, RELAY_PATH, STREAMS_LIMIT, WINDOW_BYTES,
};
use crate::clock::monotonic;
use crate::sys::Stream;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::client::{Builder, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, StatusCode};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// A node pings far more often than this.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An open tunnel.
pub struct Tunnel {
    pub dial: Arc<dyn Dial>,
    /// When the node was heard last; changes with every byte of it.
    pub heard: watch::Receiver<Instant>,
    /// Runs the connection; completes with why it ended.
    pub run: BoxFuture<'static, io::Error>,
}

/// Takes over a connection that the node has opened.
pub async fn open(io: impl Stream + 'static) -> io::Result<Tunnel> {
    let (heard, hears) = watch::channel(monotonic());
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(STREAMS_LIMIT as usize)
        .max_header_list_size(HEADERS_LIMIT_BYTES)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(WINDOW_BYTES as usize);
    let handshake = builder.handshake(Heard { io, heard });
    let (requests, connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await?
        .map_err(|error| io::Error::other(error.to_string()))?;
    let silence = silence(hears.clone());
    let run = async move {
        tokio::select! {
            ended = connection => match ended {
                Ok(()) => io::Error::new(io::ErrorKind::ConnectionAborted, "the node closed it"),
                Err(error) => io::Error::other(error),
            },
            () = silence => io::Error::new(io::ErrorKind::TimedOut, "the node is silent"),
        }
    };
    let places = Arc::new(Semaphore::new(STREAMS_LIMIT as usize));
    Ok(Tunnel { dial: Arc::new(Far { requests, places }), heard: hears, run: Box::pin(run) })
}

async fn silence(mut heard: watch::Receiver<Instant>) {
    loop {
        let deadline = *heard.borrow_and_update() + SILENCE_LIMIT;
        if tokio::time::timeout_at(deadline, heard.changed()).await.is_err() {
            return;
        }
    }
}

struct Far {
    requests: SendRequest<Bytes>,
    /// One per stream: a stream too many is refused, where `h2` would let it wait for ever.
    places: Arc<Semaphore>,
}

/// A stream's two directions and its place among the others.
type Opened = (SendStream<Bytes>, RecvStream, OwnedSemaphorePermit);

impl Far {
    async fn request(&self, path: &str, is_all: bool) -> io::Result<Opened> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{STREAMS_LIMIT} streams to the node are open already");
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })?;
        let request = Request::post(format!("https://node{path}")).body(()).expect("static parts are valid");
        let gone = |error: h2::Error| io::Error::new(io::ErrorKind::NotConnected, error);
        let mut requests = self.requests.clone().ready().await.map_err(gone)?;
        let (response, output) = requests.send_request(request, is_all).map_err(gone)?;
        let response = response.await.map_err(gone)?;
        if response.status() != StatusCode::OK {
            let text = format!("the node refused a stream: {}", response.status());
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
        }
        Ok((output, response.into_body(), place))
    }
}

impl Dial for Far {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (output, input, place) = self.request(KUBELET_PATH, false).await?;
            Ok(Box::new(TunnelStream::new(output, input, Some(place))) as Box<dyn Stream>)
        })
    }

    fn knock(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.request(RELAY_PATH, true).await.map(drop) })
    }
}

/// Notes when bytes come in.
struct Heard<T> {
    io: T,
    heard: watch::Sender<Instant>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.heard.send_replace(monotonic());
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
