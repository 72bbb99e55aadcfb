//! Who may ask for which certificate, approve it and sign it. Upstream's CertificateApproval, CertificateSigning and
//! CertificateSubjectRestriction, and the requester's identity, which upstream's strategy writes.

use super::{Operation, Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::pki::request::SigningRequest;
use crate::pki::{bootstrap, node_key};
use crate::registry::{Permission, Registry};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde_json::{Map, Value, json};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const MASTERS: &str = "system:masters";
const PREFIX: &str = "certificatesigningrequests.certificates.k8s.io/";
/// Requests kept at once, so that a board with a token cannot fill the disk; answered ones go within the hour.
const REQUESTS_LIMIT: u64 = 2_000;
const RETRY_AFTER_S: u32 = 60;

/// Boards that have not joined (yet, or any more).
fn is_joining(request: &Request) -> bool {
    let groups = &request.context.user.groups;
    groups.iter().any(|group| group == bootstrap::GROUP || group == node_key::EXPIRED_GROUP)
}

fn is_master(request: &Request) -> bool {
    request.context.user.groups.iter().any(|group| group == MASTERS)
}

fn is_request(request: &Request) -> bool {
    request.kind.group == GROUP && request.kind.plural == "certificatesigningrequests"
}

/// Writes down who asks; nobody asks in another's name.
pub struct CertificateRequester;

impl Plugin for CertificateRequester {
    fn handles(&self, request: &Request) -> bool {
        is_request(request) && request.operation == Operation::Create
    }

    fn admit<'a>(
        &'a self,
        _registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        let user = &request.context.user;
        let extra: Map<String, Value> = user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
        let identity = [
            ("username", json!(user.name), user.name.is_empty()),
            ("uid", json!(user.uid), user.uid.is_empty()),
            ("groups", json!(user.groups), user.groups.is_empty()),
            ("extra", Value::Object(extra.clone()), extra.is_empty()),
        ];
        for (field, value, is_empty) in identity {
            match is_empty {
                true => drop(object.unset(&["spec", field])),
                false => object.set(&["spec", field], value),
            }
        }
        ready(Ok(())).boxed()
    }
}

/// Approving or denying needs `approve` on the signer.
pub struct CertificateApproval;

impl Plugin for CertificateApproval {
    fn handles(&self, request: &Request) -> bool {
        is_request(request) && request.operation == Operation::Update && request.subresource == "approval"
    }

    fn validate<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let signer = object.str_at(&["spec", "signerName"]);
            if may_use(registry, request, "approve", signer).await {
                return Ok(());
            }
            Err(request.forbidden(&format!("user not permitted to approve requests with signerName {signer:?}")))
        }
        .boxed()
    }
}

/// Signing, or saying that it failed, needs `sign` on the signer.
pub struct CertificateSigning;

impl Plugin for CertificateSigning {
    fn handles(&self, request: &Request) -> bool {
        is_request(request) && request.operation == Operation::Update && request.subresource == "status"
    }

    fn validate<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let signs = request.old.is_none_or(|old| {
                old.at(&["status", "certificate"]) != object.at(&["status", "certificate"])
                    || old.at(&["status", "conditions"]) != object.at(&["status", "conditions"])
            });
            let signer = object.str_at(&["spec", "signerName"]);
            if !signs || may_use(registry, request, "sign", signer).await {
                return Ok(());
            }
            Err(request.forbidden(&format!("user not permitted to sign requests with signerName {signer:?}")))
        }
        .boxed()
    }
}

/// `signers` by name, or all of a domain: `example.com/*`.
async fn may_use(registry: &Registry, request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let of_domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    for name in [signer, &of_domain] {
        let permission = Permission { verb, group: GROUP, resource: "signers", name };
        if registry.may(&request.context.user, &permission).await {
            return true;
        }
    }
    false
}

/// Nobody becomes a master by a certificate; boards on their way in ask for a node's alone, and not without end.
pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn handles(&self, request: &Request) -> bool {
        is_request(request) && request.operation == Operation::Create
    }

    fn validate<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        object: &'a Object,
    ) -> BoxFuture<'a, Result<()>> {
        let judge = move || {
            if is_joining(request) && object.str_at(&["spec", "signerName"]) != KUBELET_SIGNER {
                let why = format!("a board that has not joined may only use signer {KUBELET_SIGNER}");
                return Err(request.forbidden(&why));
            }
            if object.str_at(&["spec", "signerName"]) != CLIENT_SIGNER {
                return Ok(());
            }
            let pem = STANDARD.decode(object.str_at(&["spec", "request"])).unwrap_or_default();
            let parsed = SigningRequest::parse_unchecked(&pem)
                .map_err(|error| request.forbidden(&format!("unable to parse csr: {error}")))?;
            if parsed.organizations.iter().any(|group| group == MASTERS) {
                let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
                return Err(request.forbidden(&why));
            }
            Ok(())
        };
        async move {
            judge()?;
            if is_master(request) {
                return Ok(());
            }
            let page = registry.store.list(PREFIX, "", 1, None).await.map_err(Status::internal)?;
            if page.remaining < REQUESTS_LIMIT {
                return Ok(());
            }
            tracing::warn!(user = request.context.user.name, limit = REQUESTS_LIMIT, "too many certificate requests");
            Err(Status::too_many_requests("too many certificate signing requests wait for an answer", RETRY_AFTER_S))
        }
        .boxed()
    }
}
