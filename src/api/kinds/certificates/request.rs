//! CertificateSigningRequests: what may be asked for, and who may change which part of the answer.
//! Source: upstream's pkg/apis/certificates validation and strategy (behaviour).

use crate::api::kinds::apps::replicas::{SPEC, reset_status};
use crate::api::kinds::{HookContext, Strategy};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, list, present};
use crate::api::validation::{Path, name};
use crate::clock::rfc3339;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(in crate::api::kinds) struct RequestStrategy;

const SHORTEST_LIFETIME_S: i64 = 600;
const SIGNER_DOMAIN_LIMIT: usize = 253;
const SIGNER_PATH_LIMIT: usize = 571;
const STATUS: Path<'static> = Path::Root("status");
const CONDITIONS: Path<'static> = Path::Root("status.conditions");
/// Conditions that are only ever True, and stay.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for RequestStrategy {
    fn prepare_create(&self, _context: &HookContext, request: &mut Object) {
        reset_status(request, json!({}));
    }

    fn prepare_update(&self, context: &HookContext, new: &mut Object, old: &Object) {
        if let Some(spec) = old.get("spec") {
            new.set(&["spec"], spec.clone());
        }
        if !context.subresource.is_empty() {
            stamp_conditions(new, old, &rfc3339(context.now));
        }
    }

    fn validate_create(&self, _context: &HookContext, request: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = request.get("spec").unwrap_or(&none);
        if let Err(why) = check_request(spec.str_at(&["request"])) {
            errors.push(FieldError::invalid(SPEC.child("request"), spec.str_at(&["request"]), why));
        }
        check_usages(spec, &mut errors);
        check_signer(spec.str_at(&["signerName"]), &SPEC.child("signerName"), &mut errors);
        if spec.str_at(&["signerName"]) == LEGACY_SIGNER {
            let why = "the legacy signerName is not allowed via this API version";
            errors.push(FieldError::invalid(SPEC.child("signerName"), LEGACY_SIGNER, why));
        }
        if let Some(seconds @ ..SHORTEST_LIFETIME_S) = spec.int_at(&["expirationSeconds"]) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(SPEC.child("expirationSeconds"), seconds, why));
        }
        errors
    }

    /// Of `approval`; the main resource changes neither spec nor status.
    fn validate_update(&self, context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        if context.subresource.is_empty() { Errors::new() } else { check_answer(context.subresource, new, old) }
    }

    fn validate_status_update(&self, context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        check_answer(context.subresource, new, old)
    }
}

fn conditions(request: &Object) -> &[Value] {
    request.get("status").map(|status| list(status, "conditions")).unwrap_or_default()
}

fn of_type<'a>(conditions: &'a [Value], wanted: &str) -> impl Iterator<Item = &'a Value> {
    let wanted = wanted.to_owned();
    conditions.iter().filter(move |one| one.str_at(&["type"]) == wanted)
}

/// When a condition changed is the server's to say, where the client does not.
fn stamp_conditions(new: &mut Object, old: &Object, now: &str) {
    let known = conditions(old).to_vec();
    let all = new.get_mut("status").and_then(|status| status.get_mut("conditions")).and_then(Value::as_array_mut);
    for condition in all.into_iter().flatten() {
        if present(condition, "lastUpdateTime").is_none() {
            condition.set(&["lastUpdateTime"], now.into());
        }
        if present(condition, "lastTransitionTime").is_none() {
            let same = of_type(&known, condition.str_at(&["type"]))
                .find(|one| one.str_at(&["status"]) == condition.str_at(&["status"]));
            let since = same.and_then(|one| one.get("lastTransitionTime").cloned());
            condition.set(&["lastTransitionTime"], since.unwrap_or_else(|| now.into()));
        }
    }
}

/// A PKCS #10 request that its own key has signed.
fn check_request(encoded: &str) -> Result<(), String> {
    let pem = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|error| format!("x509: {error}"))?;
    request.verify_signature().map_err(|_| "x509: the signature of the request is wrong".to_owned())
}

fn check_usages(spec: &Value, errors: &mut Errors) {
    let (path, usages) = (SPEC.child("usages"), list(spec, "usages"));
    if usages.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    for (at, usage) in usages.iter().enumerate() {
        let text = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&text) {
            errors.push(FieldError::not_supported(path.index(at), text, &USAGES));
        }
        if usages[..at].contains(usage) {
            errors.push(FieldError::duplicate(path.index(at), text));
        }
    }
}

