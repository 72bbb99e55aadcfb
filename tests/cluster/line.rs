//! What lies between a board and its server: pipes in memory that can be cut, mended and torn.

use edgelet::apiserver::Listen;
use edgelet::client::reach::{Reach, Wire};
use futures_util::future::BoxFuture;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

/// Bytes in flight per direction.
const PIPE_BYTES: usize = 64 << 10;
/// Calls that wait for the server.
const CALLS_LIMIT: usize = 64;

type Call = (DuplexStream, SocketAddr);

/// The server's door: the other ends of all lines.
pub struct Door(mpsc::Receiver<Call>);

impl Listen for Door {
    type Io = DuplexStream;
    async fn accept(&mut self) -> io::Result<Call> {
        match self.0.recv().await {
            Some(call) => Ok(call),
            None => std::future::pending().await,
        }
    }
}

/// Where lines lead to.
#[derive(Clone)]
pub struct Exchange(mpsc::Sender<Call>);

impl Exchange {
    pub fn new() -> (Self, Door) {
        let (sender, receiver) = mpsc::channel(CALLS_LIMIT);
        (Self(sender), Door(receiver))
    }

    pub fn line(&self, from: SocketAddr) -> Line {
        let state = watch::Sender::new(State { whole: true, torn: 0 });
        Line { exchange: self.clone(), state, from, calls: Arc::default() }
    }
}

#[derive(Clone, Copy)]
struct State {
    whole: bool,
    /// How often all connections were broken.
    torn: u64,
}

/// One board's way to the server. Cheap to clone; clones share its fate.
#[derive(Clone)]
pub struct Line {
    exchange: Exchange,
    state: watch::Sender<State>,
    from: SocketAddr,
    calls: Arc<AtomicU64>,
}

impl Line {
    /// Nothing passes, and nobody is told: as when packets are lost.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.whole = false);
    }

    /// What was on its way arrives.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.whole = true);
    }

    /// All connections break, as when one side loses its power.
    pub fn tear(&self) {
        self.state.send_modify(|state| state.torn += 1);
    }

    /// How many connections were opened.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// A connection without TLS.
    pub async fn call(&self) -> io::Result<DuplexStream> {
        let mut states = self.state.subscribe();
        let torn = states.borrow().torn;
        let _ = states.wait_for(|state| state.whole).await;
        let (near, ours) = tokio::io::duplex(PIPE_BYTES);
        let (theirs, far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(carry(ours, theirs, states, torn));
        let refused = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "Connection refused");
        self.exchange.0.send((far, self.from)).await.map_err(refused)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(near)
    }
}

impl Reach for Line {
    fn reach<'a>(&'a self, _host: &'a str, _port: u16, _idle: Option<Duration>) -> BoxFuture<'a, io::Result<Wire>> {
        Box::pin(async move { Ok(Box::new(self.call().await?) as Wire) })
    }
}

async fn carry(ours: DuplexStream, theirs: DuplexStream, state: watch::Receiver<State>, torn: u64) {
    let ((our_input, our_output), (their_input, their_output)) = (tokio::io::split(ours), tokio::io::split(theirs));
    let mut tears = state.clone();
    tokio::select! {
        _ = tears.wait_for(|state| state.torn != torn) => {}
        _ = async { tokio::join!(one_way(our_input, their_output, state.clone()), one_way(their_input, our_output, state)) } => {}
    }
}

async fn one_way(
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = input.read(&mut buffer).await?;
        let _ = state.wait_for(|state| state.whole).await;
        if read == 0 {
            return output.shutdown().await;
        }
        output.write_all(&buffer[..read]).await?;
    }
}
