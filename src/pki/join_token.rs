//! The token a board joins with: whom to trust and what to show. `ET1.<hash of the CA's key>.<id>.<secret>`.
//! On the server only id and secret are known, as a bootstrap token of Kubernetes.

use super::PkiError;
use super::certificate::{self, key_hash};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

const VERSION: &str = "ET1";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    #[error("the token does not begin with ET1.: make one with `edgelet token create` on the server")]
    Version,
    #[error("the token is cut off: copy the whole line that `edgelet token create` printed")]
    Truncated,
    #[error("the token has a mistake in its {0}: copy it again from `edgelet token create`")]
    Malformed(&'static str),
}

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("the server's authority is not the one of the token: wrong server, or somebody is in between")]
    Foreign,
    #[error("the server sent no readable certificates")]
    Unreadable(#[from] PkiError),
}

/// Holds a secret, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub ca_hash: [u8; 32],
    pub id: String,
    secret: String,
}

impl JoinToken {
    /// A new token for nodes that are to trust the authority with this key.
    pub fn generate(ca_hash: [u8; 32]) -> Result<Self, PkiError> {
        Ok(Self { ca_hash, id: random_text(ID_LENGTH)?, secret: random_text(SECRET_LENGTH)? })
    }

    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let mut parts = text.trim().split('.');
        if parts.next() != Some(VERSION) {
            return Err(JoinTokenError::Version);
        }
        let (Some(hash), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinTokenError::Truncated);
        };
        let hash = URL_SAFE_NO_PAD.decode(hash).map_err(|_| JoinTokenError::Malformed("first part"))?;
        let ca_hash = hash.try_into().map_err(|_| JoinTokenError::Malformed("first part"))?;
        if !is_text(id, ID_LENGTH) {
            return Err(JoinTokenError::Malformed("id"));
        }
        if secret.len() < SECRET_LENGTH {
            return Err(JoinTokenError::Truncated);
        }
        if !is_text(secret, SECRET_LENGTH) {
            return Err(JoinTokenError::Malformed("secret"));
        }
        Ok(Self { ca_hash, id: id.to_owned(), secret: secret.to_owned() })
    }

    /// The whole token, as it is shown once.
    pub fn text(&self) -> String {
        format!("{VERSION}.{}.{}.{}", URL_SAFE_NO_PAD.encode(self.ca_hash), self.id, self.secret)
    }

    /// What goes into `Authorization: Bearer`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether this is the authority the token was made for.
    pub fn pins(&self, certificate: &CertificateDer) -> bool {
        key_hash(certificate) == Some(self.ca_hash)
    }

    /// Of the certificates a server that is not trusted yet sent (`/cacerts`), those that may be trusted: the one the
    /// token pins, and those it vouches for. The others prove nothing: anybody can send the pinned one along.
    pub fn trusted(&self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PinError> {
        let sent = certificate::bundle(pem)?;
        let pinned: Vec<_> = sent.iter().filter(|one| self.pins(one) && is_self_signed(one)).cloned().collect();
        if pinned.is_empty() { Err(PinError::Foreign) } else { Ok(vouched(&pinned, &sent)) }
    }
}

/// `roots` and those self-signed authorities among `sent` whose key one of the roots has cross-signed.
pub fn vouched(roots: &[CertificateDer<'static>], sent: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let mut trusted = roots.to_vec();
    loop {
        let is_vouched = |one: &&CertificateDer<'static>| {
            !trusted.contains(one)
                && is_self_signed(one)
                && sent.iter().any(|cross| same_key(cross, one) && trusted.iter().any(|root| has_signed(root, cross)))
        };
        let Some(next) = sent.iter().find(is_vouched).cloned() else { return trusted };
        trusted.push(next);
    }
}

fn same_key(a: &CertificateDer, b: &CertificateDer) -> bool {
    a != b && key_hash(a).is_some() && key_hash(a) == key_hash(b)
}

fn is_self_signed(certificate: &CertificateDer) -> bool {
    has_signed(certificate, certificate)
}

fn has_signed(issuer: &CertificateDer, authority: &CertificateDer) -> bool {
    let is_ca = X509Certificate::from_der(authority).is_ok_and(|(_, parsed)| parsed.is_ca());
    is_ca && certificate::is_signed_by(authority, issuer)
}

/// Splits a bearer token of this form into id and secret; `None` when it is none.
pub fn split_bearer(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.split_once('.')?;
    (is_text(id, ID_LENGTH) && is_text(secret, SECRET_LENGTH)).then_some((id, secret))
}

fn is_text(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| LETTERS.contains(&byte))
}

/// Every letter is as likely as every other: bytes beyond the last whole round are thrown away.
fn random_text(length: usize) -> Result<String, PkiError> {
    let limit = u8::try_from(256 / LETTERS.len() * LETTERS.len()).expect("a part of 256");
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let bytes = super::random::<32>()?;
        let letters = bytes.into_iter().filter(|byte| *byte < limit);
        let missing = length - text.len();
        text.extend(letters.map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()])).take(missing));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::Authority;
    use jiff::Timestamp;

    fn now() -> Timestamp {
        "2026-11-23T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_token_survives_being_copied_and_pins_its_authority() {
        let authority = Authority::generate(now()).unwrap();
        let token = JoinToken::generate(*authority.key_hash()).unwrap();
        let again = JoinToken::parse(&format!(" {}\n", token.text())).ok().unwrap();
        assert!(again == token && again.pins(authority.der()));
        assert_eq!(split_bearer(&token.bearer()).unwrap().0, token.id);
        assert!(!token.pins(Authority::generate(now()).unwrap().der()));
    }

    #[test]
    fn mistakes_are_named() {
        let token = JoinToken::generate([7; 32]).unwrap().text();
        let cases = [
            ("", JoinTokenError::Version),
            ("K10abc::server:x", JoinTokenError::Version),
            (&token[..token.len() - 1], JoinTokenError::Truncated),
            (&token[..token.len() - 20], JoinTokenError::Truncated),
            (&token.replace("ET1.", "ET1.x"), JoinTokenError::Malformed("first part")),
            (&format!("{token}x"), JoinTokenError::Malformed("secret")),
        ];
        for (text, error) in cases {
            assert_eq!(JoinToken::parse(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn only_what_the_pinned_authority_vouches_for_is_trusted() {
        let (old, new, foreign) = (
            Authority::generate(now()).unwrap(),
            Authority::generate(now()).unwrap(),
            Authority::generate(now()).unwrap(),
        );
        let token = JoinToken::generate(*old.key_hash()).unwrap();
        let cross = old.cross_sign(&new, now()).unwrap();
        let all = [new.pem(), old.pem(), &cross, foreign.pem()].concat();
        let trusted = token.trusted(all.as_bytes()).unwrap();
        assert_eq!(trusted, [old.der().clone(), new.der().clone()], "not the foreign one that was sent along");
        assert!(matches!(token.trusted(foreign.pem().as_bytes()), Err(PinError::Foreign)));
        let backwards = JoinToken::generate(*new.key_hash()).unwrap();
        assert_eq!(backwards.trusted(all.as_bytes()).unwrap(), [new.der().clone()]);
    }
}
