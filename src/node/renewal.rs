//! A joined node's certificate is renewed in place, with the same key, in the last third of its life; one that has
//! run out meanwhile still lets the node ask for the next. The authorities are fetched anew with it.

use super::joined::access;
use crate::client::uplink::State;
use crate::client::{Client, Remote, enroll};
use crate::clock::Clock;
use crate::pki::node_identity::NodeIdentity;
use crate::pki::{certificate, join_token};
use crate::supervise::Shutdown;
use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::sync::watch;

/// A certificate lives a year; it is renewed this long before its end, or up to a month earlier.
const BEFORE_END: SignedDuration = SignedDuration::from_hours(24 * 120);
const SPREAD: Duration = Duration::from_secs(3600 * 24 * 30);
/// Waits are cut into these, so that a clock that jumps is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
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
        let mut retry = RETRY_FIRST;
        loop {
            let wait = until_due(self.clock.now(), self.not_after, early);
            if !wait.is_zero() {
                tokio::select! {
                    () = self.clock.sleep(wait.min(LOOK_AGAIN)) => continue,
                    Ok(()) = state.changed() => {
                        let is_away = matches!(&*state.borrow_and_update(), State::Failed(status) if status.code >= 500);
                        if is_away || !self.is_of_former_authority().await {
                            continue;
                        }
                        tracing::info!("the cluster has a new authority");
                    }
                }
            }
            match self.renew().await {
                Ok(()) => {
                    tracing::info!(not_after = %self.not_after, "the node's certificate has been renewed");
                    retry = RETRY_FIRST;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "cannot renew the node's certificate; retrying");
                    // Soon when the server is back.
                    tokio::select! {
                        () = self.clock.sleep(retry) => retry = (retry * 2).min(RETRY_LIMIT),
                        Ok(()) = state.changed() => self.clock.sleep(RETRY_FIRST).await,
                    }
                }
            }
        }
    }

    /// Whether the server's current authority, the first it sends, is not the one that signed this node's certificate.
    async fn is_of_former_authority(&self) -> bool {
        let Ok(sent) = self.remote.raw(reqwest::Method::GET, "/cacerts", None).await else { return false };
        let own = certificate::bundle(&self.remote.access().client_certificate_pem).unwrap_or_default();
        let sent = certificate::bundle(&sent).unwrap_or_default();
        own.first().zip(sent.first()).is_some_and(|(own, current)| !certificate::is_signed_by(own, current))
    }

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
        self.remote.reload(access(&joined))?;
        // The tunnel, too, shows the new one.
        Ok(self.remote.reconnect()?)
    }

    /// The authorities that those known already vouch for, when they differ from what is known; PEM.
    async fn authorities(&self) -> anyhow::Result<Option<String>> {
        let sent = match self.remote.raw(reqwest::Method::GET, "/cacerts", None).await {
            Ok(sent) => sent,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let known = certificate::bundle(&self.remote.access().ca_pem)?;
        let trusted = join_token::vouched(&known, &certificate::bundle(&sent)?);
        Ok((trusted != known).then(|| certificate::bundle_pem(&trusted)))
    }
}

/// How long until the certificate is due; `early` (0 to 1) spreads a fleet that joined on one day.
fn until_due(now: Timestamp, not_after: Timestamp, early: f64) -> Duration {
    let left = not_after.duration_since(now).saturating_sub(BEFORE_END);
    let left = Duration::try_from(left).unwrap_or_default();
    left.saturating_sub(SPREAD.mul_f64(early))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_in_the_last_third_and_at_once_when_it_is_over() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let end = at("2027-11-23T00:00:00Z");
        let days = |duration: Duration| duration.as_secs() / 86_400;
        assert_eq!(days(until_due(at("2026-11-23T00:00:00Z"), end, 0.0)), 245);
        assert_eq!(days(until_due(at("2026-11-23T00:00:00Z"), end, 1.0)), 215);
        assert_eq!(until_due(at("2027-10-01T00:00:00Z"), end, 0.0), Duration::ZERO);
        assert_eq!(until_due(at("2032-10-01T00:00:00Z"), end, 0.5), Duration::ZERO);
    }
}
