//! One SPDY session: the frames of a connection to and from the streams that its client opens.
//! Kubernetes' clients (spdystream) neither send nor heed windows: a stream that nobody reads holds its session
//! back once its short queue is full, as upstream. With a client that names its window, windows are kept.

use super::frame::{self, Control, FrameError, HEAD_BYTES, Head, WINDOW_BYTES, reset};
use super::headers::{HeaderError, Headers, Inflater, Storer};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// Streams that are open at once: two per forwarded connection.
const STREAMS_LIMIT: usize = 512;
/// Streams that are opened and not yet taken.
const OPENED_LIMIT: usize = 8;
/// Frames on their way to the client.
const FRAMES_LIMIT: usize = 4;
/// Chunks of a stream that are not yet taken; with the other limits, 8 MiB a session.
const CHUNKS_LIMIT: usize = 2;
const CHUNK_BYTES: usize = 16 << 10;
/// How long a stream that nobody reads may hold its session back; upstream's limit for idle streams.
const STALL_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// How long the client may take to read the end and to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("read frame")]
    Io(#[from] io::Error),
    #[error("parse frame")]
    Frame(#[from] FrameError),
    #[error("read header block")]
    Headers(#[from] HeaderError),
    #[error("stream {0} is not read")]
    Stalled(u32),
    #[error("session has ended")]
    Ended,
}

/// A stream that the client has opened and that is replied to.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: Reader,
    pub writer: Writer,
}

/// What the client sends on a stream. Dropped, the rest of it is thrown away.
pub struct Reader {
    id: u32,
    chunks: mpsc::Receiver<Bytes>,
    frames: mpsc::Sender<Bytes>,
    windows: Arc<Windows>,
    unreported_bytes: u32,
}

/// What the client receives on a stream. Dropped before `finish`, it resets the stream.
pub struct Writer {
    id: u32,
    frames: mpsc::Sender<Bytes>,
    windows: Arc<Windows>,
    credit: Arc<Credit>,
    reset: watch::Receiver<bool>,
    finished: bool,
}

/// The client is gone, or has reset the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Serves a session until its client or `handle`, who gets the streams, has ended.
pub async fn serve<F>(io: impl AsyncRead + AsyncWrite, handle: impl FnOnce(mpsc::Receiver<Stream>) -> F)
where
    F: Future<Output = ()>,
{
    let (mut input, output) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(FRAMES_LIMIT);
    let (opened, incoming) = mpsc::channel(OPENED_LIMIT);
    let mut session = Session::new(frames.clone(), opened);
    let mut write = pin!(write(output, queue));
    tokio::select! {
        _ = &mut write => return,
        ended = session.run(&mut input) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "SPDY session ended");
            }
        }
        () = handle(incoming) => {}
    }
    let last = session.last;
    drop(session);
    let say_goodbye = async move {
        let _ = frames.send(frame::go_away(last)).await;
    };
    // Reading on lets a client finish that still sends: closed before, it would lose what it has not read yet.
    let discard = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(1..) = input.read(&mut buffer).await {}
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, async { tokio::join!(say_goodbye, write, discard) }).await;
}

async fn write(mut output: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        output.write_all(&frame).await?;
        if queue.is_empty() {
            output.flush().await?;
        }
    }
    output.shutdown().await
}

struct Session {
    inflater: Inflater,
    storer: Storer,
    streams: HashMap<u32, Entry>,
    /// The newest stream of the client.
    last: u32,
    windows: Arc<Windows>,
    frames: mpsc::Sender<Bytes>,
    opened: mpsc::Sender<Stream>,
}

struct Entry {
    /// `None` once the client has ended its side.
    chunks: Option<mpsc::Sender<Bytes>>,
    credit: Arc<Credit>,
    reset: watch::Sender<bool>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.chunks.is_none() && self.reset.is_closed()
    }
}

