//! What is signed: approved requests of the three signers of upstream that this cluster's authority stands for, each
//! with its own rules of what a certificate may say. Pure. Source: upstream's certificate signer (behaviour).

use crate::api::object::{Object, ObjectExt};
use crate::api::validation::check::list;
use crate::pki::node_key;
use crate::pki::request::SigningRequest;
use jiff::SignedDuration;
use serde_json::Value;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// When the request names no duration.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * crate::pki::certificate::LEAF_DAYS as i64);
const LONGEST_LIFETIME_S: i64 = i64::MAX / 2;

/// What to sign.
#[derive(Debug, PartialEq, Eq)]
pub struct Order<'a> {
    signer: &'a str,
    pub usages: Vec<&'a str>,
    pub lifetime: SignedDuration,
}

/// Whether a condition of this type is there.
pub fn has(request: &Object, kind: &str) -> bool {
    let conditions = request.get("status").map(|status| list(status, "conditions")).unwrap_or_default();
    conditions.iter().any(|one| one.str_at(&["type"]) == kind && one.str_at(&["status"]) != "False")
}

pub fn usages(request: &Object) -> Vec<&str> {
    let listed = request.get("spec").map(|spec| list(spec, "usages")).unwrap_or_default();
    listed.iter().filter_map(Value::as_str).collect()
}

/// The order in an approved request that has no answer yet.
pub fn order(request: &Object) -> Option<Order<'_>> {
    let signer = request.str_at(&["spec", "signerName"]);
    let is_ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&signer);
    let is_answered = !request.str_at(&["status", "certificate"]).is_empty() || has(request, "Failed");
    if !is_ours || is_answered || !has(request, "Approved") || has(request, "Denied") {
        return None;
    }
    let seconds = request.int_at(&["spec", "expirationSeconds"]).filter(|seconds| *seconds > 0);
    let asked = seconds.map(|seconds| SignedDuration::from_secs(seconds.min(LONGEST_LIFETIME_S)));
    Some(Order { signer, usages: usages(request), lifetime: asked.unwrap_or(LIFETIME).min(LIFETIME) })
}

impl Order<'_> {
    /// The request to sign, or why it may not be.
    pub fn check<'a>(&self, parsed: Result<&'a SigningRequest, &String>) -> Result<&'a SigningRequest, String> {
        let parsed = parsed.map_err(|error| format!("unable to parse csr {error}"))?;
        match self.signer {
            KUBELET_CLIENT => check_node_client(parsed, &self.usages)?,
            KUBELET_SERVING => check_node_serving(parsed, &self.usages)?,
            _ => check_client(&self.usages)?,
        }
        Ok(parsed)
    }

    /// The node that the certificate lets act.
    pub fn node<'a>(&self, parsed: &'a SigningRequest) -> Option<&'a str> {
        node_key::node_of_user(&parsed.common_name).filter(|_| self.signer == KUBELET_CLIENT)
    }
}

fn check_subject(parsed: &SigningRequest) -> Result<(), String> {
    if parsed.organizations != [node_key::NODES_GROUP] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    if node_key::node_of_user(&parsed.common_name).is_none() {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    Ok(())
}

/// All of `required`, and none but these and `also`.
fn check_usages(usages: &[&str], required: &[&str], also: &[&str]) -> Result<(), String> {
    let missing = required.iter().any(|usage| !usages.contains(usage));
    let beyond = usages.iter().any(|usage| !required.contains(usage) && !also.contains(usage));
    if missing || beyond { Err(format!("usages did not match [{}]", required.join(" "))) } else { Ok(()) }
}

fn check_none<T>(names: &[T], what: &str) -> Result<(), String> {
    if names.is_empty() { Ok(()) } else { Err(format!("{what} subjectAltNames are not allowed")) }
}

pub fn check_node_client(parsed: &SigningRequest, usages: &[&str]) -> Result<(), String> {
    check_subject(parsed)?;
    check_none(&parsed.dns_names, "DNS")?;
    check_none(&parsed.emails, "Email")?;
    check_none(&parsed.ips, "IP")?;
    check_none(&parsed.uris, "URI")?;
    check_usages(usages, &["client auth", "digital signature"], &["key encipherment"])
}

fn check_node_serving(parsed: &SigningRequest, usages: &[&str]) -> Result<(), String> {
    check_subject(parsed)?;
    if parsed.dns_names.is_empty() && parsed.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    check_none(&parsed.emails, "Email")?;
    check_none(&parsed.uris, "URI")?;
    check_usages(usages, &["server auth", "digital signature"], &["key encipherment"])
}

fn check_client(usages: &[&str]) -> Result<(), String> {
    check_usages(usages, &["client auth"], &["digital signature", "key encipherment"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(signer: &str, conditions: &[&str]) -> Object {
        let conditions: Vec<Value> = conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        json!({"spec": {"signerName": signer, "usages": ["client auth"], "expirationSeconds": 600},
            "status": {"conditions": conditions}})
    }

    #[test]
    fn only_what_is_approved_and_unanswered_is_signed() {
        let cases = [
            (request(CLIENT, &["Approved"]), true),
            (request(CLIENT, &[]), false),
            (request(CLIENT, &["Denied"]), false),
            (request(CLIENT, &["Approved", "Failed"]), false),
            (request("example.com/own", &["Approved"]), false),
        ];
        for (request, expected) in cases {
            assert_eq!(order(&request).is_some(), expected, "{request}");
        }
        let asked = request(CLIENT, &["Approved"]);
        assert_eq!(order(&asked).unwrap().lifetime, SignedDuration::from_secs(600));
        let mut long = asked;
        long["spec"]["expirationSeconds"] = json!(i64::from(i32::MAX));
        assert_eq!(order(&long).unwrap().lifetime, LIFETIME);
    }

    #[test]
    fn each_signer_has_its_rules() {
        let node = SigningRequest {
            common_name: "system:node:one".into(),
            organizations: vec!["system:nodes".into()],
            ..SigningRequest::default()
        };
        let named = SigningRequest { dns_names: vec!["one".into()], ..node.clone() };
        let stranger = SigningRequest { common_name: "one".into(), ..node.clone() };
        let client = ["client auth", "digital signature"];
        let cases = [
            (check_node_client(&node, &client), ""),
            (check_node_client(&node, &["client auth"]), "usages did not match [client auth digital signature]"),
            (check_node_client(&node, &["client auth", "digital signature", "any"]), "usages did not match"),
            (check_node_client(&named, &client), "DNS subjectAltNames are not allowed"),
            (check_node_client(&stranger, &client), "subject common name does not begin with system:node:"),
            (check_node_serving(&node, &["server auth", "digital signature"]), "DNS or IP subjectAltName is required"),
            (check_node_serving(&named, &["server auth", "digital signature", "key encipherment"]), ""),
            (check_client(&["client auth"]), ""),
            (check_client(&["server auth"]), "usages did not match [client auth]"),
        ];
        for (verdict, expected) in cases {
            let got = verdict.err().unwrap_or_default();
            assert!(got.starts_with(expected) && got.is_empty() == expected.is_empty(), "{got}");
        }
    }
}
