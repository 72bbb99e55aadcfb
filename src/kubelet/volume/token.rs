//! A pod's service account tokens: asked for once, renewed at 80 % of their life.

use crate::api::view::pod::{Pod, TokenProjection};
use crate::client::{Client, SERVICEACCOUNTS};
use crate::clock::Clock;
use crate::kubelet::memory::after;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const DEFAULT_LIFE_S: i64 = 3600;
/// A token is renewed after this share of its life, and at the latest after a day.
const RENEW_PERCENT: i64 = 80;
const RENEW_LIMIT_S: i64 = 24 * 3600;

/// The tokens of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    clock: Clock,
    issued: Arc<Mutex<HashMap<(String, i64), Issued>>>,
}

/// No `Debug`: a token is a secret.
#[derive(Clone)]
struct Issued {
    token: String,
    renew_at: Timestamp,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenStatus {
    token: String,
    expiration_timestamp: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenRequest {
    status: TokenStatus,
}

impl Tokens {
    pub fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, issued: Arc::default() }
    }

    /// When the first of the tokens given out must be renewed.
    pub fn renew_at(&self) -> Option<Timestamp> {
        self.issued.lock().expect("no panic while the tokens are locked").values().map(|issued| issued.renew_at).min()
    }

    pub async fn get(&self, pod: &Pod, wanted: &TokenProjection) -> Result<String, String> {
        let life_s = wanted.expiration_seconds.unwrap_or(DEFAULT_LIFE_S);
        let key = (wanted.audience.clone(), life_s);
        let known = self.issued.lock().expect("no panic while the tokens are locked").get(&key).cloned();
        if let Some(known) = known.filter(|known| known.renew_at > self.clock.now()) {
            return Ok(known.token);
        }
        let fresh = self.request(pod, wanted, life_s).await?;
        let token = fresh.token.clone();
        self.issued.lock().expect("no panic while the tokens are locked").insert(key, fresh);
        Ok(token)
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
        let status = answer.map_err(|error| format!("failed to fetch token: {error}"))?.status;
        let ends_at = status.expiration_timestamp.parse().unwrap_or_else(|_| after(asked_at, life_s));
        Ok(Issued { token: status.token, renew_at: renew_at(asked_at, ends_at) })
    }
}

fn renew_at(from: Timestamp, ends_at: Timestamp) -> Timestamp {
    let life_s = ends_at.duration_since(from).as_secs().max(1);
    after(from, (life_s * RENEW_PERCENT / 100).min(RENEW_LIMIT_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_in_time() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert_eq!(renew_at(at(0), at(3600)), at(2880));
        assert_eq!(renew_at(at(0), at(365 * 86400)), at(86400));
        assert_eq!(renew_at(at(10), at(0)), at(10));
    }
}
