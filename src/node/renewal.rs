//! A joined node's certificate is renewed in place, with the same key, in the last third of its life; one that has
//! run out meanwhile still lets the node ask for the next. The authorities are fetched anew with it.

use super::joined::access;
use crate::client::uplink::State;
use crate::client::{Client, Remote, enroll};
use crate::clock::{Clock, monotonic};
use crate::pki::node_identity::NodeIdentity;
use crate::pki::{certificate, join_token};
use crate::supervise::Shutdown;
use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A certificate lives a year; it is renewed this long before its end, or up to a month earlier.
const BEFORE_END: SignedDuration = SignedDuration::from_hours(24 * 120);
const SPREAD: Duration = Duration::from_secs(3600 * 24 * 30);
/// From one renewal to the next.
const AGAIN: Duration = Duration::from_secs(3600);
/// The same when the server refuses what it has signed.
const AGAIN_REFUSED: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LIMIT: Duration = Duration::from_secs(3600);

pub struct Renewal {
    pub identity: NodeIdentity,
    pub node_name: String,
    pub remote: Remote,
    pub clock: Clock,
    pub not_after: Timestamp,
}

impl Renewal {
    /// Renews until shutdown.
    pub async fn run(mut self, state: watch::Receiver<State>, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.keep(state) => {}
        }
    }

    async fn keep(&mut self, mut state: watch::Receiver<State>) {
        let early = fastrand::f64();
        let (mut retry, mut doubt, mut renewed) = (RETRY_FIRST, Doubt::None, None::<Instant>);
        loop {
            let due_at = renew_at(self.not_after, early);
            let rest = rest(doubt, renewed.map(|renewed| renewed.elapsed()));
            if !rest.is_zero() {
                tokio::select! {
                    () = self.clock.sleep(rest) => {}
                    Ok(()) = state.changed() => doubt = doubt.max(Doubt::of(&state.borrow_and_update())),
                }
                continue;
            }
            if doubt == Doubt::None && self.clock.now() < due_at {
                tokio::select! {
                    () = self.clock.sleep_until(due_at) => {}
                    Ok(()) = state.changed() => doubt = Doubt::of(&state.borrow_and_update()),
                }
                continue;
            }
            match self.check(doubt, due_at, &state).await {
                Ok(did) => {
                    renewed = if did { Some(monotonic()) } else { renewed };
                    (retry, doubt) = (RETRY_FIRST, Doubt::None);
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "cannot renew the node's certificate; retrying");
                    let answers = answers(&state.borrow_and_update());
                    // A server that answers and refuses is not asked more often for it.
                    tokio::select! {
                        () = self.clock.sleep(retry) => retry = (retry * 2).min(RETRY_LIMIT),
                        () = back(&mut state), if !answers => self.clock.sleep(RETRY_FIRST).await,
                    }
                }
            }
        }
    }

    /// Renews if the certificate is due or counts no longer; whether it has.
    async fn check(&mut self, doubt: Doubt, due_at: Timestamp, state: &watch::Receiver<State>) -> anyhow::Result<bool> {
        let wanted = self.clock.now() >= due_at || doubt == Doubt::Refused || self.is_of_former_authority().await?;
        if !wanted {
            return Ok(false);
        }
        self.renew().await?;
        tracing::info!(not_after = %self.not_after, "the node's certificate has been renewed");
        if !matches!(&*state.borrow(), State::Connected) {
            self.remote.reconnect()?;
        }
        Ok(true)
    }

    /// Whether the server's current authority, the first it sends, is not the one that signed this node's certificate.
    async fn is_of_former_authority(&self) -> anyhow::Result<bool> {
        let sent = match self.remote.raw(http::Method::GET, "/cacerts", None).await {
            Ok(sent) => certificate::bundle(&sent)?,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let own = certificate::bundle(&self.remote.access().client_certificate_pem)?;
        Ok(own.first().zip(sent.first()).is_some_and(|(own, current)| !certificate::is_signed_by(own, current)))
    }

    /// Connections that are open go on with the former certificate; the next ones show the new one.
    async fn renew(&mut self) -> anyhow::Result<()> {
        let (identity, name) = (self.identity.clone(), self.node_name.clone());
        let request = tokio::task::spawn_blocking(move || identity.request(&name)).await??;
        let client = Client::Remote(self.remote.clone());
        let pem = enroll::certificate(&client, &self.node_name, &request).await?;
        let authorities = self.authorities().await?;
        let identity = self.identity.clone();
        let joined = tokio::task::spawn_blocking(move || {
            if let Some(authorities) = authorities {
                identity.store_authorities(&authorities)?;
            }
            identity.store_certificate(&pem)?;
            identity.load()
        });
        let joined = joined.await??.context("the node's files are gone")?;
        self.not_after = joined.credentials.not_after;
        Ok(self.remote.reload(access(&joined))?)
    }

    /// The authorities that those known already vouch for, when they differ from what is known; PEM.
    async fn authorities(&self) -> anyhow::Result<Option<String>> {
        let sent = match self.remote.raw(http::Method::GET, "/cacerts", None).await {
            Ok(sent) => sent,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let known = certificate::bundle(&self.remote.access().ca_pem)?;
        let trusted = join_token::vouched(&known, &certificate::bundle(&sent)?);
        Ok((trusted != known).then(|| certificate::bundle_pem(&trusted)))
    }
}

/// What the connection says of the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    None,
    /// It was made anew: its end may have come of a new authority.
    Reconnected,
    /// The server does not take the certificate for what it is: its clock may be another.
    Refused,
}