/// `example.com/signer-name`: a domain of at least two parts, then a path of labels.
fn check_signer(signer: &str, path: &Path, errors: &mut Errors) {
    if signer.is_empty() {
        return errors.push(FieldError::required(*path, ""));
    }
    let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    let Some((domain, rest)) = signer.split_once('/').filter(|(_, rest)| !rest.contains('/') && !rest.is_empty())
    else {
        return errors.push(FieldError::invalid(*path, signer, form));
    };
    if domain.len() > SIGNER_DOMAIN_LIMIT || signer.len() > SIGNER_PATH_LIMIT + SIGNER_DOMAIN_LIMIT {
        errors.push(FieldError::too_long(*path, SIGNER_PATH_LIMIT));
    }
    for problem in name::subdomain(domain) {
        errors.push(FieldError::invalid(*path, domain, format!("validating label {domain:?}: {problem}")));
    }
    if !domain.contains('.') {
        errors.push(FieldError::invalid(
            *path,
            domain,
            "should be a domain with at least two segments separated by dots",
        ));
    }
    for problem in name::subdomain(rest) {
        errors.push(FieldError::invalid(*path, rest, format!("validating label {rest:?}: {problem}")));
    }
}

/// The status: conditions that are allowed together, and changes that the subresource may make.
fn check_answer(subresource: &str, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::new();
    check_conditions(conditions(new), &mut errors);
    for kind in LASTING {
        let (before, after) = (of_type(conditions(old), kind).count(), of_type(conditions(new), kind).count());
        let may_add = if kind == "Failed" { subresource == "status" } else { subresource == "approval" };
        let why = |what: &str| format!("updates may not {what} a condition of type {kind:?}");
        if after < before {
            errors.push(FieldError::forbidden(CONDITIONS, why("remove")));
        } else if after > before && !may_add {
            errors.push(FieldError::forbidden(CONDITIONS, why("add")));
        }
    }
    check_certificate(subresource, new, old, &mut errors);
    errors
}

fn check_conditions(conditions: &[Value], errors: &mut Errors) {
    for (at, condition) in conditions.iter().enumerate() {
        let path = CONDITIONS.index(at);
        let (kind, status) = (condition.str_at(&["type"]), condition.str_at(&["status"]));
        if kind.is_empty() {
            errors.push(FieldError::required(path.child("type"), ""));
        }
        match (LASTING.contains(&kind), status) {
            (_, "") => errors.push(FieldError::required(path.child("status"), "")),
            (true, "True") | (false, "True" | "False" | "Unknown") => {}
            (true, other) => errors.push(FieldError::not_supported(path.child("status"), other, &["True"])),
            (false, other) => {
                let supported = ["True", "False", "Unknown"];
                errors.push(FieldError::not_supported(path.child("status"), other, &supported));
            }
        }
        if of_type(&conditions[..at], kind).next().is_some() {
            errors.push(FieldError::duplicate(path.child("type"), kind));
        }
    }
    let has = |kind| of_type(conditions, kind).next().is_some();
    if has("Approved") && has("Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(CONDITIONS, "Denied", why));
    }
}

