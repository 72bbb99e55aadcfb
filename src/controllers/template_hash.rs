//! The short name of a template, as labels and names of children carry it.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Letters and digits that make no words.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LENGTH: usize = 10;

/// Stable over versions of edgelet: equal templates have equal hashes for ever.
pub fn template_hash(template: &Value, collisions: i64) -> String {
    let mut digest = Sha256::new();
    digest.update(template.to_string());
    if collisions > 0 {
        digest.update(collisions.to_le_bytes());
    }
    let bytes: [u8; 8] = digest.finalize()[..8].try_into().expect("a digest has 32 bytes");
    let mut number = u64::from_le_bytes(bytes);
    let mut text = String::with_capacity(HASH_LENGTH);
    for _ in 0..HASH_LENGTH {
        let place = usize::try_from(number % 27).expect("below 27");
        text.push(char::from(SAFE[place]));
        number /= 27;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hashes_are_stable_safe_and_move_with_collisions() {
        let template = json!({"spec": {"containers": [{"image": "a", "name": "c"}]}});
        let first = template_hash(&template, 0);
        // Pinned: a change would roll out every Deployment again.
        assert_eq!(first, "mk4td49d6m");
        assert_eq!(first.len(), HASH_LENGTH);
        assert!(first.bytes().all(|byte| SAFE.contains(&byte)));
        assert_ne!(first, template_hash(&template, 1));
        assert_ne!(first, template_hash(&json!({"spec": {}}), 0));
    }
}