impl Doubt {
    fn of(state: &State) -> Self {
        match state {
            State::Connected => Self::Reconnected,
            State::Failed(status) if matches!(status.code, 401 | 403) => Self::Refused,
            _ => Self::None,
        }
    }
}

/// How long a certificate is left alone that was renewed so long ago. One that seems due again at once was dated by
/// another clock: a storm of requests would not mend that.
fn rest(doubt: Doubt, since_renewed: Option<Duration>) -> Duration {
    let least = match doubt {
        Doubt::None => AGAIN,
        Doubt::Reconnected => Duration::ZERO,
        Doubt::Refused => AGAIN_REFUSED,
    };
    since_renewed.map_or(Duration::ZERO, |since| least.saturating_sub(since))
}

fn answers(state: &State) -> bool {
    match state {
        State::Connected => true,
        State::Connecting => false,
        State::Failed(status) => status.code < 500,
    }
}

async fn back(state: &mut watch::Receiver<State>) {
    // An error is an end too: whoever keeps the connection is gone.
    let _ = state.wait_for(answers).await;
}

/// When the certificate is due; `early` (0 to 1) spreads a fleet that joined on one day.
fn renew_at(not_after: Timestamp, early: f64) -> Timestamp {
    let before = BEFORE_END + SignedDuration::try_from(SPREAD.mul_f64(early)).unwrap_or_default();
    not_after.saturating_sub(before).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Status;

    #[test]
    fn due_in_the_last_third() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let end = at("2027-11-23T00:00:00Z");
        assert_eq!(renew_at(end, 0.0), at("2027-07-26T00:00:00Z"));
        assert_eq!(renew_at(end, 1.0), at("2027-06-26T00:00:00Z"));
        assert_eq!(renew_at(Timestamp::MIN, 1.0), Timestamp::MIN);
    }

    #[test]
    fn a_renewed_certificate_is_left_alone_for_a_while() {
        for (doubt, since_s, rest_s) in [
            (Doubt::None, None, 0),
            (Doubt::None, Some(600), 3000),
            (Doubt::None, Some(3600), 0),
            (Doubt::Reconnected, Some(1), 0),
            (Doubt::Refused, None, 0),
            (Doubt::Refused, Some(10), 50),
            (Doubt::Refused, Some(60), 0),
        ] {
            assert_eq!(rest(doubt, since_s.map(Duration::from_secs)), Duration::from_secs(rest_s), "{doubt:?}");
        }
    }

    #[test]
    fn what_the_connection_says() {
        let failed = |code| State::Failed(Status::new(code, "", ""));
        for (state, doubt, answering) in [
            (State::Connecting, Doubt::None, false),
            (State::Connected, Doubt::Reconnected, true),
            (failed(403), Doubt::Refused, true),
            (failed(401), Doubt::Refused, true),
            (failed(404), Doubt::None, true),
            (failed(503), Doubt::None, false),
            (failed(504), Doubt::None, false),
        ] {
            assert_eq!((Doubt::of(&state), answers(&state)), (doubt, answering), "{state:?}");
        }
    }
}
