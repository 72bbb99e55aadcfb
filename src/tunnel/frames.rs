//! The frames that run between server and kubelet once a stream is upgraded (see the parent).

// What the kubelet answers on a stream:
// `GET /containerLogs/{namespace}/{pod}/{container}?follow=&previous=&sinceSeconds=&sinceTime=&tailLines=&limitBytes=&timestamps=`
// `POST /exec|/attach/{namespace}/{pod}/{container}?command=…&stdin=&stdout=&stderr=&tty=` and
// `POST /portForward/{namespace}/{pod}?port=` with `Upgrade: edgelet-stream`: 101, then frames.
// A frame: channel (u8), length (u32, big endian), payload. Channels as in `v5.channel.k8s.io`:
// 0 stdin, 1 stdout, 2 stderr, 3 error (a `Status`, ends the stream), 4 resize (`{"Width","Height"}`),
// 255 close of the channel named by the payload's one byte.

use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
pub const CLOSE: u8 = 255;

/// The protocol's name in `Upgrade`.
pub const PROTOCOL: &str = "edgelet-stream";
/// A longer frame means the other side is broken.
const FRAME_LIMIT_BYTES: usize = 1 << 20;
const HEAD_BYTES: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub channel: u8,
    pub payload: Bytes,
}

/// The next frame; `None` when the other side has ended between two.
pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD_BYTES];
    let first = input.read(&mut head[..1]).await?;
    if first == 0 {
        return Ok(None);
    }
    input.read_exact(&mut head[1..]).await?;
    let [channel, length @ ..] = head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_LIMIT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too long"));
    }
    let mut payload = vec![0; length];
    input.read_exact(&mut payload).await?;
    Ok(Some(Frame { channel, payload: payload.into() }))
}

pub async fn write(output: &mut (impl AsyncWrite + Unpin), channel: u8, payload: &[u8]) -> io::Result<()> {
    for chunk in chunks(payload) {
        let length = u32::try_from(chunk.len()).expect("chunks are shorter than the limit");
        let mut frame = BytesMut::with_capacity(HEAD_BYTES + chunk.len());
        frame.put_u8(channel);
        frame.put_u32(length);
        frame.put_slice(chunk);
        output.write_all(&frame).await?;
    }
    output.flush().await
}

/// At least one, so that an empty message stays a message.
fn chunks(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(FRAME_LIMIT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_way() {
        let mut wire = Vec::new();
        write(&mut wire, STDIN, b"abc").await.unwrap();
        write(&mut wire, CLOSE, &[STDIN]).await.unwrap();
        write(&mut wire, STDOUT, b"").await.unwrap();
        let mut input = wire.as_slice();
        for (channel, payload) in [(STDIN, &b"abc"[..]), (CLOSE, &[STDIN]), (STDOUT, b"")] {
            let frame = read(&mut input).await.unwrap().unwrap();
            assert_eq!((frame.channel, &frame.payload[..]), (channel, payload));
        }
        assert_eq!(read(&mut input).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_refused() {
        let mut input: &[u8] = &[1, 255, 255, 255, 255];
        assert!(read(&mut input).await.is_err());
    }
}