fn check_certificate(subresource: &str, new: &Object, old: &Object, errors: &mut Errors) {
    let path = STATUS.child("certificate");
    let (before, after) = (old.str_at(&["status", "certificate"]), new.str_at(&["status", "certificate"]));
    if before == after {
        return;
    }
    if !before.is_empty() {
        return errors.push(FieldError::forbidden(path, "updates may not change certificate content"));
    }
    if subresource != "status" {
        return errors.push(FieldError::forbidden(path, "updates may not set certificate content"));
    }
    let pem = STANDARD.decode(after).unwrap_or_default();
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match parsed {
        Ok(found) if found.is_empty() => {
            errors.push(FieldError::invalid(
                path,
                "<certificate data>",
                "must contain at least one CERTIFICATE PEM block",
            ));
        }
        Ok(found) if found.iter().all(|one| X509Certificate::from_der(one).is_ok()) => {}
        _ => errors.push(FieldError::invalid(path, "<certificate data>", "x509: malformed certificate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIVk1INENBUUF3SERFTU1Bb0dBMVVFQ2d3RFpHVjJNUXd3Q2dZRFZRUUREQU5pYjJJd1dUQVRCZ2NxaGtqTwpQUUlCQmdncWhrak9QUU1CQndOQ0FBUWVJcTI5ZC9MUTdZMUd5V1QzZ08xT1ZHUTdHTnpyV1VnSEZGcC90bXo3CndJbkhzT3ZRekN5Z1k2L2VVV0UxaS93bkFOSDIxMFcwNDRKdnRUNFRidjlkb0FBd0NnWUlLb1pJemowRUF3SUQKUndBd1JBSWdmWGhsN2p6K01uVzJSaGhRbG9EQWdIbG5LcEo3VVVndHVLdmVIU0Z1THU4Q0lGeTQyUXg4b0NKTgo5UG5RL2NnaEovcGw4L2NYdE96OUpBZksxZ3F6NHc0ZAotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";

    fn context(subresource: &str) -> HookContext<'_> {
        HookContext { now: Timestamp::UNIX_EPOCH, user: "admin", subresource }
    }

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_are_judged_field_by_field() {
        let good =
            json!({"request": REQUEST, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]});
        let with = |field: &str, value: Value| {
            let mut spec = good.clone();
            spec[field] = value;
            spec
        };
        let broken = format!("{}AAAA{}", &REQUEST[..200], &REQUEST[204..]);
        let cases = [
            (good.clone(), ""),
            (
                with("request", json!("bm90IHBlbQ==")),
                "spec.request: Invalid value: \"bm90IHBlbQ==\": PEM block type must be CERTIFICATE REQUEST",
            ),
            (with("request", json!(broken)), "spec.request: Invalid value"),
            (with("usages", json!([])), "spec.usages: Required value"),
            (
                with("usages", json!(["flying"])),
                "spec.usages[0]: Unsupported value: \"flying\": supported values: \"any\"",
            ),
            (with("usages", json!(["any", "any"])), "spec.usages[1]: Duplicate value: \"any\""),
            (with("signerName", json!("")), "spec.signerName: Required value"),
            (
                with("signerName", json!("x")),
                "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path",
            ),
            (
                with("signerName", json!("x/y")),
                "spec.signerName: Invalid value: \"x\": should be a domain with at least two segments",
            ),
            (
                with("signerName", json!(LEGACY_SIGNER)),
                "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName",
            ),
            (
                with("expirationSeconds", json!(60)),
                "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than",
            ),
        ];
        for (spec, expected) in cases {
            let errors = texts(&RequestStrategy.validate_create(&context(""), &json!({"spec": spec})));
            let first = errors.first().map(String::as_str).unwrap_or_default();
            assert!(first.starts_with(expected) && first.is_empty() == expected.is_empty(), "{errors:?}");
        }
    }

    #[test]
    fn answers_are_judged_by_subresource() {
        let with = |conditions: Value, certificate: &str| json!({"status": {"conditions": conditions, "certificate": certificate}});
        let (none, approved) = (json!([]), json!([{"type": "Approved", "status": "True"}]));
        let failed = json!([{"type": "Failed", "status": "True"}]);
        let both = json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]);
        let cases = [
            ("approval", with(approved.clone(), ""), with(none.clone(), ""), ""),
            (
                "status",
                with(approved.clone(), ""),
                with(none.clone(), ""),
                "status.conditions: Forbidden: updates may not add a condition of type \"Approved\"",
            ),
            (
                "approval",
                with(none.clone(), ""),
                with(approved.clone(), ""),
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\"",
            ),
            (
                "approval",
                with(failed.clone(), ""),
                with(none.clone(), ""),
                "status.conditions: Forbidden: updates may not add a condition of type \"Failed\"",
            ),
            ("status", with(failed, ""), with(none.clone(), ""), ""),
            (
                "approval",
                with(both, ""),
                with(none.clone(), ""),
                "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
            ),
            (
                "approval",
                with(json!([{"type": "Approved", "status": "False"}]), ""),
                with(none, ""),
                "status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\"",
            ),
            (
                "status",
                with(approved.clone(), "bm8="),
                with(approved, ""),
                "status.certificate: Invalid value: \"<certificate data>\": must contain at least one",
            ),
        ];
        for (subresource, new, old, expected) in cases {
            let errors = texts(&check_answer(subresource, &new, &old));
            let first = errors.first().map(String::as_str).unwrap_or_default();
            assert!(first.starts_with(expected) && first.is_empty() == expected.is_empty(), "{errors:?}");
        }
    }

    #[test]
    fn conditions_get_their_times() {
        let old = json!({"spec": {"a": 1}, "status": {}});
        let mut new = json!({"spec": {"a": 2}, "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        RequestStrategy.prepare_update(&context("approval"), &mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }
}
