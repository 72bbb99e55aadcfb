//! The time, signed by the authority's key: for boards that have no clock and trust nobody else about it.
//! Pure; a statement is only good for the nonce it was asked with.

use super::PkiError;
use super::authority::Authority;
use super::certificate::key_hash;
use crate::clock::Clock;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Digits of a nonce.
const NONCE_LENGTHS: std::ops::RangeInclusive<usize> = 16..=128;
const STATEMENT_LIMIT_BYTES: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub time: Timestamp,
    pub nonce: String,
    /// By the current authority, base64.
    pub signature: String,
    /// By every authority, also former ones whose key is kept, under the hash of its key in hexadecimal.
    #[serde(default)]
    pub signatures: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error("the statement of the time is malformed")]
    Malformed,
    #[error("the statement of the time answers another question")]
    Nonce,
    #[error("the statement of the time is not signed by this cluster's authority")]
    Signature,
}

/// rustls asks our clock, so that simulated and corrected time hold for certificates too.
#[derive(Debug)]
pub struct ClockTime(pub Clock);

impl rustls::time_provider::TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// Whether a nonce can be answered: hexadecimal digits, enough of them to be unique.
pub fn is_nonce(text: &str) -> bool {
    NONCE_LENGTHS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Begins with letters, as no certificate does: a signature of it can never be taken for one.
fn message(time: Timestamp, nonce: &str) -> String {
    format!("edgelet time v1\n{nonce}\n{time}\n")
}

/// The first authority is the current one.
pub fn sign(authorities: &[&Authority], nonce: &str, now: Timestamp) -> Result<Statement, PkiError> {
    let text = message(now, nonce);
    let mut statement =
        Statement { time: now, nonce: nonce.to_owned(), signature: String::new(), signatures: BTreeMap::new() };
    for authority in authorities {
        let signature = STANDARD.encode(authority.sign_message(text.as_bytes())?);
        if statement.signature.is_empty() {
            statement.signature.clone_from(&signature);
        }
        statement.signatures.insert(super::hex(authority.key_hash()), signature);
    }
    Ok(statement)
}

/// The time in a statement that answers `nonce` and that one of `roots` has signed.
pub fn verify(statement: &[u8], nonce: &str, roots: &[CertificateDer]) -> Result<Timestamp, TimeError> {
    if statement.len() > STATEMENT_LIMIT_BYTES {
        return Err(TimeError::Malformed);
    }
    let statement: Statement = serde_json::from_slice(statement).map_err(|_| TimeError::Malformed)?;
    if statement.nonce != nonce {
        return Err(TimeError::Nonce);
    }
    let text = message(statement.time, nonce);
    let signed = roots.iter().any(|root| {
        let named = key_hash(root).and_then(|hash| statement.signatures.get(&super::hex(&hash)));
        has_signed(root, text.as_bytes(), named.unwrap_or(&statement.signature))
    });
    if signed { Ok(statement.time) } else { Err(TimeError::Signature) }
}

fn has_signed(root: &CertificateDer, message: &[u8], signature: &str) -> bool {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
    let Ok(signature) = STANDARD.decode(signature) else { return false };
    let key = &root.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.as_ref()).verify(message, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "0123456789abcdef";

    #[test]
    fn a_statement_is_good_for_its_nonce_and_its_authorities() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let (new, old, foreign) =
            (Authority::generate(now).unwrap(), Authority::generate(now).unwrap(), Authority::generate(now).unwrap());
        let statement = sign(&[&new, &old], NONCE, now).unwrap();
        let text = serde_json::to_vec(&statement).unwrap();
        for root in [&new, &old] {
            assert_eq!(verify(&text, NONCE, &[root.der().clone()]), Ok(now));
        }
        assert_eq!(verify(&text, NONCE, &[foreign.der().clone()]), Err(TimeError::Signature));
        assert_eq!(verify(&text, "ffffffffffffffff", &[new.der().clone()]), Err(TimeError::Nonce));
        let later = Statement { time: "2036-11-23T00:00:00Z".parse().unwrap(), ..statement };
        let text = serde_json::to_vec(&later).unwrap();
        assert_eq!(verify(&text, NONCE, &[new.der().clone()]), Err(TimeError::Signature));
        assert_eq!(verify(b"{}", NONCE, &[new.der().clone()]), Err(TimeError::Malformed));
    }

    #[test]
    fn nonces() {
        for (text, good) in [(NONCE, true), ("0123", false), ("zzzzzzzzzzzzzzzzzz", false), (&"a".repeat(129), false)] {
            assert_eq!(is_nonce(text), good, "{text}");
        }
    }
}
