//! The way from a joined node to its server: keeps the tunnel open, for ever, and tells the API client when the
//! server is lost and when it is back. Only the tunnel is pinged; the client's connections say nothing when idle.

use super::Remote;
use crate::api::status::Status;
use crate::clock::monotonic;
use crate::supervise::Shutdown;
use crate::sys::Stream;
use crate::tunnel::rhythm::Rhythm;
use crate::tunnel::{self, node};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LIMIT: Duration = Duration::from_secs(30);
/// A tunnel that lived so long was healthy: its end is no failure of the next attempt.
const HEALTHY: Duration = Duration::from_secs(20);

/// What is known of the way to the server.
#[derive(Clone, Debug, Default)]
pub enum State {
    #[default]
    Connecting,
    Connected,
    /// Why the last attempt failed.
    Failed(Status),
}

/// Keeps the tunnel until shutdown. `changed` counts changes of addresses and routes: they are tried at once.
pub async fn run(
    remote: Remote,
    kubelet: mpsc::Sender<Box<dyn Stream>>,
    mut changed: watch::Receiver<u64>,
    state: watch::Sender<State>,
    shutdown: Shutdown,
) {
    tokio::select! {
        () = shutdown.requested() => {}
        () = keep(&remote, &kubelet, &mut changed, &state) => {}
    }
}

async fn keep(
    remote: &Remote,
    kubelet: &mpsc::Sender<Box<dyn Stream>>,
    changed: &mut watch::Receiver<u64>,
    state: &watch::Sender<State>,
) {
    let (mut rhythm, mut backoff, mut was_lost) = (Rhythm::default(), Duration::ZERO, false);
    loop {
        changed.mark_unchanged();
        match remote.upgrade(tunnel::PATH, tunnel::PROTOCOL).await {
            Ok(io) => {
                let opened = monotonic();
                tracing::info!("connected to the server");
                state.send_replace(State::Connected);
                if std::mem::replace(&mut was_lost, true) {
                    give_up_connections(remote);
                }
                let end = node::serve(io, kubelet, &mut rhythm, changed).await;
                tracing::warn!(reason = %end, "lost the server; pods go on running");
                state.send_replace(State::Connecting);
                give_up_connections(remote);
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
        }
    }
}

fn give_up_connections(remote: &Remote) {
    if let Err(error) = remote.reconnect() {
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
