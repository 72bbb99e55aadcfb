//! The secret that a board's TPM keeps for the replica, sealed in a file beside the node's key. Only the TPM that
//! sealed it opens it, whatever firmware, kernel or edgelet the board has booted: a policy on those (PCRs) would cost
//! the pods with every update. So it protects a card or disk without its board, not a whole board in wrong hands.

use crate::pki::{PkiError, files};
use crate::sys::tpm::{SECRET_BYTES, Sealed, Tpm, TpmError};
use ring::rand::{SecureRandom, SystemRandom};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const FILE: &str = "tpm.sealed";
/// Drivers of TPMs on a slow bus come up while services start.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);

pub type Secret = [u8; SECRET_BYTES];

#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    #[error("read {0}: {1}")]
    File(PathBuf, io::Error),
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    /// It may be there again at the next boot: of another kernel, or with the firmware set right.
    #[error("unseal {0}: {1}; if this board has none for good, remove the file")]
    Absent(PathBuf, TpmError),
    #[error("unseal {0}: {1}")]
    Tpm(PathBuf, TpmError),
    #[error(transparent)]
    Write(#[from] PkiError),
    #[error("the kernel gives no random numbers")]
    Random,
}

impl SealedError {
    /// No later try will read it. Any other error may be gone at the next start, so nothing is given up for it.
    fn is_final(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Tpm(_, TpmError::Refused(_)))
    }
}

/// What was sealed here before; `None`: nothing. Writes nothing. Blocks.
pub fn unseal(file: &Path, tpm: &Tpm) -> Result<Option<Secret>, SealedError> {
    let bytes = match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| SealedError::File(file.to_owned(), error))?,
    };
    let sealed = Sealed::from_bytes(&bytes).ok_or_else(|| SealedError::Damaged(file.to_owned()))?;
    tpm.unseal(&sealed).map(Some).map_err(|error| match error {
        TpmError::Absent(_) => SealedError::Absent(file.to_owned(), error),
        error => SealedError::Tpm(file.to_owned(), error),
    })
}

/// As `unseal`; seals a new secret when there is a TPM and none was sealed, or what was is lost for good. `None`:
/// there is no TPM, or none that can be used. An error: the TPM may well know the secret, but does not tell it now.
pub fn unseal_or_seal(file: &Path, tpm: &Tpm) -> Result<Option<Secret>, SealedError> {
    if file.exists() {
        tpm.wait(ARRIVAL_LIMIT);
    }
    match unseal(file, tpm) {
        Err(error) if error.is_final() => {
            tracing::warn!(%error, "the secret that a tpm kept for this disk is lost: is this its board, was its tpm \
                                    cleared? what was sealed with it is given up");
            files::remove(file)?;
        }
        Ok(None) => {}
        told => return told,
    }
    if !tpm.is_present() {
        return Ok(None);
    }
    match seal(file, tpm) {
        Ok(secret) => Ok(Some(secret)),
        Err(error) => {
            tracing::warn!(%error, "this board's tpm cannot be used: the replica is not bound to the board");
            Ok(None)
        }
    }
}

fn seal(file: &Path, tpm: &Tpm) -> Result<Secret, SealedError> {
    let mut secret = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut secret).map_err(|_| SealedError::Random)?;
    let sealed = tpm.seal(secret).map_err(|error| SealedError::Tpm(file.to_owned(), error))?;
    files::write_private(file, &sealed.to_bytes())?;
    Ok(secret)
}
