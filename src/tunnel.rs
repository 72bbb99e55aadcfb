//! The connection a node opens and the server calls back through.
//! On the server's own board it is a pipe in memory. Over each dialled stream runs HTTP/1.1.
//!
//! What the kubelet answers on a stream:
//! `GET /containerLogs/{namespace}/{pod}/{container}?follow=&previous=&sinceSeconds=&sinceTime=&tailLines=&limitBytes=&timestamps=`
//! `POST /exec|/attach/{namespace}/{pod}/{container}?command=…&stdin=&stdout=&stderr=&tty=` and
//! `POST /portForward/{namespace}/{pod}?port=` with `Upgrade: edgelet-stream`: 101, then frames.
//! A frame: channel (u8), length (u32, big endian), payload. Channels as in `v5.channel.k8s.io`:
//! 0 stdin, 1 stdout, 2 stderr, 3 error (a `Status`, ends the stream), 4 resize (`{"Width","Height"}`),
//! 255 close of the channel named by the payload's one byte.

pub mod frames;

use crate::sys::Stream;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Bytes in flight per direction of an in-memory stream.
pub const PIPE_BYTES: usize = 16 << 10;

/// Opens streams to one node.
pub trait Dial: Send + Sync {
    fn dial(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>>;
}

/// The nodes that can be reached now, by node name.
#[derive(Clone, Default)]
pub struct Tunnels(Arc<Mutex<HashMap<String, Arc<dyn Dial>>>>);

impl Tunnels {
    pub fn register(&self, node: &str, dial: Arc<dyn Dial>) {
        self.0.lock().expect("no panic while the tunnels are locked").insert(node.to_owned(), dial);
    }

    pub fn forget(&self, node: &str) {
        self.0.lock().expect("no panic while the tunnels are locked").remove(node);
    }

    /// A new stream to the kubelet of `node`.
    pub async fn dial(&self, node: &str) -> std::io::Result<Box<dyn Stream>> {
        let dial = self.0.lock().expect("no panic while the tunnels are locked").get(node).cloned();
        match dial {
            Some(dial) => dial.dial().await,
            None => Err(std::io::Error::new(std::io::ErrorKind::NotConnected, format!("node {node} is not connected"))),
        }
    }
}

/// Streams that the server opened, on their way to the kubelet.
pub type Streams = tokio::sync::mpsc::Receiver<Box<dyn Stream>>;

/// The pipe on the server's own board: every dial hands one end to the kubelet.
pub struct Pipe(pub tokio::sync::mpsc::Sender<Box<dyn Stream>>);

impl Dial for Pipe {
    fn dial(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let gone = |_| std::io::Error::new(std::io::ErrorKind::NotConnected, "the kubelet has ended");
            self.0.send(Box::new(theirs)).await.map_err(gone)?;
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}
