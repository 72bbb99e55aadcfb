//! Which requests of nodes are granted. Pure: a request, what is on record, and the time.
//! A node's name belongs to the key it was first granted to, until `edgelet node forget`.

use super::sign::{self, KUBELET_CLIENT};
use crate::api::object::{Object, ObjectExt};
use crate::api::validation::check::list;
use crate::pki::bootstrap::{self, BootstrapToken, Refusal};
use crate::pki::node_key::{self, NodeKey};
use crate::pki::request::SigningRequest;
use jiff::Timestamp;
use serde_json::Value;

/// What is on record of the name a request is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub key: Option<NodeKey>,
    /// Whether there is a Node of this name.
    pub is_registered: bool,
}

pub struct Facts<'a> {
    pub request: &'a Object,
    pub parsed: Result<&'a SigningRequest, &'a String>,
    pub known: &'a Known,
    /// The token the request was made with, if it still exists.
    pub token: Option<&'a BootstrapToken>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Somebody else is to approve it.
    NotOurs,
    Approve {
        node: String,
        key: NodeKey,
        why: &'static str,
    },
    Deny(String),
}

/// Who asks, as far as nodes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker<'a> {
    Token,
    Node(&'a str),
    ExpiredNode(&'a str),
}

/// Whether a request is for a node's client certificate and not decided yet.
pub fn is_ours(request: &Object) -> bool {
    request.str_at(&["spec", "signerName"]) == KUBELET_CLIENT
        && !sign::has(request, "Approved")
        && !sign::has(request, "Denied")
        && asker(request).is_some()
}

fn asker(request: &Object) -> Option<Asker<'_>> {
    let spec = request.get("spec")?;
    let user = spec.str_at(&["username"]);
    let is_in = |group: &str| list(spec, "groups").iter().filter_map(Value::as_str).any(|one| one == group);
    if bootstrap::id_of_user(user).is_some() && is_in(bootstrap::GROUP) {
        return Some(Asker::Token);
    }
    if is_in(node_key::EXPIRED_GROUP) {
        return node_key::node_of_expired_user(user).map(Asker::ExpiredNode);
    }
    if is_in(node_key::NODES_GROUP) { node_key::node_of_user(user).map(Asker::Node) } else { None }
}

pub fn other_key(node: &str) -> String {
    format!(
        "node {node:?} is on record with another key; if this is the same board with a new disk, run \
         `edgelet node forget {node}` on the server and join again"
    )
}

pub fn decide(facts: &Facts) -> Decision {
    let Some(asker) = asker(facts.request) else { return Decision::NotOurs };
    let parsed = match facts.parsed {
        Ok(parsed) => parsed,
        Err(why) => return Decision::Deny(why.clone()),
    };
    if let Err(why) = sign::check_node_client(parsed, &sign::usages(facts.request)) {
        return Decision::Deny(why);
    }
    let Some(node) = node_key::node_of_user(&parsed.common_name) else {
        return Decision::Deny("subject common name does not begin with system:node:".to_owned());
    };
    if !crate::api::validation::name::is_subdomain(node) {
        return Decision::Deny(format!("{node:?} is no name for a node: it must be a DNS subdomain in lower case"));
    }
    let granted = match asker {
        Asker::Token => check_token(facts, node).and_then(|labels| {
            let key = NodeKey { labels, ..NodeKey::new(&parsed.key_hash, Default::default()) };
            check_name(facts.known, node, key).map(|key| (key, "the board joins with a token"))
        }),
        Asker::Node(asks) => {
            check_own(facts.known, asks, node, parsed).map(|key| (key, "the node renews its certificate"))
        }
        Asker::ExpiredNode(asks) => {
            check_own(facts.known, asks, node, parsed).map(|key| (key, "the node was away and shows the key on record"))
        }
    };
    match granted {
        Ok((key, why)) => Decision::Approve { node: node.to_owned(), key, why },
        Err(why) => Decision::Deny(why),
    }
}

/// The labels that the token gives.
fn check_token(facts: &Facts, node: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    let token = facts.token.ok_or_else(|| Refusal::Unknown.to_string())?;
    if token.is_expired(facts.now) {
        return Err(Refusal::Expired.to_string());
    }
    let has_use = token.used_by.iter().any(|one| one.request == facts.request.uid());
    if token.uses_left() == Some(0) && !has_use {
        return Err(Refusal::UsedUp.to_string());
    }
    if !token.node_name.is_empty() && token.node_name != node {
        return Err(format!("the token is for node {:?} alone", token.node_name));
    }
    Ok(token.node_labels.clone())
}

/// Whether a board that joins may have the name.
fn check_name(known: &Known, node: &str, key: NodeKey) -> Result<NodeKey, String> {
    match &known.key {
        Some(known) if known.hash == key.hash => Ok(known.clone()),
        Some(_) => Err(other_key(node)),
        None if known.is_registered => Err(format!(
            "the name {node:?} is taken by a node without a key on record, such as the server's own: join with another \
             --node-name; if no board runs as {node:?} any more, run `edgelet node forget {node}` on the server"
        )),
        None => Ok(key),
    }
}

