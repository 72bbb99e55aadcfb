//! The key that Secrets are sealed with in the database. It lies with the authority's key and goes into backups.

use super::{PkiError, files, hex, random};
use std::path::Path;

const FILE: &str = "at-rest.key";

/// The key kept in the folder; made at the first start.
pub fn key(dir: &Path) -> Result<[u8; 32], PkiError> {
    let path = dir.join(FILE);
    match files::read_text(&path)? {
        Some(text) => parse(text.trim()).ok_or(PkiError::Malformed { path, why: "it is no key".into() }),
        None => {
            files::make_private_dir(dir)?;
            let key = random()?;
            files::write_private(&path, hex(&key).as_bytes())?;
            Ok(key)
        }
    }
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 2 * key.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_the_same_and_a_damaged_one_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let first = key(folder.path()).unwrap();
        assert_eq!(key(folder.path()).unwrap(), first);
        for damaged in ["", "00", &"zz".repeat(32)] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            assert!(matches!(key(folder.path()), Err(PkiError::Malformed { .. })));
        }
    }
}
