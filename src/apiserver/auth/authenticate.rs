//! Credentials to a user: the certificate of the connection, else a bearer token, else anonymous.

use super::{ANONYMOUS, AUTHENTICATED, Auth, CREDENTIAL_ID, Peer, PeerCertificate, UNAUTHENTICATED};
use crate::api::status::{Result, Status};
use crate::pki::authority::EARLIEST;
use crate::pki::join_token;
use crate::pki::node_key::{self, NodeKey};
use crate::pki::token::{self, Claims, Reference, TokenError};
use crate::registry::User;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Tokens whose signature need not be checked again.
const TOKENS_LIMIT: usize = 256;
/// How long after its deletion was asked for an object still carries its tokens.
const DELETED_LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// How browsers send a token when they open a WebSocket.
const PROTOCOL_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Verified claims by the hash of their token: a signature costs more than all else a request does.
#[derive(Default)]
pub struct TokenCache(Mutex<HashMap<[u8; 32], Arc<Claims>>>);

impl TokenCache {
    fn get(&self, hash: &[u8; 32]) -> Option<Arc<Claims>> {
        self.0.lock().expect("no panic while the cache is locked").get(hash).cloned()
    }

    fn put(&self, hash: [u8; 32], claims: Arc<Claims>) {
        let mut cache = self.0.lock().expect("no panic while the cache is locked");
        if cache.len() >= TOKENS_LIMIT {
            cache.clear();
        }
        cache.insert(hash, claims);
    }
}

#[derive(Deserialize)]
struct Living {
    metadata: LivingMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LivingMeta {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<Timestamp>,
}

impl Auth {
    /// Who sent this. The credentials are taken out of the headers: nothing behind may see them.
    pub async fn authenticate(&self, headers: &mut HeaderMap, peer: &Peer) -> Result<User> {
        let token = take_token(headers);
        if let Some(user) = &peer.user {
            return Ok((**user).clone());
        }
        if let Some(certificate) = &peer.certificate {
            return self.user_of_certificate(certificate).await;
        }
        if let Some(token) = token {
            return self.user_of_bearer(&token).await;
        }
        if !self.anonymous {
            return Err(Status::unauthorized());
        }
        Ok(User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() })
    }

    async fn user_of_bearer(&self, token: &str) -> Result<User> {
        let refused = |who: &str, why: &dyn std::fmt::Display| {
            self.refusals.log("bearer token", who, why);
            Status::unauthorized()
        };
        if let Some((id, secret)) = join_token::split_bearer(token) {
            return self.user_of_bootstrap_token(id, secret).await.map_err(|why| refused(id, &why));
        }
        let audiences = [self.pki.token_key().issuer()];
        self.user_of_token(token, &audiences).await.map_err(|why| refused("", &why))
    }

    /// Who a client certificate stands for now: connections live longer than certificates and authorities.
    async fn user_of_certificate(&self, certificate: &PeerCertificate) -> Result<User> {
        let PeerCertificate { user, .. } = certificate;
        let refused = |why: &str| {
            self.refusals.log("client certificate", &user.name, &why);
            Err(Status::unauthorized())
        };
        let node = node_key::node_of_user(&user.name).filter(|_| is_in(user, node_key::NODES_GROUP));
        if let Some(node) = node
            && !self.is_key_of_node(node, &certificate.key_hash).await
        {
            return refused("not the key on record for this node: it was forgotten, or joined again with another key");
        }
        let now = self.clock.now().max(EARLIEST);
        let counts = self.pki.trust().trusted().any(|authority| *authority.key_hash() == certificate.authority);
        if counts && certificate.not_before <= now && now <= certificate.not_after {
            return Ok(user.clone());
        }
        match node {
            // Its key is proven and on record: it may ask for a certificate of today.
            Some(node) => {
                let groups = vec![node_key::EXPIRED_GROUP.to_owned(), AUTHENTICATED.to_owned()];
                Ok(User { name: node_key::expired_user(node), groups, extra: user.extra.clone(), ..User::default() })
            }
            None if counts => refused("certificate has expired or is not yet valid"),
            None => refused("certificate is of an authority that has been replaced"),
        }
    }

