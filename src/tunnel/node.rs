//! The node's end of a tunnel: answers the streams that the server opens and pings it while it is idle.

use super::rhythm::Rhythm;
use super::stream::TunnelStream;
use super::{CONNECTION_WINDOW_BYTES, HEADERS_LIMIT_BYTES, KUBELET_PATH, RELAY_PATH, STREAMS_LIMIT, WINDOW_BYTES};
use crate::clock::monotonic;
use crate::sys::Stream;
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::{Request, Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// How long the server may take for its first words and for the answer to a ping.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same after a change of addresses or routes, which as a rule has broken the connection.
const CHANGED_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The server answers no more; connections to it that carry no pings are as dead.
    #[error("the server does not answer")]
    Silent,
    #[error("the server closed the tunnel")]
    Closed,
    #[error("the tunnel broke")]
    Broken(#[from] h2::Error),
}

/// Where what the server opens leads to.
pub struct Doors {
    pub kubelet: mpsc::Sender<Box<dyn Stream>>,
    /// Asks for a relay stream.
    pub relay: Arc<Notify>,
}

impl From<mpsc::Sender<Box<dyn Stream>>> for Doors {
    fn from(kubelet: mpsc::Sender<Box<dyn Stream>>) -> Self {
        Self { kubelet, relay: Arc::default() }
    }
}

/// Serves one tunnel until it ends. `changed` tells of new addresses and routes; `assured` is told whenever the server
/// has certainly heard this node.
pub async fn serve(
    io: impl Stream,
    doors: &Doors,
    rhythm: &mut Rhythm,
    changed: &mut watch::Receiver<u64>,
    assured: &watch::Sender<Option<Instant>>,
) -> End {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_LIMIT)
        .max_header_list_size(HEADERS_LIMIT_BYTES)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(WINDOW_BYTES as usize);
    let mut connection = match tokio::time::timeout(ANSWER_TIMEOUT, builder.handshake::<_, Bytes>(io)).await {
        Err(_) => return End::Silent,
        Ok(Err(error)) => return End::Broken(error),
        Ok(Ok(connection)) => connection,
    };
    let pings = connection.ping_pong().expect("taken once");
    let mut heart = std::pin::pin!(beat(pings, rhythm, changed, assured));
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((request, respond))) => hand_over(request, respond, doors),
                Some(Err(error)) => return End::Broken(error),
                None => return End::Closed,
            },
            end = &mut heart => return end,
        }
    }
}

/// Pings until one is not answered.
async fn beat(
    mut pings: PingPong,
    rhythm: &mut Rhythm,
    changed: &mut watch::Receiver<u64>,
    assured: &watch::Sender<Option<Instant>>,
) -> End {
    loop {
        let timeout = tokio::select! {
            () = tokio::time::sleep(rhythm.wait(fastrand::f64())) => ANSWER_TIMEOUT,
            Ok(()) = changed.changed() => CHANGED_TIMEOUT,
        };
        let sent_at = monotonic();
        match tokio::time::timeout(timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {
                assured.send_replace(Some(sent_at));
                if timeout == ANSWER_TIMEOUT {
                    rhythm.answered();
                }
            }
            Ok(Err(error)) => return End::Broken(error),
            Err(_) => {
                if timeout == ANSWER_TIMEOUT {
                    rhythm.lost();
                }
                return End::Silent;
            }
        }
    }
}

fn hand_over(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, doors: &Doors) {
    let place = match request.uri().path() {
        KUBELET_PATH => doors.kubelet.try_reserve().map_err(|_| StatusCode::SERVICE_UNAVAILABLE),
        RELAY_PATH => {
            doors.relay.notify_one();
            // Nothing more to say.
            Err(StatusCode::OK)
        }
        _ => Err(StatusCode::NOT_FOUND),
    };
    let (code, last) = match &place {
        Ok(_) => (StatusCode::OK, false),
        Err(code) => (*code, true),
    };
    let mut response = Response::new(());
    *response.status_mut() = code;
    // A stream that was given up meanwhile needs no answer.
    if let (Ok(output), Ok(place)) = (respond.send_response(response, last), place) {
        place.send(Box::new(TunnelStream::new(output, request.into_body(), None)));
    }
}
