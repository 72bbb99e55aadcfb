//! `serviceaccounts/token`: a token for an account, bound to an audience and perhaps to a pod, node or Secret.

use super::update::Target;
use super::{Registry, meta};
use crate::api::kinds::KindRef;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::clock;
use crate::pki::Pki;
use crate::pki::token::{Bound, Grant, Reference};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const DEFAULT_LIFETIME_S: i64 = 3600;
const SHORTEST_LIFETIME_S: i64 = 600;
const LONGEST_LIFETIME_S: i64 = 1 << 32;
/// What kubelets ask for when the pod does not say: such tokens live on for a year, in case the pod does
/// not read its file again or the board is away; what is past the hour is only warned of. Tokens for others end
/// when they say: nobody there would warn.
const PROJECTED_LIFETIME_S: i64 = 3607;
const EXTENDED_LIFETIME_S: i64 = 365 * 24 * 3600;

impl Registry {
    /// Tokens can be asked for once their signer is known.
    pub fn issue_tokens_with(&self, pki: Pki) {
        // The first one stays: one process has one cluster.
        let _ = self.token_issuer.set(pki);
    }

    pub(super) async fn issue_token(&self, target: Target<'_>, mut request: Object) -> Result<Object> {
        let pki = self.token_issuer.get().ok_or_else(|| Status::unavailable("no tokens are issued here"))?;
        let account = self.object(target.kind, target.namespace, target.name).await?;
        check_names(target, &request)?;
        let lifetime_s = request.int_at(&["spec", "expirationSeconds"]).unwrap_or(DEFAULT_LIFETIME_S);
        check_lifetime(lifetime_s)?;
        let audiences = audiences(&request, pki.token_key().issuer());
        let mut bound =
            Bound { namespace: target.namespace.to_owned(), serviceaccount: reference(&account), ..Bound::default() };
        self.bind_token(target, &request, &mut bound).await?;
        let now = self.clock.now();
        let ours = audiences.iter().all(|audience| audience == pki.token_key().issuer());
        let extended = bound.pod.is_some() && ours && lifetime_s == PROJECTED_LIFETIME_S;
        bound.warnafter = extended.then(|| now.as_second() + lifetime_s);
        let grant = Grant {
            audiences: audiences.clone(),
            lifetime_s: if extended { EXTENDED_LIFETIME_S } else { lifetime_s },
            id: meta::new_uid(),
            bound,
        };
        let (token, _) = pki.token_key().sign(grant, now);
        answer(&mut request, &account, target.namespace, &audiences, lifetime_s, now, &token);
        Ok(request)
    }

    async fn object(&self, kind: &crate::api::kinds::Kind, namespace: &str, name: &str) -> Result<Object> {
        let entry = self.get(kind, namespace, name).await?;
        serde_json::from_slice(&entry.bytes).map_err(Status::internal)
    }

    fn core_kind(&self, plural: &str) -> Result<KindRef> {
        self.kinds.resource("", "v1", plural).ok_or_else(Status::page_not_found)
    }

    /// The object the token is to die with.
    async fn bind_token(&self, target: Target<'_>, request: &Object, bound: &mut Bound) -> Result<()> {
        let Some(wanted) = request.at(&["spec", "boundObjectRef"]).filter(|value| !value.is_null()) else {
            return Ok(());
        };
        let (api_version, kind, name) = (wanted.api_version(), wanted.kind(), wanted.str_at(&["name"]));
        let (plural, namespace) = match (api_version, kind) {
            ("v1", "Pod") => ("pods", target.namespace),
            ("v1", "Secret") => ("secrets", target.namespace),
            ("v1", "Node") => ("nodes", ""),
            _ => {
                let what = format!("cannot bind token to object of type {api_version}, Kind={kind}");
                return Err(Status::bad_request(what));
            }
        };
        let object = self.object(&*self.core_kind(plural)?, namespace, name).await?;
        let found = reference(&object);
        let uid = wanted.str_at(&["uid"]);
        if !uid.is_empty() && uid != found.uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(Subject { group: "", kind: plural, name }, &why));
        }
        match plural {
            "pods" => self.bind_to_pod(target, &object, found, bound).await,
            "secrets" => {
                bound.secret = Some(found);
                Ok(())
            }
            _ => {
                bound.node = Some(found);
                Ok(())
            }
        }
    }

    async fn bind_to_pod(&self, target: Target<'_>, pod: &Object, found: Reference, bound: &mut Bound) -> Result<()> {
        if pod.str_at(&["spec", "serviceAccountName"]) != target.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                target.name
            )));
        }
        bound.pod = Some(found);
        let node = pod.str_at(&["spec", "nodeName"]);
        if !node.is_empty() {
            let uid = self.object(&*self.core_kind("nodes")?, "", node).await.map(|node| node.uid().to_owned());
            bound.node = Some(Reference { name: node.to_owned(), uid: uid.unwrap_or_default() });
        }
        Ok(())
    }
}

fn reference(object: &Object) -> Reference {
    Reference { name: object.name().to_owned(), uid: object.uid().to_owned() }
}

fn check_names(target: Target, request: &Object) -> Result<()> {
    for (given, of_path, what) in
        [(request.name(), target.name, "name"), (request.namespace(), target.namespace, "namespace")]
    {
        if !given.is_empty() && given != of_path {
            let why =
                format!("the {what} of the token request ({given}) does not match the {what} on the URL ({of_path})");
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

fn check_lifetime(lifetime_s: i64) -> Result<()> {
    let detail = if lifetime_s < SHORTEST_LIFETIME_S {
        "may not specify a duration less than 10 minutes"
    } else if lifetime_s > LONGEST_LIFETIME_S {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let subject = Subject { group: "authentication.k8s.io", kind: "TokenRequest", name: "" };
    Err(Status::invalid(subject, vec![FieldError::invalid("spec.expirationSeconds", lifetime_s, detail)]))
}

fn audiences(request: &Object, issuer: &str) -> Vec<String> {
    let asked = request.at(&["spec", "audiences"]).and_then(Value::as_array);
    let asked: Vec<String> = asked.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if asked.is_empty() { vec![issuer.to_owned()] } else { asked }
}

fn answer(
    request: &mut Object,
    account: &Object,
    namespace: &str,
    audiences: &[String],
    lifetime_s: i64,
    now: Timestamp,
    token: &str,
) {
    request.set(&["metadata"], json!({
        "name": account.name(), "namespace": namespace, "uid": account.uid(), "creationTimestamp": clock::rfc3339(now),
    }));
    request.set(&["spec", "audiences"], json!(audiences));
    request.set(&["spec", "expirationSeconds"], lifetime_s.into());
    if request.at(&["spec", "boundObjectRef"]).is_none() {
        request.set(&["spec", "boundObjectRef"], Value::Null);
    }
    let ends = now.saturating_add(SignedDuration::from_secs(lifetime_s)).unwrap_or(Timestamp::MAX);
    request.set(&["status"], json!({ "token": token, "expirationTimestamp": clock::rfc3339(ends) }));
}