    async fn is_key_of_node(&self, node: &str, hash: &[u8; 32]) -> bool {
        let record = self.object("", "secrets", node_key::NAMESPACE, &node_key::secret_name(node)).await;
        record.is_some_and(|record| NodeKey::of(&record).is(hash))
    }

    /// The user of a token that is good for one of `audiences` and whose objects live.
    pub async fn user_of_token(&self, token: &str, audiences: &[&str]) -> Result<User, TokenError> {
        let claims = self.claims(token)?;
        token::check(&claims, audiences, self.clock.now())?;
        let bound = &claims.bound;
        let objects = [
            ("serviceaccounts", &*bound.namespace, Some(&bound.serviceaccount)),
            ("pods", &bound.namespace, bound.pod.as_ref()),
            ("secrets", &bound.namespace, bound.secret.as_ref()),
            // A token that is bound to a pod only mentions the node.
            ("nodes", "", bound.node.as_ref().filter(|_| bound.pod.is_none())),
        ];
        for (resource, namespace, reference) in objects {
            if let Some(reference) = reference
                && !self.lives(resource, namespace, reference).await
            {
                return Err(TokenError::Expired);
            }
        }
        Ok(user_of(&claims))
    }

    fn claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.tokens.get(&hash) {
            return Ok(claims);
        }
        let claims = Arc::new(self.pki.token_key().verify_signature(token)?);
        self.tokens.put(hash, claims.clone());
        Ok(claims)
    }

    async fn lives(&self, resource: &str, namespace: &str, reference: &Reference) -> bool {
        let Some(kind) = self.registry.kinds.resource("", "v1", resource) else { return false };
        let key = kind.key(namespace, &reference.name);
        let Ok(Some(entry)) = self.registry.store.get(&key).await else { return false };
        let Ok(object) = serde_json::from_slice::<Living>(&entry.bytes) else { return false };
        let deleted = object.metadata.deletion_timestamp.is_some_and(|at| self.clock.now() > at + DELETED_LEEWAY);
        object.metadata.uid == reference.uid && !deleted
    }
}

fn user_of(claims: &Claims) -> User {
    let bound = &claims.bound;
    let mut extra = vec![(CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", claims.jti)])];
    for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            extra.push((format!("authentication.kubernetes.io/{what}-name"), vec![reference.name.clone()]));
            extra.push((format!("authentication.kubernetes.io/{what}-uid"), vec![reference.uid.clone()]));
        }
    }
    extra.sort();
    let groups = service_account_groups(&bound.namespace);
    let groups = groups.into_iter().chain([AUTHENTICATED.to_owned()]).collect();
    User { name: claims.sub.clone(), uid: bound.serviceaccount.uid.clone(), groups, extra }
}

fn is_in(user: &User, group: &str) -> bool {
    user.groups.iter().any(|one| one == group)
}

pub fn service_account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// Removes and returns the bearer token, from `Authorization` or from a WebSocket's protocols.
fn take_token(headers: &mut HeaderMap) -> Option<String> {
    if let Some(value) = headers.remove(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?.to_owned();
    let (tokens, rest): (Vec<&str>, Vec<&str>) =
        offered.split(',').map(str::trim).partition(|one| one.starts_with(PROTOCOL_TOKEN));
    let encoded = tokens.first()?.strip_prefix(PROTOCOL_TOKEN)?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, rest.join(", ").parse().ok()?);
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_out_of_the_headers() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer abc".parse().unwrap());
        assert_eq!(take_token(&mut headers).as_deref(), Some("abc"));
        assert!(headers.is_empty());

        let protocols = format!("v5.channel.k8s.io, {PROTOCOL_TOKEN}{}", URL_SAFE_NO_PAD.encode("abc"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
        assert_eq!(take_token(&mut headers).as_deref(), Some("abc"));
        assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");

        headers.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(take_token(&mut headers), None);
    }
}