/// Whether a node asks for itself, with the key on record.
fn check_own(known: &Known, asks: &str, node: &str, parsed: &SigningRequest) -> Result<NodeKey, String> {
    if asks != node {
        return Err(format!("node {asks:?} may not ask for a certificate of node {node:?}"));
    }
    match &known.key {
        Some(known) if known.is(&parsed.key_hash) => Ok(known.clone()),
        Some(_) => Err(other_key(node)),
        None => Err(format!("node {node:?} was forgotten: join again with a token")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: &str = "system:node:one";

    fn parsed(common_name: &str, key: u8) -> SigningRequest {
        let organizations = vec!["system:nodes".to_owned()];
        SigningRequest {
            common_name: common_name.into(),
            organizations,
            key_hash: [key; 32],
            ..SigningRequest::default()
        }
    }

    fn request(user: &str, groups: &[&str]) -> Object {
        json!({"metadata": {"name": "r", "uid": "u1"}, "spec": {"signerName": KUBELET_CLIENT, "username": user,
            "groups": groups, "usages": ["client auth", "digital signature"]}})
    }

    fn known(key: Option<u8>, is_registered: bool) -> Known {
        Known { key: key.map(|key| NodeKey::new(&[key; 32], Default::default())), is_registered }
    }

    fn token() -> BootstrapToken {
        BootstrapToken::for_nodes("abcdef", "0123456789abcdef")
    }

    /// `approve`, or the beginning of the refusal.
    fn verdict(request: &Object, parsed: &SigningRequest, known: &Known, token: Option<&BootstrapToken>) -> String {
        let now = "2026-11-23T00:00:00Z".parse().unwrap();
        match decide(&Facts { request, parsed: Ok(parsed), known, token, now }) {
            Decision::NotOurs => "not ours".into(),
            Decision::Approve { .. } => "approve".into(),
            Decision::Deny(why) => why,
        }
    }

    #[test]
    fn tokens_let_new_boards_in_and_no_stranger_takes_a_name() {
        let request = request("system:bootstrap:abcdef", &[bootstrap::GROUP]);
        let used = BootstrapToken { uses: Some(0), ..token() };
        let expired = BootstrapToken { expires: Some("2026-11-22T00:00:00Z".parse().unwrap()), ..token() };
        let other = BootstrapToken { node_name: "two".into(), ..token() };
        let cases = [
            (parsed(NODE, 1), known(None, false), Some(token()), "approve"),
            (parsed(NODE, 1), known(Some(1), true), Some(token()), "approve"),
            (parsed(NODE, 2), known(Some(1), true), Some(token()), "node \"one\" is on record with another key"),
            (parsed(NODE, 1), known(None, true), Some(token()), "the name \"one\" is taken"),
            (parsed(NODE, 1), known(None, false), None, "no such token"),
            (parsed(NODE, 1), known(None, false), Some(used), "the token has no uses left"),
            (parsed(NODE, 1), known(None, false), Some(expired), "the token has expired"),
            (parsed(NODE, 1), known(None, false), Some(other), "the token is for node \"two\" alone"),
            (parsed("system:node:O ne", 1), known(None, false), Some(token()), "\"O ne\" is no name for a node"),
            (parsed("admin", 1), known(None, false), Some(token()), "subject common name does not begin with"),
        ];
        for (parsed, known, token, expected) in cases {
            let got = verdict(&request, &parsed, &known, token.as_ref());
            assert!(got.starts_with(expected), "{got} instead of {expected}");
        }
        let masters = SigningRequest { organizations: vec!["system:masters".into()], ..parsed(NODE, 1) };
        let got = verdict(&request, &masters, &known(None, false), Some(&token()));
        assert_eq!(got, "subject organization is not system:nodes");
    }

    #[test]
    fn nodes_ask_for_themselves_with_the_key_on_record() {
        let cases = [
            ("system:node:one", "system:nodes", 1, Some(1), "approve"),
            ("system:node:two", "system:nodes", 1, Some(1), "node \"two\" may not ask"),
            ("system:node:one", "system:nodes", 2, Some(1), "node \"one\" is on record with another key"),
            ("system:node:one", "system:nodes", 1, None, "node \"one\" was forgotten"),
            ("system:edgelet:expired-node:one", "edgelet:expired-nodes", 1, Some(1), "approve"),
            ("system:edgelet:expired-node:one", "edgelet:expired-nodes", 2, Some(1), "node \"one\" is on record"),
            ("system:edgelet:expired-node:two", "edgelet:expired-nodes", 1, Some(1), "node \"two\" may not ask"),
            ("system:node:one", "dev", 1, Some(1), "not ours"),
            ("admin", "system:masters", 1, Some(1), "not ours"),
        ];
        for (user, group, key, on_record, expected) in cases {
            let got = verdict(&request(user, &[group]), &parsed(NODE, key), &known(on_record, true), None);
            assert!(got.starts_with(expected), "{got} instead of {expected}");
        }
    }
}
