//! What the server knows of a join token: a Kubernetes bootstrap token, `kube-system/bootstrap-token-ID`, with
//! edgelet's keys beside the standard ones. Pure: reads, judges and makes the Secret's object.

use crate::api::object::{Object, ObjectExt};
use crate::clock::rfc3339;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub const NAMESPACE: &str = "kube-system";
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
/// The group of boards that join with a token.
pub const GROUP: &str = "system:bootstrappers:edgelet";
/// The group of boards whose token has no uses left: they may read what they have asked for, no more.
pub const USED_GROUP: &str = "system:bootstrappers:edgelet-used";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const USER_PREFIX: &str = "system:bootstrap:";
/// Uses are written down by name; more than this fit no Secret comfortably.
pub const USES_LIMIT: u32 = 1000;
const EXTRA_GROUP_LIMIT: usize = 255;

const ID: &str = "token-id";
const SECRET: &str = "token-secret";
const EXPIRATION: &str = "expiration";
const DESCRIPTION: &str = "description";
const AUTHENTICATES: &str = "usage-bootstrap-authentication";
const GROUPS: &str = "auth-extra-groups";
const USES: &str = "edgelet-uses";
const USED_BY: &str = "edgelet-used-by";
const NODE_NAME: &str = "edgelet-node-name";
const NODE_LABELS: &str = "edgelet-node-labels";

/// Why a bootstrap token is refused, for the server's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such token: never made, revoked, or of another cluster")]
    Unknown,
    #[error("the token's secret is wrong")]
    Secret,
    #[error("the token has expired")]
    Expired,
    #[error("the token may not authenticate")]
    Usage,
    #[error("the token's Secret is malformed")]
    Malformed,
    #[error("the token has no uses left")]
    UsedUp,
}

/// A node that has joined with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    pub node: String,
    /// The uid of the CertificateSigningRequest: one request takes one use, however often it is looked at.
    pub request: String,
}

/// No `Debug`: it holds the secret.
#[derive(Clone, Default)]
pub struct BootstrapToken {
    pub id: String,
    pub secret: String,
    pub expires: Option<Timestamp>,
    pub description: String,
    pub authenticates: bool,
    /// Besides `system:bootstrappers`.
    pub groups: Vec<String>,
    /// How many nodes may join with it; `None`: any number.
    pub uses: Option<u32>,
    pub used_by: Vec<Use>,
    /// The only node that may join with it.
    pub node_name: String,
    /// Labels that the node gets.
    pub node_labels: BTreeMap<String, String>,
}

