//! One HTTP/2 stream of a tunnel as plain bytes in both directions. A dropped stream is reset by
//! `h2` itself once what was written has been sent; a reset of ours would overtake it.

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// What one write hands over at most.
const CHUNK_BYTES: usize = 16 << 10;

pub struct TunnelStream {
    output: SendStream<Bytes>,
    input: RecvStream,
    /// Received and not read yet; its window is given back as it is read.
    unread: Bytes,
    ended: bool,
    /// Among the streams of the tunnel; only who opens them counts.
    _place: Option<OwnedSemaphorePermit>,
}

impl TunnelStream {
    pub fn new(output: SendStream<Bytes>, input: RecvStream, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { output, input, unread: Bytes::new(), ended: false, _place: place }
    }
}

/// A stream that its other side has reset is broken, not at its end.
fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().expect("just asked");
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.input.poll_data(cx)) {
                Some(Ok(chunk)) => self.unread = chunk,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        // Fails only for a stream that is over, whose window nobody needs.
        let _ = self.input.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = data.len().min(CHUNK_BYTES);
        self.output.reserve_capacity(wanted);
        let room = match self.output.capacity() {
            0 => match ready!(self.output.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
            room => room,
        };
        let length = room.min(wanted);
        self.output.send_data(Bytes::copy_from_slice(&data[..length]), false).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            // A stream that is over already is shut down too.
            let _ = self.output.send_data(Bytes::new(), true);
        }
        Poll::Ready(Ok(()))
    }
}
