//! What a joined node knows of the time. The last time its server has signed is kept on disk: a board without a
//! battery starts from there, and is never before it. When certificates look wrong by their dates, the server is
//! asked what time it is, and its authority's signature is believed, not the machine.

use crate::client::reach::Reach;
use crate::client::uplink::State;
use crate::client::{Remote, enroll};
use crate::clock::{Clock, monotonic};
use crate::pki::node_identity::NodeIdentity;
use crate::pki::time::{self, Statement};
use crate::pki::{PkiError, certificate, files};
use crate::supervise::Shutdown;
use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const FLOOR: &str = "time-floor";
/// A clock that is off by more makes certificates look wrong.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// The server is asked, and the floor written, no more often.
const KEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A floor that is nearer than this to what the server says now is left as it is.
const KEPT_NEAR: SignedDuration = SignedDuration::from_hours(24);
/// While the server refuses, or its certificate looks wrong.
const ASK_EVERY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(3600);
const SETTLE: Duration = Duration::from_millis(200);
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
    reach: Arc<dyn Reach>,
) -> anyhow::Result<(Timestamp, Vec<u8>)> {
    let nonce = nonce();
    let sent = enroll::from_stranger(server, &format!("/edgelet/v1/time?nonce={nonce}"), reach).await?;
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
    /// What the floor on the disk says.
    kept: Option<Timestamp>,
    /// Elapsed time, which no clock that is set can turn back.
    written: Option<Instant>,
    asked: Option<Instant>,
}

impl Timekeeper {
    pub fn new(identity: &NodeIdentity, remote: Remote, clock: Clock) -> Self {
        let kept = kept(identity, &String::from_utf8_lossy(&remote.access().ca_pem)).ok().flatten();
        Self { identity: identity.clone(), remote, clock, kept, written: None, asked: None }
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
            let wait = wait(&state.borrow_and_update(), self.asked.map(|asked| asked.elapsed()));
            let pause = match wait.is_zero() {
                true => match self.learn().await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "ask the server for the time");
                        RETRY
                    }
                },
                false => wait,
            };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                Ok(()) = state.changed() => self.clock.sleep(SETTLE).await,
            }
        }
    }

    /// Asks, goes by the answer from now on, and keeps the statement. A machine's clock that agrees goes on counting,
    /// and one that is set wrong later does not.
    async fn learn(&mut self) -> anyhow::Result<()> {
        let access = self.remote.access();
        let roots = certificate::bundle(&access.ca_pem)?;
        let (said, statement) = ask(&access.server, &roots, self.remote.reach().clone()).await?;
        self.asked = Some(monotonic());
        let off = self.clock.now().duration_since(said);
        self.clock.set_exact(said);
        if off.abs() > TOLERANCE {
            tracing::warn!(off = format!("{off:#}"), time = %said, "the clock is wrong; going by the server's");
            self.remote.reconnect()?;
        }
        if is_to_be_kept(self.kept, self.written.map(|written| written.elapsed()), said) {
            let path = path(&self.identity);
            tokio::task::spawn_blocking(move || files::write_private(&path, &statement)).await??;
            (self.kept, self.written) = (Some(said), Some(monotonic()));
        }
        Ok(())
    }
}

/// How long until the server is to be asked; `since`: since it was.
fn wait(state: &State, since: Option<Duration>) -> Duration {
    let every = match state {
        State::Connected => KEEP_EVERY,
        // It may judge our certificate by another time.
        State::Failed(error) if is_about_dates(&error.message) || matches!(error.code, 401 | 403) => ASK_EVERY,
        _ => return AGAIN,
    };
    since.map_or(Duration::ZERO, |since| every.saturating_sub(since))
}

/// Once a day, unless what is kept will do.
fn is_to_be_kept(kept: Option<Timestamp>, since_written: Option<Duration>, said: Timestamp) -> bool {
    let differs = kept.is_none_or(|kept| said.duration_since(kept).abs() >= KEPT_NEAR);
    differs && since_written.is_none_or(|since| since >= KEEP_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Status;
    use crate::pki::authority::Authority;

    #[test]
    fn the_server_is_asked_once_a_day_and_when_dates_look_wrong() {
        let (second, day) = (Duration::from_secs(1), KEEP_EVERY);
        let failed = |code, text: &str| State::Failed(Status::new(code, "", text));
        for (state, since, expected) in [
            (State::Connected, None, Duration::ZERO),
            (State::Connected, Some(second), day.checked_sub(second).unwrap()),
            (State::Connected, Some(day), Duration::ZERO),
            (State::Connecting, None, AGAIN),
            (failed(503, "no route to host"), None, AGAIN),
            (failed(503, "invalid peer certificate: certificate expired"), None, Duration::ZERO),
            (failed(403, "refused"), Some(second), Duration::from_secs(59)),
        ] {
            assert_eq!(wait(&state, since), expected, "{state:?} {since:?}");
        }
    }

    #[test]
    fn the_floor_is_written_once_a_day_whatever_clocks_do() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let (kept, day) = (at("2026-11-23T00:00:00Z"), KEEP_EVERY);
        for (kept, since, said, expected) in [
            (None, None, kept, true),
            (Some(kept), None, at("2026-11-23T12:00:00Z"), false),
            (Some(kept), None, at("2026-11-24T00:00:00Z"), true),
            (Some(kept), Some(day / 2), at("2036-11-23T00:00:00Z"), false),
            (Some(kept), Some(day), at("2016-11-23T00:00:00Z"), true),
        ] {
            assert_eq!(is_to_be_kept(kept, since, said), expected, "{kept:?} {since:?} {said}");
        }
    }

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
