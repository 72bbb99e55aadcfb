//! As much of gRPC as device plugins need, over unix sockets: a call with one answer, a call with a stream of
//! them, and a server of one method. Source: grpc/doc/PROTOCOL-HTTP2.md.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

/// gRPC's own usual limit.
const MESSAGE_LIMIT_BYTES: usize = 4 << 20;
const FRAME_HEAD_BYTES: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to {}", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    #[error("speak HTTP/2")]
    Http(#[from] h2::Error),
    #[error("{message} (gRPC status {code})")]
    Refused { code: u32, message: String },
    #[error("read answer: {0}")]
    Malformed(&'static str),
}

type Result<T> = std::result::Result<T, Error>;

/// A connection to one plugin.
pub struct Channel {
    requests: SendRequest<Bytes>,
    connection: AbortHandle,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Channel {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let failed = |error| Error::Connect(socket.to_owned(), error);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(socket));
        let stream = connecting.await.map_err(io::Error::from).and_then(|done| done).map_err(failed)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        // It ends with the stream, at the latest when the channel is dropped.
        let connection = crate::supervise::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { requests, connection })
    }

    /// A call with one answer.
    pub async fn call(&self, method: &str, message: &[u8]) -> Result<Bytes> {
        let mut answers = self.stream(method, message).await?;
        answers.next().await?.ok_or(Error::Malformed("there is none"))
    }

    /// A call with any number of answers.
    pub async fn stream(&self, method: &str, message: &[u8]) -> Result<Answers> {
        let mut requests = self.requests.clone().ready().await?;
        // The authority is a name that servers on unix sockets take.
        let request = Request::post(format!("http://localhost/{method}"))
            .header("content-type", CONTENT_TYPE)
            .header("te", "trailers")
            .body(())
            .map_err(|_| Error::Malformed("the method's name"))?;
        let (response, mut body) = requests.send_request(request, false)?;
        body.send_data(frame(message), true)?;
        let (head, body) = response.await?.into_parts();
        if !head.status.is_success() {
            return Err(Error::Refused { code: 2, message: format!("HTTP status {}", head.status) });
        }
        // An answer of nothing but a status has it in its head.
        status(&head.headers)?;
        Ok(Answers { body, buffered: BytesMut::new() })
    }
}

/// What a call is answered with.
pub struct Answers {
    body: RecvStream,
    buffered: BytesMut,
}

impl Answers {
    /// The next answer; `None` at a good end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(message) = unframe(&mut self.buffered)? {
                return Ok(Some(message));
            }
            let Some(data) = self.body.data().await else { break };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.buffered.extend_from_slice(&data);
        }
        if let Some(trailers) = self.body.trailers().await? {
            status(&trailers)?;
        }
        if self.buffered.is_empty() { Ok(None) } else { Err(Error::Malformed("it ends too early")) }
    }
}

/// Serves one method on one connection until it ends; `answer` gives the message, or a status and its words.
pub async fn serve(
    stream: UnixStream,
    method: &str,
    mut answer: impl FnMut(Bytes) -> std::result::Result<Vec<u8>, (u32, String)>,
) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let known = request.uri().path().trim_start_matches('/') == method;
        let message = first(request.into_body());
        // The connection itself must be driven while the body comes.
        let message = tokio::select! {
            message = message => message,
            closed = futures_util::future::poll_fn(|cx| connection.poll_closed(cx)) => return Ok(closed?),
        };
        let answered = match message {
            _ if !known => Err((12, "unknown method".to_owned())),
            Ok(message) => answer(message),
            Err(error) => Err((3, error.to_string())),
        };
        let response = Response::builder().header("content-type", CONTENT_TYPE).body(());
        let mut body = respond.send_response(response.map_err(|_| Error::Malformed("the head"))?, false)?;
        let mut trailers = HeaderMap::new();
        let (code, words) = match answered {
            Ok(message) => {
                body.send_data(frame(&message), false)?;
                (0, String::new())
            }
            Err(refused) => refused,
        };
        trailers.insert("grpc-status", HeaderValue::from(code));
        if let Ok(words) = HeaderValue::from_str(&words) {
            trailers.insert("grpc-message", words);
        }
        body.send_trailers(trailers)?;
    }
    Ok(())
}

async fn first(body: RecvStream) -> Result<Bytes> {
    let mut answers = Answers { body, buffered: BytesMut::new() };
    answers.next().await?.ok_or(Error::Malformed("there is none"))
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.len());
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(message.len()).expect("our messages are small"));
    frame.put_slice(message);
    frame.freeze()
}

/// A whole message from the front, if there is one.
fn unframe(buffered: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some((head, _)) = buffered.split_first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(Error::Malformed("it is compressed, which nobody asked for"));
    }
    if length > MESSAGE_LIMIT_BYTES {
        return Err(Error::Malformed("it is longer than 4 MiB"));
    }
    if buffered.len() < FRAME_HEAD_BYTES + length {
        return Ok(None);
    }
    buffered.advance(FRAME_HEAD_BYTES);
    Ok(Some(buffered.split_to(length).freeze()))
}

fn status(headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "" | "0" => Ok(()),
        code => Err(Error::Refused { code: code.parse().unwrap_or(2), message: text("grpc-message").to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_call_is_answered_or_refused_in_the_server_s_words() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |message: Bytes| match &message[..] {
                b"no" => Err((9, "not this one".to_owned())),
                _ => Ok([&message[..], b"!"].concat()),
            };
            serve(stream, "a.Service/Method", answer).await
        });
        let channel = Channel::connect(&socket).await.unwrap();
        assert_eq!(channel.call("a.Service/Method", b"yes").await.unwrap(), &b"yes!"[..]);
        let long = vec![7; 200_000];
        assert_eq!(channel.call("a.Service/Method", &long).await.unwrap().len(), 200_001);
        let refused = channel.call("a.Service/Method", b"no").await.unwrap_err().to_string();
        assert_eq!(refused, "not this one (gRPC status 9)");
        let unknown = channel.call("a.Service/Other", b"yes").await.unwrap_err().to_string();
        assert_eq!(unknown, "unknown method (gRPC status 12)");
        drop(channel);
        server.await.unwrap().unwrap();
    }

    #[test]
    fn messages_are_cut_out_of_what_comes() {
        let mut buffered = BytesMut::from(&frame(b"one")[..]);
        buffered.extend_from_slice(&frame(b"two")[..6]);
        assert_eq!(unframe(&mut buffered).unwrap().unwrap(), &b"one"[..]);
        assert!(unframe(&mut buffered).unwrap().is_none());
        buffered.extend_from_slice(b"wo");
        assert_eq!(unframe(&mut buffered).unwrap().unwrap(), &b"two"[..]);
        assert!(unframe(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
        assert!(unframe(&mut BytesMut::from(&[0, 255, 0, 0, 0][..])).is_err());
    }
}
