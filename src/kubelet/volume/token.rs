//! A pod's service account tokens: asked for once, renewed at 80 % of their life.
//! The last one issued is kept in the replica and mounted, past its time or not, while no server can issue
//! another: without the file a pod does not start, and nobody but the server that is away would refuse it.

use crate::api::view::pod::{Pod, TokenProjection};
use crate::client::informer::Contact;
use crate::client::{Client, Replica, SERVICEACCOUNTS};
use crate::clock::Clock;
use crate::kubelet::memory::after;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

const DEFAULT_LIFE_S: i64 = 3600;
/// A token is renewed after this share of its life, and at the latest after a day.
const RENEW_PERCENT: i64 = 80;
const LEAST_S: i64 = 60;
const RENEW_LIMIT_S: i64 = 24 * 3600;
/// While the server is away; its return renews them at once.
const AWAY_RETRY_S: i64 = 600;
/// A newer token goes to the disk when the one there is this much older: the pods of a node are not to cost a
/// write every hour.
const KEEP_FOR_S: i64 = 24 * 3600;
/// The kind of notes that are tokens.
pub const NOTES: &str = "edgelet.io/token";

/// The tokens of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    clock: Clock,
    replica: Option<Replica>,
    contact: watch::Receiver<Contact>,
    issued: Arc<Mutex<HashMap<(String, i64), Issued>>>,
}

/// No `Debug`: a token is a secret.
#[derive(Clone, Serialize, Deserialize)]
struct Issued {
    token: String,
    issued_at: Timestamp,
    renew_at: Timestamp,
    /// It is past `renew_at`, but no server issues another: not before this.
    #[serde(skip)]
    not_before: Option<Timestamp>,
}

impl Issued {
    fn due_at(&self) -> Timestamp {
        self.not_before.unwrap_or(self.renew_at)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenSpec {
    expiration_seconds: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    token: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenRequest {
    spec: TokenSpec,
    status: TokenStatus,
}

impl Tokens {
    pub fn new(client: Client, clock: Clock, replica: Option<Replica>, contact: watch::Receiver<Contact>) -> Self {
        Self { client, clock, replica, contact, issued: Arc::default() }
    }

    /// When the first of the tokens given out must be renewed.
    pub fn renew_at(&self) -> Option<Timestamp> {
        self.issued.lock().expect("no panic while the tokens are locked").values().map(Issued::due_at).min()
    }

    pub async fn get(&self, pod: &Pod, wanted: &TokenProjection) -> Result<String, String> {
        let life_s = wanted.expiration_seconds.unwrap_or(DEFAULT_LIFE_S);
        let key = (wanted.audience.clone(), life_s);
        let known = self.issued.lock().expect("no panic while the tokens are locked").get(&key).cloned();
        if let Some(known) = known.filter(|known| known.due_at() > self.clock.now()) {
            return Ok(known.token);
        }
        let last = || self.last(pod, &key);
        let connected = self.contact.borrow().connected;
        let issued = match if connected { None } else { last() } {
            Some(last) => last,
            None => match self.request(pod, wanted, life_s).await {
                Ok(fresh) => {
                    self.keep(pod, &key, &fresh);
                    fresh
                }
                Err(error) => last().ok_or(error)?,
            },
        };
        let token = issued.token.clone();
        self.issued.lock().expect("no panic while the tokens are locked").insert(key, issued);
        Ok(token)
    }

    /// The token that was issued last, to do with it for a while.
    fn last(&self, pod: &Pod, key: &(String, i64)) -> Option<Issued> {
        let known = self.issued.lock().expect("no panic while the tokens are locked").get(key).cloned();
        let noted = || self.replica.as_ref()?.noted(NOTES, &note(pod, key));
        let kept = known.or_else(|| serde_json::from_slice(&noted()?).ok())?;
        let retry_at = after(self.clock.now(), AWAY_RETRY_S);
        Some(Issued { not_before: (kept.renew_at < retry_at).then_some(retry_at), ..kept })
    }

    fn keep(&self, pod: &Pod, key: &(String, i64), issued: &Issued) {
        let Some(replica) = &self.replica else { return };
        let day = issued.issued_at.as_second() / KEEP_FOR_S;
        if let Ok(bytes) = serde_json::to_vec(issued) {
            replica.note(NOTES, &note(pod, key), Some(Bytes::from(bytes)), &day.to_le_bytes());
        }
    }

    /// The server is back: those past their time are asked for again at the next look. Whether there are any.
    pub fn wait_no_more(&self) -> bool {
        let mut issued = self.issued.lock().expect("no panic while the tokens are locked");
        issued.values_mut().filter_map(|issued| issued.not_before.take()).count() > 0
    }

    async fn request(&self, pod: &Pod, wanted: &TokenProjection, life_s: i64) -> Result<Issued, String> {
        let meta = &pod.metadata;
        let account = if pod.spec.service_account_name.is_empty() { "default" } else { &pod.spec.service_account_name };
        let audiences: Vec<&str> =
            Some(wanted.audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": meta.namespace},
            "spec": {
                "audiences": audiences,
                "expirationSeconds": life_s,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid},
            },
        });
        let asked_at = self.clock.now();
        let answer = self.client.create_subresource(SERVICEACCOUNTS, &meta.namespace, account, "token", body).await;
        let answer = answer.and_then(|item| item.view::<TokenRequest>());
        let TokenRequest { spec, status } = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
        let renew_at = renew_at(asked_at, spec.expiration_seconds.unwrap_or(life_s));
        Ok(Issued { token: status.token, issued_at: asked_at, renew_at, not_before: None })
    }
}

/// Under which a token is kept; it opens with the pod's uid.
fn note(pod: &Pod, (audience, life_s): &(String, i64)) -> String {
    format!("{}/{life_s}/{audience}", pod.metadata.uid)
}

/// By how long it lives, not by the date of its end: that is the server's clock's, and this one may be another.
fn renew_at(from: Timestamp, life_s: i64) -> Timestamp {
    after(from, (life_s * RENEW_PERCENT / 100).clamp(LEAST_S, RENEW_LIMIT_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_in_time() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert_eq!(renew_at(at(0), 3600), at(2880));
        assert_eq!(renew_at(at(0), 365 * 86400), at(86400));
        assert_eq!(renew_at(at(10), 0), at(70), "never at once again");
    }
}