impl Session {
    fn new(frames: mpsc::Sender<Bytes>, opened: mpsc::Sender<Stream>) -> Self {
        let (inflater, storer) = (Inflater::new(), Storer::default());
        Self { inflater, storer, streams: HashMap::new(), last: 0, windows: Arc::default(), frames, opened }
    }

    async fn run(&mut self, input: &mut (impl AsyncRead + Unpin)) -> Result<(), SessionError> {
        let mut head = [0; HEAD_BYTES];
        loop {
            if input.read(&mut head[..1]).await? == 0 {
                return Ok(());
            }
            input.read_exact(&mut head[1..]).await?;
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(input, stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let payload = read(input, length).await?;
                    self.control(Control::parse(kind, flags, payload)?).await?;
                }
            }
        }
    }

    async fn data(
        &mut self,
        input: &mut (impl AsyncRead + Unpin),
        stream: u32,
        fin: bool,
        length: u32,
    ) -> Result<(), SessionError> {
        if stream == 0 || stream > self.last {
            self.send(frame::rst_stream(stream, reset::INVALID_STREAM)).await?;
        }
        // What comes on a stream that has ended is read past.
        let chunks = self.streams.get(&stream).and_then(|entry| entry.chunks.clone());
        let mut left = length;
        while left > 0 {
            let chunk = read(input, left.min(u32::try_from(CHUNK_BYTES).expect("16 KiB"))).await?;
            left -= u32::try_from(chunk.len()).expect("at most 16 KiB");
            if let Some(chunks) = &chunks {
                let sent = tokio::time::timeout(STALL_TIMEOUT, chunks.send(chunk)).await;
                let _ = sent.map_err(|_| SessionError::Stalled(stream))?;
            }
        }
        if fin {
            self.end_of_input(stream);
        }
        Ok(())
    }

    fn end_of_input(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.chunks = None;
        }
    }

    async fn control(&mut self, control: Control) -> Result<(), SessionError> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.inflater.headers(&block)?;
                self.open(stream, fin, headers).await?;
            }
            Control::Headers { stream, fin, block } => {
                self.inflater.headers(&block)?;
                if fin {
                    self.end_of_input(stream);
                }
            }
            Control::RstStream { stream } => {
                if let Some(entry) = self.streams.remove(&stream) {
                    entry.reset.send_replace(true);
                }
            }
            Control::Settings { initial_window: Some(bytes) } => {
                let _ = self.windows.initial.set(bytes);
            }
            // Ours would be even.
            Control::Ping { id } if id % 2 == 1 => self.send(frame::ping(id)).await?,
            Control::WindowUpdate { stream: 0, delta } => self.windows.session.add(delta),
            Control::WindowUpdate { stream, delta } => {
                if let Some(entry) = self.streams.get(&stream) {
                    entry.credit.add(delta);
                }
            }
            Control::Settings { .. } | Control::Ping { .. } | Control::GoAway | Control::Unknown => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), SessionError> {
        if id.is_multiple_of(2) || id <= self.last {
            return self.send(frame::rst_stream(id, reset::PROTOCOL_ERROR)).await;
        }
        self.last = id;
        self.streams.retain(|_, entry| !entry.is_over());
        if self.streams.len() >= STREAMS_LIMIT {
            return self.send(frame::rst_stream(id, reset::REFUSED_STREAM)).await;
        }
        let (sender, chunks) = mpsc::channel(CHUNKS_LIMIT);
        let (reset, watch) = watch::channel(false);
        let credit = Arc::new(Credit::new(*self.windows.initial.get().unwrap_or(&WINDOW_BYTES)));
        let entry = Entry { chunks: (!fin).then_some(sender), credit: credit.clone(), reset };
        self.streams.insert(id, entry);
        let (frames, windows) = (self.frames.clone(), self.windows.clone());
        let reader = Reader { id, chunks, frames, windows, unreported_bytes: 0 };
        let (frames, windows) = (self.frames.clone(), self.windows.clone());
        let writer = Writer { id, frames, windows, credit, reset: watch, finished: false };
        let reply = frame::syn_reply(id, &self.storer.empty());
        self.send(reply).await?;
        self.opened.send(Stream { id, headers, reader, writer }).await.map_err(|_| SessionError::Ended)
    }

    async fn send(&self, frame: Bytes) -> Result<(), SessionError> {
        self.frames.send(frame).await.map_err(|_| SessionError::Ended)
    }
}

