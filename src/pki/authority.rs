//! An authority: the key that signs others' certificates, and its own certificate.
//! Issues keys with their certificates for the server itself, and certificates for keys made elsewhere.

use super::PkiError;
use super::certificate::{self, Credentials, DAY, LEAF_DAYS, Request, Usage};
use super::der;
use super::request::SigningRequest;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SigningKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

const CA_DAYS: i32 = 3650;
/// Boards without a battery start in 1970; no certificate starts before this project did, and no clock that says so
/// is right.
pub const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);
/// Clocks differ: a certificate signed on request is good from a little before it was signed.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// The key and certificate that sign all others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    key_hash: [u8; 32],
}

impl Authority {
    /// A new one.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let what = "make the authority";
        let key = KeyPair::generate().map_err(failed(what))?;
        let mut params = authority_params(now);
        // The start in the name keeps two authorities apart in other people's trust stores, and the random part
        // those of one cluster that were made within a second: names lead verifiers to keys.
        let name = format!(
            "edgelet-ca@{}-{:04x}",
            now.max(EARLIEST).as_second(),
            super::random::<2>().map(u16::from_be_bytes)?
        );
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).map_err(failed(what))?;
        Self::load(certificate.pem(), &key.serialize_pem())
    }

    /// From its certificate and key, both PEM.
    pub fn load(pem: String, key_pem: &str) -> Result<Self, PkiError> {
        let malformed = |why: String| PkiError::Malformed { path: "ca.crt".into(), why };
        let key = KeyPair::from_pem(key_pem).map_err(failed("parse the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed("parse the authority's certificate"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let key_hash = certificate::key_hash(&der).ok_or_else(|| malformed("not a certificate".into()))?;
        Ok(Self { issuer, pem, der, key_hash })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The SHA-256 of its public key, which join tokens pin.
    pub fn key_hash(&self) -> &[u8; 32] {
        &self.key_hash
    }

    /// A signature of any message by the authority's key; callers see to it that no message is a certificate.
    pub(super) fn sign_message(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        self.issuer.key().sign(message).map_err(failed("sign"))
    }

    /// Whether it has signed this certificate.
    pub fn has_signed(&self, certificate: &CertificateDer) -> bool {
        certificate::is_signed_by(certificate, &self.der)
    }

    /// A certificate of `other`'s key and name by this authority: who trusts this one can then trust that one.
    pub fn cross_sign(&self, other: &Self, now: Timestamp) -> Result<String, PkiError> {
        let what = "cross-sign the new authority";
        let (_, certificate) = X509Certificate::from_der(&other.der)
            .map_err(|error| PkiError::Malformed { path: "ca.crt".into(), why: error.to_string() })?;
        let mut params = authority_params(now);
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, certificate::common_name(&certificate));
        params.signed_by(other.issuer.key(), &self.issuer).map_err(failed(what)).map(|signed| signed.pem())
    }

    /// A new key and its certificate.
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

    /// A certificate, PEM, for the key in a signing request: its subject and names, these usages (as the API
    /// spells them), for at most `lifetime`. What the request may ask for is the caller's to judge.
    pub fn sign(
        &self,
        request: &SigningRequest,
        usages: &[&str],
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let (_, own) = X509Certificate::from_der(&self.der)
            .map_err(|error| PkiError::Malformed { path: "ca.crt".into(), why: error.to_string() })?;
        let start = now.max(EARLIEST);
        let to_sign = der::ToSign {
            serial: super::random::<16>()?,
            issuer: own.subject().as_raw(),
            not_before: start - BACKDATE,
            not_after: start + lifetime.min(DAY * LEAF_DAYS),
            subject: &request.der.subject,
            public_key: &request.der.public_key,
            subject_names: request.der.subject_names.as_deref(),
            subject_is_empty: request.der.is_subject_empty,
            authority_key_id: &key_id(&own),
            usages,
        };
        let body = to_sign.encode();
        let signature = self.sign_message(&body)?;
        Ok(der::pem("CERTIFICATE", &der::certificate(&body, &signature)))
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
            // A clock that was ahead has been set back: what was issued meanwhile is not valid yet.
            && certificate.validity().not_before.timestamp() <= now.max(EARLIEST).as_second()
            && certificate::common_name(&certificate) == request.common_name
            && certificate::organizations(&certificate).as_slice() == request.organization.as_slice()
            // More names are no reason: an address that is away for a while makes no new certificate.
            && certificate::subject_names(&certificate).is_superset(&request.names)
            && certificate.verify_signature(Some(authority.public_key())).is_ok()
    }
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { what, source }
}

fn authority_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_DAYS);
    params
}

/// The subject key identifier, as others' certificates repeat it.
fn key_id(certificate: &X509Certificate) -> Vec<u8> {
    let found = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.unwrap_or_default()
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
