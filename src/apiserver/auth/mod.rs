//! Who asks and what they may: client certificates, ServiceAccount tokens, impersonation, RBAC.
//! Each filter is a question with one answer; their order is `ApiServer::admit`'s.

mod authenticate;
pub mod escalation;
mod impersonate;
mod joining;
mod node;
pub mod rbac;
mod refusals;
pub mod reviews;

use super::request_info::RequestInfo;
use crate::api::status::{Result, Status, Subject};
use crate::clock::Clock;
use crate::pki::Pki;
use crate::pki::certificate::{key_hash, validity};
use crate::pki::node_key::NODES_GROUP;
use crate::pki::trust::Trust;
use crate::registry::{Registry, User};
use authenticate::TokenCache;
use jiff::Timestamp;
use node::NodeAuthorizer;
use rbac::{Access, Attributes, Rbac};
use refusals::Refusals;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::sync::Arc;

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// What the connection says about its other end.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    user: Option<Arc<User>>,
    certificate: Option<Arc<PeerCertificate>>,
}

/// A client certificate, as TLS has verified it but for its dates.
#[derive(Debug)]
struct PeerCertificate {
    user: User,
    not_before: Timestamp,
    not_after: Timestamp,
    /// The hashes of its own key and of the key that signed it.
    key_hash: [u8; 32],
    authority: [u8; 32],
}

impl Peer {
    /// `certificates`: as verified by TLS, the client's own first.
    pub fn from_certificates(certificates: Option<&[CertificateDer]>, trust: &Trust) -> Self {
        let certificate = certificates.and_then(<[_]>::first).and_then(|first| PeerCertificate::of(first, trust));
        Self { user: None, certificate: certificate.map(Arc::new) }
    }

    /// Whether the certificate is a node's, expired or not.
    pub fn is_node(&self) -> bool {
        self.certificate
            .as_ref()
            .is_some_and(|certificate| certificate.user.groups.iter().any(|one| one == NODES_GROUP))
    }

    /// A connection of this user, for callers in the same process.
    pub fn of(user: User) -> Self {
        Self { user: Some(Arc::new(user)), certificate: None }
    }
}

impl PeerCertificate {
    fn of(certificate: &CertificateDer, trust: &Trust) -> Option<Self> {
        let (not_before, not_after) = validity(certificate)?;
        let authority = trust.all().find(|authority| authority.has_signed(certificate))?;
        let user = user_of_certificate(certificate)?;
        let (key_hash, authority) = (key_hash(certificate)?, *authority.key_hash());
        Some(Self { user, not_before, not_after, key_hash, authority })
    }
}

fn user_of_certificate(certificate: &CertificateDer) -> Option<User> {
    let (name, mut groups) = crate::pki::certificate::identity(certificate)?;
    let digest = crate::pki::hex(&Sha256::digest(certificate));
    groups.push(AUTHENTICATED.into());
    let extra = vec![(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")])];
    (!name.is_empty()).then_some(User { name, groups, extra, ..User::default() })
}

/// Authentication and authorization of one server.
pub struct Auth {
    registry: Arc<Registry>,
    pki: Pki,
    clock: Clock,
    anonymous: bool,
    tokens: TokenCache,
    rbac: Arc<Rbac>,
    nodes: NodeAuthorizer,
    refusals: Refusals,
}

impl Auth {
    pub fn new(registry: Arc<Registry>, pki: Pki, clock: Clock, anonymous: bool) -> Self {
        let rbac = Arc::new(Rbac::new(registry.store.clone()));
        let nodes = NodeAuthorizer::new(registry.store.clone());
        let refusals = Refusals::new(clock.clone());
        Self { registry, pki, clock, anonymous, tokens: TokenCache::default(), rbac, nodes, refusals }
    }

    /// The roles alone, for questions of admission.
    pub fn roles(&self) -> Arc<Rbac> {
        self.rbac.clone()
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Whether `user` may do this.
    pub async fn access(&self, user: &User, attributes: &Attributes<'_>) -> Access {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Access::allowed();
        }
        if let Some(access) = self.joining(user, attributes).await {
            return access;
        }
        let Some(node) = node::node_of(user) else { return self.rbac.access(user, attributes).await };
        let access = self.nodes.access(node, attributes, &self.rbac).await;
        // What a node may not as a node it may still as anybody.
        if access.allowed || !self.rbac.access(user, attributes).await.allowed {
            if !access.allowed {
                let Attributes { verb, resource, namespace, name, .. } = *attributes;
                let what = format!("{verb} {resource} {namespace}/{name}: {}", access.reason);
                self.refusals.log("node", node, &what);
            }
            return access;
        }
        Access::allowed()
    }

    pub async fn rules_of(&self, user: &User, namespace: &str) -> rbac::RuleList {
        self.rbac.rules_of(user, namespace).await
    }

    /// As `authorize`, for the request itself.
    pub async fn authorize_request(&self, user: &User, info: &RequestInfo) -> Result<()> {
        self.authorize(user, info).await
    }

    pub async fn authorize(&self, user: &User, info: &RequestInfo) -> Result<()> {
        let attributes = info.attributes();
        let access = self.access(user, &attributes).await;
        if access.allowed { Ok(()) } else { Err(refusal(user, &attributes, &access.reason)) }
    }
}

/// The 403 in upstream's words.
pub fn refusal(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let Attributes { verb, group, resource, subresource, namespace, name, path, .. } = *attributes;
    if !attributes.is_resource {
        let text = format!("forbidden: User {:?} cannot {verb} path {path:?}{}", user.name, suffix(reason));
        let mut status = Status::new(403, "Forbidden", text);
        status.details = Some(Box::default());
        return status;
    }
    let what = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let text = format!("User {:?} cannot {verb} resource {what:?} in API group {group:?} {scope}", user.name);
    Status::forbidden(Subject { group, kind: resource, name }, &format!("{text}{}", suffix(reason)))
}

fn suffix(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl RequestInfo {
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes {
            is_resource: self.is_resource,
            verb: self.verb,
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: &self.path,
            field_selector: &self.field_selector,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_upstreams_words() {
        let bob = User { name: "bob".into(), ..User::default() };
        let list = Attributes {
            is_resource: true,
            verb: "list",
            resource: "configmaps",
            namespace: "g1",
            ..Attributes::default()
        };
        let cases = [
            (
                list,
                r#"configmaps is forbidden: User "bob" cannot list resource "configmaps" in API group "" in the namespace "g1""#,
            ),
            (
                Attributes { verb: "get", name: "a", ..list },
                r#"configmaps "a" is forbidden: User "bob" cannot get resource "configmaps" in API group "" in the namespace "g1""#,
            ),
            (
                Attributes { resource: "nodes", namespace: "", ..list },
                r#"nodes is forbidden: User "bob" cannot list resource "nodes" in API group "" at the cluster scope"#,
            ),
            (
                Attributes { group: "apps", resource: "deployments", ..list },
                r#"deployments.apps is forbidden: User "bob" cannot list resource "deployments" in API group "apps" in the namespace "g1""#,
            ),
            (
                Attributes { is_resource: false, verb: "get", path: "/metrics", ..Attributes::default() },
                r#"forbidden: User "bob" cannot get path "/metrics""#,
            ),
        ];
        for (attributes, message) in cases {
            assert_eq!(refusal(&bob, &attributes, "").message, message);
        }
    }
}
