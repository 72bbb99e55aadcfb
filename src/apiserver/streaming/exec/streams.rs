//! The streams of a SPDY session and the frames of the kubelet: error, stdin, stdout, stderr and resize, each by
//! its header `streamType`.

use super::super::frames;
use super::super::spdy::{Reader, Stream, Writer};
use super::{Wanted, error_text, lost};
use bytes::Bytes;
use std::future::pending;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// How long the client may take to open its streams.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// A size is thirty bytes of JSON.
const SIZE_LIMIT_BYTES: usize = 1 << 10;

/// Until either side ends; who drops this ends both.
pub async fn join(
    mut incoming: mpsc::Receiver<Stream>,
    wanted: Wanted,
    protocol: &'static str,
    node: impl AsyncRead + AsyncWrite + Send,
) {
    let resizes = wanted.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let opened = Streams::wait(&mut incoming, wanted, resizes);
    let Ok(Some(streams)) = tokio::time::timeout(CREATION_TIMEOUT, opened).await else {
        tracing::debug!("the client opened too few streams");
        return;
    };
    let (from_node, to_node) = tokio::io::split(node);
    let Streams { error, stdin, stdout, stderr, resize } = streams;
    let (stdin, of_stdin) = halves(stdin);
    let (resize, of_resize) = halves(resize);
    let output = Output { stdout: halves(stdout).1, stderr: halves(stderr).1, error: error.writer };
    tokio::select! {
        () = client_to_node(stdin, resize, to_node) => {}
        () = refuse(&mut incoming) => {}
        () = output.node_to_client(from_node, protocol == "v4.channel.k8s.io") => {}
    }
    for writer in [of_stdin, of_resize].into_iter().flatten() {
        writer.finish().await;
    }
}

fn halves(stream: Option<Stream>) -> (Option<Reader>, Option<Writer>) {
    stream.map_or((None, None), |stream| (Some(stream.reader), Some(stream.writer)))
}

/// What is opened beyond that is dropped, which resets it.
async fn refuse(incoming: &mut mpsc::Receiver<Stream>) {
    while incoming.recv().await.is_some() {}
    pending().await
}

struct Streams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    /// All that is wanted; `None` when the client goes before.
    async fn wait(incoming: &mut mpsc::Receiver<Stream>, wanted: Wanted, resizes: bool) -> Option<Self> {
        let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
        loop {
            let complete = wanted.stdin == stdin.is_some()
                && wanted.stdout == stdout.is_some()
                && wanted.stderr == stderr.is_some()
                && resizes == resize.is_some();
            if complete && let Some(error) = error.take() {
                return Some(Self { error, stdin, stdout, stderr, resize });
            }
            let stream = incoming.recv().await?;
            let (slot, is_wanted) = match stream.headers.get("streamtype") {
                "error" => (&mut error, true),
                "stdin" => (&mut stdin, wanted.stdin),
                "stdout" => (&mut stdout, wanted.stdout),
                "stderr" => (&mut stderr, wanted.stderr),
                "resize" => (&mut resize, resizes),
                _ => continue,
            };
            if is_wanted && slot.is_none() {
                *slot = Some(stream);
            }
        }
    }
}

async fn next(reader: &mut Option<Reader>) -> Option<Bytes> {
    match reader {
        Some(reader) => reader.next().await,
        None => pending().await,
    }
}

/// Never ends by itself: what the client has no more to say about, the node may go on with.
async fn client_to_node(mut stdin: Option<Reader>, mut resize: Option<Reader>, mut node: impl AsyncWrite + Unpin) {
    let mut sizes = Vec::new();
    loop {
        // A node that takes no more has ended: how, is read from it.
        let _ = tokio::select! {
            chunk = next(&mut stdin) => match chunk {
                Some(chunk) => frames::write(&mut node, frames::STDIN, &chunk).await,
                None => {
                    stdin = None;
                    frames::write(&mut node, frames::CLOSE, &[frames::STDIN]).await
                }
            },
            chunk = next(&mut resize) => {
                resize = resize.filter(|_| chunk.is_some());
                sizes.extend_from_slice(&chunk.unwrap_or_default());
                match newest_size(&mut sizes) {
                    Some(size) => frames::write(&mut node, frames::RESIZE, &size).await,
                    None => Ok(()),
                }
            }
        };
    }
}

/// Takes the complete sizes (`{"Width":80,"Height":24}`, one after the other) and gives the last of them.
fn newest_size(pending: &mut Vec<u8>) -> Option<Bytes> {
    let end = pending.iter().rposition(|byte| *byte == b'}').map(|at| at + 1);
    let Some(end) = end else {
        if pending.len() > SIZE_LIMIT_BYTES {
            pending.clear();
        }
        return None;
    };
    let complete: Vec<u8> = pending.drain(..end).collect();
    let begin = complete.iter().rposition(|byte| *byte == b'{')?;
    Some(Bytes::from(complete).slice(begin..))
}

struct Output {
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    error: Writer,
}

impl Output {
    /// The kubelet's last frame is a `Status`, on the error channel.
    async fn node_to_client(mut self, mut node: impl AsyncRead + Unpin, as_status: bool) {
        let status = loop {
            let frame = match frames::read(&mut node).await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(_) => break lost(),
            };
            let writer = match frame.channel {
                frames::ERROR => break frame.payload,
                frames::STDOUT => &mut self.stdout,
                frames::STDERR => &mut self.stderr,
                _ => continue,
            };
            // Of what a client has reset it wants no more; the rest goes on.
            if let Some(open) = writer
                && open.send(&frame.payload).await.is_err()
            {
                *writer = None;
            }
        };
        let _ = self.error.send(&error_text(as_status, &status)).await;
        for writer in [self.stdout, self.stderr, Some(self.error)].into_iter().flatten() {
            writer.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_out_of_the_stream_wherever_it_is_split() {
        let cases: [(&[&str], &[Option<&str>]); 4] = [
            (&["{\"Width\":1,\"Height\":2}\n"], &[Some("{\"Width\":1,\"Height\":2}")]),
            (&["{\"Width\":1,\"He", "ight\":2}"], &[None, Some("{\"Width\":1,\"Height\":2}")]),
            (&["{\"a\":1}\n{\"a\":2}\n{\"a", "\":3}"], &[Some("{\"a\":2}"), Some("{\"a\":3}")]),
            (&["}", "{}"], &[None, Some("{}")]),
        ];
        for (chunks, expected) in cases {
            let mut pending = Vec::new();
            for (chunk, size) in chunks.iter().zip(expected) {
                pending.extend_from_slice(chunk.as_bytes());
                assert_eq!(newest_size(&mut pending).as_deref(), size.map(str::as_bytes), "{chunk}");
            }
        }
        let mut endless = vec![b'{'; SIZE_LIMIT_BYTES + 1];
        assert_eq!(newest_size(&mut endless), None);
        assert!(endless.is_empty());
    }
}
