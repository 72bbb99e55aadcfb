//! ServiceAccount tokens: JSON Web Tokens signed with ES256, bound to an audience and to objects.
//! Checks the signature, the times and the audience; whether the objects still live is the caller's.

use super::{PkiError, files};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// A token longer than this is not ours.
const TOKEN_LIMIT_BYTES: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    /// Names this token in logs and in the user's `credential-id`.
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    /// `system:serviceaccount:{namespace}:{name}`.
    pub sub: String,
}

/// What must still exist for the token to be good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    /// Past this, a client should have fetched a new one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

/// What a new token is to say.
#[derive(Clone, Debug)]
pub struct Grant {
    pub audiences: Vec<String>,
    pub lifetime_s: i64,
    /// A UUID.
    pub id: String,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token is malformed")]
    Malformed,
    #[error("token is of another issuer")]
    Issuer,
    #[error("token signature is wrong")]
    Signature,
    #[error("token is not valid yet")]
    NotYet,
    #[error("token has expired")]
    Expired,
    #[error("token is for another audience")]
    Audience,
}

/// The key that signs and checks tokens, and the issuer they name.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    /// Uncompressed point: 0x04, x, y.
    public: Vec<u8>,
    key_id: String,
    issuer: String,
    random: SystemRandom,
}

impl TokenKey {
    /// Reads the key, or makes it at the first start.
    pub fn open(path: &Path, issuer: &str) -> Result<Self, PkiError> {
        let failed = |source| PkiError::Certificate { what: "make the token key", source };
        let key = match files::read_text(path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(failed)?,
            None => {
                let key = KeyPair::generate().map_err(failed)?;
                files::write_private(path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &random)
            .map_err(|error| PkiError::Malformed { path: path.to_owned(), why: error.to_string() })?;
        let public = key.public_key_raw().to_vec();
        // As upstream: the hash of the key's SubjectPublicKeyInfo.
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        Ok(Self { pair, public, key_id, issuer: issuer.to_owned(), random })
    }

    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs a grant; the token and when it ends.
    pub fn sign(&self, grant: Grant, now: Timestamp) -> (String, Timestamp) {
        let (claims, ends) = self.claims(grant, now);
        let header = json!({ "alg": "ES256", "kid": self.key_id, "typ": "JWT" });
        let head = URL_SAFE_NO_PAD.encode(header.to_string());
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).expect("claims are plain data"));
        let message = format!("{head}.{body}");
        let signature = self.pair.sign(&self.random, message.as_bytes()).expect("the kernel gives random bytes");
        (format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)), ends)
    }

    fn claims(&self, grant: Grant, now: Timestamp) -> (Claims, Timestamp) {
        let iat = now.as_second();
        let exp = iat.saturating_add(grant.lifetime_s);
        let sub = format!("system:serviceaccount:{}:{}", grant.bound.namespace, grant.bound.serviceaccount.name);
        let (iss, aud) = (self.issuer.clone(), grant.audiences);
        let claims = Claims { aud, exp, iat, iss, jti: grant.id, bound: grant.bound, nbf: iat, sub };
        (claims, Timestamp::from_second(exp).unwrap_or(Timestamp::MAX))
    }

    /// The claims of a token of ours that is good now for one of `audiences`.
    pub fn verify(&self, token: &str, audiences: &[&str], now: Timestamp) -> Result<Claims, TokenError> {
        let claims = self.verify_signature(token)?;
        check(&claims, audiences, now)?;
        Ok(claims)
    }

    /// The costly half of `verify`, whose result may be kept.
    pub fn verify_signature(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_LIMIT_BYTES {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (_, body) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public);
        key.verify(message.as_bytes(), &decode(signature)?).map_err(|_| TokenError::Signature)?;
        Ok(claims)
    }

    /// The public key as `/openid/v1/jwks` shows it.
    pub fn key_set(&self) -> Value {
        let (x, y) = self.public[1..].split_at((self.public.len() - 1) / 2);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

/// The half of a token's checks that depends on when and for whom it is used.
pub fn check(claims: &Claims, audiences: &[&str], now: Timestamp) -> Result<(), TokenError> {
    let now = now.as_second();
    if now < claims.nbf {
        return Err(TokenError::NotYet);
    }
    if now >= claims.exp {
        return Err(TokenError::Expired);
    }
    if !claims.aud.iter().any(|audience| audiences.contains(&audience.as_str())) {
        return Err(TokenError::Audience);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const API: &str = "https://kubernetes.default.svc.cluster.local";

    fn key(dir: &Path) -> TokenKey {
        TokenKey::open(&dir.join("service-account.key"), API).unwrap()
    }

    fn grant() -> Grant {
        let reference = |name: &str| Reference { name: name.into(), uid: format!("uid-of-{name}") };
        let bound = Bound {
            namespace: "g4".into(),
            pod: Some(reference("web")),
            serviceaccount: reference("sa"),
            ..Bound::default()
        };
        Grant { audiences: vec![API.into()], lifetime_s: 3600, id: "da121c3b".into(), bound }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_audience_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let key = key(dir.path());
        let (token, ends) = key.sign(grant(), at("2026-11-23T01:14:08Z"));
        assert_eq!(ends, at("2026-11-23T02:14:08Z"));
        let claims = key.verify(&token, &[API], at("2026-11-23T01:14:08Z")).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:g4:sa");
        assert_eq!(claims.bound.pod.unwrap().uid, "uid-of-web");
        let cases = [
            ("2026-11-23T01:14:07Z", API, TokenError::NotYet),
            ("2026-11-23T02:14:08Z", API, TokenError::Expired),
            ("2026-11-23T01:20:00Z", "vault", TokenError::Audience),
        ];
        for (now, audience, error) in cases {
            assert_eq!(key.verify(&token, &[audience], at(now)), Err(error));
        }
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now = at("2026-11-23T01:14:08Z");
        let (token, _) = key(other.path()).sign(grant(), now);
        assert_eq!(key(dir.path()).verify(&token, &[API], now), Err(TokenError::Signature));
        for bad in ["bad", "a.b", "a.b.c", ""] {
            assert_eq!(key(dir.path()).verify(bad, &[API], now), Err(TokenError::Malformed));
        }
    }

    #[test]
    fn the_key_set_has_both_coordinates() {
        let dir = tempfile::tempdir().unwrap();
        let set = key(dir.path()).key_set();
        for coordinate in ["x", "y"] {
            let bytes = URL_SAFE_NO_PAD.decode(set["keys"][0][coordinate].as_str().unwrap()).unwrap();
            assert_eq!(bytes.len(), 32);
        }
    }
}
