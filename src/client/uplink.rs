//! The way from a joined node to its server: keeps the tunnel open, for ever, and tells the API client when the
//! server is lost and when it is back. Only the tunnel is pinged; the kernel watches over the client's connection,
//! as rarely as the way to the server allows.

use super::Remote;
use crate::api::status::Status;
use crate::clock::monotonic;
use crate::supervise::Shutdown;
use crate::sys::Stream;
use crate::tunnel;
use crate::tunnel::node::{self, Doors, End};
use crate::tunnel::relay::{self, Connect};
use crate::tunnel::rhythm::{Idle, Rhythm};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LIMIT: Duration = Duration::from_secs(30);
/// A tunnel that lived so long was healthy: its end is no failure of the next attempt.
const HEALTHY: Duration = Duration::from_secs(20);

/// A tunnel that lives on for so long after another connection has died is not ended by what has ended that one.
const JUDGEMENT: Duration = Duration::from_secs(30);

/// What is known of the way to the server.
#[derive(Clone, Debug, Default)]
pub enum State {
    #[default]
    Connecting,
    Connected,
    /// Why the last attempt failed.
    Failed(Status),
}

/// Opens relay streams, each a connection of its own: packets of pods do not stand in the tunnel's way.
pub struct Relaying(pub Remote);

impl Connect for Relaying {
    fn connect(&self) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let opened = self.0.upgrade(relay::PATH, relay::PROTOCOL).await;
            let stream = opened.map_err(std::io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Keeps the tunnel until shutdown. `changed` counts changes of addresses and routes: they are tried at once.
/// `assured`: when the server has certainly heard this node.
pub async fn run(
    remote: Remote,
    doors: impl Into<Doors>,
    mut changed: watch::Receiver<u64>,
    state: watch::Sender<State>,
    assured: watch::Sender<Option<Instant>>,
    shutdown: Shutdown,
) {
    let doors = doors.into();
    tokio::select! {
        () = shutdown.requested() => {}
        () = keep(&remote, &doors, &mut changed, &state, &assured) => {}
    }
}

async fn keep(
    remote: &Remote,
    doors: &Doors,
    changed: &mut watch::Receiver<u64>,
    state: &watch::Sender<State>,
    assured: &watch::Sender<Option<Instant>>,
) {
    let (mut rhythm, mut backoff, mut was_lost) = (Rhythm::default(), Duration::ZERO, false);
    let mut idle = Idle::default();
    loop {
        changed.mark_unchanged();
        let asked_at = monotonic();
        match remote.upgrade(tunnel::PATH, tunnel::PROTOCOL).await {
            Ok(io) => {
                let opened = monotonic();
                tracing::info!("connected to the server");
                assured.send_replace(Some(asked_at));
                state.send_replace(State::Connected);
                if std::mem::replace(&mut was_lost, true) {
                    give_up_connections(remote, &idle);
                }
                let serving = node::serve(io, doors, &mut rhythm, changed, assured);
                let end = while_learning(remote, &mut idle, serving).await;
                tracing::warn!(reason = %end, "lost the server; pods go on running");
                state.send_replace(State::Connecting);
                idle.follow(&rhythm);
                give_up_connections(remote, &idle);
                backoff = if opened.elapsed() >= HEALTHY { Duration::ZERO } else { next(backoff) };
            }
            Err(error) => {
                if !matches!(&*state.borrow(), State::Failed(last) if last.message == error.message) {
                    tracing::warn!(%error, "cannot reach the server; retrying");
                }
                state.send_replace(State::Failed(error));
                was_lost = true;
                backoff = next(backoff);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(backoff.max(BACKOFF_FIRST), fastrand::f64())) => {}
            Ok(()) = changed.changed() => {}
            // A new certificate, or a clock set right.
            () = remote.reconnected() => {}
        }
    }
}

/// Waits for the end of the tunnel. When the client's connection dies meanwhile, and the tunnel does not, the next
/// is watched over more closely.
async fn while_learning(remote: &Remote, idle: &mut Idle, tunnel: impl Future<Output = End>) -> End {
    let mut tunnel = std::pin::pin!(tunnel);
    loop {
        // What died before now has been judged, or died with the former tunnel.
        let mut deaths = remote.deaths();
        tokio::select! {
            end = &mut tunnel => return end,
            // The sender lives as long as the client.
            Ok(()) = deaths.changed() => {}
        }
        if let Ok(end) = tokio::time::timeout(JUDGEMENT, &mut tunnel).await {
            return end;
        }
        let before = idle.limit();
        idle.lost();
        if idle.limit() < before {
            let idle_s = idle.limit().as_secs();
            tracing::info!(idle_s, "something on the way to the server forgets idle connections: keeping ours alive");
            give_up_connections(remote, idle);
        }
    }
}

fn give_up_connections(remote: &Remote, idle: &Idle) {
    if let Err(error) = remote.keep_alive(idle.limit()).and_then(|()| remote.reconnect()) {
        tracing::error!(%error, "make a new client");
    }
}

fn next(last: Duration) -> Duration {
    (last * 2).clamp(BACKOFF_FIRST, BACKOFF_LIMIT)
}

/// A tenth to all of the wait: after a power cut a whole fleet comes back at once.
fn jittered(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.1 + random * 0.9)
}
