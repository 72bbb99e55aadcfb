//! From a join token to a node's certificate. What was achieved before a failure is used again by the next attempt;
//! nothing is kept of the token, and the node's key never leaves the board.

use super::{joined, time};
use crate::client::kubeconfig::Access;
use crate::client::reach::Reach;
use crate::client::{Client, Remote, enroll};
use crate::clock::Clock;
use crate::pki::certificate;
use crate::pki::join_token::JoinToken;
use crate::pki::node_identity::{Joined, NodeIdentity};
use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;

/// A clock that is off by more makes certificates look expired, or not valid yet.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What it takes.
pub struct Joining {
    /// `https://host:port`.
    pub server: String,
    pub token: JoinToken,
    pub node_name: String,
    pub reach: Arc<dyn Reach>,
    /// The board's; set by the server's signed time when it is wrong.
    pub clock: Clock,
}

/// What has been achieved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The server is the one that the token was made for.
    Trusted,
    /// What the board kept of another cluster is gone.
    FormerForgotten,
    ClockAgrees,
    /// The board's clock is off; the server's counts from now on.
    ClockCorrected {
        off: SignedDuration,
        said: Timestamp,
    },
    Certified {
        until: Timestamp,
    },
    /// The server has told what all nodes must know alike.
    Informed,
}

impl Joining {
    /// Trust, time, key, certificate, facts: in this order. A refusal of the server is a `Status` in the error.
    pub async fn enroll(&self, identity: &NodeIdentity, tell: &(dyn Fn(Step) + Sync)) -> anyhow::Result<Joined> {
        let sent = enroll::from_stranger(&self.server, "/cacerts", self.reach.clone()).await?;
        let roots = self.token.trusted(&sent).context("the server proves to be another than the token's")?;
        tell(Step::Trusted);
        let (former, authorities) = (identity.clone(), roots.clone());
        if tokio::task::spawn_blocking(move || joined::forget_former(&former, &authorities)).await?? {
            tell(Step::FormerForgotten);
        }
        tell(self.check_clock(&roots).await?);

        let ca_pem = certificate::bundle_pem(&roots);
        let (keeper, name, authorities) = (identity.clone(), self.node_name.clone(), ca_pem.clone());
        let request = tokio::task::spawn_blocking(move || {
            keeper.store_authorities(&authorities)?;
            keeper.request(&name)
        });
        let request = request.await?.context("make the node's key")?;
        let access = Access {
            server: self.server.clone(),
            ca_pem: ca_pem.into_bytes(),
            token: self.token.bearer(),
            ..Access::default()
        };
        let client = Client::Remote(self.remote(access)?);
        let signed = enroll::certificate(&client, &self.node_name, &request).await?;
        identity.store_certificate(&signed)?;
        identity.store_server(&self.server)?;
        let joined = identity.load()?.context("what was just written is gone")?;
        tell(Step::Certified { until: joined.credentials.not_after });
        joined::learn_facts(&self.remote(joined::access(&joined))?, identity).await?;
        tell(Step::Informed);
        Ok(joined)
    }

    fn remote(&self, access: Access) -> crate::api::status::Result<Remote> {
        Remote::with_clock(access, self.reach.clone(), self.clock.clone())
    }

    /// Asks what time it is, before anything is judged by it.
    async fn check_clock(&self, roots: &[CertificateDer<'static>]) -> anyhow::Result<Step> {
        let asked = time::ask(&self.server, roots, self.reach.clone()).await;
        let (said, _) = asked.context("ask the server for the time")?;
        let off = self.clock.now().duration_since(said);
        if off.abs() <= CLOCK_TOLERANCE {
            return Ok(Step::ClockAgrees);
        }
        self.clock.set_exact(said);
        Ok(Step::ClockCorrected { off, said })
    }
}
