//! Values sealed on their way to the disk: AES-256-GCM with a key kept beside the database, under the object's key,
//! so that no row passes for another. Which resources are sealed is the caller's choice; what lies there plain is
//! still read. It protects copies of the database, not a stolen disk that has the key too.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Opens a sealed value; JSON begins with a brace.
const MARK: u8 = 1;
/// Says which key a value was sealed with.
const KEY_ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_LEN;

pub const KEY_BYTES: usize = 32;

/// Why a value cannot be sealed or read.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("object {0} is sealed with another key than the one beside this database")]
    OtherKey(String),
    #[error("object {0} is sealed, and its sealed value is damaged")]
    Damaged(String),
    #[error("seal object {0}: the kernel gives no random bytes")]
    Random(String),
}

/// Seals the values of some resources. Secret: no `Debug`.
pub struct Sealer {
    key: LessSafeKey,
    key_id: [u8; KEY_ID_BYTES],
    resources: Vec<Box<str>>,
    random: SystemRandom,
}

impl Sealer {
    /// `resources` are first parts of keys: `secrets`.
    pub fn new(key: &[u8; KEY_BYTES], resources: Vec<Box<str>>) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("the key has the length of the algorithm's");
        let mut key_id = [0; KEY_ID_BYTES];
        key_id.copy_from_slice(&Sha256::digest(key)[..KEY_ID_BYTES]);
        Self { key: LessSafeKey::new(unbound), key_id, resources, random: SystemRandom::new() }
    }

    /// Whether objects under this key are to be sealed.
    pub fn covers(&self, key: &str) -> bool {
        self.resources.iter().any(|resource| **resource == *super::cache::resource_of(key))
    }

    /// The value as it is stored: sealed, or as it is for resources that are not covered.
    pub fn seal<'a>(&self, key: &str, value: &'a [u8]) -> Result<Cow<'a, [u8]>, SealError> {
        if !self.covers(key) {
            return Ok(Cow::Borrowed(value));
        }
        let failed = || SealError::Random(key.to_owned());
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| failed())?;
        let mut sealed = Vec::with_capacity(HEAD_BYTES + value.len() + AES_256_GCM.tag_len());
        sealed.push(MARK);
        sealed.extend_from_slice(&self.key_id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let (_, text) = sealed.split_at_mut(HEAD_BYTES);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(key.as_bytes()), text);
        sealed.extend_from_slice(tag.map_err(|_| failed())?.as_ref());
        Ok(Cow::Owned(sealed))
    }

    /// The inverse of `seal`.
    pub fn open<'a>(&self, key: &str, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, SealError> {
        if !is_sealed(stored) {
            return Ok(Cow::Borrowed(stored));
        }
        let damaged = || SealError::Damaged(key.to_owned());
        let (head, text) = stored.split_at_checked(HEAD_BYTES).ok_or_else(damaged)?;
        if head[1..=KEY_ID_BYTES] != self.key_id {
            return Err(SealError::OtherKey(key.to_owned()));
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[1 + KEY_ID_BYTES..]).map_err(|_| damaged())?;
        let mut text = text.to_vec();
        let length = self.key.open_in_place(nonce, Aad::from(key.as_bytes()), &mut text).map_err(|_| damaged())?.len();
        text.truncate(length);
        Ok(Cow::Owned(text))
    }
}

/// Whether a stored value is a sealed one.
pub fn is_sealed(stored: &[u8]) -> bool {
    stored.first() == Some(&MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: u8) -> Sealer {
        Sealer::new(&[key; KEY_BYTES], vec!["secrets".into()])
    }

    #[test]
    fn only_covered_resources_are_sealed_and_plain_ones_are_still_read() {
        let sealer = sealer(1);
        assert_eq!(&*sealer.seal("configmaps/a/b", b"{}").unwrap(), b"{}");
        assert_eq!(&*sealer.open("secrets/a/b", b"{\"old\":1}").unwrap(), b"{\"old\":1}");
        let sealed = sealer.seal("secrets/a/b", b"{\"token\":\"s3cret\"}").unwrap();
        assert!(is_sealed(&sealed) && !sealed.windows(6).any(|part| part == b"s3cret"));
        assert_ne!(sealed, sealer.seal("secrets/a/b", b"{\"token\":\"s3cret\"}").unwrap(), "no two are alike");
        assert_eq!(&*sealer.open("secrets/a/b", &sealed).unwrap(), b"{\"token\":\"s3cret\"}");
    }

    #[test]
    fn a_value_that_was_changed_moved_or_sealed_with_another_key_is_refused() {
        let one = sealer(1);
        let sealed = one.seal("secrets/a/b", b"{}").unwrap().into_owned();
        assert!(matches!(sealer(2).open("secrets/a/b", &sealed), Err(SealError::OtherKey(_))));
        assert!(matches!(one.open("secrets/a/c", &sealed), Err(SealError::Damaged(_))));
        for at in [HEAD_BYTES - 1, HEAD_BYTES, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(matches!(one.open("secrets/a/b", &changed), Err(SealError::Damaged(_))), "{at}");
        }
        assert!(matches!(one.open("secrets/a/b", &sealed[..HEAD_BYTES + 3]), Err(SealError::Damaged(_))));
        assert!(matches!(one.open("secrets/a/b", &[MARK]), Err(SealError::Damaged(_))));
    }
}