async fn read(input: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Bytes> {
    let mut payload = vec![0; usize::try_from(length).expect("bounded by the caller")];
    input.read_exact(&mut payload).await?;
    Ok(payload.into())
}

impl Reader {
    /// The next bytes; `None` when the client has ended its side.
    pub async fn next(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.recv().await?;
        self.report(u32::try_from(chunk.len()).expect("chunks are cut to 16 KiB"));
        Some(chunk)
    }

    /// Opens the windows again, half a window at a time, where the client keeps them.
    fn report(&mut self, bytes: u32) {
        if self.windows.initial.get().is_none() {
            return;
        }
        self.unreported_bytes += bytes;
        if self.unreported_bytes < WINDOW_BYTES / 2 {
            return;
        }
        let update = |stream| frame::window_update(stream, self.unreported_bytes);
        // What finds no room now is told with the next chunk; waiting here could hold both sides.
        if let Ok(mut room) = self.frames.try_reserve_many(2) {
            let mut put = |frame| room.next().expect("two were reserved").send(frame);
            put(update(self.id));
            put(update(0));
            self.unreported_bytes = 0;
        }
    }
}

impl Writer {
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), Gone> {
        let mut rest = payload;
        while !rest.is_empty() {
            let granted = self.windows.grant(&self.credit, rest.len().min(CHUNK_BYTES)).await;
            let (chunk, after) = rest.split_at(granted);
            rest = after;
            if *self.reset.borrow() {
                return Err(Gone);
            }
            self.frames.send(frame::data(self.id, false, chunk)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Ends our side of the stream.
    pub async fn finish(mut self) {
        self.finished = true;
        if !*self.reset.borrow() {
            let _ = self.frames.send(frame::data(self.id, true, b"")).await;
        }
    }

    /// Waits until the client resets the stream, or is gone.
    pub fn reset(&self) -> impl Future<Output = ()> + use<> {
        let mut reset = self.reset.clone();
        async move {
            let _ = reset.wait_for(|reset| *reset).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished && !*self.reset.borrow() {
            let _ = self.frames.try_send(frame::rst_stream(self.id, reset::CANCEL));
        }
    }
}

/// What may be sent to a client that keeps windows.
struct Windows {
    /// Of new streams. Set once the client has named it: such a client keeps windows.
    initial: OnceLock<u32>,
    session: Credit,
}

impl Default for Windows {
    fn default() -> Self {
        Self { initial: OnceLock::new(), session: Credit::new(WINDOW_BYTES) }
    }
}

impl Windows {
    /// How many bytes, at least one, may go out on a stream now.
    async fn grant(&self, stream: &Credit, wanted: usize) -> usize {
        if self.initial.get().is_none() {
            return wanted;
        }
        let wanted = u32::try_from(wanted).expect("at most a chunk");
        let of_stream = stream.take(wanted).await;
        let granted = self.session.take(of_stream).await;
        stream.add(of_stream - granted);
        usize::try_from(granted).expect("at most a chunk")
    }
}

struct Credit(watch::Sender<u32>);

impl Credit {
    fn new(bytes: u32) -> Self {
        Self(watch::Sender::new(bytes))
    }

    fn add(&self, bytes: u32) {
        self.0.send_modify(|left| *left = left.saturating_add(bytes));
    }

    async fn take(&self, most: u32) -> u32 {
        let mut credit = self.0.subscribe();
        loop {
            let _ = credit.wait_for(|left| *left > 0).await;
            let mut taken = 0;
            self.0.send_modify(|left| {
                taken = most.min(*left);
                *left -= taken;
            });
            if taken > 0 {
                return taken;
            }
        }
    }
}

#[cfg(test)]
mod tests;