/// The name of the Secret of a token.
pub fn secret_name(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// The id in the name of such a user.
pub fn id_of_user(user: &str) -> Option<&str> {
    user.strip_prefix(USER_PREFIX)
}

pub fn user_name(id: &str) -> String {
    format!("{USER_PREFIX}{id}")
}

impl BootstrapToken {
    /// A new one for nodes.
    pub fn for_nodes(id: &str, secret: &str) -> Self {
        Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            authenticates: true,
            groups: vec![GROUP.to_owned()],
            ..Self::default()
        }
    }

    /// Reads the Secret.
    pub fn of(object: &Object) -> Result<Self, Refusal> {
        let text = |key: &str| {
            let encoded = object.str_at(&["data", key]);
            let bytes = STANDARD.decode(encoded).map_err(|_| Refusal::Malformed)?;
            String::from_utf8(bytes).map_err(|_| Refusal::Malformed)
        };
        let id = text(ID)?;
        if object.str_at(&["type"]) != SECRET_TYPE || id.is_empty() || object.name() != secret_name(&id) {
            return Err(Refusal::Malformed);
        }
        let expires = match text(EXPIRATION)?.as_str() {
            "" => None,
            at => Some(at.parse().map_err(|_| Refusal::Malformed)?),
        };
        let uses = match text(USES)?.as_str() {
            "" => None,
            count => Some(count.parse().map_err(|_| Refusal::Malformed)?),
        };
        let groups = text(GROUPS)?;
        let groups: Vec<String> =
            groups.split(',').map(str::trim).filter(|group| !group.is_empty()).map(str::to_owned).collect();
        if !groups.iter().all(|group| is_extra_group(group)) {
            return Err(Refusal::Malformed);
        }
        let split = |entry: &str| entry.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let used_by = text(USED_BY)?;
        Ok(Self {
            secret: text(SECRET)?,
            expires,
            description: text(DESCRIPTION)?,
            authenticates: text(AUTHENTICATES)? == "true",
            groups,
            uses,
            used_by: used_by.lines().filter_map(split).map(|(node, request)| Use { node, request }).collect(),
            node_name: text(NODE_NAME)?,
            node_labels: text(NODE_LABELS)?.split(',').filter_map(split).collect(),
            id,
        })
    }

    /// The Secret's data, as `stringData` takes it.
    fn fields(&self) -> Map<String, Value> {
        let used_by: Vec<String> = self.used_by.iter().map(|one| format!("{}={}", one.node, one.request)).collect();
        let labels: Vec<String> = self.node_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let all = [
            (ID, self.id.clone()),
            (SECRET, self.secret.clone()),
            (EXPIRATION, self.expires.map(rfc3339).unwrap_or_default()),
            (DESCRIPTION, self.description.clone()),
            (AUTHENTICATES, self.authenticates.to_string()),
            (GROUPS, self.groups.join(",")),
            (USES, self.uses.map(|count| count.to_string()).unwrap_or_default()),
            (USED_BY, used_by.join("\n")),
            (NODE_NAME, self.node_name.clone()),
            (NODE_LABELS, labels.join(",")),
        ];
        let filled = all.into_iter().filter(|(_, value)| !value.is_empty());
        filled.map(|(key, value)| (key.to_owned(), Value::from(STANDARD.encode(value)))).collect()
    }

    /// The Secret to create.
    pub fn object(&self) -> Object {
        json!({"apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE, "data": self.fields(),
            "metadata": {"name": secret_name(&self.id), "namespace": NAMESPACE}})
    }

    /// Whether somebody who shows `secret` now is who the token was made for.
    pub fn check(&self, secret: &str, now: Timestamp) -> Result<(), Refusal> {
        // Digests are compared: how long that takes says nothing about the secret.
        if self.secret.is_empty() || Sha256::digest(secret) != Sha256::digest(&self.secret) {
            return Err(Refusal::Secret);
        }
        if self.is_expired(now) {
            return Err(Refusal::Expired);
        }
        if self.authenticates { Ok(()) } else { Err(Refusal::Usage) }
    }

    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| now >= at)
    }

    /// How many nodes may still join with it.
    pub fn uses_left(&self) -> Option<usize> {
        self.uses.map(|uses| usize::try_from(uses).unwrap_or(usize::MAX).saturating_sub(self.used_by.len()))
    }

    pub fn user_name(&self) -> String {
        user_name(&self.id)
    }

    /// The groups of who shows it. A used-up token of ours only lets its owner fetch what was granted.
    pub fn user_groups(&self) -> Vec<String> {
        if self.uses_left() == Some(0) {
            return vec![USED_GROUP.to_owned()];
        }
        [BOOTSTRAPPERS.to_owned()].into_iter().chain(self.groups.iter().cloned()).collect()
    }

    /// The Secret with one more use written down; `None` when the request has its use already or none is counted.
    pub fn with_use(&self, secret: &Object, node: &str, request: &str) -> Result<Option<Object>, Refusal> {
        if self.uses.is_none() || self.used_by.iter().any(|one| one.request == request) {
            return Ok(None);
        }
        if self.uses_left() == Some(0) {
            return Err(Refusal::UsedUp);
        }
        let mut used = self.clone();
        used.used_by.push(Use { node: node.to_owned(), request: request.to_owned() });
        let mut object = secret.clone();
        object.set(&["data"], Value::Object(used.fields()));
        Ok(Some(object))
    }
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let is_end = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= EXTRA_GROUP_LIMIT + 1
        && rest.as_bytes().last().is_some_and(is_end)
        && rest.bytes().all(|byte| is_end(&byte) || byte == b':' || byte == b'-')
        // Ours alone say that a token is used up.
        && group != USED_GROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn token() -> BootstrapToken {
        BootstrapToken {
            expires: Some(at("2026-11-24T00:00:00Z")),
            uses: Some(2),
            node_labels: [("zone".to_owned(), "a".to_owned())].into(),
            ..BootstrapToken::for_nodes("abcdef", "0123456789abcdef")
        }
    }

    #[test]
    fn the_secret_says_what_the_token_says() {
        let read = BootstrapToken::of(&token().object()).unwrap();
        assert_eq!((read.id.as_str(), read.uses, read.expires), ("abcdef", Some(2), token().expires));
        assert_eq!(read.node_labels, token().node_labels);
        assert_eq!(read.user_groups(), ["system:bootstrappers", GROUP]);
        assert_eq!(read.user_name(), "system:bootstrap:abcdef");
    }

    #[test]
    fn tokens_are_refused_for_a_reason() {
        let now = at("2026-11-23T00:00:00Z");
        let cases = [
            (token(), "0123456789abcdef", now, Ok(())),
            (token(), "0123456789abcdeg", now, Err(Refusal::Secret)),
            (token(), "", now, Err(Refusal::Secret)),
            (token(), "0123456789abcdef", at("2026-11-24T00:00:00Z"), Err(Refusal::Expired)),
            (BootstrapToken { authenticates: false, ..token() }, "0123456789abcdef", now, Err(Refusal::Usage)),
        ];
        for (token, secret, now, expected) in cases {
            assert_eq!(token.check(secret, now), expected);
        }
        let mut other = token().object();
        other.set(&["metadata", "name"], "bootstrap-token-other1".into());
        assert_eq!(BootstrapToken::of(&other).err(), Some(Refusal::Malformed));
        let masters = BootstrapToken { groups: vec!["system:masters".into()], ..token() };
        assert_eq!(BootstrapToken::of(&masters.object()).err(), Some(Refusal::Malformed));
    }

    #[test]
    fn each_request_takes_one_use() {
        let first = token().with_use(&token().object(), "one", "u1").unwrap().unwrap();
        let used = BootstrapToken::of(&first).unwrap();
        assert_eq!(used.uses_left(), Some(1));
        assert!(used.with_use(&first, "one", "u1").unwrap().is_none(), "looked at twice");
        let second = used.with_use(&first, "two", "u2").unwrap().unwrap();
        let used = BootstrapToken::of(&second).unwrap();
        assert_eq!(used.with_use(&second, "three", "u3").err(), Some(Refusal::UsedUp));
        assert_eq!(used.user_groups(), [USED_GROUP]);
        let unlimited = BootstrapToken { uses: None, ..token() };
        assert!(unlimited.with_use(&unlimited.object(), "one", "u1").unwrap().is_none());
    }
}
