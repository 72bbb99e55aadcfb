//! What a joined node knows of the time. The last time its server has signed is kept on disk: a board without a
//! battery starts from there, and is never before it. When certificates look wrong by their dates, the server is
//! asked what time it is, and its authority's signature is believed, not the machine.

use crate::client::uplink::State;
use crate::client::{Remote, enroll};
use crate::clock::Clock;
use crate::network::resolve::Resolver;
use crate::pki::node_identity::NodeIdentity;
use crate::pki::time::{self, Statement};
use crate::pki::{PkiError, certificate, files};
use crate::supervise::Shutdown;
use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

const FLOOR: &str = "time-floor";
/// A clock that is off by more makes certificates look wrong.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// The floor is written no more often, and at shutdown.
const KEEP_EVERY: SignedDuration = SignedDuration::from_hours(24);
const AGAIN: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(30);
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the clock no earlier than the last signed time.
pub fn restore(identity: &NodeIdentity, ca_pem: &str, clock: &Clock) {
    match kept(identity, ca_pem) {
        Ok(Some(floor)) => {
            if clock.now() < floor {
                tracing::warn!(machine = %clock.now(), %floor, "the machine's clock is behind the last signed time");
            }
            clock.set_floor(floor);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(error = format!("{error:#}"), "the kept time is not believed"),
    }
}

fn kept(identity: &NodeIdentity, ca_pem: &str) -> anyhow::Result<Option<Timestamp>> {
    let Some(text) = files::read_text(&path(identity))? else { return Ok(None) };
    let statement: Statement = serde_json::from_str(&text).context("read the kept time")?;
    let roots = certificate::bundle(ca_pem.as_bytes())?;
    Ok(Some(time::verify(text.as_bytes(), &statement.nonce, &roots)?))
}

fn path(identity: &NodeIdentity) -> PathBuf {
    identity.directory().join(FLOOR)
}

/// Forgets the kept time.
pub fn forget(identity: &NodeIdentity) -> Result<(), PkiError> {
    files::remove(&path(identity))
}

/// A question that nobody can have answered before.
pub fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// Asks the server, by whatever connection, and checks the signature.
pub async fn ask(
    server: &str,
    roots: &[CertificateDer<'static>],
    resolver: &Resolver,
) -> anyhow::Result<(Timestamp, Vec<u8>)> {
    let nonce = nonce();
    let sent = enroll::from_stranger(server, &format!("/edgelet/v1/time?nonce={nonce}"), resolver).await?;
    let said = time::verify(&sent, &nonce, roots)?;
    Ok((said, sent.to_vec()))
}

/// Whether a failure may come from a wrong clock.
pub fn is_about_dates(message: &str) -> bool {
    let words = ["certificate expired", "not valid yet", "NotValidYet", "Expired", "certificate has expired"];
    words.iter().any(|word| message.contains(word))
}

/// Keeps the clock and the floor right while the node runs.
pub struct Timekeeper {
    identity: NodeIdentity,
    remote: Remote,
    clock: Clock,
    resolver: Resolver,
    kept_at: Option<Timestamp>,
}

impl Timekeeper {
    pub fn new(identity: &NodeIdentity, remote: Remote, clock: Clock) -> Self {
        Self { identity: identity.clone(), remote, clock, resolver: Resolver::default(), kept_at: None }
    }

    pub async fn run(mut self, state: watch::Receiver<State>, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.keep(state.clone()) => {}
        }
        if matches!(*state.borrow(), State::Connected) {
            let _ = tokio::time::timeout(LAST_TIMEOUT, self.learn()).await;
        }
    }

    async fn keep(&mut self, mut state: watch::Receiver<State>) {
        loop {
            let wanted = match &*state.borrow_and_update() {
                State::Connected => self.is_due(),
                State::Failed(error) => is_about_dates(&error.message),
                State::Connecting => false,
            };
            let pause = match wanted {
                true => self.learn().await.map_or_else(
                    |error| {
                        tracing::warn!(error = format!("{error:#}"), "ask the server for the time");
                        RETRY
                    },
                    |()| AGAIN,
                ),
                false => AGAIN,
            };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                Ok(()) = state.changed() => self.clock.sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn is_due(&self) -> bool {
        self.kept_at.is_none_or(|at| self.clock.now().duration_since(at) >= KEEP_EVERY)
    }

    /// Asks, corrects the clock if it is wrong, and keeps the statement.
    async fn learn(&mut self) -> anyhow::Result<()> {
        let access = self.remote.access();
        let roots = certificate::bundle(&access.ca_pem)?;
        let (said, statement) = ask(&access.server, &roots, &self.resolver).await?;
        let off = self.clock.now().duration_since(said);
        if off.abs() > TOLERANCE {
            tracing::warn!(off = format!("{off:#}"), time = %said, "the clock is wrong; going by the server's");
            self.clock.set_exact(said);
            self.remote.reconnect()?;
        }
        if self.is_due() {
            let path = path(&self.identity);
            tokio::task::spawn_blocking(move || files::write_private(&path, &statement)).await??;
            self.kept_at = Some(said);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::Authority;

    #[tokio::test]
    async fn the_kept_time_is_believed_only_with_the_authority_s_signature() {
        let directory = tempfile::tempdir().unwrap();
        let identity = NodeIdentity::new(directory.path());
        let now: Timestamp = "2046-11-23T00:00:00Z".parse().unwrap();
        let (ours, foreign) = (Authority::generate(now).unwrap(), Authority::generate(now).unwrap());
        let keep = |authority: &Authority| {
            let statement = time::sign(&[authority], &nonce(), now).unwrap();
            std::fs::write(path(&identity), serde_json::to_vec(&statement).unwrap()).unwrap();
        };
        let clock = Clock::real();
        restore(&identity, ours.pem(), &clock);
        keep(&foreign);
        restore(&identity, ours.pem(), &clock);
        assert!(clock.now() < now);
        keep(&ours);
        restore(&identity, ours.pem(), &clock);
        assert!(clock.now() >= now);
    }
}
