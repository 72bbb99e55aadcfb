//! Certificates: what one is to say, what one says, and the pair of files one is kept in.
//! ECDSA P-256, one year, renewed in the last third.

use super::{PkiError, files};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(super) const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How long a certificate lasts unless less is asked for.
pub const LEAF_DAYS: i32 = 365;
/// A certificate is renewed once less than this is left of it.
const RENEW_DAYS: i32 = LEAF_DAYS / 3;

/// A certificate and its private key.
#[derive(Clone)]
pub struct Credentials {
    pub certificate_pem: String,
    pub key_pem: String,
    pub not_after: Timestamp,
}

impl Credentials {
    /// As rustls takes them.
    pub fn der(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let malformed = |error: rustls_pki_types::pem::Error| PkiError::Malformed {
            path: "certificate".into(),
            why: error.to_string(),
        };
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).map_err(malformed)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(malformed)?;
        Ok((certificate, key))
    }

    /// When to ask for the next one.
    pub fn renew_at(&self) -> Timestamp {
        self.not_after - DAY * RENEW_DAYS
    }
}

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub common_name: String,
    /// A client's group. rcgen writes one organization at most, and nobody here needs two.
    pub organization: Option<String>,
    pub names: BTreeSet<String>,
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
}

impl Request {
    pub fn server(names: BTreeSet<String>) -> Self {
        Self { common_name: "edgelet-server".into(), organization: None, names, usage: Usage::Server }
    }

    pub fn client(user: &str, group: Option<&str>) -> Self {
        let organization = group.map(str::to_owned);
        Self { common_name: user.into(), organization, names: BTreeSet::new(), usage: Usage::Client }
    }
}

pub(super) fn common_name(certificate: &X509Certificate) -> String {
    let mut names = certificate.subject().iter_common_name();
    names.next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

pub(super) fn organizations(certificate: &X509Certificate) -> Vec<String> {
    let values = certificate.subject().iter_organization();
    values.filter_map(|value| value.as_str().ok()).map(str::to_owned).collect()
}

pub(super) fn subject_names(certificate: &X509Certificate) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    let names = extension.value.general_names.iter();
    names.filter_map(printed_name).collect()
}

fn printed_name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// Who a verified client certificate says its owner is: the common name and the organizations.
pub fn identity(certificate: &CertificateDer) -> Option<(String, Vec<String>)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some((common_name(&certificate), organizations(&certificate)))
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo: the name of its key, whatever certificate it is in.
pub fn key_hash(certificate: &CertificateDer) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}

/// Whether `authority`'s key has signed a certificate.
pub fn is_signed_by(certificate: &CertificateDer, authority: &CertificateDer) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
    certificate.issuer().as_raw() == authority.subject().as_raw()
        && certificate.verify_signature(Some(authority.public_key())).is_ok()
}

/// From when to when a certificate is good.
pub fn validity(certificate: &CertificateDer) -> Option<(Timestamp, Timestamp)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// The certificates of a PEM bundle, in order; what is no certificate is an error.
pub fn bundle(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    parsed.map_err(|error| PkiError::Malformed { path: "certificates".into(), why: error.to_string() })
}

/// The text that `bundle` reads.
pub fn bundle_pem(certificates: &[CertificateDer]) -> String {
    use base64::Engine;
    let block = |certificate: &CertificateDer| {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    certificates.iter().map(block).collect()
}

/// Credentials kept in two files; `None` when one is missing or unreadable as a certificate.
pub fn load(certificate: &Path, key: &Path) -> Result<Option<Credentials>, PkiError> {
    let (Some(certificate_pem), Some(key_pem)) = (files::read_text(certificate)?, files::read_text(key)?) else {
        return Ok(None);
    };
    Ok(not_after(&certificate_pem).map(|not_after| Credentials { certificate_pem, key_pem, not_after }))
}

fn not_after(pem: &str) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_names_its_user_and_groups() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let authority = crate::pki::authority::Authority::generate(now).unwrap();
        let issued = authority.issue(&Request::client("alice", Some("dev")), now).unwrap();
        let (certificate, _) = issued.der().unwrap();
        assert_eq!(identity(&certificate), Some(("alice".into(), vec!["dev".into()])));
        let (from, to) = validity(&certificate).unwrap();
        assert!(from <= now && to == issued.not_after, "{from} {to}");
    }
}
