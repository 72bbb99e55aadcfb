//! Which key belongs to which node: Secret `kube-system/NAME.node-key`, written when a node's first certificate is
//! granted. A name stays its key's until an administrator forgets the node. Pure.

use super::hex;
use crate::api::object::{Object, ObjectExt};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const NAMESPACE: &str = "kube-system";
pub const SECRET_TYPE: &str = "edgelet.io/node-key";
/// What certificates of nodes say.
pub const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";
/// Nodes that show a certificate of ours whose only fault is its date.
pub const EXPIRED_GROUP: &str = "edgelet:expired-nodes";
const EXPIRED_PREFIX: &str = "system:edgelet:expired-node:";
const SUFFIX: &str = ".node-key";
const HASH: &str = "spki-sha256";
const LABELS: &str = "labels";

/// The name of the Secret of a node.
pub fn secret_name(node: &str) -> String {
    format!("{node}{SUFFIX}")
}

/// The node's name in a user or common name like `system:node:NAME`.
pub fn node_of_user(user: &str) -> Option<&str> {
    user.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty())
}

/// As `node_of_user`, for a user of a certificate that has expired.
pub fn node_of_expired_user(user: &str) -> Option<&str> {
    user.strip_prefix(EXPIRED_PREFIX).filter(|name| !name.is_empty())
}

pub fn expired_user(node: &str) -> String {
    format!("{EXPIRED_PREFIX}{node}")
}

/// What is on record of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeKey {
    /// SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.
    pub hash: String,
    /// Labels the node gets when it registers: those of the token it joined with.
    pub labels: BTreeMap<String, String>,
}

impl NodeKey {
    pub fn new(hash: &[u8; 32], labels: BTreeMap<String, String>) -> Self {
        Self { hash: hex(hash), labels }
    }

    pub fn is(&self, hash: &[u8; 32]) -> bool {
        self.hash == hex(hash)
    }

    /// Reads the Secret; a malformed one knows no key, so that nobody has it.
    pub fn of(object: &Object) -> Self {
        let text = |key: &str| {
            let bytes = STANDARD.decode(object.str_at(&["data", key])).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        Self { hash: text(HASH), labels: serde_json::from_str(&text(LABELS)).unwrap_or_default() }
    }

    /// The Secret to create.
    pub fn object(&self, node: &str) -> Object {
        let mut object = json!({"apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
            "metadata": {"name": secret_name(node), "namespace": NAMESPACE},
            "data": {HASH: STANDARD.encode(&self.hash)}});
        if !self.labels.is_empty() {
            let labels = serde_json::to_vec(&self.labels).expect("texts encode");
            object.set(&["data", LABELS], Value::from(STANDARD.encode(labels)));
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_being_stored() {
        let key = NodeKey::new(&[7; 32], [("zone".to_owned(), "a".to_owned())].into());
        let read = NodeKey::of(&key.object("one"));
        assert_eq!(read, key);
        assert!(read.is(&[7; 32]) && !read.is(&[8; 32]));
        assert!(!NodeKey::of(&json!({})).is(&[0; 32]));
    }

    #[test]
    fn users_name_their_node() {
        assert_eq!(node_of_user("system:node:one"), Some("one"));
        assert_eq!(node_of_user("system:node:"), None);
        assert_eq!(node_of_expired_user(&expired_user("one")), Some("one"));
        assert_eq!(node_of_user(&expired_user("one")), None);
    }
}
