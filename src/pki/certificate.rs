//! The authority and the certificates it issues: ECDSA P-256, one year, renewed in the last third.

use super::{PkiError, files};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_DAYS: i32 = 3650;
const LEAF_DAYS: i32 = 365;
/// A certificate is renewed once less than this is left of it.
const RENEW_DAYS: i32 = LEAF_DAYS / 3;
/// Boards without a battery start in 1970; no certificate starts before this project did.
const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);

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

/// The key and certificate that sign all others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (files::read_text(&certificate)?, files::read_text(&key)?) {
            (Some(pem), Some(key_pem)) => Self::load(pem, &key_pem),
            _ => {
                let (pem, key_pem) = make_authority(now)?;
                files::write_private(&key, key_pem.as_bytes())?;
                files::write_private(&certificate, pem.as_bytes())?;
                Self::load(pem, &key_pem)
            }
        }
    }

    fn load(pem: String, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("parse the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed("parse the authority's certificate"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| PkiError::Malformed { path: "ca.crt".into(), why: error.to_string() })?;
        Ok(Self { issuer, pem, der })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn issue(&self, request: &Request, now: Timestamp) -> Result<Credentials, PkiError> {
        let what = "issue certificate";
        let key = KeyPair::generate().map_err(failed(what))?;
        let names: Vec<String> = request.names.iter().cloned().collect();
        let mut params = CertificateParams::new(names).map_err(failed(what))?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, request.common_name.as_str());
        if let Some(organization) = &request.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match request.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let not_after = set_validity(&mut params, now, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed(what))?;
        Ok(Credentials { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), not_after })
    }

    /// Whether kept credentials say what is asked, come from this authority and last long enough.
    pub fn still_fits(&self, kept: &Credentials, request: &Request, now: Timestamp) -> bool {
        let Ok((certificate, _)) = kept.der() else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(&certificate) else { return false };
        let Ok((_, authority)) = X509Certificate::from_der(&self.der) else { return false };
        let key_matches = KeyPair::from_pem(&kept.key_pem)
            .is_ok_and(|key| certificate.public_key().subject_public_key.data == key.public_key_raw());
        key_matches
            && now.max(EARLIEST) < kept.renew_at()
            && common_name(&certificate) == request.common_name
            && organizations(&certificate).as_slice() == request.organization.as_slice()
            && subject_names(&certificate) == request.names
            && certificate.verify_signature(Some(authority.public_key())).is_ok()
    }
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { what, source }
}

fn make_authority(now: Timestamp) -> Result<(String, String), PkiError> {
    let what = "make the authority";
    let key = KeyPair::generate().map_err(failed(what))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    // The start in the name keeps two clusters' authorities apart in other people's trust stores.
    params.distinguished_name.push(DnType::CommonName, format!("edgelet-ca@{}", now.max(EARLIEST).as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_DAYS);
    let certificate = params.self_signed(&key).map_err(failed(what))?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// rcgen speaks the `time` crate; a date plus a duration is the way in without that dependency.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i32) -> Timestamp {
    let start = now.max(EARLIEST);
    let not_after = start + DAY * days;
    let since_1970 = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970(EARLIEST.max(start - DAY));
    params.not_after = epoch + since_1970(not_after);
    not_after
}

fn common_name(certificate: &X509Certificate) -> String {
    let mut names = certificate.subject().iter_common_name();
    names.next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

fn organizations(certificate: &X509Certificate) -> Vec<String> {
    let values = certificate.subject().iter_organization();
    values.filter_map(|value| value.as_str().ok()).map(str::to_owned).collect()
}

fn subject_names(certificate: &X509Certificate) -> BTreeSet<String> {
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
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let authority = Authority::open(dir.path(), now).unwrap();
        let issued = authority.issue(&Request::client("alice", Some("dev")), now).unwrap();
        let (certificate, _) = issued.der().unwrap();
        assert_eq!(identity(&certificate), Some(("alice".into(), vec!["dev".into()])));
    }
}
