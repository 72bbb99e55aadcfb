//! A PKCS #10 signing request, read and its own signature checked: who holds the key asks for this certificate.
//! Judges nothing else. Source: RFC 2986.

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// A request longer than this is nobody's.
const REQUEST_LIMIT_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("the certificate request is malformed")]
    Malformed,
    #[error("the certificate request is larger than 16 KiB")]
    TooLarge,
    #[error("the signature of the certificate request is wrong")]
    Signature,
}

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigningRequest {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key_hash: [u8; 32],
    pub der: Parts,
}

/// What is signed as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub(super) subject: Vec<u8>,
    pub(super) is_subject_empty: bool,
    pub(super) public_key: Vec<u8>,
    /// The value of the extension.
    pub(super) subject_names: Option<Vec<u8>>,
}

impl SigningRequest {
    /// Reads the first block of a PEM text and checks that its key has signed it.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let request = Self::read(pem, true)?;
        Ok(request)
    }

    /// As `parse`, without checking the signature: what the API asks before it stores a request.
    pub fn parse_unchecked(pem: &[u8]) -> Result<Self, RequestError> {
        Self::read(pem, false)
    }

    fn read(pem: &[u8], checked: bool) -> Result<Self, RequestError> {
        if pem.len() > REQUEST_LIMIT_BYTES {
            return Err(RequestError::TooLarge);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| RequestError::Pem)?;
        let (rest, parsed) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        if checked {
            parsed.verify_signature().map_err(|_| RequestError::Signature)?;
        }
        Self::of(&parsed)
    }

    fn of(parsed: &X509CertificationRequest) -> Result<Self, RequestError> {
        let info = &parsed.certification_request_info;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue| {
            value.as_str().map(str::to_owned).map_err(|_| RequestError::Malformed)
        };
        let mut names = info.subject.iter_common_name();
        let common_name = names.next().map(text).transpose()?.unwrap_or_default();
        if names.next().is_some() {
            return Err(RequestError::Malformed);
        }
        let mut request = Self {
            common_name,
            organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            key_hash: Sha256::digest(info.subject_pki.raw).into(),
            der: Parts {
                subject: info.subject.as_raw().to_vec(),
                is_subject_empty: info.subject.iter().next().is_none(),
                public_key: info.subject_pki.raw.to_vec(),
                subject_names: None,
            },
            ..Self::default()
        };
        request.read_names(parsed)?;
        Ok(request)
    }

    fn read_names(&mut self, parsed: &X509CertificationRequest) -> Result<(), RequestError> {
        for attribute in parsed.certification_request_info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
            for extension in &requested.extensions {
                let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
                // A second list would be signed unread.
                if self.der.subject_names.replace(extension.value.to_vec()).is_some() {
                    return Err(RequestError::Malformed);
                }
                for name in &names.general_names {
                    self.add_name(name)?;
                }
            }
        }
        Ok(())
    }

    fn add_name(&mut self, name: &GeneralName) -> Result<(), RequestError> {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
            GeneralName::URI(name) => self.uris.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                self.ips.push(v4.or_else(|_| v6()).map_err(|_| RequestError::Malformed)?);
            }
            // Names that are not looked at must not be signed.
            _ => return Err(RequestError::Malformed),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::Authority;
    use crate::pki::certificate;
    use jiff::{SignedDuration, Timestamp};
    use rcgen::{CertificateParams, DnType, KeyPair};
    use rustls_pki_types::CertificateDer;

    fn request(common_name: &str, organizations: Option<&str>, names: &[&str]) -> String {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organization) = organizations {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn what_a_request_asks_for_is_signed_as_it_is() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let pem = request("system:node:one", Some("system:nodes"), &["one", "10.0.0.1"]);
        let parsed = SigningRequest::parse(pem.as_bytes()).unwrap();
        assert_eq!(
            (parsed.common_name.as_str(), parsed.organizations.as_slice()),
            ("system:node:one", &["system:nodes".to_owned()][..])
        );
        assert_eq!((parsed.dns_names.len(), parsed.ips.len()), (1, 1));

        let authority = Authority::generate(now).unwrap();
        let usages = ["digital signature", "client auth"];
        let signed = authority.sign(&parsed, &usages, SignedDuration::from_hours(1), now).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        assert_eq!(certificate::identity(&der), Some(("system:node:one".into(), vec!["system:nodes".into()])));
        assert_eq!(certificate::key_hash(&der), Some(parsed.key_hash));
        let (_, to) = certificate::validity(&der).unwrap();
        assert_eq!(to, now + SignedDuration::from_hours(1));

        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let unix = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second() as u64));
        verifier.verify_client_cert(&der, &[], unix).unwrap();
    }

    #[test]
    fn a_request_that_its_key_has_not_signed_is_refused() {
        let pem = request("a", None, &[]);
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let name = der.windows(1).position(|byte| byte == b"a").unwrap();
        der[name] = b'b';
        let forged = crate::pki::der::pem("CERTIFICATE REQUEST", &der);
        assert!(SigningRequest::parse_unchecked(forged.as_bytes()).is_ok());
        assert_eq!(SigningRequest::parse(forged.as_bytes()), Err(RequestError::Signature));
        let cut = &der[..der.len() - 9];
        let cases =
            [("", RequestError::Pem), (&crate::pki::der::pem("CERTIFICATE REQUEST", cut), RequestError::Malformed)];
        for (text, error) in cases {
            assert_eq!(SigningRequest::parse(text.as_bytes()), Err(error));
        }
        assert_eq!(SigningRequest::parse(&[b'x'; 20_000]), Err(RequestError::TooLarge));
    }
}
