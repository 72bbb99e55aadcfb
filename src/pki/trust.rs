//! The authorities of one cluster: the current one, and former ones that a rotation has left behind.
//! On disk `ca.crt` and `ca.key`; from the first rotation on `authorities.json`, whose one write is the rotation.

use super::authority::Authority;
use super::{PkiError, files, hex};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

const STATE: &str = "authorities.json";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Former authorities that are kept; the oldest goes when there are more, and boards away since then join anew.
const FORMER_LIMIT: usize = 8;

/// An authority that signs no certificates any more.
#[derive(Clone)]
pub struct Former {
    pub authority: Arc<Authority>,
    /// The current authority's key, signed by this one: boards that only know this one can follow.
    pub cross: CertificateDer<'static>,
    cross_pem: String,
    /// When it was replaced.
    pub since: Timestamp,
    /// Whether its certificates still count; else they only let a node ask for a new one.
    pub trusted: bool,
}

/// All of them; replaced as a whole.
pub struct Trust {
    pub current: Arc<Authority>,
    /// The newest first.
    pub former: Vec<Former>,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("the authority {found} is the current one, not {expected}: it has been rotated already")]
    Moved { expected: String, found: String },
    #[error("a rotation is under way since {0}: end it with `edgelet certificate rotate-ca --finish` first")]
    UnderWay(Timestamp),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

#[derive(Serialize, Deserialize)]
struct StoredTrust {
    certificate: String,
    key: String,
    former: Vec<StoredFormer>,
}

#[derive(Serialize, Deserialize)]
struct StoredFormer {
    certificate: String,
    key: String,
    cross: String,
    since: Timestamp,
    trusted: bool,
}

impl Trust {
    /// Reads them, or makes the first one.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, PkiError> {
        if let Some(text) = files::read_text(&dir.join(STATE))? {
            let malformed =
                |error: serde_json::Error| PkiError::Malformed { path: dir.join(STATE), why: error.to_string() };
            let trust = Self::load(serde_json::from_str(&text).map_err(malformed)?)?;
            trust.write_copies(dir)?;
            return Ok(trust);
        }
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        let current = match (files::read_text(&certificate)?, files::read_text(&key)?) {
            (Some(pem), Some(key_pem)) => Authority::load(pem, &key_pem)?,
            _ => {
                let made = Authority::generate(now)?;
                files::write_private(&key, made.key_pem().as_bytes())?;
                files::write_private(&certificate, made.pem().as_bytes())?;
                made
            }
        };
        Ok(Self { current: Arc::new(current), former: Vec::new() })
    }

    fn load(stored: StoredTrust) -> Result<Self, PkiError> {
        let current = Arc::new(Authority::load(stored.certificate, &stored.key)?);
        let former = stored.former.into_iter().map(|one| {
            let authority = Arc::new(Authority::load(one.certificate, &one.key)?);
            Former::new(authority, one.cross, one.since, one.trusted)
        });
        Ok(Self { current, former: former.collect::<Result<_, _>>()? })
    }

    fn stored(&self) -> StoredTrust {
        let former = self.former.iter().map(|one| StoredFormer {
            certificate: one.authority.pem().to_owned(),
            key: one.authority.key_pem(),
            cross: one.cross_pem.clone(),
            since: one.since,
            trusted: one.trusted,
        });
        StoredTrust {
            certificate: self.current.pem().to_owned(),
            key: self.current.key_pem(),
            former: former.collect(),
        }
    }

    /// What follows once the write of `authorities.json` has decided.
    fn write_copies(&self, dir: &Path) -> Result<(), PkiError> {
        let path = dir.join(CERTIFICATE);
        if files::read_text(&path)?.as_deref() != Some(self.current.pem()) {
            files::write_private(&path, self.current.pem().as_bytes())?;
        }
        files::remove(&dir.join(KEY))
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let text = serde_json::to_vec(&self.stored()).expect("texts and times encode");
        files::write_private(&dir.join(STATE), &text)?;
        self.write_copies(dir)
    }

    /// With a new current authority that all others have cross-signed; both count from now on.
    pub(super) fn rotated(&self, expected: &str, now: Timestamp) -> Result<Self, RotationError> {
        let found = hex(self.current.key_hash());
        if found != expected {
            return Err(RotationError::Moved { expected: expected.to_owned(), found });
        }
        if let Some(former) = self.former.iter().find(|former| former.trusted) {
            return Err(RotationError::UnderWay(former.since));
        }
        let current = Arc::new(Authority::generate(now)?);
        let last = (self.current.clone(), now, true);
        let others = self.former.iter().map(|one| (one.authority.clone(), one.since, one.trusted));
        let former = std::iter::once(last).chain(others).take(FORMER_LIMIT).map(|(authority, since, trusted)| {
            let cross = authority.cross_sign(&current, now)?;
            Former::new(authority, cross, since, trusted)
        });
        let former = former.collect::<Result<Vec<_>, PkiError>>()?;
        Ok(Self { current, former })
    }

    /// Certificates of former authorities count no longer.
    pub(super) fn finished(&self) -> Self {
        let former = self.former.iter().map(|one| Former { trusted: false, ..one.clone() });
        Self { current: self.current.clone(), former: former.collect() }
    }

    /// The authorities whose certificates count, the current one first.
    pub fn trusted(&self) -> impl Iterator<Item = &Arc<Authority>> {
        let former = self.former.iter().filter(|one| one.trusted).map(|one| &one.authority);
        std::iter::once(&self.current).chain(former)
    }

    /// Every authority, the current one first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Authority>> {
        std::iter::once(&self.current).chain(self.former.iter().map(|one| &one.authority))
    }

    /// PEM of the authorities whose certificates count.
    pub fn bundle_pem(&self) -> String {
        self.trusted().map(|authority| authority.pem()).collect()
    }

    /// PEM of everything somebody needs who only knows a former authority.
    pub fn offered_pem(&self) -> String {
        let crosses = self.former.iter().map(|one| one.cross_pem.as_str());
        self.all().map(|authority| authority.pem()).chain(crosses).collect()
    }
}

impl Former {
    fn new(authority: Arc<Authority>, cross_pem: String, since: Timestamp, trusted: bool) -> Result<Self, PkiError> {
        let cross = CertificateDer::from_pem_slice(cross_pem.as_bytes())
            .map_err(|error| PkiError::Malformed { path: STATE.into(), why: error.to_string() })?;
        Ok(Self { authority, cross, cross_pem, since, trusted })
    }
}
