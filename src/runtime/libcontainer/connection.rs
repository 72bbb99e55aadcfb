//! One connection to a pod's shim: calls and their answers, and what the shim announces.

use crate::runtime::shim::protocol::{Answer, Call, Event, Message, Request, VERSION};
use crate::runtime::{Reason, RuntimeError};
use crate::sys::{seqpacket, watch::watch};
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

/// Longer than the shim lets its helpers take.
const CALL_TIMEOUT: Duration = Duration::from_secs(75);

type Answered = (Answer, Vec<OwnedFd>);

/// What the shim says unasked. `Lost` is the last word.
pub enum Notice {
    Event(Event),
    Lost,
}

#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    reader: AbortHandle,
    /// Its sender ends with the reader.
    closed: watch::Receiver<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answered>>>,
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answered>>> {
        self.waiting.lock().expect("no panic while the calls are locked")
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<i32>>> {
        self.execs.lock().expect("no panic while the commands are locked")
    }

    async fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        let receive = |socket: &OwnedFd| {
            let mut buffer = vec![0; seqpacket::next_length(socket)?];
            let (length, descriptors) = seqpacket::receive(socket, &mut buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok((serde_json::from_slice(&buffer[..length])?, descriptors))
        };
        self.socket.async_io(Interest::READABLE, receive).await
    }
}

impl Connection {
    /// Connects and greets. `notify` is called for whatever the shim announces, in order.
    pub async fn open(path: &Path, notify: impl Fn(Notice) + Send + 'static) -> io::Result<(Self, i32)> {
        let socket = watch(seqpacket::connect(path)?)?;
        let shared =
            Arc::new(Shared { socket, next: AtomicU64::new(1), waiting: Mutex::default(), execs: Mutex::default() });
        let (open, closed) = watch::channel(());
        let reading = read(shared.clone(), notify);
        let reader = crate::supervise::spawn(async move {
            reading.await;
            drop(open);
        });
        let connection = Self(Arc::new(Inner { shared, reader: reader.abort_handle(), closed }));
        match connection.call(Request::Hello { version: VERSION }, &[]).await {
            Ok((Answer::Hello { version, pid }, _)) if version <= VERSION => Ok((connection, pid)),
            Ok((Answer::Hello { version, .. }, _)) => {
                Err(io::Error::other(format!("shim speaks protocol {version}, newer than {VERSION}")))
            }
            Ok(_) => Err(io::Error::other("shim did not greet")),
            Err(error) => Err(io::Error::other(error.message)),
        }
    }

    /// One request and its answer; a failure the shim reports is an error with its message.
    pub async fn call(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answered, RuntimeError> {
        let shared = &self.0.shared;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        shared.waiting().insert(id, sender);
        let message = serde_json::to_vec(&Call { id, request }).expect("a call is plain data");
        let send = |socket: &OwnedFd| Ok(seqpacket::send(socket, &message, descriptors)?);
        if let Err(error) = shared.socket.async_io(Interest::WRITABLE, send).await {
            shared.waiting().remove(&id);
            return Err(lost(&error.to_string()));
        }
        match tokio::time::timeout(CALL_TIMEOUT, receiver).await {
            Ok(Ok((Answer::Failed { message, not_found }, _))) => {
                Err(RuntimeError::new(if not_found { Reason::NotFound } else { Reason::Other }, message))
            }
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(_)) => Err(lost("connection closed")),
            Err(_) => {
                shared.waiting().remove(&id);
                Err(RuntimeError::new(Reason::Timeout, "the pod's shim does not answer"))
            }
        }
    }

    /// Will hold the exit code of a command that is about to be started.
    pub fn expect_exec(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.0.shared.execs().insert(exec.to_owned(), sender);
        receiver
    }

    pub fn forget_exec(&self, exec: &str) {
        self.0.shared.execs().remove(exec);
    }

    /// Waits until the shim has closed its end.
    pub async fn closed(&self) {
        let mut closed = self.0.closed.clone();
        while closed.changed().await.is_ok() {}
    }
}

fn lost(why: &str) -> RuntimeError {
    RuntimeError::new(Reason::Other, format!("the pod's shim is gone: {why}"))
}

async fn read(shared: Arc<Shared>, notify: impl Fn(Notice)) {
    loop {
        match shared.receive().await {
            Ok((Message::Answer { id, answer }, descriptors)) => {
                let waiting = shared.waiting().remove(&id);
                if let Some(waiting) = waiting {
                    // Nobody waits any more: the caller was cancelled.
                    let _ = waiting.send((answer, descriptors));
                }
            }
            Ok((Message::Event(Event::ExecExited { exec, code }), _)) => {
                let waiting = shared.execs().remove(&exec);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(code);
                }
            }
            Ok((Message::Event(event), _)) => notify(Notice::Event(event)),
            Err(_) => break,
        }
    }
    shared.execs().clear();
    shared.waiting().clear();
    notify(Notice::Lost);
}
